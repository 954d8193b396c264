"""The evaluations of a run, and what each leaves in its folder: a row, the policies and a video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torchrl.envs import EnvBase

from torchrl_reg.training.evaluation import Evaluated, evaluate, with_mode
from torchrl_reg.training.journal import Journal
from torchrl_reg.training.policy_file import PolicyFile
from torchrl_reg.training.videos import Videos


class Evaluator:
    """Evaluates the policies it was given; without any it does nothing.

    Args:
        path: the run folder.
        config: the recipe's.
        journal: gets the rows.
        device: of the policies.
    """

    def __init__(self, path: Path, config: Any, journal: Journal, device: torch.device) -> None:
        self._settings, self._journal, self._device = config.run, journal, device
        self._file = PolicyFile(path, config)
        self._videos = Videos(path, self._settings.video_every_frames, self._settings.seed)
        self._env: EnvBase | None = None
        self._policies: Mapping[str, Evaluated] = {}

    def use(self, env: EnvBase, policies: Mapping[str, Evaluated]) -> None:
        """Sets which policies are evaluated, and in which environments."""
        self._env, self._policies = env, policies

    def evaluate(self, frames: int) -> None:
        """Writes the row of an evaluation at ``frames``, then ``policy.safetensors`` and the video, if one is due."""
        if self._env is None:
            return
        settings, say = self._settings, self._journal.say
        columns = evaluate(
            self._env, self._policies, episodes=settings.eval_episodes, seed=settings.seed, device=self._device
        )
        self._journal.evaluation(frames, columns)
        acting = {name: with_mode(evaluated)[0] for name, evaluated in self._policies.items()}
        self._file.write(acting, self._journal.last_evaluation or {}, say)
        self._videos.film(frames, say)
