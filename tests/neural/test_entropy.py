"""Entropy models: bytes against densities, escapes, hyperprior through exact networks, files, damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.coding.tables import bits as table_bits
from nbmf_research.core import InputError, StreamError
from nbmf_research.neural.entropy import (
    EntropyModel,
    FactorizedPrior,
    FrozenHyperprior,
    FrozenModel,
    Hyperprior,
    IntegerPrior,
    LearnedSteps,
    compress_scaled,
    conditional_bits,
    decompress_scaled,
    load_parts,
    quantise,
    save_parts,
    scale_of,
)


@pytest.fixture(scope="module")
def trained() -> Hyperprior:
    """A hyperprior after a few updates on bursts."""
    torch.manual_seed(0)
    model = Hyperprior(5, hidden=8, summary=2, stride=4)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    level = torch.exp2(2 * torch.randn(16, 1, 16)).repeat_interleave(4, -1)
    y = torch.randn(16, 5, 64) * level
    for _ in range(60):
        optimiser.zero_grad()
        model(y)["bits"].mean().backward()
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize("rounding", ["noise", "straight", "round"])
def test_quantise_stays_near(rounding: str) -> None:
    y = torch.randn(2, 3, 50, requires_grad=True)
    q = quantise(y, rounding)  # type: ignore[arg-type]
    assert (q - y).abs().max() <= 0.5
    if rounding != "noise":
        assert torch.equal(q, torch.floor(y + 0.5))
    assert q.requires_grad == (rounding != "round")


def test_learned_steps_get_a_gradient() -> None:
    steps = LearnedSteps(3, 0.5)
    q, back = steps(torch.randn(2, 3, 20), "straight")
    assert torch.allclose(back, q * 0.5)
    back.square().sum().backward()
    assert steps.log2_step.grad is not None and (steps.log2_step.grad != 0).all()


def test_factorised_bytes_match_the_density() -> None:
    torch.manual_seed(0)
    prior = FactorizedPrior(4)
    q = torch.round(2 * torch.randn(3, 4, 2000))
    tables = prior.freeze(32)
    stream = tables.compress(q)
    assert (tables.decompress(stream, (3, 4, 2000)) == q.numpy()).all()
    assert 8 * len(stream) == pytest.approx(float(prior.bits(q).sum().detach()), rel=0.01)


def test_likelihoods_are_a_distribution() -> None:
    values = torch.arange(-3000, 3001.0).expand(1, 2, -1)
    total = FactorizedPrior(2).likelihoods(values).sum(-1)
    assert torch.allclose(total, torch.ones(1, 2), atol=1e-2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(2**30), 2**30), min_size=1, max_size=40), st.integers(1, 9))
def test_any_integers_survive_the_tables(values: list[int], reach: int) -> None:
    tables = FactorizedPrior(1).freeze(reach)
    q = np.array(values)[None, None]
    assert tables.reach == reach
    assert (tables.decompress(tables.compress(q), q.shape) == q).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**20), 2**20), st.integers(-80, 110)), min_size=1, max_size=40))
def test_any_integers_survive_the_scales(pairs: list[tuple[int, int]]) -> None:
    q, quarters = (np.array(c, np.int64)[None, None] for c in zip(*pairs, strict=True))
    assert (decompress_scaled(compress_scaled(q, quarters), quarters) == q).all()


def test_conditional_density_and_tables_agree() -> None:
    rng = np.random.default_rng(0)
    for mean in (0.5, 4.0, 32.0):
        q = np.rint(rng.logistic(0, mean * 0.72, 5000)).astype(np.int64)
        quarters = np.full(q.shape, round(4 * np.log2(mean)))
        density = float(conditional_bits(torch.from_numpy(q), torch.from_numpy(quarters / 4)).sum())
        assert density == pytest.approx(table_bits(q, scale_of(quarters)), rel=0.05)


def test_conditional_bits_have_finite_gradients() -> None:
    y = torch.tensor([0.0, 0.3, 5.0, 4000.0], requires_grad=True)
    m = torch.tensor([-12.0, 0.0, 8.0, -3.0], requires_grad=True)
    bits = conditional_bits(y, m)
    bits.sum().backward()
    assert torch.isfinite(bits).all() and torch.isfinite(y.grad).all() and torch.isfinite(m.grad).all()


def test_hyperprior_round_trip(trained: Hyperprior) -> None:
    frozen = trained.freeze()
    assert isinstance(trained, EntropyModel) and isinstance(frozen, FrozenModel)
    for steps in (1, 3, 64, 65):
        q = np.random.default_rng(steps).integers(-9, 10, (2, 5, steps))
        stream = frozen.compress(q)
        assert (frozen.decompress(stream, (2, 5, steps)) == q).all()
    with torch.no_grad():
        out = trained(torch.from_numpy(q).float(), "round")
    assert set(out) == {"y_hat", "bits"} and 8 * len(stream) < 1.3 * float(out["bits"].sum()) + 500


def test_hyperprior_bytes_do_not_depend_on_threads(trained: Hyperprior) -> None:
    frozen = trained.freeze()
    q = np.random.default_rng(0).integers(-50, 50, (3, 5, 200))
    stream, threads = frozen.compress(q), torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        assert (frozen.decompress(stream, (3, 5, 200)) == q).all()
    finally:
        torch.set_num_threads(threads)


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(1)
    model = Hyperprior(3, hidden=8, summary=2, stride=4)
    (model(5 * torch.randn(4, 3, 64))["bits"].sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_model_file_survives(tmp_path: Path, trained: Hyperprior) -> None:
    frozen = trained.freeze()
    path = tmp_path / "m.safetensors"
    sha = save_parts(path, {"h_s": frozen.h_s}, {"cdf": frozen.prior.cdf})
    nets, arrays = load_parts(path, sha256=sha)
    again = FrozenHyperprior(IntegerPrior(arrays["cdf"]), nets["h_s"], frozen.stride, frozen.summarise)
    q = np.random.default_rng(0).integers(-9, 10, (1, 5, 40))
    assert again.compress(q) == frozen.compress(q)
    with pytest.raises(StreamError, match="SHA-256"):
        load_parts(path, sha256="0" * 64)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StreamError, match="damaged"):
        load_parts(path)


@pytest.mark.parametrize(
    "bad", [np.full((1, 2, 3), 0.5), np.zeros((1, 3, 3)), np.zeros(4), np.full((1, 2, 3), 2.0**31)]
)
def test_nonsense_latents_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(InputError):
        FactorizedPrior(2).freeze(4).compress(bad)


def test_cut_streams_are_refused(trained: Hyperprior) -> None:
    frozen = trained.freeze()
    stream = frozen.compress(np.random.default_rng(0).integers(-9, 10, (1, 5, 400)))
    for size in (0, 2, 6):
        with pytest.raises(StreamError):
            frozen.decompress(stream[:size], (1, 5, 400))
    with pytest.raises(StreamError):
        frozen.prior.decompress(b"\x01", (1, 2, 5))
