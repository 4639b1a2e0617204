"""bench: strict parameters, and a run that is published whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bench_template import MEASURE, PARAMETERS, START, WRITE, make_clone, make_template, published

from nbmf_research import bench, site
from nbmf_research.core import InputError
from nbmf_research.results import Results, read_results, write_results

DEFAULTS = {
    "profile": "smoke",
    "seed": 0,
    "device": "auto",
    "data_dir": "",
    "out": "",
    "samples": 100,
    "sets": ["walk", "noise"],
}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("NBMF_DATA_DIR", raising=False)
    monkeypatch.chdir(make_clone(tmp_path))
    return tmp_path


# ---- parameters


def test_parameters_are_read_in_order(clone: Path) -> None:
    assert list(bench.read_parameters(make_template(clone, "demo")).items()) == list(DEFAULTS.items())


def test_the_trap_a_stripped_tag_is_refused(clone: Path) -> None:
    path = make_template(clone, "demo", tags=())
    for call in (lambda: bench.read_parameters(path), lambda: bench.run("demo"), bench.list_benchmarks):
        with pytest.raises(InputError, match=r"demo\.ipynb: no code cell is tagged 'parameters'"):
            call()
    assert published(clone) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("samples: int = 100", "annotation"),
        ("a = b = 1", "plain assignment"),
        ("a, b = 1, 2", "plain assignment"),
        ("import os", "plain assignment"),
        ("samples += 1", "plain assignment"),
        ("print(1)", "plain assignment"),
        ("many = 10 * 10", "literal"),
        ("pair = (1, 2)", "literal"),
        ("raw = b'x'", "literal"),
        ("far = 1e999", "literal"),
        ("keys = {1: 2}", "literal"),
        ("seed = 1", "twice"),
        ("text = 'a=b'", "holds '='"),
        ("x = ", "not Python"),
    ],
)
def test_what_cannot_be_read_with_certainty_is_refused(clone: Path, line: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as e:
        bench.read_parameters(make_template(clone, "demo", parameters=f"{PARAMETERS}\n{line}"))
    assert "\n" not in str(e.value)


def test_common_parameters_are_required(clone: Path) -> None:
    with pytest.raises(InputError, match="lacks device, out"):
        bench.read_parameters(make_template(clone, "demo", parameters='profile = "smoke"\nseed = 0\ndata_dir = ""'))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"cells": 3}', "\x00"])
def test_a_file_that_is_no_notebook(clone: Path, text: str) -> None:
    path = clone / "nbs" / "benchmarks" / "demo.ipynb"
    path.write_text(text)
    with pytest.raises(InputError, match="cannot be read as a notebook"):
        bench.find_benchmark("demo")


@pytest.mark.parametrize(
    ("default", "given", "value"),
    [
        (1, "5", 5),
        (1.0, "5", 5.0),
        (1.0, 3, 3.0),
        (False, "true", True),
        (True, "False", False),
        ("a", "5", "5"),
        (["a"], "b,c", ["b", "c"]),
        (["a"], "['b']", ["b"]),
        ([1.0], "1,2.5", [1.0, 2.5]),
        ([], "x", ["x"]),
        (None, "3", 3),
        (None, "abc", "abc"),
        (None, "none", None),
        ({"a": 1}, "{'b': 2}", {"b": 2}),
    ],
)
def test_values_take_the_default_type(default: Any, given: Any, value: Any) -> None:
    got = bench.resolve_parameters({"x": default}, {"x": given})["x"]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("default", "given"),
    [
        (1, "many"),
        (1, 2.5),
        (1, True),
        (1, None),
        (False, 1),
        (1.0, "nan"),
        (1.0, "1e999"),
        ("a", 3),
        (["a"], [1]),
        ([1], "a,b"),
        ({}, "[]"),
    ],
)
def test_values_of_a_wrong_type_are_refused(default: Any, given: Any) -> None:
    with pytest.raises(InputError, match=r"parameter x(\[0\])? takes"):
        bench.resolve_parameters({"x": default}, {"x": given})


def test_unknown_names_are_refused_with_the_nearest(clone: Path) -> None:
    make_template(clone, "demo")
    with pytest.raises(InputError, match="there is no parameter sampels; did you mean samples"):
        bench.run("demo", overrides={"sampels": 3})
    with pytest.raises(InputError, match="there is no parameter zzz; it has profile, seed"):
        bench.run("demo", overrides={"zzz": 3})
    with pytest.raises(InputError, match="did you mean 'demo'"):
        bench.run("dmo")
    with pytest.raises(InputError, match="there is no profile 'fast'"):
        bench.run("demo", "fast")
    with pytest.raises(InputError, match="out is set by the runner"):
        bench.run("demo", overrides={"out": "x.json"})
    with pytest.raises(InputError, match="nowhere does not exist"):
        bench.run("demo", overrides={"data_dir": "nowhere"})
    assert published(clone) == [] and list((clone / "_smoke").iterdir()) == []


# ---- places and sources


def test_the_root_is_found_upwards_or_refused(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone / "nbs" / "benchmarks")
    assert bench.find_root() == clone.resolve()
    outside = clone.parent / f"{clone.name}_outside"
    outside.mkdir()
    monkeypatch.setattr(bench.nbmf_research, "__file__", str(outside / "nbmf_research" / "__init__.py"))
    with pytest.raises(InputError, match="clone of the repository"):
        bench.find_root(outside)


def test_list(clone: Path) -> None:
    assert bench.list_benchmarks() == []
    for name in ("b", "a"):
        make_template(clone, name)
    assert [(b.name, b.title, b.parameters) for b in bench.list_benchmarks()] == [
        ("a", "A demo", DEFAULTS),
        ("b", "A demo", DEFAULTS),
    ]


def test_source_hash_sees_code_and_package_but_not_prose(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_template(clone, "demo")
    first = bench.source_hash(path)
    notebook = json.loads(path.read_text())
    notebook["cells"][0]["source"] = "# Other words"
    notebook["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "1"}]
    path.write_text(json.dumps(notebook))
    assert bench.source_hash(path) == first
    make_template(clone, "demo", parameters=PARAMETERS.replace("100", "101"))
    assert bench.source_hash(path) != first
    package = clone / "package"
    (package / "neural").mkdir(parents=True)
    names = ("core.py", "bench.py", "cli.py", "neural/codec.py", "neural/by_name.py", "neural/alone.py")
    for name in ("__init__.py", *names):
        (package / name).write_text("x = 1\n")
    (package / "neural" / "codec.py").write_text("from ..core import x\nLOADED = ('nbmf_research.neural.by_name',)\n")
    monkeypatch.setattr(bench.nbmf_research, "__file__", str(package / "__init__.py"))
    make_template(clone, "demo", "from nbmf_research.neural.codec import Codec", MEASURE, WRITE)
    before, moved = bench.source_hash(path), set()
    for name in names:
        old = (package / name).read_text()
        (package / name).write_text(old + "y = 2\n")
        if bench.source_hash(path) != before:
            moved.add(name)
        (package / name).write_text(old)
    assert moved == {"core.py", "neural/codec.py", "neural/by_name.py"}, (
        "what the template reaches, directly, through others, or by name"
    )
    (package / "neural" / "adaptive.py").write_text("x = 1\n")
    measured = bench.source_hash(path, [{"codec": "adaptive"}])
    assert measured != before == bench.source_hash(path), "of the codecs, those that were measured"
    (package / "core.py").write_bytes(b"x = 1\r\n")
    assert bench.source_hash(path) == before


MEANING = "class A:\n    size: int = 3\n\n    def f(self, x):\n        return x\n\ndef g(x):\n    return run.pick(smoke=1, cpu=x)\n"


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("def f(self, x):", "def f(self, x: int) -> int:\n        'Return it.'", True),
        ("    return run", "    # why\n    return run", True),
        ("smoke=1", "smoke=2", True),
        ("    def f", "    kind: ClassVar[str] = 'a'\n    def f", False),
        ("cpu=x", "cpu=-x", False),
        ("size: int = 3", "size = 3", False),
        ("return x\n", "return 'x'\n", False),
    ],
)
def test_a_source_is_what_its_code_means(old: str, new: str, same: bool) -> None:
    first, second = (bench.Snapshot([code], {}) for code in (MEANING, MEANING.replace(old, new)))
    assert old in MEANING and (first.hash(profile="cpu") == second.hash(profile="cpu")) is same


def test_the_place_of_a_definition_does_not_count_but_that_of_a_statement_does() -> None:
    hashes = [
        bench.Snapshot([code], {}).hash()
        for code in ("def a(): 1\ndef b(): 2 + x", "def b(): 2 + x\ndef a(): 0", "x = 1\nx = 2", "x = 2\nx = 1")
    ]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


# ---- the template's side


def test_start_checks_and_seeds(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_template(clone, "demo")
    run = bench.start("demo", {**DEFAULTS, "profile": "cpu", "other": 1})
    assert (run.profile, run.device, run.data_dir, run.seed) == ("cpu", "cpu", None, 0)
    assert run.pick("a", "b") == "b" and run.rng.random() == run.rng.random()
    assert list(run.progress([1, 2], "x")) == [1, 2]
    for bad, says in (
        ({"profile": "x"}, "profile"),
        ({"device": "cuda:99"}, "device"),
        ({"seed": "x"}, "seed"),
        ({"data_dir": "no"}, "NBMF_DATA_DIR"),
    ):
        with pytest.raises(InputError, match=says):
            bench.start("demo", {**DEFAULTS, **bad})
    monkeypatch.setenv("NBMF_DATA_DIR", str(clone / "missing"))
    with pytest.raises(InputError, match="unset it"):
        bench.start("demo", DEFAULTS)
    monkeypatch.setenv("NBMF_DATA_DIR", str(clone))
    assert bench.start("demo", DEFAULTS).data_dir == clone.resolve()
    assert bench.start("demo", {**DEFAULTS, "data_dir": str(clone / "nbs")}).data_dir == (clone / "nbs").resolve()
    assert os.environ["NBMF_DATA_DIR"] == str((clone / "nbs").resolve())


def test_the_gpu_profile_needs_a_gpu(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_template(clone, "demo")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.empty", _no_cuda)
    with pytest.raises(InputError, match="'cuda' is not usable"):
        bench.start("demo", {**DEFAULTS, "profile": "gpu"})
    assert bench.start("demo", {**DEFAULTS, "profile": "gpu", "device": "cpu"}).pick(smoke=1, cpu=2) == 2


def _no_cuda(*_: object, device: Any = None, **__: object) -> None:
    if device is not None and device.type == "cuda":
        raise RuntimeError("no CUDA here")


def test_a_run_by_hand_writes_to_scratch(clone: Path) -> None:
    make_template(clone, "demo")
    run = bench.start("demo", {**DEFAULTS, "samples": 7, "sets": ["it's"]})
    results = run.write([{"x": float("nan")}], simulated=True, sets=["walk"])
    assert read_results(clone / "_smoke" / "scratch" / "demo.smoke.json") == results
    assert results.rows == [{"x": None}] and results.parameters["samples"] == 7
    assert results.command == "nbmf bench run demo --profile smoke --samples 7 --sets '[\"it'\"'\"'s\"]'"
    with pytest.raises(InputError, match="rows"):
        run.write([], simulated=True, sets=["walk"])


def test_banner_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        "callout-warning" in bench.banner(True, ["a", "b"]).text
        and "2 sets: a, b" in bench.banner(True, ["a", "b"]).text
    )
    assert "Real recordings" in bench.banner(False, ["a"]).text and "1 set: a" in bench.banner(False, ["a"]).text
    for text in ("| a |", "| b |"):
        bench.table(text)
    assert capsys.readouterr().out == "| a |\n| b |\n", "shown in a loop too"
    assert bench.Markdown("x")._repr_markdown_() == repr(bench.Markdown("x")) == "x"


# ---- runs


def test_a_good_run_is_published_whole_and_twice_the_same(
    clone: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")  # must not reach the kernel
    make_template(clone, "demo")
    path = bench.run("demo", overrides={"samples": "500", "sets": "a,b,c"})
    assert path.relative_to(clone).as_posix() == "_smoke/demo.smoke.ipynb"
    record = clone / "_smoke" / "data" / "demo.smoke.json"
    results = read_results(record)
    assert results.parameters == {
        **DEFAULTS,
        "samples": 500,
        "sets": ["a", "b", "c"],
        "out": "_smoke/data/demo.smoke.json",
    }
    assert [row["samples"] for row in results.rows] == [500] * 3 and results.simulated
    text, data = path.read_text(), record.read_text()
    notebook = json.loads(text)
    stamp = notebook["metadata"]["nbmf"]
    assert stamp["source_hash"] == results.source_hash == bench.source_hash(clone / "nbs" / "benchmarks" / "demo.ipynb")
    assert (
        stamp["results_sha256"] == hashlib.sha256(record.read_bytes()).hexdigest()
        and stamp["command"] == results.command
    )
    second = notebook["cells"][1]
    assert second["metadata"] == {
        "tags": ["provenance"]
    } and "Smoke run: small simulated data, for checking the machinery, not for figures" in "".join(second["source"])
    assert any("image/png" in o.get("data", {}) for c in notebook["cells"] for o in c.get("outputs", []))
    for private in (str(clone), str(Path.home()), " at 0x", "papermill", "duration", "start_time"):
        assert private not in text + data, private
    assert "./nbs/benchmarks/demo.ipynb" in text
    _clean_for_nbdev(text)
    assert bench.run("demo", overrides={"samples": 500, "sets": ["a", "b", "c"]}) == path
    assert (path.read_text(), record.read_text()) == (text, data)
    assert published(clone) == ["demo.smoke.ipynb", "demo.smoke.json"] and not list((clone / "_smoke").glob(".run*"))
    assert os.environ["MPLBACKEND"] == "agg" and "NBMF_PROGRESS" not in os.environ
    assert "demo (smoke)" in (heard := capfd.readouterr().err) and "TCP" not in heard


def _clean_for_nbdev(text: str) -> None:
    """`nbdev_clean` would change nothing."""
    from execnb.nbio import nb2str
    from nbdev.clean import clean_nb

    notebook = json.loads(text)
    clean_nb(notebook, allowed_metadata_keys=["nbmf"], allowed_cell_metadata_keys=["tags"])
    assert nb2str(notebook) == text


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ((MEASURE, "1 / 0", WRITE), "ZeroDivisionError: division by zero"),
        ((MEASURE, WRITE, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), "[Kk]ernel"),
        (
            ("from nbmf_research.core import InputError\nraise InputError('no codec is called zlob')",),
            "no codec is called zlob",
        ),
    ],
    ids=["fails", "kernel dies", "refuses its input"],
)
def test_a_failed_run_publishes_nothing(clone: Path, code: tuple[str, ...], says: str) -> None:
    make_template(clone, "demo", *code)
    with pytest.raises(InputError if "codec" in says else bench.BenchmarkError, match=says) as e:
        bench.run("demo")
    assert "\n" not in str(e.value) and "_smoke/errors/demo.smoke.ipynb" in str(e.value)
    assert published(clone) == [] and (clone / "_smoke" / "errors" / "demo.smoke.ipynb").is_file()
    assert not list((clone / "_smoke").glob(".run*"))


# ---- the contract, with a kernel that only pretends


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace papermill by a function that writes what a template would; the dictionary changes what it does."""
    wish: dict[str, Any] = {}

    def execute(job: Any) -> None:
        notebook = json.loads(job.benchmark.path.read_text())
        job.notebook.write_text(json.dumps(notebook))
        if wish.get("fail"):
            bench._fail(job, "it failed")
        with bench._environment(job.environment):
            run = bench.start(wish.get("name", job.name), {**job.parameters, **wish.get("parameters", {})})
            if "rows" not in wish:
                run.write([{"a": 1}], simulated=run.data_dir is None, sets=["x"])
        job.record.write_text(wish["rows"]) if wish.get("rows") else None
        if "edit" in wish:
            job.record.write_text(wish["edit"](job.record.read_text()))

    monkeypatch.setattr(bench, "_execute", execute)
    return wish


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"rows": ""}, "without writing its results"),
        ({"rows": "{"}, "not a JSON file"),
        ({"rows": "{}"}, "required property"),
        ({"parameters": {"samples": 1}}, "do not echo the parameter samples: 100 was asked for, 1 is recorded"),
        ({"parameters": {"seed": 2}}, "do not echo the parameter seed"),
        ({"parameters": {"profile": "cpu"}}, "do not echo the parameter profile"),
        ({"edit": lambda t: t.replace('"samples"', '"more": 1,\n  "samples"')}, "do not echo the parameter more"),
        ({"edit": lambda t: t.replace('"samples": 100,', "")}, "do not echo the parameter samples"),
        (
            {"edit": lambda t: t.replace('"source_hash": "', '"source_hash": "' + "0" * 64 + '", "x": "')},
            "'x' was unexpected",
        ),
        (
            {"edit": lambda t: re.sub('"source_hash": "[0-9a-f]{64}"', f'"source_hash": "{"0" * 64}"', t)},
            "changed while it ran",
        ),
        ({"name": "other"}, r"call themselves other \(smoke\)"),
    ],
)
def test_a_run_that_breaks_the_contract_publishes_nothing(
    clone: Path, pretend: dict[str, Any], wish: dict[str, Any], says: str
) -> None:
    make_template(clone, "demo")
    make_template(clone, "other")
    pretend.update(wish)
    with pytest.raises(bench.BenchmarkError, match=says) as e:
        bench.run("demo")
    assert "\n" not in str(e.value) and "_smoke/errors/demo.smoke.ipynb" in str(e.value)
    assert published(clone) == [] and (clone / "_smoke" / "errors" / "demo.smoke.ipynb").is_file()


def test_a_failure_leaves_the_last_report_and_a_success_removes_the_error(clone: Path, pretend: dict[str, Any]) -> None:
    make_template(clone, "demo")
    before = bench.run("demo").read_text()
    pretend["fail"] = True
    with pytest.raises(bench.BenchmarkError):
        bench.run("demo")
    assert (clone / "_smoke" / "demo.smoke.ipynb").read_text() == before
    pretend.clear()
    bench.run("demo")
    assert not list((clone / "_smoke" / "errors").iterdir())


def test_real_and_simulated_reports(clone: Path, pretend: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    make_template(clone, "demo")
    folder = clone / "my_files"
    folder.mkdir()
    report = bench.run("demo", "cpu", {"data_dir": str(folder)})
    assert report.relative_to(clone).as_posix() == "nbs/reports/demo.cpu.ipynb"
    record = clone / "nbs" / "reports" / "data" / "demo.cpu.json"
    results, text = read_results(record), report.read_text()
    assert not results.simulated and results.parameters["data_dir"] == ""
    assert "my_files" not in text + record.read_text() and "NBMF_DATA_DIR" not in os.environ
    assert results.command == "NBMF_DATA_DIR=... nbmf bench run demo --profile cpu"
    assert "callout-warning" not in "".join(json.loads(text)["cells"][1]["source"])
    assert bench.stale("demo", "cpu") is None
    other = bench.run("demo", "cpu")  # no data now: simulated
    assert other.relative_to(clone).as_posix() == "_smoke/demo.cpu.ipynb" and report.read_text() == text
    assert "do not replace" in capsys.readouterr().err and "**Simulated data" in other.read_text()
    assert bench.run("demo").parent.name == "_smoke" and report.read_text() == text
    assert "do not replace" not in capsys.readouterr().err


def test_simulated_reports_may_be_published_where_there_is_no_real_one(clone: Path, pretend: dict[str, Any]) -> None:
    make_template(clone, "demo")
    assert bench.run("demo", "cpu").relative_to(clone).as_posix() == "nbs/reports/demo.cpu.ipynb"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_nothing_that_looks_finished(clone: Path, number: signal.Signals) -> None:
    make_template(
        clone, "demo", MEASURE, WRITE, "from pathlib import Path\nPath('reached').touch()\nimport time\ntime.sleep(60)"
    )
    code = "from nbmf_research import bench; bench.run('demo')"
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=clone, stderr=subprocess.DEVNULL)
    _wait_for(clone / "reached", runner)
    runner.send_signal(number)
    runner.wait(20)
    assert published(clone) == [] and not (clone / "_smoke" / "errors").exists()


def _wait_for(path: Path, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)


# ---- stale, report


def _fake_record(clone: Path, **changes: Any) -> Path:
    digest = bench.source_hash(clone / "nbs" / "benchmarks" / "demo.ipynb")
    parameters = {**DEFAULTS, "profile": "cpu", "out": "x.json"}
    fields = {"source_hash": digest, "parameters": parameters, **changes}
    base = {
        "benchmark": "demo",
        "profile": "cpu",
        "data": {"simulated": False, "sets": ["a"]},
        "machine": {"cpu": "x", "device": "cpu"},
    }
    results = Results(**base, versions={"python": "3"}, command="x", rows=[{"a": 1}], **fields)
    notebook, record = bench.report_paths("demo", "cpu")
    write_results(results, record)
    stamp = {"results_sha256": hashlib.sha256(record.read_bytes()).hexdigest()}
    notebook.write_text(json.dumps({"cells": [], "metadata": {"nbmf": stamp}}))
    return record


def test_stale_says_why(clone: Path) -> None:
    make_template(clone, "demo")
    assert bench.stale("demo", "cpu") == "it was never run"
    record = _fake_record(clone)
    assert bench.stale("demo", "cpu") is None
    record.write_text(record.read_text().replace('"a": 1', '"a": 2'))
    assert "not of one run" in str(bench.stale("demo", "cpu"))
    _fake_record(clone, source_hash="0" * 64)
    assert "has changed since" in str(bench.stale("demo", "cpu"))
    _fake_record(clone, parameters={**DEFAULTS, "profile": "cpu", "samples": 3})
    assert "other parameters" in str(bench.stale("demo", "cpu"))


# ---- redraw

DRAW = 'bench.table(f"{len(results.rows)} rows of seed {run.seed}")'


def test_redraw_draws_anew_and_measures_nothing(clone: Path) -> None:
    make_template(clone, "demo", MEASURE, WRITE, DRAW)
    page = bench.run("demo", overrides={"samples": 7})
    record = clone / "_smoke" / "data" / "demo.smoke.json"
    numbers, first = record.read_bytes(), json.loads(page.read_text())
    make_template(clone, "demo", MEASURE, WRITE, DRAW.replace(" rows", " measurements"), "results.command")
    assert bench.redraw("demo", "smoke") == page and record.read_bytes() == numbers
    text = page.read_text()
    second = json.loads(text)
    assert "2 measurements of seed 0" in text and "read_results" not in text and "nbmf bench run demo" in text
    kept = {c["id"]: c for c in first["cells"]}
    assert all(c == kept[c["id"]] for c in second["cells"][:6]), (
        "title, provenance, parameters, measuring cells as they were"
    )
    assert second["metadata"]["nbmf"]["source_hash"] == first["metadata"]["nbmf"]["source_hash"]
    _clean_for_nbdev(text)
    assert published(clone) == ["demo.smoke.ipynb", "demo.smoke.json"]
    make_template(clone, "demo", MEASURE, WRITE, "1 / 0")
    with pytest.raises(bench.BenchmarkError, match="ZeroDivisionError"):
        bench.redraw("demo", "smoke")
    assert page.read_text() == text and record.read_bytes() == numbers


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ((MEASURE + "\nx = 1", WRITE, DRAW), "the code that measures has changed"),
        ((MEASURE, WRITE + "\n" + DRAW), "the code that measures has changed"),
    ],
)
def test_redraw_refuses_numbers_of_other_code(clone: Path, code: tuple[str, ...], says: str) -> None:
    make_template(clone, "demo", MEASURE, WRITE, DRAW)
    with pytest.raises(InputError, match="never run"):
        bench.redraw("demo")
    record = _fake_record(clone)
    before = record.read_bytes()
    make_template(clone, "demo", *code)
    with pytest.raises(InputError, match=says):
        bench.redraw("demo")
    assert record.read_bytes() == before


def test_redraw_needs_a_cell_that_measures_below_the_start(clone: Path) -> None:
    path = make_template(clone, "demo")
    notebook = json.loads(path.read_text())
    notebook["cells"][2]["source"] = "\n".join("".join(c["source"]) for c in notebook["cells"][2:])
    del notebook["cells"][3:]
    path.write_text(json.dumps(notebook))
    _fake_record(clone)
    with pytest.raises(InputError, match="below the one of"):
        bench.redraw("demo")


def test_report_runs_all_resumes_and_builds(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    fail: set[str] = {"b"}

    def run(name: str, profile: str) -> Path:
        ran.append(name)
        if name in fail:
            raise bench.BenchmarkError(f"benchmark {name} failed")
        return clone

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(site, "build_site", lambda profile, *_, **__: clone / profile / "index.html")
    for name in ("a", "b", "demo"):
        make_template(clone, name)
    with pytest.raises(bench.BenchmarkError, match="benchmark b failed"):
        bench.report("cpu")
    assert ran == ["a", "b", "demo"]
    fail.clear()
    _fake_record(clone)
    assert bench.report("cpu", resume=True) == clone / "cpu" / "index.html"
    assert ran == ["a", "b", "demo", "a", "b"] and "demo (cpu): current" in capsys.readouterr().err


def test_start_in_the_template_is_the_documented_one() -> None:
    assert 'bench.start("{name}", globals())' in START
