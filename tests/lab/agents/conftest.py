"""Run folders with a saved policy, without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchrl.envs.utils import ExplorationType
from torchrl.modules import QValueActor

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab import RunSettings, evaluate
from torchrl_reg.lab.commands.main import main
from torchrl_reg.lab.run.evaluation import PolicyFile
from torchrl_reg.modules import BoltzmannQActor, NetSettings, PolicySettings, policy, q_network


def untrained(settings: EnvSettings) -> Any:
    """A policy for the environment, from random weights."""
    env = make_env(settings, num_envs=1)
    spec = env.full_action_spec_unbatched["action"]
    torch.manual_seed(5)
    if not hasattr(spec.space, "n"):
        return policy(PolicySettings(num_cells=[16], num_bins=3), env)
    shape = env.observation_spec["observation"].shape[1:]
    name = {1: "mlp", 3: "minatar"}[len(shape)] if settings.name != "atari" else "nature"
    return BoltzmannQActor(QValueActor(q_network(NetSettings(name, num_cells=[16]), env), spec=spec), tau=0.3)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A finished run on an environment, evaluated over ``episodes`` episodes at 96 frames with seed 4."""

    def make(*env: str, episodes: int = 3, **more: Any) -> Path:
        folder, settings = tmp_path / "run", EnvSettings(*env, **more)
        folder.mkdir()
        settings.validate()
        actor = untrained(settings)
        evaluated = {"greedy": actor, "sampled": (actor, ExplorationType.RANDOM)}
        columns = evaluate(make_env(settings, episodes), evaluated, episodes=episodes, seed=4)
        row = {"event": "eval", "frames": 96, "updates": 2, **columns}
        config = SimpleNamespace(env=settings, run=RunSettings(seed=4, eval_episodes=episodes))
        PolicyFile(folder, config).write({"greedy": actor, "sampled": actor}, row)
        assert (folder / "policy.safetensors").is_file()
        (folder / "config.yaml").write_text(f"env:\n  name: {settings.name}\nrun:\n  seed: 4\n")
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        (folder / "done.json").write_text(json.dumps({"frames": 96, "evaluation": row}))
        return folder

    return make


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one sentence with which a command is refused."""

    def refused(*words: Any) -> str:
        assert main([str(word) for word in words]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("torchrl-reg: ") and err.strip().isprintable()
        return err

    return refused
