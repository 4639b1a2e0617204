"""Autoencoder: transform start, training, exactness, files, codec, damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nbmf_research.core import InputError, StreamError
from nbmf_research.metrics import snr_db
from nbmf_research.neural import autoencoder as ae
from nbmf_research.neural.simulate import simulate

SMALL = ae.AutoencoderConfig(stride=16, latents=16, hidden=8, summary=2, summary_stride=4)


@pytest.fixture(scope="module")
def lfp() -> np.ndarray:
    return np.asarray(simulate("lfp", seconds=8.0, seed=1).recording.values)


@pytest.fixture(scope="module")
def trained(lfp: np.ndarray) -> ae.Autoencoder:
    torch.manual_seed(0)
    model = ae.Autoencoder(SMALL)
    ae.fit(model, [ae.components(lfp)], steps=60, batch=8, rate=4e-3)
    return model


@pytest.mark.parametrize("stride", [16, 64, 128])
def test_starts_as_a_perfect_transform(stride: int) -> None:
    torch.manual_seed(0)
    model = ae.Autoencoder(ae.AutoencoderConfig(stride=stride, latents=stride, hidden=8)).eval()
    x = 20 * torch.randn(2, 1, 301)
    with torch.no_grad():
        assert (model.synthesise(model.analyse(x), 301) - x).square().mean() < 0.05


def test_bottleneck_drops_high_frequencies() -> None:
    model = ae.Autoencoder(ae.AutoencoderConfig(stride=32, latents=8, hidden=8)).eval()
    t = torch.arange(1000.0)
    with torch.no_grad():
        slow, fast = (model.synthesise(model.analyse(20 * torch.sin(t * f)[None, None]), 1000) for f in (0.1, 2.0))
    assert slow.square().mean() > 150 and fast.square().mean() < 5


def loss_of(model: ae.Autoencoder, x: torch.Tensor) -> float:
    with torch.no_grad():
        out = model.eval()(x, "round")
    return float(out["bits"].sum() / x.numel() + (out["x_hat"] - x).square().mean() / ae.TRADE)


def test_training_lowers_the_loss_and_reaches_every_parameter(trained: ae.Autoencoder, lfp: np.ndarray) -> None:
    x = ae.excerpts([ae.components(lfp)], 512, 32, np.random.default_rng(0))
    torch.manual_seed(0)
    fresh = ae.Autoencoder(SMALL)
    ae.fit(fresh, [ae.components(lfp)], steps=1, batch=8)
    assert loss_of(trained, x) < 0.95 * loss_of(fresh, x)
    trained.zero_grad()
    out = trained(x)
    (out["bits"].sum() + (out["x_hat"] - x).square().sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained.parameters())


def test_training_reproduces(lfp: np.ndarray) -> None:
    def once() -> list[float]:
        torch.manual_seed(3)
        return ae.fit(ae.Autoencoder(SMALL), [ae.components(lfp)], steps=4, batch=4, seed=5)

    assert once() == once()


def test_decoding_is_exact(trained: ae.Autoencoder, lfp: np.ndarray, tmp_path: Path) -> None:
    frozen = ae.FrozenAutoencoder.of(trained)
    x = ae.components(lfp)[:3, :1001] / 10
    stream = frozen.compress(x)
    y = frozen.decompress(stream, 3, 1001)
    assert snr_db(x.T, y.T) > 10
    one = np.concatenate([frozen.decompress(frozen.compress(v[None]), 1, 1001) for v in x])
    assert (one == y).all()
    sha = ae.save_model(frozen, tmp_path / "m.safetensors")
    again = ae.load_model(tmp_path / "m.safetensors", sha256=sha)
    assert (again.decompress(stream, 3, 1001) == y).all() and again.compress(x) == stream
    q = frozen.entropy.decompress(stream, (3, 16, 64))
    bend = frozen.nets["g_s_bend"].reference(np.clip(q, -127, 127))[:, 0, 16:]
    blocks = np.einsum("bkt,kj->btj", q, frozen.g_s.astype(np.int64))
    linear = (blocks[:, 1:, :16] + blocks[:, :-1, 16:]).reshape(3, -1)
    assert ((linear + bend * 256)[:, :1001] / 4096 == y).all()


def test_batches_and_threads_do_not_matter(lfp: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = ae.AutoencoderCodec(step=float(lfp.std()) / 3)
    stream = codec.compress(lfp[:3000])
    first, threads = codec.decompress(stream).values, torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        assert (codec.decompress(stream).values == first).all()
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(ae, "_BATCH", 3000)
    small = codec.compress(lfp[:3000])
    assert np.allclose(codec.decompress(small).values, first)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((1, 1), np.int16),
        np.full((300, 4), -7.25, np.float32),
        np.tile([[-32768], [32767]], (150, 2)).astype(np.int16),
        np.random.default_rng(0).normal(size=(70, 90)).astype(np.float32),
    ],
)
def test_odd_inputs_survive(x: np.ndarray) -> None:
    codec = ae.AutoencoderCodec(step=max(float(np.abs(x).max()) / 50, 0.01))
    y = codec.decompress(codec.compress(x)).values
    assert y.shape == x.shape and np.isfinite(y).all() and np.abs(y - x).max() < 12 * codec.step


def test_finer_steps_give_better_copies(lfp: np.ndarray) -> None:
    sd = float(lfp.std())
    points = []
    for part in (1, 4, 16):
        codec = ae.AutoencoderCodec(step=sd / part)
        stream = codec.compress(lfp)
        points.append((len(stream), snr_db(lfp, codec.decompress(stream).values)))
    assert (np.diff(points, axis=0) > 0).all()


def test_damage_and_nonsense(lfp: np.ndarray, tmp_path: Path) -> None:
    codec = ae.AutoencoderCodec(step=float(lfp.std()))
    stream = codec.compress(lfp[:500])
    for broken in (stream[:-1], stream[:30]):
        with pytest.raises(StreamError):
            codec.decompress(broken)
    payload = codec.encode(lfp[:500])
    for size in (0, 5, 20, len(payload) - 4):
        with pytest.raises(StreamError):
            codec.decode(payload[:size], (500, lfp.shape[1]), np.dtype("<f4"))
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(InputError):
            ae.AutoencoderCodec(step=bad)
    with pytest.raises(InputError):
        ae.AutoencoderCodec(step=1e-6).compress(lfp[:100])
    with pytest.raises(InputError):
        ae.AutoencoderConfig(stride=16, latents=17)
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(StreamError):
        ae.load_model(tmp_path / "x.safetensors")
