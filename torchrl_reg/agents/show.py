"""An episode of a saved policy as frames with the policy drawn beside them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torchrl.envs.utils import ExplorationType

from torchrl_reg.agents.episode import played
from torchrl_reg.agents.panel import Panel
from torchrl_reg.agents.pictures import STEPS_PER_SECOND, Picture, action_names, camera, draw_without_display
from torchrl_reg.agents.saved import SavedPolicy
from torchrl_reg.agents.worlds import env_of, env_settings


def frames_per_second(saved: SavedPolicy) -> int:
    """Environment steps shown in a second."""
    return STEPS_PER_SECOND.get(env_settings(saved).name, 30)


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
    settings = env_settings(saved)
    env = env_of(saved, 1)
    count = getattr(env.full_action_spec_unbatched["action"].space, "n", 0)
    panel = Panel("/".join(filter(None, (settings.name, settings.game, mode))), action_names(settings, count))
    kind = ExplorationType.RANDOM if mode == "sampled" else ExplorationType.DETERMINISTIC
    moments = played(env, saved.policy, camera(settings, env), seed=seed, kind=kind, max_steps=max_steps, device=device)
    torch.manual_seed(seed)
    for moment in moments:
        yield panel.frame(moment)
    env.close()
