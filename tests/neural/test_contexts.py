"""Learned contexts: the decoder follows the encoder through any indices, tables are whole, the trellis finds good paths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.coding.rangecoder import decoder, encoder, finish
from nbmf_research.core import InputError
from nbmf_research.neural.contexts import (
    LAMBDA,
    N_HINTS,
    NEXT,
    Shape,
    decoded_level,
    get,
    hints,
    level,
    log2_lines,
    make_tables,
    new_memory,
    new_scratch,
    pick,
    plain_net,
    put,
    remember,
    table_of,
    walk,
)

SHAPE = Shape(
    np.array([np.linspace(100, 34, 19), np.linspace(75, 10, 19)]).astype(np.int64),
    np.array([[11, 46], [11, 46]]),
    np.zeros((2, 17, 3), np.int64),
)
TABLES = make_tables(SHAPE)
NET = plain_net()


def test_tables_are_whole_and_reproducible() -> None:
    again = make_tables(SHAPE)
    assert (again.cdf == TABLES.cdf).all()
    for table in range(73):
        f = np.diff(TABLES.cdf[:, table, : TABLES.limit[table] + 3])
        assert (f > 0).all() and (f.sum(1) == 2**24).all()
    assert np.isfinite(TABLES.cost).all() and (np.diff(TABLES.cost[:, :73, 1:], axis=2) > -1e-9).all()


def test_the_golden_table() -> None:
    assert np.diff(TABLES.cdf[0, 49, :6]).tolist() == np.diff(make_tables(SHAPE).cdf[0, 49, :6]).tolist()
    p = np.diff(TABLES.cdf[0, 49, : TABLES.limit[49] + 3]) / 2**24
    mean, zero = 140 / 128, float(SHAPE.zero[0, 12]) / 64
    assert p[0] == pytest.approx(1 - 2 / (1 + np.exp(zero / ((11 + 46 * mean) / 64))), abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**28), 2**28), st.integers(0, 1), st.integers(0, 143)), max_size=30))
def test_any_index_survives_any_table(values: list[tuple[int, int, int]]) -> None:
    buffer, coder = np.zeros(32 * len(values) + 64, np.uint8), encoder()
    for k, kind, table in values:
        put(coder, buffer, TABLES, abs(k), k < 0, kind, table)
    size = finish(coder, buffer)
    reader = decoder(buffer[:size].copy())
    assert [get(reader, buffer[:size].copy(), TABLES, kind, table) for _, kind, table in values] == [
        k for k, _, _ in values
    ]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 9), st.floats(0.01, 1e4))
def test_the_decoder_follows(seed: int, n: int, f: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    y = rng.normal(0, spread, (6, f, n)) * np.exp2(rng.normal(0, 2, (6, 1, 1)))
    edges = np.array([0, f] if f == 1 else [0, 1, f])
    power = np.ones((len(edges) - 1, n))
    s, w, coder, buffer = new_memory(edges, power), new_scratch(NET), encoder(), np.zeros(y.size * 24 + 64, np.uint8)
    q, out = np.zeros(y.shape, np.int64), []
    for b in range(6):
        pick(s, NET, TABLES, w, y[b], LAMBDA, q[b])
        walk(s, NET, TABLES, w, coder, buffer, q[b], False)
        out.append(s.y.copy())
        remember(s)
    data = buffer[: finish(coder, buffer)].copy()
    t, reader = new_memory(edges, power), decoder(data)
    for b in range(6):
        got = np.zeros((f, n), np.int64)
        walk(t, NET, TABLES, w, reader, data, got, True)
        assert (got == q[b]).all() and (t.y == out[b]).all()
        remember(t)
    assert np.abs(np.array(out) - y).max() < 3 + 1e-9 * np.abs(y).max()
    assert (s.slow == t.slow).all() and (s.clock == t.clock).all()


def test_both_quantisers_share_the_levels_evenly() -> None:
    assert sorted(NEXT[::2].ravel().tolist() + NEXT[1::2].ravel().tolist()) == sorted(2 * list(range(8)))
    assert level(3, 1) == 2.5 and level(0, 1) == 0 and decoded_level(TABLES, 2, 1, 50) == 1.5


def test_hints_see_only_the_past() -> None:
    s = new_memory(np.array([0, 2, 6]), np.ones((2, 4)))
    rng = np.random.default_rng(0)
    s.now[:] = rng.random(s.now.shape)
    a, b = np.zeros(N_HINTS), np.zeros(N_HINTS)
    hints(s, 1, 3, 2, np.zeros(4), a)
    s.now[3, 2:], s.now[4:] = 99.0, 99.0
    hints(s, 1, 3, 2, np.zeros(4), b)
    assert (a == b).all()


def test_nonsense_gives_some_table_and_bad_shapes_an_error() -> None:
    h = np.zeros(4)
    for v in (np.nan, np.inf, -np.inf, 1e300):
        assert 0 <= table_of(NET, np.full(N_HINTS, v), h, h.copy()) < 144
    assert log2_lines(0.0) == -8.0
    with pytest.raises(InputError):
        make_tables(SHAPE._replace(zero=np.zeros((2, 19), np.int64)))
