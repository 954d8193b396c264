"""What the figures show: the arrays behind them, and what is refused. That files come out is in test_cli."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from torchrl_reg.analysis import AnalysisError, find_runs, group_runs
from torchrl_reg.analysis.colors import LIGHT as COLORS
from torchrl_reg.analysis.curves import aggregate_curve, group_curve
from torchrl_reg.analysis.plots import (
    _improvement,
    add_legend,
    draw_aggregate_curves,
    draw_improvement,
    draw_learning_curves,
    new_figure,
    save,
    styled,
    styles,
)
from torchrl_reg.analysis.statistics import mean, profile_thresholds


def test_a_groups_curve_ends_where_its_shortest_seed_does(make_run, tmp_path: Path) -> None:
    make_run("a", [1.0, 2.0, 3.0]), make_run("b", [5.0, 6.0], seed=1), make_run("c", [], seed=2)
    (group,) = group_runs(find_runs(tmp_path))
    frames, values = group_curve(group)
    assert frames.tolist() == [100, 200] and values.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert group_curve(group, "return_sampled_mean") is None
    with pytest.raises(AnalysisError, match="evaluations of return_sampled_mean, got none"):
        draw_learning_curves([group], tmp_path / "x.png", column="return_sampled_mean")


def test_seeds_evaluated_at_different_frames_are_refused(make_run, tmp_path: Path) -> None:
    make_run("a"), make_run("b", seed=1, every=70)
    with pytest.raises(AnalysisError, match="same frames, got different ones in .*/a and .*/b"):
        draw_learning_curves(group_runs(find_runs(tmp_path)), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_aggregates_over_environments_meet_at_common_frames(make_run, tmp_path: Path) -> None:
    # Pong every 100 frames, normalized 0, 1, 2; Boxing every 200: 0, 2
    make_run("a", [-20.7, 14.6, 49.9], env="atari/Pong"), make_run("b", [0.1, 24.1], env="atari/Boxing", every=200)
    frames, band = aggregate_curve(group_runs(find_runs(tmp_path)), "human", mean, frames=400)
    assert frames.tolist() == [200.0, 250.0, 300.0]
    np.testing.assert_allclose(band[0], [(1 + 0) / 2, (1.5 + 0.5) / 2, (2 + 1) / 2], atol=1e-12)
    np.testing.assert_allclose(band[1:], band[[0, 0]])


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
    looks = styles([str(i) for i in range(2 * len(COLORS))])
    assert len({str(look) for look in looks.values()}) == 2 * len(COLORS)
    with pytest.raises(AnalysisError, match="out must end in .png, .svg, .pdf, got"):
        save(None, tmp_path / "x.jpg")  # type: ignore[arg-type]


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
        add_legend(figure, styles([f"m_dqn tau={i} alpha=0.9 learning_rate=0.001" for i in range(methods)]))
        save(figure, tmp_path / "x.png")
        return axes.get_position().size * figure.get_size_inches()

    assert (panel(count) > 0.9 * panel(1)).all()


def test_a_profile_ends_where_nine_runs_of_ten_do() -> None:
    scores = [[0.5] * 8, [3.0, 900.0]]
    thresholds, beyond = profile_thresholds(scores, "sac")
    assert thresholds[-1] == pytest.approx(np.quantile([*[0.5] * 8, 3.0, 900.0], 0.9)) and beyond == pytest.approx(0.1)
    thresholds, beyond = profile_thresholds(scores, "human")
    assert (thresholds[0], thresholds[-1]) == (0.0, 8.0) and beyond == pytest.approx(0.1)
    assert profile_thresholds([[0.2]], "human")[0][-1] == 1.0


def test_a_curve_leaves_out_the_frames_a_seed_has_no_return_at(make_run, tmp_path: Path) -> None:
    make_run("a", [1.0, None, 3.0, 4.0]), make_run("b", [5.0, 6.0, 7.0], seed=1)
    (group,) = group_runs(find_runs(tmp_path))
    frames, values = group_curve(group)
    assert frames.tolist() == [100, 300] and values.tolist() == [[1.0, 3.0], [5.0, 7.0]]
