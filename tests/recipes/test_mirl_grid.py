"""The tabular comparison: its record and its figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from studies.gridworlds import (
    SOLVED_FOR,
    SOLVED_WITHIN,
    draw_grid_curves,
    draw_priors,
    grid_table,
    read_worlds,
)

TINY = "mirl_grid algo.total_frames=60 algo.num_seeds=3 run.evaluate_every_frames=25 algo.max_episode_frames=30"


def test_a_run_leaves_its_record(start, tmp_path):
    rows, folder = start(TINY), tmp_path / "run"
    files = {"config.yaml", "command.txt", "provenance.json", "metrics.jsonl", "curves.png", "priors.png"}
    assert files <= {path.name for path in folder.iterdir()}
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


def test_a_seed_determines_the_run_and_a_killed_one_starts_again(start, tmp_path):
    """With the methods and worlds that were chosen."""
    words = f"{TINY} algo.worlds=[square] algo.methods=[sql,ql]"
    expected = start(words, "one")
    assert {row["world"] for row in expected} == {"square"}
    assert "sql_returns" in expected[1] and "mirl_returns" not in expected[1]
    assert start(f"{words} run.seed=1", "other") != expected
    # As SIGKILL leaves it: rows, the last of them half written, and no done.json.
    folder, metrics = tmp_path / "one", tmp_path / "one/metrics.jsonl"
    (folder / "done.json").unlink()
    metrics.write_bytes(metrics.read_bytes()[:-40])
    assert start(words, "one") == expected and (folder / "done.json").exists()
    assert not (folder / "priors.png").exists()
    with pytest.raises(ValueError, match="methods must include mirl, whose prior is drawn"):
        draw_priors(folder, folder / "priors.png")


def write_run(folder) -> None:
    """Two seeds and one method, in a world whose optimal return is 5."""
    row = {"world": "corridor", "frames": 0}
    rows = [{**row, "event": "world", "layout": ["..G"], "optimal_return": 5.0}]
    for frames, returns in ((10, [5.0, 5.0]), (20, [-7.0, 4.6]), (30, [4.6, 4.5]), (40, [5.0, 3.0]), (50, [5.0, 4.0])):
        rows.append({**row, "event": "eval", "frames": frames, "sql_returns": returns, "sql_rewards": [-1.0, 0.5]})
    rows.append({**row, "event": "final", "frames": 50, "prior": {"sql": [[0.25] * 4] * 2}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_table_says_who_solved_the_world_and_when(tmp_path):
    write_run(tmp_path)
    (world,) = read_worlds(tmp_path)
    assert (SOLVED_WITHIN, SOLVED_FOR) == (0.5, 3) and world.frames_to_solve("sql").tolist() == [30, 10]
    line = grid_table(tmp_path).splitlines()[-1]  # Student's t of two seeds: 12.7 standard errors
    assert line.startswith("| corridor (5.00) | SQL | 4.50 [-1.85, 10.85] | 20 [-107, 147] | -0.250 [-9.780, 9.280] |")
    rows = tmp_path / "metrics.jsonl"
    rows.write_text(rows.read_text().replace("[5.0, 5.0]", "[5.0, 4.4]"))
    assert "| 30 [30, 30] (1 of 2 seeds) |" in grid_table(tmp_path)
    assert draw_grid_curves(tmp_path, tmp_path / "curves.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="must hold the metrics.jsonl of a finished run of mirl_grid, got none"):
        read_worlds(tmp_path / "nowhere")
