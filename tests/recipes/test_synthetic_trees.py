"""Differences between searches on the same trees, and what their figure shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies.synthetic_trees import differences, draw_trees, read_searches


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = []
    for depth in (1, 2):
        for method, after_2, after_40 in (("uct", [4.0, 4.0], [1.0, 1.0]), ("ments", [5.0, 6.0], [0.5, 0.0])):
            row = {"event": "trees", "frames": 9, "method": method, "branching": 2, "depth": depth, "noise": 0.5}
            found = dict.fromkeys(("value_error", "max_error", "regret"), [[8.0, 8.0], after_2, after_40])
            rows.append(row | found | {"simulations": [1, 2, 40]})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


#: Student's t at .975 with one degree of freedom.
T = 12.706204736


def test_differences_early_and_at_the_end(folder: Path) -> None:
    found = differences(read_searches(folder))
    assert len(found) == 8 and {each.method for each in found} == {"ments"}
    early, late = (each for each in found if each.what == "regret" and each.shape == (2, 2))
    assert (early.simulations, early.interval) == (2, pytest.approx((1.5, 1.5 - T / 2, 1.5 + T / 2)))
    assert (late.simulations, late.interval) == (40, pytest.approx((-0.75, -0.75 - T / 4, -0.75 + T / 4)))
    assert late.text == "-0.750 [-3.927, +2.427]" and late.label == "MENTS, noise 0.5"


def test_the_figure_has_a_point_a_kind_of_tree(folder: Path, monkeypatch) -> None:
    drawn = {}
    monkeypatch.setattr("studies.synthetic_trees.draw", lambda charts, path, **more: drawn.update(c=charts))
    draw_trees(folder, folder / "x.png", "regret")
    early, late = drawn["c"]
    assert (early.title, late.title) == ("after 2 simulations", "after 40 simulations")
    assert early.y_label == "simple regret minus UCT's" and early.ticks == ["k=2, d=1", "k=2, d=2"]
    (line,) = late.lines
    assert (line.x.tolist(), line.y.tolist()) == ([0.0, 1.0], [-0.75, -0.75])
    assert [*line.low, *line.high] == pytest.approx([-0.75 - T / 4] * 2 + [-0.75 + T / 4] * 2)
