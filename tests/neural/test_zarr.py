"""Recordings in zarr: both formats, shards, xarray, dask, fresh processes, damage, types."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

zarr = pytest.importorskip("zarr")
dask_array = pytest.importorskip("dask.array")
xr = pytest.importorskip("xarray")

from nbmf_research.core import InputError, StreamError
from nbmf_research.neural.codec import ChunkCoder, Frame, create_codec
from nbmf_research.neural.numcodecs import NeuralCodec as V2
from nbmf_research.neural.zarr import NAME, NeuralCodec

DTYPES = ("i1", "u1", "<i2", ">i2", "<u2", "<i4", ">u4", "<f4", ">f4", "<f8", ">f8")
LOSSLESS = ("nbmf-fast", "nbmf-balanced", "nbmf-max")


def walk(n_time: int = 600, n_channels: int = 4, dtype: str = "int16") -> np.ndarray:
    """A random walk shared by all channels, with a little noise."""
    rng = np.random.default_rng(0)
    return (np.cumsum(rng.integers(-9, 10, (n_time, 1)), 0) + rng.integers(-3, 4, (n_time, n_channels))).astype(dtype)


def make(
    x: np.ndarray, chunks: tuple[int, ...], zarr_format: int, store: Any = None, name: str = "raw", **kw: Any
) -> Any:
    """Store an array with our codec, in either format."""
    if zarr_format == 2:
        how = {"compressors": V2(name, **kw), "filters": None}
    else:
        how = {"serializer": NeuralCodec(name, **kw), "compressors": None}
    array = zarr.create_array(
        {} if store is None else store, shape=x.shape, chunks=chunks, dtype=x.dtype, zarr_format=zarr_format, **how
    )
    array[...] = x
    return array


def chunk_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr.json")))


# Round trips -------------------------------------------------------------------------------------------------------


@st.composite
def arrays(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    """Arrays of every type and up to four axes, with NaN and infinities, and chunks that may not divide them."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=7))
    x = draw(hnp.arrays(dtype, shape))
    return x, tuple(draw(st.integers(1, n + 2)) for n in shape)


@settings(max_examples=20, deadline=None)
@given(arrays(), st.sampled_from([2, 3]))
def test_every_bit_comes_back(case: tuple[np.ndarray, tuple[int, ...]], zarr_format: int) -> None:
    x, chunks = case
    back = make(x, chunks, zarr_format)[...]
    assert back.dtype == x.dtype
    assert back.tobytes() == x.tobytes()


@settings(max_examples=10, deadline=None)
@given(arrays(), st.sampled_from([2, 3]), st.sampled_from(LOSSLESS))
def test_every_bit_comes_back_from_our_codecs(case: Any, zarr_format: int, name: str) -> None:
    x, chunks = case
    assert make(x, chunks, zarr_format, name=name)[...].tobytes() == x.tobytes()


@settings(max_examples=10, deadline=None)
@given(arrays(), st.sampled_from([2, 3]), st.sampled_from([0.0, 0.5, 3.0]))
def test_the_bound_holds_and_gaps_stay(case: Any, zarr_format: int, bound: float) -> None:
    x, chunks = case
    y = make(x, chunks, zarr_format, name="nbmf-bounded", max_error=bound)[...]
    known = np.isfinite(x)
    assert np.array_equal(y[~known], x[~known], equal_nan=True)
    assert (np.abs(y[known].astype(np.longdouble) - x[known].astype(np.longdouble)) <= bound).all()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_scalars_and_empty_arrays(zarr_format: int) -> None:
    assert make(np.array(7, np.int16), (), zarr_format)[...] == 7
    assert make(np.zeros((0, 3), np.float32), (1, 3), zarr_format)[...].shape == (0, 3)
    coder = ChunkCoder("nbmf-max")
    for shape in ((0,), (0, 3), (3, 0), (2, 0, 4), ()):
        x = np.zeros(shape, np.int16)
        assert coder.decode(coder.encode(x), shape, x.dtype).shape == shape


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_memory_order(order: str, zarr_format: int) -> None:
    x = walk(50, 3)
    how = {"compressors": V2("nbmf-fast")} if zarr_format == 2 else {"serializer": NeuralCodec("nbmf-fast")}
    compressors = {} if zarr_format == 2 else {"compressors": None}
    kwargs = {"order": order} if zarr_format == 2 else {}
    array = zarr.create_array(
        {}, shape=x.shape, chunks=(20, 3), dtype="int16", zarr_format=zarr_format, **how, **compressors, **kwargs
    )
    array[:] = np.asarray(x, order=order)  # type: ignore[call-overload]
    assert (array[:] == x).all()


def test_chunks_are_frames_of_time_by_everything_else(tmp_path: Path) -> None:
    x = walk(40, 6).reshape(40, 2, 3)
    make(x, (10, 2, 3), 3, tmp_path / "a", name="nbmf-fast")
    files = chunk_files(tmp_path / "a")
    assert len(files) == 4
    assert {Frame.unpack(p.read_bytes()).shape for p in files} == {(10, 6)}


def test_parts_are_read_changed_and_resized() -> None:
    x = walk(100, 4)
    array = make(x, (32, 4), 3, name="nbmf-fast")
    array[30:70, 1] = 5
    x[30:70, 1] = 5
    assert (array[10:90:3, 1:3] == x[10:90:3, 1:3]).all()
    array.resize((120, 4))
    assert (array[:] == np.vstack([x, np.zeros((20, 4), x.dtype)])).all()


# Metadata ----------------------------------------------------------------------------------------------------------


def test_metadata_have_the_form_of_version_3(tmp_path: Path) -> None:
    make(walk(), (200, 4), 3, tmp_path / "a", name="nbmf-bounded", max_error=np.float32(1.5))
    codecs = json.loads((tmp_path / "a" / "zarr.json").read_text())["codecs"]
    assert codecs == [{"name": NAME, "configuration": {"codec": "nbmf-bounded", "max_error": 1.5}}]
    assert zarr.open_array(tmp_path / "a").serializer == NeuralCodec("nbmf-bounded", max_error=1.5)


def test_codecs_compare_hash_and_pickle() -> None:
    a, b = NeuralCodec("nbmf-bounded", max_error=2.0), NeuralCodec("nbmf-bounded", max_error=2.0)
    assert a == b
    assert hash(a) == hash(b)
    assert a != NeuralCodec("nbmf-bounded", max_error=3.0)
    assert pickle.loads(pickle.dumps(a)) == a
    assert NeuralCodec.from_dict(a.to_dict()) == a
    assert a.is_fixed_size is False
    with pytest.raises(NotImplementedError):
        a.compute_encoded_size(1, None)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_consolidated_metadata(tmp_path: Path) -> None:
    for zarr_format in (2, 3):
        folder = tmp_path / str(zarr_format)
        group = zarr.open_group(folder, mode="w", zarr_format=zarr_format)
        how = (
            {"compressors": V2("nbmf-fast")}
            if zarr_format == 2
            else {"serializer": NeuralCodec("nbmf-fast"), "compressors": None}
        )
        group.create_array("x", shape=(90, 2), chunks=(40, 2), dtype="int16", **how)[:] = walk(90, 2)
        zarr.consolidate_metadata(group.store)
        assert (zarr.open_consolidated(folder)["x"][:] == walk(90, 2)).all()


# Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int64", "uint64", "bool", "complex64", "float16", "datetime64[ns]"])
@pytest.mark.parametrize("shards", [None, (20,)])
def test_types_are_refused_when_the_array_is_made(dtype: str, shards: Any) -> None:
    with pytest.raises(InputError, match=r"convert the array"):
        zarr.create_array(
            {}, shape=(20,), chunks=(10,), shards=shards, dtype=dtype, serializer=NeuralCodec(), compressors=None
        )


def test_strings_are_refused() -> None:
    with pytest.raises((InputError, TypeError, ValueError)):
        zarr.create_array({}, shape=(20,), chunks=(10,), dtype=str, serializer=NeuralCodec(), compressors=None)
    with pytest.raises(InputError):
        zarr.create_array({}, shape=(20,), chunks=(10,), dtype="U4", serializer=NeuralCodec(), compressors=None)


def test_codecs_that_change_the_type_are_refused() -> None:
    with pytest.raises(InputError, match="nbmf-bounded"):
        ChunkCoder.of("klt-dct").check(np.dtype("i2"))


@pytest.mark.parametrize("make_it", [V2, NeuralCodec])
def test_settings_are_checked_at_once(make_it: Any) -> None:
    with pytest.raises(InputError, match="did you mean 'nbmf-max'"):
        make_it("nbmf-maxi")
    with pytest.raises(InputError, match="unexpected keyword argument 'bound'"):
        make_it("nbmf-bounded", bound=2)
    with pytest.raises(InputError):
        make_it("nbmf-bounded", max_error=-1)


def test_foreign_metadata() -> None:
    with pytest.raises(InputError, match="not of"):
        NeuralCodec.from_dict({"name": "bytes"})


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_damage_is_an_error_and_not_noise(tmp_path: Path, zarr_format: int) -> None:
    x = walk(300, 3)
    make(x, (100, 3), zarr_format, tmp_path / "a", name="nbmf-fast")
    file = chunk_files(tmp_path / "a")[1]
    good = file.read_bytes()
    rng = np.random.default_rng(0)
    cases = [good[:n] for n in rng.integers(0, len(good), 10)] + [good + b"\0"]
    for bit in rng.integers(0, 8 * len(good), 40):
        broken = bytearray(good)
        broken[bit // 8] ^= 1 << bit % 8
        cases.append(bytes(broken))
    for case in cases:
        file.write_bytes(case)
        array = zarr.open_array(tmp_path / "a", mode="r")
        assert (array[:100] == x[:100]).all()
        with pytest.raises(StreamError):
            array[100:200]


def test_every_bit_of_a_big_endian_chunk_is_guarded() -> None:
    codec = V2("raw")
    good = codec.encode(np.arange(6, dtype=">i2"))
    for bit in range(8 * len(good)):
        broken = bytearray(good)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StreamError):
            codec.decode(bytes(broken))


def test_a_chunk_of_another_shape_or_type_is_refused(tmp_path: Path) -> None:
    make(walk(100, 3), (100, 3), 3, tmp_path / "a", name="raw")
    file = chunk_files(tmp_path / "a")[0]
    for other in (walk(99, 3), walk(100, 3, "int32")):
        file.write_bytes(create_codec("raw").compress(other))
        with pytest.raises(StreamError, match="is expected"):
            zarr.open_array(tmp_path / "a", mode="r")[:]
    file.write_bytes(Frame("raw", np.dtype("<i2"), (2**20, 2**19), 0.0, b"").pack())
    with pytest.raises(StreamError, match="is expected"):
        zarr.open_array(tmp_path / "a", mode="r")[:]


def test_a_chunk_of_an_unknown_codec(tmp_path: Path) -> None:
    make(walk(100, 3), (100, 3), 3, tmp_path / "a", name="raw")
    chunk_files(tmp_path / "a")[0].write_bytes(Frame("future", np.dtype("<i2"), (100, 3), 0.0, b"").pack())
    with pytest.raises(StreamError, match="'future', which is not registered"):
        zarr.open_array(tmp_path / "a", mode="r")[:]


# Many at once ------------------------------------------------------------------------------------------------------


def test_threads_share_a_codec(tmp_path: Path) -> None:
    x = walk(800, 4)
    array = make(x, (50, 4), 3, tmp_path / "a", name="nbmf-balanced")
    alone = [p.read_bytes() for p in chunk_files(tmp_path / "a")]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: bool((array[:] == x).all()), range(6)))
        list(pool.map(lambda i: array.__setitem__(slice(50 * i, 50 * i + 50), x[50 * i : 50 * i + 50]), range(16)))
    assert [p.read_bytes() for p in chunk_files(tmp_path / "a")] == alone


def encoding(name: str = "nbmf-fast", **kwargs: Any) -> dict[str, Any]:
    return {"lfp": {"serializer": NeuralCodec(name), "compressors": None, **kwargs}}


def dataset(x: np.ndarray) -> Any:
    return xr.Dataset({"lfp": (("time", "channel"), x)}, coords={"time": np.arange(len(x)) / 1000.0})


def test_xarray_appends_and_shards(tmp_path: Path) -> None:
    data = dataset(walk(400, 3))
    data.isel(time=slice(0, 250)).to_zarr(
        tmp_path / "a", encoding=encoding(chunks=(50, 3), shards=(100, 3)), zarr_format=3, consolidated=False
    )
    data.isel(time=slice(250, None)).to_zarr(tmp_path / "a", append_dim="time", consolidated=False)
    assert xr.open_zarr(tmp_path / "a", consolidated=False).identical(data)
    assert len(chunk_files(tmp_path / "a" / "lfp")) == 4


def test_xarray_writes_again_what_it_opened(tmp_path: Path) -> None:
    dataset(walk(200, 3)).to_zarr(tmp_path / "a", encoding=encoding(chunks=(50, 3)), zarr_format=3, consolidated=False)
    with xr.open_zarr(tmp_path / "a", consolidated=False) as opened:
        opened.to_zarr(tmp_path / "b", zarr_format=3, consolidated=False)
        assert zarr.open_array(tmp_path / "b" / "lfp").serializer == NeuralCodec("nbmf-fast")
        assert xr.open_zarr(tmp_path / "b", consolidated=False).identical(opened)


def test_dask_threads(tmp_path: Path) -> None:
    x = walk(1000, 3)
    array = zarr.create_array(
        tmp_path / "a",
        shape=x.shape,
        chunks=(100, 3),
        dtype="int16",
        serializer=NeuralCodec("nbmf-fast"),
        compressors=None,
    )
    dask_array.from_array(x, chunks=(200, 3)).to_zarr(array, scheduler="threads", num_workers=4)
    assert (dask_array.from_zarr(array).compute(scheduler="threads", num_workers=4) == x).all()


@pytest.mark.slow
def test_dask_processes(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    data = dataset(walk(400, 3)).chunk(time=100)
    local = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    with local as cluster, distributed.Client(cluster):
        data.to_zarr(tmp_path / "a", encoding=encoding(chunks=(100, 3)), zarr_format=3, consolidated=False)
        back = xr.open_zarr(tmp_path / "a", consolidated=False)
        assert int(abs(back.lfp - data.lfp).max().compute()) == 0


# Other processes ---------------------------------------------------------------------------------------------------

READ = "import sys, zarr; print(zarr.open_array(sys.argv[1], mode='r')[:].sum())"


def run(folder: Path, *flags: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *flags, "-c", READ, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, check=False, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_fresh_process_reads_without_an_import(tmp_path: Path, zarr_format: int) -> None:
    x = walk(100, 3)
    make(x, (40, 3), zarr_format, tmp_path / "a", name="nbmf-fast")
    done = run(tmp_path / "a")
    assert done.stdout.strip() == str(x.sum()), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_process_without_the_package_says_what_it_lacks(tmp_path: Path, zarr_format: int) -> None:
    make(walk(100, 3), (40, 3), zarr_format, tmp_path / "a", name="raw")
    site = tmp_path / "site"
    site.mkdir()
    for item in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "nbmf" not in item.name:
            (site / item.name).symlink_to(item)
    done = run(tmp_path / "a", "-S", env={**os.environ, "PYTHONPATH": str(site)})
    assert done.returncode != 0
    assert "UnknownCodecError" in done.stderr
    assert "nbmf_research.neural" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_without_zarr_the_install_line_is_given() -> None:
    code = "import sys; sys.modules['zarr'] = None; import nbmf_research.neural.zarr"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingDependencyError" in done.stderr
    assert "pip install 'nbmf_research[zarr]'" in done.stderr
