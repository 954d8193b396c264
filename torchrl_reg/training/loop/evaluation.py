"""Returns of frozen policies in environments of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type

from torchrl_reg.collectors import fast_vector, plain_policy
from torchrl_reg.collectors.fast import restarted
from torchrl_reg.training.streams import forked_generators, stream_seed

Policy = Callable[[TensorDictBase], TensorDictBase]
#: A policy, evaluated at its mode, or beside it the way in which it acts.
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

    A return is the undiscounted sum of the rewards of ``env``. A policy acts with ``ExplorationType.DETERMINISTIC``, or
    as it is paired: ``{"sampled": (policy, ExplorationType.RANDOM)}``. All see the same episodes (seeds depend only on
    ``seed``), and the global generators are left as they were.
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
    """The policy and how it acts: at its mode, unless said otherwise."""
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

    Environments are reused in rounds if there are fewer of them than episodes. The episodes depend only on ``seed`` and
    the number of environments, and the first ones do not depend on how many follow.
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
    """Inside, the policy's modules are in eval mode: no noise in its weights, no batch statistics of its own."""
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
    """The return of the first episode of every sub-environment, so that short episodes do not count more often.

    Nothing but the running sums is kept, so the length of an episode costs no memory.
    """
    state = env.reset()
    returns = torch.zeros(env.batch_size.numel(), dtype=torch.float64)
    running = torch.ones_like(returns, dtype=torch.bool)
    vector = fast_vector(env, sums_rewards=False)
    fast = vector is not None and device.type == "cpu"
    steps = _fast_steps(env, vector, policy, state) if fast else _steps(env, policy, state, device)
    while running.any():
        reward, done = next(steps)
        returns += torch.where(running, reward.to(returns), 0.0)
        running &= ~done
    return returns


def _steps(env: EnvBase, policy: Policy, state: Any, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Rewards and ends of episodes ``[N]`` of every step from ``state`` on."""
    moves = device.type != "cpu" and env.device != device
    while True:
        acted = policy(state.to(device)).to(env.device) if moves else policy(state)
        step, state = env.step_and_maybe_reset(acted)
        yield step["next", "reward"].reshape(-1), step["next", "done"].reshape(-1).cpu()


def _fast_steps(env: EnvBase, vector: Any, policy: Policy, state: TensorDictBase) -> Iterator[tuple[Tensor, Tensor]]:
    """The same on a CPU, without a TensorDict at every step."""
    explores = exploration_type() == ExplorationType.RANDOM
    act = plain_policy(policy, vector.num_envs, torch.device("cpu"), explores=explores)
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
            observation = restarted(vector, observation, done)
