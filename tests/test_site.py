"""The site builder, the navigation and the README: on a project of two notebooks, and on this repository."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nbmf_research import site
from nbmf_research.core import InputError, MissingDependencyError, NbmfError

ROOT = Path(__file__).resolve().parents[1]
PNG = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
        "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
    )
).decode()
SETTINGS = """[DEFAULT]
lib_name = lib
lib_path = lib
nbs_path = nbs
version = 1.0
branch = main
title = Tiny & Co
git_url = https://example.org/tiny
doc_host = https://example.org
doc_baseurl = /docs
recursive = True
custom_sidebar = True
"""
NAVIGATION = {
    "website": {
        "title": "Tiny & Co",
        "navbar": {
            "left": [{"text": "API", "href": "00_shapes.ipynb"}, {"text": "Code", "href": "https://example.org/tiny"}]
        },
        "sidebar": {
            "contents": [
                "index.ipynb",
                {"section": "Report", "contents": ["reports/first.cpu.ipynb"]},
                {"section": "API", "contents": ["00_shapes.ipynb"]},
            ]
        },
    }
}
MODULE = '''from dataclasses import dataclass


@dataclass
class Square:
    """A square.

    Attributes
    ----------
    side : float
        Length in metres; see `area`.

    Examples
    --------
    >>> Square(2.0).double().side
    4.0
    """

    side: float = 1.0

    def double(self) -> "Square":
        """Twice the side."""
        return Square(2 * self.side)

    def _hidden(self) -> None:
        """Not shown."""


def area(square: Square, *, unit_of_the_result: str = "square metres", digits_after_the_point: int = 3) -> dict[str, float]:
    """Give the area of a `Square`.

    Parameters
    ----------
    square : Square or list[int, *]
        The $ | square.

    Raises
    ------
    ValueError
        If it is `small`.
    """
    return {unit_of_the_result: round(square.side**2, digits_after_the_point)}
'''


def markdown(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code(source: str, *outputs: dict) -> dict:
    return {"cell_type": "code", "metadata": {}, "source": source, "outputs": list(outputs), "execution_count": None}


def shown(**data: object) -> dict:
    data = {key.replace("__", "+").replace("_", "/"): value for key, value in data.items()}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def write(path: Path, *cells: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    numbered = [{"id": f"c{i}", **cell} for i, cell in enumerate(cells)]
    path.write_text(json.dumps({"cells": numbered, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of three notebooks, on a machine without Quarto."""
    root, which = tmp_path / "tiny", shutil.which
    monkeypatch.setattr(site.shutil, "which", lambda name: None if name == "quarto" else which(name))
    (root / "lib").mkdir(parents=True)
    (root / "lib" / "shapes.py").write_text(MODULE)
    (root / "settings.ini").write_text(SETTINGS)
    (root / "_quarto.yml").write_text(yaml.safe_dump(NAVIGATION))
    write(
        root / "nbs" / "index.ipynb",
        markdown("# Tiny\n\n> Shapes\n\nRead `area`, [a class](00_shapes.ipynb#square), [a file](images/a.txt)."),
    )
    write(
        root / "nbs" / "00_shapes.ipynb",
        markdown("# Shapes\n\n> Areas & more"),
        code("#| default_exp shapes"),
        code("#| export\n" + MODULE),
        markdown(
            "## Maths\n\nThe area is $s^2$ of `lib.shapes.Square.double()`.\n\n::: {.callout-warning}\nCareful.\n:::"
        ),
        code("#| hide\nsecret = 1"),
        code("plot()", shown(text_plain="<matplotlib.legend.Legend>"), shown(image_png=PNG, text_plain="<Figure>")),
        code("#| echo: false\n#| fig-cap: A 'dot'\n#| fig-alt: Dot\nhidden_code()", shown(image_png=PNG)),
        code(
            "#| code-fold: true\nfolded()",
            {"output_type": "stream", "name": "stdout", "text": ["<x>\n", "\x1b[31mred\x1b[0m"]},
        ),
        code("frame", shown(text_html="<style scoped>b{}</style><table><tr><td>1</td></tr></table>", text_plain="1")),
        code("table()", shown(text_markdown="| a | b |\n|---|---|\n| 1 | 2 |")),
        code(
            "fail()", {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["\x1b[31mTraceback\x1b[0m"]}
        ),
        code("#| output: false\nquiet()", shown(text_plain="never seen")),
        code("picture()", shown(image_svg__xml="<svg xmlns='http://www.w3.org/2000/svg'/>")),
    )
    write(
        root / "nbs" / "reports" / "first.cpu.ipynb",
        markdown("# First\n\n> Numbers"),
        markdown("See [shapes](../00_shapes.ipynb) and [its template](../benchmarks/first.ipynb)."),
    )
    write(root / "nbs" / "benchmarks" / "first.ipynb", markdown("# Template"))
    (root / "nbs" / "images").mkdir()
    (root / "nbs" / "images" / "a.txt").write_text("a")
    return root


def test_pages_have_everything(tiny: Path) -> None:
    index = site.build_site(root=tiny)
    assert index == tiny / "_docs" / "index.html"
    assert {p.relative_to(index.parent).as_posix() for p in index.parent.rglob("*.html")} == {
        "index.html",
        "shapes.html",
        "reports/first.cpu.html",
    }
    page = (index.parent / "shapes.html").read_text()
    assert "<title>Shapes · Tiny &amp; Co</title>" in page and '<p class="lead">Areas &amp; more</p>' in page
    assert "<msup>" in page and "callout-warning" in page and 'class="kw"' in page
    assert "secret" not in page and "hidden_code" not in page and "never seen" not in page and "matplotlib" not in page
    assert 'alt="Dot"' in page and "<figcaption>A &#x27;dot&#x27;</figcaption>" in page
    assert "&lt;x&gt;\nred</pre>" in page and "\x1b" not in page and "<summary>\nCode\n</summary>" in page
    assert page.count('<div class="table"><table') == 2 and "<style scoped>" not in page
    assert (
        'aria-current="page">Shapes</a>' in page
        and 'href="https://example.org/tiny/blob/main/nbs/00_shapes.ipynb"' in page
    )
    assert '<pre class="output error">Traceback</pre>' in page and "AUTOGENERATED" not in page
    assert sorted(p.suffix for p in (index.parent / "shapes_files").iterdir()) == [".png", ".png", ".svg"]
    assert "<script" not in page and "http://" not in page.replace("http://www.w3.org", "")


def test_documentation_comes_from_the_exported_module(tiny: Path) -> None:
    page = (site.build_site(root=tiny).parent / "shapes.html").read_text()
    assert page.index('id="square"') < page.index('id="square.double"') < page.index('id="area"')
    line = MODULE[: MODULE.index("def area")].count("\n") + 1
    assert "square._hidden" not in page and f"blob/main/lib/shapes.py#L{line}" in page
    assert "Square or list[int, *]" in page and "The $ | square." in page
    assert (
        '<a href="#square"><code>Square</code></a>' in page
        and '<a href="#square.double"><code>lib.shapes.Square.double()</code></a>' in page
    )
    assert "<code>small</code>" in page and "small</code></a>" not in page


def test_a_wide_signature_is_wrapped(tiny: Path) -> None:
    project = site.read_project(tiny)
    module = site.read_module(project, "shapes")
    text = site.signature(module, module.names["area"])
    assert (
        max(map(len, text.splitlines())) < 86
        and '    unit_of_the_result: str = "square metres",\n' in text
        and text.endswith("\n) -> dict[str, float]")
        and "    *,\n" in text
    )
    assert site.signature(module, module.names["Square"]) == "@dataclass\nclass Square:\n    side: float = 1.0"
    assert ">>> Square" in site.format_docstring(MODULE.split('"""')[1]) and "{.python}" in site.format_docstring(
        MODULE.split('"""')[1]
    )


def test_links_are_relative_and_found(tiny: Path) -> None:
    out = site.build_site(root=tiny).parent
    assert (
        'href="shapes.html#area"' in (out / "index.html").read_text()
        and 'href="images/a.txt"' in (out / "index.html").read_text()
    )
    report = (out / "reports" / "first.cpu.html").read_text()
    assert 'href="../shapes.html"' in report and 'href="../styles.css"' in report
    assert 'href="https://example.org/tiny/blob/main/nbs/benchmarks/first.ipynb"' in report
    assert site.dead_links(out) == []


def test_dead_links_stop_the_build_by_name_and_leave_the_old_site(tiny: Path) -> None:
    index = site.build_site(root=tiny)
    before = index.read_text()
    dead = ["00_shapes.ipynb#volume", "01_gone.ipynb", "images/b.png", "#nowhere"]
    write(tiny / "nbs" / "index.ipynb", markdown("# Tiny\n\n> Shapes\n\n" + " ".join(f"[gone]({d})" for d in dead)))
    with pytest.raises(NbmfError, match="dead links:\n") as error:
        site.build_site(root=tiny)
    named = [
        "shapes.html#volume (no such anchor on shapes.html)",
        "01_gone.ipynb (no such file)",
        "images/b.png (no such file)",
        "#nowhere (no such anchor",
    ]
    assert (
        all(f"\n  index.html: {line}" in str(error.value) for line in named) and len(str(error.value).splitlines()) == 5
    )
    assert index.read_text() == before and not list(tiny.glob(".site.*"))


def test_two_builds_are_equal(tiny: Path) -> None:
    def snapshot() -> dict[str, bytes]:
        out = site.build_site(root=tiny).parent
        return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}

    assert snapshot() == snapshot()


def test_smoke_pages_stand_apart(tiny: Path) -> None:
    write(tiny / "_smoke" / "first.smoke.ipynb", markdown("# First\n\n> Smoke"), markdown("Simulated."))
    write(tiny / "nbs" / "reports" / "second.gpu.ipynb", markdown("# Second\n\n> GPU"))
    out = site.build_site("smoke", root=tiny).parent
    assert (
        "This run (smoke)" in (out / "index.html").read_text()
        and "Simulated." in (out / "smoke" / "first.smoke.html").read_text()
    )
    assert "nbs/benchmarks/first.ipynb" in (out / "smoke" / "first.smoke.html").read_text()
    out = site.build_site("gpu", root=tiny).parent
    assert (out / "reports" / "second.gpu.html").is_file() and not (out / "smoke").exists()
    assert "This run" not in (site.build_site("cpu", root=tiny)).read_text()


def test_missing_pieces_are_named(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"holds no settings\.ini"):
        site.build_site(root=tiny / "nbs")
    (tiny / "lib" / "shapes.py").write_text("")
    with pytest.raises(NbmfError, match="has no area; run: make sync"):
        site.build_site(root=tiny)
    (tiny / "lib" / "shapes.py").unlink()
    with pytest.raises(NbmfError, match=r"lib/shapes.py does not exist; run: make sync"):
        site.build_site(root=tiny)
    monkeypatch.setattr(site.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="needs nbdev"):
        site.build_site(root=tiny)


def test_a_notebook_that_nbdev_refuses_is_named(tiny: Path) -> None:
    (tiny / "nbs" / "00_shapes.ipynb").write_text('{"cells": [')
    with pytest.raises(NbmfError, match=r"00_shapes\.ipynb: JSONDecodeError"):
        site.build_site(root=tiny)


def test_quarto_gets_the_same_pages(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "quarto"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = render ] || exit 3\nmkdir _docs && cp -r . ../seen && cp _quarto.yml _docs/index.html\n'
    )
    fake.chmod(0o755)
    monkeypatch.setattr(site.shutil, "which", lambda name: str(fake))
    monkeypatch.setattr(
        site, "_swap", lambda new, final: (shutil.copytree(new.parent, tmp_path / "kept"), new.rename(final))
    )
    write(tiny / "_smoke" / "first.smoke.ipynb", markdown("# First\n\n> Smoke"))
    index = site.build_site(root=tiny)
    contents = yaml.safe_load(index.read_text())["website"]["sidebar"]["contents"]
    assert contents[2] == {"section": "This run (smoke)", "contents": ["smoke/first.smoke.ipynb"]}
    processed = json.loads((tmp_path / "kept" / "_proc" / "00_shapes.ipynb").read_text())
    assert processed["metadata"]["kernelspec"]["name"] == "python3"
    assert "Twice the side." in json.dumps(processed) and (tmp_path / "kept" / "_proc" / "styles.css").is_file()
    fake.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    with pytest.raises(NbmfError, match="quarto render failed:\nbroken"):
        site.build_site(root=tiny)


def test_readme(tiny: Path) -> None:
    write(
        tiny / "nbs" / "index.ipynb",
        markdown(
            "# Tiny\n\n> Shapes\n\n[shapes](00_shapes.ipynb#area), [file](images/a.txt), [web](https://x.org), [up](#tiny)"
        ),
        code("#| hide\nsecret = 1"),
        code("#| echo: false\n#| fig-alt: Dot\nplot()", shown(image_png=PNG)),
        code("1 + 1", shown(text_plain="2"), {"output_type": "stream", "name": "stdout", "text": ["out\n"]}),
        code("table()", shown(text_markdown="*table*")),
    )
    text = site.readme(tiny).read_text()
    assert (
        "https://example.org/docs/shapes.html#area" in text
        and "(nbs/images/a.txt)" in text
        and "(https://x.org)" in text
        and "(#tiny)" in text
    )
    assert (
        "secret" not in text
        and "plot()" not in text
        and "```\n2\n```" in text
        and "```\nout\n```" in text
        and "*table*" in text
    )
    assert "![Dot](nbs/images/index-2-0.png)" in text and (
        tiny / "nbs" / "images" / "index-2-0.png"
    ).read_bytes() == base64.b64decode(PNG)
    assert site.readme(tiny, check=True) == tiny / "README.md"
    (tiny / "nbs" / "images" / "index-2-0.png").write_bytes(b"")
    with pytest.raises(NbmfError, match=r"index-2-0.png; run: make sync"):
        site.readme(tiny, check=True)


def test_the_package_does_not_import_nbdev() -> None:
    check = "import sys, nbmf_research.site; sys.exit('nbdev' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", check], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode
        == 0
    )


# ---- this repository


def test_every_entry_of_the_sidebar_exists_and_every_notebook_is_listed() -> None:
    project = site.read_project(ROOT)
    listed = {source for source, _ in site._entries(project.quarto["website"]["sidebar"]["contents"])}
    files = {p.relative_to(project.notebooks).as_posix() for p in project.notebooks.rglob("*.ipynb")}
    wanted = {f for f in files if not f.startswith(("benchmarks/", "reports/")) and ".ipynb_checkpoints" not in f}
    committed = {f for f in files if f.startswith("reports/") and f.endswith(".cpu.ipynb")}
    assert wanted | committed == listed


def test_pages_have_different_addresses() -> None:
    hrefs = [page.href for page in site.pages(site.read_project(ROOT), "cpu")]
    assert len(hrefs) == len(set(hrefs))


def test_navigation_agrees_with_the_settings() -> None:
    project = site.read_project(ROOT)
    website, settings = project.quarto["website"], project.settings
    assert website["title"] == settings["title"] and website["description"] == settings["description"]
    assert website["site-url"] == settings["doc_host"] + settings["doc_baseurl"]
    assert website["repo-url"] == settings["git_url"] and website["repo-branch"] == settings["branch"]
    assert project.quarto["project"]["output-dir"] == settings["doc_path"]


def test_the_link_to_the_navigation_is_intact() -> None:
    assert (ROOT / "nbs" / "_quarto.yml").is_symlink() and (ROOT / "nbs" / "_quarto.yml").readlink() == Path(
        "../_quarto.yml"
    )


def test_readme_is_what_the_front_page_gives() -> None:
    site.readme(ROOT, check=True)


def test_readme_links_to_files_and_pages_that_exist() -> None:
    project = site.read_project(ROOT)
    home = project.settings["doc_host"] + project.settings["doc_baseurl"] + "/"
    entries = site._entries(project.quarto["website"]["sidebar"]["contents"])
    hrefs = {site.Page(source, "", Path()).href for source, _ in entries}
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text()):
        if link.startswith(home):
            assert link.removeprefix(home).partition("#")[0] in hrefs, link
        elif not link.startswith(("http", "#")):
            assert (ROOT / link).is_file(), link


def test_the_citation_names_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == site.read_project(ROOT).settings["version"] and citation["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
