"""The numcodecs codec by itself; within zarr it is tested in test_zarr.py."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

numcodecs = pytest.importorskip("numcodecs")
zarr = pytest.importorskip("zarr")

from nbmf_research.core import InputError, StreamError
from nbmf_research.neural.codec import Frame, decompress
from nbmf_research.neural.numcodecs import NeuralCodec

DTYPES = ("i1", "u1", "<i2", ">i2", "<u4", ">i4", "<f4", ">f4", "<f8", ">f8")


def recordings(dtypes: tuple[str, ...] = DTYPES) -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=9)
    return st.sampled_from(dtypes).flatmap(lambda d: hnp.arrays(d, shapes))


@settings(max_examples=30, deadline=None)
@given(recordings())
def test_round_trip_with_type_and_byte_order(x: np.ndarray) -> None:
    y = NeuralCodec("raw").decode(NeuralCodec("raw").encode(x))
    assert y.dtype == x.dtype
    assert y.tobytes() == x.tobytes()


@settings(max_examples=20, deadline=None)
@given(recordings(("<i2", ">f4")))
def test_decoding_into_a_buffer(x: np.ndarray) -> None:
    codec, out = NeuralCodec("raw"), np.empty_like(x)
    assert codec.decode(codec.encode(x), out=out) is out
    assert out.tobytes() == x.tobytes()


def test_buffers_of_any_kind() -> None:
    codec, x = NeuralCodec("raw"), np.arange(12, dtype=np.int16)
    stream = codec.encode(x)
    for form in (stream, bytearray(stream), memoryview(stream), np.frombuffer(stream, np.uint8)):
        assert (codec.decode(form)[:, 0] == x).all()
    assert (codec.decode(codec.encode(memoryview(x)))[:, 0] == x).all()


def test_fortran_order_is_seen_as_it_lies() -> None:
    x = np.asfortranarray(np.arange(12, dtype=np.int16).reshape(4, 3))
    assert NeuralCodec("raw").decode(NeuralCodec("raw").encode(x)).tobytes() == x.tobytes(order="A")


def test_a_chunk_is_a_frame() -> None:
    x = np.arange(12, dtype=np.int16).reshape(4, 3)
    stream = NeuralCodec("nbmf-fast").encode(x)
    assert Frame.unpack(stream).codec == "nbmf-fast"
    assert (decompress(stream).values == x).all()


def test_found_by_its_id_and_settings_travel() -> None:
    codec = NeuralCodec("nbmf-bounded", max_error=np.float64(2))
    config = codec.get_config()
    assert config == {"id": "nbmf_research.neural", "codec": "nbmf-bounded", "max_error": 2.0}
    assert numcodecs.get_codec(config) == codec
    assert pickle.loads(pickle.dumps(codec)) == codec
    assert repr(codec) == "NeuralCodec(codec='nbmf-bounded', max_error=2.0)"


def test_errors() -> None:
    codec = NeuralCodec("raw")
    with pytest.raises(InputError, match="not int64"):
        codec.encode(np.arange(3))
    with pytest.raises(StreamError, match="does not fit"):
        codec.decode(codec.encode(np.arange(4, dtype=np.int16)), out=np.zeros(3, np.int16))
    for stream in (b"", b">", b"\x02\x00", codec.encode(np.arange(3, dtype=np.int8))[1:]):
        with pytest.raises(StreamError):
            codec.decode(stream)


def spikeinterface_store(path: Path, x: np.ndarray, compressor: Any) -> None:
    """Write the layout of SpikeInterface's ``save(format="zarr")``."""
    root = zarr.open_group(path, mode="w", zarr_format=2)
    root.attrs.update({"sampling_frequency": 30000.0, "num_segments": 1})
    root.create_array("channel_ids", data=np.array([f"AP{i}" for i in range(x.shape[1])]), compressors=None)
    traces = root.create_array(
        "traces_seg0", shape=x.shape, chunks=(100, x.shape[1]), dtype=x.dtype, compressors=compressor
    )
    for start in range(0, len(x), 100):
        traces[start : start + 100] = x[start : start + 100]
    zarr.consolidate_metadata(root.store)


@pytest.mark.slow
def test_spikeinterface_layout_is_read_by_a_fresh_process(tmp_path: Path) -> None:
    x = np.cumsum(np.random.default_rng(0).integers(-9, 10, (350, 4)), 0).astype(np.int16)
    spikeinterface_store(tmp_path / "a", x, NeuralCodec("nbmf-fast"))
    code = "import sys, zarr; r = zarr.open_consolidated(sys.argv[1]); print(r['traces_seg0'][120:330, [0, 2]].sum(), r['channel_ids'][1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout.split() == [str(x[120:330, [0, 2]].sum()), "AP1"], done.stderr
