"""The tiny recipe's command line, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_dqn

from torchrl_reg.lab import recipe


@pytest.fixture
def command(tmp_path, monkeypatch, capfd) -> Callable[..., tuple]:
    """``command(*overrides)`` -> exit code, stderr, the config that reached ``train``, or a list of several or none."""
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()

    def run(*overrides: str, train=None, script: str | Path = tiny_dqn.__file__):
        seen = []

        def remember(cfg):
            seen.append(cfg)
            return tmp_path

        # The name of a recipe, and its conf folder, come from the file of its train().
        chosen = train or remember
        with monkeypatch.context() as patched:
            patched.setattr("inspect.getfile", lambda _: script)
            main = recipe(tiny_dqn.Config, chosen)
        monkeypatch.setattr(sys, "argv", ["tiny_dqn.py", *overrides])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return code, capfd.readouterr().err, seen[0] if len(seen) == 1 else seen

    return run
