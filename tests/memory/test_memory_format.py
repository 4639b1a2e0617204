"""The record's format: layout, overhead, damage, the stub's blobs."""

from __future__ import annotations

import hashlib
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmf_research.core import InputError, StreamError
from nbmf_research.memory import format as fm


@given(st.integers(0, 3), st.integers(0, 2), st.integers(0, 3), st.integers(0, 63), st.binary(max_size=50))
def test_fields_come_back(tier: int, kind: int, model: int, generation: int, code: bytes) -> None:
    check = fm.checksum(code, tier, b"id")
    blob = fm.Blob(tier, kind, model, 0 if tier == fm.RAW else generation, check, code)
    data = fm.frame(blob)
    assert fm.parse(data) == blob and len(data) == len(code) + (2 if tier == fm.RAW else 3)
    assert 0x80 <= data[0] < 0xC0 and not fm.is_legacy(data)


@given(st.text(max_size=30))
def test_text_is_never_taken_for_a_record(text: str) -> None:
    with pytest.raises(StreamError):
        fm.parse(text.encode())


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xa0\x00", b"\xa0", b"\x8c\x00\x00", b"\xc0\x00\x00", b"x\x9c"])
def test_what_is_no_record(data: bytes) -> None:
    with pytest.raises(StreamError):
        fm.parse(data)


def test_a_model_of_other_contents_is_noticed() -> None:
    missed = 0
    for i in range(2000):
        blob = fm.Blob(fm.MIXING, fm.TEXT, 0, 1, fm.checksum(b"payload", fm.MIXING, b"right"), b"")
        try:
            fm.verify(blob, b"payload", b"wrong %d" % i)
            missed += 1
        except StreamError as e:
            assert "generation 1" in str(e)
    assert missed < 12  # 2 expected


@pytest.mark.parametrize("field", [{"tier": 4}, {"kind": 3}, {"model": -1}, {"generation": 64}, {"check": 1024}])
def test_fields_that_do_not_fit(field: dict[str, int]) -> None:
    fields = {"tier": 2, "kind": 1, "model": 0, "generation": 0, "check": 0, "code": b""} | field
    with pytest.raises(InputError):
        fm.frame(fm.Blob(**fields))  # type: ignore[arg-type]


def sign(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(json_values)
def test_the_stubs_lossless_blobs(payload: object) -> None:
    code = zlib.compress(json.dumps(payload, ensure_ascii=False).encode(), 9)
    blob = {"meta": {"fidelity": "lossless", "type": "x"}, "code": code.hex(), "sig": sign(payload)}
    for form in (blob, json.dumps(blob), json.dumps(blob).encode()):
        assert fm.is_legacy(form) and fm.read_legacy(form) == fm.Legacy(payload, True)
    with pytest.raises(StreamError, match="signature"):
        fm.read_legacy(blob | {"sig": sign("another")})


@given(json_values)
def test_the_stubs_semantic_blobs(payload: object) -> None:
    text = (
        " ".join(payload.split())
        if isinstance(payload, str)
        else json.dumps(payload, ensure_ascii=False, sort_keys=True)
    )
    blob = {
        "meta": {"fidelity": "semantic", "type": type(payload).__name__},
        "code": text.encode().hex(),
        "sig": sign(text),
    }
    assert fm.read_legacy(blob).payload == (text if isinstance(payload, str) else payload)
    with pytest.raises(StreamError):
        fm.read_legacy(blob | {"sig": "0"})


def test_bombs_and_depth_in_the_stubs_blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zlib.compress(json.dumps("a" * 5000).encode(), 9)
    fields = {"meta": {"fidelity": "lossless"}, "code": bomb.hex()}
    assert fm.read_legacy(bomb).payload == "a" * 5000 == fm.read_legacy(fields).payload
    monkeypatch.setattr(fm, "MAX_LEGACY", 4000)
    deep = "[" * 100_000
    for blob in (bomb, fields, bomb[:-3], zlib.compress(deep.encode()), deep, fields | {"code": bomb[:-3].hex()}):
        with pytest.raises(StreamError):
            fm.read_legacy(blob)
    monkeypatch.undo()
    with pytest.raises(StreamError):
        fm.read_legacy(zlib.compress(deep.encode()))
