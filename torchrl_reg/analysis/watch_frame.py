"""What ``torchrl-reg watch`` shows: one screen of curves and progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from torchrl_reg.analysis.terminal_plot import Curve, braille_plot, sparkline
from torchrl_reg.analysis.watched import WatchedGroup, Watcher, latest_curves

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_COLORS = ("dodger_blue1", "dark_orange", "green3", "orchid", "gold1", "turquoise2", "grey70")
_STATE_COLORS = {"done": "green", "running": "cyan", "silent": "yellow", "failed": "red", "waiting": "bright_black"}
_NAMES = {"eval": "evaluated return", "train": "training return"}
_PLOT_HEIGHT = 9
_SPARK_WIDTH = 12


def watch_frame(watcher: Watcher, *, single: bool, width: int, height: int | None) -> RenderableType:
    """One screen: a summary line, a plot an environment as long as there is room, a line a method.

    Args:
        single: a line a run instead.
        width: of the screen, in characters.
        height: lines to fit in, or None for as many as it takes.
    """
    from rich.console import Group
    from rich.text import Text

    envs = [list(members) for _, members in groupby(watcher.groups(single=single), key=lambda group: group.env)]
    parts: list[RenderableType] = [_summary(watcher)]
    left = None if height is None else height - 1 - len(watcher.unreadable)
    tables = sum(len(shown) + 3 for shown in envs)
    for number, shown in enumerate(envs):
        if left is not None and left < len(shown) + 3 and number:
            parts.append(Text(f"\n{len(envs) - number} more environments: a taller terminal", style="bright_black"))
            break
        event, curves = latest_curves(shown)
        heading = Text(f"\n{shown[0].env}", style="bold")
        heading.append(f"  {_NAMES[event]}", style="not bold bright_black")
        parts.append(heading)
        drawn = any(len(curve[0]) > 1 for curve in curves) and (left is None or left - tables >= _PLOT_HEIGHT + 1)
        if drawn:
            parts.append(_plot(curves, width))
        parts.append(_table(shown, curves, [group.latest(event) for group in shown], width))
        if left is not None:
            left -= len(shown) + 3 + drawn * (_PLOT_HEIGHT + 1)
            tables -= len(shown) + 3
    for path, message in watcher.unreadable.items():
        parts.append(Text(f"{path}: {message}", style="yellow"))
    return Group(*parts)


def _summary(watcher: Watcher) -> Text:
    from rich.text import Text

    counts = Counter[str](run.state() for run in watcher.runs.values()) + Counter(watcher.not_begun.values())
    text = Text(f"{counts.total()} runs", style="bold")
    for state, color in _STATE_COLORS.items():
        if counts[state]:
            text.append(f"  {counts[state]} {state}", style=f"not bold {color}")
    frames = sum(run.frames for run in watcher.runs.values())
    total = watcher.total_frames
    if total:
        text.append(f"  {amount(frames)} of {amount(total)} frames", style="not bold")
    return text


def _plot(curves: Sequence[Curve], width: int) -> Text:
    from rich.text import Text

    label_width = 9
    columns = max(min(width - label_width - 2, 110), 10)
    rows, (left, right, low, high) = braille_plot(curves, columns, _PLOT_HEIGHT)
    text = Text(no_wrap=True)
    for index, row in enumerate(rows):
        label = {0: f"{high:.4g}", _PLOT_HEIGHT // 2: f"{(low + high) / 2:.4g}", _PLOT_HEIGHT - 1: f"{low:.4g}"}
        text.append(f"{label.get(index, ''):>{label_width}} ", style="bright_black")
        for character, owner in row:
            text.append(character, style=_COLORS[owner % len(_COLORS)] if owner >= 0 else "")
        text.append("\n")
    start, end = amount(left), f"{amount(right)} frames"
    text.append(" " * (label_width + 1) + start + " " * max(columns - len(start) - len(end), 1) + end)
    text.stylize("bright_black", len(text) - columns, len(text))
    return text


def _table(
    groups: Sequence[WatchedGroup], curves: Sequence[Curve], latest: Sequence[float | None], width: int
) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), show_header=True, header_style="bright_black", expand=False)
    table.add_column("")
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=max(width - 66, 16))
    for name in ("done", "frames", "fps", "left", "return"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for index, (group, curve, value) in enumerate(zip(groups, curves, latest, strict=True)):
        table.add_row(*_cells(group, curve, value, _COLORS[index % len(_COLORS)]))
    return table


def _cells(group: WatchedGroup, curve: Curve, value: float | None, color: str) -> list[Any]:
    from rich.text import Text

    states = Counter[str](run.state() for run in group.runs) + Counter(group.not_begun)
    worst = next((state for state in ("failed", "silent", "running", "waiting") if states[state]), "done")
    planned = states.total()
    if planned == 1:
        done = Text(worst, style=_STATE_COLORS[worst])
    else:
        done = Text(f"{states['done']}/{planned}", style=_STATE_COLORS[worst])
        if worst in ("failed", "silent"):
            done.append(f" {states[worst]} {worst}")
    moving = [run for run in group.runs if run.state() == "running"]
    fps = [run.fps for run in moving if run.fps]
    left = [run.remaining_seconds for run in moving if run.remaining_seconds is not None]
    share = sum(run.share for run in group.runs) / planned
    return [
        Text("●", style=color),
        Text(group.name),
        done,
        f"{amount(sum(run.frames for run in group.runs))} {share:4.0%}",
        f"{sum(fps):,.0f}" if fps else "",
        duration(max(left)) if left else "",
        "" if value is None else f"{value:.4g}",
        Text(sparkline(curve[1], _SPARK_WIDTH), style=color),
    ]


def amount(frames: float) -> str:
    """Frames in few characters.

    >>> amount(950), amount(60_000), amount(1_250_000), amount(2e9)
    ('950', '60k', '1.25M', '2G')
    """
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if frames >= unit:
            return f"{frames / unit:.3g}{name}"
    return f"{frames:.0f}"


def duration(seconds: float) -> str:
    """Seconds in the two largest units.

    >>> duration(42), duration(125), duration(7_500), duration(200_000)
    ('42s', '2m05s', '2h05m', '2d07h')
    """
    whole = round(seconds)
    for size, unit, below, small in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // below:02d}{small}"
    return f"{whole}s"
