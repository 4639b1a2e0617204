"""The commands of recommendation and classification, from a document in the seed's format to an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nbmf_research.cli import main


def said(capsys: pytest.CaptureFixture[str], *line: str, code: int = 0) -> str:
    """Output of a command that ends with this code; its error if that is not 0."""
    capsys.readouterr()
    assert main(list(line)) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_recommendation_from_the_seeds_document_to_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "ncf", "prepare", "synthetic", "interactions.json")
    document = json.loads(Path("interactions.json").read_text())
    assert {"interactions", "held_out_test"} <= set(document)
    Path("c.yaml").write_text("data: interactions.json\nmodel: gmf\nsettings: {dim: 8, epochs: 3}\nfolder: runs/ncf\n")
    assert "gmf" in said(capsys, "ncf", "train", "c.yaml", "--settings.epochs", "2")
    assert {"random", "popularity"} <= set(said(capsys, "ncf", "evaluate", "runs/ncf", "interactions.json").split())
    user = document["interactions"][0]["user_id"]
    listed = [
        line.split("\t") for line in said(capsys, "ncf", "recommend", "--user", str(user), "--k", "4").splitlines()
    ]
    assert len({item for item, _ in listed}) == 4
    met = {str(i["item_id"]) for i in document["interactions"] if i["user_id"] == user}
    assert not met & {item for item, _ in listed}
    assert len(said(capsys, "ncf", "recommend", "--user", "nobody", "--k", "3").splitlines()) == 3, "popular items"
    assert said(capsys, "ncf", "recommend", "nowhere", "--user", user, code=2).count("\n") == 1


def test_classification_from_a_document_to_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "classify", "prepare", "synthetic", "texts")
    Path("c.yaml").write_text("data: texts\nmodel: linear\nsettings: {folds: 2}\nfolder: runs/classify/v1\n")
    assert "linear" in said(capsys, "classify", "train", "c.yaml")
    table = said(capsys, "classify", "evaluate", "runs/classify/v1", "texts")
    assert "linear" in table or "model" in table
    assert len(said(capsys, "classify", "predict", "words of nobody", "runs/classify/v1").splitlines()) == 4
    said(capsys, "classify", "predict", "a", "nowhere", code=2)
