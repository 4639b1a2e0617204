"""Adaptive codec: transforms, graph, bases, round trips of odd inputs, another process, damage."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from nbmf_research.core import InputError, StreamError
from nbmf_research.metrics import snr_db
from nbmf_research.neural import adaptive as ad
from nbmf_research.neural.codec import create_codec
from nbmf_research.neural.contexts import LAMBDA, new_scratch
from nbmf_research.neural.weights import find_weights

RNG = np.random.default_rng(0)


def mixture(n: int, channels: int, seed: int = 0) -> np.ndarray:
    """Smooth sources mixed into channels."""
    rng = np.random.default_rng(seed)
    sources = rng.normal(size=(n, 5)).cumsum(0)
    sources -= sources.mean(0)
    return sources @ rng.normal(size=(5, channels)) + rng.normal(size=(n, channels))


@pytest.mark.parametrize("kind", [ad.DCT, ad.MDCT])
@pytest.mark.parametrize(("n", "size"), [(1, 16), (16, 16), (17, 16), (500, 64), (512, 64), (100, 256)])
def test_transform_inverts(kind: int, n: int, size: int) -> None:
    x = RNG.normal(size=(n, 2))
    assert np.allclose(ad.synthesise(ad.analyse(x, kind, size), n, kind), x, atol=1e-5)


@pytest.mark.parametrize("where", [0, 1, 2, 3])
def test_rows_are_orthonormal(where: int) -> None:
    m = ad.time_matrix(ad.MDCT, 32, where)
    assert np.allclose(m @ m.T, np.eye(32), atol=1e-6)


def test_graph_survives_and_is_positive() -> None:
    x = mixture(4000, 20)
    graph = ad.fit_graph(x - x.mean(0))
    back, rest = ad.Graph.unpack(graph.pack() + b"x", 20)
    assert rest == b"x" and all((a == b).all() for a, b in zip(graph, back, strict=True))
    assert np.linalg.eigvalsh(ad.graph_covariance(*graph)).min() > 0
    assert len(graph.gaps) > 10


def test_jacobi_finds_eigenvectors() -> None:
    a = np.cov(mixture(500, 12).T)
    b, v = a.copy(), np.eye(12)
    ad.diagonalise(b, v, 10)
    assert np.allclose(v @ a @ v.T, b, atol=1e-8 * a.max()) and np.allclose(v @ v.T, np.eye(12))
    assert np.allclose(np.sort(np.diag(b)), np.linalg.eigvalsh(a), rtol=1e-2, atol=1e-4 * a.max())


def test_decoder_state_equals_encoder_state() -> None:
    x = mixture(2000, 6)
    graph, c = ad.fit_graph(x - x.mean(0)), ad.analyse(x - x.mean(0), ad.DCT, 32)
    gains = np.full(len(ad.band_edges(32)) - 1, 6)
    model = ad.released_model()
    tracker, memory = ad.begin(graph, gains, 32)
    coded = c.copy()
    data, error = ad.encode_blocks(tracker, memory, *model, new_scratch(model.net), coded, LAMBDA)
    t, m = ad.begin(graph, gains, 32)
    back = np.zeros_like(c)
    ad.decode_blocks(t, m, *model, new_scratch(model.net), data, back)
    assert all((a == b).all() for a, b in zip((*tracker, *memory), (*t, *m), strict=True))
    assert (back == coded).all() and ((back - c) ** 2).sum() == pytest.approx(error)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((1, 1), np.int16),
        np.full((300, 4), -7.25, np.float32),
        np.tile([[-32768, 32767]], (200, 3)).astype(np.int16),
        (np.where(np.arange(400)[:, None] % 100 == 0, 2**30, 0) + np.zeros((1, 2))).astype(np.int32),
        mixture(333, 1).astype(np.float64),
        mixture(100, 130).astype(np.float32),
    ],
)
def test_odd_inputs_survive(x: np.ndarray) -> None:
    step = max(float(np.abs(x).max()) / 100, 0.01)
    codec = create_codec_here(step)
    y = codec.decompress(codec.compress(x)).values
    assert y.shape == x.shape and y.dtype == np.float32 and np.abs(y - x).max() < 4 * step


def create_codec_here(step: float) -> ad.AdaptiveCodec:
    """The codec, whether or not the list of codec modules names it yet."""
    return ad.AdaptiveCodec(step=step)


def test_settings_are_tried_and_not_guessed() -> None:
    """Trials of 256 samples, each on its own: only blocks that end where a trial ends are cheap."""
    rng, model = np.random.default_rng(1), ad.released_model()
    trials = np.cos(np.pi / 256 * (np.arange(256)[:, None] + 0.5) * 3) * rng.normal(size=(24, 1, 1)) * 40
    x = (trials + rng.normal(size=(24, 256, 2)) / 9).reshape(-1, 2)
    found = ad.choose(x, model)
    assert (found.hop, found.kind) == (8, ad.DCT)
    sizes = {h: len(ad.encode_part(x, ad.Setting(hop=h, kind=ad.MDCT), model).data) for h in (6, 7, 8, 9)}
    assert len(ad.encode_part(x, found, model).data) < 0.8 * min(sizes.values())
    assert ad.choose(x[:3], model).hop == 4


def test_long_recordings_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    x = mixture(3000, 3).astype(np.float32)
    monkeypatch.setattr(ad, "PART_SAMPLES", 2000)
    assert len(list(ad.parts((3000, 3)))) == 5
    codec = ad.AdaptiveCodec(step=1.0)
    assert snr_db(x, codec.decompress(codec.compress(x)).values) > 15


def test_beats_the_fixed_basis_where_bands_differ() -> None:
    """Slow and fast sources with other maps: one rotation fits neither."""
    rng = np.random.default_rng(4)
    slow = rng.normal(size=(12_000, 4)).cumsum(0) / 10
    fast = np.diff(rng.normal(size=(12_001, 4)), axis=0)
    x = (slow - slow.mean(0)) @ rng.normal(size=(4, 16)) + fast @ rng.normal(size=(4, 16))
    x = x.astype(np.float32)
    step = float(x.std()) / 4
    new, old = (c.compress(x) for c in (ad.AdaptiveCodec(step=step), create_codec("klt-dct", step=step)))
    y, z = ad.AdaptiveCodec().decompress(new).values, create_codec("klt-dct").decompress(old).values
    assert len(new) < 0.9 * len(old) and snr_db(x, y) > snr_db(x, z) - 0.2


def _decode(stream: bytes) -> np.ndarray:
    return np.asarray(ad.AdaptiveCodec().decompress(stream).values)


def test_another_process_decodes_the_same() -> None:
    x = mixture(2000, 8).astype(np.float32)
    stream = ad.AdaptiveCodec(step=0.7).compress(x)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert (pool.submit(_decode, stream).result() == _decode(stream)).all()


def test_same_bytes_twice() -> None:
    x = mixture(1000, 4).astype(np.float32)
    assert ad.AdaptiveCodec(step=1.0).compress(x) == ad.AdaptiveCodec(step=1.0).compress(x)


def test_damage_is_found() -> None:
    codec = ad.AdaptiveCodec(step=1.0)
    stream = codec.compress(mixture(500, 4).astype(np.float32))
    for broken in (stream[:-1], stream[:40], stream[:-5] + b"12345"):
        with pytest.raises(StreamError):
            codec.decompress(broken)
    payload = codec.encode(mixture(500, 4).astype(np.float32))
    for size in range(0, len(payload) - 1, max(len(payload) // 25, 1)):
        with pytest.raises(StreamError):
            codec.decode(payload[:size], (500, 4), np.dtype("<f4"))


def test_a_stream_names_its_weights() -> None:
    x = mixture(300, 2).astype(np.float32)
    codec = ad.AdaptiveCodec(step=0.5)
    payload = codec.encode(x)
    assert payload[1:5] == find_weights("adaptive").model_id
    other = payload[:1] + b"none" + payload[5:]
    with pytest.raises(StreamError, match="needs the weights 6e6f6e65"):
        codec.decode(other, x.shape, x.dtype)


@pytest.mark.parametrize("step", [0.0, -1.0, np.nan, 1e40])
def test_steps_that_make_no_sense(step: float) -> None:
    with pytest.raises(InputError):
        ad.AdaptiveCodec(step=step)
    with pytest.raises(InputError):
        ad.AdaptiveCodec(step=1e-12).compress(mixture(100, 2).astype(np.float32))


def test_card_and_model_agree() -> None:
    card = find_weights("adaptive").card
    assert {"sha256", "training", "limits", "figures"} <= set(card)
    with pytest.raises(StreamError, match="context model"):
        ad.model_of({})
