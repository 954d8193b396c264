"""What ``torchrl-reg watch`` shows: one screen of curves and progress."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import plotext
from numpy.typing import ArrayLike
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torchrl_reg.lab.analysis.curves import DARK, Curve
from torchrl_reg.lab.analysis.numbers import amount, duration
from torchrl_reg.lab.analysis.sweeps import WatchedGroup, Watcher, latest_curves
from torchrl_reg.lab.printable import printable

_STATE_COLORS = {"done": "green", "running": "cyan", "silent": "yellow", "failed": "red", "waiting": "bright_black"}
_NAMES = {"eval": "evaluated return", "train": "training return"}
_PLOT_HEIGHT = 9
_SPARK_WIDTH, _BLOCKS = 12, "▁▂▃▄▅▆▇█"
_MOST_FAILURES = 5
#: Values beyond are drawn at it: plotext computes with differences of differences.
_HUGEST = 1e300
#: Widths of what stands beside a method's name, in the order in which it gives way to it.
_COLUMNS = {"curve": _SPARK_WIDTH + 2, "fps": 8, "left": 8, "frames": 12, "done": 15, "return": 8}


def watch_frame(
    watcher: Watcher, *, single: bool, width: int, height: int | None, notes: Sequence[str] = ()
) -> RenderableType:
    """One screen: a summary line, a plot an environment as long as there is room, a line a method.

    Args:
        single: a line a run instead.
        width: of the screen, in characters.
        height: lines to fit in, or None for as many as it takes.
        notes: sentences for below.
    """
    envs = [list(members) for _, members in groupby(watcher.groups(single=single), key=lambda group: group.env)]
    parts: list[RenderableType] = [_summary(watcher)]
    below = _problems(watcher, notes)
    left = math.inf if height is None else height - 1 - len(below)
    tables = sum(len(shown) + 3 for shown in envs)
    for number, shown in enumerate(envs):
        if left < len(shown) + 3 and number:
            parts.append(Text(f"\n{len(envs) - number} more environments: a taller terminal", style="bright_black"))
            break
        event, curves = latest_curves(shown)
        parts.append(Text.assemble((f"\n{shown[0].env}", "bold"), (f"  {_NAMES[event]}", "bright_black")))
        drawn = any(len(curve[0]) > 1 for curve in curves) and left - tables >= _PLOT_HEIGHT + 1
        if drawn:
            parts.append(_plot(curves, width))
        parts.append(_table(shown, curves, [group.latest(event) for group in shown], width))
        left -= len(shown) + 3 + drawn * (_PLOT_HEIGHT + 1)
        tables -= len(shown) + 3
    return Group(*parts, *below)


def _problems(watcher: Watcher, notes: Sequence[str]) -> list[Text]:
    """A line a run that failed, diverged or cannot be read, and what SLURM says."""
    lines = [("red", f"{watcher.shown_path(path)} failed: {said}") for path, said in watcher.failures().items()]
    if len(lines) > _MOST_FAILURES:
        lines[_MOST_FAILURES:] = [("red", f"{len(lines) - _MOST_FAILURES} more failed")]
    frames = {watcher.shown_path(path): run.diverged_frames for path, run in watcher.runs.items()}
    if diverged := [f"{path} at frame {at:,}" for path, at in frames.items() if at is not None]:
        more = f" and {len(diverged) - _MOST_FAILURES} more" if len(diverged) > _MOST_FAILURES else ""
        lines.append(("yellow", f"values diverged in {', '.join(diverged[:_MOST_FAILURES])}{more}"))
    lines += [("yellow", f"{path}: {message}") for path, message in watcher.unreadable.items()]
    lines += [("yellow", note) for note in notes]
    return [Text(printable(line), style=color, no_wrap=color == "red", overflow="ellipsis") for color, line in lines]


def _summary(watcher: Watcher) -> Text:
    counts = Counter[str](run.state() for run in watcher.runs.values()) + Counter(watcher.not_begun.values())
    text = Text(f"{counts.total()} runs", style="bold")
    for state, color in _STATE_COLORS.items():
        if counts[state]:
            text.append(f"  {counts[state]} {state}", style=f"not bold {color}")
    frames = sum(run.frames for run in watcher.runs.values())
    if total := watcher.total_frames:
        text.append(f"  {amount(frames)} of {amount(total)} frames", style="not bold")
    return text


def _plot(curves: Sequence[Curve], width: int) -> Text:
    """``curves`` in braille dots, the last in front, with the limits and the middle of the values beside them."""
    frames, values = np.concatenate([np.zeros((2, 0)), *curves], axis=1).clip(-_HUGEST, _HUGEST)
    left, low, high = frames.min(), values.min(), values.max()
    right = max(frames.max(), left + 1)  # never an empty span, of huge values neither
    high = high if high - low > 1e-9 * abs(low) else low + max(1e-6 * abs(low), 1)
    plotext.terminal.limit(False, False)  # the size is that of the console, which need not be a terminal
    figure = plotext.figure.clear().theme("colorless").plot_size(min(width, 122) - 1, _PLOT_HEIGHT + 1)
    figure.axes(False)
    for index, (x, y) in enumerate(curves):
        color = tuple(bytes.fromhex(DARK[index % len(DARK)][1:]))
        figure.draw(figure.signal(x, y.clip(-_HUGEST, _HUGEST), marker=plotext.marker("braille", color)).lines())
    heights = low, (low + high) / 2, high
    figure.ruler("y").ticks(heights, [f"{each:>9.4g} " for each in heights])
    figure.ruler("x").ticks((left, right), (amount(left), f"{amount(right)} frames"))
    return Text.from_ansi(figure.build().string().rstrip("\n"), no_wrap=True)


def _table(
    groups: Sequence[WatchedGroup], curves: Sequence[Curve], latest: Sequence[float | None], width: int
) -> RenderableType:
    needed = max(len(group.name) for group in groups)
    kept = list(_COLUMNS)
    while len(kept) > 2 and needed + 6 + sum(_COLUMNS[name] for name in kept) > width:
        kept.pop(0)
    names = [name for name in ("done", "frames", "fps", "left", "return", "curve") if name in kept]
    table = Table(box=None, padding=(0, 1), show_header=True, header_style="bright_black", expand=False)
    table.add_column("")
    table.add_column("", overflow="fold")  # a label that is cut would be that of another method, too
    for name in names:
        table.add_column("" if name == "curve" else name, justify="right" if name != "curve" else "left", no_wrap=True)
    for index, (group, curve, value) in enumerate(zip(groups, curves, latest, strict=True)):
        color = DARK[index % len(DARK)]
        cells = _cells(group, curve, value, color)
        table.add_row(Text("●", style=color), Text(group.name), *(cells[name] for name in names))
    return table


def _cells(group: WatchedGroup, curve: Curve, value: float | None, color: str) -> dict[str, Any]:
    states = Counter[str](run.state() for run in group.runs) + Counter(group.not_begun)
    worst = next((state for state in ("failed", "silent", "running", "waiting") if states[state]), "done")
    planned = states.total()
    done = Text(worst if planned == 1 else f"{states['done']}/{planned}", style=_STATE_COLORS[worst])
    if planned > 1 and worst in ("failed", "silent"):
        done.append(f" {states[worst]} {worst}")
    moving = [run for run in group.runs if run.state() == "running"]
    fps = [run.fps for run in moving if run.fps]
    left = [run.remaining_seconds for run in moving if run.remaining_seconds is not None]
    share = sum(run.share for run in group.runs) / planned
    return {
        "done": done,
        "frames": f"{amount(sum(run.frames for run in group.runs))} {share:4.0%}",
        "fps": f"{sum(fps):,.0f}" if fps else "",
        "left": duration(max(left)) if left else "",
        "return": "" if value is None else f"{value:.4g}",
        "curve": Text(sparkline(curve[1], _SPARK_WIDTH), style=color),
    }


def sparkline(values: ArrayLike, width: int) -> str:
    """``values`` (finite) as at most ``width`` blocks, each the mean of its share.

    >>> sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8)
    '▁▂▃▄▅▆▇█'
    >>> sparkline([5.0, 5.0], 4), sparkline([], 4)
    ('▄▄', '')
    """
    array = np.asarray(values, dtype=np.float64).clip(-_HUGEST, _HUGEST)
    if not array.size or width < 1:
        return ""
    means = np.array([part.mean() for part in np.array_split(array, min(width, array.size))])
    low, high = means.min(), means.max()
    if high <= low:
        return _BLOCKS[3] * len(means)
    levels = np.rint((means - low) / (high - low) * (len(_BLOCKS) - 1)).astype(int)
    return "".join(_BLOCKS[level] for level in levels)
