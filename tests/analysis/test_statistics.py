"""Aggregates and intervals against rliable's numbers, hand computations and known coverage."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from torchrl_reg.analysis import AnalysisError
from torchrl_reg.analysis.statistics import (
    AGGREGATES,
    interquartile_mean,
    mean,
    mean_interval,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    profile_thresholds,
    stratified_bootstrap,
    stratified_estimate,
)


def _golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden", Path(__file__).with_name("make_rliable_golden.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = _golden()
X, Y = (list(scores.T) for scores in golden.scores())


def our_numbers() -> dict[str, list]:
    ours: dict[str, list] = {}
    for name, estimator in AGGREGATES.items():
        for which, scores in (("x", X), ("y", Y)):
            got = stratified_estimate(scores, estimator)
            ours[f"{name} of {which}"] = [got.value, got.low, got.high]
    got = probability_of_improvement(X, Y)
    ours["probability of improvement"] = [got.value, got.low, got.high]
    ours["profile of x"] = performance_profile(X, golden.THRESHOLDS, resamples=10_000).tolist()
    return ours


def agree(ours: dict[str, list], rliable: dict[str, list], *, share: float) -> None:
    """Values exactly, ends of intervals to ``share`` of the interval's width (the Monte-Carlo error)."""
    assert ours.keys() == rliable.keys()
    for name in ours:
        got, want = np.array(ours[name]), np.array(rliable[name])
        np.testing.assert_allclose(got[0], want[0], rtol=1e-12, atol=1e-12, err_msg=name)
        width = np.max(want[2] - want[1])
        assert width > 0.1
        step = 1 / 42 if name.startswith("profile") else 0  # a share of 42 runs moves by whole runs
        np.testing.assert_allclose(got[1:], want[1:], rtol=0, atol=share * width + step, err_msg=name)


def test_numbers_are_those_of_rliable() -> None:
    # An end of 10k resamples has a standard error of about .6% of the interval; y's scores lie on a grid.
    agree(our_numbers(), json.loads(golden.GOLDEN.read_text()), share=0.03)


def test_numbers_are_those_of_rliable_installed_here() -> None:
    pytest.importorskip("rliable", exc_type=Exception)  # which also may not import: see make_rliable_golden.py
    agree(our_numbers(), golden.rliable_numbers(2_000), share=0.06)


def test_every_task_weighs_the_same_with_unequal_numbers_of_runs() -> None:
    scores, sizes = np.array([[0.0, 2.0, 4.0, 6.0]]), [1, 3]
    assert mean(scores, sizes) == pytest.approx(2.0)  # (0 + 4) / 2
    assert optimality_gap(scores, sizes, 5.0) == pytest.approx(5 - (0 + (2 + 4 + 5) / 3) / 2)
    # weights 2, 2/3, 2/3, 2/3, of which 1 is cut at either end: left are 1 x 0, 2/3 x 2 and 1/3 x 4
    assert interquartile_mean(scores, sizes) == pytest.approx((0 + 4 / 3 + 4 / 3) / 2)


def test_the_bootstrap_resamples_within_tasks_only() -> None:
    # Tasks far apart, runs alike: nothing varies. Had runs been drawn across tasks, the mean would.
    got = stratified_estimate([[1.0, 1.0], [100.0, 100.0, 100.0]], mean)
    assert (got.value, got.low, got.high) == (50.5, 50.5, 50.5)


def test_intervals_are_those_of_the_normal_distribution_for_many_runs() -> None:
    random = np.random.default_rng(0)
    tasks = [random.normal(task, 1 + task, size=n) for task, n in enumerate((300, 500, 400))]
    error = np.sqrt(sum(task.var() / len(task) for task in tasks)) / 3
    got = stratified_estimate(tasks, mean, level=0.9, resamples=4_000)
    assert got.high - got.value == pytest.approx(1.645 * error, rel=0.06)
    assert got.value - got.low == pytest.approx(1.645 * error, rel=0.06)


def test_equal_seeds_give_equal_intervals_and_single_runs_have_none() -> None:
    assert stratified_estimate(X, mean, seed=3) == stratified_estimate(X, mean, seed=3)
    assert stratified_estimate(X, mean, seed=3) != stratified_estimate(X, mean, seed=4)
    single = stratified_estimate([[2.0], [4.0]], interquartile_mean)
    assert single.value == single.low == single.high == 3.0


def test_curves_are_bootstrapped_frame_by_frame_with_the_same_resamples() -> None:
    runs = np.random.default_rng(0).normal(size=(4, 7))
    value, low, high = stratified_bootstrap(runs, [3, 4], mean)
    assert value.shape == low.shape == high.shape == (4,)
    np.testing.assert_allclose(value, (runs[:, :3].mean(1) + runs[:, 3:].mean(1)) / 2)
    shifted = stratified_bootstrap(np.stack([runs[0], runs[0] + 10]), [3, 4], mean)
    np.testing.assert_allclose(shifted[:, 1] - shifted[:, 0], 10)


def test_probability_of_improvement_counts_ties_half_and_mirrors() -> None:
    x, y = [[1.0, 2.0, 3.0], [0.0]], [[2.0, 2.0], [0.0]]
    got = probability_of_improvement(x, y)
    assert got.value == pytest.approx(((0 + 0.5 + 1) / 3 + 0.5) / 2)
    assert probability_of_improvement(y, x).value == pytest.approx(1 - got.value)
    assert probability_of_improvement([[5.0, 6.0]], [[1.0, 2.0]]).low == 1.0


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ([], "each task, got []."),
        ([[1.0], []], "got [(1,), (0,)]."),
        ([[1.0, float("nan")]], "finite numbers, got nan."),
    ],
)
def test_bad_scores_end_in_one_sentence(scores: list, sentence: str) -> None:
    for call in (
        lambda: stratified_estimate(scores, mean),
        lambda: performance_profile(scores, [0.0]),
        lambda: probability_of_improvement(scores, scores),
    ):
        with pytest.raises(AnalysisError) as error:
            call()
        assert sentence in str(error.value)
    with pytest.raises(AnalysisError, match="same tasks, got 1 and 2"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])


def test_the_interval_of_a_mean_over_seeds() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=(400, 2))
    mean, low, high = mean_interval(values)
    half = 1.96 * values.std(0) / 20
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(high - mean, half, rtol=0.1)
    np.testing.assert_allclose(mean - low, half, rtol=0.1)
    one = mean_interval(values[:1])
    assert np.array_equal(one[0], one[1]) and np.array_equal(one[0], one[2])


def test_a_profile_counts_runs_strictly_above_a_threshold() -> None:
    profile = performance_profile([[0.2, 0.8], [0.5]], [0.2, 0.5, 0.8, 0.9])
    assert profile[0].tolist() == [0.75, 0.25, 0.0, 0.0]


def test_a_profile_ends_where_nine_runs_of_ten_do() -> None:
    scores = [[0.5] * 8, [3.0, 900.0]]
    thresholds, beyond = profile_thresholds(scores, "sac")
    assert thresholds[-1] == pytest.approx(np.quantile([*[0.5] * 8, 3.0, 900.0], 0.9)) and beyond == pytest.approx(0.1)
    thresholds, beyond = profile_thresholds(scores, "human")
    assert (thresholds[0], thresholds[-1]) == (0.0, 8.0) and beyond == pytest.approx(0.1)
    assert profile_thresholds([[0.2]], "human")[0][-1] == 1.0
