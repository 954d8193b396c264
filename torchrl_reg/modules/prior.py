"""Action priors in acting: learning one from the visited states, and exploring by it.

Shapes: ``*B`` batch, ``A`` actions, ``T`` time steps, ``N`` environments.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import TensorSpec
from torchrl.modules import EGreedyModule

from torchrl_reg.compat import find_action_space
from torchrl_reg.functional import averaged_prior
from torchrl_reg.modules.acting import State
from torchrl_reg.modules.n_step import time_dim
from torchrl_reg.modules.q_actors import explores, sample_action
from torchrl_reg.regularizers.checks import check_rate
from torchrl_reg.regularizers.coefficients import gathered_from_ranks, in_process_group
from torchrl_reg.regularizers.policies import SavedArguments
from torchrl_reg.regularizers.prior import ActionPrior


class PriorUpdate(TensorDictModuleBase):
    """``rho <- (1 - rate) rho + rate pi(.|s)`` at every visited state, with the full policy, not the action taken.

    Call it on each collected batch, ``[N, T]`` or ``[T]`` (time last, or the dimension named ``"time"``).
    A batch counts as its ``T x N`` steps in order of time; the ``N`` steps of one time count with their mean policy
    (:func:`~torchrl_reg.functional.averaged_prior`). ``pi`` uses the prior from the start of the batch, so the result
    differs from step-by-step updates by order ``(rate T N)^2``. Rows of a padded batch (``("collector", "mask")`` or
    ``"mask"`` false) are ignored. The environments of all ranks of a process group count as those of one batch.

    Source: Grau-Moya et al. 2019 (MIRL).

    Args:
        prior: updated in place.
        actor: computes the Q-values at the batch's states, without gradients and without changing the batch; None: they
            are in the batch, written when the actor chose its actions.
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
        time = time_dim(tensordict)
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


class PriorEGreedyModule(SavedArguments, EGreedyModule):
    """Greedy in ``pi ~ rho exp(beta q)``, so in ``ln rho(a) + beta q(s, a)``; with probability eps, ``a ~ rho``.

    It replaces TorchRL's :class:`~torchrl.modules.EGreedyModule`, which takes the greedy action of q alone and explores
    uniformly. Under deterministic exploration it is greedy, prior included, and never explores.

    Args:
        spec: action spec (``Categorical`` or ``OneHot``), which sets the encoding of actions.
        prior: shared, not copied.
        eps_init, eps_end, annealing_num_steps: as for :class:`~torchrl.modules.EGreedyModule`; ``step`` takes any
            number of frames at once.
        action_key, action_value_key: keys of the action (output) and of the ``[*B, A]`` Q-values (input).
        action_mask_key: allowed actions ``[*B, A]``; the prior is renormalized over them.
        log_prior_key: key of a state-dependent log-prior (logits ``[*B, A]``), used instead of ``prior``'s.
        device: of the exploration's buffers.

    Raises:
        ValueError: a spec of another kind, or of another number of actions than the prior's.

    Source: Grau-Moya et al. 2019 (MIRL), the behaviour policy.

    >>> from tensordict import TensorDict
    >>> from tensordict.nn import TensorDictSequential
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> prior = ActionPrior(3, beta=2.0)
    >>> actor = QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3))
    >>> explorer = TensorDictSequential(actor, PriorEGreedyModule(Categorical(3), prior, eps_init=0.1))
    >>> explorer(TensorDict({"observation": torch.randn(8, 4)}, [8]))["action"].shape
    torch.Size([8])
    """

    def __init__(
        self,
        spec: TensorSpec,
        prior: ActionPrior,
        eps_init: float = 1.0,
        eps_end: float = 0.1,
        annealing_num_steps: int = 1000,
        *,
        action_key: NestedKey = "action",
        action_value_key: NestedKey = "action_value",
        action_mask_key: NestedKey | None = None,
        log_prior_key: NestedKey | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            spec,
            eps_init,
            eps_end,
            annealing_num_steps,
            action_key=action_key,
            action_mask_key=action_mask_key,
            device=torch.device(device) if device is not None else None,
        )
        leaf = self.spec[action_key]
        encoding = find_action_space(leaf)
        if encoding not in ("categorical", "one_hot"):
            raise ValueError(f"spec must be that of categorical or one-hot actions, got {type(leaf).__name__}.")
        if leaf.space.n != prior.num_actions:
            raise ValueError(f"The prior must be over the {leaf.space.n} actions of spec, got {prior.num_actions}.")
        self._one_hot = encoding == "one_hot"
        self._dtype = leaf.dtype
        self.prior = prior
        self.action_value_key = action_value_key
        self.log_prior_key = log_prior_key
        self.in_keys = [k for k in (action_value_key, action_mask_key, log_prior_key) if k is not None]

    def step(self, frames: int = 1) -> None:
        """Anneals eps by ``frames`` frames."""
        per_frame = (self.eps_init - self.eps_end) / self.annealing_num_steps
        self.eps.copy_(torch.maximum(self.eps_end, self.eps - frames * per_frame))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set(self.action_key, self._action(tensordict))

    def plain(self, state: State) -> None:
        """:meth:`forward` on a dict of tensors."""
        state[self.action_key] = self._action(state)

    def _action(self, state: Any) -> Tensor:
        q = state[self.action_value_key]
        log_prior = self.prior.log_prior
        if self.log_prior_key is not None:
            log_prior = self.prior.floored(state[self.log_prior_key])
        if self.action_mask_key is not None:
            allowed = state[self.action_mask_key]
            q = q.masked_fill(~allowed, torch.finfo(q.dtype).min)
            log_prior = log_prior.expand(q.shape).masked_fill(~allowed, -torch.inf)
        action = self.prior.greedy(q, log_prior)
        if explores():
            random = torch.rand(action.shape, device=q.device) < self.eps.to(q.device)
            action = torch.where(random, sample_action(log_prior.softmax(-1).expand(q.shape)), action)
        return self._encoded(action, state, q)

    def _encoded(self, action: Tensor, state: Any, q: Tensor) -> Tensor:
        if self._one_hot:
            return torch.nn.functional.one_hot(action, q.shape[-1]).to(self._dtype)
        before: Any = state.get(self.action_key, None)  # an actor may write [*B, 1]
        shape = action.shape if before is None else before.shape
        return action.reshape(shape).to(self._dtype)
