"""The score of a run, and its normalization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from torchrl_reg.lab.analysis import find_runs, group_runs, random_returns, sac_returns
from torchrl_reg.lab.analysis.scores import Scoreboard, group_scores, normalized, run_score, scale_of
from torchrl_reg.lab.errors import UserError


def test_scores_by_hand(make_run, tmp_path: Path) -> None:
    make_run("a", [0.0, 8.0, 4.0])
    (run,) = find_runs(tmp_path)
    got = {how: run_score(run, how) for how in ("final", "best", "last2", "last9", "auc")}
    assert got == {"final": 4.0, "best": 8.0, "last2": 6.0, "last9": 4.0, "auc": 5.0}  # auc: (4 + 6) / 2
    with pytest.raises(UserError, match="evaluations of return_sampled_mean, got none"):
        run_score(run, "final", "return_sampled_mean")
    with pytest.raises(UserError, match="score must be final, best, auc or last<k>"):
        run_score(run, "last0")


def test_runs_unfinished_or_without_a_finite_return_are_left_out_by_name(make_run, tmp_path: Path) -> None:
    make_run("a", [1.0, 2.0]), make_run("b", [5.0], seed=1, done=False), make_run("c", [], seed=2)
    make_run("d", [9.0, None], seed=3)
    groups = group_runs(find_runs(tmp_path))
    (scores,) = group_scores(groups)
    assert scores.values.tolist() == [2.0] and scores.frames == (200,)
    reasons = (
        "b is not finished (100 frames",
        "c has no evaluation",
        "d is left out, as return_greedy_mean of its last",
    )
    assert all(f"/{reason}" in said for reason, said in zip(reasons, scores.left_out, strict=True))
    (scores,) = group_scores(groups, unfinished=True)
    assert scores.values.tolist() == [2.0, 5.0] and scores.frames == (200, 100)
    with pytest.raises(UserError, match="at least one run with a score, got none"):
        group_scores(groups, column="return_sampled_mean")


def test_scales_by_environment() -> None:
    assert scale_of(["atari/Pong", "atari/SpaceInvaders"]) == "human" and scale_of(["mujoco/hopper"]) == "sac"
    assert scale_of(["atari/Pong", "atari/AirRaid"]) == scale_of(["atari/Pong", "atari/AirRaid"], "human") == "human"
    without = (["atari/Pong", "mujoco/hopper"], ["cartpole"], ["atari/AirRaid"])
    assert {scale_of(envs) for envs in without} == {scale_of(["atari/Pong"], "none")} == {"none"}
    assert scale_of(["minatar/breakout"]) == "none"  # shares names with Atari, not its scores
    for envs in (["atari/AirRaid"], ["atari/Pong", "cartpole"]):
        with pytest.raises(UserError, match=f"normalize=human must be used with Atari games .* got {envs[-1]}"):
            scale_of(envs, "human")
    with pytest.raises(UserError, match="normalize must be one of auto, human, sac, own_sac, none, got 'min'"):
        scale_of(["cartpole"], "min")


def test_the_reference_is_one() -> None:
    assert normalized("atari/Pong", np.array([-20.7, 14.6]), "human", 10**6).tolist() == [0.0, 1.0]
    for frames, length in ((100, 1_000_000), (1_700_000, 1_000_000), (2_000_000, 3_200_000), (10**8, 3_200_000)):
        ends = np.array([random_returns()["hopper"], sac_returns()[length]["hopper"]])
        assert normalized("mujoco/hopper", ends, "sac", frames).tolist() == [0.0, 1.0]


def test_the_own_sac_of_a_sweep_is_one(make_run, tmp_path: Path) -> None:
    """On Adroit, too, of which no SAC is published; random actions are 0."""
    low = random_returns()["door"]
    for recipe, above in (("sac", 400.0), ("iq", 100.0)):
        for seed in (0, 1):
            how = {"recipe": recipe, "seed": seed, "env": "adroit/door"}
            make_run(f"{recipe}/seed={seed}", [0.0, low + above + 40 * seed], **how)
    scores = group_scores(group_runs(find_runs(tmp_path)))
    assert scale_of(["adroit/door"], "own_sac") == "own_sac" and scale_of(["adroit/door"]) == "none"
    scaled = {name: of[0].tolist() for name, of in Scoreboard(scores, "own_sac").comparable().items()}
    assert scaled == {"iq": pytest.approx([100 / 420, 140 / 420]), "sac": pytest.approx([400 / 420, 440 / 420])}
    with pytest.raises(UserError, match="normalize=own_sac must be used with runs of sac.py on every task"):
        Scoreboard([each for each in scores if each.group.recipe == "iq"], "own_sac").comparable()


def test_the_range_of_an_environment_is_that_of_all_methods(make_run, tmp_path: Path) -> None:
    for tau, final in ((0.1, 2.0), (0.2, 4.0), (0.3, 10.0)):
        for seed in (0, 1):
            make_run(f"{tau}/seed={seed}", [0.0, final + seed], seed=seed, algo__tau=tau)
    board = Scoreboard(group_scores(group_runs(find_runs(tmp_path))), "range")
    scaled = {method: values[0].tolist() for method, values in board.comparable().items()}
    assert scaled["m_dqn tau=0.2"] == pytest.approx([2 / 9, 3 / 9]) and len(scaled) == 3
