"""Progress of a run for whoever watches: one line on a terminal or in a notebook, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

#: Shown next to the speed where a method reports them, the most telling first.
SHOWN = (
    *("return_mean", "loss", "entropy", "td_error", "tau", "action_gap", "kl"),
    *("bonus", "bonus_clipped", "clipped_mass", "soft_gap"),
)
#: What a bar's line begins with, the fullest first, and the columns that its bar takes at least.
_LINES = (
    ("{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {rate_noinv_fmt} {remaining} left", 10),
    ("{percentage:3.0f}%|{bar}| {rate_noinv_fmt} {remaining} left", 5),
    ("{percentage:3.0f}%|{bar}| {rate_noinv_fmt} {remaining}", 3),
    ("{percentage:3.0f}% {rate_noinv_fmt} {remaining}", 0),
)
#: Numbers that a line shows if it can, at any width from 60 columns on.
_NUMBERS = 3
#: Taken for the width of a notebook.
_NOTEBOOK_COLUMNS = 100
# Without a bar a log file grows by at most one training line in this time.
PLAIN_EVERY_SECONDS = 30.0
# And by at least one line in this time, whatever the run is busy with.
SILENT_SECONDS = 60.0


class Progress:
    """Reports frames, speed, remaining time, last return, loss and the method's diagnostics.

    Several seeds trained in one process share one, which shows means over them, of returns the range, too.

    Args:
        total_frames: of each seed.
        seeds: how many there are.

    Attributes:
        frames: how far each seed is; counted by the loop, read by a thread.
    """

    def __init__(self, total_frames: int, *, seeds: int = 1, enabled: bool = True) -> None:
        self.total_frames, self.seeds = total_frames, seeds
        self.frames: Counter[int] = Counter()
        self._rows: dict[int, dict[str, float]] = {}  # the last number of each name
        self._evaluated: dict[int, list[Mapping[str, Any]]] = {}  # at frames that seeds have yet to reach
        self._begun: dict[int, int] = {}
        self._first_frames, self._ended = 0, 0
        self._bar: tqdm | None = None
        self._thread: threading.Thread | None = None
        self._enabled, self._last_plain = enabled, 0.0
        self._began = self._last_said = time.monotonic()
        self._closed = threading.Event()

    def begin(self, frames: int, seed: int = 0) -> None:
        """Starts a seed, at ``frames`` if it resumes; with the first one the line appears."""
        self.frames[seed] = self._begun[seed] = frames
        self._first_frames += frames // self.seeds
        if self._enabled and self._thread is None:
            if _is_notebook() or (sys.stderr.isatty() and sys.stdout.isatty()):
                self._bar = _bar(self.total_frames, self._numbers)
            self._thread = threading.Thread(target=self._keep_up, daemon=True)
            self._thread.start()
        if self._bar is not None:
            self._bar.initial = self._bar.n = self._bar.last_print_n = self._mean_frames()

    def train(self, row: Mapping[str, Any], seed: int = 0) -> None:
        """Shows a training row: on the bar within a second, as a plain line now and then."""
        if self._bar is not None or self.seeds > 1:
            known = {name: row[name] for name in SHOWN if row.get(name) is not None}
            losses = [row[name] for name in ("loss_qvalue", "loss_critic") if name in row]
            self._rows[seed] = {**self._rows.get(seed, {}), **({"loss": losses[0]} if losses else {}), **known}
        if self._bar is None and self._speaks(seed) and time.monotonic() - self._last_plain >= PLAIN_EVERY_SECONDS:
            self._last_plain = time.monotonic()
            shown = " ".join(f"{name}={row[name]:.4g}" for name in SHOWN if row.get(name) is not None)
            shown = shown if self.seeds == 1 else " ".join(self._numbers())
            remaining = max(0, self.total_frames - row["frames"]) / max(row["fps"], 1e-9)  # a last batch goes beyond
            self.say(f"{self._position(row['frames'])} fps={row['fps']:.0f} left={_clock(remaining)} {shown}")

    def evaluation(self, row: Mapping[str, Any], seed: int = 0) -> None:
        """Shows an evaluation row as a line of its own; one line of several seeds, once all have come so far."""
        if self._enabled:
            self._evaluated.setdefault(row["frames"], []).append(row)
            self._say_evaluated()

    def _say_evaluated(self) -> None:
        for frames in sorted(self._evaluated):
            due = sum(begun < frames or not frames for begun in self._begun.values())
            if len(self._evaluated.get(frames, ())) >= max(1, due) and (rows := self._evaluated.pop(frames, None)):
                whose = f"evaluated {len(rows)} seeds" if len(rows) > 1 else "evaluated"
                self.say(f"{self._position(frames)} {whose}: {_returns(rows)}")

    def say(self, text: str) -> None:
        """Prints ``text`` without breaking the line of the bar."""
        self._last_said = time.monotonic()
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def tick(self) -> None:
        """Moves the bar; without one, says where the run is if nothing was said for a minute (a long evaluation)."""
        now = time.monotonic()
        if self._bar is not None:
            moved = min(self._mean_frames(), self.total_frames) - self._bar.n
            # Without frames no update, or tqdm would not count the time that passes.
            if not (moved and self._bar.update(moved)):
                self._bar.refresh()
        elif now - self._last_said >= SILENT_SECONDS:
            frames = self._mean_frames()
            fps = (frames - self._first_frames) / max(now - self._began, 1e-9)
            self.say(f"{self._position(frames)} fps={fps:.0f} after {_clock(now - self._began)}")

    def end(self, seed: int = 0) -> None:
        """Ends a seed; after the last one the terminal is left on a fresh line."""
        if self.seeds > 1 and self.frames[seed] < self.total_frames:  # it failed; the others go on
            del self.frames[seed]
            self._begun.pop(seed, None)
            self.seeds -= 1
            self._say_evaluated()
        else:
            self._ended += 1
        if self._ended >= self.seeds:
            self._closed.set()
            if self._bar is not None:
                self.tick()
                self._bar.close()

    def _keep_up(self) -> None:
        while not self._closed.wait(SILENT_SECONDS / 60):
            self.tick()

    def _speaks(self, seed: int) -> bool:
        return self._enabled and seed == min(self.frames, default=0)

    def _mean_frames(self) -> int:
        return sum(list(self.frames.values())) // self.seeds

    def _numbers(self) -> list[str]:
        """Means over the seeds, and how many seeds are done."""
        shown = []
        for name in SHOWN:
            if values := [row[name] for row in list(self._rows.values()) if name in row]:
                mean = _short(sum(values) / len(values))
                if self.seeds > 1 and name == "return_mean":
                    shown.append(f"mean return={mean} ({_short(min(values))} to {_short(max(values))})")
                else:
                    shown.append(f"{name.removesuffix('_mean')}={mean}")
        if self.seeds > 1:
            done = sum(frames >= self.total_frames for frames in list(self.frames.values()))
            shown.insert(_NUMBERS - 1, f"seeds={done}/{self.seeds}")
        return shown

    def _position(self, frames: int) -> str:
        return f"frame {frames:,} of {self.total_frames:,}:"


def _is_notebook() -> bool:
    return "ipykernel.zmqshell" in sys.modules  # tqdm's own question


def _bar(total_frames: int, numbers: Callable[[], list[str]]) -> tqdm:
    """A widget in a notebook that has ipywidgets, else a line of text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no ipywidgets
        from tqdm.auto import tqdm

    class Bar(tqdm):
        @property
        def format_dict(self) -> dict[str, Any]:
            return _fitted(super().format_dict, numbers(), self.format_meter)

    scale: dict[str, Any] = {"total": total_frames, "unit": "", "unit_scale": True, "smoothing": 0.05}
    return Bar(**scale, file=sys.stdout, dynamic_ncols=True, mininterval=0.5, miniters=0)


def _fitted(state: dict[str, Any], numbers: list[str], drawn: Callable[..., str]) -> dict[str, Any]:
    """The ``state`` of a bar with the fullest format that its width holds, so that nothing is cut off."""
    width = state["ncols"] if isinstance(state["ncols"], int) else _NOTEBOOK_COLUMNS
    tries = [(_LINES[0], count) for count in range(len(numbers), _NUMBERS, -1)]
    tries += [(line, _NUMBERS) for line in _LINES] + [(_LINES[-1], count) for count in range(_NUMBERS - 1, -1, -1)]
    for (line, columns), count in tries:
        chosen = " ".join([line, *numbers[:count]])
        text = drawn(**{**state, "bar_format": chosen.replace("{bar}", columns * "#"), "ncols": None})
        if len(text) <= width:
            break
    return {**state, "bar_format": chosen}


def _returns(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each policy's return: mean and standard deviation over episodes, or mean and range over seeds.

    >>> _returns([{"return_greedy_mean": 387.5, "return_greedy_std": 112.4}])
    'return_greedy=388 +- 112'
    >>> _returns([{"return_greedy_mean": mean, "return_greedy_std": 0.5} for mean in (9.5, 500.0)])
    'mean return_greedy=255 (9.5 to 500)'
    """
    policies = [name.removesuffix("_mean") for name in rows[0] if name.startswith("return_") and name.endswith("_mean")]
    found = []
    for name in policies:
        means = [row[f"{name}_mean"] for row in rows]
        low, mean, high = (_short(value) for value in (min(means), sum(means) / len(means), max(means)))
        one = f"{name}={mean} +- {_short(rows[0][f'{name}_std'])}"
        found.append(one if len(rows) == 1 else f"mean {name}={mean} ({low} to {high})")
    return " ".join(found)


def _short(value: float) -> str:
    """``value`` in at most six characters.

    >>> [_short(value) for value in (0.125, -0.00123, 21.456, -1234.5, 123_456, -2e-5)]
    ['0.125', '-0.001', '21.5', '-1234', '123k', '-2e-05']
    """
    size = abs(value)
    if not 1e-3 <= size < 1e6:
        return f"{value:.0e}" if value else "0"
    if size >= 99_999:
        return f"{value / 1e3:.0f}k"
    return f"{value:.0f}" if size >= 100 else f"{round(value, 3):.3g}"


def _clock(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60}:{minutes % 60:02d}:{int(seconds) % 60:02d}"
