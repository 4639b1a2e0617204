"""Simulated recordings: statistics against their targets, truth against samples, the same bits from the same seed."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import wave
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import welch

from nbmf_research.core import InputError
from nbmf_research.neural import simulate as S
from nbmf_research.neural.probes import Probe, distances, ecog_grid, linear_probe, neuropixels, tetrode, utah_array
from nbmf_research.neural.recordings import check_recording, physical, positions

OFF = {"bands": (), "artefacts": S.ArtefactModel(rate=0), "line": S.LineNoise(amplitude=0), "white_rms": 0.0}
FAST = {"seconds": 1.0, "probe": utah_array(4, 4)}


@pytest.fixture(scope="module")
def broadband():
    return S.simulate("broadband", 4.0, probe=utah_array(4, 4), seed=3)


# --- spectra and covariance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.7, 2.0, 2.6, 3.5])
def test_slope_of_the_cascade(exponent):
    """The response falls as 1/f**exponent between the knee and a fifth of the rate."""
    cascade = S.one_over_f(exponent, 1.0, 2000.0)
    f = np.logspace(np.log10(4), np.log10(300), 60)
    slope = np.polyfit(np.log(f), np.log(cascade.response(f, 2000.0)), 1)[0]
    assert abs(slope + exponent) < 0.05 + 0.05 * exponent
    ripple = np.log(cascade.response(f, 2000.0)) + exponent * np.log(f)
    assert np.ptp(ripple) < 1.0


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 4), st.floats(0.3, 20), st.sampled_from([160.0, 1000.0, 30_000.0]))
def test_response_integrates_to_one(exponent, knee, rate):
    """The one-sided density of the unit-variance output has area 1: the Lyapunov solution and the response agree."""
    f = np.concatenate([[0], np.logspace(-7, 0, 40_000)]) * rate / 2
    area = np.trapezoid(S.one_over_f(exponent, knee, rate).response(f, rate), f)
    assert area == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(("kind", "seconds"), [("lfp", 120.0), ("ecog", 120.0), ("eeg", 400.0)])
def test_background_spectrum_and_covariance(kind, seconds):
    """What comes out has the rms, slope and correlation by distance that were asked for."""
    sim = S.simulate(kind, seconds, seed=7, **OFF)
    b, fs = sim.config.background, sim.config.sampling_rate
    assert sim.lfp.std() == pytest.approx(b.rms, rel=0.1)
    f, p = welch(sim.lfp, fs, nperseg=int(4 * fs), axis=0)
    meant = b.rms**2 * S.one_over_f(b.exponent, b.knee, fs).response(f, fs)
    use = (f > 0.5) & (f < 0.3 * fs)
    assert np.abs(np.log(p.mean(1)[use] / meant[use])).max() < 0.6
    use = (f > 4 * b.knee) & (f < fs / 5)
    assert np.polyfit(np.log(f[use]), np.log(p.mean(1)[use]), 1)[0] == pytest.approx(-b.exponent, abs=0.25)
    target = S.spatial_covariance(positions(sim.recording), b.scale, b.common, b.private)
    seen, d = np.corrcoef(sim.lfp.T), distances(positions(sim.recording))
    for lo, hi in zip(
        np.quantile(d[d > 0], [0, 0.25, 0.5, 0.75]), np.quantile(d[d > 0], [0.25, 0.5, 0.75, 1]), strict=True
    ):
        near = (d > 0) & (d >= lo) & (d <= hi)
        assert seen[near].mean() == pytest.approx(target[near].mean(), abs=0.12)


def test_background_is_stationary_from_the_first_sample():
    """Over 400 seeds the variance of the first sample is the variance of the last."""
    cascade, rngs = S.one_over_f(2.2, 1.0, 1000.0), np.random.default_rng(0)
    x = np.stack([S.ColouredNoise(cascade, np.eye(20), 5.0, r).draw(300) for r in rngs.spawn(100)])
    assert x[:, 0].std() == pytest.approx(5.0, rel=0.06) and x[:, -1].std() == pytest.approx(5.0, rel=0.06)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.floats(1, 1e5), st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 999))
def test_spatial_covariance_is_positive_definite(n, scale, common, private, seed):
    xyz = np.random.default_rng(seed).normal(size=(n, 3)) * 1000
    cov = S.spatial_covariance(xyz, scale, common, private)
    assert np.allclose(cov, cov.T) and np.allclose(np.diag(cov), 1) and np.linalg.eigvalsh(cov).min() > -1e-8
    assert np.allclose(S._factor(cov).T @ S._factor(cov), cov, atol=1e-3)


def test_unknown_positions_share_only_the_common_part():
    cov = S.spatial_covariance([[0, 0, 0], [10, 0, 0], [np.nan] * 3], 100.0, common=0.3)
    assert cov[0, 2] == cov[1, 2] == pytest.approx(0.3) and cov[0, 1] > 0.9


# --- oscillations, hum, artefacts ------------------------------------------------------------------------------------


def test_phases_are_known():
    """With nothing else in the recording, the phase of each channel is the table's, and the delay is distance / speed."""
    band = S.Band("alpha", 9.5, 10.5, rate=0.4, amplitude=50.0, cycles=40.0, speed=0.4)
    config = S.preset("ecog", seconds=30.0, seed=1, **(OFF | {"bands": (band,), "background": S.Background(rms=0.0)}))
    sim = S.generate(config, ecog_grid(4, 4))
    b = sim.bursts
    alone = [
        i
        for i in range(len(b.onset))
        if b.onset[i] > 0
        and b.onset[i] + b.duration[i] < 30_000
        and not any(
            b.onset[j] < b.onset[i] + b.duration[i] and b.onset[j] + b.duration[j] > b.onset[i]
            for j in range(len(b.onset))
            if j != i
        )
    ]
    assert alone
    for i in alone:
        t = np.arange(b.duration[i])
        x = sim.lfp[b.onset[i] : b.onset[i] + b.duration[i]]
        z = (x * np.exp(-2j * np.pi * b.frequency[i] * t / 1000)[:, None]).sum(0)
        assert np.abs(np.angle(z * np.exp(-1j * b.phase[i]))).max() < 0.02
        assert np.abs(x).max(0) == pytest.approx(b.amplitude[i], rel=0.02)
        xyz = positions(sim.recording)
        late = -(b.phase[i] - b.phase[i, 0]) / (2 * np.pi * b.frequency[i])
        assert late == pytest.approx((xyz - xyz[0]) @ b.direction[i] * 1e-6 / 0.4, abs=1e-9)
        assert np.linalg.norm(b.direction[i]) == pytest.approx(1) and abs(b.direction[i, 2]) < 1e-6
        assert 9.5 <= b.frequency[i] <= 10.5
    uv = physical(sim.recording).values
    assert np.abs(uv - sim.lfp).max() < 0.06  # half a step of 0.1 uV


def test_line_noise_is_what_the_table_says():
    sim = S.simulate(
        "lfp",
        20.0,
        seed=2,
        probe=tetrode(),
        **(OFF | {"line": S.LineNoise(50.0, 5.0, (1.0, 0.0, 0.5)), "background": S.Background(rms=0.0)}),
    )
    uv = physical(sim.recording).values
    f, p = welch(uv, 1000.0, nperseg=4000, axis=0)
    for k, expected in ((1, True), (2, False), (3, True)):
        power = p[(f > 50 * k - 2) & (f < 50 * k + 2)].sum(0) * f[1]
        meant = (sim.line[k - 1] ** 2).sum(0) / 2
        assert (np.allclose(power, meant, rtol=0.1) and power.min() > 0.1) if expected else power.max() < 0.01
    assert (
        S._draw_line(S.preset("eeg", line=S.LineNoise(60.0, 5.0, (1.0, 1.0))), 3, np.random.default_rng(0))[1].max()
        == 0
    )  # 120 Hz at 160 Hz


def test_artefacts_are_where_the_table_says():
    quiet = OFF | {"background": S.Background(rms=0.0), "artefacts": S.ArtefactModel(rate=0.2, amplitude=200.0)}
    sim = S.simulate("ecog", 60.0, seed=5, probe=ecog_grid(3, 3), **quiet)
    a, uv = sim.artefacts, physical(sim.recording).values
    touched = np.zeros(len(uv), bool)
    for start, n in zip(a.onset, a.duration, strict=True):
        touched[start : start + n] = True
    assert len(a.onset) > 3 and np.abs(uv[~touched]).max() < 0.06 and np.abs(uv[touched]).max() > 50
    pops = a.frequency == 0
    assert pops.any() and ((a.amplitude[pops] != 0).sum(1) == 1).all() and (a.amplitude[~pops] != 0).all()
    assert (sim.lfp == 0).all()


# --- spikes ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.floats(0.5, 150), st.floats(0.0005, 0.004), st.floats(0.3, 5), st.floats(0, 0.5), st.integers(0, 2**31))
def test_no_refractory_violations(rate, refractory, shape, bursts, seed):
    model = S.UnitModel(refractory=refractory, isi_shape=shape, burst_share=bursts)
    t = S.spike_train(np.full(50, rate), 20.0, model, np.random.default_rng(seed))
    assert len(t) < 2 or np.diff(t).min() >= refractory - 1e-12
    assert len(t) == 0 or (t[0] >= 0 and t[-1] < 20.0)
    samples = S._to_samples(t, S.preset("broadband", seconds=20.0, units=model))
    assert len(samples) < 2 or np.diff(samples).min() >= np.ceil(refractory * 30_000 - 1e-6)


@pytest.mark.parametrize(("rate", "shape", "bursts"), [(5, 1.0, 0.0), (20, 1.0, 0.2), (40, 3.0, 0.05), (80, 1.0, 0.0)])
def test_mean_rate(rate, shape, bursts):
    model = S.UnitModel(isi_shape=shape, burst_share=bursts)
    t = S.spike_train(np.full(100, float(rate)), 1000.0, model, np.random.default_rng(1))
    assert len(t) / 1000 == pytest.approx(rate, rel=0.05)


def test_intervals_of_poisson_with_dead_time():
    """isi_shape 1 without bursts: intervals minus the refractory period are exponential."""
    t = S.spike_train(np.full(10, 20.0), 2000.0, S.UnitModel(burst_share=0.0), np.random.default_rng(0))
    gaps = np.diff(t) - 0.0015
    assert gaps.mean() == pytest.approx(1 / 20 - 0.0015, rel=0.03) and gaps.std() / gaps.mean() == pytest.approx(
        1, abs=0.03
    )


def test_rate_follows_its_modulation():
    rates = np.repeat([2.0, 40.0], 50)
    t = S.spike_train(np.tile(rates, 10), 200.0, S.UnitModel(), np.random.default_rng(0))
    high = (t % 20.0) >= 10.0
    assert high.sum() / 100 == pytest.approx(40, rel=0.1) and (~high).sum() / 100 == pytest.approx(2, rel=0.25)


def test_spikes_are_in_the_samples(broadband):
    """The spike-triggered average of the loudest unit is its template."""
    units = broadband.units
    u = int(np.argmax(units.amplitude * np.sqrt([len(t) for t in units.spike_times])))
    c, t = units.channel[u], units.spike_times[u]
    x = physical(broadband.recording).values[:, c]
    t = t[(t > 100) & (t < len(x) - 100)]
    mean = np.mean([x[i - units.before : i - units.before + units.templates.shape[1]] for i in t], axis=0)
    assert np.corrcoef(mean - mean.mean(), units.templates[u, :, c])[0, 1] > 0.8
    assert units.templates[u, units.before, c] == pytest.approx(-units.amplitude[u], rel=0.1)


def test_templates_decay_over_space():
    for decay in ("monopole", "exponential"):
        sim = S.simulate(
            "broadband", 0.5, probe=neuropixels(96), seed=1, units=S.UnitModel(decay=decay, per_contact=0.2)
        )
        size = np.abs(sim.units.templates).max(1)
        r = np.linalg.norm(sim.units.xyz[:, None] - neuropixels(96).xyz[None], axis=-1)
        for i in range(len(size)):
            seen = (r[i] > 20) & (r[i] < 300)
            expected = 20 / r[i][seen] if decay == "monopole" else np.exp(-(r[i][seen] - 20) / 45)
            ratio = size[i][seen] / expected
            assert ratio.max() / ratio.min() < 1.25  # the sampling of the trough


def test_amplitudes_drift_slowly():
    config = S.preset("broadband", seconds=2000.0, units=S.UnitModel(drift=0.3, jitter=0.05))
    t = np.arange(0, 2000, 0.5)
    slow = np.log(S._scales(t, config, np.random.default_rng(4)).astype(float))
    assert slow.std() == pytest.approx(0.3, rel=0.4) and np.corrcoef(slow[:-1], slow[1:])[0, 1] > 0.85
    assert np.corrcoef(slow[:-1200], slow[1200:])[0, 1] < 0.5
    still = S._scales(
        t, S.preset("broadband", seconds=2000.0, units=S.UnitModel(drift=0, jitter=0)), np.random.default_rng(4)
    )
    assert (still == 1).all()


def test_a_decoder_finds_the_movement():
    """Ridge regression from binned counts to velocity: the tuning is in the spikes, and absent without tuning."""

    def r2(tuning):
        config = S.preset(
            "broadband", seconds=120.0, seed=1, movement=S.Movement(tuning=tuning), units=S.UnitModel(rate=20)
        )
        plan = S._plan(config, utah_array(7, 7))
        edges = np.arange(0, 120.001, 0.1) * 30_000
        y = np.stack([np.histogram(t, edges)[0] for t in plan.units.spike_times], 1).astype(float)
        v = plan.hand[:6000, 2:].reshape(-1, 5, 2).mean(1)
        x = np.concatenate([y[1:-1], y[:-2], y[2:]], 1)
        v = v[1:-1]
        x, half = (x - x.mean(0)) / (x.std(0) + 1e-9), len(x) // 2
        w = np.linalg.solve(
            x[:half].T @ x[:half] + 200 * np.eye(x.shape[1]), x[:half].T @ (v[:half] - v[:half].mean(0))
        )
        e = v[half:] - v[half:].mean(0) - x[half:] @ w
        return 1 - (e**2).sum() / ((v[half:] - v[half:].mean(0)) ** 2).sum()

    assert r2(0.6) > 0.6 and r2(0.0) < 0.1


def test_kinematics(broadband):
    k = broadband.kinematics
    assert k.dims == ("time", "quantity") and list(k.quantity.values) == ["x", "y", "vx", "vy"] and k.shape == (200, 4)
    assert np.allclose(np.gradient(k.values[:-1, 0])[1:-1] * k.attrs["sampling_rate"], k.values[1:-2, 2])
    long = S._draw_movement(S.preset("broadband", seconds=3000.0), np.random.default_rng(0))
    assert long[:, :2].std() == pytest.approx(40.0, rel=0.1)


# --- converter -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "adc",
    [
        S.Adc(),
        S.Adc(dnl=0.35),
        S.Adc(bits=16, lsb=0.25, step=1.0),
        S.Adc(bits=10, lsb=2.34, step=12.0188, origin=-6154),
        S.Adc(bits=1, lsb=10, step=3.0),
    ],
)
def test_lattice_is_exact(adc):
    rng = np.random.default_rng(0)
    edges = S.code_edges(adc, rng)
    x = (rng.normal(size=(4000, 3)) * adc.lsb * 2 ** (adc.bits - 2)).astype(np.float32)
    raw = S.convert(x, adc, edges)
    lattice = np.round(np.arange(2**adc.bits) * adc.step + adc.origin)
    assert np.isin(raw, lattice).all() and raw.dtype == np.int16
    codes = np.searchsorted(lattice, raw)
    assert (codes == np.searchsorted(edges, x.astype(float), side="right")).all()
    assert (S.convert([[-1e9, 1e9]], adc, edges) == [[lattice[0], lattice[-1]]]).all(), "saturation"


def test_physical_values_are_within_half_a_step():
    sim = S.simulate("broadband", **FAST, adc=S.Adc())
    x = physical(sim.recording).values
    codes = np.round((sim.recording.values.astype(float) + 32768) * 1023 / 65535)
    assert np.allclose(x, (codes - 512) * 1.25, atol=0.01 * 1.25) and check_recording(sim.recording) is not None
    assert sim.recording.attrs["native_bits"] == 10 and sim.recording.attrs["units"] == "uV"


def test_differential_non_linearity():
    """The codes of a smooth input differ from their neighbours as much as in N1 (median 1.39x, 90 % below 2.3x)."""
    adc = S.Adc(dnl=0.35)
    edges = S.code_edges(adc, np.random.default_rng(1))
    width = np.diff(edges)
    ratio = np.maximum(width[1:] / width[:-1], width[:-1] / width[1:])
    assert 1.3 < np.median(ratio) < 1.6 and 2.0 < np.quantile(ratio, 0.9) < 3.0
    assert np.allclose(np.diff(S.code_edges(S.Adc(), np.random.default_rng(1))), 1.25)


def test_saturation_in_a_recording():
    sim = S.simulate("broadband", **FAST, background=S.Background(rms=400.0))
    codes = np.round((sim.recording.values.astype(float) + 32768) * 1023 / 65535)
    assert codes.min() == 0 and codes.max() == 1023


# --- whole recordings ------------------------------------------------------------------------------------------------


def _digest(sim):
    h = hashlib.sha256(sim.recording.values.tobytes() + sim.lfp.tobytes() + sim.kinematics.values.tobytes())
    for t in sim.spike_times:
        h.update(t.tobytes())
    return h.hexdigest()


@pytest.mark.parametrize("kind", ["broadband", "lfp", "ecog", "eeg"])
def test_same_seed_same_bits(kind):
    a = S.simulate(kind, 1.0, seed=9)
    b = S.generate(S.preset(kind, seconds=1.0, seed=9), block=333)
    c = S.simulate(kind, 1.0, seed=10)
    assert _digest(a) == _digest(b) != _digest(c)
    assert a.recording.shape == (a.config.n_samples, 64 if kind in ("ecog", "eeg") else 96)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40_000))
def test_block_length_does_not_matter(block):
    config = S.preset("broadband", seconds=0.5, seed=2, units=S.UnitModel(rate=50), artefacts=S.ArtefactModel(rate=4.0))
    assert _digest(S.generate(config, tetrode(), block=block)) == _digest(S.generate(config, tetrode()))


def test_ingredients_have_their_own_streams(broadband):
    calm = S.simulate("broadband", 4.0, probe=utah_array(4, 4), seed=3, **OFF)
    assert all((a == b).all() for a, b in zip(calm.spike_times, broadband.spike_times, strict=True))
    assert (calm.kinematics.values == broadband.kinematics.values).all() and (calm.edges == broadband.edges).all()


def test_lfp_is_the_mean_of_its_samples():
    sim = S.simulate("broadband", **FAST, units=S.UnitModel(per_contact=0), multiunit=S.MultiUnit(rms=0), **OFF)
    uv = physical(sim.recording).values.reshape(-1, sim.lfp_every, 12).mean(1)
    assert sim.lfp_every == 30 and sim.lfp.shape == uv.shape and np.abs(uv - sim.lfp).max() < 1.0


@pytest.mark.parametrize(
    "probe", [linear_probe(1), tetrode(), Probe("lost", np.full((3, 3), np.nan))], ids=lambda p: p.name
)
def test_small_and_unplaced_probes(probe):
    for kind in ("broadband", "lfp"):
        sim = S.simulate(kind, 0.3, probe=probe)
        assert sim.recording.shape[1] == len(probe) and np.isfinite(sim.lfp).all() and sim.recording.values.std() > 0


def test_no_units_and_no_events():
    sim = S.simulate("broadband", 0.2, probe=tetrode(), units=S.UnitModel(per_contact=0), **OFF)
    assert sim.spike_times == () and len(sim.bursts.onset) == 0 and sim.units.channel.shape == (0,)


# --- splits and files ------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(200, 3000), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.floats(0, 0.04))
def test_splits_are_disjoint_ordered_and_guarded(n, weights, guard):
    x = S.recording(np.arange(n, dtype=np.int32)[:, None], 1000.0)
    fractions = [w / sum(weights) for w in weights]
    parts = S.split(x, fractions, guard)
    seen = [p.values[:, 0] for p in parts]
    for a, b in itertools.pairwise(seen):
        assert b[0] - a[-1] - 1 == round(guard * 1000)
    usable = n - round(guard * 1000) * (len(parts) - 1)
    assert sum(map(len, seen)) == usable and seen[0][0] == 0 and seen[-1][-1] == n - 1
    assert all(abs(len(s) - f * usable) <= 1 for s, f in zip(seen, fractions, strict=True))
    assert all(p.attrs["t_start"] == pytest.approx(p.values[0, 0] / 1000) for p in parts)


def test_files_round_trip(tmp_path, broadband):
    S.save_simulation(broadband, tmp_path / "a.h5")
    S.generate_file(tmp_path / "b.h5", broadband.config, utah_array(4, 4))
    for name in "ab":
        back = S.load_simulation(tmp_path / f"{name}.h5")
        assert back.recording.identical(broadband.recording) and back.config == broadband.config
        assert back.kinematics.identical(broadband.kinematics) and _digest(back) == _digest(broadband)
        for part in ("bursts", "units", "artefacts"):
            for f in dataclasses.fields(getattr(back, part)):
                one, two = getattr(getattr(back, part), f.name), getattr(getattr(broadband, part), f.name)
                same = (
                    all(np.array_equal(p, q) and p.dtype == q.dtype for p, q in zip(one, two, strict=True))
                    if isinstance(one, tuple)
                    else np.array_equal(one, two)
                )
                assert same, f.name
    empty = S.simulate("broadband", 0.1, probe=tetrode(), units=S.UnitModel(per_contact=0), **OFF)
    S.save_simulation(empty, tmp_path / "c.h5")
    assert S.load_simulation(tmp_path / "c.h5").spike_times == ()


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    real, count = S.convert, []

    def failing(*a):
        count.append(1)
        if len(count) > 2:
            raise KeyboardInterrupt
        return real(*a)

    monkeypatch.setattr(S, "convert", failing)
    with pytest.raises(KeyboardInterrupt):
        S.generate_file(tmp_path / "x.h5", S.preset("broadband", seconds=40.0), tetrode())
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files(tmp_path, broadband):
    path = tmp_path / "a.h5"
    S.save_simulation(broadband, path)
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "text.h5").write_text("not HDF5")
    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["x"] = 1
    with h5py.File(path, "r+") as f:
        del f["truth/units"]
    for name in ("cut.h5", "text.h5", "other.h5", "a.h5", "missing.h5"):
        with pytest.raises(InputError, match="simulation") as e:
            S.load_simulation(tmp_path / name)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: S.preset("meg"), "known: broadband"),
        (lambda: S.preset("lfp", foo=1), "no setting 'foo'"),
        (lambda: S.preset("lfp", seconds=0), "positive"),
        (lambda: S.preset("lfp", seconds=float("nan")), "positive"),
        (lambda: S.preset("lfp", sampling_rate=-1.0), "positive"),
        (lambda: S.preset("lfp", background=S.Background(exponent=5)), "exponent"),
        (lambda: S.preset("lfp", background=S.Background(common=0.7, private=0.7)), "shares"),
        (lambda: S.preset("lfp", units=S.UnitModel()), "5000 Hz"),
        (lambda: S.preset("lfp", bands=(S.Band("x", 20, 10),)), "low <= high"),
        (lambda: S.preset("broadband", units=S.UnitModel(burst_share=1.0)), "burst_share"),
        (lambda: S.preset("lfp", movement=S.Movement(time=0)), "movement"),
        (lambda: S.Adc(bits=17), "1 to 16 bits"),
        (lambda: S.Adc(dnl=0.5), "dnl"),
        (lambda: S.Adc(bits=16, step=2.0), "int16"),
        (lambda: S.split(S.recording(np.zeros((10, 1), np.int16), 10.0), (0.5, 0.5), 2.0), "shorter guard"),
        (lambda: S.split(S.recording(np.zeros((10, 1), np.int16), 10.0), ()), "add up to 1"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(InputError, match=word):
        call()


# --- beside real recordings ------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.skipif("NBMF_DATA_DIR" not in os.environ, reason="NBMF_DATA_DIR is not set")
def test_spectrum_and_entropy_like_n1():
    """Simulated broadband against 25 N1 clips: spectrum within 5 dB from 5 Hz to 9 kHz, entropies within 0.3 bit."""
    files = sorted(Path(os.environ["NBMF_DATA_DIR"]).glob("neural/n1_neuralink/**/*.wav"))[::4]
    if not files:
        pytest.skip("the N1 clips are not there")
    clips = []
    for path in files:
        with wave.open(str(path)) as w:
            raw = np.frombuffer(w.readframes(w.getnframes()), "<i2")
        clips.append(np.round((raw.astype(float) + 32768) * 1023 / 65535))
    sim = S.simulate("broadband", 5.0, 19_531.0, utah_array(5, 5), seed=1, artefacts=S.ArtefactModel(rate=0))
    ours = np.round((sim.recording.values.astype(float).T + 32768) * 1023 / 65535)

    def spectrum(traces):
        parts = [welch(x - x.mean(), 19_531.0, nperseg=8192) for x in traces]
        return np.interp([5, 20, 50, 100, 300, 1000, 3000, 9000], parts[0][0], np.median([p for _, p in parts], axis=0))

    def entropy(traces):
        shares = [np.unique(x, return_counts=True)[1] / len(x) for x in traces]
        return np.mean([-(s * np.log2(s)).sum() for s in shares])

    assert np.abs(10 * np.log10(spectrum(ours) / spectrum(clips))).max() < 5
    assert entropy(ours) == pytest.approx(entropy(clips), abs=0.3)
    assert entropy(np.diff(ours)) == pytest.approx(entropy([np.diff(c) for c in clips]), abs=0.3)
