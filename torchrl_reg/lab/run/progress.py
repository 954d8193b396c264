"""Progress of a run: a bar on a terminal or in a notebook, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchrl_reg.lab.printable import say

if TYPE_CHECKING:
    from tqdm import tqdm

#: Metrics shown next to the speed: the first three that a method reports; with several seeds two, and the seeds done.
SHOWN = ("return_mean", "loss", "entropy", "td_error", "tau", "action_gap", "kl")
# Without a bar: the minimum time between two training lines.
PLAIN_EVERY_SECONDS = 30.0
# Without a bar: the maximum time without a line, for example during a long evaluation.
SILENT_SECONDS = 60.0


class Progress:
    """Reports frames, speed, remaining time and three numbers: last return, loss, a diagnostic of the method.

    Seeds trained in one process share one bar, which shows means over seeds and the range of returns.

    Args:
        total_frames: frames of each seed.
        seeds: number of seeds.

    Attributes:
        frames: frames of each seed so far; written by the loop, read by a thread.
    """

    def __init__(self, total_frames: int, *, seeds: int = 1, enabled: bool = True) -> None:
        self.total_frames, self.seeds = total_frames, seeds
        self.frames: Counter[int] = Counter()
        self._rows: dict[int, dict[str, float]] = {}  # the last number of each name
        self._evaluated: dict[int, list[Mapping[str, Any]]] = {}  # rows at frames that some seeds have not reached yet
        self._begun: dict[int, int] = {}
        self._first_frames, self._ended = 0, 0
        self._bar: tqdm | None = None
        self._thread: threading.Thread | None = None
        self._enabled, self._last_plain = enabled, 0.0
        self._began = self._last_line = time.monotonic()
        self._closed = threading.Event()

    def begin(self, frames: int, seed: int = 0) -> None:
        """Starts a seed, at ``frames`` if it resumes; the first one shows the bar."""
        self.frames[seed] = self._begun[seed] = frames
        self._first_frames += frames // self.seeds
        if self._enabled and self._thread is None:
            in_notebook = "ipykernel.zmqshell" in sys.modules
            if in_notebook or (sys.stderr.isatty() and sys.stdout.isatty()):
                self._bar = _bar(self.total_frames, self._numbers())
            self._thread = threading.Thread(target=self._tick_until_closed, daemon=True)
            self._thread.start()
        if self._bar is not None:
            self._bar.initial = self._bar.n = self._bar.last_print_n = self._mean_frames()

    def train(self, row: Mapping[str, Any], seed: int = 0) -> None:
        """Shows a training row: on the bar within a second, as a plain line now and then."""
        shown = {name: row[name] for name in SHOWN if row.get(name) is not None}
        losses = [row[name] for name in ("loss_qvalue", "loss_critic") if name in row]
        self._rows[seed] = {**self._rows.get(seed, {}), **({"loss": losses[0]} if losses else {}), **shown}
        if self._bar is None and self._reports(seed) and time.monotonic() - self._last_plain >= PLAIN_EVERY_SECONDS:
            self._last_plain = time.monotonic()
            remaining = max(0, self.total_frames - row["frames"]) / max(row["fps"], 1e-9)  # a last batch goes beyond
            speed = f"fps={row['fps']:.0f} left={_clock(remaining)}"
            self.say(f"{self._position(row['frames'])} {speed} {self._numbers()}")

    def evaluation(self, row: Mapping[str, Any], seed: int = 0) -> None:
        """Prints a line for an evaluation row; for several seeds one line, once all have reached its frames."""
        if self._enabled:
            self._evaluated.setdefault(row["frames"], []).append(row)
            self._report_evaluations()

    def _report_evaluations(self) -> None:
        for frames in sorted(self._evaluated):
            due = sum(begun < frames or not frames for begun in self._begun.values())
            if len(self._evaluated.get(frames, ())) >= max(1, due) and (rows := self._evaluated.pop(frames, None)):
                whose = f"evaluated {len(rows)} seeds" if len(rows) > 1 else "evaluated"
                self.say(f"{self._position(frames)} {whose}: {_returns(rows)}")

    def say(self, text: str) -> None:
        """Prints ``text`` without breaking the line of the bar."""
        self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.write(text)
        else:
            say(text)

    def tick(self) -> None:
        """Updates the bar; without one, prints a line if a minute has passed without any (a long evaluation)."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(self._numbers(), refresh=False)
            moved = min(self._mean_frames(), self.total_frames) - self._bar.n
            # After update(0), tqdm leaves the time that passed out of the speed.
            if not (moved and self._bar.update(moved)):
                self._bar.refresh()
        elif now - self._last_line >= SILENT_SECONDS:
            frames = self._mean_frames()
            fps = (frames - self._first_frames) / max(now - self._began, 1e-9)
            self.say(f"{self._position(frames)} fps={fps:.0f} after {_clock(now - self._began)}")

    def end(self, seed: int = 0) -> None:
        """Ends a seed; the last one closes the bar."""
        if self.seeds > 1 and self.frames[seed] < self.total_frames:  # it failed; the others go on
            del self.frames[seed]
            self._begun.pop(seed, None)
            self.seeds -= 1
            self._report_evaluations()
        else:
            self._ended += 1
        if self._ended >= self.seeds:
            self._closed.set()
            if self._bar is not None:
                self.tick()
                self._bar.close()

    def _tick_until_closed(self) -> None:
        while not self._closed.wait(SILENT_SECONDS / 60):
            self.tick()

    def _reports(self, seed: int) -> bool:
        return self._enabled and seed == min(self.frames, default=0)

    def _mean_frames(self) -> int:
        return sum(list(self.frames.values())) // self.seeds

    def _numbers(self) -> str:
        """Three numbers, averaged over seeds, with the range of returns and the number of finished seeds."""
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
            shown.insert(2, f"seeds={done}/{self.seeds}")
        return " ".join(shown[:3])

    def _position(self, frames: int) -> str:
        return f"frame {frames:,} of {self.total_frames:,}:"


def _bar(total_frames: int, numbers: str) -> tqdm:
    """A widget in a notebook with ipywidgets, else a line of text that ends with ``numbers``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ipywidgets may be missing
        from tqdm.auto import tqdm
    line = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {rate_noinv_fmt} {remaining} left{postfix}"
    return tqdm(
        total=total_frames,
        postfix=numbers,
        unit="",
        unit_scale=True,
        smoothing=0.05,
        bar_format=line,
        file=sys.stdout,
        dynamic_ncols=True,
        mininterval=0.5,
        miniters=0,
    )


def _returns(rows: Sequence[Mapping[str, Any]]) -> str:
    """The return of each policy: mean and standard deviation over episodes, or mean and range over seeds.

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
    """``value`` to three digits, or to the next integer.

    >>> [_short(value) for value in (0.125, -0.0012345, 21.456, -1234.5, 123_456, 2e-5)]
    ['0.125', '-0.00123', '21.5', '-1234', '123456', '2e-05']
    """
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _clock(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60}:{minutes % 60:02d}:{int(seconds) % 60:02d}"
