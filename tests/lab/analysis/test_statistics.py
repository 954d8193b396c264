"""Aggregates and intervals against rliable's numbers, hand computations and known coverage."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from torchrl_reg.lab.analysis import statistics as ours
from torchrl_reg.lab.analysis.statistics import interval_band, mean, mean_interval, stratified_estimate
from torchrl_reg.lab.errors import UserError

_spec = importlib.util.spec_from_file_location("golden", Path(__file__).with_name("make_rliable_golden.py"))
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)
SCORES = {which: list(scores.T) for which, scores in zip("xy", golden.scores(), strict=True)}


def test_numbers_are_those_of_rliable() -> None:
    """Values exactly, ends of intervals to 3% of the interval's width: of 10k resamples they have an error of .6%."""
    found = {
        f"{name} of {which}": stratified_estimate(scores, estimator)
        for name, estimator in ours.AGGREGATES.items()
        for which, scores in SCORES.items()
    }
    found["probability of improvement"] = ours.probability_of_improvement(*SCORES.values())
    found["profile of x"] = ours.performance_profile(SCORES["x"], golden.THRESHOLDS, resamples=10_000)
    rliable = json.loads(golden.GOLDEN.read_text())
    assert found.keys() == rliable.keys()
    for name, got in found.items():
        want = np.array(rliable[name])
        np.testing.assert_allclose(got[0], want[0], rtol=1e-12, atol=1e-12, err_msg=name)
        width = np.max(want[2] - want[1])
        assert width > 0.1
        step = 1 / 42 if name.startswith("profile") else 0  # a share of 42 runs moves by whole runs
        np.testing.assert_allclose(got[1:], want[1:], rtol=0, atol=0.03 * width + step, err_msg=name)


def test_every_task_weighs_the_same_in_the_gap_with_unequal_numbers_of_runs() -> None:
    got = ours.optimality_gap(np.array([[0.0, 2.0, 4.0, 6.0]]), [1, 3], 5.0)
    assert got == pytest.approx(5 - (0 + (2 + 4 + 5) / 3) / 2)


def test_the_bootstrap_resamples_within_tasks_only() -> None:
    # Different tasks with equal runs: no variance. If runs were drawn across tasks, the mean would vary.
    assert stratified_estimate([[1.0, 1.0], [100.0, 100.0, 100.0]], mean) == (50.5, 50.5, 50.5)


def test_intervals_are_those_of_the_normal_distribution_for_many_runs() -> None:
    random = np.random.default_rng(0)
    tasks = [random.normal(task, 1 + task, size=n) for task, n in enumerate((300, 500, 400))]
    error = np.sqrt(sum(task.var() / len(task) for task in tasks)) / 3
    got = stratified_estimate(tasks, mean, resamples=4_000)
    assert (got.high - got.value, got.value - got.low) == pytest.approx([1.96 * error] * 2, rel=0.06)
    values = random.normal(3.0, 2.0, size=(400, 2))
    value, low, high = mean_interval(values)
    np.testing.assert_allclose(value, values.mean(0))
    np.testing.assert_allclose([high - value, value - low], [1.96 * values.std(0) / 20] * 2, rtol=0.1)


@pytest.mark.parametrize(("tasks", "seeds", "covers"), [(5, 5, 0.90), (5, 10, 0.92)])
def test_bootstraps_over_tasks_cover_nearly_what_they_state(tasks: int, seeds: int, covers: float) -> None:
    """Of 25 runs and more, which is why fewer have none."""
    random, hits, trials = np.random.default_rng(0), 0, 300
    centres = np.linspace(0.2, 2.0, tasks)
    truth = ours.interquartile_mean(
        np.sort(random.normal(centres[:, None], 0.4, (tasks, 20_000)).reshape(1, -1)), [20_000] * tasks
    )
    for _ in range(trials):
        runs = random.normal(centres[:, None], 0.4, (tasks, seeds))
        _, low, high = stratified_estimate(list(runs), ours.interquartile_mean, resamples=400)
        hits += low <= truth[0] <= high
    assert abs(hits / trials - covers) < 0.04
    fewer = stratified_estimate(list(random.normal(size=(6, 4))), ours.interquartile_mean)
    assert fewer.is_flat


def test_equal_scores_give_equal_intervals_and_single_runs_have_none() -> None:
    assert stratified_estimate(SCORES["x"], mean) == stratified_estimate(SCORES["x"], mean)
    assert stratified_estimate([[2.0], [4.0]], ours.interquartile_mean) == (3.0, 3.0, 3.0)
    assert mean_interval(np.array([[2.0, 5.0]])).tolist() == [[2.0, 5.0]] * 3


def test_curves_are_bootstrapped_frame_by_frame_with_the_same_resamples() -> None:
    runs = np.random.default_rng(0).normal(size=(4, 7))
    band = interval_band(runs, [3, 4], mean)
    np.testing.assert_allclose(band[0], (runs[:, :3].mean(1) + runs[:, 3:].mean(1)) / 2)
    shifted = interval_band(np.stack([runs[0], runs[0] + 10]), [3, 4], mean)
    np.testing.assert_allclose(shifted[:, 1] - shifted[:, 0], 10)


def test_probability_of_improvement_counts_ties_half_and_mirrors() -> None:
    x, y = [[1.0, 2.0, 3.0], [0.0]], [[2.0, 2.0], [0.0]]
    got = ours.probability_of_improvement(x, y)
    assert got.value == pytest.approx(((0 + 0.5 + 1) / 3 + 0.5) / 2)
    assert ours.probability_of_improvement(y, x).value == pytest.approx(1 - got.value)
    assert ours.probability_of_improvement([[5.0, 6.0]], [[1.0, 2.0]]) == (1.0, 1.0, 1.0)
    with pytest.raises(UserError, match="same tasks, got 1 and 2"):
        ours.probability_of_improvement([[1.0]], [[1.0], [2.0]])


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([], r"each task, got \[\]."),
        ([[1], []], r"got \[\(1,\), \(0,\)\]."),
        ([[1, np.nan]], "finite numbers, got nan."),
    ],
)
def test_bad_scores_end_in_one_sentence(scores: list, words: str) -> None:
    for call, other in (
        (stratified_estimate, mean),
        (ours.performance_profile, [0.0]),
        (ours.probability_of_improvement, scores),
    ):
        with pytest.raises(UserError, match=words):
            call(scores, other)


def test_a_profile_counts_runs_strictly_above_a_threshold_and_ends_where_nine_of_ten_do() -> None:
    profile = ours.performance_profile([[0.2, 0.8], [0.5]], [0.2, 0.5, 0.8, 0.9])
    assert profile[0].tolist() == [0.75, 0.25, 0.0, 0.0]
    scores = [[0.5] * 8, [3.0, 900.0]]
    for scale, end in (("sac", np.quantile([*[0.5] * 8, 3.0, 900.0], 0.9)), ("human", 8.0)):
        thresholds, beyond = ours.profile_thresholds(scores, scale)
        assert (thresholds[0], thresholds[-1], beyond) == pytest.approx((0.0, end, 0.1))
    assert ours.profile_thresholds([[0.2]], "human")[0][-1] == 1.0
