"""One episode of a saved policy, picture by picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule

from torchrl_reg.agents.pictures import Camera, Picture
from torchrl_reg.modules import BoltzmannQActor, PriorEGreedyModule


@dataclass(frozen=True)
class Moment:
    """A state and what the policy makes of it.

    Args:
        picture: uint8 ``[H, W, 3]``.
        step: steps taken before.
        reward_so_far: undiscounted, in reward units.
        q: action values ``[A]``; None of a continuous policy, and of the last state.
        action: the chosen action: an index, or ``[D]`` numbers; None of the last state.
        entropy: of the policy that samples, nats; None where it has none in closed form.
        largest_entropy: ``ln A``; None of a density.
    """

    picture: Picture
    step: int
    reward_so_far: float
    q: Tensor | None
    action: Tensor | None
    entropy: float | None
    largest_entropy: float | None


@torch.no_grad()
def played(
    env: EnvBase,
    policy: Any,
    camera: Camera,
    *,
    seed: int,
    kind: ExplorationType = ExplorationType.DETERMINISTIC,
    max_steps: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Moment]:
    """Every state of one episode of ``env``, a single environment, the last one included.

    ``max_steps`` ends it early. Stochastic policies draw from torch's global generator.
    """
    env.set_seed(seed)
    state = env.reset()
    total, step = 0.0, 0
    while True:
        with set_exploration_type(kind):
            acted = policy(state.to(device)).to("cpu")
        yield _moment(camera, policy, acted, step, total)
        taken, following = env.step_and_maybe_reset(acted)
        total += taken["next", "reward"].item()
        step += 1
        if taken["next", "done"].any() or step == max_steps:
            yield Moment(camera(taken["next"]), step, total, None, None, None, None)
            return
        state = following


def _moment(camera: Camera, policy: nn.Module, acted: TensorDictBase, step: int, total: float) -> Moment:
    q = acted["action_value"][0] if "action_value" in set(acted.keys()) else None
    if q is None:
        return Moment(camera(acted), step, total, None, acted["action"][0], _density_entropy(policy, acted), None)
    entropy = torch.special.entr(action_probabilities(policy, acted)).sum(-1).item()
    return Moment(camera(acted), step, total, q, acted["action"][0], entropy, math.log(len(q)))


def action_probabilities(policy: nn.Module, acted: TensorDictBase) -> Tensor:
    """``pi(.|s) [A]`` of the sampling policy in the first row of what ``policy`` has just written.

    ``softmax(q / tau)``, ``rho exp(beta q)``, or epsilon-greedy (around rho, where it explores from a prior).
    """
    q = acted["action_value"][0].cpu().double()
    for module in policy.modules():
        if isinstance(module, BoltzmannQActor):
            return module.regularizer.policy(q.to(acted["action_value"].device)).cpu()
        if isinstance(module, EGreedyModule):
            return _epsilon_greedy(module, q, acted)
    return nn.functional.one_hot(q.argmax(-1), len(q)).double()


def _epsilon_greedy(module: EGreedyModule, q: Tensor, acted: TensorDictBase) -> Tensor:
    rho = torch.full_like(q, 1 / len(q))
    greedy = q.argmax(-1)
    if isinstance(module, PriorEGreedyModule):
        log_prior = module.prior.log_prior.cpu()
        if module.log_prior_key is not None:
            log_prior = module.prior.floored(acted[module.log_prior_key][0].cpu())
        rho = torch.softmax(log_prior.double(), -1)
        greedy = (q + log_prior / module.prior.beta.cpu()).argmax(-1)
    eps = module.eps.cpu().double()
    return eps * rho + (1 - eps) * nn.functional.one_hot(greedy, len(q))


def _density_entropy(policy: Any, acted: TensorDictBase) -> float | None:
    try:
        return policy.get_dist(acted.to(next(policy.parameters()).device)).entropy()[0].item()
    except (NotImplementedError, AttributeError):
        return None
