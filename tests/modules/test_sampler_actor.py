"""A sampler with and without the noise in its output."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import PolicySettings, StochasticSamplerActor, policy


def _built(skip: bool, kind: str) -> StochasticSamplerActor:
    if kind == "actor":
        return StochasticSamplerActor(nn.Identity(), 3, low=[-2.0], high=[2.0], num_cells=[8], skip=skip)
    env = make_env(EnvSettings("pendulum"), num_envs=1)  # three observations, torques of at most 2
    return policy(PolicySettings("sampler", num_cells=[8], head_cells=8, skip=skip), env)


@pytest.mark.parametrize("kind", ["actor", "settings"])
@pytest.mark.parametrize("skip", [True, False])
def test_the_noise_is_added_to_the_output_where_asked(skip: bool, kind: str) -> None:
    """u = xi + f(xi, s), or f(xi, s): told apart by an f that is .3 wherever one looks."""
    actor = _built(skip, kind)
    last = [layer for layer in actor.rest if isinstance(layer, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 0.3)
    state = TensorDict({"observation": torch.randn(64, 3)}, [64])
    torch.manual_seed(5)
    u, _ = actor.particles(state, 16)
    torch.manual_seed(5)
    noise = torch.randn(64, 16, 1)
    torch.testing.assert_close(u, 0.3 + noise if skip else torch.full_like(noise, 0.3))
    torch.manual_seed(5)
    with set_exploration_type(ExplorationType.RANDOM), torch.no_grad():
        action = actor(state)["action"]
    torch.manual_seed(5)
    noise = torch.randn(64, 1)
    torch.testing.assert_close(action, 2 * (0.3 + (noise if skip else torch.zeros_like(noise))).tanh())
