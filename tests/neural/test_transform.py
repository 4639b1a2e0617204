"""The transform codecs: round trips, rate-distortion, determinism, odd shapes, damage."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.coding.tables import ONE, scale_index
from nbmf_research.core import InputError, StreamError
from nbmf_research.neural import transform
from nbmf_research.neural.codec import Frame, create_codec, decompress

NAMES = ("dct", "klt-dct", "wavelet", "klt-wavelet")
REAL = os.environ.get("NBMF_DATA_DIR")


def signal(n=3000, channels=5, seed=0, dtype=np.int16):
    """A few shared, slowly varying sources and noise."""
    rng = np.random.default_rng(seed)
    sources = np.cumsum(rng.normal(size=(n, 3)), axis=0)
    sources -= sources.mean(0)
    x = sources @ rng.normal(size=(3, channels)) * 10 + 5 * rng.normal(size=(n, channels)) + 100
    return np.rint(x).astype(dtype) if np.dtype(dtype).kind in "iu" else x.astype(dtype)


def snr(x, y):
    x = np.asarray(x, np.float64)
    return 10 * np.log10(((x - x.mean(0)) ** 2).sum() / ((x - y) ** 2).sum())


@pytest.mark.parametrize("name", NAMES)
def test_rate_and_distortion_fall_and_rise_together(name):
    x = signal()
    rates, quality = [], []
    for step in (0.5, 2, 8, 32, 128, 512):
        stream = create_codec(name, step=step).compress(x, 500.0)
        rates.append(8 * len(stream) / x.size)
        quality.append(snr(x, decompress(stream).values))
    assert (np.diff(rates) < 0).all() and (np.diff(quality) < 0).all()
    assert rates[0] > 5 and rates[-1] < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_error_is_that_of_the_quantiser(name):
    x = signal()
    y = decompress(create_codec(name, step=1.0).compress(x)).values
    rms = np.sqrt(((x - y) ** 2).mean())
    assert 0.24 < rms < 0.36  # 1 / sqrt(12) is 0.29


def test_klt_pays_where_channels_share_sources_and_never_costs_much():
    shared, alone = signal(6000, 12), np.random.default_rng(0).normal(0, 50, (1000, 40)).astype(np.float32)
    size = {n: len(create_codec(n, step=20.0).compress(shared)) for n in NAMES}
    assert size["klt-dct"] < 0.7 * size["dct"] and size["klt-wavelet"] < 0.7 * size["wavelet"]
    assert (
        len(create_codec("klt-dct", step=20.0).compress(alone))
        <= len(create_codec("dct", step=20.0).compress(alone)) + 4
    )


SHAPES = [(1, 1), (2, 1), (1, 7), (15, 3), (17, 3), (100, 1), (130, 2), (1000, 385), (4097, 2)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_odd_shapes(name, shape):
    x = signal(*shape)
    stream = create_codec(name, step=10.0).compress(x, 1000.0)
    y = decompress(stream)
    assert y.shape == shape and y.dtype == np.float32 and y.attrs["sampling_rate"] == 1000.0
    assert np.sqrt(((x - y.values) ** 2).mean()) < 10.0
    assert stream == create_codec(name, step=10.0).compress(x, 1000.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.float32, np.float64])
def test_every_input_type(name, dtype):
    x = signal(500, 3, dtype=np.float64)
    x = np.clip(x, 0, 120).astype(dtype)
    y = decompress(create_codec(name, step=2.0).compress(x)).values
    assert np.sqrt(((x.astype(float) - y) ** 2).mean()) < 1.0


@pytest.mark.parametrize("name", NAMES)
def test_constant_channels(name):
    x = signal(600, 4)
    x[:, 1] = 1000
    x[:, 3] = 0
    y = decompress(create_codec(name, step=4.0).compress(x)).values
    assert np.abs(y[:, 1] - 1000).max() < 4 and np.abs(y[:, 3]).max() < 4
    flat = np.full((600, 4), 7, np.int16)
    stream = create_codec(name, step=4.0).compress(flat)
    assert len(stream) < 120 and np.abs(decompress(stream).values - 7).max() <= 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_step_beyond_the_signal_leaves_the_mean(name):
    x = signal(2000, 3)
    stream = create_codec(name, step=1e6).compress(x)
    assert len(stream) < 150
    assert np.isfinite(decompress(stream).values).all()


@pytest.mark.parametrize("name", NAMES)
def test_chunks(name, monkeypatch):
    x = signal(20_000, 3)
    one = create_codec(name, step=20.0).compress(x)
    before = snr(x, decompress(one).values)
    monkeypatch.setattr(transform, "CHUNK_SAMPLES", 3 * 8192)
    many = create_codec(name, step=20.0).compress(x)
    assert abs(len(many) / len(one) - 1) < 0.2
    assert abs(snr(x, decompress(many).values) - before) < 0.5


def test_chunks_cover_every_row_once():
    for n, channels in ((1, 1), (4096, 1), (10**7, 3), (1000, 385), (10**6, 1000)):
        ends = list(transform._chunks(n, channels))
        assert ends[0][0] == 0 and ends[-1][1] == n
        assert all(a[1] == b[0] for a, b in pairwise(ends))
        assert max(b - a for a, b in ends) * channels <= 2 * max(transform.CHUNK_SAMPLES, 4096 * channels)


CHILD = """
import hashlib, sys
from pathlib import Path
from nbmf_research.neural import transform
from nbmf_research.neural.codec import decompress
for name in sys.argv[1:]:
    print(hashlib.sha256(decompress(Path(name).read_bytes()).values.tobytes()).hexdigest())
"""


def test_a_fresh_process_decodes_the_same(tmp_path: Path):
    x = signal()
    streams = {name: create_codec(name, step=5.0).compress(x) for name in NAMES}
    for name, stream in streams.items():
        (tmp_path / name).write_bytes(stream)
    command = [sys.executable, "-c", CHILD, *(str(tmp_path / n) for n in NAMES)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert child.stdout.split() == [
        hashlib.sha256(decompress(s).values.tobytes()).hexdigest() for s in streams.values()
    ]


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 90),
    st.integers(1, 4),
    st.integers(0, 2**31),
    st.sampled_from([transform.DCT_WEIGHTS, transform.WAVELET_WEIGHTS]),
)
def test_bands_come_back(rows, channels, seed, weights):
    rng = np.random.default_rng(seed)
    layout = transform.Bands.of([rows, rows, 2 * rows, max(4 * rows - 1, 1)], channels)
    x = rng.laplace(0, rng.choice([0.1, 1, 30, 5000]), layout.size)
    start = int(rng.integers(0, 100))
    q, scales, bits, error = transform.quantise(
        x, *layout, start, weights, transform.magnitude_cost(), transform.reconstruction(), 0.13
    )
    stream = transform.code_bands(q, scales, layout, start)
    back, tables, rest = transform.decode_bands(stream + b"rest", layout, weights)
    assert (back == q).all() and rest == b"rest"
    assert (transform.dequantise(back, tables) == transform.dequantise(q, scales)).all()
    assert np.isclose(((transform.dequantise(q, scales) - x) ** 2).sum(), error.sum())
    assert 8 * len(stream) < bits.sum() * 1.02 + 400


def test_basis_round_trip_and_precision():
    rng = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    variance = np.geomspace(1e6, 1e-3, 20)
    basis = transform.round_basis(vectors, variance, 1.0)
    back, rest = transform.Basis.unpack(basis.pack() + b"x", 20, 20)
    assert (back.entries == basis.entries).all() and (back.shifts == basis.shifts).all() and rest == b"x"
    assert np.abs(basis.synthesis[0] - vectors[0]).max() < 2.0 ** -basis.shifts[0]
    empty = transform.Basis(np.zeros((0, 20), np.int64), np.zeros(0, np.int64))
    assert transform.Basis.unpack(empty.pack(), 0, 20)[0].entries.shape == (0, 20)


def test_transforms_are_orthogonal_and_exact():
    x = np.random.default_rng(0).normal(size=(1024, 3))
    for forward, inverse, p in (
        (transform.dct_forward, transform.dct_inverse, 64),
        (transform.wavelet_forward, transform.wavelet_inverse, 4),
    ):
        c = forward(x, p)
        assert np.isclose((c**2).sum(), (x**2).sum()) and np.allclose(inverse(c, 1024, 3, p), x)
        assert np.allclose(inverse(forward(x[:1001], p), 1001, 3, p), x[:1001])


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_a_stream_error(name):
    stream = create_codec(name, step=5.0).compress(signal(400, 3))
    for cut in range(0, len(stream), 7):
        with pytest.raises(StreamError):
            decompress(stream[:cut])
    for at in range(0, len(stream), 5):
        broken = bytearray(stream)
        broken[at] ^= 0x10
        try:
            decompress(bytes(broken))
        except (StreamError, InputError):
            continue
        assert at < 40  # the sampling rate, say: not everything in a header can be wrong


@pytest.mark.parametrize("name", NAMES)
def test_damage_behind_the_checksum(name):
    """Whatever the payload holds, the decoder raises a StreamError or returns samples of the right shape."""
    x = signal(400, 3)
    frame = Frame.unpack(create_codec(name, step=5.0).compress(x))
    rng = np.random.default_rng(0)
    for trial in range(150):
        payload = bytearray(frame.payload)
        if trial % 3:
            payload[rng.integers(len(payload))] ^= 1 << rng.integers(8)
        else:
            del payload[rng.integers(len(payload)) :]
        with np.errstate(all="ignore"), contextlib.suppress(StreamError):
            assert create_codec(name).decode(bytes(payload), frame.shape, frame.dtype).shape == frame.shape


def test_a_payload_that_goes_on_is_noticed():
    frame = Frame.unpack(create_codec("dct", step=5.0).compress(signal(400, 3)))
    with pytest.raises(StreamError, match="follow"):
        create_codec("dct").decode(frame.payload + b"more", frame.shape, frame.dtype)


@pytest.mark.parametrize("step", [0, -1, 1e-320, float("nan"), float("inf")])
def test_impossible_steps(step):
    with pytest.raises(InputError, match="step"):
        create_codec("dct", step=step)


def test_a_step_too_small_for_the_recording():
    with pytest.raises(InputError, match="larger step"):
        create_codec("klt-dct", step=1e-8).compress(signal())


def test_first_phase_table_is_what_the_caller_says():
    layout = transform.Bands.of([40, 40], 2)
    q = np.zeros(layout.size, np.int64)
    args = (q, layout.rows, layout.offset, 2, np.arange(2))
    assert (transform.contexts(*args, 0, 0, 32, 55, transform.DCT_WEIGHTS) == 55).all()
    q[:] = 64
    for first, step in transform.phases(40):
        means = transform.contexts(*args, 1, first, step, 0, transform.DCT_WEIGHTS)
        assert means.size == 2 * len(range(first, 40, step))
        assert (np.abs(means - scale_index(64 * ONE)) <= 3).all()


def test_kernels_compute_what_their_python_does(monkeypatch):
    layout = transform.Bands.of([37, 37, 74], 2)
    x = np.random.default_rng(0).laplace(0, 3, layout.size)
    args = (x, *layout, 60, transform.WAVELET_WEIGHTS, transform.magnitude_cost(), transform.reconstruction(), 0.13)
    compiled = transform.quantise(*args)
    for name in ("_magnitude", "_pair", "_band_mean", "_from_previous", "contexts", "_choose"):
        monkeypatch.setattr(transform, name, getattr(transform, name).py_func)
    plain = transform.quantise.py_func(*args)
    assert all(np.allclose(a, b) for a, b in zip(compiled, plain, strict=True))


def test_bound_of_known_processes():
    rng = np.random.default_rng(0)
    white = rng.normal(size=(200_000, 2)) * [1.0, 3.0]
    # two channels of variance 1 and 9: at 20 dB both above the water, 1/2 log2 of the geometric mean over D
    expected = 0.5 * np.log2(3.0 / (5.0 / 100))
    assert np.isclose(transform.rate_distortion_bound(white, 20.0)[0], expected, atol=0.02)
    assert transform.rate_distortion_bound(white, [-1.0, 0.0]).max() < 1e-3
    assert (np.diff(transform.rate_distortion_bound(signal(), np.arange(1, 40))) > 0).all()
    with pytest.raises(InputError, match="segment"):
        transform.rate_distortion_bound(white[:10], 20.0)


def test_codecs_stay_above_the_bound_on_stationary_noise():
    rng = np.random.default_rng(0)
    x = np.convolve(rng.normal(size=40_000), np.hanning(9), "same")[:, None].astype(np.float32)
    for name in ("dct", "wavelet"):
        stream = create_codec(name, step=0.8).compress(x)
        rate, quality = 8 * len(stream) / x.size, snr(x, decompress(stream).values)
        bound = transform.rate_distortion_bound(x, quality)[0]
        assert bound < rate < bound + (0.3 if name == "dct" else 0.6)


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="NBMF_DATA_DIR is not set: no recordings to measure on")
@pytest.mark.parametrize(
    ("name", "db", "most"), [("klt-dct", 12, 2.06), ("klt-dct", 20, 3.40), ("wavelet", 20, 3.40), ("dct", 20, 3.49)]
)
def test_locust_is_at_least_as_good_as_the_first_notes(name, db, most):
    file = Path(REAL) / "neural" / "locust_tetrode" / "locust_trial_01.raw"
    if not file.exists():
        pytest.skip(f"{file.name} is not there")
    x = np.fromfile(file, np.int16).reshape(-1, 4)[:120_000]
    points = []
    for step in x.std() * 10 ** (-db / 20) * np.array([2.6, 3.0, 3.6, 4.4]):
        stream = create_codec(name, step=step).compress(x)
        points.append((snr(x, decompress(stream).values), 8 * len(stream) / x.size))
    points.sort()
    assert points[0][0] < db < points[-1][0]
    assert np.interp(db, *zip(*points, strict=True)) < most
