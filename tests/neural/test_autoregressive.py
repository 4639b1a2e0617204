"""Autoregressive prior: order, exactness of steps and parallel pass, streams, damage."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.coding.exact import ExactConv1d, ExactSequential, ExactTable
from nbmf_research.core import InputError, StreamError
from nbmf_research.neural import autoregressive as ar


@pytest.fixture(scope="module")
def model() -> ar.Autoregressive:
    torch.manual_seed(0)
    made = ar.Autoregressive(6, hidden=8, bands=3)
    optimiser = torch.optim.Adam(made.parameters(), 0.02)
    for _ in range(5):
        optimiser.zero_grad()
        made(5 * torch.randn(4, 6, 12))["bits"].sum().backward()
        optimiser.step()
    return made.eval()


@pytest.fixture(scope="module")
def frozen(model: ar.Autoregressive) -> ar.FrozenAutoregressive:
    return model.freeze()


@given(batch=st.integers(1, 4), width=st.integers(1, 4), bands=st.integers(1, 4), frames=st.integers(1, 5))
def test_tokens_are_a_permutation(batch: int, width: int, bands: int, frames: int) -> None:
    y = torch.randperm(batch * width * bands * frames).reshape(batch, width * bands, frames)
    tokens = ar.serialise(y, bands)
    assert tokens.shape == (batch, width, bands * frames)
    assert torch.equal(ar.parallelise(tokens, bands), y)
    assert torch.equal(tokens[:, 0, 0], y[:, 0, 0]) and torch.equal(tokens[:, -1, -1], y[:, -1, -1])


@given(st.integers(-(2**30), 2**30))
def test_levels_are_the_rounded_logarithm(q: int) -> None:
    smooth = 4 * float(ar.smooth_level(torch.tensor(q, dtype=torch.float64)))
    assert int(ar.level(np.array(q), ar.level_edges())) == min(int(np.floor(smooth + 0.5)), 127)


def test_nothing_later_reaches_an_expected_magnitude(frozen: ar.FrozenAutoregressive) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(-9, 10, (2, 2, 30))
    first = frozen.expected(tokens)
    for t in (0, 7, 29):
        other = tokens.copy()
        other[..., t:] += 50
        assert (frozen.expected(other)[..., : t + 1] == first[..., : t + 1]).all()
        assert t == 29 or (frozen.expected(other)[..., t + 1 :] != first[..., t + 1 :]).any()


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 5),
    frames=st.integers(1, 12),
    spread=st.sampled_from([0.1, 3.0, 1e4, 2e8]),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_steps_find_the_integers_of_the_parallel_pass(
    frozen: ar.FrozenAutoregressive, batch: int, frames: int, spread: float, threads: int, seed: int
) -> None:
    q = np.rint(np.random.default_rng(seed).laplace(0, spread, (batch, 6, frames))).clip(-(2**30), 2**30)
    stream = frozen.compress(q.astype(np.int64))
    tokens = ar.serialise(torch.from_numpy(q.astype(np.int64)), 3).numpy()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert (frozen.decompress(stream, q.shape) == q).all()
        go, inputs = frozen.net.start(batch), ar.context(torch.from_numpy(ar.level(tokens, frozen.edges)), 3).numpy()
        steps = np.stack([go(inputs[..., t]) for t in range(3 * frames)], -1)
    finally:
        torch.set_num_threads(before)
    assert (steps == frozen.expected(tokens)).all()


def test_the_twin_trains_what_the_integers_do(model: ar.Autoregressive, frozen: ar.FrozenAutoregressive) -> None:
    q = torch.from_numpy(np.random.default_rng(1).integers(-40, 41, (3, 6, 10)))
    with torch.no_grad():
        smooth = 4 * model.expected(q.float())
    exact = ar.parallelise(torch.from_numpy(frozen.expected(ar.serialise(q, 3).numpy())), 3)
    assert torch.equal(smooth, exact.float())


def test_gradients_reach_every_parameter_and_the_rate_falls() -> None:
    torch.manual_seed(0)
    made, curve = ar.Autoregressive(6, hidden=8, bands=2), []
    optimiser = torch.optim.Adam(made.parameters(), 0.02)
    scale = 2.0 ** torch.linspace(3, -3, 6)[:, None]
    for _ in range(40):
        y = (torch.randn(8, 6, 10) * scale).requires_grad_()
        optimiser.zero_grad()
        bits = made(y)["bits"].sum() / y.numel()
        bits.backward()
        optimiser.step()
        curve.append(float(bits.detach()))
    assert y.grad is not None and torch.isfinite(y.grad).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in made.parameters())
    assert np.mean(curve[-5:]) < 0.8 * np.mean(curve[:5])


def test_bytes_are_near_the_density(model: ar.Autoregressive, frozen: ar.FrozenAutoregressive) -> None:
    y = 5 * torch.randn(8, 6, 40)
    with torch.no_grad():
        out = model(y, "round")
    stream = frozen.compress(out["y_hat"].long().numpy())
    assert abs(8 * len(stream) / float(out["bits"].sum()) - 1) < 0.05


def test_tables_follow_the_magnitudes_that_came() -> None:
    torch.manual_seed(0)
    made = ar.Autoregressive(4, hidden=8, bands=2)
    assert (made.scales() == np.arange(144)).all()  # nothing seen: the tables of what is expected
    expected = torch.zeros(1, 4, 500)  # a mean magnitude of 1, where 8 comes
    for _ in range(3):
        made.watch(torch.full((1, 4, 500), -8.0), expected)
    assert made.scales()[49] in (60, 61) and (np.diff(made.scales()) >= 0).all() and made.scales()[48] == 48
    before = made.seen.clone()
    made.eval()(torch.randn(1, 4, 5))
    assert torch.equal(made.seen, before)
    with torch.no_grad():
        made.train()(torch.randn(1, 4, 5))
    assert not torch.equal(made.seen, before)


def test_saved_parts_make_the_same_model(model: ar.Autoregressive, frozen: ar.FrozenAutoregressive) -> None:
    q = np.random.default_rng(2).integers(-5, 6, (2, 6, 9))
    again = ar.Autoregressive(6, hidden=8, bands=3).restore(*frozen.parts())
    assert again.compress(q) == frozen.compress(q)
    assert (again.decompress(frozen.compress(q), q.shape) == q).all()
    with pytest.raises(KeyError):
        model.restore({}, frozen.parts()[1])


def test_a_machine_that_miscalculates_falls_back_to_the_reference(frozen: ar.FrozenAutoregressive) -> None:
    q = np.random.default_rng(3).integers(-5, 6, (2, 6, 6))
    stream = frozen.compress(q)
    for net in frozen.net.nets.values():
        net.fallback = True
    try:
        assert frozen.compress(q) == stream and (frozen.decompress(stream, q.shape) == q).all()
    finally:
        for net in frozen.net.nets.values():
            net.fallback = False


def test_damage_raises_or_decodes_to_something_of_the_shape(frozen: ar.FrozenAutoregressive) -> None:
    rng = np.random.default_rng(4)
    q = rng.integers(-9, 10, (2, 6, 20))
    stream = frozen.compress(q)
    for size in (0, 3, 4, len(stream) - 1):
        damaged = stream[:size]
        with contextlib.suppress(StreamError):
            assert frozen.decompress(damaged, q.shape).shape == q.shape
    for _ in range(10):
        broken = bytearray(stream)
        broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
        with contextlib.suppress(StreamError):
            assert frozen.decompress(bytes(broken), q.shape).shape == q.shape
    for wrong in (stream[:-1], stream + bytes(400)):
        with pytest.raises(StreamError):
            frozen.decompress(wrong, q.shape)
    for shape in ((2, 5, 20), (0, 6, 20), (2, 6, 0)):
        with pytest.raises(StreamError):
            frozen.decompress(stream, shape)


def test_nonsense_is_refused(frozen: ar.FrozenAutoregressive) -> None:
    for bad in (np.zeros((1, 5, 2)), np.zeros((6, 2)), np.full((1, 6, 2), 0.5), np.full((1, 6, 2), np.nan)):
        with pytest.raises(InputError):
            frozen.compress(bad)
    with pytest.raises(InputError):
        frozen.compress(np.full((1, 6, 2), 2**31))
    for latents, bands in ((8, 3), (8, 0), (0, 1)):
        with pytest.raises(InputError):
            ar.Autoregressive(latents, bands=bands)


def test_layers_that_look_ahead_have_no_steps() -> None:
    for shape in ({"padding": (1, 1)}, {"stride": 2}, {"dilation": 2}, {"padding": (0, 0)}):
        with pytest.raises(InputError, match="step by step"):
            ar.stepper(ExactSequential([ExactConv1d(np.ones((1, 1, 3)), **shape)], (0, 9)), 1)


def test_tables_step_too() -> None:
    net = ExactSequential([ExactConv1d(np.ones((1, 1, 2))), ExactTable(np.arange(19)[::-1], 0)], (0, 9))
    x = np.random.default_rng(0).integers(0, 10, (3, 1, 9))
    go = ar.stepper(net, 3)
    assert (np.stack([go(x[..., t]) for t in range(9)], -1) == net.reference(x)).all()
