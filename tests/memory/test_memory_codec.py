"""The codec: exactness, bounds, fidelity, generations, damage, golden blobs."""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import threading
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from nbmf_research.core import InputError, StreamError
from nbmf_research.memory import codec as mc
from nbmf_research.memory import records as rc
from nbmf_research.memory.format import GUIDED, MIXING, RAW, ZSTD, parse
from nbmf_research.memory.lm import ReleasedGuide, released_guide
from nbmf_research.memory.training import Released, Training, read_model, train_model

GOLDEN = Path(__file__).parent / "golden"
SMALL = Training(bytes_per_source=6000, reference_bytes=4000, bits=12, final_bits=12)


@pytest.fixture(scope="module")
def base() -> Released:
    records: dict[str, list[rc.Record]] = {}
    for r in rc.synthetic_records(60, seed=8):
        records.setdefault(r.source, []).append(r)
    return Released(train_model(records, SMALL), b"8 bytes.")


@pytest.fixture(scope="module")
def codec(base: Released) -> mc.MemoryCodec:
    return mc.MemoryCodec(base)


ENGLISH = (
    "Hi Ana, thanks for the quick answer. Could we meet on Thursday to talk about the contract?",
    "The company shall not be liable for any damage that results from the use of its services.",
    "I would like to know whether my card has been sent, because it has not arrived yet.",
)


@pytest.fixture(scope="module")
def network() -> ReleasedGuide:
    return released_guide()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(payload=st.binary(max_size=200) | st.text(max_size=100) | json_values)
def test_payloads_come_back(codec: mc.MemoryCodec, payload: object) -> None:
    blob = codec.encode(payload)
    back = codec.decode(blob)
    assert back == payload and type(back) is type(payload)
    size = len(
        payload
        if isinstance(payload, bytes)
        else (payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)).encode()
    )
    assert len(blob) <= size + 2


@settings(max_examples=30, deadline=None)
@given(
    value=st.lists(json_values, max_size=3) | st.dictionaries(st.text(max_size=5), json_values, max_size=4),
    indent=st.sampled_from([None, 0, 3]),
)
def test_semantic_is_equal_by_value(codec: mc.MemoryCodec, value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    back = codec.decode(codec.encode(text, fidelity="semantic"))
    assert json.loads(back, parse_float=Decimal) == json.loads(text, parse_float=Decimal)
    assert mc.canonical(back) in (back, None)
    assert codec.decode(codec.encode(value, fidelity="semantic")) == value


@pytest.mark.parametrize(
    "text",
    ['{"a":1,"a":2}', "[1e400]", "[0.10000000000000000001]", '["\\ud83d"]', "[NaN]", "not json", "", "[1,", "[" * 5000],
)
def test_what_is_not_proved_equal_is_kept_as_it_is(codec: mc.MemoryCodec, text: str) -> None:
    assert mc.canonical(text) is None and codec.decode(codec.encode(text, fidelity="semantic")) == text


def test_tiers(base: Released, codec: mc.MemoryCodec) -> None:
    pytest.importorskip("zstandard")
    hot = mc.MemoryCodec(base, tier="hot")
    text = rc.synthetic_records(3, 99)[1].text
    assert parse(hot.encode(text)).tier == ZSTD and parse(codec.encode(text)).tier == MIXING
    assert parse(codec.encode("")).tier == RAW and codec.encode("")[2:] == b""
    for one in (hot, codec):
        for other in (hot, codec):
            assert other.decode(one.encode(text)) == text
    long = text * 2000
    assert parse(codec.encode(long)).tier == ZSTD and codec.decode(codec.encode(long)) == long
    with pytest.raises(StreamError):
        hot.decode(hot.encode(text)[:-3])


def test_several_models_are_tried(base: Released) -> None:
    legal = {"l": rc.synthetic_records(60, 3, ["legal"])}
    other = Released(train_model(legal, SMALL), b"legal 01")
    both = mc.MemoryCodec([base, other])
    text = rc.synthetic_records(3, 44, ["legal"])[0].text
    blobs = [mc.MemoryCodec(m).encode(text) for m in (base, other)]
    assert len(both.encode(text)) == min(map(len, blobs)) and both.decode(both.encode(text)) == text
    used = {parse(both.encode(r.text)).model for r in rc.synthetic_records(20, 5)}
    assert used <= {0, 1} and len(used) >= 1
    with pytest.raises(StreamError, match="model 1"):
        mc.MemoryCodec(base)._decoded(mc.Blob(MIXING, 1, 1, 0, 0, b""))
    with pytest.raises(InputError):
        mc.MemoryCodec([base] * 5)


def test_generations(base: Released, tmp_path: Path) -> None:
    codec = mc.MemoryCodec(base)
    own = [f"pump {i % 6} of harbour 9 moved {31 * i % 97} litres" for i in range(80)]
    old = [codec.encode(t) for t in own[60:]]
    assert codec.fit(own[:60]) == 1 and codec.generation == 1
    new = [codec.encode(t) for t in own[60:]]
    assert sum(map(len, new)) < 0.7 * sum(map(len, old)) and [codec.decode(b) for b in old + new] == 2 * own[60:]
    assert codec.fit(own[:20]) == 2 and [codec.decode(b) for b in old + new] == 2 * own[60:]
    mc.save_delta(codec.delta(1), tmp_path / "one")
    again = mc.MemoryCodec(base, deltas=[mc.load_delta(tmp_path / "one")])
    assert [again.encode(t) for t in own[60:]] == new
    with pytest.raises(StreamError, match="generation 1"):
        mc.MemoryCodec(base).decode(new[0])
    forged = mc.Delta(1, base.identity, (b"other records",))
    noticed = 0
    for blob, text in zip(new, own[60:], strict=True):
        try:
            assert mc.MemoryCodec(base, deltas=[forged]).decode(blob) == text
        except StreamError:
            noticed += 1
    assert noticed == len(new)
    with pytest.raises(InputError, match="taken"):
        codec.add(codec.delta(1))


def test_max_tier(base: Released, network: ReleasedGuide) -> None:
    codec, best = mc.MemoryCodec(base), mc.MemoryCodec(base, "max", guide=network)
    texts = [*ENGLISH, *(r.text for r in rc.synthetic_records(6, 99)), "", "x", "zq 7#", "\u6771"]
    blobs = [best.encode(t) for t in texts]
    assert {parse(b).tier for b in blobs[:3]} == {GUIDED}
    assert all(len(b) <= len(codec.encode(t)) for b, t in zip(blobs, texts, strict=True))
    reader = mc.MemoryCodec(base, guide=network)
    assert [reader.decode(b) for b in blobs] == [best.decode(b) for b in blobs] == texts
    assert [reader.encode(t) for t in texts] == [codec.encode(t) for t in texts]
    assert best.fit(texts[:8]) == 1 and [best.decode(best.encode(t)) for t in texts] == texts
    again = mc.MemoryCodec(base, "max", [best.delta()], guide=network)
    assert [again.encode(t) for t in texts] == [best.encode(t) for t in texts]
    assert [again.decode(b) for b in blobs] == texts
    noise = np.random.default_rng(1).bytes(300)
    assert len(best.encode(noise)) <= 302 and best.decode(best.encode(noise)) == noise


def test_max_needs_the_language_model_that_wrote(
    base: Released, network: ReleasedGuide, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = mc.MemoryCodec(base, "max", guide=network)
    blobs = [best.encode(t) for t in ENGLISH]
    other = mc.MemoryCodec(base, guide=ReleasedGuide(network.network, network.own, b"another."))
    guided = [b for b in blobs if parse(b).tier == GUIDED]
    for blob in guided:
        with pytest.raises(StreamError, match="checksum"):
            other.decode(blob)

    def missing() -> ReleasedGuide:
        raise InputError("no language model is here")

    monkeypatch.setattr(mc, "released_guide", missing)
    with pytest.raises(StreamError, match="no language model"):
        mc.MemoryCodec(base).decode(guided[0])
    with pytest.raises(InputError):
        mc.MemoryCodec(base, "max")


WORDS = (
    *("um,", "the  pump", "isn’t", "running!!", "“wait   here”", "`a  =  1`", "Ana", "14:05", "not", "—", "\n\n\n"),
    *("\u2026", "you know,", "'so  it goes'", "well,,", "no…", "x_y", "\t", "   indented", '"', "I mean,", "\u00a0"),
    *("\u3000b", "don't"),
)
words = st.sampled_from(WORDS)


@settings(max_examples=30, deadline=None)
@given(text=st.lists(words, max_size=12).map(" ".join) | st.text(max_size=60))
def test_plain_text_keeps_the_facts(codec: mc.MemoryCodec, text: str) -> None:
    short = mc.plain(text)
    assert (
        mc.facts(short) == mc.facts(text) and len(short) <= len(text) + 3 * text.count("\u2026") + text.count("—") * 2
    )
    assert codec.decode(codec.encode(text, fidelity="semantic")) == text
    assert codec.decode(codec.encode(text, "semantic", prose=True)) == (text if rc.is_json(text) else short)


def test_prose_touches_nothing_else(base: Released, codec: mc.MemoryCodec) -> None:
    doubtful = mc.MemoryCodec(base, likeness=lambda a, b: 0.0)
    assert doubtful.decode(doubtful.encode("all  new", "semantic", prose=True)) == "all  new"
    with pytest.raises(InputError, match="semantic"):
        codec.encode("a  b", prose=True)
    for value in ({"a": "b  c"}, b"a  b", ["um, so"]):
        assert codec.decode(codec.encode(value, "semantic", prose=True)) == value
    assert json.loads(codec.decode(codec.encode('{"a": "b  c"}', "semantic", prose=True))) == {"a": "b  c"}
    code = "run:\n    x  =  1\n\treturn  x"
    assert mc.plain(code) == code


def test_damage_is_noticed(codec: mc.MemoryCodec) -> None:
    rng = np.random.default_rng(5)
    blobs = [codec.encode(r.text) for r in rc.synthetic_records(10, 21)]
    wrong = trials = 0
    for blob in blobs:
        text = codec.decode(blob)
        for _ in range(40):
            bad = bytearray(blob)
            bad[int(rng.integers(1, len(bad)))] ^= 1 << int(rng.integers(8))
            trials += 1
            with contextlib.suppress(StreamError):
                wrong += codec.decode(bytes(bad)) != text
    assert wrong <= 6, f"{wrong} of {trials}; 1 in 1,024 is expected"


def test_verification_falls_back_to_raw(base: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = mc.MemoryCodec(base)
    monkeypatch.setattr(codec, "_decoded", lambda blob: (b"something else", base.identity))
    assert parse(codec.encode("a text that would be coded well, by Friday")).tier == RAW
    assert parse(codec.encode("a text that would be coded well, by Friday", verify=False)).tier == MIXING


def test_threads_share_a_codec(codec: mc.MemoryCodec) -> None:
    texts = [r.text for r in rc.synthetic_records(10, 3)]
    expected = [codec.encode(t) for t in texts]
    found: dict[int, list[bytes]] = {}

    def work(i: int) -> None:
        found[i] = [codec.encode(t) for t in texts]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(f == expected for f in found.values()) and len(found) == 4


def test_a_code_that_cannot_be_read_back_falls_back_to_raw(base: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(blob: object) -> tuple[bytes, bytes]:
        raise StreamError("no end")

    codec = mc.MemoryCodec(base)
    monkeypatch.setattr(codec, "_decoded", fails)
    blob = codec.encode("a text that would be coded well, by Friday")
    assert parse(blob).tier == RAW and codec.decode(blob) == "a text that would be coded well, by Friday"


def test_two_codecs_of_one_model_in_two_threads(base: Released) -> None:
    texts = [r.text for r in rc.synthetic_records(40, 3)]
    expected = [mc.MemoryCodec(base).encode(t) for t in texts]
    found: dict[int, list[tuple[bytes, object]]] = {}

    def work(i: int, codec: mc.MemoryCodec) -> None:
        some = texts if i else texts[::-1]
        found[i] = [(b, codec.decode(b)) for b in (codec.encode(t, verify=False) for t in some)]

    threads = [threading.Thread(target=work, args=(i, mc.MemoryCodec(base))) for i in range(2)]
    for t in threads:
        t.start()
    made = mc.MemoryCodec(base)
    made.fit(texts[:5])
    for t in threads:
        t.join()
    pairs = list(zip(expected, texts, strict=True))
    assert found[1] == pairs and found[0] == pairs[::-1]
    alone = mc.MemoryCodec(base)
    alone.fit(texts[:5])
    assert [made.encode(t) for t in texts] == [alone.encode(t) for t in texts]


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000])
def test_deep_json(codec: mc.MemoryCodec, text: str) -> None:
    deep = mc.frame(mc.Blob(RAW, 2, 0, 0, mc.checksum(text.encode(), RAW), text.encode()))
    for blob in (deep, text, text.encode()):
        with pytest.raises(StreamError):
            codec.decode(blob)
    assert not rc.is_json(text) and codec.decode(codec.encode(text)) == text
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(InputError, match="JSON value"):
        codec.encode(value)


def damaged(**changes: object) -> bytes:
    arrays = load(mc.Delta(3, b"8 bytes.", (b"first", b"second")).pack())
    return save(arrays | {k: np.asarray(v) for k, v in changes.items()})


@pytest.mark.parametrize(
    "changes",
    [
        {"head": np.array([1, 64])},
        {"head": np.array([1, 0])},
        {"head": np.array([1.0, 2.5])},
        {"head": np.array(1)},
        {"sizes": np.array([12, -1], np.int32)},
        {"sizes": np.array([2**31 - 1] * 3, np.int32)},
        {"sizes": np.array([5, 7], np.int32)},
        {"base": np.zeros(7, np.uint8)},
        {"text": np.frombuffer(lzma.compress(bytes(1 << 24)), np.uint8)},
        {"text": np.zeros(9, np.uint8)},
    ],
)
def test_damaged_deltas_are_refused(changes: dict[str, object]) -> None:
    assert mc.read_delta(damaged()).generation == 3
    with pytest.raises(InputError, match="no delta"):
        mc.read_delta(damaged(**changes))


def test_a_hot_bomb_is_refused(base: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zstandard")
    hot = mc.MemoryCodec(base, tier="hot")
    blob = hot.encode(bytes(1 << 20))
    assert len(blob) < 200 and hot.decode(blob) == bytes(1 << 20)
    monkeypatch.setattr(mc, "_MOST", 1 << 19)
    with pytest.raises(StreamError, match="more than"):
        hot.decode(blob)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"payload": {1: 2}}, "changes"),
        ({"payload": (1, 2)}, "changes"),
        ({"payload": {"a": object()}}, "JSON value"),
        ({"payload": float("inf")}, "JSON value"),
        ({"payload": "\ud800"}, "Unicode"),
        ({"payload": "a", "fidelity": "x"}, "fidelity"),
        ({"payload": "a", "domain": "x"}, "domain"),
    ],
)
def test_what_is_refused(codec: mc.MemoryCodec, arguments: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        codec.encode(**arguments)  # type: ignore[arg-type]


def test_golden_blobs_decode_for_ever() -> None:
    """Blobs and the model that wrote them, of format version 1: never regenerate these files."""
    codec = mc.MemoryCodec(read_model(GOLDEN / "v1_model.safetensors"), deltas=[mc.load_delta(GOLDEN / "v1_delta.bin")])
    for case in json.loads((GOLDEN / "v1_blobs.json").read_text()):
        blob = bytes.fromhex(case["blob"])
        if parse(blob).tier == ZSTD:
            pytest.importorskip("zstandard")
        payload = bytes.fromhex(case["bytes"]) if "bytes" in case else case["payload"]
        assert codec.decode(blob) == payload, case
        if parse(blob).tier == MIXING and parse(blob).generation == 1:
            assert codec.encode(payload) == blob


@pytest.mark.real
@pytest.mark.skipif(not os.environ.get("NBMF_DATA_DIR"), reason="NBMF_DATA_DIR is not set")
def test_real_training_records_come_back() -> None:
    found = rc.available_sources("train")
    if not found:
        pytest.skip("no training source is here")
    codec = mc.MemoryCodec()
    for source in found:
        for r in rc.load_source(source.name)[:15]:
            blob = codec.encode(r.text, verify=False)
            assert codec.decode(blob) == r.text and len(blob) <= len(r.data) + 2
