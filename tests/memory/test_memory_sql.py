"""Columns of existing schemas: every kind of row is read, new ones are blobs, and the functions of SQLite agree."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sa = pytest.importorskip("sqlalchemy")

from memory_killing import small_model

from nbmf_research.core import InputError, StreamError
from nbmf_research.memory import sql
from nbmf_research.memory.codec import MemoryCodec
from nbmf_research.memory.format import is_legacy


@pytest.fixture(scope="module")
def codec() -> MemoryCodec:
    return MemoryCodec(small_model())


@settings(max_examples=20, deadline=None)
@given(text=st.text(max_size=80), data=st.binary(max_size=80))
def test_text_is_text_and_bytes_are_never_lost(codec: MemoryCodec, text: str, data: bytes) -> None:
    assert not sql.is_blob(text.encode()) and not sql.is_blob(text)
    assert sql.understood(text, codec) == (text, sql.PLAIN) and sql.understood(text.encode(), codec) == (
        text,
        sql.PLAIN,
    )
    assert sql.understood(codec.encode(data), codec) == (data, sql.BLOB)
    if not sql.is_blob(data) and not is_legacy(data):
        back = sql.understood(data, codec)[0]
        assert (back.encode() if isinstance(back, str) else back) == data


def stub(payload: Any, **meta: str) -> dict[str, Any]:
    text = json.dumps(payload, sort_keys=True, ensure_ascii=False)
    code = text.encode() if meta else zlib.compress(text.encode(), 9)
    return {
        "meta": meta or {"fidelity": "lossless"},
        "code": code.hex(),
        "sig": hashlib.sha256(text.encode()).hexdigest(),
    }


def test_the_stub_is_read_and_forgeries_are_text(codec: MemoryCodec) -> None:
    for payload in ({"a": [1, "é"]}, "text", [None]):
        assert sql.understood(json.dumps(stub(payload)), codec) == (payload, sql.LEGACY)
        assert sql.understood(zlib.compress(json.dumps(payload).encode()), codec) == (payload, sql.LEGACY)
    for change in ({"sig": "0" * 64}, {"code": "zz"}, {"meta": {}}):
        text = json.dumps(stub({"a": 1}) | change)
        assert sql.understood(text, codec) == (text, sql.PLAIN)
    cut = {"meta": {"fidelity": "semantic", "type": "str"}, "code": (b"b" * 2048).hex(), "sig": "of it all"}
    assert sql.understood(json.dumps(cut).encode(), codec) == ("b" * 2048, sql.CUT)
    with pytest.raises(StreamError):
        sql.understood(b"\xa4\xff\xff\x01", codec)


def test_the_type(codec: MemoryCodec) -> None:
    table = sa.Table(
        "t",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("c", sql.CompressedText(codec, "semantic")),
    )
    engine = sa.create_engine("sqlite://")
    with engine.begin() as link:
        link.execute(sa.text("CREATE TABLE t (id INTEGER PRIMARY KEY, c TEXT)"))
        link.execute(sa.text("INSERT INTO t (c) VALUES ('old'), (NULL), (x'ff00')"))
        link.execute(
            table.insert(), [{"c": v} for v in ("Ben: could you move it?", {"b": 1}, b"\xff", '{"b":  1}', None)]
        )
        assert list(link.execute(sa.select(table.c.c).order_by(table.c.id)).scalars()) == [
            *("old", None, b"\xff\x00", "Ben: could you move it?", {"b": 1}, b"\xff", '{"b": 1}', None)
        ]
        kinds = list(link.execute(sa.text("SELECT typeof(c) FROM t")).scalars())
        assert kinds == ["text", "null", "blob", "blob", "blob", "blob", "blob", "null"]
        link.execute(table.update().where(table.c.c == "Ben: could you move it?").values(c="new"))
        assert link.execute(sa.select(table.c.c).where(table.c.id == 4)).scalar() == "new"
        assert link.execute(sa.select(sa.func.count()).where(table.c.c.is_(None))).scalar() == 2
    from sqlalchemy.dialects import postgresql

    assert "c BYTEA" in str(sa.schema.CreateTable(table).compile(dialect=postgresql.dialect()))
    assert sql.CompressedText().process_result_value(memoryview(b"x").tobytes(), engine.dialect) == "x"
    with pytest.raises(InputError, match="fidelity"):
        sql.CompressedText(fidelity="nearly")


def test_the_functions(codec: MemoryCodec) -> None:
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    sql.register_functions(engine, codec)
    with engine.begin() as link:
        one = link.execute(
            sa.text("SELECT nbmf_decode(nbmf_encode('a text')), nbmf_decode('plain'), nbmf_encode(NULL)")
        )
        assert tuple(one.one()) == ("a text", "plain", None)
        blob = codec.encode({"k": ["é"]})
        assert link.execute(sa.text("SELECT nbmf_decode(:b)"), {"b": blob}).scalar() == '{"k": ["é"]}'
        link.execute(sa.text("CREATE TABLE t (c BLOB)"))
        link.execute(sa.text("CREATE INDEX i ON t (nbmf_decode(c))"))
        link.execute(sa.text("INSERT INTO t VALUES (nbmf_encode('second')), ('first')"))
        found = link.execute(sa.text("SELECT rowid FROM t WHERE nbmf_decode(c) = 'second'")).scalars()
        assert list(found) == [1]
    plain = sqlite3.connect(":memory:")
    sql.register_functions(plain, codec)
    with pytest.raises(sqlite3.OperationalError):
        plain.execute("SELECT nbmf_decode(x'a4ffff01')").fetchone()
    with pytest.raises(InputError, match="SQLite"):
        sql.register_functions(sa.create_mock_engine("postgresql://", lambda *_: None), codec)
