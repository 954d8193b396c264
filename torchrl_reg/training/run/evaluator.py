"""Evaluations of a run, with what each leaves in its folder: a row, the policies and a video."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrl.envs import EnvBase

from torchrl_reg.agents.description import Undescribed, described, modules_of
from torchrl_reg.agents.episode import episode_frames, frames_per_second
from torchrl_reg.agents.errors import AgentError
from torchrl_reg.agents.pictures import draw_without_display
from torchrl_reg.agents.saved import POLICY_FILE, check_finite, policy_bytes, read_policy, whole
from torchrl_reg.agents.video import write_video
from torchrl_reg.training.files import write_atomically
from torchrl_reg.training.loop.evaluation import Evaluated, Policy, evaluate, with_mode
from torchrl_reg.training.run.logger import RunLogger
from torchrl_reg.training.run.metrics import json_row, strip_wall_clock
from torchrl_reg.training.streams import forked_generators, stream_seed

LONGEST = 2_000  # steps of an episode that are filmed


class PolicyFile:
    """Keeps ``policy.safetensors`` of a run at its last evaluation; see :func:`torchrl_reg.load_policy`.

    Args:
        folder: of the run.
        config: the recipe's; its ``env`` and ``run`` are stored for whoever evaluates the policy again.
    """

    def __init__(self, folder: Path, config: Any) -> None:
        self._path = folder / POLICY_FILE
        self._refused = False
        self.modules: set[str] = set()  # that the file names, all of them imported by this run
        run = config.run
        self._facts = {"run": {"seed": run.seed, "eval_episodes": run.eval_episodes, "threads": run.threads}}
        env = getattr(config, "env", None)
        if dataclasses.is_dataclass(env) and not isinstance(env, type):
            self._facts["env"] = dataclasses.asdict(env)

    def write(
        self, policies: Mapping[str, Policy], evaluation: Mapping[str, Any], say: Callable[[str], None] = print
    ) -> None:
        """Writes the file; says once if the policies are of a kind that could not be loaded."""
        if self._refused:
            return
        facts = {**self._facts, "evaluation": json_row(strip_wall_clock(evaluation))}
        try:
            write_atomically(self._path, policy_bytes(policies, facts))
            self.modules = modules_of(described(whole(policies)))
        except Undescribed as error:
            self._refused = True
            say(f"policy not saved: {error}, so evaluate, play and export will not work for this run")


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
        shared = {"episodes": self._settings.eval_episodes, "seed": self._settings.seed, "device": self._device}
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
                saved = read_policy(self._path / POLICY_FILE, trust=self._file.modules)
                shown = episode_frames(saved, seed=seed, max_steps=LONGEST)
                write_video(self._path / "videos" / f"{frames:012d}.gif", shown, frames_per_second(saved))
        except AgentError as error:
            self._film_every = None
            self._logger.say(f"no videos: {error}")
