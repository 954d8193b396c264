"""Path consistency learning over sequences: PCL and Trust-PCL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor

from torchrl_reg.functional import path_consistency
from torchrl_reg.functional.soft import at_least_float32
from torchrl_reg.modules import AutoregressiveMulticategoricalActor, MulticategoricalActor
from torchrl_reg.objectives.actor_critic import (
    PolicyLoss,
    check_actor,
    closed_entropy,
    distribution,
    kl_or_estimate,
    log_prob,
    stored_action,
)
from torchrl_reg.objectives.base import Reduction, WeightReduction, batch_mean
from torchrl_reg.objectives.value import check_single_steps, done_flag, terminated_flag
from torchrl_reg.regularizers import Coefficient
from torchrl_reg.regularizers.checks import check_flag, check_kl_weight, check_number
from torchrl_reg.regularizers.coefficients import as_coefficient, learnt_at_target


class PathConsistencyLoss(PolicyLoss):
    r"""``1/2 C_{t,n}^2`` over all sub-trajectories of 1 to ``rollout`` steps of ``[*B, T]`` sequences.

    .. math:: C_{t,n} = -V(s_t) + \gamma^n V(s_{t+n}) + \sum_{i<n} \gamma^i \left(r_{t+i} - \tau \ln \pi(a_{t+i})
        - \lambda \ln \frac{\pi(a_{t+i})}{\bar\pi(a_{t+i})}\right)

    ``lam = 0`` is PCL, ``lam > 0`` Trust-PCL with the lagged policy (the target parameters) as reference. The data may
    come from any policy, without importance weights. Each step's loss is the mean over the sub-trajectories that start
    at it; none crosses the end of an episode or a masked step, the value after a terminated step is 0 and that after a
    truncated one is bootstrapped.

    Args:
        actor_network: the policy; an actor with ``get_dist(tensordict)``.
        value_network: writes ``"state_value" [*B, T, 1]``; None for the unified form with one network, where
            ``V = (tau + lam) logsumexp(logits)`` of the policy's own logits (needs a
            :class:`~torchrl_reg.modules.MulticategoricalActor`).
        tau: temperature >= 0, in reward units; a number, or a :class:`~torchrl_reg.regularizers.Coefficient` to share.
            Schedulable: ``loss.tau = 0.01``.
        lam: weight >= 0 of the KL divergence to the lagged policy, in reward units. Schedulable.
        rollout: longest sub-trajectory, in steps.
        max_kl: adapt ``lam`` so that the mean KL divergence to the lagged policy stays at this budget (nats), starting
            from ``lam``; adds ``loss_lam`` and the parameter of a :class:`~torchrl_reg.regularizers.DualCoefficient`
            (``loss.lam_coefficient.log_value``). The published code searches ``lam`` over recent episode returns
            instead; this is the dual ascent of constrained policy optimization.
        delay_value: bootstrap on the lagged value network, without gradient (``use_target_values`` of the published
            code); by default on the online one, with its gradient.
        reduction, use_prioritized_weights, weight_reduction, diagnostics: see :class:`RegularizedLoss`.

    Returns (in a TensorDict): ``loss``, with ``max_kl`` also ``loss_lam``, and detached scalars ``td_error`` (mean
    absolute one-step residual), ``path_error`` (mean absolute residual of all), ``value``, ``log_pi`` (nats, of the
    stored actions), ``entropy`` (nats, where it has a closed form), ``kl`` (to the lagged policy, with ``lam`` or
    ``max_kl``), ``lam``, ``tau``. Writes the priority ``[*B, T, 1]``, each step's loss.

    Raises:
        ValueError: a coefficient out of range, an actor without ``get_dist``, a value network that is no TensorDict
            module, sequences shorter than ``rollout``, or rows that are none (at the first call).
        KeyError: the data lack the action as the actor stores it (at the first call).

    Source: Nachum et al., "Bridging the Gap Between Value and Policy Based RL", NeurIPS 2017, eqs. (18) to (22);
    Nachum et al., "Trust-PCL", ICLR 2018. The published code trains with the policy gradient divided by ``tau + lam``;
    this is the gradient of the loss as printed.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.modules import ValueOperator
    >>> from torchrl_reg.modules import MulticategoricalActor
    >>> from torchrl_reg.objectives import PathConsistencyLoss, PolyakTargetUpdate
    >>> actor = MulticategoricalActor(torch.nn.Linear(4, 2 * 11), low=[-1.0, -1.0], high=[1.0, 1.0], num_bins=11)
    >>> value = ValueOperator(torch.nn.Linear(4, 1), in_keys=["observation"])
    >>> loss = PathConsistencyLoss(actor, value, tau=0.1, lam=0.1, rollout=5).make_value_estimator(gamma=0.99)
    >>> target_update = PolyakTargetUpdate(loss, rate=0.01)
    >>> states = torch.randn(8, 11, 4)
    >>> data = actor(TensorDict({
    ...     "observation": states[:, :-1],
    ...     "next": {"observation": states[:, 1:], "reward": torch.randn(8, 10, 1),
    ...              "done": torch.zeros(8, 10, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 10, 1, dtype=torch.bool)}}, [8, 10]))
    >>> loss(data)["loss"].shape, data["td_error"].shape
    (torch.Size([]), torch.Size([8, 10, 1]))
    """

    coefficient_names = ("tau", "lam")
    follows_paths = True

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        value_network: TensorDictModuleBase | None,
        *,
        tau: float | Coefficient = 0.1,
        lam: float | Coefficient = 0.0,
        rollout: int = 10,
        max_kl: float | None = None,
        delay_value: bool = False,
        reduction: Reduction | None = "mean",
        use_prioritized_weights: bool | Literal["auto"] = "auto",
        weight_reduction: WeightReduction = "normalized",
        diagnostics: bool = True,
    ) -> None:
        super().__init__(
            loss_function="l2",
            reduction=reduction,
            use_prioritized_weights=use_prioritized_weights,
            weight_reduction=weight_reduction,
            diagnostics=diagnostics,
        )
        check_actor(actor_network)
        if isinstance(rollout, bool) or not isinstance(rollout, int) or rollout < 1:
            raise ValueError(f"rollout must be an integer >= 1 (steps), got {rollout!r}.")
        self.rollout, self.delay_value = rollout, check_flag(delay_value, "delay_value")
        additive = isinstance(actor_network, MulticategoricalActor)
        if value_network is None and (not additive or isinstance(actor_network, AutoregressiveMulticategoricalActor)):
            raise ValueError(
                "value_network=None (the unified form) needs a MulticategoricalActor, whose logits give the value, "
                f"got {type(actor_network).__name__}."
            )
        self._take_networks(actor_network, value_network, delay_actor=True, delay_value=delay_value)
        self._make_coefficients(tau, lam, max_kl)
        self.make_value_estimator()

    def _make_coefficients(self, tau: Any, lam: Any, max_kl: float | None) -> None:
        if max_kl is not None:
            check_number(max_kl, "max_kl", "nats", positive=True)
        device = self._default_device
        self.tau_coefficient = as_coefficient(tau, name="tau", check=check_kl_weight, device=device)
        self.lam_coefficient = learnt_at_target(
            lam, max_kl, target_name="max_kl", rises="above", name="lam", check=check_kl_weight, device=device
        )
        if not (self.tau_coefficient.is_on or self.lam_coefficient.is_on):
            raise ValueError("tau or lam must be > 0: without either the policy does not enter the loss, got 0 and 0.")

    def _loss_keys(self) -> list[str]:
        return ["loss", *(["loss_lam"] if self.lam_coefficient.is_learnt else [])]

    def _diagnostic_keys(self) -> list[str]:
        return [*super()._diagnostic_keys(), "path_error", *(["kl", "lam"] if self.lam_coefficient.is_on else [])]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """``loss`` (reduced) and detached diagnostics; writes the priority ``[*B, T, 1]``."""
        self._check_length(tensordict)
        check_single_steps(tensordict, self.tensor_keys, "path consistency")
        data, mask = self._clean(tensordict)
        actor, lagged_actor = self._bound(data, "actor_network")
        dist = distribution(actor.network, data)
        action = stored_action(data, self.tensor_keys.action)
        log_pi = at_least_float32(log_prob(dist, action, data.batch_size))
        reference, log_pi_reference = None, None
        if self.lam_coefficient.is_on:
            with torch.no_grad():
                reference = distribution(lagged_actor.network, data)
                log_pi_reference = at_least_float32(log_prob(reference, action, data.batch_size))
        lam, terms, rows = self._trust_region(dist, reference, mask)
        value, keys = self._value(data, dist, lam), self.tensor_keys
        residual, exists = path_consistency(
            data.get(("next", keys.reward)).squeeze(-1).to(log_pi.dtype),
            value,
            self._next_value(data, lam),
            log_pi,
            tau=self.tau,
            gamma=self.value_estimator.gamma,
            rollout=self.rollout,
            done=done_flag(data, keys).squeeze(-1),
            terminated=terminated_flag(data, keys).squeeze(-1),
            lam=lam,
            log_pi_reference=log_pi_reference,
            mask=mask,
        )
        counts = exists.sum(-1).clamp(min=1)
        elementwise = 0.5 * residual.square().sum(-1) / counts
        self._write_priority(tensordict, elementwise.detach().clone(), mask)  # not the loss itself
        if self.diagnostics:
            error = residual.detach().abs()
            rows |= {"td_error": error[..., 0], "path_error": error.sum(-1) / counts, "value": value, "log_pi": log_pi}
            entropy = closed_entropy(dist)
            rows |= {} if entropy is None else {"entropy": entropy}
        return self._output(data, {"loss": elementwise}, mask, rows, terms)

    def _value(self, tensordict: TensorDictBase, dist: Any, lam: Tensor) -> Tensor:
        if self.value_network is None:
            return (self.tau + lam) * at_least_float32(dist.log_normalizer)
        return self._state_value(self._bound(tensordict)[0], tensordict)

    def _next_value(self, data: TensorDictBase, lam: Tensor) -> Tensor:
        """``V`` of the state each step led to; not ``V`` shifted, which after a reset is another episode's."""
        unified = self.value_network is None
        bound = self._bound(data, "actor_network" if unified else "value_network")
        network, following = bound[1 if self.delay_value else 0], data.get("next")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.delay_value):
            if not unified:
                return self._state_value(network, following)
            return self._value(following, distribution(network.network, following), lam)

    def _trust_region(
        self, dist: Any, reference: Any, mask: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The current ``lam``, the loss ``-ln lam (KL - max_kl)`` of a learnt one, and the diagnostic rows."""
        lam, learnt = self.lam, self.lam_coefficient
        if reference is None or not (self.diagnostics or learnt.is_learnt):
            return lam, {}, {}
        with torch.no_grad():
            kl = kl_or_estimate(dist, reference)
        rows = {"kl": kl, "lam": lam.to(kl.dtype).expand_as(kl)}
        loss_lam = learnt.objective(batch_mean(kl, mask)) if learnt.is_learnt else None
        return lam, {} if loss_lam is None else {"loss_lam": loss_lam}, rows

    def _check_length(self, tensordict: TensorDictBase) -> None:
        length = tensordict.batch_size[-1] if tensordict.batch_dims else 0
        if length < self.rollout:
            raise ValueError(
                f"rollout={self.rollout} needs sequences [*B, T] of at least {self.rollout} steps, got batch size "
                f"{list(tensordict.batch_size)} (reshape what a slice sampler returns to [-1, T])."
            )

    def _next_state_keys(self) -> Sequence[NestedKey]:
        return (self.actor_network if self.value_network is None else self.value_network).in_keys
