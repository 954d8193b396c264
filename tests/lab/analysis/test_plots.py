"""What the figures show: the arrays behind them, and what is refused. That files come out is in test_cli."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex

from torchrl_reg.lab.analysis import find_runs, group_runs, plots
from torchrl_reg.lab.analysis.curves import LIGHT, Line, chart
from torchrl_reg.lab.errors import UserError


@pytest.fixture
def figures(monkeypatch) -> list:
    """Every figure that would have been written."""
    found: list = []
    monkeypatch.setattr(plots, "save", lambda figure, path: found.append(figure))
    return found


def test_improvement_is_relative_to_the_higher_of_baseline_and_reference() -> None:
    cases = {(0.5, 0.25, "human"): 25.0, (6.0, 4.0, "human"): 50.0, (-100.0, -200.0, "none"): 50.0}
    assert {case: plots._improvement("e", *case) for case in cases} == pytest.approx(cases)


def test_what_cannot_be_drawn_is_one_sentence(make_run, tmp_path: Path) -> None:
    make_run("a", env="atari/Pong"), make_run("b", recipe="dqn", env="atari/Boxing")
    with pytest.raises(UserError, match="a method with runs on all of atari/Boxing, atari/Pong, got none"):
        plots.draw_aggregate_curves(group_runs(find_runs(tmp_path)), tmp_path / "x.png", scale="human")
    with pytest.raises(UserError, match="mean return on e must not be 0"):
        plots._improvement("e", 1.0, 0.0, "none")


def test_methods_look_different_beyond_the_colours() -> None:
    assert len({str(plots.style(series)) for series in range(2 * len(LIGHT))}) == 2 * len(LIGHT)


def test_methods_keep_their_colours_over_environments(make_run, tmp_path: Path, figures: list) -> None:
    make_run("a", recipe="a", env="one"), make_run("b", [5.0, 6.0], recipe="b", env="one")
    make_run("c", [7.0, 8.0], recipe="b", env="two")
    plots.draw_learning_curves(group_runs(find_runs(tmp_path)), tmp_path / "x.png")
    drawn = [[(each.get_ydata()[0], each.get_color()) for each in axes.lines[::2]] for axes in figures[0].axes]
    assert drawn == [[(1.0, LIGHT[0]), (5.0, LIGHT[1])], [(7.0, LIGHT[1])]]


def test_equal_runs_give_equal_files(make_run, tmp_path: Path) -> None:
    make_run("a"), make_run("b", [3.0, 2.0, 1.0], seed=1)
    groups = group_runs(find_runs(tmp_path))
    one, other = (plots.draw_learning_curves(groups, tmp_path / name).read_bytes() for name in ("1.svg", "2.svg"))
    assert one == other


def test_a_legend_leaves_the_panel_its_size(tmp_path: Path) -> None:
    def panel(methods: int) -> np.ndarray:
        figure = plots.new_figure(6.4, 3.9)
        axes = plots.styled(figure.add_subplot())
        plots.add_legend(figure, {f"m_dqn tau={i} alpha=0.9 lr=0.001": plots.style(i) for i in range(methods)})
        figure.draw_without_rendering()
        return axes.get_position().size * figure.get_size_inches()

    alone = panel(1)
    assert all((panel(count) > 0.9 * alone).all() for count in (12, 13, 40))


def test_a_file_shows_what_the_chart_says(tmp_path: Path, figures: list) -> None:
    """Ticks, limits, lines, intervals, their dashed rest and the level, as matplotlib was told to draw them."""
    x, y = np.array([0.0, 1_000.0]), np.array([1.0, 3.0])
    line = Line("m", 11, x, y, y - 1, y + 1, np.array([2_000.0]), np.array([5.0]))
    found = chart("env", [line], note="a note", level=2.0)
    bars = chart("bars", [Line("m", 0, np.array([0.0, 1.0]), y, y - 1, y + 1)], ticks=["a", "b"])
    plots.draw([found, None, bars], tmp_path / "x.png", columns=2)
    one, other = figures[0].axes
    assert (one.get_title("left"), one.get_title("right"), one.get_xlabel()) == ("env", "a note", "frames")
    assert (*one.get_xlim(), *one.get_ylim()) == (found.x.low, found.x.high, found.y.low, found.y.high)
    assert "1k" in [text.get_text() for text in one.get_xticklabels()]
    level, own, rest = one.lines
    assert set(level.get_ydata()) == {2.0} and own.get_ydata().tolist() == [1.0, 3.0]
    assert (rest.get_xdata().tolist(), rest.get_ydata().tolist()) == ([1_000.0, 2_000.0], [3.0, 5.0])
    assert own.get_color() == LIGHT[1] and own.get_linestyle() == "--" and rest.get_linestyle() == ":"
    band = one.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.0, 4.0)
    assert [text.get_text() for text in other.get_xticklabels()] == ["a", "b"]
    (ends,) = other.collections
    assert [segment[:, 1].tolist() for segment in ends.get_segments()] == [[0.0, 2.0], [2.0, 4.0]]
    assert to_hex(ends.get_color()[0]) == LIGHT[0].lower()
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["m"]


def gap(method: str, difference: float | None, word: str, mean: float = 3.0) -> Any:
    group = SimpleNamespace(env="cartpole", method=method)
    ours = SimpleNamespace(value=2.0, low=1.0, high=2.5)
    scores, published = SimpleNamespace(group=group, values=[2.0]), SimpleNamespace(mean=mean, spread=None)
    return SimpleNamespace(
        scores=scores, ours=ours, difference=difference, verdict=SimpleNamespace(word=word), published=published
    )


def test_green_differs_from_none_orange_does_blue_stands_alone(figures: list, tmp_path: Path) -> None:
    found = [
        gap("a", -1.0, "undecided"),
        gap("b", -1.0, "equal"),
        gap("b", -7.0, "below", mean=9.0),
        gap("c", None, ""),
    ]
    plots.draw_published(found, tmp_path / "x.png")
    (axes,) = figures[0].axes
    dots = [(to_hex(line.get_color()), *line.get_xdata()) for line in axes.get_lines()]
    grey, green, orange, blue = "#6b6b6b", *(LIGHT[i].lower() for i in (2, 1, 0))
    assert dots == [(green, 2.0), (grey, 3.0), (orange, 2.0), (grey, 3.0), (blue, 2.0)]
    assert axes.get_title(loc="left") == "CartPole"
    plots.draw_published([gap("dqn", None, "")], tmp_path / "x.png")
    (axes,) = figures[1].axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["DQN"]
    assert [text.get_text() for text in figures[1].legends[0].get_texts()] == ["ours, none published"]
