"""The action prior and the inverse temperature of mutual-information regularization, and how both are learnt.

One :class:`ActionPrior` is handed to whoever needs it: the loss, the exploration module, an actor, the updates. It is a
module of its own, because ``.to()`` replaces buffers: a tensor held in two places would part, a module does not.

Shapes: ``*B`` batch, ``A`` actions, ``T`` time steps, ``N`` environments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from torchrl_reg.functional import averaged_prior, floored_log_prior, soft_policy
from torchrl_reg.functional.temperature import at_least_float32

PriorLike = Sequence[float] | Tensor


class ActionPrior(nn.Module):
    """A distribution ``rho`` over actions and the inverse temperature ``beta`` of ``pi(a|s) ~ rho(a) exp(beta q)``.

    Both are buffers in float64, whatever the networks compute in: rates of 1e-6 would be lost in half precision. Every
    owner saves them in its ``state_dict``. A ``copy.deepcopy`` of one owner gets a prior of its own; copy all owners
    together (``copy.deepcopy((loss, explorer))``) to keep them tied.

    Args:
        num_actions: A.
        probabilities: ``[A]``, non-negative, summing to one; None is uniform.
        beta: inverse temperature > 0, per unit of reward. ``prior.beta = 2.0`` changes it in place.
        floor: smallest probability before normalization, in (0, 1 / A): a prior of 0 could never grow again.
        device: of the buffers.

    Raises:
        ValueError: a probability, ``beta`` or ``floor`` out of range.

    Source: Grau-Moya, Leibfried, Vrancx, "Soft Q-Learning with Mutual-Information Regularization", ICLR 2019.

    >>> prior = ActionPrior(3, probabilities=[0.5, 0.25, 0.25], beta=2.0)
    >>> prior.beta = 3.0
    >>> prior.policy(torch.zeros(3)).tolist()
    [0.5, 0.25, 0.25]
    """

    log_prior: Tensor
    beta: Tensor

    def __init__(
        self,
        num_actions: int,
        *,
        probabilities: PriorLike | None = None,
        beta: float = 1.0,
        floor: float = 1e-6,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(num_actions, int) or num_actions < 1:
            raise ValueError(f"num_actions must be an integer >= 1, got {num_actions!r}.")
        if not 0 < floor < 1 / num_actions:
            raise ValueError(f"floor must be in (0, 1 / {num_actions}), got {floor!r}.")
        self.floor = floor
        rho = torch.full((num_actions,), 1 / num_actions, dtype=torch.float64)
        if probabilities is not None:
            rho = check_probabilities(probabilities, num_actions)
        self.register_buffer("log_prior", floored_log_prior(rho.log(), floor).to(device))
        self.register_buffer("beta", torch.tensor(check_beta(beta), dtype=torch.float64, device=device))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "log_prior" and name in self.__dict__.get("_buffers", ()):
            raise AttributeError(
                "log_prior cannot be replaced: others hold it, too; prior.assign(probabilities) sets it."
            )
        if name == "beta" and name in self.__dict__.get("_buffers", ()):
            # In place: a captured CUDA graph reads this memory. What is inside a tensor is not checked.
            self.beta.copy_(value if isinstance(value, Tensor) else torch.tensor(check_beta(value)))
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> ActionPrior:
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self._buffers[name]
            assert buffer is not None and moved is not None
            if moved.dtype != torch.float64:
                self._buffers[name] = buffer.to(moved.device)
        return self

    @property
    def num_actions(self) -> int:
        """A."""
        return self.log_prior.shape[-1]

    @torch.no_grad()
    def assign(self, probabilities: Tensor) -> None:
        """Set ``rho [A]`` in place, floored and normalized; not checked, which would wait for the device."""
        self.log_prior.copy_(self.floored(probabilities.to(self.log_prior).log()))

    def floored(self, logits: Tensor) -> Tensor:
        """Log-probabilities ``[*B, A]`` of ``logits [*B, A]``, with this prior's floor."""
        return floored_log_prior(logits, self.floor)

    def policy(self, q: Tensor, log_prior: Tensor | None = None) -> Tensor:
        """``pi [*B, A]`` of ``q [*B, A]``; ``log_prior`` (``[*B, A]``) stands in for the one held here."""
        return soft_policy(q, self.beta.reciprocal(), log_prior=self.log_prior if log_prior is None else log_prior)

    def greedy(self, q: Tensor, log_prior: Tensor | None = None) -> Tensor:
        """``argmax_a ln rho(a) + beta q(a)``, ``[*B]``; finite whatever ``beta q``, that of q if rho is uniform."""
        log_prior = self.log_prior if log_prior is None else log_prior
        q = at_least_float32(q)
        # In units of reward and without the normalizer, beside which small gaps of q would be rounded off.
        bonus = (log_prior - log_prior.amax(-1, keepdim=True)) / self.beta
        return (q - q.amax(-1, keepdim=True) + bonus.to(q.dtype)).argmax(-1)


class PriorUpdate(TensorDictModuleBase):
    """``rho <- (1 - rate) rho + rate pi(.|s)`` at every visited state, with the full policy, not the action taken.

    Call it on what the policy has just collected, ``[N, T]`` or ``[T]`` (time last, or the dimension named ``"time"``).
    A batch counts as its ``T x N`` steps in order of time; the ``N`` steps of one time count with their mean policy
    (:func:`~torchrl_reg.functional.averaged_prior`). ``pi`` is that of the prior at the start of the batch, so against
    updates one by one it is off by order ``(rate T N)^2``. Rows of a padded batch (``("collector", "mask")`` or
    ``"mask"`` false) count for nothing.

    Args:
        prior: updated in place.
        actor: writes the Q-values of the batch's states, without gradients and leaving the batch as it is; None reads
            those in the batch, which are the ones the actor chose by.
        rate: step size per environment step, in (0, 1].
        action_value_key: of the Q-values ``[*B, A]``.

    Raises:
        ValueError: ``rate`` outside (0, 1].

    >>> from tensordict import TensorDict
    >>> prior = ActionPrior(3, beta=2.0)
    >>> update = PriorUpdate(prior, rate=0.1)
    >>> _ = update(TensorDict({"action_value": torch.tensor([1.0, 0.0, 0.0]).expand(8, 5, 3)}, [8, 5]))
    >>> bool(prior.log_prior.exp()[0] > 0.5)
    True
    """

    def __init__(
        self,
        prior: ActionPrior,
        actor: TensorDictModuleBase | None = None,
        *,
        rate: float,
        action_value_key: NestedKey = "action_value",
    ) -> None:
        super().__init__()
        self.prior = prior
        self.__dict__["actor"] = actor  # not a submodule: its parameters belong to the loss
        self.rate = check_rate(rate)
        self.action_value_key = action_value_key
        self.in_keys = [action_value_key] if actor is None else list(actor.in_keys)
        self.out_keys: list[NestedKey] = []

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        source = tensordict if self.actor is None else self.actor(tensordict.select(*self.actor.in_keys))
        pi = self.prior.policy(source.get(self.action_value_key))
        time = _time_dim(tensordict)
        steps = tensordict.batch_size[time] if tensordict.batch_dims else 1
        pi = pi.movedim(time, 0) if tensordict.batch_dims else pi
        pi = pi.reshape(steps, -1, pi.shape[-1])
        mask = _mask(tensordict)
        if mask is not None:
            mask = mask.movedim(time, 0).reshape(steps, -1)
        self.prior.assign(averaged_prior(self.prior.log_prior.exp(), pi, self.rate, mask=mask))
        return tensordict


class InverseTemperatureUpdate(TensorDictModuleBase):
    """``beta <- (1 - rate) beta + rate / max(L, loss_floor)``, clipped to ``[beta_min, beta_max]``.

    ``L`` is the mean squared TD error, read from what the loss (or a recipe's ``update``) returns: always the plain
    square, whatever distance the loss minimizes. Huber, a factor 1/2 or a sum would each change beta's scale.
    The first TD errors are small or huge and say nothing of the noise, so both clips matter.

    Args:
        priors: whose ``beta`` is changed in place, each by itself.
        rate: step size per call, in (0, 1].
        loss_floor: smallest L > 0.
        beta_min, beta_max: bounds of beta, ``0 < beta_min <= beta_max``.
        squared_td_error_key: where L is.

    Raises:
        ValueError: a value out of range.

    Source: Grau-Moya et al. 2019 (MIRL), after the adaptive temperature of Leibfried et al. 2017; the clips are ours.

    >>> from tensordict import TensorDict
    >>> prior = ActionPrior(3, beta=1.0)
    >>> _ = InverseTemperatureUpdate(prior, rate=0.5)(TensorDict({"squared_td_error": torch.tensor(0.25)}))
    >>> float(prior.beta)
    2.5
    """

    def __init__(
        self,
        *priors: ActionPrior,
        rate: float,
        loss_floor: float = 1e-6,
        beta_min: float = 1e-2,
        beta_max: float = 1e3,
        squared_td_error_key: NestedKey = "squared_td_error",
    ) -> None:
        super().__init__()
        if not priors:
            raise ValueError("priors must name at least one ActionPrior, got none.")
        if not (math.isfinite(loss_floor) and loss_floor > 0):
            raise ValueError(f"loss_floor must be a finite number > 0, got {loss_floor!r}.")
        if not 0 < beta_min <= beta_max < math.inf:
            raise ValueError(f"The bounds must satisfy 0 < beta_min <= beta_max, got {beta_min!r} and {beta_max!r}.")
        self.priors = nn.ModuleList(priors)
        self.rate = check_rate(rate)
        self.loss_floor, self.beta_min, self.beta_max = loss_floor, beta_min, beta_max
        self.squared_td_error_key = squared_td_error_key
        self.in_keys, self.out_keys = [squared_td_error_key], list[NestedKey]()

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        loss = tensordict.get(self.squared_td_error_key).double()
        goal = loss.clamp(min=self.loss_floor).reciprocal()
        for prior in self.priors:
            assert isinstance(prior, ActionPrior)
            # A loss that is not finite (every row masked, or diverged) teaches beta nothing.
            new = torch.where(loss.isfinite(), torch.lerp(prior.beta, goal, self.rate), prior.beta)
            prior.beta.copy_(new.clamp(self.beta_min, self.beta_max))
        return tensordict


def check_beta(beta: float) -> float:
    """Return ``beta`` if it is a finite number > 0, else raise ValueError."""
    if not (isinstance(beta, (int, float)) and math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be a finite number > 0 (the inverse temperature), got {beta!r}.")
    return float(beta)


def check_rate(rate: float, name: str = "rate") -> float:
    """Return ``rate`` if it lies in (0, 1], else raise ValueError."""
    if not (isinstance(rate, (int, float)) and 0 < rate <= 1):
        raise ValueError(f"{name} must be in (0, 1], got {rate!r}.")
    return float(rate)


def check_probabilities(probabilities: PriorLike, num_actions: int) -> Tensor:
    """``probabilities`` as a float64 ``[A]``, if they are a distribution over that many actions, else ValueError."""
    rho = torch.as_tensor(probabilities, dtype=torch.float64).detach().cpu()
    if rho.shape != (num_actions,):
        raise ValueError(f"The prior must have a probability for each of {num_actions} actions, got {rho.tolist()}.")
    if not (rho >= 0).all():
        raise ValueError(f"The prior must not have negative probabilities, got {rho.tolist()}.")
    if not abs(float(rho.sum()) - 1) <= 1e-6:
        raise ValueError(f"The prior's probabilities must sum to one, got {rho.tolist()}, which sum to {rho.sum():g}.")
    return rho


def _mask(tensordict: TensorDictBase) -> Tensor | None:
    """Rows that are not padding, ``batch_size``."""
    for key in (("collector", "mask"), "mask"):
        mask = tensordict.get(key, None)
        if mask is not None:
            return mask.reshape(tensordict.batch_size).bool()
    return None


def _time_dim(tensordict: TensorDictBase) -> int:
    names = tensordict.names if tensordict.batch_dims else []
    return names.index("time") if "time" in names else max(tensordict.batch_dims - 1, 0)
