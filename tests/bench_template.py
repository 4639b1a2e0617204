"""A tiny clone of the repository with benchmark templates, for the tests of bench and cli."""

from __future__ import annotations

from pathlib import Path

import nbformat

PARAMETERS = (
    'profile = "smoke"\nseed = 0\ndevice = "auto"\ndata_dir = ""\nout = ""\nsamples = 100\nsets = ["walk", "noise"]'
)
START = 'from nbmf_research import bench\n\nrun = bench.start("{name}", globals())\nrun.banner(True, sets)'
MEASURE = """import matplotlib.pyplot as plt

rng = run.rng
rows = [{"set": s, "samples": samples, "mean": rng.normal(size=samples).mean()} for s in run.progress(sets, "sets")]
plt.plot([r["mean"] for r in rows])
print(object(), flush=True)
print(run.template)"""
WRITE = "results = run.write(rows, simulated=run.data_dir is None, sets=sets)"


def make_clone(folder: Path) -> Path:
    """Give a folder what `find_root` looks for."""
    (folder / "nbs" / "benchmarks").mkdir(parents=True)
    return folder


def make_template(
    clone: Path,
    name: str,
    *code: str,
    parameters: str = PARAMETERS,
    tags: tuple[str, ...] = ("parameters",),
) -> Path:
    """Write a template; the default code measures and writes."""
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell("# A demo\n\n> Of nothing.", id="title"),
        v4.new_code_cell(parameters, id="parameters", metadata={"tags": list(tags)}),
    ]
    sources = [START, *(code or (MEASURE, WRITE))]
    cells += [v4.new_code_cell(s.replace("{name}", name), id=f"code{i}") for i, s in enumerate(sources)]
    path = clone / "nbs" / "benchmarks" / f"{name}.ipynb"
    nbformat.write(
        v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "foreign", "display_name": "x"}}), path
    )
    return path


def published(clone: Path) -> list[str]:
    """Files that look like a finished report, anywhere."""
    places = [
        clone / "_smoke",
        clone / "_smoke" / "data",
        clone / "nbs" / "reports",
        clone / "nbs" / "reports" / "data",
    ]
    return sorted(p.name for place in places if place.is_dir() for p in place.iterdir() if p.is_file())
