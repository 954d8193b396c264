"""Colours of the figure "published and ours", and the row of a published score."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex

from torchrl_reg.analysis import plots
from torchrl_reg.analysis.charts import LIGHT


def gap(method: str, difference: float | None, meets: bool, mean: float = 3.0) -> Any:
    group = SimpleNamespace(env="cartpole", method=method)
    ours = SimpleNamespace(value=2.0, low=1.0, high=2.5)
    scores, published = SimpleNamespace(group=group, values=[2.0]), SimpleNamespace(mean=mean, spread=None)
    return SimpleNamespace(scores=scores, ours=ours, difference=difference, meets=meets, published=published)


def test_green_meets_all_orange_does_not_blue_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    found = [gap("a", -1.0, True), gap("b", -1.0, True), gap("b", -7.0, False, mean=9.0), gap("c", None, False)]
    plots.draw_published(found, tmp_path / "x.png")
    (axes,) = figures[0].axes
    dots = [(to_hex(line.get_color()), *line.get_xdata()) for line in axes.get_lines()]
    grey, green, orange, blue = "#6b6b6b", *(LIGHT[i].lower() for i in (2, 1, 0))
    assert dots == [(green, 2.0), (grey, 3.0), (orange, 2.0), (grey, 3.0), (grey, 9.0), (blue, 2.0)]
