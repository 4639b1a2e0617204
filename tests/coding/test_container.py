"""The .nbmf container: round trips, golden streams, an independent decoder, damage, hostile input, crashes."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.coding import container as c
from nbmf_research.core import InputError, MissingDependencyError, NbmfError, StreamError

GOLDEN = Path(__file__).parent / "golden"


# An independent decoder, written from the format page alone (no import of the package) -------------------------------


KINDS = dict(zip(("int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"), "bBhHiIfd"))


def slow_crc(data: bytes, value: int = 0) -> int:
    value ^= 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def chunk(data: bytes, at: int, seed: int) -> tuple[str, bytes, bytes, int, int]:
    """Tag, head, body, checksum, end."""
    assert data[at] == 0x9D
    length, p = varint(data, at + 2)
    head = data[p + 1 : p + 1 + data[p]]
    p += 1 + data[p]
    check = slow_crc(data[at:p], seed)
    assert data[p : p + 2] == (check & 0xFFFF).to_bytes(2, "little")
    body = data[p + 2 : p + 2 + length]
    crc = slow_crc(body, check)
    assert data[p + 2 + length : p + 6 + length] == crc.to_bytes(4, "little")
    return chr(data[at + 1]), head, body, crc, p + 6 + length


def decode_samples(codec: str, body: bytes, n: int, width: int, dtype: str) -> list[list]:
    """Rows of samples, of the two codecs that the page defines."""
    kind = KINDS[dtype]
    if codec == "raw":
        flat = struct.unpack(f"<{n * width}{kind}", body)
        return [list(flat[i * width : (i + 1) * width]) for i in range(n)]
    flat = struct.unpack(f"<{n * width}{kind if kind in 'fd' else kind.upper()}", zlib.decompress(body))
    columns = [list(flat[i * n : (i + 1) * n]) for i in range(width)]
    if kind not in "fd":
        bits = 8 * struct.calcsize(kind)
        for column in columns:
            total = 0
            for i, v in enumerate(column):
                total = (total + v) % (1 << bits)
                column[i] = total - (1 << bits) if kind.islower() and total >> (bits - 1) else total
    return [list(row) for row in zip(*columns)]


def independent_decode(data: bytes, dictionary: bytes) -> tuple[dict, list[list], list[tuple[int, float]]]:
    """Header, rows of samples and gaps of a whole stream."""
    assert data[:6] == b"\x89NBMF\x01"
    tag, head, body, seed, begin = chunk(data, 6, slow_crc(data[:6]))
    header = json.loads(zlib.decompressobj(-15, zdict=dictionary).decompress(body))
    assert tag == "H" and not header.get("requires")
    length, crc = struct.unpack("<II", data[-12:-4])
    assert data[-4:] == b"\x9dEND"
    tag, head, body, index_crc, end = chunk(data, len(data) - 12 - length, seed)
    assert tag == "I" and end == len(data) - 12 and crc == slow_crc(struct.pack("<I", length), index_crc)
    index = zlib.decompress(body, -15)
    assert len(index) == varint(head, 0)[0]
    count, p = varint(index, 0)
    columns = []
    for _ in range(6):
        columns.append([])
        for _ in range(count):
            v, p = varint(index, p)
            columns[-1].append(v)
    crcs = struct.unpack_from(f"<{count}I", index, p)
    n_gaps, p = varint(index, p + 4 * count)
    gaps = []
    for _ in range(n_gaps):
        sample, p = varint(index, p)
        gaps.append((sample, struct.unpack_from("<d", index, p)[0]))
        p += 8
    assert p == len(index)

    names = header.get("channels", 1)
    n_channels = names if isinstance(names, int) else len(names)
    groups = header.get("groups", 0)
    if isinstance(groups, int):
        size = groups or n_channels
        groups = [list(range(a, min(a + size, n_channels))) for a in range(0, n_channels, size)]
    codecs = ["raw"] + [name for name, _ in header["codecs"]]
    rows: list[list] = []
    at, ends = begin, [0] * len(groups)
    for skip, size, lead, n, group, codec, crc in zip(*columns, crcs):
        tag, head, body, stored, end = chunk(data, at + skip, seed)
        assert tag == "B" and stored == crc and end == at + skip + size
        at = end
        flags, q = varint(head, 0)
        fields = []
        for _ in range(4):
            v, q = varint(head, q)
            fields.append(v)
        start = ends[group] + lead
        ends[group] = start + n
        assert fields == [start, n, group, codec]
        block = decode_samples(codecs[codec], body, n, len(groups[group]), header.get("dtype", "int16"))
        if flags & 1:
            kind = KINDS[header.get("dtype", "int16")]
            assert (
                slow_crc(b"".join(struct.pack(f"<{len(r)}{kind}", *r) for r in block))
                == struct.unpack_from("<I", head, q)[0]
            )
        while len(rows) < start + n:
            rows.append([None] * n_channels)
        for i, row in enumerate(block):
            for channel, v in zip(groups[group], row):
                rows[start + i][channel] = v
    return header, rows, gaps


# Golden streams: made once; they must decode for ever ---------------------------------------------------------------


def wave(n: int, channels: int, dtype: str) -> np.ndarray:
    """Samples by formula."""
    i, k = np.arange(n)[:, None], np.arange(channels)
    v = (i * i * 7 + i * k * 13 + k * 31) % 251 - 100 * (np.dtype(dtype).kind != "u")
    return (v / 8 if np.dtype(dtype).kind == "f" else v).astype(dtype)


ABOUT = {
    "v1_int16_one_channel": c.Metadata(19531.0, units="uV", gain=(0.195,), native_bits=10, name="clip"),
    "v1_uint16_groups_gap_append": c.Metadata(
        2000.5,
        ("A1", "A2", "B1", "µ-B2", "aux"),
        "mV",
        (0.5, 0.5, 0.25, 0.25, 1.0),
        (-1024.0,),
        12,
        ((0.0, 0.0, None), (20.0, 0.0, None), (0.0, 20.0, None), (20.0, 20.5, -3.0), (None, None, None)),
        1.25,
        "five",
        {"format": "made up", "stream": 3},
        {"numerator": [3], "denominator": [1]},
        {"id": "m-1", "sha256": "0" * 64},
        {"animal": {"name": "x", "weights": [1, 2.5]}},
    ),
    "v1_float32": c.Metadata(500.0, c.channel_names(3), "V"),
    "v1_float64_raw": c.Metadata(0.0),
    "v1_int8": c.Metadata(100.0, c.channel_names(2)),
    "v1_int32": c.Metadata(100.0, c.channel_names(2)),
    "v1_uint32": c.Metadata(100.0, c.channel_names(2)),
    "v1_uint8": c.Metadata(100.0, c.channel_names(2)),
}


def golden_samples(name: str) -> np.ndarray:
    m, dtype = ABOUT[name], name.split("_")[1]
    return wave(300, len(m.channels), dtype)


def make_golden(name: str, path: Path) -> None:
    """Write a golden stream; run by hand, once for each format version."""
    x, m = golden_samples(name), ABOUT[name]
    codecs = [] if name.endswith("raw") else [c.ZlibBlock(9)]
    groups = [[1, 0], [3, 2], [4]] if "groups" in name else None
    with c.create_stream(path, m, x.dtype, codecs=codecs, block_samples=128, groups=groups) as w:
        w.append(x[:200])
        w.append(x[200:250], gap=0.75 if "gap" in name else 0.0)
        if "append" not in name:
            w.append(x[250:])
    if "append" in name:
        with c.append_stream(path, block_samples=30) as w:
            w.append(x[250:], gap=2.5, codec=0)


@pytest.mark.parametrize("name", ABOUT)
def test_golden_streams_decode(name: str) -> None:
    path, x = GOLDEN / f"{name}.nbmf", golden_samples(name)
    assert path.stat().st_size < 10_000
    with c.open_stream(path) as s:
        y = s.read()
        assert y.dtype == x.dtype and (y == x).all()
        assert s.metadata == ABOUT[name]
        assert s.gaps == ([(200, 0.75), (250, 2.5)] if "gap" in name else [])
        assert s.verify().ok


@pytest.mark.parametrize("name", ABOUT)
def test_an_independent_decoder_reads_them(name: str) -> None:
    x = golden_samples(name)
    header, rows, gaps = independent_decode((GOLDEN / f"{name}.nbmf").read_bytes(), c.DICTIONARY)
    assert (np.array(rows).astype(x.dtype) == x).all()
    assert header.get("rate", 0) == ABOUT[name].sampling_rate and header.get("name", "") == ABOUT[name].name
    assert len(gaps) == (2 if "gap" in name else 0)


# Round trips --------------------------------------------------------------------------------------------------------


def samples(dtype: str, n: int, channels: int, seed: int, wild: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    d = np.dtype(dtype)
    if wild:
        return np.frombuffer(rng.bytes(n * channels * d.itemsize), d).reshape(n, channels).copy()
    return np.cumsum(rng.integers(0, 3, (n, channels)), axis=0).astype(d)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(c.DTYPES),
    st.lists(st.tuples(st.integers(0, 90), st.sampled_from([0.0, 0.0, 0.5, 1e6])), min_size=1, max_size=5),
    st.integers(1, 7),
    st.integers(1, 60),
    st.one_of(st.none(), st.integers(1, 9), st.permutations(range(7))),
    st.booleans(),
    st.integers(0, 9),
    st.integers(0, 5),
)
def test_what_is_written_is_read(dtype, pieces, n_channels, block, groups, wild, seed, cut) -> None:
    if isinstance(groups, list):
        order = [g for g in groups if g < n_channels]
        groups = [p for p in (order[:cut], order[cut:]) if p]
    m = c.Metadata(1000.0, c.channel_names(n_channels))
    parts = [samples(dtype, n, n_channels, seed + i, wild) for i, (n, _) in enumerate(pieces)]
    out = BytesIO()
    with c.create_stream(out, m, dtype, codecs=[c.ZlibBlock()], block_samples=block, groups=groups) as w:
        for part, (_, gap) in zip(parts, pieces):
            w.append(part, gap=gap)
    x = np.concatenate(parts)
    s = c.open_stream(out.getvalue())
    assert s.n_time == len(x) and s.dtype == x.dtype and s.read().tobytes() == x.tobytes()
    report = s.verify()
    assert report.ok and str(report).endswith("whole")
    if len(x):
        a, b = sorted(np.random.default_rng(seed).integers(0, len(x) + 1, 2))
        wanted = np.random.default_rng(seed).permutation(n_channels)[: cut + 1]
        assert s.read(a, b, wanted).tobytes() == np.ascontiguousarray(x[a:b, wanted]).tobytes()
    again = c.open_stream(out.getvalue()[:-3], recover=True)  # by scanning
    assert again.read().tobytes() == x.tobytes() and again.gaps == s.gaps and again.notes


numbers = st.floats(-1e200, 1e200)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | numbers | st.text(max_size=8),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_metadata_comes_back(data) -> None:
    n = data.draw(st.integers(1, 5))
    one_or_n = st.tuples(numbers) | st.tuples(*[numbers] * n).filter(lambda v: n == 1 or len(set(v)) > 1)
    xyz = st.tuples(*[st.none() | numbers] * 3)
    m = c.Metadata(
        data.draw(st.floats(0, 1e6)),
        tuple(data.draw(st.lists(st.text(max_size=9), min_size=n, max_size=n, unique=True))),
        data.draw(st.text(max_size=4)),
        data.draw(one_or_n),
        data.draw(one_or_n),
        data.draw(st.integers(0, 64)),
        data.draw(st.none() | st.tuples(*[xyz] * n)),
        data.draw(numbers),
        data.draw(st.text(max_size=50)),
        data.draw(st.dictionaries(st.text(max_size=9), st.text(max_size=5) | st.integers(-5, 10**9), max_size=3)),
        data.draw(st.none() | st.dictionaries(st.text(max_size=5), json_values, max_size=3)),
        data.draw(st.none() | st.fixed_dictionaries({"id": st.text(max_size=5), "sha256": st.text(max_size=64)})),
        data.draw(st.dictionaries(st.text(max_size=5).filter(lambda k: k not in c._DEFAULTS), json_values, max_size=3)),
    )
    assert c.open_stream(c.pack_stream(np.zeros((2, n), np.int16), m)).metadata == m


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_crc_agrees_with_googles(data, cut) -> None:
    assert c.crc32c(data[cut:], c.crc32c(data[:cut])) == google_crc32c.value(data) == slow_crc(data)


@given(st.floats(0, 4e9) | st.floats(0, 1))
def test_certificates_are_rounded_up_by_at_most_a_thousandth(v) -> None:
    stated = c.Certificate.unpack(c.Certificate(v, v, v).pack()).rmse
    assert v <= stated <= max(v * (1 + 2**-10), 2.0**-31)


def test_a_clip_pays_little() -> None:
    x = np.zeros((97_656, 1), np.int16)
    m = c.Metadata(19531.25, units="uV", gain=(0.195,), native_bits=10, name="0ab237b7-fb12-4687-afed-8d1e2070d621")

    class Nothing(c.ZlibBlock):
        name = "neural"

        def parameters(self):
            return {"codec": "nbmf-max"}

        def encode_block(self, x):
            return b""

        def decode_block(self, payload, shape, dtype):
            return np.zeros(shape, dtype)

    assert len(c.pack_stream(x, m, codecs=[Nothing()])) <= 150


def test_it_is_a_reader_of_recordings() -> None:
    from nbmf_research.neural.recordings import Reader, check_recording, positions, recording

    xyz = np.array([[0, 0, np.nan], [0, 20, np.nan], [np.nan] * 3])
    x = recording(
        wave(400, 3, "uint16"),
        1000.0,
        units="uV",
        gain=[0.5, 0.5, 1.0],
        offset=-3.0,
        native_bits=12,
        positions=xyz,
        t_start=2.0,
        name="r",
    )
    x.attrs["format"] = "made up"
    m = c.from_recording(x)
    assert m.source == {"format": "made up"} and m.offset == (-3.0,) and len(m.gain) == 3
    s = c.open_stream(c.pack_stream(x.values, m, codecs=[c.ZlibBlock()], block_samples=50))
    assert isinstance(s, Reader)
    before = s.bytes_read
    y = check_recording(recording(s, s.metadata.sampling_rate, **s.metadata.recording_options(), gaps=s.gaps))
    assert s.bytes_read == before
    part = y.isel(time=slice(100, 120)).sel(channel=["ch2"])
    assert (part.values == x.values[100:120, 2:]).all()
    assert np.array_equal(positions(y), positions(x), equal_nan=True)
    y.attrs["format"] = "made up"
    assert y.load().identical(x)


def test_random_access_reads_only_the_blocks_it_needs(tmp_path) -> None:
    x = samples("int16", 20_000, 8, 0, wild=True)
    with c.create_stream(tmp_path / "a.nbmf", c.Metadata(1000.0, c.channel_names(8)), block_samples=500, groups=2) as w:
        w.append(x)
    with c.open_stream(tmp_path / "a.nbmf") as s:
        opened = s.bytes_read
        assert opened < 3000  # of 320 kB
        assert (s.read(10_200, 10_300, [5]) == x[10_200:10_300, 5:6]).all()
        assert s.bytes_read - opened < 500 * 2 * 2 + 40  # one block of one group
        opened = s.bytes_read
        s.read(10_200, 10_200)
        for at in range(10_000, 10_500, 50):  # small steps decode a block once
            assert (s.read(at, at + 50, [4]) == x[at : at + 50, 4:5]).all()
        assert s.bytes_read == opened


def test_threads_write_and_read_the_same() -> None:
    x, m = samples("int16", 5000, 6, 3, wild=False), c.Metadata(1000.0, c.channel_names(6))
    options = {"codecs": [c.ZlibBlock()], "block_samples": 97, "groups": 2}
    with ThreadPoolExecutor(3) as pool:
        stream = c.pack_stream(x, m, executor=pool, **options)
        assert stream == c.pack_stream(x, m, **options)
        assert (c.open_stream(stream).read(executor=pool) == x).all()


# Codecs that fail -----------------------------------------------------------------------------------------------------


class Wrong(c.ZlibBlock):
    """Decodes the first sample wrong, from the second call on."""

    name = "zlib"
    calls = 0

    def decode_block(self, payload, shape, dtype):
        y = super().decode_block(payload, shape, dtype).copy()
        type(self).calls += 1
        y[0, 0] += type(self).calls > 1
        return y


def test_a_codec_that_lies_stops_the_writer(tmp_path) -> None:
    Wrong.calls = 1
    with (
        pytest.raises(NbmfError, match="does not give back"),
        c.create_stream(tmp_path / "a.nbmf", c.Metadata(1.0), codecs=[Wrong()]) as w,
    ):
        w.append(np.arange(100, dtype=np.int16))
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_that_computes_differently_is_noticed(monkeypatch) -> None:
    stream = c.pack_stream(np.arange(100, dtype=np.int16), c.Metadata(1.0), codecs=[c.ZlibBlock()], block_samples=100)
    Wrong.calls = 1
    monkeypatch.setitem(c.BLOCK_CODECS._factories, "zlib", Wrong)
    s = c.open_stream(stream)
    with pytest.raises(StreamError, match="computes differently"):
        s.read()
    assert s.read(on_error="mask").count() == 0 and len(s.verify().losses) == 1


def test_unknown_and_unavailable_codecs_are_named(monkeypatch) -> None:
    stream = c.pack_stream(np.arange(100, dtype=np.int16), c.Metadata(1.0), codecs=[c.ZlibBlock()])
    monkeypatch.delitem(c.BLOCK_CODECS._factories, "zlib")
    for on_error in ("raise", "mask"):
        with pytest.raises(StreamError, match="zlib"):
            c.open_stream(stream).read(on_error=on_error)

    def absent():
        raise MissingDependencyError("pip install it")

    monkeypatch.setitem(c.BLOCK_CODECS._factories, "zlib", absent)
    with pytest.raises(MissingDependencyError, match="pip install"):
        c.open_stream(stream).read()


def test_a_codec_comes_from_an_entry_point(monkeypatch) -> None:
    class Point:
        def load(self):
            c.BLOCK_CODECS._factories["late"] = c.ZlibBlock

    monkeypatch.setattr(
        c.packages, "entry_points", lambda group, name: [Point()] if (group, name) == (c.ENTRY_POINTS, "late") else []
    )
    assert isinstance(c.create_block_codec("late"), c.ZlibBlock)
    del c.BLOCK_CODECS._factories["late"]
    with pytest.raises(InputError, match="no block codec"):
        c.create_block_codec("later")


def test_what_does_not_shrink_is_stored_raw() -> None:
    x = samples("int16", 1000, 2, 0, wild=True)
    stream = c.pack_stream(x, c.Metadata(1.0, ("a", "b")), codecs=[c.ZlibBlock()], block_samples=500)
    s = c.open_stream(stream)
    assert s.info()["share"] == {"raw": 1.0} and len(stream) < x.nbytes + 150 and (s.read() == x).all()


# Wrong use --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "options"),
    [
        (c.Metadata(1.0, ()), {}),
        (c.Metadata(1.0, gain=(1.0, 2.0)), {}),
        (c.Metadata(1.0, extra={"rate": 3}), {}),
        (c.Metadata(1.0, extra={"x": float("nan")}), {}),
        (c.Metadata(1.0, extra={"x": b"bytes"}), {}),
        (c.Metadata(1.0), {"dtype": "int64"}),
        (c.Metadata(1.0), {"dtype": "complex64"}),
        (c.Metadata(1.0), {"groups": [[0, 1]]}),
        (c.Metadata(1.0), {"groups": -1}),
        (c.Metadata(1.0), {"block_samples": 0}),
        (c.Metadata(1.0), {"block_samples": 1 << 40}),
    ],
)
def test_what_does_not_fit_is_refused_before_a_file_is_made(metadata, options, tmp_path) -> None:
    with pytest.raises(InputError):
        c.create_stream(tmp_path / "a.nbmf", metadata, **options)
    assert list(tmp_path.iterdir()) == []


def test_wrong_samples_and_ranges_are_refused(tmp_path) -> None:
    w = c.create_stream(BytesIO(), c.Metadata(1.0))
    for x, options in (
        (np.zeros((3, 2), np.int16), {}),
        (np.zeros(3, np.int32), {}),
        (np.zeros(3, np.int16), {"codec": 1}),
        (np.zeros(3, np.int16), {"gap": -1.0}),
        (np.zeros(3, np.int16), {"gap": float("inf")}),
    ):
        with pytest.raises(InputError):
            w.append(x, **options)
    w.close()
    w.close()
    with pytest.raises(InputError, match="closed"):
        w.append(np.zeros(3, np.int16))
    s = c.open_stream(c.pack_stream(np.arange(5, dtype=np.int16), c.Metadata(1.0)))
    for arguments in ((3, 2), (0, 6), (-1, 2)):
        with pytest.raises(InputError):
            s.read(*arguments)
    with pytest.raises(InputError):
        s.read(channels=[1])
    with pytest.raises(InputError):
        s.read(on_error="ignore")
    for call in (lambda: c.open_stream(tmp_path / "none.nbmf"), lambda: c.append_stream(tmp_path / "none.nbmf")):
        with pytest.raises(InputError, match="cannot be opened"):
            call()


# Crashes ----------------------------------------------------------------------------------------------------------------


SCRIPT = """
import sys, numpy as np
from nbmf_research.coding import container as c
x = np.cumsum(np.random.default_rng(0).integers(-9, 10, (400_000, 2)), axis=0).astype(np.int16)
m = c.Metadata(1000.0, ("a", "b"), name="killed")
mode, path = sys.argv[1:]
w = c.append_stream(path) if mode == "append" else c.create_stream(path, m, codecs=[c.ZlibBlock()], block_samples=500, groups=1, resume=mode == "resume")
with w:
    print("start", w.n_time, flush=True)
    first = 0 if mode == "append" else w.n_time
    for i in range(first, len(x), 333):
        w.append(x[i : i + 333])
        w.flush() if i % 7 == 0 else None
        print(i, flush=True)
"""


def run_and_kill(mode: str, path: Path, lines: int) -> str:
    """Run the script, kill -9 it after so many lines; its first line."""
    with subprocess.Popen([sys.executable, "-c", SCRIPT, mode, str(path)], stdout=subprocess.PIPE, text=True) as p:
        first = p.stdout.readline()
        for _ in range(lines):
            p.stdout.readline()
        os.kill(p.pid, signal.SIGKILL)
    return first


def killed_samples() -> np.ndarray:
    return np.cumsum(np.random.default_rng(0).integers(-9, 10, (400_000, 2)), axis=0).astype(np.int16)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_kill_9_leaves_no_half_file_and_resume_goes_on(tmp_path) -> None:
    path = tmp_path / "a.nbmf"
    run_and_kill("fresh", path, 60)
    assert [p.name for p in tmp_path.iterdir()] == [".a.nbmf.part"]
    first = run_and_kill("resume", path, 60)
    assert int(first.split()[1]) > 0 and not path.exists()
    x = killed_samples()
    with c.create_stream(
        path,
        c.Metadata(1000.0, ("a", "b"), name="killed"),
        codecs=[c.ZlibBlock()],
        block_samples=500,
        groups=1,
        resume=True,
    ) as w:
        assert w.n_time > int(first.split()[1])
        w.append(x[w.n_time :])
    assert [p.name for p in tmp_path.iterdir()] == ["a.nbmf"]
    with c.open_stream(path) as s:
        assert s.verify().ok and (s.read() == x).all()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_kill_9_during_append_keeps_what_was_there(tmp_path) -> None:
    path, x = tmp_path / "a.nbmf", killed_samples()
    with c.create_stream(path, c.Metadata(1000.0, ("a", "b")), codecs=[c.ZlibBlock()], block_samples=500) as w:
        w.append(x[:1234])
    run_and_kill("append", path, 60)
    with pytest.raises(StreamError, match="recover=True"):
        c.open_stream(path)
    with c.open_stream(path, recover=True) as s:
        assert s.n_time > 1234 and (s.read() == np.r_[x[:1234], x][: s.n_time]).all()
    with pytest.raises(StreamError):
        c.append_stream(path)
    with c.append_stream(path, recover=True) as w:  # repair, and go on
        n = w.n_time
        w.append(x[:10])
    with c.open_stream(path) as s:
        assert s.verify().ok and (s.read() == np.r_[np.r_[x[:1234], x][:n], x[:10]]).all()


def test_every_cut_of_an_append_can_be_recovered(tmp_path) -> None:
    path, x = tmp_path / "a.nbmf", wave(200, 2, "int16")
    with c.create_stream(path, c.Metadata(1000.0, ("a", "b")), codecs=[c.ZlibBlock()], block_samples=40) as w:
        w.append(x[:100])
    old = path.read_bytes()
    with c.append_stream(path, block_samples=25) as w:
        w.append(x[100:])
    new = path.read_bytes()
    assert new.startswith(old)
    assert (c.open_stream(old).read() == x[:100]).all()
    for cut in range(len(old) + 1, len(new)):
        with pytest.raises(StreamError):
            c.open_stream(new[:cut])
        y = c.open_stream(new[:cut], recover=True).read(on_error="mask")
        assert y[:100].count() == 200 and (y.compressed() == x[: len(y)][~y.mask]).all()


def test_a_resumed_stream_has_the_bytes_of_an_uninterrupted_one(tmp_path) -> None:
    x, m = np.random.default_rng(3).integers(-99, 99, (150_000, 2)).astype(np.int16), c.Metadata(1000.0, ("a", "b"))
    options = {"codecs": [c.ZlibBlock(1)], "block_samples": 1000, "groups": 1}
    with c.create_stream(tmp_path / "whole.nbmf", m, **options) as w:
        w.append(x)
    path = tmp_path / "parts.nbmf"
    for stop in (0, 700, 10_500, 148_000):
        with suppress(KeyError), c.create_stream(path, m, resume=True, **options) as w:
            w.append(x[w.n_time : stop])
            raise KeyError
    with c.create_stream(path, m, resume=True, **options) as w:
        assert w.n_time == 148_000
        w.append(x[w.n_time :])
    whole = (tmp_path / "whole.nbmf").read_bytes()
    assert path.read_bytes() == whole and whole.count(b"\x9dH") > 1  # with a copy of the header


@pytest.mark.parametrize("gaps", [((0, 1.0),), ((5, 1.0), (5, 2.0)), ((5, -1.0),), ((5, float("inf")),)])
def test_gaps_that_make_no_sense_are_refused(gaps) -> None:
    with pytest.raises(InputError, match="gaps"):
        c.pack_stream(np.zeros(9, np.int16), c.Metadata(1.0, gaps=gaps))


def test_gaps_of_the_header_and_of_blocks_are_one_list() -> None:
    out = BytesIO()
    with c.create_stream(out, c.Metadata(1.0, gaps=((3, 0.0), (7, 2.5), (90, 1.0))), block_samples=100) as w:
        w.append(np.zeros(10, np.int16))
        w.append(np.zeros(10, np.int16), gap=4.0)
    with c.open_stream(out.getvalue()) as s:
        assert s.gaps == [(3, 0.0), (7, 2.5), (10, 4.0)] and s.info()["n_blocks"] == 2
        assert s.info()["gaps"] == [[3, 0.0], [7, 2.5], [10, 4.0]] and s.metadata.gaps[-1] == (90, 1.0)


def test_resume_refuses_another_recording(tmp_path) -> None:
    path = tmp_path / "a.nbmf"
    with suppress(KeyError), c.create_stream(path, c.Metadata(1000.0, name="a"), block_samples=10, resume=True) as w:
        w.append(np.arange(100, dtype=np.int16))
        raise KeyError
    assert (tmp_path / ".a.nbmf.part").exists()
    with pytest.raises(InputError, match="other settings"):
        c.create_stream(path, c.Metadata(1000.0, name="b"), block_samples=10, resume=True)
    (tmp_path / ".a.nbmf.part").write_bytes(b"\x89NBM")  # killed within the header
    with c.create_stream(path, c.Metadata(1000.0, name="b"), resume=True) as w:
        assert w.n_time == 0
        w.append(np.arange(7, dtype=np.int16))
    assert c.open_stream(path).n_time == 7


def test_two_writers_of_one_file_are_refused(tmp_path) -> None:
    pytest.importorskip("fcntl")
    with c.create_stream(tmp_path / "a.nbmf", c.Metadata(1.0)) as w:
        w.append(np.zeros(4, np.int16))
        with pytest.raises(InputError, match="another process"):
            c.create_stream(tmp_path / "a.nbmf", c.Metadata(1.0))
    assert c.open_stream(tmp_path / "a.nbmf").n_time == 4


def test_a_target_that_cannot_be_written_is_refused_at_once(tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for target in ("folder", "file/a.nbmf"):
        with pytest.raises(InputError, match=r"folder|cannot be written"):
            c.create_stream(tmp_path / target, c.Metadata(1.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch) -> None:
    def full(self, data):
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(OSError, match="No space"),
        c.create_stream(tmp_path / "a.nbmf", c.Metadata(1.0), block_samples=10) as w,
    ):
        monkeypatch.setattr(c._Log, "write", full)
        w.append(np.zeros(100, np.int16))
    assert list(tmp_path.iterdir()) == []


# Damage -----------------------------------------------------------------------------------------------------------------


def built() -> tuple[bytes, np.ndarray, bytes]:
    """A stream of 2 x 12 blocks with a gap and an append, its samples, and another one with the same header."""
    x = samples("int16", 600, 4, 1, wild=False)
    m = c.Metadata(1000.0, ("a", "b", "c", "d"), "uV", name="x")
    streams = []
    for data in (x, x[::-1].copy()):
        out = BytesIO()
        with c.create_stream(out, m, codecs=[c.ZlibBlock()], block_samples=50, groups=2) as w:
            w.append(data[:300])
            w.append(data[300:], gap=1.0)
        streams.append(out.getvalue())
    return streams[0], x, streams[1]


def test_the_report_names_what_is_lost() -> None:
    stream, x, _ = built()
    opening = c.open_stream(stream)._blocks.opening
    frames = [f for f, _ in c._scan(c._Source(stream), opening.seed, opening.begin)]
    third = [f for f in frames if f.tag == "B"][5]  # samples 100..150 of the second group
    for at in (third.body_at + 3, third.at + 4, third.at, third.end - 1):
        bad = stream[:at] + bytes([stream[at] ^ 16]) + stream[at + 1 :]
        for data, recover in ((bad, False), (bad[:-1], True)):
            s = c.open_stream(data, recover=recover)
            report = s.verify()
            (loss,) = report.losses
            assert (
                (loss.start, loss.stop, loss.channels) == (100, 150, (2, 3))
                and not report.ok
                and "100..150" in str(report)
            )
            y = s.read(on_error="mask")
            assert y.mask[100:150, 2:].all() and y.mask.sum() == 100 and (y.compressed() == x[~y.mask]).all()
            assert (s.read(channels=[0, 1]) == x[:, :2]).all() and (s.read(150)[:, 2] == x[150:, 2]).all()
            with pytest.raises(StreamError, match=r"100\.\.150"):
                s.read()


def test_a_damaged_header_is_replaced_by_its_copy() -> None:
    x = samples("int16", 60_000, 2, 0, wild=True)
    stream = c.pack_stream(x, c.Metadata(1000.0, ("a", "b"), name="copied"), block_samples=5000)
    for at in (0, 5, 8, 20, 30):
        bad = stream[:at] + bytes([stream[at] ^ 255]) + stream[at + 1 :]
        with pytest.raises(StreamError):
            c.open_stream(bad)
        s = c.open_stream(bad, recover=True)
        assert s.metadata.name == "copied" and (s.read() == x).all() and "copy" in s.notes[0]
    with pytest.raises(StreamError, match="nothing can be read"):
        c.open_stream(bad[:200_000], recover=True)


def corrupt(rng: random.Random, good: bytes, other: bytes) -> bytes:
    """One random corruption: flips, cuts, splices, huge numbers, zeros, moved or doubled pieces."""
    n, data, kind = len(good), bytearray(good), rng.randrange(9)
    a, b = sorted((rng.randrange(n), rng.randrange(n)))
    short = min(b, a + rng.randrange(1, 40))
    if kind <= 1:
        for _ in range(rng.choice([1, 1, 1, 2, 3, 8, 40])):
            data[rng.randrange(n)] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del data[a:]
    elif kind == 3:
        at = rng.choice([6, n - 12, n - 60, a])
        at = max(0, at + rng.randrange(-4, 40))
        data[at : at + rng.randrange(1, 9)] = bytes(
            rng.choice([0xFF, 0x7F, 0x80, 0]) for _ in range(rng.randrange(1, 9))
        )
    elif kind == 4:
        data[a:short] = bytes(short - a)
    elif kind == 5:
        del data[a:short]
    elif kind == 6:
        data[a:a] = good[a:b]
    elif kind == 7:
        data = bytearray(good[:a] + other[rng.choice([a, b]) :])
    else:
        data[a:b] = other[a:b] if rng.random() < 0.5 else rng.randbytes(b - a)
    return bytes(data)


def check_corruption(data: bytes, good: bytes, other: bytes, x: np.ndarray) -> str:
    """Strictly opened: right or refused. Recovered: what is not masked is right."""
    outcome = "refused"
    try:
        s = c.open_stream(data)
        y = s.read(on_error="mask")
        s.verify(), s.info(blocks=True)
        right = x if s._blocks.opening.chunk in good else x[::-1]
        assert (
            y.shape == x.shape
            and (y.compressed() == right[~y.mask]).all()
            and s.metadata.channels == ("a", "b", "c", "d")
        )
        outcome = "masked" if y.mask.any() else "right"
    except StreamError:
        pass
    try:
        s = c.open_stream(data, recover=True)
        y = s.read(on_error="mask")
        s.verify()
        n = min(len(y), len(x))
        right = x if s._blocks.opening.chunk in good else x[::-1]
        assert y[n:].count() == 0 and (y[:n].compressed() == right[:n][~y.mask[:n]]).all()
        outcome += "/recovered"
    except StreamError:
        outcome += "/refused"
    return outcome


def corruptions(count: int, seed: int) -> dict[str, int]:
    good, x, twin = built()
    stranger = c.pack_stream(
        x[::-1].copy(),
        c.Metadata(1000.0, ("a", "b", "c", "d"), "uV", name="y"),
        codecs=[c.ZlibBlock()],
        block_samples=50,
        groups=2,
    )
    rng, outcomes = random.Random(seed), {}
    for i in range(count):
        other = (twin, stranger)[i % 2]
        data = corrupt(rng, good, other)
        if data == good:
            continue
        outcome = check_corruption(data, good, other, x)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


def test_random_corruptions() -> None:
    outcomes = corruptions(600, 0)
    assert (
        sum(v for k, v in outcomes.items() if "recovered" in k) > 100
        and sum(v for k, v in outcomes.items() if "masked" in k) > 30
    )


@pytest.mark.slow
def test_ten_thousand_random_corruptions() -> None:
    outcomes = corruptions(10_000, 1)
    print(outcomes)


def test_memory_is_bounded_under_corruption() -> None:
    good, x, twin = built()
    check_corruption(good[:-1], good, twin, x)
    rng = random.Random(5)
    tracemalloc.start()
    for _ in range(150):
        check_corruption(corrupt(rng, good, twin), good, twin, x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * x.nbytes + (1 << 21)  # the search window is 1 MiB


# Hostile: checksums right, content not -----------------------------------------------------------------------------------


def forge(
    header: dict | bytes,
    blocks: list[tuple[bytes, bytes]] = (),
    index: bytes | None = None,
    *,
    size: int | None = None,
    version: int = 1,
) -> bytes:
    """A stream with right checksums and any content; blocks are (head, body)."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    preamble = c.MAGIC + bytes([version])
    head = c._chunk(
        b"H",
        c.varint(len(text) if size is None else size) + bytes(4),
        c._deflate(text, c.DICTIONARY),
        c.crc32c(preamble),
    )
    seed, out, rows = struct.unpack("<I", head[-4:])[0], preamble + head, []
    for b, body in blocks:
        data = c._chunk(b"B", b, body, seed)
        with suppress(StreamError):
            at = c.Block.unpack(b)
            rows.append((len(out), len(data), at.start, at.n, at.group, at.codec, struct.unpack("<I", data[-4:])[0]))
        out += data
    raw = c._pack_index(c._Table.of(rows, {}), len(preamble + head)) if index is None else index
    chunk_ = c._chunk(b"I", c.varint(len(raw)), c._deflate(raw, b""), seed)
    length = struct.pack("<I", len(chunk_))
    return out + chunk_ + length + struct.pack("<I", c.crc32c(length, struct.unpack("<I", chunk_[-4:])[0])) + c.END


HEADER = {"codecs": [["zlib", {}]], "rate": 1000}
HOSTILE_HEADERS = {
    "no JSON": b"{",
    "not an object": b"[]",
    "not UTF-8": b"\xff\xfe",
    "nested": b"[" * 100_000,
    "nested in an object": b'{"x":' * 50_000,
    "NaN": b'{"codecs":[],"rate":NaN}',
    "huge number": b'{"codecs":[],"rate":' + b"9" * 10_000 + b"}",
    "no codecs": {"rate": 1},
    "codecs": HEADER | {"codecs": [["zlib"]]},
    "codec parameters": HEADER | {"codecs": [["zlib", {"command": "rm"}]]},
    "codec name": HEADER | {"codecs": [["__import__('os')", {}]]},
    "channels": HEADER | {"channels": 10**9},
    "channels of another type": HEADER | {"channels": {"a": 1}},
    "channel names": HEADER | {"channels": [1, 2]},
    "no channels": HEADER | {"channels": []},
    "true channels": HEADER | {"channels": True},
    "type": HEADER | {"dtype": "object"},
    "structured type": HEADER | {"dtype": ["O"]},
    "rate": HEADER | {"rate": "fast"},
    "infinite rate": b'{"codecs":[["zlib",{}]],"rate":1e999}',
    "gain": HEADER | {"gain": [1, 2, 3]},
    "gains": HEADER | {"gain": [[1]]},
    "positions": HEADER | {"xyz": [[1, 2]]},
    "positions of text": HEADER | {"xyz": [["a", "b", "c"]]},
    "group size": HEADER | {"groups": 10**12},
    "groups": HEADER | {"groups": [[0], [0]]},
    "groups of text": HEADER | {"groups": [["a"]]},
    "groups of nothing": HEADER | {"groups": [[0], []]},
    "groups of lists": HEADER | {"groups": [0]},
    "source": HEADER | {"source": "here"},
    "requires": HEADER | {"requires": ["time-travel"]},
    "requires text": HEADER | {"requires": "time-travel"},
}
ONE = (c.Block(0, 4, 0, 1).pack(), zlib.compress(b"\0\0\1\0\1\0\1\0"))


def test_the_forge_makes_streams() -> None:
    assert c.open_stream(forge(HEADER, [ONE])).read()[:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", HOSTILE_HEADERS)
def test_hostile_headers_are_refused(name: str) -> None:
    tracemalloc.start()
    with pytest.raises(StreamError):
        c.open_stream(forge(HOSTILE_HEADERS[name], [ONE])).read()
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()


def test_versions_and_features_are_named() -> None:
    with pytest.raises(StreamError, match="version 7"):
        c.open_stream(forge(HEADER, [ONE], version=7))
    with pytest.raises(StreamError, match="time-travel"):
        c.open_stream(forge(HOSTILE_HEADERS["requires"], [ONE]))
    assert c.open_stream(forge(HEADER | {"later": [1]}, [ONE])).metadata.extra == {"later": [1]}


def test_bombs_are_refused_in_little_memory() -> None:
    big = b'{"x":"' + b" " * (1 << 24) + b'"}'
    huge = c.Block(0, 1 << 40, 0, 1).pack()
    wide = c.Block(0, 200_000_000, 0, 1).pack()
    bomb = zlib.compress(bytes(400_000_000), 9)
    streams = [
        forge(big),
        forge(HEADER, size=1 << 40),
        forge(HEADER, [(huge, b"x")]),
        forge(HEADER, [(wide, b"x" * 60)]),
        forge(HEADER, [(c.Block(0, 4, 0, 1).pack(), bomb)]),
        forge(HEADER, [(c.Block(0, 4, 0, 0).pack(), b"x")]),
        forge(HEADER, [(c.Block(5, 4, 7, 0).pack(), b"x" * 8)]),
        forge(HEADER, [(c.Block(5, 4, 0, 9).pack(), b"x" * 8)]),
        forge(HEADER, [(b"\xff" * 20, b"x")], index=c.varint(1) + b"\x00\x30\x00\x04\x00\x01" + bytes(5)),
        forge(HEADER, index=c.varint(2**50)),
        forge(HEADER, index=bytes(10)),
        forge(HEADER, index=b"\xff" * 30),
        forge(HEADER, index=c.varint(1) + b"".join(map(c.varint, (0, 30, 2**55, 2**55, 0, 1))) + bytes(5)),
        forge(HEADER, index=c.varint(1) + b"".join(map(c.varint, (2**55, 30, 0, 1, 0, 1))) + bytes(5)),
        forge(HEADER, [ONE], index=c.varint(0) + c.varint(2**50)),
    ]
    for i, stream in enumerate(streams):
        tracemalloc.start()
        for recover in (False, True):
            with suppress(StreamError):
                s = c.open_stream(stream, recover=recover, limit=1 << 20)
                assert s.n_time in (0, 4, 9) or i in (2, 3), i
                for on_error in ("mask", "raise"):
                    with suppress(StreamError):
                        y = s.read(on_error=on_error)
                        assert np.ma.count(y) == 0 or (i == 14 and recover), i
        assert tracemalloc.get_traced_memory()[1] < 40_000_000 + 5 * len(stream), i
        tracemalloc.stop()


@settings(deadline=None, max_examples=75)
@given(st.binary(max_size=40), st.binary(max_size=60), st.binary(max_size=60), st.booleans())
def test_any_content_under_right_checksums_is_survived(head, body, index, own_index) -> None:
    stream = forge(HEADER, [ONE, (head, body)], index if own_index else None)
    for recover in (False, True):
        with suppress(StreamError):
            s = c.open_stream(stream, recover=recover, limit=1 << 16)
            s.verify(), s.info(blocks=True)
            s.read(on_error="mask")


def test_searching_a_stream_full_of_markers_is_bounded() -> None:
    stream = c.pack_stream(np.zeros(10, np.int16), c.Metadata(1.0))
    seed = c.open_stream(stream)._blocks.opening.seed
    frame = bytes([c.MARK]) + b"B" + c.varint(1 << 17) + bytes([0])
    frame += struct.pack("<H", c.crc32c(frame, seed) & 0xFFFF)
    hostile = stream[:40] + frame * 20_000
    start = time.process_time()
    with pytest.raises(StreamError, match="too damaged"):
        c.open_stream(hostile, recover=True)
    assert time.process_time() - start < 20


if __name__ == "__main__":
    for name in ABOUT:
        make_golden(name, GOLDEN / f"{name}.nbmf")
