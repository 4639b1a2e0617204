"""New generations and old tables: what is published, what is withdrawn, what is migrated and undone; and a kill before every statement."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

sa = pytest.importorskip("sqlalchemy")
pytest.importorskip("zstandard")

from memory_killing import check_every_kill, small_model

from nbmf_research.core import InputError, StreamError
from nbmf_research.memory import migration as mm
from nbmf_research.memory import rollout as ro
from nbmf_research.memory import store as ms
from nbmf_research.memory.codec import MemoryCodec
from nbmf_research.memory.records import synthetic_records
from nbmf_research.memory.sql import is_blob
from nbmf_research.memory.training import Released

WARM = {"": ms.Route(level="warm")}
LIMITS = ro.Limits(least=4, most=20, slower=1e9)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")


def own(i: int) -> str:
    return f'{{"vessel": "MV Halcyon {i % 9}", "berth": {i % 4}, "moved": "{37 * i % 101} t", "by": "crane {i % 3}"}}'


def items(start: int, stop: int) -> list[ms.Item]:
    return [ms.Item(own(i), f"r{i}", created=float(i)) for i in range(start, stop)]


@pytest.fixture(scope="module")
def base() -> Released:
    return small_model()


def store_at(base: Released, path: Path | str = "sqlite://", count: int = 60, **more: Any) -> ms.MemoryStore:
    store = ms.MemoryStore(str(path), base, WARM, **more)
    if count:
        store.put_many(items(0, count))
    return store


# ---- learning


def test_a_generation_is_published_if_it_is_better(base: Released) -> None:
    with store_at(base) as store:
        made = ro.adapt_later(store).result()
        c = made.comparison
        assert made.published and store.rollout() == ms.Rollout(1) and c.new < c.old and c.wrong == 0
        held = {s.id for s in store.scan(payload=False) if ms.share(s.id) >= 90}
        assert c.n == len(held) > 0
        records = store._delta(1).records
        assert len(records) == 60 - len(held) and records[-1] != records[0]
        again = ro.adapt(store)  # the same records again are not better
        assert again.generation == 2 and not again.published and store.rollout() == ms.Rollout(1)
        small = ro.adapt(store, most=3000, publish=False)
        assert not small.published and sum(map(len, store._delta(3).records)) <= 3000
        with pytest.raises(InputError, match="no records to compare"):
            ro.compare(store, [], 0, 1)


def test_learning_needs_records_and_numbers(base: Released) -> None:
    with store_at(base, count=9) as store:
        with pytest.raises(InputError, match="too few"):
            ro.adapt_later(store).result()
        with store.engine.begin() as link:
            link.execute(ms.GENERATION.insert().values(number=63, delta=b""))
        with pytest.raises(InputError, match="all 63"):
            store.add_generation([b"one more"])


# ---- canaries


def test_a_good_candidate_rises_and_a_new_judge_goes_on(base: Released) -> None:
    with store_at(base) as store:
        candidate = ro.adapt(store, publish=False).generation
        said, highest = [], []
        for i in range(60, 600, 10):
            canary = ro.Canary(store, candidate, limits=LIMITS)
            store.put_many(items(i, i + 10))
            said.append(canary.step())
            highest.append(store.rollout().percent)
            if said[-1] == ro.PUBLISHED:
                break
        assert [s for s in said if s != ro.WAITING] == [ro.ADVANCED, ro.ADVANCED, ro.PUBLISHED]
        assert [h for h, g in zip(highest, [0, *highest], strict=False) if h > g] == [10, 50, 100]
        assert store.rollout() == ms.Rollout(candidate) and canary.step() == ro.PUBLISHED
        assert {s.generation for s in store.scan(payload=False)} == {0, candidate} and store.check() == []


def noise(store: ms.MemoryStore) -> int:
    return store.add_generation([random.Random(k).randbytes(200) for k in range(60)])


def test_noise_is_withdrawn_and_its_records_are_brought_back(base: Released) -> None:
    with store_at(base) as store:
        assert ro.adapt(store).published and store.age() == {}
        looked = ro.shadow(store, noise(store), 20)
        assert looked.new > looked.old and looked.n == 20 and {s.generation for s in store.scan()} == {0}
        canary = ro.Canary(store, 2, steps=(50, 100), limits=LIMITS)
        with pytest.raises(InputError, match="generation 2 is being tried"):
            ro.Canary(store, noise(store))
        store.put_many(items(60, 100))
        assert {s.generation for s in store.scan()} == {0, 1, 2}
        assert canary.watch(0.0).result() == ro.WITHDRAWN and "more bytes" in canary.reason
        assert store.rollout() == ms.Rollout(1) and {s.generation for s in store.scan()} == {0, 1}
        assert [store.get(f"r{i}") for i in range(100)] == [own(i) for i in range(100)]
        with pytest.raises(InputError, match="steps rise"):
            ro.Canary(store, 1, steps=(10, 50))
        with pytest.raises(InputError, match="no generation 7"):
            ro.Canary(store, 7)


class Wrong(MemoryCodec):
    """Decodes its own generation to something else."""

    def decode(self, blob: Any) -> Any:
        """Something else."""
        return "else" if self.generation else super().decode(blob)


def test_a_wrong_candidate_is_withdrawn_at_once(base: Released) -> None:
    with store_at(base, make=Wrong) as store:
        candidate = store.add_generation([own(i).encode() for i in range(30)])
        canary = ro.Canary(store, candidate, limits=LIMITS)
        assert ro.shadow(store, candidate, 5).wrong == 5
        store.put_many(items(60, 120))
        assert store.rollout().wrong > 0 and canary.step() == ro.WITHDRAWN and "did not come back" in canary.reason
        assert [store.get(f"r{i}") for i in range(120)] == [own(i) for i in range(120)]


def test_limits() -> None:
    good = ro.Comparison(100, 0, 1000, 400, 380, 5.0, 6.0)
    assert ro.Limits().broken(good) == ""
    for change, says in (
        ({"wrong": 1}, "1 of 100"),
        ({"new": 402}, "more bytes"),
        ({"new_ms": 10.5}, "2.1 times slower"),
    ):
        assert says in ro.Limits().broken(ro.Comparison(**(vars(good) | change)))


@needs_fork
def test_a_kill_before_any_statement_of_learning_and_trial(base: Released, tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with store_at(base, path, 40) as store:
        assert ro.adapt(store).published

    def work() -> None:
        with store_at(base, path, 0) as store:
            number = 2 if len(store.generations()) > 1 else noise(store)
            canary = ro.Canary(store, number, steps=(40, 100), limits=LIMITS)
            store.put_many(items(40, 60), batch=10)
            said = canary.step()
            assert said == ro.WITHDRAWN, said
            if len(store.generations()) < 3:
                assert ro.adapt(store, most=3000, held=5).generation == 3

    def whole(killed: bool) -> None:
        with store_at(base, path, 0) as store:
            assert store.check() == [] and len(store) >= 40
            assert all(s.payload == own(int(s.id[1:])) for s in store.scan())
            assert store.rollout().current in (1, 3)

    assert check_every_kill(work, whole, step=7) >= 4


# ---- migration


def stub(payload: Any) -> str:
    text = json.dumps(payload, sort_keys=True, ensure_ascii=False)
    sig = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({"meta": {"fidelity": "lossless"}, "code": zlib.compress(text.encode(), 9).hex(), "sig": sig})


TEXTS = [r.text for r in synthetic_records(8, seed=2)]
OLD = [t if i % 3 else stub(t) for i, t in enumerate(TEXTS)]


def table(path: Path, values: list[Any], key: str = "INTEGER PRIMARY KEY") -> sa.Engine:
    with closing(sqlite3.connect(path)) as link:
        link.execute(f"CREATE TABLE old (id {key}, content TEXT)")
        rows = [(f"k{i:03}" if "TEXT" in key else i, v) for i, v in enumerate(values)]
        link.executemany("INSERT INTO old VALUES (?, ?)", rows)
        link.commit()
    return ms.open_engine(str(path))


def column(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as link:
        return [row[0] for row in link.execute("SELECT content FROM old ORDER BY id")]


@pytest.mark.parametrize("key", ["INTEGER PRIMARY KEY", "TEXT PRIMARY KEY"])
def test_there_and_back(base: Released, tmp_path: Path, key: str) -> None:
    values = [*OLD, None, "", b"\xff\x00", 7, '{"meta": {}, "code": "zz"}']
    engine, codec = table(tmp_path / "a.db", values, key), MemoryCodec(base, "hot")
    before = column(tmp_path / "a.db")
    move = mm.Migration(engine, "old", "content", codec=codec, batch=7)
    report = move.run()
    assert (report["legacy"], report["empty"]) == (11, 1) and report["plain"] == 32 - 11 + 4 and report["stored"] > 0
    now = column(tmp_path / "a.db")
    assert [codec.decode(v) for v in now if is_blob(v)] == [*TEXTS, "", b"\xff\x00", "7", values[-1]]
    assert move.check() == [] and move.run() == {"blob": 36, "empty": 1}
    with engine.begin() as link:
        link.execute(
            sa.text("UPDATE old SET content = :v WHERE id = :i"), {"v": now[4], "i": "k005" if "TEXT" in key else 5}
        )
    assert move.check() == []  # changed since: not the journal's
    assert move.undo() == {"as before": 35, "plain": 1}
    assert [v for i, v in enumerate(column(tmp_path / "a.db")) if i != 5] == [v for i, v in enumerate(before) if i != 5]
    assert column(tmp_path / "a.db")[5] == TEXTS[4]
    engine.dispose()


def test_what_migration_refuses(base: Released, tmp_path: Path) -> None:
    codec = MemoryCodec(base, "hot")
    engine = table(tmp_path / "a.db", ["x", bytes([0xA4, 0xFF, 0xFF, 1])])
    for names in (("nowhere", "content"), ("old", "text"), ("old", "content", "key")):
        with pytest.raises(InputError):
            mm.Migration(engine, *names, codec=codec)
    with pytest.raises(StreamError):
        mm.Migration(engine, "old", "content", codec=codec).run()
    assert column(tmp_path / "a.db")[0] == "x"
    engine.dispose()


def test_wrong_rows_are_told(base: Released, tmp_path: Path) -> None:
    engine, codec = table(tmp_path / "a.db", OLD), MemoryCodec(base, "hot")
    move = mm.Migration(engine, "old", "content", codec=codec)
    move.run()
    with engine.begin() as link:
        link.execute(mm.JOURNAL.update().where(mm.JOURNAL.c.key == "4").values(old=b"what it never was"))
    assert move.check() == [4]
    move.forget()
    assert move.check() == [] and move.undo() == {"plain": len(OLD)} and column(tmp_path / "a.db") == TEXTS
    engine.dispose()


@needs_fork
def test_a_kill_before_any_statement_of_a_migration(base: Released, tmp_path: Path) -> None:
    path, codec = tmp_path / "a.db", MemoryCodec(base, "hot")
    table(path, OLD[:12]).dispose()

    def move() -> mm.Migration:
        return mm.Migration(ms.open_engine(str(path)), "old", "content", codec=codec, batch=5)

    def whole(killed: bool) -> None:
        values = column(path)
        assert [codec.decode(v) if is_blob(v) or i % 3 == 0 else v for i, v in enumerate(values)] == TEXTS[:12]
        assert all(is_blob(v) or v == OLD[i] for i, v in enumerate(values)) and (
            killed or not any(map(is_blob, values))
        )
        judge = move()
        assert judge.check() == []
        judge.engine.dispose()

    def there_and_back() -> None:
        move().run()
        assert all(map(is_blob, column(path))), "it did not finish"
        assert move().undo() == {"as before": 12}

    assert check_every_kill(there_and_back, whole, step=9) >= 6
    assert column(path) == OLD[:12]


# ---- the command line


def test_the_commands(
    base: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nbmf_research import cli
    from nbmf_research.memory.training import read_model, save_model

    monkeypatch.chdir(tmp_path)
    save_model(base.mixer, "m.safetensors")
    table(tmp_path / "app.db", OLD).dispose()

    def nbmf(line: str) -> tuple[int, str, str]:
        code = cli.main(["memory", *line.split()])
        heard = capsys.readouterr()
        return code, heard.out, heard.err

    where = "app.db --table old --column content --model m.safetensors --tier hot"
    code, out, err = nbmf(f"migrate {where}")
    assert (code, err) == (0, "") and out.startswith("old.content: 11 legacy, 21 plain; ") and "times smaller" in out
    assert nbmf(f"migrate {where}")[1] == "old.content: 32 blob\n"
    assert nbmf(f"migrate {where} --undo")[1] == "old.content: 32 as before\n" and column(tmp_path / "app.db") == OLD
    assert nbmf(f"migrate {where}")[0] == 0 and nbmf(f"migrate {where} --forget")[0] == 0
    assert nbmf(f"migrate {where} --undo")[1] == "old.content: 32 plain\n" and column(tmp_path / "app.db") == TEXTS
    with ms.MemoryStore("store.db", read_model("m.safetensors")) as store:
        store.put_many(ms.Item(t) for t in TEXTS)
    (row,) = json.loads(nbmf("stats store.db --json")[1])
    assert (row["level"], row["records"], row["raw_bytes"]) == ("hot", 32, sum(len(t) for t in TEXTS))
    assert "level" in nbmf("stats store.db")[1]
    for line, says in (
        ("stats app.db", "holds no store"),
        ("migrate nowhere.db --table t --column c", "no SQLite file"),
        ("migrate app.db --table old", "--column"),
        ("migrate app.db --table old --column content --undo --forget", "at most one"),
        (f"{'migrate ' + where} --key nothing", "no column nothing"),
    ):
        code, out, err = nbmf(line)
        assert (code, out, err.count("\n")) == (2, "", 1) and says in err, err
