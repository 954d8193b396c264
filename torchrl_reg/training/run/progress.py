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
    """Reports frames, speed, remaining time, last return, loss and the method's diagnostics.

    Attributes:
        frames: how far the run is; assigned by the loop, read by a thread.
    """

    def __init__(self, total_frames: int, frames: int, *, enabled: bool = True) -> None:
        self.total_frames, self.frames, self._first_frames = total_frames, frames, frames
        self._bar: tqdm | None = None
        self._enabled, self._last_plain = enabled, 0.0
        self._began = self._last_said = time.monotonic()
        self._closed = threading.Event()
        if enabled and sys.stderr.isatty() and sys.stdout.isatty():
            from tqdm import tqdm

            scale = {"total": total_frames, "initial": frames, "unit": "frame", "unit_scale": True}
            self._bar = tqdm(**scale, dynamic_ncols=True, mininterval=0.5)
        if enabled:
            threading.Thread(target=self._keep_up, daemon=True).start()

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
        if self._enabled:
            policies = [
                name.removesuffix("_mean") for name in row if name.startswith("return_") and name.endswith("_mean")
            ]
            returns = " ".join(f"{name}={row[f'{name}_mean']:.4g}+-{row[f'{name}_std']:.2g}" for name in policies)
            self.say(f"{self._position(row['frames'])} evaluated: {returns}")

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
            self._bar.update(self.frames - self._bar.n)
        elif now - self._last_said >= SILENT_SECONDS:
            fps = (self.frames - self._first_frames) / max(now - self._began, 1e-9)
            self.say(f"{self._position(self.frames)} fps={fps:.0f} after {_clock(now - self._began)}")

    def _keep_up(self) -> None:
        while not self._closed.wait(SILENT_SECONDS / 60):
            self.tick()

    def close(self) -> None:
        """Leaves the terminal on a fresh line."""
        self._closed.set()
        if self._bar is not None:
            self.tick()
            self._bar.close()

    def _position(self, frames: int) -> str:
        return f"frame {frames:,} of {self.total_frames:,}:"


def _clock(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60}:{minutes % 60:02d}:{int(seconds) % 60:02d}"
