"""results: the record, its checks, files, tables."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbmf_research import results as r
from nbmf_research.core import InputError

BASE: dict[str, Any] = {
    "benchmark": "demo",
    "profile": "smoke",
    "parameters": {"profile": "smoke", "seed": 0},
    "data": {"simulated": True, "sets": ["walk"]},
    "machine": {"cpu": "x", "cores": 2, "device": "cpu"},
    "versions": {"python": "3.11"},
    "source_hash": "0" * 64,
    "command": "nbmf bench run demo",
    "rows": [{"codec": "zlib", "ratio": 2.0, "ratio_lo": 1.9, "ratio_hi": 2.1, "exact": True, "note": None}],
}

numbers = st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=True, allow_infinity=True)
columns = st.dictionaries(
    st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,8}", fullmatch=True).filter(lambda s: not s.endswith(("_lo", "_hi"))),
    st.sampled_from([numbers, st.none() | st.text(max_size=8), st.none() | st.booleans()]),
    min_size=1,
    max_size=5,
)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    kinds = draw(columns)
    n = draw(st.integers(1, 4))
    return [{name: draw(values) for name, values in kinds.items()} for _ in range(n)]


@given(rows=tables())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    record = r.Results(**{**BASE, "rows": rows})
    path = r.write_results(record, tmp_path / "x.json")
    back = r.read_results(path)
    assert back.rows == r.tidy_rows(rows) and back == r.read_results(r.write_results(back, path))
    assert len(r.to_frame(back)) == len(rows)
    assert len(path.read_text(encoding="utf-8").split("\n ]\n}")[0].split('"rows": [\n')[1].split("\n")) == len(rows)


def wrong(**changes: Any) -> str:
    with pytest.raises(InputError) as e:
        r.validate({**BASE, **changes})
    assert "\n" not in str(e.value) and len(str(e.value)) < 300
    return str(e.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"profile": "fast"}, "profile"),
        ({"benchmark": "a b"}, "benchmark"),
        ({"source_hash": "abc"}, "source_hash"),
        ({"command": ""}, "command"),
        ({"data": {"simulated": 1, "sets": ["a"]}}, "data.simulated"),
        ({"data": {"simulated": True, "sets": []}}, "data.sets"),
        ({"machine": {"cpu": "x", "device": ["cpu"]}}, "machine.device"),
        ({"versions": {"numpy": 2}}, "versions.numpy"),
        ({"rows": []}, "rows"),
        ({"rows": [{}]}, "rows[0]"),
        ({"rows": [{"a b": 1}]}, "rows[0]"),
        ({"rows": [{"a": 1}, {"a": {"b": 1}}]}, "rows[1].a"),
        ({"rows": [{"a": 1}, {"a": True}]}, "rows[1].a"),
        ({"rows": [{"a": float("inf")}]}, "rows[0].a"),
        ({"rows": [{"a": 1, "a_lo": 0}]}, "a_hi is missing"),
        ({"rows": [{"a_lo": 0, "a_hi": 1}]}, "rows[0].a_lo"),
        ({"rows": [{"a": 1, "a_lo": 2, "a_hi": 1}]}, "wrong way round"),
        ({"rows": [{"a": 1, "a_lo": None, "a_hi": 1}]}, "one end"),
        ({"rows": [{"a": 1, "a_lo": "x", "a_hi": "y"}]}, "rows[0].a_lo"),
        ({"parameters": {"profile": "smoke", "seed": 0, "x": [1, float("nan")]}}, "parameters.x[1]"),
        ({"parameters": {"profile": "smoke"}}, "seed"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_wrong_record_is_refused_by_key(changes: dict[str, Any], key: str) -> None:
    assert key in wrong(**changes)


@pytest.mark.parametrize("key", list(BASE))
def test_each_key_is_required(key: str) -> None:
    with pytest.raises(InputError, match=key):
        r.validate({k: v for k, v in BASE.items() if k != key})


def test_the_base_record_is_valid_and_knows_its_data() -> None:
    r.validate(BASE)
    assert r.Results(**BASE).simulated


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"benchmark": Infinity}', json.dumps({**BASE, "rows": 3}), "\x00\xff"]
)
def test_a_damaged_file_is_one_clear_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"demo\.json") as e:
        r.read_results(path)
    assert "\n" not in str(e.value)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nbmf bench run"):
        r.read_results(tmp_path / "none.json")


def test_nothing_is_written_if_the_record_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(InputError):
        r.write_results(r.Results(**{**BASE, "rows": []}), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_tidy_rows_makes_plain_values() -> None:
    rows = [
        {
            "a": np.int16(3),
            "b": np.float32(0.5),
            "c": np.array(2.0),
            "d": np.nan,
            "e": -np.inf,
            "f": np.bool_(True),
            "g": pd.NA,
        }
    ]
    tidy = r.tidy_rows(rows)
    assert tidy == [{"a": 3, "b": 0.5, "c": 2.0, "d": None, "e": None, "f": True, "g": None}]
    assert [type(v) for v in tidy[0].values()] == [int, float, float, type(None), type(None), bool, type(None)]
    assert r.tidy_rows(pd.DataFrame({"x": [1.0, np.nan], "s": ["a", None]})) == [
        {"x": 1.0, "s": "a"},
        {"x": None, "s": None},
    ]


def test_frame_types_and_missing_columns() -> None:
    rows = [{"s": "a", "n": 1, "x": None, "b": True}, {"s": "b", "n": 2, "x": 0.5, "b": False, "late": 3}]
    frame = r.to_frame(r.Results(**{**BASE, "rows": rows}))
    assert list(frame.columns) == ["s", "n", "x", "b", "late"]
    assert [str(t) for t in frame.dtypes] == ["object", "int64", "float64", "bool", "float64"]
    assert np.isnan(frame.x[0]) and frame.late[1] == 3


def test_markdown_table() -> None:
    frame = pd.DataFrame(
        {
            "codec": ["a|b", "c", "d"],
            "n": [1, 2, 3],
            "x": [1.0, 3.0, np.nan],
            "x_lo": [0.5, 2.5, np.nan],
            "x_hi": [1.5, 3.5, np.nan],
            "ok": [True, False, True],
        }
    )
    text = r.markdown_table(frame, digits={"x": 1}, sort="-x", best={"x": "max"})
    assert text.splitlines() == [
        "| codec | n | x | ok |",
        "| --- | ---: | ---: | --- |",
        "| c | 2 | **3.0 [2.5, 3.5]** | no |",
        "| a\\|b | 1 | 1.0 [0.5, 1.5] | yes |",
        "| d | 3 | – | yes |",
    ]
    assert r.markdown_table(frame, {"n": "count"}, sort=["ok", "-n"]).splitlines()[0] == "| count |"
    assert r.markdown_table(frame, ["n"], sort=["ok", "-n"]).splitlines()[2:] == ["| 2 |", "| 3 |", "| 1 |"]
    assert "**" not in r.markdown_table(frame.assign(x=np.nan), best={"x": "min"})
    for bad in ({"columns": ["speed"]}, {"sort": "-speed"}, {"best": {"speed": "max"}}):
        with pytest.raises(InputError, match="'speed'"):
            r.markdown_table(frame, **bad)


def test_pivot_keeps_order_and_refuses_duplicates() -> None:
    frame = pd.DataFrame({"codec": ["z", "z", "a"], "set": ["s2", "s1", "s1"], "ratio": [1.0, 2.0, 3.0]})
    wide = r.pivot(frame, "codec", "set", "ratio")
    assert list(wide.columns) == ["codec", "s2", "s1"] and list(wide.codec) == ["z", "a"] and np.isnan(wide.s2[1])
    with pytest.raises(InputError, match="codec='a' and set='s1'"):
        r.pivot(pd.concat([frame, frame.tail(1)]), "codec", "set", "ratio")
    with pytest.raises(InputError, match="'speed'"):
        r.pivot(frame, "codec", "set", "speed")


def test_a_record_is_what_asdict_gives() -> None:
    assert asdict(r.Results(**BASE)) == BASE
