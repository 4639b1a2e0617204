"""nbmf memory: files of records through the command line and back, models and deltas that are missing, and nothing written where something is wrong."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from nbmf_research import cli
from nbmf_research.core import InputError, StreamError
from nbmf_research.memory import codec as mc
from nbmf_research.memory import records as rc
from nbmf_research.memory import training as tr

SMALL = "bits=11,final_bits=10"


def lines(records: list[rc.Record]) -> bytes:
    return "".join(json.dumps(vars(r), ensure_ascii=False) + "\n" for r in records).encode()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small models and a file of records."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("own", 1), ("other", 2)):
        (folder / "train.jsonl").write_bytes(lines(rc.synthetic_records(12, seed)))
        words = ("memory", "train", str(folder / "train.jsonl"), str(folder / f"{name}.safetensors"), "--overwrite")
        assert cli.main((*words, "--settings", SMALL)) == 0
    (folder / "r.jsonl").write_bytes(lines(rc.synthetic_records(6, seed=3)))
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for p in models.iterdir():
        (tmp_path / p.name).symlink_to(p)
    return tmp_path


def nbmf(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(["memory", *line.split()])
    heard = capsys.readouterr()
    return code, heard.out, heard.err


def refused(capsys: pytest.CaptureFixture[str], line: str, says: str, code: int = 2) -> None:
    """One line, the right code, and no file."""
    before = sorted(Path().rglob("*"))
    got, out, err = nbmf(capsys, line)
    assert (got, out, err.count("\n")) == (code, "", 1) and err.startswith("nbmf: ") and says in err, err
    assert sorted(Path().rglob("*")) == before


# ---- round trips


@pytest.mark.parametrize("tier", ["fast", "hot"])
def test_records_come_back_byte_for_byte(here: Path, capsys: pytest.CaptureFixture[str], tier: str) -> None:
    if tier == "hot":
        pytest.importorskip("zstandard")
    code, out, err = nbmf(capsys, f"encode r.jsonl --model own.safetensors --tier {tier}")
    assert (code, err) == (0, "") and out.startswith("r.nbmr: 24 records, ") and out.count("\n") == 1
    assert nbmf(capsys, "decode r.nbmr back.jsonl --model own.safetensors") == (0, "back.jsonl\n", "")
    assert Path("back.jsonl").read_bytes() == Path("r.jsonl").read_bytes()
    assert Path("r.nbmr").stat().st_size == int(out.split("the file has ")[1].split()[0])


def test_the_released_model_in_a_process_of_its_own(here: Path) -> None:
    script = Path(sys.executable).with_name("nbmf")
    for words in ("encode r.jsonl", "decode r.nbmr back.jsonl"):
        done = subprocess.run([script, "memory", *words.split()], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    assert Path("back.jsonl").read_bytes() == Path("r.jsonl").read_bytes()
    raw = sum(len(r.data) for r in rc.read_records("r.jsonl"))
    assert raw > 2 * Path("r.nbmr").stat().st_size


@pytest.mark.parametrize(
    ("name", "text", "texts"),
    [
        ("a.txt", "one\nparagraph\n\ntwo é", ["one\nparagraph", "two é"]),
        ("a.csv", "x,y\n1,b\n", ['{"x": "1", "y": "b"}']),
        ("a.json", '["first", {"k": 1.5}]', ["first", '{"k": 1.5}']),
        ("a.md", "# A\nfirst\n## B\nsecond", ["# A\nfirst", "## B\nsecond"]),
        ("a.jsonl", '{"k": [1, 2]}\n"\\u0000 strange"\n', ['{"k": [1, 2]}', "\0 strange"]),
    ],
)
def test_every_kind_of_file(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, texts: list[str]
) -> None:
    Path(name).write_text(text)
    assert nbmf(capsys, f"encode {name} --model own.safetensors")[0] == 0
    assert nbmf(capsys, "decode a.nbmr b.jsonl --model own.safetensors")[0] == 0
    found = rc.read_records("b.jsonl")
    assert [r.text for r in found] == texts and found == rc.read_records(name)


def test_by_value(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '{"b": 1.50,  "a": "x"}'
    Path("v.jsonl").write_text(json.dumps(vars(rc.Record("0", "general", "s", "g", text))))
    for fidelity, back in (("lossless", text), ("semantic", '{"a": "x", "b": 1.5}')):
        line = f"encode v.jsonl --model own.safetensors --overwrite --fidelity {fidelity}"
        assert nbmf(capsys, line)[0] == 0
        assert nbmf(capsys, "decode v.nbmr w.jsonl --overwrite --model own.safetensors")[0] == 0
        assert rc.read_records("w.jsonl")[0].text == back


@pytest.mark.parametrize("payload", [b"Dear Ana,\r\nsee \xc3\xa9.\n", b"\xff\x00\x80", b"", b'{"a": [1.50]}'])
def test_one_record_is_one_blob(here: Path, capsys: pytest.CaptureFixture[str], payload: bytes) -> None:
    Path("note.txt").write_bytes(payload)
    code, out, _ = nbmf(capsys, "encode note.txt --record --model own.safetensors")
    blob = Path("note.txt.nbm").read_bytes()
    assert code == 0 and len(blob) <= len(payload) + 2 and out.startswith("note.txt.nbm: ")
    value = mc.MemoryCodec(tr.read_model("own.safetensors")).decode(blob)
    assert (value if isinstance(value, bytes) else value.encode()) == payload
    assert nbmf(capsys, "decode note.txt.nbm back --model own.safetensors") == (0, "back\n", "")
    assert Path("back").read_bytes() == payload


def test_a_blob_of_a_json_value_is_written_as_its_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("v.nbm").write_bytes(mc.MemoryCodec(tr.read_model("own.safetensors")).encode({"a": [1, "é"]}))
    assert nbmf(capsys, "decode v.nbm --model own.safetensors") == (0, "v\n", "")
    assert Path("v").read_text() == '{"a": [1, "é"]}'


# ---- models, deltas, damage


def test_a_wrong_or_missing_model_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nbmf(capsys, "encode r.jsonl --model own.safetensors")[0] == 0
    own, other = (tr.read_model(f"{n}.safetensors").identity.hex() for n in ("own", "other"))
    refused(capsys, "decode r.nbmr b.jsonl --model other.safetensors", f"the model {own}, and what is here is {other}")
    refused(capsys, "decode r.nbmr b.jsonl --model r.jsonl", "r.jsonl is no readable model")
    refused(capsys, "decode r.nbmr b.jsonl --model nowhere.safetensors", "nowhere.safetensors")
    refused(capsys, "decode r.nbmr b.jsonl --delta r.jsonl --model own.safetensors", "no delta")
    Path("note.txt").write_bytes(b"Ana: could you book the table again?\n" * 3)
    assert nbmf(capsys, "encode note.txt --record --model own.safetensors")[0] == 0
    refused(capsys, "decode note.txt.nbm b.txt --model other.safetensors", "note.txt.nbm: the record")


def test_deltas(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = nbmf(capsys, "fit r.jsonl --model own.safetensors")
    made = mc.load_delta("r.delta")
    assert (code, err) == (0, "") and "generation 1, learnt from 24 records" in out and made.identity.hex() in out
    code, out, _ = nbmf(capsys, "fit r.jsonl two.delta --model own.safetensors --delta r.delta --most 500")
    assert code == 0 and "generation 2" in out and sum(map(len, mc.load_delta("two.delta").records)) <= 500
    sizes = []
    for delta in ("", "--delta r.delta", "--delta r.delta,two.delta"):
        assert nbmf(capsys, f"encode r.jsonl --overwrite --model own.safetensors {delta}")[0] == 0
        assert nbmf(capsys, f"decode r.nbmr b.jsonl --overwrite --model own.safetensors {delta}")[0] == 0
        assert Path("b.jsonl").read_bytes() == Path("r.jsonl").read_bytes()
        sizes.append(Path("r.nbmr").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]
    two = mc.load_delta("two.delta").identity.hex()
    refused(capsys, "decode r.nbmr c.jsonl --model own.safetensors --delta r.delta", f"and the delta {two}")
    refused(capsys, "encode r.jsonl c.nbmr --model other.safetensors --delta r.delta", "the delta is for the model")


def test_damage_is_found_before_anything_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nbmf(capsys, "encode r.jsonl --model own.safetensors")[0] == 0
    data = Path("r.nbmr").read_bytes()
    for i in range(len(cli.BLOBS), len(data), max(1, len(data) // 20)):
        Path("bad.nbmr").write_bytes(data[:i] + bytes([data[i] ^ 4]) + data[i + 1 :])
        refused(capsys, "decode bad.nbmr b.jsonl --model own.safetensors", "bad.nbmr: this is no whole file of blobs")
    Path("bad.nbmr").write_bytes(data[:-9])
    refused(capsys, "decode bad.nbmr b.jsonl --model own.safetensors", "no whole file of blobs")
    Path("bad.nbmr").write_bytes(b"something else")
    refused(capsys, "decode bad.nbmr b.jsonl", "no record of the memory format")


def test_files_of_blobs() -> None:
    some = [b"", b"a" * 127, b"b" * 128, bytes(range(256)) * 80]
    packed = cli.pack_blobs(b"8 bytes.", some)
    assert cli.unpack_blobs(packed) == (b"8 bytes.", some)
    for cut in (0, 4, 9, len(packed) // 2, len(packed) - 1):
        with pytest.raises(StreamError):
            cli.unpack_blobs(packed[:cut])
    with pytest.raises(StreamError, match="lengths"):
        cli.unpack_blobs(cli.pack_blobs(b"8 bytes.", []))


def test_hostile_tables_of_names(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tr.read_model("own.safetensors")
    codec = mc.MemoryCodec(own)
    blob = codec.encode("hello there")
    for names in ('{"id": ["0"]}', "[1, 2]", "no json", json.dumps({k: ["0", "1"] for k in cli.NAMES})):
        Path("bad.nbmr").write_bytes(cli.pack_blobs(own.identity, [codec.encode(names), blob]))
        refused(capsys, "decode bad.nbmr b.jsonl --model own.safetensors", "table of the records' names")


# ---- collecting, training, measuring


def test_collect_a_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "notes" / "deep").mkdir(parents=True)
    (here / "notes" / "a.txt").write_text(
        "the first paragraph, long enough\r\n\r\nThe  FIRST paragraph, long enough\n\nno"
    )
    (here / "notes" / "deep" / "b.md").write_text("# B\nsection of some length\n")
    (here / "notes" / "picture.png").write_bytes(b"\x89PNG")
    code, out, err = nbmf(capsys, "collect notes own.jsonl --domain legal")
    assert (code, err) == (0, "") and out.endswith("dropped: 1 too short or too long, 1 repeated\n")
    found = rc.read_records("own.jsonl")
    rc.validate(found)
    assert {r.source for r in found} == {"notes"} and {r.domain for r in found} == {"legal"}
    assert {r.group for r in found} == {"a.txt", "deep/b.md"} and found[-1].id == "deep/b.md/0"


def test_collect_a_file_twice_is_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = rc.synthetic_records(20, seed=4)
    Path("in.jsonl").write_bytes(lines([*records, *records]))
    code, out, _ = nbmf(capsys, "collect in.jsonl out.jsonl")
    kept = rc.deduplicate(rc.clean(records))
    assert code == 0 and Path("out.jsonl").read_bytes() == lines(kept)
    assert out.startswith(f"out.jsonl: {len(kept)} records of {sum(len(r.data) for r in kept)} bytes; dropped: ")
    assert nbmf(capsys, "collect out.jsonl again.jsonl")[0] == 0
    assert Path("again.jsonl").read_bytes() == Path("out.jsonl").read_bytes()


@pytest.mark.parametrize("url", ["store.db", "sqlite:///store.db"])
def test_collect_a_database(here: Path, capsys: pytest.CaptureFixture[str], url: str) -> None:
    if "://" in url:
        pytest.importorskip("sqlalchemy")
    with sqlite3.connect("store.db") as base:
        base.execute("create table notes (body text, thread text)")
        rows = [(f"message {i} of the thread", f"t{i // 2}") for i in range(4)]
        base.executemany("insert into notes values (?, ?)", rows)
    base.close()
    line = f"collect {url} out.jsonl --table notes --column body --group thread --name mail --domain technical"
    assert nbmf(capsys, line)[0] == 0
    found = rc.read_records("out.jsonl")
    assert [(r.text, r.group) for r in found] == rows and {(r.source, r.domain) for r in found} == {
        ("mail", "technical")
    }
    refused(capsys, f"collect {url} b.jsonl --table notes", "--column")
    refused(capsys, f"collect {url} b.jsonl --table notes --column boddy", "boddy")


def test_stats(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = nbmf(capsys, "stats r.jsonl")
    assert (code, err) == (0, "") and out.splitlines()[0].split()[:3] == ["domain", "source", "records"]
    rows = json.loads(nbmf(capsys, "stats r.jsonl --json")[1])
    assert rows == rc.statistics(rc.read_records("r.jsonl")) and len(out.splitlines()) == 5


def test_a_trained_model_is_that_of_the_library(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, list[rc.Record]] = {}
    for r in rc.synthetic_records(12, 2):
        found.setdefault(r.source, []).append(r)
    tr.save_model(tr.train_model(found, tr.Training(bits=11, final_bits=10)), "same.safetensors")
    assert Path("same.safetensors").read_bytes() == Path("other.safetensors").read_bytes()
    refused(capsys, "train r.jsonl own.safetensors", "exists; give --overwrite")


def test_train_releases(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(tr, "release", lambda *a: asked.append(a) or Path("f/memory.safetensors"))
    assert nbmf(capsys, "train --release f --settings seed=3") == (0, "f/memory.safetensors\n", "")
    assert asked == [("f", tr.Training(seed=3))]
    refused(capsys, "train --release f r.jsonl", "or --release")
    refused(capsys, "train", "or --release")


def test_validate_a_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = nbmf(capsys, "validate r.jsonl --model own.safetensors --most 4")
    assert (code, err) == (0, "") and len(out.splitlines()) == 5
    rows = json.loads(nbmf(capsys, "validate r.jsonl --model own.safetensors --json")[1])
    codec = mc.MemoryCodec(tr.read_model("own.safetensors"))
    by_source = {row["source"]: row for row in rows}
    for name, row in by_source.items():
        of = [r for r in rc.read_records("r.jsonl") if r.source == name]
        blobs = [len(codec.encode(r.text)) for r in of]
        assert row["records"] == row["exact"] == len(of)
        assert row["ratio"] == pytest.approx(sum(len(r.data) for r in of) / sum(blobs))
        assert row["least"] == min(len(r.data) / b for r, b in zip(of, blobs, strict=True))


def test_validate_holds_sources_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records: dict[str, list[rc.Record]] = {}
    for r in rc.synthetic_records(12, 1):
        records.setdefault(r.source, []).append(r)
    Path("in.jsonl").write_bytes(lines([r for found in records.values() for r in found]))
    line = f"validate in.jsonl --held synthetic_legal --settings {SMALL} --json"
    rows = json.loads(nbmf(capsys, line)[1])
    wanted = tr.hold_out(records, ["synthetic_legal"], tr.Training(bits=11, final_bits=10))["synthetic_legal"]
    assert [row["source"] for row in rows] == ["synthetic_legal"] and rows[0]["exact"] == wanted.n == 12
    assert rows[0]["ratio"] == wanted.ratio and rows[0]["p5"] == wanted.p5
    every = ",".join(records)
    refused(capsys, f"validate in.jsonl --held {every} --settings {SMALL}", "nothing is left")
    refused(capsys, "validate in.jsonl --held nobody", "no record is of nobody")


def test_records_that_do_not_come_back_are_a_failure(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mc.MemoryCodec, "decode", lambda self, blob: "something else")
    code, out, err = nbmf(capsys, "validate r.jsonl --model own.safetensors")
    assert code == 1 and "synthetic_legal" in out and "24 records did not come back" in err


# ---- wrong usage


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "one of {encode,decode,fit,collect,stats"),
        ("encode", "source"),
        ("encode nowhere.jsonl", "nowhere.jsonl"),
        ("encode nowhere.txt --record", "cannot read nowhere.txt"),
        ("encode broken.jsonl", "line 2"),
        ("encode empty.jsonl", "holds no records"),
        ("encode notes.pdf", "its kind is not one of"),
        ("encode r.jsonl --tier cold", "cold"),
        ("encode r.jsonl r.jsonl --overwrite", "is the source"),
        ("encode r.jsonl own.safetensors", "own.safetensors exists; give --overwrite"),
        ("decode nowhere.nbmr", "cannot read nowhere.nbmr"),
        ("decode empty.jsonl b.jsonl", "starts with nothing"),
        ("fit empty.jsonl", "holds no records"),
        ("fit r.jsonl --most 0 --model own.safetensors", "no records to adapt to"),
        ("collect nowhere out.jsonl", "nowhere"),
        ("collect r.jsonl out.csv", "give a name with .jsonl"),
        ("collect r.jsonl out.jsonl --least 100000", "there are no records"),
        ("collect r.jsonl out.jsonl --domain sports", "sports"),
        ("collect bare out.jsonl", "no file below bare"),
        ("collect nowhere.db out.jsonl --table t --column c", "nowhere.db is no file"),
        ("collect twice.jsonl out.jsonl", "same id"),
        ("stats empty.jsonl", "holds no records"),
        ("train r.jsonl t.safetensors --settings bits", "a setting is NAME=NUMBER"),
        ("train r.jsonl t.safetensors --settings speed=3", "a setting is NAME=NUMBER"),
        ("train r.jsonl t.safetensors --settings bits=4", "final_bits <= bits"),
        ("train twice.jsonl", "same id"),
        ("validate twice.jsonl", "same id"),
        ("validate r.jsonl --most 0 --model own.safetensors", "from 1 up"),
        ("validate r.jsonl --settings bits=12", "--held"),
        ("validate r.jsonl --held a --model own.safetensors", "leave out --model"),
    ],
)
def test_wrong_usage_is_one_line_and_2(here: Path, capsys: pytest.CaptureFixture[str], line: str, says: str) -> None:
    Path("empty.jsonl").touch()
    Path("notes.pdf").write_text("text")
    Path("broken.jsonl").write_text('{"a": 1}\n{"b": \n')
    twice = rc.Record("0", "general", "s", "g", "a record that is long enough")
    other = rc.Record("0", "general", "s", "g", "another record, long enough")
    Path("twice.jsonl").write_bytes(lines([twice, other]))
    Path("bare").mkdir()
    refused(capsys, line, says)


def test_settings_are_those_of_a_training() -> None:
    assert cli._training("") == tr.Training()
    assert cli._training("seed=4, least=3") == tr.Training(seed=4, least=3)
    with pytest.raises(InputError):
        cli._training("seed=-1")
