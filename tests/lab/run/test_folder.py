"""Reason of a run's end, from the last lines of its log."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_reg.lab.run.folder import error_line, last_line

TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 1, in <module>
    torch.zeros(3)
    ^^^^^^^^^^^^^^
RuntimeError: CUDA error: device-side assert triggered
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""


OTHER = TRACEBACK.replace("Runtime", "Type").replace("CUDA error", "\x1b[2J")
CUDA = "RuntimeError: CUDA error: device-side assert triggered"
TYPE = r"TypeError: \x1b[2J: device-side assert triggered"


@pytest.mark.parametrize(
    ("log", "error", "last"),
    [
        ("", "", ""),
        ("x" * 20_000 + "\nfirst\nlast \n\n", "", "last"),
        ("at work\nsrun: error: n1: task 0: Exited with exit code 1\n", "", "at work"),
        ("at work\nsrun: Force Terminated StepId=7.0\n", "", "at work"),
        ("at work\nsrun: error: Out Of Memory\n", "", "srun: error: Out Of Memory"),
        (TRACEBACK, CUDA, CUDA),
        (f"{TRACEBACK}\nDuring handling of this\n\n{OTHER}", TYPE, TYPE),
        (f"{TRACEBACK}Exception ignored in: <x>\n{OTHER}", CUDA, CUDA),
        (f"{TRACEBACK}=== 2026-11-23 12:00:00 here, life 2: python\nagain\n", "", "again"),
    ],
)
def test_the_last_words_of_a_log(log: str, error: str, last: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(log)
    assert (error_line(tmp_path / "log"), last_line(tmp_path / "log")) == (error, last)
    assert error_line(tmp_path / "none") == last_line(tmp_path / "none") == ""
