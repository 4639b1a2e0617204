"""ncf.models and ncf.legacy: networks against their definition, the optimum of a simulated world, teachers, the seed's checkpoints."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.core import InputError, StreamError
from nbmf_research.ncf import attention as a
from nbmf_research.ncf import data as d
from nbmf_research.ncf import evaluate as e
from nbmf_research.ncf import legacy as seed
from nbmf_research.ncf import linear as m
from nbmf_research.ncf import models as n
from nbmf_research.ncf import recommender as r

# in this world nothing drifts, so late items count no more than others
SMALL = {"dim": 16, "hidden": (32, 16), "epochs": 15, "users": 64, "items": 0, "start": "svd", "recency": 0.0}
SMALL |= {"dropout": 0.5, "rate": 3e-3, "decay": 0.0}
WORLD = d.simulate_interactions(1000, 60, length=15, chain=0.0, seed=4)
SPLIT = d.with_candidates(d.leave_one_out(WORLD.data), 30)
TRAIN = SPLIT.train


@pytest.fixture(scope="module")
def fitted() -> dict[str, n.NeuralRecommender]:
    own = {"gmf": {"epochs": 40}, "mlp": {}, "neumf": {"epochs": 3, "wide": 16, "start": "gmf"}}
    return {k: r.load_recommenders().create(k, **SMALL | v).fit(TRAIN) for k, v in own.items()}  # type: ignore[misc]


@pytest.fixture(scope="module")
def optimum() -> dict[str, e.Ranks]:
    noise = 1e-12 * np.random.default_rng(0).random((1000, 60))
    return e.rank(lambda u, now: WORLD.oracle(d.take_users(TRAIN, u), u, now) + noise[u], SPLIT)


@pytest.mark.parametrize("name", ["gmf", "mlp", "neumf"])
def test_the_optimum_of_a_simulated_world_is_reached(name, fitted, optimum) -> None:  # type: ignore[no-untyped-def]
    """At least 93 % of the oracle's NDCG and not above it by more than chance, under both protocols."""
    for protocol, ranks in e.rank(fitted[name].score, SPLIT).items():
        best = optimum[protocol]
        assert ranks.ndcg().mean() > 0.93 * best.ndcg().mean()
        assert e.compare(best, ranks).lo < 0.02 and e.violations(ranks) == []


@pytest.mark.parametrize("name", ["gmf", "mlp", "neumf"])
def test_numpy_serves_what_torch_trained_and_new_people_are_scored_as_users(name, fitted) -> None:  # type: ignore[no-untyped-def]
    model = fitted[name]
    network = model.network(60)
    network.load_state_dict({k: torch.from_numpy(v) for k, v in model.arrays.items() if k != "popularity"})
    rows = torch.from_numpy(n.weighted(d.take_users(TRAIN, range(30))).toarray())
    with torch.no_grad():
        assert np.allclose(network(rows, torch.arange(60)).numpy(), model.score(range(30)), atol=1e-4)
    names = [TRAIN.item_ids[i] for i in TRAIN.history(5)]
    assert np.allclose(model.fold_in(names), model.score(5)[0], atol=1e-4)
    assert np.allclose(model.fold_in(names[::-1]), model.score(5)[0], atol=1e-4)  # a set, not a sequence


def test_people_who_were_not_in_training_get_the_quality_of_users(fitted) -> None:  # type: ignore[no-untyped-def]
    half = n.GMF(**SMALL).fit(d.take_users(TRAIN, range(500)))
    names = [[TRAIN.item_ids[i] for i in TRAIN.history(u)] for u in range(500, 1000)]
    top = half.topk(r.new_histories(TRAIN.item_ids, names)).items
    asked = SPLIT.test.items[500:]
    trained = fitted["gmf"].topk(np.arange(500, 1000)).items
    hits = [(t == asked[:, None]).any(1).mean() for t in (top, trained)]
    assert hits[0] > hits[1] - 0.05


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 12), st.integers(1, 6), st.lists(st.integers(1, 8), min_size=1, max_size=3), st.integers(0, 99))
def test_the_split_tower_is_exact(items: int, dim: int, hidden: list[int], number: int) -> None:
    torch.manual_seed(number)
    net = n.MLPNetwork(items, dim, tuple(hidden))
    tower = n.Tower.of({k: v.detach().numpy() for k, v in net.state_dict().items()})
    user = torch.randn(dim)
    with torch.no_grad():
        x = torch.cat([user.expand(items, dim), net.item], 1)
        for layer in (net.first, *net.rest):
            x = torch.relu(layer(x))
        expected = net.out(x)[:, 0].numpy()
        got = tower.logits((user @ net.first.weight[:, :dim].T).numpy())
    assert np.allclose(got, expected, atol=1e-5)


def test_negatives_are_fresh_and_never_met() -> None:
    settings_ = n.GMF(users=300, objective="pairs", ratio=3)
    task = n.RankingTask(n.GMFNetwork(60, 4), settings_, TRAIN, None)
    one, two, again = task.batch(0), task.batch(task.steps), task.batch(0)
    assert one.unmet is not None and two.unmet is not None and torch.equal(one.unmet, again.unmet)
    assert (one.unmet * one.met).sum() == 0 and one.unmet.sum() == 3 * (one.met > 0).sum()
    seen = {tuple(row) for row in one.unmet.numpy()} & {tuple(row) for row in two.unmet.numpy()}
    assert len(seen) < 5


@settings(deadline=None, max_examples=15)
@given(st.lists(st.permutations(range(7)), min_size=1, max_size=5), st.floats(0, 2), st.data())
def test_late_items_count_more_and_a_history_as_much_as_before(orders: list[list[int]], power: float, data) -> None:  # type: ignore[no-untyped-def]
    names = [[f"i{i}" for i in order[: data.draw(st.integers(0, 7))]] for order in orders]
    rows = r.new_histories(tuple(f"i{i}" for i in range(7)), names)
    counts = n.recent(rows, power).toarray()
    assert np.allclose(counts.sum(1), rows.lengths) and np.array_equal(counts > 0, rows.matrix().toarray() > 0)
    for row, own in zip(counts, names, strict=True):
        values = row[[int(name[1:]) for name in own]]
        assert np.allclose(values / values[-1:], np.arange(len(own), 0, -1.0) ** -power, rtol=1e-5)


def test_the_loss_counts_late_items_more_and_the_input_does_not() -> None:
    late, even = (n.RankingTask(n.GMFNetwork(60, 4), n.GMF(users=300, recency=x), TRAIN, None).batch(2) for x in (1, 0))
    assert torch.equal(late.histories, even.histories) and torch.equal(late.met > 0, even.met > 0)
    assert set(even.met.unique().tolist()) == {0.0, 1.0} and late.met.max() > 2
    assert torch.isclose(late.met.sum(), even.met.sum(), rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 5000), min_size=2, max_size=40), st.floats(0, 2), st.data())
def test_chances_of_items_add_up(popularity: list[int], power: float, data) -> None:  # type: ignore[no-untyped-def]
    k = data.draw(st.integers(1, len(popularity)))
    p = n.chances(np.array(popularity), k, power)
    assert np.isclose(p.sum(), k) and (p > 0).all() and (p <= 1).all()
    assert (np.diff(p[np.argsort(popularity)]) >= -1e-12).all()
    drawn = n.draw_items(p, np.random.default_rng(0))
    assert (
        len(np.unique(drawn)) == len(drawn)
        and abs(len(drawn) - k) <= 1
        and np.isin(np.flatnonzero(p == 1), drawn).all()
    )


@pytest.mark.parametrize("objective", ["squared", "pairs"])
def test_sums_over_drawn_items_estimate_those_over_the_catalogue(objective: n.Objective) -> None:
    net = n.GMFNetwork(60, 4)
    net.bias.data.fill_(0.5)  # so that unmet items have a loss

    def total(items: int, epoch: int) -> float:
        task = n.RankingTask(net, n.GMF(users=1000, objective=objective, items=items), TRAIN, None)
        batch = task.batch(epoch)
        with torch.no_grad():
            loss = n.ranking_loss(net(batch.histories * 0, batch.items), batch, objective)
        return float(loss * (batch.met * batch.weight).sum())

    assert np.isclose(np.mean([total(20, k) for k in range(60)]), total(0, 0), rtol=0.03)


@pytest.mark.parametrize("objective", ["softmax", "squared", "pairs"])
def test_a_weight_is_a_number_of_copies(objective: n.Objective) -> None:
    rng = torch.Generator().manual_seed(0)
    copies = torch.tensor([2, 1, 3, 1])
    twice = torch.repeat_interleave(torch.arange(4), copies)
    logits, taught = torch.randn(2, 3, 4, generator=rng)
    met = torch.tensor([[1.0, 0, 0, 2], [0, 0.5, 1, 0], [0, 0, 0, 1]])
    unmet = (met == 0).float() * 3

    def losses(at: torch.Tensor, weight: torch.Tensor) -> tuple[float, float]:
        batch = n.Batch(logits, at, met[:, at], unmet[:, at], None, weight)
        own = n.ranking_loss(logits[:, at], batch, objective)
        return float(own), float(n.teaching_loss(logits[:, at], taught[:, at], weight))

    assert losses(torch.arange(4), copies.float()) == pytest.approx(losses(twice, torch.ones(len(twice))), rel=1e-5)


def test_recency_finds_what_has_come_into_fashion() -> None:
    """In the second half of every history other items are met than in the first; the last item is of the second kind."""
    rng = np.random.default_rng(0)
    halves = [np.concatenate([rng.permutation(20)[:8], 20 + rng.permutation(20)[:8]]) for _ in range(300)]
    rows = r.new_histories(tuple(f"i{i}" for i in range(40)), [[f"i{i}" for i in h] for h in halves])
    few = {"dim": 8, "epochs": 15, "users": 50, "patience": 0}
    late, even = (n.GMF(recency=x, **few).fit(rows).topk(np.arange(300)).items >= 20 for x in (1.0, 0.0))  # type: ignore[arg-type]
    assert late.mean() > even.mean() + 0.1


def test_neumf_starts_at_the_gmf_that_it_trains_first() -> None:
    model = n.NeuMF(dim=4, hidden=(8,), wide=6, dropout=0.2, epochs=1, users=200, patience=0, rate=1e-9).fit(TRAIN)
    alone = n.GMF(6, dropout=0.2, patience=0).fit(TRAIN)
    assert np.allclose(model.score(range(9)), alone.score(range(9)), atol=1e-4)


def test_settings_of_older_checkpoints_are_read() -> None:
    config = r.to_config(n.NeuMF(start="svd"))
    for name in ("recency", "draw", "wide"):
        del config["settings"][name]
    model = r.from_config(config)
    assert isinstance(model, n.NeuMF) and model.start == "svd"


def test_a_teacher_is_imitated_and_written_into_the_configuration(tmp_path: Path) -> None:
    teacher = m.EASE(l2=100)
    student = n.GMF(**SMALL | {"dropout": 0.0}, teacher=teacher, teach=1.0).fit(TRAIN)
    own, taught = student.score(range(200)), m.EASE(l2=100).fit(TRAIN).score(range(200))
    agree = [np.corrcoef(x, y)[0, 1] for x, y in zip(own, taught, strict=True)]
    assert np.median(agree) > 0.9
    r.save_recommender(student, tmp_path)
    back = r.load_recommender(tmp_path)
    assert isinstance(back, n.GMF) and isinstance(back.teacher, m.EASE) and back.teacher.l2 == 100
    assert np.array_equal(back.score([3]), student.score([3]))


def test_early_stopping_ends_before_the_last_epoch_and_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    real = n.fit
    monkeypatch.setattr(n, "fit", lambda task, config: found.append(real(task, config)))
    n.GMF(**SMALL | {"epochs": 40, "rate": 0.1, "patience": 1}).fit(TRAIN)
    assert found[0].reason == "early" and 0 < found[0].best_step <= found[0].step < 40 * 16


def test_settings_that_make_no_sense() -> None:
    for wrong in (
        {"dropout": 1.0},
        {"epochs": 0},
        {"objective": "hinge"},
        {"teach": 2.0},
        {"start": "gmf"},
        {"recency": -1.0},
        {"draw": -1.0},
    ):
        with pytest.raises(InputError):
            n.GMF(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="wide"):
        n.NeuMF(wide=0)


# The seed's checkpoints -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(fitted, tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("seed") / "ncf_benchmark_v1.pt"
    seed.write_seed_checkpoint(fitted["mlp"], path, {"ndcg@10": np.float32(0.55)})
    return path


def test_a_seed_checkpoint_round_trips(written: Path, fitted) -> None:  # type: ignore[no-untyped-def]
    back = seed.read_seed_checkpoint(written)
    assert np.allclose(back.score(range(40)), fitted["mlp"].score(range(40)), atol=1e-4)
    content = torch.load(written, weights_only=True)
    assert set(content) == {
        "model_state_dict",
        "user_id_map",
        "item_id_map",
        "num_users",
        "num_items",
        "embedding_dim",
        "hidden_layers",
        "training_metrics",
    }
    net = seed.NCFModel(1000, 60, 16, (32, 16))
    net.load_state_dict(content["model_state_dict"])
    with torch.no_grad():
        p = net(torch.full((60,), 3), torch.arange(60)).numpy()
    assert np.allclose(p, 1 / (1 + np.exp(-back.score(3)[0])), atol=1e-5) and ((p > 0) & (p < 1)).all()


def test_tensors_may_have_other_names(written: Path, tmp_path: Path) -> None:
    content = torch.load(written, weights_only=True)
    content["model_state_dict"] = {f"x.{k}": v for k, v in content["model_state_dict"].items()}
    torch.save(content, tmp_path / "a.pt")
    assert np.allclose(
        seed.read_seed_checkpoint(tmp_path / "a.pt").score(3), seed.read_seed_checkpoint(written).score(3)
    )


def test_a_changed_file_is_refused(written: Path, tmp_path: Path) -> None:
    body = bytearray(written.read_bytes())
    body[len(body) // 3] ^= 1
    (tmp_path / "a.pt").write_bytes(body)
    (tmp_path / "a.pt.sha256").write_bytes(written.with_name(written.name + ".sha256").read_bytes())
    with pytest.raises(StreamError, match="does not match"):
        seed.read_seed_checkpoint(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(body[: len(body) // 2])
    with pytest.raises(StreamError):
        seed.read_seed_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"num_users": 999},
        {"hidden_layers": [32]},
        {"user_id_map": {"a": 0}},
        {"item_id_map": None},
        {"model_state_dict": []},
        {"embedding_dim": "wide"},
    ],
)
def test_contradictions_are_refused(written: Path, tmp_path: Path, change: dict[str, object]) -> None:
    torch.save(torch.load(written, weights_only=True) | change, tmp_path / "a.pt")
    with pytest.raises(StreamError):
        seed.read_seed_checkpoint(tmp_path / "a.pt")


def test_numbers_that_are_not_finite_are_refused(written: Path, tmp_path: Path) -> None:
    content = torch.load(written, weights_only=True)
    content["model_state_dict"]["output.bias"][0] = float("nan")
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(StreamError, match="finite"):
        seed.read_seed_checkpoint(tmp_path / "a.pt")


def test_nothing_in_a_pickle_is_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "exploded",)

    torch.save({"model_state_dict": Bomb()}, tmp_path / "a.pt")
    with pytest.raises(StreamError, match="more than tensors"):
        seed.read_seed_checkpoint(tmp_path / "a.pt")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        z.writestr("archive/data.pkl", b"not a pickle")
    (tmp_path / "b.pt").write_bytes(buffer.getvalue())
    with pytest.raises(StreamError):
        seed.read_seed_checkpoint(tmp_path / "b.pt")
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(InputError, match="no file"):
        seed.read_seed_checkpoint(tmp_path / "none.pt")


# Attention --------------------------------------------------------------------------------------------------------


def test_attention_reads_the_order_and_finds_the_succession() -> None:
    world = d.simulate_interactions(1000, 60, length=15, seed=1)
    split = d.leave_one_out(world.data)
    model = a.AttentionNCF(dim=24, epochs=30, users=64, rate=5e-3, patience=0).fit(split.train)
    late = e.gap_strata(split) == "a day or more"
    mine = e.rank(model.score, split)["full"].ndcg()[~late].mean()
    best = e.rank(lambda u, now: world.oracle(d.take_users(split.train, u), u, now), split)["full"].ndcg()[~late].mean()
    assert 0.8 * best < mine < 1.05 * best
    names = [split.train.item_ids[i] for i in split.train.history(5)]
    assert np.allclose(model.fold_in(names), model.score(5)[0], atol=1e-4)
    assert not np.allclose(model.fold_in(names[::-1]), model.score(5)[0], atol=1e-2)
    net = a.AttentionNetwork(60, 24)
    net.load_state_dict({k: torch.from_numpy(v) for k, v in model.arrays.items() if k != "popularity"})
    few = d.take_users(split.train, range(9))
    rows, last = torch.from_numpy(n.weighted(few).toarray()), torch.from_numpy(a.last_items(few))
    with torch.no_grad():
        assert np.allclose(net(rows, torch.arange(60), last).numpy(), model.score(few), atol=1e-4)


def test_a_cut_shows_nothing_of_what_comes_after() -> None:
    task = a.NextTask(a.AttentionNetwork(60, 4), a.AttentionNCF(users=200), TRAIN, None)
    cut = task.cut(1)
    assert torch.equal(cut.met, task.cut(1).met) and not torch.equal(cut.met, task.cut(2).met)
    for row, u in enumerate(task._order[200:400]):
        own = TRAIN.history(u).tolist()
        at = own.index(int(cut.answer[row]))
        assert set(torch.nonzero(cut.met[row])[:, 0].tolist()) == set(own[:at])
        last = [i for i in cut.last[row].tolist() if i >= 0]
        assert last == own[:at][::-1][: a.LAGS]
