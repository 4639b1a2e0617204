"""neural.push: every chunk comes back, what is damaged or missing is refused, and memory stays what it is."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.core import InputError, StreamError
from nbmf_research.neural import push
from nbmf_research.neural.lossless import ALIKE, CURVED, QUICK, Plan
from nbmf_research.neural.push import (
    CHUNK,
    KEY,
    ROOM,
    STEADY,
    SWIFT,
    StreamDecoder,
    StreamEncoder,
    _bounds,
    pack_frame,
    split_frames,
    widen,
)
from nbmf_research.neural.recordings import find_lattice

TYPES = ("|i1", "|u1", "<i2", "<u2", "<i4", "<u4")


def walk(n: int, channels: int, seed: int = 0, dtype: str = "<i2") -> np.ndarray:
    """A random walk with a common part, within the type and 2**25."""
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.integers(-3, 4, (n, 1)), 0) + rng.integers(-2, 3, (n, channels))
    info = np.iinfo(dtype)
    return np.clip(
        x + (int(info.max) // 2 if info.min == 0 else 0), max(info.min, -(2**25)), min(info.max, 2**25)
    ).astype(dtype)


def cut(x: np.ndarray, seed: int, longest: int) -> list[np.ndarray]:
    ends = np.cumsum(np.random.default_rng(seed).integers(1, longest + 1, len(x)))
    return [p for p in np.split(x, ends[ends < len(x)]) if len(p)]


@pytest.mark.parametrize(
    "plan", [STEADY, SWIFT, Plan(8, 1, 0, 0, 4, CURVED, 50, 4, 0), Plan(24, 2, 0, 5, 5, ALIKE + QUICK)]
)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_comes_back(plan: Plan, dtype: str) -> None:
    info = np.iinfo(dtype)
    low, high = max(info.min, -(2**25)), min(info.max, 2**25)
    rng = np.random.default_rng(1)
    noise = rng.integers(low, high, (150, 3), endpoint=True, dtype=dtype)
    for x in (walk(600, 3, 1, dtype), noise, np.full((90, 3), high, dtype)):
        sender, receiver = StreamEncoder(3, dtype, plan=plan), StreamDecoder()
        for chunk in cut(x, 2, 70):
            y = receiver.push(sender.push(chunk))
            assert y.dtype == x.dtype and np.array_equal(y, chunk)


@settings(max_examples=20, deadline=None)
@given(
    plan=st.sampled_from([STEADY, SWIFT]),
    bound=st.integers(0, 500),
    channels=st.integers(1, 5),
    n=st.integers(1, 900),
    longest=st.sampled_from([1, 2, 7, 300]),
    key_every=st.sampled_from([0, 1, 100]),
    seed=st.integers(0, 99),
)
def test_any_chunks_stay_within_the_bound(
    plan: Plan, bound: int, channels: int, n: int, longest: int, key_every: int, seed: int
) -> None:
    x = 20 * walk(min(n, 60 * longest), channels, seed)
    x[::17] = 32767
    sender, receiver = StreamEncoder(channels, max_error=bound, plan=plan, key_every=key_every), StreamDecoder()
    for chunk in cut(x, seed, longest):
        y = receiver.push(sender.push(chunk))
        assert y.shape == chunk.shape and np.abs(y.astype(int) - chunk).max() <= bound


@pytest.mark.parametrize("plan", [STEADY, SWIFT])
def test_memory_and_speed_do_not_depend_on_the_past(plan: Plan) -> None:
    x = walk(40_000, 2)
    sender, receiver = StreamEncoder(2, plan=plan), StreamDecoder()
    sizes = set()
    for at in range(0, len(x), 500):
        assert np.array_equal(receiver.push(sender.push(x[at : at + 500])), x[at : at + 500])
        sizes.add(sender._window.channels.words.nbytes)
        assert sender._window.used <= ROOM and (sender._window.channels.predictors[0].clock[:2] >= -ROOM).all()
    assert len(sizes) == 1


def test_one_long_chunk_and_then_short_ones() -> None:
    x = walk(12_000, 3)
    sender, receiver = StreamEncoder(3), StreamDecoder()
    for a, b in ((0, 9000), (9000, 9001), (9001, 12_000)):
        assert np.array_equal(receiver.push(sender.push(x[a:b])), x[a:b])


def test_a_stream_needs_hardly_more_than_a_block() -> None:
    from nbmf_research.neural.lossless import encode_block

    x = walk(8000, 4)
    sender = StreamEncoder(4)
    parts = sum(len(sender.push(x[at : at + 1000])) for at in range(0, len(x), 1000))
    assert parts < 1.02 * len(encode_block(x, STEADY))


@settings(max_examples=75, deadline=None)
@given(which=st.integers(0, 3), at=st.integers(0, 10**6), mask=st.integers(1, 255))
def test_flipped_bits_are_refused(which: int, at: int, mask: int) -> None:
    sender, receiver = StreamEncoder(2), StreamDecoder()
    frames = [bytearray(sender.push(walk(200, 2)[50 * i : 50 * i + 50])) for i in range(4)]
    frames[which][at % len(frames[which])] ^= mask
    for frame in frames[:which]:
        receiver.push(bytes(frame))
    for frame in frames[which:]:
        with pytest.raises(StreamError):
            receiver.push(bytes(frame))
    assert receiver.lost


def test_missing_repeated_and_swapped_frames_are_refused() -> None:
    x = walk(300, 2)
    sender = StreamEncoder(2)
    frames = [sender.push(x[at : at + 50]) for at in range(0, 300, 50)]
    for order in ((0, 2), (0, 0, 2), (0, 1, 1), (0, 2, 1), (1,)):
        receiver = StreamDecoder()
        for i in order[:-1]:
            try:
                receiver.push(frames[i])
            except StreamError:
                assert i != 0
        with pytest.raises(StreamError, match="restart"):
            receiver.push(frames[order[-1]])
    again = sender.push(x[:50], restart=True)
    assert again[0] == KEY and np.array_equal(receiver.push(again), x[:50]) and not receiver.lost
    assert np.array_equal(receiver.push(sender.push(x[50:60])), x[50:60])


def test_key_frames_come_in_time() -> None:
    sender = StreamEncoder(1, key_every=100)
    kinds = [sender.push(walk(40, 1))[0] for _ in range(8)]
    assert kinds == [KEY, CHUNK, CHUNK, KEY, CHUNK, CHUNK, KEY, CHUNK]


def test_an_encoder_that_knew_nothing_restarts_once() -> None:
    x, sender, receiver, keys = walk(6000, 5), StreamEncoder(5), StreamDecoder(), 0
    for at in range(0, 6000, 20):
        frame = sender.push(x[at : at + 20])
        keys += frame[0] == KEY
        assert np.array_equal(receiver.push(frame), x[at : at + 20])
    assert keys == 2


def test_joined_frames_are_cut_apart() -> None:
    sender, receiver = StreamEncoder(2), StreamDecoder()
    x = walk(500, 2)
    stream = b"".join(sender.push(c) for c in cut(x, 3, 90))
    assert np.array_equal(np.concatenate([receiver.push(f) for f in split_frames(stream)]), x)
    for broken in (stream[:-1], b"x" + stream, stream + b"\xc8"):
        with pytest.raises(StreamError):
            list(split_frames(broken))


@pytest.mark.parametrize("plan", [STEADY, SWIFT])
@pytest.mark.parametrize("bound", [0, 10, 64, 500])
def test_a_known_lattice_saves_and_does_not_limit(plan: Plan, bound: int) -> None:
    codes = np.clip(walk(3000, 2).astype(int) // 2 + 500, 0, 1023)
    x = np.trunc(codes * 65535 / 1023 - 32768).astype(np.int16)
    lattice = find_lattice(x[:1500])
    size = {}
    for told in (None, lattice):
        sender, receiver, size[told is None] = (
            StreamEncoder(2, max_error=bound, plan=plan, lattice=told),
            StreamDecoder(),
            0,
        )
        for at in range(0, 3000, 250):
            frame = sender.push(x[at : at + 250])
            assert np.abs(receiver.push(frame).astype(int) - x[at : at + 250]).max() <= bound
            size[told is None] += len(frame)
        assert sender.lattice is None or told is not None
    if bound < 64:  # a bound of 10 leaves less to save on steps of 64
        assert size[False] < (0.6 if bound == 0 else 0.75) * size[True]
    odd = x[:9] ^ 1
    assert np.abs(receiver.push(sender.push(odd)).astype(int) - odd).max() <= bound
    assert np.abs(receiver.push(sender.push(x[:7])).astype(int) - x[:7]).max() <= bound


def test_a_widened_lattice_holds_the_whole_type() -> None:
    codes = np.arange(1024)
    x = np.trunc(codes * 65535 / 1023 - 32768).astype(np.int16)[:, None]
    wide = widen(find_lattice(x[300:700]))
    sender, receiver = StreamEncoder(1, lattice=find_lattice(x[300:700])), StreamDecoder()
    assert np.array_equal(receiver.push(sender.push(x)), x) and wide.levels[0] >= 1024


@settings(max_examples=60, deadline=None)
@given(
    quick=st.booleans(),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    cut_at=st.integers(0, 10**6),
    samples=st.sampled_from([0, 1, 50, 2**20, 2**34]),
    key=st.booleans(),
)
def test_forged_frames_decode_to_something_or_are_refused(
    quick: bool, damage: list[tuple[int, int]], cut_at: int, samples: int, key: bool
) -> None:
    sender, receiver = StreamEncoder(2, plan=SWIFT if quick else STEADY), StreamDecoder()
    receiver.push(sender.push(walk(50, 2)))
    before = sender._check
    frame = sender.push(walk(50, 2), restart=key)
    payload = bytearray(frame[_bounds(frame, 0)[1] :])
    for at, byte in damage:
        payload[at % len(payload)] = byte
    payload = payload[: 1 + cut_at % len(payload)]
    if samples == 2**20 and not quick:
        samples = 300
    forged, _ = pack_frame(frame[0], samples, bytes(payload), before)
    try:
        y = receiver.push(forged)
    except StreamError:
        assert receiver.lost
        return
    assert y.shape[0] == samples and y.dtype.kind in "iu"


def test_what_does_not_fit_is_refused_and_the_stream_goes_on() -> None:
    sender, receiver = StreamEncoder(2, "<i4"), StreamDecoder()
    x = walk(100, 2, dtype="<i4")
    receiver.push(sender.push(x[:50]))
    for bad in (
        np.zeros((3, 3), int),
        np.zeros((0, 2), int),
        np.zeros((3, 2)),
        np.full((1, 2), np.nan),
        np.zeros((3, 2), bool),
        np.full((1, 2), 2**26),
        [[1, 2], [3]],
    ):
        with pytest.raises(InputError):
            sender.push(bad)
    assert np.array_equal(receiver.push(sender.push(x[50:])), x[50:])
    for call in (
        lambda: StreamEncoder(0),
        lambda: StreamEncoder(2, "<i8"),
        lambda: StreamEncoder(2, "<f4"),
        lambda: StreamEncoder(2, max_error=-1),
        lambda: StreamEncoder(2, plan=Plan(8, 1, 1, 1)),
        lambda: StreamEncoder(2, lattice=find_lattice(x[:, :1])),
        lambda: StreamEncoder(2, key_every=-1),
        lambda: StreamEncoder(8000, plan=Plan(56, 8, 0, 22)),
    ):
        with pytest.raises(InputError):
            call()


def test_golden_stream() -> None:
    """A change of this checksum breaks every stream in the world: bump the format instead."""
    check = 0
    for plan, bound in ((STEADY, 0), (SWIFT, 0), (STEADY, 4), (SWIFT, 4)):
        rng_free = (np.arange(900)[:, None] * np.array([[7, 11]]) % 97 + np.arange(900)[:, None] // 9).astype(np.int16)
        sender = StreamEncoder(2, plan=plan, max_error=bound)
        for at in range(0, 900, 130):
            check = zlib.crc32(sender.push(rng_free[at : at + 130]), check)
    assert check == GOLDEN


GOLDEN = 3403963475


@pytest.mark.parametrize("plan", [STEADY, SWIFT])
def test_a_thousand_pushes_leave_no_memory_behind(plan: Plan) -> None:
    sender, receiver, x = StreamEncoder(2, plan=plan), StreamDecoder(), walk(3000, 2)

    def pushes(n: int) -> int:
        for i in range(n):
            receiver.push(sender.push(x[2 * i % 2900 : 2 * i % 2900 + 20]))
        return tracemalloc.get_traced_memory()[0]

    pushes(400)  # the room is used up once, and neighbours are chosen
    tracemalloc.start()
    try:
        before = pushes(250)
        assert pushes(1000) - before < 50_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("what", [MemoryError, KeyboardInterrupt])
def test_what_was_interrupted_begins_anew(monkeypatch: pytest.MonkeyPatch, what: type[BaseException]) -> None:
    """A predictor that has moved on without its other half would give wrong samples that no checksum shows."""
    x, sender, receiver = walk(200, 2), StreamEncoder(2), StreamDecoder()
    receiver.push(sender.push(x[:50]))
    for name in ("encode_into", "decode_into"):
        whole = getattr(push, name)

        def halfway(*a: object, whole=whole) -> None:
            whole(*a)
            raise what

        with monkeypatch.context() as m:
            m.setattr(push, name, halfway)
            with pytest.raises(what):
                receiver.push(sender.push(x[50:100]))
        frame = sender.push(x[100:150])
        if name == "encode_into":
            assert frame[0] == KEY and np.array_equal(receiver.push(frame), x[100:150])
        else:
            assert receiver.lost
            with pytest.raises(StreamError, match="restart"):
                receiver.push(frame)


def test_decoders_do_not_share_anything() -> None:
    x, sender, first, second = walk(400, 3), StreamEncoder(3, key_every=100), StreamDecoder(), StreamDecoder()
    frames = [sender.push(x[at : at + 50]) for at in range(0, 400, 50)]
    for i, frame in enumerate(frames):
        assert np.array_equal(first.push(frame), x[50 * i : 50 * i + 50])
        if i > 1:
            assert np.array_equal(second.push(frame), x[50 * i : 50 * i + 50])


def test_a_small_frame_cannot_claim_a_large_state() -> None:
    sender = StreamEncoder(2)
    frame = sender.push(walk(50, 2))
    payload = bytearray(frame[_bounds(frame, 0)[1] :])
    payload[2:4] = (8192).to_bytes(2, "little")
    payload[4 : 4 + len(STEADY.pack())] = Plan(56, 60, 0, 32).pack()
    tracemalloc.start()
    try:
        with pytest.raises(StreamError, match="does not exist"):
            StreamDecoder().push(pack_frame(KEY, 1, bytes(payload), 0)[0])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
