"""One thread a test process: the networks here are small, and two test processes share the machine.

And a Ctrl-C that works: a shell starts what runs in its background with SIGINT ignored, which children would inherit.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from typing import Any

import pytest
import torch

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what tests start in processes of their own
torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """Skips prioritized replay before torch 2.14, where torchrl 0.14.1's extension does not load."""
    try:
        return (yield)
    except RuntimeError as error:
        if "SegmentTreeFp32 is not available" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def subnormal_numbers() -> None:
    """As PyTorch has them; a run in this process before has set them to 0."""
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def undrawn_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process leave no ``curves.png``, a second each, but for the tests marked ``curves``."""
    logger = sys.modules.get("torchrl_reg.lab.run.logger")
    if logger is not None and request.node.get_closest_marker("curves") is None:
        monkeypatch.setattr(logger.RunLogger, "draw_curves", lambda self: None)
