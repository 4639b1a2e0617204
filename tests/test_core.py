"""core: what every other module stands on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nbmf_research import core


def test_errors_are_ours_and_standard() -> None:
    assert issubclass(core.InputError, core.NbmfError) and issubclass(core.InputError, ValueError)
    assert issubclass(core.StreamError, core.NbmfError) and issubclass(core.MissingDependencyError, ImportError)


def test_require_names_the_install_line() -> None:
    assert core.require("math").__name__ == "math"
    with pytest.raises(core.MissingDependencyError, match=r"pip install 'nbmf_research\[zarr\]'"):
        core.require("not_a_module", extra="zarr")
    with pytest.raises(core.MissingDependencyError, match="pip install some-package"):
        core.require("not_a_module", package="some-package")


def test_registry_refuses_a_second_definition_but_allows_a_rerun() -> None:
    things: core.Registry[int] = core.Registry("thing")

    def make() -> int:
        return 1

    def other() -> int:
        return 2

    things.register("a")(make)
    things.register("a")(make)
    with pytest.raises(core.InputError, match="registered already"):
        things.register("a")(other)
    assert len(things) == 1 and "a" in things and list(things) == ["a"] and things.create("a") == 1


@pytest.mark.parametrize(
    ("asked", "told"), [("zlb", "did you mean 'zlib'"), ("qqqq", "known: zlib"), ("", "known: zlib")]
)
def test_registry_helps_with_unknown_names(asked: str, told: str) -> None:
    things: core.Registry[int] = core.Registry("codec")
    things.register("zlib")(lambda: 1)
    with pytest.raises(core.InputError, match=told):
        things.create(asked)


def test_seeds_repeat() -> None:
    first = core.seed_everything(3).random(4), np.random.rand(), torch.rand(2)  # noqa: NPY002
    second = core.seed_everything(3).random(4), np.random.rand(), torch.rand(2)  # noqa: NPY002
    assert (first[0] == second[0]).all() and first[1] == second[1] and torch.equal(first[2], second[2])


@pytest.mark.parametrize("name", ["cuda:77", "no-device", "mps:5"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(core.InputError, match="use 'auto' or 'cpu'"):
        core.pick_device(name)
    assert core.pick_device("auto").type in {"cpu", "cuda"}


def test_single_thread_is_undone_even_after_an_error() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(RuntimeError), core.single_thread():
            assert torch.get_num_threads() == 1
            raise RuntimeError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_atomic_path_keeps_the_old_file_on_error(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.bin"
    with core.atomic_path(target) as part:
        assert part.suffix == ".bin"
        part.write_bytes(b"one")
    with pytest.raises(OSError, match="disk is full"), core.atomic_path(target) as part:
        part.write_bytes(b"tw")
        raise OSError("disk is full")
    assert target.read_bytes() == b"one" and [p.name for p in target.parent.iterdir()] == ["file.bin"]


def test_atomic_path_respects_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with core.atomic_path(tmp_path / "f") as part:
            part.write_text("x")
    finally:
        os.umask(old)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_9_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")
    code = (
        "import sys, time; from nbmf_research.core import atomic_path\n"
        f"with atomic_path({str(target)!r}) as p:\n"
        "    p.write_bytes(b'half'); print('writing', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "writing\n"
        child.kill()
    time.sleep(0.05)
    assert target.read_bytes() == b"old"


def test_provenance_is_json_ready_and_complete() -> None:
    stamp = core.provenance()
    assert stamp["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert stamp["machine"]["device"] == "cpu" and stamp["machine"]["cores"] >= 1 and stamp["machine"]["cpu"]
    assert core.versions(("no-such-package-here",)).keys() == {"python"}


def test_git_commit_marks_changes(tmp_path: Path) -> None:
    assert core.git_commit(tmp_path) == "unknown"
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "a"], cwd=tmp_path, check=True)
    clean = core.git_commit(tmp_path)
    (tmp_path / "a").write_text("2")
    assert len(clean) == 12 and core.git_commit(tmp_path) == f"{clean}-dirty"


def test_a_changed_kernel_is_compiled_again_in_those_that_call_it(tmp_path: Path) -> None:
    """numba's own cache would go on with the old `inner` inside `outer`."""
    package = tmp_path / "nbmf_research"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "core.py").write_text(Path(core.__file__).read_text())
    (package / "outer.py").write_text(
        "from .core import njit\nfrom .inner import inner\n\n\n@njit\ndef outer(x):\n    return inner(x) + 100\n"
    )

    def run(value: int) -> int:
        (package / "inner.py").write_text(f"from .core import njit\n\n\n@njit\ndef inner(x):\n    return x + {value}\n")
        code = "from nbmf_research.outer import outer; print(outer(0))"
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return int(
            subprocess.run(
                [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
            ).stdout
        )

    assert [run(1), run(1), run(22)] == [101, 101, 122]
    assert list(package.rglob("*.nbi")), "kernels of the package are cached"
