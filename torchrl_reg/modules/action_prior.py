"""Learning an action prior from the policy at the visited states.

Shapes: ``*B`` batch, ``A`` actions, ``T`` time steps, ``N`` environments.
"""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_reg.functional import averaged_prior
from torchrl_reg.regularizers.action_prior import ActionPrior
from torchrl_reg.regularizers.checks import check_rate
from torchrl_reg.regularizers.ranks import gathered_from_ranks, in_process_group


class PriorUpdate(TensorDictModuleBase):
    """``rho <- (1 - rate) rho + rate pi(.|s)`` at every visited state, with the full policy, not the action taken.

    Call it on what the policy has just collected, ``[N, T]`` or ``[T]`` (time last, or the dimension named ``"time"``).
    A batch counts as its ``T x N`` steps in order of time; the ``N`` steps of one time count with their mean policy
    (:func:`~torchrl_reg.functional.averaged_prior`). ``pi`` uses the prior from the start of the batch, so the result
    differs from step-by-step updates by order ``(rate T N)^2``. Rows of a padded batch (``("collector", "mask")`` or
    ``"mask"`` false) are ignored. The environments of all ranks of a process group count as those of one batch.

    Source: Grau-Moya et al. 2019 (MIRL).

    Args:
        prior: updated in place.
        actor: computes the Q-values at the batch's states, without gradients and without changing the batch; None reads
            those in the batch, by which the actor chose its actions.
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
        if in_process_group():
            counted = pi.new_ones(pi.shape[:2]) if mask is None else mask.to(pi.dtype)
            pi = gathered_from_ranks(torch.cat((pi, counted.unsqueeze(-1)), -1), 1)
            pi, mask = pi[..., :-1], pi[..., -1] > 0
        self.prior.assign(averaged_prior(self.prior.log_prior.exp(), pi, self.rate, mask=mask))
        return tensordict


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
