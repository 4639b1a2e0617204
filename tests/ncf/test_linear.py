"""ncf.recommender and ncf.linear: the contract for every model, each model against its definition, checkpoints, published figures."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from nbmf_research.bundles import MANIFEST
from nbmf_research.core import InputError, StreamError
from nbmf_research.ncf import data as d
from nbmf_research.ncf import evaluate as e
from nbmf_research.ncf import linear as m
from nbmf_research.ncf import recommender as r
from nbmf_research.ncf.compact import Compact

FOLDER = os.environ.get("NBMF_DATA_DIR", "")
needs_ml1m = pytest.mark.skipif(
    not (Path(FOLDER) / "ncf" / "ml-1m").is_dir() or not FOLDER, reason="needs ncf/ml-1m under NBMF_DATA_DIR"
)

WORLD = d.simulate_interactions(300, 40, length=12, seed=2)
SPLIT = d.with_candidates(d.leave_one_out(WORLD.data), 20)
TRAIN = SPLIT.train


def small(name: str) -> r.Recommender:
    if name == "blend":
        return m.Blend((m.NextItem(), m.EASE(l2=50), m.IALS(dim=4, epochs=2)), (1.0, 0.5, 0.25))
    if name in ("gmf", "mlp", "neumf", "attention"):
        network = {"dim": 8, "hidden": (16, 8), "users": 64, "items": 0, "rate": 0.01, "start": "svd"}
        return r.load_recommenders().create(name, epochs=20, patience=0, **network)
    if name == "compact":
        return Compact(m.EASE())
    return m.IALS(dim=8, epochs=4) if name == "ials" else r.load_recommenders().create(name)


NAMES = sorted(n for n in r.load_recommenders() if not n.startswith("example"))
MODELS = {n: small(n).fit(TRAIN) for n in NAMES}


# The contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_users_histories_and_new_people_are_the_same(name: str) -> None:
    model = MODELS[name]
    s = model.score(np.arange(50))
    assert s.shape == (50, 40) and s.dtype == np.float32 and np.isfinite(s).all()
    assert np.allclose(model.score(d.take_users(TRAIN, np.arange(50))), s, rtol=1e-4, atol=1e-5)
    assert np.allclose(model.score(7), s[7:8], rtol=1e-4, atol=1e-5)
    names = [TRAIN.item_ids[i] for i in TRAIN.history(7)]
    assert np.allclose(model.fold_in(names), s[7], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_lists(name: str) -> None:
    model = MODELS[name]
    top = model.topk(np.arange(300), k=35)
    for u in range(300):
        shown = top.items[u][top.items[u] >= 0]
        assert len(shown) == 40 - 11 and not set(shown) & set(TRAIN.history(u))
        assert (np.diff(top.scores[u][: len(shown)]) <= 0).all() and np.isnan(top.scores[u][len(shown) :]).all()
    everything = model.topk([0], k=40, exclude_seen=False).items[0]
    assert sorted(everything) == list(range(40))
    ranks = e.rank(lambda users, now: model.score(users), SPLIT, k=5)["full"]
    ties = np.array([len(set(row)) < 40 for row in model.score(np.arange(300))])
    assert (ranks.top[~ties] == model.topk(np.arange(300), k=5).items[~ties]).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_history_gets_popularity_among_others_that_do_not(name: str) -> None:
    model = MODELS[name]
    mixed = r.new_histories(TRAIN.item_ids, [[], [TRAIN.item_ids[3]], []])
    s = model.score(mixed)
    assert np.array_equal(s[0], TRAIN.popularity) and np.array_equal(s[2], s[0])
    assert np.allclose(s[1], model.fold_in([TRAIN.item_ids[3]]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_uses_order_tells_the_truth(name: str) -> None:
    model = MODELS[name]
    names = [TRAIN.item_ids[i] for i in TRAIN.history(5)]
    forth, back = model.fold_in(names), model.fold_in(names[::-1])
    assert np.allclose(forth, back, rtol=1e-3, atol=1e-4) == (model.uses_order != "history")
    if model.uses_order == "no":
        frame_order = np.concatenate([TRAIN.history(u)[::-1] for u in range(300)])
        turned = small(name).fit(replace(TRAIN, items=frame_order))
        assert np.allclose(turned.fold_in(names), forth, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_fitting_is_reproducible_and_learns_something(name: str) -> None:
    model = MODELS[name]
    assert all(np.array_equal(small(name).fit(TRAIN).arrays[k], v) for k, v in model.arrays.items())
    hit = e.rank(model.score, SPLIT)["sampled"].hit(5).mean()
    assert hit > e.chance_hit(20, 5) + (0.1 if name != "popularity" else -0.05)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_refused(name: str) -> None:
    model = MODELS[name]
    for call, message in (
        (lambda: small(name).score([0]), "not fitted"),
        (lambda: small(name).fit(d.take_rows(TRAIN, np.zeros(len(TRAIN), bool))), "no interactions"),
        (lambda: model.score([300]), "between 0 and 299"),
        (lambda: model.fold_in(["nothing"]), "does not know the item 'nothing'"),
        (lambda: model.score(r.new_histories(("x",), [["x"]])), "other items"),
        (lambda: model.topk([0], k=0), "at least one"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_new_histories() -> None:
    h = r.new_histories(("a", "b", "c"), [["a", "b", "a"], [], ["c"]], [[1, 2, 3], [], [9]])
    assert h.items.tolist() == [1, 0, 2] and h.times.tolist() == [2, 3, 9] and h.lengths.tolist() == [2, 0, 1]
    with pytest.raises(InputError, match="times of shape"):
        r.new_histories(("a",), [["a"]], [[1, 2]])


# Checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_model_is_the_saved_one(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    manifest = r.save_recommender(model, tmp_path / "v1", metrics={"full_hr": np.float32(0.5)})
    back = r.load_recommender(tmp_path / "v1")
    assert type(back) is type(model) and r.to_config(back) == r.to_config(model)
    assert np.array_equal(back.score(np.arange(20)), model.score(np.arange(20)))
    assert d.fingerprint(back.data) == manifest["data"] == d.fingerprint(TRAIN)
    assert r.read_manifest(tmp_path / "v1") == manifest and manifest["metrics"] == {"full_hr": 0.5}


def test_nobody_is_in_a_checkpoint_without_users(tmp_path: Path) -> None:
    model = MODELS["ease"]
    r.save_recommender(model, tmp_path, with_users=False)
    assert not any(b"user_" in p.read_bytes() for p in tmp_path.iterdir())
    back = r.load_recommender(tmp_path)
    names = [TRAIN.item_ids[i] for i in TRAIN.history(5)]
    assert np.array_equal(back.fold_in(names), model.fold_in(names))
    with pytest.raises(InputError, match="user numbers"):
        back.score([0])


def test_saving_again_replaces_the_whole_checkpoint(tmp_path: Path) -> None:
    r.save_recommender(MODELS["ease"], tmp_path)
    r.save_recommender(MODELS["ials"], tmp_path)
    assert r.load_recommender(tmp_path).name == "ials" and len(list(tmp_path.iterdir())) == 3


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_any_changed_byte_is_found(data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        r.save_recommender(MODELS["transitions"], folder)
        victims = sorted(p for p in Path(folder).iterdir() if p.name != MANIFEST)
        victim = data.draw(st.sampled_from(victims))
        body = bytearray(victim.read_bytes())
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] ^= data.draw(st.integers(1, 255))
        victim.write_bytes(body if data.draw(st.booleans()) else body[:at])
        with pytest.raises(StreamError, match="SHA-256"):
            r.load_recommender(folder)


def forged(folder: Path, change) -> None:  # type: ignore[no-untyped-def]
    """Write arrays that contradict each other, with hashes that fit."""
    import hashlib

    manifest = r.read_manifest(folder)
    entry = manifest["files"]["arrays.safetensors"]
    arrays = load_file(folder / entry["path"])
    change(arrays, manifest)
    save_file(arrays, folder / entry["path"])
    entry["sha256"] = hashlib.sha256((folder / entry["path"]).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, x: a.update({"rows.items": a["rows.items"] + 100}), "item that does not exist"),
        (lambda a, x: a.update({"rows.indptr": a["rows.indptr"][:-1]}), "do not fit together"),
        (lambda a, x: a.pop("rows.items"), "cannot be used"),
        (lambda a, x: a.update({"model.popularity": np.zeros(3, np.float32)}), "another number of items"),
        (lambda a, x: x.update(model="os.system"), "no recommender is called"),
        (lambda a, x: x["settings"].update(colour="red"), "colour"),
        (lambda a, x: x["files"].pop("names.json"), "does not list names.json"),
        (lambda a, x: x["files"]["names.json"].update(path="../names.json"), "outside its folder"),
        (lambda a, x: x.update(version=99), "version 99"),
        (lambda a, x: x.pop("format"), "damaged or not the manifest"),
    ],
)
def test_a_forged_checkpoint_is_refused(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    r.save_recommender(MODELS["ease"], tmp_path)
    forged(tmp_path, change)
    with pytest.raises(StreamError, match=message):
        r.load_recommender(tmp_path)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    import hashlib
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))  # type: ignore[return-value]

    r.save_recommender(MODELS["ease"], tmp_path)
    manifest = r.read_manifest(tmp_path)
    entry = manifest["files"]["arrays.safetensors"]
    body = pickle.dumps(Bomb())
    (tmp_path / entry["path"]).write_bytes(body)
    entry["sha256"] = hashlib.sha256(body).hexdigest()
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StreamError, match="cannot be used"):
        r.load_recommender(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_missing_or_foreign_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no recommender"):
        r.load_recommender(tmp_path / "none")
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(StreamError, match="damaged"):
        r.load_recommender(tmp_path)


# The models -------------------------------------------------------------------------------------------------------

histories = st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=8, unique=True), min_size=3, max_size=12)


def rows_of(lists: list[list[int]]) -> d.Interactions:
    return r.new_histories(tuple(map(str, range(10))), [[str(i) for i in own] for own in lists])


@settings(deadline=None)
@given(histories)
def test_ease_is_ridge_regression_without_the_item_itself(lists: list[list[int]]) -> None:
    data = rows_of(lists)
    x = data.matrix().toarray().astype(float)
    assert np.array_equal(m.co_counts(data), x.T @ x)
    b = m.EASE(l2=2.0).fit(data).arrays["weights"]
    for j in range(10):
        others = np.delete(np.arange(10), j)
        z = x[:, others]
        w = np.linalg.solve(z.T @ z + 2 * np.eye(9), z.T @ x[:, j])
        assert np.allclose(b[others, j], w, atol=1e-4) and b[j, j] == 0


@settings(deadline=None)
@given(histories, st.integers(1, 5), st.integers(1, 4), st.sampled_from([(0,), (1,), (0, 2)]))
def test_next_item_is_ridge_regression_over_positions(
    lists: list[list[int]], window: int, ahead: int, skips: tuple[int, ...]
) -> None:
    lists = [*lists, [0, 1, 2, 3]]
    xs, ys = [], []
    for own in lists:
        for skip in skips:
            for k in range(1, len(own) - skip):
                x, y = np.zeros(10), np.zeros(10)
                for lag, i in enumerate((own[:k] + own[k + 1 : k + 1 + skip])[::-1][:window]):
                    x[i] = 0.7**lag
                for lead, i in enumerate([own[k], *own[k + 1 + skip :]][:ahead]):
                    y[i] = 0.5**lead
                xs.append(x)
                ys.append(y)
    x, y = np.array(xs), np.array(ys)
    g = x.T @ x
    expected = np.linalg.solve(g + 0.5 * np.diag(g).mean() * np.eye(10), x.T @ y)
    model = m.NextItem(window, 0.7, ahead, 0.5, 0.5, skips).fit(rows_of(lists))
    assert np.allclose(model.arrays["weights"], expected, atol=1e-4)
    own = lists[0]
    recent = sum(0.7**lag * expected[i] for lag, i in enumerate(own[::-1][:window]))
    assert np.allclose(model.score(0)[0], recent, atol=1e-3)


@settings(deadline=None)
@given(histories, st.integers(1, 4))
def test_set_to_next_is_ridge_regression_over_prefixes(lists: list[list[int]], ahead: int) -> None:
    xs, ys, ws = [], [], []
    for own in lists:
        for k in range(1, len(own)):
            x, y = np.zeros(10), np.zeros(10)
            x[own[:k]], y[own[k : k + ahead]] = 1, 1
            xs.append(x)
            ys.append(y)
            ws.append(len(own) ** -0.5)
    x, y, w = np.array(xs), np.array(ys), np.array(ws)[:, None]
    g = x.T @ (w * x)
    expected = np.linalg.solve(g + 0.5 * np.diag(g).mean() * np.eye(10), x.T @ (w * y))
    assert np.allclose(m.SetToNext(ahead, 0.5).fit(rows_of(lists)).arrays["weights"], expected, atol=1e-3)


@settings(deadline=None)
@given(histories, st.integers(1, 3))
def test_transitions_are_counted(lists: list[list[int]], window: int) -> None:
    c = np.zeros((10, 10))
    for own in lists:
        for lag in range(1, window + 1):
            for i, j in zip(own, own[lag:], strict=False):
                c[i, j] += 0.6 ** (lag - 1)
    c /= np.maximum(rows_of(lists).popularity + 3, 1)[:, None]
    expected = sum(0.6**lag * c[i] for lag, i in enumerate(lists[1][::-1][:window]))
    assert np.allclose(m.Transitions(window, 0.6, 3).fit(rows_of(lists)).score(1)[0], expected, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(histories, st.integers(1, 9))
def test_itemknn_keeps_the_nearest(lists: list[list[int]], k: int) -> None:
    data = rows_of(lists)
    x = data.matrix().toarray().astype(float)
    n = np.sqrt(np.maximum(x.sum(axis=0), 1e-9))
    cosine = (x.T @ x) / np.outer(n, n)
    np.fill_diagonal(cosine, 0)
    cut = -np.sort(-cosine, axis=0)[k - 1]
    expected = x @ np.where(cosine >= cut - 1e-6, cosine, 0)
    assert np.allclose(m.ItemKNN(k).fit(data).score(np.arange(len(lists))), expected, atol=1e-3)


def test_ials_lowers_its_own_loss_and_solves_a_new_user_exactly() -> None:
    x = TRAIN.matrix().toarray()
    losses = []
    for epochs in (1, 3, 8, 20):
        model = m.IALS(dim=6, epochs=epochs).fit(TRAIN)
        v = model.arrays["factors"].astype(float)
        ridge = 0.007 * (TRAIN.lengths + 0.3 * 40)
        u = np.stack(
            [
                np.linalg.solve(v[h].T @ v[h] + 0.3 * v.T @ v + w * np.eye(6), v[h].sum(axis=0))
                for h, w in zip(map(TRAIN.history, range(300)), ridge, strict=True)
            ]
        )
        p = u @ v.T
        items = 0.007 * (TRAIN.popularity + 0.3 * 300)
        penalty = (ridge * (u**2).sum(axis=1)).sum() + (items * (v**2).sum(axis=1)).sum()
        losses.append((x * (1 - p) ** 2).sum() + 0.3 * (p**2).sum() + penalty)
        assert np.allclose(model.score(np.arange(300)), p, atol=2e-4)
    assert losses == sorted(losses, reverse=True)


def test_settings_that_make_no_sense() -> None:
    for call, message in (
        (lambda: m.EASE(l2=-1).fit(TRAIN), "l2 is positive"),
        (lambda: m.IALS(ridge=0).fit(TRAIN), "are positive"),
        (lambda: m.NextItem(ridge=0).fit(TRAIN), "positive ridge"),
        (lambda: m.Transitions(window=0).fit(TRAIN), "at least 1"),
        (lambda: m.Blend((), ()), "needs parts"),
        (lambda: m.Blend((m.EASE(),), (1.0, 1.0)), "one weight for each"),
        (lambda: m.Blend((m.EASE(),), (1.0,), late=(1.0, 1.0)), "one weight for each"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    many = replace(TRAIN, item_ids=tuple(map(str, range(40_000))))
    for model in (m.EASE(), m.ItemKNN(), m.NextItem(), m.SetToNext()):
        with pytest.raises(InputError, match="GB"):
            model.fit(many)


# The blend --------------------------------------------------------------------------------------------------------


def test_after_a_pause_the_blend_is_order_free() -> None:
    parts = (m.NextItem(), m.Transitions(), m.EASE(l2=50), m.SetToNext())
    blend = m.Blend(parts, (1.0, 0.5, 0.5, 0.25)).fit(TRAIN)
    free = m.Blend((m.EASE(l2=50), m.SetToNext()), (0.5, 0.25)).fit(TRAIN)
    assert blend.late == (0.0, 0.0, 0.5, 0.25) and blend.uses_order == "history" and free.uses_order == "training"
    last = TRAIN.times[TRAIN.indptr[1:] - 1]
    users = np.arange(300)
    assert np.allclose(blend.score(users, last + 86_400), free.score(users), rtol=1e-4, atol=1e-5)
    soon, unknown = blend.score(users, last + 86_399), blend.score(users)
    assert np.array_equal(soon, unknown) and not np.allclose(soon, free.score(users), atol=1e-2)
    mixed = blend.score(users[:2], [last[0] + 1, last[1] + 1e6])
    assert np.allclose(mixed[0], soon[0], rtol=1e-4) and np.allclose(mixed[1], free.score(1)[0], rtol=1e-4)


def test_a_blend_within_a_blend_is_saved(tmp_path: Path) -> None:
    inner = m.Blend((m.EASE(l2=50), m.Popularity()), (1.0, 0.1))
    outer = m.Blend((m.NextItem(), inner), (1.0, 0.5), pause=10.0).fit(TRAIN)
    r.save_recommender(outer, tmp_path)
    back = r.load_recommender(tmp_path)
    assert isinstance(back, m.Blend) and back.pause == 10 and np.array_equal(back.score([3]), outer.score([3]))


def test_tuning_finds_the_part_that_helps_and_drops_noise() -> None:
    world = d.simulate_interactions(1500, 60, length=15, chain=0.0, loyalty=0.97, seed=6)
    split = d.with_candidates(d.leave_one_out(world.data), 30)
    blend = m.tune_blend([m.Popularity(), m.EASE(l2=200), m.Transitions()], split.train, grid=(0, 1, 4), rounds=1)
    weights = dict(zip([p.name for p in blend.parts], blend.weights, strict=True))
    assert weights["ease"] == 4 and weights.get("transitions", 0) <= 1
    popular = m.Popularity().fit(split.train)
    ranks = [e.rank(x.score, split)["full"] for x in (popular, blend)]
    assert e.compare(*ranks, "hr").lo > 0


def test_the_optimum_of_a_simulated_world_is_reached() -> None:
    """96 % of the expected NDCG of the oracle within sessions and after pauses, on 3,000 users."""
    world = d.simulate_interactions(3000, 100, length=25, seed=3)
    split = d.with_candidates(d.leave_one_out(world.data), 49)
    parts = [m.NextItem(window=1, ahead=1, ridge=0.1), m.ItemKNN(k=20), m.SetToNext()]
    blend = m.tune_blend(parts, split.train, grid=(0, 0.5, 1, 1.5), max_users=1500)
    best = e.rank(lambda users, now: world.oracle(d.take_users(split.train, users), users, now), split)["full"].ndcg()
    mine = e.rank(blend.score, split)["full"].ndcg()
    late = e.gap_strata(split) == "a day or more"
    for part in (late, ~late):
        assert 0.93 * best[part].mean() < mine[part].mean() < 1.02 * best[part].mean()


# Real data --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ml1m() -> d.Split:
    return d.read_ncf(Path(FOLDER) / "ncf" / "ml-1m")


@pytest.mark.real
@needs_ml1m
def test_ease_reproduces_the_published_figures(ml1m: d.Split) -> None:
    """HR@10 0.7192, NDCG@10 0.4494 at l2 = 1320 (Ferrari Dacrema et al. 2021, table 55)."""
    got = e.rank(m.EASE(l2=1320).fit(ml1m.train).score, ml1m)["sampled"]
    assert (round(got.hit().mean(), 4), round(got.ndcg().mean(), 4)) == (0.7192, 0.4494)


@pytest.mark.real
@pytest.mark.slow
@needs_ml1m
def test_order_free_and_order_aware_bars(ml1m: d.Split) -> None:
    """The bars of the design; and after a day's pause the order-aware blend is the order-free one."""
    rows = {}
    for name, model in (("free", m.order_free()), ("aware", m.order_aware())):
        rows[name] = e.rank(model.fit(ml1m.train).score, ml1m)
    free, aware = rows["free"], rows["aware"]
    assert free["sampled"].hit().mean() >= 0.732 and free["sampled"].ndcg().mean() >= 0.456
    assert free["full"].hit().mean() >= 0.110 and free["full"].ndcg().mean() >= 0.056
    assert aware["sampled"].hit().mean() >= 0.79 and aware["sampled"].ndcg().mean() >= 0.58
    assert aware["full"].hit().mean() >= 0.26 and aware["full"].ndcg().mean() >= 0.15
    assert e.compare(free["full"], aware["full"]).lo > 0.08
    late = e.gap_strata(ml1m) == "a day or more"
    assert late.sum() == 247
    for protocol in ("sampled", "full"):
        assert np.array_equal(free[protocol].ranks[late], aware[protocol].ranks[late])
