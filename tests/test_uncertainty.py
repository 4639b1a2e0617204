"""Uncertainty and calibration: every guarantee by seeded simulation or exact bound, equality with MAPIE, state, bad input."""

from __future__ import annotations

import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from torch import nn

from nbmf_research import calibration as ca
from nbmf_research import uncertainty as un
from nbmf_research.core import InputError

mapie = pytest.mark.skipif(importlib.util.find_spec("mapie") is None, reason="the oracle is MAPIE: pip install MAPIE")
ONLINE = ("aci", "quantile", "pid")


def binomial_range(p: float, n: int, tail: float = 1e-4) -> tuple[float, float]:
    """Shares that a binomial of this probability has but for two tails."""
    return binom.ppf(tail, n, p) / n, binom.ppf(1 - tail, n, p) / n


# ---- split conformal


@pytest.mark.parametrize(("n", "level"), [(19, 0.9), (50, 0.9), (99, 0.95), (200, 0.8)])
def test_split_conformal_covers_exchangeable_outcomes_at_its_exact_rate(n: int, level: float) -> None:
    rng, draws = np.random.default_rng(n), 20_000
    scores = rng.exponential(size=(draws, n + 1))
    rank = math.ceil((n + 1) * level - 1e-9)
    thresholds = np.sort(scores[:, :n], 1)[:, rank - 1]
    assert all(un.conformal_quantile(s[:n], level) == t for s, t in zip(scores[:50], thresholds))
    low, high = binomial_range(rank / (n + 1), draws)
    assert low <= np.mean(scores[:, n] <= thresholds) <= high
    assert level <= rank / (n + 1) <= level + 1 / (n + 1)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_the_conformal_quantile_is_the_smallest_that_the_rank_allows(scores: list[float], level: float) -> None:
    q = un.conformal_quantile(scores, level)
    need = math.ceil((len(scores) + 1) * level - 1e-9)
    assert (q == math.inf) == (need > len(scores))
    if math.isfinite(q):
        assert sum(s <= q for s in scores) >= need > sum(s < q for s in scores)
    assert q == un.weighted_quantile(scores, np.ones(len(scores)), level, 1.0)


@pytest.mark.parametrize("name", ["residual", "upper", "quantiles"])
@given(y=st.floats(-1e3, 1e3), a=st.floats(-1e3, 1e3), b=st.floats(0.1, 1e3), more=st.floats(1e-6, 10))
def test_an_outcome_lies_in_the_interval_of_its_own_score(name: str, y: float, a: float, b: float, more: float) -> None:
    score = un.SCORES.create(name)
    prediction = (a, a + b) if name == "quantiles" else (a, b)
    lo, hi = score.interval(float(score.of(y, *prediction)) + more, *prediction)
    assert lo <= y <= hi
    lo, hi = score.interval(float(score.of(y, *prediction)) - more - 1e-6 * abs(y), *prediction)
    assert not lo <= y <= hi


def test_the_studentised_score_adapts_its_width() -> None:
    rng = np.random.default_rng(0)
    sd = np.exp(rng.normal(size=4000))
    y = sd * rng.normal(size=4000)
    tracker = un.SplitConformal(0.9).calibrate(y[:2000], 0.0, sd[:2000])
    plain = un.SplitConformal(0.9).calibrate(y[:2000], 0.0)
    wise, flat = un.follow(tracker, y[2000:], 0.0, sd[2000:]), un.follow(plain, y[2000:], 0.0)
    assert abs(ca.coverage(y[2000:], *wise) - 0.9) < 0.03 > abs(ca.coverage(y[2000:], *flat) - 0.9)
    assert ca.interval_score(y[2000:], *wise, 0.9) < 0.8 * ca.interval_score(y[2000:], *flat, 0.9)


# ---- unequal weights


def test_known_weights_keep_the_level_under_covariate_shift() -> None:
    rng, hits = np.random.default_rng(1), []
    for _ in range(3000):
        x = rng.normal(size=101)
        x[100] += 1.0
        score = (1 + x**2) * np.abs(rng.normal(size=101))
        w = np.exp(x - 0.5)  # density ratio of N(1, 1) to N(0, 1)
        hits.append(score[100] <= un.weighted_quantile(score[:100], w[:100], 0.9, float(w[100])))
    assert np.mean(hits) >= binomial_range(0.9, 3000)[0]


def test_estimated_weights_are_near_the_true_ratio() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(4000, 1)), rng.normal(0.7, 1, size=(3000, 1))
    w, own = un.shift_weights(a, b)
    assert np.corrcoef(np.log(w), a[:, 0])[0, 1] > 0.999 and w.shape == (4000,) and own.shape == (3000,)
    assert np.polyfit(a[:, 0], np.log(w), 1) == pytest.approx([0.7, -0.245], abs=0.12)
    with pytest.raises(InputError, match="features"):
        un.shift_weights(np.ones((3, 2)), np.ones((3, 1)))


def test_a_new_group_is_covered_where_pooled_scores_fail() -> None:
    rng, grouped, pooled = np.random.default_rng(3), [], []
    who = np.repeat(np.arange(12), 30).tolist()
    for _ in range(3000):
        level = np.exp(rng.normal(size=13))
        score = level[who] * np.abs(rng.normal(size=360))
        new = level[12] * abs(rng.normal())
        grouped.append(new <= un.grouped_quantile(score, who, 0.9))
        pooled.append(new <= un.conformal_quantile(score, 0.9))
    assert np.mean(grouped) >= binomial_range(0.9, 3000)[0] and np.mean(grouped) > np.mean(pooled)
    assert un.grouped_quantile(score, who, 12 / 13 + 1e-6) == math.inf


# ---- trackers: bounds that hold for every sequence

sequences = st.lists(st.floats(0.01, 100), min_size=1, max_size=300)
levels = st.sampled_from([0.5, 0.8, 0.9, 0.99])


def misses(tracker: un.Tracker, scores: list[float]) -> float:
    """Share of scores outside a one-sided bound."""
    return 1 - ca.coverage(scores, *un.follow(tracker, scores, 0.0))


@given(sequences, levels, st.floats(0.005, 0.5))
def test_adaptive_conformal_keeps_its_bound_on_any_sequence(scores: list[float], level: float, rate: float) -> None:
    a, n = 1 - level, len(scores)
    found = misses(un.AdaptiveConformal(level, "upper", window=50, rate=rate), scores)
    assert abs(found - a) <= (max(a, level) + rate) / (rate * n) + 1e-9


@given(sequences, levels, st.floats(0.02, 1.0))
def test_the_quantile_tracker_keeps_its_bound_on_any_sequence(scores: list[float], level: float, rate: float) -> None:
    found = misses(un.QuantileTracker(level, "upper", rate=rate), scores)
    assert abs(found - (1 - level)) <= (math.log(100 / 0.01) + rate) / (rate * len(scores)) + 1e-9


@given(st.lists(st.just(0.0) | st.floats(0.01, 100), min_size=1, max_size=300), levels, st.floats(0.02, 1.0))
def test_the_quantile_tracker_keeps_the_upper_bound_where_scores_reach_the_floor(
    scores: list[float], level: float, rate: float
) -> None:
    tracker = un.QuantileTracker(level, "upper", rate=rate, floor=1e-3)
    found = misses(tracker, scores)
    assert found - (1 - level) <= (math.log(100 / 1e-3) + rate) / (rate * len(scores)) + 1e-9
    assert tracker.place >= math.log(1e-3) and tracker.threshold() >= 1e-3 * (1 - 1e-12)


@pytest.mark.parametrize("kind", ["quantile", "pid"])
def test_a_run_of_zeros_is_not_paid_for_afterwards(kind: str) -> None:
    tracker = un.TRACKERS.create(kind, score="upper")
    un.follow(tracker, np.zeros(10_000), 0.0)
    missed = un.follow(tracker, np.ones(2000), 0.0)[1] < 1.0
    assert int(np.argmin(missed)) <= math.ceil(math.log(1e9) / (0.15 * 0.9))


@given(sequences, levels)
def test_the_linear_quantile_tracker_keeps_its_bound(scores: list[float], level: float) -> None:
    found = misses(un.QuantileTracker(level, "upper", rate=0.5, log=False), scores)
    assert abs(found - (1 - level)) <= (100 + 0.5) / (0.5 * len(scores)) + 1e-9


@given(st.lists(st.floats(1e-8, 1e30), min_size=1, max_size=300), levels)
def test_the_integrator_bounds_the_excess_of_misses_for_unbounded_scores(scores: list[float], level: float) -> None:
    tracker = un.ConformalPID(level, "upper", patience=2.0)
    for s in scores:
        tracker.interval(0.0)
        tracker.update(s)
        assert abs(tracker.excess) <= 2.0 * math.log(tracker.count + 2) + 1


@pytest.mark.parametrize("kind", ONLINE)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_trackers_keep_the_level_under_the_four_drifts_and_the_fixed_one_does_not(kind: str, level: float) -> None:
    stream = un.drifting_errors(seed=11)
    held, error = stream.error[stream.drift < 0], stream.error[stream.drift >= 0]

    def report(name: str) -> dict[str, float]:
        tracker = un.TRACKERS.create(name, level=level, score="upper").calibrate(held, 0.0)
        return ca.interval_report(error, 0.0, un.follow(tracker, error, 0.0)[1], level)

    found, fixed = report(kind), report("split")
    assert abs(found["coverage_error"]) <= 0.005 and found["worst_window"] >= level - 0.03
    assert fixed["coverage_error"] < -0.05 and fixed["worst_window"] < level - 0.3


@pytest.mark.parametrize("kind", list(un.TRACKERS))
def test_trackers_keep_the_level_on_exchangeable_outcomes(kind: str) -> None:
    y = np.random.default_rng(5).normal(size=6000)
    lo, hi = un.follow(un.TRACKERS.create(kind).calibrate(y[:2000], 0.0), y[2000:], 0.0)
    low, high = binomial_range(0.9, 2000)
    assert low <= ca.coverage(y[2000:], lo, hi) <= high


# ---- one contract


@pytest.mark.parametrize("kind", list(un.TRACKERS))
@pytest.mark.parametrize("cut", [0, 1, 137])
def test_a_tracker_goes_on_from_its_state(kind: str, cut: int) -> None:
    y = np.random.default_rng(6).normal(size=400) * np.repeat([1, 4], 200)
    whole, part = (un.TRACKERS.create(kind).calibrate(y[:50], 0.0, 2.0) for _ in range(2))
    expected = un.follow(whole, y, 0.0, 2.0)
    first = un.follow(part, y[:cut], 0.0, 2.0) if cut else ([], [])
    state = json.loads(json.dumps(part.state(), allow_nan=False))
    second = un.follow(un.restore_tracker(state), y[cut:], 0.0, 2.0)
    assert all(np.array_equal(np.concatenate([a, b]), e) for a, b, e in zip(first, second, expected))


@pytest.mark.parametrize("kind", list(un.TRACKERS))
def test_late_and_missing_feedback(kind: str) -> None:
    t = un.TRACKERS.create(kind, score="upper").calibrate(np.arange(1.0, 60.0), 0.0)
    t.interval(0.0)
    t.interval(1.0, 2.0)
    again = un.restore_tracker(json.loads(json.dumps(t.state(), allow_nan=False)))
    before = t.memory()
    t.update(None)
    assert t.memory() == before and len(t.pending) == 1
    t.update(5.0)
    again.update(None)
    again.update(5.0)
    assert again.state() == t.state() and not t.pending
    with pytest.raises(InputError, match="no interval that waits"):
        t.update(1.0)


def test_what_was_not_calibrated_says_nothing() -> None:
    for kind in ("split", "rolling", "aci"):
        assert un.TRACKERS.create(kind).interval(0.0) == (-math.inf, math.inf)
    short = un.SplitConformal().calibrate([1.0, 2.0], 0.0)
    assert short.interval(0.0)[1] == math.inf
    json.dumps(short.state(), allow_nan=False)


def test_the_rolling_window_holds_what_it_says() -> None:
    t = un.RollingConformal(0.5, window=7)
    y = np.random.default_rng(0).normal(size=50)
    un.follow(t, y, 0.0)
    assert t.recent == np.abs(y[-7:]).tolist() and t.sorted == sorted(t.recent)
    assert t.threshold() == un.conformal_quantile(np.abs(y[-7:]), 0.5)


def test_infinite_outcomes_leave_a_state_that_json_can_hold() -> None:
    for kind in un.TRACKERS:
        for options in ({}, {"log": False}) if kind in ("quantile", "pid") else ({},):
            t = un.TRACKERS.create(kind, score="upper", **options).calibrate([1.0, 2.0, math.inf], 0.0)
            un.follow(t, [1.0, math.inf, 3.0], 0.0)
            t.interval(0.0)
            again = un.restore_tracker(json.loads(json.dumps(t.state(), allow_nan=False)))
            assert again.state() == t.state() and again.interval(0.0) == t.interval(0.0)


STATE = un.RollingConformal(window=3).calibrate([1.0, 2.0], 0.0).state()


@pytest.mark.parametrize(
    "damage",
    [
        {"memory": {"recent": ["x"]}},
        {"memory": {"recent": [math.nan]}},
        {"memory": {"recent": 3.0}},
        {"memory": {"recent": None}},
        {"memory": [1.0]},
        {"memory": {}},
        {"pending": [[]]},
        {"pending": [["x", 0.0]]},
        {"pending": [[None, 0.0]]},
        {"pending": 7},
        {"options": {"window": "x"}},
        {"options": None},
        {"kind": "none"},
        {"kind": ["rolling"]},
    ],
)
def test_a_damaged_state_is_refused(damage: dict) -> None:
    assert un.restore_tracker(STATE).threshold() == un.restore_tracker(json.loads(json.dumps(STATE))).threshold()
    with pytest.raises(InputError) as e:
        un.restore_tracker(STATE | damage)
    assert "\n" not in str(e.value)
    for state in ([], None, "x"):
        with pytest.raises(InputError):
            un.restore_tracker(state)


@pytest.mark.parametrize("score", list(un.SCORES))
def test_predictions_that_are_nan_are_refused(score: str) -> None:
    t = un.QuantileTracker(score=score)
    for prediction in ((math.nan, 1.0), (0.0, math.nan)):
        with pytest.raises(InputError):
            t.interval(*prediction)
    assert not t.pending


# ---- risk


@pytest.mark.parametrize("ordered", [True, False])
def test_learn_then_test_is_wrong_no_more_often_than_it_says(ordered: bool) -> None:
    rng, risks = np.random.default_rng(7), np.array([0.02, 0.04, 0.0501, 0.06, 0.08])
    wrong = [
        (
            un.learn_then_test((rng.random((400, 1)) < risks).astype(float), 0.05, 0.9, ordered=ordered)
            & (risks > 0.05)
        ).any()
        for _ in range(1500)
    ]
    assert np.mean(wrong) <= binomial_range(0.1, 1500)[1]


@given(st.integers(1, 400), st.floats(0.01, 0.5), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_p_values_are_valid(n: int, bound: float, seed: int) -> None:
    x = (np.random.default_rng(seed).random((300, n)) < bound).astype(float)
    p = np.array([un.risk_p_value(row, bound) for row in x])
    q = np.array([un.risk_p_value(np.clip(row * 0.999 + 0.0005, 0, 1), bound) for row in x[:40]])
    assert np.mean(p <= 0.1) <= binomial_range(0.1, 300, 1e-6)[1] and (q >= 0).all() and (q <= 1).all()


def test_risk_control_keeps_the_expected_loss() -> None:
    rng, grid, out = np.random.default_rng(8), np.linspace(0, 1, 41), []
    for _ in range(4000):
        u = rng.random(61)
        losses = (u[:, None] < 0.4 * grid).astype(float)
        chosen = un.control_risk(losses[:60], 0.1)
        out.append(losses[60, chosen] if chosen is not None else 0.0)
    assert np.mean(out) <= binomial_range(0.1, 4000)[1] and np.mean(out) > 0.07
    assert un.control_risk(np.ones((5, 3)), 0.1) is None


# ---- MAPIE, the oracle


@mapie
def test_split_and_quantile_intervals_equal_mapie() -> None:
    from mapie.regression import ConformalizedQuantileRegressor, SplitConformalRegressor
    from sklearn.linear_model import LinearRegression, QuantileRegressor

    rng = np.random.default_rng(9)
    x = rng.normal(size=(600, 2))
    y = x @ [1.0, -2.0] + (1 + np.abs(x[:, 0])) * rng.normal(size=600)
    parts = (slice(0, 200), slice(200, 400), slice(400, 600))
    for level in (0.8, 0.9, 0.95):
        line = LinearRegression().fit(x[parts[0]], y[parts[0]])
        theirs = SplitConformalRegressor(line, confidence_level=level, prefit=True).conformalize(
            x[parts[1]], y[parts[1]]
        )
        _, ends = theirs.predict_interval(x[parts[2]])
        ours = un.SplitConformal(level).calibrate(y[parts[1]], line.predict(x[parts[1]]))
        lo, hi = un.follow(ours, y[parts[2]], line.predict(x[parts[2]]))
        assert np.allclose(ends[:, 0, 0], lo) and np.allclose(ends[:, 1, 0], hi)
    fits = [QuantileRegressor(quantile=q, alpha=0).fit(x[parts[0]], y[parts[0]]) for q in (0.05, 0.95, 0.5)]
    theirs = ConformalizedQuantileRegressor(fits, confidence_level=0.9, prefit=True).conformalize(
        x[parts[1]], y[parts[1]]
    )
    _, ends = theirs.predict_interval(x[parts[2]], symmetric_correction=True)
    ours = un.SplitConformal(0.9, "quantiles").calibrate(y[parts[1]], *(f.predict(x[parts[1]]) for f in fits[:2]))
    lo, hi = un.follow(ours, y[parts[2]], *(f.predict(x[parts[2]]) for f in fits[:2]))
    assert np.allclose(ends[:, 0, 0], lo) and np.allclose(ends[:, 1, 0], hi)


@mapie
def test_p_values_and_metrics_equal_mapie() -> None:
    from mapie.metrics import regression as theirs
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value as hb

    rng = np.random.default_rng(10)
    for mean in (0.01, 0.05, 0.2):
        losses = rng.beta(1, 1 / mean, size=300)
        expected = np.ravel(hb(np.array([losses.mean()]), 300, 0.1))[0]
        assert un.risk_p_value(losses, 0.1) == pytest.approx(min(1.0, expected), rel=1e-6, abs=1e-12)
    y, lo = rng.normal(size=400), rng.normal(-1.5, 0.2, size=400)
    hi = -lo
    ends = np.stack([lo, hi], 1)[:, :, None]
    assert ca.coverage(y, lo, hi) == pytest.approx(float(np.ravel(theirs.regression_coverage_score(y, ends))[0]))
    width = ca.interval_report(y, lo, hi, 0.9)["width"]
    assert width == pytest.approx(float(np.ravel(theirs.regression_mean_width_score(ends))[0]))
    score = theirs.regression_mwi_score(y, ends, 0.9)
    assert ca.interval_score(y, lo, hi, 0.9) == pytest.approx(float(np.ravel(score)[0]))


# ---- calibration


@given(st.floats(-5, 5), st.floats(0.1, 5), st.floats(-5, 5))
def test_the_gaussian_crps_is_the_integral(mean: float, sd: float, y: float) -> None:
    below = np.linspace(min(y, mean - 10 * sd) - 1, y, 5_001)  # two pieces: the integrand jumps at y
    above = np.linspace(y, max(y, mean + 10 * sd) + 1, 5_001)
    integral = np.trapezoid(norm.cdf((below - mean) / sd) ** 2, below)
    integral += np.trapezoid(norm.sf((above - mean) / sd) ** 2, above)
    assert ca.gaussian_crps(y, mean, sd) == pytest.approx(integral, abs=1e-4)


def test_the_crps_of_draws_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=20_000)
    for m in (2, 5, 40):
        assert ca.sample_crps(y, rng.normal(size=(m, y.size))) == pytest.approx(ca.gaussian_crps(y, 0, 1), abs=0.015)


def test_proper_scores_are_best_for_the_truth() -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=40_000)
    for factor in (0.5, 0.8, 1.25, 2.0):
        assert ca.gaussian_crps(y, 0, 1) < ca.gaussian_crps(y, 0, factor)
        assert ca.interval_score(y, -1.645, 1.645, 0.9) < ca.interval_score(y, -1.645 * factor, 1.645 * factor, 0.9)


def test_calibration_errors_vanish_for_the_truth_and_scaling_repairs() -> None:
    rng = np.random.default_rng(2)
    sd = np.exp(rng.normal(size=20_000))
    y = sd * rng.normal(size=20_000)
    assert ca.ence(y, 0, sd) < 0.05 and ca.qce(norm.cdf(y / sd)) < 0.01
    factor = ca.variance_scale(y[:5000], 0, sd[:5000] / 3)
    assert factor == pytest.approx(3, rel=0.05) and ca.ence(y, 0, factor * sd / 3) < 0.06 < ca.ence(y, 0, sd / 3)


def test_empty_and_infinite_intervals_are_counted_and_not_measured() -> None:
    y = np.zeros(4)
    found = ca.interval_report(y, [-1, 1e300, -math.inf, 1], [1, -1e300, 2, 0.5], 0.9)
    assert found["empty"] == 0.5 and found["infinite"] == 0.25 and found["coverage"] == 0.5
    assert found["width"] == pytest.approx(2 / 3) and found["interval_score"] == math.inf
    assert ca.interval_report(y, math.inf, math.inf, 0.9)["empty"] == 0


def test_windows_and_groups() -> None:
    inside = np.array([1, 1, 0, 0, 1, 1, 1, 1], float)
    found = ca.window_coverage(np.zeros(8), np.where(inside, -1, 1), 2, 2)
    assert found.tolist() == [1, 0.5, 0, 0.5, 1, 1, 1]
    assert ca.group_coverage(np.zeros(8), np.where(inside, -1, 1), 2, list("aabbccdd")) == {
        "a": 1,
        "b": 0,
        "c": 1,
        "d": 1,
    }
    perfect = np.random.default_rng(3).normal(size=5000)
    worst = ca.adversarial_coverage(perfect, -1.645, 1.645, 0.05)
    assert binomial_range(0.9, 250, 1e-6)[0] <= worst < 0.9


def test_dropout_and_ensembles_leave_modes_as_they_were() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)).train()
    before = net[1].running_mean.clone()
    draws = ca.dropout_draws(net, torch.randn(5, 3), draws=6)
    assert draws.shape == (6, 5, 1) and draws.var(0).max() > 0 and all(p.training for p in net)
    assert torch.equal(net[1].running_mean, before)
    several = ca.ensemble_draws([nn.Linear(3, 1) for _ in range(4)], torch.randn(5, 3))
    ca.ensemble_draws([net, nn.Linear(3, 1).eval()], torch.randn(5, 3))
    assert all(p.training for p in net.modules())
    mean, variance = ca.mixture(several, torch.ones_like(several))
    assert mean.shape == (5, 1) and (variance >= 1).all() and not several.requires_grad


def test_tensors_are_taken() -> None:
    y = torch.randn(50, requires_grad=True)
    assert ca.coverage(y, -10, 10) == 1 and un.conformal_quantile(y.abs(), 0.5) > 0


# ---- bad input


@pytest.mark.parametrize(
    "call",
    [
        lambda: ca.coverage([], 0, 1),
        lambda: ca.coverage([math.nan], 0, 1),
        lambda: ca.coverage([1, 2, 3], [0, 0], 1),
        lambda: ca.interval_score([1.0], 0, 1, 1.0),
        lambda: ca.sample_crps([1.0], [[1.0]]),
        lambda: ca.ence([1.0], 0, 1, bins=2),
        lambda: ca.gaussian_crps([1.0], 0, -1),
        lambda: ca.quantile_curve([1.1], [0.5]),
        lambda: ca.adversarial_coverage([1.0], 0, 1, share=0.0),
        lambda: ca.group_coverage([1.0], 0, 1, ["a", "b"]),
        lambda: ca.ensemble_draws([]),
        lambda: ca.mixture(torch.zeros(1, 2)),
        lambda: un.conformal_quantile([1.0], 0.0),
        lambda: un.weighted_quantile([1.0], [0.0], 0.5, 0.0),
        lambda: un.follow(un.SplitConformal(), [[1.0]], 0.0),
        lambda: un.RollingConformal(window=0),
        lambda: un.QuantileTracker(rate=math.inf),
        lambda: un.SplitConformal(1.5),
        lambda: un.SplitConformal(score="no"),
        lambda: un.Residual().of(1.0),
        lambda: un.Upper().interval(1.0, 0.0, -1.0),
        lambda: un.restore_tracker({}),
        lambda: un.restore_tracker({"kind": "split", "options": {}, "memory": {}, "pending": []}),
        lambda: un.restore_tracker({"kind": "split", "options": {"x": 1}, "memory": {"fixed": None}, "pending": []}),
        lambda: un.learn_then_test([0.1], 0.05),
        lambda: un.risk_p_value([2.0], 0.05),
        lambda: un.control_risk([[0.5, 0.1]], 0.05),
        lambda: un.drifting_errors(10),
    ],
)
def test_bad_input_is_one_clear_error(call) -> None:
    with pytest.raises(InputError) as e:
        call()
    assert len(str(e.value)) > 20 and "\n" not in str(e.value)


def test_an_outcome_that_is_nan_is_refused() -> None:
    t = un.QuantileTracker()
    t.interval(0.0)
    with pytest.raises(InputError, match="NaN"):
        t.update(math.nan)
