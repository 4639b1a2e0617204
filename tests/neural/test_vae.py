"""Variational autoencoder: divergence, training, activity, prediction of the error, codec."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from contract import ODD_INPUTS, check_damage, check_finer_steps, check_odd_input, check_steps_without_sense
from torch.distributions import Normal, kl_divergence

from nbmf_research import training
from nbmf_research.core import InputError, StreamError, seed_everything
from nbmf_research.metrics import snr_db
from nbmf_research.neural import learned as le
from nbmf_research.neural import vae
from nbmf_research.neural.codec import create_codec, decompress
from nbmf_research.neural.simulate import simulate

SMALL = {"stride": 16, "latents": 16, "hidden": 8}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> vae.VariationalTask:
    seed_everything(0)
    made = vae.VariationalTask(["sim_lfp"], SMALL, keep=8, batch=8, frames=48, warmup=20)
    how = training.TrainConfig(
        str(tmp_path_factory.mktemp("run")),
        80,
        optimizer=training.OptimizerConfig(4e-3),
        log=training.LogConfig(progress=False),
    )
    training.fit(made, how)
    return made


def test_the_divergence_is_that_of_two_gaussians() -> None:
    mean, log_variance, log2_mean = torch.randn(3, 50).unbind()
    prior = (0.5 * math.pi * torch.exp2(2 * log2_mean) + vae.ROUNDING_VARIANCE).sqrt()
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros(50), prior))
    assert torch.allclose(vae.divergence(mean, log_variance, log2_mean), expected, atol=1e-5)


def test_training_lowers_the_loss_and_reaches_every_parameter(task: vae.VariationalTask) -> None:
    seed_everything(0)
    fresh = le.make_model("vae", **SMALL).eval()
    shard = training.Shard()
    assert task.validate(task.module.eval(), shard)["loss"] < 0.95 * task.validate(fresh, shard)["loss"]
    task.module.zero_grad()
    task.loss(task.module.train(), task.draw(task.sources, 0), 100)["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in task.module.parameters())


def test_beta_rises(task: vae.VariationalTask) -> None:
    x = task.draw(task.sources, 1)
    values = []
    for step in (0, 10, 20, 40):
        torch.manual_seed(0)
        out = task.loss(task.module, x, step)
        values.append(float((out["loss"] - out["error"] / le.TRADE).detach()))
    assert values[0] == pytest.approx(0, abs=1e-6) and values[1] == pytest.approx(values[2] / 2, rel=1e-4)
    assert values[2] == pytest.approx(values[3], rel=1e-4)


def test_divergence_and_code_length_are_alike(task: vae.VariationalTask) -> None:
    x = task.draw(task.held, 0)
    model = task.module.eval()
    with torch.no_grad():
        drawn, rounded = model(x)["bits"].sum(), model(x, "round")["bits"].sum()
    assert 0.6 < float(drawn / rounded) < 1.7


def test_activity_follows_the_step(task: vae.VariationalTask) -> None:
    model = task.module
    assert isinstance(model, vae.VAE)
    fine, coarse = (le.excerpts(task.held, 512, 32, np.random.default_rng(0), quality=(q, q)) for q in (28.0, -6.0))
    a, b = vae.activity(model, fine), vae.activity(model, coarse)
    assert a.active > b.active and a.kl.sum() > b.kl.sum() and (a.kl > -1e-4).all()
    dead = vae.activity(model, torch.zeros(4, 1, 512))
    assert dead.active == 0


def test_predictions_of_the_error(task: vae.VariationalTask) -> None:
    model = task.module
    assert isinstance(model, vae.VAE)
    x = task.draw(task.held, 3)
    for predicted in (vae.predicted_error(model, x), vae.dropout_spread(model, x, 3), vae.true_error(model, x)):
        assert predicted.shape == (8,) and torch.isfinite(predicted).all() and (predicted >= 0).all()
    assert not model.training and not any(m.training for m in model.modules())
    with torch.no_grad():
        assert torch.equal(model(x, "round")["x_hat"], model(x, "round")["x_hat"])  # no dropout is left on


def test_decoding_is_exact_and_the_spread_is_kept(task: vae.VariationalTask, tmp_path: Path) -> None:
    exact = le.ExactModel.of(task.module)
    x = task.held[0][:3, :999] / task.held[0].std() * 8
    stream = exact.compress(x)
    sha = le.save_model(exact, tmp_path / "m.safetensors")
    again = le.load_model(tmp_path / "m.safetensors", sha256=sha)
    assert (again.decompress(stream, 3, 999) == exact.decompress(stream, 3, 999)).all()
    part = torch.from_numpy(x[:, None]).float()
    assert isinstance(again.model, vae.VAE) and isinstance(task.module, vae.VAE)
    assert torch.equal(again.model.posterior(part)[1], task.module.eval().posterior(part)[1])


@pytest.mark.parametrize("x", ODD_INPUTS)
def test_odd_inputs_survive(x: np.ndarray) -> None:
    check_odd_input(vae.VaeCodec, x, within=12)


def test_the_codec() -> None:
    x = simulate("lfp", seconds=4.0, seed=5).recording.values
    qualities = []
    for part in (2, 8):
        stream = create_codec("vae", step=float(x.std()) / part).compress(x)
        qualities.append(snr_db(x, decompress(stream).values))
    assert qualities[1] > qualities[0] + 6
    with pytest.raises(StreamError):
        decompress(stream[:-1])
    with pytest.raises(InputError):
        vae.VaeConfig(dropout=-1)
    check_finer_steps(vae.VaeCodec, x)
    check_damage(vae.VaeCodec, x)
    check_steps_without_sense(vae.VaeCodec, x)
