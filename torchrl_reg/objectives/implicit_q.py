"""Implicit Q-values: one regression over a policy and a value network, with no Q-network and no actor loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor
from torchrl.objectives.utils import distance_loss

from torchrl_reg.functional import munchausen_bonus
from torchrl_reg.functional.soft import at_least_float32
from torchrl_reg.objectives.actor_critic import (
    PolicyLoss,
    check_actor,
    check_value_network,
    closed_entropy,
    distribution,
    kl_or_estimate,
    log_prob,
    stored_action,
)
from torchrl_reg.objectives.base import LossFunction, Reduction, WeightReduction, batch_mean
from torchrl_reg.objectives.value import regularized_target
from torchrl_reg.regularizers import Coefficient
from torchrl_reg.regularizers.checks import check_clip, check_flag, check_weight
from torchrl_reg.regularizers.coefficients import as_coefficient, entropy_temperature


class ImplicitQLoss(PolicyLoss):
    """``(r + alpha tau ln pi_target(a|s) + gamma V_target(s') - tau ln pi(a|s) - V(s))^2``, the IQ and M-IQ loss.

    The Q-function is implicit, ``Q = V + tau ln pi``, so ``V`` is its soft value and ``pi`` its softmax by
    construction: no maximum, no sum over actions and no sampled action enters, and any policy with the
    log-probability of stored actions will do. ``alpha = 0`` is IQ, ``alpha > 0`` M-IQ.

    ``residual=True`` bootstraps on the online ``V(s')`` and lets its gradient flow: one-step PCL, and with
    ``alpha > 0`` one-step Trust-PCL. Where transitions are stochastic this form is biased (its minimizer also
    shrinks the variance of the residual); the form with a target network is not.

    ``baseline="mean"`` writes Q as a dueling network does, ``Q = V + A - mean A`` with ``A = tau`` times the logits; IQ
    has ``Q = V + A - tau logsumexp(A / tau)``. ``V`` is then no soft value: the target takes that of Q, ``V(s') +
    tau logsumexp(A / tau) - mean A``. For bins (:class:`~torchrl_reg.modules.MulticategoricalActor`).

    Args:
        actor_network: the policy; an actor with ``get_dist(tensordict)`` (:class:`~torchrl.modules.ProbabilisticActor`,
            :class:`~torchrl_reg.modules.MulticategoricalActor`, ...).
        value_network: writes ``"state_value" [*B, 1]``, for instance a :class:`~torchrl.modules.ValueOperator`.
        tau: temperature > 0, in reward units; a number, or a :class:`~torchrl_reg.regularizers.Coefficient` to share.
            Schedulable, as the next two: ``loss.tau = 0.01``.
        alpha: Munchausen weight in [0, 1]. At 0 the target policy is not even evaluated, so set it by
            ``loss.alpha = 0.9`` (not by writing into the tensor, nor within a captured CUDA graph).
        clip_min: lower clip (<= 0) of ``tau ln pi_target`` in the Munchausen term, in reward units; None (the paper)
            for no clip. There is no upper clip: the logarithm of a density may be positive.
        residual: bootstrap on the online value network, with its gradient.
        baseline: ``"logsumexp"`` (IQ), or ``"mean"``, the ablation of section 3.2.
        target_entropy: adapt ``tau`` so that the policy's mean entropy becomes this many nats, starting from ``tau``;
            adds ``loss_tau`` and the parameter of a :class:`~torchrl_reg.regularizers.DualCoefficient`
            (``loss.tau_coefficient.log_value``). For policies whose entropy has a closed form
            (multicategorical, not a squashed Gaussian or a flow). Our addition: the paper keeps ``tau`` fixed.
        delay_actor, delay_value: keep target networks, or take the detached online ones.
        loss_function: ``"l2"`` (the paper), ``"smooth_l1"`` or ``"l1"``.
        reduction, use_prioritized_weights, weight_reduction, diagnostics: see :class:`RegularizedLoss`.

    Returns (in a TensorDict): ``loss``, with ``target_entropy`` also ``loss_tau``, and detached scalars ``td_error``,
    ``value``, ``log_pi`` (nats, of the stored actions), ``entropy`` (nats, where it has a closed form), ``tau``, and
    with ``alpha > 0`` ``kl`` (online to target policy), ``bonus``, ``bonus_clipped``. Writes the priority, the squared
    error ``[*B, 1]``.

    Raises:
        ValueError: a coefficient out of range, an actor without ``get_dist``, a value network that is no TensorDict
            module, a ``target_entropy`` that no such policy has, or for a policy without a closed-form entropy (at the
            first call).
        KeyError: the data lack the action as the actor stores it (at the first call).

    Source: Vieillard, Andrychowicz, Raichuk, Pietquin, Geist, "Implicitly Regularized RL with Implicit Q-Values",
    2021, eq. (2). The printed equation does not write the mask of terminal states; it is here.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.modules import ValueOperator
    >>> from torchrl_reg.modules import MulticategoricalActor
    >>> from torchrl_reg.objectives import ImplicitQLoss, PolyakTargetUpdate
    >>> actor = MulticategoricalActor(torch.nn.Linear(4, 2 * 11), low=[-1.0, -1.0], high=[1.0, 1.0], num_bins=11)
    >>> value = ValueOperator(torch.nn.Linear(4, 1), in_keys=["observation"])
    >>> loss = ImplicitQLoss(actor, value, tau=0.01, alpha=0.9).make_value_estimator(gamma=0.99)
    >>> target_update = PolyakTargetUpdate(loss, rate=0.005)
    >>> data = actor(TensorDict({
    ...     "observation": torch.randn(8, 4),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8]))
    >>> out = loss(data)
    >>> bool(out["bonus"] < 0), data["td_error"].shape
    (True, torch.Size([8, 1]))
    """

    coefficient_names = ("tau", "alpha", "clip_min")

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        value_network: TensorDictModuleBase,
        *,
        tau: float | Coefficient = 0.01,
        alpha: float | Coefficient = 0.0,
        clip_min: float | Coefficient | None = None,
        residual: bool = False,
        baseline: Literal["logsumexp", "mean"] = "logsumexp",
        target_entropy: float | None = None,
        delay_actor: bool = True,
        delay_value: bool = True,
        loss_function: LossFunction = "l2",
        reduction: Reduction | None = "mean",
        use_prioritized_weights: bool | Literal["auto"] = "auto",
        weight_reduction: WeightReduction = "normalized",
        diagnostics: bool = True,
    ) -> None:
        super().__init__(
            loss_function=loss_function,
            reduction=reduction,
            use_prioritized_weights=use_prioritized_weights,
            weight_reduction=weight_reduction,
            diagnostics=diagnostics,
        )
        check_actor(actor_network)
        check_value_network(value_network)  # None, too
        for name, flag in (("residual", residual), ("delay_actor", delay_actor), ("delay_value", delay_value)):
            check_flag(flag, name)
        if baseline not in ("logsumexp", "mean"):
            raise ValueError(f"baseline must be 'logsumexp' or 'mean', got {baseline!r}.")
        delay_value = delay_value and not residual  # the residual form never reads a target value network
        self._take_networks(actor_network, value_network, delay_actor=delay_actor, delay_value=delay_value)
        self.residual, self.baseline, device = residual, baseline, self._default_device
        self.tau_coefficient = entropy_temperature(tau, target_entropy, device=device)
        self.alpha_coefficient = as_coefficient(alpha, name="alpha", check=check_weight, device=device)
        self.clip_min_coefficient = as_coefficient(clip_min, name="clip_min", check=check_clip, device=device)
        if self.tau_coefficient.is_learnt:
            _check_reachable(self.tau_coefficient.target, self.actor_network)  # type: ignore[arg-type]
        self.make_value_estimator()

    def _loss_keys(self) -> list[str]:
        return ["loss", *(["loss_tau"] if self.tau_coefficient.is_learnt else [])]

    def _diagnostic_keys(self) -> list[str]:
        bonus = ["bonus", "bonus_clipped", "kl"] if self.alpha_coefficient.is_on else []
        return [*super()._diagnostic_keys(), *bonus]

    def _next_state_keys(self) -> Sequence[NestedKey]:
        return self.value_network.in_keys

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """``loss`` (reduced) and detached diagnostics; writes the priority ``[*B, 1]``."""
        actor, target_actor = self._bound(tensordict, "actor_network")
        value_network, target_value = self._bound(tensordict)
        # Without a gradient into V(s'), what follows a terminal state is dropped from the target anyway.
        data, mask = self._clean(tensordict, next_too=self.residual or value_network.mixes_rows)
        action, batch = stored_action(data, self.tensor_keys.action), data.batch_size
        dist = distribution(actor.network, data)
        log_pi = at_least_float32(log_prob(dist, action, batch))
        value, tau = self._state_value(value_network, data), self.tau
        entropy = closed_entropy(dist) if self.diagnostics or self.tau_coefficient.is_learnt else None
        prediction = value + tau * self._advantage(log_pi, dist)

        with torch.set_grad_enabled(self.residual and torch.is_grad_enabled()):
            network = value_network if self.residual else target_value
            next_value = self._state_value(network, data.get("next"))
            if self.baseline == "mean":
                policy = actor if self.residual else target_actor
                next_value = next_value + tau * self._advantage(0.0, distribution(policy.network, data.get("next")))
            next_value = next_value.unsqueeze(-1)
            gamma = self.value_estimator.gamma
            target = regularized_target(data, self.tensor_keys, next_value, gamma=gamma).squeeze(-1)
            bonus, rows = self._bonus(data, action, tau, dist, target_actor)
            target = (target + bonus).to(prediction.dtype)
        td_error = (prediction - target).detach()
        self._write_priority(tensordict, td_error.square(), mask)
        rows |= {"td_error": td_error.abs(), "value": value, "log_pi": log_pi}
        rows |= {} if entropy is None else {"entropy": entropy}
        losses = {"loss": distance_loss(prediction, target, self.loss_function)}
        return self._output(data, losses, mask, rows, self._learnt_loss(dist, entropy, mask))

    def _bonus(
        self, data: TensorDictBase, action: Tensor, tau: Tensor, dist: Any, target_actor: Any
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """``alpha max(tau ln pi_target(a|s), clip_min) [*B]`` and its diagnostics."""
        if not self.alpha_coefficient.is_on:
            return 0.0, {}
        with torch.no_grad():
            reference = distribution(target_actor.network, data)
            tau_log_pi = tau * at_least_float32(log_prob(reference, action, data.batch_size))
            bonus = munchausen_bonus(tau_log_pi, self.alpha, self.clip_min)
            if not self.diagnostics:
                return bonus, {}
            clipped = ((tau_log_pi < self.clip_min) & (self.alpha > 0)).to(bonus.dtype)
            return bonus, {"bonus": bonus, "bonus_clipped": clipped, "kl": kl_or_estimate(dist, reference)}

    def _advantage(self, log_pi: Tensor | float, dist: Any) -> Any:
        """``(A - baseline) / tau [*B]``, from ``ln pi = (A - tau logsumexp(A / tau)) / tau``."""
        if self.baseline == "logsumexp":
            return log_pi
        if not hasattr(dist, "mean_log_pi"):
            kind = type(dist).__name__
            raise ValueError(f"baseline='mean' needs bins, such as those of a MulticategoricalActor, got a {kind}.")
        return log_pi - at_least_float32(dist.mean_log_pi)

    def _learnt_loss(self, dist: Any, entropy: Tensor | None, mask: Tensor | None) -> dict[str, Any]:
        """The loss ``ln tau (H(pi) - target_entropy)`` of a learnt temperature."""
        if not self.tau_coefficient.is_learnt:
            return {}
        if entropy is None:
            raise ValueError(
                "target_entropy needs a policy whose entropy has a closed form (such as a MulticategoricalActor), "
                f"got a {type(dist).__name__}."
            )
        return {"loss_tau": self.tau_coefficient.objective(batch_mean(entropy, mask))}


def _check_reachable(target_entropy: float, actor: Any) -> None:
    """Bins have an entropy between 0 and the sum of their ``ln K``: outside, the temperature would never settle."""
    if hasattr(actor, "bins"):
        max_entropy = sum(math.log(k) for k in actor.bins.num_bins)
        if not 0 < target_entropy < max_entropy:
            raise ValueError(
                f"target_entropy must lie between 0 and {max_entropy:.3f} nats (ln of the number of actions), got "
                f"{target_entropy!r}."
            )
