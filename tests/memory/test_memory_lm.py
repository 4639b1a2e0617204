"""The language model of the tier max: one set of integers, exact codes, files, training."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from nbmf_research.core import InputError, StreamError
from nbmf_research.memory import lm
from nbmf_research.memory import records as rc
from nbmf_research.memory.mixing import ContextMixer, adapted
from nbmf_research.memory.training import Training, read_model, train_model
from nbmf_research.training import CheckpointConfig, Shard, TrainConfig, ValidationConfig, fit

GOLDEN = Path(__file__).parent / "golden"
SMALL = Training(bytes_per_source=5000, reference_bytes=3000, bits=12, final_bits=12)
SENTENCE = "Ben: can you move the meeting to 14:05, “Harbour 9”? Danke — é 東".encode()


def odd_network(seed: int, hidden: int = 20, back: int = 3, near: int = 2, reach: int = 3000) -> dict[str, NDArray]:
    """Arrays of any values that the format allows."""
    rng = np.random.default_rng(seed)
    kinds = {"first": (back, 257, 2 * hidden), "second": (near, 257, 2 * hidden)}
    arrays = {k: rng.integers(-reach, reach, n).astype(np.int16) for k, n in kinds.items()}
    for name, rows in (("inner", 2 * hidden), ("head", 256)):
        arrays[name] = rng.integers(-127, 128, (rows, hidden)).astype(np.int8)
        arrays[f"{name}_scale"] = rng.integers(1, 40 * reach, rows).astype(np.int32)
    arrays["bias"] = rng.integers(-reach, reach, 256).astype(np.int16)
    return arrays


def stepped(arrays: dict[str, NDArray], data: bytes) -> NDArray:
    g, rows = lm.guide(arrays), []
    lm._reset(g)
    for byte in data:
        lm._step(g)
        rows.append(g.tree[256:].copy())
        lm._take(g, byte)
    return np.array(rows)


@pytest.fixture(scope="module")
def fast() -> ContextMixer:
    records: dict[str, list[rc.Record]] = {}
    for r in rc.synthetic_records(60, seed=8):
        records.setdefault(r.source, []).append(r)
    return train_model(records, SMALL)


@pytest.fixture(scope="module")
def guided(fast: ContextMixer) -> lm.GuidedMixer:
    own = {name: getattr(fast.m, name).copy() for name in lm.OWN}
    own["weights"].reshape(-1, 48)[:, -2] = 20000
    return lm.GuidedMixer(fast, lm.guide(odd_network(1)), own)


@settings(max_examples=20, deadline=None)
@given(data=st.binary(min_size=1, max_size=60), seed=st.integers(0, 9), reach=st.sampled_from([1, 3000, 32767]))
def test_torch_and_numba_compute_the_same_integers(data: bytes, seed: int, reach: int) -> None:
    arrays = odd_network(seed, reach=reach)
    assert (lm.logits(arrays, data) == stepped(arrays, data)).all()


def test_golden_vectors(guided: lm.GuidedMixer) -> None:
    """These integers, and these codes, are the format: a change of them is a new version."""
    found = stepped(odd_network(7), SENTENCE)
    assert found[[0, 5, -1], [0, 101, 255]].tolist() == GOLDEN_LOGITS
    assert hashlib.sha256(found.astype("<i8").tobytes()).hexdigest() == GOLDEN_HASH
    base = read_model(GOLDEN / "v1_model.safetensors").mixer
    own = {name: getattr(base.m, name).copy() for name in lm.OWN}
    own["weights"].reshape(-1, 48)[:, -2:] = 9000
    golden = lm.GuidedMixer(base, lm.guide(odd_network(7)), own)
    assert golden.encode(SENTENCE).hex() == GOLDEN_CODE and golden.decode(bytes.fromhex(GOLDEN_CODE)) == SENTENCE


def test_guesses_are_shares_of_the_softmax() -> None:
    arrays = odd_network(3, reach=300)
    g, outer = lm.guide(arrays), np.zeros(256, np.int32)
    lm._reset(g)
    lm._guess(g, outer)
    share = np.exp(lm.logits(arrays, b"x")[0] / lm.UNIT)
    share /= share.sum()
    for node, half in ((1, share[128:].sum()), (2, share[64:128].sum() / share[:128].sum())):
        assert 1 / (1 + np.exp(-outer[node] / 256)) == pytest.approx(half, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(data=st.binary(max_size=200) | st.sampled_from([bytes(300), b"\xff" * 90, SENTENCE]))
def test_records_come_back_and_leave_no_trace(guided: lm.GuidedMixer, data: bytes) -> None:
    before = guided.fast.encode(SENTENCE)
    code = guided.encode(data)
    assert guided.decode(code) == data and guided.encode(data) == code
    assert guided.fast.encode(SENTENCE) == before and guided.fast.decode(before) == SENTENCE


def test_threads_share_a_model(guided: lm.GuidedMixer) -> None:
    texts = [r.data for r in rc.synthetic_records(6, 3)]
    other = lm.GuidedMixer(guided.fast, guided.network, guided.own)
    expected = [(guided.encode(t), guided.fast.encode(t)) for t in texts]
    found: dict[int, list[tuple[bytes, bytes]]] = {}

    def work(i: int, mixer: lm.GuidedMixer) -> None:
        found[i] = [(mixer.encode(t), mixer.fast.encode(t)) for t in texts]

    threads = [threading.Thread(target=work, args=(i, m)) for i, m in enumerate((guided, other, guided))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(f == expected for f in found.values()) and len(found) == 3


def test_an_interrupted_call_leaves_no_trace(guided: lm.GuidedMixer, monkeypatch: pytest.MonkeyPatch) -> None:
    code, plain = guided.encode(SENTENCE), guided.fast.encode(SENTENCE)
    kernel = lm._write

    def stops(*arguments: object) -> int:
        kernel(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(lm, "_write", stops)
    with pytest.raises(KeyboardInterrupt):
        guided.encode(b"another text")
    monkeypatch.undo()
    assert guided.fast.encode(SENTENCE) == plain and guided.encode(SENTENCE) == code


def test_adapting(guided: lm.GuidedMixer) -> None:
    own = [f"pump {i % 6} of harbour 9 moved {31 * i % 97} litres".encode() for i in range(50)]
    later = guided.adapted(adapted(guided.fast, own[:40]))
    codes = [later.encode(t) for t in own[40:]]
    assert [later.decode(c) for c in codes] == own[40:]
    assert sum(map(len, codes)) < 0.7 * sum(len(guided.encode(t)) for t in own[40:])


def test_a_code_without_an_end(guided: lm.GuidedMixer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm, "_read", lambda *_: -1)
    with pytest.raises(StreamError, match="no end"):
        guided.decode(b"abc")


def test_files(tmp_path: Path, guided: lm.GuidedMixer) -> None:
    path, arrays = tmp_path / "one.safetensors", odd_network(1)
    digest = lm.save_guide(arrays, guided.own, path)
    found = lm.read_guide(path, digest.hex())
    assert found.identity == digest[:8] and found.mixer(guided.fast).encode(SENTENCE)
    assert found.mixer(guided.fast).decode(found.mixer(guided.fast).encode(SENTENCE)) == SENTENCE
    whole = load(path.read_bytes())
    wrong: list[dict[str, NDArray]] = [
        {"head": whole["head"][:, :-1]},
        {"first": whole["first"].astype(np.int32)},
        {"bias": whole["bias"][:9]},
        {"own_final": whole["own_final"][:-4]},
        {"second": whole["second"][:0]},
    ]
    for change in wrong:
        path.write_bytes(save({k: np.ascontiguousarray(v) for k, v in (whole | change).items()}))
        with pytest.raises(InputError, match="no readable"):
            lm.read_guide(path)
    with pytest.raises(InputError):
        lm.guide({"first": arrays["first"]})


def test_scan_has_the_gradient_of_its_formula() -> None:
    torch.manual_seed(0)
    gate, new = torch.rand(2, 5, 3), torch.randn(2, 5, 3)
    keep = torch.tensor([[0.0, 1, 1, 0, 1], [0, 1, 1, 1, 1]])
    answers = []
    for each in (True, False):
        a, b = gate.clone().requires_grad_(), new.clone().requires_grad_()
        if each:
            out = lm.scan(a, b, keep)
        else:
            h, rows = torch.zeros(2, 3), []
            for t in range(5):
                h = (1 - a[:, t]) * keep[:, t, None] * h + a[:, t] * b[:, t]
                rows.append(h)
            out = torch.stack(rows, 1)
        (out * torch.arange(30.0).view(2, 5, 3)).sum().backward()
        answers.append((out, a.grad, b.grad))
    for x, y in zip(*answers, strict=True):
        torch.testing.assert_close(x, y)


def test_windows_see_no_other_record() -> None:
    text = lm.Text.of([b"abc", b"", b"de"])
    last, keep, target = lm.windows(text, torch.arange(5)[None], 2)
    assert target[0].tolist() == list(b"abcde") and keep[0].tolist() == [0, 1, 1, 0, 1]
    assert last[:, 0].tolist() == [[256, 97, 98, 256, 100], [256, 256, 97, 256, 256]]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One made-up training source, whatever data is here."""
    name = "taskmaster4"
    source = rc.sources()[name]
    monkeypatch.setattr(lm, "available_sources", lambda role="": [source] if role == "train" else [])
    monkeypatch.setattr(lm, "load_source", lambda name: rc.synthetic_records(120, 1))


def test_train_and_release(made_up: None, tmp_path: Path) -> None:
    task = lm.ByteModelTask(hidden=12, back=2, near=1, batch=4, window=48)
    assert next(task.batches(3, Shard()))[0].shape == (2, 4, 48)
    options = {"hidden": 12, "back": 2, "near": 1}
    config = TrainConfig(
        str(tmp_path / "run"),
        steps=12,
        device="cpu",
        threads=1,
        validation=ValidationConfig(every=6),
        checkpoint=CheckpointConfig(every=0),
    )
    result = fit(task, config, {"task": "memory.lm", "options": options})
    assert result.metrics["loss"] < 8
    path = lm.release(tmp_path / "run", tmp_path, SMALL, 0.5)
    card = json.loads(path.with_suffix(".json").read_text())
    assert (
        card["bytes"] == path.stat().st_size and "taskmaster4" in card["training"]["data"] and len(card["curve"]) == 2
    )
    found = lm.read_guide(path, card["sha256"])
    model = train_model({"one": rc.synthetic_records(60, 2)}, SMALL)
    assert found.mixer(model).decode(found.mixer(model).encode(SENTENCE)) == SENTENCE


def test_release_needs_a_run(made_up: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train first"):
        lm.release(tmp_path, tmp_path)


GOLDEN_LOGITS = [1199, 93631, 44474]
GOLDEN_HASH = "006c9cd7baba023dcf1c95fcca420ceaadab20560625aaa76e15e4a1b0a413a0"
GOLDEN_CODE = (
    "af16824c950362d6c6d0bea956cf3c9304866886002fdef1165104512a5caa6c16a2758df095ee4b898aec04fc1fa21448e9b217ce62"
)
