"""How figures of this package look, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from torchrl_reg.analysis.colors import LIGHT as COLORS
from torchrl_reg.analysis.errors import AnalysisError

_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
#: Methods a legend above the panels holds, and inches a row of it takes.
_MOST_ABOVE, _LEGEND_ROW = 12, 0.19
SUFFIXES = (".png", ".svg", ".pdf")


def styles(methods: Sequence[str]) -> dict[str, dict]:
    """A colour for each method, the same in every panel; dashes once the colours are used up."""
    looks = ((color, dash) for dash in cycle(_DASHES) for color in COLORS)
    return {method: {"color": color, "linestyle": dash} for method, (color, dash) in zip(methods, looks, strict=False)}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` x ``height`` inches, made without pyplot, so that no display is needed."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(figure: Figure, titles: Sequence[str], columns: int) -> Iterator[tuple[str, Axes]]:
    """One small axes a title, in rows of ``columns``."""
    lines = -(-len(titles) // columns)
    for place, title in enumerate(titles, 1):
        axes = figure.add_subplot(lines, columns, place)
        axes.set_title(title, fontsize=9, loc="left")
        styled(axes)
        yield title, axes


def styled(axes: Axes) -> Axes:
    """``axes`` without frame, with a faint grid and small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#B0B0B0")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, color="#B0B0B0")
    return axes


def frames_axis(axes: Axes) -> None:
    """Ticks of environment frames: 0, 50k, 2M."""
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.01)


def returns_axis(axes: Axes) -> None:
    """Ticks of returns: 20k for 20000, once they have five digits."""
    if max(map(abs, axes.get_ylim())) >= 10_000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def add_legend(figure: Figure, looks: dict[str, dict]) -> None:
    """One frameless legend for all panels: above them, and to their right for more than 12 methods.

    The figure grows by what the legend takes, so that the panels keep their size.
    """
    handles = [Line2D([], [], linewidth=2, label=method, **look) for method, look in looks.items()]
    width, height = figure.get_size_inches()
    entry = 0.075 * max(len(method) for method in looks) + 0.45
    place: Literal["outside upper left", "outside right upper"]
    if len(looks) > _MOST_ABOVE:
        columns, place = 1, "outside right upper"
        figure.set_size_inches(width + entry, max(height, _LEGEND_ROW * len(looks) + 0.3))
    else:
        columns, place = max(1, min(len(looks), int(width / entry))), "outside upper left"
        figure.set_size_inches(width, height + _LEGEND_ROW * (-(-len(looks) // columns) - 1))
    figure.legend(handles=handles, loc=place, ncols=columns, frameon=False, fontsize=8, handlelength=1.8)


def save(figure: Figure, path: Path) -> Path:
    """Writes ``figure`` to ``path``: PNG, SVG or PDF by its suffix.

    Raises:
        AnalysisError: another suffix, or a folder that cannot be written.
    """
    checked_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a date and with fixed names inside, equal runs give equal files.
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
        with rc_context({"svg.hashsalt": "torchrl_reg"}):
            figure.savefig(path, dpi=130, metadata=metadata)
    except OSError as error:
        raise AnalysisError(f"out must be a file that can be written, got {path}: {error.strerror}.") from None
    return path


def checked_path(path: Path) -> Path:
    """``path`` if its suffix is one that can be written.

    Raises:
        AnalysisError: it is not.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise AnalysisError(f"out must end in {', '.join(SUFFIXES)}, got {str(path)!r}.")
    return path
