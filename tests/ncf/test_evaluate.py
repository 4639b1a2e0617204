"""ncf.evaluate: ranks, measures, protocols, flaws, cheaters, strata."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from nbmf_research.core import InputError
from nbmf_research.ncf import data as d
from nbmf_research.ncf import evaluate as e

FOLDER = os.environ.get("NBMF_DATA_DIR", "")
needs_ml1m = pytest.mark.skipif(
    not (Path(FOLDER) / "ncf" / "ml-1m").is_dir() or not FOLDER, reason="needs ncf/ml-1m under NBMF_DATA_DIR"
)

WORLD = d.simulate_interactions(120, 40, length=12, seed=5)
SPLIT = d.with_candidates(d.leave_one_out(WORLD.data), 20)
SEVERAL = d.split_by_time(WORLD.data, 0.25)


def fixed(scores: np.ndarray) -> e.Scorer:
    return lambda users, now: scores[users]


def slow_rank(s: np.ndarray, relevant: list[int], competitors: set[int]) -> list[int]:
    """Ranks by the definition, for one user."""
    order = sorted(range(len(relevant)), key=lambda j: -s[relevant[j]])
    out = [0] * len(relevant)
    for place, j in enumerate(order):
        out[j] = 1 + place + sum(s[c] >= s[relevant[j]] for c in competitors - set(relevant))
    return out


@settings(deadline=None)  # the first example compiles
@given(st.integers(0, 2**31), st.integers(1, 6), st.sampled_from([SPLIT, SEVERAL]))
def test_ranks_agree_with_the_definition(seed: int, levels: int, split: d.Split) -> None:
    """Few distinct scores, so that ties abound."""
    s = np.random.default_rng(seed).integers(0, levels, (120, 40)).astype(float)
    got = e.rank(fixed(s), split, batch=50)
    for n, u in enumerate(split.test.users):
        at = slice(split.test.indptr[n], split.test.indptr[n + 1])
        relevant = split.test.items[at].tolist()
        unmet = set(range(40)) - set(split.train.history(u).tolist())
        assert sorted(got["full"].ranks[at]) == sorted(slow_rank(s[u], relevant, unmet))
        if split.test.candidates is not None:
            listed = set(split.test.candidates[n].tolist())
            assert got["sampled"].ranks[at].tolist() == slow_rank(s[u], relevant, listed)
    assert all(e.violations(r, k) == [] for r in got.values() for k in (1, 3, 10))


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 20))
def test_measures_agree_with_scikit_learn_and_with_counting(seed: int, k: int) -> None:
    s = np.random.default_rng(seed).random((120, 40))
    r = e.rank(fixed(s), SEVERAL)["full"]
    for n in (0, 7, 119):
        u = SEVERAL.test.users[n]
        relevant = SEVERAL.test.items[SEVERAL.test.indptr[n] : SEVERAL.test.indptr[n + 1]]
        unmet = np.setdiff1d(np.arange(40), SEVERAL.train.history(u))
        truth = np.isin(unmet, relevant)
        ordered = truth[np.argsort(-s[u][unmet])]
        assert r.ndcg(k)[n] == pytest.approx(ndcg_score([truth], [s[u][unmet]], k=k))
        assert r.recall(k)[n] == pytest.approx(ordered[:k].sum() / truth.sum())
        assert r.hit(k)[n] == ordered[:k].any()
        assert r.reciprocal_rank()[n] == pytest.approx(1 / (1 + ordered.argmax()))


def test_lists_hold_no_training_item_and_are_filled_with_minus_one() -> None:
    s = np.random.default_rng(0).random((120, 40))
    r = e.rank(fixed(s), SPLIT, k=35)["full"]
    assert r.top is not None and r.top.shape == (120, 35)
    for u, row in enumerate(r.top):
        shown = row[row >= 0]
        assert len(shown) == 40 - 11 and (row[len(shown) :] == -1).all()
        assert not set(shown) & set(SPLIT.train.history(u)) and (np.diff(s[u][shown]) < 0).all()
    assert e.coverage(r, 40) == 1 and e.coverage(r, 80) == 0.5


@given(st.integers(1, 8))
def test_best_items_break_ties_by_number(k: int) -> None:
    got = e.best_items(np.array([[1.0, 2.0, 1.0, np.nan, 2.0]]), k)[0].tolist()
    assert got == ([1, 4, 0, 2] + [-1] * 8)[:k] if k != 3 else set(got[:2]) == {1, 4}


def test_the_batch_size_changes_nothing() -> None:
    s = np.random.default_rng(1).random((120, 40))
    a, b = e.rank(fixed(s), SPLIT, batch=7), e.rank(fixed(s), SPLIT, batch=1000)
    assert all(np.array_equal(a[name].ranks, b[name].ranks) for name in a)


def test_a_scorer_cannot_cheat_with_what_it_returns() -> None:
    ones = np.ones((120, 40))
    assert e.rank(fixed(ones), SPLIT)["full"].hit(10).sum() == 0
    assert e.rank(fixed(-np.inf * ones), SPLIT)["full"].hit(10).sum() == 0
    assert e.rank(fixed(np.inf * ones), SPLIT)["full"].hit(10).sum() == 0
    for wrong, message in ((np.nan * ones, "NaN"), (ones[:, :3], "one column for each item")):
        with pytest.raises(InputError, match=message):
            e.rank(fixed(wrong), SPLIT)
    given_away = ones.copy()
    e.rank(lambda users, now: given_away[users], SPLIT)
    assert (given_away == 1).all()  # the scorer's array is not written to


def test_training_items_are_masked() -> None:
    """A scorer that gives the highest scores to the training items loses nothing by it."""
    s = np.random.default_rng(2).random((120, 40))
    loud = s + 10 * SPLIT.train.matrix().toarray()
    a, b = e.rank(fixed(s), SPLIT)["full"], e.rank(fixed(loud), SPLIT)["full"]
    assert np.array_equal(a.ranks, b.ranks) and np.array_equal(a.top, b.top)


def test_a_leaking_or_empty_split_is_refused() -> None:
    s = np.zeros((120, 40))
    with pytest.raises(InputError, match="gives the answer away"):
        e.rank(fixed(s), replace(SPLIT, train=WORLD.data))
    empty = replace(SPLIT.test, users=SPLIT.test.users[:0], indptr=SPLIT.test.indptr[:1], items=SPLIT.test.items[:0])
    with pytest.raises(InputError, match="nothing to evaluate"):
        e.rank(fixed(s), replace(SPLIT, test=empty))


def test_a_relevant_item_among_its_own_candidates_counts_once() -> None:
    s = np.random.default_rng(3).random((120, 40))
    flawed = SPLIT.test.candidates.copy()
    flawed[:, 0] = SPLIT.test.items
    clean = SPLIT.test.candidates.copy()
    clean[:, 0] = -1
    ranks = [
        e.rank(fixed(s), replace(SPLIT, test=replace(SPLIT.test, candidates=c)))["sampled"].ranks
        for c in (flawed, clean)
    ]
    assert np.array_equal(*ranks)


def test_audit_counts_each_flaw() -> None:
    c = SPLIT.test.candidates.copy()
    c[:3, 0] = SPLIT.test.items[:3]
    c[4, 1] = SPLIT.train.history(4)[0]
    c[5, 2] = c[5, 3]
    train = d.take_rows(SPLIT.train, SPLIT.train.users != 9)
    times = SPLIT.test.times.copy()
    times[0] = train.times[train.indptr[1] - 1]
    got = e.audit(d.Split(train, replace(SPLIT.test, candidates=c, times=times)))
    assert got == {
        "relevant_among_candidates": 3,
        "training_items_among_candidates": 1,
        "repeated_candidates": 1,
        "unknown_items": int((train.popularity[SPLIT.test.items] == 0).sum()),
        "empty_histories": 1,
        "equal_times": 1,
        "unknown_gaps": 1,
    }


def test_cheaters_score_what_theory_says() -> None:
    world = d.simulate_interactions(2000, 150, length=10, seed=8)
    split = d.with_candidates(d.leave_one_out(world.data))
    rows = {name: e.rank(scorer, split) for name, scorer in e.cheaters(split).items()}
    p = e.chance_hit(99)
    assert p == 0.1 and e.chance_hit(3) == 1
    assert abs(rows["random"]["sampled"].hit().mean() - p) < 4 * np.sqrt(p * (1 - p) / 2000)
    q = e.chance_hit(150 - 9 - 1)
    assert abs(rows["random"]["full"].hit().mean() - q) < 4 * np.sqrt(q * (1 - q) / 2000)
    assert rows["all relevant"]["full"].hit().sum() == rows["all relevant"]["sampled"].hit().sum() == 0
    again = e.rank(e.cheaters(split)["random"], split, batch=64)
    assert np.array_equal(again["full"].ranks, rows["random"]["full"].ranks)
    assert e.popularity_bias(rows["popularity"]["full"], split) > 0.1
    assert abs(e.popularity_bias(rows["random"]["full"], split)) < 0.4
    row = e.summary(rows["popularity"], split)
    assert row["n"] == 2000 and row["full_hr_lo"] <= row["full_hr"] <= row["full_hr_hi"]
    assert row["full_recall"] == row["full_hr"]  # one relevant item each


def test_gap_strata() -> None:
    gaps = np.array([0.0, 0.5, 1, 59, 60, 3599, 3600, 86_399, 86_400, 1e9, np.nan])
    frame = pd.DataFrame({"user_id": range(11), "item_id": ["a"] * 11, "timestamp": [100.0] * 11})
    train = d.from_frame(frame, item_ids=["a", "b"])
    test = d.HeldOut(np.arange(11), np.arange(12), np.ones(11, np.int32), 100 + gaps)
    names = e.gap_strata(d.Split(train, test)).tolist()
    assert names == ["same second"] * 2 + ["under a minute"] * 2 + ["under an hour"] * 2 + ["under a day"] * 2 + [
        "a day or more"
    ] * 2 + ["unknown"]


def test_length_strata_and_the_stratified_table() -> None:
    labels = e.length_strata(SEVERAL, (5, 9, 20))
    assert set(labels) == {"9-19"}
    assert set(e.length_strata(SEVERAL, (5,))) == {"5+"}
    s = np.random.default_rng(4).random((120, 40))
    ranks = e.rank(fixed(s), SEVERAL)["full"]
    half = np.where(np.arange(120) < 60, "a", "b")
    table = e.stratified({"m": ranks}, half)
    assert table.n.tolist() == [60, 60]
    assert table.hr.mean() == pytest.approx(ranks.hit().mean())
    assert ((table.hr_lo <= table.hr) & (table.hr <= table.hr_hi)).all()


def test_compare_is_paired_and_refuses_what_is_not_alike() -> None:
    rng = np.random.default_rng(5)
    s = rng.random((120, 40))
    a, b = (e.rank(fixed(x), SPLIT) for x in (s, s + 0.001 * rng.random((120, 40))))
    close = e.compare(a["full"], b["full"])
    assert close.hi - close.lo < 0.05 and close.n == 120
    for metric in ("hr", "ndcg", "mrr"):
        assert e.compare(a["full"], a["full"], metric).value == 0
    with pytest.raises(InputError, match="same questions"):
        e.compare(a["full"], a["sampled"])


def test_sampled_ranks_have_no_lists() -> None:
    r = e.rank(fixed(np.zeros((120, 40))), SPLIT)["sampled"]
    with pytest.raises(InputError, match="full ranking has lists"):
        e.coverage(r, 40)


def test_impossible_numbers_are_named() -> None:
    r = e.rank(fixed(np.random.default_rng(6).random((120, 40))), SEVERAL)["full"]
    assert e.violations(r) == []
    assert e.violations(replace(r, ranks=r.ranks - 5)) == ["ranks begin at 1"]
    assert "relevant items of a question have different ranks" in e.violations(replace(r, ranks=np.ones_like(r.ranks)))
    assert "a list has no item twice" in e.violations(replace(r, top=np.zeros_like(r.top)))


@pytest.mark.real
@needs_ml1m
def test_ml1m_flaws_and_popularity_as_published() -> None:
    """TopPopular 0.4533 / 0.2542 in Ferrari Dacrema et al. (2021), table 54; ties against the model cost two in the last digit."""
    split = d.read_ncf(Path(FOLDER) / "ncf" / "ml-1m")
    flaws = e.audit(split)
    assert flaws["relevant_among_candidates"] == 156 and flaws["unknown_items"] == 2
    assert flaws["training_items_among_candidates"] == flaws["repeated_candidates"] == flaws["empty_histories"] == 0
    scorer = e.cheaters(split)["popularity"]
    e.rank(scorer, replace(split, test=replace(split.test)))
    start = time.process_time()
    r = e.rank(scorer, split)
    assert time.process_time() - start < 20  # seconds for 22 million scores; 2 to 3 on a quiet core
    assert r["sampled"].hit().mean() == pytest.approx(0.4533, abs=0.001)
    assert r["sampled"].ndcg().mean() == pytest.approx(0.2542, abs=0.001)
    assert all(e.violations(x) == [] for x in r.values())
