"""``torchrl-reg check``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from torchrl_reg.lab.commands.main import main

LOSSES = Path(__file__).parents[2] / "testing/wrong_losses.py"


@pytest.fixture
def my_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_losses.py").write_text(
        f"{LOSSES.read_text()}\n\ndef make(network):\n    return DoubleDQN(network)\n"
    )
    for name, text in {"needs": "import not_there", "broken": "def f(:", "raises": "1 / 0"}.items():
        (tmp_path / f"{name}.py").write_text(f"{text}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_losses", raising=False)


M_DQN = ["--method", "m_dqn", "--tau", ".5", "--alpha", ".6", "--clip-min", "-.4"]


def test_a_right_loss_and_a_wrong_one(my_losses: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "my_losses:MunchausenDQN", *M_DQN]) == 0
    assert "m_dqn, tau=0.5, alpha=0.6, clip_min=-0.4, gamma=0.9" in capsys.readouterr().out
    assert main(["check", "my_losses:PublishedClip", *M_DQN, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["errors"] == ["clip [l0, 1] instead of [l0, 0]"] and not report["passed"]


def test_a_factory(my_losses: None) -> None:
    assert main(["check", "my_losses:make", "--method", "double_dqn", "--gamma", ".9"]) == 0
    assert main(["check", "my_losses:make", "--method", "dqn", "--gamma", ".9"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["my_losses"], "LOSS must be written my_module:MyLoss, got 'my_losses'."),
        (["not_here:Loss"], "LOSS must name a module that can be imported, got 'not_here', which is not here."),
        (["needs:Loss"], "LOSS must name a module that can be imported, got 'needs', which needs not_there."),
        (["broken:Loss"], "LOSS must name a module that can be imported, got 'broken', which raises SyntaxError: "),
        (
            ["raises:Loss"],
            "LOSS must name a module that can be imported, got 'raises', which raises ZeroDivisionError: ",
        ),
        (["my_losses:DQN", "--gamma", "2"], "gamma must be in [0, 1), got 2.0."),
        (["my_losses:DQN", "--n-steps", "0"], "n_steps must be >= 1 and lmbda in [0, 1], got 0 and 0.7."),
        (["my_losses:DQN", "--lmbda", "7"], "n_steps must be >= 1 and lmbda in [0, 1], got 1 and 7.0."),
        (["my_losses:Nothing"], "LOSS must name something in my_losses, got 'Nothing', which it does not define."),
        (["my_losses:DQN", "--method", "ppo"], "method must be one of dqn, double_dqn, "),
        (["my_losses:DQN", "--head", "wide"], "head must be one of expected, categorical, "),
        (["my_losses:make", "--method", "dqn"], "gamma must be given for this method, got none."),
    ],
)
def test_what_is_wrong_is_said(
    words: list[str], message: str, my_losses: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *words]) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"torchrl-reg: {message}") and err.count("\n") == 1 and not out
