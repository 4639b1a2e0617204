"""The context mixer: exactness on any bytes, independence of records, undo, packing, adaptation."""

from __future__ import annotations

import contextlib
import lzma
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.core import InputError, StreamError
from nbmf_research.memory import mixing as mx
from nbmf_research.memory.records import synthetic_records

RECORDS = [r.data for r in synthetic_records(50, seed=2)]


def primed(bits: int = 12) -> mx.ContextMixer:
    model = mx.ContextMixer(bits, b"\n".join(RECORDS[::7]))
    model.prime([r for i, r in enumerate(RECORDS) if i % 7], [1 + i % 3 for i in range(len(RECORDS)) if i % 7])
    return model


@pytest.fixture(scope="module")
def model() -> mx.ContextMixer:
    return primed()


@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_come_back(model: mx.ContextMixer, data: bytes) -> None:
    assert model.decode(model.encode(data)) == data


@settings(max_examples=20, deadline=None)
@given(text=st.text(max_size=120), depth=st.integers(0, 80))
def test_odd_json_comes_back(model: mx.ContextMixer, text: str, depth: int) -> None:
    for data in (("[" * depth + text).encode(), ('{"a":' * depth + text + "}" * depth).encode(), b"}]" * depth):
        assert model.decode(model.encode(data)) == data


def test_records_do_not_depend_on_each_other(model: mx.ContextMixer) -> None:
    state = {name: getattr(model.m, name).copy() for name in (*mx.LEARNT, "slots", "far", "ends")}
    codes = [model.encode(r) for r in RECORDS[:40]]
    for name, before in state.items():
        assert np.array_equal(before, getattr(model.m, name)), name
    order = np.random.default_rng(0).permutation(40)
    assert [model.decode(codes[i]) for i in order] == [RECORDS[i] for i in order]
    for name, before in state.items():
        assert np.array_equal(before, getattr(model.m, name)), name
    again = primed()
    assert [again.encode(r) for r in RECORDS[:40]] == codes


def test_the_longest_record(model: mx.ContextMixer) -> None:
    data = (b'{"k": [1, 2, 3]}, ' * 4000)[: mx.MAX_RECORD]
    code = model.encode(data)
    assert len(code) < 2000 and model.decode(code) == data
    noise = np.random.default_rng(1).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    assert model.decode(model.encode(noise)) == noise
    with pytest.raises(InputError, match="at most"):
        model.encode(data + b"x")


def test_wrong_codes_never_crash(model: mx.ContextMixer) -> None:
    rng = np.random.default_rng(3)
    for n in range(30):
        code = rng.integers(0, 256, n, dtype=np.uint8).tobytes()
        with contextlib.suppress(StreamError):
            model.decode(code)
    assert model.decode(model.encode(b"still fine")) == b"still fine"


def test_priming_pays_and_sources_are_noted(model: mx.ContextMixer) -> None:
    empty = mx.ContextMixer(12)
    size, bare = (sum(len(m.encode(r)) for r in RECORDS[:20]) for m in (model, empty))
    assert size < bare / 2
    assert (model.m.seen_by >= 128).any() and not empty.m.seen_by.any()
    for bad in ([0], [128], [1, 2]):
        with pytest.raises(InputError, match="source"):
            empty.prime([b"x"], bad)


def test_folding_keeps_what_is_worth_most(model: mx.ContextMixer) -> None:
    small = mx.folded(model, 11, least=2)
    slots = small.m.slots.reshape(-1, 16)
    held = slots[:, 0] > 0
    assert held.any() and ((slots[held, 1] & 15 >= 2) | (small.m.seen_by[held] >= 128)).all()
    assert small.decode(small.encode(RECORDS[0])) == RECORDS[0]


def test_packed_models_code_the_same(model: mx.ContextMixer) -> None:
    small = mx.unpack(mx.pack(mx.folded(model, 11)))
    twin = mx.unpack(mx.pack(small))
    codes = [small.encode(r) for r in RECORDS[:20]]
    assert [twin.encode(r) for r in RECORDS[:20]] == codes and [twin.decode(c) for c in codes] == RECORDS[:20]
    arrays = dict(mx.pack(small))
    arrays["nodes"] = arrays["nodes"][:-9]
    for broken in (arrays, {}, {**mx.pack(small), "shape": np.array([2, 11, 1, 1], np.int64)}):
        with pytest.raises(InputError, match="no model"):
            mx.unpack(broken)


def test_adapting_leaves_the_base_alone_and_replays_exactly(model: mx.ContextMixer) -> None:
    own = [f'{{"pump": {i % 5}, "litres": {37 * i % 91}}}'.encode() for i in range(60)]
    before = [model.encode(r) for r in own[40:]]
    one, two = mx.adapted(model, own[:40]), mx.adapted(model, own[:40])
    codes = [one.encode(r) for r in own[40:]]
    assert [two.encode(r) for r in own[40:]] == codes and [two.decode(c) for c in codes] == own[40:]
    assert [model.encode(r) for r in own[40:]] == before and sum(map(len, codes)) < 0.7 * sum(map(len, before))
    with pytest.raises(InputError):
        mx.adapted(model, [bytes(mx.MAX_RECORD + 1)])


def test_parts_can_be_left_out() -> None:
    for options in ({"used": [0, 3, 10]}, {"match": False}, {"refine": False}):
        model = mx.ContextMixer(10, b"some reference text", **options)  # type: ignore[arg-type]
        model.prime(RECORDS[:10])
        assert model.decode(model.encode(RECORDS[11])) == RECORDS[11]
    with pytest.raises(InputError):
        mx.ContextMixer(10, used=[99])


def test_a_guess_from_outside_moves_the_codes() -> None:
    """The seam for a language model: its stretched guess of each bit is an input whose weight starts at 0."""
    data = b"a" * 60
    model = mx.ContextMixer(10)
    assert not model.m.weights.reshape(-1, mx.N_INPUTS)[:, -2:].any()
    bare = model.encode(data)
    model.m.outer[:] = 300
    assert model.decode(model.encode(data)) == data
    model.m.outer[:] = 0
    for c0 in (1, 3, 6, 12, 24, 48, 97 >> 1 | 64, 97):  # not all nodes of the letter's path; any guess must decode
        model.m.outer[c0] = -1500
    model.m.weights.reshape(-1, mx.N_INPUTS)[:, -2] = 30000
    model._keep()
    guessed = model.encode(data)
    assert guessed != bare and model.decode(guessed) == data


def test_threads_share_a_mixer(model: mx.ContextMixer) -> None:
    expected = [model.encode(r) for r in RECORDS]
    found: dict[int, list[tuple[bytes, bytes]]] = {}

    def work(i: int) -> None:
        found[i] = [(c, model.decode(c)) for c in (model.encode(r) for r in RECORDS)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found[0] == found[1] == list(zip(expected, RECORDS, strict=True))


def test_an_interrupted_call_is_put_back_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    model = primed()
    expected = [model.encode(r) for r in RECORDS[:5]]
    learnt = mx.adapted(model, RECORDS[:2]).encode(RECORDS[3])

    def interrupted(self: mx.ContextMixer) -> None:
        raise KeyboardInterrupt

    def interrupt() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(mx.ContextMixer, "_restore", interrupted)
            with pytest.raises(KeyboardInterrupt):
                model.encode(RECORDS[9] * 20)

    interrupt()
    assert [model.encode(r) for r in RECORDS[:5]] == expected
    interrupt()
    assert [model.decode(c) for c in expected] == RECORDS[:5]
    interrupt()
    assert mx.adapted(model, RECORDS[:2]).encode(RECORDS[3]) == learnt


@pytest.mark.parametrize("used", [[], [0, 0], [20], [-1]])
def test_contexts_are_distinct_and_some(used: list[int]) -> None:
    with pytest.raises(InputError):
        mx.ContextMixer(8, used=used)


def xz(array: Any) -> Any:
    return np.frombuffer(lzma.compress(np.asarray(array).tobytes()), np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: {"shape": np.append(a["shape"], 0)},
        lambda a: {"shape": a["shape"][:4]},
        lambda a: {"shape": a["shape"][:2]},
        lambda a: {"shape": np.array(1)},
        lambda a: {"shape": a["shape"] + 0.5},
        lambda a: {"nodes": xz(np.full(15 * len(a["checks"]), 0x61, np.uint8))},
        lambda a: {"nodes": xz(np.zeros(15, np.uint8))},
        lambda a: {"nodes": a["nodes"][:-9]},
        lambda a: {"ends": xz(np.full((768, 2), -20, np.int32))},
        lambda a: {"ends": xz(np.tile(np.array([1, 2], np.int32), 768))},
        lambda a: {"checks": a["checks"][:1]},
        lambda a: {"checks": np.zeros_like(a["checks"])},
        lambda a: {"maps": xz(np.zeros(1 << 24, np.uint8))},
        lambda a: {"text": np.zeros(20, np.uint8)},
    ],
)
def test_damaged_files_are_refused(model: mx.ContextMixer, change: Any) -> None:
    arrays = mx.pack(model)
    mx.unpack(arrays)
    with pytest.raises(InputError, match="no model"):
        mx.unpack(arrays | change(arrays))


def test_codes_longer_than_their_records_fit(model: mx.ContextMixer) -> None:
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    assert model.decode(model.encode(data)) == data
    r, code = model.m.reg.copy(), np.zeros(2, np.uint8)
    r[mx.LOW], r[mx.HIGH], r[mx.CODE_AT] = 0, 0xFFFFFFFF, 2
    mx._code_bit(r, code, np.int64(1), 1)
    assert not code.any() and r[mx.CODE_AT] > 2 and mx._finish(r, code) <= 2
