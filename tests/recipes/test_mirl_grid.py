"""The tabular comparison: its record, its figures and its user errors."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from torchrl_reg.studies.gridworlds import (
    SOLVED_FOR,
    SOLVED_WITHIN,
    draw_grid_curves,
    draw_priors,
    grid_table,
    read_worlds,
)
from torchrl_reg.training import read_metrics

RECIPE = Path(__file__).parents[2] / "recipes" / "mirl_grid.py"
TINY = ["algo.total_frames=60", "algo.num_seeds=3", "run.evaluate_every_frames=25", "algo.max_episode_frames=30"]


def load() -> ModuleType:
    if "recipes_mirl_grid" in sys.modules:
        return sys.modules["recipes_mirl_grid"]
    spec = importlib.util.spec_from_file_location("recipes_mirl_grid", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def start(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> None:
    monkeypatch.setattr(sys, "argv", ["mirl_grid.py", f"run.dir={folder}", *TINY, *overrides])
    load().main()


def test_a_run_leaves_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    start(monkeypatch, folder)
    assert {path.name for path in folder.iterdir()} >= {
        *("config.yaml", "command.txt", "provenance.json", "metrics.jsonl", "done.json"),
        *("curves.png", "priors.png", "table.md"),
    }
    rows = read_metrics(folder / "metrics.jsonl")
    assert [(r["event"], r["world"], r["frames"]) for r in rows] == [
        (event, world, frames)
        for world in ("corridor", "square", "grid")
        for event, frames in (("world", 0), ("eval", 25), ("eval", 50), ("eval", 60), ("final", 60))
    ]
    for world in read_worlds(folder):
        for method in ("ql", "sql", "sql_m", "mirl"):
            assert world.returns[method].shape == world.rewards[method].shape == (3, 3)
            assert (world.returns[method] <= world.optimal_return + 1e-9).all()
            assert (np.abs(world.rewards[method]) <= 9).all()
        learnt, uniform = np.array(world.last["prior"]["mirl"]), np.array(world.last["prior"]["sql"])
        assert np.allclose(learnt.sum(-1), 1) and np.abs(learnt - 0.25).max() > 1e-3 and (uniform == 0.25).all()
        assert np.sum(world.last["exact_prior"]) == pytest.approx(1)
    table = (folder / "table.md").read_text()
    assert table == grid_table(folder) + "\n" and len(table.splitlines()) == 2 + 3 * 4
    assert json.loads((folder / "done.json").read_text())["frames"] == 60


def test_a_seed_determines_the_run_and_a_killed_one_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    start(monkeypatch, one, "algo.worlds=[square]")
    start(monkeypatch, two, "algo.worlds=[square]")
    start(monkeypatch, other, "algo.worlds=[square]", "run.seed=1")
    expected = read_metrics(one / "metrics.jsonl")
    assert read_metrics(two / "metrics.jsonl") == expected != read_metrics(other / "metrics.jsonl")
    # As SIGKILL leaves it: rows, the last of them half written, and no done.json.
    (two / "done.json").unlink()
    metrics = two / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-40])
    start(monkeypatch, two, "algo.worlds=[square]")
    assert read_metrics(metrics) == expected and (two / "done.json").exists()


def test_methods_and_worlds_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, tmp_path / "run", "algo.methods=[sql,ql]", "algo.worlds=[grid]")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert {row["world"] for row in rows} == {"grid"} and "sql_returns" in rows[1] and "mirl_returns" not in rows[1]
    assert not (tmp_path / "run" / "priors.png").exists()
    with pytest.raises(ValueError, match="methods must include mirl, whose prior is drawn"):
        draw_priors(tmp_path / "run", tmp_path / "priors.png")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["algo.worlds=[coridor]"],
            "algo.worlds must be a list of values from ['corridor', 'square', 'grid'], got ['coridor']",
        ),
        (["algo.methods=[mirl,dqn]"], "algo.methods must be a list of values from ['ql', 'sql', 'sql_m', 'mirl']"),
        (["algo.methods=[mirl,mirl]"], "algo.methods must be a list without repetition"),
        (["algo.methods=[]"], "algo.methods must be a list of values from"),
        (["algo.num_seeds=0"], "algo.num_seeds must be > 0, got 0"),
        (["algo.gamma=1"], "algo.gamma must be in [0, 1), got 1"),
        (["algo.mirl.prior_rate=0"], "algo.mirl.prior_rate must be in (0, 1], got 0"),
        (["algo.sql.q_rate=1.5"], "algo.sql.q_rate must be in (0, 1], got 1.5"),
        (["algo.sql_m.beta_growth=-1"], "algo.sql_m.beta_growth must be > 0, got -1"),
        (["algo.ql.epsilon=2"], "algo.ql.epsilon must be in [0, 1], got 2"),
        (["algo.mirl.prior_rat=0.1"], "did you mean algo.mirl.prior_rate?"),
        (["run.evaluate_every_frames=100"], "run.evaluate_every_frames must be <= algo.total_frames = 60, got 100"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_user_errors_are_one_sentence(
    overrides: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, tmp_path / "run", *overrides)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 1 and expected in error and "\n" not in error
    assert not (tmp_path / "run").exists()


def write_run(folder: Path) -> None:
    """Two seeds and one method, in a world whose optimal return is 5."""
    row = {"world": "corridor", "frames": 0}
    rows = [{**row, "event": "world", "layout": ["..G"], "optimal_return": 5.0}]
    for frames, returns in ((10, [5.0, 5.0]), (20, [-7.0, 4.6]), (30, [4.6, 4.5]), (40, [5.0, 3.0]), (50, [5.0, 4.0])):
        rows.append({**row, "event": "eval", "frames": frames, "sql_returns": returns, "sql_rewards": [-1.0, 0.5]})
    rows.append({**row, "event": "final", "frames": 50, "prior": {"sql": [[0.25] * 4] * 2}})
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_table_says_who_solved_the_world_and_when(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (world,) = read_worlds(tmp_path / "run")
    assert (SOLVED_WITHIN, SOLVED_FOR) == (0.5, 3) and world.frames_to_solve("sql").tolist() == [30, 10]
    line = grid_table(tmp_path / "run").splitlines()[-1]
    assert line.startswith("| corridor (5.00) | SQL | 4.50 [4.00, 5.00] | 20 [10, 30] | -0.250 [-1.000, 0.500] |")
    text = (tmp_path / "run" / "metrics.jsonl").read_text().replace("[5.0, 5.0]", "[5.0, 4.4]")
    (tmp_path / "run" / "metrics.jsonl").write_text(text)
    assert "| 30 [30, 30] (1 of 2 seeds) |" in grid_table(tmp_path / "run")
    assert draw_grid_curves(tmp_path / "run", tmp_path / "curves.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="must hold the metrics.jsonl of a finished run of mirl_grid, got none"):
        read_worlds(tmp_path)
