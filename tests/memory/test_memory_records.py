"""Records: readers, cleaning, splits, validation, the registry of sources."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmf_research.core import InputError
from nbmf_research.memory import records as rc


def test_each_kind_of_file(tmp_path: Path) -> None:
    files = {
        "a.txt": ("one\n\ntwo\n\n\n", ["one", "two\n\n\n"[:3]]),
        "b.md": ("# H\nx\n## I\ny", ["# H\nx", "## I\ny"]),
        "c.json": ('[{"k": 1}, "s"]', ['{"k": 1}', "s"]),
        "d.jsonl": ('{"k": "é"}\n\n3\n', ['{"k": "é"}', "3"]),
        "e.csv": ("a,b\n1,2\n", ['{"a": "1", "b": "2"}']),
    }
    for name, (text, expected) in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        found = rc.read_records(tmp_path / name, domain="legal")
        assert [r.text.strip() for r in found] == [e.strip() for e in expected], name
        assert {(r.domain, r.source, r.group) for r in found} == {("legal", name[0], name[0])}
        rc.validate(found)


def test_compressed_lines_in_our_own_layout(tmp_path: Path) -> None:
    zstd = pytest.importorskip("zstandard")
    line = json.dumps({"id": "i", "domain": "legal", "source": "s", "group": "g", "text": "t", "kind": "text"})
    (tmp_path / "x.jsonl.zst").write_bytes(zstd.ZstdCompressor().compress(line.encode()))
    assert rc.read_records(tmp_path / "x.jsonl.zst") == [rc.Record("i", "legal", "s", "g", "t")]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.jsonl", b'{"a":1}\n{"a"'),
        ("x.json", b"{"),
        ("x.bin", b"x"),
        ("x.txt", b"\xff\xfe\xfa"),
        ("missing.txt", None),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=name):
        rc.read_records(tmp_path / name)


def test_tables_by_path_and_by_url(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with closing(sqlite3.connect(path)) as link:
        link.execute("CREATE TABLE t (c TEXT, g TEXT)")
        link.executemany("INSERT INTO t VALUES (?, ?)", [("a", "1"), ("", "1"), (None, "2"), ("b", "2")])
        link.commit()
    found = rc.read_table(path, "t", "c", group="g")
    assert [(r.text, r.group) for r in found] == [("a", "1"), ("b", "2")]
    pytest.importorskip("sqlalchemy")
    assert rc.read_table(f"sqlite:///{path}", "t", "c", group="g") == found
    for bad in (("nowhere", "c"), ("t", "x y"), ("t", "missing")):
        with pytest.raises(InputError):
            rc.read_table(path, *bad)
    with pytest.raises(InputError, match="database"):
        rc.read_table(f"sqlite:///{path}", "nowhere", "c")
    with pytest.raises(InputError):
        rc.read_table(tmp_path / "missing.db", "t", "c")
    assert not (tmp_path / "missing.db").exists()


@given(st.lists(st.tuples(st.integers(0, 30), st.text(max_size=5)), max_size=60), st.integers(0, 3))
def test_groups_stay_whole_and_nothing_is_lost(items: list[tuple[int, str]], seed: int) -> None:
    made = [rc.Record(str(i), "general", "s", str(g), t) for i, (g, t) in enumerate(items)]
    parts = rc.split_by_group(made, {"a": 0.5, "b": 0.3, "c": 0.2}, seed)
    assert sorted(r.id for p in parts.values() for r in p) == sorted(r.id for r in made)
    groups = [{r.group for r in p} for p in parts.values()]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert rc.split_by_group(made[::-1], {"a": 0.5, "b": 0.3, "c": 0.2}, seed)["a"] == parts["a"][::-1]


def test_clean_and_deduplicate() -> None:
    texts = ["  A line\r\nwith  ends \x00 ", "a LINE\nwith ends", "short", "e\u0301" * 20]
    made = [rc.Record(str(i), "general", "s", "g", t) for i, t in enumerate(texts)]
    kept = rc.clean(made)
    assert [r.id for r in kept] == ["0", "1", "3"] and kept[0].text == "A line\nwith  ends" and kept[2].text == "é" * 20
    assert [r.id for r in rc.deduplicate(kept)] == ["0", "3"]


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (rc.Record("1", "sports", "s", "g", "t"), "sports"),
        (rc.Record("1", "general", "s", "", "t"), "group"),
        (rc.Record("1", "general", "s", "g", ""), "empty"),
        (rc.Record("0", "general", "s", "g", "t"), "same id"),
        (rc.Record("1", "general", "s", "g", "\ud800"), "surrogate"),
    ],
)
def test_what_validation_refuses(bad: rc.Record, match: str) -> None:
    with pytest.raises(InputError, match=match):
        rc.validate([rc.Record("0", "general", "s", "g", "fine"), bad])


def test_synthetic_records_are_the_same_for_the_same_seed() -> None:
    assert rc.synthetic_records(30, 5) == rc.synthetic_records(30, 5) != rc.synthetic_records(30, 6)
    rows = rc.statistics(rc.synthetic_records(30, 5))
    assert [r["records"] for r in rows] == [30] * 4 and all(r["json"] == 15 for r in rows)


def test_the_registry_names_no_source_twice_and_every_domain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = rc.sources()
    assert {s.role for s in found.values()} == {"train", "study", "test"}
    for domain in rc.DOMAINS:
        assert {s.role for s in found.values() if s.domain == domain} >= {"train", "test"}
    monkeypatch.setenv("NBMF_DATA_DIR", str(tmp_path))
    assert rc.available_sources() == []
    with pytest.raises(InputError, match="NBMF_DATA_DIR"):
        rc.load_source("tldr_pages")
    with pytest.raises(InputError, match="no source"):
        rc.source_path("nothing")


@pytest.mark.real
@pytest.mark.skipif(not os.environ.get("NBMF_DATA_DIR"), reason="NBMF_DATA_DIR is not set")
def test_a_real_source_is_valid() -> None:
    if not rc.source_path("banking77"):
        pytest.skip("banking77 is not here")
    found = rc.load_source("banking77")
    rc.validate(found)
    assert len(found) > 9000 and {r.domain for r in found} == {"financial"}


def test_damaged_zst_and_deep_json(tmp_path: Path) -> None:
    zstd = pytest.importorskip("zstandard")
    whole = zstd.ZstdCompressor().compress(b"one\n\ntwo" * 500)
    (tmp_path / "a.txt.zst").write_bytes(whole)
    assert len(rc.read_records(tmp_path / "a.txt.zst")) > 2
    for data in (whole[:-4], whole[:9], b"garbage", b""):
        (tmp_path / "a.txt.zst").write_bytes(data)
        with pytest.raises(InputError, match="cannot read"):
            rc.read_records(tmp_path / "a.txt.zst")
    for name in ("b.json", "b.jsonl"):
        (tmp_path / name).write_text("[" * 100_000)
        with pytest.raises(InputError, match="cannot read"):
            rc.read_records(tmp_path / name)


def test_database_with_odd_name(tmp_path: Path) -> None:
    path = tmp_path / "a?mode=rwc#b%20.db"
    with closing(sqlite3.connect(path)) as link, link:
        link.execute("CREATE TABLE t (c TEXT)")
        link.execute("INSERT INTO t VALUES ('some text')")
    assert [r.text for r in rc.read_table(path, "t", "c")] == ["some text"]


def test_no_share_alike_source_is_for_released_models() -> None:
    licences = [s.licence.lower() for s in rc.sources().values() if s.role == "train"]
    assert not any(word in licence for licence in licences for word in ("-sa", "sharing", "none", "no licence", "nc"))
