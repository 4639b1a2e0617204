"""Prediction of quality: the model codec, the regression's coverage, the risk-controlled step, the released parameters, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import binom

from nbmf_research.core import InputError, StreamError
from nbmf_research.neural import quality as qu
from nbmf_research.neural.recordings import recording
from nbmf_research.neural.weights import RELEASED
from nbmf_research.uncertainty import QuantileTracker

released = pytest.mark.skipif(not (RELEASED / "quality.json").is_file(), reason="the released prediction is not here")


def noise(n: int, channels: int, rate: float = 250.0, seed: int = 0, scale: float = 50.0) -> xr.DataArray:
    """A recording of white noise."""
    x = scale * np.random.default_rng(seed).standard_normal((n, channels))
    return recording(np.rint(x).astype(np.int16), rate)


@pytest.fixture(scope="module")
def model() -> qu.QualityModel:
    return made_model(0)


def made_points(seed: int, groups: int = 30) -> list[qu.Point]:
    """Points whose outcome is a function of the features, an error of each group, and noise."""
    rng, out = np.random.default_rng(seed), []
    for g in range(groups):
        known = qu.spectra(noise(2000, 2, seed=g))
        own = rng.normal(0, 1)
        for ratio in rng.uniform(5, 40, 4):
            f = qu.quality_features(known, float(ratio))
            snr = 10 * f["snr_db"][0] - 1 + own + 0.3 * rng.normal()
            out.append(qu.Point(f"g{g}", float(ratio), snr, float(10 ** (-1 + 0.2 * own)), f))
    return out


def made_model(seed: int) -> qu.QualityModel:
    """A model of made points."""
    return qu.fit_quality(made_points(seed))


def test_the_quantiser_is_that_of_theory() -> None:
    bits, error = qu.quantiser_table()
    assert (np.diff(bits) >= -1e-9).all() and bits[0] < 1e-6 and (error > 0).all()
    assert error[-1] == pytest.approx(1 / 12, rel=0.03)  # the zero bin is wider
    assert bits[-1] == pytest.approx(
        12 + 0.5 * math.log2(2 * math.pi * math.e), abs=0.02
    )  # entropy of a fine quantiser
    assert error[0] == pytest.approx(4.0**-5, rel=1e-3)  # nothing is coded


def test_white_noise_gets_six_decibels_a_bit() -> None:
    known = qu.spectra(noise(60_000, 3))
    at = [qu.model_quality(known, b)[0] for b in (1.0, 2.0, 3.0, 4.0)]
    assert np.diff(at)[1:] == pytest.approx(6.02, abs=0.15) and at[3] == pytest.approx(6.02 * 4 - 1.53, abs=0.15)
    assert known.power.mean() == pytest.approx(2500, rel=0.02)


def test_channels_that_share_a_source_cost_less() -> None:
    x = noise(20_000, 1).values
    shared = recording(np.repeat(x, 8, 1) + noise(20_000, 8, seed=1, scale=2).values, 250.0)
    assert qu.model_quality(qu.spectra(shared), 0.6)[0] > qu.model_quality(qu.spectra(noise(20_000, 8)), 0.6)[0] + 10


def test_band_losses_are_shares_and_grow_with_the_ratio() -> None:
    known = qu.spectra(noise(20_000, 2))
    losses = [qu.model_band_loss(known, qu.model_quality(known, b)[1]) for b in (2.0, 0.5, 0.05)]
    assert all(0 <= v <= 1 for loss in losses for v in loss.values())
    assert all(losses[0][k] < losses[1][k] < losses[2][k] for k in losses[0]) and set(losses[0]) == set(known.bands)


def test_a_long_recording_is_read_in_excerpts() -> None:
    x = noise(1_200_000, 1, rate=1000.0)
    parts = qu.read_excerpts(x)
    assert len(parts) == 8 and sum(map(len, parts)) <= 400_000
    assert qu.spectra(x).block == 2**18 and qu.spectra(x).n_time == 1_200_000


def test_intervals_cover_new_groups() -> None:
    hits = {"snr_db": [], "band_error": []}
    for seed in range(12):
        model = made_model(seed)
        new = [replace(p, group=f"new {p.group}") for p in made_points(1000 + seed, 25)]
        for target, found in qu.group_coverages(new, model, 0.9).items():
            hits[target] += list(found.values())
    for found in hits.values():  # 300 groups that share 12 models
        assert np.mean(found) >= binom.ppf(1e-4, 300, 0.9) / 300 - 0.02


def test_more_coverage_than_groups_allow_is_infinite(model: qu.QualityModel) -> None:
    assert model.parts["snr_db"].threshold(0.99) == math.inf > model.parts["snr_db"].threshold(0.9)
    p = qu.predict_quality(noise(2000, 2), 10, level=0.99, model=model)
    assert (p.snr_db.lo, p.snr_db.hi) == (-math.inf, math.inf)
    assert p.band_error is not None and (p.band_error.lo, p.band_error.hi) == (0, math.inf)
    assert 0 < p.band_error.value < 1000


def test_absurd_predictions_are_clipped_in_the_middle_only(model: qu.QualityModel) -> None:
    part = model.parts["band_error"]
    weights = np.append(9.0, 0 * part.weights[1:])
    strange = replace(model, parts=model.parts | {"band_error": replace(part, weights=weights)})
    p = qu.predict_quality(noise(2000, 2), 10, model=strange).band_error
    assert p is not None and p.lo <= p.value == 1000 < 1e9 <= p.hi


def test_prediction_and_safe_ratio_agree(model: qu.QualityModel) -> None:
    x = noise(2000, 2, seed=77)
    p = qu.predict_quality(x, 10, model=model)
    assert p.snr_db.lo < p.snr_db.value < p.snr_db.hi and p.band_error is not None and p.familiar
    safe = qu.safe_ratio(x, min_snr_db=p.snr_db.lo, model=model)
    assert safe.snr_db.lo >= p.snr_db.lo and safe.ratio <= 10.5
    assert qu.safe_ratio(x, min_snr_db=1.0, level=0.5, model=model).ratio >= safe.ratio
    strict = qu.safe_ratio(x, max_band_error=0.9, min_snr_db=p.snr_db.lo, model=model)
    assert strict.ratio <= safe.ratio


def test_an_unfamiliar_recording_gets_a_smaller_ratio(model: qu.QualityModel) -> None:
    flat = {k: replace(r, spread=np.append(r.spread[0], 0 * r.spread[1:])) for k, r in model.parts.items()}
    narrow = {k: replace(r, lowest=r.highest + 9, highest=r.highest + 10) for k, r in flat.items()}
    model, strange = replace(model, parts=flat), replace(model, parts=narrow)
    x = noise(2000, 2, seed=78)
    usual, careful = (qu.safe_ratio(x, min_snr_db=1.0, model=m) for m in (model, strange))
    assert not careful.familiar and careful.ratio == pytest.approx(max(usual.ratio / 1.5, 4.0))


def test_a_recording_without_bands(model: qu.QualityModel) -> None:
    x = noise(100, 1, rate=30_000.0)
    assert qu.predict_quality(x, 10, model=model).band_error is None
    with pytest.raises(InputError, match="short"):
        qu.safe_ratio(x, max_band_error=0.05, model=model)


def test_a_model_comes_back_as_it_was_saved(model: qu.QualityModel, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    model.save(path)
    again = qu.QualityModel.load(path)
    a, b = (qu.predict_quality(noise(2000, 2), 12, model=m) for m in (model, again))
    assert a.snr_db.hi == pytest.approx(b.snr_db.hi, rel=1e-3) and again.groups == model.groups
    whole = path.read_text()
    record = json.loads(whole)
    others = [json.dumps(record | {"parts": v}) for v in ([], None, 3, {}, {"snr_db": 1})]
    del record["parts"]["snr_db"]["mean"]
    for text in (json.dumps(record), whole[:100], "[]", *others):
        path.write_text(text)
        with pytest.raises(StreamError, match="no prediction"):
            qu.QualityModel.load(path)


def uneven(n_blocks: int) -> xr.DataArray:
    """Blocks of 250 samples, each at a level of its own."""
    rng = np.random.default_rng(0)
    level = np.repeat(np.exp(rng.normal(size=n_blocks)), 250)[:, None]
    x = 30 * rng.standard_normal((250 * n_blocks, 1)) + rng.standard_normal((250 * n_blocks, 1)).cumsum(0) % 400
    return recording(np.rint(x * level).astype(np.int16), 250.0)


def test_the_certified_step_keeps_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 150 draws, a step that fails more blocks than asked is chosen no more often than the confidence allows; blocks fail by a planted rule."""
    rec = uneven(120)
    limits = np.array([float(rec[a : a + 250].std()) for a in range(0, 30_000, 250)])

    def planted(blocks, steps, *rest):
        failed = np.array([[step > float(b.std()) for step in steps] for b in blocks], float)
        return failed, np.ones_like(failed)

    monkeypatch.setattr(qu, "block_failures", planted)
    wrong = []
    for seed in range(150):
        choice = qu.choose_step(rec, limit=0.1, share=0.2, block_seconds=1.0, n_blocks=40, codec="dct", seed=seed)
        assert choice.failures <= 0.2 * choice.n_blocks and choice.n_blocks == 40
        wrong.append((choice.step > limits).mean() > 0.2)
    assert sum(wrong) <= binom.ppf(1 - 1e-3, 150, 0.1)


def test_a_real_codec_keeps_the_certified_share() -> None:
    rec = uneven(30)
    choice = qu.choose_step(rec, limit=0.2, share=0.2, block_seconds=1.0, n_blocks=20, codec="dct")
    blocks = [rec[a : a + 250].values for a in range(0, 7500, 250)]
    failed, _ = qu.block_failures(blocks, [choice.step], 250.0, 0.2, "dct")
    assert choice.ratio > 1 and choice.failures <= 0.2 * choice.n_blocks and failed.mean() <= 0.2


def test_the_ladder_of_steps_does_not_depend_on_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    loud = np.repeat(np.random.default_rng(1).choice([1.0, 9.0], 40), 250)[:, None]
    rec = recording(np.rint(noise(10_000, 1).values * loud).astype(np.int16), 250.0)
    tried: list[float] = []

    def never(blocks, steps, *rest):
        tried.extend(steps)
        return np.zeros((len(blocks), 1)), np.ones((len(blocks), 1))

    monkeypatch.setattr(qu, "block_failures", never)
    for seed in range(3):
        qu.choose_step(rec, share=0.3, block_seconds=1.0, n_blocks=10, seed=seed)
    assert tried[:20] == tried[20:40] == tried[40:]


def test_the_shorter_last_block_is_drawn_too() -> None:
    rec = noise(1100, 3)
    drawn = qu._sample(rec, 250, 99, 0)
    assert sorted(map(len, drawn)) == [100, 250, 250, 250, 250] and sum(b.size for b in drawn) == rec.size


def test_groups_of_the_training_are_reported_apart(model: qu.QualityModel) -> None:
    known = made_points(3, 4)
    new = [replace(p, group=f"new {p.group}") for p in made_points(4, 5)]
    note = qu.coverage_note([*known, *new], model, 0.9)
    for target, part in qu.group_coverages(new, model, 0.9).items():
        assert note[target]["new_groups"] == part and note[target]["new_mean"] == np.mean(list(part.values()))
        assert set(note[target]["seen_groups"]) == {"g0", "g1", "g2", "g3"}
    assert qu.coverage_note(known, model, 0.9)["snr_db"]["new_mean"] is None
    rows = qu.outcomes_of([known[0], new[0]], model)
    assert [r["seen"] for r in rows] == [True, True, False, False]
    again = qu.fit_quality(made_points(0), points=7)  # a word that release uses
    assert again.about == {"points": 7}


def test_outcomes_that_are_not_known_make_no_rows(model: qu.QualityModel) -> None:
    p = replace(made_points(5, 1)[0], band_error=math.nan)
    assert [r["target"] for r in qu.outcomes_of([p], model)] == ["snr_db"]
    assert qu.group_coverages([p], model, 0.9)["band_error"] == {}


def test_bounds_of_the_autoencoder_follow_the_truth() -> None:
    from nbmf_research.neural.vae import VAE, VaeConfig

    torch.manual_seed(0)
    vae = VAE(VaeConfig(stride=16, latents=16, hidden=8)).eval()
    blocks = [20 * torch.randn(2, 1, 64) for _ in range(300)]
    truth = np.abs(np.random.default_rng(0).normal(1, 0.2, 300)) * np.repeat([1, 3], 150)
    bounds = qu.vae_error_bounds(vae, blocks, truth.tolist(), QuantileTracker(0.9, "upper"))
    assert abs(np.mean(truth[30:] <= bounds[30:]) - 0.9) < 0.04


@released
def test_the_released_prediction_says_what_it_rests_on() -> None:
    model = qu.released_model()
    assert model.codec == "adaptive" and len(model.groups) >= 10 and "release" in model.about["command"]
    assert set(model.parts) == {"snr_db", "band_error"}
    p = qu.predict_quality(noise(4000, 4), 10)
    assert math.isfinite(p.snr_db.lo) and (RELEASED / "quality.json").stat().st_size < 200_000


@pytest.mark.parametrize(
    "call",
    [
        lambda m: qu.predict_quality(noise(2000, 1), 1.0, model=m),
        lambda m: qu.predict_quality(noise(2000, 1), math.nan, model=m),
        lambda m: qu.spectra(noise(50, 1)),
        lambda m: qu.spectra(recording(np.zeros((500, 2), np.int16), 100.0)),
        lambda m: qu.spectra(recording(np.full((500, 2), np.nan, np.float32), 100.0)),
        lambda m: qu.safe_ratio(noise(2000, 1), model=m),
        lambda m: qu.safe_ratio(noise(2000, 1), min_snr_db=200.0, model=m),
        lambda m: qu.choose_step(noise(2000, 1), block_seconds=1.0, codec="dct"),
        lambda m: qu.fit_regression(np.ones((2, 1)), np.ones(2), ["a", "b"]),
        lambda m: qu.QualityModel.load(Path("there-is-none.json")),
    ],
)
def test_bad_input_is_one_clear_error(call, model: qu.QualityModel) -> None:
    with pytest.raises(InputError) as e:
        call(model)
    assert len(str(e.value)) > 20 and "\n" not in str(e.value)
