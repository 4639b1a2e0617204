"""Fitting the contexts: what is recorded is what the codec does; the density is that of the tables; training helps and reproduces."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nbmf_research.neural.adaptive import Model, analyse, band_gains, begin, encode_blocks, fit_graph, model_of
from nbmf_research.neural.contexts import LAMBDA, N_HINTS, Shape, make_tables, new_scratch, plain_net
from nbmf_research.neural.fitting import ContextFit, fit_contexts, record, record_blocks, thin

SHAPE = Shape(
    np.stack([np.linspace(104, 34, 19), np.linspace(70, 10, 19)]).astype(np.int64),
    np.array([[11, 46], [11, 46]]),
    np.zeros((2, 17, 3), np.int64),
)
START = Model(plain_net(), make_tables(SHAPE))


def source(n: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.asarray(rng.normal(size=(n, 3)).cumsum(0) @ rng.normal(size=(3, 6)) + rng.normal(size=(n, 6)))


@pytest.fixture(scope="module")
def recorded():
    return record([source()], START, seed=0, keep=3000)


def test_records_are_what_the_codec_sees() -> None:
    x = source(1000)
    c = analyse(x - x.mean(0), 0, 32)
    state = lambda: (*begin(fit_graph(x - x.mean(0)), band_gains(c), 32), *START, new_scratch(START.net))  # noqa: E731
    one, two = state(), state()
    rows = record_blocks(*one, c, LAMBDA)
    encode_blocks(*two, c, LAMBDA)
    assert rows.shape == (c.size, N_HINTS + 3)
    assert all((a == b).all() for a, b in zip((*one[0], *one[1]), (*two[0], *two[1]), strict=True))


def test_density_is_that_of_the_tables() -> None:
    fit = ContextFit(SHAPE, torch.zeros(N_HINTS), torch.ones(N_HINTS))
    for table in (20, 40, 49, 60):
        mean = torch.full((6,), np.log2((140, 166, 197, 234)[(table - 1) % 4] * 2.0 ** ((table - 1) // 4) / 2**19))
        for kind in (0, 1):
            with torch.no_grad():
                bits = fit.bits(mean, torch.arange(6.0), torch.full((6,), kind)).numpy()
            assert bits[:3] == pytest.approx(START.tables.cost[kind, table, :3], rel=0.08, abs=0.1)


def test_training_helps_and_reproduces(recorded) -> None:
    arrays, losses = fit_contexts(recorded, SHAPE, steps=120)
    again, _ = fit_contexts(recorded, SHAPE, steps=120)
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:20])
    assert all((arrays[k] == again[k]).all() for k in arrays)
    assert model_of(arrays).tables.cdf.shape[0] == 2


def test_thinning_keeps_the_sums(recorded) -> None:
    rows = recorded.rows[:2000]
    few = thin(rows, 200, np.random.default_rng(0))
    assert len(few.rows) < 600
    assert few.weights.sum() / thin(rows, 10**9, np.random.default_rng(0)).weights.sum() == pytest.approx(1, rel=0.25)


def test_every_parameter_gets_a_gradient(recorded) -> None:
    x = torch.from_numpy(recorded.rows)
    fit = ContextFit(SHAPE, x[:, :N_HINTS].mean(0), x[:, :N_HINTS].std(0) + 1e-3, hidden=8)
    fit.bits(fit(x[:, :N_HINTS]), x[:, N_HINTS], x[:, N_HINTS + 1].long()).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in fit.parameters())
