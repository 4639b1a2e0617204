"""Exact attention: the same integers in parallel, in steps, in chunks and in every runtime; the proof; the twin; files."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from exactness import as_tensor, check_however_it_is_run, same
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.coding import attention as at
from nbmf_research.coding import exact as ex
from nbmf_research.core import InputError, StreamError

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def random_layer(rng: np.random.Generator) -> at.ExactAttention:
    heads, size, window = int(rng.choice([1, 2, 8])), int(rng.integers(1, 6)), int(rng.integers(1, 40))
    bias = rng.integers(-200, 200, (heads, window))
    shift, ahead = int(rng.integers(0, 9)), int(rng.integers(0, window))
    return at.ExactAttention(bias, at.exponentials(), heads * size, shift, ahead, int(rng.integers(0, 4)))


def random_net(seed: int, causal: bool = False) -> ex.ExactSequential:
    """Convolution, residual attention, convolution or upsampling."""
    rng = np.random.default_rng(seed)
    layer = random_layer(rng)
    if causal:
        layer = at.ExactAttention(layer.ints["bias"], at.exponentials(), layer.width, layer.shift)
    channels = int(rng.integers(1, 9))

    def linear(outputs: int, inputs: int, wide: bool = False) -> ex.ExactLinear:
        shift = int(rng.integers(4, 7)) + 4 * wide
        return ex.ExactLinear(
            rng.integers(-60, 61, (outputs, inputs)), rng.integers(-99, 99, outputs), shift, (-127, 127), wide
        )

    inner = [linear(3 * layer.width, channels), layer, linear(channels, layer.width, wide=layer.extra > 1)]
    sides = None if causal else (int(rng.integers(0, 3)), int(rng.integers(0, 3)))
    first = ex.ExactConv1d(rng.integers(-60, 61, (channels, 3, 3)), shift=6, clip=(-127, 127), padding=sides)
    up = int(rng.choice([1, 2]))
    last = ex.ExactConv1d(rng.integers(-60, 61, (2, channels, 2 * up)), shift=5, clip=(-500, 500), up=up)
    return ex.ExactSequential([first, at.ExactResidual(inner, (-200, 200), (-127, 127)), last], (-127, 127))


def inputs(net: ex.ExactModule, seed: int, time: int = 70, peak: int = 127) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.integers(-peak, peak + 1, (3, net.channels, time))
    x[1] = rng.choice([-peak, peak], x[1].shape)
    x[2] = peak
    return x


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_any_network_equals_the_reference_however_it_is_run(net_seed: int, seed: int) -> None:
    net = random_net(net_seed)
    check_however_it_is_run(net, inputs(net, seed))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 25), max_size=12))
def test_steps_give_the_integers_of_the_whole(seed: int, cuts: list[int]) -> None:
    net = random_net(seed)
    x = as_tensor(inputs(net, seed))
    stream, start, got = at.steps(net), 0, []
    for n in cuts:
        got.append(stream.push(x[..., start : start + n]))
        start += n
    got.append(stream.push(x[..., start:], last=True))
    assert torch.equal(torch.cat(got, -1), net(x))


def test_a_causal_network_answers_each_frame_at_once_and_forgets_beyond_its_window() -> None:
    net = random_net(5, causal=True)
    x = as_tensor(inputs(net, 5, 120))
    stream, want = at.steps(net), net(x)
    up = want.shape[-1] // 120
    for t in range(120):
        assert torch.equal(stream.push(x[..., t : t + 1]), want[..., up * t : up * (t + 1)])
    layer = net.layers[1].chain.layers[1]
    cache = stream.parts[1].chain.parts[1].cache
    assert cache.shape[-1] <= layer.band.before and layer.band.ahead == 0


@pytest.mark.parametrize("block", [1, 5000, 2**21])
def test_chunks_do_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(np.random.default_rng(3))
    x = as_tensor(inputs(layer, 0, 200))
    monkeypatch.setattr(at, "_BLOCK", block)
    assert same(layer(x), layer.reference(x.long().numpy()))


def test_twelve_thousand_frames_in_bounded_memory() -> None:
    layer = at.ExactAttention(np.zeros((8, 64)), at.exponentials(), 16, 4)
    x = as_tensor(inputs(layer, 0, 12_000)[:1])
    y = layer(x)
    some = 11_000
    assert torch.equal(y[..., some:], layer(x[..., some - 63 :])[..., 63:])
    sizes: list[int] = []

    def block(q: torch.Tensor, k: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        sizes.append(q.shape[2] * k.shape[2])
        return q

    q = torch.zeros(1, 8, 12_000, 2)
    at.by_chunks(q, q, q, layer.band, 0, block)
    assert max(sizes) <= 64 * 128 and sum(sizes) <= 12_000 * 128


def test_the_division_is_exact() -> None:
    rng = np.random.default_rng(0)
    b = rng.integers(1, 2**18, 10**6)
    for a in (
        rng.integers(-(2**36), 2**36, 10**6),
        b * rng.integers(-(2**17), 2**17, 10**6) + rng.integers(-1, 2, 10**6),
    ):
        assert np.array_equal(
            torch.floor(torch.from_numpy(a).double() / torch.from_numpy(b).double()).long().numpy(), a // b
        )


def test_the_worst_input_at_the_largest_window() -> None:
    layer = at.ExactAttention(np.zeros((2, 512)), np.r_[np.full(255, 256), 0], 4, 24)
    assert int(layer.bound(ex.Span(-127, 127)).max()) == 512 * 256 * 127 < ex.LIMIT
    x = np.full((1, 12, 600), 127)
    assert same(layer(as_tensor(x)), np.full((1, 4, 600), 254)) and (layer.reference(x) == 254).all()
    with pytest.raises(InputError, match="2\\^24"):
        layer.prove(ex.Span(-128, 128))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: at.Band(0, 3), "head"),
        (lambda: at.Band(1, 511, 1), "512"),
        (lambda: at.Band(1, 3, -1), "window"),
        (lambda: at.ExactAttention(np.zeros(4), at.exponentials(), 4, 3), "heads, window"),
        (lambda: at.ExactAttention(np.zeros((2, 4)), [256, 257, 0], 4, 3), "256"),
        (lambda: at.ExactAttention(np.zeros((2, 4)), [256, 3], 4, 3), "last 0"),
        (lambda: at.ExactAttention(np.zeros((2, 4)), [0, 0], 4, 3), "first positive"),
        (lambda: at.ExactAttention(np.zeros((3, 4)), at.exponentials(), 4, 3), "multiple"),
        (lambda: at.ExactAttention(np.zeros((2, 4)), at.exponentials(), 4, 25), "shift"),
        (lambda: at.ExactAttention(np.full((2, 4), 0.5), at.exponentials(), 4, 3), "whole"),
        (lambda: at.TwinAttention(8, 12, heads=8), "multiple"),
        (lambda: at.ExactResidual([ex.ExactLinear(np.ones((3, 2)))], (-9, 9), (-9, 9)), "as many channels"),
        (lambda: at.steps(random_net(0).layers[1]).chain and at.steps(gru()), "recurrent"),
    ],
)
def test_what_cannot_be_is_refused(make, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


def gru() -> ex.ExactGRU:
    zeros = np.zeros
    return ex.ExactGRU(zeros((6, 1)), zeros((6, 2)), zeros(6), zeros(6), np.full(4096, 128), zeros(4096))


def test_networks_beyond_the_proof_are_refused() -> None:
    layer = at.ExactAttention(np.zeros((8, 512)), at.exponentials(), 64, 6)
    with pytest.raises(InputError, match="partial sums"):
        ex.ExactSequential([layer], (-255, 255))
    with pytest.raises(InputError, match="requantise"):
        ex.ExactSequential([layer], (-300, 300))
    huge = at.ExactAttention(np.full((1, 4), 2**23), at.exponentials(), 1, 0)
    with pytest.raises(InputError, match="partial sums"):
        ex.ExactSequential([huge], (-1, 1))
    residual = at.ExactResidual([ex.ExactLinear(np.ones((2, 2)))], (-9, 9), (-9, 9))
    with pytest.raises(InputError, match="proven"):
        ex.ExactSequential([residual], (-10, 9))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32))
def test_files_come_back(seed: int) -> None:
    net = random_net(seed)
    back = ex.from_bytes(ex.to_bytes(net), strict=True)
    x = inputs(net, seed)
    assert same(back(as_tensor(x)), net.reference(x)) and ex.model_hash(back) == ex.model_hash(net)
    assert ex.to_bytes(back) == ex.to_bytes(net)


def test_damaged_files_are_refused() -> None:
    data = ex.to_bytes(random_net(1))
    for place in range(len(data) - 60, len(data), 7):
        hurt = bytearray(data)
        hurt[place] ^= 4
        with pytest.raises(StreamError):
            ex.from_bytes(bytes(hurt))


def test_a_machine_that_rounds_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    net, honest = random_net(2), torch.matmul
    x = inputs(net, 2)
    monkeypatch.setattr(torch, "matmul", lambda a, b: honest(a, b).bfloat16().float())
    with pytest.warns(RuntimeWarning, match="known answers"):
        assert same(net(as_tensor(x)), net.reference(x))
    with pytest.raises(ex.ExactnessError):
        at.steps(net)


def test_torch_export_gives_the_same_integers() -> None:
    net = random_net(4)
    x = as_tensor(inputs(net, 4, 50))
    assert torch.equal(torch.export.export(net, (x,)).module()(x), net(x))


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_onnx_runtime_gives_the_same_integers(level: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    net = random_net(4)
    x, path = as_tensor(inputs(net, 4, 50)), tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), str(path), dynamo=False)
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], net(x).numpy())


@cuda
def test_cuda_gives_the_same_integers() -> None:
    for seed in range(10):
        net = random_net(seed)
        x = inputs(net, seed, 300)
        want = net.reference(x)
        assert net.cuda().selftest(strict=True) and same(net(as_tensor(x).cuda()), want)


# The twin ---------------------------------------------------------------------------------------------------------------


def random_twin(seed: int, ahead: int = 0, positions: bool = True) -> ex.TwinSequential:
    torch.manual_seed(seed)
    blocks = at.twin_block(16, 8, 20, ahead, positions=positions)
    return ex.TwinSequential([ex.TwinConv1d(3, 16, 3, grid=at.TRUNK), *blocks, ex.TwinLinear(16, 2)], ex.Grid(4))


@pytest.mark.parametrize(("seed", "ahead", "positions"), [(0, 0, True), (1, 7, True), (2, 3, False)])
def test_the_exported_network_equals_its_twin(seed: int, ahead: int, positions: bool) -> None:
    twin = random_twin(seed, ahead, positions)
    twin(torch.randn(4, 3, 60))
    net, x = ex.export(twin.eval()), twin.grid.integers(2 * torch.randn(3, 3, 90))
    with torch.no_grad():
        assert torch.equal(net(x), twin.integers(x)[0])
    assert torch.equal(net(x), twin.integers(x)[0].detach())
    assert torch.equal(at.steps(net).push(x, last=True), net(x))


def test_gradients_are_those_of_float_attention() -> None:
    twin = at.TwinAttention(16, 16, 8, 20)
    qkv = ex.Grid(0).integers(20 * torch.randn(2, 48, 40)).requires_grad_()
    twin.smooth(qkv).square().sum().backward()
    got, bias = qkv.grad, twin.bias.grad
    real = (qkv.detach() / 32).requires_grad_()
    q, k, v = (at.split_heads(part, 8) for part in real.chunk(3, 1))
    mask = torch.ones(40, 40, dtype=torch.bool).tril().triu(-20)
    index = (torch.arange(40)[:, None] - torch.arange(40)).clamp(0, 20)
    own = twin.bias.detach().clone().requires_grad_()
    y = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, own[:, index].masked_fill(~mask, -torch.inf)[None].expand(2, -1, -1, -1), scale=1.0
    )
    (64 * at.join_heads(y)).square().sum().backward()
    assert torch.allclose(got, real.grad / 32, rtol=1e-3, atol=1e-2) and torch.allclose(
        bias, own.grad, rtol=1e-3, atol=1
    )


def test_the_twin_is_close_to_float_attention() -> None:
    twin = at.TwinAttention(16, 16, 8, 40).eval()
    qkv = ex.Grid(0).integers(30 * torch.randn(4, 48, 80))
    with torch.no_grad():
        difference = twin.layer()(qkv) - twin.smooth(qkv)
    assert difference.square().mean().sqrt() < 1.0 and difference.abs().max() < 6


def test_every_parameter_gets_a_gradient_and_the_loss_falls() -> None:
    twin = random_twin(3, ahead=5)
    optimiser, losses = torch.optim.Adam(twin.parameters(), 5e-3), []
    for _ in range(25):
        x = torch.randn(8, 3, 40)
        optimiser.zero_grad()
        loss = (twin(x)[:, 0, 8:] - x[:, 0, :-8]).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in twin.parameters())
    assert np.mean(losses[-5:]) < 0.97 * np.mean(losses[:5])


def test_no_positions_means_no_parameter_for_them() -> None:
    twin = at.TwinAttention(8, 8, 8, 9, positions=False)
    assert not twin.bias.requires_grad and not twin.layer().ints["bias"].any()
