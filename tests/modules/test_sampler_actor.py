"""A sampler with and without the noise in its output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("skip", [True, False])
def test_the_noise_is_added_to_the_output_where_asked(skip: bool, make: Any, states: Any) -> None:
    """u = xi + f(xi, s), or f(xi, s): told apart by an f that is .3 wherever one looks."""
    actor = make("sampler", skip=skip, low=[-2.0], high=[2.0])
    nn.init.zeros_(actor.rest[-1].weight)
    nn.init.constant_(actor.rest[-1].bias, 0.3)
    for shape in ((64, 16, 1), (64, 1)):
        torch.manual_seed(5)
        found = actor.squashed(actor.particles(states(64), 16)[0]) if len(shape) == 3 else actor(states(64))["action"]
        torch.manual_seed(5)
        torch.testing.assert_close(found, 2 * (0.3 + torch.randn(shape) * skip).tanh())
