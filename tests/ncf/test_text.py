"""ncf.text: the JSON format, splits that do not leak, augmentation, codes with parents, public sets."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.core import InputError
from nbmf_research.ncf import text as t

FOLDER = os.environ.get("NBMF_DATA_DIR", "")
COUNTS = {"20news-bydate": (11314, 7532, 20), "clinc150": (15100, 5500, 150), "reuters21578-modapte": (None, 3019, 90)}
words = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(words, st.sets(words, max_size=3), st.floats(0.01, 1)), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_documents_come_back_whole(rows: list[tuple[str, set[str], float]]) -> None:
    codes = tuple(tuple(sorted(r[1])) for r in rows)
    data = t.Texts(tuple(r[0] for r in rows), codes, weights=np.array([r[2] for r in rows]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes.json"
        t.write_codes(data, path)
        back = t.read_codes(path)
    assert (back.texts, back.codes, back.groups) == (data.texts, data.codes, data.groups)
    assert np.array_equal(back.weights, data.weights)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("samples"), "no list of samples"),
        (lambda d: d["samples"].clear(), "no samples"),
        (lambda d: d["samples"].append(3), "sample 2 is not an object"),
        (lambda d: d["samples"][0].update(text=" "), "sample 0 has no text"),
        (lambda d: d["samples"][1].update(taxonomy_codes="004"), "sample 1: taxonomy_codes"),
        (lambda d: d["samples"][1].update(taxonomy_codes=["a", "a"]), "twice"),
        (lambda d: d["samples"][1].update(confidence=0), "confidence 0"),
        (lambda d: d["metadata"].update(num_classes=7), "num_classes 7, there are 2"),
        (lambda d: d["metadata"]["class_distribution"].update(x=1), "class_distribution"),
    ],
)
def test_what_is_wrong_is_said(change: object, words: str, tmp_path: Path) -> None:
    document = t.to_document(t.Texts(("one", "two"), (("000", "004"), ())))
    assert t.problems(document) == []
    change(document)  # type: ignore[operator]
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"x\.json") as caught:
        t.read_codes(tmp_path / "x.json")
    assert words in str(caught.value)


def test_the_documents_of_the_specification_are_read(tmp_path: Path) -> None:
    sample = {"text": "Machine learning is a subset of AI...", "taxonomy_codes": ["000", "004"], "confidence": 1.0}
    about = {"num_samples": 1, "num_classes": 2, "class_distribution": {"000": 1, "004": 1}}
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(json.dumps({"metadata": about, "samples": [sample]}).encode()))
    assert t.read_codes(tmp_path / "x.json.gz").codes == (("000", "004"),)


@given(st.lists(st.integers(0, 9), min_size=20, max_size=60), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_groups_are_never_divided(groups: list[int], seed: int) -> None:
    data = t.Texts(tuple(f"t{i}" for i in groups), (("a",),) * len(groups), tuple(map(str, groups)))
    n = min(3, len(set(groups)))
    if n < 2:
        return
    fold = t.folds(data, n, seed)
    assert all(len(set(fold[np.array(groups) == g])) == 1 for g in set(groups)) and set(fold) == set(range(n))


@given(st.integers(0, 100), st.integers(0, 10))
@settings(max_examples=20, deadline=None)
def test_variations_stay_with_their_sources(size: int, seed: int) -> None:
    train = t.simulate_texts(20, outside=0.2, seed=seed).split.train
    more = t.augment(train, size, seed)
    assert len(more) == max(size, 20) and len(set(more.texts)) == len(more) and more.texts[:20] == train.texts
    source = dict(zip(train.groups, train.codes))
    assert all(source[g] == c for g, c in zip(more.groups, more.codes))
    words_of = dict(zip(train.groups, train.texts))
    assert all(set(x.split()) <= set(words_of[g].split()) for x, g in zip(more.texts, more.groups))
    if len(more) > 40:
        large, small = t.hold_out(more, 0.25, seed)
        assert not set(large.groups) & set(small.groups)


def test_nothing_to_vary_ends() -> None:
    assert len(t.augment(t.Texts(("a b", "c"), (("x",), ("y",))), 50)) == 2
    assert len(t.augment(t.Texts(("a b c",), (("x",),)), 200)) < 20


@given(st.from_regex(r"[0-9]{3}(\.[0-9]{1,3})?", fullmatch=True))
@settings(max_examples=20, deadline=None)
def test_codes_lead_to_the_top(code: str) -> None:
    above = t.ancestors(code)
    assert len(above) <= 3 and (not above or t.parent(above[-1]) == "") and code not in above
    assert t.with_ancestors([code]) == t.with_ancestors([code, *above])


def test_the_oracle_is_calibrated() -> None:
    world = t.simulate_texts(3000, outside=0, length=8, seed=7)
    p = world.oracle(world.split.test.texts)
    best = p.argmax(axis=1)
    hit = np.array([world.labels[b] == c[0] for b, c in zip(best, world.split.test.codes)])
    assert abs(hit.mean() - p.max(axis=1).mean()) < 4 * np.sqrt(0.25 / 3000)


def test_a_set_with_several_parts(tmp_path: Path) -> None:
    def write(name: str, rows: list[dict[str, object]]) -> None:
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))

    write("train", [{"text": "a", "labels": ["x", "y"], "date": "1-MAY 10:00"}, {"text": "b", "labels": ["z"]}])
    write("test", [{"title": "T", "text": "c", "labels": ["x"]}])
    split = t.read_set(tmp_path.name, tmp_path.parent)
    assert split.train.codes == (("x",),) and split.train.groups == ("1-MAY",) and split.test.texts == ("T\nc",)
    write("oos_train", [{"text": "out", "label": "oos"}])
    write("train", [{"text": "a", "label": "x"}])
    write("test", [{"text": "c", "label": "x"}])
    assert t.read_set(tmp_path.name, tmp_path.parent).train.codes == (("x",), ())
    write("train", [{"label": "x"}])
    with pytest.raises(InputError, match="line 1"):
        t.read_set(tmp_path.name, tmp_path.parent)


@pytest.mark.real
@pytest.mark.parametrize("name", COUNTS)
def test_public_sets_have_their_counts(name: str) -> None:
    if not FOLDER or not (Path(FOLDER) / "classify" / name).is_dir():
        pytest.skip(f"needs classify/{name} under NBMF_DATA_DIR")
    split = t.read_set(name)
    train, test, labels = COUNTS[name]
    assert len(split.test) == test and len(split.train.labels) == labels and train in (None, len(split.train))
