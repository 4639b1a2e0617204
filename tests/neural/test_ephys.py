"""Every ephys format on tiny files in its real binary layout, damaged versions of each, and real recordings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import formats as write
import numpy as np
import pytest

from nbmf_research.core import InputError
from nbmf_research.neural import ephys
from nbmf_research.neural.recordings import blocks, list_streams, open_recording, physical, positions, times

noise = write.noise


# ---------------------------------------------------------------------------------------------------- Blackrock
def test_blackrock(tmp_path: Path) -> None:
    path, a, b = tmp_path / "rec.ns5", noise(0, (300, 3)), noise(1, (200, 3))
    write.write_blackrock(path, [(0, a), (900, b)], names=["e1", "e2", "ainp1"], units=["uV", "uV", "mV"])
    x = open_recording(path)
    assert x.dtype == np.int16 and (x.values == np.concatenate([a, b])).all()
    assert x.channel.values.tolist() == ["e1", "e2", "ainp1"] and x.attrs["sampling_rate"] == 30000.0
    assert x.attrs["units"] == "uV" and np.allclose(x.gain, [0.25, 0.25, 250]) and x.attrs["native_bits"] == 16
    assert x.attrs["gaps"] == [[300, pytest.approx(0.02)]] and times(x)[300] == pytest.approx(0.03)
    assert [s.n_samples for s in list_streams(path)] == [300, 200]
    assert (open_recording(path, segment=1).values == b).all()
    assert (x.isel(time=slice(290, 310), channel=[2, 0]).values == np.concatenate([a, b])[290:310, [2, 0]]).all()


def test_blackrock_clock_reset_and_slow_band(tmp_path: Path) -> None:
    path, a, b = tmp_path / "rec.ns2", noise(0, (60, 2)), noise(1, (40, 2))
    write.write_blackrock(path, [(5000, a), (0, b)], period=30, digital=(-512, 511), analog=(-500, 500))
    write.write_blackrock(tmp_path / "rec.ns5", [(0, noise(2, (10, 1)))])
    x = open_recording(path)
    assert x.attrs["sampling_rate"] == 1000.0 and x.attrs["native_bits"] == 10 and x.attrs["gaps"] == [[60, 0.0]]
    assert np.allclose(physical(x).values[0], (a[0] + 512) * (1000 / 1023) - 500)


def test_blackrock_21_keeps_its_last_sample(tmp_path: Path) -> None:
    a = noise(0, (301, 3))
    write.write_blackrock21(tmp_path / "rec.ns5", a)
    x = open_recording(tmp_path / "rec.ns5")
    assert (x.values == a).all() and x.attrs["units"] == "counts" and x.attrs["sampling_rate"] == 30000.0
    (tmp_path / "rec.ns5").write_bytes((tmp_path / "rec.ns5").read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        open_recording(tmp_path / "rec.ns5")


def test_blackrock_ptp_gap(tmp_path: Path) -> None:
    a, start = noise(0, (300, 2)), 1_700_000_000 * 10**9
    stamps = start + (np.arange(300) * 1e9 / 30000).astype(np.int64) + (np.arange(300) >= 200) * 10**8
    write.write_blackrock_ptp(tmp_path / "rec.ns6", stamps, a)
    x = open_recording(tmp_path / "rec.ns6")
    assert (
        (x.values == a).all()
        and x.attrs["gaps"] == [[200, pytest.approx(0.1, abs=1e-5)]]
        and x.attrs["t_start"] == 1.7e9
    )
    (tmp_path / "rec.ns6").write_bytes((tmp_path / "rec.ns6").read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        open_recording(tmp_path / "rec.ns6")


# -------------------------------------------------------------------------------------------------------- Intan
def test_rhd_stays_unsigned(tmp_path: Path) -> None:
    path, amp, aux = tmp_path / "a.rhd", noise(0, (512, 3), "<u2", 0, 65536), noise(1, (128, 1), "<u2", 0, 40000)
    write.write_rhd(path, amp, aux)
    x = open_recording(path, stream="RHD2000 amplifier channel")
    assert x.dtype == np.uint16 and (x.values == amp).all() and x.attrs["native_bits"] == 16
    assert np.allclose(physical(x), (amp.astype(float) - 32768) * 0.195) and x.attrs["units"] == "uV"
    assert x.channel.values.tolist() == ["probe-000", "probe-001", "probe-002"]
    assert (x.isel(time=slice(127, 260), channel=[2]).values == amp[127:260, [2]]).all()
    y = open_recording(path, stream="RHD2000 auxiliary input channel")
    assert (y.values == aux).all() and y.attrs["units"] == "V" and y.attrs["sampling_rate"] == 5000.0
    assert (open_recording(path).values == amp).all()


def test_rhd_gap(tmp_path: Path) -> None:
    path, amp, aux = tmp_path / "a.rhd", noise(0, (512, 2), "<u2", 0, 65536), noise(1, (128, 1), "<u2", 0, 40000)
    write.write_rhd(path, amp, aux, first=(0, 1256))
    assert open_recording(path, stream="RHD2000 amplifier channel").attrs["gaps"] == [[256, pytest.approx(0.05)]]
    assert open_recording(path, stream="RHD2000 auxiliary input channel").attrs["gaps"] == [[64, pytest.approx(0.05)]]


def test_rhd_one_file_per_signal(tmp_path: Path) -> None:
    a = noise(0, (500, 3))
    path = write.write_rhd_split(tmp_path, a)
    x = open_recording(path)
    assert x.dtype == np.int16 and (x.values == a).all() and (x.offset == 0).all() and np.allclose(x.gain, 0.195)
    (tmp_path / "amplifier.dat").write_bytes(a[:400].tobytes())
    with pytest.raises(InputError, match="truncated"):
        open_recording(path)


def test_rhs(tmp_path: Path) -> None:
    path, amp = tmp_path / "a.rhs", noise(0, (256, 2), "<u2", 0, 65536)
    dc, stim = noise(1, (256, 2), "<u2", 0, 1024), noise(2, (256, 2), "<u2", 0, 256)
    write.write_rhs(path, amp, dc, stim)
    assert (open_recording(path, stream="RHS2000 amplifier channel").values == amp).all()
    x = open_recording(path, stream="DC Amplifier channel")
    assert (x.values == dc).all() and x.attrs["units"] == "mV" and x.attrs["native_bits"] == 10
    assert open_recording(path, stream="Stim channel").attrs["units"] == "A"


# ----------------------------------------------------------------------------------------------------- SpikeGLX
def spikeglx(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    a, b = noise(0, (300, 4)), noise(1, (200, 4))
    geometry = [(0, 27, 0), (0, 59, 20), (1, 27, 0)]
    write.write_spikeglx(folder, a, geometry=geometry)
    write.write_spikeglx(folder, b, trigger=1, first=900, geometry=geometry)
    for trigger, x in enumerate((a, b)):
        write.write_spikeglx(folder, x[:25], band="lf", rate=2500.0, trigger=trigger, first=75 * trigger)
    return a, b


def test_spikeglx(tmp_path: Path) -> None:
    a, b = spikeglx(tmp_path)
    x = open_recording(tmp_path, stream="imec0.ap")
    assert (x.values == np.concatenate([a, b])[:, :3]).all() and x.attrs["native_bits"] == 10
    assert np.allclose(x.gain, 0.6 / 512 / 500 * 1e6) and x.channel.values.tolist() == ["AP0", "AP1", "AP2"]
    assert x.attrs["gaps"] == [[300, pytest.approx(0.02)]]
    assert positions(x)[:, :2].tolist() == [[27, 0], [59, 20], [277, 0]]
    lf = open_recording(tmp_path, stream="imec0.lf", segment=1)
    assert (
        lf.shape == (25, 3)
        and np.allclose(lf.gain, 0.6 / 512 / 250 * 1e6)
        and lf.attrs["t_start"] == pytest.approx(0.03)
    )
    sync = open_recording(tmp_path, stream="imec0.ap-SYNC", segment=0)
    assert (sync.values == a[:, 3:]).all() and sync.attrs["units"] == "counts" and sync.gain.item() == 1.0


def test_spikeglx_one_file(tmp_path: Path) -> None:
    _, b = spikeglx(tmp_path)
    for suffix in (".bin", ".meta"):
        path = (tmp_path / "run_g0_t1.imec0.ap.bin").with_suffix(suffix)
        assert {s.stream for s in list_streams(path)} == {"imec0.ap", "imec0.ap-SYNC"}
        assert (open_recording(path, stream="imec0.ap").values == b[:, :3]).all()
    assert open_recording(tmp_path / "run_g0_t0.imec0.lf.bin").shape == (25, 3)
    with pytest.raises(InputError, match="several streams"):
        open_recording(tmp_path)
    assert np.isnan(positions(open_recording(write.write_spikeglx(tmp_path / "old", b), stream="imec0.ap"))).all()
    with pytest.raises(InputError, match=r"\.meta"):
        ephys.open_spikeglx(tmp_path / "x.bin")


# --------------------------------------------------------------------------------------------------- Open Ephys
AP = ["AP1", "AP2", "AP_SYNC"]


def test_openephys_binary(tmp_path: Path) -> None:
    a, b, c = noise(0, (300, 3)), noise(1, (200, 3)), noise(2, (50, 3))
    xy = [(11.0, 0.0), (59.0, 20.0)]
    write.write_openephys(
        tmp_path, {"NP-100.ProbeA-AP": (a, 30000.0, AP), "DAQ": (c, 1000.0, ["CH1", "CH2", "ADC1"])}, xy=xy
    )
    numbers = np.r_[900:1000, 1300:1400].astype(np.int64)
    write.write_openephys(
        tmp_path,
        {"NP-100.ProbeA-AP": (b, 30000.0, AP), "DAQ": (c, 1000.0, ["CH1", "CH2", "ADC1"])},
        recording=2,
        numbers={"NP-100.ProbeA-AP": numbers},
    )
    x = open_recording(tmp_path, stream="NP-100.ProbeA-AP")
    assert (x.values == np.concatenate([a, b])[:, :2]).all() and np.allclose(x.gain, 0.195) and x.attrs["units"] == "uV"
    assert x.attrs["gaps"] == [[300, pytest.approx(0.02)], [400, pytest.approx(0.01)]]
    assert positions(x)[:, :2].tolist() == [list(p) for p in xy]
    assert {s.stream for s in list_streams(tmp_path)} == {"NP-100.ProbeA-AP", "NP-100.ProbeA-AP-SYNC", "DAQ", "DAQ-ADC"}
    assert (open_recording(tmp_path, stream="NP-100.ProbeA-AP-SYNC", segment=1).values == b[:, 2:]).all()
    adc = open_recording(tmp_path, stream="DAQ-ADC", segment=0)
    assert (adc.values == c[:, 2:]).all() and np.isnan(positions(adc)).all()
    assert np.isnan(positions(open_recording(tmp_path, stream="DAQ"))).all()


def test_openephys_agrees_with_neo(tmp_path: Path) -> None:
    a, c = noise(0, (300, 3)), noise(2, (50, 3))
    write.write_openephys(tmp_path, {"ProbeA-AP": (a, 30000.0, AP), "DAQ": (c, 1000.0, ["CH1", "CH2", "ADC1"])})
    theirs = {
        s.name.split("#")[1]: s
        for s in ephys.neo_samples(ephys.parse_neo("OpenEphysBinaryRawIO", dirname=str(tmp_path)))
    }
    for name, other in {
        "ProbeA-AP": "ProbeA-AP",
        "DAQ": "DAQ",
        "DAQ_ADC": "DAQ-ADC",
        "ProbeA-APSYNC": "ProbeA-AP-SYNC",
    }.items():
        s = theirs[name]
        assert (open_recording(tmp_path, stream=other).values == s.read(0, s.n_time, np.arange(s.n_channels))).all()


def test_openephys_any_part_of_the_tree(tmp_path: Path) -> None:
    a = noise(0, (300, 3))
    home = write.write_openephys(tmp_path, {"ProbeA-AP": (a, 30000.0, AP)})
    for path in (
        tmp_path / "Record Node 104",
        home,
        home / "structure.oebin",
        home / "continuous" / "ProbeA-AP" / "continuous.dat",
    ):
        assert (open_recording(path, stream="ProbeA-AP").values == a[:, :2]).all()


def test_openephys_flat(tmp_path: Path) -> None:
    a, xy = noise(0, (300, 3)), [(0.0, 0.0), (32.0, 15.0)]
    path = write.write_openephys_flat(tmp_path, a, 30000.0, AP, xy)
    for place in (path, tmp_path, tmp_path / "structure.oebin"):
        x = open_recording(place, stream="ProbeA-AP")
        assert (x.values == a[:, :2]).all() and positions(x)[:, :2].tolist() == [list(p) for p in xy]
    with pytest.raises(InputError, match=r"structure\.oebin"):
        ephys.open_openephys(tmp_path.parent / "nowhere" / "continuous.dat")


def test_openephys_before_06_and_two_nodes(tmp_path: Path) -> None:
    a = noise(0, (300, 3))
    home = write.write_openephys(
        tmp_path, {"A": (a, 1000.0, ["CH1", "CH2", "CH3"])}, numbers={"A": np.arange(500, 800)}
    )
    (home / "continuous" / "A" / "sample_numbers.npy").rename(home / "continuous" / "A" / "timestamps.npy")
    assert open_recording(tmp_path).attrs["t_start"] == 0.5
    np.save(home / "continuous" / "A" / "timestamps.npy", np.arange(300) / 1000 + 7)
    assert open_recording(tmp_path).attrs["t_start"] == 0.0
    (tmp_path / "Record Node 104").rename(tmp_path / "Record Node 9")
    write.write_openephys(tmp_path, {"A": (a, 1000.0, ["CH1", "CH2", "CH3"])})
    assert [s.stream for s in list_streams(tmp_path)] == ["Record Node 9#A", "Record Node 104#A"]


def test_openephys_legacy_gap_is_not_filled(tmp_path: Path) -> None:
    parts = {c: [noise(10 * c + i, (1024,)) for i in range(5)] for c in (1, 2)}
    for c, samples in parts.items():
        write.write_continuous(tmp_path / f"100_CH{c}.continuous", list(zip([512, 1536, 2560, 6000], samples)))
        write.write_continuous(tmp_path / f"100_CH{c}_2.continuous", [(9000, samples[4])])
    x = open_recording(tmp_path)
    assert (x.values == np.stack([np.concatenate(p) for p in parts.values()], axis=1)).all() and x.dtype == np.int16
    assert x.attrs["gaps"] == [
        [3072, pytest.approx((6000 - 3584) / 30000)],
        [4096, pytest.approx((9000 - 7024) / 30000)],
    ]
    assert x.attrs["t_start"] == pytest.approx(512 / 30000) and np.allclose(x.gain, 0.195)
    assert (x.isel(time=slice(3000, 3100)).values[:, 1] == np.concatenate(parts[2])[3000:3100]).all()
    assert open_recording(tmp_path / "100_CH1.continuous", segment=2).shape == (1024, 2)
    write.write_continuous(tmp_path / "100_CH2.continuous", list(zip([512, 1536, 4000, 6000], parts[2])))
    with pytest.raises(InputError, match=r"lost different records|cannot be read"):
        open_recording(tmp_path)


# -------------------------------------------------------------------------------------------------- BrainVision
@pytest.mark.parametrize("dtype", ["<i2", "<i4", "<f4"])
@pytest.mark.parametrize("vectorized", [False, True])
def test_brainvision(tmp_path: Path, dtype: str, vectorized: bool) -> None:
    a = noise(0, (500, 3), dtype)
    path = write.write_brainvision(tmp_path / "a.vhdr", a, vectorized=vectorized, names=["Fp1", "a\\1b", "Fp1"])
    x = open_recording(path)
    assert x.dtype == np.dtype(dtype) and (x.values == a).all() and x.gain.values.tolist() == [0.1] * 3
    assert x.attrs["units"] == "uV" and x.attrs["gaps"] == [] and x.channel.values.tolist() == ["Fp1", "a,b", "Fp1#2"]
    assert (x.isel(time=slice(7, 9), channel=[2, 1]).values == a[7:9][:, [2, 1]]).all()


def test_brainvision_segments(tmp_path: Path) -> None:
    a = noise(0, (900, 2))
    dated = [
        "New Segment,,1,1,0,20260101120000000000",
        "Stimulus,S 1,7,1,0",
        "New Segment,,301,1,0,20260101120001250000",
        "New Segment,,601,1,0",
    ]
    x = open_recording(write.write_brainvision(tmp_path / "a.vhdr", a, markers=dated))
    assert x.attrs["gaps"] == [[300, pytest.approx(0.95)], [600, 0.0]] and [b.sizes["time"] for b in blocks(x)] == [
        300,
        300,
        300,
    ]


def test_brainvision_odd_headers(tmp_path: Path) -> None:
    a = noise(0, (50, 2))
    path = write.write_brainvision(tmp_path / "old.vhdr", a, resolution="", unit="", markers=None)
    x = open_recording(path.with_suffix(".eeg"))
    assert x.gain.values.tolist() == [1, 1] and x.attrs["units"] == "uV"
    path = write.write_brainvision(tmp_path / "latin.vhdr", a, encoding="latin-1")
    assert open_recording(path).attrs["units"] == "uV"
    text = path.read_bytes()
    path.write_bytes(text + b"\r\n[Coordinates]\r\nCh1=1,90,0\r\nCh2=0,0,0\r\n")
    assert np.allclose(positions(open_recording(path)), [[85e3, 0, 0], [np.nan] * 3], equal_nan=True, atol=1e-6)
    path.write_bytes(text.replace(b"BinaryFormat=INT_16", b"BinaryFormat=INT_16\r\nUseBigEndianOrder=YES"))
    assert (open_recording(path).values == a.byteswap()).all()


def test_bids_neighbours(tmp_path: Path) -> None:
    a = noise(0, (50, 3), "<f4")
    path = write.write_brainvision(
        tmp_path / "sub-1_task-rest_ieeg.vhdr", a, names=["G1", "G2", "EMG"], resolution="1", unit="bananas"
    )
    write.write_bids(
        tmp_path, "sub-1", {"G1": (1.5, -2.0, 3.0), "EMG": None, "G2": (4.0, 5.0, 6.0)}, kinds={"EMG": "EMG"}
    )
    write.write_bids(tmp_path, "sub-2", {"G1": (9.0, 9.0, 9.0)})
    x = open_recording(path)
    assert np.allclose(positions(x), [[1500, -2000, 3000], [4000, 5000, 6000], [np.nan] * 3], equal_nan=True)
    assert x.attrs["units"] == "bananas" and ephys.bids_channels(path)["EMG"].kind == "EMG"
    (tmp_path / "sub-1_space-mni_coordsystem.json").write_text(json.dumps({"iEEGCoordinateUnits": "pixels"}))
    assert np.isnan(positions(open_recording(path))).all()
    assert ephys.bids_channels(tmp_path / "a.vhdr") == {}


def test_bids_unit_where_the_header_has_none(tmp_path: Path) -> None:
    path = tmp_path / "sub-1_task-rest_ieeg.edf"
    write.write_bids(tmp_path, "sub-1", {"A": (1, 2, 3), "B": None}, units="mV")
    samples = ephys.MappedSamples(noise(0, (9, 2)), np.arange(2))
    stream = ephys.with_bids(ephys.Stream("s", samples, 100.0, ["A", "B"], gain=2.0), path)
    assert stream.units == "mV" and np.asarray(stream.gain).tolist() == [2, 2]
    placed = ephys.with_bids(ephys.Stream("s", samples, 100.0, ["A", "B"], positions=[[7, 7], [np.nan, np.nan]]), path)
    assert np.allclose(placed.positions, [[7, 7, np.nan], [np.nan] * 3], equal_nan=True)


# ---------------------------------------------------------------------------------------------------- Neuralynx
def test_neuralynx(tmp_path: Path) -> None:
    data = {c: (noise(c, (1500,)), noise(c + 9, (1000,))) for c in (1, 2)}
    for c, (a, b) in data.items():
        write.write_ncs(tmp_path / f"CSC{c}.ncs", [(10**6, a), (2 * 10**6, b)], channel=c)
    write.write_ncs(tmp_path / "EMPTY.ncs", [], channel=7)
    x = open_recording(tmp_path)
    both = np.stack([np.concatenate(d) for d in data.values()], axis=1)
    assert (x.values == both).all() and x.attrs["native_bits"] == 16 and x.attrs["sampling_rate"] == 32000.0
    assert np.allclose(x.gain, 0.1) and x.attrs["units"] == "uV" and x.channel.values.tolist() == ["CSC1", "CSC2"]
    assert x.attrs["gaps"] == [[1500, pytest.approx(1 - 1500 / 32000)]]
    assert (open_recording(tmp_path, segment=1).values == both[1500:]).all()
    assert (x.isel(time=slice(1400, 1600), channel=[1]).values == both[1400:1600, [1]]).all()
    one = open_recording(tmp_path / "CSC2.ncs")
    assert one.channel.values.tolist() == ["CSC2"] and (one.values[:, 0] == both[:, 1]).all()


def test_neuralynx_jitter_is_no_gap_and_short_records_are_refused(tmp_path: Path) -> None:
    a = noise(0, (2048,))
    write.write_ncs(tmp_path / "A.ncs", [(0, a[:1024]), (32_010, a[1024:])])
    assert open_recording(tmp_path / "A.ncs").attrs["gaps"] == []
    assert open_recording(tmp_path / "A.ncs", gap_tolerance_ms=0.001).attrs["gaps"] == [[1024, pytest.approx(1e-5)]]
    write.write_ncs(tmp_path / "B.ncs", [(0, a[:600]), (18750, a[:600])], channel=1)
    with pytest.raises(InputError, match="fewer than 512"):
        open_recording(tmp_path / "B.ncs")


# ------------------------------------------------------------------------------------------------ EEGLAB and FIF
XYZ = np.array([[85.0, 0, 0], [0, -85.0, 0], [0, 0, 85.0]])
RAS = np.array([[0, 85e3, 0], [85e3, 0, 0], [0, 0, 85e3]])
NAMES = ["Fpz", "T8", "Cz"]


@pytest.mark.parametrize("fdt", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_eeglab(tmp_path: Path, fdt: bool, nested: bool) -> None:
    a = np.random.default_rng(0).normal(0, 20, (400, 3)).astype(np.float32)
    path = write.write_eeglab(
        tmp_path / "a.set", a, names=NAMES, xyz=XYZ, fdt=fdt, struct_=nested, boundary=(100.5, 64.0)
    )
    x = open_recording(path)
    assert (
        x.dtype == np.float32
        and (x.values == a).all()
        and x.attrs["units"] == "uV"
        and x.attrs["sampling_rate"] == 128.0
    )
    assert np.allclose(positions(x), RAS) and x.channel.values.tolist() == NAMES and x.attrs["gaps"] == [[100, 0.5]]
    assert (x.isel(time=slice(3, 9)).values == a[3:9]).all()
    if fdt:
        assert (open_recording(path.with_suffix(".fdt")).values == a).all()


def test_eeglab_trials_unit_sphere_and_v73(tmp_path: Path) -> None:
    a = np.random.default_rng(0).normal(0, 20, (400, 3)).astype(np.float32)
    xyz = np.array([[1.0, 0, 0], [0, -1.0, 0], [np.nan] * 3])
    x = open_recording(write.write_eeglab(tmp_path / "t.set", a, names=NAMES, xyz=xyz, fdt=False, trials=4))
    assert (x.values == a).all() and x.attrs["gaps"] == [[100, 0.0], [200, 0.0], [300, 0.0]]
    assert np.allclose(positions(x), [[0, 85e3, 0], [85e3, 0, 0], [np.nan] * 3], equal_nan=True)
    x = open_recording(write.write_eeglab73(tmp_path / "h.set", a, names=NAMES, xyz=XYZ))
    assert (
        (x.isel(time=slice(5, 50)).values == a[5:50]).all()
        and np.allclose(positions(x), RAS)
        and x.channel.values.tolist() == NAMES
    )


def test_eeglab_locs(tmp_path: Path) -> None:
    from scipy.io import savemat

    a = np.ones((10, 2), np.float32)
    savemat(
        tmp_path / "a.set",
        {"EEG": {"nbchan": 2, "pnts": 10, "trials": 1, "srate": 100, "data": a.T, "chanlocs": np.zeros((0, 0))}},
    )
    assert open_recording(tmp_path / "a.set").channel.values.tolist() == ["ch0", "ch1"]
    (tmp_path / "two.locs").write_text("1\t90\t0.5\t.T8.\n2\t0\t0\tCz\n")
    x = open_recording(tmp_path / "a.set")
    assert x.channel.values.tolist() == ["T8", "Cz"] and np.allclose(
        positions(x), [[85e3, 0, 0], [0, 0, 85e3]], atol=1e-6
    )


@pytest.mark.parametrize(("fmt", "dtype"), [("single", "<f4"), ("double", "<f8"), ("int", "<i4"), ("short", "<i2")])
def test_fif(tmp_path: Path, fmt: str, dtype: str) -> None:
    mne = pytest.importorskip("mne")
    a = np.random.default_rng(0).normal(0, 50e-6, (300, 3))
    path = write.write_fif(
        tmp_path / "a_raw.fif",
        a,
        names=["G1", "G2", "G3"],
        xyz=np.array([[0.01, 0.02, 0.03], [0, 0, 0], [-0.04, 0, 0.001]]),
        fmt=fmt,
    )
    x = open_recording(path)
    truth = mne.io.read_raw_fif(path, verbose="error")
    assert (
        x.dtype == np.dtype(dtype)
        and np.allclose(physical(x).values, truth.get_data().T * 1e6, rtol=1e-12)
        and x.attrs["units"] == "uV"
    )
    assert np.allclose(positions(x), [[1e4, 2e4, 3e4], [np.nan] * 3, [-4e4, 0, 1e3]], equal_nan=True)
    assert (x.isel(time=slice(10, 20), channel=[2]).values == x.values[10:20, [2]]).all()
    cal = np.array([c["cal"] * c["range"] for c in truth.info["chs"]])
    assert (x.values * cal).astype(np.float64) == pytest.approx(truth.get_data().T)


def test_fif_suspension_is_a_gap(tmp_path: Path) -> None:
    mne = pytest.importorskip("mne")
    a = np.random.default_rng(0).normal(0, 50e-6, (640, 3))
    path = write.write_fif(tmp_path / "a_raw.fif", a, names=["G1", "G2", "G3"], xyz=np.zeros((3, 3)))
    raw = mne.io.read_raw_fif(path, verbose="error", preload=True)
    raw.set_annotations(mne.Annotations([1.0], [2.0], ["BAD_ACQ_SKIP"]))
    raw.save(tmp_path / "b_raw.fif", buffer_size_sec=0.5, verbose="error")
    x = open_recording(tmp_path / "b_raw.fif")
    kept = np.r_[0:160, 480:640]
    assert x.attrs["gaps"] == [[160, pytest.approx(2.0)]] and np.allclose(x.values, a[kept], rtol=1e-6)


# ------------------------------------------------------------------------------------------------ anything else
def test_neo_by_name_and_by_guess(tmp_path: Path) -> None:
    a = noise(0, (100, 2))
    (tmp_path / "r.dat").write_bytes(a.tobytes())
    (tmp_path / "r.xml").write_text(
        "<parameters><acquisitionSystem><nBits>16</nBits><nChannels>2</nChannels><samplingRate>20000</samplingRate><voltageRange>20</voltageRange>"
        "<amplification>1000</amplification><offset>0</offset></acquisitionSystem><anatomicalDescription><channelGroups><group><channel>0</channel><channel>1</channel></group>"
        "</channelGroups></anatomicalDescription></parameters>"
    )
    x = open_recording(tmp_path / "r.xml")
    assert (x.values == a).all() and x.attrs["format"] == "neo" and x.attrs["units"] == "mV"
    assert (open_recording(tmp_path / "r.xml", format="neo", rawio="NeuroScopeRawIO").values == a).all()
    with pytest.raises(InputError, match="give rawio="):
        open_recording(tmp_path / "r.xml", format="neo", rawio="NoRawIO")


# ------------------------------------------------------------------------------------------------------- damage
def make(kind: str, folder: Path) -> tuple[Path, Path]:
    """Write a good recording; return what to open and the file to damage."""
    folder.mkdir()
    a = noise(0, (2048, 3))
    if kind == "blackrock":
        write.write_blackrock(folder / "a.ns5", [(0, a)])
        return folder / "a.ns5", folder / "a.ns5"
    if kind == "intan":
        write.write_rhd(folder / "a.rhd", noise(0, (512, 2), "<u2", 0, 65536), noise(1, (128, 1), "<u2", 0, 9))
        return folder / "a.rhd", folder / "a.rhd"
    if kind == "spikeglx":
        path = write.write_spikeglx(folder, a)
        return path, path
    if kind == "openephys":
        home = write.write_openephys(folder, {"A": (a, 1e3, ["CH1", "CH2", "CH3"])})
        return folder, home / "continuous" / "A" / "continuous.dat"
    if kind == "legacy":
        write.write_continuous(folder / "100_CH1.continuous", [(0, a[:1024, 0]), (1024, a[1024:, 0])])
        return folder, folder / "100_CH1.continuous"
    if kind == "neuralynx":
        write.write_ncs(folder / "a.ncs", [(0, a[:, 0])])
        return folder, folder / "a.ncs"
    if kind == "brainvision":
        return write.write_brainvision(folder / "a.vhdr", a), folder / "a.eeg"
    if kind == "eeglab":
        return write.write_eeglab(folder / "a.set", a, names=NAMES, xyz=XYZ), folder / "a.fdt"
    path = write.write_fif(folder / "a_raw.fif", a * 1e-6, names=NAMES, xyz=XYZ)
    return path, path


KINDS = ["blackrock", "intan", "spikeglx", "openephys", "legacy", "neuralynx", "brainvision", "eeglab", "fif"]


@pytest.mark.parametrize("kind", KINDS)
def test_good_files_open(kind: str, tmp_path: Path) -> None:
    path, _ = make(kind, tmp_path / kind)
    assert list_streams(path)


@pytest.mark.parametrize("damage", ["cut", "cut_frame", "half", "header", "empty", "other", "gone"])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_one_clear_error(kind: str, damage: str, tmp_path: Path) -> None:
    path, victim = make(kind, tmp_path / kind)
    data = victim.read_bytes()
    headerless = kind in ("spikeglx", "openephys", "brainvision", "eeglab")
    if damage == "cut_frame" and kind in ("intan", "legacy", "neuralynx", "brainvision", "fif"):
        pytest.skip("the format states no length that a whole missing record would break")
    if damage == "other" and headerless:
        pytest.skip("samples without a header: any bytes of the right number are valid")
    if damage == "half" and kind in ("legacy", "neuralynx"):
        data += data[: len(data) // 3]
    bad = {
        "cut": data[:-1],
        "cut_frame": data[:-6],
        "half": data[: len(data) // 2 - 1],
        "header": data[:40],
        "empty": b"",
        "other": b"GIF89a " * (len(data) // 7),
    }
    victim.unlink() if damage == "gone" else victim.write_bytes(bad[damage])
    with pytest.raises(InputError) as e:
        open_recording(path)
    message = str(e.value)
    assert (
        "\n" not in message
        and str(tmp_path) in message
        and "holds several streams" not in message
        and len(message) < 600
    ), message


@pytest.mark.parametrize(
    "name",
    [
        "a.vhdr",
        "a.set",
        "a.rhd",
        "a.ns5",
        "a.ncs",
        "a.meta",
        "a.plx",
        "a.oebin",
        "a.continuous",
        "a.fif",
        "a.trc",
        "a.pl2",
        "a.smr",
        "a.abf",
    ],
)
@pytest.mark.parametrize("content", [b"", b"not a recording\n" * 20, bytes(range(256)) * 300])
def test_wrong_files_are_one_clear_error(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as e:
        open_recording(path)
    assert "\n" not in str(e.value) and name in str(e.value)


def test_missing_partners(tmp_path: Path) -> None:
    path = write.write_brainvision(tmp_path / "a.vhdr", noise(0, (9, 2)))
    path.with_suffix(".vmrk").unlink()
    with pytest.raises(InputError, match="not beside it"):
        open_recording(path)
    write.write_brainvision(tmp_path / "b.vhdr", noise(0, (9, 2)))
    for suffix in (".vhdr", ".eeg", ".vmrk"):
        (tmp_path / f"b{suffix}").rename(tmp_path / f"renamed{suffix}")
    assert open_recording(tmp_path / "renamed.vhdr").shape == (9, 2)
    with pytest.raises(InputError, match="holds no samples"):
        write.write_ncs(tmp_path / "x" / "A.ncs", [])
        open_recording(tmp_path / "x")


# ---------------------------------------------------------------------------------------------------- real data
def real(*parts: str) -> Path:
    home = os.environ.get("NBMF_DATA_DIR")
    if not home:
        pytest.skip("NBMF_DATA_DIR is not set")
    path = Path(home).joinpath("neural", *parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not in NBMF_DATA_DIR")
    return path


@pytest.mark.real
def test_real_fedele() -> None:
    folder = real("ieeg_fedele_hfo", "sub-01", "ses-interictalsleep", "ieeg")
    x = open_recording(folder / "sub-01_ses-interictalsleep_run-01_ieeg.vhdr")
    raw = np.fromfile(folder / "sub-01_ses-interictalsleep_run-01_ieeg.eeg", "<f4").reshape(-1, 50)
    assert x.shape == (10000, 50) and x.attrs["sampling_rate"] == 2000.0 and (x.values == raw).all()
    assert (
        (x.gain == 0.1).all() and x.attrs["units"] == "uV" and x.attrs["gaps"] == [] and x.channel.values[0] == "IAR1"
    )
    assert ephys.bids_channels(folder / "sub-01_ses-interictalsleep_run-01_ieeg.vhdr")["IAR1"].kind == "ECOG"


@pytest.mark.real
def test_real_berlin() -> None:
    folder = real("ecog_stn_berlin", "sub-testsub", "ses-EphysMedOff", "ieeg")
    path = folder / "sub-testsub_ses-EphysMedOff_task-gripforce_run-0_ieeg.vhdr"
    x = open_recording(path)
    assert x.shape == (19001, 10) and x.dtype == np.float32 and ephys.bids_channels(path)["MOV_RIGHT"].kind == "MISC"
    xyz = positions(x)
    assert np.allclose(xyz[3], [37318.174, -48610.12664, 61797.65474]) and np.isnan(xyz[9]).all()
    pitch = np.linalg.norm(np.diff(xyz[3:9], axis=0), axis=1)
    assert (pitch > 8_000).all() and (pitch < 13_000).all()


@pytest.mark.real
def test_real_antneuro_is_three_runs() -> None:
    x = open_recording(real("eeg64_antneuro", "test_CA_208_start_stop.vhdr"))
    assert x.shape == (11087, 88)
    assert [i for i, _ in x.attrs["gaps"]] == [3827, 7655]
    assert [s for _, s in x.attrs["gaps"]] == [pytest.approx(8.709), pytest.approx(9.3)]
    assert {b.sizes["time"] for b in blocks(x, 1.0)} == {1000, 827, 828, 432}
    assert open_recording(real("eeg64_antneuro", "test_CA_208.vhdr")).attrs["gaps"] == []


@pytest.mark.real
def test_real_eeglab() -> None:
    path = real("eeg_eeglab32", "eeglab_data.set")
    x = open_recording(path)
    assert x.shape == (30504, 32) and (x.values == np.fromfile(path.with_suffix(".fdt"), "<f4").reshape(-1, 32)).all()
    assert x.channel.values[:4].tolist() == ["FPz", "EOG1", "F3", "Fz"] and x.attrs["sampling_rate"] == 128.0
    xyz = positions(x.sel(channel=["FPz", "F3", "F4"])) / 1000
    assert xyz[0, 1] > 80 and xyz[1, 0] < 0 < xyz[2, 0] and xyz[2, 1] > 0


@pytest.mark.real
def test_real_fif() -> None:
    mne = pytest.importorskip("mne")
    path = real("ecog_mne394", "sample_ecog_ieeg.fif")
    x = open_recording(path)
    truth = mne.io.read_raw_fif(path, verbose="error")
    assert x.shape == (113, 394) and x.dtype == np.float32 and np.allclose(physical(x).values, truth.get_data().T * 1e6)
    assert np.allclose(positions(x)[0], [33459.25, 66504.4, 39242.23], rtol=1e-5) and np.isfinite(positions(x)).all()


@pytest.mark.real
def test_real_neuropixels() -> None:
    folder = real("neuropixels_tiny385")
    raw = np.fromfile(folder / "continuous.dat", "<i2").reshape(-1, 385)
    for place in (folder, folder / "continuous.dat"):
        x = open_recording(place, stream="Neuropix-PXI-100.ProbeA-AP")
        assert x.shape == (1000, 384) and (x.values == raw[:, :384]).all() and np.allclose(x.gain, 0.195)
        xyz = positions(x)
        assert xyz[:4, :2].tolist() == [[11, 0], [59, 0], [11, 20], [59, 20]] and np.isfinite(xyz[:, :2]).all()
        assert (open_recording(place, stream="Neuropix-PXI-100.ProbeA-AP-SYNC").values == raw[:, 384:]).all()
