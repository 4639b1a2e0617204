"""The form of a recording, lazy reading, opening, the lattice, and our own files."""

import json
import os
import wave
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nbmf_research.core import InputError
from nbmf_research.neural import recordings as module
from nbmf_research.neural.recordings import (
    SAMPLE_TYPES,
    ArrayReader,
    H5Reader,
    Stream,
    blocks,
    check_recording,
    crop,
    describe,
    find_lattice,
    from_codes,
    list_streams,
    open_recording,
    physical,
    positions,
    recording,
    register_reader,
    save_recording,
    times,
    to_codes,
    with_native_bits,
    with_positions,
)

DATA = os.environ.get("NBMF_DATA_DIR")


@pytest.fixture
def neural_data() -> Path:
    if not DATA:
        pytest.skip("NBMF_DATA_DIR is not set")
    return Path(DATA) / "neural"


@dataclass
class Counting:
    """A reader that notes what it was asked for; sample i of channel c is 100 * i + c."""

    n_time: int = 1000
    n_channels: int = 5
    dtype: np.dtype = field(default_factory=lambda: np.dtype(">i4"))
    calls: list = field(default_factory=list)

    def read(self, start: int, stop: int, channels: np.ndarray) -> np.ndarray:
        self.calls.append((start, stop, channels.tolist()))
        return (100 * np.arange(start, stop)[:, None] + channels).astype(self.dtype)


# -- form ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SAMPLE_TYPES)
def test_raw_samples_are_kept(dtype):
    raw = np.arange(12).reshape(6, 2).astype(dtype)
    x = recording(raw, 100, gain=[2, 3], offset=-1, units="mV", channels=["a", "b"])
    assert x.dtype == dtype and (x.values == raw).all() and x.dims == ("time", "channel")
    assert (physical(x).values == raw.astype(float) * [2, 3] - 1).all()
    assert x.sel(channel="b").gain.item() == 3


def test_one_dimension_is_one_channel():
    assert recording([1.0, 2.0], 10).shape == (2, 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sampling_rate": 0}, "sampling rate"),
        ({"sampling_rate": np.nan}, "sampling rate"),
        ({"gain": [1, 2, 3]}, "gain has the shape"),
        ({"gain": 0}, "no gain may be 0"),
        ({"offset": np.inf}, "finite"),
        ({"channels": ["a"]}, "1 channel names for 2"),
        ({"channels": ["a", "a"]}, "differ"),
        ({"positions": [[1, 2]]}, "positions have the shape"),
        ({"native_bits": 65}, "native_bits"),
        ({"units": ""}, "units"),
        ({"gaps": [(0, 1.0)]}, "gaps must rise"),
        ({"gaps": [(4, 1.0), (3, 1.0)]}, "gaps must rise"),
        ({"data": np.zeros((2, 2, 2))}, "shape"),
        ({"data": np.zeros((0, 2))}, "at least one sample"),
        ({"data": np.zeros((5, 2), np.int64)}, "int64"),
        ({"data": np.zeros((5, 2), complex)}, "complex128"),
    ],
)
def test_what_does_not_fit_is_one_error(options, says):
    with pytest.raises(InputError, match=says):
        recording(**({"data": np.zeros((5, 2)), "sampling_rate": 10} | options))


def test_check_names_what_is_missing():
    x = recording(np.zeros((3, 2)), 10)
    with pytest.raises(InputError, match="gain"):
        check_recording(x.drop_vars("gain"))
    with pytest.raises(InputError, match="DataArray"):
        check_recording(x.values)
    assert check_recording(x) is x


def test_positions_follow_their_channels():
    x = with_positions(recording(np.zeros((3, 3)), 10), [[1, 2], [3, 4], [5, 6]])
    assert positions(x.isel(channel=[2, 0]))[:, :2].tolist() == [[5, 6], [1, 2]]
    assert np.isnan(positions(x)[:, 2]).all()


# -- time ------------------------------------------------------------------------------------------------------------


@st.composite
def gapped(draw):
    n = draw(st.integers(1, 60))
    at = sorted(draw(st.sets(st.integers(1, n - 1), max_size=4))) if n > 1 else []
    gaps = [(i, draw(st.floats(0, 5))) for i in at]
    return recording(np.arange(n, dtype=np.int16), 10, gaps=gaps, t_start=draw(st.floats(-5, 5)))


@given(gapped(), st.data())
def test_crop_keeps_times(x, data):
    start = data.draw(st.integers(0, x.sizes["time"] - 1))
    stop = data.draw(st.integers(start + 1, x.sizes["time"]))
    part = check_recording(crop(x, start, stop))
    assert np.allclose(times(part), times(x)[start:stop])
    assert part.values[:, 0].tolist() == list(range(start, stop))


@given(gapped(), st.floats(0.1, 3))
@settings(deadline=None)
def test_blocks_cover_everything_and_span_no_gap(x, seconds):
    parts = list(blocks(x, seconds))
    assert np.concatenate([p.values for p in parts]).tolist() == x.values.tolist()
    assert np.allclose(np.concatenate([times(p) for p in parts]), times(x))
    assert all(p.attrs["gaps"] == [] and p.sizes["time"] <= round(seconds * 10) for p in parts)


def test_bad_ranges():
    x = recording(np.zeros(10), 10)
    with pytest.raises(InputError, match="lie inside"):
        crop(x, 5, 11)
    with pytest.raises(InputError, match="no sample"):
        next(blocks(x, 0.01))


# -- laziness --------------------------------------------------------------------------------------------------------

index = st.one_of(
    st.slices(40),
    st.integers(-40, 39),
    st.lists(st.integers(0, 39), max_size=6).map(lambda v: np.array(v, np.intp)),
)
channel_index = st.one_of(st.slices(5), st.integers(-5, 4), st.lists(st.integers(0, 4), min_size=1, max_size=4))


@given(index, channel_index, st.integers(1, 30))
@settings(deadline=None, max_examples=100)
def test_lazy_indexing_is_numpy_indexing(time, channel, window):
    reader = Counting(n_time=40)
    full = reader.read(0, 40, np.arange(5))
    lazy = recording(reader, 10)
    lazy.variable._data.array.window = window
    got = lazy.isel(time=time, channel=channel)
    want = full[time, :][..., channel] if not isinstance(time, int) else full[time][channel]
    assert got.values.tolist() == np.asarray(want).tolist()


def test_points_are_read_as_numpy_reads_them():
    full = Counting(n_time=40).read(0, 40, np.arange(5))
    where = xr.DataArray([3, 39, 0], dims="point"), xr.DataArray([0, 4, 1], dims="point")
    assert (
        recording(Counting(n_time=40), 10).isel(time=where[0], channel=where[1]).values.tolist()
        == full[[3, 39, 0], [0, 4, 1]].tolist()
    )


def test_a_slice_reads_only_itself():
    reader = Counting(n_time=10**9)
    x = recording(reader, 1000)
    part = x.isel(time=slice(500, 600)).isel(time=slice(10, 20), channel=slice(1, 3))
    assert reader.calls == []
    assert part.values[0].tolist() == [51001, 51002] and part.dtype == np.dtype("=i4")
    assert reader.calls == [(510, 520, [1, 2])]


def test_strided_reads_hold_one_window():
    reader = Counting(n_time=10**9)
    recording(reader, 1000).isel(time=slice(0, 10**9, 10**8)).load()
    assert len(reader.calls) == 10 and all(b - a == 1 for a, b, _ in reader.calls)


def test_blocks_read_one_piece_at_a_time():
    reader = Counting()
    stream = blocks(recording(reader, 100), 1.0)
    next(stream)
    assert reader.calls == [(0, 100, [0, 1, 2, 3, 4])]
    assert sum(1 for _ in stream) == 9


def test_a_reader_that_fails_is_an_input_error():
    @dataclass
    class Short(Counting):
        def read(self, start, stop, channels):
            if start:
                raise OSError("disk gone")
            return super().read(start, stop - 1, channels)

    x = recording(Short(), 100)
    with pytest.raises(InputError, match="truncated or changed"):
        x.isel(time=slice(0, 5)).load()
    with pytest.raises(InputError, match="disk gone") as e:
        x.isel(time=slice(3, 5)).load()
    assert isinstance(e.value.__cause__, OSError)


# -- opening ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def formats(monkeypatch, tmp_path):
    """A format whose file is JSON: a list of streams (name, t_start, values) with other fields."""
    monkeypatch.setattr(module, "READERS", module.Registry("recording format"))
    monkeypatch.setattr(module, "_FORMATS", {})
    monkeypatch.setattr(module, "READER_MODULES", ("nbmf_research.neural.no_such_module",))

    @register_reader("json", suffixes=(".toy",))
    def open_json(path: Path, scale: int = 1) -> list[Stream]:
        rows = json.loads(path.read_text())
        return [
            Stream(n, ArrayReader(scale * np.array(v, np.int16)), 10.0, t_start=t, segment=i, **more)
            for i, (n, t, v, more) in enumerate(rows)
        ]

    def write(*rows, name="a.toy"):
        file = tmp_path / name
        file.write_text(json.dumps([[*r, {}][:4] for r in rows]))
        return file

    return write


def test_several_streams_are_listed(formats):
    file = formats(("ap", 0, [1, 2]), ("lfp", 0, [3]), ("clock", 0, [9], {"neural": False}))
    with pytest.raises(InputError, match=r"(?s)several streams.*'ap'.*'lfp'"):
        open_recording(file)
    x = open_recording(file, stream="lfp", scale=2)
    assert x.values.tolist() == [[6]] and x.attrs["stream"] == "lfp" and x.attrs["format"] == "json" and x.name is None
    assert [s.stream for s in list_streams(file)] == ["ap", "lfp", "clock"] and "2 samples" in str(
        list_streams(file)[0]
    )
    with pytest.raises(InputError, match="no stream 'apx'"):
        open_recording(file, stream="apx")


def test_one_neural_stream_needs_no_name(formats):
    file = formats(("ap", 0, [1, 2]), ("clock", 0, [9], {"neural": False}))
    assert open_recording(file).attrs["stream"] == "ap" and open_recording(file, stream="clock").values.tolist() == [
        [9]
    ]
    assert open_recording(formats(("clock", 0, [9], {"neural": False}))).attrs["stream"] == "clock"


def test_segments_are_joined_with_their_gaps(formats):
    file = formats(("a", 5.0, [1, 2, 3], {"gaps": [[1, 0.5]]}), ("a", 6.0, [4, 5]), ("a", 0.0, [6]))
    x = open_recording(file)
    assert x.values[:, 0].tolist() == [1, 2, 3, 4, 5, 6] and x.attrs["segment"] == -1 and x.attrs["t_start"] == 5
    assert np.allclose(x.attrs["gaps"], [[1, 0.5], [3, 0.2], [5, 0.0]])
    assert x.isel(time=slice(2, 4)).values[:, 0].tolist() == [3, 4]
    assert x.isel(time=slice(3, 3)).shape == (0, 1)
    assert open_recording(file, segment=1).attrs["segment"] == 1
    with pytest.raises(InputError, match="no segment 7"):
        open_recording(file, segment=7)


def test_segments_that_differ_are_not_joined(formats):
    file = formats(("a", 0, [1]), ("a", 1, [2], {"gain": 2.0}))
    with pytest.raises(InputError, match="differ in rate"):
        open_recording(file)
    assert open_recording(file, segment=1).gain.item() == 2


def test_names_are_made_different(formats):
    x = open_recording(formats(("a", 0, [[1, 2, 3]], {"channels": ["e", "e", "f"]})))
    assert x.channel.values.tolist() == ["e", "e#2", "f"]


@pytest.mark.parametrize("content", ["", "{", '[["a", 0, "text"]]', "[]", '[["a", 0, []]]', '[["a", 0, [[]]]]', "7"])
def test_whatever_a_format_raises_is_one_error(formats, content, tmp_path):
    file = tmp_path / "bad.toy"
    file.write_text(content)
    with pytest.raises(InputError, match=r"bad\.toy: ") as e:
        open_recording(file)
    assert "\n" not in str(e.value)


def test_options_and_formats_are_checked(formats, tmp_path):
    file = formats(("a", 0, [1]))
    with pytest.raises(InputError, match=r"options of the format 'json': scale"):
        open_recording(file, scal=2)
    with pytest.raises(InputError, match="did you mean 'json'"):
        open_recording(file, format="jsn")
    with pytest.raises(InputError, match="no such file"):
        open_recording(tmp_path / "gone.toy")
    with pytest.raises(InputError, match=r"no recording format is known for \.xyz"):
        open_recording(formats(("a", 0, [1]), name="a.xyz"))
    with pytest.raises(InputError, match="such a folder"):
        open_recording(tmp_path)


def test_sniffing_decides_between_suffixes(formats):
    calls = []
    for name, suffixes, sniff in (
        ("plain", (".dat",), None),
        ("mine", (".dat",), lambda p: b"mine" in p.read_bytes()),
        ("broken", (".dat",), lambda p: 1 / 0),
        ("any", (), lambda p: b"any" in p.read_bytes()),
        ("last", (".end",), lambda p: False),
    ):
        register_reader(name, suffixes, sniff)(
            lambda path, name=name: calls.append(name) or [Stream("s", ArrayReader(np.zeros(3)), 1.0)]
        )
    for content, suffix in (("mine", ".dat"), ("other", ".dat"), ("any", ".xyz"), ("", ".end")):
        file = formats(name=f"f{suffix}")
        file.write_text(content)
        open_recording(file)
    assert calls == ["mine", "plain", "any", "last"]


def test_a_broken_reader_module_is_not_hidden(monkeypatch, tmp_path):
    (tmp_path / "broken_readers.py").write_text("import module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(module, "READER_MODULES", ("broken_readers",))
    with pytest.raises(ModuleNotFoundError, match="module_that_is_not_there"):
        list_streams(tmp_path)


# -- lattice ---------------------------------------------------------------------------------------------------------

INTEGERS = [t for t in SAMPLE_TYPES if "int" in t]


@given(st.sampled_from(INTEGERS), st.integers(1, 3), st.integers(0, 2**32 - 1), st.integers(1, 400), st.booleans())
@settings(deadline=None, max_examples=40)
def test_any_integers_come_back(dtype, n_channels, seed, n, narrow):
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    low, high = (info.min, info.max) if not narrow else (max(info.min, -60), min(info.max, 60))
    x = rng.integers(low, high, (n, n_channels), endpoint=True, dtype=np.int64).astype(dtype)
    lattice = find_lattice(x)
    back = from_codes(to_codes(x, lattice), lattice)
    assert back.dtype == x.dtype and (back == x).all()
    assert (lattice.step >= 1).all() and 1 <= lattice.bits <= 32


@given(
    st.integers(21, 9000),
    st.sampled_from([1, 7, 10, 341]),
    st.integers(-3000, 3000),
    st.sampled_from(["down", "cast", "nearest"]),
    st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=125)
def test_a_fractional_lattice_is_found(numerator, denominator, origin, rounding, seed):
    """Dense codes on a lattice of any step over 2 (3 for a cast) and any origin: found, exact, and no more codes than there were."""
    n = min(200, 60000 * denominator // numerator)
    assume(numerator > (3.1 if rounding == "cast" else 2) * denominator and n >= 60)
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(n), rng.integers(0, n, 300)]) - n // 2
    y = codes * numerator + origin
    x = {
        "down": y // denominator,
        "cast": np.sign(y) * (abs(y) // denominator),
        "nearest": (2 * y + denominator) // (2 * denominator),
    }[rounding]
    x = x.astype(np.int16)
    lattice = find_lattice(x)
    assert (from_codes(to_codes(x, lattice), lattice) == x).all()
    assert abs(lattice.step[0] - numerator / denominator) < 4 / n and abs(lattice.levels[0] - n) <= 1


@pytest.mark.parametrize(("step", "origin", "bits"), [(3, 0, 10), (12, 5, 9), (16, -32768, 12), (195, 1, 8)])
def test_whole_steps(step, origin, bits):
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 2**bits, 5000)
    x = (codes * step + origin).astype(np.int32)
    lattice = find_lattice(x)
    assert (
        lattice.step[0] == step and (to_codes(x, lattice) == codes - codes.min()).all() and lattice.levels[0] <= 2**bits
    )


def test_n1_like_words_have_ten_bits():
    codes = np.random.default_rng(2).normal(512, 40, 20000).round().astype(int)
    x = np.trunc(codes * 65535 / 1023 - 32768).astype(np.int16)
    lattice = find_lattice(x)
    assert lattice.bits == 10 and Fraction(lattice.numerator[0], lattice.denominator[0]) == Fraction(65535, 1023)
    assert lattice.towards_zero == (True,) and with_native_bits(recording(x, 1.0)).attrs["native_bits"] == 10


def test_channels_share_a_step_and_keep_their_origins():
    """Open Ephys and Neuropixels: 12.0188 counts apart, each channel shifted by its own mean."""
    rng = np.random.default_rng(3)
    codes = rng.normal(0, 8, (1000, 50)).round()
    x = np.round(codes * 12.0188 + rng.uniform(-50, 50, 50)).astype(np.int16)
    lattice = find_lattice(x)
    assert len(set(lattice.step)) == 1 and abs(lattice.step[0] - 12.0188) < 0.01
    assert (from_codes(to_codes(x, lattice), lattice) == x).all() and lattice.levels.max() < 100
    assert lattice.table.shape == (6, 50) and lattice.origin.shape == (50,)


def test_channels_with_other_steps():
    rng = np.random.default_rng(4)
    codes = rng.integers(-400, 400, (3000, 3))
    x = np.floor(codes * [3, 7.3, 1] + 0.5).astype(np.int16)
    lattice = find_lattice(x)
    assert np.allclose(lattice.step, [3, 7.3, 1], atol=0.01) and (from_codes(to_codes(x, lattice), lattice) == x).all()


@pytest.mark.parametrize("step", [3, 12.0188])
def test_saturated_samples_may_lie_off_the_grid(step):
    codes = np.random.default_rng(5).integers(-300, 300, 20000)
    x = np.round(codes * step).clip(-200 * step - 1.5, 170 * step + 1.2).astype(np.int16)
    lattice = find_lattice(x)
    assert abs(lattice.step[0] - step) < 0.01 and lattice.levels[0] < 380
    assert (from_codes(to_codes(x, lattice), lattice) == x).all()


def test_no_lattice_is_imagined():
    rng = np.random.default_rng(6)
    for n in (1, 2, 5, 20, 100):
        x = rng.integers(-30000, 30000, n).astype(np.int16)
        x[: n // 2] |= 1  # keep a common divisor improbable
        assert find_lattice(x).step[0] == 1 or n < 3
    assert find_lattice(np.full(10, 7, np.int16)).bits == 3
    assert find_lattice(np.zeros(10, np.int16)).bits == 1
    assert find_lattice(np.zeros((3, 2), np.float32)) is None


def test_bits_are_those_of_the_word():
    assert find_lattice(np.array([575, 576, 2654], np.int16)).bits == 12
    assert find_lattice(np.array([-655, 0, 1, 667], np.int16)).bits == 11
    assert find_lattice(np.array([-128, 127, 3], np.int8)).bits == 8


def test_wide_integers_have_whole_steps_only():
    codes = np.random.default_rng(7).integers(-(2**22), 2**22, (4000, 2))
    lattice = find_lattice((codes * [256, 3] + [0, 1]).astype(np.int32))
    assert lattice.step.tolist() == [256, 3]


def test_a_lazy_recording_is_scanned_in_pieces(monkeypatch):
    reader = Counting(n_time=300_000)
    lattice = find_lattice(recording(reader, 10.0))
    assert lattice.step.tolist() == [100] * 5 and max(b - a for a, b, _ in reader.calls) * 20 <= 1 << 24
    assert len(reader.calls) > 1 or 300_000 * 20 <= 1 << 24


def test_what_is_off_the_lattice_is_an_error():
    lattice = find_lattice((3 * np.arange(100)).astype(np.int16))
    for bad in (np.array([4], np.int16), np.array([-3], np.int16), np.array([300], np.int16)):
        with pytest.raises(InputError, match="not on the lattice"):
            to_codes(bad, lattice)
    for wrong in (np.zeros((4, 2), np.int16), np.zeros(4)):
        with pytest.raises(InputError, match="does not fit a lattice"):
            to_codes(wrong, lattice)


# -- our files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".h5", ".npy"])
@pytest.mark.parametrize("dtype", SAMPLE_TYPES)
def test_saved_recordings_come_back(tmp_path, suffix, dtype):
    raw = np.random.default_rng(0).integers(0, 100, (70, 3)).astype(dtype)
    xyz = [[0, 0.5, np.nan], [1, 2, np.nan], [np.nan, np.nan, np.nan]]
    x = recording(
        raw,
        1234.5,
        channels=["ä", "b", "c"],
        units="uV",
        gain=[0.1, 0.2, 0.3],
        offset=-1,
        native_bits=7,
        positions=xyz,
        t_start=3.25,
        name="n",
        gaps=[(5, 0.1), (9, 2)],
    )
    save_recording(x, tmp_path / f"f{suffix}")
    y = open_recording(tmp_path / f"f{suffix}")
    assert y.dtype == x.dtype and (y.values == raw).all() and y.channel.values.tolist() == ["ä", "b", "c"]
    np.testing.assert_array_equal(positions(y), positions(x))
    assert describe(y) == describe(x)


@pytest.mark.parametrize("suffix", [".h5", ".npy"])
def test_saving_streams_and_is_atomic(tmp_path, suffix):
    reader = Counting(n_time=2_000_000)
    file = tmp_path / f"big{suffix}"
    save_recording(recording(reader, 100.0), file)
    assert max(b - a for a, b, _ in reader.calls) * 20 <= 1 << 24 and len(reader.calls) > 1
    assert open_recording(file).isel(time=-1).values.tolist() == [199_999_900 + c for c in range(5)]
    before = file.read_bytes()

    @dataclass
    class Dying(Counting):
        def read(self, start, stop, channels):
            if start:
                raise OSError("disk gone")
            return super().read(start, stop, channels)

    with pytest.raises(InputError, match="disk gone"):
        save_recording(recording(Dying(n_time=3_000_000), 100.0), file)
    assert file.read_bytes() == before and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_sidecar_of_another_file_is_noticed(tmp_path):
    save_recording(recording(np.zeros((10, 2), np.int16), 10.0), tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros((11, 2), np.int16))
    with pytest.raises(InputError, match="belongs to"):
        open_recording(tmp_path / "a.npy")


@pytest.mark.parametrize("content", ["{", "[1]", '{"sampling_rate": "fast"}', "\xff"])
def test_a_bad_sidecar_is_one_error(tmp_path, content):
    np.save(tmp_path / "a.npy", np.zeros((11, 2), np.int16))
    (tmp_path / "a.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"a\.(json|npy)"):
        open_recording(tmp_path / "a.npy")


def test_npy_options(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.int16).reshape(2, 3))
    with pytest.raises(InputError, match="sampling_rate="):
        open_recording(tmp_path / "a.npy")
    x = open_recording(tmp_path / "a.npy", sampling_rate=5, time_axis=1, units="mV", channels=["p", "q"])
    assert x.values.tolist() == [[0, 3], [1, 4], [2, 5]] and x.attrs["units"] == "mV"
    np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "c.npy", np.zeros((2, 2, 2)))
    for name in ("o", "c"):
        with pytest.raises(InputError):
            open_recording(tmp_path / f"{name}.npy", sampling_rate=1)


@pytest.mark.parametrize("suffix", [".h5", ".npy"])
@pytest.mark.parametrize("keep", [0, 5, 100, 1000, -1])
def test_truncated_files_are_found(tmp_path, suffix, keep):
    file = tmp_path / f"a{suffix}"
    save_recording(recording(np.ones((5000, 2), np.int16), 10.0), file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError):
        open_recording(file)


def test_layout_of_a_later_version(tmp_path):
    save_recording(recording(np.ones((50, 2), np.int16), 10.0), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as f:
        f.attrs["version"] = 2
    with pytest.raises(InputError, match="update"):
        open_recording(tmp_path / "a.h5")
    with pytest.raises(InputError, match="saved as"):
        save_recording(recording(np.ones(5), 1), tmp_path / "a.mat")


def test_h5_reader(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["two"], f["one"], f["three"] = np.arange(12).reshape(4, 3), np.arange(5), np.zeros((1, 1, 1))
    where = np.array([2, 0])
    assert H5Reader(tmp_path / "a.h5", "two").read(1, 3, where).tolist() == [[5, 3], [8, 6]]
    assert H5Reader(tmp_path / "a.h5", "two", 1).read(0, 2, np.array([3])).tolist() == [[9], [10]]
    assert H5Reader(tmp_path / "a.h5", "one").read(3, 5, np.array([0])).tolist() == [[3], [4]]
    for wrong in ("three", "none"):
        with pytest.raises(InputError, match="not a dataset"):
            H5Reader(tmp_path / "a.h5", wrong)


# -- real data -------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_n1_has_ten_bits(neural_data):
    for file in sorted((neural_data / "n1_neuralink").glob("*.wav"))[:20]:
        with wave.open(str(file)) as w:
            x = np.frombuffer(w.readframes(w.getnframes()), "<i2")
        lattice = find_lattice(x)
        assert lattice.bits == 10 and (from_codes(to_codes(x, lattice), lattice) == x).all()
        codes = np.round((x.astype(int) + 32768) * 1023 / 65535).astype(int)
        assert (to_codes(x, lattice) == codes - codes.min()).all()


@pytest.mark.real
def test_real_neuropixels_steps_by_twelve(neural_data):
    x = np.fromfile(neural_data / "neuropixels_tiny385/continuous.dat", "<i2").reshape(-1, 385)[:, :384]
    lattice = find_lattice(x)
    assert abs(lattice.step - 12.0188).max() < 0.001 and lattice.levels.max() < 1024
    assert (from_codes(to_codes(x, lattice), lattice) == x).all()


@pytest.mark.real
def test_real_locust_is_a_twelve_bit_card(neural_data):
    x = np.fromfile(neural_data / "locust_tetrode/locust_trial_01.raw", "<i2").reshape(-1, 4)
    lattice = find_lattice(x)
    assert lattice.bits == 12 and lattice.step.tolist() == [1] * 4


@pytest.mark.real
def test_real_lfp_npy(neural_data):
    x = open_recording(neural_data / "lfp_neurodsp/sample_data_2.npy", sampling_rate=1000)
    assert x.shape == (150_000, 1) and x.dtype == np.int16 and x.attrs["sampling_rate"] == 1000
    assert open_recording(neural_data / "lfp_neurodsp/sample_data_1.npy", sampling_rate=1000).dtype == np.float64
