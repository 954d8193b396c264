"""Grouping runs into methods: seeds, names, errors."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from torchrl_reg.lab.analysis import Group, find_runs, group_runs
from torchrl_reg.lab.analysis.groups import without_repetitions, without_settings
from torchrl_reg.lab.errors import UserError


@pytest.fixture
def groups(make_run, tmp_path: Path):
    """The groups of ``runs`` and of all runs before, each in a separate folder."""

    def find(*runs: dict, by: list[str] | None = None) -> list[Group]:
        for run in runs:
            make_run(**{"folder": str(len(list(tmp_path.iterdir())))} | run)
        return group_runs(find_runs(tmp_path), by)

    return find


def labels(groups: list[Group]) -> list[str]:
    return [f"{group.env} {group.method} {group.seeds}" for group in groups]


def test_the_label_names_what_varies_sorted_by_value_and_nothing_else(groups) -> None:
    grid = [{"algo__tau": tau, "algo__alpha": alpha} for tau, alpha in product((10, 0.03, 2.0), (0.0, 0.9))]
    other = [{"recipe": "dqn", "algo__tau": 7.0, "seed": seed} for seed in (1, 0, 10)]  # its settings do not matter
    other += [{"recipe": "dqn", "algo__tau": 7.0, "env__sticky_actions": 0.25}]
    expected = [f"cartpole m_dqn tau={tau} alpha={alpha} (0,)" for tau, alpha in product((0.03, 2, 10), (0, 0.9))]
    dqn = ["cartpole dqn sticky_actions=0.25 (0,)", "cartpole dqn sticky_actions=absent (0, 1, 10)"]
    assert labels(groups(*grid, *other)) == [*dqn, *expected]


def test_what_the_environment_changes_is_the_same_method(groups) -> None:
    """A preset's learning rate is a function of the environment: one label over all, so it can be averaged."""
    rates = {"cartpole": 1e-3, "minatar/breakout": 1e-4}
    runs = [{"env": e, "algo__alpha": a, "algo__learning_rate": rates[e]} for e, a in product(rates, (0.0, 0.9))]
    assert labels(groups(*runs)) == [f"{env} m_dqn alpha={alpha} (0,)" for env, alpha in product(rates, (0, 0.9))]
    # ... until it varies on one of them.
    found = labels(groups({"env": "cartpole", "algo__alpha": 0.9, "algo__learning_rate": 5e-3}))
    assert "minatar/breakout m_dqn alpha=0.9 learning_rate=0.0001 (0,)" in found


def test_settings_that_change_together_are_named_once_or_as_asked(groups) -> None:
    found = groups({"algo__tau": 0.1, "policy__name": "flow"}, {"algo__tau": 0.2, "policy__name": "gaussian"})
    assert [group.method for group in found] == ["m_dqn policy=flow", "m_dqn policy=gaussian"]
    assert set(found[0].settings) == {"algo.tau", "policy.name"}
    assert [group.method for group in groups(by=["algo.tau"])] == ["m_dqn tau=0.1", "m_dqn tau=0.2"]
    with pytest.raises(UserError, match=r"must differ in algo.tau alone, got different algo.alpha \(0.9 in .*/1, 0 "):
        groups({"algo__tau": 0.2, "policy__name": "gaussian", "algo__alpha": 0.0}, by=["algo.tau"])


def test_named_settings_settle_all_others_over_all_environments(groups) -> None:
    """tau distinguishes the runs on each environment, but tau=.1 has rate 1 on one and 2 on the other: two methods."""
    crossed = (("a", 0.1, 1), ("a", 0.2, 2), ("b", 0.1, 2), ("b", 0.2, 1))
    found = groups(*({"env": env, "algo__tau": tau, "algo__learning_rate": rate} for env, tau, rate in crossed))
    assert labels(found) == [f"{env} m_dqn tau={tau} learning_rate={rate} (0,)" for env, tau, rate in crossed]


def test_values_compare_as_settings_do(groups) -> None:
    assert labels(groups({"algo__tau": 1}, {"algo__tau": 1.0, "seed": 1})) == ["cartpole m_dqn (0, 1)"]
    found = labels(groups({"algo__tau": True}, {"algo__tau": None}))
    assert found == [f"cartpole m_dqn tau={text}" for text in ("1 (0, 1)", "null (0,)", "true (0,)")]


def test_a_seed_twice_and_unequal_seeds_beside_each_other_are_refused(groups) -> None:
    with pytest.raises(
        UserError, match="each seed of m_dqn on cartpole must have one run, got seed 0 in .*/0 and .*/1"
    ):
        groups({}, {})
    with pytest.raises(UserError, match=r"sticky_actions \(absent in .*/m/seed=0, 0.1 in .*/m/seed=1\)"):
        groups({"folder": "m/seed=0"}, {"folder": "m/seed=1", "seed": 1, "env__sticky_actions": 0.1})


def test_two_recipes_of_one_stem_stay_apart_and_two_commits_do_not(make_run, tmp_path: Path) -> None:
    for seed, script in enumerate(("recipes/m_dqn.py", "/elsewhere/recipes/m_dqn.py", "own/0a1b2c3d/m_dqn.py")):
        folder = make_run(str(seed), seed=seed, commit="ab"[seed % 2] * 40)
        (folder / "command.txt").write_text(f"python {script} run.seed={seed}\n")
    runs = find_runs(tmp_path)
    assert labels(group_runs(runs)) == ["cartpole own/0a1b2c3d/m_dqn (2,)", "cartpole recipes/m_dqn (0, 1)"]
    (ours,) = group_runs(runs[:2])
    assert (ours.method, ours.seeds, ours.commits) == ("m_dqn", (0, 1), ("aaaaaaa", "bbbbbbb+"))


def test_ignored_settings_and_those_of_the_machine_make_no_method(make_run, tmp_path: Path) -> None:
    make_run("x/seed=0", run__device="cpu", run__threads=1, run__log_every_frames=1, algo__note=1)
    make_run("x/seed=1", seed=1, run__device="cuda", run__threads=2, run__log_every_frames=2, algo__note=2)
    runs = find_runs(tmp_path)
    with pytest.raises(UserError, match=r"got different algo.note \(1 in [^ ]*, 2 in [^ ]*\)\.$"):
        group_runs(runs)
    assert labels(group_runs(without_settings(runs, ["algo.note"]))) == ["cartpole m_dqn (0, 1)"]
    with pytest.raises(UserError, match="ignore must name a setting of the runs, got 'algo.not'. Did you mean"):
        without_settings(runs, ["algo.not"])


@pytest.mark.parametrize("first", [True, False])
def test_of_repetitions_the_finished_one_counts_else_the_one_that_got_further(make_run, first: bool) -> None:
    """Whatever their order, and though the unfinished one got further."""
    finished = make_run("a" if first else "z", [1.0, 2.0])
    further = make_run("m", [1.0, 2.0, 3.0], done=False)
    for best in (finished, further):
        kept, sentences = without_repetitions(find_runs(finished.parent))
        assert [run.path for run in kept] == [best] and len(sentences) == 1
        (finished / "done.json").unlink(missing_ok=True)
