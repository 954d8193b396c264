"""Named losses on expected Q-values: soft DQN, M-DQN, advantage learning, sparsemax, MIRL, VIREL."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchrl.modules import QValueActor
from torchrl.objectives.utils import ValueEstimators

from torchrl_reg.objectives.q_learning import QLearningLoss
from torchrl_reg.objectives.shaping import AdvantageGap, Munchausen
from torchrl_reg.objectives.value import RegValueEstimators
from torchrl_reg.objectives.virel import learnt_temperature
from torchrl_reg.regularizers import Coefficient, Entropy, HardMax, Tsallis
from torchrl_reg.regularizers.policies import Boltzmann


class SoftDQNLoss(QLearningLoss):
    """DQN with the soft value as bootstrap: ``r + gamma tau logsumexp(q_target(s', .) / tau)``.

    Equal to ``r + gamma sum_a pi(a|s') (q_target(s', a) - tau ln pi(a|s'))`` with ``pi = softmax(q_target / tau)``.
    The limit ``tau -> 0`` is :class:`~torchrl.objectives.DQNLoss`; :class:`MunchausenDQNLoss` with ``alpha=0`` is
    this loss.

    Args:
        value_network: a :class:`~torchrl.modules.QValueActor` (or module with ``action_space``), ``[*B, A]`` values.
        tau: temperature > 0, in reward units. Schedulable:
            ``loss.tau = 0.01``.
        double_dqn: let the online network choose the policy at s', which the target network evaluates:
            ``sum_a pi_online(a|s') (q_target(s', a) - tau ln pi_online(a|s'))``.
        loss_function, delay_value, action_space, reduction, use_prioritized_weights, weight_reduction, diagnostics: see
            :class:`QLearningLoss`. The released Munchausen code's distance is ``"smooth_l1"``.

    Returns (in a TensorDict): ``loss`` and detached scalars ``entropy`` (nats, online policy at s), ``action_gap``,
    ``kl`` (online to target policy at s), ``soft_gap`` (soft value minus max), ``td_error`` (mean absolute), ``tau``.

    Raises:
        ValueError: ``tau`` not a finite number > 0, unknown ``loss_function`` or ``reduction``.

    Source: Vieillard, Pietquin, Geist, "Munchausen Reinforcement Learning", NeurIPS 2020, eq. (1).

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import PolyakTargetUpdate, SoftDQNLoss
    >>> actor = QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3))
    >>> loss = SoftDQNLoss(actor, tau=0.5).make_value_estimator(gamma=0.9)
    >>> target_update = PolyakTargetUpdate(loss, rate=0.005)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> loss(data)["loss"].shape
    torch.Size([])
    """

    _stand_ins = QLearningLoss._stand_ins | {
        ValueEstimators.TD0: RegValueEstimators.SOFT_TD0,
        ValueEstimators.TDLambda: RegValueEstimators.SOFT_TDLAMBDA,
    }

    def __init__(
        self, value_network: QValueActor | nn.Module, *, tau: float | Coefficient = 0.03, **kwargs: Any
    ) -> None:
        super().__init__(value_network, regularizer=Entropy(tau), **kwargs)


class MunchausenDQNLoss(QLearningLoss):
    """M-DQN target ``r + alpha [tau ln pi(a|s)]_{clip_min}^0 + gamma sum_a' pi(a'|s') (q(s', a') - tau ln pi(a'|s'))``.

    ``q`` is the target network everywhere in the target and ``pi = softmax(q / tau)``. The bonus is added once, to the
    stored action; with n-step data it belongs to the first transition only. At a terminal state the bonus is kept and
    the bootstrap dropped; a truncated episode still bootstraps. ``alpha=0`` is :class:`SoftDQNLoss`.

    Args:
        value_network: a :class:`~torchrl.modules.QValueActor` (or module with ``action_space``), ``[*B, A]`` values.
        tau: temperature > 0, in reward units. Schedulable.
        alpha: Munchausen weight in [0, 1]. Schedulable. It multiplies after the clip: the bonus is in
            ``[alpha * clip_min, 0]``.
        clip_min: lower clip (<= 0) of ``tau ln pi``, in reward units; None for no clip. Schedulable.
        loss_function, delay_value, action_space, reduction, use_prioritized_weights, weight_reduction, diagnostics: see
            :class:`QLearningLoss`. The released code's distance is ``"smooth_l1"``.

    Returns (in a TensorDict): ``loss`` and detached scalars ``entropy`` (nats), ``action_gap``, ``kl`` (online to
    target policy at s), ``soft_gap``, ``bonus``, ``bonus_clipped`` (share of rows at the clip), ``td_error``, ``tau``.

    Raises:
        ValueError: ``tau`` not a finite number > 0, ``alpha`` outside [0, 1], ``clip_min`` > 0.

    Source: Vieillard, Pietquin, Geist, "Munchausen Reinforcement Learning", NeurIPS 2020, eq. (2). The released code
    clips M-DQN's bonus to ``[clip_min, 1]`` and M-IQN's to ``[clip_min, 0]``; the two are equal, since
    ``tau ln pi <= 0``.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import HardTargetUpdate, MunchausenDQNLoss
    >>> actor = QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3))
    >>> loss = MunchausenDQNLoss(actor, tau=0.03, alpha=0.9, clip_min=-1.0).make_value_estimator(gamma=0.99)
    >>> target_update = HardTargetUpdate(loss, period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> out = loss(data)
    >>> bool(out["bonus"] <= 0), data["td_error"].shape
    (True, torch.Size([8, 1]))
    """

    _stand_ins = QLearningLoss._stand_ins | {
        ValueEstimators.TD0: RegValueEstimators.MUNCHAUSEN_TD0,
        ValueEstimators.TDLambda: RegValueEstimators.SOFT_TDLAMBDA,
    }

    def __init__(
        self,
        value_network: QValueActor | nn.Module,
        *,
        tau: float | Coefficient = 0.03,
        alpha: float = 0.9,
        clip_min: float | None = -1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(value_network, regularizer=Entropy(tau), shaping=Munchausen(alpha, clip_min), **kwargs)


class AdvantageLearningLoss(QLearningLoss):
    """AL target ``r + gamma max q(s', .) - alpha (max q(s, .) - q(s, a))``; the ``tau -> 0`` limit of M-DQN.

    With ``persistent=True`` (PAL) the gap is the smaller of those of ``a`` at s and at s'; at a terminal s', whose
    values mean nothing, the gap at s alone. ``q`` is the target network. Nothing is clipped.

    Args:
        value_network: a :class:`~torchrl.modules.QValueActor` (or module with ``action_space``), ``[*B, A]`` values.
        alpha: weight of the gap in [0, 1]; values near 1 widen the action gap by ``1 / (1 - alpha)``. Schedulable.
        persistent: persistent advantage learning.
        loss_function, delay_value, action_space, reduction, use_prioritized_weights, weight_reduction, diagnostics: see
            :class:`QLearningLoss`. The released code's distance is ``"smooth_l1"``.

    Returns (in a TensorDict): ``loss`` and detached scalars ``action_gap``, ``bonus`` (``-alpha`` times the gap),
    ``td_error``, all in reward units.

    Raises:
        ValueError: ``alpha`` outside [0, 1].

    Source: Bellemare et al., "Increasing the Action Gap", AAAI 2016, eqs. (7) and (9). The persistent form uses the
    undiscounted gap at s', as its Atari experiments do; pfrl's does not mask terminal states.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import AdvantageLearningLoss, HardTargetUpdate
    >>> actor = QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3))
    >>> loss = AdvantageLearningLoss(actor, alpha=0.5, persistent=True).make_value_estimator(gamma=0.9)
    >>> target_update = HardTargetUpdate(loss, period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> bool(loss(data)["bonus"] <= 0)
    True
    """

    def __init__(
        self, value_network: QValueActor | nn.Module, *, alpha: float = 0.9, persistent: bool = False, **kwargs: Any
    ) -> None:
        shaping = AdvantageGap(alpha, persistent=persistent)
        super().__init__(value_network, regularizer=HardMax(), shaping=shaping, **kwargs)


class SparseDQNLoss(QLearningLoss):
    """DQN with the sparsemax as bootstrap: ``r + gamma (<pi, q_target(s', .)> + (tau / 2) (1 - sum_a pi(a|s')^2))``.

    ``pi = [q_target / tau - c]_+`` is one-hot as soon as the best action leads by ``tau``; ``tau -> 0`` is
    :class:`~torchrl.objectives.DQNLoss`.

    Args:
        value_network: a :class:`~torchrl.modules.QValueActor` (or module with ``action_space``), ``[*B, A]`` values.
        tau: temperature > 0, in reward units; half the
            weight of ``1 - sum pi^2``. Schedulable.
        **kwargs: those of :class:`QLearningLoss`, a ``shaping`` among them.

    Returns (in a TensorDict): ``loss`` and detached scalars ``entropy`` (Shannon's, nats), ``support`` (share of the
    actions with a probability), ``action_gap``, ``soft_gap``, ``td_error``, ``tau``.

    Raises:
        ValueError: ``tau`` not a finite number > 0.

    Source: Lee, Choi, Oh, "Sparse Markov Decision Processes with Causal Sparse Tsallis Entropy Regularization", RA-L
    2018, section IV.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import HardTargetUpdate, SparseDQNLoss
    >>> loss = SparseDQNLoss(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)), tau=0.5)
    >>> target_update = HardTargetUpdate(loss.make_value_estimator(gamma=0.9), period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> bool(loss(data)["support"] <= 1)
    True
    """

    def __init__(
        self, value_network: QValueActor | nn.Module, *, tau: float | Coefficient = 0.03, **kwargs: Any
    ) -> None:
        super().__init__(value_network, regularizer=Tsallis(tau), **kwargs)


class DiscreteVIRELLoss(QLearningLoss):
    r"""``r + gamma <pi, q_target>(s')`` with ``pi = softmax(q_target / epsilon)`` at the Bellman error ``epsilon``.

    No actor is needed: the E-step of :class:`~torchrl_reg.objectives.VIRELLoss` is exact. Act with ``BoltzmannQActor(
    actor, regularizer=loss.regularizer)``, which follows the temperature. The limit ``epsilon = 0`` is
    :class:`~torchrl.objectives.DQNLoss`; :class:`SoftDQNLoss` adds an entropy term. Works with any head. Our addition:
    the source has continuous actions only.

    Args:
        value_network: as for :class:`QLearningLoss`, with any head.
        tau: the temperature, in reward units, initial or fixed; or a coefficient. Schedulable.
        beta_scale: ``c`` of ``epsilon = c / 2 E|td_error|^2``, in 1 / reward units; None keeps ``tau``.
        rate: step size of the running average, per :meth:`~QLearningLoss.observe`.
        tau_min: floor of the temperature > 0.
        tau_max: its upper bound.
        kwargs: of :class:`QLearningLoss`, except the regularizer.

    Returns (in a TensorDict): ``loss``, with ``beta_scale`` the detached ``squared_td_error``, and the detached scalars
    of :class:`QLearningLoss` with the entropy's diagnostics, ``tau`` among them. Writes the priority ``[*B, 1]``.

    Raises:
        ValueError: a coefficient out of range.

    Source: Fellows, Mahajan, Rudner, Whiteson, "VIREL", NeurIPS 2019.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl_reg.modules import BoltzmannQActor
    >>> from torchrl_reg.objectives import DiscreteVIRELLoss, PolyakTargetUpdate
    >>> actor = QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3))
    >>> loss = DiscreteVIRELLoss(actor, beta_scale=0.1, rate=1.0).make_value_estimator(gamma=0.9)
    >>> explorer = BoltzmannQActor(actor, regularizer=loss.regularizer)
    >>> target_update = PolyakTargetUpdate(loss, rate=0.005)
    >>> data = explorer(TensorDict({
    ...     "observation": torch.randn(8, 4),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8]))
    >>> out = loss(data)
    >>> loss.observe(out)
    >>> bool((loss.tau - 0.05 * out["squared_td_error"]).abs() < 1e-6)
    True
    """

    def __init__(
        self,
        value_network: QValueActor | nn.Module,
        *,
        tau: float | Coefficient = 1.0,
        beta_scale: float | None = None,
        rate: float = 0.01,
        tau_min: float = 1e-4,
        tau_max: float = 1e30,
        **kwargs: Any,
    ) -> None:
        temperature = learnt_temperature(tau, beta_scale, exponent=2.0, rate=rate, tau_min=tau_min, tau_max=tau_max)
        super().__init__(value_network, regularizer=Boltzmann(temperature), **kwargs)
