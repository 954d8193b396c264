"""The critics of a finished run, read from its last checkpoint: ``policy.safetensors`` holds the policy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from torchrl.checkpoint import Checkpoint

from torchrl_reg.lab.agents import read_policy
from torchrl_reg.lab.errors import UserError
from torchrl_reg.modules import AveragedCritics, PolicySettings, state_action_value_network


def trained_critics(run: Path | str, setting: str = "run") -> list[nn.Module]:
    """The critics Q(s, a) of a run of ``soft_q``, ``sac`` or ``virel``, from its last checkpoint, without gradients.

    Args:
        run: the run folder.
        setting: name of the setting in error messages.

    Returns:
        The critics; of a run that composed others, only their average.

    Raises:
        UserError: no such run, or one without a checkpoint.
    """
    run = Path(run)
    checkpoints = sorted((run / "checkpoints").glob("checkpoint-*.torchrl"))
    try:
        env = read_policy(run).make_env(1)
        config = OmegaConf.load(run / "config.yaml")
        settings = PolicySettings(**config.policy)
        path = checkpoints[-1]
    except (UserError, AttributeError, IndexError, OSError):
        wanted = "the folder of a finished run with critics (soft_q, sac, virel) and a checkpoint"
        raise UserError(f"{setting} must be {wanted}, got {run}.") from None
    if config.algo.get("compose"):
        return [composed_critics(config.algo.compose, setting)]
    weights = _Weights()
    Checkpoint(loss=weights).load(path)
    critics: list[nn.Module] = []
    while state := weights.below(f"qvalue_network_params.critics.{len(critics)}."):
        critics.append(state_action_value_network(settings, env).requires_grad_(False))
        critics[-1].load_state_dict(state)
    return critics


def composed_critics(runs: list[str], setting: str) -> AveragedCritics:
    """The average of the values of ``runs``; a run's value is the minimum over its critics."""
    return AveragedCritics([trained_critics(run, setting) for run in runs])


class _Weights:
    """Receives the ``state_dict`` of any loss from a checkpoint."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state

    def below(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.state.items() if name.startswith(prefix)}
