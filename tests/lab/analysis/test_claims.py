"""Verdicts by the rules of recipes/claims.yaml, on rows whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("yaml")

from torchrl_reg.lab.analysis.claims import Finding, findings, relative_iqm, searches, solved_share
from torchrl_reg.lab.documents import read_yaml
from torchrl_reg.lab.errors import UserError

CLAIMS = {each["id"]: each for each in read_yaml(Path(__file__).parents[3] / "recipes/claims.yaml")["claims"]}
Rows = dict[str, list[dict[str, Any]]]


def of(claim: str, rows: Rows) -> Finding:
    ((_, found),) = findings([CLAIMS[claim]], rows)
    return found


def runs(claim: str, mean: Callable[[str, str], float], spread: float = 1.0, **more: Any) -> Rows:
    """Rows of every arm, task and seed of a claim, normal around ``mean(arm, task)``."""
    experiment, random, found = CLAIMS[claim]["experiment"], np.random.default_rng(0), []
    arms = {
        "peng": {"algo.correct": False, "regularizer.name": "none", "shaping.name": "none"},
        "corrected": {"algo.correct": True, "regularizer.name": "none", "shaping.name": "none"},
        "entropy_corrected": {"algo.correct": True, "regularizer.name": "entropy", "shaping.name": "none"},
        "sparsemax_corrected": {"algo.correct": True, "regularizer.name": "tsallis", "shaping.name": "none"},
        "advantage_gap_corrected": {"algo.correct": True, "regularizer.name": "none", "shaping.name": "advantage_gap"},
        "munchausen_corrected": {"algo.correct": True, "regularizer.name": "entropy", "shaping.name": "munchausen"},
        "munchausen_peng": {"algo.correct": False, "regularizer.name": "entropy", "shaping.name": "munchausen"},
        "iq": {"algo.alpha": 0.0, "policy.name": "multicategorical"},
        "iq multicategorical": {"algo.alpha": 0.0, "policy.name": "multicategorical"},
        "m_iq": {"algo.alpha": 0.9, "policy.name": "multicategorical"},
        "iq gaussian": {"algo.alpha": 0.0, "policy.name": "gaussian"},
    }
    for task in experiment.get("games") or experiment["tasks"]:
        for arm in CLAIMS[claim]["arms"]:
            for seed in (*CLAIMS[claim]["seeds"], 99):  # 99 is not a seed of the claim
                value = random.normal(mean(arm, task), spread) if seed != 99 else 1e6
                config = arms.get(arm, {"algo.method": arm})
                script = "recipes/iq.py" if "iq" in arm.split("_") + arm.split() else "recipes/x.py"
                row = {"method": arm, "script": script, "env": f"x/{task}", "seed": seed, "config": config}
                scores = {"last_100": [value, 100], "greedy": [value, 20]}
                found.append(
                    row | {"frames": experiment.get("frames", 1), "wall_seconds": 60.0, "scores": scores} | more
                )
    return {experiment["judge"]: found}


def search(claim: str, score: Callable[[str, str, int], float], seeds: int = 2) -> Rows:
    """Search rows: ``score(arm, task, place)`` of the setting at each of three places, plus 0, 2, ... by seed."""
    experiment, found = CLAIMS[claim]["experiment"], []
    for row in (row for row in runs(claim, lambda *_: 0.0)[experiment["judge"]] if row["seed"] == 10):
        for place in range(3):
            tempered = row["config"].get("regularizer.name") in ("entropy", "tsallis")
            tau, rate = (10.0**place, 5e-4) if tempered else (0.03, 10.0 ** (place - 4))
            config = row["config"] | {"regularizer.tau": tau, "algo.learning_rate": rate}
            value = score(row["method"], row["env"][2:], place)
            for seed in range(seeds):
                scores = {"last_100": [value + 2 * seed, 100], "greedy": [value + 2 * seed, 20]}
                found.append(row | {"seed": seed, "config": config, "scores": scores, "cpu_seconds": 60.0})
    return {experiment["search"]: found}


def test_a_search_chooses_the_best_setting_of_each_arm_and_task() -> None:
    def score(arm: str, task: str, place: int) -> float:
        best = {"cartpole": 2, "acrobot": 0}[task]
        return 5.0 if arm == "iqn" else 9.0 - abs(place - best)  # of equal settings the middle one

    rows = search("m_iqn_over_rainbow_over_iqn", score)
    found = {(each.arm, *each.tasks): each for each in searches(CLAIMS["m_iqn_over_rainbow_over_iqn"], rows)}
    assert len(found) == 10
    assert found["dqn", "cartpole"].chosen == ("learning rate", 0.01)
    assert found["dqn", "acrobot"].chosen == ("learning rate", 0.0001)
    assert found["iqn", "acrobot"].chosen == ("learning rate", 0.001)
    assert found["dqn", "cartpole"].mean(("learning rate", 0.01)) == 10.0
    del rows["answers_control_search"][0]  # of the first arm in the first task
    assert len(searches(CLAIMS["m_iqn_over_rainbow_over_iqn"], rows)) == 5


def test_one_setting_for_all_games_is_chosen_by_scores_relative_to_the_plain_arm() -> None:
    def score(arm: str, task: str, place: int) -> float:
        unit = 1_000.0 if task == "asterix" else 10.0  # asterix alone would choose place 0, the four others 2
        if arm == "peng":
            return unit * (0.5 if place == 0 else 1.0) - 1.0  # the mean of seeds at the middle setting is the unit
        return unit * {"asterix": (1.2, 1.0, 1.0)}.get(task, (1.0, 1.0, 1.1))[place] - 1.0

    found = {each.arm: each for each in searches(CLAIMS["pqn_regularized"], search("pqn_regularized", score))}
    assert len(found) == 7 and found["peng"].mean(("learning rate", 0.001)) == pytest.approx(1.0)
    entropy = found["entropy_corrected"]
    assert entropy.chosen == ("tau", 100.0) and entropy.mean(("tau", 100.0)) == pytest.approx((4 * 1.1 + 1.0) / 5)
    assert found["corrected"].chosen == ("learning rate", 0.01)


def test_a_search_has_the_action_gap_of_the_second_half_of_its_runs() -> None:
    rows = search("pqn_regularized", lambda *_: 1.0)
    for row in rows["answers_pqn_search"]:
        if row["config"].get("regularizer.name") == "entropy" and row["config"]["regularizer.tau"] == 10.0:
            row["curve"] = {"gap": [50.0, 50.0, 1.0 + row["seed"], None, 3.0]}  # null: nothing was logged
    found = {each.arm: each for each in searches(CLAIMS["pqn_regularized"], rows)}
    assert found["entropy_corrected"].gaps["tau", 10.0] == pytest.approx([2.25] * 5)  # of (2 + 2.5) / 2
    assert np.isnan(found["entropy_corrected"].gaps["tau", 1.0]).all()
    assert np.isnan(found["peng"].gaps["learning rate", 0.001]).all()


def test_m_dqn_needs_two_games_above_and_none_below() -> None:
    two = {"asterix": 9.0, "breakout": 9.0, "space_invaders": 0.0}
    for ahead, word in ((two, "shown"), (two | {"space_invaders": -9.0}, "undecided at this scale")):
        found = of("m_dqn_over_dqn", runs("m_dqn_over_dqn", lambda arm, task, a=ahead: a[task] * (arm == "m_dqn")))
        assert found.word == word and found.numbers.count("m_dqn - dqn on") == 3
    below = runs("m_dqn_over_dqn", lambda arm, task: -9.0 * (arm == "m_dqn"))
    assert of("m_dqn_over_dqn", below).word == "contradicted"
    near = of("m_dqn_over_dqn", runs("m_dqn_over_dqn", lambda arm, task: 0.5 * (arm == "m_dqn")))
    assert near.word == "undecided at this scale" and "seeds would decide" in near.numbers


def test_no_verdict_before_every_seed_has_run() -> None:
    rows = runs("m_dqn_over_dqn", lambda arm, task: 9.0 * (arm == "m_dqn"))
    del rows["answers_minatar"][0]
    hours = {"study": "hours", "sweep": "dqn_minatar", "hours": 50, "runs": 50, "frames": 1_000_000}
    found = of("m_dqn_over_dqn", rows | {"before": [hours]})
    assert (
        found.word == "not run yet" and "take at least 45 h of a core" in found.numbers
    )  # 3 games, 5 seeds, 3M frames
    assert "sweep=answers_minatar_search" in found.numbers
    searched = search("m_dqn_over_dqn", lambda *_: 1.0)
    assert "sweep=answers_minatar`" in of("m_dqn_over_dqn", rows | searched).numbers
    short = runs("m_dqn_over_dqn", lambda arm, task: 9.0 * (arm == "m_dqn"), frames=500_000)
    assert of("m_dqn_over_dqn", short).word == "not run yet", "of 1M frames"


def test_a_seed_counts_once() -> None:
    rows = runs("m_dqn_over_dqn", lambda arm, task: 9.0 * (arm == "m_dqn"))
    rows["answers_minatar"].append(rows["answers_minatar"][0] | {"commit": "another"})
    with pytest.raises(UserError, match="must hold each seed of dqn on asterix once, at one setting, got several"):
        of("m_dqn_over_dqn", rows)


def test_seeds_of_two_settings_are_no_arm() -> None:
    """Only a setting that both have tells: an earlier version had others."""
    rows = runs("m_dqn_over_dqn", lambda arm, task: 9.0 * (arm == "m_dqn"))
    first, *others = rows["answers_minatar"]
    for changed, fine in (("algo.method", False), ("run.threads", True), ("algo.new", True)):
        other = first | {"config": first["config"] | {changed: "another"}}
        threads = [row | {"config": row["config"] | {"run.threads": 1}} for row in others]
        with nullcontext() if fine else pytest.raises(UserError, match="at one setting, got several"):
            assert of("m_dqn_over_dqn", {"answers_minatar": [other, *threads]}).word == "shown"


def test_shares_that_solve_are_compared_in_the_claimed_order() -> None:
    claim, solved = "m_iqn_over_rainbow_over_iqn", {"cartpole": 500.0, "acrobot": -80.0}
    order = {"m_iqn": 0.0, "rainbow": 0.0, "iqn": -400.0, "dqn": 0.0, "m_dqn": 0.0}
    shown = of(claim, runs(claim, lambda arm, task: solved[task] + order[arm]))
    assert shown.word == "shown" and "m_iqn 20/20, iqn 0/20 reach 475 on cartpole" in shown.numbers
    assert "rainbow - iqn on acrobot: +" in shown.numbers and "iqn on cartpole: " not in shown.numbers
    against = of(claim, runs(claim, lambda arm, task: solved[task] - 400 * (arm == "m_iqn")))
    assert against.word == "contradicted"
    assert of(claim, runs(claim, lambda arm, task: solved[task])).word == "undecided at this scale"
    assert solved_share(np.array([475.0, 474.9]), "cartpole").value == 0.5


def test_pqn_is_judged_over_all_games() -> None:
    arms = ("munchausen_peng",)
    found = of("pqn_regularized", runs("pqn_regularized", lambda arm, task: 150.0 if arm in arms else 100.0))
    assert (
        found.word == "shown" and "munchausen_peng 1.50" in found.numbers and "entropy_corrected 1.0" in found.numbers
    )
    assert found.numbers.count("munchausen_corrected - entropy_corrected on") == 5
    for value, word in ((60.0, "contradicted"), (100.0, "undecided at this scale")):
        rows = runs("pqn_regularized", lambda arm, task, v=value: 100.0 if arm in ("peng", "corrected") else v)
        assert of("pqn_regularized", rows).word == word
    one_below = runs(
        "pqn_regularized",
        lambda arm, task: 50.0 if arm in arms and task == "asterix" else 150.0 if arm in arms else 100.0,
    )
    assert of("pqn_regularized", one_below).word != "shown", "one game is significantly below"


def test_the_interval_of_a_ratio_holds_the_plain_arms_spread() -> None:
    scores = [np.full(5, 15.0)] * 5
    even, spread = ([np.array([10.0 - d, 10.0 - d, 10.0, 10.0 + d, 10.0 + d])] * 5 for d in (0.0, 5.0))
    assert list(relative_iqm(scores, even)) == [1.5, 1.5, 1.5]
    value, low, high = relative_iqm(scores, spread)
    assert value == 1.5 and low < 1.4 and high > 1.6
    wide = relative_iqm(scores, spread, level=1 - 0.05 / 6)
    assert wide.value == value and wide.low < low and wide.high > high, "of the best of six arms"
    nothing = [np.array([0.0, 0.0, 0.0, 0.0, 30.0])] * 5  # some resamples hold zeros only
    assert np.isfinite(list(relative_iqm(scores, nothing))).all()


def test_pqn_is_judged_at_one_learning_rate_too() -> None:
    plain = runs("pqn_same_rate", lambda arm, task: 100.0 if arm == "corrected" else 60.0)
    chosen = runs("pqn_regularized", lambda arm, task: {"entropy_corrected": 150.0}.get(arm, 80.0))
    found = of("pqn_same_rate", plain | chosen)
    assert found.word == "shown" and "entropy_corrected 1.50" in found.numbers
    assert "munchausen_corrected 0.80" in found.numbers and "contradicted" in found.numbers
    assert "munchausen_peng 1.3" in found.numbers  # over Peng's returns at the same rate, not over those of answers_pqn
    assert "sweep=answers_pqn_rate" in of("pqn_same_rate", chosen).numbers
    assert "sweep=answers_pqn`" in of("pqn_same_rate", plain).numbers


def test_neighbours_and_single_pairs() -> None:
    ranks = {"mirl": 9.0, "sql_m": 6.0, "sql": 3.0, "dqn": 0.0}
    assert of("mirl_deep", runs("mirl_deep", lambda arm, task: ranks[arm])).word == "shown"
    assert of("mirl_deep", runs("mirl_deep", lambda arm, task: -ranks[arm])).word == "contradicted"
    gaussian = of("multicategorical", runs("multicategorical", lambda arm, task: 9.0 * ("multi" in arm)))
    assert gaussian.word == "shown"
    below = of("iq_against_sac", runs("iq_against_sac", lambda arm, task: 9.0 * (arm == "sac")))
    assert below.word == "contradicted" and below.numbers.count(";") == 3
    assert below.numbers.endswith(f"({CLAIMS['iq_against_sac']['note']})")


def test_temperature_against_weight() -> None:
    def rows(of_tau: float, of_alpha: float) -> Rows:
        random = np.random.default_rng(0)
        found = [
            {"seed": seed, "config": {"algo.tau": tau, "algo.alpha": alpha}}
            | {"scores": {"greedy": [of_tau * np.log10(tau) + of_alpha * alpha + random.normal(), 20]}}
            for tau in (0.001, 0.01, 0.1, 1.0)
            for alpha in (0.0, 0.9)
            for seed in (10, 11, 12, 13, 14)
        ]
        return {"answers_iq_pendulum": found}

    assert of("tau_over_alpha", rows(5.0, 1.0)).word == "shown"
    assert of("tau_over_alpha", rows(0.1, 9.0)).word == "undecided at this scale"


def test_exact_claims_and_studies() -> None:
    def exact(claim: str, **measures: float) -> dict[str, list[dict[str, Any]]]:
        return {"exact": [{"study": "exact", "claim": claim, "measure": m, "value": v} for m, v in measures.items()]}

    kl = {"largest difference of a probability": 1e-14}
    assert of("munchausen_is_kl", exact("munchausen_is_kl", **kl)).word == "shown"
    assert of("munchausen_is_kl", exact("munchausen_is_kl", **{next(iter(kl)): 1e-9})).word == "contradicted"
    errors = [
        {"study": "theory_errors", "errors": kind, "method": "M-VI", "mean": 0.1, "problems": 5}
        for kind in ("independent", "constant")
    ]
    assert of("errors_average_out", {"before": errors}).numbers.endswith("mean of 5 problems, records lost: M-VI 0.1")
    gap = {"study": "exact", "claim": "action_gap", "measure": "factor", "at": 0.9, "value": 10.0, "claimed": 19.0}
    assert of("action_gap", {"exact": [gap]}).word == "contradicted"
    assert of("action_gap", {"exact": [gap | {"value": 19.0}]}).word == "shown"
    assert of("soft_q_iteration", exact("soft_q_iteration", **{"smallest gain": 0.1})).numbers.startswith(
        "a row is missing"
    )
    trees = [
        {"study": "ments_trees", "measure": m, "simulations": n, "mean": -1.0, "low": -1.2, "high": -0.8, "seeds": 100}
        for m in ("value error", "regret")
        for n in (100, 2000)
    ]
    assert of("ments_over_uct", {"before": trees}).word == "shown"
    trees[0] |= {"mean": 1.0, "low": 0.8, "high": 1.2}
    assert of("ments_over_uct", {"before": trees}).word == "undecided at this scale"


def test_every_claim_has_a_verdict_without_any_row() -> None:
    words = {finding.word for _, finding in findings(list(CLAIMS.values()), {})}
    assert words == {"not run yet", "needs a GPU"}
