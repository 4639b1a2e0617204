"""The integer tables: exact round trips, overhead, determinism, damage."""

from __future__ import annotations

import decimal
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.coding import tables
from nbmf_research.core import InputError, StreamError


def encode(values, scales, ends=None) -> bytes:
    encoder = tables.TableEncoder()
    encoder.encode(np.asarray(values), np.asarray(scales), ends)
    return encoder.finish()


pairs = st.lists(
    st.tuples(
        st.one_of(st.integers(-20, 20), st.integers(-(2**30), 2**30)),
        st.integers(0, tables.N_SCALES - 1),
    ),
    max_size=200,
)


@settings(deadline=None, max_examples=75)
@given(pairs, st.integers(0, 200))
def test_any_integers_with_any_tables_come_back(items, cut):
    values = np.array([v for v, _ in items], np.int64)
    scales = np.array([s for _, s in items], np.int64)
    cut = min(cut, len(items))
    decoder = tables.TableDecoder(encode(values, scales, np.array([cut, len(items)])))
    back = np.concatenate([decoder.decode(scales[:cut]), decoder.decode(scales[cut:])])
    decoder.finish()
    assert (back == values).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-(2**30), 2**30), max_size=100))
def test_packed_integers_come_back(values):
    packed = tables.pack_ints(np.array(values, np.int64))
    back, rest = tables.unpack_ints(packed + b"rest", len(values))
    assert back.tolist() == values and rest == b"rest"


@pytest.mark.parametrize("scale", range(tables.N_SCALES))
def test_every_table_is_whole(scale):
    index = int(tables._TABLE[scale])
    frequencies = tables.table(index)
    assert frequencies.sum() == 2**24 and frequencies.min() >= 1
    inner = frequencies[:-1]
    assert (inner == inner[::-1]).all() and (np.diff(inner[inner.size // 2 :]) <= 0).all()
    assert np.isclose((2.0 ** -(tables.cost(scale) - tables._SHIFT[scale])).sum(), 1)


def test_a_table_expects_its_mean():
    for scale in range(25, 73, 4):
        frequencies = tables.table(scale)[:-1] / 2**24
        mean = (frequencies * np.abs(np.arange(frequencies.size) - frequencies.size // 2)).sum()
        low, high = 2 ** ((scale - 1) / 4 - 12), 2 ** (scale / 4 - 12)
        assert low * 0.85 < mean < high * 1.15


def test_scale_index_is_a_staircase_of_quarter_octaves():
    means = (2.0 ** np.arange(-12, 20, 0.01) * tables.ONE).astype(np.int64)
    scales = tables.scale_indices(means).astype(int)
    assert (np.diff(scales) >= 0).all() and np.diff(scales).max() == 1
    exact = np.floor(4 * np.log2(means / 256)) + 1
    assert (np.abs(scales - exact) <= 1).all() and (scales == exact).mean() > 0.95


def test_kernels_compute_what_their_python_does(monkeypatch):
    rng = np.random.default_rng(0)
    scales, ends = rng.integers(0, tables.N_SCALES, 300), np.array([0, 100, 300])
    for a, b in zip(tables.group(scales, ends), tables.group.py_func(scales, ends), strict=True):
        assert (a == b).all()
    means = rng.integers(0, 2**40, 300)
    compiled = tables.scale_indices(means)
    monkeypatch.setattr(tables, "scale_index", tables.scale_index.py_func)
    assert (tables.scale_indices.py_func(means) == compiled).all()


@pytest.mark.parametrize("scale", [9, 25, 41, 57, 72, 80, 120])
def test_overhead_is_below_one_percent(scale):
    rng = np.random.default_rng(scale)
    mean = 2.0 ** ((scale - 1) / 4 - 12)
    values = np.rint(rng.logistic(0, 0.72 * mean + 0.18, 100_000)).astype(np.int64)
    scales = np.full(values.size, scale)
    content = tables.bits(values, scales)
    assert content <= 8 * len(encode(values, scales)) < content * 1.01 + 64


def test_the_stream_names_our_interval():
    """constriction's model is our table: the stream, as a binary fraction, lies in the interval of exact range coding."""
    rng = np.random.default_rng(0)
    values = rng.integers(-4, 5, 60)
    stream = encode(values, np.full(60, 49))
    cumulative = np.concatenate([[0], np.cumsum(tables.table(49))]).tolist()
    low, span = 0, 2**64 - 1  # integers over a scale that grows with every word that the coder sends
    bits = 64
    for v in values.tolist():
        s = v + (len(cumulative) - 3) // 2
        unit = span >> 24
        low, span = low + unit * cumulative[s], unit * (cumulative[s + 1] - cumulative[s])
        if span < 2**32:
            low, span, bits = low << 32, span << 32, bits + 32
    words = np.frombuffer(stream, "<u4")
    point = 0
    for w in words.tolist():
        point = point << 32 | w
    point = point << (bits - 32 * len(words)) if bits >= 32 * len(words) else point >> (32 * len(words) - bits)
    assert low <= point < low + span


def test_the_callers_decimal_context_changes_nothing():
    before = [tables.table(s).copy() for s in (0, 30, 49, 72)]
    for cached in (tables._shape, tables._tail, tables.table):
        cached.cache_clear()
    with decimal.localcontext() as context:
        context.prec = 5
        after = [tables.table(s) for s in (0, 30, 49, 72)]
    assert all((a == b).all() for a, b in zip(before, after))


def test_golden_tables_and_stream():
    """A change here breaks every stream written so far: it needs a new version, not a new number."""
    digest = hashlib.sha256(b"".join(tables.table(s).astype("<i8").tobytes() for s in range(73))).hexdigest()
    values = np.arange(-300, 301) ** 3 // 1000
    stream = encode(values, np.arange(601) % tables.N_SCALES)
    assert (digest[:16], hashlib.sha256(stream).hexdigest()[:16]) == GOLDEN


GOLDEN = ("4f58150be49acf39", "4109cf13f021c867")


@pytest.mark.parametrize(
    ("values", "scales"),
    [([1], [1, 2]), ([2**31], [1]), ([1], [tables.N_SCALES]), ([1], [-1]), ([1.5], [1]), ([[1]], [[1]])],
)
def test_bad_input_says_so(values, scales):
    with pytest.raises(InputError):
        encode(values, scales)
    with pytest.raises(InputError):
        tables.bits(np.asarray(values), np.asarray(scales))


def test_no_such_table():
    for scale in (-1, 73):
        with pytest.raises(InputError, match="no table"):
            tables.table(scale)


def test_damage_raises_or_gives_other_values_but_nothing_else():
    rng = np.random.default_rng(1)
    scales = rng.integers(0, 100, 2000)
    values = rng.integers(-50, 50, 2000)
    stream = encode(values, scales)
    with pytest.raises(StreamError, match="whole"):
        tables.TableDecoder(stream[:-1])
    for cut in range(0, len(stream), 44):
        decoder = tables.TableDecoder(stream[:cut])
        try:
            decoder.decode(scales)
            decoder.finish()
        except StreamError:
            pass
    for _ in range(100):
        broken = bytearray(stream)
        broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
        decoder = tables.TableDecoder(bytes(broken))
        try:
            assert decoder.decode(scales).shape == values.shape
            decoder.finish()
        except StreamError:
            pass


def test_a_stream_that_goes_on_is_noticed():
    stream = encode(np.arange(-50, 50), np.full(100, 60))
    decoder = tables.TableDecoder(stream)
    decoder.decode(np.full(10, 60))
    with pytest.raises(StreamError, match="goes on"):
        decoder.finish()


@pytest.mark.parametrize(
    "stream", [b"", b"\x05", b"\xff" + bytes(8), bytes([3]) + (99).to_bytes(4, "little") + bytes(8)]
)
def test_damaged_packed_integers(stream):
    with pytest.raises(StreamError):
        tables.unpack_ints(stream, 4)


def test_an_escape_that_never_ends_is_damage():
    encoder = tables.TableEncoder()
    limit = int(tables._LIMIT[20])
    encoder._coder.encode(np.array([2 * limit + 1], np.int32), tables._model(20))
    encoder._coder.encode(np.ones(64, np.int32), tables._uniform(1))
    with pytest.raises(StreamError):
        tables.TableDecoder(encoder.finish()).decode(np.array([20]))
