"""ncf.service and ncf.commands: the seed's methods and errors, histories from a database, threads, new items, and the way from a file to a list."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from nbmf_research.core import InputError, StreamError
from nbmf_research.ncf import commands as c
from nbmf_research.ncf import data as d
from nbmf_research.ncf import linear as m
from nbmf_research.ncf import models as n
from nbmf_research.ncf import recommender as r
from nbmf_research.ncf import service as s
from nbmf_research.ncf.legacy import write_seed_checkpoint

WORLD = d.simulate_interactions(300, 50, length=12, seed=2)
TRAIN = d.leave_one_out(WORLD.data).train
NAMES = TRAIN.item_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("model") / "v1"
    r.save_recommender(m.EASE(l2=50).fit(TRAIN), here)
    return here


def named(user: int) -> list[str]:
    return [NAMES[i] for i in TRAIN.history(user)]


def test_lists_and_scores_agree_with_the_model(folder: Path) -> None:
    model, service = r.load_recommender(folder), s.NCFService(None, folder)
    for u in range(20):
        top = service.recommend(f"user_{u}", 7)
        assert [i for i, _ in top] == [NAMES[i] for i in model.topk(u, 7).items[0]]
        values = [v for _, v in top]
        assert values == sorted(values, reverse=True) and all(0 < v < 1 for v in values)
        assert service.predict(f"user_{u}", [i for i, _ in top]) == dict(top)
    assert len(service.recommend("user_0", 50)) == 50 - 11
    assert len(service.recommend("user_0", 50, exclude_seen=False)) == 50
    users = {"user_1": list(NAMES[:3]), "user_2": list(NAMES[4:6])}
    assert service.predict_batch(users) == {u: service.predict(u, i) for u, i in users.items()}


def test_cold_starts(folder: Path) -> None:
    service = s.NCFService(None, folder)
    popular = [NAMES[i] for i in np.argsort(-TRAIN.popularity, kind="stable")[:5]]
    top = service.recommend("nobody", 5)
    assert [i for i, _ in top] == popular and top[0][1] == 1
    with pytest.raises(s.ColdStartError, match="'nobody' has no history"):
        service.predict("nobody", [NAMES[0]])
    with pytest.raises(s.ColdStartError, match="'new' is unknown"):
        service.predict("user_0", ["new"])
    service.observe("nobody", "an item that nobody knows")
    assert [i for i, _ in service.recommend("nobody", 5)] == popular
    service.observe("nobody", NAMES[7])
    assert [i for i, _ in service.recommend("nobody", 5)] != popular


def test_a_missing_or_damaged_model(tmp_path: Path, folder: Path) -> None:
    for path in (None, tmp_path / "none"):
        with pytest.raises(s.NCFModelNotFoundError, match="nbmf ncf train"):
            s.NCFService(None, path).recommend("user_0")
        with pytest.raises(FileNotFoundError):
            s.NCFService(None, path).predict("user_0", [])
    r.save_recommender(m.EASE(l2=50).fit(TRAIN), tmp_path / "v1")
    victim = next((tmp_path / "v1").glob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    with pytest.raises(StreamError, match="SHA-256"):
        s.NCFService(None, tmp_path / "v1").recommend("user_0")


def test_a_model_is_loaded_once_for_all_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    real = s.load_recommender
    monkeypatch.setattr(s, "load_recommender", lambda path: (calls.append(path), real(path))[1])
    service, found = s.NCFService(None, folder, cache_size=3), {}
    assert not calls

    def ask(k: int) -> None:
        found[k] = [service.recommend(f"user_{u}", 5) for u in range(10)]

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(calls) == 1 and len(found) == 8 and all(v == found[0] for v in found.values())
    assert len(service._cache) <= 3


def test_an_event_counts_at_once_and_only_for_its_user(folder: Path) -> None:
    service, model = s.NCFService(None, folder), r.load_recommender(folder)
    first, other = service.recommend("user_3"), service.recommend("user_4")
    service.observe("user_3", first[0][0], 1e10)
    after = service.recommend("user_3")
    assert first[0][0] not in dict(after) and service.recommend("user_4") == other
    scores = model.fold_in([*named(3), first[0][0]])
    met = [NAMES.index(i) for i in [*named(3), first[0][0]]]
    scores[met] = -np.inf
    assert after[0][0] == NAMES[int(scores.argmax())]


def test_histories_come_from_the_database(folder: Path) -> None:
    sa = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    with orm.Session(engine) as session:
        session.execute(sa.text("CREATE TABLE seen (who TEXT, what TEXT, at REAL)"))
        rows = [{"w": "ada", "i": i, "t": 100.0 - k} for k, i in enumerate(reversed(named(9)))]
        session.execute(sa.text("INSERT INTO seen VALUES (:w, :i, :t)"), rows)
        queries = s.Queries("SELECT what, at FROM seen WHERE who = :user ORDER BY at")
        service = s.NCFService(session, folder, queries=queries)
        assert [i for i, _ in service.history("ada")] == named(9)
        assert service.recommend("ada", 5) == s.NCFService(None, folder).recommend("user_9", 5)
        assert service.history("ada'; DROP TABLE seen; --") == []
        assert len(service.history("ada")) == 11
        session.execute(sa.text("INSERT INTO seen VALUES ('ada', :i, 200)"), {"i": service.recommend("ada", 1)[0][0]})
        assert len(service.history("ada")) == 12


def test_new_items_by_content(folder: Path) -> None:
    service = s.NCFService(None, folder)
    texts = {f"item_{i}": f"kind{i % 5} thing" for i in range(50)}
    assert service.add_items(texts, {"new": "Kind3", "odd": "???", "item_1": "kind1"}) == ["new"]
    near, weights = s.ContentIndex(texts, TRAIN.item_map, k=4).neighbours("kind3")
    assert all(i % 5 == 3 for i in near) and np.isclose(weights.sum(), 1)
    got = service.predict("user_0", ["new", *(f"item_{i}" for i in range(3, 50, 5))])
    rest = [v for k, v in got.items() if k != "new"]
    assert min(rest) <= got["new"] <= max(rest)
    assert "new" in dict(service.recommend("user_0", 51, exclude_seen=False))
    service.observe("user_0", "new")
    assert "new" not in dict(service.recommend("user_0", 51))
    with pytest.raises(InputError, match="description"):
        service.add_items({"unknown": "text"}, {})


def test_unit_scores_keep_the_order_where_a_sigmoid_does_not() -> None:
    raw = np.append(np.random.default_rng(0).normal(size=3000), [30.0, 31.0, 40.0]).astype(np.float32)
    found = s.unit_scores(raw)
    assert ((found > 0) & (found < 1)).all() and np.array_equal(np.argsort(found[-3:]), [0, 1, 2])
    assert (np.diff(found[np.argsort(raw)]) >= 0).all() and np.isfinite(s.unit_scores(np.ones((2, 5)))).all()
    assert np.array_equal(s.unit_scores(np.stack([raw, -raw]))[0], found)


def test_content_weights_are_those_of_a_ridge_regression() -> None:
    """A new item's score is what scikit-learn's ridge on the words predicts; a year speaks for its neighbours."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import Ridge

    texts = {f"item_{i}": f"word{i % 7} ({1950 + i}) kind{i % 5}|other{i % 3}" for i in range(50)}
    index, scores = s.ContentIndex(texts, TRAIN.item_map, ridge=3.0), np.random.default_rng(1).random(50)
    words = CountVectorizer(analyzer=s.content_words, binary=True).fit(texts.values())
    fitted = Ridge(alpha=3.0).fit(words.transform(texts.values()), scores)
    for text in ("a new word2 (1987) kind3", "other1|kind4"):
        numbers, weights = index.weights(text)
        wanted = fitted.predict(words.transform([text]))[0]
        assert scores[numbers] @ weights == pytest.approx(wanted, abs=1e-5) and weights.sum() == pytest.approx(1)
    assert len(index.weights("unheard of")[0]) == 0 and len(index.weights("(1971)")[0]) == 50
    with pytest.raises(InputError, match="ridge is positive"):
        s.ContentIndex(texts, TRAIN.item_map, ridge=0.0)


def test_the_seeds_file_is_served(tmp_path: Path) -> None:
    model = n.MLP(dim=8, hidden=(16, 8), epochs=2, patience=0, users=64, items=0).fit(TRAIN)
    write_seed_checkpoint(model, tmp_path / "ncf_benchmark_v1.pt")
    service = s.NCFService(None, tmp_path / "ncf_benchmark_v1.pt")
    got = service.predict("user_5", NAMES)
    assert np.allclose(list(got.values()), 1 / (1 + np.exp(-model.score(5)[0])), atol=1e-4)
    assert len(service.recommend("user_5")) == 10 and len(service.recommend("stranger")) == 10
    service.observe("stranger", NAMES[3])
    assert NAMES[3] not in dict(service.recommend("stranger"))


# Commands ---------------------------------------------------------------------------------------------------------


def test_from_a_new_users_seat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed's JSON, a configuration, a checkpoint, a list."""
    monkeypatch.chdir(tmp_path)
    counts = c.prepare_data("synthetic", "interactions.json", candidates=50)
    document = json.loads(Path("interactions.json").read_text())
    assert d.problems(document) == [] and counts["questions"] == 800 == len(document["held_out_test"])
    Path("ncf.yaml").write_text("data: interactions.json\ntest: given\nmodel: ease\nsettings: {l2: 100}\n")
    figures = c.train_recommender(c.read_ncf_config("ncf.yaml"))
    rows = c.evaluate_recommender("runs/ncf", "interactions.json", test="given")
    assert rows["model"]["full_hr"] == figures["full_hr"] > 1.5 * rows["popularity"]["full_hr"]
    assert rows["all relevant"]["sampled_hr"] == 0 and set(rows) == {"model", "random", "all relevant", "popularity"}
    assert len(c.recommend_items("runs/ncf", "user_7", k=10)) == 10
    assert r.read_manifest("runs/ncf")["metrics"]["full_hr"] == figures["full_hr"]


@pytest.mark.parametrize("name", sorted(p.name for p in (Path(__file__).parents[2] / "nbs/configs").glob("ncf_*.yaml")))
def test_committed_configurations_are_sound(name: str) -> None:
    config = c.read_ncf_config(Path(__file__).parents[2] / "nbs" / "configs" / name)
    model = r.from_config({"model": config.model, "settings": config.settings})
    assert r.to_config(model)["model"] == config.model


def test_sources(tmp_path: Path) -> None:
    c.prepare_data("synthetic", tmp_path / "a.json", candidates=5)
    split = c.open_split(str(tmp_path / "a.json"), candidates=0)
    assert split.test.candidates is None and len(split.train) < len(
        c.open_split(str(tmp_path / "a.json"), "given").train
    )
    (tmp_path / "t.csv").write_text("user_id,item_id,timestamp\na,x,1\na,y,2\nb,x,1\nb,z,3\n")
    assert c.open_split(str(tmp_path / "t.csv")).test.items.tolist() == [1, 2]
    (tmp_path / "u.data").write_text("1\t1\t5\t10\n1\t2\t4\t11\n2\t1\t3\t12\n")
    assert len(c.open_split(str(tmp_path)).test) == 1
    pytest.importorskip("sqlalchemy")
    import sqlite3

    with sqlite3.connect(tmp_path / "x.db") as db:
        db.execute("CREATE TABLE interactions (user_id, item_id, timestamp)")
        db.executemany("INSERT INTO interactions VALUES (?, ?, ?)", [("a", "x", 1), ("a", "y", 2), ("b", "y", 1)])
    assert len(c.open_split(f"sqlite:///{tmp_path}/x.db").test) == 1


def test_wrong_configurations(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for text, message in (
        ("modle: gmf", "did you mean 'model'"),
        ("- 1", "not a configuration"),
        ("test: all", "given or last"),
        ("settings: 3", "mapping"),
        (": :", "not a configuration"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            c.read_ncf_config(path, {"seed": "1"})
    path.write_text("settings: {l2: 3}")
    assert c.read_ncf_config(path, {"settings.l2": "5", "seed": "2"}) == c.NCFConfig(settings={"l2": 5}, seed=2)
    with pytest.raises(InputError, match="colour"):
        c.train_recommender(c.NCFConfig(model="ease", settings={"colour": 1}))
    with pytest.raises(InputError, match="name a user"):
        c.recommend_items(tmp_path)
