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
        (tmp_path / "config.yaml").write_text("env: {name: minatar, game: breakout}\nrun: {seed: 3}\n")
        (tmp_path / "command.txt").write_text("python recipes/m_dqn.py env=minatar/breakout run.seed=3\n")
        assert curves.draw_curves(tmp_path).read_bytes().startswith(b"\x89PNG")
        assert figures[0].get_suptitle() == "m_dqn on minatar/breakout, seed 3"
        lines = {axes.get_title("left"): axes.lines for axes in figures[0].axes}
        return {name: of[0].get_xydata().tolist() if of else [] for name, of in lines.items()}

    return draw


def test_curves_of_a_run(plotted):
    rows = []
    for frames in range(100, 500, 100):
        row = {"event": "train", "frames": frames, "return_mean": frames / 10, "kl": frames, "loss": 1 / frames}
        row["tau"] = 0.03 + 1e-10 * frames  # the mean of a constant
        rows.append(row | {f"diagnostic_{i}": i + 1e-3 * frames for i in range(6)} | {"fps": 3.0})
        rows.append({"event": "eval", "frames": frames, "return_greedy_mean": 5.0, "return_greedy_std": 1.0})
    rows[2]["return_mean"] = None  # no episode ended
    rows[4]["loss"] = None  # it was not finite
    found = plotted(rows)
    assert list(found) == ["", "loss", "kl", *(f"diagnostic_{i}" for i in range(6))]
    assert found[""] == [[100, 10], [300, 30], [400, 40]]
    assert found["loss"] == [[100, 1 / 100], [200, 1 / 200], [400, 1 / 400]]


def test_a_legend_names_what_was_drawn(plotted, monkeypatch):
    legends = []
    monkeypatch.setattr(curves.Axes, "legend", lambda axes, **_: legends.append([x.get_label() for x in axes.lines]))
    plotted([{"event": "eval", "frames": 8, "return_greedy_mean": 5.0, "return_greedy_std": 1.0}])
    plotted([])
    assert legends == [["greedy policy"]]


@pytest.mark.parametrize("rows", [[], [{"event": "train", "frames": 8, "return_mean": None}]])
def test_a_run_with_nothing_to_show(plotted, rows):
    assert plotted(rows) == {"": []}
