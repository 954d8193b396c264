"""The latent space of a trained flow policy as the action space of a policy above it.

Shapes: ``*B`` batch, ``D`` action dimensions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Composite, TensorSpec
from torchrl.envs import Transform

from torchrl_reg.modules.box_actor import clamped_atanh, log_sech2, unsquashed
from torchrl_reg.modules.flow_actor import FlowActor


class LatentActionTransform(Transform):
    r"""Steps the environment with ``a = f(z, s)`` of a frozen flow, ``z = atanh(h)``, at the action ``h`` of a policy.

    ``h [*B, D]`` lies in ``[-1, 1]^D``; what the policy above writes before its own squash is ``z``, so stacked layers
    compose without a squash between them, and as each is invertible the policy above can still play any action. It sees
    a latent space in which a standard normal ``z`` already does what the flow has learnt: a fresh :class:`FlowActor`
    above acts exactly as the flow below. Whatever loss trains the policy above: its data hold ``h``.

    The densities are related by :math:`\ln p(a|s) = \ln p(h|s) - \ln |\det da/dh|`, see :func:`stacked_log_prob`.

    Args:
        flow: the policy below. A copy of it, torso included, is kept, without gradients.

    Raises:
        ValueError: no :class:`FlowActor`; at the environment, an action space of another size or smaller bounds.
        KeyError: data without what the flow reads.

    Source: Haarnoja, Hartikainen, Abbeel, Levine, "Latent Space Policies for Hierarchical Reinforcement Learning", ICML
    2018.

    >>> from torchrl_reg.envs import EnvSettings, make_env
    >>> flow = FlowActor(torch.nn.Linear(3, 8), 8, low=[-2.0], high=[2.0])
    >>> env = make_env(EnvSettings("pendulum"), num_envs=2).append_transform(LatentActionTransform(flow))
    >>> env.full_action_spec_unbatched["action"].space.high, env.rollout(3)["action"].shape
    (tensor([1.]), torch.Size([2, 3, 1]))
    """

    def __init__(self, flow: FlowActor) -> None:
        if not isinstance(flow, FlowActor):
            raise ValueError(f"flow must be a FlowActor, got {type(flow).__name__}.")
        key = flow.action_key
        super().__init__(in_keys=[], out_keys=[], in_keys_inv=[key], out_keys_inv=[key])
        self.flow = copy.deepcopy(flow).requires_grad_(False).eval()

    def action(self, tensordict: TensorDictBase, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The action ``[*B, D]`` of ``h = latent [*B, D]`` at these states, and ``ln |det da/dh| [*B]``."""
        z, dist = clamped_atanh(latent), self.flow.get_dist(tensordict)
        u, log_det = dist.before_squash(z)
        return self.flow.squashed(u), log_det + dist.squash_log_det(u) - log_sech2(z).sum(-1)

    def latent(self, tensordict: TensorDictBase, action: Tensor) -> tuple[Tensor, Tensor]:
        """The ``h [*B, D]`` whose action at these states is ``action [*B, D]``, and ``ln |det da/dh| [*B]``."""
        u, dist = unsquashed(action, self.flow.low, self.flow.high), self.flow.get_dist(tensordict)
        z, log_det = dist.to_base(u)
        return z.tanh(), log_det + dist.squash_log_det(u) - log_sech2(z).sum(-1)

    def play(self, actor: Any, tensordict: TensorDictBase) -> TensorDictBase:
        """Acts in the environment itself: ``actor`` writes ``h [*B, D]``, which is replaced by its action."""
        tensordict = actor(tensordict)
        with torch.no_grad():
            action, _ = self.action(tensordict, tensordict.get(self.flow.action_key))
        return tensordict.set(self.flow.action_key, action)

    def transform_action_spec(self, action_spec: TensorSpec) -> TensorSpec:
        """``[-1, 1]^D`` in place of the environment's bounds."""
        key = self.in_keys_inv[0]
        spec = action_spec[key] if isinstance(action_spec, Composite) else action_spec
        self._check_fit(spec)
        box = Bounded(-1.0, 1.0, shape=spec.shape, dtype=spec.dtype, device=spec.device)
        if not isinstance(action_spec, Composite):
            return box
        action_spec[key] = box
        return action_spec

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        missing = [key for key in self.flow.in_keys if tensordict.get(key, None) is None]
        if missing:
            raise KeyError(f"data must have {', '.join(map(repr, missing))}, which the flow reads, got none.")
        key = self.in_keys_inv[0]
        with torch.no_grad():
            action, _ = self.action(tensordict, tensordict.get(key))
        return tensordict.set(key, action)

    def _check_fit(self, spec: Any) -> None:
        dims = len(self.flow.low)
        space: Any = getattr(spec, "space", None)
        if spec.shape[-1:] != (dims,):
            size = spec.shape[-1] if spec.shape else "no dimension"
            raise ValueError(f"flow must have the environment's action size {size}, got {dims}.")
        if not hasattr(space, "low"):
            raise ValueError(f"flow needs an environment with a box of actions, got {type(spec).__name__}.")
        low, high = (bound.to(self.flow.low).expand(spec.shape) for bound in (space.low, space.high))
        slack = 1e-4 * (high - low)
        if (self.flow.low < low - slack).any() or (self.flow.high > high + slack).any():
            raise ValueError(
                f"flow must act within the environment's bounds, got {self.flow.low.tolist()} to "
                f"{self.flow.high.tolist()} for {low.reshape(-1, dims)[0].tolist()} to "
                f"{high.reshape(-1, dims)[0].tolist()}."
            )


def stacked_log_prob(
    tensordict: TensorDictBase, action: Tensor, actor: Any, transforms: Sequence[LatentActionTransform]
) -> Tensor:
    r"""Log-density of an environment's actions under a policy on top of latent layers.

    .. math:: \ln p(a|s) = \ln \pi(h_n|s) - \sum_i \ln |\det dh_{i-1} / dh_i|, \qquad h_0 = a

    Args:
        tensordict: the states, with all that the layers and the policy read.
        action: actions of the environment ``[*B, D]``.
        actor: the policy on top, with ``get_dist``.
        transforms: the layers, from the environment upwards.

    Returns:
        Log-densities ``[*B]``, in nats.

    Source: Haarnoja et al. 2018 (Latent space policies), eq. (9).
    """
    log_det = torch.zeros_like(action[..., 0])
    for transform in transforms:
        action, step = transform.latent(tensordict, action)
        log_det = log_det + step
    return actor.get_dist(tensordict).log_prob(action) - log_det
