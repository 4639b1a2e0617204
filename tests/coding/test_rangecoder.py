"""coding.rangecoder: exact, tight, and deaf to nothing that it is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.coding import rangecoder as rc
from nbmf_research.core import InputError

steps = st.lists(st.tuples(st.integers(1, 24), st.integers(0, 2**24 - 1), st.integers(1, 2**24)), max_size=60)


def intervals(drawn: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """(cum, freq, bits) that fit their total."""
    out = []
    for bits, cum, freq in drawn:
        total = 1 << bits
        out.append((cum % total, 1 + (freq - 1) % (total - cum % total), bits))
    return out


def written(symbols: list[tuple[int, int, int]]) -> bytes:
    buffer, state = np.zeros(4 * len(symbols) + 16, np.uint8), rc.encoder()
    for cum, freq, bits in symbols:
        rc.encode(state, buffer, cum, freq, bits)
    return buffer[: rc.finish(state, buffer)].tobytes()


@settings(max_examples=100, deadline=None)
@given(steps)
def test_any_intervals_come_back_and_the_ending_is_tight(drawn: list[tuple[int, int, int]]) -> None:
    symbols = intervals(drawn)
    data = np.frombuffer(written(symbols), np.uint8)
    state = rc.decoder(data)
    for cum, freq, bits in symbols:
        assert cum <= rc.peek(state, bits) < cum + freq
        rc.skip(state, data, cum, freq, bits)
    information = sum(bits - np.log2(freq) for _, freq, bits in symbols)
    assert 8 * len(data) < information + 8 + 1e-3 * len(symbols) + 1


@pytest.mark.parametrize("cum", [0, 2**24 - 1])
def test_carries_run_through_bytes_that_have_left(cum: int) -> None:
    symbols = [(2**24 - 1, 1, 24)] * 40 + [(cum, 1, 24)] + [(0, 2**23, 24), (2**23, 2**23, 24)] * 40
    data = np.frombuffer(written(symbols), np.uint8)
    state = rc.decoder(data)
    for c, freq, bits in symbols:
        assert c <= rc.peek(state, bits) < c + freq
        rc.skip(state, data, c, freq, bits)


def test_nothing_costs_nothing() -> None:
    assert written([]) == b"" == rc.encode_static([], [], rc.quantise_pmf([[1.0, 1.0]]))
    assert rc.decode_static(b"", [], rc.quantise_pmf([[1.0, 1.0]])).size == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 400), st.integers(2, 300), st.integers(10, 24))
def test_static_tables_round_trip(seed: int, n: int, n_symbols: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    cdf = rc.quantise_pmf(rng.gamma(0.2, 1.0, (3, n_symbols)) + 1e-12, bits)
    assert (np.diff(cdf, axis=1) >= 1).all() and (cdf[:, -1] == 1 << bits).all()
    symbols, contexts = rng.integers(0, n_symbols, n), rng.integers(0, 3, n)
    assert (rc.decode_static(rc.encode_static(symbols, contexts, cdf), contexts, cdf) == symbols).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3000), st.sampled_from([1, 7, 255, 1023]))
def test_adaptive_bits_round_trip(seed: int, n: int, limit: int) -> None:
    rng = np.random.default_rng(seed)
    contexts = rng.integers(0, 4, n)
    bits = (rng.random(n) < np.array([0.0, 0.02, 0.5, 1.0])[contexts]).astype(int)
    stream = rc.encode_bits(bits, contexts, 4, limit=limit)
    assert (rc.decode_bits(stream, contexts, 4, limit=limit) == bits).all()


def test_within_a_thousandth_of_the_information() -> None:
    rng = np.random.default_rng(0)
    pmf = np.exp(-np.abs(np.arange(-60, 61)) / 11.0)
    pmf /= pmf.sum()
    symbols = rng.choice(121, 200_000, p=pmf)
    information = -np.log2(pmf[symbols]).sum() / 8
    zeros = np.zeros(200_000, int)
    assert len(rc.encode_static(symbols, zeros, rc.quantise_pmf(pmf[None], 20))) < 1.001 * information


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**47), max_size=20))
def test_escapes_round_trip(values: list[int]) -> None:
    buffer, state = np.zeros(13 * len(values) + 16, np.uint8), rc.encoder()
    for v in values:
        rc.encode_escape(state, buffer, v)
    data = buffer[: rc.finish(state, buffer)].copy()
    reader = rc.decoder(data)
    assert [rc.decode_escape(reader, data) for _ in values] == values


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=40))
def test_damaged_streams_decode_to_something_and_stay_inside(data: bytes) -> None:
    cdf = rc.quantise_pmf(np.ones((1, 5)))
    got = rc.decode_static(data, np.zeros(200, int), cdf)
    assert ((got >= 0) & (got < 5)).all()
    assert set(rc.decode_bits(data, np.zeros(200, int), 1)) <= {0, 1}
    reader = rc.decoder(np.frombuffer(data, np.uint8))
    assert 0 <= rc.decode_escape(reader, np.frombuffer(data, np.uint8)) < 2**49


@pytest.mark.parametrize(
    "call",
    [
        lambda: rc.quantise_pmf([1.0, -1.0]),
        lambda: rc.quantise_pmf([1.0, np.nan]),
        lambda: rc.quantise_pmf(np.ones(300), bits=8),
        lambda: rc.encode_static([0], [1], rc.quantise_pmf([[1.0, 1.0]])),
        lambda: rc.encode_static([0, 1], [0], rc.quantise_pmf([[1.0, 1.0]])),
        lambda: rc.encode_static([0], [0], np.array([[0, 3, 3, 4]])),
        lambda: rc.encode_bits([0, 2], [0, 0], 1),
        lambda: rc.encode_bits([0], [5], 1),
    ],
)
def test_what_does_not_fit_is_refused(call) -> None:
    with pytest.raises(InputError):
        call()
