"""VIREL over discrete actions: the exact Boltzmann policy at the Bellman error, valued without an entropy term."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchrl.modules import QValueActor

from torchrl_reg.objectives.actor_critic.virel import learnt_temperature
from torchrl_reg.objectives.q_learning import QLearningLoss
from torchrl_reg.regularizers.coefficient import Coefficient
from torchrl_reg.regularizers.entropy import Boltzmann


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
        tau_max: its upper bound; ``"loss<=1%"`` follows the rewards (:meth:`~QLearningLoss.observe_rewards`).
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
        tau_max: float | str = 1e30,
        **kwargs: Any,
    ) -> None:
        bounds: Any = {"tau_min": tau_min, "tau_max": tau_max}
        temperature = learnt_temperature(tau, beta_scale, exponent=2.0, rate=rate, **bounds)
        super().__init__(value_network, regularizer=Boltzmann(temperature), **kwargs)
