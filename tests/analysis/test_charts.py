"""Limits, ticks and what is left out of a chart, in a page and in a file alike."""

from __future__ import annotations

import numpy as np
import pytest

from torchrl_reg.analysis.charts import Line, Scale, chart


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
