"""Every reader on tiny files in the real formats: values, laziness, gaps, scales, damage."""

import json
import os
import struct
import wave
from pathlib import Path

import h5py
import numpy as np
import pyedflib
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbmf_research.coding.container import Metadata, ZlibBlock, pack_stream
from nbmf_research.core import InputError
from nbmf_research.neural import readers
from nbmf_research.neural.recordings import (
    blocks,
    check_recording,
    list_streams,
    open_recording,
    physical,
    positions,
    times,
    with_native_bits,
)

DATA = os.environ.get("NBMF_DATA_DIR")
SEED = np.random.default_rng(0)
NOISE = SEED.integers(-2000, 2000, (1000, 2)).astype(np.int16)


@pytest.fixture
def neural_data() -> Path:
    if not DATA:
        pytest.skip("NBMF_DATA_DIR is not set")
    return Path(DATA) / "neural"


def write_edf(path: Path, kind: int, signals, seconds: int = 5, bits: int = 16, extra=()) -> list[np.ndarray]:
    """Write (label, unit, rate, physical top) signals of random digital values; return them."""
    top = 2 ** (bits - 1)
    heads = [
        {
            "label": s,
            "dimension": u,
            "sample_frequency": rate,
            "physical_min": -p,
            "physical_max": p,
            "digital_min": -top,
            "digital_max": top - 1,
        }
        for s, u, rate, p in signals
    ]
    data = [
        np.random.default_rng(i).integers(-top, top, rate * seconds, dtype=np.int32)
        for i, (_, _, rate, _) in enumerate(signals)
    ]
    with pyedflib.EdfWriter(str(path), len(signals), file_type=kind) as f:
        f.setSignalHeaders(heads)
        f.writeSamples(data, digital=True)
        for at in extra:
            f.writeAnnotation(at, -1, "event")
    return data


EEG = [("Fp1", "uV", 100, 200.0), ("Fp2", "mV", 100, 0.3), ("Cz", "V", 100, 1e-4)]
KINDS = {
    "edf": (pyedflib.FILETYPE_EDF, 16),
    "edf+": (pyedflib.FILETYPE_EDFPLUS, 16),
    "bdf": (pyedflib.FILETYPE_BDF, 24),
    "bdf+": (pyedflib.FILETYPE_BDFPLUS, 24),
}


# -- EDF, BDF --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
def test_edf_and_bdf(tmp_path, kind):
    code, bits = KINDS[kind]
    file = tmp_path / f"a.{kind[:3]}"
    data = write_edf(file, code, EEG, bits=bits, extra=[1.5] if "+" in kind else ())
    x = open_recording(file)
    assert x.dtype == (np.int16 if bits == 16 else np.int32) and (x.values == np.stack(data, 1)).all()
    assert (
        x.channel.values.tolist() == ["Fp1", "Fp2", "Cz"]
        and x.attrs["units"] == "uV"
        and x.attrs["sampling_rate"] == 100
    )
    with pyedflib.EdfReader(str(file)) as oracle:
        want = np.stack([oracle.readSignal(i) * f for i, f in enumerate((1, 1e3, 1e6))], 1)
    assert np.allclose(physical(x).values, want, atol=1e-9)
    assert x.isel(time=slice(99, 203), channel=[2, 0]).values.tolist() == np.stack(data, 1)[99:203, [2, 0]].tolist()
    assert x.attrs["gaps"] == [] and x.attrs["native_bits"] == 0


def test_edf_rates_and_units_are_streams(tmp_path):
    file = tmp_path / "a.edf"
    data = write_edf(
        file, pyedflib.FILETYPE_EDFPLUS, [*EEG, ("ECG", "uV", 50, 1.0), ("SpO2", "%", 100, 100.0), ("x", "", 10, 5.0)]
    )
    assert [(s.stream, s.n_channels, s.n_samples) for s in list_streams(file)] == [
        ("100 Hz uV", 3, 500),
        ("50 Hz", 1, 250),
        ("100 Hz %", 1, 500),
        ("10 Hz", 1, 50),
    ]
    with pytest.raises(InputError, match=r"several streams.*'50 Hz'"):
        open_recording(file)
    assert (open_recording(file, stream="50 Hz").values[:, 0] == data[3]).all()
    x = open_recording(file, stream="100 Hz %")
    assert x.attrs["units"] == "%" and (x.values[:, 0] == data[4]).all()
    assert open_recording(file, stream="10 Hz").attrs["units"] == "counts"


def test_edf_trigger_channel_does_not_force_a_choice(tmp_path):
    write_edf(tmp_path / "a.bdf", pyedflib.FILETYPE_BDF, [*EEG, ("Status", "Boolean", 100, 8000000)], bits=24)
    assert open_recording(tmp_path / "a.bdf").sizes["channel"] == 3


def pause(path: Path, stamps: dict[bytes, bytes]) -> None:
    data = path.read_bytes().replace(b"EDF+C", b"EDF+D").replace(b"BDF+C", b"BDF+D")
    for old, new in stamps.items():
        data = data.replace(b"+" + old + b"\x14\x14", b"+" + new + b"\x14\x14")
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["edf+", "bdf+"])
def test_edf_pauses_are_gaps(tmp_path, kind):
    file = tmp_path / "a.edf"
    code, bits = KINDS[kind]
    data = write_edf(file, code, EEG, bits=bits, seconds=5)
    pause(file, {b"2": b"5", b"3": b"6", b"4": b"9"})
    x = open_recording(file)
    assert x.attrs["gaps"] == [[200, 3.0], [400, 2.0]] and (x.values == np.stack(data, 1)).all()
    assert np.allclose(times(x)[[0, 199, 200, 400, 499]], [0, 1.99, 5, 9, 9.99])
    assert [b.sizes["time"] for b in blocks(x, 10)] == [200, 200, 100]


def test_edf_start_inside_a_second(tmp_path):
    file = tmp_path / "a.edf"
    write_edf(file, pyedflib.FILETYPE_EDFPLUS, EEG, seconds=2)
    file.write_bytes(file.read_bytes().replace(b"+0\x14\x14\x00\x00\x00\x00", b"+0.25\x14\x14\x00", 1))
    assert open_recording(file).attrs["t_start"] == 0.25


@pytest.mark.parametrize("stamps", [{b"2": b"x"}, {b"2": b"0"}])
def test_edf_damaged_times(tmp_path, stamps):
    file = tmp_path / "a.edf"
    write_edf(file, pyedflib.FILETYPE_EDFPLUS, EEG)
    pause(file, stamps)
    with pytest.raises(InputError, match="damaged"):
        open_recording(file)


def test_edf_reads_only_what_is_asked(tmp_path, monkeypatch):
    file = tmp_path / "a.edf"
    write_edf(file, pyedflib.FILETYPE_EDF, EEG, seconds=50)
    x = open_recording(file)
    read = []
    real = readers.integers
    monkeypatch.setattr(readers, "integers", lambda raw, width: read.append(raw.size) or real(raw, width))
    x.isel(time=slice(1010, 1090), channel=1).load()
    assert read == [200]  # one record of one channel
    with pytest.raises(InputError, match="truncated"):
        file.write_bytes(file.read_bytes()[:-1])
        open_recording(file)


@pytest.mark.parametrize(
    ("at", "content", "says"),
    [
        (0, b"1       ", "is no EDF"),
        (236, b"-1      ", "not closed"),
        (236, b"0       ", "no signal to read"),
        (236, b"many    ", "cannot be read as edf"),
        (236, b"7       ", "truncated: its header demands"),
        (236, b"3       ", "text-mode"),
        (244, b"0       ", "no signal to read"),
        (252, b"0   ", "header is damaged"),
        (252, b"9   ", "header is damaged"),
        (256 + 3 * 104, b"200     ", "no range to scale by"),
    ],
)
def test_edf_damaged_headers(tmp_path, at, content, says):
    file = tmp_path / "a.edf"
    write_edf(file, pyedflib.FILETYPE_EDF, EEG)
    data = bytearray(file.read_bytes())
    data[at : at + len(content)] = content
    file.write_bytes(data)
    with pytest.raises(InputError, match=says):
        open_recording(file)


# -- WAV -------------------------------------------------------------------------------------------------------------


def riff(code: int, bits: int, n_channels: int, payload: bytes, extensible: bool = False, before: bytes = b"") -> bytes:
    frame = n_channels * bits // 8
    fmt = struct.pack("<HHIIHH", 0xFFFE if extensible else code, n_channels, 8000, 8000 * frame, frame, bits)
    fmt += struct.pack("<HHI16s", 22, bits, 0, struct.pack("<H", code) + b"\x00" * 14) if extensible else b""
    body = (
        b"WAVE"
        + before
        + b"fmt "
        + struct.pack("<I", len(fmt))
        + fmt
        + b"data"
        + struct.pack("<I", len(payload))
        + payload
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(
    ("code", "bits", "dtype"),
    [(1, 8, "u1"), (1, 16, "<i2"), (1, 24, "<i4"), (1, 32, "<i4"), (3, 32, "<f4"), (3, 64, "<f8")],
)
def test_wav_types(tmp_path, code, bits, dtype, extensible):
    raw = (NOISE.astype(int) * (1 if bits > 8 else 0) + 100).astype(dtype)
    raw = (raw * 3000 + 3).astype("<i4") if bits == 24 else raw
    payload = raw[..., None].view(np.uint8).reshape(-1, 4)[:, :3].tobytes() if bits == 24 else raw.tobytes()
    (tmp_path / "a.wav").write_bytes(riff(code, bits, 2, payload, extensible, before=b"LIST\x03\x00\x00\x00abc\x00"))
    x = open_recording(tmp_path / "a.wav")
    assert x.dtype == np.dtype(dtype).newbyteorder("=") and (x.values == raw).all() and x.attrs["sampling_rate"] == 8000
    assert (x.isel(time=slice(5, 50, 7), channel=1).values == raw[5:50:7, 1]).all()


@given(st.lists(st.integers(-(2**23), 2**23 - 1), min_size=1, max_size=50))
def test_24_bit_integers(values):
    raw = np.array(values, "<i4").reshape(-1, 1).view(np.uint8)[:, :3].reshape(1, -1)
    assert readers.integers(raw, 3).tolist() == [values]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is no WAV"),
        (b"RIFF", "is no WAV"),
        (b"RIFX" + riff(1, 16, 1, b"ab")[4:], "is no WAV"),
        (riff(1, 16, 1, b"ab")[:16], "no format chunk"),
        (riff(1, 16, 1, b"ab")[:36], "no data chunk"),
        (riff(1, 16, 1, b"abcd")[:-1], "truncated"),
        (riff(1, 16, 2, b"ab"), "truncated"),
        (riff(1, 16, 1, b""), "no samples"),
        (riff(2, 16, 1, b"ab"), "not supported"),
        (riff(1, 12, 1, b"ab"), "not supported"),
    ],
)
def test_wav_damage(tmp_path, data, says):
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(InputError, match=says):
        open_recording(tmp_path / "a.wav")


# -- raw binary ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u2", "int8", "<f4", ">f8"])
@pytest.mark.parametrize("time_axis", [0, 1])
def test_raw_binary(tmp_path, dtype, time_axis):
    raw = abs(NOISE).astype(dtype) if dtype != "int8" else (NOISE % 100).astype(dtype)
    (tmp_path / "a.dat").write_bytes(b"HEAD" + (raw if time_axis == 0 else raw.T).tobytes())
    about = {
        "sampling_rate": 10,
        "n_channels": 2,
        "dtype": dtype,
        "time_axis": time_axis,
        "skip_bytes": 4,
        "gain": [1, 2],
        "units": "uV",
    }
    x = open_recording(tmp_path / "a.dat", format="raw", **about)
    assert x.dtype.isnative and (x.values == raw).all() and x.gain.values.tolist() == [1, 2]
    for name in ("a.json", "info.json"):
        (tmp_path / name).write_text(json.dumps(about | {"something": "else"}))
        y = open_recording(tmp_path / "a.dat", t_start=2.0)
        assert y.attrs["format"] == "raw" and (y.values == raw).all() and y.attrs["t_start"] == 2
        (tmp_path / name).unlink()


def test_raw_shape_as_tridesclous_writes_it(tmp_path):
    NOISE.tofile(tmp_path / "a.raw")
    (tmp_path / "info.json").write_text('{"sample_rate": 15000.0, "shape": [-1, 2], "dtype": "int16"}')
    assert (open_recording(tmp_path / "a.raw").values == NOISE).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "need dtype= and n_channels="),
        ({"dtype": "int16"}, "n_channels"),
        ({"dtype": "int16", "n_channels": 2}, "sampling rate is unknown"),
        ({"dtype": "int15", "n_channels": 2, "sampling_rate": 1}, "no sample type"),
        ({"dtype": "int16", "n_channels": 3, "sampling_rate": 1}, "whole number"),
        ({"dtype": "int64", "n_channels": 1, "sampling_rate": 1}, "int64"),
        ({"dtype": "int16", "n_channels": 2, "sampling_rate": 1, "skip_bytes": 4000}, "no samples"),
        ({"dtype": "int16", "n_channels": 2, "sampling_rate": 1, "channel": ["a"]}, "unknown options channel;"),
    ],
)
def test_raw_errors(tmp_path, options, says):
    NOISE.tofile(tmp_path / "a.raw")
    with pytest.raises(InputError, match=says):
        open_recording(tmp_path / "a.raw", **options)


# -- HDF5, NWB -------------------------------------------------------------------------------------------------------


def test_generic_hdf5(tmp_path):
    file = tmp_path / "a.h5"
    with h5py.File(file, "w") as f:
        f["deep/raw"] = NOISE
    x = open_recording(file, sampling_rate=100)
    assert x.attrs["format"] == "hdf5" and (x.values == NOISE).all()
    with h5py.File(file, "r+") as f:
        f["wide"] = NOISE.T
    with pytest.raises(InputError, match="give dataset= one of: deep/raw, wide"):
        open_recording(file, sampling_rate=100)
    assert (
        open_recording(file, dataset="wide", time_axis=1, sampling_rate=1).isel(time=slice(3, 9)).values == NOISE[3:9]
    ).all()
    with pytest.raises(InputError, match="not a dataset"):
        open_recording(file, dataset="narrow", sampling_rate=1)
    with pytest.raises(InputError, match="sampling rate"):
        open_recording(file, dataset="wide")


def write_nwb(path: Path, series: dict, electrodes: dict | None = None, unit: str = "") -> None:
    with h5py.File(path, "w") as f:
        f.attrs["nwb_version"] = "2.6.0"
        for column, values in (electrodes or {}).items():
            data = f.create_dataset(f"general/extracellular_ephys/electrodes/{column}", data=values)
            data.attrs["description"] = f"the {column} coordinate{unit}"
        for name, fields in series.items():
            group = f.create_group(name)
            group.attrs["neurodata_type"] = "ElectricalSeries"
            group["data"] = NOISE
            group["data"].attrs.update({"unit": "volts", "conversion": 2e-7} | fields.get("attrs", {}))
            for k, v in fields.items():
                if k == "rate":
                    group["starting_time"] = 1.5
                    group["starting_time"].attrs["rate"] = v
                elif k != "attrs":
                    group[k] = v


@pytest.mark.parametrize(
    ("unit", "factor"), [("", 1), (" in um", 1), (" (microns)", 1), (" in mm", 1e3), (", meters", 1e6)]
)
def test_nwb_scale_and_positions(tmp_path, unit, factor):
    electrodes = {
        "id": [10, 11, 12],
        "x": [np.nan] * 3,
        "rel_x": [1.0, 2.0, 3.0],
        "y": [4.0, 5.0, 6.0],
        "label": ["a", "b", "c"],
    }
    fields = {"rate": 2000.0, "channel_conversion": [1.0, 3.0], "electrodes": [2, 0], "attrs": {"offset": 1e-6}}
    write_nwb(tmp_path / "a.nwb", {"acquisition/ES": fields}, electrodes, unit)
    x = open_recording(tmp_path / "a.nwb")
    assert (
        np.allclose(physical(x), NOISE * [0.2, 0.6] + 1)
        and x.attrs["t_start"] == 1.5
        and x.attrs["sampling_rate"] == 2000
    )
    assert np.allclose(positions(x)[:, :2], factor * np.array([[3, 6], [1, 4]])) and x.channel.values.tolist() == [
        "c",
        "a",
    ]
    assert x.dtype == np.int16 and x.attrs["units"] == "uV"


def test_nwb_time_stamps(tmp_path):
    stamps = 7 + np.arange(1000) / 30 + 0.25 * (np.arange(1000) >= 300) + 4 * (np.arange(1000) >= 999)
    write_nwb(tmp_path / "a.nwb", {"acquisition/ES": {"timestamps": stamps}})
    x = open_recording(tmp_path / "a.nwb")
    assert x.attrs["sampling_rate"] == 30 and np.allclose(times(x), stamps, atol=1e-6)
    assert np.allclose(x.attrs["gaps"], [[300, 0.25], [999, 4]])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"timestamps": np.arange(999.0)}, "time stamps for 1000 samples"),
        ({"timestamps": -np.arange(1000.0)}, "do not rise"),
        ({}, "cannot be read as nwb"),
        ({"rate": 0.0}, "sampling rate"),
        ({"rate": 1.0, "attrs": {"unit": "amperes"}}, "wants volts"),
    ],
)
def test_nwb_errors(tmp_path, fields, says):
    write_nwb(tmp_path / "a.nwb", {"acquisition/ES": fields})
    with pytest.raises(InputError, match=says):
        open_recording(tmp_path / "a.nwb")


def test_nwb_several_series(tmp_path):
    write_nwb(tmp_path / "a.nwb", {"acquisition/ES": {"rate": 5.0}, "processing/ecephys/LFP/ES": {"rate": 1.0}})
    with pytest.raises(InputError, match="processing/ecephys/LFP/ES"):
        open_recording(tmp_path / "a.nwb")
    assert open_recording(tmp_path / "a.nwb", stream="acquisition/ES").attrs["sampling_rate"] == 5
    write_nwb(tmp_path / "b.nwb", {})
    with pytest.raises(InputError, match="no ElectricalSeries"):
        open_recording(tmp_path / "b.nwb")


# -- damage of every format ------------------------------------------------------------------------------------------


def samples_of_each(folder: Path) -> dict[str, Path]:
    write_edf(folder / "a.edf", pyedflib.FILETYPE_EDFPLUS, EEG, seconds=3)
    write_edf(folder / "a.bdf", pyedflib.FILETYPE_BDFPLUS, EEG, seconds=3, bits=24)
    with wave.open(str(folder / "a.wav"), "wb") as f:
        f.setparams((2, 2, 8000, 0, "NONE", ""))
        f.writeframes(NOISE.tobytes())
    NOISE.tofile(folder / "a.raw")
    (folder / "a.json").write_text('{"sampling_rate": 10, "n_channels": 2, "dtype": "<i2"}')
    write_nwb(folder / "a.nwb", {"acquisition/ES": {"rate": 5.0}})
    with h5py.File(folder / "a.hdf5", "w") as f:
        f["data"] = NOISE
    return {s: folder / f"a.{s}" for s in ("edf", "bdf", "wav", "raw", "nwb", "hdf5")}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return {s: p.read_bytes() for s, p in samples_of_each(tmp_path_factory.mktemp("originals")).items()}


@pytest.mark.parametrize("suffix", ["edf", "bdf", "wav", "raw", "nwb", "hdf5"])
@pytest.mark.parametrize("keep", [0, 1, 7, 200, 300, -1, -999])
def test_truncated_files(tmp_path, originals, suffix, keep):
    (tmp_path / "a.json").write_text('{"sampling_rate": 10, "n_channels": 2, "dtype": "<i2"}')
    whole = originals[suffix]
    (tmp_path / f"a.{suffix}").write_bytes(whole[:keep])
    if suffix == "raw" and keep in (200, 300):  # whole frames: nothing in the file can tell
        return
    with pytest.raises(InputError, match=rf"a\.{suffix}") as e:
        open_recording(tmp_path / f"a.{suffix}")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("suffix", ["edf", "bdf", "wav", "nwb", "hdf5"])
@given(data=st.data())
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_raise_nothing_else(tmp_path, originals, suffix, data):
    """Flipped bytes in the header: either one InputError, or a recording of the right form."""
    broken = bytearray(originals[suffix])
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, min(len(broken), 1100) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(broken)
    try:
        for stream in list_streams(file):
            x = open_recording(file, stream=stream.stream, segment=stream.segment)
            check_recording(x).isel(time=slice(0, 5)).load()
    except InputError as e:
        assert "\n" not in str(e)


@pytest.mark.parametrize("suffix", ["edf", "wav", "nwb", "hdf5"])
def test_a_file_of_another_format(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5000))
    with pytest.raises(InputError, match=rf"a\.{suffix}"):
        open_recording(tmp_path / f"a.{suffix}")


# -- real data -------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_eeg_arithmetic(neural_data):
    file = neural_data / "eeg_arithmetic/Subject00_2.edf"
    x = open_recording(file)
    assert (
        x.shape == (31000, 21) and x.attrs["units"] == "uV" and x.attrs["sampling_rate"] == 500 and x.dtype == np.int16
    )
    with pyedflib.EdfReader(str(file)) as oracle:
        assert (x.values[:, 3] == oracle.readSignal(3, digital=True)).all()
        assert np.allclose(physical(x).values[:, 20], oracle.readSignal(20) * 1000)


@pytest.mark.real
def test_real_eegmmidb(neural_data):
    x = open_recording(neural_data / "eeg64_eegmmidb_s001/S001R03.edf")
    assert x.shape == (20000, 64) and x.attrs["sampling_rate"] == 160 and x.gain.values.tolist() == [1] * 64
    assert int(abs(x).max()) <= 1000 and x.attrs["gaps"] == []


@pytest.mark.real
def test_real_n1(neural_data):
    file = min((neural_data / "n1_neuralink").glob("*.wav"))
    x = open_recording(file)
    assert x.attrs["sampling_rate"] == 19531 and x.dtype == np.int16 and with_native_bits(x).attrs["native_bits"] == 10


@pytest.mark.real
def test_real_locust(neural_data):
    x = open_recording(neural_data / "locust_tetrode/locust_trial_01.raw")
    assert x.shape == (431_548, 4) and x.attrs["sampling_rate"] == 15000
    assert int(x.min()) == 967 and int(x.max()) == 2654


def test_bids_files_beside_edf_give_positions(tmp_path: Path) -> None:
    stem = tmp_path / "sub-1_task-x"
    write_edf(Path(f"{stem}_ieeg.edf"), pyedflib.FILETYPE_EDFPLUS, [("A1", "uV", 100, 3200), ("A2", "uV", 100, 3200)])
    Path(f"{stem}_channels.tsv").write_text("name\ttype\tunits\nA1\tSEEG\tuV\nA2\tSEEG\tuV\n")
    (tmp_path / "sub-1_electrodes.tsv").write_text("name\tx\ty\tz\nA1\t1\t2\t3\nA2\tn/a\tn/a\tn/a\n")
    (tmp_path / "sub-1_coordsystem.json").write_text('{"iEEGCoordinateUnits": "mm"}')
    x = open_recording(f"{stem}_ieeg.edf")
    assert positions(x)[0].tolist() == [1000.0, 2000.0, 3000.0] and np.isnan(positions(x)[1]).all()


def test_nbmf_files_are_opened_by_content_and_damage_is_an_input_error(tmp_path: Path) -> None:
    data = pack_stream(NOISE, Metadata(100.0, ("a", "b"), "mV", gaps=((7, 0.0),)), codecs=[ZlibBlock()])
    for name in ("a.nbmf", "a.backup"):
        (tmp_path / name).write_bytes(data)
        x = open_recording(tmp_path / name)
        assert (x.values == NOISE).all() and x.attrs["gaps"] == [[7, 0.0]] and x.attrs["format"] == "nbmf-stream"
    (tmp_path / "a.nbmf").write_bytes(data[:-20])
    with pytest.raises(InputError, match=r"a\.nbmf: .*recover=True"):
        open_recording(tmp_path / "a.nbmf")
    assert (open_recording(tmp_path / "a.nbmf", recover=True).values == NOISE).all()
    (tmp_path / "a.nbmf").write_bytes(b"")
    with pytest.raises(InputError, match=r"not an \.nbmf stream"):
        open_recording(tmp_path / "a.nbmf")
