"""cli: the commands as a user types them, one line for each error, exit codes."""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from bench_template import MEASURE, PARAMETERS, WRITE, make_clone, make_template, published

from nbmf_research import __version__, bench, cli, core, datasets, site
from nbmf_research.neural.probes import utah_array
from nbmf_research.neural.recordings import open_recording, recording, save_recording
from nbmf_research.neural.simulate import simulate
from nbmf_research.neural.spikes import SpikeCodec, declaration, read_spikes

NBMF = Path(sys.executable).with_name("nbmf")


def shell(*words: str, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run the installed console script; what it needs of a kernel it finds beside it."""
    environment = {k: v for k, v in os.environ.items() if k != "NBMF_DATA_DIR"}
    done = subprocess.run(
        [NBMF, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("NBMF_DATA_DIR", raising=False)
    monkeypatch.chdir(make_clone(tmp_path))
    return tmp_path


def nbmf(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The same in this process."""
    capsys.readouterr()
    code = cli.main(words)
    heard = capsys.readouterr()
    return code, heard.out, heard.err


# ---- the console script


def test_version_and_help_load_nothing_heavy() -> None:
    assert shell("--version") == (0, f"nbmf {__version__}\n", "")
    code = "import sys, nbmf_research.cli as c; c.main(['bench', 'run', '--help']); print({'torch', 'papermill', 'xarray', 'pandas'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("set()\n") and "--KEY VALUE" in out


def test_a_benchmark_from_the_shell(clone: Path) -> None:
    make_template(clone, "demo")
    assert shell("bench", "run", "demo", "--typo", "3", cwd=clone) == (
        2,
        "",
        "nbmf: there is no parameter typo; it has profile, seed, device, data_dir, out, samples, sets\n",
    )
    code, out, err = shell("bench", "run", "demo", "--samples", "7", "--sets=a,b", cwd=clone / "nbs")
    assert (code, out) == (0, f"{clone.resolve()}/_smoke/demo.smoke.ipynb\n"), err
    record = json.loads((clone / "_smoke" / "data" / "demo.smoke.json").read_text())
    assert record["parameters"]["samples"] == 7 and record["parameters"]["sets"] == ["a", "b"]
    assert all(line.startswith("demo (smoke): ") for line in err.splitlines())


def test_an_interrupt_is_one_line_and_130(clone: Path) -> None:
    make_template(
        clone, "demo", MEASURE, WRITE, "from pathlib import Path\nPath('reached').touch()\nimport time\ntime.sleep(600)"
    )
    run = subprocess.Popen(
        [NBMF, "bench", "run", "demo"], cwd=clone, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 180
    while not (clone / "reached").exists():
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    err = run.communicate(timeout=180)[1]
    assert run.returncode == 130 and "nbmf: interrupted" in err.splitlines() and "Traceback" not in err
    assert published(clone) == [] and not list((clone / "_smoke").glob(".run*"))


def test_models_are_listed_and_have_cards(capsys: pytest.CaptureFixture[str]) -> None:
    code, listed, _ = nbmf(capsys, "models", "list")
    assert code == 0 and listed.startswith("name")
    assert all(name in listed for name in ("adaptive", "autoencoder", "lstm", "transformer", "vae"))
    code, card, _ = nbmf(capsys, "models", "card", "adaptive")
    assert code == 0 and len(json.loads(card)["sha256"]) == 64
    code, _, err = nbmf(capsys, "models", "card", "adaptve")
    assert code == 2 and "no weights are called 'adaptve'" in err


def test_a_closed_pipe_is_no_error() -> None:
    line = f"{NBMF} data list | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("name")


# ---- errors


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "one of {bench,data,models,encode,decode"),
        ("bnch", "'bnch'"),
        ("bench", "one of {list,run,redraw,report,site"),
        ("bench run", "required: name; see --help"),
        ("bench run nothing", "no benchmark is called 'nothing'; did you mean"),
        ("bench run nothin --profile huge", "--profile"),
        ("bench run nothings --samples", "--samples needs a value"),
        ("bench run nothings --samples --seed 3", "--samples needs a value"),
        ("bench run nothings --seed 3 --seed 4", "--seed is given twice"),
        ("bench run nothings --samples many", "parameter samples takes a whole number"),
        ("bench run nothings --smaples 1", "did you mean samples"),
        ("bench run nothings --profile fast", "'fast'"),
        ("bench run nothings --data_dir nowhere", "nowhere does not exist"),
        ("bench run nothings again", "again"),
        ("bench list --all", "--all"),
        ("data get", "--all"),
        ("data get n1_neuralinks", "n1_neuralink"),
        ("data get n1_neuralink --all", "--all"),
        ("info", "path"),
        ("info nowhere.ns5", "nowhere.ns5"),
        ("info broken.h5", "broken.h5"),
        ("info notes.txt", "notes.txt"),
        ("info empty.edf", "empty.edf"),
        ("info empty.nbmf", "empty.nbmf"),
        ("encode", "source"),
        ("encode nowhere.edf", "nowhere.edf"),
        ("encode a.h5 b.nbmf c.nbmf", "c.nbmf"),
        ("encode a.h5 --codec nbmf-mux", "did you mean"),
        ("encode a.h5 --max_error much", "an error bound is a number"),
        ("encode a.h5 --max_error 5uV", "does not fit a recording in counts"),
        ("encode a.h5 --max_error 5 --codec nbmf-fast", "keeps no error bound"),
        ("encode a.h5 --ratio 20 --snr_db 20", "exclude each other"),
        ("encode a.h5 --ratio 1000", "out of reach"),
        ("encode a.h5 --ratio 0", "makes no sense"),
        ("encode a.h5 --ratio much", "ratio"),
        ("encode a.h5 --bits_per_sample 1 --ratio 3", "exclude each other"),
        ("encode a.h5 --snr_db 20 --codec nbmf-fast", "no step"),
        ("encode a.h5 --block_seconds 0", "hold no sample"),
        ("encode a.h5 --block_seconds long", "block_seconds"),
        ("encode a.h5 --jobs -3", "jobs"),
        ("encode a.h5 --stream other", "no stream 'other'"),
        ("encode a.h5 a.h5 --overwrite", "is the source"),
        ("encode a.h5 there.nbmf", "there.nbmf exists; give --overwrite"),
        ("encode a.h5 --feature spiks", "the feature that can be kept is spikes"),
        ("encode a.h5 --feature spikes --ratio 20", "leave out --ratio"),
        ("encode a.h5 --feature spikes --max_error 2 --fallback nbmf-max", "leave out --max_error --fallback"),
        ("encode a.h5 --feature spikes --codec klt-dct", "a codec of its own"),
        ("encode a.h5 --feature spikes", "the sampling rate is 1 Hz"),
        ("encode a.h5 --feature spikes --block_seconds 0", "hold no sample"),
        ("encode a.h5 --coarseness 2", "belongs to --feature spikes"),
        ("encode notes.txt", "notes.txt"),
        ("encode bare.raw", "dtype="),
        ("decode", "source"),
        ("decode nowhere.nbmf", "nowhere.nbmf"),
        ("decode a.h5 b.npy", "not an .nbmf stream"),
        ("decode there.nbmf out.npy", "not an .nbmf stream"),
        ("decode there.nbmf a.h5", "a.h5 exists; give --overwrite"),
        ("decode there.nbmf notes.npy", "not an .nbmf stream"),
        ("verify", "path"),
        ("verify nowhere.nbmf", "nowhere.nbmf"),
        ("verify a.h5", "not an .nbmf stream"),
        ("spikes", "path"),
        ("spikes nowhere.nbmf", "nowhere.nbmf"),
        ("spikes a.h5", "not an .nbmf stream"),
        ("spikes there.nbmf --csv s.csv --json", "give one of the two"),
        ("spikes there.nbmf --csv notes.txt", "notes.txt exists; give --overwrite"),
    ],
)
def test_wrong_usage_is_one_line_and_2(clone: Path, capsys: pytest.CaptureFixture[str], line: str, says: str) -> None:
    make_template(clone, "nothings")
    (clone / "broken.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (clone / "notes.txt").write_text("hello")
    (clone / "empty.edf").write_bytes(b"")
    (clone / "empty.nbmf").write_bytes(b"")
    (clone / "there.nbmf").write_bytes(b"something else")
    (clone / "bare.raw").write_bytes(bytes(60))
    save_recording(recording(np.zeros((9, 2), np.int16), 1.0), clone / "a.h5")
    code, out, err = nbmf(capsys, *line.split())
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("nbmf: ") and says in err, err


def test_a_template_without_its_tag_is_refused(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_template(clone, "demo", tags=())
    for line in ("bench list", "bench run demo", "bench report"):
        code, _, err = nbmf(capsys, *line.split())
        assert code == 2 and err.count("\n") == 1 and "tagged 'parameters'" in err


def test_an_annotated_parameter_is_refused(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_template(clone, "demo", parameters=f"{PARAMETERS}\nseconds: float = 2.0")
    code, _, err = nbmf(capsys, "bench", "run", "demo", "--seconds", "3")
    assert code == 2 and err.count("\n") == 1 and "annotation" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (core.InputError("a\nb"), 2),
        (core.StreamError("cut"), 2),
        (argparse.ArgumentError(None, "bad"), 2),
        (core.MissingDependencyError("install it"), 1),
        (bench.BenchmarkError("failed"), 1),
        (ZeroDivisionError("x\ny"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    got, text = cli.explain(error)
    assert got == code and "\n" not in text and text
    if isinstance(error, ZeroDivisionError):
        assert "--debug" in text


def test_debug_shows_the_trace(clone: Path) -> None:
    code, _, err = shell("info", "nowhere.ns5", "--debug", cwd=clone)
    assert code == 1 and "Traceback" in err and "InputError" in err
    with pytest.raises(core.InputError):
        cli.main(["--debug", "info", "nowhere.ns5"])


# ---- what the commands print


def test_bench_list(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_template(clone, "demo")
    code, out, err = nbmf(capsys, "bench", "list")
    assert (
        (code, err) == (0, "")
        and out.startswith("demo  A demo\n")
        and "--samples 100" in out
        and "cpu: it was never run" in out
    )


def test_bench_report_site_and_readme(
    clone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "build_site", lambda profile, *_, **__: clone / profile / "index.html")
    monkeypatch.setattr(site, "readme", lambda *_, check=False: clone / f"README.{check}.md")
    assert nbmf(capsys, "bench", "report", "--profile", "cpu", "--resume") == (0, f"{clone}/cpu/index.html\n", "")
    assert nbmf(capsys, "bench", "site") == (0, f"{clone}/smoke/index.html\n", "")
    assert nbmf(capsys, "bench", "readme", "--check") == (0, f"{clone}/README.True.md\n", "")


def test_bench_report_fails_with_1(
    clone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_template(clone, "demo")

    def run(name: str, profile: str) -> Path:
        raise bench.BenchmarkError(f"benchmark {name} failed: {profile}")

    monkeypatch.setattr(bench, "run", run)
    assert nbmf(capsys, "bench", "report") == (1, "", "nbmf: benchmark demo failed: smoke\n")


def test_data_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = nbmf(capsys, "data", "list")
    assert (code, err) == (0, "") and out.splitlines()[0].split() == ["name", "MB", "licence", "split", "where"]
    assert len(out.splitlines()) == 1 + len(datasets.registry())


def test_data_get(clone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "get", lambda name: clone / name)
    monkeypatch.setattr(datasets, "get_all", lambda: {"a": clone, "b": datasets.DownloadError("no network")})
    assert nbmf(capsys, "data", "get", "a") == (0, f"a: {clone}/a\n", "")
    code, out, err = nbmf(capsys, "data", "get", "--all")
    assert (code, out) == (
        1,
        f"a: {clone}\nb: no network\n",
    ) and err == "nbmf: 1 of 2 data sets could not be fetched: b\n"


def test_info(clone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(0).integers(-512, 512, (2000, 3))
    save_recording(
        recording((codes * 64).astype(np.int16), 1000.0, units="uV", gain=0.5, native_bits=10), clone / "a.h5"
    )
    save_recording(recording(codes.astype(np.float32), 500.0, gaps=[(1000, 0.5)]), clone / "b.h5")
    code, out, err = nbmf(capsys, "info", "a.h5")
    assert (code, err) == (0, "") and "2000 samples x 3 channels, 1000 Hz, 2.000 s" in out
    assert "int16 in uV; header: 10 bits; used: 10 bits, step 64" in out
    record = json.loads(nbmf(capsys, "info", "a.h5", "--json")[1])
    stream = record["streams"][0]
    assert stream["lattice"] == {"bits": 10, "steps": [64.0], "read": 2000} and stream["native_bits"] == 10
    out = nbmf(capsys, "info", "b.h5")[1]
    assert "float32 in counts" in out and "no lattice" in out and out.count("1 gap\n") == 1
    monkeypatch.setattr(cli, "LATTICE_BYTES", 600)
    assert json.loads(nbmf(capsys, "info", "a.h5", "--json")[1])["streams"][0]["lattice"]["read"] == 100


def walk(n: int, channels: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(n).integers(-9, 10, (n, channels)), axis=0).astype(np.int16)


def test_encode_decode_verify_info(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, names = walk(3000, 3), ["A1", "A2", "7"]
    save_recording(
        recording(x, 1000.0, channels=names, units="uV", gain=0.5, native_bits=12, gaps=[(9, 0.0)]), clone / "a.h5"
    )
    code, out, err = nbmf(capsys, "encode", "a.h5", "--block_seconds", "1", "--codec=nbmf-fast", "--jobs", "1")
    assert (code, err) == (0, "") and out.startswith("a.nbmf: ") and out.count("\n") == 1
    assert nbmf(capsys, "verify", "a.nbmf") == (0, "a.nbmf: 3 blocks, 3000 samples: whole\n", "")
    assert nbmf(capsys, "decode", "a.nbmf") == (0, "a.npy\n", "")
    assert (np.load("a.npy") == x).all() and open_recording("a.npy").attrs["gaps"] == [[9, 0.0]]
    line = ("decode", "a.nbmf", "--start", "1500", "--stop", "1600", "--channels", "7,A1", "part.raw")
    assert nbmf(capsys, *line) == (0, "part.raw\n", "")
    y = open_recording("part.raw")
    assert (y.values == x[1500:1600, [2, 0]]).all() and y.channel.values.tolist() == ["7", "A1"]
    assert nbmf(capsys, "decode", "a.nbmf", "n.h5", "--channels", "1,0")[0] == 0
    assert (open_recording("n.h5").values == x[:, [1, 0]]).all()
    code, out, err = nbmf(capsys, "decode", "a.nbmf")
    assert code == 2 and "a.npy exists" in err
    for words, says in (("--channels A1,9", "'9'"), ("--stop 3001", "3001"), ("--channels 5", "5")):
        code, out, err = nbmf(capsys, "decode", "a.nbmf", "b.npy", *words.split())
        assert (code, out) == (2, "") and says in err and not Path("b.npy").exists() and not Path("b.json").exists()
    assert nbmf(capsys, "encode", "a.nbmf", "b.nbmf")[0] == 0 and (open_recording("b.nbmf").values == x).all()


def test_info_of_a_stream(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = walk(2000, 2)
    save_recording(recording(x, 1000.0, units="uV", gain=0.5, native_bits=12), clone / "a.h5")
    for words in ("a.nbmf", "--max_error 1.2uV b.nbmf --block_seconds 1"):
        assert nbmf(capsys, "encode", "a.h5", *words.split())[0] == 0
    about = json.loads(nbmf(capsys, "info", "b.nbmf", "--json")[1])
    bits = 8 * (clone / "b.nbmf").stat().st_size / x.size
    assert np.allclose(
        [about[k] for k in ("bits_per_sample", "ratio_native", "ratio_int16")], [bits, 12 / bits, 16 / bits]
    )
    assert about["codecs"] == [["neural", {"codec": "nbmf-bounded", "max_error": 2}]]
    errors = np.abs(open_recording("b.nbmf").values.astype(int) - x) * 0.5
    assert [b["certificate"]["max_error"] for b in about["blocks"]] == [errors[:1000].max(), errors[1000:].max()]
    text = nbmf(capsys, "info", "b.nbmf")[1]
    assert "2 blocks of 1 channel group; codec nbmf-bounded (max_error=2)" in text and "largest error 1 uV" in text
    text = nbmf(capsys, "info", "a.nbmf")[1]
    assert "times smaller than 12-bit samples, " in text and "error" not in text and "no gaps" in text


def test_a_target_its_certificates_and_the_original(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = walk(3000, 3)
    save_recording(recording(x, 1000.0, units="uV", gain=0.5), clone / "a.h5")
    save_recording(recording(x + np.int16(50), 1000.0, units="uV", gain=0.5), clone / "other.h5")
    line = "encode a.h5 --ratio 8 --codec klt-dct --block_seconds 1"
    code, out, err = nbmf(capsys, *line.split())
    assert (code, err) == (0, "") and 8 <= 2 * x.size / (clone / "a.nbmf").stat().st_size <= 8 / 0.98
    about = json.loads(nbmf(capsys, "info", "a.nbmf", "--json")[1])
    assert about["codecs"] == [["neural", {"codec": "klt-dct", "fallback": ["nbmf-max"]}]]
    assert about["quality"]["share"] == {"klt-dct": 1.0} and about["quality"]["delay_samples"] == 1000
    assert all(b["chosen"] == "klt-dct" and b["band_power"] for b in about["blocks"])
    text = nbmf(capsys, "info", "a.nbmf")[1]
    assert "codec klt-dct (100 %)" in text and "root-mean-square error" in text and "one block, 1000 samples" in text
    code, out, err = nbmf(capsys, "verify", "a.nbmf", "--against", "a.h5")
    assert (code, err) == (0, "") and out.endswith("the stated errors of all 3 blocks hold for a.h5\n")
    code, out, err = nbmf(capsys, "verify", "a.nbmf", "--against", "other.h5")
    assert code == 2 and err.count("\n") == 1 and "do not hold for other.h5" in err
    line = "encode a.h5 c.nbmf --codec klt-dct --step 30 --max_error 4uV --min_snr_db 5 --max_rmse 3uV --fallback dct,nbmf-max"
    assert nbmf(capsys, *line.split())[0] == 0
    about = json.loads(nbmf(capsys, "info", "c.nbmf", "--json")[1])
    assert about["codecs"][0][1]["fallback"] == ["dct", "nbmf-max"] and 0 < about["quality"]["max_error"] <= 4.0
    assert nbmf(capsys, "encode", "a.h5", "exact.nbmf")[0] == 0
    code, _, err = nbmf(capsys, "verify", "exact.nbmf", "--against", "a.h5")
    assert code == 2 and "no stated errors" in err


@pytest.fixture(scope="module")
def near() -> xr.DataArray:
    """1.5 s of simulated broadband on five channels, with a start and a gap."""
    x = simulate("broadband", 1.5, 15_000.0, probe=utah_array(3, 3), seed=3).recording
    return x.assign_attrs(t_start=2.0, gaps=[[12_000, 0.25]])


def test_a_feature_stream_and_its_spikes(clone: Path, capsys: pytest.CaptureFixture[str], near: xr.DataArray) -> None:
    save_recording(near, clone / "a.h5")
    code, out, err = nbmf(capsys, "encode", "a.h5", "--feature", "spikes", "--block_seconds", "0.8")
    assert (code, err) == (0, "") and out.startswith("a.nbmf: ")
    wanted, counts = set(), np.zeros(2, int)
    for start in (0, 11_250):  # two blocks of equal length
        stream = SpikeCodec().compress(near[start : start + 11_250])
        s = read_spikes(stream)
        sample = start + np.rint(s.times * 15_000).astype(int)
        times = 2 + sample / 15_000 + 0.25 * (sample >= 12_000)
        heights = s.amplitudes * near.gain.values[s.channels]
        wanted |= set(zip(near.channel.values[s.channels].tolist(), times.tolist(), heights.tolist(), strict=True))
        counts += [declaration(stream)[k] for k in ("spikes", "events")]
    about = json.loads(nbmf(capsys, "spikes", "a.nbmf", "--json")[1])
    found = list(zip(about["channel"], about["seconds"], about["height"], strict=True))
    assert set(found) == wanted and about["n"] == len(found) == len(wanted) > 10 and about["units"] == "uV"
    assert about["seconds"] == sorted(about["seconds"])
    assert nbmf(capsys, "spikes", "a.nbmf", "--csv", "s.csv") == (0, f"s.csv: {len(found)} spikes\n", "")
    with (clone / "s.csv").open(newline="") as f:
        head, *rows = csv.reader(f)
    assert head == ["channel", "seconds", "height_uV"] and [(c, float(t), float(h)) for c, t, h in rows] == found
    text = nbmf(capsys, "spikes", "a.nbmf", "--threshold", "12")[1]
    assert 1 < len(text.splitlines()) < len(found)
    said = json.loads(nbmf(capsys, "info", "a.nbmf", "--json")[1])["feature"]
    assert [said["spikes"], said["events"]] == counts.tolist() and said["f1"] > 0.9
    text = nbmf(capsys, "info", "a.nbmf")[1]
    assert "feature stream (spikes)" in text and "makes up the noise" in text and "-4.5 noise levels" in text
    assert nbmf(capsys, "decode", "a.nbmf", "a.npy")[0] == 0 and np.load("a.npy").shape == near.shape


def test_a_feature_stream_of_one_block_and_a_damaged_one(
    clone: Path, capsys: pytest.CaptureFixture[str], near: xr.DataArray
) -> None:
    save_recording(near, clone / "a.h5")
    assert nbmf(capsys, "encode", "a.h5", "--codec", "nbmf-spikes", "--coarseness", "2")[0] == 0
    about = json.loads(nbmf(capsys, "info", "a.nbmf", "--json")[1])
    assert about["n_blocks"] == 1 and about["codecs"][0][1]["coarseness"] == 2.0
    data = bytearray((clone / "a.nbmf").read_bytes())
    data[len(data) // 2] ^= 1
    (clone / "bad.nbmf").write_bytes(data)
    for line in ("spikes bad.nbmf", "spikes bad.nbmf --csv s.csv"):
        code, out, err = nbmf(capsys, *line.split())
        assert (code, out, err.count("\n")) == (2, "", 1) and "bad.nbmf" in err and not Path("s.csv").exists()
    code, out, _ = nbmf(capsys, "info", "bad.nbmf")
    assert code == 0 and "feature stream (spikes); bad.nbmf: " in out
    assert nbmf(capsys, "encode", "a.h5", "exact.nbmf", "--codec", "nbmf-fast")[0] == 0
    code, out, err = nbmf(capsys, "spikes", "exact.nbmf")
    assert (code, out) == (2, "") and "is no feature stream" in err


def test_blocks_of_a_feature_stream_are_equal_and_of_some_seconds() -> None:
    for n, channels, wanted, count in (
        (300_000, 4, None, 1),
        (300_001, 4, None, 2),
        (1_800_000, 64, None, 14),
        (90_010, 2, 1.0, 4),
    ):
        x = recording(np.zeros((n, 1), np.int16)[:, [0] * channels], 30_000.0)
        found = cli._spike_settings(x, wanted)
        length = round(found["block_seconds"] * 30_000)
        assert -(-n // length) == count and found["sampling_rate"] == 30_000.0
        assert n - (count - 1) * length > 0.9 * length


def test_a_damaged_stream_is_named(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_recording(recording(walk(3000, 2), 1000.0), clone / "a.h5")
    assert nbmf(capsys, "encode", "a.h5", "--block_seconds", "1")[0] == 0
    data = bytearray((clone / "a.nbmf").read_bytes())
    data[len(data) // 2] ^= 1
    (clone / "a.nbmf").write_bytes(data)
    code, out, err = nbmf(capsys, "verify", "a.nbmf")
    assert code == 2 and "samples 1000..2000 of 2 channels" in out
    assert err == "nbmf: a.nbmf is damaged: 2000 of 6000 values are lost\n"
    code, out, err = nbmf(capsys, "decode", "a.nbmf", "b.npy")
    assert (code, out, err.count("\n")) == (2, "", 1) and "samples 1000..2000" in err
    assert not list(clone.glob("*b.*"))
    assert nbmf(capsys, "decode", "a.nbmf", "b.npy", "--stop", "1000")[0] == 0
    (clone / "a.nbmf").write_bytes(data[:-30])
    code, out, err = nbmf(capsys, "verify", "a.nbmf")
    assert code == 2 and "rebuilt by scanning" in out and "damaged" in err
    code, out, err = nbmf(capsys, "info", "a.nbmf")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_raw_file_is_encoded_with_its_numbers(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = walk(500, 4)
    (clone / "bare.dat").write_bytes(x.tobytes())
    line = "encode bare.dat --sampling_rate 100 --n_channels 4 --dtype int16 out.nbmf"
    assert nbmf(capsys, *line.split())[0] == 0
    assert (open_recording("out.nbmf").values == x).all()
    code, _, err = nbmf(capsys, "encode", "bare.dat", "out.nbmf", "--n_channels", "many")
    assert code == 2 and "n_channels" in err
    code, _, err = nbmf(capsys, "encode", "bare.dat", "--n_channels", "4")
    assert (code, err.count("\n")) == (2, 1) and "dtype=" in err


def test_no_bar_where_there_is_no_terminal(clone: Path) -> None:
    save_recording(recording(walk(500, 2), 1000.0), clone / "a.h5")
    code, out, err = shell("encode", "a.h5", cwd=clone)
    assert (code, err) == (0, "") and out.startswith("a.nbmf: ")


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for group, node in cli.COMMANDS.items():
        for name in node if isinstance(node, dict) else [""]:
            code, out, err = nbmf(capsys, group, *([name] if name else []), "--help")
            assert (code, err) == (0, "") and "usage: nbmf" in out
    for node in cli.COMMANDS.values():
        for function in node.values() if isinstance(node, dict) else [node]:
            summary, described = cli.docstring_help(function)
            assert summary.endswith(("VALUE.", ".")) and all(described.values())


def test_split_parameters() -> None:
    split = cli.split_parameters
    assert split([]) == ([], {}) and split(["a", "--help"]) == (["a", "--help"], {})
    assert split(["--x", "-1", "a", "--y=b=c", "--profile", "cpu"]) == (
        ["a", "--profile", "cpu"],
        {"x": "-1", "y": "b=c"},
    )
