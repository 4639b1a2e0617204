"""neural.streams: recordings as .nbmf files, from Python and from the shell; damage, kill -9, threads and instruction sets, bounds, memory."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbmf_research.coding import container as c
from nbmf_research.core import InputError, NbmfError, StreamError
from nbmf_research.neural import streams
from nbmf_research.neural.recordings import (
    SAMPLE_TYPES,
    describe,
    list_streams,
    open_recording,
    recording,
    save_recording,
)

NBMF = Path(sys.executable).with_name("nbmf")
GOLDEN = Path(__file__).parent / "golden"
FLOATS = ("float32", "float64")


def walk(n: int, channels: int, dtype: str = "int16", seed: int = 0) -> np.ndarray:
    """A random walk that fits every type; floats get a NaN, infinities and a negative zero."""
    rng = np.random.default_rng(seed)
    x = np.clip(np.cumsum(rng.integers(-3, 4, (n, channels)), axis=0), -100, 100)
    x = x + (128 if dtype[0] == "u" else 0)
    if dtype not in FLOATS:
        return x.astype(dtype)
    x = (x + rng.normal(size=x.shape)).astype(dtype)
    x.flat[: min(4, x.size)] = [np.nan, np.inf, -0.0, -np.inf][: min(4, x.size)]
    return x


def made(n: int, width: int, dtype: str = "int16", seed: int = 0, **about) -> xr.DataArray:
    return recording(walk(n, width, dtype, seed), about.pop("sampling_rate", 500.0), **about)


def encoded(x: xr.DataArray, **options) -> bytes:
    out = io.BytesIO()
    streams.encode_recording(x, out, **options)
    return out.getvalue()


# ---- round trips


@pytest.mark.parametrize("dtype", SAMPLE_TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (300, 1), (257, 3)])
def test_every_type_and_shape_comes_back(tmp_path: Path, dtype: str, shape: tuple[int, int]) -> None:
    x = made(*shape, dtype, name="some")
    streams.encode_recording(x, tmp_path / "a.nbmf", codec="nbmf-fast", block_seconds=0.25)
    y = streams.open_nbmf(tmp_path / "a.nbmf")
    assert y.dtype == x.dtype and y.values.tobytes() == x.values.tobytes()
    assert describe(y) == describe(x)


@pytest.mark.parametrize("codec", ["nbmf-max", "nbmf-balanced", "nbmf-fast", "nbmf-bounded", "zlib"])
@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
def test_every_codec_gives_every_bit_of_nan_and_infinity(codec: str, dtype: str) -> None:
    x = walk(400, 3, dtype)
    if dtype in FLOATS:  # other NaN than NumPy's
        word, bits = (np.uint32, 22) if dtype == "float32" else (np.uint64, 51)
        x.view(word)[100:103, 1] = [word(1) + x[:1, :1].view(word)[0, 0], ~word(0), ~word(0) ^ word(1) << word(bits)]
    block = streams.RecordingBlock(codec)
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        y = block.decode_block(block.encode_block(x), x.shape, x.dtype)
    if block.lossless or dtype in FLOATS:  # what cannot be bounded is kept as it is
        assert y.tobytes() == x.tobytes()
    else:
        assert np.abs(y.astype(int) - x).max() <= 1


def test_three_hundred_channels_in_groups(tmp_path: Path) -> None:
    x = made(200, 300)
    info = streams.encode_recording(x, tmp_path / "a.nbmf", codec="nbmf-fast", jobs=2)
    assert [len(g) for g in info["groups"]] == [60] * 5 and info["n_blocks"] == 5
    y = streams.open_nbmf(tmp_path / "a.nbmf")
    assert (y.values == x.values).all() and (y[10:20, [299, 0]].values == x.values[10:20, [299, 0]]).all()
    own = [list(range(0, 300, 2)), list(range(1, 300, 2))]
    assert streams.encode_recording(x, tmp_path / "b.nbmf", codec="nbmf-fast", groups=own)["groups"] == own
    assert (streams.open_nbmf(tmp_path / "b.nbmf").values == x.values).all()


def test_constant_and_random_samples() -> None:
    for values in (np.full((5000, 2), -7, np.int16), np.frombuffer(np.random.default_rng(0).bytes(4000), np.int16)):
        x = recording(values, 1000.0)
        data = encoded(x)
        assert (c.open_stream(data).read() == x.values).all() and len(data) < x.nbytes + 200
    assert len(encoded(recording(np.full((50_000, 2), -7, np.int16), 1000.0))) < 200


ABOUT = {
    "channels": ["Fp1", "Fz", "µ-3"],
    "units": "mV",
    "gain": [0.5, 0.25, -0.5],
    "offset": [1.0, 0.0, -3.5],
    "native_bits": 12,
    "positions": [[0.0, 1.5, np.nan], [np.nan] * 3, [1.0, 2.0, -3.0]],
    "t_start": 12.25,
    "name": "one",
    "gaps": [[30, 0.0], [100, 2.5], [101, 0.125]],
}


@pytest.mark.parametrize("suffix", [".npy", ".h5", ".raw"])
def test_what_is_known_survives_encode_decode_and_open(tmp_path: Path, suffix: str) -> None:
    x = made(300, 3, "uint16", **ABOUT)
    streams.encode_recording(x, tmp_path / "a.nbmf", block_seconds=0.2)
    streams.decode_recording(tmp_path / "a.nbmf", tmp_path / f"a{suffix}", jobs=2)
    y = open_recording(tmp_path / f"a{suffix}")
    assert describe(y) == describe(x) == describe(open_recording(tmp_path / "a.nbmf"))
    assert y.values.tobytes() == x.values.tobytes()


def test_an_nbmf_file_is_a_source_like_any_other(tmp_path: Path) -> None:
    x = made(300, 3, **ABOUT)
    streams.encode_recording(x, tmp_path / "a.nbmf")
    [listed] = list_streams(tmp_path / "a.nbmf")
    assert (listed.n_samples, listed.units, listed.t_start) == (300, "mV", 12.25)
    streams.encode_recording(open_recording(tmp_path / "a.nbmf"), tmp_path / "b.nbmf", codec="nbmf-fast")
    y = streams.open_nbmf(tmp_path / "b.nbmf")
    assert describe(y) == describe(x) and (y.values == x.values).all()


def test_a_part_is_decoded(tmp_path: Path) -> None:
    x = made(1000, 4, gaps=[[100, 1.0], [600, 2.0]])
    streams.encode_recording(x, tmp_path / "a.nbmf", block_seconds=0.2, groups=2)
    for channels, columns in ((["ch3", "ch1"], [3, 1]), ([2], [2]), (None, [0, 1, 2, 3])):
        streams.decode_recording(
            tmp_path / "a.nbmf", tmp_path / "p.raw", start=550, stop=700, channels=channels, jobs=2
        )
        y = open_recording(tmp_path / "p.raw")
        assert (y.values == x.values[550:700, columns]).all() and y.attrs["gaps"] == [[50, 2.0]]
        assert y.attrs["t_start"] == 550 / 500 + 1 and y.channel.values.tolist() == [f"ch{i}" for i in columns]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "a.wav"}, "decoded to"),
        ({"channels": []}, "named once"),
        ({"channels": [0, 0]}, "named once"),
        ({"channels": ["x"]}, "'x'"),
        ({"channels": [-1]}, "-1"),
        ({"start": 5, "stop": 5}, "do not lie"),
        ({"stop": 99}, "do not lie"),
        ({"jobs": -1}, "jobs"),
    ],
)
def test_wrong_parts_are_refused(tmp_path: Path, options: dict, says: str) -> None:
    streams.encode_recording(made(50, 2), tmp_path / "a.nbmf")
    target = tmp_path / options.pop("target", "a.npy")
    with pytest.raises(InputError, match=says):
        streams.decode_recording(tmp_path / "a.nbmf", target, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nbmf"]


def test_a_codec_whose_package_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pcodec", None)
    with pytest.raises(NbmfError, match="pip install"):
        streams.RecordingBlock("pcodec")


def test_a_lossy_codec_is_rounded_clipped_and_certified() -> None:
    x = recording(np.tile(np.array([[-32768], [32767]], np.int16), (200, 2)), 1000.0, units="uV", gain=0.5)
    with c.open_stream(encoded(x, codec="dct", step=40.0)) as s:
        y, [block] = s.read(), s.info(blocks=True)["blocks"]
    error = np.abs(y.astype(int) - x.values).max() * 0.5
    assert error <= block["certificate"]["max_error"] <= error * 1.001
    nan = made(100, 2, "float32")
    assert c.open_stream(encoded(nan, codec="dct")).read().tobytes() == nan.values.tobytes()
    with pytest.raises(InputError, match="add a lossless codec"):
        encoded(nan, codec="dct", fallback=[])
    with pytest.raises(InputError, match="NaN"):
        streams.RecordingBlock("dct").encode_block(nan.values)


# ---- bounds


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (5, 10), (5.2, 10), ("5", 10), ("5uV", 10), ("5 µV", 10), ("5μV", 10), ("0.005 mV", 10), ("5e-6V", 10),
        ("2counts", 2), ("2.9 counts", 2), (0, 0), ("1.5uV", 3), (0.3, 0), ("5UV", 10),
    ],
)  # fmt: skip
def test_bounds_are_read_as_people_write_them(text: float | str, counts: float) -> None:
    x = made(10, 2, units="uV", gain=[0.5, -0.1])
    assert streams.parse_bound(text, x) == counts


def test_bounds_that_are_whole_counts_stay_so() -> None:
    for k in range(1, 60):
        assert streams.parse_bound(k * 0.1, made(10, 1, units="uV", gain=0.1)) == k
        assert streams.parse_bound(f"{k * 0.195:.3f}uV", made(10, 1, units="uV", gain=0.195)) == k
    assert streams.parse_bound("0.25mV", made(10, 1, "float32", units="uV", gain=1.0)) == 250.0
    assert streams.parse_bound("3pA", made(10, 1, units="pA", gain=0.5)) == 6.0


@pytest.mark.parametrize(
    "text", ["", "uV", "5 parsec", "5 nA", "-1", "inf", "nan", "1e999", "5uV5", "--", "0x10", "5 5", "1e", "."]
)
def test_bounds_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="bound"):
        streams.parse_bound(text, made(10, 1, units="uV"))
    with pytest.raises(InputError, match="bound"):
        streams.parse_bound("5uV", made(10, 1))  # counts of unknown size


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["int16", "uint8", "int32", "float32", "float64"]),
    st.integers(1, 400),
    st.integers(1, 4),
    st.floats(0, 50),
    st.floats(1e-3, 20),
    st.integers(0, 9),
)
def test_no_sample_is_further_off_than_the_bound(
    dtype: str, n: int, channels: int, bound: float, gain: float, seed: int
) -> None:
    gains = gain * np.random.default_rng(seed).uniform(0.2, 1, channels)
    x = made(n, channels, dtype, seed, units="uV", gain=gains)
    with c.open_stream(encoded(x, max_error=bound, block_seconds=0.2)) as s:
        y, blocks = s.read(), s.info(blocks=True)["blocks"]
    a, b = (np.nan_to_num(v.astype(np.float64), nan=7e9, posinf=8e9, neginf=9e9) for v in (x.values, y))
    error = np.abs(a - b) * gains
    assert error.max() <= bound * (1 + 1e-9)
    for block in blocks:
        part = error[block["start"] : block["start"] + block["n"]].max()
        assert part * (1 - 1e-12) <= block["certificate"]["max_error"] <= bound * (1 + 2**-10) + 2.0**-31


def test_a_bound_that_is_missed_stops_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = streams.RecordingBlock.decode_block
    monkeypatch.setattr(streams.RecordingBlock, "decode_block", lambda *a: whole(*a) + np.int16(1))
    with pytest.raises(NbmfError, match="off by"):
        streams.encode_recording(made(500, 2), tmp_path / "a.nbmf", max_error="2counts")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"codec": "nbmf-fast", "max_error": 1}, "nbmf-bounded"),
        ({"codec": "wavpack-hybrid", "max_error": 1}, "keeps no error bound"),
        ({"codec": "nbmf-maxx"}, "did you mean"),
        ({"block_seconds": 0}, "hold no sample"),
        ({"block_seconds": float("nan")}, "hold no sample"),
        ({"block_seconds": 1e9}, "MiB"),
        ({"groups": 0}, "group"),
        ({"groups": [[0], []]}, "group"),
        ({"groups": []}, "group"),
        ({"jobs": -2}, "jobs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, options: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        streams.encode_recording(made(50, 2), tmp_path / "a.nbmf", **options)
    assert list(tmp_path.iterdir()) == []


# ---- reading as it is needed, and memory


class Counting:
    """A reader that counts, and makes samples by formula."""

    dtype = np.dtype(np.int16)

    def __init__(self, n_time: int, n_channels: int) -> None:
        self.n_time, self.n_channels, self.largest = n_time, n_channels, 0

    def read(self, start: int, stop: int, channels: np.ndarray) -> np.ndarray:
        self.largest = max(self.largest, stop - start)
        t = np.arange(start, stop)[:, None]
        return ((t * 37 + channels * 11) % 97 - 48 + (t // 1000) % 30).astype(np.int16)


def test_a_recording_is_read_block_by_block() -> None:
    reader = Counting(20_000, 3)
    data = encoded(recording(reader, 1000.0), codec="nbmf-fast", block_seconds=1.5, jobs=2)
    assert reader.largest == 1500
    assert (c.open_stream(data).read() == reader.read(0, 20_000, np.arange(3))).all()


MEMORY = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from test_streams import Counting
from nbmf_research.neural import streams
from nbmf_research.neural.recordings import recording
n, target = int(sys.argv[2]), sys.argv[3]
streams.encode_recording(recording(Counting(n, 128), 30000.0), target, codec="zlib", jobs=2, block_seconds=0.1, level=1)
streams.decode_recording(target, target + ".raw", jobs=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    used = []
    for n in (30_000, 600_000):  # 8 and 154 MB
        run = [sys.executable, "-c", MEMORY, str(Path(__file__).parent), str(n), str(tmp_path / "a.nbmf")]
        used.append(int(subprocess.run(run, capture_output=True, text=True, check=True).stdout))
        (tmp_path / "a.nbmf.raw").unlink()
    assert used[1] - used[0] < 60, used


# ---- kill -9 and resume

KILLED = """
import sys
from nbmf_research.neural import streams
from nbmf_research.neural.recordings import open_recording
import nbmf_research.cli as cli
append = streams.create_stream
seen = 0
encode = streams.RecordingBlock.encode_block
def watched(self, x):
    global seen
    payload = encode(self, x)
    seen += 1
    print(seen, flush=True)
    return payload
streams.RecordingBlock.encode_block = watched
sys.exit(cli.main(sys.argv[1:]))
"""


def kill_after(blocks: int, *words: str, cwd: Path) -> None:
    """Run nbmf and kill it when it has coded so many blocks."""
    run = subprocess.Popen([sys.executable, "-c", KILLED, *words], cwd=cwd, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    for line in run.stdout:
        if int(line) >= blocks:
            break
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    assert run.returncode == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_kill_9_leaves_no_half_file_and_resume_makes_the_same_bytes(tmp_path: Path) -> None:
    save_recording(made(60_000, 3, gaps=[[777, 0.0]]), tmp_path / "in.npy")
    line = ["encode", "in.npy", "--codec", "nbmf-fast", "--block_seconds", "2"]
    words = [*line, "--jobs", "1"]
    whole = encoded(open_recording(tmp_path / "in.npy"), codec="nbmf-fast", block_seconds=2.0)
    kept = 0
    for blocks in (1, 20, 15):
        kill_after(blocks, *words, "in.nbmf", *(["--resume"] if kept else []), cwd=tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == [".in.nbmf.part", "in.json", "in.npy"]
        kept = (tmp_path / ".in.nbmf.part").stat().st_size
    assert 0 < kept < len(whole)
    done = subprocess.run(
        [NBMF, *line, "in.nbmf", "--resume"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "in.nbmf").read_bytes() == whole
    assert not (tmp_path / ".in.nbmf.part").exists()


def test_a_longer_part_file_is_not_resumed(tmp_path: Path) -> None:
    x = made(1000, 2)
    broken = x.copy(data=x.values)
    with (
        contextlib.suppress(KeyError),
        c.create_stream(
            tmp_path / "a.nbmf",
            c.from_recording(broken),
            "int16",
            codecs=[streams.RecordingBlock("zlib")],
            block_samples=100,
            resume=True,
        ) as w,
    ):
        w.append(x.values)
        raise KeyError
    with pytest.raises(InputError, match="do not resume"):
        streams.encode_recording(x[:500], tmp_path / "a.nbmf", codec="zlib", resume=True)
    with pytest.raises(InputError, match="other settings"):
        streams.encode_recording(x, tmp_path / "a.nbmf", codec="nbmf-fast", resume=True)
    streams.encode_recording(x, tmp_path / "a.nbmf", codec="nbmf-fast")
    assert [p.name for p in tmp_path.iterdir()] == ["a.nbmf"]


# ---- damage


@pytest.fixture(scope="module")
def target_of_damage() -> tuple[bytes, bytes, np.ndarray]:
    """A stream of several blocks and groups, another one of the same kind, and the first one's samples."""
    x = made(1500, 4, units="uV", native_bits=8, gaps=[[700, 1.0]])
    other = made(1500, 4, seed=1, units="uV", native_bits=8, gaps=[[700, 1.0]])
    options = {"codec": "nbmf-balanced", "block_seconds": 0.5, "groups": 2}
    return encoded(x, **options), encoded(other, **options), x.values


def damage(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, cut, overwrite, or splice with another stream."""
    kind, out = rng.integers(6), bytearray(data)
    at, n = int(rng.integers(len(data))), int(rng.integers(1, 40))
    if kind == 0:
        out[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        for i in rng.integers(len(data), size=n):
            out[i] ^= int(rng.integers(1, 256))
    elif kind == 2:
        del out[at:]
    elif kind == 3:
        del out[at : at + n]
    elif kind == 4:
        out[at : at + n] = rng.bytes(n)
    else:
        out[at : at + 20 * n] = other[at : at + 20 * n]
    return bytes(out)


def survive(data: bytes, other: bytes, x: np.ndarray, seeds: range) -> int:
    """Read damaged streams in every way; returns how many samples were read that are not the original's."""
    wrong, foreign = 0, c.open_stream(other).read()
    for seed in seeds:
        bad = damage(data, other, np.random.default_rng(seed))
        for recover in (False, True) if seed % 4 == 0 else (False,):
            with contextlib.suppress(StreamError, InputError), c.open_stream(bad, recover=recover, limit=1 << 20) as s:
                y = s.read(on_error="mask")
                n = min(len(y), len(x))
                right = (y[:n] == x[:n]) if not np.ma.allequal(y[:n], foreign[:n]) else np.ones(1, bool)
                wrong += int((~np.ma.filled(right, True)).sum()) + int(np.ma.count(y[n:]))
                with contextlib.suppress(StreamError, InputError):
                    s.read()
    return wrong


def test_corruptions_give_no_wrong_sample(target_of_damage: tuple[bytes, bytes, np.ndarray]) -> None:
    assert survive(*target_of_damage, range(300)) == 0


@pytest.mark.slow
def test_corruptions_are_met_in_bounded_memory(target_of_damage: tuple[bytes, bytes, np.ndarray]) -> None:
    resource = pytest.importorskip("resource")
    survive(*target_of_damage, range(200))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert survive(*target_of_damage, range(1000, 3000)) == 0  # ten thousand: benchmark neural_robustness
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["nbmf-max", "nbmf-fast", "nbmf-bounded"]), st.data())
def test_payloads_that_no_encoder_wrote_are_survived(codec: str, data: st.DataObject) -> None:
    """Behind the checksums too: whatever a payload says, decoding gives the shape or an error of ours."""
    x = walk(120, 3)
    block = streams.RecordingBlock(codec)
    good = block.encode_block(x)
    payload = bytearray(good)
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 255)), max_size=6)):
        payload[at % len(payload)] = value
    cut = data.draw(st.integers(0, len(payload)))
    for bad in (bytes(payload), bytes(payload[:cut])):
        with contextlib.suppress(StreamError):
            assert block.decode_block(bad, x.shape, x.dtype).shape == x.shape


# ---- the same bytes and samples everywhere

CHECK = """
import hashlib, sys
from nbmf_research.coding.container import open_stream
from nbmf_research.neural.streams import _workers, encode_recording, open_nbmf
path, jobs = sys.argv[1], int(sys.argv[2])
with _workers(jobs) as executor, open_stream(path) as s:
    x = s.read(executor=executor)
encode_recording(open_nbmf(path), path + ".again", codec="nbmf-balanced", block_seconds=1.0, jobs=jobs)
print(hashlib.sha256(x.tobytes()).hexdigest(), hashlib.sha256(open_stream(path + ".again").read().tobytes()).hexdigest())
"""
SETTINGS = [
    {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "jobs": "1"},
    {"OMP_NUM_THREADS": "4", "NUMBA_NUM_THREADS": "4", "jobs": "2", "ATEN_CPU_CAPABILITY": "default"},
    {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "ATEN_CPU_CAPABILITY": "avx2", "jobs": "1"},
]


@pytest.mark.parametrize(
    "setting",
    [*SETTINGS[:2], pytest.param(SETTINGS[2], marks=pytest.mark.slow)],  # compiles everything for another processor
    ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items()),
)
def test_a_stream_decodes_alike_under_every_setting(tmp_path: Path, setting: dict[str, str]) -> None:
    import hashlib

    x, path = made(1500, 4), tmp_path / "a.nbmf"
    streams.encode_recording(x, path, codec="nbmf-balanced", block_seconds=1.0)
    environment = os.environ | {k: v for k, v in setting.items() if k != "jobs"}
    run = [sys.executable, "-c", CHECK, str(path), setting["jobs"]]
    out = subprocess.run(run, env=environment, capture_output=True, text=True, check=True, timeout=600).stdout
    assert out.split() == [hashlib.sha256(x.values.tobytes()).hexdigest()] * 2


def test_a_fresh_process_decodes_without_importing_us(tmp_path: Path) -> None:
    x = made(500, 2)
    streams.encode_recording(x, tmp_path / "a.nbmf")
    code = "import sys; from nbmf_research.coding.container import open_stream; s = open_stream(sys.argv[1]); assert 'nbmf_research.neural' not in sys.modules; print(int(s.read().astype('i8').sum()))"
    out = subprocess.run([sys.executable, "-c", code, tmp_path / "a.nbmf"], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == str(int(x.values.astype("i8").sum())), out.stderr


def test_the_bytes_do_not_depend_on_the_jobs() -> None:
    x = made(4000, 5)
    one = encoded(x, codec="nbmf-fast", block_seconds=0.5, groups=2)
    assert encoded(x, codec="nbmf-fast", block_seconds=0.5, groups=2, jobs=3) == one


def make_golden(path: Path) -> None:
    """Write the golden stream of `nbmf-max`: 600 samples of three channels in two groups; run by hand when the payload is final."""
    x = made(600, 3, units="uV", gain=0.195, native_bits=8, name="golden", gaps=[[300, 0.5]])
    path.parent.mkdir(exist_ok=True)
    streams.encode_recording(x, path, codec="nbmf-max", block_seconds=0.8, groups=2)


@pytest.mark.skipif(not (GOLDEN / "v1_neural_max.nbmf").exists(), reason="written when the payload is final")
def test_the_golden_stream_decodes() -> None:
    with c.open_stream(GOLDEN / "v1_neural_max.nbmf") as s:
        assert (s.read() == walk(600, 3)).all() and s.gaps == [(300, 0.5)] and s.verify().ok


# ---- the choice of block and group, on real recordings: python tests/neural/test_streams.py


def measure_blocks() -> None:
    """Print bytes against one block for all, for lengths of 2**16 .. 2**21 values, and for narrower groups."""
    from nbmf_research.neural.sets import find_set

    names = {"locust": "", "n1": "0", "ieeg": "", "eeg21": "S16", "eeg64_runs": "R05 R06"}
    block = streams.RecordingBlock("nbmf-max")

    def size(x: np.ndarray, n: int, width: int) -> int:
        parts = [x[a : a + n, g : g + width] for a in range(0, len(x), n) for g in range(0, x.shape[1], width)]
        return sum(len(block.encode_block(np.ascontiguousarray(p))) + 28 for p in parts)

    for name, chosen in names.items():
        items = [i for i in find_set(name).items() if i.split != "test"]
        some = [i for i in items if i.name in chosen.split() or i.name.startswith(chosen)][:7]
        x = np.concatenate([i.x.values for i in some])
        whole, width = size(x, len(x), x.shape[1]), x.shape[1]
        for k in range(16, 22):
            n = min((1 << k) // width, streams.BLOCK_SAMPLES)
            print(f"{name} {x.shape}: blocks of 2^{k}: {100 * (size(x, n, width) / whole - 1):+.2f} %", flush=True)
        for g in (32, 16, 8) if width == 64 else ():
            print(f"{name}: groups of {g}: {100 * (size(x, len(x), g) / whole - 1):+.2f} %", flush=True)


if __name__ == "__main__":
    make_golden(GOLDEN / "v1_neural_max.nbmf") if "golden" in sys.argv else measure_blocks()
