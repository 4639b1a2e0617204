"""A bundle is the old one or the new one, never a mixture, and no byte of it is used unchecked."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research import bundles
from nbmf_research.bundles import MANIFEST, BundleKind, read_bundle, read_manifest, write_bundle
from nbmf_research.core import InputError, StreamError

KIND = BundleKind("test-model", 1, "test model")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "new", KIND, {"n": 3}, {"a.bin": b"\0\1", "b.json": b"{}"})
    found, bodies = read_bundle(tmp_path / "new", KIND, ["b.json", "a.bin"])
    assert found == manifest and found["n"] == 3 and bodies == {"b.json": b"{}", "a.bin": b"\0\1"}


def test_a_new_version_leaves_nothing_of_the_old(tmp_path: Path) -> None:
    for step in range(3):
        write_bundle(tmp_path, KIND, {}, {"a.bin": bytes([step])})
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".bin", ".json"]
    assert read_bundle(tmp_path, KIND, ["a.bin"])[1] == {"a.bin": b"\2"}


@pytest.mark.parametrize("die_at", ["a.bin", "b.bin", MANIFEST])
def test_a_writer_that_dies_leaves_the_old_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, die_at: str
) -> None:
    old = {"a.bin": b"old a", "b.bin": b"old b"}
    write_bundle(tmp_path, KIND, {}, old)
    real = bundles.atomic_path

    def dying(path: Path):  # type: ignore[no-untyped-def]
        if path.name.endswith(die_at):
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(bundles, "atomic_path", dying)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path, KIND, {}, {"a.bin": b"new a", "b.bin": b"new b"})
    assert read_bundle(tmp_path, KIND, list(old))[1] == old


@settings(max_examples=30)
@given(st.data())
def test_a_changed_file_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    body = data.draw(st.binary(min_size=1, max_size=40))
    path = folder / write_bundle(folder, KIND, {}, {"a.bin": body})["files"]["a.bin"]["path"]
    changed = data.draw(st.binary(max_size=41).filter(lambda b: b != body))
    path.write_bytes(changed)
    with pytest.raises(StreamError, match="SHA-256"):
        read_bundle(folder, KIND, ["a.bin"])


def test_what_is_no_bundle_of_this_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no test model: there is no {MANIFEST}"):
        read_manifest(tmp_path, KIND)
    write_bundle(tmp_path, KIND, {}, {"a.bin": b"1"})
    with pytest.raises(StreamError, match="test-model version 1, not other-model 1"):
        read_manifest(tmp_path, BundleKind("other-model", 1, "other"))
    with pytest.raises(StreamError, match=r"does not list b\.bin"):
        read_bundle(tmp_path, KIND, ["b.bin"])
    for text in ("", "[]", '{"format": "test-model"}', "{"):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(StreamError, match="damaged or not the manifest"):
            read_manifest(tmp_path, KIND)


@pytest.mark.parametrize("path", ["../a.bin", "/etc/hostname", "x/a.bin"])
def test_a_manifest_cannot_name_files_outside(tmp_path: Path, path: str) -> None:
    manifest = write_bundle(tmp_path, KIND, {}, {"a.bin": b"1"})
    manifest["files"]["a.bin"]["path"] = path
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StreamError, match="outside its folder"):
        read_bundle(tmp_path, KIND, ["a.bin"])


def test_a_missing_file_is_an_incomplete_bundle(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path, KIND, {}, {"a.bin": b"1"})
    (tmp_path / manifest["files"]["a.bin"]["path"]).unlink()
    with pytest.raises(StreamError, match="incomplete"):
        read_bundle(tmp_path, KIND, ["a.bin"])
