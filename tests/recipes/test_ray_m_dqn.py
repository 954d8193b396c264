"""TorchRL's Ray trainer with our loss and target update, all on this machine."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes/ray_m_dqn.py"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'torchrl_reg[ray]'")
def test_two_collectors_and_two_learners_learn() -> None:
    """Random actions last 22 steps."""
    command = [sys.executable, str(SCRIPT), "--frames", "6000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = re.findall(r"mean return of the last 20 training episodes: ([\d.]+)", done.stdout)
    assert float(found) > 40


def test_what_cannot_be_is_one_sentence(load, monkeypatch, capsys) -> None:
    script = load("ray_m_dqn")
    for words in (["--frames", "63"], ["--collectors", "3"], ["--learners", "0"], ["--learners", "5"]):
        with pytest.raises(SystemExit):
            script.main(words)
        assert (
            "--frames must be at least 64, --collectors a divisor of 16 and --learners one of 64"
            in capsys.readouterr().err
        )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^ray_m_dqn needs ray, got none: pip install 'torchrl_reg\[ray\]'\.$"):
        script.main([])
    for page in ("torchrl_reg/GUIDE.md", "recipes/README.md"):
        for words in re.findall(r"ray_m_dqn(?:\.py)? (--[\w -]+?)  ", (SCRIPT.parents[1] / page).read_text()):
            with pytest.raises(SystemExit, match="^ray_m_dqn needs ray"):  # its words are understood
                script.main(words.split())
