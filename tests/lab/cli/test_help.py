"""Settings that a recipe does without are refused, typed or brought along by a choice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from torchrl_reg.lab import RecipeConfig, recipe


@dataclass
class Algo:
    gamma: float = 0.9


@dataclass
class Config(RecipeConfig):
    defaults = [{"env": "plain"}, {"optional tuned": "${env}"}]

    env: dict[str, Any] = field(default_factory=dict)
    algo: Algo = field(default_factory=Algo)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Config]]:
    """``command(*words)`` runs a recipe with the environments ``plain``, ``other`` and ``bare``."""
    for name, line in (("plain", "gamma: 0.8"), ("other", "buffer: 5"), ("bare", "gamma: 0.9")):
        file = tmp_path / "conf" / "env" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# @package _global_\nenv:\n  name: {name}\nalgo:\n  {line}\n")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> list[Config]:
        seen: list[Config] = []
        with monkeypatch.context() as patched:  # a recipe's folder is that of its train()
            patched.setattr("inspect.getfile", lambda _: str(tmp_path / "toy.py"))
            main = recipe(Config, lambda cfg: seen.append(cfg) or tmp_path)
        monkeypatch.setattr(sys, "argv", ["toy.py", *words])
        main()
        return seen

    return run


def test_a_choice_brings_its_settings_and_what_its_name_chooses(command, tmp_path) -> None:
    (tmp_path / "conf/tuned").mkdir()
    (tmp_path / "conf/tuned/plain.yaml").write_text("# @package _global_\nalgo:\n  gamma: 0.7\n")
    (cfg,), (other,) = command(), command("env=bare")
    assert cfg.algo == Algo(gamma=0.7) and other.env == {"name": "bare"} and other.algo == Algo(gamma=0.9)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["algo.replay_capacity=5"], "algo.replay_capacity is not a setting; --cfg job lists all settings."),
        (["+algo.replay_capacity=7"], "algo.replay_capacity is not a setting; --cfg"),
        (
            ["env=other"],
            "env=other does not go with this recipe: it sets algo.buffer, which this recipe does not have.",
        ),
    ],
)
def test_what_the_user_types_is_refused_in_one_sentence(command, capsys, words: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit) as stop:
        command(*words)
    said = capsys.readouterr().err
    assert stop.value.code == 1 and said.startswith(sentence) and said.count("\n") == 1
