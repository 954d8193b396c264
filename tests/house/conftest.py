"""A finished run, without training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def finished_run() -> Callable[[Path], Path]:
    """Makes a folder what scripts find of a run: its policy has random weights."""
    from torchrl_reg.envs import EnvSettings, make_env
    from torchrl_reg.lab.agents import save_policy
    from torchrl_reg.modules import NetSettings, QuantileQActor, quantile_network

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        env = make_env(EnvSettings("cartpole"), num_envs=1)
        spec = env.full_action_spec_unbatched["action"]
        actor = QuantileQActor(quantile_network(NetSettings(), env), spec=spec)
        evaluation = {"frames": 96, "return_greedy_mean": 9.5}
        facts = {"env": {"name": "cartpole"}, "run": {"seed": 3}, "evaluation": evaluation}
        save_policy(folder / "policy.safetensors", actor, facts)
        (folder / "config.yaml").write_text("env:\n  name: cartpole\nrun:\n  seed: 3\n")
        (folder / "command.txt").write_text("python recipes/m_iqn.py\n")
        return folder

    return make
