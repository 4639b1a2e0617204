"""Corrections: what comes back, what they cost, and the bound under any decoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nbmf_research.core import InputError, StreamError
from nbmf_research.neural.corrections import (
    N_TAPS,
    Bins,
    bins_of,
    correct,
    decode_corrections,
    encode_corrections,
    fit_taps,
    level_of,
    to_type,
)


def smooth(n: int, seed: int) -> np.ndarray:
    """Two channels of noise that is smooth in time."""
    rng = np.random.default_rng(seed)
    return np.apply_along_axis(np.convolve, 0, rng.normal(size=(n, 2)), np.hanning(9), "same")


@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 4)),
    width=st.integers(0, 40).map(lambda e: 2.0 * e + 1.0),
    scale=st.floats(0.1, 1e5),
    taps=st.lists(st.integers(-128, 127), min_size=N_TAPS, max_size=N_TAPS),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=30, deadline=None)
def test_corrections_come_back_with_any_taps(
    shape: tuple[int, int], width: float, scale: float, taps: list[int], seed: int
) -> None:
    rest = np.round(np.random.default_rng(seed).standard_cauchy(shape) * scale).clip(-1e9, 1e9)
    added, again, small = rest.copy(), np.zeros(shape), np.array(taps) // 6  # larger ones may grow without limit
    stream = correct(added, Bins(width, True), small)
    correct(again, Bins(width, True), small, stream)
    assert (added == again).all() and np.abs(rest - added).max() <= (width - 1) / 2


def test_levels_rise_with_the_rate() -> None:
    levels = [level_of(r) for r in range(1 << 16)]
    assert levels[0] == 0 and levels == sorted(levels) and set(levels) == set(range(max(levels) + 1))


def test_bins_are_as_wide_as_rounding_allows() -> None:
    x = np.array([[1e6]], np.float32)
    assert bins_of(x, 0.01) is None  # neighbours of 1e6 are 0.06 apart
    found = bins_of(x, 1.0)
    assert found is not None and not found.whole and 1.8 < found.width < 2.0
    assert bins_of(x.astype(np.int32), 0.99) is None and bins_of(x.astype(np.int32), 7.9) == Bins(15.0, True)


def test_taps_save_bytes_where_the_rest_is_smooth() -> None:
    rest = np.round(8 * smooth(20_000, 0) * smooth(20_000, 1))
    fitted, none = (len(correct(rest.copy(), Bins(21.0, True), t)) for t in (fit_taps(rest, 21.0), np.zeros(4, int)))
    assert fitted < 0.95 * none


@given(
    st.sampled_from(("|i1", "|u1", "<i2", "<i4", "<u4", "<f4", "<f8")).flatmap(
        lambda t: st.tuples(*[hnp.arrays(t, (20, 3), elements=_values(t))] * 2)
    ),
    st.sampled_from((1.0, 2.5, 40.0, 1e6)),
)
@settings(max_examples=40, deadline=None)
def test_any_decoding_is_brought_within_the_bound(pair: tuple[np.ndarray, np.ndarray], bound: float) -> None:
    x, y = pair
    try:
        layer = encode_corrections(x, y, bound)
    except InputError:
        assert bins_of(x, bound) is None
        return
    z = decode_corrections(layer, y)
    assert z.dtype == x.dtype and np.abs(z.astype(np.float64) - x.astype(np.float64)).max() <= bound
    assert (layer == b"\0") == (np.abs(x.astype(np.float64) - y.astype(np.float64)).max() <= bound)


def _values(dtype: str) -> st.SearchStrategy:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return st.floats(-1e6, 1e6, width=8 * kind.itemsize)
    info = np.iinfo(kind)
    return st.integers(int(info.min), int(info.max))


def test_what_no_encoder_writes_is_refused() -> None:
    y = np.zeros((50, 2), np.int16)
    layer = encode_corrections(np.full_like(y, 30), y, 3.0)
    for broken in (b"", layer[:4], b"\7" + layer[1:], layer[:1] + b"\xff" * 8 + layer[9:]):
        with pytest.raises(StreamError):
            decode_corrections(broken, y)


def test_types_are_clipped_and_rounded() -> None:
    y = np.array([[1e12, -1e12, np.nan, 2.6]])
    assert to_type(y, np.dtype("<i2")).tolist() == [[32767, -32768, 0, 3]]
    assert to_type(y, np.dtype("<f8")) is y and to_type(y, np.dtype("<f4")).dtype == np.float32
