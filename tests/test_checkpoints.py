"""Checkpoints: what comes back is what went in, damage is found, and a killed writer leaves no half file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nbmf_research.checkpoints import load_tensors, newest, numbered, prune, save_tensors, step_path, tensor_hash
from nbmf_research.core import InputError, StreamError

TENSORS: dict[str, Tensor] = {
    "float": torch.tensor([[1.5, float("nan")], [float("inf"), -0.0]]),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "long": torch.tensor(2**62),
    "bool": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
    "strided": torch.arange(12.0).reshape(3, 4).T,
}


def test_every_type_and_shape_comes_back_bit_for_bit(tmp_path: Path) -> None:
    digest = save_tensors(tmp_path / "a.safetensors", TENSORS, {"nested": {"x": [1, None, "é"]}})
    tensors, about = load_tensors(tmp_path / "a.safetensors")
    assert tensor_hash(tensors) == digest == tensor_hash(TENSORS)
    assert about == {"nested": {"x": [1, None, "é"]}}
    assert all(tensors[k].dtype == v.dtype and tensors[k].shape == v.shape for k, v in TENSORS.items())


def test_tensors_that_share_memory_are_stored_each(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    save_tensors(tmp_path / "a.safetensors", {"a": shared, "b": shared[:3]}, {})
    tensors, _ = load_tensors(tmp_path / "a.safetensors")
    assert tensors["b"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("change", ["name", "dtype", "shape", "bit"])
def test_the_hash_sees_everything(change: str) -> None:
    other = {k: v.clone() for k, v in TENSORS.items()}
    if change == "name":
        other["flaot"] = other.pop("float")
    elif change == "dtype":
        other["bool"] = other["bool"].to(torch.uint8)
    elif change == "shape":
        other["empty"] = torch.zeros(4, 0)
    else:
        other["float"][1, 1] = 0.0  # was -0.0
    assert tensor_hash(other) != tensor_hash(TENSORS)


@pytest.mark.parametrize("cut", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {"step": 1})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StreamError, match=r"a\.safetensors: is damaged"):
        load_tensors(path)


def test_any_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"w": torch.arange(10.0)}, {"step": 1})
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x41]) + whole[i + 1 :])
        with pytest.raises(StreamError):
            load_tensors(path)


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(StreamError, match="says it is None"):
        load_tensors(tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match="no such checkpoint"):
        load_tensors(tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match="JSON"):
        save_tensors(tmp_path / "nan.safetensors", {}, {"x": float("nan")})
    assert not (tmp_path / "nan.safetensors").exists()


def test_numbered_newest_prune(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") is None
    for step in (5, 40, 300):
        save_tensors(step_path(tmp_path, step), {}, {})
    (tmp_path / "step-x.safetensors").write_text("not ours")
    (tmp_path / ".step-000000400.abc.safetensors").write_text("half")
    assert newest(tmp_path) == step_path(tmp_path, 300)
    prune(tmp_path, 2)
    assert numbered(tmp_path) == [step_path(tmp_path, 40), step_path(tmp_path, 300)]
    assert not list(tmp_path.glob(".step*")) and (tmp_path / "step-x.safetensors").exists()


WRITER = """
import sys, torch
from nbmf_research.checkpoints import save_tensors, step_path
big = {"w": torch.zeros(1_000_000)}
print("ready", flush=True)
for i in range(10_000):
    big["w"].fill_(i)
    save_tensors(step_path(sys.argv[1], i % 3), big, {"i": i})
"""


def test_a_writer_killed_at_any_moment_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    for k in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, env=env) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
            time.sleep(0.25 + 0.073 * k)
            writer.send_signal(signal.SIGKILL)
    assert numbered(tmp_path)
    for path in numbered(tmp_path):
        tensors, about = load_tensors(path)
        assert (tensors["w"] == about["i"]).all()


def test_any_safetensors_reader_can_open_it(tmp_path: Path) -> None:
    from safetensors import safe_open

    save_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2)}, {"step": 3})
    with safe_open(tmp_path / "a.safetensors", framework="np") as f:
        assert json.loads(f.metadata()["about"]) == {"step": 3} and f.get_tensor("w").tolist() == [1, 1]
