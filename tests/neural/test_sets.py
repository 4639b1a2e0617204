"""neural.sets: what benchmarks run on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from nbmf_research import datasets
from nbmf_research.core import InputError
from nbmf_research.neural import sets
from nbmf_research.neural.recordings import check_recording, find_lattice, recording

REAL = [s for s in sets.SETS.values() if s.dataset]


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NBMF_DATA_DIR", raising=False)
    monkeypatch.setattr(datasets.pooch, "os_cache", lambda name: tmp_path)


def test_every_real_set_reads_a_registered_data_set() -> None:
    assert {s.dataset for s in REAL} <= set(datasets.registry())
    assert len({s.name for s in sets.SETS.values()}) == len(sets.SETS)


def test_without_recordings_the_stand_ins_are_used(no_data: None) -> None:
    assert {s.name for s in sets.available_sets()} == {"sim_broadband", "sim_lfp", "sim_eeg"}
    with pytest.raises(InputError, match="nbmf data get n1_neuralink"):
        sets.available_sets(["n1"])
    with pytest.raises(InputError, match="nbmf data get locust_tetrode"):
        next(sets.find_set("locust").items())


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="known: n1, locust"):
        sets.find_set("n2")


@pytest.mark.parametrize("name", ["sim_broadband", "sim_lfp", "sim_eeg"])
def test_stand_ins_are_recordings_with_a_part_of_each_split_and_reproducible(name: str) -> None:
    items = list(sets.find_set(name).items())
    assert {i.split for i in items} == {"train", "validation", "test"}
    x = check_recording(items[0].x)
    assert x.dtype == np.int16 and np.ptp(x.values) > 10
    again = next(sets.find_set(name).items()).x
    assert (again.values == x.values).all()
    assert (items[1].x.values != x.values).any()


def test_cuts_in_time_are_disjoint_and_complete() -> None:
    x = recording(np.arange(101, dtype=np.int16), 10.0, t_start=2.0)
    parts = list(sets.in_time("a", x))
    assert [p.split for p in parts] == ["train", "validation", "test"]
    assert np.concatenate([p.x.values for p in parts]).ravel().tolist() == list(range(101))
    assert parts[2].x.attrs["t_start"] == pytest.approx(2.0 + 8.1)


real = pytest.mark.skipif("NBMF_DATA_DIR" not in os.environ, reason="needs NBMF_DATA_DIR")


@real
@pytest.mark.real
@pytest.mark.parametrize("chosen", REAL, ids=lambda s: s.name)
def test_real_sets_load_in_the_one_form(chosen: sets.BenchmarkSet) -> None:
    if chosen.folder() is None:
        pytest.skip(f"{chosen.dataset} is not there")
    items = list(chosen.items())
    assert len({i.name for i in items}) == len(items)
    for item in items[:2]:
        check_recording(item.x)
        assert item.x.sizes["time"] > 0
        if chosen.lossless:
            assert item.x.dtype.kind in "iu"


@real
@pytest.mark.real
def test_n1_is_ten_bits_and_split_by_file() -> None:
    items = list(sets.find_set("n1").items())
    lattice = find_lattice(items[0].x)
    assert lattice is not None and lattice.bits == 10 and lattice.step[0] == pytest.approx(65535 / 1023)
    assert [sum(i.split == s for i in items) for s in ("train", "validation", "test")] == [60, 20, 20]


@real
@pytest.mark.real
def test_eeg_is_split_by_subject() -> None:
    for name in ("eeg21", "eeg64_subjects"):
        items = list(sets.find_set(name).items())
        subjects = {s: {i.name for i in items if i.split == s} for s in ("train", "validation", "test")}
        assert all(subjects.values())
        assert not (subjects["train"] & subjects["test"] or subjects["validation"] & subjects["test"])
