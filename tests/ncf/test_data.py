"""ncf.data: tables, splits, files, negatives, the simulator and its optimum."""

from __future__ import annotations

import gzip
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmf_research.core import InputError, MissingDependencyError
from nbmf_research.ncf import data as d

FOLDER = os.environ.get("NBMF_DATA_DIR", "")
needs_ml1m = pytest.mark.skipif(
    not (Path(FOLDER) / "ncf" / "ml-1m").is_dir() or not FOLDER, reason="needs ncf/ml-1m under NBMF_DATA_DIR"
)
needs_ml100k = pytest.mark.skipif(
    not (Path(FOLDER) / "ncf" / "ml-100k").is_dir() or not FOLDER, reason="needs ncf/ml-100k under NBMF_DATA_DIR"
)

rows = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 9)), min_size=1, max_size=60)


def table(triples: list[tuple[int, int, int]], n_items: int = 9) -> d.Interactions:
    frame = pd.DataFrame(triples, columns=["user_id", "item_id", "timestamp"])
    return d.from_frame(frame, item_ids=[str(i) for i in range(n_items)])


# The table --------------------------------------------------------------------------------------------------------


@given(rows)
def test_each_user_is_in_time_order_and_each_pair_once(triples: list[tuple[int, int, int]]) -> None:
    data = table(triples)
    latest = {}
    for u, i, t in triples:
        latest[str(u), str(i)] = max(t, latest.get((str(u), str(i)), 0))
    got = {(data.user_ids[u], data.item_ids[i]): t for u, i, t in zip(data.users, data.items, data.times, strict=True)}
    assert got == latest and len(data) == len(latest)
    for u in range(data.n_users):
        assert (np.diff(data.times[data.indptr[u] : data.indptr[u + 1]]) >= 0).all()


@given(rows)
def test_the_order_of_the_input_changes_nothing_if_times_differ(triples: list[tuple[int, int, int]]) -> None:
    distinct = [(u, i, 10 * n) for n, (u, i, _) in enumerate(triples)]
    frame = pd.DataFrame(distinct, columns=["user_id", "item_id", "timestamp"])
    ids = {"user_ids": list("012345"), "item_ids": list("01234567")}
    assert d.fingerprint(d.from_frame(frame, **ids)) == d.fingerprint(d.from_frame(frame[::-1], **ids))


def test_matrix_and_scipy_do_not_reorder_the_table() -> None:
    data = table([(0, 5, 1), (0, 2, 2), (0, 7, 3)])
    data.matrix().sort_indices()
    assert data.history(0).tolist() == [5, 2, 7]


def test_first_row_of_a_repeated_pair() -> None:
    frame = pd.DataFrame({"user_id": [1, 1, 1], "item_id": ["a", "b", "a"], "timestamp": [1, 2, 3]})
    assert d.from_frame(frame, repeated="first").history(0).tolist() == [0, 1]
    assert d.from_frame(frame).history(0).tolist() == [1, 0]


def test_times_in_many_forms() -> None:
    same = [1705314600.0, "2024-01-15T10:30:00", "2024-01-15T10:30:00Z", "2024-01-15T12:30:00+02:00"]
    for value in (*same, pd.Timestamp(same[1])):
        frame = pd.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [value]})
        assert d.from_frame(frame).times[0] == same[0]


def test_take_users_repeats_and_refuses() -> None:
    data = table([(0, 1, 1), (1, 2, 1), (1, 3, 2)])
    twice = d.take_users(data, [1, 0, 1])
    assert twice.items.tolist() == [2, 3, 1, 2, 3] and twice.user_ids == ("1", "0", "1")
    assert d.take_users(data, np.empty(0, int)).n_users == 0
    for wrong in ([2], [-1]):
        with pytest.raises(InputError, match="between 0 and 1"):
            d.take_users(data, wrong)


# Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.txt"])
def test_tables_from_files(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({"user_id": ["007", "b"], "item_id": ["1", "01"], "timestamp": [3, 4]})
    frame.to_csv(tmp_path / name, index=False, sep="," if ".csv" in name else "\t")
    data = d.read_table(tmp_path / name)
    assert data.user_ids == ("007", "b") and data.item_ids == ("1", "01")  # names stay text


def test_table_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        d.read_table(tmp_path / "none.csv")
    (tmp_path / "x.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match=r"\.parquet"):
        d.read_table(tmp_path / "x.xlsx")


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    pd.DataFrame({"user_id": ["a"], "item_id": ["b"]}).to_parquet(tmp_path / "x.parquet")
    assert len(d.read_table(tmp_path / "x.parquet")) == 1


def test_parquet_without_pyarrow_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingDependencyError, match="pip install pyarrow"):
        d.read_table(tmp_path / "x.parquet")


def test_sql(tmp_path: Path) -> None:
    sa = pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    url = f"sqlite:///{tmp_path}/store.db"
    frame = pd.DataFrame({"who": ["a", "a"], "what": ["x", "y"], "at": ["2024-01-02", "2024-01-01"]})
    frame.to_sql("log", sa.create_engine(url))
    columns = d.Columns("who", "what", "at")
    data = d.read_sql(url, "SELECT who, what, at FROM log", columns)
    assert [data.item_ids[i] for i in data.history(0)] == ["y", "x"]
    with pytest.raises(InputError, match="no such table"):
        d.read_sql(url, "SELECT * FROM absent", columns)


def test_sql_without_sqlalchemy_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(MissingDependencyError, match="sqlalchemy"):
        d.read_sql("sqlite://", "SELECT 1")


# The seed's JSON --------------------------------------------------------------------------------------------------


def seed_document() -> dict:
    return {
        "metadata": {"num_users": 2, "num_items": 4, "num_interactions": 3, "density": 0.1},
        "interactions": [
            {"user_id": "u1", "item_id": "i1", "timestamp": "2024-01-15T10:30:00", "implicit_rating": 1.0},
            {"user_id": "u1", "item_id": "i2", "timestamp": "2024-01-14T10:30:00", "implicit_rating": 0.5},
            {"user_id": "u2", "item_id": "i1", "timestamp": "2024-01-15T10:30:00"},
        ],
        "held_out_test": [{"user_id": "u1", "relevant_items": ["i3"], "candidate_items": ["i3", "i4"]}],
    }


def write(path: Path, document: object) -> Path:
    text = json.dumps(document).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_seed_document(tmp_path: Path, name: str) -> None:
    document = seed_document()
    document["interactions"][2]["implicit_rating"] = 1.0
    split = d.read_json(write(tmp_path / name, document))
    assert split.train.item_ids == ("i1", "i2", "i3", "i4")
    assert [split.train.item_ids[i] for i in split.train.history(0)] == ["i2", "i1"]
    assert split.test.items.tolist() == [2]
    assert split.test.candidates is not None and split.test.candidates.tolist() == [[3]]


def test_a_document_without_tests_has_no_questions(tmp_path: Path) -> None:
    document = seed_document()
    document["interactions"][2]["implicit_rating"] = 1.0
    del document["held_out_test"], document["metadata"]
    split = d.read_json(write(tmp_path / "a.json", document))
    assert len(split.test) == 0 and len(d.leave_one_out(split.train).test) == 1


def test_leaks_are_refused_or_taken_out_of_the_training_rows(tmp_path: Path) -> None:
    document = seed_document()
    document["interactions"][2]["implicit_rating"] = 1.0
    document["held_out_test"][0] |= {"relevant_items": ["i1"], "candidate_items": ["i1", "i4"]}
    path = write(tmp_path / "a.json", document)
    with pytest.raises(InputError, match=r"'i1' is relevant and also .* \(leak\)"):
        d.read_json(path)
    split = d.read_json(path, leaks="drop")
    assert [split.train.item_ids[i] for i in split.train.history(0)] == ["i2"]
    assert len(split.train) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("interactions"), "no list 'interactions'"),
        (lambda x: x.update(interactions=[]), "is empty"),
        (lambda x: x.update(interactions=[3]), "not an object"),
        (lambda x: x.update(held_out_test={}), "not a list"),
        (lambda x: x["interactions"][1].pop("item_id"), r"interactions\[1\] has no item_id"),
        (lambda x: x["interactions"][1].update(timestamp="soon"), "is not a time"),
        (lambda x: x["metadata"].update(num_users=9), "num_users is 9"),
        (lambda x: x["metadata"].update(num_items=1), "num_items is 1"),
        (lambda x: x["held_out_test"][0].update(user_id="u9"), "'u9' has no interactions"),
        (lambda x: x["held_out_test"][0].update(relevant_items=[]), "no relevant item"),
        (lambda x: x["held_out_test"][0].update(relevant_items="i3"), "are lists"),
        (lambda x: x["held_out_test"][0].update(candidate_items=["i4"]), "missing among the candidates"),
    ],
)
def test_a_wrong_document_is_refused_in_words(tmp_path: Path, change, message: str) -> None:
    document = seed_document()
    change(document)
    with pytest.raises(InputError, match=message):
        d.read_json(write(tmp_path / "a.json", document))


def test_what_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "a.json.gz").write_bytes(b"\x1f\x8b\x08")
    for name in ("a.json", "a.json.gz", "none.json"):
        with pytest.raises(InputError, match="cannot be read as JSON"):
            d.read_json(tmp_path / name)
    assert d.problems(None) and d.problems([]) and not d.problems(seed_document())


def test_a_split_survives_the_seed_format(tmp_path: Path) -> None:
    world = d.simulate_interactions(20, 30, length=8)
    split = d.with_candidates(d.leave_one_out(world.data), 5)
    d.write_json(split, tmp_path / "s.json")
    back = d.read_json(tmp_path / "s.json")
    for u in range(20):
        v = back.train.user_map[split.train.user_ids[u]]
        assert [back.train.item_ids[i] for i in back.train.history(v)] == [
            split.train.item_ids[i] for i in split.train.history(u)
        ]
    assert np.allclose(np.sort(back.train.times), np.sort(split.train.times))
    assert d.problems(d.to_document(split)) == []


def test_rows_of_unknown_time_keep_their_order(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user_id": ["a"] * 3, "item_id": ["z", "x", "y"]})
    split = d.leave_one_out(d.from_frame(frame))
    d.write_json(split, tmp_path / "s.json")
    back = d.read_json(tmp_path / "s.json")
    assert [back.train.item_ids[i] for i in back.train.history(0)] == ["z", "x"]


# MovieLens and NCF ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("u.data", "1\t5\t3\t10\n1\t6\t5\t9\n"),
        ("ratings.dat", "1::5::3::10\n1::6::5::9\n"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,5,3.0,10\n1,6,5.0,9\n"),
    ],
)
def test_movielens_formats(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    data = d.read_movielens(tmp_path)
    assert [data.item_ids[i] for i in data.history(0)] == ["6", "5"]
    assert d.read_movielens(tmp_path, min_rating=4).item_ids == ("6",)


def test_ncf_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds none of"):
        d.read_ncf(tmp_path)
    (tmp_path / "ml-1m.train.rating").write_text("0\t0\t5\t1\n")
    (tmp_path / "ml-1m.test.rating").write_text("0\t1\t5\t2\n")
    (tmp_path / "ml-1m.test.negative").write_text("(0,2)\t3\n")
    with pytest.raises(InputError, match="same pairs"):
        d.read_ncf(tmp_path)
    (tmp_path / "ml-1m.test.negative").write_text("(0;2)\tx\n")
    with pytest.raises(InputError, match="not a file of test negatives"):
        d.read_ncf(tmp_path)


@pytest.mark.real
@needs_ml1m
def test_the_ncf_split_of_ml1m() -> None:
    split = d.read_ncf(Path(FOLDER) / "ncf" / "ml-1m")
    assert (split.train.n_users, split.train.n_items, len(split.train), len(split.test)) == (6040, 3706, 994_169, 6040)
    assert (split.train.popularity > 0).sum() == 3704
    assert split.test.candidates is not None and split.test.candidates.shape == (6040, 99)
    known = ~np.isnan(split.train.times)
    assert known.sum() == 484_651
    steps = np.diff(split.train.times)[np.diff(split.train.users) == 0]
    assert (steps[~np.isnan(steps)] >= 0).all()
    last = split.train.times[split.train.indptr[1:] - 1]
    assert (split.test.times >= last)[~np.isnan(last)].all()  # nothing in training is younger than the question
    drawn = d.NegativeSampler(split.train).epoch(1)
    assert len(drawn.items) == 5 * 994_169
    positive = split.train.users.astype(np.int64) * 3706 + split.train.items
    negative = drawn.users[994_169:].astype(np.int64) * 3706 + drawn.items[994_169:]
    assert not np.isin(negative, positive).any()


@pytest.mark.real
@needs_ml100k
def test_movielens_100k() -> None:
    data = d.read_movielens(Path(FOLDER) / "ncf" / "ml-100k")
    assert (data.n_users, data.n_items, len(data)) == (943, 1682, 100_000)
    assert len(d.split_by_time(data).test.items) == np.floor(data.lengths * 0.2).sum()


# Splits -----------------------------------------------------------------------------------------------------------


@given(rows, st.floats(0.05, 0.95))
def test_no_split_loses_or_doubles_a_row(triples: list[tuple[int, int, int]], fraction: float) -> None:
    data = table(triples)
    for split in (
        d.leave_one_out(data),
        d.leave_one_out(data, ties=3),
        d.split_by_time(data, fraction),
        d.split_at_random(data, fraction),
    ):
        asked = np.repeat(split.test.users, np.diff(split.test.indptr))
        both = [*zip(split.train.users, split.train.items), *zip(asked, split.test.items)]
        assert sorted(both) == sorted(zip(data.users, data.items))
        assert len(split.test.times) == len(split.test)


@given(rows, st.integers(0, 4))
def test_what_is_held_out_by_time_is_not_older_than_training(triples: list[tuple[int, int, int]], seed: int) -> None:
    data = table(triples)
    for split in (d.leave_one_out(data), d.leave_one_out(data, ties=seed), d.split_by_time(data, 0.4)):
        for n, u in enumerate(split.test.users):
            own = split.train.times[split.train.indptr[u] : split.train.indptr[u + 1]]
            assert len(own) == 0 or own.max() <= split.test.times[n]


def test_ties_do_not_touch_rows_of_unknown_time() -> None:
    data = d.from_frame(pd.DataFrame({"user_id": ["a"] * 4, "item_id": list("wxyz")}))
    assert {int(d.leave_one_out(data, ties=s).test.items[0]) for s in range(10)} == {3}


def test_fractions_are_checked() -> None:
    data = table([(0, 1, 1)])
    for split in (d.split_by_time, d.split_at_random):
        with pytest.raises(InputError, match="between 0 and 1"):
            split(data, 1.0)


# Negatives --------------------------------------------------------------------------------------------------------


@given(rows, st.integers(0, 2**31), st.integers(0, 3))
def test_a_negative_is_never_a_positive(triples: list[tuple[int, int, int]], seed: int, epoch: int) -> None:
    data = table(triples)
    drawn = d.NegativeSampler(data, ratio=4, seed=seed).epoch(epoch)
    pairs = set(zip(data.users, data.items))
    positive = drawn.labels == 1
    assert list(zip(drawn.users[positive], drawn.items[positive])) == list(zip(data.users, data.items))
    negatives = list(zip(drawn.users[~positive], drawn.items[~positive]))
    assert len(negatives) == 4 * len(data) and not pairs & set(negatives)
    assert all(0 <= i < data.n_items for _, i in negatives)
    assert np.array_equal(np.bincount(drawn.users[~positive], minlength=data.n_users), 4 * data.lengths)


@given(rows)
def test_unmet_items_are_numbered_without_gap(triples: list[tuple[int, int, int]]) -> None:
    data = table(triples)
    unmet = d.UnmetItems(data)
    for u in range(data.n_users):
        n = int(unmet.counts[u])
        assert unmet.pick(np.full(n, u), np.arange(n)).tolist() == sorted(set(range(9)) - set(data.history(u)))


def test_epochs_are_fresh_reproducible_and_cached_on_request() -> None:
    data = d.simulate_interactions(30, 50, length=10).data
    fresh, cached = d.NegativeSampler(data), d.NegativeSampler(data, cached=True)
    assert not np.array_equal(fresh.epoch(0).items, fresh.epoch(1).items)
    assert np.array_equal(fresh.epoch(1).items, d.NegativeSampler(data).epoch(1).items)
    assert cached.epoch(0) is cached.epoch(7)
    assert not np.array_equal(fresh.epoch(0).items, d.NegativeSampler(data, seed=1).epoch(0).items)


def test_negatives_are_uniform() -> None:
    data = table([(0, 1, 1), (0, 4, 2)])
    items = d.NegativeSampler(data, ratio=20_000).epoch().items[2:]
    counts = np.bincount(items, minlength=9)
    assert counts[[1, 4]].tolist() == [0, 0]
    free = counts[[0, 2, 3, 5, 6, 7, 8]]
    assert abs(free / 40_000 - 1 / 7).max() < 5 * np.sqrt(1 / 7 * 6 / 7 / 40_000)


def test_a_sampler_that_cannot_draw_says_so() -> None:
    data = table([(0, i, i) for i in range(8)], n_items=8)
    with pytest.raises(InputError, match="met every item"):
        d.NegativeSampler(data)
    with pytest.raises(InputError, match="at least 0"):
        d.NegativeSampler(data, ratio=-1)
    assert len(d.NegativeSampler(data, ratio=0).epoch().items) == 8


@given(rows, st.integers(0, 5))
def test_candidates_are_distinct_and_unmet(triples: list[tuple[int, int, int]], seed: int) -> None:
    split = d.leave_one_out(table(triples, n_items=12))
    split = d.with_candidates(split, 4, seed)
    assert split.test.candidates is not None and split.test.candidates.shape == (len(split.test), 4)
    for u, item, row in zip(split.test.users, split.test.items, split.test.candidates, strict=True):
        assert len(set(row)) == 4 and not set(row) & {*split.train.history(u), item}


def test_too_many_candidates_are_refused() -> None:
    with pytest.raises(InputError, match="5 candidates"):
        d.with_candidates(d.leave_one_out(table([(0, i, i) for i in range(5)])), 5)


# The simulator ----------------------------------------------------------------------------------------------------


def test_no_scorer_beats_the_optimum_and_the_optimum_is_met() -> None:
    """Expected hit rate of the oracle's list = what is measured, within 4 standard errors, for each of three worlds."""
    for chain, seed in ((0.0, 1), (0.5, 2), (0.9, 3)):
        world = d.simulate_interactions(600, 60, length=20, chain=chain, seed=seed)
        split = d.leave_one_out(world.data)
        p = world.oracle(d.take_users(split.train, split.test.users), split.test.users, split.test.times)
        top = np.argsort(-p, axis=1)[:, :5]
        expected = np.take_along_axis(p, top, 1).sum(axis=1).mean()
        hit = (top == split.test.items[:, None]).any(axis=1).mean()
        assert abs(hit - expected) < 4 * np.sqrt(expected * (1 - expected) / 600)
        assert np.allclose(p.sum(axis=1), 1) and (p >= 0).all()


def test_the_oracle_of_an_empty_history_is_taste() -> None:
    world = d.simulate_interactions(5, 20, length=4)
    nobody = d.take_rows(world.data, np.zeros(len(world.data), bool))
    p = world.oracle(nobody, np.arange(5), np.full(5, 1e10))
    assert np.allclose(p, world.taste)


def test_the_simulator_is_reproducible_and_refuses_the_impossible() -> None:
    a, b = (d.simulate_interactions(10, 20, length=5, seed=4) for _ in range(2))
    assert d.fingerprint(a.data) == d.fingerprint(b.data)
    for bad in ({"length": 20}, {"length": 0}, {"groups": 21}, {"groups": 0}):
        with pytest.raises(InputError, match="20 items allow"):
            d.simulate_interactions(10, 20, **{"length": 5, **bad})


# People -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("write to a.b+c@mail.example.co.uk now", "write to [email] now"),
        ("see https://example.org/x?y=1 and www.example.org", "see [link] and [link]"),
        ("from 192.168.0.1, card 4111 1111 1111 1111", "from [ip], card [number]"),
        ("call (020) 7946-0958", "call [number]"),
        ("line\x00one\r\n\ttwo\u202e", "line one two"),
        ("caf\u0065\u0301", "café"),
        ("born 1984, rated 4.5 of 5", "born 1984, rated 4.5 of 5"),
    ],
)
def test_text_is_cleaned(text: str, clean: str) -> None:
    assert d.sanitise_text(text) == clean


@given(st.text(max_size=300), st.integers(0, 100))
def test_cleaning_leaves_no_control_characters_and_keeps_the_limit(text: str, limit: int) -> None:
    out = d.sanitise_text(text, limit)
    assert len(out) <= limit and "\n" not in out and "\x00" not in out and "  " not in out


def test_pseudonyms() -> None:
    key = bytes(range(16))
    assert d.pseudonym(["a", "b", "a"], key)[0] == d.pseudonym(["a"], key)[0] != d.pseudonym(["a"], key[::-1])[0]
    with pytest.raises(InputError, match="16 random bytes"):
        d.pseudonym(["a"], b"short")


def test_fingerprint_sees_every_part() -> None:
    data = table([(0, 1, 1), (1, 2, 1)])
    changed = [
        replace(data, items=data.items[::-1]),
        replace(data, times=data.times + 1),
        replace(data, weights=data.weights * 2),
        replace(data, user_ids=("x", "y")),
        replace(data, item_ids=data.item_ids[::-1]),
    ]
    assert len({d.fingerprint(x) for x in (data, *changed)}) == 6
