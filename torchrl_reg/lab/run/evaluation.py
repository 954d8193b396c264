"""Evaluation during a run: returns in separate environments, the policy file and videos."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_reg.collectors import fast_vector, plain_policy
from torchrl_reg.collectors.fast import restart_finished
from torchrl_reg.lab.agents.description import Undescribed, describe, modules_of
from torchrl_reg.lab.agents.panel import episode_frames, frames_per_second
from torchrl_reg.lab.agents.pictures import draw_without_display
from torchrl_reg.lab.agents.saved import POLICY_FILE, check_finite, outermost_module, policy_bytes, read_policy
from torchrl_reg.lab.agents.video import write_video
from torchrl_reg.lab.errors import UserError, first_line
from torchrl_reg.lab.run.files import write_atomically
from torchrl_reg.lab.run.logger import RunLogger
from torchrl_reg.lab.run.metrics import json_row, strip_wall_clock
from torchrl_reg.lab.run.settings import RecipeConfig
from torchrl_reg.lab.run.streams import forked_generators, stream_seed

Policy = Callable[[TensorDictBase], TensorDictBase]
#: A policy evaluated at its mode, or a policy with its exploration type.
Evaluated = Policy | tuple[Policy, ExplorationType]


def evaluate(
    env: EnvBase,
    policies: Mapping[str, Evaluated],
    *,
    episodes: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Columns ``return_<name>_mean`` and ``return_<name>_std`` over ``episodes`` episodes each.

    A return is the undiscounted sum of the rewards of ``env``. A policy acts with ``ExplorationType.DETERMINISTIC``
    unless paired with another type: ``{"sampled": (policy, ExplorationType.RANDOM)}``. All policies see the same
    episodes (seeds depend only on ``seed``), and the global generators are restored.
    """
    started = time.perf_counter()
    columns: dict[str, Any] = {}
    for name, evaluated in policies.items():
        policy, kind = with_mode(evaluated)
        returns = episode_returns(env, policy, kind, episodes=episodes, seed=seed, device=device)
        columns[f"return_{name}_mean"] = returns.mean().item()
        columns[f"return_{name}_std"] = returns.std(correction=0).item()
    columns["episodes"] = episodes
    columns["eval_seconds"] = time.perf_counter() - started
    return columns


def with_mode(evaluated: Evaluated) -> tuple[Policy, ExplorationType]:
    """The policy and its exploration type, by default ``ExplorationType.DETERMINISTIC``."""
    return evaluated if isinstance(evaluated, tuple) else (evaluated, ExplorationType.DETERMINISTIC)


def episode_returns(
    env: EnvBase,
    policy: Policy,
    kind: ExplorationType,
    *,
    episodes: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Undiscounted returns ``[episodes]`` (float64, in reward units) of ``policy`` acting with ``kind``.

    With fewer environments than episodes, the environments are reused in rounds. The episodes depend only on ``seed``
    and the number of environments; the first ones do not depend on ``episodes``.
    """
    rounds = []
    forked = forked_generators(stream_seed(seed, "eval_actor"))
    with forked, torch.no_grad(), set_exploration_type(kind), in_eval_mode(policy):
        for start in range(0, episodes, env.batch_size.numel()):
            env.set_seed(stream_seed(seed, "eval_env", start))
            rounds.append(_first_episode_returns(env, policy, torch.device(device)))
    return torch.cat(rounds)[:episodes]


@contextmanager
def in_eval_mode(policy: Policy) -> Iterator[None]:
    """Puts the policy's modules in eval mode (no weight noise, no batch statistics), then restores their modes."""
    modules = policy.modules() if isinstance(policy, nn.Module) else ()
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _first_episode_returns(env: EnvBase, policy: Policy, device: torch.device) -> Tensor:
    """The return of the first episode of each sub-environment: taking more would favour short episodes.

    Only running sums are stored, so memory does not grow with the length of an episode.
    """
    state = env.reset()
    returns = torch.zeros(env.batch_size.numel(), dtype=torch.float64)
    running = torch.ones_like(returns, dtype=torch.bool)
    vector = fast_vector(env, sums_rewards=False)
    if vector is not None and device.type == "cpu":
        steps = _fast_steps(env, vector, policy, state)
    else:
        steps = _steps(env, policy, state, device)
    while running.any():
        reward, done = next(steps)
        returns += torch.where(running, reward.to(returns), 0.0)
        running &= ~done
    return returns


def _steps(
    env: EnvBase, policy: Policy, state: TensorDictBase, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rewards and done flags ``[N]`` of each step, starting at ``state``."""
    moves = device.type != "cpu" and env.device != device
    while True:
        acted = policy(state.to(device)).to(env.device) if moves else policy(state)
        step, state = env.step_and_maybe_reset(acted)
        yield step["next", "reward"].reshape(-1), step["next", "done"].reshape(-1).cpu()


def _fast_steps(
    env: EnvBase, vector: VectorEnv, policy: Policy, state: TensorDictBase
) -> Iterator[tuple[Tensor, Tensor]]:
    """As :func:`_steps`, on the CPU and without a TensorDict per step."""
    act = plain_policy(policy)
    observation, dtype = state["observation"], env.observation_spec["observation"].dtype
    action_spec = env.full_action_spec["action"]
    flags = {name: state[name] for name in ("done", "terminated", "truncated")}
    while True:
        now = {"observation": observation, **flags}
        act(now)
        found, reward, terminated, truncated, _ = vector.step(action_spec.to_numpy(now["action"], safe=False))
        observation, done = torch.as_tensor(found, dtype=dtype), terminated | truncated
        yield torch.from_numpy(np.asarray(reward).astype(np.float32)), torch.from_numpy(done)
        if done.any():
            observation = restart_finished(vector, observation, done)


MAX_FILM_STEPS = 2_000


class PolicyFile:
    """Writes ``policy.safetensors`` of a run at each evaluation; see :func:`torchrl_reg.load_policy`.

    Args:
        folder: the run folder.
        config: the recipe's; ``env`` and ``run`` are stored, so that the policy can be evaluated again.
    """

    def __init__(self, folder: Path, config: RecipeConfig) -> None:
        self._path = folder / POLICY_FILE
        self._refused = False
        self.modules: set[str] = set()  # modules named in the file, all imported by this run
        run = config.run
        self._facts = {"run": {"seed": run.seed, "eval_episodes": run.eval_episodes, "threads": run.threads}}
        env = getattr(config, "env", None)
        if dataclasses.is_dataclass(env) and not isinstance(env, type):
            self._facts["env"] = dataclasses.asdict(env)

    def write(
        self, policies: Mapping[str, Policy], evaluation: Mapping[str, Any], say: Callable[[str], None] = print
    ) -> None:
        """Writes the file; reports once through ``say`` if the policies are of a kind that cannot be loaded."""
        if self._refused:
            return
        facts = {**self._facts, "evaluation": json_row(strip_wall_clock(evaluation))}
        try:
            write_atomically(self._path, policy_bytes(policies, facts))
            self.modules = modules_of(describe(outermost_module(policies)))
        except Undescribed as error:
            self._refused = True
            say(f"policy not saved: {error}, so evaluate, play and export will not work for this run")


class Evaluator:
    """Evaluates the policies of a run; does nothing if there are none.

    Args:
        path: the run folder.
        config: the recipe's.
        logger: writes the rows.
        device: device of the policies.
    """

    def __init__(self, path: Path, config: RecipeConfig, logger: RunLogger, device: torch.device) -> None:
        self._path, self._settings, self._logger, self._device = path, config.run, logger, device
        self._file = PolicyFile(path, config)
        self._env: EnvBase | None = None
        self._policies: Mapping[str, Evaluated] = {}
        self._refused = False
        self._films = self._settings.video_every_frames is not None
        self._film_is_due = False
        if self._films:
            draw_without_display()  # before the recipe builds its environments: MuJoCo reads this once

    def use(self, env: EnvBase, policies: Mapping[str, Evaluated]) -> None:
        """Sets the policies to evaluate and their environments."""
        self._env, self._policies = env, policies

    def film_next(self) -> None:
        """Makes the next evaluation record a greedy episode."""
        self._film_is_due = self._films

    def evaluate(self, frames: int) -> None:
        """Writes the row of an evaluation at ``frames``, then ``policy.safetensors`` and the video, if one is due.

        Policies that are not finite are skipped, so that the last good one stays in the folder.
        """
        acting = {name: with_mode(evaluated)[0] for name, evaluated in self._policies.items()}
        if self._env is None or not self._are_finite(acting.values(), frames):
            return
        episodes, seed = self._settings.eval_episodes, self._settings.seed
        columns = evaluate(self._env, self._policies, episodes=episodes, seed=seed, device=self._device)
        self._logger.evaluation(frames, columns)
        self._file.write(acting, self._logger.last_evaluation or {}, self._logger.say)
        self._film(frames)

    def _are_finite(self, policies: Iterable[Policy], frames: int) -> bool:
        try:
            for policy in policies:
                check_finite(policy.state_dict() if isinstance(policy, nn.Module) else {}, "an evaluated policy")
        except UserError as error:
            if not self._refused:
                self._logger.say(f"no evaluation from frame {frames:,} on: {error}")
            self._refused = True
            return False
        return True

    def _film(self, frames: int) -> None:
        """Records a greedy episode if one is due, always from the same first state; a failure is reported once.

        The episode runs in a separate environment, and the run's random streams are restored.
        """
        if not self._film_is_due:
            return
        self._film_is_due = False
        seed = stream_seed(self._settings.seed, "video")
        try:
            with forked_generators(seed):
                saved = read_policy(self._path / POLICY_FILE, trust=self._file.modules)
                shown = episode_frames(saved, seed=seed, max_steps=MAX_FILM_STEPS)
                write_video(self._path / "videos" / f"{frames:012d}.gif", shown, frames_per_second(saved))
        except Exception as error:  # a film must not end a run
            self._films = False
            self._logger.say(f"no videos: {error if isinstance(error, UserError) else first_line(error)}")
