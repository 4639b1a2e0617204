"""The peers: every codec gives back the same bits or holds its bound, and fails in one way only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nbmf_research.core import InputError, MissingDependencyError, StreamError
from nbmf_research.neural import classical
from nbmf_research.neural.codec import CODECS, Frame, create_codec, decompress

BYTES = ("zlib", "xz", "zstd", "delta-zstd", "blosc", "delta-blosc", "mtscomp")
LOSSLESS = (*BYTES, "pcodec", "flac", "flac-stereo", "wavpack")
BOUNDED = ("sz3", "zfp", "quantised")
ALL = (*LOSSLESS, *BOUNDED, "wavpack-hybrid")
INTEGERS = ("i1", "u1", "<i2", "<u2", "<i4", "<u4")
FLOATS = ("<f4", "<f8")
FINITE = {"allow_nan": False, "allow_infinity": False}


def codec(name: str, **parameters: Any) -> Any:
    """The codec, or a skip with its own words for what is missing."""
    if reason := CODECS[name].missing():  # type: ignore[attr-defined]
        pytest.skip(reason)
    return create_codec(name, **parameters)


def arrays(dtypes: tuple[str, ...]) -> st.SearchStrategy[np.ndarray]:
    """Recordings of up to 40 x 8 samples: arbitrary values, or the two ends of the type in turns."""
    shapes = st.tuples(st.integers(1, 40), st.integers(1, 8))

    def of(dtype: str) -> st.SearchStrategy[np.ndarray]:
        if "f" in dtype:
            return hnp.arrays(dtype, shapes, elements=FINITE)
        ends = st.sampled_from([np.iinfo(dtype).min, np.iinfo(dtype).max, 0])
        return hnp.arrays(dtype, shapes) | hnp.arrays(dtype, shapes, elements=ends)

    return st.sampled_from(dtypes).flatmap(of)


def walk(n_time: int = 600, n_channels: int = 4, dtype: str = "<i2", step: int = 30) -> np.ndarray:
    """A random walk, which every codec can compress."""
    rng = np.random.default_rng(0)
    return np.cumsum(rng.integers(-step, step + 1, (n_time, n_channels)), axis=0).astype(dtype)


def broken_decode(stream: bytes) -> None:
    with pytest.raises(StreamError):
        decompress(stream)


def rewrap(stream: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Change the payload and give it a checksum that is right."""
    f = Frame.unpack(stream)
    return Frame(f.codec, f.dtype, f.shape, f.sampling_rate, change(f.payload)).pack()


def same(x: np.ndarray, stream: bytes) -> bool:
    y = decompress(stream).values
    return y.dtype == x.dtype and y.shape == x.shape and y.tobytes() == x.tobytes()


def test_all_are_registered_with_kind_and_knob() -> None:
    kinds = {name: (CODECS[name].kind, CODECS[name].knob, CODECS[name].knob_sign) for name in ALL}  # type: ignore[attr-defined]
    assert all(kinds[n] == ("lossless", None, 1) for n in LOSSLESS)
    assert all(kinds[n] == ("bounded", "max_error", 1) for n in BOUNDED)
    assert kinds["wavpack-hybrid"] == ("lossy", "bits_per_sample", -1)


@pytest.mark.parametrize("name", [*BYTES, "pcodec"])
def test_lossless_on_every_type(name: str) -> None:
    c = codec(name)

    @settings(max_examples=30, deadline=None)
    @given(arrays((*INTEGERS, *FLOATS)))
    def check(x: np.ndarray) -> None:
        assert same(x, c.compress(x))

    check()


@pytest.mark.parametrize("name", ["flac", "flac-stereo"])
def test_flac_is_lossless_or_refuses(name: str) -> None:
    c = codec(name)

    @settings(max_examples=30, deadline=None)
    @given(arrays(INTEGERS))
    def check(x: np.ndarray) -> None:
        if int(x.max()) - int(x.min()) < 2**24:
            assert same(x, c.compress(x))
        else:
            with pytest.raises(InputError, match="24-bit"):
                c.compress(x)

    check()


@pytest.mark.parametrize("origin", [-(2**31), -(2**23), 0, 2**23, 2**31 - 2**24])
@pytest.mark.parametrize("span", [2**16 - 1, 2**16, 2**24 - 1])
def test_flac_at_the_edges_of_its_width(origin: int, span: int) -> None:
    x = np.array([[origin, origin + span], [origin + span, origin], [origin + 1, origin]], np.int32)
    assert same(x, codec("flac").compress(x))


def test_wavpack_is_lossless() -> None:
    c = codec("wavpack")

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(arrays((*INTEGERS, "<f4")))
    def check(x: np.ndarray) -> None:
        assert same(x, c.compress(x))

    check()


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 385), (40, 385), (5000, 2)])
def test_shapes(name: str, shape: tuple[int, int]) -> None:
    x = walk(*shape)
    assert same(x, codec(name).compress(x, sampling_rate=1000.0))


@pytest.mark.parametrize("name", BOUNDED)
def test_bound_holds_for_every_sample(name: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(arrays(INTEGERS), st.floats(1e-3, 1e5))
    def check(x: np.ndarray, bound: float) -> None:
        y = decompress(codec(name, max_error=bound).compress(x)).values
        assert y.shape == x.shape
        assert np.abs(y.astype(np.float64) - x).max() <= bound

    codec(name)
    check()


@pytest.mark.parametrize("name", BOUNDED)
def test_bound_holds_for_floats_or_is_refused(name: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(arrays(FLOATS), st.floats(1e-3, 1e5))
    def check(x: np.ndarray, bound: float) -> None:
        try:
            stream = codec(name, max_error=bound).compress(x)
        except InputError as e:
            assert "larger bound" in str(e)
        else:
            y = decompress(stream).values.astype(np.float64)
            assert np.abs(y - x.astype(np.float64)).max() <= bound

    codec(name)
    check()


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 385), (40, 385), (3000, 2)])
def test_bounded_shapes(name: str, shape: tuple[int, int]) -> None:
    x = walk(*shape)
    y = decompress(codec(name, max_error=1.0).compress(x)).values
    assert y.dtype == np.float32
    assert np.abs(y - x).max() <= 1.0


@pytest.mark.parametrize("name", BOUNDED)
def test_a_larger_bound_needs_fewer_bytes(name: str) -> None:
    sizes = [len(codec(name, max_error=e).compress(walk())) for e in (0.5, 4.0, 32.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


@pytest.mark.parametrize(
    ("dtype", "decoded"),
    [("<i2", "<f4"), ("u1", "<f4"), ("<f4", "<f4"), ("<i4", "<f8"), ("<u4", "<f8"), ("<f8", "<f8")],
)
def test_bounded_types_hold_the_input(dtype: str, decoded: str) -> None:
    assert classical.Sz3().decoded_dtype(np.dtype(dtype)) == np.dtype(decoded)


def test_sz3_takes_the_shorter_of_two_predictors() -> None:
    codec("sz3")
    rng = np.random.default_rng(0)
    common = np.cumsum(rng.normal(size=(2000, 1)) * 30, axis=0) + rng.normal(size=(2000, 1)) * 50
    alike = np.round(common + rng.normal(size=(2000, 16))).astype(np.int16)
    smooth = np.round(1000 * np.sin(np.arange(4000) / 20)[:, None] * [1, -0.3]).astype(np.int16)
    ways = [Frame.unpack(create_codec("sz3", max_error=1.0).compress(x)).payload[4] for x in (smooth, alike)]
    assert ways == [0, 1]


@pytest.mark.parametrize("inner", classical.INNER)
@pytest.mark.parametrize("dtype", ["i1", "<i2", "<i4", "<f4", "<f8"])
def test_quantised_lies_on_its_grid_with_every_inner_codec(inner: str, dtype: str) -> None:
    codec(inner)
    x = walk(400, 3, step=4).astype(dtype)
    for bound in (0.4, 1.0, 3.7):
        y = decompress(create_codec("quantised", max_error=bound, inner=inner).compress(x)).values
        assert np.abs(y.astype(float) - x).max() <= np.floor(bound)
        assert not np.any(y % (2 * np.floor(bound) + 1))


def test_quantised_refuses_what_it_does_not_know() -> None:
    with pytest.raises(InputError, match="use one of pcodec"):
        create_codec("quantised", inner="gzip")
    codec("quantised")
    stream = create_codec("quantised", inner="zstd").compress(walk())
    broken_decode(rewrap(stream, lambda p: p[:12] + bytes([len(classical.INNER)]) + p[13:]))
    with pytest.raises(InputError, match="larger bound"):
        create_codec("quantised", max_error=1e-9).compress(np.array([[1e9], [0.5]]))


def test_zfp_on_integers_would_break_its_bound() -> None:
    """The page says so; the day it stops being true, integers could go in as they are."""
    zfpy = pytest.importorskip("zfpy")
    x = walk(dtype="<i4")
    y = zfpy.decompress_numpy(zfpy.compress_numpy(x, tolerance=0.5))
    assert np.abs(y - x).max() > 0.5


def test_hybrid_spends_what_it_is_told() -> None:
    x = walk(20_000, 2)
    errors = []
    for bits in (2.25, 4.0, 6.0):
        stream = codec("wavpack-hybrid", bits_per_sample=bits).compress(x)
        y = decompress(stream).values
        assert 8 * len(stream) / x.size == pytest.approx(bits, rel=0.15)
        assert (y.dtype, y.shape) == (x.dtype, x.shape)
        errors.append(float(np.square(y.astype(float) - x).mean()))
    assert errors == sorted(errors, reverse=True)
    white = decompress(codec("wavpack-hybrid", bits_per_sample=4.0, shaping=0.0).compress(x)).values
    assert (white != decompress(codec("wavpack-hybrid").compress(x)).values).any()


def test_hybrid_on_float32_and_unsigned() -> None:
    for x in (walk(3000, 3, "<f4"), (walk(3000, 3).astype(np.int32) + 2**15).astype(np.uint16)):
        y = decompress(codec("wavpack-hybrid", bits_per_sample=6.0).compress(x)).values
        assert y.dtype == x.dtype
        assert np.corrcoef(x.ravel().astype(float), y.ravel().astype(float))[0, 1] > 0.99


@pytest.mark.parametrize("layout", ["time", "channel"])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("name", ["zlib", "blosc"])
def test_layouts_are_in_the_stream(name: str, delta: bool, layout: str) -> None:
    x = walk(dtype="<u2")
    assert same(x, codec(name, delta=delta, layout=layout).compress(x))


def test_parameters_of_the_encoder_are_not_needed_to_decode() -> None:
    x = walk(3000, 5)
    for name, parameters in [
        ("flac", {"together": 3}),
        ("pcodec", {"level": 2}),
        ("mtscomp", {"seconds": 0.01}),
        ("zstd", {"level": 1}),
    ]:
        assert same(x, codec(name, **parameters).compress(x))


def test_mtscomp_takes_the_rate_of_the_recording() -> None:
    x = xr.DataArray(walk(1000), dims=("time", "channel"), attrs={"sampling_rate": 100.0})
    payload = Frame.unpack(create_codec("mtscomp").compress(x)).payload
    assert int.from_bytes(payload[:4], "little") == 100
    assert create_codec("mtscomp").compress(x.values, sampling_rate=100.0)[-len(payload) :] == payload


def test_decoding_needs_the_stream_alone(tmp_path: Path) -> None:
    """Another process, which has seen nothing but bytes."""
    x = walk(500, 3)
    there = [n for n in ALL if CODECS[n].missing() is None]  # type: ignore[attr-defined]
    for name in there:
        (tmp_path / name).write_bytes(create_codec(name).compress(x, sampling_rate=250.0))
    script = (
        "import json, sys, pathlib, numpy as np; import nbmf_research.neural.classical;"
        "from nbmf_research.neural.codec import decompress;"
        "out = {p.name: decompress(p.read_bytes()).values.astype(float).tolist() for p in pathlib.Path(sys.argv[1]).iterdir()};"
        "print(json.dumps(out))"
    )
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    decoded = {name: np.array(y) for name, y in json.loads(run.stdout).items()}
    assert set(decoded) == set(there)
    for name, y in decoded.items():
        limit = {"lossless": 0.0, "bounded": 1.0, "lossy": 60.0}[CODECS[name].kind]  # type: ignore[attr-defined]
        assert np.abs(y - x).max() <= limit, name


@pytest.fixture(params=ALL)
def stream(request: pytest.FixtureRequest) -> bytes:
    return codec(request.param).compress(walk(300, 3))


def test_cut_and_flipped_streams(stream: bytes) -> None:
    rng = np.random.default_rng(1)
    start = len(stream) - len(Frame.unpack(stream).payload)
    for cut in (0, 3, start - 1, start, start + 1, len(stream) // 2, len(stream) - 1):
        broken_decode(stream[:cut])
    for at in rng.integers(start, len(stream), 30):
        broken = bytearray(stream)
        broken[at] ^= 1 << rng.integers(8)
        broken_decode(bytes(broken))


def test_payloads_cut_under_a_valid_checksum(stream: bytes) -> None:
    size = len(Frame.unpack(stream).payload)
    for n in (0, 1, 5, size // 3, size // 2, size - 1):
        broken_decode(rewrap(stream, lambda p, n=n: p[:n]))
    broken_decode(rewrap(stream, lambda p: b"nonsense" * 20))


def test_payloads_damaged_under_a_valid_checksum(stream: bytes) -> None:
    """Formats without a checksum may decode to something; nothing but a StreamError may come out of them."""
    rng = np.random.default_rng(2)
    f = Frame.unpack(stream)
    for at in (*range(min(24, len(f.payload))), *rng.integers(0, len(f.payload), 12)):
        try:
            y = decompress(rewrap(stream, lambda p, at=at: p[:at] + bytes([p[at] ^ 0x55]) + p[at + 1 :]))
        except StreamError:
            continue
        assert (y.shape, y.dtype) == (f.shape, f.dtype)


def test_frames_that_claim_another_shape(stream: bytes) -> None:
    f = Frame.unpack(stream)
    for shape in ((299, 3), (301, 3), (300, 2), (300, 4), (0, 3), (2**30, 3)):
        broken_decode(Frame(f.codec, f.dtype, shape, 0.0, f.payload).pack())


@pytest.mark.parametrize("name", ["zlib", "xz"])
def test_a_small_payload_cannot_unfold_into_a_large_one(name: str) -> None:
    bomb = b"\0" + create_codec(name).squeeze(bytes(50_000_000), 2)
    broken_decode(Frame(name, np.dtype("<i2"), (10, 1), 0.0, bomb).pack())


def test_decoded_integers_that_do_not_fit_are_refused() -> None:
    s = codec("flac").compress(np.array([[-5], [300]], np.int16))
    f = Frame.unpack(s)
    broken_decode(Frame("flac", np.dtype("u1"), f.shape, 0.0, f.payload).pack())


@pytest.mark.parametrize(
    ("name", "x", "says"),
    [
        ("flac", np.zeros((3, 1), np.float32), "pcodec"),
        ("flac", np.array([[0], [2**24]], np.int32), "24-bit"),
        ("wavpack", np.zeros((3, 1), np.float64), "float64"),
        ("wavpack-hybrid", np.zeros((3, 1), np.float64), "float64"),
    ],
)
def test_samples_that_a_format_cannot_hold(name: str, x: np.ndarray, says: str) -> None:
    with pytest.raises(InputError, match=says):
        create_codec(name).compress(x)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sz3", {"max_error": 0.0}),
        ("sz3", {"max_error": -1.0}),
        ("zfp", {"max_error": float("nan")}),
        ("zfp", {"max_error": float("inf")}),
        ("wavpack-hybrid", {"bits_per_sample": 2.2}),
        ("wavpack-hybrid", {"bits_per_sample": 24.0}),
        ("wavpack-hybrid", {"shaping": 2.0}),
        ("flac", {"together": 0}),
        ("zlib", {"layout": "space"}),
        ("mtscomp", {"seconds": 0.0}),
    ],
)
def test_parameters_out_of_range(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        create_codec(name, **parameters)


def test_blosc_says_where_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    blosc = pytest.importorskip("numcodecs.blosc")
    monkeypatch.setattr(blosc, "MAX_BUFFERSIZE", 100)
    with pytest.raises(InputError, match="shorter blocks"):
        create_codec("blosc").compress(walk())


def test_blosc_leaves_the_thread_count_as_it_was() -> None:
    blosc = pytest.importorskip("numcodecs.blosc")
    before = blosc.get_nthreads()
    create_codec("blosc").compress(walk())
    assert blosc.get_nthreads() == before


@pytest.mark.parametrize("name", ["wavpack", "wavpack-hybrid"])
def test_a_missing_tool_is_named(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    c = create_codec(name)
    assert "install the package 'wavpack'" in (c.missing() or "")
    with pytest.raises(MissingDependencyError, match="apt install wavpack"):
        c.compress(walk())
    with pytest.raises(MissingDependencyError, match="apt install wavpack"):
        decompress(Frame(name, np.dtype("<i2"), (2, 1), 0.0, classical.pack_parts([b"wvpk"])).pack())


def test_a_tool_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for tool in ("wavpack", "wvunpack"):
        (tmp_path / tool).write_text("#!/bin/sh\ncat > /dev/null\nprintf '\\rno space left' >&2\nexit 1\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    with pytest.raises(classical.NbmfError, match="no space left"):
        create_codec("wavpack").compress(walk())


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("zstd", "zstandard"),
        ("blosc", "numcodecs"),
        ("flac", "soundfile"),
        ("pcodec", "pcodec"),
        ("sz3", "pysz"),
        ("zfp", "zfpy"),
    ],
)
def test_a_missing_module_is_named(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = codec(name).compress(walk())
    for key in [k for k in sys.modules if k.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, key)

    class Hide:
        def find_spec(self, full: str, *_: Any) -> None:
            if full.split(".")[0] == module:
                raise ModuleNotFoundError(f"No module named {full!r}")

    monkeypatch.setattr(sys, "meta_path", [Hide(), *sys.meta_path])
    assert "pip install 'nbmf_research[bench]'" in (create_codec(name).missing() or "")
    with pytest.raises(MissingDependencyError, match="nbmf_research"):
        create_codec(name).compress(walk())
    with pytest.raises(MissingDependencyError, match="nbmf_research"):
        decompress(stream)


def test_pack_parts() -> None:
    parts = [b"", b"abc", bytes(300)]
    assert classical.unpack_parts(classical.pack_parts(parts), 3) == parts
    for broken, count in ((b"", 1), (classical.pack_parts(parts)[:-1], 3), (classical.pack_parts(parts) + b"x", 3)):
        with pytest.raises(StreamError):
            classical.unpack_parts(broken, count)


# ---- the published figures, on the same files ------------------------------------------------------------------------------------

PUBLISHED = {  # ratio to int16, measured with other bindings of the same libraries
    "locust": {
        "zlib": 1.51,
        "zstd": 1.72,
        "xz": 1.82,
        "blosc": 1.72,
        "delta-zstd": 1.71,
        "delta-blosc": 1.87,
        "mtscomp": 1.48,
        "pcodec": 2.00,
        "flac": 1.99,
        "wavpack": 1.99,
    },
    "ieeg": {
        "zlib": 1.18,
        "zstd": 1.19,
        "xz": 1.35,
        "blosc": 1.41,
        "delta-zstd": 1.51,
        "delta-blosc": 1.94,
        "mtscomp": 1.44,
        "pcodec": 1.84,
        "flac": 2.07,
        "wavpack": 2.19,
    },
    "neuropixels": {
        "zlib": 1.36,
        "zstd": 1.47,
        "xz": 1.72,
        "blosc": 1.81,
        "delta-zstd": 2.11,
        "delta-blosc": 1.84,
        "mtscomp": 1.91,
        "flac": 1.63,
        "wavpack": 1.76,
    },
    "neuropixels-lsb": {
        "zlib": 2.04,
        "zstd": 2.24,
        "xz": 2.50,
        "blosc": 2.64,
        "delta-zstd": 2.35,
        "delta-blosc": 2.69,
        "mtscomp": 2.13,
        "flac": 2.54,
        "wavpack": 2.90,
    },
}
RATES = {"locust": 15_000.0, "ieeg": 2000.0, "neuropixels": 30_000.0, "neuropixels-lsb": 30_000.0}


def real(name: str) -> np.ndarray:
    """The files that the published figures were measured on."""
    if not (folder := os.environ.get("NBMF_DATA_DIR")):
        pytest.skip("NBMF_DATA_DIR is not set: no real recordings here")
    root = Path(folder) / "neural"
    if name == "locust":
        return np.fromfile(root / "locust_tetrode/locust_trial_01.raw", "<i2").reshape(-1, 4)
    if name == "ieeg":
        (path,) = root.glob("ieeg_fedele_hfo/sub-01/*/ieeg/*_ieeg.eeg")
        return np.round(np.fromfile(path, "<f4").reshape(-1, 50)).astype(np.int16)
    x = np.fromfile(root / "neuropixels_tiny385/continuous.dat", "<i2").reshape(-1, 385)[:, :384]
    return x if name == "neuropixels" else np.round(x / 12.0188).astype(np.int16)


@pytest.mark.real
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_ratios(name: str) -> None:
    x = real(name)
    off = {}
    for peer, ratio in PUBLISHED[name].items():
        if CODECS[peer].missing() is None:  # type: ignore[attr-defined]
            stream = create_codec(peer).compress(x, sampling_rate=RATES[name])
            assert same(np.ascontiguousarray(x), stream)
            mine = x.nbytes / len(stream)
            if abs(mine / ratio - 1) > 0.01:
                off[peer] = (round(mine, 3), ratio)
    assert not off


@pytest.mark.real
@pytest.mark.parametrize(("name", "alone", "together"), [("neuropixels", 2.23, 2.47), ("neuropixels-lsb", 2.65, 2.83)])
def test_pcodec_on_one_vector_beats_one_stream_for_each_channel(name: str, alone: float, together: float) -> None:
    x = real(name)
    c = codec("pcodec")
    assert x.nbytes / sum(len(c.encode(x[:, i : i + 1])) for i in range(x.shape[1])) == pytest.approx(alone, rel=0.01)
    assert x.nbytes / len(c.encode(x)) == pytest.approx(together, rel=0.01)


@pytest.mark.real
def test_stereo_pairs_on_real_recordings() -> None:
    for name, ratio in {"ieeg": 2.25, "neuropixels-lsb": 2.89}.items():
        x = real(name)
        assert x.nbytes / len(codec("flac-stereo").compress(x)) == pytest.approx(ratio, rel=0.01)
