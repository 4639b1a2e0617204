"""Graph layers against formulas and PyG; the spatial codec: positions, priors, round trips, another process, damage, gain."""

from __future__ import annotations

import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.core import InputError, StreamError
from nbmf_research.metrics import snr_db
from nbmf_research.neural import adaptive, graphs
from nbmf_research.neural import spatial as sp
from nbmf_research.neural.codec import create_codec, decompress
from nbmf_research.neural.probes import TEN_TEN, ecog_grid, eeg_1020, utah_array
from nbmf_research.neural.recordings import recording

RNG = np.random.default_rng(0)
CAP = graphs.place(eeg_1020(TEN_TEN[:20]).xyz)


def smooth(n: int, channels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random walks with a smooth spatial covariance on a grid, and its positions."""
    rng, xyz = np.random.default_rng(seed), ecog_grid(channels // 6, 6).xyz
    d = np.linalg.norm(xyz[:, None] - xyz, axis=-1) / 10_000
    root = np.linalg.cholesky(np.exp(-0.5 * (d / 2) ** 2) + 0.05 * np.eye(len(xyz)))
    return (rng.normal(size=(n, len(xyz))).cumsum(0) @ root.T * 10).astype(np.float32), xyz


# Layers


def everyone(batch: int, n: int) -> torch.Tensor:
    return torch.ones(batch, n, dtype=torch.bool)


def dense_chebyshev(layer: graphs.ChebyshevConv, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """The textbook formula with a full Laplacian: L = I - D^-1/2 A D^-1/2, scaled by its bound 2."""
    a = layer.edges(d)
    laplacian = torch.eye(len(a)) - torch.diag(a.sum(1) ** -0.5) @ a @ torch.diag(a.sum(1) ** -0.5)
    t = [torch.eye(len(a)), laplacian - torch.eye(len(a))]
    while len(t) < len(layer.terms):
        t.append(2 * (laplacian - torch.eye(len(a))) @ t[-1] - t[-2])
    return sum(term(p @ x) for p, term in zip(t, layer.terms, strict=True))  # type: ignore[return-value]


def test_chebyshev_is_the_formula() -> None:
    torch.manual_seed(0)
    layer, x = graphs.ChebyshevConv(3, 5, order=4, channels=20), torch.randn(2, 20, 3)
    torch.nn.init.normal_(layer.edges.factor, std=0.3)
    out = layer(x, CAP, everyone(2, 20))
    for b in range(2):
        torch.testing.assert_close(out[b], dense_chebyshev(layer, x[b], CAP.distance), rtol=1e-4, atol=1e-5)


def test_attention_and_kernel_are_the_formula() -> None:
    torch.manual_seed(1)
    x, d = torch.randn(1, 20, 4), CAP.distance
    one = graphs.DistanceAttention(4, 4, heads=1)
    q, k, v = one.query(x[0]), one.key(x[0]), one.value(x[0])
    score = (q @ k.T / 2 - torch.nn.functional.softplus(one.slope) * d).fill_diagonal_(-torch.inf)
    torch.testing.assert_close(one(x, CAP, everyone(1, 20))[0], one.own(x[0]) + one.mix(torch.softmax(score, 1) @ v))
    kernel = graphs.DistanceKernel(4, 4, scales=1)
    w = torch.softmax((-d / kernel.log_scale.exp()).fill_diagonal_(-torch.inf), 1)
    torch.testing.assert_close(kernel(x, CAP, everyone(1, 20))[0], kernel.own(x[0]) + kernel.mix(w @ x[0]))


@pytest.mark.skipif(importlib.util.find_spec("torch_geometric") is None, reason="PyG (extra gnn) is not installed")
def test_layers_equal_pyg() -> None:
    from torch_geometric.nn import ChebConv, TransformerConv

    torch.manual_seed(2)
    x, n = torch.randn(20, 3), 20
    edges = torch.stack(torch.where(~torch.eye(n, dtype=torch.bool)))
    ours, theirs = graphs.ChebyshevConv(3, 5, order=4), ChebConv(3, 5, K=4)
    with torch.no_grad():
        for a, b in zip(ours.terms, theirs.lins, strict=True):
            b.weight.copy_(a.weight)
        theirs.bias.copy_(ours.terms[0].bias)
        weight = ours.edges(CAP.distance)[edges[0], edges[1]]
        expected = theirs(x, edges, weight, lambda_max=torch.tensor(2.0))
        torch.testing.assert_close(ours(x[None], CAP, everyone(1, n))[0], expected, rtol=1e-4, atol=1e-5)
        far = CAP._replace(distance=torch.zeros(n, n))  # without distances, attention is PyG's TransformerConv
        mine, other = graphs.DistanceAttention(3, 4, heads=1), TransformerConv(3, 4, heads=1)
        for name, layer in (("query", "query"), ("key", "key"), ("value", "value"), ("own", "skip")):
            getattr(other, f"lin_{layer}").load_state_dict(getattr(mine, name).state_dict())
        mine.mix.weight.copy_(torch.eye(4))
        torch.testing.assert_close(mine(x[None], far, everyone(1, n))[0], other(x, edges), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", graphs.LAYERS)
def test_what_does_not_send_reaches_nobody(kind: graphs.Kind) -> None:
    torch.manual_seed(3)
    net, x, sends = graphs.SpatialNet(kind, 8), torch.randn(3, 20), everyone(3, 20)
    sends[:, 4] = False
    spoiled = x.clone()
    spoiled[:, 4] = torch.nan if kind != "grid" else 1e9
    mean, spread = net(x, CAP, sends)
    assert (
        torch.equal(mean, net(spoiled, CAP, sends)[0]) and torch.isfinite(mean).all() and torch.isfinite(spread).all()
    )
    moved = x.clone()
    moved[:, 6] += 1.0
    changed = (net(moved, CAP, sends)[0] != mean)[0]
    assert changed[6] or changed.any()


def test_layers_do_not_care_how_channels_are_numbered() -> None:
    torch.manual_seed(4)
    xyz, shuffle = eeg_1020(TEN_TEN[:20]).xyz, torch.randperm(20)
    for kind in ("kernel", "attention", "chebyshev"):
        net, x = graphs.SpatialNet(kind, 8), torch.randn(2, 20)
        a = net(x, CAP, everyone(2, 20))[0][:, shuffle]
        b = net(x[:, shuffle], graphs.place(xyz[shuffle]), everyone(2, 20))[0]
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_learnable_edges_and_scales_get_gradients() -> None:
    net = graphs.ChebyshevConv(2, 2, order=2, channels=20)
    net(torch.randn(1, 20, 2), CAP, everyone(1, 20)).square().sum().backward()
    assert net.edges.factor.grad.abs().sum() > 0 and net.edges.share.grad.abs().sum() > 0
    with pytest.raises(InputError):
        graphs.DistanceAttention(4, 6, heads=4)


# Positions and priors


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 1e4, 1e8]))
def test_sites_survive(n: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    xyz = rng.normal(size=(n, 3)) * scale
    xyz[rng.random(n) < 0.3] = np.nan
    sites = sp.sites_of(xyz, n)
    back, rest = sp.Sites.unpack(sites.pack() + b"r", n)
    assert rest == b"r" and (back.points == sites.points).all() and (back.placed == sites.placed).all()
    assert back.exponent == sites.exponent and (sites.placed == np.isfinite(xyz).all(1)).all()
    if sites.placed.any():
        assert np.ptp(sites.points[sites.placed], axis=0).max() <= 257


def test_solve_and_order() -> None:
    a = RNG.normal(size=(9, 9))
    a, b = a @ a.T + np.eye(9), RNG.normal(size=(9, 2))
    x = b.copy()
    sp.solve_positive(a.copy(), x)
    assert np.allclose(a @ x, b)
    sites = sp.sites_of(utah_array().xyz, 96)
    order = sp.maximin_order(sites.points, sites.placed)
    d = np.sqrt(((sites.points[order][:, None] - sites.points[order]) ** 2).sum(-1))
    reach = [d[i, :i].min() for i in range(1, 96)]
    assert sorted(order) == list(range(96)) and (np.diff(reach) <= 0).all()


def test_vecchia_is_exact_where_neighbours_suffice() -> None:
    """Up to nine channels each is regressed on all before it: the implied covariance is the prior's."""
    points = sp.sites_of(ecog_grid(3, 3).xyz, 9).points
    cov = np.tensordot([0.2, 0, 0.3, 0.3, 0.1, 0, 0.1, 0], sp.plain_terms(points, np.array(sp.SCALES)), 1)
    cov /= np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
    counts, gaps, weights, left = sp.vecchia(points, cov)
    root, at = np.eye(9), 0
    for i, c in enumerate(counts):
        root[i, i - 1 - gaps[at : at + c]] -= weights[at : at + c]
        at += c
    inverse = np.linalg.inv(root)
    assert np.allclose(inverse @ np.diag(left) @ inverse.T, cov, atol=1e-9)


def test_field_is_kept_at_its_own_sites_and_fades_elsewhere() -> None:
    xyz = eeg_1020(TEN_TEN).xyz
    c = np.exp(-np.linalg.norm(xyz[:, None] - xyz, axis=-1) / 1e5)
    field = sp.Field(np.rint(xyz / sp.MM).astype(np.int64), np.rint(16384 * c).astype(np.int64))
    at = sp.field_term(field.points.astype(float), *field, sp._KRIGING)
    assert np.abs(at - c).max() < 0.1
    between = eeg_1020(["AFF1h", "CPP5h", "FTT7h"]).xyz / sp.MM
    assert np.linalg.eigvalsh(sp.field_term(between, *field, sp._KRIGING)).min() > 0


# The codec


@pytest.mark.parametrize(
    ("x", "positions"),
    [
        (np.zeros((1, 1), np.int16), None),
        (np.full((300, 4), -7.25, np.float32), [[0, 0], [1, 0], [0, 0], [np.nan, 0]]),
        (np.tile([[-32768, 32767]], (200, 3)).astype(np.int16), np.zeros((6, 3))),
        (RNG.normal(size=(100, 130)).astype(np.float32), RNG.normal(size=(130, 3)) * 1e-6),
        (np.tile(RNG.normal(size=(90, 1)), (1, 5)), np.arange(15.0).reshape(5, 3) * 1e8),
    ],
)
def test_odd_inputs_survive(x: np.ndarray, positions: object) -> None:
    codec = sp.SpatialCodec(step=max(float(np.abs(x).max()) / 100, 0.01), positions=positions, block=64)
    y = codec.decompress(codec.compress(x)).values
    assert y.shape == x.shape and y.dtype == np.float32 and np.abs(y - x).max() < 4 * codec.step


def decode_elsewhere(stream: bytes) -> bytes:
    return decompress(stream).values.tobytes()


def test_decodes_in_another_process_and_gains_from_positions() -> None:
    values, xyz = smooth(128, 36)
    x = recording(values, 250.0, positions=xyz)
    made = {s: create_codec("spatial", step=15.0, starts=s).compress(x) for s in ("all", "graph", "prior")}
    y = decompress(made["all"]).values
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(decode_elsewhere, made["all"]).result() == y.tobytes()
    assert len(made["prior"]) < len(made["graph"]) and snr_db(values, y) > 15
    wrong = sp.SpatialCodec(15.0, xyz[np.random.default_rng(1).permutation(36)], starts="prior").compress(x)
    assert len(wrong) > 1.02 * len(made["prior"])


def test_without_positions_it_is_the_adaptive_codec() -> None:
    values, _ = smooth(600, 6)
    ours, theirs = create_codec("spatial", step=20.0, starts="graph"), create_codec("adaptive", step=20.0)
    a, b = ours.compress(values), theirs.compress(values)
    assert abs(len(a) - len(b)) < 60
    assert np.allclose(ours.decompress(a).values, theirs.decompress(b).values, atol=4.0)


def test_broken_channels_are_found() -> None:
    values, _ = smooth(500, 36, seed=5)
    values[:, [3, 20]] = RNG.normal(size=(500, 2)) * 30
    bad = sp.broken_channels(sp.moments(values - values.mean(0)), np.ones(36, bool))
    assert np.flatnonzero(bad).tolist() == [3, 20]


def test_damage_and_bad_arguments() -> None:
    values, xyz = smooth(100, 12)
    codec = sp.SpatialCodec(20.0, xyz, starts="prior")
    stream = codec.compress(values)
    payload = codec.encode(values)
    for broken in (stream[:-1], stream[:30]):
        with pytest.raises(StreamError):
            decompress(broken)
    for size in (0, 5, 20, 24, 40, 60, len(payload) - 6, len(payload) - 1):
        with pytest.raises(StreamError):
            codec.decode(payload[:size], (100, 12), np.dtype("<f4"))
    with pytest.raises(StreamError, match="follow"):
        codec.decode(payload + b"more", (100, 12), np.dtype("<f4"))
    for bad in ({"block": -1}, {"starts": "none"}, {"step": 0.0}):
        with pytest.raises(InputError):
            sp.SpatialCodec(**bad)
    with pytest.raises(InputError, match="shape"):
        sp.SpatialCodec(1.0, xyz[:3]).compress(values)
    with pytest.raises(InputError, match="too small"):
        sp.SpatialCodec(1e-9, xyz).compress(values)


def test_fields_survive_their_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(TEN_TEN[::3])
    xyz = eeg_1020(names).xyz
    heads = [recording(RNG.normal(size=(300, len(names))).cumsum(0), 250.0, positions=xyz) for _ in range(2)]
    field = sp.learn_field(heads)
    digest = sp.save_fields(tmp_path / "f.safetensors", [field])
    back = sp.load_fields(tmp_path / "f.safetensors", digest)[0]
    assert (back.points == field.points).all() and (back.correlation == field.correlation).all()
    with pytest.raises(InputError, match="same"):
        sp.learn_field([heads[0], recording(np.zeros((9, 2)), 1.0, positions=np.zeros((2, 3)))])
    monkeypatch.setattr(sp, "list_weights", lambda: [])
    assert sp.released_fields() == (bytes(4), ())


def test_firm_start_counts_as_observations() -> None:
    values, _ = smooth(400, 6, seed=2)
    graph, gains = adaptive.fit_graph(values - values.mean(0)), np.full(len(adaptive.band_edges(32)) - 1, 8)
    plain, firm = (sp.begin(graph, gains, 32, s)[0] for s in (sp.GRAPH, sp.FIRM_GRAPH))
    assert plain.cov.sum() == 0 and (firm.seen == sp.WORTH).all()
    turned = firm.basis[0] @ firm.cov[0] @ firm.basis[0].T
    assert np.allclose(turned, np.diag(np.diag(turned)), atol=1e-6 * turned.max()) and np.diag(turned).min() >= 0
