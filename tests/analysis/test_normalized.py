from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from torchrl_reg.analysis import SAC_ANCHORS, NormalizedScores, normalized_score, sac_normalized_scores
from torchrl_reg.envs.mujoco import GAMES

RANDOM = {"hopper": 18.0, "ant": -60.0, "humanoid": 120.0}
SAC = {"hopper": 3018.0, "ant": 4940.0, "humanoid": 6120.0}


def test_random_is_zero_and_the_reference_is_one() -> None:
    assert normalized_score(-60.0, -60.0, 4940.0) == 0
    assert normalized_score(4940.0, -60.0, 4940.0) == 1
    # below random is negative, above the reference more than one: nothing is clipped
    assert normalized_score([-560.0, 7440.0], -60.0, 4940.0).tolist() == [-0.1, 1.5]


def test_arrays_broadcast() -> None:
    got = normalized_score(np.arange(6.0).reshape(2, 3), np.array([0.0, 1.0, 2.0]), np.array([[10.0], [20.0]]))
    np.testing.assert_allclose(got, [[0, 0, 0], [3 / 20, 3 / 19, 3 / 18]])
    assert normalized_score([], 0, 1).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((1.0, [0.0, 4.0], 4.0), "got reference=4 with random=4."),
        ((float("nan"), 0.0, 1.0), "score must be finite numbers, got nan."),
        ((1.0, float("-inf"), 1.0), "random must be finite numbers, got -inf."),
        ((1.0, 0.0, float("nan")), "reference must be finite numbers, got nan."),
        (("high", 0.0, 1.0), "score must be finite numbers, got 'high'."),
        (([1.0, 2.0], [0.0, 0.0, 0.0], 1.0), r"shapes that broadcast, got (2,), (3,) and ()."),
    ],
)
def test_bad_scores_end_in_one_sentence(arguments: tuple, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        normalized_score(*arguments)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_percent_over_seeds_and_tasks() -> None:
    scores = {"ant": [4940.0, 2440.0, -60.0], "hopper": np.array([3018.0, 6018.0]), "humanoid": 1320.0}
    got = sac_normalized_scores(scores, RANDOM, SAC)
    assert isinstance(got, NormalizedScores)
    assert got.per_task == pytest.approx({"ant": 50.0, "hopper": 150.0, "humanoid": 20.0})
    assert got.median == pytest.approx(50.0) and got.mean == pytest.approx(220 / 3)
    assert list(got.per_task) == list(scores)


@pytest.mark.parametrize(
    ("scores", "random", "sac", "sentence"),
    [
        ({}, RANDOM, SAC, "scores must name at least one task, got none."),
        ({"swimmer": 1.0, "ant": 1.0}, RANDOM, SAC, "random must hold every task of scores, got none for swimmer;"),
        ({"ant": 1.0}, RANDOM, {"hopper": 1.0}, "sac must hold every task of scores, got none for ant; it has hopper."),
        ({"ant": []}, RANDOM, SAC, "scores['ant'] must be one return per seed, got an array of shape (0,)."),
        ({"ant": [[1.0, 2.0]]}, RANDOM, SAC, "scores['ant'] must be one return per seed, got an array of shape (1, 2)"),
        ({"ant": [1.0, float("nan")]}, RANDOM, SAC, "scores['ant'] must be finite numbers, got nan."),
        ({"ant": 1.0}, {"ant": 9.0}, {"ant": 9.0}, "sac['ant'] must be above random['ant'], got 9 with random 9."),
        ({"ant": 1.0}, {"ant": float("nan")}, SAC, "random['ant'] must be finite numbers, got nan."),
        ({"ant": 1.0}, {"ant": [1.0]}, SAC, "random['ant'] and sac['ant'] must be single numbers"),
    ],
)
def test_bad_tables_end_in_one_sentence(scores: dict, random: dict, sac: dict, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        sac_normalized_scores(scores, random, sac)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_anchors_are_named_like_the_environments_and_cannot_be_changed() -> None:
    assert all(set(anchors) < set(GAMES) for anchors in SAC_ANCHORS.values())
    assert SAC_ANCHORS[3_200_000]["halfcheetah"] == 13570 and SAC_ANCHORS[1_000_000]["hopper"] == 2738
    scores = sac_normalized_scores(
        SAC_ANCHORS[3_200_000], dict.fromkeys(SAC_ANCHORS[3_200_000], 0.0), SAC_ANCHORS[3_200_000]
    )
    assert scores.mean == scores.median == 100
    with pytest.raises(TypeError):
        SAC_ANCHORS[3_200_000]["hopper"] = 1.0  # type: ignore[index]


def test_torch_is_not_imported() -> None:
    code = "import sys, torchrl_reg.analysis; assert 'torch' not in sys.modules and 'gymnasium' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
