"""Decoders, their scores and the non-inferiority test, against scikit-learn, elephant, closed forms and Monte Carlo."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.signal import lfilter
from scipy.stats import binom
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from nbmf_research.core import InputError
from nbmf_research.neural import decoders as d

FAST = {"wiener": {}, "kalman": {}, "gru": {"hidden": 16, "epochs": 80, "length": 50, "batch": 8, "warm_up": 5}}


@pytest.fixture(scope="module")
def session() -> tuple[np.ndarray, np.ndarray]:
    """1500 bins of 20 Poisson neurons that encode two smooth targets."""
    rng = np.random.default_rng(0)
    y = lfilter([1], [1, -0.95], rng.normal(size=(1500, 2)), axis=0)
    y /= y.std(0)
    x = rng.poisson(np.exp(0.5 + 0.4 * y @ rng.normal(size=(2, 20))))
    return x, y + np.array([3.0, -1.0])


# ---- features ----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 11), max_size=60), st.floats(0.01, 3.0))
def test_bins_are_those_of_numpy(times: list[float], width: float) -> None:
    times = [t for t in times if abs((t / width) % 1 - 0.5) < 0.499]  # not on an edge
    counts = d.bin_spikes([times, []], width, stop=10.0)
    edges = width * np.arange(int(np.floor(10 / width + 1e-9)) + 1)
    assert_array_equal(counts[:, 0], np.histogram(times, edges)[0])
    assert counts[:, 1].sum() == 0 and counts.dtype == np.int64


def test_bins_are_elephants() -> None:
    conversion, neo = pytest.importorskip("elephant.conversion"), pytest.importorskip("neo")
    pq = pytest.importorskip("quantities")
    rng = np.random.default_rng(1)
    trains = [np.sort(rng.uniform(0, 5, 200)) for _ in range(3)]
    binned = conversion.BinnedSpikeTrain(
        [neo.SpikeTrain(t, units="s", t_stop=5.0) for t in trains], bin_size=50 * pq.ms
    )
    assert_array_equal(d.bin_spikes(trains, 0.05, stop=5.0), binned.to_array().T)


def test_a_spike_on_an_edge_belongs_to_the_later_bin() -> None:
    at = [k * 0.1 for k in range(50)]
    assert (d.bin_spikes([at], 0.1, stop=5.0) == 1).all()
    assert d.bin_spikes([[0.1, 0.95]], 0.25).tolist() == [[1], [0], [0]]  # the last bin would not be whole
    assert d.bin_spikes([[2.1]], 0.5, start=2.0, stop=3.0).tolist() == [[1], [0]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 3), st.integers(1, 15))
def test_lagged_rows_hold_the_past(n: int, k: int, lags: int) -> None:
    x = np.random.default_rng(n).normal(size=(n, k))
    out = d.lagged(x, lags).reshape(n, lags, k)
    for t in range(n):
        for lag in range(lags):
            assert_array_equal(out[t, lag], x[t - lag] if t >= lag else np.zeros(k))


# ---- decoders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lags", "alpha"), [(1, 1.0), (5, 0.1), (10, 100.0)])
def test_wiener_is_scikit_learns_ridge(session: tuple[np.ndarray, np.ndarray], lags: int, alpha: float) -> None:
    x, y = session
    ridge = Ridge(alpha=alpha, solver="cholesky").fit(d.lagged(x, lags), y)
    ours = d.WienerDecoder(lags, alpha).fit(x, y)
    assert_allclose(ours.predict(x), ridge.predict(d.lagged(x, lags)), atol=1e-8)
    assert_allclose(ours.weights, ridge.coef_.T, atol=1e-9)


def test_wiener_finds_an_exact_filter_without_penalty() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(400, 3))
    y = d.lagged(x, 4) @ rng.normal(size=(12, 2)) + 7
    assert_allclose(d.WienerDecoder(4, 0.0).fit(x, y).predict(x), y, atol=1e-8)


def test_kalman_is_the_textbook_filter(session: tuple[np.ndarray, np.ndarray]) -> None:
    """The covariance form with the gain, on the same parameters."""
    x, y = session
    k = d.KalmanDecoder().fit(x[:1000], y[:1000])
    rest = (x[:1000] - k.x_mean) - (y[:1000] - k.y_mean) @ k.C.T
    noise = rest.T @ rest / 1000 + (k.alpha * x[:1000].var(0).mean() + 1e-12) * np.eye(20)
    state, p, expected = np.zeros(2), k.start, []
    for z in x[1000:1100] - k.x_mean:
        gain = p @ k.C.T @ np.linalg.inv(k.C @ p @ k.C.T + noise)
        state = state + gain @ (z - k.C @ state)
        p = (np.eye(2) - gain @ k.C) @ p
        expected.append(state + k.y_mean)
        state, p = k.A @ state, k.A @ p @ k.A.T + k.W
    assert_allclose(k.predict(x[1000:1100]), expected, atol=1e-8)


def test_kalman_recovers_a_linear_system() -> None:
    rng = np.random.default_rng(3)
    a, c = np.array([[0.95, 0.1], [-0.1, 0.95]]), rng.normal(size=(6, 2))
    y = np.zeros((20_000, 2))
    for t in range(1, len(y)):
        y[t] = a @ y[t - 1] + rng.normal(0, 0.1, 2)
    k = d.KalmanDecoder().fit(y @ c.T + 0.05 * rng.normal(size=(len(y), 6)), y)
    assert_allclose(k.A, a, atol=0.02)
    assert_allclose(k.C, c, atol=0.01)
    assert_allclose(k.W, 0.01 * np.eye(2), atol=5e-4)


@pytest.mark.parametrize("name", FAST)
def test_decoders_learn_are_causal_and_take_silent_units(session: tuple[np.ndarray, np.ndarray], name: str) -> None:
    x, y = session
    x = np.concatenate([x, np.zeros((len(x), 1), int)], axis=1)
    decoder = d.DECODERS.create(name, **FAST[name]).fit(x[:1200], y[:1200])
    y_hat = decoder.predict(x[1200:])
    assert y_hat.shape == (300, 2) and (d.r2(y[1200:], y_hat) > 0.5).all()
    changed = x[1200:].copy()
    changed[200:] += 5
    again = decoder.predict(changed)
    assert_allclose(again[:200], y_hat[:200], atol=1e-5)
    assert np.abs(again[200:] - y_hat[200:]).max() > 0.1


@pytest.mark.parametrize("name", FAST)
def test_one_output_one_feature_and_a_constant_target(name: str) -> None:
    rng = np.random.default_rng(4)
    y = lfilter([1], [1, -0.9], rng.normal(size=400))
    decoder = d.DECODERS.create(name, **FAST[name]).fit(y + 0.1 * rng.normal(size=400), y)
    assert decoder.predict(y).shape == (400, 1)
    flat = d.DECODERS.create(name, **FAST[name]).fit(y, np.full(400, 2.5)).predict(y)
    assert_allclose(flat, 2.5, atol=0.2 if name == "gru" else 1e-6)


def test_gru_is_seeded_and_leaves_torchs_generator_alone(session: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = session
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = (d.GRUDecoder(8, 2, seed=s).fit(x, y).predict(x[:50]) for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert_allclose(one, two, atol=1e-6)
    assert np.abs(one - other).max() > 1e-3
    assert d.GRUDecoder(4, 2, length=100).fit(x[:30], y[:30]).predict(x[:5]).shape == (5, 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x, y: d.bin_spikes([], 0.1), "unit"),
        (lambda x, y: d.bin_spikes([[]], 0.1), "no bin"),
        (lambda x, y: d.lagged(x, 0), "lags"),
        (lambda x, y: d.lagged(np.full((3, 1), np.nan), 1), "finite"),
        (lambda x, y: d.WienerDecoder(alpha=-1.0), "alpha"),
        (lambda x, y: d.KalmanDecoder(alpha=0.0), "alpha"),
        (lambda x, y: d.GRUDecoder(hidden=0), "hidden"),
        (lambda x, y: d.GRUDecoder(length=5, warm_up=5), "warm-up"),
        (lambda x, y: d.WienerDecoder().fit(x, y[:-1]), "rows"),
        (lambda x, y: d.WienerDecoder().fit(x[:5], y[:5]), "at least 10"),
        (lambda x, y: d.WienerDecoder().predict(x), "fit first"),
        (lambda x, y: d.WienerDecoder().fit(x, y).predict(y), "fitted on 20"),
        (lambda x, y: d.DECODERS.create("weiner"), "did you mean 'wiener'"),
        (lambda x, y: d.r2(y, y[:, :1]), "shape"),
        (lambda x, y: d.non_inferior(y, y, 0.0), "margin"),
        (lambda x, y: d.non_inferior(y, y, 0.1, level=0.4), "level"),
        (lambda x, y: d.non_inferior(y, y, 0.1, block=0), "block of 0"),
        (lambda x, y: d.decode_report(x, x[:-1], y), "shape"),
        (lambda x, y: d.decode_report(x, x, y[:-1]), "rows"),
        (lambda x, y: d.decode_report(x, x, y, test=1.0), "share"),
    ],
)
def test_bad_input_says_what_is_wrong(session: tuple[np.ndarray, np.ndarray], call, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call(*session)


# ---- scores ------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 50), st.integers(1, 3), st.integers(0, 2**31))
def test_r2_is_scikit_learns_and_the_mean_of_its_terms(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, y_hat = rng.normal(size=(2, n, k))
    assert_allclose(d.r2(y, y_hat), r2_score(y, y_hat, multioutput="raw_values"), atol=1e-9)
    assert_allclose(d.r2_terms(y, y_hat).mean(0), d.r2(y, y_hat))
    assert_allclose(d.correlation(y, y_hat), [np.corrcoef(a, b)[0, 1] for a, b in zip(y.T, y_hat.T)], atol=1e-9)


def test_scores_of_cheaters() -> None:
    rng = np.random.default_rng(6)
    y = rng.normal(size=(5000, 2))
    assert_allclose(d.r2(y, y), 1) and assert_allclose(d.correlation(y, y), 1)
    assert_allclose(d.r2(y, np.broadcast_to(y.mean(0), y.shape)), 0, atol=1e-12)
    assert_array_equal(d.correlation(y, np.zeros_like(y)), 0)
    assert (d.r2(y, rng.normal(size=y.shape)) < -0.9).all()
    assert (d.r2(y, rng.permutation(y)) < -0.9).all()
    assert_allclose(d.correlation(y, 3 * y), 1)  # the measure that a cheater wins
    assert_allclose(d.r2(y, 3 * y), -3, atol=0.01)  # and the one that it does not
    assert np.isnan(d.r2(np.ones(5), np.ones(5))).all() and np.isnan(d.correlation(np.ones(5), np.arange(5.0))).all()


def test_decode_report_of_copy_constant_and_shuffle(session: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = session
    rng = np.random.default_rng(7)
    copy = d.decode_report(x, x, y, outputs=["vx", "vy"], test=0.5)
    assert copy["non_inferior_transfer"] == copy["non_inferior_retrained"] == 1.0
    assert copy["r2_drop_transfer"] == copy["r2_drop_transfer_hi"] == 0.0
    assert copy["r2_original"] == pytest.approx((copy["r2_original_vx"] + copy["r2_original_vy"]) / 2)
    for name, decoded in {
        "constant": np.ones_like(x),
        "shuffled": rng.permutation(x),
        "noise": rng.poisson(2, x.shape),
    }.items():
        r = d.decode_report(x, decoded, y, d.WienerDecoder(5, 10.0), test=0.5)
        assert r["r2_transfer"] < 0.1 and r["r2_retrained"] < 0.1, name
        assert r["non_inferior_transfer"] == r["non_inferior_retrained"] == 0.0, name
        drop = r["r2_original"] - r["r2_transfer"]
        assert r.get("r2_drop_transfer_hi", np.inf) >= drop - 1e-9 and r["r2_drop_transfer"] == pytest.approx(drop), (
            name
        )
    assert all(type(v) is float for v in copy.values())


# ---- non-inferiority ---------------------------------------------------------------------------------------------


def errors(kind: str, n: int, seed: int) -> np.ndarray:
    """Score differences of mean 0."""
    rng = np.random.default_rng(seed)
    if kind == "skewed":
        return np.exp(rng.normal(size=n)) - np.exp(0.5)
    if kind == "memory":
        return lfilter([1], [1, -0.9], rng.normal(size=n + 200))[200:]
    return rng.normal(size=n)


@pytest.mark.parametrize(("kind", "n"), [("normal", 30), ("skewed", 80), ("memory", 2500)])
def test_a_codec_that_loses_the_margin_passes_five_times_in_a_hundred(kind: str, n: int) -> None:
    """Error rate at the boundary: at most 5 % and a little, and not so low that nothing ever passes."""
    runs, block = 300, None if kind == "memory" else 1
    z = np.zeros(n)
    passed = sum(
        d.non_inferior(z, errors(kind, n, s) - 1, 1.0, block=block, n_resamples=300).passed for s in range(runs)
    )
    assert passed <= binom.ppf(0.999, runs, 0.065)
    assert passed >= binom.ppf(0.001, runs, 0.02)


def test_single_bins_as_observations_would_pass_far_too_often() -> None:
    z = np.zeros(2500)
    passed = [
        d.non_inferior(z, errors("memory", 2500, s) - 1, 1.0, block=1, n_resamples=200).passed for s in range(100)
    ]
    assert np.mean(passed) > 0.15


def test_equivalence_errs_on_neither_side_and_has_power() -> None:
    runs, n, z = 200, 60, np.zeros(60)
    for shift in (-1.0, 1.0):
        passed = sum(
            d.equivalent(z, errors("normal", n, s) + shift, 1.0, block=1, n_resamples=300).passed for s in range(runs)
        )
        assert passed <= binom.ppf(0.999, runs, 0.065)
    assert all(d.equivalent(z, errors("normal", n, s), 1.0, block=1, n_resamples=300).passed for s in range(40))
    better = errors("normal", n, 0) + 5
    assert d.non_inferior(z, better, 1.0, block=1).passed and not d.equivalent(z, better, 1.0, block=1).passed


def test_bounds_agree_with_students_t_on_normal_data() -> None:
    from scipy.stats import ttest_1samp

    x = errors("normal", 200, 1)
    v = d.non_inferior(np.zeros(200), x, 1.0, block=1, n_resamples=20_000)
    low = ttest_1samp(x, 0, alternative="greater").confidence_interval(0.95).low
    high = ttest_1samp(x, 0, alternative="less").confidence_interval(0.95).high
    assert v.difference == pytest.approx(x.mean())
    assert_allclose([v.lower, v.upper], [low, high], atol=0.01)


def test_verdicts_use_every_observation_and_repeat() -> None:
    z, x = np.zeros(1003), errors("memory", 1003, 2)
    v = d.non_inferior(z, x, 1.0)
    assert v.difference == pytest.approx(x.mean()) and v.n_blocks * v.block <= 1003 and v.block > 10
    assert v == d.non_inferior(z, x, 1.0) and v != d.non_inferior(z, x, 1.0, seed=1)
    assert d.non_inferior(np.zeros((1003, 2)), np.stack([x, x], 1), 1.0) == v
    assert d.non_inferior(np.zeros(50_000), errors("normal", 50_000, 3), 1.0).n_blocks <= d.MAX_BLOCKS
    same = d.non_inferior(x, x, 0.01)
    assert same.passed and same.lower == same.upper == same.difference == 0


def test_too_few_blocks_show_nothing(session: tuple[np.ndarray, np.ndarray]) -> None:
    z = np.zeros(90)
    for test in (d.non_inferior, d.equivalent):
        v = test(z, z + 1e-3 * errors("normal", 90, 4), 1.0, block=10)
        assert not v.passed and (v.lower, v.upper, v.n_blocks) == (-np.inf, np.inf, 9)
    x, y = session
    r = d.decode_report(x[:600], np.ones((600, 20)), y[:600], d.WienerDecoder(2))
    assert r["non_inferior_transfer"] == 0.0 and "r2_drop_transfer_hi" not in r and r["r2_drop_transfer"] > 0.3


# ---- real data ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cortex() -> tuple[np.ndarray, np.ndarray]:
    """Counts (31413, 95) in bins of 50 ms, and hand x, y, vx, vy."""
    path = Path(os.environ.get("NBMF_DATA_DIR") or "/none") / "neural/decode_m1_contdata95/contdata95.mat"
    if not path.exists():
        pytest.skip("NBMF_DATA_DIR is not set, or it holds no contdata95.mat")
    from scipy.io import loadmat

    m = loadmat(path)
    return m["Y"].astype(float), m["X"]


@pytest.mark.real
def test_ridge_anchor_on_monkey_motor_cortex(cortex: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = cortex
    report = d.decode_report(x, np.minimum(x, 3), y, d.WienerDecoder(lags=10), outputs=["x", "y", "vx", "vy"])
    assert_allclose(
        [report[f"r2_original_{k}"] for k in ("x", "y", "vx", "vy")], [0.836, 0.797, 0.763, 0.714], atol=1e-3
    )
    assert report["non_inferior_transfer"] == report["non_inferior_retrained"] == 0.0  # clipped counts do harm
    cut = round(0.8 * len(x))
    clipped = d.WienerDecoder().fit(np.minimum(x, 3)[:cut], y[:cut]).predict(np.minimum(x, 3)[cut:])
    assert_allclose(d.correlation(y[cut:], clipped), [0.893, 0.868, 0.825, 0.807], atol=1e-3)
    honest = d.WienerDecoder().fit(x[:cut], y[:cut]).predict(x[cut:])
    assert_allclose(d.correlation(y[cut:], honest), [0.914, 0.893, 0.874, 0.845], atol=1e-3)


@pytest.mark.real
@pytest.mark.slow
def test_gru_beats_ridge_on_monkey_motor_cortex_and_not_by_cheating(cortex: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = cortex
    cut = round(0.8 * len(x))
    gru = d.GRUDecoder(epochs=8).fit(x[:cut], y[:cut])
    assert (d.r2(y[cut:], gru.predict(x[cut:])) > 0.85).all()
    rng = np.random.default_rng(8)
    assert (d.r2(y[cut:], gru.predict(rng.permutation(x[cut:]))) < 0).all()
    assert (d.r2(y[cut:], gru.predict(x[cut:][:, rng.permutation(95)])) < 0.1).all()
