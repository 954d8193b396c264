"""A chart as an SVG of 1000 x 1000."""

from __future__ import annotations

import numpy as np

from torchrl_reg.lab.analysis.curves import Line, chart
from torchrl_reg.lab.analysis.report.sections import svg
from torchrl_reg.lab.analysis.report.svg import drawing

X, Y = np.array([0.0, 100.0]), np.array([0.0, 10.0])


def test_ticks_close_together_have_names_of_their_own() -> None:
    x = np.array([2000.0, 2010.0])
    found = drawing(chart("t", [Line("a", 11, x, x)]))
    for texts in ([text for _, text in found["x_ticks"]], [text for _, text in found["y_ticks"]]):
        assert len(texts) == len(set(texts)) > 2, texts


def test_paths_ticks_and_data() -> None:
    line = Line("a", 11, X, Y, Y - 1, Y + 1, np.array([150.0, 200.0]), np.array([20.0, 20.0]))
    found = drawing(chart("t", [line], span=(-10.0, 30.0)))
    band, own = ("band", "M0 725L500 475L500 525L0 775Z"), ("line", "M0 750L500 500")
    assert found["drawn"] == [
        (11, [band, own, ("dot", "M0 750h0M500 500h0"), ("line more", "M500 500L750 250L1000 250")])
    ]
    assert found["y_ticks"] == [(100, "−10"), (75, "0"), (50, "10"), (25, "20"), (0, "30")]
    assert found["x_ticks"] == [(0, "0"), (25, "50"), (50, "100"), (75, "150"), (100, "200")]
    data = {"s": 11, "label": "a", "x": [0, 100, 150, 200], "y": [0, 10, 20, 20], "low": [-1, 9], "high": [1, 11]}
    assert found["data"] == {"x": [0, 200], "xLabel": "frames", "ticks": None, "lines": [data]}


def test_a_chart_over_names_has_bars_and_a_small_one_fewer_ticks() -> None:
    bars = drawing(chart("t", [Line("a", 0, np.array([0.0, 1.0]), Y, Y, Y + 5)], ticks=("x", "y"), span=(0.0, 20.0)))
    assert bars["drawn"][0][1][:2] == [("bar", "M222.2 1000L222.2 750"), ("bar", "M777.8 500L777.8 250")]
    assert [text for _, text in bars["x_ticks"]] == ["x", "y"]
    large, small = (drawing(chart("t", [Line("a", 0, X, Y)], small=small)) for small in (False, True))
    assert len(small["x_ticks"]) < len(large["x_ticks"])


def test_what_stands_in_a_figure_is_escaped() -> None:
    html = svg(chart("<b>", [Line("</script>", 11, X, Y)], note="a&b"))
    assert "&lt;b&gt;" in html and "a&amp;b" in html and html.count("</script>") == 1 and 'class="s1 d1"' in html
