"""Losses against slow references, their behaviour under scaling and shifting, and gradients that stay finite."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nbmf_research import losses as L
from nbmf_research.core import InputError

RATE = 1000.0
EVERY: dict[str, L.Loss] = {
    "mse": L.MeanSquared(),
    "mae": L.MeanAbsolute(),
    "slope": L.TemporalConsistency(),
    "curvature": L.TemporalConsistency(2),
    "bands": L.BandWeighted(RATE, {(8, 12): 5.0, (30, 80): 0.0}),
    "stft": L.MultiResolutionSTFT((32, 128)),
    "phase": L.PhasePreservation((64,)),
    "spikes": L.SpikeWeighted(RATE, radius_ms=2.0),
}
SQUARED = ("mse", "slope", "curvature", "bands", "spikes")
SCALE_FREE = ("stft", "phase")


def pair(seed: int = 0, shape: tuple[int, int, int] = (2, 3, 300)) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g)
    x[..., shape[-1] // 3] += 12.0
    return x + 0.5 * torch.randn(shape, generator=g), x


# Slow references ---------------------------------------------------------------------------------------------------


def slow_bands(y: np.ndarray, x: np.ndarray, price: Callable[[float], float]) -> float:
    """The discrete Fourier transform of the error as a sum over both signs of frequency."""
    n = x.shape[-1]
    total = 0.0
    for e in (y - x).reshape(-1, n):
        for k in range(n):
            f = min(k, n - k) * RATE / n
            coefficient = (e * np.exp(-2j * np.pi * k * np.arange(n) / n)).sum()
            total += price(f) * abs(coefficient) ** 2 / n**2
    return total / (y.size // n)


def slow_frames(x: np.ndarray, window: int) -> np.ndarray:
    w = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    rows = x.reshape(-1, x.shape[-1])
    starts = range(0, x.shape[-1] - window + 1, window // 4)
    frames = np.array([[np.fft.rfft(row[s : s + window] * w) for s in starts] for row in rows])
    return frames / np.sqrt((w**2).sum())


def slow_stft(y: np.ndarray, x: np.ndarray, windows: tuple[int, ...]) -> float:
    parts = []
    for w in windows:
        p, q = abs(slow_frames(x, w)) ** 2, abs(slow_frames(y, w)) ** 2
        floor = 1e-6 * p.mean()
        a, b = np.sqrt(p + floor), np.sqrt(q + floor)
        parts.append(np.sqrt(((a - b) ** 2).sum() / (a**2).sum()) + abs(np.log(a) - np.log(b)).mean())
    return float(np.mean(parts))


def slow_phase(y: np.ndarray, x: np.ndarray, window: int) -> float:
    a, b = slow_frames(x, window), slow_frames(y, window)
    return float((abs(a) * (1 - np.cos(np.angle(a) - np.angle(b)))).sum() / abs(a).sum())


def slow_spikes(y: np.ndarray, x: np.ndarray, weight: float, threshold: float, radius: int) -> float:
    above = below = 0.0
    for row, back in zip(x.reshape(-1, x.shape[-1]), y.reshape(-1, x.shape[-1])):
        centre = np.sort(row)[(len(row) - 1) // 2]
        mad = np.sort(abs(row - centre))[(len(row) - 1) // 2]
        crossings = np.flatnonzero(abs(row - centre) > threshold * 1.4826 * mad)
        for i in range(len(row)):
            w = weight if any(abs(i - j) <= radius for j in crossings) else 1.0
            above += w * (row[i] - back[i]) ** 2
            below += w
    return above / below


def test_each_loss_equals_its_slow_reference() -> None:
    y, x = pair(1, (2, 2, 130))
    a, b = y.double().numpy(), x.double().numpy()
    expected = {
        "mse": ((a - b) ** 2).mean(),
        "mae": abs(a - b).mean(),
        "slope": (np.diff(a - b) ** 2).mean(),
        "curvature": (np.diff(a - b, 2) ** 2).mean(),
        "bands": slow_bands(a, b, lambda f: 5.0 if 8 <= f < 12 else 0.0 if 30 <= f < 80 else 1.0),
        "stft": slow_stft(a, b, (32, 128)),
        "phase": slow_phase(a, b, 64),
        "spikes": slow_spikes(a, b, 20.0, 4.5, 2),
    }
    assert expected.keys() == EVERY.keys()
    for name, value in expected.items():
        assert float(EVERY[name](y, x)) == pytest.approx(value, rel=2e-4), name


@pytest.mark.parametrize("n", [99, 100, 257])
def test_bands_with_equal_weights_are_the_mean_squared_error(n: int) -> None:
    y, x = pair(2, (2, 3, max(n, 101)))
    y, x = y[..., :n], x[..., :n]
    assert float(L.BandWeighted(RATE, {})(y, x)) == pytest.approx(float(L.MeanSquared()(y, x)), rel=1e-5)
    split = [L.BandWeighted(RATE, {band: 1.0}, 0.0)(y, x) for band in ((0, 50), (50, 200), (200, 501))]
    assert float(sum(split)) == pytest.approx(float(L.MeanSquared()(y, x)), rel=1e-5)


# Properties --------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 50))
def test_scaling_both_signals(scale: float, seed: int) -> None:
    y, x = pair(seed, (1, 2, 150))
    for name, loss in EVERY.items():
        power = 2 if name in SQUARED else 0 if name in SCALE_FREE else 1
        assert float(loss(scale * y, scale * x)) == pytest.approx(scale**power * float(loss(y, x)), rel=1e-3), name


@pytest.mark.parametrize("name", ["mse", "mae", "slope", "curvature", "bands", "spikes"])
def test_shifting_both_signals_by_a_constant_changes_nothing(name: str) -> None:
    y, x = pair(3)
    assert float(EVERY[name](y + 5, x + 5)) == pytest.approx(float(EVERY[name](y, x)), rel=1e-3)


@pytest.mark.parametrize("name", EVERY)
def test_zero_where_equal_and_positive_where_not(name: str) -> None:
    y, x = pair(4)
    assert abs(float(EVERY[name](x, x))) < 1e-5 < float(EVERY[name](y, x))


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_batch_and_channels_does_not_matter(name: str) -> None:
    y, x = pair(5)
    turned = EVERY[name](y.flip(0).flip(1), x.flip(0).flip(1))
    assert float(turned) == pytest.approx(float(EVERY[name](y, x)), rel=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_descent_reaches_the_original_up_to_what_the_loss_cannot_see(name: str) -> None:
    y, x = pair(6, (1, 1, 128))
    y = y.clone().requires_grad_()
    loss = EVERY[name]
    optimizer = torch.optim.Adam([y], lr=0.03)
    before = loss(y, x).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss(y, x).backward()
        optimizer.step()
    assert loss(y, x).item() < 0.6 * before


VALUES = {
    "zeros": torch.zeros(2, 2, 300),
    "constant": torch.full((2, 2, 300), -7.0),
    "huge": torch.full((2, 2, 300), 1e6),
    "tiny": 1e-12 * torch.randn(2, 2, 300, generator=torch.Generator().manual_seed(0)),
    "noise": torch.randn(2, 2, 300, generator=torch.Generator().manual_seed(1)),
    "impulse": torch.zeros(2, 2, 300).index_fill(2, torch.tensor([40]), 30000.0),
    "saturated": torch.randn(2, 2, 300, generator=torch.Generator().manual_seed(2)).sign() * 32767,
}


@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_finite_everywhere(name: str) -> None:
    for (_, x), (_, start) in itertools.product(VALUES.items(), VALUES.items()):
        y = start.clone().requires_grad_()
        value = EVERY[name](y, x)
        value.backward()
        assert value.isfinite() and y.grad is not None and y.grad.isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_shapes_are_checked(name: str) -> None:
    y, x = pair(7)
    for a, b in ((y[:1], x), (y[0], x[0]), (y[..., :0], x[..., :0])):
        with pytest.raises(InputError, match="same, non-empty"):
            EVERY[name](a, b)


def test_windows_longer_than_the_block_are_left_out() -> None:
    y, x = pair(8, (1, 1, 120))
    assert L.MultiResolutionSTFT((32, 512))(y, x) == L.MultiResolutionSTFT((32,))(y, x)
    with pytest.raises(InputError, match="shorter than every window"):
        L.PhasePreservation((256,))(y, x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: L.TemporalConsistency(0),
        lambda: L.BandWeighted(RATE, {(12, 8): 1.0}),
        lambda: L.BandWeighted(0.0, {}),
        lambda: L.MultiResolutionSTFT(()),
        lambda: L.PhasePreservation((2,)),
        lambda: L.SpikeWeighted(RATE, weight=0),
        lambda: L.RateDistortion(L.MeanSquared(), -1.0),
        lambda: L.WeightedSum({}),
        lambda: L.WeightedSum({"loss": (1.0, L.MeanSquared())}),
        lambda: L.WeightedSum({"mse": (math.nan, L.MeanSquared())}),
        lambda: L.combine({"msee": 1.0}, RATE),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()


# Noise level, spikes -----------------------------------------------------------------------------------------------


def test_the_noise_level_of_a_normal_distribution_is_its_deviation_and_spikes_do_not_raise_it() -> None:
    x = 3 * torch.randn(1, 1, 200_000, generator=torch.Generator().manual_seed(0))
    assert float(L.noise_level(x)) == pytest.approx(3, rel=0.02)
    x[..., ::50] += 100
    assert float(L.noise_level(x)) == pytest.approx(3, rel=0.05) and float(x.std()) > 10


def test_both_polarities_count_and_the_radius_is_in_milliseconds() -> None:
    x = torch.randn(1, 1, 1000, generator=torch.Generator().manual_seed(0)) * 0.5
    x[..., 300], x[..., 700] = 50.0, -50.0
    near = L.SpikeWeighted(RATE, threshold=20.0, radius_ms=3.0).near(x)[0, 0]
    assert near.nonzero()[:, 0].tolist() == [*range(297, 304), *range(697, 704)]


def test_a_constant_channel_has_no_crossings() -> None:
    assert not L.SpikeWeighted(RATE).near(torch.full((1, 2, 50), 3.0)).any()


# Rate, variational -------------------------------------------------------------------------------------------------


def test_bits_and_rate_distortion() -> None:
    y, x = pair(9)
    likelihoods = torch.tensor([0.5, 0.25, 0.0])
    assert float(L.bits_of(likelihoods)) == pytest.approx(1 + 2 - math.log2(1e-9))
    parts = L.RateDistortion(L.MeanSquared(), 3.0)(y, x, torch.tensor([100.0, 20.0]))
    assert float(parts["bits_per_sample"]) == pytest.approx(120 / x.numel())
    assert float(parts["loss"]) == pytest.approx(120 / x.numel() + 3 * float(L.MeanSquared()(y, x)))
    assert set(parts) == {"loss", "bits_per_sample", "distortion"}


def test_sums_show_their_parts_and_their_gradient_is_the_weighted_sum() -> None:
    y, x = pair(10)
    y.requires_grad_()
    total = L.combine({"mse": 2.0, "spikes": 0.5, "stft": 0.0}, RATE)
    parts = total(y, x)
    (both,) = torch.autograd.grad(parts["loss"], y)
    (mse,) = torch.autograd.grad(L.MeanSquared()(y, x), y)
    (spikes,) = torch.autograd.grad(L.SpikeWeighted(RATE)(y, x), y)
    assert torch.allclose(both, 2 * mse + 0.5 * spikes, atol=1e-7)
    assert set(parts) == {"loss", "mse", "spikes", "stft"} and parts["stft"] > 0


@settings(max_examples=30, deadline=None)
@given(mean=st.floats(-5, 5), sigma=st.floats(0.01, 10))
def test_the_divergence_is_that_of_torch(mean: float, sigma: float) -> None:
    q, p = torch.distributions.Normal(mean, sigma), torch.distributions.Normal(0.0, 1.0)
    ours = L.gaussian_kl(torch.tensor(mean), 2 * torch.tensor(sigma).log())
    assert float(ours) == pytest.approx(float(torch.distributions.kl_divergence(q, p)), rel=1e-3, abs=1e-5)


def test_free_bits() -> None:
    kl = torch.rand(8, 5, 7, generator=torch.Generator().manual_seed(0))
    each = kl.sum(-1).mean(0)
    assert torch.isclose(L.free_bits(kl, 0.0), each.sum())
    assert torch.isclose(L.free_bits(kl, 3.6), each.clamp_min(3.6).sum())
    mean = torch.tensor([[0.1], [0.1]], requires_grad=True)
    L.free_bits(L.gaussian_kl(mean, torch.zeros(2, 1)), 0.5).backward()
    assert mean.grad is not None and (mean.grad == 0).all()


def test_the_bound_is_the_likelihood_of_a_normal_distribution() -> None:
    y, x = pair(11, (4, 1, 50))
    mean, log_variance = torch.randn(4, 3), torch.randn(4, 3)
    parts = L.Elbo(L.ConstantBeta(0.5), sigma=0.7)(y, x, mean, log_variance)
    nll = -torch.distributions.Normal(y, 0.7).log_prob(x).sum() / 4
    kl = L.gaussian_kl(mean, log_variance).sum() / 4
    assert torch.isclose(parts["nll"], nll, rtol=1e-5) and torch.isclose(parts["kl"], kl)
    assert torch.isclose(parts["loss"], (nll + 0.5 * kl) / 50, rtol=1e-5)


def test_the_optimal_sigma_makes_the_data_most_likely_and_balances_any_unit() -> None:
    y, x = pair(12, (4, 1, 50))
    moments = torch.randn(4, 3), torch.randn(4, 3)
    best = L.Elbo()(y, x, *moments)
    for factor in (0.8, 0.95, 1.05, 1.25):
        assert L.Elbo(sigma=float(best["sigma"]) * factor)(y, x, *moments)["nll"] > best["nll"]
    y.requires_grad_()
    for scale in (1.0, 1e-3, 1e3):
        (g,) = torch.autograd.grad(L.Elbo()(scale * y, scale * x, *moments)["loss"], y)
        (expected,) = torch.autograd.grad(0.5 * (y - x).square().sum(), y)
        sigma2 = float(best["sigma"]) ** 2
        assert torch.allclose(g, expected / sigma2 / x.numel(), rtol=1e-3, atol=1e-8)
    silent = torch.zeros(1, 1, 8, requires_grad=True)
    parts = L.Elbo()(silent, torch.zeros(1, 1, 8), torch.zeros(1, 2), torch.zeros(1, 2))
    parts["loss"].backward()
    assert parts["loss"].isfinite() and silent.grad is not None and silent.grad.isfinite().all()


def test_beta_schedules() -> None:
    assert {L.ConstantBeta(0.3)(s) for s in (0, 10, 10**6)} == {0.3}
    warm = L.WarmUpBeta(100, 2.0)
    assert [warm(s) for s in (0, 50, 100, 1000)] == [0, 1, 2, 2]
    cyclical = L.CyclicalBeta(100, 0.5, 4.0)
    assert [cyclical(s) for s in (0, 25, 50, 99, 100, 125)] == [0, 2, 4, 4, 0, 2]
    assert L.WarmUpBeta(0)(0) == 0 and math.isfinite(L.CyclicalBeta(10, 0.0)(0))


def test_losses_work_in_half_precision_on_autocast() -> None:
    y, x = pair(13)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for loss in EVERY.values():
            assert loss(y, x).isfinite()
