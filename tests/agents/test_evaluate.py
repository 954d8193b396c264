"""``torchrl-reg evaluate`` on finished, unfinished and other folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from torchrl_reg.cli import main
from torchrl_reg.envs import EnvSettings
from torchrl_reg.training import read_metrics


def test_it_repeats_the_runs_last_evaluation_exactly(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(EnvSettings("cartpole"), episodes=3)
    assert main(["evaluate", str(folder), "--episodes", "3"]) == 0
    out, err = capsys.readouterr()
    last, again = read_metrics(folder / "metrics.jsonl")
    for mode in ("greedy", "sampled"):
        assert again[f"return_{mode}_mean"] == last[f"return_{mode}_mean"]
        assert again[f"return_{mode}_std"] == last[f"return_{mode}_std"]
        low, high = again[f"return_{mode}_low"], again[f"return_{mode}_high"]
        assert low <= last[f"return_{mode}_mean"] <= high
        assert f"{mode}: the first 3 repeat the run's last evaluation exactly" in out
    assert last["return_greedy_mean"] != last["return_sampled_mean"]
    assert (again["event"], again["frames"], again["seed"], again["episodes"]) == ("evaluate", 96, 4, 3)
    assert "appended to" in out and err == ""


def test_more_episodes_begin_with_the_same_ones(make_run: Callable[..., Path]) -> None:
    folder = make_run(EnvSettings("gridworld", "corridor", max_episode_frames=30), episodes=2)
    assert main(["evaluate", str(folder), "--episodes", "7", "--mode", "sampled"]) == 0
    assert main(["evaluate", str(folder), "--episodes", "7", "--mode", "sampled", "--seed", "8"]) == 0
    last, again, other = read_metrics(folder / "metrics.jsonl")
    assert again["episodes"] == 7 and "return_greedy_mean" not in again
    assert again["return_sampled_mean"] != other["return_sampled_mean"]


def test_another_result_than_the_runs_is_told(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(EnvSettings("cartpole"))
    monkeypatch.setattr("torchrl_reg.training.loop.evaluation.stream_seed", lambda *_: 11)
    assert main(["evaluate", str(folder), "--episodes", "3", "--mode", "sampled"]) == 0
    out, err = capsys.readouterr()
    assert "repeat the run's" not in out and "in the run, on another machine" in err


@pytest.mark.parametrize("emptied", [False, True])
def test_an_unfinished_run_keeps_its_record(
    emptied: bool, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(EnvSettings("cartpole"))
    (folder / "done.json").write_bytes(b"") if emptied else (folder / "done.json").unlink()
    assert main(["evaluate", str(folder), "--episodes", "1", "--mode", "greedy"]) == 0
    assert "left alone: the run is not finished" in capsys.readouterr().err
    assert len(read_metrics(folder / "metrics.jsonl")) == 1


def test_what_cannot_be_evaluated_is_one_sentence(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(EnvSettings("cartpole"))
    for words, sentence in (
        ([str(tmp_path)], "must be a run folder or an exported one"),
        ([str(folder), "--episodes", "0"], "--episodes must be >= 1, got 0"),
        ([str(folder), "--device", "cuda:77"], "--device must be a device of this machine, got 'cuda:77'"),
    ):
        assert main(["evaluate", *words]) == 1
        _, err = capsys.readouterr()
        assert sentence in err and err.count("\n") == 1 and err.startswith("torchrl-reg: ")


def test_reports_do_not_take_it_for_training(make_run: Callable[..., Path]) -> None:
    runs = pytest.importorskip("torchrl_reg.analysis.runs")
    folder = make_run(EnvSettings("cartpole"))
    assert main(["evaluate", str(folder), "--episodes", "2"]) == 0
    record = runs.read_run(folder)
    assert len(record.evaluations()[0]) == 1
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[1])["event"] == "evaluate"
