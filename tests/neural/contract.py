"""What every learned codec must do, whatever its model: checks for the tests of each."""

from __future__ import annotations

import numpy as np
import pytest

from nbmf_research.core import InputError, StreamError
from nbmf_research.metrics import snr_db
from nbmf_research.neural.learned import LearnedCodec

ODD_INPUTS = [
    np.zeros((1, 1), np.int16),
    np.full((300, 4), -7.25, np.float32),
    np.tile([[-32768], [32767]], (150, 2)).astype(np.int16),
    np.random.default_rng(0).normal(size=(70, 90)).astype(np.float32),
]


def check_odd_input(codec_class: type[LearnedCodec], x: np.ndarray, within: float) -> None:
    """An input of `ODD_INPUTS` comes back finite, in its shape, and within so many steps."""
    codec = codec_class(step=max(float(np.abs(x).max()) / 50, 0.01))
    y = codec.decompress(codec.compress(x)).values
    assert y.shape == x.shape and np.isfinite(y).all() and np.abs(y - x).max() < within * codec.step


def check_finer_steps(codec_class: type[LearnedCodec], x: np.ndarray) -> None:
    """A finer step takes more bytes and gives a better copy."""
    points = []
    for part in (1, 4, 16):
        codec = codec_class(step=float(x.std()) / part)
        stream = codec.compress(x)
        points.append((len(stream), snr_db(x, codec.decompress(stream).values)))
    assert (np.diff(points, axis=0) > 0).all()


def check_damage(codec_class: type[LearnedCodec], x: np.ndarray) -> None:
    """A stream or payload that is cut short is a `StreamError`, at whatever byte."""
    codec = codec_class(step=float(x.std()))
    stream = codec.compress(x[:500])
    for broken in (stream[:-1], stream[:30]):
        with pytest.raises(StreamError):
            codec.decompress(broken)
    payload = codec.encode(x[:500])
    for size in (0, 5, 20, len(payload) - 6, len(payload) - 4):
        with pytest.raises(StreamError):
            codec.decode(payload[:size], (500, x.shape[1]), np.dtype("<f4"))


def check_steps_without_sense(codec_class: type[LearnedCodec], x: np.ndarray) -> None:
    """A step that is no positive number, or far too small for the recording, is an `InputError`."""
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(InputError):
            codec_class(step=bad)
    with pytest.raises(InputError):
        codec_class(step=1e-6).compress(x[:100])
