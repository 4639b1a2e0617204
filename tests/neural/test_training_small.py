"""Each learned model, ten short epochs on simulated data: the loss falls, gradients reach every parameter, and the fresh weights meet 5x, 10x and 20x."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

from nbmf_research import training
from nbmf_research.coding.container import open_stream
from nbmf_research.metrics import snr_db
from nbmf_research.neural import streams
from nbmf_research.neural.codec import codec_class
from nbmf_research.neural.learned import LearnedCodec
from nbmf_research.neural.lossy import TOLERANCE, check_certificates
from nbmf_research.neural.sets import find_set
from nbmf_research.neural.weights import find_weights

EPOCHS, UPDATES = 10, 6  # updates in an epoch
SHAPE = {"stride": 64, "latents": 64, "hidden": 16}
OWN = {
    "autoencoder": {"summary_stride": 4},
    "lstm": {"bands": 1, "memory": 16, "reach": 4},
    "transformer": {"heads": 2, "bands": 1, "width": 16, "before": 8, "window": 4},
    "vae": {},
}
RATES = {"autoencoder": 4e-3, "lstm": 4e-3, "transformer": 4e-3, "vae": 4e-3}


class Trained:
    """A run of one model, and its task with the weights that came out."""

    def __init__(self, name: str, folder: Path) -> None:
        own = {} if name == "vae" else {"model": name}
        config = {
            "task": "neural.vae" if name == "vae" else "neural.learned",
            "options": own
            | {"sets": ["sim_lfp"], "config": SHAPE | OWN[name], "weights": f"small-{name}"}
            | {"keep": 8, "batch": 6, "frames": 16}
            | ({"warmup": 2 * UPDATES} if name == "vae" else {}),
            "train": {
                "folder": str(folder / name),
                "steps": EPOCHS * UPDATES,
                "device": "cpu",
                "threads": 1,
                "optimizer": {"learning_rate": RATES[name]},
                "validation": {"every": UPDATES},
                "checkpoint": {"every": 0},
                "log": {"every": UPDATES, "progress": False},
            },
        }
        (folder / f"{name}.yaml").write_text(json.dumps(config))
        self.name, self.folder = name, training.train(str(folder / f"{name}.yaml"))
        self.log = training.read_log(self.folder / "log.jsonl")
        self.task = training.read_config(folder / f"{name}.yaml").make()
        self.task.module.load_state_dict(load_file(self.folder / "last.safetensors"))


@pytest.fixture(scope="module", params=list(OWN))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBMF_MODEL_DIR", str(folder / "models"))
        yield Trained(request.param, folder)


def test_the_loss_falls(trained: Trained) -> None:
    held = [line["validation/loss"] for line in trained.log if "validation/loss" in line]
    assert len(held) == EPOCHS and held[-1] < 0.95 * held[0]
    if trained.name != "vae":  # whose weight of the divergence rises meanwhile
        own = [line["loss"] for line in trained.log if "loss" in line]
        assert len(own) == EPOCHS and own[-1] < 0.95 * own[0]


def test_gradients_flow_to_every_parameter(trained: Trained) -> None:
    module = trained.task.module.train()
    module.zero_grad()
    torch.manual_seed(0)
    for i in range(3):
        batch = trained.task.draw(trained.task.sources, i)
        trained.task.loss(module, batch, EPOCHS * UPDATES)["loss"].backward()
    learned = {k: p for k, p in module.named_parameters() if p.requires_grad}
    silent = [k for k, p in learned.items() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert learned and not silent


@pytest.fixture(scope="module")
def unseen() -> xr.DataArray:
    """The validation recording of the set, four seconds of it."""
    item = next(i for i in find_set("sim_lfp").items() if i.split == "validation")
    return item.x.isel(time=slice(0, 4000)).load()


def test_fresh_weights_meet_targets(
    trained: Trained, unseen: xr.DataArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = codec_class(trained.name)
    assert issubclass(made, LearnedCodec)
    monkeypatch.setattr(made, "release", f"small-{trained.name}")
    assert made().weights == find_weights(f"small-{trained.name}").name
    quality = []
    for ratio in (5, 10, 20):
        path = tmp_path / f"{ratio}.nbmf"
        about = streams.encode_recording(unseen, path, codec=trained.name, fallback=(), ratio=ratio)
        reached = 2 * unseen.size / path.stat().st_size
        assert ratio * (1 - TOLERANCE) <= reached <= ratio * (1 + TOLERANCE), (ratio, reached)
        assert about["quality"]["share"] == {trained.name: 1.0}
        with open_stream(path) as stream:
            assert not check_certificates(stream, unseen).violations
            quality.append(snr_db(unseen.values.astype(np.float64), stream.read().astype(np.float64)))
    assert quality == sorted(quality, reverse=True) and quality[-1] > 5
