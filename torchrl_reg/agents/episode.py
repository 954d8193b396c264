"""One episode of a saved policy: its moments, and the frames that show them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type, step_mdp
from torchrl.modules import EGreedyModule

from torchrl_reg.agents.panel import Moment, Panel
from torchrl_reg.agents.pictures import STEPS_PER_SECOND, Camera, Picture, action_names, camera, draw_without_display
from torchrl_reg.agents.saved import SavedPolicy
from torchrl_reg.modules import BoltzmannQActor, PriorEGreedyModule


def frames_per_second(saved: SavedPolicy) -> int:
    """Environment steps shown in a second."""
    return STEPS_PER_SECOND.get(saved.env_settings.name, 30)


def episode_frames(
    saved: SavedPolicy,
    *,
    seed: int,
    mode: str = "greedy",
    max_steps: int | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Picture]:
    """One frame uint8 ``[H, W, 3]`` of every state of an episode, the last included: its steps + 1.

    Args:
        saved: the policy; its weights must be on ``device``.
        seed: of the episode, and of a policy that samples.
        mode: ``"greedy"`` or ``"sampled"``.
        max_steps: end of an episode that is still going on.
        device: where the policy computes.

    Raises:
        AgentError: the environment cannot be built or drawn here.
    """
    draw_without_display()
    settings, env = saved.env_settings, saved.make_env(1)
    count = getattr(env.full_action_spec_unbatched["action"].space, "n", 0)
    panel = Panel("/".join(filter(None, (settings.name, settings.game, mode))), action_names(settings, count))
    kind = ExplorationType.RANDOM if mode == "sampled" else ExplorationType.DETERMINISTIC
    moments = played(env, saved.policy, camera(settings, env), seed=seed, kind=kind, max_steps=max_steps, device=device)
    torch.manual_seed(seed)
    yield from map(panel.frame, moments)
    env.close()


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
    total, step, is_over = 0.0, 0, False
    while not is_over:
        with set_exploration_type(kind):
            acted = policy(state.to(device)).to("cpu")
        yield Moment(camera(acted), step, total, *_choice(policy, acted))
        taken = env.step(acted)  # without a reset: an environment that draws itself shows its last state
        total += taken["next", "reward"].item()
        step += 1
        is_over = taken["next", "done"].any() or step == max_steps
        state = step_mdp(taken)
    yield Moment(camera(taken["next"]), step, total)


def _choice(policy: nn.Module, acted: TensorDictBase) -> tuple[Tensor | None, Tensor, float | None, float | None]:
    """Action values, the action, the entropy and the largest one."""
    if "action_value" not in set(acted.keys()):
        return None, acted["action"][0], _density_entropy(policy, acted), None
    q = acted["action_value"][0]
    entropy = torch.special.entr(action_probabilities(policy, acted)).sum(-1).item()
    return q, acted["action"][0], entropy, math.log(len(q))


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
