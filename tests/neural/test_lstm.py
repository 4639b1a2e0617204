"""LSTM codec: windows, attention, causality, gradients, exactness, files, codec, damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from contract import ODD_INPUTS, check_damage, check_finer_steps, check_odd_input, check_steps_without_sense

from nbmf_research.core import InputError
from nbmf_research.metrics import snr_db
from nbmf_research.neural import learned as nl
from nbmf_research.neural import lstm
from nbmf_research.neural.entropy import Hyperprior
from nbmf_research.neural.simulate import simulate
from nbmf_research.training import Shard

SMALL = {"stride": 16, "latents": 16, "hidden": 8, "bands": 2, "memory": 8, "reach": 4}


@pytest.fixture(scope="module")
def lfp() -> np.ndarray:
    return np.asarray(simulate("lfp", seconds=6.0, seed=1).recording.values)


def trained_on(lfp: np.ndarray, steps: int, **config: int) -> tuple[nl.LearnedModel, list[float]]:
    torch.manual_seed(0)
    model = nl.make_model("lstm", **(SMALL | config))
    task = nl.RateDistortionTask(model, [nl.components(lfp)], [nl.components(lfp)], batch=6, frames=24)
    optimiser, losses = torch.optim.Adam(model.parameters(), 5e-3), []
    for step, batch in zip(range(steps), task.batches(0, Shard(0, 1)), strict=False):
        optimiser.zero_grad()
        loss = task.loss(model, batch, step)["loss"]
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return model.eval(), [*losses, task.validate(model, Shard(0, 1))["loss"]]


@pytest.fixture(scope="module")
def trained(lfp: np.ndarray) -> nl.LearnedModel:
    return trained_on(lfp, 30)[0]


@pytest.mark.parametrize("config", [{}, {"causal": 1}, {"recurrent": 0}, {"reach": 0}, {"summary": 4, "transform": 1}])
def test_starts_as_a_transform_and_every_parameter_learns(config: dict[str, int], lfp: np.ndarray) -> None:
    torch.manual_seed(0)
    model = nl.make_model("lstm", **(SMALL | config)).eval()
    x = 20 * torch.randn(2, 1, 301)
    with torch.no_grad():
        assert (model.synthesise(model.analyse(x), 301) - x).square().mean() < 0.05
    model, _ = trained_on(lfp, 2, **config)  # the branches' last layers are no longer zero
    model.train().zero_grad()
    out = model(nl.excerpts([nl.components(lfp)], 400, 4, np.random.default_rng(0)))
    (out["bits"].sum() + out["x_hat"].square().sum()).backward()
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert fixed == (set() if model.config.transform else {"g_a.weight", "g_s.weight"})
    for name, p in model.named_parameters():
        if name not in fixed:
            assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any(), name


def test_training_lowers_the_loss(lfp: np.ndarray) -> None:
    assert trained_on(lfp, 30)[1][-1] < 0.9 * trained_on(lfp, 1)[1][-1]
    assert trained_on(lfp, 3)[1] == trained_on(lfp, 3)[1]


def test_the_prior_is_a_choice() -> None:
    assert isinstance(nl.make_model("lstm", **SMALL, summary=4).entropy, Hyperprior)
    assert isinstance(nl.make_model("lstm", **SMALL).entropy, lstm.Autoregressive)


def test_windows_bound_memory_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    bend = lstm.LstmBend(lstm.LstmConfig(**SMALL)).eval()
    torch.nn.init.normal_(bend.leave.weight)
    longest = []
    bend.attention.register_forward_pre_hook(lambda _, x: longest.append(x[0].shape[1]))
    y = 5 * torch.randn(1, 16, 10_000)
    with torch.no_grad():
        parts = bend(y)
        assert parts.shape == y.shape and max(longest) <= lstm.WINDOW + 2 * lstm.MARGIN
        monkeypatch.setattr(lstm, "WINDOW", 800)
        assert (bend(y[..., :800]) - parts[..., :800])[..., : 800 - lstm.MARGIN].abs().max() < 1e-3


@pytest.mark.parametrize("causal", [0, 1])
def test_attention_sees_its_neighbours_and_no_others(causal: int) -> None:
    x = torch.randn(2, 30, 8, requires_grad=True)
    lstm.LocalAttention(8, 5, bool(causal))(x)[:, 12].sum().backward()
    assert x.grad is not None
    seen = x.grad.abs().sum((0, 2)).nonzero()[:, 0].tolist()
    assert seen == list(range(7, 13 if causal else 18))


def test_causal_means_no_look_ahead(lfp: np.ndarray) -> None:
    model, _ = trained_on(lfp, 3, causal=1)
    x = torch.from_numpy(nl.components(lfp)[:2, None] / 20).float()
    for n in (320, 5000):
        other = x.clone()
        other[..., n:] += 40
        with torch.no_grad():
            a, b = model.analyse(x), model.analyse(other)
            assert torch.equal(a[..., : n // 16], b[..., : n // 16]) and not torch.equal(a, b)
            a, b = (model.synthesise(torch.round(v), 6000) for v in (a, b))
        whole = n // 16 * 16 - 16  # blocks whose two frames are complete
        assert torch.equal(a[..., :whole], b[..., :whole])


@pytest.mark.parametrize("config", [{}, {"causal": 1}, {"recurrent": 0, "reach": 0}, {"summary": 4}])
def test_decoding_is_exact_after_saving(config: dict[str, int], lfp: np.ndarray, tmp_path: Path) -> None:
    exact = nl.ExactModel.of(trained_on(lfp, 5, **config)[0])
    x = nl.components(lfp)[:3, :1001] / 10
    stream = exact.compress(x)
    y = exact.decompress(stream, 3, 1001)
    assert snr_db(x.T, y.T) > 10
    sha = nl.save_model(exact, tmp_path / "m.safetensors")
    again = nl.load_model(tmp_path / "m.safetensors", sha256=sha)
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        assert (again.decompress(stream, 3, 1001) == y).all()
    finally:
        torch.set_num_threads(threads)
    assert again.compress(x) == stream
    q = exact.entropy.decompress(stream, (3, 16, 64))
    bend = exact.g_s_bend.reference(q.clip(-127, 127))
    assert (exact.g_s_bend(torch.from_numpy(q.clip(-127, 127)).float()).numpy() == bend).all()
    for row in range(3):  # the same latents by themselves give the same samples
        alone = exact.decompress(exact.entropy.compress(q[row : row + 1]), 1, 1001)
        assert (alone[0] == y[row]).all()


def test_the_decoder_agrees_with_the_trained_twin(trained: nl.LearnedModel, lfp: np.ndarray) -> None:
    exact = nl.ExactModel.of(trained)
    x = torch.from_numpy(nl.components(lfp)[:2, None, :900] / 15).float()
    with torch.no_grad():
        out = trained(x, "round")
        y = exact.synthesise(torch.floor(trained.analyse(x) + 0.5).long().numpy(), 900)
    gap = np.abs(y - out["x_hat"][:, 0].numpy())
    assert gap.mean() < 0.05 and gap.max() < 0.01 * np.abs(y).max()  # the linear weights have 12 bits


def test_the_release_codes_and_batches_do_not_matter(lfp: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = lstm.LstmCodec(step=float(lfp.std()) / 3)
    stream = codec.compress(lfp[:3000])
    first = codec.decompress(stream).values
    assert snr_db(lfp[:3000], first) > 10 and 4 * lfp[:3000].size > 8 * len(stream)
    monkeypatch.setattr(nl, "_BATCH", 3000)
    assert np.abs(codec.decompress(codec.compress(lfp[:3000])).values - first).max() < 3 * codec.step


@pytest.mark.parametrize("x", ODD_INPUTS)
def test_odd_inputs_survive(x: np.ndarray) -> None:
    check_odd_input(lstm.LstmCodec, x, within=12)


def test_finer_steps_give_better_copies(lfp: np.ndarray) -> None:
    check_finer_steps(lstm.LstmCodec, lfp)


def test_damage_and_nonsense(lfp: np.ndarray) -> None:
    check_damage(lstm.LstmCodec, lfp)
    check_steps_without_sense(lstm.LstmCodec, lfp)
    for config in ({"hidden": 10}, {"latents": 66}, {"bands": 0}, {"memory": 0}, {"depth": 1}):
        with pytest.raises(InputError):
            nl.make_model("lstm", **config)
