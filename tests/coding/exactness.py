"""What every exact network must do: the reference's integers, however it is run."""

from __future__ import annotations

import numpy as np
import torch

from nbmf_research.coding.exact import ExactSequential


def as_tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).float()


def same(y: torch.Tensor, want: np.ndarray) -> bool:
    return np.array_equal(y.cpu().numpy().astype(np.int64), want)


def check_however_it_is_run(net: ExactSequential, x: np.ndarray) -> None:
    """The same integers for other batches, memory layouts, kernels, thread counts and types."""
    want, t = net.reference(x), as_tensor(x)
    assert same(net(t), want)
    assert want.min() >= net.spans[-1].lo and want.max() <= net.spans[-1].hi
    assert same(torch.cat([net(row[None]) for row in t]), want)
    assert same(net(t.transpose(0, 2).contiguous().transpose(0, 2)), want)
    assert same(net(torch.stack([t, t], -1)[..., 0]), want)
    before = torch.backends.mkldnn.set_flags(False)
    assert same(net(t), want)
    torch.backends.mkldnn.set_flags(before[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    assert same(net(t), want)
    torch.set_num_threads(threads)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(t)
    assert same(y, want) and y.dtype == torch.float32
    assert same(net.double()(t.double()), want)
