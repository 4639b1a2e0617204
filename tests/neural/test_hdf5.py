"""The HDF5 filter: types, shapes, processes, threads, damage, refusals, repacking."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nbmf_research.core import InputError
from nbmf_research.neural import hdf5
from nbmf_research.neural.codec import Frame, create_codec, decompress

DTYPES = ("i1", "u1", "<i2", ">i2", "<u2", ">u2", "<i4", ">u4", "<f4", ">f4", "<f8", ">f8")


def walk(n_time: int = 600, n_channels: int = 4, dtype: str = "int16") -> np.ndarray:
    rng = np.random.default_rng(0)
    return (np.cumsum(rng.integers(-9, 10, (n_time, 1)), 0) + rng.integers(-3, 4, (n_time, n_channels))).astype(dtype)


@contextmanager
def stored(
    x: np.ndarray, path: Path | None = None, name: str = "raw", chunks: Any = None, **parameters: Any
) -> Iterator[Any]:
    """A dataset, written, closed and opened again."""
    where: dict[str, Any] = {"driver": "core", "backing_store": False} if path is None else {}
    with h5py.File(path or "memory", "w", **where) as f:
        f.create_dataset("x", data=x, chunks=chunks or x.shape, **hdf5.compression(name, **parameters))
        f.flush()
        image = f.id.get_file_image() if path is None else b""
    if path is None:
        with h5py.File.in_memory(image) as f:
            yield f["x"]
    else:
        with h5py.File(path) as f:
            yield f["x"]


@st.composite
def arrays(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=7))
    x = draw(hnp.arrays(draw(st.sampled_from(DTYPES)), shape))
    return x, tuple(draw(st.integers(1, n)) for n in shape)


@settings(max_examples=30, deadline=None)
@given(arrays())
def test_every_bit_comes_back(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
    x, chunks = case
    with stored(x, chunks=chunks) as d:
        assert d.dtype == x.dtype
        assert d[...].tobytes() == x.tobytes()
        assert not warnings_of(lambda: d[...])


@pytest.mark.parametrize("name", ["nbmf-fast", "nbmf-balanced", "nbmf-max"])
def test_our_codecs(name: str) -> None:
    x = walk(500, 3)
    x[7] = -32768
    with stored(x, name=name, chunks=(120, 3)) as d:
        assert (d[:] == x).all()
        assert (d[100:130, 1:] == x[100:130, 1:]).all()
        assert d.id.get_storage_size() < x.nbytes


def test_the_bound_holds_and_gaps_stay() -> None:
    x = walk(400, 3).astype(np.float32)
    x[50, 1] = np.nan
    with stored(x, name="nbmf-bounded", chunks=(100, 3), max_error=2.5) as d:
        y = d[:]
    assert np.isnan(y[50, 1])
    assert 0 < np.nanmax(np.abs(y - x)) <= 2.5
    assert np.nanmax(np.abs(y[:100] - x[:100])) == 0


def test_chunks_are_frames_and_need_no_filter() -> None:
    x = walk(100, 6).reshape(100, 2, 3)
    with stored(x, chunks=(50, 2, 3), name="nbmf-fast") as d:
        mask, frame = d.id.read_direct_chunk((50, 0, 0))
    assert mask == 0
    assert Frame.unpack(frame).shape == (50, 6)
    assert (decompress(frame).values.reshape(50, 2, 3) == x[50:]).all()


def test_datasets_grow_and_change(tmp_path: Path) -> None:
    x = walk(300, 3)
    with h5py.File(tmp_path / "a.h5", "w") as f:
        d = f.create_dataset("x", (0, 3), "i2", chunks=(64, 3), maxshape=(None, 3), **hdf5.compression("nbmf-fast"))
        for start in range(0, 300, 50):
            d.resize(start + 50, axis=0)
            d[start : start + 50] = x[start : start + 50]
    with h5py.File(tmp_path / "a.h5") as f:
        assert (f["x"][:] == x).all()


def test_other_filters_may_follow(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f.create_dataset("x", data=walk(), chunks=(100, 4), fletcher32=True, **hdf5.compression("nbmf-fast"))
    with h5py.File(tmp_path / "a.h5") as f:
        assert (f["x"][:] == walk()).all()
        assert f["x"].fletcher32


def test_threads(tmp_path: Path) -> None:
    x = walk(800, 4)
    with stored(x, tmp_path / "a.h5", "nbmf-balanced", (50, 4)) as d, ThreadPoolExecutor(6) as pool:
        parts = pool.map(lambda i: bool((d[i * 40 : i * 40 + 160] == x[i * 40 : i * 40 + 160]).all()), range(18))
        assert all(parts)


def warnings_of(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in seen]


def test_damage_is_an_error_and_not_noise(tmp_path: Path) -> None:
    x = walk(300, 3)
    with stored(x, tmp_path / "a.h5", "nbmf-fast", (100, 3)):
        pass
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "a.h5") as f:
        good = f["x"].id.read_direct_chunk((100, 0))[1]
    cases = [good[: n + 1] for n in rng.integers(0, len(good) - 1, 10)]
    for bit in rng.integers(0, 8 * len(good), 30):
        broken = bytearray(good)
        broken[bit // 8] ^= 1 << bit % 8
        cases.append(bytes(broken))
    cases += [create_codec("raw").compress(walk(99, 3)), create_codec("raw").compress(walk(100, 3, "int32"))]
    for case in cases:
        with h5py.File(tmp_path / "a.h5", "r+") as f:
            f["x"].id.write_direct_chunk((100, 0), case)
        with h5py.File(tmp_path / "a.h5") as f:
            assert (f["x"][200:] == x[200:]).all()
            with pytest.raises(OSError, match="filter"), pytest.warns(RuntimeWarning, match="nbmf_research.neural: "):
                f["x"][:]


def test_damage_where_warnings_are_errors(tmp_path: Path) -> None:
    with stored(walk(), tmp_path / "a.h5"):
        pass
    with h5py.File(tmp_path / "a.h5", "r+") as f:
        f["x"].id.write_direct_chunk((0, 0), b"noise")
    with h5py.File(tmp_path / "a.h5") as f, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(OSError, match="filter"):
            f["x"][:]


@pytest.mark.parametrize("dtype", ["i8", "u8", "?", "c8", "f2", "S4", [("a", "i2"), ("b", "i2")]])
def test_types_are_refused_when_the_dataset_is_made(dtype: Any) -> None:
    with h5py.File("memory", "w", driver="core", backing_store=False) as f:
        with pytest.raises(ValueError, match="convert the array"):
            f.create_dataset("x", (100, 2), dtype, chunks=(10, 2), **hdf5.compression())
        assert "x" not in f


def test_codecs_that_change_the_type_are_refused() -> None:
    file = h5py.File("memory", "w", driver="core", backing_store=False)
    with file as f, pytest.raises(ValueError, match="nbmf-bounded"):
        f.create_dataset("x", (100, 2), "i2", chunks=(10, 2), **hdf5.compression("klt-dct"))


def test_settings_are_checked_at_once() -> None:
    with pytest.raises(InputError, match="did you mean"):
        hdf5.compression("nbmf-maxi")
    with pytest.raises(InputError, match="unexpected keyword"):
        hdf5.compression("nbmf-max", level=3)


def test_settings_of_another_program_are_refused(tmp_path: Path) -> None:
    hdf5.register()
    with h5py.File(tmp_path / "a.h5", "w") as f, pytest.raises(ValueError, match="settings of this dataset"):
        f.create_dataset("x", (100, 2), "i2", chunks=(10, 2), compression=hdf5.FILTER_ID, compression_opts=(1, 2, 3))


def test_a_chunk_that_cannot_be_coded_is_stored(tmp_path: Path) -> None:
    x = walk(100, 2, "float64") + 0.1  # FLAC codes integers
    with h5py.File(tmp_path / "a.h5", "w") as f, pytest.warns(RuntimeWarning, match=r"nbmf_research\.neural"):
        f.create_dataset("x", data=x, chunks=(100, 2), **hdf5.compression("flac"))
    with h5py.File(tmp_path / "a.h5") as f:
        assert (f["x"][:] == x).all()


def run(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_another_process_must_register(tmp_path: Path) -> None:
    with stored(walk(), tmp_path / "a.h5", "nbmf-fast", (100, 4)):
        pass
    read = "import sys, h5py; print(h5py.File(sys.argv[1])['x'][:].sum())"
    assert "OSError: Can't" in run(read, tmp_path / "a.h5").stderr
    done = run("from nbmf_research.neural.hdf5 import register; register(); " + read, tmp_path / "a.h5")
    assert done.stdout.strip() == str(walk().sum()), done.stderr


@pytest.mark.slow
def test_a_file_left_open_at_exit_is_whole(tmp_path: Path) -> None:
    code = (
        "import sys, h5py, numpy as np; from nbmf_research.neural.hdf5 import compression; f = h5py.File(sys.argv[1], 'w');"
        "f.create_dataset('x', data=np.arange(1000, dtype='i2'), chunks=(100,), **compression('nbmf-fast'))"
    )
    done = run(code, tmp_path / "a.h5")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    hdf5.register()
    with h5py.File(tmp_path / "a.h5") as f:
        assert (f["x"][:] == np.arange(1000)).all()


def test_repack(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as f:
        group = f.create_group("acquisition/probe")
        d = group.create_dataset(
            "x", data=walk(), chunks=(100, 4), maxshape=(None, 4), fillvalue=-7, **hdf5.compression("nbmf-fast")
        )
        d.attrs["unit"] = "counts"
        f.create_dataset("other", data=np.arange(9))
        f["link"] = h5py.SoftLink("/acquisition/probe/x")
        f.attrs["subject"] = "a"
    assert hdf5.repack(tmp_path / "a.h5", tmp_path / "b.h5") == ["acquisition/probe/x"]
    read = "import sys, h5py; f = h5py.File(sys.argv[1]); print(f['link'][:].sum(), f['other'][:].sum())"
    assert run(read, tmp_path / "b.h5").stdout.split() == [str(walk().sum()), "36"]
    with h5py.File(tmp_path / "b.h5") as f:
        d = f["acquisition/probe/x"]
        assert (d.compression, d.shuffle, d.maxshape, d.fillvalue) == ("gzip", True, (None, 4), -7)
        assert (d.attrs["unit"], f.attrs["subject"]) == ("counts", "a")
        assert sorted(f["acquisition/probe"]) == ["x"]
    assert hdf5.repack(tmp_path / "b.h5", tmp_path / "c.h5", None) == []


def test_repack_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    with stored(walk(), tmp_path / "a.h5"):
        pass
    with h5py.File(tmp_path / "a.h5", "r+") as f:
        f["x"].id.write_direct_chunk((0, 0), b"noise")
    with pytest.raises(OSError, match="filter"), pytest.warns(RuntimeWarning):
        hdf5.repack(tmp_path / "a.h5", tmp_path / "b.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5"]
