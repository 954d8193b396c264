"""The evaluations of a run, and what each leaves in its folder: a row, the policies and a video."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrl.envs import EnvBase

from torchrl_reg.agents.episode import episode_frames, frames_per_second
from torchrl_reg.agents.errors import AgentError
from torchrl_reg.agents.pictures import draw_without_display
from torchrl_reg.agents.saved import POLICY_FILE, check_finite, read_policy
from torchrl_reg.agents.video import write_video
from torchrl_reg.training.loop.evaluation import Evaluated, Policy, evaluate, with_mode
from torchrl_reg.training.run.logger import RunLogger
from torchrl_reg.training.run.policy_file import PolicyFile
from torchrl_reg.training.streams import forked_generators, stream_seed

LONGEST = 2_000  # steps of an episode that are filmed


class Evaluator:
    """Evaluates the policies it was given; without any it does nothing.

    Args:
        path: the run folder.
        config: the recipe's.
        logger: gets the rows.
        device: of the policies.
    """

    def __init__(self, path: Path, config: Any, logger: RunLogger, device: torch.device) -> None:
        self._path, self._settings, self._logger, self._device = path, config.run, logger, device
        self._file = PolicyFile(path, config)
        self._env: EnvBase | None = None
        self._policies: Mapping[str, Evaluated] = {}
        self._refused = False
        self._film_every, self._filmed_at = self._settings.video_every_frames, 0
        if self._film_every is not None:
            draw_without_display()  # before the recipe builds its environments: MuJoCo looks once

    def use(self, env: EnvBase, policies: Mapping[str, Evaluated]) -> None:
        """Sets which policies are evaluated, and in which environments."""
        self._env, self._policies = env, policies

    def evaluate(self, frames: int) -> None:
        """Writes the row of an evaluation at ``frames``, then ``policy.safetensors`` and the video, if one is due.

        Policies that are not finite are not evaluated, and so leave the last good one where it is.
        """
        acting = {name: with_mode(evaluated)[0] for name, evaluated in self._policies.items()}
        if self._env is None or not self._are_finite(acting.values(), frames):
            return
        settings = self._settings
        shared = {"episodes": settings.eval_episodes, "seed": settings.seed, "device": self._device}
        self._logger.evaluation(frames, evaluate(self._env, self._policies, **shared))
        self._file.write(acting, self._logger.last_evaluation or {}, self._logger.say)
        self._film(frames)

    def _are_finite(self, policies: Iterable[Policy], frames: int) -> bool:
        try:
            for policy in policies:
                check_finite(policy.state_dict() if isinstance(policy, nn.Module) else {}, "an evaluated policy")
        except AgentError as error:
            if not self._refused:
                self._logger.say(f"no evaluation from frame {frames:,} on: {error}")
            self._refused = True
            return False
        return True

    def _film(self, frames: int) -> None:
        """Films a greedy episode if it is time, always from the same first state; a failure is reported once.

        The episode is in an environment of its own, and the run's random streams are left as they were.
        """
        if self._film_every is None or frames // self._film_every <= self._filmed_at // self._film_every:
            return
        self._filmed_at = frames
        seed = stream_seed(self._settings.seed, "video")
        try:
            with forked_generators(seed):
                saved = read_policy(self._path / POLICY_FILE)
                shown = episode_frames(saved, seed=seed, max_steps=LONGEST)
                write_video(self._path / "videos" / f"{frames:012d}.gif", shown, frames_per_second(saved))
        except AgentError as error:
            self._film_every = None
            self._logger.say(f"no videos: {error}")
