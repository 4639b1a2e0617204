"""Writers of tiny files in the real binary layouts of acquisition systems, for tests only.

Each follows the vendor's published layout byte by byte and none uses the reader under test. Sample arrays have the
shape (time, channel).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


def noise(seed: int, shape: tuple[int, ...], dtype: str = "<i2", low: int = -3000, high: int = 3000) -> Array:
    """Return integers that no two places share by accident."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


# ---------------------------------------------------------------------------------------------------- Blackrock
def write_blackrock(
    path: Path,
    blocks: Sequence[tuple[int, Array]],
    *,
    period: int = 1,
    names: Sequence[str] | None = None,
    units: Sequence[str] | str = "uV",
    digital: tuple[int, int] = (-32764, 32764),
    analog: tuple[int, int] = (-8191, 8191),
) -> None:
    """Write an .nsX file of specification 2.3: `blocks` are (timestamp in 1/30000 s, int16 samples)."""
    n_channels = blocks[0][1].shape[1]
    names = names or [f"elec{i + 1}" for i in range(n_channels)]
    unit = [units] * n_channels if isinstance(units, str) else list(units)
    size = 314 + 66 * n_channels
    out = struct.pack(
        "<8sBBI16s256sII8HI",
        b"NEURALCD",
        2,
        3,
        size,
        b"30 kS/s",
        b"",
        period,
        30000,
        2026,
        1,
        4,
        1,
        0,
        0,
        0,
        0,
        n_channels,
    )
    for i in range(n_channels):
        out += struct.pack(
            "<2sH16sBB4h16sIIHIIH",
            b"CC",
            i + 1,
            names[i].encode(),
            1,
            i + 1,
            *digital,
            *analog,
            unit[i].encode(),
            300,
            1,
            1,
            7500000,
            3,
            1,
        )
    for stamp, x in blocks:
        out += struct.pack("<BII", 1, stamp, len(x)) + np.asarray(x, "<i2").tobytes()
    path.write_bytes(out)


def write_blackrock21(path: Path, x: Array, *, period: int = 1) -> None:
    """Write an .nsX file of specification 2.1, which knows neither scale nor time stamps."""
    head = (
        struct.pack("<8s16sII", b"NEURALSG", b"30 kS/s", period, x.shape[1])
        + np.arange(1, x.shape[1] + 1, dtype="<u4").tobytes()
    )
    path.write_bytes(head + np.asarray(x, "<i2").tobytes())


def write_blackrock_ptp(path: Path, stamps: Array, x: Array) -> None:
    """Write an .nsX file of specification 3.0 with a packet for each sample; `stamps` in nanoseconds."""
    n = x.shape[1]
    out = struct.pack(
        "<8sBBI16s256sII8HI", b"BRSMPGRP", 3, 0, 314 + 66 * n, b"30 kS/s", b"", 1, 10**9, 2026, 1, 4, 1, 0, 0, 0, 0, n
    )
    for i in range(n):
        out += struct.pack(
            "<2sH16sBB4h16sIIHIIH",
            b"CC",
            i + 1,
            f"e{i + 1}".encode(),
            1,
            i + 1,
            -32764,
            32764,
            -8191,
            8191,
            b"uV",
            300,
            1,
            1,
            7500000,
            3,
            1,
        )
    path.write_bytes(
        out
        + b"".join(struct.pack("<BQI", 1, int(t), 1) + np.asarray(row, "<i2").tobytes() for t, row in zip(stamps, x))
    )


# -------------------------------------------------------------------------------------------------------- Intan
def _qstring(text: str) -> bytes:
    raw = text.encode("utf-16-le")
    return struct.pack("<I", len(raw) if raw else 0xFFFFFFFF) + raw


def _intan_channel(name: str, order: int, kind: int, rhs: bool = False) -> bytes:
    integers = (
        (order, order, kind, 1, order, 0, 0, 0, 0, 0, 0) if rhs else (order, order, kind, 1, order, 0, 0, 0, 0, 0)
    )
    return (
        _qstring(name)
        + _qstring(name.replace("A-", "probe-"))
        + struct.pack(f"<{len(integers)}hff", *integers, 1e5, -60.0)
    )


def _rhd_header(n_amp: int, n_aux: int, rate: float) -> bytes:
    out = struct.pack(
        "<Ihhfhffffffhff", 0xC6912702, 3, 0, rate, 1, 1.0, 0.1, 7500.0, 1.0, 0.1, 7500.0, 0, 1000.0, 1000.0
    )
    out += _qstring("note") + _qstring("") * 2 + struct.pack("<hh", 0, 0) + _qstring("n/a") + struct.pack("<h", 1)
    out += _qstring("Port A") + _qstring("A") + struct.pack("<hhh", 1, n_amp + n_aux, n_amp)
    out += b"".join(_intan_channel(f"A-{i:03d}", i, 0) for i in range(n_amp))
    return out + b"".join(_intan_channel(f"A-AUX{i + 1}", i, 1) for i in range(n_aux))


def write_rhd(path: Path, amplifier: Array, aux: Array, *, rate: float = 20000.0, first: Sequence[int] = (0,)) -> None:
    """Write a header-attached .rhd of version 3.0: blocks of 128 amplifier samples (uint16, offset 2**15) and 32 auxiliary ones.

    `first` gives the first time stamp of each equal share of the blocks, so that a jump makes a gap.
    """
    out = _rhd_header(amplifier.shape[1], aux.shape[1], rate)
    n_blocks = len(amplifier) // 128
    share = n_blocks // len(first)
    for b in range(n_blocks):
        start = first[min(b // share, len(first) - 1)] + 128 * (b % share if len(first) > 1 else b)
        out += np.arange(start, start + 128, dtype="<i4").tobytes()
        out += np.asarray(amplifier[128 * b : 128 * b + 128], "<u2").T.tobytes()
        out += np.asarray(aux[32 * b : 32 * b + 32], "<u2").T.tobytes()
    path.write_bytes(out)


def write_rhd_split(folder: Path, amplifier: Array, *, rate: float = 20000.0) -> Path:
    """Write Intan's one-file-per-signal-type layout: info.rhd, time.dat, amplifier.dat (int16 without offset)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "info.rhd").write_bytes(_rhd_header(amplifier.shape[1], 0, rate))
    (folder / "time.dat").write_bytes(np.arange(len(amplifier), dtype="<i4").tobytes())
    (folder / "amplifier.dat").write_bytes(np.asarray(amplifier, "<i2").tobytes())
    return folder / "info.rhd"


def write_rhs(path: Path, amplifier: Array, dc: Array, stim: Array, *, rate: float = 20000.0) -> None:
    """Write a header-attached .rhs of version 3.0 with DC amplifier and stimulation words."""
    out = struct.pack(
        "<Ihhfhffffffffhffhhfff",
        0xD69127AC,
        3,
        0,
        rate,
        1,
        1.0,
        0.1,
        1000.0,
        7500.0,
        1.0,
        0.1,
        1000.0,
        7500.0,
        0,
        1000.0,
        1000.0,
        0,
        0,
        1e-6,
        1e-9,
        0.0,
    )
    out += _qstring("") * 3 + struct.pack("<hh", 1, 0) + _qstring("n/a") + struct.pack("<h", 1)
    n = amplifier.shape[1]
    out += _qstring("Port A") + _qstring("A") + struct.pack("<hhh", 1, n, n)
    out += b"".join(_intan_channel(f"A-{i:03d}", i, 0, rhs=True) for i in range(n))
    for b in range(len(amplifier) // 128):
        part = slice(128 * b, 128 * b + 128)
        out += np.arange(128 * b, 128 * b + 128, dtype="<i4").tobytes()
        out += b"".join(np.asarray(a[part], "<u2").T.tobytes() for a in (amplifier, dc, stim))
    path.write_bytes(out)


# ----------------------------------------------------------------------------------------------------- SpikeGLX
def write_spikeglx(
    folder: Path,
    x: Array,
    *,
    band: str = "ap",
    trigger: int = 0,
    rate: float = 30000.0,
    first: int = 0,
    geometry: Sequence[tuple[int, float, float]] | None = None,
) -> Path:
    """Write a Neuropixels 1.0 .bin/.meta pair (the last channel of `x` is the sync word); `geometry` holds (shank, x, z) in micrometres."""
    folder.mkdir(parents=True, exist_ok=True)
    n = x.shape[1] - 1
    stem = f"run_g0_t{trigger}.imec0.{band}"
    raw = np.asarray(x, "<i2").tobytes()
    letter = band.upper()
    counts = f"{n},0,1" if band == "ap" else f"0,{n},1"
    lines = [
        "appVersion=20230905",
        f"fileName=D:/data/{stem}.bin",
        f"fileSizeBytes={len(raw)}",
        f"fileTimeSecs={len(x) / rate}",
        f"firstSample={first}",
        "imAiRangeMax=0.6",
        "imAiRangeMin=-0.6",
        "imDatPrb_pn=NP1010",
        "imDatPrb_type=0",
        "imMaxInt=512",
        f"imSampRate={rate}",
        f"nSavedChans={n + 1}",
        f"snsApLfSy={counts}",
        f"snsSaveChanSubset=0:{n}",
        "typeThis=imec",
        "~imroTbl=(0,384)" + "".join(f"({i} 0 0 500 250 1)" for i in range(n)),
        "~snsChanMap=(384,384,1)" + "".join(f"({letter}{i};{i}:{i})" for i in range(n)) + f"(SY0;{n}:{n})",
    ]
    if geometry is not None:
        lines.append("~snsGeomMap=(NP1010,2,250,70)" + "".join(f"({s}:{gx:g}:{gz:g}:1)" for s, gx, gz in geometry))
    (folder / f"{stem}.bin").write_bytes(raw)
    (folder / f"{stem}.meta").write_text("\n".join(lines) + "\n")
    return folder / f"{stem}.bin"


# --------------------------------------------------------------------------------------------------- Open Ephys
def _positions_xml(xy: Sequence[tuple[float, float]]) -> str:
    xs = " ".join(f'CH{i}="{x:g}"' for i, (x, _) in enumerate(xy))
    ys = " ".join(f'CH{i}="{y:g}"' for i, (_, y) in enumerate(xy))
    return f'<SETTINGS><SIGNALCHAIN><PROCESSOR name="Neuropix-PXI"><EDITOR><NP_PROBE><ELECTRODE_XPOS {xs}/><ELECTRODE_YPOS {ys}/></NP_PROBE></EDITOR></PROCESSOR></SIGNALCHAIN></SETTINGS>'


def oebin(streams: Mapping[str, tuple[Array, float, Sequence[str]]], bit_volts: float = 0.195) -> str:
    """Return the text of a structure.oebin: stream name to (samples, rate, channel names)."""
    continuous = []
    for name, (x, rate, names) in streams.items():
        channels = [{"channel_name": c, "bit_volts": 1.0 if "SYNC" in c else bit_volts, "units": "uV"} for c in names]
        continuous.append(
            {
                "folder_name": f"{name}/",
                "sample_rate": rate,
                "num_channels": x.shape[1],
                "stream_name": name,
                "channels": channels,
            }
        )
    return json.dumps({"GUI version": "0.6.0", "continuous": continuous, "events": [], "spikes": []})


def write_openephys(
    folder: Path,
    streams: Mapping[str, tuple[Array, float, Sequence[str]]],
    *,
    recording: int = 1,
    numbers: Mapping[str, Array] | None = None,
    xy: Sequence[tuple[float, float]] | None = None,
) -> Path:
    """Write one recording of an Open Ephys binary folder (GUI 0.6); `numbers` overrides the sample numbers of a stream."""
    node = folder / "Record Node 104"
    home = node / "experiment1" / f"recording{recording}"
    for name, (x, _, _) in streams.items():
        (home / "continuous" / name).mkdir(parents=True)
        (home / "continuous" / name / "continuous.dat").write_bytes(np.asarray(x, "<i2").tobytes())
        np.save(
            home / "continuous" / name / "sample_numbers.npy",
            (numbers or {}).get(name, np.arange(len(x), dtype=np.int64)),
        )
    (home / "structure.oebin").write_text(oebin(streams))
    if xy is not None:
        (node / "settings.xml").write_text(_positions_xml(xy))
    return home


def write_openephys_flat(
    folder: Path, x: Array, rate: float, names: Sequence[str], xy: Sequence[tuple[float, float]]
) -> Path:
    """Write continuous.dat, structure.oebin and settings.xml side by side, as people pass single recordings on."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "structure.oebin").write_text(oebin({"ProbeA-AP": (x, rate, names)}))
    (folder / "settings.xml").write_text(_positions_xml(xy))
    (folder / "continuous.dat").write_bytes(np.asarray(x, "<i2").tobytes())
    return folder / "continuous.dat"


def write_continuous(path: Path, records: Sequence[tuple[int, Array]], *, rate: float = 30000.0) -> None:
    """Write a legacy Open Ephys .continuous file: `records` are (first sample number, 1024 int16 samples)."""
    header = (
        "header.format = 'Open Ephys Data Format';\nheader.version = 0.4;\nheader.header_bytes = 1024;\nheader.description = '';\n"
        f"header.date_created = '1-Jan-2026 0000';\nheader.channel = 'CH1';\nheader.channelType = 'Continuous';\nheader.sampleRate = {rate:g};\n"
        "header.blockLength = 1024;\nheader.bufferSize = 1024;\nheader.bitVolts = 0.195;\n"
    )
    out = header.encode().ljust(1024)
    for number, x in records:
        out += struct.pack("<qHH", number, 1024, 0) + np.asarray(x, ">i2").tobytes() + bytes([*range(9), 255])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)


# -------------------------------------------------------------------------------------------------- BrainVision
def write_brainvision(
    path: Path,
    x: Array,
    *,
    rate: float = 1000.0,
    names: Sequence[str] | None = None,
    resolution: str = "0.1",
    unit: str = "µV",
    markers: Sequence[str] | None = ("New Segment,,1,1,0,20260101000000000000",),
    vectorized: bool = False,
    encoding: str = "utf-8",
) -> Path:
    """Write a .vhdr/.eeg/.vmrk triple around `x` (int16, int32 or float32)."""
    kind = {"<i2": "INT_16", "<i4": "INT_32", "<f4": "IEEE_FLOAT_32"}[x.dtype.str]
    names = names or [f"E{i + 1}" for i in range(x.shape[1])]
    head = [
        "Brain Vision Data Exchange Header File Version 1.0",
        "; made by a test",
        "",
        "[Common Infos]",
        f"Codepage={'UTF-8' if encoding == 'utf-8' else 'ANSI'}",
        f"DataFile={path.stem}.eeg",
        *([f"MarkerFile={path.stem}.vmrk"] if markers is not None else []),
        "DataFormat=BINARY",
        f"DataOrientation={'VECTORIZED' if vectorized else 'MULTIPLEXED'}",
        f"NumberOfChannels={x.shape[1]}",
        f"SamplingInterval={1e6 / rate:g}",
        "",
        "[Binary Infos]",
        f"BinaryFormat={kind}",
        "",
        "[Channel Infos]",
        *[f"Ch{i + 1}={n},,{resolution},{unit}" for i, n in enumerate(names)],
        "",
        "[Comment]",
        "free = text = here",
    ]
    path.write_bytes("\r\n".join(head).encode(encoding))
    path.with_suffix(".eeg").write_bytes((x.T if vectorized else x).tobytes())
    if markers is not None:
        text = [
            "Brain Vision Data Exchange Marker File, Version 1.0",
            "[Common Infos]",
            f"DataFile={path.stem}.eeg",
            "[Marker Infos]",
            *[f"Mk{i + 1}={m}" for i, m in enumerate(markers)],
        ]
        path.with_suffix(".vmrk").write_bytes("\r\n".join(text).encode(encoding))
    return path


def write_bids(
    folder: Path,
    prefix: str,
    positions: Mapping[str, tuple[float, float, float] | None],
    *,
    unit: str = "mm",
    units: str = "µV",
    kinds: Mapping[str, str] | None = None,
    bom: bool = True,
) -> None:
    """Write the electrodes.tsv, coordsystem.json and channels.tsv that BIDS puts beside an iEEG recording."""
    start = "\ufeff" if bom else ""
    rows = ["name\tx\ty\tz\tsize"] + [
        "\t".join([n, *(["n/a"] * 3 if p is None else map(str, p)), "n/a"]) for n, p in positions.items()
    ]
    (folder / f"{prefix}_space-mni_electrodes.tsv").write_text(start + "\n".join(rows) + "\n")
    (folder / f"{prefix}_space-mni_coordsystem.json").write_text(
        json.dumps({"iEEGCoordinateSystem": "Other", "iEEGCoordinateUnits": unit})
    )
    rows = ["name\ttype\tunits"] + [f"{n}\t{(kinds or {}).get(n, 'ECOG')}\t{units}" for n in positions]
    (folder / f"{prefix}_task-rest_channels.tsv").write_text(start + "\n".join(rows) + "\n")


# ---------------------------------------------------------------------------------------------------- Neuralynx
def write_ncs(
    path: Path, runs: Sequence[tuple[int, Array]], *, channel: int = 0, rate: int = 32000, bit_volts: float = 1e-7
) -> None:
    """Write an .ncs file: `runs` are (time stamp in microseconds, int16 samples), each cut into records of 512."""
    text = (
        "######## Neuralynx Data File Header\r\n-FileType NCS\r\n-FileVersion 3.3.0\r\n-RecordSize 1044\r\n-CheetahRev 5.7.4\r\n-HardwareSubSystemType DigitalLynxSX\r\n"
        f"-SamplingFrequency {rate}\r\n-ADMaxValue 32767\r\n-ADBitVolts {bit_volts:.12f}\r\n-AcqEntName {path.stem}\r\n-NumADChannels 1\r\n-ADChannel {channel}\r\n"
        "-InputRange 3000\r\n-InputInverted False\r\n-TimeCreated 2026/01/01 00:00:00\r\n-TimeClosed 2026/01/01 00:01:00\r\n"
    )
    out = text.encode("latin-1").ljust(16384, b"\0")
    for stamp, x in runs:
        for i in range(0, len(x), 512):
            part = np.zeros(512, "<i2")
            part[: len(x[i : i + 512])] = x[i : i + 512]
            out += (
                struct.pack("<QIII", stamp + round(i * 1e6 / rate), channel, rate, len(x[i : i + 512])) + part.tobytes()
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)


# ------------------------------------------------------------------------------------------------------- EEGLAB
def _chanlocs(names: Sequence[str], xyz: Array) -> Array:
    locs = np.zeros(
        len(names), dtype=[("labels", object), ("X", object), ("Y", object), ("Z", object), ("type", object)]
    )
    for i, n in enumerate(names):
        locs[i] = (n, *[float(v) if np.isfinite(v) else np.zeros((0, 0)) for v in xyz[i]], "EEG")
    return locs


def write_eeglab(
    path: Path,
    x: Array,
    *,
    rate: float = 128.0,
    names: Sequence[str],
    xyz: Array,
    fdt: bool = True,
    trials: int = 1,
    struct_: bool = True,
    boundary: tuple[float, float] | None = None,
) -> Path:
    """Write an EEGLAB data set of MATLAB 5 kind: `xyz` in EEGLAB's axes (X nose, Y left, Z up) and millimetres, samples in a .fdt or inside."""
    from scipy.io import savemat

    points = len(x) // trials
    event = np.zeros(1 if boundary else 0, dtype=[("type", object), ("latency", object), ("duration", object)])
    if boundary:
        event[0] = ("boundary", *boundary)
    inside = (
        np.asarray(x.T, np.float32)
        if trials == 1
        else np.asarray(x, np.float32).reshape(trials, points, -1).transpose(2, 1, 0)
    )
    fields = {
        "setname": "test",
        "nbchan": float(x.shape[1]),
        "pnts": float(points),
        "trials": float(trials),
        "srate": rate,
        "xmin": 0.0,
        "chanlocs": _chanlocs(names, xyz),
        "event": event,
        "data": f"{path.stem}.fdt" if fdt else inside,
    }
    savemat(path, {"EEG": fields} if struct_ else fields, appendmat=False)
    if fdt:
        path.with_suffix(".fdt").write_bytes(np.asarray(x, "<f4").tobytes())
    return path


def write_eeglab73(path: Path, x: Array, *, rate: float = 128.0, names: Sequence[str], xyz: Array) -> Path:
    """Write an EEGLAB data set of MATLAB 7.3 kind (HDF5 behind a 512-byte user block), samples inside."""
    import h5py

    def text(value: str) -> Array:
        return np.frombuffer(value.encode("utf-16-le"), "<u2")[:, None]

    with h5py.File(path, "w", userblock_size=512) as f:
        group, refs = f.create_group("EEG"), f.create_group("#refs#")
        for key, value in {"nbchan": x.shape[1], "pnts": len(x), "trials": 1, "srate": rate, "xmin": 0.0}.items():
            group[key] = np.array([[float(value)]])
        group["data"] = np.asarray(x, np.float32)
        locs = group.create_group("chanlocs")
        columns = {
            "labels": [text(n) for n in names],
            **{a: [np.array([[v]]) for v in xyz[:, k]] for k, a in enumerate("XYZ")},
        }
        for key, values in columns.items():
            stored = [refs.create_dataset(f"{key}{i}", data=v).ref for i, v in enumerate(values)]
            locs.create_dataset(key, data=np.array(stored, dtype=object)[:, None], dtype=h5py.ref_dtype)
    with path.open("r+b") as f:
        f.write(b"MATLAB 7.3 MAT-file, written by a test".ljust(124) + b"\0\2IM")
    return path


# ---------------------------------------------------------------------------------------------------------- FIF
def write_fif(
    path: Path, x: Array, *, rate: float = 160.0, names: Sequence[str], xyz: Array, fmt: str = "single"
) -> Path:
    """Write a raw FIF file through mne: `x` in volts, `xyz` in metres."""
    import mne

    info = mne.create_info(list(names), rate, "ecog", verbose="error")
    for ch, p in zip(info["chs"], xyz, strict=True):
        ch["loc"][:3] = p
    mne.io.RawArray(np.asarray(x.T, float), info, verbose="error").save(path, fmt=fmt, overwrite=True, verbose="error")
    return path
