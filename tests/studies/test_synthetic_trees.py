"""Differences between searches on the same trees, and what their figure shows."""

from __future__ import annotations

import json
from pathlib import Path

from torchrl_reg.studies.synthetic_trees import differences, draw_trees, read_searches


def write(folder: Path) -> None:
    rows = []
    for depth in (1, 2):
        for method, errors in (
            ("uct", [[8.0, 8.0], [4.0, 4.0], [1.0, 1.0]]),
            ("ments", [[8.0, 8.0], [5.0, 6.0], [0.5, 0.0]]),
        ):
            row = {"event": "trees", "frames": 9, "method": method, "branching": 2, "depth": depth, "noise": 0.5}
            row |= {"simulations": [1, 2, 40], "value_error": errors, "max_error": errors, "regret": errors}
            rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_differences_early_and_at_the_end(tmp_path: Path) -> None:
    write(tmp_path)
    found = differences(read_searches(tmp_path))
    assert len(found) == 8 and {each.method for each in found} == {"ments"}
    early, late = (each for each in found if each.what == "regret" and each.shape == (2, 2))
    assert (early.simulations, early.interval) == (2, (1.5, 1.0, 2.0))
    assert (late.simulations, late.interval) == (40, (-0.75, -1.0, -0.5))
    assert late.text == "**-0.750 [-1.000, -0.500]**" and late.label == "MENTS, noise 0.5"


def test_the_figure_has_a_point_a_kind_of_tree(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path)
    drawn = {}
    monkeypatch.setattr("torchrl_reg.studies.synthetic_trees.draw", lambda charts, path, **more: drawn.update(c=charts))
    draw_trees(tmp_path, tmp_path / "x.png", "regret")
    early, late = drawn["c"]
    assert (early.title, late.title) == ("after 2 simulations", "after 40 simulations")
    assert early.y_label == "simple regret minus UCT's" and early.ticks == ["k=2, d=1", "k=2, d=2"]
    (line,) = late.lines
    assert (line.x.tolist(), line.y.tolist()) == ([0.0, 1.0], [-0.75, -0.75])
    assert (line.low.tolist(), line.high.tolist()) == ([-1.0, -1.0], [-0.5, -0.5])
