"""Q(lambda) targets of a rollout, from the values that acted: learning without replay and without a target network.

Shapes: ``*B`` environments, ``T`` steps of each, ``A`` actions.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives.utils import register_value_estimator

from torchrl_reg.functional.munchausen import action_index, taken
from torchrl_reg.functional.returns import q_lambda_return
from torchrl_reg.objectives.binding import inner_module
from torchrl_reg.objectives.value.estimator import check_single_steps, done_flag, terminated_flag
from torchrl_reg.objectives.value.named import RegularizedTDLambdaEstimator
from torchrl_reg.objectives.value.registry import RegValueEstimators
from torchrl_reg.torchrl_compat import entry


@register_value_estimator(
    RegValueEstimators.REGULARIZED_QLAMBDA, default_kwargs={"gamma": 0.99, "lmbda": 0.65, "differentiable": False}
)
class RegularizedQLambdaEstimator(RegularizedTDLambdaEstimator):
    """Q(lambda) on rollouts ``[*B, T]``, once for each, from the Q-values that were recorded while acting.

    ``G_t = r_t + m_t + gamma (V(s_{t+1}) + lambda (G_{t+1} - V(s_{t+1}) - c_{t+1}))``, ``c_t = q(s_t, a_t) - V(s_t)``,
    where ``V`` is the regularizer's value and ``m_t`` the shaping's bonus. The correction ``c_t`` makes the
    regularized optimum the fixed point whatever acts: of the entropy it is ``tau ln pi(a_t|s_t)``, so this is soft
    TD(lambda), and as ``tau -> 0`` it becomes the corrected hard form, not Peng's. All in reward units.

    ``estimator(rollout)`` writes ``value_target [*B, T, 1]``; a :class:`~torchrl_reg.objectives.QLearningLoss` with
    this estimator reads it from minibatches of the rows, and needs neither rewards nor next states there. The network
    is called for the states after the rollout's last steps alone, and after steps at which a time limit ended an
    episode; everything else was recorded.

    Source: Gallici et al., "Simplifying Deep Temporal Difference Learning", ICLR 2025 (PQN), whose published form is
    ``correct=False`` with :class:`~torchrl_reg.regularizers.HardMax` and ``time_limits_end=True``; Harutyunyan et al.
    2016 for the correction. Ours with a regularizer or a shaping.

    Args:
        gamma, lmbda: discount and trace parameter in [0, 1].
        correct: correct the trace for the actions taken. False takes ``c_t`` to be their share of the cost, which is 0
            for the maximum: Peng's Q(lambda), biased low by every action that is not greedy.
        time_limits_end: drop the bootstrap where an episode is truncated, too.
        value_network, regularizer, shaping: see :class:`RegularizedTD0Estimator`.

    >>> import torch
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import QLearningLoss
    >>> loss = QLearningLoss(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)), delay_value=False)
    >>> type(loss.make_value_estimator("regularized_qlambda", gamma=0.9, lmbda=0.5).value_estimator).__name__
    'RegularizedQLambdaEstimator'
    """

    precomputed = True

    def __init__(self, *, correct: bool = True, time_limits_end: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.correct, self.time_limits_end = correct, time_limits_end

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase, **params: Any) -> TensorDictBase:
        """Write ``value_target [*B, T, 1]``."""
        tensordict.set(self.tensor_keys.value_target, self.value_estimate(tensordict, **params))
        return tensordict

    def value_estimate(  # type: ignore[override]
        self, tensordict: TensorDictBase, params: TensorDictBase | None = None, **_: Any
    ) -> Tensor:
        """The targets ``[*B, T, 1]``."""
        keys, regularizer = self.tensor_keys, self.regularizer
        check_single_steps(tensordict, keys, "a lambda-return")
        q = entry(tensordict, keys.action_value)
        if q is None:
            q = self._q_values(tensordict, params)
        terminated, done = terminated_flag(tensordict, keys).squeeze(-1), done_flag(tensordict, keys).squeeze(-1)
        ends = done | terminated
        dropped = ends if self.time_limits_end else terminated
        next_q = self._next_q(tensordict, q, ends, dropped, params)
        values, logs = regularizer.value_and_log_policy(torch.stack((q, next_q)))
        action = action_index(tensordict.get(keys.action), self.action_space, q.ndim - 1)
        correction = taken(q, action) - values[0] if self.correct else taken(regularizer.step_cost(logs[0]), action)
        reward = entry(tensordict, ("next", keys.reward)).squeeze(-1)
        if self.shaping is not None:
            reward = reward + self.shaping(q, logs[0], action, next_q=next_q, terminated=dropped)
        next_value = values[1].masked_fill(dropped, 0.0)
        return q_lambda_return(
            reward,
            next_value,
            correction,
            ends,
            gamma=self.gamma,
            lmbda=self.lmbda,  # type: ignore[arg-type]
        ).unsqueeze(-1)

    def _next_q(
        self, tensordict: TensorDictBase, q: Tensor, ends: Tensor, dropped: Tensor, params: TensorDictBase | None
    ) -> Tensor:
        """Q-values at s' ``[*B, T, A]``: those recorded one step later; of the network where an episode was cut."""
        next_q = q.roll(-1, -2)
        asks = ends.clone()
        asks[..., -1] = True
        asks &= ~dropped  # behind a termination nothing counts
        if bool(asks.any()):
            following = entry(tensordict, "next")
            states = {key: entry(following, key)[asks] for key in self.value_network.in_keys}
            inner = inner_module(self.value_network, self.tensor_keys.action_value) if params is None else None
            if inner is not None:  # a third of the cost
                asked = inner(*states.values())
            else:
                asked = self._q_values(TensorDict(states, [int(asks.sum())]), params)
            next_q[asks] = asked.to(q.dtype)
        return next_q
