"""Prediction, residual coding and the lossless and bounded codecs: round trips, golden streams, other instruction sets, hostile bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nbmf_research.core import InputError, StreamError
from nbmf_research.neural import lossless
from nbmf_research.neural.codec import CODECS, create_codec, decompress
from nbmf_research.neural.lossless import (
    ALIKE,
    PLAIN,
    QUICK,
    Adaptive,
    Coder,
    Plan,
    Side,
    code_sides,
    decode_block,
    encode_block,
    from_integers,
    to_integers,
    trial,
)
from nbmf_research.neural.prediction import PAD, choose_neighbours, covariance, innovations, padded, regressors, solve
from nbmf_research.neural.residuals import (
    FAR,
    HALF,
    LANES,
    decode_quick,
    encode_quick,
    learn_edges,
    quantiles,
    quick_levels,
    quick_tables,
    residual_model,
    shapes,
)

LOSSLESS = [n for n in ("nbmf-fast", "nbmf-balanced", "nbmf-max") if n in CODECS]
INTEGERS = ("|i1", "|u1", "<i2", "<u2", "<i4", "<u4")


def made(n: int = 3000, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Integers only, the same on every machine: a few resonances driven by a linear congruential generator, mixed."""
    state, out = np.int64(seed + 1), np.zeros((n, channels), np.int64)
    a, b = [0] * channels, [0] * channels
    for t in range(n):
        for c in range(channels):
            state = (state * 1103515245 + 12345) % 2**31
            e = int(state >> 16) % 41 - 20
            a[c], b[c] = (29 * a[c] - 14 * b[c]) // 16 + e, a[c]
        for c in range(channels):
            out[t, c] = a[c] + a[0] // 2 + 100 * c
    return out.astype(np.int16)


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 1), (17, 2), (700, 6)])
def test_every_type_and_shape(name: str, dtype: str, shape: tuple[int, int]) -> None:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(shape[0])
    for x in (
        rng.integers(info.min, info.max, shape, endpoint=True, dtype=dtype),
        np.full(shape, info.min, dtype),
        rng.integers(0, 3, shape).astype(dtype),
    ):
        y = decompress(create_codec(name).compress(x))
        assert y.dtype == x.dtype and np.array_equal(y.values, x)


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=20, deadline=None)
@given(
    x=st.sampled_from(INTEGERS).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)))
)
def test_any_integers(name: str, x: np.ndarray) -> None:
    codec = create_codec(name)
    payload = codec.encode(np.ascontiguousarray(x))
    assert np.array_equal(codec.decode(payload, x.shape, x.dtype), x)
    assert len(payload) <= x.nbytes + 1


@settings(max_examples=20, deadline=None)
@given(
    x=hnp.arrays(
        np.int64, st.tuples(st.integers(1, 300), st.integers(1, 5)), elements=st.integers(-(2**31), 2**32 - 1)
    ),
    own=st.sampled_from([8, 16, 32]),
    near=st.integers(0, 4),
    ahead=st.integers(0, 8),
    behind=st.integers(0, 8),
    log_block=st.integers(4, 10),
    flags=st.integers(0, 7),
    memory=st.integers(2, 65535),
    pace=st.tuples(st.integers(4, 12), st.integers(0, 8), st.integers(0, 255)),
)
def test_any_plan(
    x: np.ndarray,
    own: int,
    near: int,
    ahead: int,
    behind: int,
    log_block: int,
    flags: int,
    memory: int,
    pace: tuple[int, int, int],
) -> None:
    plan = Plan(own, near, ahead, behind, log_block, flags, memory, *pace)
    block = encode_block(x, plan)
    assert np.array_equal(decode_block(block, x.shape, x.dtype), x)
    assert Plan.unpack(block) == plan


@pytest.mark.parametrize("name", LOSSLESS)
def test_extremes(name: str) -> None:
    rng = np.random.default_rng(1)
    jumps = made(2000, 2).astype(np.int32)
    jumps[::97] = 2**31 - 1
    jumps[50::97] = -(2**31)
    steps = np.where(np.arange(1500)[:, None] % 200 < 100, -(2**15), 2**15 - 1).astype(np.int16)
    smooth = np.cumsum(np.cumsum(rng.integers(-3000, 3001, (3000, 2)), 0), 0).astype(np.int32)
    for x in (jumps, steps, smooth, np.eye(400, 7, dtype=np.int16) * 30000):
        assert np.array_equal(decompress(create_codec(name).compress(x)).values, x)


@pytest.mark.parametrize("name", LOSSLESS)
def test_noise_does_not_expand(name: str) -> None:
    rng = np.random.default_rng(2)
    for dtype in INTEGERS:
        info = np.iinfo(dtype)
        x = rng.integers(info.min, info.max, (5000, 2), endpoint=True, dtype=dtype)
        assert len(create_codec(name).encode(x)) <= x.nbytes + 1


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_floats(name: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    tricky = np.array([[0.0, -0.0], [1e-45, -1e30], [3.5, -3.5], [0.1, 1 / 3]]).astype(dtype)
    for x in (tricky, rng.normal(size=(300, 3)).astype(dtype), np.round(100 * rng.normal(size=(300, 1))).astype(dtype)):
        y = decompress(create_codec(name).compress(x)).values
        assert y.dtype == x.dtype and y.tobytes() == x.tobytes()


def test_converter_lattice_is_removed() -> None:
    codes = np.clip(made(4000, 2).astype(int) // 8 + 500, 0, 1023)
    stretched = np.trunc(codes * 65535 / 1023 - 32768).astype(np.int16)
    head, back = to_integers(stretched)
    assert head[0] == lossless.LATTICE and back.max() < 1024
    a, b = (len(create_codec("nbmf-balanced").encode(v)) for v in (stretched, codes.astype(np.int16)))
    assert a < b + 60
    payload = create_codec("nbmf-balanced").encode(stretched)
    assert np.array_equal(from_integers(payload, stretched.shape, stretched.dtype), stretched)


def test_uneven_codes_are_learnt() -> None:
    rng = np.random.default_rng(4)
    widths = np.where(np.arange(200) % 2, 1.6, 0.4)
    x = np.searchsorted(np.cumsum(widths), 100 + 15 * rng.normal(size=(30_000, 1))).astype(np.int16)
    curved, even = (8 * len(encode_block(x, Plan(8, flags=f))) / x.size for f in (1, 0))
    assert curved < even - 0.15


def test_neighbours_help() -> None:
    x = made(4000, 1).astype(int)
    rng = np.random.default_rng(5)
    both = np.concatenate([x, x + rng.integers(-1, 2, x.shape)], 1)
    alone, together = (len(encode_block(both, Plan(16, k, 1, 1))) for k in (0, 1))
    assert together < 0.8 * alone


def golden() -> bytes:
    """Streams of the mixture, the quick way, low bits and an error bound."""
    x, wide = made(), made().astype(np.int32) << 14
    parts = [encode_block(x, Plan(16, 2, 2, 2, 6, 3, 2000)), encode_block(x, Plan(8, 1, 0, 1, 8, 2 + QUICK, 3000))]
    return b"".join(
        [*parts, encode_block(wide, Plan(8, 1, 0, 1, 5, 2, 500)), encode_block(x, Plan(8, 1, 1, 1), reach=9)]
    )


def test_golden_stream() -> None:
    """A change of this hash breaks every stream in the world: bump the format instead."""
    assert hashlib.sha256(golden()).hexdigest() == GOLDEN


def test_tables_are_what_they_were() -> None:
    assert hashlib.sha256((shapes() * 2**40).astype("<i8").tobytes()).hexdigest() == TABLES
    assert shapes().shape == (2 * HALF + 1, 2) and (np.diff(quantiles()) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    [
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"},
    ],
)
def test_other_instruction_sets_write_the_same_bytes(target: dict[str, str], tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_lossless as t; t.test_golden_stream(); t.check_decodes(); print('same')"
    env = {**os.environ, **target, "NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], env=env, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0 and run.stdout.strip() == "same", run.stderr[-2000:]


def check_decodes() -> None:
    """Decode here what was encoded here, for the subprocess."""
    x = made()
    for flags in (3, 2 + QUICK):
        assert np.array_equal(decode_block(encode_block(x, Plan(16, 2, 2, 2, 6, flags, 2000)), x.shape, x.dtype), x)


@settings(max_examples=30, deadline=None)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.integers(0, 10**6))
def test_damage_is_refused_or_decodes_to_something(at: int, byte: int, cut: int) -> None:
    x = made(300, 3)
    payload = bytearray(Adaptive.encode(create_codec("nbmf-balanced"), x))  # type: ignore[arg-type]
    payload[at % len(payload)] = byte
    for broken in (bytes(payload), bytes(payload[: cut % len(payload)])):
        try:
            y = create_codec("nbmf-balanced").decode(broken, x.shape, x.dtype)
        except StreamError:
            continue
        assert y.shape == x.shape and y.dtype == x.dtype


def test_frames_notice_damage() -> None:
    stream = bytearray(create_codec("nbmf-balanced").compress(made(300, 2)))
    stream[-3] ^= 4
    with pytest.raises(StreamError, match="checksum"):
        decompress(bytes(stream))


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from([*INTEGERS, "<f4", "<f8"]),
    bound=st.floats(1e-3, 1e5),
    scale=st.floats(1, 1e4),
    shape=st.tuples(st.integers(1, 200), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_bound_holds(dtype: str, bound: float, scale: float, shape: tuple[int, int], seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=shape) * scale
    if dtype[1] != "f":
        x = np.clip(np.round(x), np.iinfo(dtype).min, np.iinfo(dtype).max)
    x = x.astype(dtype)
    y = decompress(create_codec("nbmf-bounded", max_error=bound).compress(x)).values
    assert y.dtype == x.dtype
    assert np.abs(y.astype(float) - x.astype(float)).max() <= bound


def test_bound_on_a_coarse_converter() -> None:
    stretched = np.trunc(np.clip(made(4000, 1).astype(int) // 8 + 500, 0, 1023) * 65535 / 1023 - 32768).astype(np.int16)
    sizes = []
    for bound in (10, 70, 200, 20_000):
        stream = create_codec("nbmf-bounded", max_error=bound).compress(stretched)
        assert np.abs(decompress(stream).values.astype(int) - stretched).max() <= bound
        sizes.append(len(stream))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] <= len(create_codec("nbmf-max").compress(stretched)) + 9


@settings(max_examples=20, deadline=None)
@given(
    reach=st.integers(1, 3000),
    scale=st.sampled_from([1, 30, 3000]),
    shape=st.tuples(st.integers(1, 400), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_the_quick_way_holds_a_bound(reach: int, scale: int, shape: tuple[int, int], seed: int) -> None:
    x = np.cumsum(np.random.default_rng(seed).integers(-scale, scale + 1, shape), 0)
    y = decode_block(encode_block(x, Plan(8, 2, 1, 1, flags=ALIKE + QUICK), reach), x.shape, x.dtype)
    assert np.abs(y - x).max() <= reach


@settings(max_examples=30, deadline=None)
@given(
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=9),
    cut=st.integers(0, 10**6),
)
def test_damaged_quick_blocks_are_refused_or_decode_to_something(damage: list[tuple[int, int]], cut: int) -> None:
    x = made(300, 3)
    block = bytearray(encode_block(x, Plan(8, 2, 1, 1, flags=ALIKE + QUICK)))
    for at, byte in damage:
        block[at % len(block)] = byte
    for broken in (bytes(block), bytes(block[: cut % len(block)])):
        try:
            y = decode_block(broken, x.shape, x.dtype)
        except StreamError:
            continue
        assert y.shape == x.shape and y.dtype == x.dtype


def test_trials_order_plans_as_whole_blocks_do() -> None:
    rng = np.random.default_rng(8)
    x = np.cumsum(rng.integers(-9, 10, (2000, 1)), 0) + rng.integers(-2, 3, (2000, 12))
    plans = (Plan(8), Plan(8, 3, 1, 1), Plan(32, 1, 0, 0))
    few, all_of_them = trial(x, plans, 3), [len(encode_block(x, p)) for p in plans]
    assert np.argsort(few).tolist() == np.argsort(all_of_them).tolist() and max(few) < max(all_of_them) / 2


def test_residuals_of_every_size_come_back() -> None:
    rng = np.random.default_rng(9)
    for n in (1, 2, 3, 4, 5, 997):
        r = (rng.normal(size=n) * 10.0 ** rng.uniform(-1, 7.5, n)).astype(np.int32)
        levels, q, lanes = np.zeros(n, np.int16), quick_tables(), np.full(LANES + 1, 1 << 32, np.uint64)
        words = np.zeros(quick_levels(np.full(2, 99), r, levels, q) // 32 + 8, np.uint32)
        lanes[LANES] = words.size
        encode_quick(lanes, words, r, levels, q)
        written, lanes[LANES], out = np.append(words[int(lanes[LANES]) :], np.uint32(0)), 0, np.zeros(n, np.int32)
        decode_quick(lanes, written, np.full(2, 99), q, out)
        assert np.array_equal(out, r)


def test_hostile_words_stay_within_bounds() -> None:
    rng = np.random.default_rng(10)
    for _ in range(300):
        words, out = rng.integers(0, 2**32, rng.integers(1, 50), dtype=np.uint32), np.zeros(500, np.int32)
        lanes = np.append(rng.integers(0, 2**63, LANES, dtype=np.uint64), np.uint64(0))
        decode_quick(lanes, words, rng.integers(0, 2**36, 2), quick_tables(), out)
        assert np.abs(out.astype(np.int64)).max() <= FAR


def test_refuses_impossible_bounds() -> None:
    for bound in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="bound"):
            create_codec("nbmf-bounded", max_error=bound)


def test_plan_refuses_nonsense() -> None:
    for block in (
        b"",
        b"\x07" + bytes(7),
        Plan(8, memory=0).pack(),
        Plan(8, log_block=3).pack(),
        bytes([64]) + Plan(8).pack()[1:],
    ):
        with pytest.raises(StreamError):
            Plan.unpack(block)


def test_covariance_is_the_plain_sum() -> None:
    rng = np.random.default_rng(6)
    words, groups = padded(rng.integers(-(2**26), 2**26, (2, 300))), regressors(8, 1, 3, 2)
    out = np.zeros((15, 15), np.int64)
    covariance(words, np.array([0, 1]), groups, 0, 64, out)
    lags = np.concatenate([np.arange(f, f + n) for f, n in groups[:2].T])
    rows = np.stack(
        [
            words[g, PAD - k : PAD + 64 - k].astype(np.int64)
            for g, k in zip(np.repeat([0, 1], groups[1]), lags, strict=True)
        ]
    )
    assert np.array_equal(out, np.triu(rows @ rows.T))


def test_solver_survives_nonsense() -> None:
    for r in (np.zeros((9, 9)), np.full((9, 9), -1.0), np.full((9, 9), np.nan), np.full((9, 9), np.inf)):
        weights = np.ones(8)
        solve(r, np.zeros((9, 16)), weights)
        assert np.isfinite(weights).all()


def test_neighbours_are_known_before() -> None:
    x = made(500, 6).T
    order, near = choose_neighbours(x, 3)
    assert sorted(order) == list(range(6)) and near[0] == []
    assert all(set(n) <= set(order[:i]) and len(n) == min(3, i) for i, n in enumerate(near))
    assert choose_neighbours(np.zeros((3, 4), int), 2)[0] == [0, 1, 2] and innovations(x).shape == (6, 492)


def test_edges_stay_even_without_evidence() -> None:
    m = residual_model(-5, 20, 3.0)
    learn_edges(m, -5)
    assert np.allclose(np.diff(m.edges), 1.0)
    learn_edges(residual_model(-(2**20), 2**20, 3.0), -(2**20))


@pytest.mark.real
@pytest.mark.skipif(not os.environ.get("NBMF_DATA_DIR"), reason="needs NBMF_DATA_DIR")
@pytest.mark.parametrize(("name", "bits"), [("locust", 7.84), ("ieeg", 6.28), ("n1", 4.6)])
def test_real_recordings(name: str, bits: float) -> None:
    from nbmf_research.neural.sets import find_set

    if find_set(name).folder() is None:
        pytest.skip(f"the files of {name} are not here")
    x = next(find_set(name).items()).x
    x = x.isel(time=slice(0, 60_000)).load()
    stream = create_codec("nbmf-max").compress(x)
    assert np.array_equal(decompress(stream).values, x.values)
    assert 8 * len(stream) / x.size < bits * 1.02


GOLDEN = "2e13c8490f310fd53c8aca76b51d8e3c732f34d2b476930fa5d979b2f0e3c4d3"
TABLES = "0e202d5730365754e438e8aafaba50ae2b513f0c7133d9ba13e286992dcef3ff"


@pytest.mark.parametrize("bound", [2.0, 42.0, 1e5 + 2])
def test_a_wide_lattice_that_no_bound_can_be_spent_on_is_kept_whole(bound: float) -> None:
    rng = np.random.default_rng(0)
    x = (rng.integers(-(2**29), 2**29, (1000, 2)) // 6 * 6).astype(np.int32)
    y = decompress(create_codec("nbmf-bounded", max_error=bound).compress(x)).values
    assert np.abs(y.astype(np.int64) - x).max() <= bound


def peak(call: Callable[[], object]) -> int:
    """Most bytes that were held during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


ROOM = 2_500_000  # bytes, beside twice the samples: a section, tables, a predictor


@pytest.mark.parametrize("kind", ["fast", "balanced", "lattice", "bounded", "floats", "whole", "uint16"])
def test_decoding_takes_no_more_than_twice_the_samples(kind: str) -> None:
    x = np.tile(made(4096, 8), (12, 1))
    if kind == "lattice":
        x = np.trunc(np.clip(x.astype(int) // 8 + 500, 0, 1023) * 65535 / 1023 - 32768).astype(np.int16)
    elif kind in ("floats", "whole"):
        x = (x * 0.195 if kind == "floats" else x).astype(np.float32)
    elif kind == "uint16":
        x = (x.astype(int) + 32768).astype(np.uint16)
    codec = create_codec("nbmf-bounded", max_error=3) if kind == "bounded" else create_codec("nbmf-fast")
    payload = (create_codec("nbmf-balanced") if kind == "balanced" else codec).encode(x)
    codec.decode(payload, x.shape, x.dtype)  # tables are made once
    assert peak(lambda: codec.decode(payload, x.shape, x.dtype)) < 2 * x.nbytes + ROOM


def forged(plan: Plan, sides: list[Side], channels: int, reach: int = 0, drop: int = 0) -> bytes:
    """A payload that makes claims about channels, and holds nothing else."""
    c = Coder()
    c.number(reach)
    code_sides(c, plan.neighbours, channels, sides)
    said = c.finish()
    middle = len(said).to_bytes(4, "little") + said if plan.flags & QUICK else said
    return bytes([PLAIN]) + plan.pack() + bytes([drop]) + middle


@pytest.mark.parametrize("flags", [3, ALIKE + QUICK])
def test_claims_that_cannot_be_are_refused_before_memory_is_asked_for(flags: int) -> None:
    shape, codec = (1 << 20, 5), create_codec("nbmf-fast")
    plain = [Side(c, list(range(c)), 0, -50, 50, 3) for c in range(5)]
    wide = [*plain[:4], Side(4, [], 0, -40_000, 40_000, 3)]
    away = [*plain[:4], Side(4, [], 32_700, -50, 200, 3)]
    for payload in (
        forged(Plan(8, flags=flags), wide, 5),
        forged(Plan(8, flags=flags), away, 5),
        forged(Plan(56, 4, 32, 32, flags=flags), plain, 5),
        forged(Plan(8, flags=flags), plain, 5, drop=16),
        bytes([PLAIN]) + bytes(10 * shape[0] + 1),
    ):

        def refuse(payload: bytes = payload) -> None:
            with pytest.raises(StreamError):
                codec.decode(payload, shape, np.dtype("<i2"))

        assert peak(refuse) < 1_000_000


@pytest.mark.parametrize("flags", [3, ALIKE + QUICK])
def test_hostile_samples_take_no_more_than_twice_what_they_claim(flags: int) -> None:
    shape, codec, rng = (1 << 17, 4), create_codec("nbmf-fast"), np.random.default_rng(0)
    sides = [Side(c, list(range(c)), 0, -50, 50, 3) for c in range(4)]
    for reach in (0, 7):
        payload = forged(Plan(8, 3, 1, 1, flags=flags), sides, 4, reach) + rng.bytes(300)

        def attempt(payload: bytes = payload) -> None:
            with contextlib.suppress(StreamError):
                codec.decode(payload, shape, np.dtype("<i2"))

        attempt()
        assert peak(attempt) < 2 * 2 * shape[0] * shape[1] + ROOM


@pytest.mark.parametrize(
    "plan", [Plan(16, 2, 2, 2, 6, 3, 2000), Plan(8, 3, 0, 1, 8, 2 + QUICK), Plan(8, 1, 4, 4, 4, 1)]
)
@pytest.mark.parametrize("reach", [0, 9])
def test_sections_change_nothing(monkeypatch: pytest.MonkeyPatch, plan: Plan, reach: int) -> None:
    x = made(3000, 4)
    x[:, 2] = 7
    block = encode_block(x, plan, reach)
    whole = decode_block(block, x.shape, x.dtype)
    assert np.abs(whole.astype(int) - x).max() <= reach
    for section in (1, 100, 333):
        monkeypatch.setattr(lossless, "SECTION", section)
        assert np.array_equal(decode_block(block, x.shape, x.dtype), whole)


def test_wide_samples_with_low_bits_come_back_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(-(2**31), 2**31, (1003, 3)).astype(np.int32)
    block = encode_block(x, Plan(8, 1, 1, 1))
    for piece in (1, 100, 1 << 15):
        monkeypatch.setattr(lossless, "_PIECE", piece)
        assert np.array_equal(decode_block(block, x.shape, x.dtype), x)


def test_a_bound_that_leaves_the_range_of_the_samples() -> None:
    x = np.where(np.arange(900)[:, None] % 7 < 3, 32767, -32768).astype(np.int16)
    x = np.concatenate([x, made(900, 1)], 1)
    for reach in (1, 40_000, 1 << 24):
        for flags in (3, ALIKE + QUICK):
            y = decode_block(encode_block(x, Plan(8, 1, 1, 1, flags=flags), reach), x.shape, x.dtype)
            assert np.abs(y.astype(int) - x).max() <= reach


def test_plans_that_no_decoder_takes_are_not_written() -> None:
    with pytest.raises(InputError, match="regressors"):
        encode_block(made(300, 5), Plan(56, 4, 32, 32))
    with pytest.raises(InputError, match="neighbours"):
        encode_block(np.zeros((5, 80), np.int16), Plan(8, 70))
