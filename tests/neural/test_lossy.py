"""neural.lossy: targets that are met, certificates that hold, codecs that fail, and nonsense."""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from nbmf_research.coding import container as c
from nbmf_research.core import InputError, StreamError
from nbmf_research.metrics import snr_db
from nbmf_research.neural import lossy, streams
from nbmf_research.neural.adaptive import AdaptiveCodec
from nbmf_research.neural.recordings import crop, recording
from nbmf_research.neural.sets import find_set
from nbmf_research.neural.simulate import simulate
from nbmf_research.neural.transform import KLTDCT

GOLDEN = Path(__file__).parent / "golden" / "v1_neural_lossy.nbmf"
FAST = {"codec": "klt-dct", "block_seconds": 1.0}
real = pytest.mark.skipif(not os.environ.get("NBMF_DATA_DIR"), reason="needs real recordings: set NBMF_DATA_DIR")


@pytest.fixture(scope="module")
def eeg() -> xr.DataArray:
    """Sixteen channels of simulated EEG for ten seconds, with gains that differ; the middle is louder."""
    x = simulate("eeg", seconds=10.0, seed=5).recording[:, :16]
    loud = np.repeat([1, 3, 1], len(x) // 3 + 1)[: len(x), None].astype(np.int16)
    gain = np.linspace(0.1, 0.4, 16)
    return recording(x.values * loud, x.attrs["sampling_rate"], units="uV", gain=gain, native_bits=14)


def encoded(x: xr.DataArray, **options) -> tuple[bytes, dict]:
    out = io.BytesIO()
    info = streams.encode_recording(x, out, **options)
    return out.getvalue(), info


# ---- targets


@pytest.mark.parametrize(
    "asked",
    [
        {"ratio": 10.0, "max_error": "12uV"},
        {"codec": "vae", "step": 40.0, "max_error": 3.0, "weights": "vae"},
        {"codec": "wavelet", "step": 40.0, "max_error": "9counts", "fallback": []},
    ],
)
def test_a_hard_bound_under_any_lossy_codec(eeg: xr.DataArray, asked: dict) -> None:
    data, info = encoded(eeg, block_seconds=5.0, **asked)
    with c.open_stream(data) as s:
        y = s.read()
        assert not lossy.check_certificates(s, eeg).violations
    counts = streams.parse_bound(asked["max_error"], eeg)
    assert 0 < np.abs(y.astype(int) - eeg.values).max() <= counts and "nbmf-max" not in info["quality"]["share"]
    if "ratio" in asked:
        assert 10 <= info["ratio_int16"] <= 10 / 0.98


def test_a_bound_without_room_is_kept_without_loss(eeg: xr.DataArray) -> None:
    floats = recording(eeg.values.astype(np.float32) * 1e6, eeg.attrs["sampling_rate"])
    _, info = encoded(floats, codec="adaptive", step=1e8, max_error=1e-3)
    assert info["quality"]["share"] == {"nbmf-max": 1.0} and info["quality"]["max_error"] == 0.0


@pytest.mark.parametrize("ratio", [6.0, 12.0, 30.0])
@pytest.mark.parametrize("seconds", [10.0, 0.5])  # one block; twenty, so that the search begins with an excerpt
def test_a_ratio_is_met_by_all_bytes_of_the_file(eeg: xr.DataArray, ratio: float, seconds: float) -> None:
    data, info = encoded(eeg, codec="klt-dct", block_seconds=seconds, ratio=ratio)
    assert ratio <= 2 * eeg.size / len(data) <= ratio / 0.98
    assert math.isclose(info["ratio_int16"], 2 * eeg.size / len(data)) and info["bytes"] == len(data)


def test_bits_per_sample_are_those_of_a_ratio(eeg: xr.DataArray) -> None:
    assert encoded(eeg, ratio=16, **FAST)[0] == encoded(eeg, bits_per_sample=1.0, **FAST)[0]


def test_the_ratio_is_to_sixteen_bits_whatever_the_type(eeg: xr.DataArray) -> None:
    x = recording(eeg.values.astype(np.float64), 160.0)
    data, info = encoded(x, ratio=20, **FAST)
    assert 0.98 * 0.8 <= 8 * len(data) / x.size <= 0.8 and info["ratio_int16"] >= 20


def test_each_block_has_the_snr_and_no_more(eeg: xr.DataArray) -> None:
    data, _ = encoded(eeg, codec="adaptive", snr_db=15.0, block_seconds=2.0)
    with c.open_stream(data) as s:
        y, blocks = s.read(), s.info(blocks=True)["blocks"]
    asked = sum(b["n"] * lossy.deviation(eeg.values[b["start"] : b["start"] + b["n"]]) ** 2 for b in blocks)
    for b in blocks:
        part = slice(b["start"], b["start"] + b["n"])
        assert 15.0 <= snr_db(eeg.values[part], y[part]) <= 15.0 - 20 * math.log10(0.98)
    noise = np.square(y.astype(float) - eeg.values).sum() / 16
    assert 0.98 <= math.sqrt(noise / asked) * 10 ** (15 / 20) <= 1.0


def test_the_bytes_do_not_depend_on_the_jobs(eeg: xr.DataArray) -> None:
    for target in ({"ratio": 12}, {"snr_db": 12.0}):
        assert encoded(eeg, **FAST, **target)[0] == encoded(eeg, **FAST, **target, jobs=3)[0]


def test_floors_are_kept_under_a_target(eeg: xr.DataArray) -> None:
    free, kept = (encoded(eeg, ratio=20, **FAST, **more) for more in ({}, {"min_snr_db": 9.0, "max_rmse": "20uV"}))
    worst = []
    for data, info in (free, kept):
        assert 20 <= info["ratio_int16"] <= 20 / 0.98
        with c.open_stream(data) as s:
            reports = list(lossy.block_reports(s))
            y = s.read()
        parts = [slice(r.start, r.start + r.n) for r in reports]
        worst.append(min(snr_db(eeg.values[p], y[p]) for p in parts))
    assert worst[0] < 9.0 <= worst[1] and max(r.certificate.rmse for r in reports) <= 20.0


def test_a_size_beyond_the_lossless_one_is_lossless(eeg: xr.DataArray) -> None:
    data, info = encoded(eeg, codec="klt-dct", bits_per_sample=30.0)
    assert (c.open_stream(data).read() == eeg.values).all() and info["quality"]["max_error"] == 0.0


def test_samples_on_a_lattice_are_not_made_longer() -> None:
    x = recording(64 * np.random.default_rng(0).integers(-20, 21, (4000, 2)).astype(np.int16), 1000.0)
    exact = encoded(x, codec="nbmf-max")[1]["bytes"]
    data, info = encoded(x, codec="klt-dct", step=2.0)
    assert info["bytes"] < exact + 60 and (c.open_stream(data).read() == x.values).all()


def test_a_snr_run_is_resumed(eeg: xr.DataArray, tmp_path) -> None:
    whole = encoded(eeg, snr_db=12.0, **FAST)[0]
    code = streams._Watched.encode_block
    left = [4]

    def killed(self, x):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return code(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams._Watched, "encode_block", killed)
        with pytest.raises(KeyboardInterrupt):
            streams.encode_recording(eeg, tmp_path / "a.nbmf", snr_db=12.0, resume=True, **FAST)
    streams.encode_recording(eeg, tmp_path / "a.nbmf", snr_db=12.0, resume=True, **FAST)
    assert (tmp_path / "a.nbmf").read_bytes() == whole


@settings(deadline=None, max_examples=30)
@given(
    st.floats(-3, 3),
    st.floats(0.3, 3),
    st.floats(-6, 6),
    st.sampled_from([-1.0, 1.0]),
    st.floats(0, 0.5),
    st.integers(0, 9),
)
def test_the_search_finds_the_knob_of_smooth_curves(
    scale: float, power: float, start: float, sign: float, bend: float, seed: int
) -> None:
    calls = []

    def curve(knob: float) -> float:
        calls.append(knob)
        u = math.log(knob)
        return math.exp(scale + sign * power * (u + bend * math.sin(u)))

    goal = curve(math.exp(np.random.default_rng(seed).uniform(-5, 5)))
    found = lossy.find_knob(curve, math.exp(start), 0.98 * goal, goal, slope=sign, tries=16)
    assert found is not None and 0.98 * goal <= curve(found) <= goal


# ---- certificates


def measured(x: np.ndarray, y: np.ndarray, gain: np.ndarray, rate: float) -> tuple[float, float, dict[str, float]]:
    """Largest error, RMS error and relative errors of band power, written anew from their definitions."""
    e = (y.astype(np.float64) - x.astype(np.float64)) * gain
    powers, n = [], len(x)
    for v in (x, y):
        f, p = signal.welch(v.astype(np.float64), rate, nperseg=min(n, round(2 * rate)), axis=0)
        powers.append(p)
    bands = {}
    for name, (low, high) in lossy.usable_bands(n, rate).items():
        inside = (f >= low) & (f < high)
        a, b = (p[inside].sum(0) * f[1] for p in powers)
        on = a > (high - low) / (6 * rate) if x.dtype.kind in "iu" else a > 0
        if on.any():
            bands[name] = float(np.mean(np.abs(b[on] - a[on]) / a[on]))
    return float(np.abs(e).max()), float(np.sqrt(np.mean(e**2))), bands


def broken(data: bytes, x: np.ndarray) -> tuple[int, int, float]:
    """Number of blocks, of statements that do not hold, and the mean of true over stated RMS error."""
    wrong, tight = 0, []
    with c.open_stream(data) as s:
        gain, rate = np.broadcast_to(s.metadata.gain, (s.n_channels,)), s.metadata.sampling_rate
        reports = list(lossy.block_reports(s))
        for r in reports:
            y = s.read(r.start, r.start + r.n, r.channels)
            part = x[r.start : r.start + r.n, r.channels]
            largest, rms, bands = measured(part, y, gain[r.channels], rate)
            worst = r.certificate.band_power
            wrong += largest > r.certificate.max_error or rms > r.certificate.rmse
            wrong += any(bands[k] > v for k, v in r.bands.items())
            wrong += worst is not None and any(v > worst for v in bands.values())
            tight += [rms / r.certificate.rmse] if r.certificate.rmse else []
    return len(reports), wrong, float(np.mean(tight)) if tight else 1.0


@pytest.mark.parametrize("seconds", [10.0, 1.0, 0.05])
def test_certificates_hold_and_are_tight(eeg: xr.DataArray, seconds: float) -> None:
    data, info = encoded(eeg, codec="klt-dct", step=40.0, block_seconds=seconds, groups=8)
    blocks, wrong, tight = broken(data, eeg.values)
    assert wrong == 0 and blocks == info["n_blocks"] and tight > 0.998
    with c.open_stream(data) as s:
        check = lossy.check_certificates(s, eeg)
        assert check.n_blocks == blocks and check.violations == () and check.tightness > 0.998
        other = lossy.check_certificates(s, eeg + np.int16(200))
        assert len(other.violations) >= blocks
        with pytest.raises(InputError, match="does not fit"):
            lossy.check_certificates(s, eeg[:-1])
    assert set(info["quality"]["band_power"]) == set(lossy.usable_bands(round(seconds * 160), 160.0))


def test_what_a_stream_says_of_its_blocks(eeg: xr.DataArray) -> None:
    data, info = encoded(eeg, codec="klt-dct", step=40.0, block_seconds=2.0)
    with c.open_stream(data) as s:
        about, reports = lossy.stream_info(s, blocks=True), list(lossy.block_reports(s))
        assert lossy.chain_names(s) == ("klt-dct", "nbmf-max")
    assert about["quality"] == info["quality"] == lossy.quality(reports)
    assert [b["chosen"] for b in about["blocks"]] == ["klt-dct"] * 5 and about["quality"]["delay_samples"] == 320
    assert about["blocks"][0]["band_power"] == reports[0].bands
    assert math.isclose(sum(info["quality"]["share"].values()), 1.0)
    y = c.open_stream(data).read()
    rms = np.sqrt(np.mean(((y - eeg.values.astype(float)) * eeg.gain.values) ** 2))
    assert rms <= info["quality"]["rmse"] <= 1.001 * rms
    plain, info = encoded(eeg, codec="nbmf-fast")
    assert "quality" not in info and lossy.chain_names(c.open_stream(plain)) == ()


def overhead(data: bytes) -> float:
    """Share of a stream's bytes that are not the codecs' payloads."""
    with c.open_stream(data) as s:
        table = s._blocks.table
        heads = [1 + (body[0] & 15) for _, body in (_body(s, row) for row in range(len(table.n)))]
        bodies = sum(len(_body(s, row)[1]) for row in range(len(table.n))) - sum(heads)
    return 1 - bodies / len(data)


def _body(s: c.Stream, row: int) -> tuple[c.Block, bytes]:
    return c._load(s._blocks.source, s._blocks.opening.seed, s._blocks.table, row)


# ---- codecs that fail


def test_the_next_codec_takes_over(eeg: xr.DataArray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first codec refuses loud blocks, the second ruins the first of them."""
    encode, decode = AdaptiveCodec.encode, KLTDCT.decode
    x = eeg.values.copy()
    limit, calls = 1.5 * np.abs(x[:160]).max(), list[int]()

    def refusing(self, block):
        if np.abs(block).max() > limit:
            raise InputError("too loud")
        return encode(self, block)

    def ruining(self, payload, shape, dtype):
        calls.append(1)
        return np.full(shape, 1e6, dtype) if len(calls) < 3 else decode(self, payload, shape, dtype)

    monkeypatch.setattr(AdaptiveCodec, "encode", refusing)
    monkeypatch.setattr(KLTDCT, "decode", ruining)
    made = recording(x, 160.0)
    data, info = encoded(made, codec="adaptive", step=30.0, block_seconds=1.0)
    assert set(info["quality"]["share"]) == {"adaptive", "klt-dct", "nbmf-max"}
    monkeypatch.undo()
    blocks, wrong, _ = broken(data, x)
    assert (blocks, wrong) == (10, 0)


def test_a_block_that_no_codec_can_code_is_an_error(
    eeg: xr.DataArray, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(KLTDCT, "decode", lambda self, p, shape, d: np.zeros(shape, d) + np.float32(1e7))
    with pytest.raises(InputError, match="add a lossless codec"):
        streams.encode_recording(eeg, tmp_path / "a.nbmf", codec="klt-dct", fallback=[], step=3.0)
    assert list(tmp_path.iterdir()) == []


# ---- nonsense


def nonsense() -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.integers(-9, 10, (700, 3)), axis=0)
    yield "one sample", np.array([[7]], np.int16)
    yield "two samples", np.array([[7], [-7]], np.int16)
    yield "constant", np.full((700, 3), -1234, np.int16)
    yield "one constant channel", (walk * [1, 0, 1]).astype(np.int16)
    yield "saturated", np.clip(walk * 3000, -32768, 32767).astype(np.int16)
    yield "two values", np.where(walk > 0, 32767, -32768).astype(np.int16)
    yield "noise", rng.integers(-32768, 32768, (700, 3)).astype(np.int16)
    yield "one channel", walk[:, :1].astype(np.int16)
    yield "unsigned", (walk + 30000).astype(np.uint16)
    yield "bytes", np.clip(walk, -128, 127).astype(np.int8)
    yield "NaN in a block", np.where(np.arange(700)[:, None] == 650, np.nan, walk).astype(np.float32)
    yield "nothing but NaN", np.full((700, 3), np.nan)
    yield "infinite", np.where(walk == walk.max(), np.inf, walk)
    yield "tiny floats", walk * 1e-12
    yield "huge floats", (walk * 1e25).astype(np.float32)
    yield "big integers", (walk * 10**6).astype(np.int32)


@pytest.mark.parametrize(("name", "x"), list(nonsense()), ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("target", [{"snr_db": 20.0}, {"ratio": 4.0}])
@pytest.mark.parametrize("codec", ["adaptive", "klt-dct"])
def test_nonsense_gives_a_right_stream_or_a_clear_error(name: str, x: np.ndarray, target: dict, codec: str) -> None:
    try:
        data, _ = encoded(recording(x, 500.0), codec=codec, block_seconds=0.5, **target)
    except InputError as e:
        assert "ratio" in target and "out of reach" in str(e), e
        return
    with c.open_stream(data) as s:
        y, reports = s.read(), list(lossy.block_reports(s))
        assert s.verify().ok  # the checksums of the decoded samples too
        assert lossy.check_certificates(s, recording(x, 500.0)).violations == ()
    if "ratio" in target:
        assert 8 * len(data) <= 4.0 * x.size
    for r in reports:
        a, b = x[r.start : r.start + r.n], y[r.start : r.start + r.n]
        if not np.isfinite(a).all():
            assert a.tobytes() == b.tobytes()
        elif "snr_db" in target and lossy.deviation(a):
            assert lossy.deviation(a) * 0.1 >= np.sqrt(np.mean((a.astype(float) - b.astype(float)) ** 2))
        elif "snr_db" in target:
            assert (a == b).all()


def test_1024_channels() -> None:
    x = np.cumsum(np.random.default_rng(0).integers(-9, 10, (300, 1024)), axis=0).astype(np.int16)
    data, info = encoded(recording(x, 1000.0), codec="klt-dct", snr_db=15.0)
    assert info["n_blocks"] == 16 and broken(data, x)[1] == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratio": 20, "snr_db": 20}, "exclude each other"),
        ({"ratio": 20, "bits_per_sample": 0.8}, "exclude each other"),
        ({"ratio": 0}, "makes no sense"),
        ({"bits_per_sample": float("nan")}, "makes no sense"),
        ({"snr_db": float("inf")}, "makes no sense"),
        ({"ratio": 20, "max_error": 0}, "max_error=0"),
        ({"ratio": 20, "codec": "nbmf-balanced"}, "no step"),
        ({"ratio": 20, "codec": "nbmf-bounded"}, "no step"),
        ({"ratio": 20, "step": 3.0}, "a target chooses the step"),
        ({"codec": "adaptive", "level": 3}, "'level'"),
        ({"codec": "adaptive", "step": -3.0}, "positive number"),
        ({"ratio": 20, "fallback": ["zfp"]}, "no chain"),
        ({"ratio": 20, "fallback": ["nbmf-mux"]}, "did you mean"),
        ({"ratio": 20, "resume": True}, "resume"),
        ({"ratio": 1e6}, "out of reach"),
        ({"ratio": 20, "max_rmse": "much"}, "an error bound is a number"),
        ({"ratio": 20, "block_seconds": 0}, "hold no sample"),
    ],
)
def test_targets_that_do_not_fit_are_refused(tmp_path, options: dict, says: str) -> None:
    x = recording(np.cumsum(np.random.default_rng(0).integers(-9, 10, (500, 2)), axis=0).astype(np.int16), 500.0)
    with pytest.raises(InputError, match=says):
        streams.encode_recording(x, tmp_path / "a.nbmf", **options)
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_payloads_that_no_encoder_wrote_are_survived(data: st.DataObject) -> None:
    x = np.cumsum(np.random.default_rng(0).integers(-9, 10, (120, 3)), axis=0).astype(np.int16)
    block = streams.RecordingBlock("klt-dct", fallback=["nbmf-max"], step=9.0, sampling_rate=500.0)
    assert block.parameters() == {"codec": "klt-dct", "fallback": ["nbmf-max"]}
    payload = bytearray(block.encode_block(x))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 255)), max_size=6)):
        payload[at % len(payload)] = value
    cut = data.draw(st.integers(0, len(payload)))
    for bad in (bytes(payload), bytes(payload[:cut])):
        try:
            assert block.decode_block(bad, x.shape, x.dtype).shape == x.shape
        except StreamError:
            continue


# ---- a stream of this version, for ever


def golden_recording() -> xr.DataArray:
    """600 samples of three channels in two groups; the second second never changes."""
    x = np.cumsum(np.random.default_rng(7).integers(-40, 41, (600, 3)), axis=0).astype(np.int16)
    x[250:500] = x[250]
    return recording(x, 250.0, units="uV", gain=[0.5, 0.25, 0.5], name="golden")


def make_golden(path: Path) -> None:
    """Write the golden stream of lossy blocks; run by hand, once for each version of the format."""
    path.parent.mkdir(exist_ok=True)
    info = streams.encode_recording(golden_recording(), path, ratio=5.0, block_seconds=1.0, groups=2)
    print(info["quality"]["share"])


@pytest.mark.skipif(not GOLDEN.exists(), reason="written when the payload is final")
def test_the_golden_stream_decodes() -> None:
    with c.open_stream(GOLDEN) as s:
        assert s.verify().ok  # the checksums of the decoded samples too
        assert lossy.check_certificates(s, golden_recording()).violations == ()
        assert set(lossy.stream_info(s)["quality"]["share"]) == {"adaptive", "nbmf-max"}


# ---- real recordings


def short_blocks(most: int) -> Iterator[tuple[str, bytes, np.ndarray]]:
    """Streams of single channels in blocks of 256 samples, of train and validation items, until there are so many blocks."""
    plans = (
        ("eeg64_runs", "klt-dct", 0.3),
        ("eeg64_runs", "adaptive", 0.4),
        ("eeg21", "adaptive", 0.2),
        ("n1", "adaptive", 0.8),
    )
    count = 0
    for (name, codec, k), share in zip(plans, (0.02, 0.25, 0.4, 1.0)):
        for item in find_set(name).items():
            if item.split == "test":
                continue
            if count >= share * most:
                break
            n = 256 * max(1, int(share * most - count) // item.x.shape[1] + 1)
            x = crop(item.x, 0, min(n, item.x.shape[0])).load()
            options = {
                "groups": 1,
                "block_seconds": 256 / x.attrs["sampling_rate"],
                "step": k * lossy.deviation(x.values),
            }
            data, info = encoded(x, codec=codec, **options)
            count += info["n_blocks"]
            yield f"{name} {item.name} {codec}", data, x.values


def check_short_blocks(most: int) -> tuple[int, int]:
    """Number of blocks, and of broken statements."""
    blocks, wrong = 0, 0
    for name, data, x in short_blocks(most):
        n, bad, tight = broken(data, x)
        blocks, wrong = blocks + n, wrong + bad
        print(
            f"{name}: {n} blocks, {bad} violations, true/stated RMS {tight:.5f}; {blocks} blocks, {wrong} violations so far",
            flush=True,
        )
    return blocks, wrong


@real
@pytest.mark.real
def test_certificates_of_real_blocks_hold() -> None:
    assert check_short_blocks(300)[1] == 0


def measure_targets() -> None:
    """Print how targets are met on validation items, and what is not payload at 20x."""
    for name in ("eeg64_runs", "eeg21", "eeg64_subjects"):
        item = next(i for i in find_set(name).items() if i.split == "validation")
        x = item.x.load()
        for options in ({}, {"block_seconds": 1.0}):
            for target in ({"ratio": 20}, {"snr_db": 20.0}):
                data, info = encoded(x, **target, **options)
                print(
                    f"{name} {item.name} {x.shape} {options} {target}: {info['ratio_int16']:.3f}x, SNR {snr_db(x.values, c.open_stream(data).read()):.3f} dB, overhead {100 * overhead(data):.2f} %, {info['n_blocks']} blocks, share {info['quality']['share']}",
                    flush=True,
                )


if __name__ == "__main__":
    if "golden" in sys.argv:
        make_golden(GOLDEN)
    elif "certificates" in sys.argv:
        check_short_blocks(100_000)
    else:
        measure_targets()
