"""VIREL: variational EM with an actor, whose temperature is the Bellman error of the critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor
from torchrl.objectives.utils import distance_loss

from torchrl_reg.objectives.actor_critic import (
    ActorCriticLoss,
    check_actor,
    distribution,
    reparametrized,
)
from torchrl_reg.objectives.base import LossFunction, batch_mean
from torchrl_reg.regularizers import BellmanErrorCoefficient, Coefficient
from torchrl_reg.regularizers.checks import check_number, check_rate, check_temperature


class VIRELLoss(ActorCriticLoss):
    r"""An actor-critic that maximizes :math:`L = E_s[E_\pi[Q / \epsilon] + H(\pi)]` at the critic's Bellman error.

    .. math:: \epsilon = \frac{c}{p} E |r + \gamma V(s') - Q(s, a)|^p, \qquad
              J_\pi = E[\epsilon \ln \pi(a|s) - Q(s, a)]

    The critic learns the values of the policy *without* an entropy term, ``V(s') = min Q_target(s', a')`` at ``a'`` of
    the policy (or a value network's, if one is given). So the values give no reason to explore: the policy is random as
    long as the critic is wrong, and becomes deterministic as the critic gets it right.

    The temperature follows what :meth:`observe` is given. ``loss.observe(out)`` after each update takes the error of
    that batch into a running average; ``loss.observe(loss.bellman_error(large_batch))`` with ``rate=1`` is the released
    form, which estimates it afresh on 4096 transitions. Both are biased: upwards by the variance of the target where
    transitions or actions are random, downwards because the critic was fitted to the same data, and towards the states
    in the replay buffer. An average of ``1 / rate`` updates also lags; one batch alone is noisy, by ``sqrt(2 / B)`` of
    itself for Gaussian errors.

    Without ``beta_scale`` the temperature stays ``tau``. **Names**: in the released code ``beta.py`` adapts it, and
    ``virel.py``, which never calls its method for that, keeps it at 1.

    ``mode="em"`` takes the literal gradients ``epsilon grad_theta L`` (E-step, the same as above) and ``epsilon^2
    grad_omega L = epsilon E[grad Q] - E[Q] grad epsilon`` (M-step), the Bellman error being that of the online critic,
    with the gradient of both its ends. It is meant for study; the value of that ``loss_qvalue`` means nothing.
    Where ``E[Q] < 0`` the M-step *raises* the error.

    Args:
        actor_network: the policy, with reparametrized samples: :func:`~torchrl_reg.modules.box_actor`,
            :class:`~torchrl_reg.modules.FlowActor`.
        qvalue_network: a critic, or a list of them (twin critics: the smaller value counts).
        value_network: optional, writes ``"state_value" [*B, 1]``: the critics then bootstrap on its target, and it
            learns ``min Q(s, a)`` at ``a`` of the policy, the source's form.
        tau: the temperature, in reward units, initial or fixed; or a coefficient. Schedulable.
        beta_scale: ``c``, in reward units to the power ``1 - p``; None keeps ``tau``.
        exponent: ``p >= 1``. At 1 the policy does not depend on the scale of the rewards.
        rate: step size of the running average, per :meth:`observe`; 1 has no memory.
        tau_min: floor of the temperature > 0.
        tau_max: its upper bound.
        mode: ``"td"`` or ``"em"``.
        error_network: on whose value the Bellman error bootstraps: ``"target"``, as the critics do, or ``"online"``,
            the released form.
        loss_function, reduction, use_prioritized_weights, weight_reduction, diagnostics: see :class:`ActorCriticLoss`.

    Returns (in a TensorDict): ``loss_actor``, ``loss_qvalue``, with a value network ``loss_value``; the detached
    ``bellman_error`` (mean of ``|td_error|^p``, of ``error_network``); and detached scalars ``td_error`` (mean
    absolute), ``value`` (of the policy's actions), ``entropy`` (nats, estimated from one action per state), ``tau``.
    Writes the priority, the largest squared TD error of the critics ``[*B, 1]``.

    Raises:
        ValueError: a coefficient out of range, ``mode="em"`` without ``beta_scale`` or with a value network, an actor
            without reparametrized samples (at the first call), critics that do not read the action.

    Source: Fellows, Mahajan, Rudner, Whiteson, "VIREL: A Variational Inference Framework for Reinforcement Learning",
    NeurIPS 2019. The released code's penalties on mean and log-scale (1e-3 of their squares) are not here.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.modules import MLP, ValueOperator
    >>> from torchrl_reg.modules import gaussian_actor
    >>> from torchrl_reg.objectives import PolyakTargetUpdate, VIRELLoss
    >>> actor = gaussian_actor(torch.nn.Linear(4, 4), low=[-1.0] * 2, high=[1.0] * 2)
    >>> critics = [ValueOperator(MLP(in_features=6, out_features=1), in_keys=["observation", "action"]) for _ in "ab"]
    >>> loss = VIRELLoss(actor, critics, beta_scale=0.01, rate=0.5).make_value_estimator(gamma=0.99)
    >>> target_update = PolyakTargetUpdate(loss, rate=0.005)
    >>> data = actor(TensorDict({
    ...     "observation": torch.randn(8, 4),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8]))
    >>> out = loss(data)
    >>> loss.observe(out)
    >>> bool((loss.tau - (0.5 + 0.5 * 0.01 / 2 * out["bellman_error"])).abs() < 1e-6)
    True
    """

    def __init__(
        self,
        actor_network: Any,
        qvalue_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        value_network: TensorDictModuleBase | None = None,
        *,
        tau: float | Coefficient = 1.0,
        beta_scale: float | None = None,
        exponent: float = 2.0,
        rate: float = 0.01,
        tau_min: float = 1e-4,
        tau_max: float = 1e30,
        mode: Literal["td", "em"] = "td",
        error_network: Literal["target", "online"] = "target",
        loss_function: LossFunction = "l2",
        **kwargs: Any,
    ) -> None:
        check_actor(actor_network)
        self._check_mode(mode, beta_scale, value_network)
        if error_network not in ("target", "online"):
            raise ValueError(f"error_network must be 'target' or 'online', got {error_network!r}.")
        tau = learnt_temperature(tau, beta_scale, exponent=exponent, rate=rate, tau_min=tau_min, tau_max=tau_max)
        super().__init__(actor_network, qvalue_network, value_network, tau=tau, loss_function=loss_function, **kwargs)
        self.exponent, self.beta_scale, self.tau_min, self.mode = float(exponent), beta_scale, tau_min, mode
        self.error_network = error_network
        self.make_value_estimator()

    def _loss_keys(self) -> list[str]:
        return [*super()._loss_keys(), *([] if self.value_network is None else ["loss_value"]), "bellman_error"]

    def _diagnostic_keys(self) -> list[str]:
        return [*super()._diagnostic_keys(), "entropy"]

    @staticmethod
    def _check_mode(mode: str, beta_scale: float | None, value_network: Any) -> None:
        if mode not in ("td", "em"):
            raise ValueError(f"mode must be 'td' or 'em', got {mode!r}.")
        if mode == "em" and beta_scale is None:
            raise ValueError("beta_scale must be given where mode='em' differentiates the temperature, got None.")
        if mode == "em" and value_network is not None:
            raise ValueError("value_network must be None where mode='em', got one.")

    def observe(self, statistic: Tensor | Mapping[str, Tensor] | TensorDictBase | float) -> None:
        """Let the temperature follow a Bellman error: what :meth:`bellman_error` or a forward pass returned.

        A fixed temperature stays.
        """
        if isinstance(statistic, Mapping | TensorDictBase):
            statistic = statistic["bellman_error"]
        self.tau_coefficient.observe(statistic)

    @torch.no_grad()
    def bellman_error(self, tensordict: TensorDictBase) -> Tensor:
        """``E |r + gamma V(s') - Q(s, a)|^p`` over a batch of any size; ``tensordict`` is left as it was."""
        data, mask = self._clean(tensordict)
        critics, prediction = self._predicted(data)
        online = critics if self.error_network == "online" else None
        return self._mean_error(self._target(data, online) - prediction, mask)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The losses and detached scalars; writes the priority ``[*B, 1]``."""
        data, mask = self._clean(tensordict)
        actor, _ = self._bound(data, "actor_network")
        critics, prediction = self._predicted(data)
        action, log_pi = reparametrized(distribution(actor.network, data), data.batch_size)
        q = self._q(self._detached_critics(data), data, action).amin(0)

        target = self._target(data, critics if self.mode == "em" else None)
        loss_qvalue, td_error = self._critic_loss(tensordict, prediction, target.detach(), mask)
        of_error = td_error if self.error_network == "target" else self._target(data, critics) - prediction
        error, tau = self._mean_error(of_error, mask), self.tau
        if self.mode == "em":
            tau, loss_qvalue = self._literal_m_step(target - prediction, self._q(critics, data, action.detach()), mask)
        losses = {"loss_qvalue": loss_qvalue, "loss_actor": tau.to(q.dtype) * log_pi - q}
        if self.value_network is not None:
            bound, _ = self._bound(data, "value_network")
            value = self._state_value(bound, data)
            losses["loss_value"] = distance_loss(value, q.detach().to(value.dtype), self.loss_function)
        rows = {"td_error": td_error.abs().mean(0), "value": q, "entropy": -log_pi}
        return self._output(data, losses, mask, rows, {"bellman_error": error}, weighted=["loss_qvalue"])

    def _target(self, data: TensorDictBase, online: Any = None) -> Tensor:
        """``r + gamma V(s') [*B]``; given ``online`` critics, of the online networks, with the critics' gradient."""
        following = data.get("next")
        with torch.no_grad():
            if self.value_network is not None:
                bound, delayed = self._bound(data, "value_network")
                value_network = delayed if online is None else bound
                return self._one_step_target(data, self._state_value(value_network, following))
            actor, _ = self._bound(data, "actor_network")
            action = distribution(actor.network, following).sample()
            if online is None:
                _, critics = self._bound(data, "qvalue_network")
                return self._one_step_target(data, self._q(critics, following, action).amin(0))
        return self._one_step_target(data, self._q(online, following, action).amin(0))

    def _mean_error(self, td_error: Tensor, mask: Tensor | None) -> Tensor:
        """Mean of ``|td_error [C, *B]|^p``."""
        return batch_mean(td_error.detach().abs().pow(self.exponent).mean(0), mask)

    def _literal_m_step(self, td_error: Tensor, q: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The temperature of this batch, and rows ``[*B]`` whose mean has the gradient ``-epsilon^2 grad_omega L``."""
        error = td_error.abs().pow(self.exponent).mean(0)
        scale = self.beta_scale / self.exponent  # type: ignore[operator]
        tau = (scale * batch_mean(error.detach(), mask)).clamp(min=self.tau_min)
        value = batch_mean(q.mean(0).detach(), mask)
        return tau, value * scale * error - tau * q.mean(0)


def learnt_temperature(
    tau: float | Coefficient,
    beta_scale: float | None,
    *,
    exponent: float,
    rate: float,
    tau_min: float,
    tau_max: float = 1e30,
) -> Coefficient:
    """The coefficient behind VIREL's temperature: ``beta_scale / exponent`` of an error, or fixed.

    Raises:
        ValueError: a value out of range.
    """
    check_number(exponent, "exponent", "the power of the Bellman error", positive=True)
    check_number(tau_min, "tau_min", "the floor of the temperature, in reward units", positive=True)
    check_rate(rate)  # also where a fixed temperature has no use for it
    if not exponent >= 1:
        raise ValueError(f"exponent must be >= 1, got {exponent!r}.")
    if isinstance(tau, Coefficient):
        if beta_scale is not None:
            raise ValueError(f"beta_scale must be None where tau is a coefficient already, got {beta_scale!r}.")
        return tau
    if beta_scale is None:
        return Coefficient(tau, name="tau", check=check_temperature)
    check_number(beta_scale, "beta_scale", "the temperature over the Bellman error", positive=True)
    return BellmanErrorCoefficient(
        max(float(check_temperature(tau)), tau_min),
        rate=rate,
        scale=beta_scale / exponent,
        low=tau_min,
        high=tau_max,
        error_floor=1e-30,
        name="tau",
        check=check_temperature,
    )
