"""What compression must preserve, against scipy, elephant, closed forms and decoders that cheat."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import signal
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

from nbmf_research.core import InputError
from nbmf_research.neural import features as f

RATE = 1000.0


@pytest.fixture(scope="module")
def lfp() -> np.ndarray:
    """20 s of four channels of 1/f-like noise with a shared part, at 1 kHz."""
    rng = np.random.default_rng(0)
    x = signal.lfilter([1], [1, -0.97], rng.normal(size=(20_000, 5)), axis=0)
    return x[:, :4] + x[:, 4:]


@pytest.fixture(scope="module")
def broadband() -> tuple[np.ndarray, list[np.ndarray]]:
    """10 s of two channels at 25 kHz: unit noise and triangular spikes of 6 to 30 noise levels, and their times."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(250_000, 2))
    shape = -signal.windows.triang(25)
    trains = []
    for channel in range(2):
        at = np.arange(1000, 249_000, 1000) + rng.integers(0, 800, 248)
        for i in at:
            x[i - 12 : i + 13, channel] += shape * rng.uniform(8, 40)
        trains.append(at / 25_000)
    return x, trains


# ---- input -------------------------------------------------------------------------------------------------------


def test_dataarray_and_array_agree_and_gain_is_applied(lfp: np.ndarray) -> None:
    raw = np.round(100 * lfp).astype(np.int16)
    coords = {"channel": list("abcd"), "gain": ("channel", [0.5, 1.0, 2.0, 4.0])}
    x = xr.DataArray(raw, dims=("time", "channel"), coords=coords, attrs={"sampling_rate": RATE})
    p = f.band_power(x)
    assert list(p.channel.values) == list("abcd")
    assert_allclose(p.values, f.band_power(raw * np.array([0.5, 1, 2, 4]), RATE).values, rtol=1e-4)
    assert_allclose(f.band_power(x.T).values, p.values)
    bare = xr.DataArray(raw, dims=("time", "channel"), attrs={"sampling_rate": RATE})  # as a codec returns it
    assert f.band_power_error(x, bare).max() == 0  # takes the original's gain
    assert f.feature_report(x, bare) == f.feature_report(x, raw)


def test_single_precision_only_where_exact() -> None:
    rng = np.random.default_rng(2)
    x = 2.0**30 + np.round(3 * rng.normal(size=(5000, 1)))
    assert f.band_snr(x.astype(np.int32), x.astype(np.int32) + 1, 500.0).min() == f.DB_LIMIT
    small = x.astype(np.int32) - 2**30
    assert_allclose(f.band_power(x.astype(np.int32), 500.0), f.band_power(small, 500.0), rtol=1e-6)
    unsigned = (small + 32768).astype(np.uint16)
    assert_allclose(f.band_power(unsigned, 500.0), f.band_power(small, 500.0), rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: f.plv(x, x[:, :2], RATE), "shape"),
        (lambda x: f.plv(x, x), "sampling rate"),
        (lambda x: f.plv(x, x, -1.0), "sampling rate"),
        (lambda x: f.band_power(x[:, 0] > 0, RATE), "numbers"),
        (lambda x: f.band_power(np.zeros((3, 3, 3)), RATE), "numbers"),
        (lambda x: f.band_power(np.where(x > 0, np.inf, 0), RATE), "infinite"),
        (lambda x: f.band_power(x, RATE, bands={"odd": (5.0, 2.0)}), "odd"),
        (lambda x: f.band_power(x, RATE, bands={"high": (400.0, 700.0)}), "no band"),
        (lambda x: f.phase_error(x, x, RATE, statistic="mode"), "mode"),
        (lambda x: f.plv_matrix_error(x[:, 0], x[:, 0], RATE), "two channels"),
        (lambda x: f.detect_spikes(x, 400.0), "spike band"),
        (lambda x: f.detect_spikes(x[:32], 20_000.0), "at least 64"),
        (lambda x: f.detect_spikes(x, 20_000.0, threshold=0.0), "threshold"),
        (lambda x: f.detect_spikes(x, 20_000.0, dead_time=-1.0), "dead time"),
        (lambda x: f.detect_spikes(x, 20_000.0, noise=[1.0, 2.0]), "noise level"),
        (lambda x: f.detect_spikes(x, 20_000.0, noise=-1.0), "noise level"),
        (lambda x: f.match_spikes([1.0, 0.5], []), "ascending"),
        (lambda x: f.match_spikes([np.nan], []), "finite"),
        (lambda x: f.match_spikes([1.0], [1.0], 0.0), "tolerance"),
        (lambda x: f.victor_purpura([1.0], [1.0], -1.0), "cost"),
    ],
)
def test_bad_input_says_what_is_wrong(lfp: np.ndarray, call, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call(lfp)


# ---- bands -------------------------------------------------------------------------------------------------------


def test_band_power_is_welch(lfp: np.ndarray) -> None:
    freq, density = signal.welch(lfp, RATE, nperseg=2000, axis=0)
    for name, (lo, hi) in f.BANDS.items():
        expected = density[(freq >= lo) & (freq < hi)].sum(0) * 0.5
        assert_allclose(f.band_power(lfp, RATE).sel(band=name), expected, rtol=1e-9)


def test_band_power_is_elephants_welch(lfp: np.ndarray) -> None:
    spectral = pytest.importorskip("elephant.spectral")
    freq, density = spectral.welch_psd(lfp.T - lfp.T.mean(1, keepdims=True), fs=RATE, len_segment=2000, overlap=0.5)
    inside = (np.asarray(freq) >= 8) & (np.asarray(freq) < 13)
    assert_allclose(f.band_power(lfp, RATE).sel(band="alpha"), np.asarray(density)[:, inside].sum(1) * 0.5, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 20.0), st.integers(0, 2**31))
def test_band_power_of_a_scaled_signal_is_known(scale: float, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(2000, 2))
    assert_allclose(f.band_power_error(x, scale * x, 250.0), scale**2 - 1, rtol=1e-9, atol=1e-9)
    assert_allclose(f.band_power_error(x, scale * x, 250.0, decibels=True), 20 * np.log10(scale), atol=1e-9)
    assert_allclose(
        f.band_snr(x, scale * x, 250.0), np.minimum(-20 * np.log10(abs(1 - scale) + 1e-300), 100), atol=1e-6
    )
    assert_allclose(f.plv(x, scale * x, 250.0), 1, atol=1e-6)


def test_white_noise_spreads_its_power_by_bandwidth() -> None:
    x = np.random.default_rng(3).normal(size=(200_000, 1))
    for name, (lo, hi) in f.BANDS.items():
        assert_allclose(f.band_power(x, RATE).sel(band=name).item(), (hi - lo) / (RATE / 2), rtol=0.12)


def test_a_flat_channel_is_left_out(lfp: np.ndarray) -> None:
    x = np.concatenate([lfp, np.full((len(lfp), 1), 7.3)], axis=1)
    e = f.band_power_error(x, 2 * x, RATE)
    assert np.isnan(e[:, 4]).all() and not np.isnan(e[:, :4]).any()
    report, without = f.feature_report(x, 2 * x, RATE), f.feature_report(lfp, 2 * lfp, RATE)
    assert report.keys() == without.keys()
    assert_allclose(list(report.values()), list(without.values()), atol=1e-9)
    assert f.feature_report(0 * lfp, lfp, RATE) == {}


def test_floor_leaves_out_empty_bands(lfp: np.ndarray) -> None:
    low = signal.sosfiltfilt(signal.butter(8, 20, fs=RATE, output="sos"), lfp, axis=0)
    coarse = np.round(2 * low) / 2
    q = 0.5
    kept = {
        k.rsplit("error_", 1)[1]
        for k in f.feature_report(coarse, coarse, RATE, floor=2 * q**2 / (6 * RATE))
        if "power_error" in k
    }
    assert kept == {"delta", "theta", "alpha", "beta"}


# ---- phase -------------------------------------------------------------------------------------------------------


def test_analytic_bands_are_hilbert_transforms(lfp: np.ndarray) -> None:
    """The short series is the tapered band's Hilbert transform, sampled at n / m and shifted down by the lower edge."""
    n, first, m = 6000, 48, 30
    x = lfp[:n] - lfp[:n].mean(0)
    z = f.analytic_bands(x, RATE, bands={"b": (8.0, 12.84)})["b"]
    spectrum = np.fft.rfft(x, axis=0)
    mask = np.zeros((len(spectrum), 1))
    mask[first : first + m, 0] = signal.windows.tukey(m + 2, 0.5)[1:-1]
    full = signal.hilbert(np.fft.irfft(mask * spectrum, n, axis=0), axis=0)
    expected = full[:: n // m] * np.exp(-2j * np.pi * first * np.arange(m) / m)[:, None]
    cut = int(f.EDGE * m)
    assert_allclose(z, expected[cut : m - cut], atol=1e-10)


def test_plv_and_phase_error_agree_with_butterworth_and_hilbert(lfp: np.ndarray) -> None:
    y = lfp + 3 * np.random.default_rng(4).normal(size=lfp.shape)
    for name in ("theta", "alpha", "beta", "low_gamma"):
        sos = signal.butter(2, f.BANDS[name], "bandpass", fs=RATE, output="sos")
        a, b = (signal.hilbert(signal.sosfiltfilt(sos, v, axis=0), axis=0)[1000:-1000] for v in (lfp, y))
        expected = np.abs(np.exp(1j * (np.angle(a) - np.angle(b))).mean(0))
        assert_allclose(f.plv(lfp, y, RATE).sel(band=name), expected, atol=0.06)
        expected = np.median(np.abs(np.angle(a * b.conj())), axis=0)
        assert_allclose(f.phase_error(lfp, y, RATE).sel(band=name), expected, atol=0.12)


def test_plv_is_elephants(lfp: np.ndarray) -> None:
    analysis = pytest.importorskip("elephant.phase_analysis")
    y = lfp + 3 * np.random.default_rng(5).normal(size=lfp.shape)
    a, b = (np.angle(f.analytic_bands(v, RATE)["beta"]) for v in (lfp, y))
    # elephant averages over trials (rows): here a trial is an instant, and a sample a channel
    assert_allclose(f.plv(lfp, y, RATE).sel(band="beta"), analysis.phase_locking_value(a, b), atol=1e-6)


@pytest.mark.parametrize("delay", [0.0, 0.004, -0.01])
def test_a_delay_shows_as_bias_not_as_unlocking(delay: float) -> None:
    t = np.arange(10_000) / RATE
    x, y = (np.sin(2 * np.pi * 20 * (t - d)) for d in (0.0, delay))
    assert_allclose(f.plv(x, y, RATE).sel(band="beta"), 1, atol=1e-4)
    assert_allclose(f.phase_error(x, y, RATE, statistic="bias").sel(band="beta"), -2 * np.pi * 20 * delay, atol=1e-3)
    assert_allclose(
        f.phase_error(x, y, RATE, statistic="mean").sel(band="beta"), abs(2 * np.pi * 20 * delay), atol=2e-3
    )


def test_independent_signals_are_at_chance() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(2, 60_000, 8))
    p = f.plv(x, y, RATE)
    for name, (lo, hi) in f.BANDS.items():
        free = 0.9 * 60 * (hi - lo)  # independent samples in the band
        assert p.sel(band=name).mean() < 1.5 / np.sqrt(free)
    assert abs(f.phase_error(x, y, RATE).sel(band="beta").mean() - np.pi / 2) < 0.05


def test_plv_matrix_is_symmetric_and_its_error_counts_pairs(lfp: np.ndarray) -> None:
    m = f.plv_matrix(lfp, RATE)
    assert m.shape == (6, 4, 4)
    assert_allclose(m.values, m.values.transpose(0, 2, 1), atol=1e-12)
    y = lfp + np.random.default_rng(7).normal(size=lfp.shape)
    d = np.abs(f.plv_matrix(y, RATE) - m).values
    expected = [v[np.triu_indices(4, 1)].mean() for v in d]
    assert_allclose(f.plv_matrix_error(lfp, y, RATE), expected, atol=1e-12)
    assert f.plv(lfp, lfp, RATE).min() > 1 - 1e-9 and f.plv_matrix_error(lfp, lfp, RATE).max() == 0


# ---- spikes ------------------------------------------------------------------------------------------------------


def test_planted_spikes_are_found_at_the_right_sample(broadband: tuple[np.ndarray, list[np.ndarray]]) -> None:
    x, trains = broadband
    found = f.detect_spikes(x, 25_000.0)
    assert_array_equal(np.sort(found.channels), found.channels)
    for channel, train in enumerate(trains):
        m = f.match_spikes(train, found.train(channel))
        assert m.recall > 0.98 and m.precision > 0.95 and m.jitter() <= 1 / 25_000
    sos = signal.butter(3, f.SPIKE_BAND, "bandpass", fs=25_000.0, output="sos")
    y = signal.sosfiltfilt(sos, x, axis=0)
    assert_allclose(found.noise, np.median(np.abs(y), axis=0) / 0.67449, rtol=1e-3)
    i = np.round(found.times * 25_000).astype(int)
    assert_allclose(found.amplitudes, -y[i, found.channels], rtol=1e-3)
    assert (found.snr > 4.5).all()


def test_polarity_dead_time_scale_and_fixed_noise(broadband: tuple[np.ndarray, list[np.ndarray]]) -> None:
    x, _ = broadband
    down = f.detect_spikes(x, 25_000.0)
    up = f.detect_spikes(-x, 25_000.0, threshold=4.5)
    assert_array_equal(down.times, up.times)
    for channel in range(2):
        assert np.diff(down.train(channel)).min() > 1e-3
        assert len(f.detect_spikes(x, 25_000.0, dead_time=0.1).train(channel)) < len(down.train(channel))
    assert len(f.detect_spikes(3 * x, 25_000.0)) == len(down)  # its own threshold does not see the scale
    assert len(f.detect_spikes(x / 8, 25_000.0, noise=down.noise)) < len(down) / 2  # a fixed one does
    assert len(f.detect_spikes(np.full_like(x, 5.0), 25_000.0)) == 0
    again = f.detect_spikes(x, 25_000.0, noise=down.noise)
    assert_array_equal(again.times, down.times)


def test_a_clipped_spike_counts_once() -> None:
    x = np.zeros((4000, 1))
    x[1000:1003] = x[2000:2004] = -50
    found = f.detect_spikes(x, 20_000.0, noise=1.0, band=(300.0, 9000.0))
    assert len(found.times) == len(np.unique(np.round(found.times, 2)))


times = st.lists(st.integers(0, 300), max_size=12).map(lambda v: np.sort(np.asarray(v, float)) / 10_000)


@settings(max_examples=150, deadline=None)
@given(times, times, st.sampled_from([0.4e-3, 0.5e-3, 1e-3, 5e-3]))
def test_matching_is_one_to_one_symmetric_and_optimal(a: np.ndarray, b: np.ndarray, tolerance: float) -> None:
    m, back = f.match_spikes(a, b, tolerance), f.match_spikes(b, a, tolerance)
    assert len(set(m.reference)) == len(m.reference) == len(m.test) == len(set(m.test))
    assert (np.abs(m.delays) <= tolerance + 1e-8).all()
    assert_allclose(m.delays, b[m.test] - a[m.reference])
    assert len(back.reference) == len(m.reference)
    assert_allclose(np.abs(back.delays).sum(), np.abs(m.delays).sum(), atol=1e-12)
    assert np.isnan(m.f1) if not len(a) + len(b) else 0 <= m.f1 <= 1
    if len(a) and len(b):
        delay = np.abs(a[:, None] - b)
        value = np.where(delay <= tolerance + 1e-9, 1e3 - delay, 0.0)
        rows, columns = linear_sum_assignment(value, maximize=True)
        taken = value[rows, columns] > 0
        assert len(m.reference) == taken.sum()
        assert_allclose(np.abs(m.delays).sum(), delay[rows, columns][taken].sum(), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(times, st.integers(0, 2**31))
def test_f1_of_a_copy_is_one_and_deleting_lowers_recall_only(a: np.ndarray, seed: int) -> None:
    if not len(a):
        return
    assert f.match_spikes(a, a).f1 == 1.0
    kept = a[np.random.default_rng(seed).random(len(a)) < 0.5]
    m = f.match_spikes(a, kept)
    assert m.recall == pytest.approx(len(kept) / len(a)) and (m.precision == 1 or not len(kept))


def test_matching_is_quick_and_follows_long_trains() -> None:
    rng = np.random.default_rng(8)
    a = np.cumsum(rng.exponential(0.01, 100_000))
    b = np.sort(a + rng.normal(0, 1e-4, len(a)))
    m = f.match_spikes(a, b)
    assert m.f1 > 0.999
    assert m.jitter() == pytest.approx(0.6745e-4, rel=0.05)


def test_chance_f1_of_poisson_trains() -> None:
    """Independent trains of rate r agree by chance about 2 r tolerance of the time, as the notebook says."""
    rng = np.random.default_rng(9)
    a, b = (np.sort(rng.uniform(0, 1000, rng.poisson(15 * 1000))) for _ in range(2))
    m = f.match_spikes(a, b, 0.5e-3)
    n, p = len(a), 1 - np.exp(-2 * 15 * 0.5e-3)
    assert binom.ppf(0.001, n, p) * 0.97 <= len(m.reference) <= binom.ppf(0.999, n, p)


@settings(max_examples=30, deadline=None)
@given(times, times, st.sampled_from([1.0, 50.0, 1000.0, 20_000.0]))
def test_victor_purpura_is_a_distance(a: np.ndarray, b: np.ndarray, cost: float) -> None:
    d = f.victor_purpura(a, b, cost)
    assert f.victor_purpura(a, a, cost) == pytest.approx(0)
    assert d == pytest.approx(f.victor_purpura(b, a, cost))
    assert abs(len(a) - len(b)) - 1e-9 <= d <= len(a) + len(b) + 1e-9
    c = np.sort(np.concatenate([a, b]))
    assert d <= f.victor_purpura(a, c, cost) + f.victor_purpura(c, b, cost) + 1e-9


def test_victor_purpura_is_elephants() -> None:
    dissimilarity = pytest.importorskip("elephant.spike_train_dissimilarity")
    neo, pq = pytest.importorskip("neo"), pytest.importorskip("quantities")
    rng = np.random.default_rng(10)
    for cost in (0.0, 1.0, 20.0, 500.0):
        a, b = (np.sort(rng.uniform(0, 2, n)) for n in (40, 55))
        trains = [neo.SpikeTrain(v, units="s", t_stop=2.0) for v in (a, b)]
        expected = dissimilarity.victor_purpura_distance(trains, cost_factor=cost / pq.s)[0, 1]
        assert f.victor_purpura(a, b, cost) == pytest.approx(float(expected), abs=1e-9)


def test_strata_count_found_missed_and_invented_in_the_right_place() -> None:
    def spikes(times: list[float], sizes: list[float]) -> f.Spikes:
        n = len(times)
        return f.Spikes(np.array(times), np.zeros(n, np.int64), np.array(sizes), np.ones(1))

    reference = spikes([0.1, 0.2, 0.3, 0.4], [5, 7, 7, 20])
    test = spikes([0.1002, 0.2, 0.4, 0.5], [6.5, 5.0, 20, 9])  # 0.3 missed, 0.5 invented
    s = f.compare_spikes(reference, test)
    assert s["f1"] == s["precision"] == s["recall"] == 0.75
    assert [s[f"f1_{k}"] for k in ("snr_4.5_6", "snr_6_8", "snr_8_12", "snr_12_up")] == [1.0, 2 / 3, 0.0, 1.0]
    assert [s[f"count_{k}"] for k in ("snr_4.5_6", "snr_6_8", "snr_8_12", "snr_12_up")] == [1, 2, 0, 1]
    assert s["jitter_ms"] == pytest.approx(0) and s["jitter_p95_ms"] == pytest.approx(0.18)
    assert np.isnan(f.compare_spikes(reference, test, strata=(30.0, 40.0))["f1_snr_30_40"])


def test_channels_are_never_mixed() -> None:
    one = f.Spikes(np.array([0.1, 0.2]), np.array([0, 1]), np.full(2, 9.0), np.ones(2))
    other = f.Spikes(np.array([0.1, 0.2]), np.array([1, 1]), np.full(2, 9.0), np.ones(2))
    assert f.compare_spikes(one, other)["f1"] == 0.5


# ---- report and cheaters -----------------------------------------------------------------------------------------


def test_report_holds_what_the_recording_can_carry(
    lfp: np.ndarray, broadband: tuple[np.ndarray, list[np.ndarray]]
) -> None:
    slow = f.feature_report(lfp, lfp + 0.1, RATE)
    assert not any(k.startswith("spike") for k in slow) and slow["plv_high_gamma"] == pytest.approx(1)
    assert "plv_matrix_error_alpha" not in f.feature_report(lfp[:, 0], lfp[:, 0], RATE)
    x, _ = broadband
    fast = f.feature_report(x[:25_000], x[:25_000], 25_000.0)
    assert "plv_delta" not in fast and "plv_alpha" in fast and fast["spike_f1_snr_8_12"] == 1.0
    short = f.feature_report(x[:500], x[:500], 25_000.0)
    assert short.get("spike_f1_1ms", 1.0) == 1.0 and not any(k.startswith("plv") for k in short)
    assert all(type(v) is float and np.isfinite(v) for v in (fast | slow).values())


def test_report_repeats_the_single_functions(broadband: tuple[np.ndarray, list[np.ndarray]]) -> None:
    x, _ = broadband
    y = np.round(x / 3) * 3
    r, s = f.feature_report(x, y, 25_000.0), f.spike_f1(x, y, 25_000.0)
    for k in ("f1", "precision", "recall"):
        assert r[f"spike_{k}_0.5ms"] == s[k]
    assert r["spike_jitter_ms"] == s["jitter_ms"] and r["spike_f1_snr_12_up"] == s["f1_snr_12_up"]
    assert r["spike_f1_own_0.5ms"] == f.spike_f1(x, y, 25_000.0, fixed=False)["f1"]
    assert r["spike_f1_0.4ms"] <= r["spike_f1_0.5ms"] <= r["spike_f1_1ms"]
    assert r["plv_beta"] == pytest.approx(f.plv(x, y, 25_000.0).sel(band="beta").mean().item())
    e = f.band_power_error(x, y, 25_000.0)
    assert r["band_power_error_beta"] == pytest.approx(abs(e).sel(band="beta").mean().item())
    assert r["plv_matrix_error_beta"] == pytest.approx(f.plv_matrix_error(x, y, 25_000.0).sel(band="beta").item())


def test_only_the_copy_wins(broadband: tuple[np.ndarray, list[np.ndarray]]) -> None:
    x, _ = broadband
    slow = signal.lfilter([1], [1, -0.999], np.random.default_rng(11).normal(size=x.shape), axis=0)
    x = x + slow
    reports = {k: f.feature_report(x, v, 25_000.0) for k, v in f.controls(x, 25_000.0).items()}
    copy = reports.pop("copy")
    assert copy["spike_f1_0.5ms"] == 1 and copy["spike_distance"] == 0 and copy["band_snr_beta"] == f.DB_LIMIT
    for name, r in reports.items():
        beaten = [r["band_snr_beta"] < 3, r["spike_f1_0.5ms"] < 0.9]
        assert any(beaten), name
        assert all(beaten) or name in ("below 150 Hz", "doubled"), name
    constant = reports["constant"]
    assert constant["plv_beta"] == constant["spike_f1_0.5ms"] == 0 and constant["band_power_error_beta"] == 1
    assert constant["phase_error_beta"] == pytest.approx(np.pi / 2) and constant["band_power_db_beta"] == f.DB_LIMIT
    assert reports["random phases"]["band_power_error_beta"] < 0.3 and reports["random phases"]["plv_beta"] < 0.5
    assert reports["below 150 Hz"]["spike_f1_0.5ms"] == 0 and reports["below 150 Hz"]["plv_beta"] > 0.999


@pytest.mark.real
def test_rounding_a_real_recording_orders_the_features() -> None:
    folder = os.environ.get("NBMF_DATA_DIR")
    found = sorted(Path(folder).glob("neural/n1_neuralink/**/*.wav")) if folder else []
    if not found:
        pytest.skip("NBMF_DATA_DIR is not set, or it holds no N1 clips")
    from scipy.io import wavfile

    scores = []
    for path in found[:6]:
        rate, x = wavfile.read(path)
        scores.append([f.feature_report(x, q * np.round(x / q), float(rate)) for q in (128, 1024, 4096)])
    for name, up in (
        ("plv_high_gamma", 1),
        ("band_snr_beta", 1),
        ("band_power_error_high_gamma", -1),
        ("spike_f1_0.5ms", 1),
    ):
        fine, mid, coarse = (np.mean([s[i].get(name, np.nan) for s in scores]) for i in range(3))
        assert up * fine >= up * mid >= up * coarse, name
