"""Implicit quantile networks: the distribution of returns, by quantile regression.

Shapes: ``*B`` batch, ``A`` actions, ``N`` online quantiles, ``M`` target quantiles, ``K`` policy quantiles.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor
from torchrl.objectives.utils import ValueEstimators

from torchrl_reg.functional import quantile_huber_loss
from torchrl_reg.modules import ImplicitQuantileNetwork, QuantileQActor
from torchrl_reg.objectives.chosen import action_index
from torchrl_reg.objectives.diagnostics import finite_action_gap
from torchrl_reg.objectives.q_learning import QLearningLoss
from torchrl_reg.objectives.regularized_loss import keep_masked_rows_out
from torchrl_reg.objectives.value.one_step import one_step_return


class IQNLoss(QLearningLoss):
    """Quantile Huber loss between ``z(s, a, sigma_i)`` and ``r + gamma z_target(s', a*, sigma'_j)``.

    ``a* = argmax_a mean_k z(s', a, sigma_k)`` with K fresh fractions of the target network (of the online network with
    ``double_dqn=True``). Summed over the N online fractions, averaged over the M target fractions.

    Args:
        value_network: a :class:`~torchrl_reg.modules.QuantileQActor`.
        num_quantiles: N, online fractions. num_target_quantiles: M. num_policy_quantiles: K.
        kappa: half-width of the Huber loss's quadratic part, in reward units.
        double_dqn: choose ``a*`` with the online network.
        reuse_quantiles: choose ``a*`` from the M target quantiles already drawn, instead of K fresh ones (faster).
        share_fractions: draw one set of fractions for the whole batch (faster: one embedding for all rows).
        delay_value, action_space, reduction, use_prioritized_weights, diagnostics: see :class:`QLearningLoss`.

    Returns (in a TensorDict): ``loss`` and detached scalars ``action_gap``, ``td_error`` (mean over rows of
    ``|mean_j target_j - mean_i z_i|``). The priority ``[*B, 1]`` is the row's quantile loss.

    Raises:
        ValueError: a count < 1, ``kappa`` < 0, or a network that is not a QuantileQActor.

    Source: Dabney et al., "Implicit Quantile Networks", ICML 2018, eq. (3) and Algorithm 1.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl_reg.modules import ImplicitQuantileNetwork, QuantileQActor
    >>> from torchrl_reg.objectives import HardTargetUpdate, IQNLoss
    >>> net = ImplicitQuantileNetwork(torch.nn.Linear(4, 16), num_features=16, num_actions=3, num_cells=32)
    >>> loss = IQNLoss(QuantileQActor(net, spec=Categorical(3))).make_value_estimator(gamma=0.99)
    >>> target_update = HardTargetUpdate(loss, period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> loss(data)["loss"].shape
    torch.Size([])
    """

    SUPPORTED_VALUE_ESTIMATORS: ClassVar[tuple[Any, ...]] = (ValueEstimators.TD0,)

    def __init__(
        self,
        value_network: QuantileQActor,
        *,
        num_quantiles: int = 64,
        num_target_quantiles: int = 64,
        num_policy_quantiles: int = 32,
        kappa: float = 1.0,
        double_dqn: bool = False,
        reuse_quantiles: bool = False,
        share_fractions: bool = False,
        **kwargs: Any,
    ) -> None:
        if not isinstance(value_network, QuantileQActor):
            raise ValueError(f"value_network must be a QuantileQActor, got {type(value_network).__name__}.")
        counts = (num_quantiles, num_target_quantiles, num_policy_quantiles)
        if min(counts) < 1:
            raise ValueError(f"The numbers of quantiles must be >= 1, got {counts}.")
        if not kappa >= 0:
            raise ValueError(f"kappa must be >= 0, got {kappa!r}.")
        if "loss_function" in kwargs:
            raise TypeError(f"{type(self).__name__}() takes no loss_function: its distance is the quantile Huber loss.")
        super().__init__(value_network, **kwargs)
        self.num_quantiles, self.num_target_quantiles, self.num_policy_quantiles = counts
        self.kappa = kappa
        self.double_dqn = double_dqn
        self.reuse_quantiles = reuse_quantiles
        self.share_fractions = share_fractions

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """``loss`` (reduced) and detached diagnostics; writes the priority ``[*B, 1]``."""
        key = self.value_network.module[0].in_keys[0]
        net, frozen = (bound.network.quantile_network for bound in self._bound(tensordict))
        features = net.features(tensordict.get(key))
        fractions = self._fractions(features, self.num_quantiles)
        quantiles = net.quantiles(features, fractions)
        z = self._chosen(quantiles, tensordict)
        with torch.no_grad():
            target, diagnostics = self._quantile_target(tensordict, key, net, frozen, quantiles)
        return self._regress(tensordict, z, fractions.expand_as(z), target, diagnostics)

    def _regress(
        self,
        tensordict: TensorDictBase,
        z: Tensor,
        fractions: Tensor,
        target: Tensor,
        diagnostics: dict[str, Tensor],
    ) -> TensorDict:
        mean = z.mean(-1, keepdim=True)
        mask = self._loss_mask(tensordict, mean.squeeze(-1))
        target = keep_masked_rows_out(target.to(mean.dtype), mean, None if mask is None else mask.unsqueeze(-1))
        elementwise = quantile_huber_loss(z, fractions, target, self.kappa)
        self._write_priority(tensordict, elementwise.detach().clone())
        self._note_td_error(diagnostics, mean.detach().squeeze(-1) - target.mean(-1))
        return self._output(tensordict, elementwise, mask, diagnostics)

    def _fractions(self, features: Tensor, count: int) -> Tensor:
        shape = (count,) if self.share_fractions else (*features.shape[:-1], count)
        return torch.rand(shape, device=features.device, dtype=features.dtype)

    def _chosen(self, quantiles: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Quantiles ``[*B, N]`` of the stored action."""
        index = action_index(tensordict.get(self.tensor_keys.action), self.action_space, quantiles.ndim - 2)
        index = index[..., None, None].expand(*quantiles.shape[:-1], 1)
        return quantiles.gather(-1, index).squeeze(-1)

    def _allowed(self, q: Tensor, tensordict: TensorDictBase) -> Tensor:
        """``q [*B, A]`` with forbidden actions at the smallest finite number, as QValueModule masks them."""
        mask_key = self.value_network.module[-1].action_mask_key
        if mask_key is None:
            return q
        return torch.where(tensordict.get(mask_key), q, torch.finfo(q.dtype).min)

    def _next_quantiles(self, frozen: ImplicitQuantileNetwork, features: Tensor) -> tuple[Tensor, Tensor]:
        """``z [*B, M, A]`` for the target and the Q-values ``[*B, A]`` behind the policy, in one pass."""
        count, extra = self.num_target_quantiles, self.num_policy_quantiles
        if self.reuse_quantiles:
            z = frozen.quantiles(features, self._fractions(features, count))
            return z, z.mean(-2)
        z = frozen.quantiles(features, self._fractions(features, count + extra))
        return z[..., :count, :], z[..., count:, :].mean(-2)

    def _backup(self, tensordict: TensorDictBase, next_z: Tensor) -> Tensor:
        """``r + gamma^n (1 - terminated) next_z`` for ``next_z [*B, M]``."""
        return one_step_return(tensordict, self.tensor_keys, self.value_estimator.gamma, next_z)

    def _quantile_target(
        self,
        tensordict: TensorDictBase,
        key: NestedKey,
        net: ImplicitQuantileNetwork,
        frozen: ImplicitQuantileNetwork,
        quantiles: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Target quantiles ``[*B, M]`` and diagnostics."""
        observation = tensordict.get(("next", key))
        features = frozen.features(observation)
        next_z, next_q = self._next_quantiles(frozen, features)
        if self.double_dqn:
            online = net.features(observation)
            next_q = net.quantiles(online, self._fractions(online, self.num_policy_quantiles)).mean(-2)
        next_q = self._allowed(next_q, tensordict.get("next"))
        greedy = next_q.argmax(-1, keepdim=True).unsqueeze(-1)
        next_z = next_z.gather(-1, greedy.expand(*next_z.shape[:-1], 1)).squeeze(-1)
        q = self._allowed(quantiles.detach().mean(-2), tensordict)
        rows = {"action_gap": finite_action_gap(q)} if self.diagnostics else {}
        return self._backup(tensordict, next_z), rows
