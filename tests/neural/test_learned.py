"""What learned codecs share: transform start, training, exactness, files, codec, damage, configuration files. The model is the autoencoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import ODD_INPUTS, check_damage, check_finer_steps, check_odd_input, check_steps_without_sense

from nbmf_research import training
from nbmf_research.core import InputError, StreamError, seed_everything
from nbmf_research.metrics import snr_db
from nbmf_research.neural import autoencoder as ae
from nbmf_research.neural import learned as le
from nbmf_research.neural.codec import decompress
from nbmf_research.neural.simulate import simulate
from nbmf_research.neural.weights import find_weights, list_weights

SMALL = {"stride": 16, "latents": 16, "hidden": 8, "summary": 2, "summary_stride": 4}


@pytest.fixture(scope="module")
def lfp() -> np.ndarray:
    return np.asarray(simulate("lfp", seconds=8.0, seed=1).recording.values)


def train(lfp: np.ndarray, folder: Path, steps: int, seed: int = 0) -> le.RateDistortionTask:
    seed_everything(seed)
    parts = [le.components(lfp)]
    task = le.RateDistortionTask(le.make_model("autoencoder", **SMALL), parts, parts, batch=8, frames=64)
    quiet = training.LogConfig(progress=False)
    training.fit(
        task, training.TrainConfig(str(folder), steps, seed, optimizer=training.OptimizerConfig(4e-3), log=quiet)
    )
    return task


@pytest.fixture(scope="module")
def trained(lfp: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> le.LearnedModel:
    return train(lfp, tmp_path_factory.mktemp("run") / "a", 60).module.eval()


@pytest.mark.parametrize("stride", [16, 64, 128])
def test_starts_as_a_perfect_transform(stride: int) -> None:
    seed_everything(0)
    model = le.make_model("autoencoder", stride=stride, latents=stride, hidden=8).eval()
    x = 20 * torch.randn(2, 1, 301)
    with torch.no_grad():
        assert (model.synthesise(model.analyse(x), 301) - x).square().mean() < 0.05


def test_bottleneck_drops_high_frequencies() -> None:
    model = le.make_model("autoencoder", stride=32, latents=8, hidden=8).eval()
    t = torch.arange(1000.0)
    with torch.no_grad():
        slow, fast = (model.synthesise(model.analyse(20 * torch.sin(t * f)[None, None]), 1000) for f in (0.1, 2.0))
    assert slow.square().mean() > 150 and fast.square().mean() < 5


def test_training_lowers_the_loss_and_reaches_every_parameter(
    trained: le.LearnedModel, lfp: np.ndarray, tmp_path: Path
) -> None:
    fresh = train(lfp, tmp_path / "b", 1)
    now = le.RateDistortionTask(trained, fresh.sources, fresh.held, batch=8, frames=64)
    shard = training.Shard()
    assert now.validate(trained.eval(), shard)["loss"] < 0.95 * fresh.validate(fresh.module.eval(), shard)["loss"]
    trained.zero_grad()
    out = trained.train()(now.draw(now.sources, 0))
    (out["bits"].sum() + out["x_hat"].square().sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained.parameters())
    trained.eval()


def test_training_reproduces(lfp: np.ndarray, tmp_path: Path) -> None:
    a, b, c = (
        train(lfp, tmp_path / name, 3, seed).module.state_dict() for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], c[k]) for k in a)


def test_decoding_is_exact(trained: le.LearnedModel, lfp: np.ndarray, tmp_path: Path) -> None:
    exact = le.ExactModel.of(trained)
    x = le.components(lfp)[:3, :1001] / 10
    stream = exact.compress(x)
    y = exact.decompress(stream, 3, 1001)
    assert snr_db(x.T, y.T) > 10
    sha = le.save_model(exact, tmp_path / "m.safetensors")
    again = le.load_model(tmp_path / "m.safetensors", sha256=sha)
    assert (again.decompress(stream, 3, 1001) == y).all() and again.compress(x) == stream
    q = exact.entropy.decompress(stream, (3, 16, 64))
    one = np.concatenate([exact.synthesise(v[None], 1001) for v in q])
    assert (one == y).all()
    bend = exact.g_s_bend.reference(np.clip(q, -127, 127))[:, 0, 16:]
    blocks = np.einsum("bkt,kj->btj", q, exact.g_s.astype(np.int64))
    linear = (blocks[:, 1:, :16] + blocks[:, :-1, 16:]).reshape(3, -1)
    assert ((linear + bend[:, : linear.shape[1]] * 256)[:, :1001] / 4096 == y).all()


def test_batches_and_threads_do_not_matter(lfp: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = ae.AutoencoderCodec(step=float(lfp.std()) / 3)
    stream = codec.compress(lfp[:3000])
    first, threads = codec.decompress(stream).values, torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        assert (codec.decompress(stream).values == first).all()
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(le, "_BATCH", 3000)
    small = codec.compress(lfp[:3000])
    assert np.allclose(codec.decompress(small).values, first)


@pytest.mark.parametrize("x", ODD_INPUTS)
def test_odd_inputs_survive(x: np.ndarray) -> None:
    check_odd_input(ae.AutoencoderCodec, x, within=12)


def test_finer_steps_give_better_copies(lfp: np.ndarray) -> None:
    check_finer_steps(ae.AutoencoderCodec, lfp)


def test_damage_and_nonsense(lfp: np.ndarray, tmp_path: Path) -> None:
    check_damage(ae.AutoencoderCodec, lfp)
    check_steps_without_sense(ae.AutoencoderCodec, lfp)
    with pytest.raises(InputError):
        ae.AutoencoderConfig(stride=16, latents=17)
    with pytest.raises(InputError, match="autoencoder"):
        le.make_model("autoencoder", depth=3)
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(StreamError):
        le.load_model(tmp_path / "x.safetensors")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NBMF_MODEL_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


CONFIG = """
task: neural.learned
options: {{model: autoencoder, sets: [sim_lfp], config: {config}, weights: mine, keep: 4, batch: 4, frames: 16}}
train: {{folder: {folder}, steps: 4, validation: {{every: 2}}, log: {{progress: false}}}}
"""


def test_a_configuration_becomes_a_codec(own: Path, tmp_path: Path, lfp: np.ndarray) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(config=json.dumps(SMALL), folder=tmp_path / "run"))
    training.train(str(tmp_path / "c.yaml"))
    assert find_weights("mine").path.parent == own and list_weights()[-1].name == "mine"
    assert (
        find_weights("mine").card["data"]["sets"] == ["sim_lfp"] and find_weights("mine").card["training"]["steps"] == 4
    )
    codec = ae.AutoencoderCodec(step=float(lfp.std()) / 4, weights="mine")
    stream = codec.compress(lfp[:2000])
    assert decompress(stream).shape == (2000, lfp.shape[1])
    assert decompress(ae.AutoencoderCodec(step=1.0).compress(lfp[:2000])).shape == (2000, lfp.shape[1])
    find_weights("mine").path.with_suffix(".json").unlink()
    with pytest.raises(StreamError, match="needs the weights"):
        decompress(stream)
    with pytest.raises(InputError, match="no weights are called 'mine'"):
        codec.compress(lfp)


def test_weights_that_are_not_what_their_card_says(own: Path, tmp_path: Path, lfp: np.ndarray) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.format(config=json.dumps(SMALL), folder=tmp_path / "run"))
    training.train(str(tmp_path / "c.yaml"))
    stream = ae.AutoencoderCodec(weights="mine").compress(lfp[:500])
    le._load.cache_clear()
    path = find_weights("mine").path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StreamError, match="SHA-256"):
        decompress(stream)
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(InputError, match="no model card"):
        list_weights()


def test_sets_without_a_validation_part_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown|no .*set"):
        le.LearnedTask(sets=["nowhere"])
