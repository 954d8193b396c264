"""The study on synthetic trees: its record, its table and figures, going on after a kill, and its user errors."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from torchrl_reg.studies.synthetic_trees import differences_table, draw_bandit, read_searches, trees_table
from torchrl_reg.training import read_metrics

RECIPE = Path(__file__).parents[2] / "recipes" / "ments_trees.py"
TINY = ["algo.num_trees=3", "algo.num_simulations=30", "algo.branching=[2,3]", "algo.depth=[2]", "algo.noise=[0.1]"]
TINY += ["algo.bandit_repetitions=5", "algo.bandit_pulls=20"]


def load() -> ModuleType:
    if "recipes_ments_trees" in sys.modules:
        return sys.modules["recipes_ments_trees"]
    spec = importlib.util.spec_from_file_location("recipes_ments_trees", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def start(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ments_trees.py", f"run.dir={folder}", *TINY, *overrides])
    load().main()


def test_a_run_leaves_its_record_and_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start(monkeypatch, whole)
    expected = read_metrics(whole / "metrics.jsonl")
    assert [row["event"] for row in expected] == ["bandit"] * 2 + ["trees"] * 4
    assert [row["frames"] for row in expected] == [0, 0, 90, 180, 270, 360]
    assert json.loads((whole / "done.json").read_text())["frames"] == 360
    assert all((whole / name).stat().st_size > 1000 for name in ("trees.png", "regret.png", "bandit.png"))
    assert (whole / "table.md").read_text() == f"{trees_table(whole)}\n\n{differences_table(whole)}\n"
    searches = read_searches(whole)
    assert [(s.method, s.branching) for s in searches] == [("uct", 2), ("ments", 2), ("uct", 3), ("ments", 3)]
    for search in searches:
        assert search.simulations[-1] == 30 and search.regret.shape == (3, len(search.simulations))
        assert (search.regret >= 0).all() and (search.value_error > 0).all()
    ments = searches[3]
    assert np.abs(ments.value_error - ments.max_error).max() > 0.01  # its own value is the soft one
    assert (searches[2].value_error == searches[2].max_error).all()

    class Killed(BaseException):
        pass

    module = load()
    searched, done = module.searched, []

    def killing(cfg: object, method: str, *kind: object) -> dict:
        if len(done) == 2:
            raise Killed
        done.append(method)
        return searched(cfg, method, *kind)

    monkeypatch.setattr(module, "searched", killing)
    with pytest.raises(Killed):
        start(monkeypatch, killed)
    assert not (killed / "done.json").exists() and len(read_metrics(killed / "metrics.jsonl")) == 4
    monkeypatch.setattr(module, "searched", lambda cfg, *kind: (done.append("again"), searched(cfg, *kind))[1])
    start(monkeypatch, killed)
    assert read_metrics(killed / "metrics.jsonl") == expected and done == ["uct", "ments", "again", "again"]


def test_the_table_compares_by_pairs(tmp_path: Path) -> None:
    row = {"event": "trees", "frames": 9, "branching": 2, "depth": 3, "noise": 0.5, "simulations": [1, 8]}
    rows = []
    for method, errors in (("uct", [0.5, 0.1, 0.3]), ("ments", [0.4, 0.0, 0.2]), ("puct", [0.7, 0.3, 0.5])):
        columns = {name: [[9.0] * 3, errors] for name in ("value_error", "max_error", "regret")}
        rows.append({**row, "method": method, **columns})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = trees_table(tmp_path).splitlines()[2:]
    assert lines[0].startswith("| 2 | 3 | 0.5 | UCT | 0.3000 [0.1000, 0.5000] |") and lines[0].endswith("| - |")
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


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("algo.methods=[ments,ments]", "algo.methods must be a list of values from ['uct', 'puct', 'ments', 'rents'"),
        ("algo.methods=[alphazero]", "algo.methods must be a list of values from"),
        ("algo.branching=[]", "algo.branching must be a list of numbers >= 1, got []"),
        ("algo.depth=[0]", "algo.depth must be a list of numbers >= 1, got [0]"),
        ("algo.depth=[40]", "must be at most 1e8 leaves, got"),
        ("algo.noise=[-0.1]", "algo.noise must be a list of standard deviations >= 0, got [-0.1]"),
        ("algo.num_simulations=0", "algo.num_simulations must be > 0, got 0"),
        ("algo.tau=0", "algo.tau must be > 0, got 0.0"),
        ("algo.epsilon=-1", "algo.epsilon must be > 0, got -1.0"),
        ("algo.c=-1", "algo.c must be >= 0, got -1.0"),
        ("algo.num_tree=3", "did you mean algo.num_trees?"),
    ],
)
def test_user_errors_are_one_sentence(
    override: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, tmp_path / "run", override)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 1 and expected in error and "\n" not in error
    assert not (tmp_path / "run").exists()
