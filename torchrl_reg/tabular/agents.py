r"""Q-learning, SQL, SQL_m and MIRL from samples, as one family: many independent agents learn side by side.

With :math:`\pi_i(a|s) \propto \rho_i(a) e^{\beta_i q(s,a)}` and after step i from s by a to s' at reward r,

.. math::
    q(s, a) &\leftarrow (1 - \alpha_q) q(s, a) + \alpha_q \left( r + \gamma \frac{1}{\beta_i} \ln \sum_{a'} \rho(a')
    e^{\beta_i q(s', a')} \right) \\
    \rho &\leftarrow (1 - \alpha_\rho) \rho + \alpha_\rho \pi_i(\cdot|s), \qquad \beta_i = \beta_0 + c i

acting by :math:`\arg\max_a \pi_i(a|s)`, or with probability epsilon by :math:`a \sim \rho_i`. MIRL is all of this. The
others keep a uniform prior somewhere (:data:`METHODS`).

Source: Grau-Moya et al. 2019 (MIRL). Shapes: ``B`` agents, ``S`` states, ``A`` actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from torchrl_reg.tabular.mdp import TabularMDP

_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Method:
    """The differences between the agents.

    Args:
        soft: the target takes the prior-weighted soft maximum of the next action values, not their maximum.
        prior_in_target: that prior is the learnt one; otherwise it is uniform.
        prior_in_behaviour: the learnt prior also weights the policy and draws the exploring actions; otherwise both
            are uniform, so the agent acts epsilon-greedily in its action values.

    Example:
        >>> METHODS["sql"]
        Method(soft=True, prior_in_target=False, prior_in_behaviour=False)
    """

    soft: bool
    prior_in_target: bool
    prior_in_behaviour: bool


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "ql": Method(soft=False, prior_in_target=False, prior_in_behaviour=False),
        "sql": Method(soft=True, prior_in_target=False, prior_in_behaviour=False),
        "sql_m": Method(soft=True, prior_in_target=False, prior_in_behaviour=True),
        "mirl": Method(soft=True, prior_in_target=True, prior_in_behaviour=True),
    }
)
"""Q-learning, soft Q-learning, soft Q-learning with MIRL's behaviour, and MIRL.

Source: Grau-Moya et al. 2019 (MIRL), who compare them.
"""


class TabularAgents:
    r"""``B`` independent agents of the family, each with its own method and, if wanted, its own settings.

    A setting is one number for all agents or a tensor ``[B]``. The learnt prior belongs to the acting policy: SQL_m
    learns it although its target does not use it. Q-learning and SQL leave it uniform. ``beta_0 + beta_growth * i``
    counts the updates i from 1, so ``beta_0 = 0`` is the published schedule and ``beta_growth = 0`` a constant.

    The agents share one random generator, so what one agent does depends on how many others there are, not on their
    values.

    Args:
        methods: a name of :data:`METHODS` for each agent.
        num_states: number of states S.
        num_actions: number of actions A.
        gamma: discount factor in [0, 1].
        q_rate: step size ``alpha_q`` of the action values, in (0, 1].
        prior_rate: step size ``alpha_rho`` of the prior, in (0, 1].
        beta_growth: growth ``c >= 0`` of the inverse temperature per update, in 1 / reward units.
        beta_0: inverse temperature >= 0 before the first update; it or ``beta_growth`` must be positive.
        epsilon: probability of exploring, in [0, 1].
        seed: seed of the generator.

    Attributes:
        q: action values ``[B, S, A]``, float64, 0 at first.
        prior: learnt priors ``[B, A]``, uniform at first.
        updates: number of updates made.

    Raises:
        ValueError: if a method is unknown or a setting out of range.

    Example:
        >>> agents = TabularAgents(["ql", "mirl"], num_states=3, num_actions=2, gamma=0.9, seed=0)
        >>> state, next_state = torch.tensor([0, 0]), torch.tensor([1, 1])
        >>> action = agents.act(state)
        >>> agents.learn(state, action, torch.ones(2), next_state, torch.tensor([False, False]))
        >>> agents.q.amax((1, 2)).tolist()
        [0.1, 0.1]
    """

    def __init__(
        self,
        methods: Sequence[str],
        num_states: int,
        num_actions: int,
        *,
        gamma: float,
        q_rate: float | Tensor = 0.1,
        prior_rate: float | Tensor = 0.01,
        beta_growth: float | Tensor = 1e-3,
        beta_0: float | Tensor = 0.0,
        epsilon: float | Tensor = 0.1,
        seed: int = 0,
    ) -> None:
        for name in methods:
            if name not in METHODS:
                raise ValueError(f"methods must be among {', '.join(METHODS)}, got {name!r}.")
        if not methods:
            raise ValueError("methods must name at least one agent, got none.")
        self._rows = torch.arange(len(methods))
        self.gamma = gamma
        self.q_rate = self._per_agent("q_rate", q_rate)
        self.prior_rate = self._per_agent("prior_rate", prior_rate)
        self.beta_growth = self._per_agent("beta_growth", beta_growth)
        self.beta_0 = self._per_agent("beta_0", beta_0)
        self.epsilon = self._per_agent("epsilon", epsilon)
        self._check()
        kinds = [METHODS[name] for name in methods]
        self._soft = torch.tensor([kind.soft for kind in kinds])
        self._prior_in_target = torch.tensor([kind.prior_in_target for kind in kinds]).unsqueeze(-1)
        learns_prior = torch.tensor([kind.prior_in_behaviour for kind in kinds])
        self._prior_step = torch.where(learns_prior, self.prior_rate, 0.0).unsqueeze(-1)
        self._generator = torch.Generator().manual_seed(seed)
        self.updates = 0
        self.q = torch.zeros(len(methods), num_states, num_actions, dtype=torch.float64)
        self.prior = torch.full((len(methods), num_actions), 1 / num_actions, dtype=torch.float64)
        self._log_prior = self._uniform_log_prior = self.prior.log()

    @property
    def beta(self) -> Tensor:
        """Inverse temperature used by the next update ``[B]``, in 1 / reward units."""
        return self.beta_0 + self.beta_growth * (self.updates + 1)

    def policy(self, state: Tensor) -> Tensor:
        """Probabilities ``pi_i(.|s)`` ``[B, A]`` in each agent's ``state`` ``[B]``; Q-learning's are greedy."""
        q = self.q[self._rows, state]
        greedy = torch.where(q == q.amax(-1, keepdim=True), 0.0, -torch.inf)
        return torch.where(self._soft.unsqueeze(-1), self._logits(q), greedy).softmax(-1)

    def act(self, state: Tensor) -> Tensor:
        """Actions ``[B]`` in each agent's ``state`` ``[B]``: ``argmax pi_i`` (ties at random), or from the prior."""
        u = torch.rand(3, *self.prior.shape, generator=self._generator, dtype=torch.float64)
        logits = self._logits(self.q[self._rows, state])
        best = logits == logits.amax(-1, keepdim=True)
        greedy = torch.where(best, u[0], -1.0).argmax(-1)
        # Of independent exponential clocks with rates rho, that of a rings first with probability rho(a).
        exploring = (u[1].log() / self.prior.clamp(min=_TINY)).argmax(-1)
        return torch.where(u[2, :, 0] < self.epsilon, exploring, greedy)

    def greedy_actions(self) -> Tensor:
        """Each agent's ``argmax pi_i`` in every state ``[B, S]``; the first of equals."""
        return (self._log_prior.unsqueeze(1) + self.beta.view(-1, 1, 1) * self.q).argmax(-1)

    def learn(self, state: Tensor, action: Tensor, reward: Tensor, next_state: Tensor, terminated: Tensor) -> None:
        """One update of every agent with its transition; every argument is ``[B]``.

        Where ``terminated``, nothing is bootstrapped. The prior moves to the whole policy of ``state``, as it was
        before the update of ``q``.
        """
        policy = self._logits(self.q[self._rows, state]).softmax(-1)
        v = self._value(self.q[self._rows, next_state]).masked_fill(terminated, 0.0)
        error = reward + self.gamma * v - self.q[self._rows, state, action]
        self.q[self._rows, state, action] += self.q_rate * error
        self.prior = self.prior + self._prior_step * (policy - self.prior)
        # An action whose probability underflows must not be lost: the policy could never return to it.
        self._log_prior = self.prior.clamp(min=_TINY).log()
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """All that changes: action values, priors, the count of updates and the generator."""
        generator = self._generator.get_state()
        return {"q": self.q.clone(), "prior": self.prior, "updates": self.updates, "generator": generator}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a :meth:`state_dict`."""
        self.q, self.prior, self.updates = state["q"].clone(), state["prior"], state["updates"]
        self._log_prior = self.prior.clamp(min=_TINY).log()
        self._generator.set_state(state["generator"])

    def _value(self, q: Tensor) -> Tensor:
        """Value ``[B]`` of action values ``[B, A]`` in the target; logsumexp subtracts the maximum first."""
        log_prior = torch.where(self._prior_in_target, self._log_prior, self._uniform_log_prior)
        beta = self.beta
        soft = torch.logsumexp(log_prior + beta.unsqueeze(-1) * q, -1) / beta
        return torch.where(self._soft, soft, q.amax(-1))

    def _logits(self, q: Tensor) -> Tensor:
        """``ln rho + beta q`` ``[B, A]``, whose softmax is pi_i; Q-learning uses only its order."""
        return self._log_prior + self.beta.unsqueeze(-1) * q

    def _per_agent(self, name: str, value: float | Tensor) -> Tensor:
        setting = torch.as_tensor(value, dtype=torch.float64)
        if setting.shape not in ((), self._rows.shape):
            raise ValueError(f"{name} must be a number or have shape [{len(self._rows)}], got {list(setting.shape)}.")
        return setting.expand(len(self._rows))

    def _check(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma must be in [0, 1], got {self.gamma}.")
        for name in ("q_rate", "prior_rate"):
            rate = getattr(self, name)
            if not ((rate > 0) & (rate <= 1)).all():
                raise ValueError(f"{name} must be in (0, 1], got {rate.tolist()}.")
        if not ((self.epsilon >= 0) & (self.epsilon <= 1)).all():
            raise ValueError(f"epsilon must be in [0, 1], got {self.epsilon.tolist()}.")
        for name in ("beta_0", "beta_growth"):
            setting = getattr(self, name)
            if not ((setting >= 0) & setting.isfinite()).all():
                raise ValueError(f"{name} must be finite and >= 0, got {setting.tolist()}.")
        if not (self.beta_0 + self.beta_growth > 0).all():
            raise ValueError("beta must be > 0: beta_0 or beta_growth must be positive, got 0 for both.")


def episode_return(mdp: TabularMDP, action: Tensor, max_steps: int, *, start: Tensor | None = None) -> Tensor:
    r"""Exact :math:`E \sum_{t < T} r_t` of deterministic policies, ``T`` a terminal state or ``max_steps``.

    Source: the definition, by backward induction without discount.

    Args:
        mdp: the MDP.
        action: what each policy does in every state ``[B, S]``.
        max_steps: longest episode.
        start: probability of each first state ``[S]``; None is uniform over the states that are not terminal.

    Returns:
        Returns ``[B]``, in reward units.

    Raises:
        ValueError: if ``start`` does not fit.
    """
    state = torch.arange(mdp.num_states)
    living = (~mdp.terminal).to(mdp.P)
    transition = mdp.P[state, action] * living.unsqueeze(-1)
    reward = mdp.r[state, action] * living
    v = torch.zeros_like(reward)
    for _ in range(max_steps):
        v = reward + (transition @ v.unsqueeze(-1)).squeeze(-1)
    return v @ mdp.start_distribution(start)
