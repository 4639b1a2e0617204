"""datasets: the registry, and downloads from a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbmf_research import datasets
from nbmf_research.core import InputError


class Source(http.server.ThreadingHTTPServer):
    """Serves bytes by path; can break connections, and remembers which ranges were asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.break_after: int | None = None
        self.ranges: list[int] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Source

    def do_GET(self) -> None:
        body = self.server.files.get(self.path.lstrip("/"))
        if body is None:
            self.send_error(404)
            return
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.ranges.append(start)
        if start and start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop, self.server.break_after = self.server.break_after, None
        self.wfile.write(body[start : start + stop if stop else None])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def source() -> Iterator[Source]:
    with Source() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def one_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Source) -> dict[str, bytes]:
    """A registered set of two files, served, with an empty cache."""
    bodies = {"a.bin": bytes(range(256)) * 400, "sub/b.txt": b"one\ntwo\n" * 500}
    files = tuple(
        datasets.DataFile(n, len(b), hashlib.sha256(b).hexdigest(), f"src/{n}", "crlf" if n.endswith("txt") else "")
        for n, b in bodies.items()
    )
    entry = datasets.DataSet("toy", "neural", "Toy", "o/r", "c0ffee", "MIT", "none", files)
    monkeypatch.setattr(datasets, "registry", lambda: {"toy": entry})
    monkeypatch.setattr(datasets.pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.delenv("NBMF_DATA_DIR", raising=False)
    for n, b in bodies.items():
        source.files[f"o/r/c0ffee/src/{n}"] = b.replace(b"\n", b"\r\n") if n.endswith("txt") else b
    return bodies


def test_registry_is_complete_and_names_no_file_twice() -> None:
    for s in datasets.registry().values():
        assert s.licence and s.split and s.title and len(s.commit) == 40 and "/" in s.repository
        assert len({f.file for f in s.files}) == len(s.files)
        for f in s.files:
            assert len(f.sha256) == 64 and f.bytes > 0 and f.fix in ("", "crlf") and bool(f.path) != bool(f.derived)
            assert not Path(f.file).is_absolute() and ".." not in f.file


def test_get_downloads_checks_and_repairs(one_set: dict[str, bytes], source: Source) -> None:
    assert datasets.locate("toy") is None
    folder = datasets.get("toy", source.url)
    assert {n: (folder / n).read_bytes() for n in one_set} == one_set
    assert datasets.locate("toy") == folder and datasets.list_datasets()[0].where == str(folder)
    asked = len(source.ranges)
    assert datasets.get("toy", source.url) == folder and len(source.ranges) == asked, "nothing is fetched twice"


def test_an_interrupted_download_goes_on(one_set: dict[str, bytes], source: Source) -> None:
    source.break_after = 50_000
    with pytest.raises(datasets.DownloadError, match=r"a\.bin"):
        datasets.get("toy", source.url)
    assert datasets.locate("toy") is None
    datasets.get("toy", source.url)
    assert source.ranges[0] == 0 and 0 < source.ranges[1] <= 50_000


def test_a_partial_file_that_is_complete_already(one_set: dict[str, bytes], source: Source, tmp_path: Path) -> None:
    url = f"{source.url}/o/r/c0ffee/src/a.bin"
    part = tmp_path / "cache" / "neural" / "toy" / ".part" / hashlib.sha256(url.encode()).hexdigest()[:16]
    part.parent.mkdir(parents=True)
    part.write_bytes(one_set["a.bin"])
    folder = datasets.get("toy", source.url)
    assert (folder / "a.bin").read_bytes() == one_set["a.bin"]


def test_wrong_bytes_never_get_the_files_name(one_set: dict[str, bytes], source: Source) -> None:
    source.files["o/r/c0ffee/src/a.bin"] = b"x" * len(one_set["a.bin"])
    with pytest.raises(datasets.DownloadError, match="NBMF_DATA_DIR"):
        datasets.get("toy", source.url)
    assert datasets.locate("toy") is None


def test_offline_says_what_to_do(one_set: dict[str, bytes]) -> None:
    with pytest.raises(datasets.DownloadError, match="Offline") as e:
        datasets.get("toy", "http://127.0.0.1:9")
    assert "\n" not in str(e.value)
    assert isinstance(datasets.get_all("http://127.0.0.1:9")["toy"], datasets.DownloadError)


def test_local_files_are_used_and_checked(
    one_set: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "mine"
    for n, b in one_set.items():
        (root / "neural" / "toy" / n).parent.mkdir(parents=True, exist_ok=True)
        (root / "neural" / "toy" / n).write_bytes(b)
    monkeypatch.setenv("NBMF_DATA_DIR", str(root))
    assert datasets.get("toy") == root / "neural" / "toy"
    broken = root / "neural" / "toy" / "a.bin"
    broken.write_bytes(b"y" * len(one_set["a.bin"]))
    with pytest.raises(InputError, match=r"other bytes than registered for a\.bin"):
        datasets.get("toy")


def test_derived_files_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry = datasets.DataSet(
        "d",
        "neural",
        "D",
        "o/r",
        "c",
        "MIT",
        "none",
        (datasets.DataFile("x.npz", 3, "0" * 64, derived="from many CSV files"),),
    )
    monkeypatch.setattr(datasets, "registry", lambda: {"d": entry})
    monkeypatch.setattr(datasets.pooch, "os_cache", lambda name: tmp_path)
    monkeypatch.delenv("NBMF_DATA_DIR", raising=False)
    with pytest.raises(InputError, match="cannot be downloaded"):
        datasets.get("d")


def test_names_and_folders_that_do_not_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="known: "):
        datasets.dataset("nothing")
    monkeypatch.setenv("NBMF_DATA_DIR", str(tmp_path / "gone"))
    with pytest.raises(InputError, match="not a folder"):
        datasets.search_path()
