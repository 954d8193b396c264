"""Which runs are seeds of one method, what it is called, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_reg.analysis import AnalysisError, find_runs, group_runs
from torchrl_reg.analysis.groups import without_repetitions, without_settings


def grouped(root: Path, by: list[str] | None = None) -> list[tuple]:
    return [(group.env, group.method, group.seeds) for group in group_runs(find_runs(root), by)]


def test_seeds_of_one_config_are_one_method_named_by_its_recipe(make_run, tmp_path: Path) -> None:
    for seed in (1, 0, 10):
        make_run(f"a/seed={seed}", seed=seed)
    make_run("dqn", recipe="dqn")
    assert grouped(tmp_path) == [("cartpole", "dqn", (0,)), ("cartpole", "m_dqn", (0, 1, 10))]


def test_the_label_names_what_varies_and_nothing_else(make_run, tmp_path: Path) -> None:
    for tau in (0.1, 0.03, 1.0):
        for alpha in (0.0, 0.9):
            make_run(f"{tau}-{alpha}", algo__tau=tau, algo__alpha=alpha)
    make_run("other", recipe="dqn", algo__tau=7.0)  # another recipe's settings do not matter
    labels = [method for _, method, _ in grouped(tmp_path)]
    # sorted by value, not as text
    assert labels[:4] == ["dqn", "m_dqn tau=0.03 alpha=0", "m_dqn tau=0.03 alpha=0.9", "m_dqn tau=0.1 alpha=0"]


def test_what_the_environment_changes_is_the_same_method(make_run, tmp_path: Path) -> None:
    """A preset's learning rate is a function of the environment: one label over all, so it can be averaged."""
    for env, rate in (("cartpole", 1e-3), ("minatar/breakout", 1e-4)):
        for alpha in (0.0, 0.9):
            make_run(f"{env}-{alpha}", env=env, algo__alpha=alpha, algo__learning_rate=rate)
    assert {method for _, method, _ in grouped(tmp_path)} == {"m_dqn alpha=0", "m_dqn alpha=0.9"}
    # ... until it varies on one of them
    make_run("more", env="cartpole", algo__alpha=0.9, algo__learning_rate=5e-3)
    assert ("minatar/breakout", "m_dqn alpha=0.9 learning_rate=0.0001", (0,)) in grouped(tmp_path)


def test_settings_that_change_together_are_named_once(make_run, tmp_path: Path) -> None:
    make_run("a", algo__total_frames=100, algo__tau=0.1, policy__name="flow")
    make_run("b", algo__total_frames=200, algo__tau=0.2, policy__name="gaussian")
    groups = group_runs(find_runs(tmp_path))
    assert [group.method for group in groups] == ["m_dqn policy=flow", "m_dqn policy=gaussian"]
    assert set(groups[0].settings) == {"algo.total_frames", "algo.tau", "policy.name"}


def test_named_settings_settle_all_others_over_all_environments(make_run, tmp_path: Path) -> None:
    """tau tells runs apart on each environment, yet tau=.1 is with rate 1 on one and 2 on the other: not one method."""
    for env, tau, rate in (("a", 0.1, 1.0), ("a", 0.2, 2.0), ("b", 0.1, 2.0), ("b", 0.2, 1.0)):
        make_run(f"{env}{tau}", env=env, algo__tau=tau, algo__learning_rate=rate)
    assert len({method for _, method, _ in grouped(tmp_path)}) == 4


def test_an_environments_own_settings_split_methods_too(make_run, tmp_path: Path) -> None:
    make_run("a", env__sticky_actions=0.0), make_run("b", env__sticky_actions=0.25)
    assert [method for _, method, _ in grouped(tmp_path)] == ["m_dqn sticky_actions=0", "m_dqn sticky_actions=0.25"]


def test_values_compare_as_settings_do(make_run, tmp_path: Path) -> None:
    make_run("a", algo__tau=1), make_run("b", algo__tau=1.0, seed=1)
    assert grouped(tmp_path) == [("cartpole", "m_dqn", (0, 1))]
    make_run("c", algo__tau=True), make_run("d", algo__tau=None)
    labels = [method for _, method, _ in grouped(tmp_path)]
    assert labels == ["m_dqn tau=1", "m_dqn tau=null", "m_dqn tau=true"]


def test_a_seed_twice_is_refused(make_run, tmp_path: Path) -> None:
    make_run("a"), make_run("b")
    with pytest.raises(AnalysisError) as error:
        group_runs(find_runs(tmp_path))
    assert "each seed of m_dqn on cartpole must be there once, got seed 0 in" in str(error.value)
    assert str(tmp_path / "a") in str(error.value) and str(tmp_path / "b") in str(error.value)


def test_seeds_beside_each_other_with_unequal_settings_are_refused(make_run, tmp_path: Path) -> None:
    make_run("m/seed=0"), make_run("m/seed=1", seed=1, algo__tau=0.1)
    with pytest.raises(AnalysisError) as error:
        group_runs(find_runs(tmp_path))
    assert f"algo.tau (0.03 in {tmp_path}/m/seed=0, 0.1 in {tmp_path}/m/seed=1)" in str(error.value)


def test_by_labels_by_what_is_asked_and_refuses_the_rest(make_run, tmp_path: Path) -> None:
    make_run("a", algo__tau=0.1, algo__alpha=0.0), make_run("b", algo__tau=0.2, algo__alpha=0.9)
    assert [method for _, method, _ in grouped(tmp_path, ["algo.tau"])] == ["m_dqn tau=0.1", "m_dqn tau=0.2"]
    make_run("c", algo__tau=0.2, algo__alpha=0.0)
    with pytest.raises(AnalysisError, match=r"must differ in algo.tau alone, got different algo.alpha \(0.9 in"):
        grouped(tmp_path, ["algo.tau"])


def test_commits_of_a_group_are_shown_not_refused(make_run, tmp_path: Path) -> None:
    make_run("a"), make_run("b", seed=1, commit="b" * 40)
    (group,) = group_runs(find_runs(tmp_path))
    assert group.commits == ("aaaaaaa", "bbbbbbb+")


def test_two_recipes_of_one_stem_stay_apart(make_run, tmp_path: Path) -> None:
    commands = {"a": "recipes/m_dqn.py", "b": "/elsewhere/recipes/m_dqn.py", "c": "own/0a1b2c3d/m_dqn.py"}
    for seed, (folder, script) in enumerate(commands.items()):
        (make_run(folder, seed=seed) / "command.txt").write_text(f"python {script} run.seed={seed}\n")
    runs = find_runs(tmp_path)
    assert [(group.method, group.seeds) for group in group_runs(runs)] == [
        ("own/0a1b2c3d/m_dqn", (2,)),
        ("recipes/m_dqn", (0, 1)),
    ]
    assert [(group.method, group.seeds) for group in group_runs(runs[:2])] == [("m_dqn", (0, 1))]


def test_ignored_settings_and_those_of_the_machine_make_no_method(make_run, tmp_path: Path) -> None:
    make_run("x/seed=0", run__device="cpu", run__threads=1, run__log_every_frames=1, algo__note=1)
    make_run("x/seed=1", seed=1, run__device="cuda", run__threads=2, run__log_every_frames=2, algo__note=2)
    runs = find_runs(tmp_path)
    with pytest.raises(AnalysisError, match="got different algo.note"):
        group_runs(runs)
    (group,) = group_runs(without_settings(runs, ["algo.note"]))
    assert (group.method, group.seeds) == ("m_dqn", (0, 1))
    with pytest.raises(AnalysisError, match="ignore must name a setting of the runs, got 'algo.not'. Did you mean"):
        without_settings(runs, ["algo.not"])


@pytest.mark.parametrize("first", [True, False])
def test_of_repetitions_the_finished_one_counts_else_the_one_that_got_further(make_run, first: bool) -> None:
    """Whatever their order, and though the unfinished one got further."""
    finished = make_run("a" if first else "z", [1.0, 2.0])
    make_run("m", [1.0, 2.0, 3.0], done=False)
    runs = find_runs(finished.parent)
    kept, sentences = without_repetitions(runs)
    assert [run.path for run in kept] == [finished] and len(sentences) == 1
    (finished / "done.json").unlink()
    kept, _ = without_repetitions(find_runs(finished.parent))
    assert [run.path.name for run in kept] == ["m"]
