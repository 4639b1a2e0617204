"""The codec contract: frames, input checks, registration, errors."""

from __future__ import annotations

import importlib
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nbmf_research.core import InputError, StreamError
from nbmf_research.neural.catalogue import CATALOGUE, CODEC_MODULES
from nbmf_research.neural.codec import (
    CODECS,
    MAGIC,
    MAX_SAMPLES,
    Codec,
    Frame,
    Raw,
    Samples,
    codec_class,
    codec_names,
    create_codec,
    decompress,
    register_codec,
)

DTYPES = ("i1", "u1", "<i2", "<u2", "<i4", "<u4", "<f4", "<f8")


def samples(dtypes: tuple[str, ...] = DTYPES) -> st.SearchStrategy[np.ndarray]:
    """Small finite recordings of every supported type."""
    shapes = hnp.array_shapes(min_dims=1, max_dims=2, max_side=20)
    return st.sampled_from(dtypes).flatmap(
        lambda d: hnp.arrays(d, shapes, elements={"allow_nan": False, "allow_infinity": False} if "f" in d else None)
    )


def frame(**changes: Any) -> Frame:
    """A valid frame of 3 x 2 int16 zeros, with changes."""
    fields: dict[str, Any] = {"codec": "raw", "dtype": np.dtype("<i2"), "shape": (3, 2), "sampling_rate": 500.0}
    return Frame(**{**fields, "payload": bytes(12), **changes})


@settings(max_examples=30, deadline=None)
@given(samples(), st.floats(0, 1e6, width=32))
def test_raw_round_trip(x: np.ndarray, rate: float) -> None:
    stream = create_codec("raw").compress(x, sampling_rate=rate)
    y = decompress(stream)
    assert y.dims == ("time", "channel")
    assert y.dtype == x.dtype
    assert np.array_equal(y.values, x if x.ndim == 2 else x[:, None])
    assert y.attrs["sampling_rate"] == rate


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.tuples(st.integers(0, 2**20), st.integers(0, 2**20)),
    st.floats(0, 1e6, width=32),
    st.binary(max_size=50),
    st.sampled_from(["raw", "a", "x" * 255]),
)
def test_frame_round_trip(dtype: str, shape: tuple[int, int], rate: float, payload: bytes, name: str) -> None:
    f = Frame(name, np.dtype(dtype).newbyteorder("<"), shape, rate, payload)
    assert Frame.unpack(f.pack()) == f


def test_frame_overhead_is_what_the_page_says() -> None:
    assert len(frame().pack()) - 12 == len(MAGIC) + 1 + len("raw") + 18


@pytest.mark.parametrize(("x", "dtype"), [(np.arange(6, dtype=">i2"), "<i2"), (np.arange(6, dtype=">f8"), "<f8")])
def test_big_endian_input_is_stored_little_endian(x: np.ndarray, dtype: str) -> None:
    y = decompress(create_codec("raw").compress(x))
    assert y.dtype == np.dtype(dtype)
    assert (y.values[:, 0] == x).all()


def test_layout_of_the_input_does_not_matter() -> None:
    x = np.arange(12, dtype=np.int16).reshape(4, 3)
    plain = create_codec("raw").compress(x)
    assert create_codec("raw").compress(np.asfortranarray(x)) == plain
    assert create_codec("raw").compress(xr.DataArray(x.T, dims=("channel", "time"))) == plain


def test_sampling_rate_of_a_recording_wins() -> None:
    x = xr.DataArray(np.zeros((4, 1), np.int16), dims=("time", "channel"), attrs={"sampling_rate": 250.0})
    assert decompress(create_codec("raw").compress(x, sampling_rate=9.0)).attrs["sampling_rate"] == 250.0


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((0, 2), np.int16),
        np.zeros((2, 0), np.int16),
        np.zeros((2, 2, 2), np.int16),
        np.int16(3),
        np.zeros(3, np.int64),
        np.zeros(3, bool),
        np.zeros(3, np.complex64),
        np.zeros(3, np.float16),
        np.array(["a"]),
        np.array([0.0, np.nan]),
        np.array([0.0, np.inf], np.float32),
    ],
)
def test_unusable_input(x: Any) -> None:
    with pytest.raises(InputError):
        create_codec("raw").compress(x)


def test_every_cut_of_a_stream_is_refused() -> None:
    stream = create_codec("raw").compress(np.arange(20, dtype=np.int16))
    for n in range(len(stream)):
        with pytest.raises(StreamError):
            decompress(stream[:n])
    with pytest.raises(StreamError):
        decompress(stream + b"\0")


def test_every_flipped_bit_is_refused() -> None:
    x = np.arange(20, dtype=np.int16)[:, None]
    stream = create_codec("raw").compress(x, sampling_rate=1000.0)
    for i in range(8 * len(stream)):
        broken = bytearray(stream)
        broken[i // 8] ^= 1 << i % 8
        with pytest.raises(StreamError):
            decompress(bytes(broken))


@pytest.mark.parametrize("stream", [b"", MAGIC, b"RIFFabcd" * 9, MAGIC + b"\xff" + bytes(40)])
def test_foreign_bytes(stream: bytes) -> None:
    with pytest.raises(StreamError):
        decompress(stream)


def test_hostile_headers() -> None:
    with pytest.raises(StreamError, match="more than the format allows"):
        decompress(frame(shape=(MAX_SAMPLES // 2**16, 2**17)).pack())
    with pytest.raises(StreamError, match="do not make"):
        decompress(frame(shape=(2**32 - 1, 200)).pack())
    with pytest.raises(StreamError, match="sample type"):
        decompress(frame(dtype=np.dtype("<i8")).pack())
    with pytest.raises(StreamError, match="not registered"):
        decompress(frame(codec="nobody").pack())


def test_a_codec_refuses_the_stream_of_another() -> None:
    with pytest.raises(StreamError, match="made by 'other'"):
        create_codec("raw").decompress(frame(codec="other").pack())


def test_info_reads_the_header_only() -> None:
    stream = create_codec("raw").compress(np.zeros((100, 2), np.int16), sampling_rate=1000.0)
    info = create_codec("raw").info(stream)
    assert (info["codec"], info["shape"], info["dtype"], info["sampling_rate"]) == ("raw", (100, 2), "int16", 1000.0)
    assert info["bytes"] == len(stream)
    assert info["bits_per_sample"] == 8 * len(stream) / 200


def test_unknown_codec_suggests_a_known_one() -> None:
    with pytest.raises(InputError, match="did you mean 'raw'"):
        create_codec("rwa")


def test_a_name_is_registered_once() -> None:
    class Impostor(Raw):
        pass

    with pytest.raises(InputError, match="registered already"):
        register_codec("raw")(Impostor)
    assert CODECS["raw"] is Raw


def test_a_decoder_that_returns_the_wrong_form_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = create_codec("raw").compress(np.zeros((4, 2), np.int16))
    monkeypatch.setattr(Raw, "decode", lambda *_: np.zeros((2, 4), np.int16))
    with pytest.raises(StreamError, match="where the frame says"):
        decompress(stream)


def test_kinds_decide_the_decoded_type() -> None:
    class Lossy(Codec):
        kind = "lossy"

        def encode(self, x: Samples) -> bytes:
            return struct.pack("<f", x.mean())

        def decode(self, payload: bytes, shape: tuple[int, int], dtype: np.dtype[Any]) -> Samples:
            return np.full(shape, struct.unpack("<f", payload)[0], dtype)

    codec = Lossy()
    assert Raw().decoded_dtype(np.dtype("<i2")) == np.dtype("<i2")
    assert codec.decoded_dtype(np.dtype("<i2")) == np.dtype("<f4")
    y = codec.decompress(codec.compress(np.array([1, 3], np.int16)))
    assert y.dtype == np.float32
    assert y.values.tolist() == [[2.0], [2.0]]


def test_missing_modules_are_named() -> None:
    class Needy(Raw):
        needs = ("no_such_module",)

    assert Raw.missing() is None
    assert "pip install 'nbmf_research[bench]'" in (Needy.missing() or "")


def test_input_that_does_not_fit_is_refused() -> None:
    x = np.zeros((10, 2), np.int16)
    with pytest.raises(InputError, match="do not fit a frame"):
        create_codec("raw").compress(x, sampling_rate=1e60)
    with pytest.raises(InputError, match="dimensions time and channel"):
        create_codec("raw").compress(xr.DataArray(x, dims=("time", "trial")))
    assert decompress(memoryview(create_codec("raw").compress(x))).shape == (10, 2)  # type: ignore[arg-type]


def test_a_codec_imports_its_own_module_alone() -> None:
    code = (
        "import sys; from nbmf_research.neural.catalogue import CODEC_MODULES; from nbmf_research.neural.codec import codec_names, create_codec; "
        "loaded = lambda: [m.split('.')[-1] for m in CODEC_MODULES if m in sys.modules]; "
        "create_codec('raw'); assert 'adaptive' in codec_names('lossy'); print(loaded()); create_codec('zlib'); print(loaded())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600).stdout
    assert out.split("\n")[:2] == ["['codec']", "['codec', 'classical']"]


def test_every_listed_codec_is_where_the_list_says_and_of_that_kind() -> None:
    for module, kinds in CODEC_MODULES.items():
        importlib.import_module(module)
        own = {n: codec_class(n).kind for n in CODECS if getattr(CODECS[n], "__module__", "") == module}
        assert own == {n: kind for kind, names in kinds.items() for n in names}, module
    assert {*codec_names()} >= {*CATALOGUE}


def test_an_unknown_codec_gets_the_nearest_name() -> None:
    with pytest.raises(InputError, match="nbmf-fast"):
        create_codec("nbmf-fats")
