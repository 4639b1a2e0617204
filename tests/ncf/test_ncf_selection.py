"""ncf.selection and `nbmf ncf tune`: folds that partition, scores beside oracle and chance, searches that stop, continue and refuse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.cli import main
from nbmf_research.core import InputError
from nbmf_research.ncf import commands as c
from nbmf_research.ncf import data as d
from nbmf_research.ncf import evaluate as e
from nbmf_research.ncf import selection as s
from nbmf_research.ncf.linear import EASE, NextItem
from nbmf_research.ncf.models import hold_out
from nbmf_research.ncf.recommender import Recommender, register_recommender
from nbmf_research.training import Choice, Range

WORLD = d.simulate_interactions(240, 40, length=10, chain=0.0, seed=3)
DATA = WORLD.data


@register_recommender("test-dial")
@dataclass(eq=False)
class Dial(Recommender):
    """The optimum, with noise that grows with the distance of `turn` from 3; remembers what it was fitted with, and stops where it is told to."""

    turn: float = 8.0
    kind: str = "a"
    fits: ClassVar[list[tuple[float, str]]] = []
    stop: ClassVar[int] = 10**9

    def _fit(self, data: d.Interactions) -> dict[str, np.ndarray]:
        if len(Dial.fits) == Dial.stop:
            raise KeyboardInterrupt
        Dial.fits.append((self.turn, self.kind))
        if self.turn < 0:
            raise InputError(f"turn {self.turn} is negative")
        return {}

    def _score(self, histories: d.Interactions, now: np.ndarray) -> np.ndarray:
        users = [DATA.user_map[name] for name in histories.user_ids]
        p = WORLD.oracle(histories, users, now)
        # equal probabilities in random order: ties count against a scorer
        noise = np.random.default_rng(0).random(DATA.n_items)
        return (p + (1e-6 + abs(self.turn - 3) / 4) * noise).astype(np.float32)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dial, "fits", [])
    monkeypatch.setattr(Dial, "stop", 10**9)


def find(model: Recommender | str, space: dict, trials: int, **options: object) -> s.Search:
    return s.search(model, space, DATA, trials, progress=False, questions=120, **options)  # type: ignore[arg-type]


# Folds ------------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 7), st.sampled_from(["users", "rows"]), st.integers(0, 99), st.floats(0.2, 1.0))
def test_folds_partition_and_nothing_held_out_is_trained_on(folds: int, by: s.By, seed: int, share: float) -> None:
    data = d.take_rows(DATA, np.random.default_rng(seed).random(len(DATA)) < share)
    number = s.fold_numbers(data, folds, by, seed)
    counts = np.bincount(number, minlength=folds)
    assert (
        len(counts) == folds and np.ptp(counts) <= 1 and len(number) == (data.n_users if by == "users" else len(data))
    )
    pairs = {(data.user_ids[u], int(i)) for u, i in zip(data.users, data.items)}
    length = dict(zip(data.user_ids, data.lengths))
    asked: list[tuple[str, int]] = []
    people: list[str] = []
    for fold in s.make_folds(data, folds, by, 5, seed):
        test, given_ = fold.split.test, fold.split.train
        here = [(given_.user_ids[u], int(i)) for u, i in zip(np.repeat(test.users, np.diff(test.indptr)), test.items)]
        trained = {(fold.train.user_ids[u], int(i)) for u, i in zip(fold.train.users, fold.train.items)}
        assert not trained & set(here) and trained <= pairs
        if by == "users":
            assert not {u for u, _ in trained} & set(given_.user_ids) and len(here) == sum(
                length[u] > 1 for u in given_.user_ids
            )
        else:
            assert fold.train is given_ and len(trained) + len(here) == len(data)
            spread = np.bincount(test.users, minlength=data.n_users), np.diff(test.indptr)
            assert (spread[1] <= -(-data.lengths[test.users] // folds)).all()
        asked += here
        people += given_.user_ids
    assert len(asked) == len(set(asked)) and set(asked) <= pairs
    assert sorted(people) == sorted(data.user_ids) if by == "users" else sorted(asked) == sorted(pairs)


@pytest.mark.parametrize("by", ["users", "rows"])
def test_the_oracle_is_best_and_random_scores_are_chance(by: s.By) -> None:
    frames = {
        name: s.cross_validate(make, DATA, by=by)
        for name, make in (("best", lambda: Dial(3.0)), ("ease", lambda: EASE(l2=20)))
    }
    assert frames["best"].fold.tolist() == np.repeat(np.arange(5), 3).tolist()
    best, ease = (s.fold_means(f) for f in frames.values())
    assert best.full_ndcg["model"] > ease.full_ndcg["model"] > ease.full_ndcg["popularity"] > ease.full_ndcg["random"]
    assert best.loc["popularity"].equals(ease.loc["popularity"])
    unmet = DATA.n_items - (9 if by == "users" else 8)
    n = ease.n["random"] * 5 * (1 if by == "users" else 2)
    chance = 10 / unmet
    assert abs(ease.full_recall["random"] - chance) < 4 * np.sqrt(chance * (1 - chance) / n)
    assert np.allclose(best.full_hr_se["model"], frames["best"].query("scorer == 'model'").full_hr.std() / np.sqrt(5))


def test_a_fold_by_users_is_the_split_made_by_hand() -> None:
    number = s.fold_numbers(DATA, 4, "users", 7)
    mine, others = np.flatnonzero(number == 2), np.flatnonzero(number != 2)
    model = EASE(l2=40).fit(d.take_users(DATA, others))
    split = d.with_candidates(d.leave_one_out(d.take_users(DATA, mine)), 20, 7)
    by_hand = e.rank(lambda users, now: model.score(d.take_users(split.train, users), now), split)
    frame = s.cross_validate(lambda: EASE(l2=40), DATA, 4, candidates=20, seed=7)
    row = frame[(frame.fold == 2) & (frame.scorer == "model")].iloc[0]
    assert row.n == len(mine) == 60
    for name, r in by_hand.items():
        assert row[f"{name}_hr"] == r.hit().mean() and row[f"{name}_ndcg"] == r.ndcg().mean()


def test_tables_that_cannot_be_divided() -> None:
    for folds, by in ((1, "users"), (241, "users"), (5, "items")):
        with pytest.raises(InputError, match=r"folds"):
            s.cross_validate(EASE, DATA, folds, by)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nothing to evaluate"):
        s.cross_validate(EASE, d.take_rows(DATA, np.r_[True, DATA.users[1:] != DATA.users[:-1]]))


# Spaces -----------------------------------------------------------------------------------------------------------


def test_spaces_from_yaml() -> None:
    lists = {
        "a": [1, 9],
        "b": [0.1, 9, "log"],
        "c": ["x", "y"],
        "d": [True, False],
        "e": [1, 2, 3],
        "f": {"values": [1, 9]},
    }
    made = s.read_space(lists)
    assert made == {
        "a": Range(1, 9),
        "b": Range(0.1, 9, log=True),
        "c": Choice(("x", "y")),
        "d": Choice((True, False)),
        "e": Choice((1, 2, 3)),
        "f": Choice((1, 9)),
    }


@pytest.mark.parametrize(
    "entry", [5, [], {}, {"low": 1}, [1, "log"], ["a", "b", "log"], ["1e-4", 1.0, "log"], [[1], [2]], [1, None]]
)
def test_entries_that_are_no_space_name_their_setting(entry: object) -> None:
    with pytest.raises(InputError, match=r"search\.ridge"):
        s.read_space({"ridge": entry})


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({}, "empty"),
        ({"tern": Range(0, 1)}, "'tern'.*did you mean 'turn'"),
        ({"turn": Range(2, 2)}, "turn: low"),
        ({"turn": Range(0, 2, log=True)}, "turn: low"),
        ({"turn": Choice(())}, "turn: a choice"),
        ({"turn": (0, 1)}, "turn: a space is made of"),
    ],
)
def test_bad_spaces_are_refused_before_anything_is_fitted(space: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        find(Dial(), space, 3)
    assert Dial.fits == []


# Search -----------------------------------------------------------------------------------------------------------


def test_the_planted_optimum_is_found_and_a_silly_ridge_is_not_chosen() -> None:
    found = find(Dial(), {"turn": Range(0.0, 10.0)}, 30)
    assert abs(found.best.turn - 3) < 0.7 and found.settings == {"turn": found.best.turn} and found.best.data is None
    assert found.trials.turn[0] == 8 and found.quality == found.trials.quality.max() > found.trials.quality[0]
    held = hold_out(DATA, 0, 120)
    assert found.quality == s.quality(e.rank(found.best.fit(held.train).score, held))
    assert find("ease", {"l2": Choice((1e-6, 1e-3, 50.0))}, 8).settings == {"l2": 50.0}


def test_a_continued_search_adds_trials_and_repeats_none(tmp_path: Path) -> None:
    space, file = {"turn": Range(0.0, 10.0)}, tmp_path / "deep" / "s.db"
    first = find(Dial(), space, 4, storage=file)
    again = find(Dial(), space, 4, storage=file)
    assert again.trials.equals(first.trials) and len(Dial.fits) == 4
    more = find(Dial(), space, 9, storage=file)
    assert more.trials.head(4).equals(first.trials) and more.trials.turn.nunique() == len(more.trials) == 9
    assert len(Dial.fits) == len(set(Dial.fits)) == 9
    assert len(find(Dial(), {"turn": Range(0.0, 20.0)}, 10, storage=file).trials) == 10, "a range may be widened"
    with pytest.raises(InputError, match="another model"):
        find(EASE(), {"l2": Range(1, 2)}, 9, storage=file)
    with pytest.raises(InputError, match="hold-out"):
        find(Dial(), space, 9, storage=file, seed=1)
    assert find(Dial(), {"turn": Range(0.0, 20.0)}, 30, storage=file, seconds=1e-9).trials.trial.max() == 9
    file.write_bytes(b"no database" * 99)
    with pytest.raises(InputError, match="cannot be used"):
        find(Dial(), space, 9, storage=file)


def test_the_present_settings_are_tried_first_among_whole_numbers_too() -> None:
    assert find(Dial(turn=8.0), {"turn": Range(1, 20)}, 2).trials.turn[0] == 8
    assert find(Dial(turn=8.5), {"turn": Range(1, 20)}, 1).trials.turn[0] != 8.5, "not in the space"
    with pytest.raises(InputError, match="window is a whole number"):
        find(NextItem(), {"window": Range(5.0, 15.0)}, 1)


def test_the_answer_lies_in_a_space_that_was_narrowed(tmp_path: Path) -> None:
    file = tmp_path / "a b?.db"
    assert find(Dial(turn=3.0), {"turn": Range(0.0, 20.0)}, 2, storage=file).settings["turn"] == 3
    with pytest.raises(InputError, match="outside the space"):
        find(Dial(turn=3.0), {"turn": Range(30.0, 40.0)}, 2, storage=file)
    assert find(Dial(turn=3.0), {"turn": Range(30.0, 40.0)}, 3, storage=file).settings["turn"] >= 30
    assert file.is_file()
    with pytest.raises(InputError, match="cannot be used as the storage"):
        find(Dial(), {"turn": Range(0.0, 20.0)}, 1, storage=file / "below.db")


def test_settings_that_come_twice_are_fitted_once() -> None:
    found = find(Dial(turn=3.0), {"kind": Choice(("a", "b"))}, 12)
    assert sorted(Dial.fits) == [(3.0, "a"), (3.0, "b")] and sorted(found.trials.kind) == ["a", "b"]
    Dial.fits.clear()
    whole = find(Dial(), {"turn": Range(2, 5)}, 25)
    assert whole.settings == {"turn": 3} and len(Dial.fits) == len(set(Dial.fits)) == len(whole.trials) <= 4


def test_an_interrupt_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space, file = {"turn": Range(0.0, 10.0)}, tmp_path / "s.db"
    monkeypatch.setattr(Dial, "stop", 0)
    with pytest.raises(KeyboardInterrupt):
        find(Dial(), space, 6, storage=file)
    monkeypatch.setattr(Dial, "stop", 3)
    cut = find(Dial(), space, 6, storage=file)
    assert len(cut.trials) == 3 == len(Dial.fits)
    monkeypatch.setattr(Dial, "stop", 10**9)
    whole = find(Dial(), space, 6, storage=file)
    assert whole.trials.head(3).equals(cut.trials) and len(whole.trials) == 6 == len(set(Dial.fits))


def test_settings_that_fail_are_pruned_and_if_all_fail_it_is_said() -> None:
    found = find(Dial(), {"turn": Range(-5.0, 8.0)}, 15)
    pruned = found.trials.state == "pruned"
    assert pruned.any() and (found.trials.turn[pruned] < 0).all() and (found.trials.turn[~pruned] >= 0).all()
    assert found.trials.reason[pruned].str.contains("is negative").all() and found.trials.quality[pruned].isna().all()
    with pytest.raises(InputError, match=r"none of 3 trials could be fitted: turn .* is negative"):
        find(Dial(), {"turn": Range(-5.0, -1.0)}, 3)
    for wrong in ({"trials": 0}, {"trials": 1, "questions": 0}):
        with pytest.raises(InputError, match="needs trials and questions"):
            s.search(Dial(), {"turn": Range(0.0, 1.0)}, DATA, **wrong)
    with pytest.raises(InputError, match="no recommender is called"):
        find("dail", {"turn": Range(0.0, 1.0)}, 1)


# Command line -----------------------------------------------------------------------------------------------------


def test_tune_then_train_from_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "data: synthetic\nmodel: ease\nsettings: {l2: 7}\nsearch: {l2: [1.0, 5000.0, log]}\nfolder: runs/t\n"
    Path("c.yaml").write_text(text)
    line = ["ncf", "tune", "c.yaml", "--seed", "1", "--storage", "s.db", "--target=best.yaml", "--trials"]
    assert main([*line, "3"]) == 0 and main([*line, "6"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[-1] == "best.yaml" and len(table) == (1 + 3 + 1) + (1 + 5 + 1) and "l2" in table[0]
    config = c.read_ncf_config("best.yaml")
    assert config == c.NCFConfig("synthetic", "ease", config.settings, "runs/t", seed=1)
    assert f"{config.settings['l2']:.4g}" == table[6].split()[1] and sorted(p.name for p in tmp_path.iterdir()) == [
        "best.yaml",
        "c.yaml",
        "s.db",
    ]
    assert main(["ncf", "train", "best.yaml"]) == 0 and main(["ncf", "recommend", "runs/t", "--user", "user_3"]) == 0
    capsys.readouterr()
    Path("best.yaml").write_text("model: ease\n")
    for words, says in (
        (["best.yaml"], "no section search"),
        (["c.yaml", "--search.l2", "[a, b, log]"], "search.l2"),
        (["c.yaml", "--search.l3", "[1, 2]"], "'l3'"),
        (["c.yaml", "--trials", "0"], "needs trials"),
    ):
        assert main(["ncf", "tune", *words]) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1
    assert Path("best.yaml").read_text() == "model: ease\n"
