"""What is read from run folders, whatever state they are in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torchrl_reg.analysis import find_runs
from torchrl_reg.run_endings import is_done


def test_a_run_folder_is_read(make_run, tmp_path: Path) -> None:
    folder = make_run("sweep/x", [1.0, 5.0], recipe="iq", env="mujoco/hopper", seed=3, algo__tau=0.5)
    (run,) = find_runs(tmp_path)
    assert (run.path, run.recipe, run.env, run.seed) == (folder, "iq", "mujoco/hopper", 3)
    assert run.config["algo.tau"] == 0.5 and run.config["net.num_cells"] == [128, 128]
    assert not {"run.dir", "run.seed", "run.progress", "run.loggers"} & set(run.config)
    assert run.done == {"frames": 200} and run.command == "python recipes/iq.py run.seed=3 run.dir=x"
    for columns in ([], ["train", "eval"]):  # evaluations alone, and then from the columns in memory
        frames, values = run.evaluations()
        assert frames.tolist() == [100, 200] and values.tolist() == [1.0, 5.0]
        assert not columns or list(run.all_columns) == columns
    assert run.frames == 200 and run.training("loss")[1].tolist() == [1.0]
    assert run.evaluations("loss")[1].tolist() == [1.0]  # no evaluation has a loss
    assert len(run.training("return_mean")[0]) == len(run.evaluations("nothing")[0]) == 0  # null, and absent


def test_a_run_that_only_began_is_a_run(make_run, tmp_path: Path) -> None:
    folder = make_run("x", done=False)
    for name in ("metrics.jsonl", "provenance.json", "command.txt"):
        (folder / name).unlink()
    (run,) = find_runs(tmp_path)
    assert (run.recipe, run.done, run.commits, run.all_columns, run.command) == ("unknown", None, (), {}, "")


def test_commits_are_those_of_every_start(make_run, tmp_path: Path) -> None:
    starts = [{"commit": c, "uncommitted_changes": c == "b" * 40} for c in ("a" * 40, "b" * 40, "a" * 40, None)]
    starts.append({"commit": None, "versions": {"torchrl_reg": "0.1.0"}})
    (make_run("x") / "provenance.json").write_text(json.dumps({"starts": [None, *starts]}))
    (run,) = find_runs(tmp_path)
    assert run.commits == ("a" * 40, "b" * 40, "unknown", "0.1.0")
    assert run.short_commits == ("aaaaaaa", "bbbbbbb+", "unknown", "0.1.0")


def test_snapshots_jobs_checkpoints_and_hidden_folders_hold_no_runs(make_run, tmp_path: Path) -> None:
    for folder in ("s/code/recipes/x", "s/jobs/1", "s/.hydra", "s/checkpoints/a", "s/m/seed=1", "s/m/seed=0"):
        make_run(folder)
    (tmp_path / "s/m/seed=0.log").write_text("noise"), (tmp_path / "s/sweep.yaml").write_text("{}")
    found = [str(run.path.relative_to(tmp_path)) for run in find_runs(tmp_path)]
    assert found == ["s/m/seed=0", "s/m/seed=1"]
    # a root that is a run, and roots within each other, give each run once
    assert len(find_runs([tmp_path / "s/m/seed=0", tmp_path, tmp_path / "s"])) == 2


def test_rows_without_an_event_or_a_finite_number_are_passed_over(make_run, tmp_path: Path) -> None:
    rows = ['{"event": "eval", "return_greedy_mean": 9}', '{"frames": 8}', '{"event": "eval", "frames": "8"}', "{}"]
    values = {200: "NaN", 300: "1e999", 400: "1" + "0" * 400, 10**30: "2.0"}
    rows += [f'{{"event": "eval", "frames": {at}, "return_greedy_mean": {value}}}' for at, value in values.items()]
    with (make_run("x", [1.0]) / "metrics.jsonl").open("a") as file:
        file.write("\n".join([*rows, '{"event": "eval", "frames": 500, "return_gre']))
    (run,) = find_runs(tmp_path)
    for _ in range(2):  # evaluations alone, and then from the columns in memory
        assert run.evaluations()[1].tolist() == [1.0] and run.ends_without()
        assert run.all_columns and run.frames == 400


def test_a_foreign_config_is_left_out_and_said_so(make_run, tmp_path: Path) -> None:
    make_run("a"), (make_run("b") / "config.yaml").write_text("grid: 1")
    skipped: list[str] = []
    assert [run.path.name for run in find_runs(tmp_path, skipped=skipped)] == ["a"]
    assert len(skipped) == 1 and "b/config.yaml must be that of a run, with env.name and run.seed" in skipped[0]


def test_links_are_followed_once(make_run, tmp_path: Path) -> None:
    make_run("elsewhere/seed=0")
    (tmp_path / "here").mkdir()
    (tmp_path / "here/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/round").symlink_to(tmp_path / "here")
    assert [str(run.path.relative_to(tmp_path)) for run in find_runs(tmp_path / "here")] == ["here/linked/seed=0"]
    assert len(find_runs([tmp_path / "here", tmp_path / "elsewhere"])) == 1


@pytest.mark.parametrize(
    ("command", "script"),
    [
        ("python recipes/m_dqn.py x=1", "recipes/m_dqn.py"),
        ("python /home/a/checkout/recipes/m_dqn.py", "recipes/m_dqn.py"),
        ("python ./own/0a1b2c3d/m_dqn.py", "own/0a1b2c3d/m_dqn.py"),
        ("python -m x ../mine/m_dqn.py", "../mine/m_dqn.py"),
        ("torchrl-reg run m_dqn x=1", "recipes/m_dqn.py"),
        ("torchrl-reg run ../mine/m_dqn.py x=1", "../mine/m_dqn.py"),
        ("python -c pass", ""),
    ],
)
def test_which_file_a_recipe_is(make_run, tmp_path: Path, command: str, script: str) -> None:
    (make_run("x") / "command.txt").write_text(command + "\n")
    (run,) = find_runs(tmp_path)
    assert (run.script, run.recipe) == (script, "m_dqn" if script else "unknown")


def test_an_empty_done_json_ends_no_run(tmp_path: Path) -> None:
    found = [is_done(tmp_path)]
    for content in ("", "{}"):
        (tmp_path / "done.json").write_text(content)
        found.append(is_done(tmp_path))
    assert found == [False, False, True]
