"""Learning curves as arrays; limits, ticks and omitted parts of a chart, in pages and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from torchrl_reg.lab.analysis import find_runs, group_runs
from torchrl_reg.lab.analysis.curves import Line, Scale, aggregate_curve, chart, group_curve, mean_curve
from torchrl_reg.lab.analysis.statistics import mean
from torchrl_reg.lab.errors import UserError


def test_a_groups_curve_holds_the_frames_at_which_every_seed_has_a_return(make_run, tmp_path: Path) -> None:
    make_run("a", [1.0, None, 3.0, 4.0]), make_run("b", [5.0, 6.0, 7.0], seed=1), make_run("c", [], seed=2)
    (group,) = group_runs(find_runs(tmp_path))
    frames, values = group_curve(group)
    assert frames.tolist() == [100, 300] and values.tolist() == [[1.0, 3.0], [5.0, 7.0]]
    assert group_curve(group, "return_sampled_mean") is None
    make_run("d", seed=3, every=70)
    with pytest.raises(UserError, match="same frames, got different ones in .*/a and .*/d"):
        group_curve(group_runs(find_runs(tmp_path))[0])


def test_aggregates_over_environments_meet_at_common_frames(make_run, tmp_path: Path) -> None:
    # Pong every 100 frames, normalized 0, 1, 2; Boxing every 200: 0, 2
    make_run("a", [-20.7, 14.6, 49.9], env="atari/Pong"), make_run("b", [0.1, 24.1], env="atari/Boxing", every=200)
    frames, band = aggregate_curve(group_runs(find_runs(tmp_path)), "human", mean, frames=400)
    assert frames.tolist() == [200.0, 250.0, 300.0]
    np.testing.assert_allclose(band, [[(1 + 0) / 2, (1.5 + 0.5) / 2, (2 + 1) / 2]] * 3, atol=1e-12)


def test_the_mean_curve_holds_at_each_frame_the_runs_that_span_it() -> None:
    curves = [(np.array(x), np.array(y)) for x, y in (([0, 10], [0.0, 10.0]), ([5, 20], [20.0, 50.0]))]
    frames, values = mean_curve(curves)
    assert frames.tolist() == [0, 5, 10, 20] and values.tolist() == [0, (5 + 20) / 2, (10 + 30) / 2, 50]


# -- charts ---------------------------------------------------------------------------------------------------------


def line(x: list, y: list, **more: list) -> Line:
    return Line("a", 0, np.array(x), np.array(y), **{name: np.array(each) for name, each in more.items()})


def test_points_that_are_no_finite_numbers_are_left_out() -> None:
    found = line([0, 1, 2], [1, np.nan, 3], low=[0, 0, 2], high=[2, 0, 4], more_x=[4, 5], more_y=[1, np.inf])
    (only,) = chart("t", [None, found]).lines
    parts = [part.tolist() for part in (only.x, only.y, only.low, only.high, only.more_x)]
    assert parts == [[0, 2], [1, 3], [0, 2], [2, 4], [4]]
    assert chart("t", [line([0], [np.nan]), None]) is None


@pytest.mark.parametrize(
    ("x", "limits"),
    [([10, 100], (0, 100)), ([50, 100], (50, 100)), ([-10, 100], (-10, 100)), ([40], (0, 50)), ([0], (0, 1))],
)
def test_the_axis_to_the_right_begins_at_zero_where_that_costs_little(x: list[float], limits: tuple) -> None:
    found = chart("t", [line(x, [1.0] * len(x))])
    assert (found.x.low, found.x.high) == limits
    texts = found.x.ticks(5)
    assert len(texts) == len(set(texts)) > 2


def test_limits_hold_lines_intervals_and_the_level() -> None:
    lines = [line([0, 1], [0, 10], low=[-10, 0], high=[0, 30])]
    assert chart("t", lines).y == Scale(-12.0, 32.0) and chart("t", lines, level=70.0).y == Scale(-14.0, 74.0)
    assert chart("t", lines, span=(0.0, 1.0)).y == Scale(0.0, 1.0)
    assert chart("t", lines, ticks=["a", "b"]).x == Scale(-0.4, 1.4)


def test_losses_over_three_orders_of_magnitude_are_drawn_on_a_log_scale() -> None:
    lines = [line([0, 1, 2], [0.01, 1.0, 100.0])]
    scale = chart("loss", lines, may_log=True).y
    assert scale.log and scale.place(np.array([0.01, 1.0, 100.0]))[1] == pytest.approx(0.5)
    assert scale.ticks(5) == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert not chart("loss", lines).y.log and not chart("loss", [line([0, 1], [0.0, 1e6])], may_log=True).y.log
