"""The spike feature mode: what it keeps, what it declares, damage, odd input, determinism, truth on simulation."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.core import InputError, NbmfError, StreamError
from nbmf_research.neural import spikes
from nbmf_research.neural.codec import Frame, create_codec, decompress
from nbmf_research.neural.decoders import bin_spikes, decode_report
from nbmf_research.neural.evaluate import views
from nbmf_research.neural.features import band_power_error, compare_spikes, detect_spikes
from nbmf_research.neural.probes import linear_probe
from nbmf_research.neural.sets import find_set
from nbmf_research.neural.simulate import Simulation, UnitModel, simulate

RATE = 15_000.0


def make(seconds: float = 6.0, channels: int = 2, seed: int = 2) -> Simulation:
    units = UnitModel(2.0, rate=14.0, amplitude=80.0, amplitude_spread=0.6, distance=(20.0, 30.0), drift=0.05)
    return simulate("broadband", seconds, RATE, linear_probe(channels, 400.0), seed=seed, units=units)


@pytest.fixture(scope="module")
def sim() -> Simulation:
    return make()


@pytest.fixture(scope="module")
def stream(sim: Simulation) -> bytes:
    return create_codec("nbmf-spikes").compress(sim.recording)


@pytest.fixture(scope="module")
def decoded(stream: bytes) -> xr.DataArray:
    return decompress(stream)


# what it keeps ---------------------------------------------------------------


def test_the_bar_of_the_feature_mode_on_simulated_truth(sim: Simulation, stream: bytes, decoded: xr.DataArray) -> None:
    x = sim.recording.values
    assert 2 * x.size / len(stream) > 30
    for fixed in (True, False):
        a = detect_spikes(x, RATE)
        scores = compare_spikes(a, detect_spikes(decoded.values, RATE, noise=a.noise if fixed else None))
        strata = [v for k, v in scores.items() if k.startswith("f1_snr") and np.isfinite(v)]
        assert min(strata) > 0.97 and scores["jitter_p95_ms"] < 0.1
    units = spikes.sort_both(x, decoded.values, RATE)
    agreement = spikes.unit_agreement(*units)
    assert len(agreement) >= 3 and min(agreement.values()) > 0.95
    truth = spikes.truth_f1([t / RATE for t in sim.spike_times], sim.units.channel, *units)
    clear = truth[truth[:, 0] > 0.85]
    assert len(clear) >= 3 and (clear[:, 1] > clear[:, 0] - 0.03).all()


def test_detectors_that_the_encoder_does_not_know_find_nearly_the_same(sim: Simulation, decoded: xr.DataArray) -> None:
    for other in ({"threshold": -4.0}, {"threshold": -6.0}, {"band": (500.0, 5000.0)}, {"band": (300.0, 3000.0)}):
        a, b = (detect_spikes(v, RATE, **other) for v in (sim.recording.values, decoded.values))
        assert compare_spikes(a, b)["f1"] > 0.93, other


def test_the_field_potential_is_kept(sim: Simulation, decoded: xr.DataArray) -> None:
    error = np.abs(band_power_error(sim.recording.values, decoded.values, RATE))
    assert len(error) >= 5 and float(error.max()) < 0.04


def test_the_level_of_the_noise_is_kept(sim: Simulation, decoded: xr.DataArray) -> None:
    a, b = (detect_spikes(v, RATE).noise for v in (sim.recording.values, decoded.values))
    assert np.abs(b / a - 1).max() < 0.01


@pytest.mark.parametrize("kind", ["random times", "all zero", "no spikes", "times only", "shuffled"])
def test_no_control_passes(sim: Simulation, stream: bytes, kind: str) -> None:
    x = sim.recording.values
    y = spikes.spike_controls(spikes.read_content(stream), x.shape)[kind]
    units = spikes.unit_agreement(*spikes.sort_both(x, y, RATE))
    assert min(units.values()) < 0.8
    if kind in ("random times", "all zero", "no spikes"):
        assert len(spikes.match_channels(detect_spikes(x, RATE), spikes._above(y, RATE, -4.5))[0]) < 0.15 * len(
            detect_spikes(x, RATE)
        )


def test_finer_steps_take_more_bytes_and_give_a_better_copy(sim: Simulation) -> None:
    x, points = sim.recording, []
    for coarseness in (2.0, 0.5, 0.125):
        s = create_codec("nbmf-spikes", coarseness=coarseness).compress(x)
        events, _ = spikes.read_waveforms(s)
        true = spikes.spike_waveforms(x.values, events, RATE)
        points.append((len(s), -np.mean((true - spikes.spike_waveforms(decompress(s).values, events, RATE)) ** 2)))
    assert (np.diff(points, axis=0) > 0).all()


def test_movement_is_decoded_as_well_from_decoded_spikes() -> None:
    units = UnitModel(1.0, rate=20.0, amplitude=80.0, distance=(20.0, 40.0))
    sim = simulate("broadband", 20.0, RATE, linear_probe(4, 400.0), seed=5, units=units)
    y = decompress(create_codec("nbmf-spikes").compress(sim.recording)).values
    counts = [
        bin_spikes([s.train(c) for c in range(4)], 0.05, stop=20.0)
        for s in (detect_spikes(v, RATE) for v in (sim.recording.values, y))
    ]
    velocity = sim.kinematics.sel(quantity=["vx", "vy"]).values
    at = np.minimum(
        np.rint((np.arange(400) + 0.5) * 0.05 * sim.kinematics.attrs["sampling_rate"]).astype(int), len(velocity) - 1
    )
    report = decode_report(*counts, velocity[at])
    assert (counts[0] != counts[1]).mean() < 0.01 and report["r2_drop_transfer"] < 0.01


# what it declares ------------------------------------------------------------


def test_the_stream_says_what_was_kept_and_its_certificate_is_true(
    sim: Simulation, stream: bytes, decoded: xr.DataArray
) -> None:
    said = spikes.declaration(stream)
    a, b = (detect_spikes(v, RATE) for v in (sim.recording.values, decoded.values))
    score = compare_spikes(a, b)
    assert said["feature"] == "spikes" and said["spikes"] == len(a) and "made_up" in said
    assert said["f1"] == pytest.approx(score["f1"]) and said["recall"] == pytest.approx(score["recall"])
    info = create_codec("nbmf-spikes").info(stream)
    assert info["feature"] == "spikes" and info["bytes"] == len(stream) and info["shape"] == sim.recording.shape


def test_events_are_read_without_a_detector(sim: Simulation, stream: bytes) -> None:
    a, listed = detect_spikes(sim.recording.values, RATE), spikes.read_spikes(stream)
    assert np.array_equal(listed.times, a.times) and np.array_equal(listed.channels, a.channels)
    assert np.abs(listed.snr - a.snr).max() < 0.07
    more, low = spikes.read_spikes(stream, 4.0), detect_spikes(sim.recording.values, RATE, threshold=-4.0)
    assert np.array_equal(more.times, low.times)
    assert len(spikes.read_spikes(stream, 8.0)) < len(listed)
    events, waves = spikes.read_waveforms(stream)
    w, before = spikes.spike_window(RATE)
    assert waves.shape == (len(events), len(w)) and (np.abs(waves.argmin(1) - before) <= 2).mean() > 0.9


def test_positive_spikes_need_a_positive_threshold(sim: Simulation) -> None:
    turned = (-sim.recording.values.astype(np.int32)).astype(np.float32)
    s = create_codec("nbmf-spikes", threshold=4.5).compress(turned, RATE)
    a, b = (detect_spikes(v, RATE, threshold=4.5) for v in (turned, decompress(s).values))
    assert compare_spikes(a, b)["f1"] > 0.99 and spikes.declaration(s)["threshold"] == 4.5


# determinism -----------------------------------------------------------------

CHILD = (
    "import sys, hashlib, numpy as np, nbmf_research.neural.spikes as s\n"
    "from nbmf_research.neural.codec import decompress\n"
    "b = open(sys.argv[1], 'rb').read(); c = s.read_content(b); y = decompress(b).values\n"
    "e = c.events; h = hashlib.sha256(b''.join(np.ascontiguousarray(v).tobytes() for v in (e.sample, e.channel, e.size, e.gain, e.weights, c.waveforms())))\n"
    "print(h.hexdigest(), hashlib.sha256(y.tobytes()).hexdigest())"
)


def test_another_process_with_other_threads_decodes_the_same(stream: bytes, decoded: xr.DataArray, tmp_path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(stream)
    c = spikes.read_content(stream)
    e = c.events
    own = hashlib.sha256(
        b"".join(
            np.ascontiguousarray(v).tobytes() for v in (e.sample, e.channel, e.size, e.gain, e.weights, c.waveforms())
        )
    )
    for threads in ("1", "4"):
        env = {**os.environ} | dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), threads
        )
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(path)], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [own.hexdigest(), hashlib.sha256(decoded.values.tobytes()).hexdigest()]


def test_encoding_is_repeatable(sim: Simulation, stream: bytes) -> None:
    assert create_codec("nbmf-spikes").compress(sim.recording) == stream


# odd input -------------------------------------------------------------------


def odd() -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    yield "one channel, no spike", rng.normal(size=(900, 1)).clip(-3, 3)
    yield "all zero", np.zeros((500, 2), np.int16)
    yield "constant", np.full((64, 3), -7.25, np.float32)
    yield "a square wave over the whole range", np.tile([[-32768], [32767]], (150, 2)).astype(np.int16)
    yield "mostly silent", np.where(rng.random((2000, 1)) < 0.01, -100.0, 0.0)
    yield "far from zero", 1e9 + rng.normal(size=(600, 1))
    yield "tiny", 1e-9 * rng.normal(size=(600, 2))
    yield "unsigned", rng.integers(0, 255, (400, 2)).astype(np.uint8)
    yield "one beat in silence", np.eye(200, 1, -100) * -5.0


@pytest.mark.parametrize(("name", "x"), list(odd()), ids=[k for k, _ in odd()])
def test_odd_input_comes_back_finite_and_in_shape(name: str, x: np.ndarray) -> None:
    s = create_codec("nbmf-spikes").compress(x, RATE)
    y = decompress(s).values
    assert (
        y.shape == x.shape
        and np.isfinite(y).all()
        and np.ptp(y) <= 8 * np.ptp(x.astype(float)) + 1e-30 * (1 + np.abs(x.astype(float)).max())
    )
    assert len(spikes.read_spikes(s)) <= x.size
    if name in ("all zero", "constant"):
        assert np.array_equal(y, x) and len(spikes.read_spikes(s)) == 0


def test_bad_input_is_one_clear_error(sim: Simulation) -> None:
    x, codec = sim.recording, create_codec("nbmf-spikes")
    hole = x.values.astype(np.float32)
    hole[5] = np.nan
    for bad, rate in (
        (hole, RATE),
        (x.values, 0.0),
        (x.values, 500.0),
        (x.values[:63], RATE),
        (hole[:100] * 0 + 1e31, RATE),
    ):
        with pytest.raises(InputError):
            codec.compress(bad, rate)
    for wrong in (
        {"coarseness": 0.0},
        {"coarseness": np.nan},
        {"threshold": 0.0},
        {"threshold": -4.0, "margin": 4.5},
        {"margin": -1.0},
    ):
        with pytest.raises(InputError):
            create_codec("nbmf-spikes", **wrong)
    with pytest.raises(StreamError):
        spikes.read_content(create_codec("raw").compress(x))


# damage ----------------------------------------------------------------------


def test_a_frame_that_is_damaged_is_refused(stream: bytes) -> None:
    for broken in (stream[:-1], stream[:40], stream[:200] + b"x" + stream[201:], stream + b"0"):
        with pytest.raises(StreamError):
            decompress(broken)
        with pytest.raises(StreamError):
            spikes.read_spikes(broken)


def test_a_payload_that_is_cut_is_refused(sim: Simulation, stream: bytes) -> None:
    payload = Frame.unpack(stream).payload
    codec = create_codec("nbmf-spikes")
    for size in {0, 1, 10, 50, *np.linspace(60, len(payload) - 5, 25).astype(int)}:
        with pytest.raises(StreamError):
            codec.decode(payload[:size], sim.recording.shape, np.dtype("<f4"))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_payload_with_a_wrong_byte_is_refused_or_decodes_to_something_of_the_right_shape(data: st.DataObject) -> None:
    payload, shape = SMALL
    at = data.draw(st.integers(0, len(payload) - 1))
    broken = payload[:at] + bytes([payload[at] ^ data.draw(st.integers(1, 255))]) + payload[at + 1 :]
    try:
        y = create_codec("nbmf-spikes").decode(broken, shape, np.dtype("<f4"))
    except NbmfError:
        return
    assert y.shape == shape


def _small() -> tuple[bytes, tuple[int, int]]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1500, 2))
    x[np.arange(100, 1400, 100)] -= 15
    return create_codec("nbmf-spikes", sampling_rate=RATE).encode(x), (1500, 2)


SMALL = _small()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(2, 3000), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_places_come_back(channels: int, n: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    on = rng.random((channels, n)) < share**4
    channel, sample = np.nonzero(on)
    packed = spikes.pack_places(sample, channel, (n, channels))
    a, b, rest = spikes.unpack_places(packed + b"!", len(sample), (n, channels))
    assert np.array_equal(a, sample) and np.array_equal(b, channel) and rest == b"!"


def test_the_noise_has_the_spectrum_that_was_measured() -> None:
    from scipy import signal

    rng = np.random.default_rng(3)
    x = signal.lfilter([1.0], [1.0, -1.2, 0.7], rng.normal(size=60_000))
    y = spikes.coloured_noise(spikes.reflections(x), 60_000, seed=0) * x.std()
    p, q = (signal.welch(v, nperseg=256)[1] for v in (x, y))
    assert np.median(np.abs(np.log(p / q))) < 0.15
    assert not spikes.reflections(np.zeros(100)).any() and spikes.coloured_noise(np.full(8, 63), 500, 0).std() < 1e3


@pytest.mark.real
@pytest.mark.parametrize("name", ["n1", "locust"])
def test_real_recordings_keep_their_spikes(name: str) -> None:
    if find_set(name).folder() is None:
        pytest.skip(f"the set {name} is not here: set NBMF_DATA_DIR")
    items = [i for i in find_set(name).items() if i.split == "validation"][:2]
    for item in items:
        x = views(item.x)[-1].x
        s = create_codec("nbmf-spikes").compress(x)
        said = spikes.declaration(s)
        rate = x.attrs["sampling_rate"]
        a, b = (detect_spikes(v, rate) for v in (x.values, decompress(s).values))
        assert 2 * x.size / len(s) > 25 and said["f1"] > 0.98 and compare_spikes(a, b)["f1"] > 0.98


def test_made_up_noise_is_another_in_each_block_and_channel(sim: Simulation) -> None:
    """Noise that repeated would be a rhythm and a synchrony that no brain made."""
    x, codec = sim.recording.values, create_codec("nbmf-spikes")
    half = len(x) // 2
    parts = [codec.compress(p, sampling_rate=RATE) for p in (x[:half], x[half : 2 * half], x[:half, :1])]
    a, b, c = (decompress(p).values for p in parts)
    fast = [np.diff(v[: half - 1], axis=0)[:, 0] for v in (a, b)] + [np.diff(v, axis=0)[:, -1] for v in (a, c)]
    assert abs(np.corrcoef(fast[0], fast[1])[0, 1]) < 0.05
    assert abs(np.corrcoef(fast[2], fast[3])[0, 1]) < 0.3 and (decompress(parts[0]).values == a).all()
