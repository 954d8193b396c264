"""A sampler network as a policy: noise and state in, action out, no density.

Shapes: ``*B`` batch, ``K`` particles, ``D`` action dimensions, ``F`` features, ``H`` hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_reg.modules.box_actor import Bound, BoxActor, box_bounds
from torchrl_reg.modules.q_actors import explores


class StochasticSamplerActor(BoxActor):
    """Acts with ``a = low + (high - low) (1 + tanh(u)) / 2``, ``u = f(xi, s)``, at fresh noise ``xi ~ N(0, I_D)``.

    ``f`` may map the noise anywhere, so the policy can have any number of modes, but has no density;
    :class:`~torchrl_reg.objectives.SoftQLearningLoss` trains it. The features of a state are computed once for all
    samples drawn there. Random exploration draws ``xi``; deterministic exploration takes ``xi = 0``, **not a
    mode**; ``ExplorationType.MEAN`` is not available.

    Args:
        torso: from the in-keys to features ``[*B, F]``; ``nn.Identity()`` for one observation is the published form, a
            plain network of observation and noise.
        num_features: their number F.
        low, high: bounds of the actions, numbers or ``[D]`` (two numbers: D = 1).
        num_cells: widths of the ReLU layers after features and noise.
        skip: add the noise to the output, ``u = xi + f(xi, s)``, so that the first samples fill the box; the published
            network (False) starts as nearly a point, and may settle in one mode of several.
        in_keys: observation keys. Default ``("observation",)``.
        action_key: where the action goes.

    Attributes:
        stored_action_key: what a loss reads from replay (the action).

    Raises:
        ValueError: no torso, an unbounded or empty box, sizes < 1.

    Actions are in the units of the box; ``u`` and ``xi`` are without unit.

    Source: Haarnoja, Tang, Abbeel, Levine, "Reinforcement Learning with Deep Energy-Based Policies", ICML 2017.

    >>> from tensordict import TensorDict
    >>> actor = StochasticSamplerActor(nn.Identity(), 4, low=[-1.0, -2.0], high=[1.0, 2.0])
    >>> td = actor(TensorDict({"observation": torch.randn(8, 4)}, [8]))
    >>> td["action"].shape, actor.particles(td, 16)[0].shape
    (torch.Size([8, 2]), torch.Size([8, 16, 2]))
    """

    def __init__(
        self,
        torso: nn.Module,
        num_features: int,
        *,
        low: Bound,
        high: Bound,
        num_cells: Sequence[int] = (128, 128),
        skip: bool = True,
        in_keys: Sequence[NestedKey] = ("observation",),
        action_key: NestedKey = "action",
    ) -> None:
        super().__init__(torso, in_keys, action_key, log_prob=False)
        lowest, highest = box_bounds(low, high)
        if num_features < 1 or not num_cells or min(num_cells) < 1:
            raise ValueError(f"num_features and num_cells must be >= 1, got {num_features} and {list(num_cells)}.")
        self.skip, dims, widths = skip, len(lowest), list(num_cells)
        # One layer of features and noise, so that its initialization has the full fan-in; applied in two halves,
        # because all samples share the state's half.
        self.first = nn.Linear(num_features + dims, widths[0])
        layers: list[nn.Module] = [nn.ReLU()]
        for width, following in zip(widths, [*widths[1:], dims], strict=True):
            layers += [nn.Linear(width, following), nn.ReLU()]
        self.rest = nn.Sequential(*layers[:-1])
        self._register_box(lowest, highest)

    def particles(self, tensordict: TensorDictBase, count: int) -> tuple[Tensor, None]:
        """``count`` samples ``u`` before the squash at each state ``[*B, count, D]``; there is no density (None)."""
        features = self._features(tensordict)
        noise = torch.randn(*features.shape[:-1], count, len(self.low), dtype=features.dtype, device=features.device)
        return self._before_squash(features.unsqueeze(-2), noise), None

    def outputs(self, state: Any) -> dict[NestedKey, Tensor]:
        if exploration_type() is ExplorationType.MEAN:
            raise NotImplementedError("A sampler network has no closed-form mean: average samples instead.")
        features, draw = self._features(state), torch.randn if explores() else torch.zeros
        noise = draw(*features.shape[:-1], len(self.low), dtype=features.dtype, device=features.device)
        return {self.action_key: self.squashed(self._before_squash(features, noise))}

    def _features(self, tensordict: Any) -> Tensor:
        """The state's part of the first layer ``[*B, H]``."""
        features = self._torso_outputs(tensordict)
        return nn.functional.linear(features, self.first.weight[:, len(self.low) :], self.first.bias)

    def _before_squash(self, features: Tensor, noise: Tensor) -> Tensor:
        u = self.rest(features + nn.functional.linear(noise, self.first.weight[:, : len(self.low)]))
        return noise + u if self.skip else u
