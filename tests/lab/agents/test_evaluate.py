"""``torchrl-reg evaluate`` on finished, unfinished and other folders."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from torchrl_reg.lab import read_metrics
from torchrl_reg.lab.commands.main import main


@pytest.mark.parametrize("env", [["cartpole"], ["gym", "FrozenLake-v1", 50], ["gym", "Pendulum-v1", 9]])
def test_it_repeats_the_runs_last_evaluation_exactly_and_reports_do_not_take_it_for_training(
    env, make_run, capsys
) -> None:
    runs = pytest.importorskip("torchrl_reg.lab.analysis.runs")
    folder = make_run(*env)
    assert main(["evaluate", str(folder), "--episodes", "3"]) == 0
    out, err = capsys.readouterr()
    last, again = read_metrics(folder / "metrics.jsonl")
    for mode in ("return_greedy", "return_sampled"):
        assert (again[f"{mode}_mean"], again[f"{mode}_std"]) == (last[f"{mode}_mean"], last[f"{mode}_std"])
        assert again[f"{mode}_low"] <= last[f"{mode}_mean"] <= again[f"{mode}_high"]
    assert out.count(": the first 3 repeat the run's last evaluation exactly") == 2
    assert last["return_greedy_mean"] != last["return_sampled_mean"] or "FrozenLake-v1" in env
    assert (again["event"], again["frames"], again["seed"], again["episodes"]) == ("evaluate", 96, 4, 3)
    assert "appended to" in out and err == ""
    assert len(runs.read_run(folder).evaluations()[0]) == 1


def test_more_episodes_of_one_mode_and_another_seed(make_run) -> None:
    folder = make_run("gridworld", "corridor", max_episode_frames=30, episodes=2)
    for more in ([], ["--seed", "8"]):
        assert main(["evaluate", str(folder), "--episodes", "7", "--mode", "sampled", *more]) == 0
    _, again, other = read_metrics(folder / "metrics.jsonl")
    assert again["episodes"] == 7 and "return_greedy_mean" not in again
    assert again["return_sampled_mean"] != other["return_sampled_mean"]


def test_another_result_than_the_runs_is_told(make_run, capsys, monkeypatch) -> None:
    folder = make_run("cartpole")
    monkeypatch.setattr("torchrl_reg.lab.run.evaluation.stream_seed", lambda *_: 11)
    assert main(["evaluate", str(folder), "--episodes", "3", "--mode", "sampled"]) == 0
    out, err = capsys.readouterr()
    assert "repeat the run's" not in out and "in the run, on another machine" in err


def test_an_unfinished_run_keeps_its_record(make_run, capsys) -> None:
    folder = make_run("cartpole")
    (folder / "done.json").write_bytes(b"")
    assert main(["evaluate", str(folder), "--episodes", "1", "--mode", "greedy"]) == 0
    assert "was not changed: the run is not finished" in capsys.readouterr().err
    assert len(read_metrics(folder / "metrics.jsonl")) == 1


def test_what_cannot_be_evaluated_is_one_sentence(make_run, tmp_path: Path, refusal, monkeypatch, capsys) -> None:
    folder = make_run("cartpole")
    assert "must be a run folder or an exported one" in refusal("evaluate", tmp_path)
    assert "--episodes must be >= 1, got 0" in refusal("evaluate", folder, "--episodes", 0)
    for command, seed in (("evaluate", -1), ("evaluate", 2**63), ("play", -1)):
        assert f"--seed must be >= 0 and below 2**63, got {seed}." in refusal(command, folder, "--seed", seed)
    assert refusal("evaluate", "m_dqn/cartpoel").endswith("got none; did you mean m_dqn/cartpole?\n")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "envs")
    shutil.rmtree(folder)
    folder = make_run("gym", "Own/Vector-v0", import_module="own_worlds")
    assert main(["evaluate", str(folder), "--episodes", "3"]) == 0
    capsys.readouterr()
    monkeypatch.delitem(sys.modules, "own_worlds")
    assert "import_module of a saved policy must be a module that is imported already" in refusal("evaluate", folder)
    assert "own_worlds" not in sys.modules
    assert "--device=cuda:77 needs a CUDA device" in refusal("evaluate", folder, "--device", "cuda:77")
    assert "--device must be auto, cpu, cuda or cuda:<n>, got 'meta'" in refusal("evaluate", folder, "--device", "meta")
