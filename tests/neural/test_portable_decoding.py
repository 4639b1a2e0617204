"""A learned stream made here gives the same samples in another process: on other threads, row by row, in numpy integers, and with its networks in ONNX Runtime."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from nbmf_research.coding.exact import ExactSequential
from nbmf_research.neural import learned
from nbmf_research.neural.autoregressive import (
    FrozenAutoregressive,
    FrozenCausal,
    Ints,
    Step,
    frames_before,
    serialise,
)
from nbmf_research.neural.codec import create_codec, decompress
from nbmf_research.neural.entropy import FrozenHyperprior
from nbmf_research.neural.learned import ExactModel
from nbmf_research.neural.simulate import simulate

RELEASED = ("autoencoder", "lstm", "transformer", "vae")
Network = Callable[[Tensor], Tensor]

# The decoder's networks, replaced ------------------------------------------------------------------------------------------


class Whole(FrozenCausal):
    """A causal network that is run over all frames for each step, by whatever runs its two branches."""

    def __init__(self, net: FrozenCausal, run: Callable[[ExactSequential], Network], steps: int) -> None:
        self.nets, self.steps = net.nets, steps
        self.width, self.bands = net.width, net.bands  # type: ignore[attr-defined]
        self.near, self.far = run(net.nets["near"]), run(net.nets["far"])

    def parallel(self, x: Ints) -> Ints:
        seen = torch.from_numpy(x).float()
        far = self.far(frames_before(seen, self.width, self.bands))
        return np.asarray((self.near(seen) + serialise(far, self.bands)).numpy().astype(np.int64))

    def start(self, batch: int) -> Step:
        seen, t = np.zeros((batch, self.width + self.bands, self.steps), np.int64), -1

        def step(x: Ints) -> Ints:
            nonlocal t
            t += 1
            seen[..., t] = x
            return self.parallel(seen)[..., t]

        return step


class Rows(FrozenCausal):
    """Every row of a batch on its own."""

    def __init__(self, net: FrozenCausal) -> None:
        self.nets, self.net = net.nets, net

    def parallel(self, x: Ints) -> Ints:
        return np.concatenate([self.net.parallel(row[None]) for row in x])

    def start(self, batch: int) -> Step:
        steps = [self.net.start(1) for _ in range(batch)]
        return lambda x: np.concatenate([step(row[None]) for step, row in zip(steps, x, strict=True)])


def one_row(net: ExactSequential) -> Network:
    return lambda x: torch.cat([net(row[None]) for row in x])


def in_numpy(net: ExactSequential) -> ExactSequential:
    net.selftest(strict=True)
    net.fallback = True
    return net


def in_onnx(net: ExactSequential) -> Network:
    """Export for each shape when it is first met; run without torch."""
    import onnxruntime

    held: dict[tuple[int, ...], onnxruntime.InferenceSession] = {}

    def run(x: Tensor) -> Tensor:
        if tuple(x.shape) not in held:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                path = str(Path(folder) / "net.onnx")
                torch.onnx.export(net, (x,), path, dynamo=False)
                held[tuple(x.shape)] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        session = held[tuple(x.shape)]
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])

    return run


def replaced(model: ExactModel, how: str, frames: int) -> ExactModel:
    """The same decoder with its networks run in another way."""
    entropy = model.entropy
    if how == "numpy":
        for net in (model.g_s_bend, *entropy.parts()[0].values()):
            in_numpy(net)
        return model
    run: Callable[[ExactSequential], Network] = in_onnx if how == "onnx" else one_row
    if isinstance(entropy, FrozenHyperprior):
        entropy.h_s = run(entropy.h_s)  # type: ignore[assignment]
    elif isinstance(entropy, FrozenAutoregressive):
        steps = frames * entropy.bands
        entropy.net = Whole(entropy.net, run, steps) if how == "onnx" else Rows(entropy.net)
    else:
        raise AssertionError(f"no way to replace the networks of {type(entropy).__name__}: add one")
    model.g_s_bend = run(model.g_s_bend)  # type: ignore[assignment]
    return model


# The other process -------------------------------------------------------------------------------------------------------


def digest(samples: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(samples, "<f8").tobytes()).hexdigest()


def decode_here(folder: Path, how: str, frames: Mapping[str, int]) -> dict[str, str]:
    """Digests of the decoded streams of a folder."""
    original, out = learned.load_model, {}
    for name in RELEASED:

        def load(path: Path, *, sha256: str | None = None, name: str = name) -> ExactModel:
            model = original(path, sha256=sha256)
            return model if how == "threads" else replaced(model, how, frames[name])

        with mock.patch.object(learned, "load_model", load):
            out[name] = digest(decompress((folder / name).read_bytes()).values)
    return out


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    found = {how: decode_here(Path(sys.argv[1]), how, json.loads(sys.argv[4])) for how in sys.argv[2].split(",")}
    print(json.dumps(found))


# The tests ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], dict[str, int]]:
    """A stream of each released codec, the digests of what it decodes to in this process, and frames of latents."""
    folder = tmp_path_factory.mktemp("streams")
    x = simulate("lfp", seconds=1.0, seed=5).recording.values[:900, :5]
    digests, frames = {}, {}
    for name in RELEASED:
        codec = create_codec(name, step=float(x.std()) / 3)
        assert isinstance(codec, learned.LearnedCodec)
        stream = codec.compress(x)
        (folder / name).write_bytes(stream)
        decoded = codec.decompress(stream).values
        assert np.square(decoded - x).mean() < x.var() / 10  # it is the recording
        stride = learned.exact_model(codec.weights).config.stride
        digests[name], frames[name] = digest(decoded), -(-len(x) // stride) + 1
    assert len(set(digests.values())) == len(RELEASED)
    return folder, digests, frames


@pytest.mark.parametrize("ways", ["threads,rows,numpy", "onnx"])
def test_another_process_gives_the_same_samples(
    streams: tuple[Path, dict[str, str], dict[str, int]], ways: str
) -> None:
    folder, digests, frames = streams
    if ways == "onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        pytest.importorskip("onnx", reason="onnx is not installed")
    threads = "1" if torch.get_num_threads() > 1 else "2"
    command = [sys.executable, __file__, str(folder), ways, threads, json.dumps(frames)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": threads}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(ways.split(","), digests)
