"""A test for each loss named on pytest's command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_each_loss_is_a_test(tmp_path: Path) -> None:
    (tmp_path / "my_losses.py").write_text((HERE / "wrong_losses.py").read_text())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "torchrl_reg.testing.pytest_plugin", "--rootdir", "."]
    command += ["--check-loss", "my_losses:DQN gamma=0.9", "-p", "no:cacheprovider"]
    command += ["--check-loss", "my_losses:HardValue method=m_dqn tau=0.5 alpha=0.6 clip_min=-0.4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr
    assert "1 failed, 1 passed" in done.stdout and "max for the soft value" in done.stdout
    assert "Traceback" not in done.stdout
