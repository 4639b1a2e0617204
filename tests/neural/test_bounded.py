"""The bounded codec of transform and corrections: the bound on anything, the same bytes everywhere, hostile payloads, real recordings."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.core import StreamError
from nbmf_research.neural import sets
from nbmf_research.neural.adaptive import excerpt
from nbmf_research.neural.bounded import (
    MDCT,
    RATIOS,
    TRANSFORM,
    BoundedCodec,
    BoundedSetting,
    TransformBounded,
    decode_layers,
    encode_layers,
    search,
)
from nbmf_research.neural.codec import Codec, decompress
from nbmf_research.neural.corrections import Bins
from nbmf_research.neural.evaluate import views
from nbmf_research.neural.lossless import Bounded
from nbmf_research.neural.recordings import crop

INTEGERS = ("|i1", "|u1", "<i2", "<u2", "<i4", "<u4")


def rhythm(n: int, channels: int, scale: float, seed: int = 0) -> np.ndarray:
    """Rhythms shared by the channels, on smooth noise, in units of `scale`."""
    rng = np.random.default_rng(seed)
    t = np.arange(n)[:, None]
    shared = np.sin(t / 5 + rng.uniform(0, 6, channels)) + np.sin(t / 41)
    smooth = np.apply_along_axis(np.convolve, 0, rng.normal(size=(n, channels)), np.hanning(7), "same")[:n]
    return scale * (shared + 0.5 * smooth)


def furthest(x: np.ndarray, y: np.ndarray) -> float:
    """Largest error."""
    return float(np.abs(x.astype(np.float64) - y.astype(np.float64)).max())


def typed(x: np.ndarray, dtype: str) -> np.ndarray:
    """Round to a type, saturated."""
    if np.dtype(dtype).kind == "f":
        return x.astype(dtype)
    info = np.iinfo(dtype)
    return np.clip(np.round(x) + (info.max // 2 if info.min == 0 else 0), info.min, info.max).astype(dtype)


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from((*INTEGERS, "<f4", "<f8")),
    shape=st.tuples(st.integers(1, 400), st.integers(1, 5)),
    scale=st.floats(0.0, 1e6),
    share=st.floats(0.0, 30.0),
    codec=st.sampled_from((TransformBounded, BoundedCodec)),
    seed=st.integers(0, 2**31),
)
def test_the_bound_holds(
    dtype: str, shape: tuple[int, int], scale: float, share: float, codec: type[Bounded], seed: int
) -> None:
    x = typed(rhythm(*shape, scale, seed), dtype)
    bound = share * float(x.astype(np.float64).std())
    y = decompress(codec(bound).compress(x)).values
    assert y.dtype == x.dtype and y.shape == x.shape and furthest(x, y) <= bound


@pytest.mark.parametrize("codec", [TransformBounded, BoundedCodec])
@pytest.mark.parametrize("bound", [0.0, 0.4, 1.0, 33.0, 20_000.0, 1e9])
def test_extremes(codec: type[Bounded], bound: float) -> None:
    rng = np.random.default_rng(0)
    for x in (
        np.full((100, 3), 9, np.int16),
        np.array([[7]], np.int16),
        rng.choice(np.array([-32768, 32767], np.int16), (700, 2)),
        rng.integers(-(2**31), 2**31, (300, 2)).astype(np.int32),
        rng.choice(np.array([-1e300, 0.0, 1e300]), (200, 2)),
        rng.choice(np.array([-1e-300, 0.0, 1e-300]), (200, 2)),
    ):
        assert furthest(x, decompress(codec(bound).compress(x)).values) <= bound


def test_wide_bounds_use_the_transform_and_narrow_ones_prediction() -> None:
    x = typed(rhythm(6000, 6, 400.0), "<i2")
    sizes = {}
    for bound in (2, 400):
        pure, plain, auto = (c(bound).encode(x) for c in (TransformBounded, Bounded, BoundedCodec))
        assert auto == (pure if bound > 2 else plain)
        sizes[bound] = len(pure) / len(plain)
    assert sizes[400] < 0.7 and sizes[2] < 1.5


def test_the_search_is_no_worse_than_its_start() -> None:
    x = typed(rhythm(5000, 3, 300.0), "<i2")
    bins = Bins(301.0, True)
    found, size = search(excerpt(x), bins)
    assert size == len(encode_layers(x, bins, found)) <= len(encode_layers(x, bins, BoundedSetting()))
    assert search(x, bins, 1.0)[0] == BoundedSetting()


def test_a_long_recording_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import nbmf_research.neural.adaptive as adaptive

    monkeypatch.setattr(adaptive, "PART_SAMPLES", 2000)
    monkeypatch.setattr(adaptive, "MAX_GROUP", 3)
    x = typed(rhythm(1500, 5, 100.0), "<i2")
    assert len(list(adaptive.parts((1500, 5)))) > 4
    payload = encode_layers(x, Bins(81.0, True), BoundedSetting(hop=5))
    assert furthest(x, decode_layers(payload, (1500, 5), x.dtype)) <= 40


SMALL = typed(rhythm(300, 3, 200.0), "<i2")
PAYLOAD = encode_layers(SMALL, Bins(101.0, True), BoundedSetting(hop=5, kind=MDCT, ratio=RATIOS.index(22)))


@settings(max_examples=75, deadline=None)
@given(
    damage=st.lists(st.tuples(st.integers(0, len(PAYLOAD) - 1), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, len(PAYLOAD)),
)
def test_damage_is_refused_or_decodes_to_something(damage: list[tuple[int, int]], cut: int) -> None:
    broken = bytearray(PAYLOAD)
    for at, byte in damage:
        broken[at] = byte
    for dtype in (SMALL.dtype, np.dtype("<f4")):
        for stream in (bytes(broken), bytes(broken[:cut])):
            try:
                y = BoundedCodec().decode(stream, (300, 3), dtype)
            except StreamError:
                continue
            assert y.shape == SMALL.shape and y.dtype == dtype


def test_hostile_lengths_are_refused() -> None:
    assert PAYLOAD[0] == TRANSFORM
    for broken in (PAYLOAD + b"0", PAYLOAD[:-1], PAYLOAD[:20], PAYLOAD[:1]):
        with pytest.raises(StreamError):
            BoundedCodec().decode(broken, (300, 3), SMALL.dtype)
    with pytest.raises(
        StreamError, match="transform"
    ):  # a hop longer than the part would need memory that the shape does not
        decode_layers(PAYLOAD, (9, 3), SMALL.dtype)


def test_frames_notice_damage() -> None:
    stream = bytearray(BoundedCodec(100).compress(SMALL))
    stream[-3] ^= 4
    with pytest.raises(StreamError):
        decompress(bytes(stream))


PROGRAM = """
import hashlib, sys, numpy as np
from nbmf_research.neural.bounded import BoundedCodec, TransformBounded
from nbmf_research.neural.codec import decompress
x = np.load(sys.argv[1])
for codec in (TransformBounded, BoundedCodec):
    stream = codec(60).compress(x)
    print(hashlib.sha256(stream + decompress(stream).values.tobytes()).hexdigest())
"""


def test_other_thread_counts_write_the_same_bytes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    x = typed(rhythm(2000, 6, 200.0), "<i2")
    np.save(tmp_path / "x.npy", x)
    seen = set()
    for threads in ("1", "2"):
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "x.npy")],
            env=os.environ | dict.fromkeys(names, threads),
            capture_output=True,
            text=True,
            check=True,
        )
        seen.add(run.stdout)
    here = [
        hashlib.sha256(s + decompress(s).values.tobytes()).hexdigest()
        for s in (c(60).compress(x) for c in (TransformBounded, BoundedCodec))
    ]
    assert seen == {"\n".join(here) + "\n"}


@pytest.mark.real
@pytest.mark.skipif(not os.environ.get("NBMF_DATA_DIR"), reason="NBMF_DATA_DIR is not set")
@pytest.mark.parametrize(("name", "share", "bits"), [("ieeg", 0.3, 0.12), ("lfp_ca1", 0.8, 0.20), ("eeg21", 0.5, 0.27)])
def test_real_recordings(name: str, share: float, bits: float) -> None:
    item = next(i for i in sets.find_set(name).items() if i.split == "validation")
    x = views(crop(item.x, 0, min(item.x.sizes["time"], 60_000 // item.x.sizes["channel"])))[-1].x.values
    bound = np.ceil(share * np.sqrt(((x - x.mean(0)) ** 2).mean()))
    codec: Codec = BoundedCodec(bound)
    stream = codec.compress(x)
    assert furthest(x, decompress(stream).values) <= bound and 8 * len(stream) / x.size < bits
