"""neural.evaluate: the loop that measures every codec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nbmf_research.core import InputError, NbmfError
from nbmf_research.neural import evaluate
from nbmf_research.neural.codec import Codec, codec_names, create_codec
from nbmf_research.neural.recordings import recording


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[evaluate.OtherProcess]:
    with evaluate.other_process() as process:
        yield process


@pytest.fixture(scope="module")
def view() -> evaluate.View:
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.normal(0, 8, (3000, 3)), axis=0).round().astype(np.int16)
    return evaluate.views(recording(x, 1000.0, units="uV", gain=0.5))[0]


def test_the_other_process_is_another_one_and_gets_bytes_only(
    elsewhere: evaluate.OtherProcess, view: evaluate.View
) -> None:
    y, seconds = elsewhere.decode(create_codec("zlib").compress(view.x))
    assert (y == view.x.values).all() and seconds > 0


def test_a_row_counts_all_bytes(elsewhere: evaluate.OtherProcess, view: evaluate.View) -> None:
    row = evaluate.measure(create_codec("zlib"), view, elsewhere)
    assert row["bytes"] == len(create_codec("zlib").compress(view.x))
    assert row["bits_per_sample"] == pytest.approx(8 * row["bytes"] / 9000) and row["ratio_int16"] == pytest.approx(
        16 / row["bits_per_sample"]
    )
    assert row["ratio_native"] is None and "snr_db" not in row
    dearer = evaluate.measure(create_codec("zlib"), evaluate.View("codes", view.x, 100), elsewhere)
    assert dearer["bytes"] == row["bytes"] + 100


def test_views_find_the_lattice_and_keep_the_physical_values() -> None:
    codes = np.random.default_rng(1).integers(-200, 200, (4000, 2))
    x = recording((codes * 12 + 5).astype(np.int16), 1000.0, units="uV", gain=0.195, offset=1.0)
    stored, found = evaluate.views(x)
    assert (stored.name, found.name) == ("stored", "codes") and stored.side_bytes == 0 < found.side_bytes < 100
    assert (np.ptp(found.x.values.astype(int), axis=0) == np.ptp(codes, axis=0)).all() and (
        np.abs(np.median(found.x.values, axis=0)) <= 1
    ).all()
    from nbmf_research.neural.recordings import physical

    assert np.allclose(physical(found.x), physical(stored.x), atol=0.195)
    assert [v.name for v in evaluate.views(recording(codes.astype(np.int16), 1.0))] == ["stored"]
    assert [v.name for v in evaluate.views(recording(codes.astype(np.float32), 1.0))] == ["stored"]


class Liar(Codec):
    """Claims what it does not do."""

    name = "raw"
    kind = "lossless"

    def encode(self, x: np.ndarray) -> bytes:
        return (x + 1).astype(x.dtype).tobytes()

    def decode(self, payload: bytes, shape: tuple[int, int], dtype: np.dtype[Any]) -> np.ndarray:
        raise AssertionError("decoded elsewhere")


def test_broken_promises_make_no_row(elsewhere: evaluate.OtherProcess, view: evaluate.View) -> None:
    with pytest.raises(NbmfError, match="changed samples"):
        evaluate.measure(Liar(), view, elsewhere)

    class Unbounded(Liar):
        kind = "bounded"
        knob = "max_error"
        max_error = 0.5

        def decoded_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
            return dtype

    with pytest.raises(NbmfError, match="broke its error bound"):
        evaluate.measure(Unbounded(), view, elsewhere)


def test_codecs_that_cannot_run_say_why(
    elsewhere: evaluate.OtherProcess, view: evaluate.View, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "unavailable", lambda name: "not installed" if name == "zstd" else None)
    rows = list(evaluate.measure_lossless(["zstd", "zlib"], view, elsewhere))
    assert rows[0]["note"] == "not installed" and "bytes" not in rows[0] and rows[1]["bytes"] > 0
    floats = evaluate.View("stored", view.x.astype(np.float32), 0)
    (refused,) = evaluate.measure_lossless(["flac"], floats, elsewhere)
    assert "flac" in refused["codec"] and refused["note"]
    (lossy,) = evaluate.measure_lossy("zstd", view, [10], elsewhere)
    assert lossy["note"] == "not installed"


@pytest.mark.parametrize("name", ["klt-dct", "sz3"])
def test_more_bits_less_error(name: str, elsewhere: evaluate.OtherProcess, view: evaluate.View) -> None:
    rows = pd.DataFrame(evaluate.measure_lossy(name, view, [10, 20, 30], elsewhere, features=False))
    assert rows.bits_per_sample.is_monotonic_increasing and rows.snr_db.is_monotonic_increasing
    assert (rows.max_error >= rows.rmse).all() and np.allclose(rows.prd, 100 * 10 ** (-rows.snr_db / 20))


def test_features_are_columns_that_a_record_accepts(elsewhere: evaluate.OtherProcess, view: evaluate.View) -> None:
    row = evaluate.measure(create_codec("dct", step=10.0), view, elsewhere, features=True)
    assert {"band_power_error_alpha", "plv_beta"} <= row.keys()
    assert all(name.replace("_", "a").isalnum() for name in row)


def test_operating_points_scale_with_the_signal(view: evaluate.View) -> None:
    (point,) = evaluate.operating_points("klt-dct", view.x, [20.0])
    (larger,) = evaluate.operating_points("klt-dct", 2 * view.x, [20.0])
    assert larger["step"] == pytest.approx(2 * point["step"])
    assert [p["bits_per_sample"] for p in evaluate.operating_points("wavpack-hybrid", view.x, [20.0], bits=(3, 4))] == [
        3,
        4,
    ]
    with pytest.raises(InputError, match="knob"):
        evaluate.operating_points("zlib", view.x, [20.0])


def test_pooling_weights_by_samples_and_needs_two_for_an_interval() -> None:
    base = {"set": "a", "view": "stored", "codec": "zlib", "n_channels": 1, "encode_mb_s": 1.0, "decode_mb_s": 2.0}
    rows = pd.DataFrame(
        [
            base | {"bytes": 100, "n_time": 100},
            base | {"bytes": 100, "n_time": 400},
            base | {"bytes": None, "n_time": None},
        ]
    )
    (one,) = evaluate.pooled(rows).to_dict("records")
    assert one["n"] == 2 and one["bits_per_sample"] == pytest.approx(3.2)
    assert one["bits_per_sample_lo"] == pytest.approx(2.0) and one["bits_per_sample_hi"] == pytest.approx(8.0)
    assert np.isnan(evaluate.pooled(rows.head(1))["bits_per_sample_lo"].iloc[0])


def test_every_tunable_codec_has_a_knob_that_the_loop_knows() -> None:
    x = recording(np.arange(100, dtype=np.int16), 1.0)
    feature_modes = {"nbmf-spikes"}  # promise spikes and no SNR, so no step can be chosen for one
    for name in set(codec_names("bounded", "lossy")) - feature_modes:
        assert evaluate.operating_points(name, x, [10.0, 20.0])
    for name in feature_modes:
        with pytest.raises(InputError, match="coarseness"):
            evaluate.operating_points(name, x, [10.0])
