"""Progress of a run for whoever watches: one line on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

# Shown next to the speed, in this order, where a method reports them.
SHOWN = (
    *("return_mean", "loss", "tau", "entropy", "action_gap", "kl"),
    *("bonus", "bonus_clipped", "clipped_mass", "soft_gap", "td_error"),
)
# Without a terminal a log file grows by at most one training line in this time.
PLAIN_EVERY_SECONDS = 30.0
# And by at least one line in this time, whatever the run is busy with.
SILENT_SECONDS = 60.0


class Progress:
    """Reports frames, speed, remaining time, last return, loss and the method's diagnostics."""

    def __init__(self, total_frames: int, frames: int, *, enabled: bool = True) -> None:
        self.total_frames = total_frames
        self._bar: tqdm | None = None
        self._last_plain = 0.0
        self._enabled = enabled
        self._frames = self._first_frames = frames
        self._began = self._last_said = time.monotonic()
        self._closed = threading.Event()
        if enabled and sys.stderr.isatty() and sys.stdout.isatty():
            from tqdm import tqdm

            scale = {"total": total_frames, "initial": frames, "unit": "frame", "unit_scale": True}
            self._bar = tqdm(**scale, dynamic_ncols=True, mininterval=0.5)
        elif enabled:
            threading.Thread(target=self._break_silences, daemon=True).start()

    def advance(self, frames: int) -> None:
        """Moves on by ``frames``; cheap enough for every batch."""
        self._frames += frames
        if self._bar is not None:
            self._bar.update(frames)

    def train(self, row: Mapping[str, Any]) -> None:
        """Shows a training row: on the bar at once, as a plain line now and then."""
        shown = " ".join(f"{name}={row[name]:.4g}" for name in SHOWN if row.get(name) is not None)
        if self._bar is not None:
            self._bar.set_postfix_str(shown, refresh=False)
        elif self._enabled and time.monotonic() - self._last_plain >= PLAIN_EVERY_SECONDS:
            self._last_plain = time.monotonic()
            remaining = max(0, self.total_frames - row["frames"]) / max(row["fps"], 1e-9)  # a last batch goes beyond
            self.say(f"{self._position(row['frames'])} fps={row['fps']:.0f} left={_clock(remaining)} {shown}")

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Shows an evaluation row as a line of its own."""
        if not self._enabled:
            return
        returns = " ".join(
            f"{name.removesuffix('_mean')}={row[name]:.4g}+-{row[name.replace('_mean', '_std')]:.2g}"
            for name in row
            if name.startswith("return_") and name.endswith("_mean")
        )
        self.say(f"{self._position(row['frames'])} evaluated: {returns}")

    def say(self, text: str) -> None:
        """Prints ``text`` without breaking the line of the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            self._last_said = time.monotonic()
            print(text, flush=True)

    def break_silence(self) -> None:
        """Says where the run is if nothing was said for a minute: before the first row, or in a long evaluation."""
        now = time.monotonic()
        if now - self._last_said >= SILENT_SECONDS:
            fps = (self._frames - self._first_frames) / max(now - self._began, 1e-9)
            self.say(f"{self._position(self._frames)} fps={fps:.0f} after {_clock(now - self._began)}")

    def _break_silences(self) -> None:
        while not self._closed.wait(SILENT_SECONDS / 6):
            self.break_silence()

    def close(self) -> None:
        """Leaves the terminal on a fresh line."""
        self._closed.set()
        if self._bar is not None:
            self._bar.close()

    def _position(self, frames: int) -> str:
        return f"frame {frames:,} of {self.total_frames:,}:"


def _clock(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60}:{minutes % 60:02d}:{int(seconds) % 60:02d}"
