"""The store: what is put comes back, by id, time, class and text; levels; other processes; and a kill before every statement."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sa = pytest.importorskip("sqlalchemy")
pytest.importorskip("zstandard")

from memory_killing import check_every_kill, small_model

from nbmf_research.core import InputError, StreamError
from nbmf_research.memory import store as ms
from nbmf_research.memory.codec import MemoryCodec
from nbmf_research.memory.format import RAW, parse
from nbmf_research.memory.records import synthetic_records
from nbmf_research.memory.training import Released

TEXTS = [r.text for r in synthetic_records(10, seed=2)]
WARM = {"": ms.Route(level="warm")}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")


class Clock:
    """Seconds that stand still."""

    def __init__(self) -> None:
        self.now = 1.7e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def base() -> Released:
    return small_model()


@pytest.fixture(scope="module")
def shared(base: Released) -> ms.MemoryStore:
    return ms.MemoryStore("sqlite://", base)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=20, deadline=None)
@given(payload=st.binary(max_size=60) | st.text(max_size=60) | json_values, level=st.sampled_from(ms.LEVELS))
def test_payloads_come_back(shared: ms.MemoryStore, payload: Any, level: str) -> None:
    shared.routes = {"": ms.Route(level=level)}
    id = shared.put(payload)
    back = shared.get(id)
    assert back == payload and type(back) is type(payload)
    found = shared.find(id)
    assert found is not None and found.level == level and found.stored <= found.size + 2


def test_put_replaces_and_delete_deletes(base: Released) -> None:
    with ms.MemoryStore("sqlite://", base) as store:
        assert store.put_many([ms.Item("one", "a"), ms.Item("two", "b"), ms.Item("three", "a")]) == ["a", "b", "a"]
        assert (store.get("a"), store.get("b"), len(store)) == ("three", "two", 2)
        store.put({"n": 1}, "b", kind="log")
        found = store.find("b", payload=False)
        assert found is not None and (found.kind, found.payload) == ("log", None) and store.get("b") == {"n": 1}
        assert store.delete("a") and not store.delete("a")
        for wrong in (lambda: store.get("a"), lambda: store.put(object()), lambda: store.put("x", "i" * 256)):
            with pytest.raises(InputError):
                wrong()
        assert store.put_many([]) == [] and len({store.put("x") for _ in range(20)}) == 20


def test_time_class_and_text(base: Released) -> None:
    with ms.MemoryStore("sqlite://", base) as store:
        times = [5.0, 1.0, 1.0, 1.0, 3.0, 3.0, 2.5, 9.0]
        store.put_many(ms.Item(f"Text {i}", f"r{i}", "ab"[i % 2], t) for i, t in enumerate(times))
        order = sorted(range(8), key=lambda i: (times[i], i))
        for batch in (1, 3, 8):
            assert [s.id for s in store.scan(batch=batch)] == [f"r{i}" for i in order]
            assert [s.id for s in store.scan(newest=True, batch=batch)] == [f"r{i}" for i in reversed(order)]
        assert [s.payload for s in store.scan(1.0, 3.0, "b")] == ["Text 1", "Text 3"]
        assert list(store.scan(kind="nobody")) == [] and next(store.scan(payload=False)).payload is None
        store.put(b"Text \xff", created=50.0)
        store.put({"k": "tExT 9"}, "json", created=40.0)
        assert [s.id for s in store.search("TEXT", most=3)] == ["json", "r7", "r0"]
        assert [s.id for s in store.search("text 7")] == ["r7"] and store.search("nothing of it") == []


def test_routes_decide(base: Released) -> None:
    routes = {"state": ms.Route("semantic", level="cold"), "exact": ms.Route()}
    with ms.MemoryStore("sqlite://", base, routes) as store:
        text = '{"b": 1.50,   "a": [1]}'
        for kind, back, level in (("state", '{"a": [1], "b": 1.5}', "cold"), ("exact", text, "hot")):
            found = store.find(store.put(text, kind=kind))
            assert found is not None and (found.payload, found.level, found.size) == (back, level, len(back))
        assert store.get(store.put({"z": 1, "a": 2}, kind="state")) == {"a": 2, "z": 1}
    for wrong in ({"fidelity": "prose-like"}, {"level": "L2"}, {"domain": "sports"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            ms.Route(**wrong)


def test_records_sink_and_rise(base: Released) -> None:
    clock = Clock()
    policy = ms.Policy(warm_after=7200.0, cold_after=36_000.0, promote=2)
    with ms.MemoryStore("sqlite://", base, policy=policy, clock=clock) as store:
        ids = store.put_many(ms.Item(t) for t in TEXTS[:6])
        assert store.age() == {}
        clock.now += 8000
        store.get(ids[0])
        assert store.age() == {"warm": 5}
        for _ in range(2):
            assert store.get(ids[1]) == TEXTS[1]
        assert store.age() == {"hot": 1}
        clock.now += 40_000
        seen: list[int] = []
        assert store.age(seen.append) == {"cold": 6} and sum(seen) == 6
        assert [store.get(i) for i in ids] == TEXTS[:6] and {r["level"] for r in ms.sizes(store)} == {"cold"}
        (row,) = ms.sizes(store)
        assert row["records"] == 6 and row["raw_bytes"] == sum(len(t) for t in TEXTS[:6])
        assert row["ratio"] == row["raw_bytes"] / row["stored_bytes"]
        assert {(r["operation"], r["level"]): r["n"] for r in ms.latencies(store)}["read", "cold"] == 6


def test_a_row_that_changed_meanwhile_is_left_alone(base: Released) -> None:
    with ms.MemoryStore("sqlite://", base) as store:
        store.put_many([ms.Item("old text", "a"), ms.Item("gone", "b"), ms.Item("same", "c")])
        (rows,) = store.pages()
        store.put("new text", "a")
        store.delete("b")
        store.rewrite([(row, ms.WARM) for row in rows])
        assert store.get("a") == "new text" and store.find("b") is None and store.get("c") == "same"
        levels = [s.level for s in store.scan()]
        assert sorted(levels) == ["hot", "warm"]


def damage(store: ms.MemoryStore, id: str, **values: Any) -> None:
    with store.engine.begin() as link:
        link.execute(ms.RECORDS.update().where(ms.RECORDS.c.id == id).values(**values))


def test_damage_is_found_named_and_not_made_worse(base: Released) -> None:
    clock = Clock()
    with ms.MemoryStore("sqlite://", base, clock=clock) as store:
        store.put_many(ms.Item(t, f"r{i}") for i, t in enumerate(TEXTS[:5]))
        other = MemoryCodec(base).encode("another record, whole in itself")
        damage(store, "r1", blob=other)
        damage(store, "r3", blob=b"\xbf\xff\xff\xff")
        assert store.check() == ["r1", "r3"]
        for id in ("r1", "r3"):
            with pytest.raises(StreamError, match=id):
                store.get(id)
        clock.now += 10 * 86_400
        assert store.age() == {"warm": 3, "damaged": 2} and store.check() == ["r1", "r3"]
        (row,) = store.pages(ms.RECORDS.c.id == "r1")
        assert row[0].blob == other and store.opened(row[0]) is None
        store.put(TEXTS[1], "r1")
        assert store.check() == ["r3"]


class Broken(MemoryCodec):
    """Fails in one of two ways."""

    how = "wrong"

    def decode(self, blob: Any) -> Any:
        """Not what was encoded, unless it was kept raw."""
        if parse(blob).tier == RAW:
            return super().decode(blob)
        if self.how == "wrong":
            return "something else"
        raise StreamError("no end")


@pytest.mark.parametrize("how", ["wrong", "error"])
def test_what_does_not_come_back_is_kept_raw(base: Released, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "how", how)
    with ms.MemoryStore("sqlite://", base, WARM, make=Broken) as store:
        ids = store.put_many(ms.Item(p) for p in (*TEXTS[:3], {"a": [1, None]}, b"bytes" * 20))
        assert [store.get(i) for i in ids] == [*TEXTS[:3], {"a": [1, None]}, b"bytes" * 20]
        assert store.fallbacks["generation 0 was not exact"] >= 4 and store.check() == []


def test_the_model_is_remembered(base: Released, tmp_path: Path) -> None:
    path = str(tmp_path / "s.db")
    with ms.MemoryStore(path, base) as store:
        store.put("x", "a")
    with pytest.raises(InputError, match=base.identity.hex()):
        ms.MemoryStore(path, Released(base.mixer, b"other 01"))
    with ms.MemoryStore(f"sqlite:///{path}", base) as store:
        assert store.get("a") == "x"
    (tmp_path / "no.db").write_bytes(b"this is no database, but long enough to look like a file of one" * 20)
    for url in (str(tmp_path / "no.db"), str(tmp_path / "none" / "s.db"), "no such://thing", "nosuchdb://x"):
        with pytest.raises(InputError):
            ms.MemoryStore(url, base)


def test_two_stores_on_one_file_agree(base: Released, tmp_path: Path) -> None:
    path = str(tmp_path / "s.db")
    with ms.MemoryStore(path, base, WARM) as one, ms.MemoryStore(path, base, WARM) as two:
        number = one.add_generation([t.encode() for t in TEXTS[10:]])
        assert number == 1 and two.add_generation([b"another"]) == 2 and one.generations() == [1, 2]
        assert one.switch(ms.Rollout(), ms.Rollout(number)) and not two.switch(ms.Rollout(), ms.Rollout(2))
        assert two.rollout() == ms.Rollout(number)
        id = two.put(TEXTS[0], kind="log")
        found = one.find(id)
        assert found is not None and (found.payload, found.generation, found.kind) == (TEXTS[0], 1, "log")
        one.put("x", "y", "contract")
        assert two.find("y").kind == "contract"  # type: ignore[union-attr]
        with pytest.raises(StreamError, match="generation 9"):
            one.codec(9)


def test_threads_share_a_store(base: Released, tmp_path: Path) -> None:
    wrong: list[str] = []
    with ms.MemoryStore(str(tmp_path / "s.db"), base, durable=False) as store:

        def work(k: int) -> None:
            for i in range(12):
                text = f"{TEXTS[i]} {k}"
                if store.get(store.put(text, f"{k}/{i}", kind=f"kind {k % 2}")) != text:
                    wrong.append(text)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert wrong == [] and len(store) == 48 and store.check() == []


@needs_fork
def test_a_kill_before_any_statement_of_a_put_loses_nothing(base: Released, tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with ms.MemoryStore(str(path), base) as store:
        store.put_many(ms.Item(t, f"r{i}") for i, t in enumerate(TEXTS[:10]))

    def work() -> None:
        with ms.MemoryStore(str(path), base, clock=Clock()) as store:
            store.put_many([ms.Item(TEXTS[i] + "!", f"r{i}", "log") for i in range(5, 15)], batch=4)
            store.delete("r0")

    def whole(killed: bool) -> None:
        with ms.MemoryStore(str(path), base) as store:
            assert store.check() == [] and (len(store) >= 10 or not killed)
            for one in store.scan():
                i = int(one.id[1:])
                assert one.payload in (TEXTS[i], TEXTS[i] + "!")
            assert {one.id for one in store.scan(payload=False)} >= {f"r{i}" for i in range(1, 10)}

    assert check_every_kill(work, whole, step=2) >= 8


@needs_fork
def test_a_kill_before_any_statement_of_ageing_loses_nothing(base: Released, tmp_path: Path) -> None:
    path, clock = tmp_path / "s.db", Clock()
    with ms.MemoryStore(str(path), base, clock=clock) as store:
        store.put_many(ms.Item(t, f"r{i}") for i, t in enumerate(TEXTS))
    clock.now += 3 * 86_400

    def work() -> None:
        with ms.MemoryStore(str(path), base, clock=clock) as store:
            store.get("r1")
            assert store.age().keys() <= {"warm"}

    def whole(killed: bool) -> None:
        with ms.MemoryStore(str(path), base) as store:
            assert {s.id: s.payload for s in store.scan()} == {f"r{i}": t for i, t in enumerate(TEXTS)}
            assert store.check() == []

    assert check_every_kill(work, whole) >= 6
    with ms.MemoryStore(str(path), base) as store:
        assert sum(s.level == "warm" for s in store.scan()) == len(TEXTS) - 1


def test_the_tables_are_those_of_postgresql_too() -> None:
    from sqlalchemy.dialects import postgresql

    made = " ".join(
        str(sa.schema.CreateTable(t).compile(dialect=postgresql.dialect())) for t in ms.METADATA.sorted_tables
    )
    assert "blob BYTEA NOT NULL" in made and "AUTOINCREMENT" not in made and "SERIAL" not in made
    assert ms.open_engine("sqlite://").dialect.name == "sqlite"


@pytest.mark.skipif(not os.environ.get("NBMF_TEST_DATABASE"), reason="NBMF_TEST_DATABASE names no empty database")
def test_another_database(base: Released) -> None:
    with ms.MemoryStore(os.environ["NBMF_TEST_DATABASE"], base, clock=Clock()) as store:
        ids = store.put_many(ms.Item(t) for t in TEXTS)
        assert [store.get(i) for i in ids] == TEXTS and store.check() == []
        store.clock.now += 3 * 86_400  # type: ignore[attr-defined]
        assert store.age() == {"warm": len(TEXTS)} and [store.delete(i) for i in ids] == [True] * len(ids)
