"""ncf.classify and ncf.encoders: features and solver against scikit-learn, decisions, checkpoints, DistilBERT in both layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score

from nbmf_research.core import InputError, MissingDependencyError, StreamError
from nbmf_research.ncf import classify as c
from nbmf_research.ncf import encoders as e
from nbmf_research.ncf import text as t

WORLD = t.simulate_texts(900, length=25, seed=1)
SPLIT = WORLD.split
DEEP = t.simulate_texts(600, length=25, hierarchical=True, seed=2).split
LINEAR = c.LinearText(folds=2).fit(SPLIT.train)
TREE = c.LinearText(folds=2).fit(DEEP.train)
SMALL = e.TransformerText(dim=16, heads=2, layers=1, epochs=2, length=16).fit(SPLIT.train)
try:
    import transformers
except ImportError:
    transformers = None


def test_features_are_those_of_scikit_learn() -> None:
    texts = ["the red Car, the car", "a red house", "house of a car the red car", "a the of"]
    v = c.learn_vocabulary(texts, least=2)
    peer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, token_pattern=r"\w+", norm="l2")
    expected, x = peer.fit_transform(texts), v.transform(texts)
    names = [*v.words, *(f"{v.words[k // len(v.words)]} {v.words[k % len(v.words)]}" for k in v.pairs)]
    # a pair whose middle word is unknown is no pair, and both count only pairs seen in two texts
    order = [peer.vocabulary_[n] for n in names]
    assert sorted(order) == list(range(len(peer.vocabulary_)))
    assert np.allclose(x.toarray(), expected.toarray()[:, order], atol=1e-6)


def test_runs_of_characters_are_those_of_scikit_learn() -> None:
    texts = ["Red cars, 2 of them", "a red  car", "ééé red"]
    v = c.learn_vocabulary(texts, pairs=False, longest=4, least=1)
    x = v.transform(texts)[:, len(v.words) :]
    peer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, norm="l2").fit_transform(texts)
    ours, theirs = (x @ x.T).toarray(), (peer @ peer.T).toarray()
    assert np.allclose(np.diag(ours), 1, atol=1e-5) and np.allclose(ours, theirs, atol=0.06)


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_any_text_gets_probabilities(texts: list[str]) -> None:
    p = LINEAR.probabilities(texts)
    assert p.shape == (len(texts), len(LINEAR.labels)) and (p >= 0).all() and (p.sum(axis=1) <= 1 + 1e-9).all()
    assert np.allclose(LINEAR.probabilities(texts[:1]), p[:1], atol=1e-6) and len(LINEAR.predict(texts)) == len(texts)


def test_the_solver_reaches_the_optimum() -> None:
    rng = np.random.default_rng(0)
    x = sp.random(80, 30, 0.3, "csr", np.float32, rng)
    y, cost = rng.random((80, 2)) < 0.4, rng.uniform(0.5, 2, 80)
    w, b = c.fit_linear(x, y, cost, 2000, 1e-6)
    signs = np.where(y, 1, -1)
    slack = np.maximum(0, 1 - signs * (x @ w + b))
    assert np.allclose(w, x.T @ (2 * cost[:, None] * slack * signs), atol=1e-3)  # the gradient is zero
    assert np.allclose(b, (2 * cost[:, None] * slack * signs).sum(0), atol=1e-3)


def test_the_optimum_is_neared_and_cheaters_are_not() -> None:
    truth, p = LINEAR.targets(SPLIT.test), LINEAR.probabilities(SPLIT.test.texts)
    found = c.measure(p, LINEAR.choose(p), truth)
    best = WORLD.oracle(SPLIT.test.texts)
    limit = c.measure(best, best > 0.5, truth)["accuracy"]
    assert limit - 0.15 < found["accuracy"] <= limit + 0.02 and found["ece"] < 0.08 and found["unknown_recall"] > 0.3
    for cheat in c.cheaters(LINEAR, SPLIT.train, len(truth)).values():
        assert c.measure(*cheat, truth)["micro_f1"] < 0.3 < found["micro_f1"]


def test_thresholds_reach_the_best_f1_of_true_probabilities() -> None:
    p = np.random.default_rng(0).beta(0.3, 2, 500)
    cut = c._best_expected(p)
    expected = [2 * p[p >= v].sum() / ((p >= v).sum() + p.sum()) for v in np.sort(p)]
    assert np.isclose(2 * p[p >= cut].sum() / ((p >= cut).sum() + p.sum()), max(expected))


def test_parents_follow_from_children() -> None:
    p = TREE.probabilities(DEEP.test.texts)
    chosen, truth = TREE.choose(p), TREE.targets(DEEP.test)
    for i, code in enumerate(TREE.labels):
        for above in t.ancestors(code):
            j = TREE.labels.index(above)
            assert (
                (p[:, j] >= p[:, i]).all()
                and (chosen[:, j] >= chosen[:, i]).all()
                and (truth[:, j] >= truth[:, i]).all()
            )
    micro, macro = c.f1_scores(chosen, truth)
    assert np.isclose(micro, f1_score(truth, chosen, average="micro")) and micro > 0.75
    assert np.isclose(macro, f1_score(truth, chosen, average="macro"))


def test_without_texts_out_of_scope_few_are_refused() -> None:
    inside = SPLIT.train.take([bool(x) for x in SPLIT.train.codes])
    model = c.LinearText(folds=2, refuse=0.1).fit(inside)
    assert 0.03 < np.mean([not a.codes for a in model.predict(SPLIT.validation.take(np.arange(300)).texts)]) < 0.35
    with_validation = c.LinearText().fit(inside, SPLIT.validation)
    assert with_validation.decision is not None and with_validation.decision.offset[0] > -100


def test_a_wrong_label_that_is_doubted_counts_less() -> None:
    texts = ("good day", "good sun", "bad rain", "bad wind", "good rain", "good wind") * 4
    codes = (("y",), ("y",), ("n",), ("n",), ("n",), ("n",)) * 4
    sure = np.tile([1, 1, 1, 1, 0.01, 0.01], 4)
    a = c.LinearText(folds=2).fit(t.Texts(texts, codes, weights=sure))
    b = c.LinearText(folds=2).fit(t.Texts(texts, codes))
    assert a._score(["good"])[0, 1] > b._score(["good"])[0, 1]


@pytest.mark.parametrize("model", [LINEAR, TREE, SMALL], ids=["linear", "several", "transformer"])
def test_checkpoints(model: c.Classifier, tmp_path: Path) -> None:
    folder = c.version_folder(tmp_path, new=True)
    manifest = c.save_classifier(model, folder, data=SPLIT.train, metrics={"accuracy": 0.5})
    loaded, some = c.load_classifier(folder), list(SPLIT.test.texts[:20])
    assert np.allclose(loaded.probabilities(some), model.probabilities(some), atol=1e-6)
    assert loaded.predict(some[:2])[0].codes == model.predict(some[:2])[0].codes
    for entry in manifest["files"].values():
        path = folder / entry["path"]
        body = path.read_bytes()
        for bad in (body[:-1], body[:-1] + bytes([body[-1] ^ 1])):
            path.write_bytes(bad)
            with pytest.raises(StreamError, match="SHA-256"):
                c.load_classifier(folder)
        path.write_bytes(body)
    text = (folder / "manifest.json").read_text()
    for old, new in (('"version": 1', '"version": 9'), ('"nbmf-classifier"', '"other"'), ("sha256", "sha"), ("{", "")):
        (folder / "manifest.json").write_text(text.replace(old, new, 1))
        with pytest.raises(StreamError):
            c.load_classifier(folder)
    entry = manifest["files"]["facts.json"]
    (folder / "manifest.json").write_text(text.replace(entry["path"], "../" + entry["path"]))
    with pytest.raises(StreamError, match="outside"):
        c.load_classifier(folder)


def test_training_twice_gives_the_same_model() -> None:
    again = e.TransformerText(dim=16, heads=2, layers=1, epochs=2, length=16).fit(SPLIT.train)
    assert all(np.array_equal(again.arrays[k], SMALL.arrays[k]) for k in SMALL.arrays)
    assert np.array_equal(c.LinearText(folds=2).fit(SPLIT.train).arrays["weights"], LINEAR.arrays["weights"])


# DistilBERT -------------------------------------------------------------------------------------------------------


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(600))]


def make_base(folder: Path, layout: str) -> None:
    """A tiny model with random weights, in one of the two layouts."""
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(vocab_size=len(PIECES), dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    model = transformers.DistilBertModel(config)
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json_string())
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    if layout == "old":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder)


@pytest.mark.skipif(transformers is None, reason="needs transformers (extra text)")
@pytest.mark.parametrize("layout", ["old", "today"])
def test_distilbert_from_a_folder(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make_base(tmp_path / "base", layout)
    some = list(DEEP.test.texts[:8])
    model = e.PretrainedText(folder=str(tmp_path / "base"), epochs=1, length=16, rate=1e-3).fit(
        DEEP.train.take(np.arange(200))
    )
    c.save_classifier(model, tmp_path / "benchmark_v1")
    shutil.rmtree(tmp_path / "base")  # a checkpoint stands alone
    assert np.allclose(
        c.load_classifier(tmp_path / "benchmark_v1").probabilities(some), model.probabilities(some), atol=1e-5
    )
    e.write_pretrained(model, tmp_path / "out")
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", local_files_only=True
    ).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)(
        some[0], truncation=True, max_length=16
    )
    ours = model._score(some[:1])[0]
    with torch.no_grad():
        theirs = peer(torch.tensor([tokens["input_ids"]]), torch.tensor([tokens["attention_mask"]])).logits[0].numpy()
    assert np.allclose(ours, theirs, atol=1e-4) and tuple(peer.config.label2id) == model.labels
    again = e.read_pretrained(tmp_path / "out")
    assert again.labels == model.labels and np.allclose(again._score(some), model._score(some), atol=1e-4)


@pytest.mark.skipif(transformers is None, reason="needs transformers (extra text)")
def test_the_older_layout_of_a_fine_tuned_model(tmp_path: Path) -> None:
    make_base(tmp_path / "base", "old")
    model = e.PretrainedText(folder=str(tmp_path / "base"), epochs=1, length=16).fit(DEEP.train.take(np.arange(100)))
    old = tmp_path / "benchmark_v1"
    old.mkdir()
    torch.save({k: torch.from_numpy(v) for k, v in model.arrays.items()}, old / "pytorch_model.bin")
    for name in ("config.json", "vocab.txt"):
        shutil.copy(tmp_path / "base" / name, old / name)
    (old / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    (old / "label_map.json").write_text(json.dumps({str(i): code for i, code in enumerate(model.labels)}))
    read = e.read_pretrained(old)
    assert read.labels == model.labels and np.allclose(read._score(["w1 w2"]), model._score(["w1 w2"]), atol=1e-5)
    (old / "label_map.json").write_text(json.dumps({"a": 0}))
    with pytest.raises(StreamError, match="fit together"):
        e.read_pretrained(old)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/tmp/never-made"),))  # type: ignore[return-value]


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "vocab.txt").write_text("a")
    torch.save({"x": Hostile()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(StreamError, match="as tensors"):
        e._weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(StreamError, match="as tensors"):
        e._weights(tmp_path)
    assert not Path("/tmp/never-made").exists()
    with pytest.raises(InputError, match="label_map"):
        e.read_pretrained(tmp_path)


@pytest.mark.skipif(transformers is not None, reason="transformers is installed")
def test_without_transformers_the_extra_is_named(tmp_path: Path) -> None:
    for name in ("config.json", "pytorch_model.bin", "vocab.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(MissingDependencyError, match=r"nbmf_research\[text\]"):
        e.PretrainedText(folder=str(tmp_path)).fit(SPLIT.train)
