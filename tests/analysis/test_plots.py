"""What the figures show: the arrays behind them, and what is refused. That files come out is in test_cli."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex

from torchrl_reg.analysis import AnalysisError, find_runs, group_runs
from torchrl_reg.analysis.charts import LIGHT as COLORS
from torchrl_reg.analysis.charts import Line, chart
from torchrl_reg.analysis.plots import (
    _improvement,
    add_legend,
    draw,
    draw_aggregate_curves,
    draw_improvement,
    draw_learning_curves,
    new_figure,
    save,
    style,
    styled,
)


def test_a_method_that_lacks_an_environment_is_not_in_the_aggregate(make_run, tmp_path: Path) -> None:
    make_run("a", env="atari/Pong"), make_run("b", recipe="dqn", env="atari/Boxing")
    with pytest.raises(AnalysisError, match="a method with runs on all of atari/Boxing, atari/Pong, got none"):
        draw_aggregate_curves(group_runs(find_runs(tmp_path)), tmp_path / "x.png", scale="human")


def test_improvement_is_relative_to_the_higher_of_baseline_and_reference() -> None:
    assert _improvement("e", 0.5, 0.25, "human") == pytest.approx(25.0)  # of a human
    assert _improvement("e", 6.0, 4.0, "human") == pytest.approx(50.0)  # of the baseline
    assert _improvement("e", -100.0, -200.0, "none") == pytest.approx(50.0)
    with pytest.raises(AnalysisError, match="mean return on e must not be 0"):
        _improvement("e", 1.0, 0.0, "none")
    with pytest.raises(AnalysisError, match="method must be one of , got 'a'"):
        draw_improvement([], Path("x.png"), method="a", baseline="b", scale="none")


def test_methods_look_different_beyond_the_colours(tmp_path: Path) -> None:
    looks = [style(series) for series in range(2 * len(COLORS))]
    assert len({str(look) for look in looks}) == 2 * len(COLORS)
    with pytest.raises(AnalysisError, match="out must end in .png, .svg, .pdf, got"):
        save(None, tmp_path / "x.jpg")  # type: ignore[arg-type]


def test_methods_keep_their_colours_over_environments(make_run, tmp_path: Path, monkeypatch) -> None:
    figures = []
    monkeypatch.setattr("torchrl_reg.analysis.plots.save", lambda figure, path: figures.append(figure))
    make_run("a", recipe="a", env="one"), make_run("b", [5.0, 6.0], recipe="b", env="one")
    make_run("c", [7.0, 8.0], recipe="b", env="two")
    draw_learning_curves(group_runs(find_runs(tmp_path)), tmp_path / "x.png")
    drawn = {
        axes.get_title("left"): [(each.get_ydata()[0], each.get_color()) for each in axes.lines[::2]]
        for axes in figures[0].axes
    }
    assert drawn == {"one": [(1.0, COLORS[0]), (5.0, COLORS[1])], "two": [(7.0, COLORS[1])]}


def test_equal_runs_give_equal_files(make_run, tmp_path: Path) -> None:
    make_run("a"), make_run("b", [3.0, 2.0, 1.0], seed=1)
    groups = group_runs(find_runs(tmp_path))
    one, other = (draw_learning_curves(groups, tmp_path / name).read_bytes() for name in ("1.svg", "2.svg"))
    assert one == other


@pytest.mark.parametrize("count", [2, 12, 13, 40])
def test_a_legend_leaves_the_panel_its_size(tmp_path: Path, count: int) -> None:
    def panel(methods: int) -> np.ndarray:
        figure = new_figure(6.4, 3.9)
        axes = styled(figure.add_subplot())
        add_legend(figure, {f"m_dqn tau={i} alpha=0.9 learning_rate=0.001": style(i) for i in range(methods)})
        save(figure, tmp_path / "x.png")
        return axes.get_position().size * figure.get_size_inches()

    assert (panel(count) > 0.9 * panel(1)).all()


def test_a_file_shows_what_the_chart_says(tmp_path: Path, monkeypatch) -> None:
    """Ticks, limits, lines, intervals, their dashed rest and the level, as matplotlib was told to draw them."""
    figures = []
    monkeypatch.setattr("torchrl_reg.analysis.plots.save", lambda figure, path: figures.append(figure))
    x, y = np.array([0.0, 1_000.0]), np.array([1.0, 3.0])
    line = Line("m", 11, x, y, y - 1, y + 1, np.array([2_000.0]), np.array([5.0]))
    found = chart("env", [line], note="a note", x_label="frames", y_label="return", level=2.0)
    bars = chart("bars", [Line("m", 0, np.array([0.0, 1.0]), y, y - 1, y + 1)], ticks=["a", "b"])
    draw([found, None, bars], tmp_path / "x.png", columns=2, x_label="below", y_label="beside")
    (figure,) = figures
    one, other = figure.axes
    assert (one.get_title("left"), one.get_title("right"), one.get_xlabel()) == ("env", "a note", "frames")
    assert (*one.get_xlim(), *one.get_ylim()) == (found.x.low, found.x.high, found.y.low, found.y.high)
    assert "1k" in [text.get_text() for text in one.get_xticklabels()]
    level, own, rest = one.lines
    assert set(level.get_ydata()) == {2.0} and own.get_ydata().tolist() == [1.0, 3.0]
    assert (rest.get_xdata().tolist(), rest.get_ydata().tolist()) == ([1_000.0, 2_000.0], [3.0, 5.0])
    assert own.get_color() == COLORS[1] and own.get_linestyle() == "--" and rest.get_linestyle() == ":"
    band = one.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.0, 4.0)
    assert [text.get_text() for text in other.get_xticklabels()] == ["a", "b"]
    ends = [segment[:, 1].tolist() for segment in other.collections[0].get_segments()]
    assert ends == [[0.0, 2.0], [2.0, 4.0]]
    assert to_hex(other.collections[0].get_color()[0]) == COLORS[0].lower()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["m"]
