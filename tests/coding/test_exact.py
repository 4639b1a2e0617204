"""Exact networks: the same integers in every runtime, the proof, the twins, the files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from exactness import as_tensor, check_however_it_is_run, same
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.coding import exact as ex
from nbmf_research.core import InputError, StreamError

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


# Random networks -----------------------------------------------------------------------------------------------------


def tanh_table(rng: np.random.Generator, clip: tuple[int, int]) -> ex.ExactTable:
    return ex.ExactTable(np.rint(127 * np.tanh(np.arange(clip[0], clip[1] + 1) / rng.uniform(20, 200))), clip[0])


def random_conv(rng: np.random.Generator, channels: int, outputs: int, peak: int, wide: bool) -> ex.ExactConv1d:
    up = int(rng.choice([1, 1, 1, 2, 3]))
    kernel = int(rng.integers(1, 4)) * up
    geometry = {"up": up}
    if up == 1:
        geometry |= {"stride": int(rng.integers(1, 3)), "dilation": int(rng.integers(1, 4))}
        geometry["padding"] = None if rng.integers(2) else (int(rng.integers(0, 3)), int(rng.integers(0, 3)))
    largest = int(rng.choice([3, 127]))
    weight = rng.integers(-largest, largest + 1, (outputs, channels, kernel))
    spread = (
        np.sqrt((weight**2.0).sum((1, 2)) * peak**2 / 4) / up
    )  # so that outputs fill the clip, now and then go far beyond it
    shift = np.maximum(np.rint(np.log2(spread / 50 + 1)).astype(int) + rng.integers(-1, 2, outputs), 8 if wide else 0)
    bias = np.rint(spread * rng.normal(0, 0.3, outputs))
    clip = [(-127, 127), (0, 255), (-128, 128)][rng.integers(3)]
    return ex.ExactConv1d(weight, bias, shift, clip, wide, **geometry)


def random_gru(rng: np.random.Generator, channels: int, hidden: int) -> ex.ExactGRU:
    grid = np.arange(-2048, 2048) / 256
    tables = np.rint(256 / (1 + np.exp(-grid))), np.rint(2**14 * np.tanh(grid))
    weights = [rng.integers(-127, 128, (3 * hidden, n)) for n in (channels, hidden)]
    return ex.ExactGRU(*weights, rng.integers(-999, 1000, 3 * hidden), rng.integers(0, 8, 3 * hidden), *tables)


def random_net(seed: int) -> ex.ExactSequential:
    rng = np.random.default_rng(seed)
    wide = bool(rng.integers(2))
    span = ex.Span(*(int(v) for v in ((-32768, 32767) if wide else [(-127, 127), (0, 255), (-5, 3)][rng.integers(3)])))
    channels = int(rng.choice([1, 2, 3, 5, 18]))
    layers: list[ex.ExactModule] = []
    for i in range(int(rng.integers(1, 4))):
        outputs = int(rng.choice([1, 2, 4, 17]))
        layers.append(random_conv(rng, channels, outputs, span.peak if i == 0 else 120, wide and i == 0))
        channels = outputs
        layers += [[], [tanh_table(rng, layers[-1].clip)], [ex.ExactRequantise(int(rng.integers(0, 3)), (-50, 90))]][
            rng.integers(3)
        ]
    if rng.integers(3) == 0:
        layers.append(random_gru(rng, channels, int(rng.integers(1, 5))))
        channels = layers[-1].outputs
    if rng.integers(2):
        layers.append(ex.ExactLinear(rng.integers(-127, 128, (3, channels)), rng.integers(-9, 9, 3)))
    return ex.ExactSequential(layers, span)


def inputs(net: ex.ExactSequential, seed: int, steps: int = 48) -> np.ndarray:
    rng = np.random.default_rng(seed)
    lo, hi = net.spans[0]
    x = rng.integers(lo, hi + 1, (4, net.channels, steps))
    x[1:3] = rng.choice([lo, hi], (2, net.channels, steps))
    x[3] = hi
    return x


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_any_network_equals_the_integer_reference_however_it_is_run(net_seed, seed):
    net = random_net(net_seed)
    check_however_it_is_run(net, inputs(net, seed))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_reduced_matmul_precision_changes_nothing_and_is_put_back(precision):
    rng = np.random.default_rng(0)
    net = ex.ExactSequential([ex.ExactLinear(rng.integers(-60, 61, (64, 512)))], (-255, 255))
    x = rng.integers(-255, 256, (64, 512))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert same(net(as_tensor(x)), net.reference(x))
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_precision_is_put_back_after_an_error():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with pytest.raises(RuntimeError, match="stop"), ex.exact_arithmetic():
            raise RuntimeError("stop")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


# Settings of the processor, in processes of their own -------------------------------------------------------------------

WORKER = """
import hashlib, sys
import numpy as np, torch
from nbmf_research.coding import exact as ex
torch.set_num_threads(int(sys.argv[1]))
rng = np.random.default_rng(2024)
def conv(o, i, k, **kw):
    w = ((np.arange(o * i * k).reshape(o, i, k) * 2654435761) >> 7) % 201 - 100
    return ex.ExactConv1d(w, np.arange(o) * 37 - 500, 10, (-127, 127), **kw)
sine = np.rint(127 * np.sin(np.arange(-127, 128) / 40))
net = ex.ExactSequential([conv(64, 16, 7, stride=2), ex.ExactTable(sine, -127), conv(64, 64, 5, dilation=2), conv(32, 64, 8, up=4)], (-127, 127))
digest, count = hashlib.sha256(), 0
for i in range(int(sys.argv[2])):
    x = ex.known_input((4, 16, 2100 + i), net.spans[0])
    y = net(torch.from_numpy(x).float())
    digest.update(y.numpy().astype("i1").tobytes())
    count += y.numel()
assert not net.fallback
print(digest.hexdigest(), count)
"""
RUNS = 5
GOLDEN = "5afd2cfa08ba1a54133581ddd8841440999154ae843f9da67381bb1a7948fae9"
INTEGERS = 2_691_072
PROCESSORS = {
    "default kernels": {"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "AVX-512": {"ATEN_CPU_CAPABILITY": "avx512", "DNNL_MAX_CPU_ISA": "AVX512_CORE"},
    "bfloat16 allowed, two threads": {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16", "THREADS": "2"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSORS)
def test_golden_integers_under_every_processor_setting(name):
    """4 settings x 2.7 million integers: more than 10^7, and no mismatch; the hash is committed, so that it holds between machines as well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **PROCESSORS[name]}
    command = [sys.executable, "-c", WORKER, PROCESSORS[name].get("THREADS", "1"), str(RUNS)]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert out == [GOLDEN, str(INTEGERS)]
    assert INTEGERS * len(PROCESSORS) >= 10**7


# Other runtimes ---------------------------------------------------------------------------------------------------------


def deployed() -> tuple[ex.ExactSequential, torch.Tensor]:
    """A network with every kind of layer but the recurrent one, and an input."""
    rng = np.random.default_rng(3)

    def conv(outputs: int, channels: int, kernel: int, shift: int, **options: object) -> ex.ExactConv1d:
        weight = rng.integers(-60, 61, (outputs, channels, kernel))
        return ex.ExactConv1d(weight, rng.integers(-99, 99, outputs), shift + rng.integers(0, 2, outputs), **options)

    first, second = conv(8, 2, 5, 8, clip=(-127, 127), stride=2, padding=(2, 2)), conv(6, 8, 4, 5, clip=(0, 255), up=2)
    third, last = (
        conv(4, 6, 3, 0, clip=(-32767, 32767), dilation=2),
        ex.ExactLinear(rng.integers(-90, 90, (3, 4)), shift=13, wide=True, clip=(-127, 127)),
    )
    net = ex.ExactSequential(
        [first, tanh_table(rng, (-127, 127)), second, ex.ExactRequantise(1, (0, 100)), third, last], (-127, 127)
    )
    return net, as_tensor(inputs(net, 0, 96))


def test_torch_export_gives_the_same_integers():
    net, x = deployed()
    assert torch.equal(torch.export.export(net, (x,)).module()(x), net(x))


def test_torch_export_of_a_recurrent_cell():
    net = ex.ExactSequential([random_gru(np.random.default_rng(0), 2, 4)], (-127, 127))
    x = as_tensor(inputs(net, 1, 6))
    assert torch.equal(torch.export.export(net, (x,)).module()(x), net(x))


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_onnx_runtime_gives_the_same_integers(dynamo, level, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    if dynamo:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed: torch.onnx.export(dynamo=True) needs it")
    net, x = deployed()
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), str(path), dynamo=dynamo)
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert np.array_equal(got, net(x).numpy())


@cuda
@pytest.mark.parametrize("tf32", [False, True])
def test_cuda_gives_the_same_integers(tf32):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium" if tf32 else "highest")
        for seed in range(40):
            net = random_net(seed)
            x = inputs(net, seed, 200)
            want = net.reference(x)
            net.cuda()
            assert net.selftest(strict=True)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                assert same(net(as_tensor(x).cuda()), want)
    finally:
        torch.set_float32_matmul_precision(before)


@cuda
@pytest.mark.parametrize("seed", range(8))
def test_a_twin_on_cuda_equals_its_export_on_the_cpu(seed):
    twin = random_twin(seed).cuda()
    x = torch.randn(3, 2, 40, device="cuda")
    twin(x).square().mean().backward()
    twin.eval()
    ints = twin.grid.integers(x)
    assert torch.equal(ex.export(twin)(ints.cpu()), twin.integers(ints)[0].cpu())


@cuda
def test_ten_million_integers_on_cuda():
    rng = np.random.default_rng(0)
    conv = [ex.ExactConv1d(rng.integers(-50, 51, (128, 128, 5)), shift=11, clip=(-127, 127)) for _ in range(2)]
    net = ex.ExactSequential(conv, (-127, 127))
    x = as_tensor(rng.integers(-127, 128, (40, 128, 2000)))
    assert torch.equal(net(x), net.cuda()(x.cuda()).cpu())


# The proof --------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(1, 255))
def test_the_worst_input_at_the_proven_bound_is_exact(seed, shift, peak):
    """A channel filled to the last unit of the bound, fed with the input that reaches it."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, int(rng.integers(1, 520)))
    sign = int(rng.choice([-1, 1]))
    room = ex.LIMIT - 1 - int(np.abs(weight).sum()) * peak - (1 << shift >> 1)
    layer = ex.ExactLinear(weight[None], [sign * room], shift)
    x = np.where(weight * sign > 0, peak, -peak)[None]
    net = ex.ExactSequential([layer], (-peak, peak))
    assert int(layer.bound(ex.Span(-peak, peak))[0]) < ex.LIMIT
    assert same(net(as_tensor(x)), net.reference(x))
    with pytest.raises(InputError, match=r"layer 0 \(ExactLinear\), channel 0"):
        ex.ExactSequential([ex.ExactLinear(weight[None], [room + 1], shift)], (-peak, peak))


def test_without_the_proof_float32_is_wrong():
    rng = np.random.default_rng(0)
    weight, x = rng.integers(100, 128, (32, 8192)), rng.integers(100, 128, (8192, 64))
    assert (torch.matmul(as_tensor(weight), as_tensor(x)).numpy().astype(np.int64) != weight @ x).mean() > 0.3
    with pytest.raises(InputError, match="may reach"):
        ex.ExactSequential([ex.ExactLinear(weight)], (-127, 127))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32))
def test_no_partial_sum_and_no_output_leaves_what_was_proven(seed):
    net = random_net(seed)
    for kind in (inputs(net, seed), np.full((1, net.channels, 48), net.spans[0].lo)):
        y = kind
        for layer, span, bound in zip(net.layers, net.spans[1:], net.bounds()):
            before = y
            y = layer.reference(before)
            assert y.min() >= span.lo and y.max() <= span.hi
            if isinstance(layer, ex.ExactConv1d) and not layer.wide:
                matrix, offset, _ = layer.rows()
                sums = (
                    np.abs(matrix) @ np.abs(ex.unfold(as_tensor(before), layer.geometry).numpy().astype(np.int64))
                    + np.abs(offset)[:, None]
                )
                assert (sums.max((0, 2)) <= bound).all()


@pytest.mark.parametrize(
    ("layers", "span", "words"),
    [
        ([ex.ExactLinear([[1]])], (-300, 300), r"layer 0 .*reach 300.*wide=True"),
        ([ex.ExactLinear([[1]], shift=8, wide=True)], (-70000, 0), "reach 70000"),
        ([ex.ExactLinear([[1]], shift=7, wide=True)], (0, 9), "at least 8"),
        ([ex.ExactLinear([[300]])], (0, 9), "weights reach 300"),
        ([ex.ExactTable([1, 2], 0)], (0, 2), "clip before the table"),
        ([ex.ExactLinear([[1]]), ex.ExactLinear([[1, 2]])], (0, 9), r"layer 1 .* takes 2 channels.* gives 1"),
        ([ex.ExactRequantise(20)], (0, ex.LIMIT - 9), "channel 0"),
        ([random_gru(np.random.default_rng(0), 1, 2)], (0, 257), "limit is 256"),
        ([ex.ExactRequantise()], (3, 2), "empty"),
    ],
)
def test_networks_that_could_leave_exact_arithmetic_are_refused(layers, span, words):
    with pytest.raises(InputError, match=words):
        ex.ExactSequential(layers, span)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ex.ExactLinear([[0.5]]),
        lambda: ex.ExactLinear([[np.nan]]),
        lambda: ex.ExactLinear([["a"]]),
        lambda: ex.ExactLinear([1, 2]),
        lambda: ex.ExactLinear([[1]], [ex.LIMIT]),
        lambda: ex.ExactLinear([[1]], shift=25),
        lambda: ex.ExactLinear([[1]], shift=-1),
        lambda: ex.ExactTable([], 0),
        lambda: ex.ExactConv1d(np.ones((1, 1, 3)), up=2),
        lambda: ex.ExactConv1d(np.ones((1, 1, 3)), stride=0),
        lambda: ex.ExactConv1d(np.ones((1, 1, 3)), dilation=2**20),
        lambda: ex.ExactGRU(np.ones((3, 1)), np.ones((3, 2)), np.ones(3), np.ones(3), np.ones(4096), np.ones(4096)),
        lambda: ex.ExactGRU(
            np.ones((3, 1)), np.ones((3, 1)), np.ones(3), np.ones(3), np.full(4096, 257), np.ones(4096)
        ),
        lambda: ex.TwinConv1d(1, 1, bits=17),
    ],
)
def test_impossible_layers_are_refused(make):
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 2, 50, dtype=torch.bfloat16),
        torch.zeros(1, 2, 50, dtype=torch.int64),
        torch.zeros(1, 2, 50, dtype=torch.float64),
        torch.full((1, 2, 50), 0.5),
        torch.full((1, 2, 50), 200.0),
        torch.full((1, 2, 50), float("inf")),
        torch.full((1, 2, 50), float("nan")),
        torch.zeros(1, 3, 50),
        torch.zeros(50),
    ],
)
def test_inputs_outside_the_proof_are_refused(x):
    with pytest.raises(InputError):
        deployed()[0](x)


def test_half_a_network_is_refused():
    net, x = deployed()
    with pytest.raises(InputError, match="bfloat16"):
        net.bfloat16()(x)


def test_a_signal_shorter_than_the_kernel_is_refused():
    net = ex.ExactSequential([ex.ExactConv1d(np.ones((1, 1, 9)), padding=(0, 0))], (-9, 9))
    with pytest.raises(InputError, match="longer input"):
        net(torch.zeros(1, 1, 8))
    assert net(torch.zeros(0, 1, 9)).shape == (0, 1, 1)


def test_vectors_are_one_time_step():
    net = ex.ExactSequential([ex.ExactLinear([[1, 2], [3, 4]])], (-9, 9))
    assert net(torch.tensor([[1.0, -1]])).tolist() == [[-1, -1]] and net.reference(np.array([[1, -1]])).tolist() == [
        [-1, -1]
    ]


# Twins ------------------------------------------------------------------------------------------------------------------


def random_twin(seed: int) -> ex.TwinSequential:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    bits, width = int(rng.choice([4, 8, 8, 12, 16])), int(rng.choice([5, 20]))
    layers: list[ex.Twin] = [
        ex.TwinConv1d(2, width, 3, relu=bool(rng.integers(2)), bits=bits, stride=int(rng.integers(1, 3)), dilation=2),
        ex.TwinConv1d(width, 4, 4, up=2),
        ex.TwinLinear(4, 4, grid=ex.Grid(5, -128, 127)),
        ex.TwinTable([torch.tanh, torch.sigmoid][rng.integers(2)], ex.Grid(7, -127, 128)),
    ]
    layers += [[], [ex.TwinGRU(4, 4)]][rng.integers(2)]
    layers += [ex.TwinLinear(4, 2, grid=ex.Grid(6, -(2**15), 2**15))]
    twin = ex.TwinSequential(
        layers, ex.Grid(int(rng.integers(3, 7)), *[(-127, 127), (-(2**15), 2**15 - 1)][rng.integers(2)])
    )
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(float(rng.choice([0.01, 1.0, 1.0, 30.0])))
    return twin


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_the_exported_network_equals_its_twin(seed):
    twin = random_twin(seed)
    x = torch.randn(3, 2, 40) * 3
    twin(x)
    twin.eval()
    net = ex.export(twin)
    ints = twin.grid.integers(x)
    y, grid = twin.integers(ints)
    assert torch.equal(net(ints), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(grid.real(y), twin(x))
    assert net.exponents == (twin.grid.exponent, grid.exponent)
    assert same(y.detach(), net.reference(ints.numpy().astype(np.int64)))


def test_a_twin_follows_a_float_network():
    """The twin's real outputs are those of plain float convolutions up to the step of the grids."""
    torch.manual_seed(0)
    twin = ex.TwinSequential([ex.TwinConv1d(3, 16, 5, relu=True), ex.TwinConv1d(16, 2, 3, bits=12)], ex.Grid(5))
    x = torch.randn(4, 3, 200).clamp(-3, 3)
    with torch.no_grad():
        twin(x)
        first, second = twin.layers
        middle = torch.relu(torch.nn.functional.conv1d(torch.nn.functional.pad(x, (4, 0)), first.weight, first.bias))
        want = torch.nn.functional.conv1d(torch.nn.functional.pad(middle, (2, 0)), second.weight, second.bias)
        assert (twin.eval()(x) - want).square().mean().sqrt() < 0.02 * want.std()


def test_gradients_of_a_twin_are_those_of_the_float_network():
    torch.manual_seed(0)
    twin = ex.TwinSequential([ex.TwinLinear(6, 4, bits=16)], ex.Grid(10, -(2**15), 2**15 - 1))
    x, target = torch.randn(64, 6, 1), torch.randn(64, 4, 1)
    layer = twin.layers[0]
    (twin(x) - target).square().mean().backward()
    got = layer.weight.grad.clone()
    layer.weight.grad = None
    (torch.nn.functional.conv1d(x, layer.weight, layer.bias) - target).square().mean().backward()
    assert torch.allclose(got, layer.weight.grad, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("kind", ["conv", "gru"])
def test_training_a_twin_converges(kind):
    torch.manual_seed(1)
    t = torch.arange(80) / 5
    x = torch.sin(t * torch.linspace(0.8, 1.2, 16)[:, None] + torch.rand(16, 1) * 6)[:, None] + 0.02 * torch.randn(
        16, 1, 80
    )
    hidden = ex.TwinConv1d(1, 12, 6, relu=True) if kind == "conv" else ex.TwinGRU(1, 12)
    twin = ex.TwinSequential([hidden, ex.TwinLinear(12, 1, grid=ex.Grid(8, -1024, 1023))], ex.Grid(6))
    optimiser = torch.optim.Adam(twin.parameters(), 0.02)
    losses = []
    for _ in range(120 if kind == "conv" else 50):
        optimiser.zero_grad()
        loss = (twin(x)[..., 12:-1] - x[..., 13:]).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    twin.eval()
    assert np.mean(losses[-5:]) < 0.1 * losses[0] and np.mean(losses[-5:]) < 0.02
    ints = twin.grid.integers(x)
    assert torch.equal(ex.export(twin)(ints), twin.integers(ints)[0])


def test_a_twin_gives_up_precision_rather_than_the_proof():
    torch.manual_seed(0)
    twin = ex.TwinSequential([ex.TwinLinear(4000, 3)], ex.Grid(5))
    with torch.no_grad():
        twin.layers[0].weight.fill_(0.9)
    net = ex.export(twin.eval())
    assert ex.LIMIT / 4 < int(net.bounds()[0].max()) < ex.LIMIT and int(np.abs(net.layers[0].ints["weight"]).max()) < 64
    assert same(net(torch.full((1, 4000), 127.0)), net.reference(np.full((1, 4000), 127)))


def test_export_names_the_layer_and_the_channel():
    twin = ex.TwinSequential([ex.TwinLinear(2, 3), ex.TwinLinear(3, 2, grid=ex.Grid(9))], ex.Grid(5))
    with torch.no_grad():
        twin.layers[1].bias[1] = 1e8
    with pytest.raises(InputError, match=r"layer 1 \(ExactConv1d\), channel 1"):
        ex.export(twin.eval())


def test_the_recurrent_cell_remembers():
    """A leak of about 1/256 over 200 steps, which an 8-bit state could not make."""
    twin = ex.TwinSequential([ex.TwinGRU(1, 1)], ex.Grid(6))
    cell = twin.layers[0]
    with torch.no_grad():
        cell.weight.zero_(), cell.recurrent.zero_()
        cell.bias.copy_(torch.tensor([0.0, 5.0, 4.0]))
    y = twin(torch.zeros(1, 1, 600))[0, 0]
    assert (y.diff() >= 0).all() and y[50] < 0.5 and y[-1] > 0.9


# Self-test and files ----------------------------------------------------------------------------------------------------


def test_a_machine_that_rounds_is_found_out():
    net, x = deployed()
    want, product = net(x), torch.matmul
    data = ex.to_bytes(net)
    with mock.patch("torch.matmul", lambda a, b: product(a, b) * (1 + 1e-4)):
        with pytest.raises(ex.ExactnessError, match="not reproduced"):
            ex.from_bytes(data, strict=True)
        with pytest.warns(RuntimeWarning, match="numpy reference"):
            other = ex.from_bytes(data)
        assert other.fallback and torch.equal(other(x), want)
        with pytest.warns(RuntimeWarning, match="numpy reference"):
            assert torch.equal(ex.ExactSequential(net.layers, net.spans[0])(x), want)
    assert other.selftest(strict=True) and not other.fallback


def test_known_inputs_never_change():
    """The self-test's inputs are part of the format."""
    x = ex.known_input((4, 3, 50), ex.Span(-127, 127))
    assert ex.answer_hash(x) == "1156ec8e204f9746675c36bc8bfd27660cfe15924ef66c9f1e8f64826a4b1f08"
    assert x.min() == -127 and x.max() == 127


@pytest.mark.parametrize("seed", range(12))
def test_files_come_back(seed, tmp_path):
    net = random_net(seed)
    path = tmp_path / "net.safetensors"
    sha = ex.save_exact(net, path)
    again = ex.load_exact(path, sha256=sha, strict=True)
    x = inputs(net, seed)
    assert ex.model_hash(again) == sha and torch.equal(again(as_tensor(x)), net(as_tensor(x)))
    assert ex.to_bytes(again) == path.read_bytes() and again.spans == net.spans


def test_the_hash_is_of_the_model_alone():
    net = random_net(1)
    other = ex.ExactSequential(net.layers, (net.spans[0].lo, net.spans[0].hi - 1))
    renamed = ex.ExactSequential(net.layers, net.spans[0], (1, 0))
    assert len({ex.model_hash(n) for n in (net, other, renamed)}) == 3


def test_another_model_than_the_stream_asks_for(tmp_path):
    ex.save_exact(random_net(1), tmp_path / "a.safetensors")
    with pytest.raises(StreamError, match="the stream needs"):
        ex.load_exact(tmp_path / "a.safetensors", sha256=ex.model_hash(random_net(2)))


def test_damaged_files_are_refused_or_the_same_model():
    net = deployed()[0]
    data, sha = ex.to_bytes(net), ex.model_hash(net)
    rng = np.random.default_rng(0)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(200):
            blob = bytearray(data)
            blob[rng.integers(len(blob))] ^= 1 << rng.integers(8)
            try:
                assert ex.model_hash(ex.from_bytes(bytes(blob))) == sha
            except StreamError:
                refused += 1
    assert refused > 150
    for length in (0, 7, 8, 100, len(data) - 1):
        with pytest.raises(StreamError):
            ex.from_bytes(data[:length])


def hostile(change) -> bytes:
    """A file whose manifest was changed, with a hash that fits nothing."""
    data = ex.to_bytes(deployed()[0])
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["nbmf_exact"])
    change(manifest)
    header["__metadata__"]["nbmf_exact"] = json.dumps(manifest)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format=99),
        lambda m: m.update(sha256="0" * 64),
        lambda m: m.update(span=[-(2**23), 2**23]),
        lambda m: m.update(span=[-100, 100]),
        lambda m: m.update(answers=[]),
        lambda m: m.update(answers=[[[4, 2, 2**40], "x"]]),
        lambda m: m["layers"][0].update(kind="pickle"),
        lambda m: m["layers"][0]["settings"].update(padding=[2**40, 0]),
        lambda m: m["layers"][0]["settings"].update(stride="1"),
        lambda m: m["layers"][0]["settings"].update(weight=[1]),
        lambda m: m["layers"].pop(),
        lambda m: m.pop("exponents"),
    ],
)
def test_hostile_manifests_are_refused(change):
    ex.from_bytes(hostile(lambda m: None), strict=True)
    with pytest.raises(StreamError):
        ex.from_bytes(hostile(change))


def test_weights_in_a_state_dict_cannot_replace_the_proven_ones():
    net, _ = deployed()
    assert not net.state_dict()
    assert hashlib.sha256(ex.to_bytes(net)).digest() == hashlib.sha256(ex.to_bytes(deployed()[0])).digest()
