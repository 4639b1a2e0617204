"""Transformer codec: positions and kinds of attention, gradients, training, exact steps, files, codec, damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from contract import ODD_INPUTS, check_damage, check_finer_steps, check_odd_input

from nbmf_research.core import InputError
from nbmf_research.metrics import snr_db
from nbmf_research.neural import learned
from nbmf_research.neural import transformer as tf
from nbmf_research.neural.simulate import simulate

SMALL = {"stride": 16, "latents": 16, "hidden": 16, "width": 16, "bands": 2, "before": 15, "window": 4}


@pytest.fixture(scope="module")
def lfp() -> np.ndarray:
    return np.asarray(simulate("lfp", seconds=8.0, seed=1).recording.values)


@pytest.fixture(scope="module")
def task(lfp: np.ndarray) -> learned.RateDistortionTask:
    torch.manual_seed(0)
    source = [learned.components(lfp)]
    return learned.RateDistortionTask(learned.make_model("transformer", **SMALL), source, source, batch=8, frames=40)


def validate(task: learned.RateDistortionTask) -> float:
    return task.validate(task.module.eval(), learned.Shard(0, 1))["loss"]


@pytest.fixture(scope="module")
def trained(task: learned.RateDistortionTask) -> tf.Transformer:
    before = validate(task)
    optimiser = torch.optim.Adam(task.module.train().parameters(), 1e-3)
    for number in range(60):
        optimiser.zero_grad()
        task.loss(task.module, task.draw(task.sources, number), number)["loss"].backward()
        optimiser.step()
    assert validate(task) < 0.95 * before, "the loss falls"
    assert isinstance(task.module, tf.Transformer)
    return task.module.eval()


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("positions", [0, 1])
def test_gradients_reach_every_parameter(kind: int, positions: int) -> None:
    torch.manual_seed(kind)
    places = dict.fromkeys(("sinusoidal", "learned", "relative"), positions)
    model = learned.make_model("transformer", **SMALL, **places, kind=kind)
    torch.nn.init.normal_(model.g_a_bend.head.weight, std=0.1)
    torch.nn.init.normal_(model.g_s_bend.layers[-1].weight, std=0.1)
    x = 20 * torch.randn(4, 1, 64 * 16)
    out = model(x)
    (out["bits"].sum() + (out["x_hat"] - x).square().sum()).backward()
    wanted = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    missed = [n for n, p in wanted if p.grad is None or not torch.isfinite(p.grad).all() or not p.grad.abs().sum() > 0]
    assert not missed and any("bias" in n and p.ndim == 2 for n, p in wanted) == bool(positions)


@pytest.mark.parametrize(
    "sizes", [{"layers": 0}, {"decoder": 0}, {"blocks": 0}, {"bands": 0}, {"latents": 8}, {"heads": 16}]
)
def test_starts_as_a_transform_coder(sizes: dict[str, int]) -> None:
    model = learned.make_model("transformer", **SMALL | sizes).eval()
    x = 20 * torch.sin(0.05 * torch.arange(301.0))[None, None]
    with torch.no_grad():
        assert (model.synthesise(model.analyse(x), 301) - x).square().mean() < 0.5
        assert model(x, "round")["bits"].shape == (1,)


def test_kinds_see_what_they_should() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 120, 16)
    for number, seen in ((0, 120), (1, 9), (3, 120)):
        attention = tf.FloatAttention(16, 4, number, window=4)
        moved = x.clone()
        moved[:, 60] += 1
        with torch.no_grad():
            changed = (attention(moved) - attention(x)).abs().amax((0, 2)) > 1e-7
        assert int(changed.sum()) == seen
    sparse = tf.FloatAttention(16, 4, 2, window=4)
    with torch.no_grad():
        changed = ((sparse(moved) - sparse(x)).abs().amax((0, 2)) > 1e-7).nonzero()[:, 0].tolist()
    assert changed == sorted({*range(56, 65), *range(28, 93, 8)})


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_long_sequences_are_as_short_ones(kind: int) -> None:
    torch.manual_seed(0)
    attention = tf.FloatAttention(16, 8, kind, window=16)
    x = torch.randn(1, 10_240, 16)
    with torch.no_grad():
        y = attention(x)
        if kind != 3:
            assert torch.allclose(y[:, 512:1024], attention(x[:, :2048])[:, 512:1024], atol=1e-5)
    assert y.shape == x.shape and torch.isfinite(y).all()


def test_local_attention_of_everything_is_full() -> None:
    torch.manual_seed(0)
    local, full = tf.FloatAttention(16, 4, 1, window=50), tf.FloatAttention(16, 4, 0, window=50)
    full.load_state_dict(local.state_dict())
    x = torch.randn(2, 40, 16)
    with torch.no_grad():
        assert torch.allclose(local(x), full(x), atol=1e-5)


def test_training_reproduces(lfp: np.ndarray) -> None:
    def once() -> list[float]:
        torch.manual_seed(3)
        source = [learned.components(lfp)]
        task = learned.RateDistortionTask(
            learned.make_model("transformer", **SMALL), source, source, batch=4, frames=20
        )
        optimiser, losses = torch.optim.Adam(task.module.parameters(), 1e-3), []
        for number in range(3):
            optimiser.zero_grad()
            loss = task.loss(task.module, task.draw(source, number), number)["loss"]
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        return losses

    assert once() == once()


def test_decoding_is_exact_however_it_is_run(trained: tf.Transformer, lfp: np.ndarray, tmp_path: Path) -> None:
    exact = learned.ExactModel.of(trained)
    x = learned.components(lfp)[:3, :1001] / 10
    stream = exact.compress(x)
    y = exact.decompress(stream, 3, 1001)
    assert snr_db(x.T, y.T) > 10
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    assert (exact.decompress(stream, 3, 1001) == y).all()
    torch.set_num_threads(threads)
    q = exact.entropy.decompress(stream, (3, 16, 64))
    for row in range(3):
        alone = exact.entropy.compress(q[row : row + 1])
        assert (exact.entropy.decompress(alone, (1, 16, 64)) == q[row]).all()
        assert (exact.synthesise(q[row : row + 1], 1001) == y[row]).all()
    sha = learned.save_model(exact, tmp_path / "m.safetensors")
    again = learned.load_model(tmp_path / "m.safetensors", sha256=sha)
    assert (again.decompress(stream, 3, 1001) == y).all() and again.compress(x) == stream
    bend = exact.g_s_bend.reference(np.clip(q, -127, 127))[:, 0, 16:]
    blocks = np.einsum("bkt,kj->btj", q, exact.g_s.astype(np.int64))
    linear = (blocks[:, 1:, :16] + blocks[:, :-1, 16:]).reshape(3, -1)
    assert ((linear + bend * 256)[:, :1001] / 4096 == y).all()


def test_prior_steps_equal_the_parallel_pass_and_the_twin(trained: tf.Transformer) -> None:
    frozen = trained.entropy.freeze().net
    x = np.random.default_rng(0).integers(0, 40, (2, 10, 80))
    at_once, go = frozen.parallel(x), frozen.start(2)
    assert (np.stack([go(x[..., t]) for t in range(80)], -1) == at_once).all()
    with torch.no_grad():
        assert (4 * trained.entropy.net(torch.from_numpy(x / 4).float()) == torch.from_numpy(at_once)).all()
    later = x.copy()
    later[..., 50:] = 0
    assert (frozen.parallel(later)[..., :50] == at_once[..., :50]).all(), "causal"


@pytest.mark.parametrize("cuts", [[1] * 64, [64], [0, 3, 40, 0, 21], [63, 1]])
def test_streaming_synthesis_equals_the_whole(trained: tf.Transformer, cuts: list[int]) -> None:
    exact = learned.ExactModel.of(trained)
    q = np.random.default_rng(1).integers(-200, 201, (2, 16, 64))
    stream, start, got = tf.Synthesis(exact), 0, []
    for i, n in enumerate(cuts):
        got.append(stream.push(q[..., start : start + n], last=i == len(cuts) - 1))
        start += n
    assert (np.concatenate(got, 1) == exact.synthesise(q, 63 * 16)).all()


@pytest.fixture(scope="module")
def released() -> None:
    if tf.TransformerCodec.release not in {w.name for w in learned_weights()}:
        pytest.skip("the released weights are not here")


def learned_weights() -> list:  # type: ignore[type-arg]
    from nbmf_research.neural.weights import list_weights

    return list_weights()


def test_released_weights_are_small_and_described(released: None) -> None:
    from nbmf_research.neural.weights import find_weights

    found = find_weights("transformer")
    assert found.path.stat().st_size == found.card["bytes"] < 1_000_000
    assert found.card["model"] == "transformer" and found.card["figures"] and found.card["limits"]
    assert isinstance(learned.exact_model("transformer").model, tf.Transformer)


def test_finer_steps_give_better_copies(released: None, lfp: np.ndarray) -> None:
    check_finer_steps(tf.TransformerCodec, lfp[:4000])


@pytest.mark.parametrize("x", ODD_INPUTS)
def test_odd_inputs_survive(released: None, x: np.ndarray) -> None:
    check_odd_input(tf.TransformerCodec, x, within=20)


def test_damage_and_nonsense(released: None, lfp: np.ndarray) -> None:
    check_damage(tf.TransformerCodec, lfp)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden": 12},
        {"width": 12},
        {"heads": 0},
        {"kind": 4},
        {"window": 256},
        {"before": 512},
        {"bands": 3},
        {"layers": -1},
    ],
)
def test_impossible_shapes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError):
        learned.make_model("transformer", **SMALL | sizes)
