"""Training: draws, ratios, files, the released model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nbmf_research.core import InputError
from nbmf_research.memory import records as rc
from nbmf_research.memory import training as tr

SMALL = tr.Training(bytes_per_source=4000, reference_bytes=2000, bits=11, final_bits=10)


@pytest.fixture(scope="module")
def records() -> dict[str, list[rc.Record]]:
    found: dict[str, list[rc.Record]] = {}
    for r in rc.synthetic_records(40, seed=8):
        found.setdefault(r.source, []).append(r)
    return found


def test_reference_and_primed_records_differ(records: dict[str, list[rc.Record]]) -> None:
    primed, reference = tr.draw(records, SMALL)
    assert not {p for _, p in primed} & set(reference.split(b"\n"))
    assert sum(len(p) for _, p in primed) < 4 * 4400 and {n for n, _ in primed} == {1, 2, 3, 4}


def test_training_is_reproducible_and_files_hold_it(records: dict[str, list[rc.Record]], tmp_path: Path) -> None:
    digests = [tr.save_model(tr.train_model(records, SMALL), tmp_path / f"{i}.safetensors") for i in range(2)]
    assert digests[0] == digests[1]
    model = tr.read_model(tmp_path / "0.safetensors")
    assert model.identity == digests[0][:8]
    some = [r.data for r in records["synthetic_legal"][:10]]
    assert [model.mixer.decode(model.mixer.encode(r)) for r in some] == some
    (tmp_path / "0.safetensors").write_bytes((tmp_path / "0.safetensors").read_bytes()[:-100])
    with pytest.raises(InputError):
        tr.read_model(tmp_path / "0.safetensors")


def test_held_out_sources_are_not_trained_on(records: dict[str, list[rc.Record]]) -> None:
    found = tr.hold_out(records, ["synthetic_legal"], SMALL, most=10)
    assert list(found) == ["synthetic_legal"] and found["synthetic_legal"].n == 10
    with pytest.raises(InputError):
        tr.train_model({})


def test_ratios_by_hand() -> None:
    found = tr.ratios([100] * 19 + [1000], [50] * 19 + [1000])
    assert found == tr.Ratios(20, 2900 / 1950, 1.0, 1.0)
    with pytest.raises(InputError):
        tr.ratios([1], [])


def test_release_writes_a_card(
    records: dict[str, list[rc.Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zstd = pytest.importorskip("zstandard")
    for name, domain in (("banking77", "financial"), ("tldr_pages", "technical"), ("loghub", "technical")):
        lines = [json.dumps({**vars(r), "source": name, "domain": domain}) for r in records[f"synthetic_{domain}"]]
        path = tmp_path / "text" / domain / f"{name}.jsonl.zst"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zstd.ZstdCompressor().compress("\n".join(lines).encode()))
    monkeypatch.setenv("NBMF_DATA_DIR", str(tmp_path))
    path = tr.release(tmp_path, SMALL, held=["loghub", "legalbench"])
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["bytes"] == path.stat().st_size and set(card["training"]["data"]) == {"banking77", "tldr_pages"}
    assert [list(f) for f in card["figures"].values()] == [["loghub"]]
    assert tr.read_model(path, card["sha256"]).identity.hex() == card["sha256"][:16]
    with monkeypatch.context() as patch, pytest.raises(InputError, match="card"):
        patch.setattr(tr, "load_arrays", lambda data: pytest.fail("parsed before it was compared"))
        tr.read_model(path, "0" * 64)
    monkeypatch.delenv("NBMF_DATA_DIR")
    with pytest.raises(InputError, match="NBMF_DATA_DIR"):
        tr.release(tmp_path)


def test_the_released_model_saw_no_test_and_no_study_source() -> None:
    from nbmf_research.neural.weights import find_weights

    card = find_weights(tr.RELEASED).card
    assert {rc.sources()[name].role for name in card["training"]["data"]} == {"train"}
    assert card["bytes"] <= 8_000_000
    studied = {name for figures in card["figures"].values() for name in figures}
    assert {rc.sources()[name].role for name in studied} == {"study"} and studied <= set(tr.HELD_OUT)


@pytest.mark.real
@pytest.mark.skipif(not os.environ.get("NBMF_DATA_DIR"), reason="NBMF_DATA_DIR is not set")
def test_the_released_model_on_real_validation_records() -> None:
    if not rc.source_path("tatqa"):
        pytest.skip("tatqa is not here")
    some = rc.load_source("tatqa")[:60]
    model = tr.released().mixer
    assert [model.decode(model.encode(r.data)) for r in some] == [r.data for r in some]
    assert tr.measured(model.encode, some, 3).ratio > 3
