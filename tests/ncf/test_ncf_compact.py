"""ncf.compact, and new items: bounds of rounding, exact zeros, checkpoints, tampering; what content can and cannot tell about items that nobody met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from nbmf_research.core import InputError, StreamError
from nbmf_research.ncf import compact as c
from nbmf_research.ncf import data as d
from nbmf_research.ncf import evaluate as e
from nbmf_research.ncf import linear as m
from nbmf_research.ncf import models as n
from nbmf_research.ncf import recommender as r
from nbmf_research.ncf import service as s

WORLD = d.simulate_interactions(400, 150, length=20, chain=0.3, seed=3)
SPLIT = d.leave_one_out(WORLD.data)
TRAIN = SPLIT.train
ALL = np.arange(TRAIN.n_users)
NETWORK = {"dim": 12, "epochs": 2, "users": 64, "patience": 0}
TOWER = {**NETWORK, "hidden": (16, 8), "items": 0}
MODELS: dict[str, r.Recommender] = {
    "ease": m.EASE(l2=100),
    "ials": m.IALS(dim=24, epochs=3, ridge=0.02),
    "itemknn": m.ItemKNN(k=20),
    "next-item": m.NextItem(window=3, ahead=1),
    "gmf": n.GMF(**NETWORK),
    "mlp": n.MLP(**TOWER),
    "neumf": n.NeuMF(**TOWER),
    "blend": m.Blend((m.IALS(dim=16, epochs=2, ridge=0.02), m.EASE(l2=100), m.NextItem(window=2)), (1.0, 1.0, 0.5)),
}


@pytest.fixture(scope="module")
def fitted() -> dict[str, r.Recommender]:
    return {name: model.fit(TRAIN) for name, model in MODELS.items()}


numbers = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=70),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    fill=st.just(0.0),
)


@settings(max_examples=20, deadline=None)
@given(numbers, st.sampled_from([4, 8]))
def test_no_number_moves_by_more_than_half_a_step(x: np.ndarray, bits: int) -> None:
    codes, steps = c.quantise(x, bits)
    back = c.dequantise(codes, steps, x.size)
    each = np.repeat(steps, c.GROUP)[: x.size].astype(np.float64)
    assert (np.abs(back - x.ravel().astype(np.float64)) <= 0.5 * each * (1 + 1e-4) + 1e-43).all()
    assert (back[x.ravel() == 0] == 0).all() and codes.nbytes == -(-x.size * bits // 8)
    assert np.array_equal(c.quantise(-x, bits)[1], steps)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3000), st.floats(0.001, 1.0), st.sampled_from([4, 8, 32]), st.integers(0, 9))
def test_pruning_keeps_the_largest_and_nothing_else(size: int, keep: float, bits: int, seed: int) -> None:
    x = np.random.default_rng(seed).permutation(np.arange(1, size + 1)).astype(np.float32)
    x[::2] *= -1
    packed = c.pack({"x": x}, bits, keep)
    assert c._fault({k.removeprefix("x#"): a for k, a in packed.items()}) == ""
    back = c.unpack(packed)["x"]
    kept = max(round(keep * size), 1)
    large = np.abs(x) > size - kept
    assert large.sum() == kept and (back[~large] == 0).all() and back.shape == x.shape
    if bits == 32:
        assert np.array_equal(back[large], x[large])
    if bits == 8:
        assert (np.abs(back[large] - x[large]) <= size / 254 + 1e-3).all()


def test_places_of_few_numbers_cost_a_byte_each() -> None:
    x = np.zeros(100_000, np.float32)
    at = [0, 1, 255, 256, 511, 1000, 60_000, 99_000]
    x[at] = 1.0
    packed = c.pack({"x": x}, 8, len(at) / 100_000)
    assert packed["x#gaps"].dtype == np.uint8 and np.array_equal(np.flatnonzero(c.unpack(packed)["x"]), at)
    assert sum(a.nbytes for a in packed.values()) < 450  # one byte each, and one for each 255 that are skipped
    assert "x#mask" in c.pack({"x": x}, 8, 0.5)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_kind_of_model(name: str, fitted: dict[str, r.Recommender], tmp_path: Path) -> None:
    """Scores are those of the base with rounded arrays, before and after a checkpoint; 8 bits keep the ranking."""
    model = fitted[name]
    before = model.score(ALL)
    small = c.compact(model)
    assert small.uses_order == model.uses_order and np.array_equal(model.score(ALL), before)
    after = small.score(ALL)
    opened = small.opened().arrays
    assert opened.keys() == model.arrays.keys()
    assert all(opened[k].shape == a.shape and opened[k].dtype == a.dtype for k, a in model.arrays.items())
    assert all(np.array_equal(opened[k], a) for k, a in model.arrays.items() if a.dtype.kind != "f")
    manifest = r.save_recommender(small, tmp_path / "small", with_users=False)
    r.save_recommender(model, tmp_path / "whole", with_users=False)
    again = r.load_recommender(tmp_path / "small")
    assert isinstance(again, c.Compact) and np.allclose(again.score(TRAIN), after, rtol=1e-5, atol=1e-5)
    assert manifest["model"] == "compact" and manifest["settings"]["base"]["model"] == name
    near = [len(np.intersect1d(a, b)) for a, b in zip(small.topk(ALL).items, model.topk(ALL).items)]
    assert np.mean(near) > 9
    gain = e.compare(e.rank(model.score, SPLIT)["full"], e.rank(small.score, SPLIT)["full"])
    assert abs(gain.value) < 0.01
    assert c.size_on_disk(tmp_path / "small") < c.size_on_disk(tmp_path / "whole")


def test_sizes_are_what_the_bits_say(fitted: dict[str, r.Recommender]) -> None:
    whole = TRAIN.n_items**2 * 4
    for bits, keep, factor in ((8, 1.0, 3.76), (4, 1.0, 7.11), (32, 0.5, 1.88), (8, 0.1, 19.4), (4, 0.02, 127.0)):
        arrays = c.compact(fitted["ease"], bits=bits, keep=keep).arrays
        size = sum(a.nbytes for k, a in arrays.items() if k.startswith("weights"))
        assert size == pytest.approx(whole / factor, rel=0.05), (bits, keep)


def test_the_gram_matrix_of_ials_stays_that_of_its_factors(fitted: dict[str, r.Recommender]) -> None:
    for name, prefix in (("ials", ""), ("blend", "0.")):
        small = c.compact(fitted[name], bits=4)
        assert not any("gram" in k for k in small.arrays)
        a = small.opened().arrays
        assert np.allclose(a[f"{prefix}gram"], a[f"{prefix}factors"].T @ a[f"{prefix}factors"], atol=1e-5)


def test_fitting_a_compact_model_is_fitting_the_base_and_making_it_compact(fitted: dict[str, r.Recommender]) -> None:
    model = c.Compact(m.EASE(l2=100), bits=4, keep=0.5).fit(TRAIN)
    assert np.array_equal(model.score(ALL), c.compact(fitted["ease"], bits=4, keep=0.5).score(ALL))
    assert model.base.arrays["weights"].astype(bool).mean() <= 0.5
    model.fit(d.take_users(TRAIN, ALL[:200]))
    assert model.data.n_users == 200 and not np.array_equal(model.score([0]), c.compact(fitted["ease"]).score([0]))
    assert np.array_equal(model.fold_in([]), model.data.popularity)
    part = m.Blend((c.Compact(m.EASE(l2=100)), m.Popularity()), (1.0, 0.1)).fit(TRAIN)
    assert np.isfinite(part.score(ALL)).all()


def test_what_makes_no_sense_is_refused(fitted: dict[str, r.Recommender], tmp_path: Path) -> None:
    small = c.compact(fitted["ease"])
    blend = m.Blend((c.Compact(m.EASE()),), (1.0,))
    for make, message in (
        (lambda: c.Compact(m.EASE(), bits=16), "8, 4 or 32 bits, not 16"),
        (lambda: c.Compact(m.EASE(), bits=32), "nothing gets smaller"),
        (lambda: c.Compact(m.EASE(), keep=0.0), "share above 0"),
        (lambda: c.Compact(m.EASE(), keep=1.5), "share above 0"),
        (lambda: c.Compact("ease"), "made of a recommender"),  # type: ignore[arg-type]
        (lambda: c.Compact(blend), "compact already"),
        (lambda: c.compact(small), "compact already"),
        (lambda: c.compact(m.EASE()), "fitted"),
        (lambda: c.Compact(m.EASE()).score(0), "not fitted"),
        (lambda: c.size_on_disk(tmp_path), "no recommender"),
    ):
        with pytest.raises(InputError, match=message):
            make()
    for bad in (np.nan, np.inf):
        broken = m.EASE(l2=100).fit(TRAIN)
        broken.arrays["weights"][1, 2] = bad
        with pytest.raises(InputError, match="'weights' holds NaN"):
            c.compact(broken)


def test_tampered_arrays_are_refused(fitted: dict[str, r.Recommender], tmp_path: Path) -> None:
    """Damage is found by the hash; arrays that contradict themselves under a right hash, before they are unpacked."""
    r.save_recommender(c.compact(fitted["ease"], keep=0.02), tmp_path / "gaps")
    body = next((tmp_path / "gaps").glob("*.safetensors"))
    body.write_bytes(body.read_bytes()[:-1] + b"?")
    with pytest.raises(StreamError, match="SHA-256"):
        r.load_recommender(tmp_path / "gaps")
    for bits, keep in ((8, 0.02), (4, 0.5), (32, 0.5), (8, 1.0)):
        good = c.compact(fitted["ease"], bits=bits, keep=keep)
        parts = {k: a for k, a in good.arrays.items() if "#" in k}
        forged = [{k: a[:-1]} for k, a in parts.items()] + [{k: None} for k in parts]
        forged += [{"weights#shape": np.array([1 << 40])}, {"weights#shape": np.array([-3, 4])}]
        forged += [{k: a * np.float32(np.nan)} for k, a in parts.items() if k.endswith(("steps", "values"))]
        for change in forged:
            arrays = {k: a for k, a in {**good.arrays, **change}.items() if a is not None}
            with pytest.raises(StreamError, match="cannot be used"):
                r.RECOMMENDERS.create("compact", base=m.EASE())._restore(TRAIN, load_arrays(save_arrays(arrays)))


# Items that nobody met ----------------------------------------------------------------------------------------------

TASTES = d.simulate_interactions(500, 200, length=30, chain=0.0, loyalty=0.95, seed=5)
HIDDEN = e.hold_out_items(TASTES.data, 0.2, seed=2)
NEW = HIDDEN.test.candidates[0]


def test_hidden_items_are_in_no_training_row() -> None:
    train, test = HIDDEN.train, HIDDEN.test
    assert len(NEW) == round(0.2 * (TASTES.data.popularity > 0).sum()) and len(set(NEW)) == len(NEW)
    assert (train.popularity[NEW] == 0).all() and train.item_ids == TASTES.data.item_ids
    assert 200 < len(test) <= 250 and np.isin(test.items, NEW).all() and (test.candidates == NEW).all()
    for q in range(0, len(test), 25):
        met = TASTES.data.history(test.users[q])
        assert set(test.items[test.indptr[q] : test.indptr[q + 1]]) == set(met) & set(NEW)
        assert set(train.history(test.users[q])) == set(met) - set(NEW)
    rest = e.without_answers(TASTES.data, HIDDEN)
    assert len(rest) + len(test.items) == len(TASTES.data)
    assert set(np.flatnonzero(rest.lengths < TASTES.data.lengths)) == set(test.users)
    again = e.hold_out_items(TASTES.data, 0.2, seed=2)
    assert np.array_equal(again.test.items, test.items)
    assert not np.array_equal(e.hold_out_items(TASTES.data, 0.2, seed=3).test.candidates[0], NEW)


def test_auc_agrees_with_scikit_learn_and_ties_count_against_the_model() -> None:
    from sklearn.metrics import roc_auc_score

    noise = np.random.default_rng(0).random((500, 200))
    found = e.rank(lambda users, now: noise[users], HIDDEN)
    for q in range(0, len(HIDDEN.test), 40):
        u = HIDDEN.test.users[q]
        truth = np.isin(NEW, HIDDEN.test.items[HIDDEN.test.indptr[q] : HIDDEN.test.indptr[q + 1]])
        assert found["sampled"].auc(len(NEW))[q] == pytest.approx(roc_auc_score(truth, noise[u, NEW]))
    among = 200 - HIDDEN.train.lengths[HIDDEN.test.users]
    assert abs(found["full"].auc(among).mean() - 0.5) < 0.05
    flat = e.rank(lambda users, now: np.ones((len(users), 200)), HIDDEN)
    assert (flat["sampled"].auc(len(NEW)) == 0).all() and (flat["full"].auc(among) == 0).all()


def test_impossible_shares_are_refused() -> None:
    for share, asked in ((0.0, 0.5), (1.0, 0.5), (0.1, 0.0), (0.999, 0.5)):
        with pytest.raises(InputError, match="shares"):
            e.hold_out_items(TASTES.data, share, asked=asked)
    one = d.take_rows(TASTES.data, np.isin(np.arange(len(TASTES.data)), TASTES.data.indptr[:-1]))
    with pytest.raises(InputError, match="nobody"):
        e.hold_out_items(one, 0.2)


def content_auc(texts: dict[str, str]) -> float:
    """AUC among the hidden items when they are scored as the service does."""
    train = HIDDEN.train
    model = m.EASE(l2=100).fit(train)
    old = [i for i in range(200) if train.popularity[i]]
    index = s.ContentIndex({train.item_ids[i]: texts[train.item_ids[i]] for i in old}, train.item_map)
    mix = np.zeros((200, len(NEW)), np.float32)
    for j, i in enumerate(NEW):
        where, share = index.weights(texts[train.item_ids[i]])
        mix[where, j] = share

    def scorer(users: np.ndarray, now: d.Times) -> np.ndarray:
        scores = model.score(users)
        scores[:, NEW] = scores @ mix
        return scores

    return float(e.rank(scorer, HIDDEN)["sampled"].auc(len(NEW)).mean())


def test_oracle_beats_content_beats_chance_and_shuffled_content_is_chance() -> None:
    texts = {f"item_{i}": f"thing kind{i % 5}" for i in range(200)}
    shuffled = dict(zip(texts, np.random.default_rng(1).permutation(list(texts.values()))))
    taste = {
        name: e.rank(x, HIDDEN)["sampled"]
        for name, x in (
            ("oracle", lambda users, now: TASTES.taste[users]),
            ("random", e.cheaters(HIDDEN)["random"]),
        )
    }
    right, wrong = content_auc(texts), content_auc(shuffled)
    oracle, chance = (taste[k].auc(len(NEW)).mean() for k in ("oracle", "random"))
    assert oracle > right + 0.02 and right > chance + 0.2 and abs(chance - 0.5) < 0.05
    assert abs(wrong - 0.5) < 0.12 and wrong < right - 0.15
