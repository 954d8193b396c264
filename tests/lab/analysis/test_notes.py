"""Caveats, one sentence each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from torchrl_reg.lab.analysis import Group, find_runs, group_runs
from torchrl_reg.lab.analysis.scores import Scores
from torchrl_reg.lab.analysis.tables import label_notes, moved_runs, warnings


def test_several_methods_that_lack_environments_are_one_sentence() -> None:
    pairs = [("a", "atari/Pong"), ("a", "atari/Boxing"), ("c", "atari/Pong"), ("d", "atari/Boxing")]
    scores = [Scores(Group(method, method, env, {}, ()), np.array([1.0]), (9,)) for method, env in pairs]
    said = "2 methods are in no aggregate: c lacks atari/Boxing; d lacks atari/Pong"
    assert warnings([], scores, scale="human") == [said]


def test_warnings_name_commits_and_settings_that_hide_behind_a_label(make_run, tmp_path: Path) -> None:
    make_run("a", algo__tau=0.1, algo__learning_rate=1.0)
    for seed, commit in enumerate("ac"):
        make_run(commit * 2, seed=seed, algo__tau=0.2, algo__learning_rate=2.0, commit=commit * 40)
    groups = group_runs(find_runs(tmp_path))
    found = warnings(groups, [])
    assert "m_dqn tau=0.2 on cartpole at aaaaaaa, ccccccc" in found[0] and "tau=0.1" not in found[0]
    assert label_notes(groups) == ["runs of m_dqn also differ in algo.learning_rate, along with their label"]


def test_runs_whose_values_diverged_are_named(make_run, tmp_path: Path) -> None:
    rows = [
        {"event": "train", "frames": frames, "diverged_frames": at} for frames, at in ((50, None), (60, 60), (61, 60))
    ]
    done, going = make_run("seed=0"), make_run("seed=1", (), seed=1, done=False, train=rows)
    make_run("seed=2", seed=2)
    for at, first in ((1200, f"{done} at frame 1,200, "), ("early", "")):
        (done / "done.json").write_text(json.dumps({"frames": 300, "diverged_frames": at}))
        assert warnings(group_runs(find_runs(tmp_path)), [])[0] == f"values diverged in {first}{going} at frame 60"


def test_runs_that_were_resumed_elsewhere_are_named(make_run, tmp_path: Path) -> None:
    moved, stayed = make_run("seed=0"), make_run("seed=1", seed=1)
    one, other = ({"versions": {"torch": t}, "commit": "a", "threads": n} for t, n in (("2.11.0", 1), ("2.14.0", 8)))
    (stayed / "provenance.json").write_text(json.dumps({"starts": [one, one]}))
    said = f"1 run was started on one machine or commit and resumed on another: {moved} (torch and threads)"
    for again, sentences in ((other, [said]), ({}, [])):
        (moved / "provenance.json").write_text(json.dumps({"starts": [one, again]}))
        assert moved_runs(group_runs(find_runs(tmp_path))) == sentences
