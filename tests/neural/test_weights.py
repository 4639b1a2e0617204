"""Weights: names, ids, folders, cards."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from nbmf_research.core import InputError, StreamError
from nbmf_research.neural import weights as w


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NBMF_MODEL_DIR", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.mark.parametrize("found", w.list_weights(), ids=lambda found: found.name)
def test_released_weights_are_what_their_cards_say(found: w.Weights) -> None:
    data = found.path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == found.sha256 and len(data) == found.card["bytes"]
    assert {"name", "model", "training", "figures", "limits"} <= found.card.keys()
    assert w.weights_of(found.model_id) == found


def test_own_weights_are_found_by_name_and_id(tmp_path: Path, own: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"anything")
    added = w.add_weights("mine_1", tmp_path / "a.safetensors", model="x", note="y")
    assert added.path == own / "mine_1.safetensors" and added.card["note"] == "y" and added.card["bytes"] == 8
    assert added.model_id == hashlib.sha256(b"anything").digest()[:4] and w.weights_of(added.model_id) == added
    (tmp_path / "a.safetensors").write_bytes(b"others")
    again = w.add_weights("mine_1", tmp_path / "a.safetensors")
    assert w.find_weights("mine_1") == again and again.sha256 != added.sha256
    with pytest.raises(StreamError, match=added.model_id.hex()):
        w.weights_of(added.model_id)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a.b", "adaptive"])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(InputError, match="cannot name"):
        w.add_weights(name, tmp_path / "a")


@pytest.mark.parametrize("text", ["", "[]", '{"sha256": 3}', '{"sha256": "00"}', '{"sha256": "zz"}'])
def test_broken_cards_are_named(text: str, own: Path) -> None:
    own.mkdir()
    (own / "b.safetensors").write_bytes(b"")
    (own / "b.json").write_text(text)
    with pytest.raises(InputError, match=r"b\.json is no model card"):
        w.list_weights()


def test_a_card_alone_is_no_model(own: Path) -> None:
    own.mkdir()
    (own / "b.json").write_text("{}")
    assert "b" not in [x.name for x in w.list_weights()]
