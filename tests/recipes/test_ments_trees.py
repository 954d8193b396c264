"""The study on synthetic trees: its record, its table and figures, and resuming after a kill."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from studies.failures import failures_table
from studies.synthetic_trees import differences_table, draw_bandit, read_searches, trees_table

from torchrl_reg.lab import read_metrics

TINY = "ments_trees algo.num_trees=3 algo.num_simulations=30 algo.branching=[2,3] algo.depth=[2] algo.noise=[0.1]"
TINY += " algo.bandit_repetitions=5 algo.bandit_pulls=20 algo.failure_repetitions=4 algo.failure_simulations=12"


def check_record(rows, whole):
    assert [row["event"] for row in rows] == ["bandit"] * 2 + ["failures"] * 4 + ["trees"] * 4
    assert [row["frames"] for row in rows] == [0] * 6 + [90, 180, 270, 360]
    assert json.loads((whole / "done.json").read_text())["frames"] == 360
    assert all(
        (whole / name).stat().st_size > 1000 for name in ("trees.png", "regret.png", "bandit.png", "failures.png")
    )
    tables = (trees_table(whole), differences_table(whole), failures_table(whole))
    assert (whole / "table.md").read_text() == "\n\n".join(tables) + "\n"
    failures = [row for row in rows if row["event"] == "failures"]
    assert [(row["method"], row["problem"], row["searches"]) for row in failures] == [
        (method, problem, 4) for method in ("uct", "ments") for problem in ("two arms", "tree of depth 2")
    ]
    assert all(row["simulations"][-1] == 12 and 0 <= row["wrong"][-1] <= 4 for row in failures)
    searches = read_searches(whole)
    assert [(s.method, s.branching) for s in searches] == [("uct", 2), ("ments", 2), ("uct", 3), ("ments", 3)]
    for search in searches:
        assert search.simulations[-1] == 30 and search.regret.shape == (3, len(search.simulations))
        assert (search.regret >= 0).all() and (search.value_error > 0).all()
    ments = searches[3]
    assert np.abs(ments.value_error - ments.max_error).max() > 0.01  # its own value is the soft one
    assert (searches[2].value_error == searches[2].max_error).all()


def test_a_run_leaves_its_record_and_goes_on_after_a_kill(start, load, tmp_path, monkeypatch):
    expected, module, killed = start(TINY, "whole"), load("ments_trees"), tmp_path / "killed"
    check_record(expected, tmp_path / "whole")
    searched, done = module.searched, []

    class Killed(BaseException):
        pass

    def killing(cfg, *kind):
        done.append(kind[0])
        if len(done) == 3:
            raise Killed
        return searched(cfg, *kind)

    monkeypatch.setattr(module, "searched", killing)
    with pytest.raises(Killed):
        start(TINY, "killed")
    assert not (killed / "done.json").exists() and len(read_metrics(killed / "metrics.jsonl")) == 8
    assert start(TINY, "killed") == expected and done == ["uct", "ments", "uct", "uct", "ments"]


def test_failures_of_alternating_pulls_are_those_of_two_means(load):
    """So large a bonus pulls two arms in turn: after t = 2 n pulls the wrong mean is larger with Phi(-.2 sqrt(t))."""
    module = load("ments_trees")
    algo = module.Algo(failure_repetitions=3_000, failure_simulations=24, c=1e6)
    row = module.failures(module.Config(algo=algo), "uct", "two arms")
    found = {t: wrong / 3_000 for t, wrong in zip(row["simulations"], row["wrong"], strict=True) if t % 2 == 0}
    assert len(found) > 5 and max(found) == 24
    for time, share in found.items():
        exact = 0.5 * math.erfc(0.2 * math.sqrt(time) / math.sqrt(2))
        assert abs(share - exact) < 4 * math.sqrt(exact * (1 - exact) / 3_000)


def test_the_table_compares_by_pairs(tmp_path):
    row = {"event": "trees", "frames": 9, "branching": 2, "depth": 3, "noise": 0.5, "simulations": [1, 8]}
    rows = []
    for method, errors in (("uct", [0.5, 0.1, 0.3]), ("ments", [0.4, 0.0, 0.2]), ("puct", [0.7, 0.3, 0.5])):
        columns = {name: [[9.0] * 3, errors] for name in ("value_error", "max_error", "regret")}
        rows.append({**row, "method": method, **columns})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = trees_table(tmp_path).splitlines()[2:]
    assert lines[0].startswith("| 2 | 3 | 0.5 | UCT | 0.3000 [-0.1968, 0.7968] |") and lines[0].endswith("| - |")
    assert lines[1].endswith("| better, -0.1000 [-0.1000, -0.1000] |")
    assert lines[2].endswith("| worse, +0.2000 [+0.2000, +0.2000] |")
    heads, _, ments, puct = differences_table(tmp_path).splitlines()
    assert heads.startswith("| k | d | noise | difference | value error, 1 simulations | value error, 8 simulations |")
    assert ments.startswith("| 2 | 3 | 0.5 | MENTS - UCT | +0.000 [+0.000, +0.000] | **-0.100 [-0.100, -0.100]** |")
    assert puct.startswith("| 2 | 3 | 0.5 | PUCT - UCT | +0.000 [+0.000, +0.000] | **+0.200 [+0.200, +0.200]** |")
    with pytest.raises(ValueError, match="with its bandit, got none"):
        draw_bandit(tmp_path, tmp_path / "bandit.png")
    with pytest.raises(ValueError, match="must hold the metrics.jsonl of a run of ments_trees"):
        read_searches(tmp_path / "nowhere")
