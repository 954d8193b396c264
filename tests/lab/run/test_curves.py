"""The plot of a run's curves."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("matplotlib")

from torchrl_reg.lab.run import curves


@pytest.fixture
def plotted(tmp_path, monkeypatch):
    """``plotted(rows)`` draws them -> the points of the training returns, and those below each diagnostic's name."""

    def draw(rows):
        figures, canvas = [], curves.FigureCanvasAgg
        monkeypatch.setattr(curves, "FigureCanvasAgg", lambda figure: (figures.append(figure), canvas(figure)))
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert curves.draw_curves(tmp_path).read_bytes().startswith(b"\x89PNG")
        return {axes.get_title("left"): axes.lines[0].get_xydata().tolist() for axes in figures[0].axes}

    return draw


def test_curves_of_a_run(plotted):
    rows = []
    for frames in range(100, 500, 100):
        row = {"event": "train", "frames": frames, "return_mean": frames / 10, "kl": 0.1, "loss": 1 / frames}
        rows.append(row | {f"diagnostic_{i}": float(i) for i in range(6)} | {"fps": 3.0})
        rows.append({"event": "eval", "frames": frames, "return_greedy_mean": 5.0, "return_greedy_std": 1.0})
    rows[2]["return_mean"] = None  # no episode ended
    rows[4]["loss"] = None  # it was not finite
    found = plotted(rows)
    assert list(found) == ["", "loss", "kl", *(f"diagnostic_{i}" for i in range(6))]
    assert found[""] == [[100, 10], [300, 30], [400, 40]]
    assert found["loss"] == [[100, 1 / 100], [200, 1 / 200], [400, 1 / 400]]


@pytest.mark.parametrize("rows", [[], [{"event": "train", "frames": 8, "return_mean": None}]])
def test_a_run_with_nothing_to_show(plotted, rows):
    assert plotted(rows) == {"": []}
