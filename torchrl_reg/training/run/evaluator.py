"""The evaluations of a run, and what each leaves in its folder: a row, the policies and a video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrl.envs import EnvBase

from torchrl_reg.agents.errors import AgentError
from torchrl_reg.agents.saved import check_finite
from torchrl_reg.training.loop.evaluation import Evaluated, evaluate, with_mode
from torchrl_reg.training.run.logger import RunLogger
from torchrl_reg.training.run.policy_file import PolicyFile
from torchrl_reg.training.run.videos import Videos


class Evaluator:
    """Evaluates the policies it was given; without any it does nothing.

    Args:
        path: the run folder.
        config: the recipe's.
        logger: gets the rows.
        device: of the policies.
    """

    def __init__(self, path: Path, config: Any, logger: RunLogger, device: torch.device) -> None:
        self._settings, self._logger, self._device = config.run, logger, device
        self._file = PolicyFile(path, config)
        self._videos = Videos(path, self._settings.video_every_frames, self._settings.seed)
        self._env: EnvBase | None = None
        self._policies: Mapping[str, Evaluated] = {}
        self._refused = False

    def use(self, env: EnvBase, policies: Mapping[str, Evaluated]) -> None:
        """Sets which policies are evaluated, and in which environments."""
        self._env, self._policies = env, policies

    def evaluate(self, frames: int) -> None:
        """Writes the row of an evaluation at ``frames``, then ``policy.safetensors`` and the video, if one is due.

        Policies that are not finite are not evaluated, and so leave the last good one where it is.
        """
        if self._env is None or not self._are_finite(frames):
            return
        settings, say = self._settings, self._logger.say
        columns = evaluate(
            self._env, self._policies, episodes=settings.eval_episodes, seed=settings.seed, device=self._device
        )
        self._logger.evaluation(frames, columns)
        acting = {name: with_mode(evaluated)[0] for name, evaluated in self._policies.items()}
        self._file.write(acting, self._logger.last_evaluation or {}, say)
        self._videos.film(frames, say)

    def _are_finite(self, frames: int) -> bool:
        policies = [with_mode(evaluated)[0] for evaluated in self._policies.values()]
        try:
            for policy in policies:
                check_finite(policy.state_dict() if isinstance(policy, nn.Module) else {}, "an evaluated policy")
        except AgentError as error:
            if not self._refused:
                self._logger.say(f"no evaluation from frame {frames:,} on: {error}")
            self._refused = True
            return False
        return True
