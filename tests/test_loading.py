"""Packs and batches: samples as they were, every batch a function of its number, whatever the workers, and fair shares."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research import loading as D
from nbmf_research import training
from nbmf_research.core import InputError, StreamError
from nbmf_research.neural.recordings import recording
from nbmf_research.training import Shard


class Item(NamedTuple):
    name: str
    split: str
    x: xr.DataArray


def item(name: str, n_time: int, n: int = 3, split: str = "train", dtype: Any = np.int16, **about: Any) -> Item:
    rng = np.random.default_rng(n_time)
    x = rng.integers(0, 200, (n_time, n)).astype(dtype)
    return Item(name, split, recording(x, 1000.0, units="uV", gain=np.arange(1, n + 1) / 4, offset=-7.0, **about))


@pytest.fixture
def pack(tmp_path: Path) -> D.TrainingPack:
    items = [
        item("a", 5000),
        item("b", 700, gaps=[(300, 1.0), (310, 0.0)]),
        item("c", 90),
        item("v", 1000, split="validation"),
        item("t", 1000, split="test"),
    ]
    return D.write_pack(tmp_path / "pack.h5", items)


# The pack ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_samples_and_scale_come_back(tmp_path: Path, dtype: str) -> None:
    one = item("x", 1234, 5, dtype=dtype, positions=np.arange(10.0).reshape(5, 2))
    pack = D.write_pack(tmp_path / "p.h5", [one])
    entry = pack.entries[0]
    assert pack.raw(0).dtype == np.dtype(dtype) and np.array_equal(pack.raw(0), one.x.values.T)
    assert (entry.name, entry.split, entry.sampling_rate, entry.units) == ("x", "train", 1000.0, "uV")
    assert (
        entry.channels == tuple(one.x.channel.values)
        and entry.positions[:, :2].tolist() == np.arange(10.0).reshape(5, 2).tolist()
    )
    expected = (one.x.values[10:20, [4, 0]] * one.x.gain.values[[4, 0]] + one.x.offset.values[[4, 0]]).T
    assert np.allclose(pack.windows([(0, 10, np.array([4, 0]))], 10)[0], expected, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="read-only"):
        pack.raw(0)[0, 0] = 1


def test_large_recordings_are_copied_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = Item("big", "train", recording(np.arange(3_000_000 * 4, dtype=np.int32).reshape(-1, 4), 1000.0))
    assert big.x.nbytes > 2 * (1 << 24)
    pack = D.write_pack(tmp_path / "p.h5", [big])
    assert np.array_equal(pack.raw(0), big.x.values.T)


def test_test_recordings_stay_out_unless_named(tmp_path: Path, pack: D.TrainingPack) -> None:
    assert {e.split for e in pack.entries} == {"train", "validation"}
    named = D.write_pack(tmp_path / "t.h5", [item("t", 100, split="test")], splits=("test",))
    assert named.of("test") == [0]
    with pytest.raises(InputError, match="no recording of the split 'train'"):
        named.of("train")


def test_the_hash_is_that_of_the_contents(tmp_path: Path) -> None:
    hashes = [
        D.write_pack(tmp_path / f"{i}.h5", [one]).sha256
        for i, one in enumerate([item("a", 100), item("a", 100), item("b", 100)])
    ]
    changed = item("a", 100)
    changed.x.values[50, 1] += 1
    assert hashes[0] == hashes[1] != hashes[2] and D.write_pack(tmp_path / "c.h5", [changed]).sha256 != hashes[0]


def test_what_is_no_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such pack"):
        D.TrainingPack(tmp_path / "gone.h5")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(StreamError, match="no pack"):
        D.TrainingPack(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["data"] = np.zeros(3)
    with pytest.raises(StreamError, match="says it is None"):
        D.TrainingPack(tmp_path / "other.h5")
    D.write_pack(tmp_path / "cut.h5", [item("a", 50_000)])
    (tmp_path / "cut.h5").write_bytes((tmp_path / "cut.h5").read_bytes()[:-1000])
    with pytest.raises(StreamError, match="damaged"):
        D.TrainingPack(tmp_path / "cut.h5")


def test_bad_recordings_leave_no_file(tmp_path: Path) -> None:
    nan = item("nan", 100, dtype=np.float32)
    nan.x.values[3, 1] = np.inf
    wrong = Item("wrong", "train", nan.x.rename(channel="electrode"))
    for bad, message in ((nan, "NaN or infinite"), (wrong, "time and channel")):
        with pytest.raises(InputError, match=message):
            D.write_pack(tmp_path / "p.h5", [item("fine", 100), bad])
    assert list(tmp_path.iterdir()) == []


# Batches by number -------------------------------------------------------------------------------------------------

ALL = (D.Gain(), D.Noise(), D.SignFlip(), D.ChannelDrop(0.3), D.ChannelPermute(), D.TimeShift(5))


def source(pack: D.TrainingPack, **changes: Any) -> D.WindowSource:
    options = {"length": 50, "batch_size": 8, "channels": 2} | changes
    return D.WindowSource(pack, D.WindowConfig(**options), augment=ALL, seed=3)


def same(a: D.Windows, b: D.Windows) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("channels", [0, 1, 2, 3])
def test_a_batch_depends_on_its_number_alone(pack: D.TrainingPack, channels: int) -> None:
    there = source(pack, channels=channels)
    n = 2 * len(there) + 3
    forward = [there[i] for i in range(n)]
    backward = [source(pack, channels=channels)[i] for i in reversed(range(n))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not same(forward[0], forward[len(there)]), "epochs differ"
    for batch in forward:
        assert batch.x.dtype == torch.float32 and batch.x.shape == (8, channels or 3, 50) and batch.x.isfinite().all()


@pytest.mark.parametrize(("workers", "method"), [(1, "fork"), (2, "fork"), (2, "spawn")])
def test_workers_change_nothing(pack: D.TrainingPack, workers: int, method: Any) -> None:
    there = source(pack)
    there[0]  # the parent has mapped the file before its workers start
    shard = Shard(1, 2)
    alone = list(itertools.islice(D.stream(there, shard.indices(4)), 5))
    helped = list(itertools.islice(D.stream(there, shard.indices(4), workers, method), 5))
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))
    assert same(alone[0], there[9]) and isinstance(helped[0], D.Windows)


def test_processes_share_the_batches_of_one(pack: D.TrainingPack) -> None:
    there = source(pack)
    one = list(itertools.islice(D.stream(there, Shard().indices()), 6))
    three = [list(itertools.islice(D.stream(there, Shard(r, 3).indices()), 2)) for r in range(3)]
    assert all(same(one[3 * i + r], three[r][i]) for i in range(2) for r in range(3))


def test_windows_are_where_they_say_and_cross_no_gap(pack: D.TrainingPack) -> None:
    bare = D.WindowSource(pack, D.WindowConfig(length=50, batch_size=16, channels=2))
    seen = set()
    for n in range(3 * len(bare)):
        batch = bare[n]
        for x, i, channel, start in zip(batch.x, batch.recording, batch.channel, batch.start, strict=True):
            assert np.array_equal(x, pack.windows([(int(i), int(start), channel.numpy())], 50)[0])
            assert any(a <= start and start + 50 <= b for a, b in pack.entries[int(i)].segments)
            seen.add((int(i), int(start)))
    starts = {i: [s for j, s in seen if j == i] for i in (0, 1, 2)}
    assert min(starts[2]) == 0 and max(starts[2]) == 40, "both ends of the shortest recording are used"
    assert min(starts[1]) < 100 and max(starts[1]) > 600


def test_adding_an_augmentation_leaves_the_others_alone(pack: D.TrainingPack) -> None:
    c = D.WindowConfig(length=50, batch_size=8, channels=3)
    gains = D.WindowSource(pack, c, (D.Gain(),), seed=3)[7]
    both = D.WindowSource(pack, c, (D.Gain(), D.SignFlip()), seed=3)[7]
    assert torch.equal(gains.x.abs(), both.x.abs()) and not torch.equal(gains.x, both.x)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20), st.floats(0, 1), st.integers(0, 500))
def test_shares_add_up_and_are_fair(lengths: list[int], balance: float, total: int) -> None:
    got = D.shares(lengths, balance, total)
    weight = np.array(lengths, float) ** (1 - balance)
    assert got.sum() == total and (abs(got - weight / weight.sum() * total) < 1 + 1e-6).all()


def test_an_epoch_has_exactly_its_shares(pack: D.TrainingPack) -> None:
    for balance in (0.0, 0.7, 1.0):
        there = source(pack, balance=balance, batches=20)
        counts = np.bincount(torch.cat([there[n].recording for n in range(20)]), minlength=3)
        assert counts.tolist() == D.shares([len(p) for p in there.places.values()], balance, 160).tolist()


def test_sources_refuse_what_does_not_fit(pack: D.TrainingPack) -> None:
    with pytest.raises(InputError, match="has 6000 samples without a gap"):
        source(pack, length=6000)
    with pytest.raises(InputError, match="windows of 4 channels"):
        source(pack, channels=4)
    with pytest.raises(InputError, match="balance in"):
        D.WindowConfig(balance=2.0)
    assert set(source(pack, length=95).places) == {0, 1}, "recordings that are too short are left out"


def test_a_source_that_is_sent_to_a_worker_is_small(pack: D.TrainingPack) -> None:
    there = source(pack)
    there[0]
    assert len(pickle.dumps(there)) < 30_000


# Validation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "groups"), [(1, 3), (2, 1), (0, 1)])
def test_the_grid_visits_everything_once(pack: D.TrainingPack, channels: int, groups: int) -> None:
    grid = D.WindowGrid(pack, D.WindowConfig(length=64, batch_size=7, channels=channels), split="train")
    places = [
        (int(i), int(s), tuple(c.tolist()))
        for n in range(len(grid))
        for i, s, c in zip(grid[n].recording, grid[n].start, grid[n].channel)
    ]
    windows = 5000 // 64 + 300 // 64 + 10 // 64 + 390 // 64 + 90 // 64
    assert len(places) == len(set(places)) == windows * groups
    assert all(len(set(grid[n].recording.tolist())) == 1 for n in range(len(grid)))
    few = D.WindowGrid(pack, grid.config, split="train", limit=9)
    assert sum(len(b) for b in few.batches) <= 9 and few.batches[-1][-1][0] == places[-1][0]
    with pytest.raises(InputError, match="no validation recording"):
        D.WindowGrid(pack, D.WindowConfig(length=2000))


# Augmentations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ALL, ids=lambda c: type(c).__name__)
def test_augmentations_keep_type_shape_and_input(change: D.Augmentation) -> None:
    x = np.random.default_rng(0).standard_normal((6, 4, 33)).astype(np.float32)
    before = x.copy()
    y = change(x, np.random.default_rng(1))
    assert y.shape == x.shape and y.dtype == np.float32 and np.array_equal(x, before) and not np.array_equal(x, y)
    assert np.array_equal(y, change(x, np.random.default_rng(1)))
    for shape in ((1, 1, 1), (3, 1, 7)):
        assert np.isfinite(change(np.zeros(shape, np.float32), np.random.default_rng(2))).all()


def test_what_each_augmentation_does() -> None:
    rng = np.random.default_rng
    x = rng(0).standard_normal((400, 4, 33)).astype(np.float32)
    ratio = (D.Gain(0.5, 2.0)(x, rng(1)) / x)[:, 0, 0]
    assert ratio.min() >= 0.4999 and ratio.max() <= 2.0001 and abs(np.log(ratio).mean()) < 0.1
    noise = D.Noise(0.5)(100 * x, rng(1)) - 100 * x
    assert noise.std() == pytest.approx(50, rel=0.05)
    flipped = (D.SignFlip(0.25)(x, rng(1)) != x).any((1, 2))
    assert flipped.mean() == pytest.approx(0.25, abs=0.07)
    dropped = (D.ChannelDrop(0.9)(x, rng(1)) == 0).all(2)
    assert not dropped.all(1).any() and dropped.mean() > 0.7
    mixed = D.ChannelPermute()(x, rng(1))
    assert np.array_equal(np.sort(mixed, 1), np.sort(x, 1)) and not np.array_equal(mixed, x)
    ramp = np.arange(33, dtype=np.float32).reshape(1, 1, -1)
    shifts = {tuple(D.TimeShift(3)(ramp, rng(s))[0, 0, 10:20] - ramp[0, 0, 10:20]) for s in range(60)}
    assert shifts == {(float(s),) * 10 for s in range(-3, 4)}
    assert D.TimeShift(3)(ramp, rng(0)).min() >= 0


# In memory ---------------------------------------------------------------------------------------------------------


def test_shuffled_rows_are_permutations_and_resume(tmp_path: Path) -> None:
    rows = list(D.shuffled(103, 10, range(25), seed=5))
    for epoch in (rows[:10], rows[10:20]):
        assert len(torch.cat(epoch).unique()) == 100
    assert not torch.equal(rows[0], rows[10])
    assert all(torch.equal(a, b) for a, b in zip(rows[13:], D.shuffled(103, 10, range(13, 25), seed=5), strict=True))
    assert next(D.shuffled(10**6, 10**6, itertools.count())).shape == (10**6,)
    with pytest.raises(InputError, match="cannot be made"):
        next(D.shuffled(5, 6, [0]))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_a_pack_resumes_to_the_same_bits(pack: D.TrainingPack, tmp_path: Path, workers: int) -> None:
    class Mean:
        def __init__(self) -> None:
            torch.manual_seed(0)
            self.module: torch.nn.Module = torch.nn.Linear(50, 50)

        def batches(self, start: int, shard: Shard) -> Any:
            return D.stream(source(pack), shard.indices(start), workers)

        def loss(self, module: torch.nn.Module, batch: D.Windows, step: int) -> dict[str, torch.Tensor]:
            return {"loss": (module(batch.x) - batch.x).square().mean()}

        def validate(self, module: torch.nn.Module, shard: Shard) -> dict[str, float]:
            return {}

    def run(folder: str, steps: int) -> str:
        schedule = training.ScheduleConfig("constant")
        log = training.LogConfig(progress=False)
        c = training.TrainConfig(str(tmp_path / folder), steps=steps, device="cpu", schedule=schedule, log=log)
        return training.fit(Mean(), c).sha256

    whole = run("whole", 30)
    run("parts", 13)
    assert run("parts", 30) == whole
