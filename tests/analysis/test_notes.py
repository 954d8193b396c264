"""Caveats, one sentence each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from torchrl_reg.analysis import Group, find_runs, group_runs
from torchrl_reg.analysis.notes import label_notes, moved_runs, warnings
from torchrl_reg.analysis.scores import Scores


def test_several_methods_that_lack_environments_are_one_sentence() -> None:
    runs = {"a": ("Pong", "Boxing"), "c": ("Pong",), "d": ("Boxing",)}
    scores = [
        Scores(Group(method, method, f"atari/{game}", {}, ()), np.array([1.0]), (9,))
        for method, games in runs.items()
        for game in games
    ]
    assert warnings([], scores, scale="human") == [
        "2 methods are in no aggregate: c lacks atari/Boxing; d lacks atari/Pong"
    ]


def test_warnings_name_commits_and_settings_that_hide_behind_a_label(make_run, tmp_path: Path) -> None:
    make_run("a", algo__tau=0.1, algo__learning_rate=1.0), make_run("b", algo__tau=0.2, algo__learning_rate=2.0)
    make_run("c", seed=1, algo__tau=0.2, algo__learning_rate=2.0, commit="c" * 40)
    groups = group_runs(find_runs(tmp_path))
    assert [group.method for group in groups] == ["m_dqn tau=0.1", "m_dqn tau=0.2"]
    found = warnings(groups, [])
    assert "m_dqn tau=0.2 on cartpole at aaaaaaa, ccccccc" in found[0] and "tau=0.1" not in found[0]
    assert label_notes(groups) == ["runs of m_dqn also differ in algo.learning_rate, along with their label"]


def test_runs_whose_values_diverged_are_named(make_run):
    done, going = make_run("m_dqn/a/seed=0", seed=0), make_run("m_dqn/a/seed=1", seed=1, done=False)
    make_run("m_dqn/a/seed=2", seed=2)
    (done / "done.json").write_text(json.dumps({"frames": 300, "diverged_frames": 1200}))
    row = {"event": "train", "frames": 60, "diverged_frames": 60}
    (going / "metrics.jsonl").write_text(json.dumps({**row, "frames": 50, "diverged_frames": None}) + "\n")
    with (going / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps({**row, "frames": 60 + i}) + "\n" for i in range(3)))
    found = warnings(group_runs(find_runs(done.parent)), [])
    assert found[0] == f"values diverged in {done} at frame 1,200, {going} at frame 60"
    (done / "done.json").write_text(json.dumps({"frames": 300, "diverged_frames": "early"}))
    assert warnings(group_runs(find_runs(done.parent)), [])[0] == f"values diverged in {going} at frame 60"


def test_runs_that_were_resumed_elsewhere_are_named(make_run):
    moved, stayed = make_run("m_dqn/a/seed=0", seed=0), make_run("m_dqn/a/seed=1", seed=1)
    starts = [{"versions": {"torch": t}, "commit": "a" * 40, "threads": n} for t, n in (("2.11.0", 1), ("2.14.0", 8))]
    (moved / "provenance.json").write_text(json.dumps({"starts": starts}))
    (stayed / "provenance.json").write_text(json.dumps({"starts": [starts[0], starts[0]]}))
    groups = group_runs(find_runs(moved.parent))
    assert moved_runs(groups) == [
        f"1 run was begun on one machine or code and resumed on another: {moved} (torch and threads)"
    ]
    (moved / "provenance.json").write_text(json.dumps({"starts": [starts[0], {}]}))
    assert moved_runs(group_runs(find_runs(moved.parent))) == []
