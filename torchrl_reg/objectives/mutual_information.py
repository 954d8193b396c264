"""Q-learning regularized by the mutual information of states and actions (MIRL); SQL where the prior is fixed.

Shapes: ``*B`` batch, ``A`` actions.
"""

from __future__ import annotations

from typing import Any

from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.modules import QValueActor
from torchrl.objectives.utils import ValueEstimators

from torchrl_reg.objectives.heads import ImplicitQuantiles
from torchrl_reg.objectives.q_learning import QLearningLoss
from torchrl_reg.objectives.value import RegValueEstimators
from torchrl_reg.regularizers import ActionPrior, PriorKL
from torchrl_reg.regularizers.prior import PriorLike


class MutualInformationDQNLoss(QLearningLoss):
    """DQN with a soft value towards a prior: ``r + gamma (1/beta) ln sum_a rho(a) exp(beta q_target(s', a))``.

    The prior is learnt outside the loss, by :class:`~torchrl_reg.modules.PriorUpdate` on the states visited, and
    ``beta`` by a :class:`~torchrl_reg.regularizers.BellmanErrorCoefficient`; left alone both stay as given. With a
    fixed uniform prior this is SQL: :class:`SoftDQNLoss` with its value shifted by ``-ln A / beta``. ``beta -> inf`` is
    :class:`~torchrl.objectives.DQNLoss`, ``beta -> 0`` evaluates the prior: ``r + gamma sum_a rho(a) q(s', a)``.
    No gradient reaches ``rho`` or ``beta`` through the target.

    Args:
        value_network: a :class:`~torchrl.modules.QValueActor` (or module with ``action_space``), ``[*B, A]`` values.
        prior: an :class:`~torchrl_reg.modules.ActionPrior`, shared, or probabilities ``[A]``; None is uniform. An
            action mask does not renormalize it: the value then pays ``-ln rho(allowed) / beta``.
        beta: inverse temperature > 0, per unit of reward; default 1. Schedulable. With an ActionPrior: its own.
        prior_network: a state-dependent prior: a TensorDict module from some observation keys to logits ``[*B, A]``,
            trained on ``loss_prior = KL(pi || rho_phi)`` at s, the policy being constant. The states are those of the
            data, so a replay buffer's, not the current policy's.
        loss_function, delay_value, action_space, reduction, use_prioritized_weights, weight_reduction, diagnostics: see
            :class:`QLearningLoss`. The paper's distance is the default, ``"l2"``.

    Returns (in a TensorDict): ``loss`` (and ``loss_prior``), the detached ``squared_td_error`` (mean of the plain
    square, for any distance), and detached scalars ``entropy`` (nats, online policy at s), ``action_gap``,
    ``kl`` (to the prior), ``soft_gap`` (soft value minus max, <= 0), ``prior_entropy``, ``mutual_information``
    (``I(S; A)``: mean ``KL(pi(.|s) || mean pi)`` over the batch, bounded by the log of its size), ``td_error`` (mean
    absolute), ``beta``.

    Raises:
        ValueError: ``beta`` not a finite number > 0, a prior that is no distribution over the network's actions.

    Source: Grau-Moya, Leibfried, Vrancx, "Soft Q-Learning with Mutual-Information Regularization", ICLR 2019; the
    state-dependent prior: Galashov et al., "Information asymmetry in KL-regularized RL", ICLR 2019.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.modules import PriorUpdate
    >>> from torchrl_reg.objectives import HardTargetUpdate, MutualInformationDQNLoss
    >>> from torchrl_reg.regularizers import ActionPrior, BellmanErrorCoefficient
    >>> actor = QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3))
    >>> prior = ActionPrior(3, beta=BellmanErrorCoefficient(2.0, rate=0.01, inverse=True))
    >>> loss = MutualInformationDQNLoss(actor, prior=prior).make_value_estimator(gamma=0.9)
    >>> target_update = HardTargetUpdate(loss, period_updates=100)
    >>> prior_update = PriorUpdate(prior, actor, rate=0.01)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> _ = prior_update(data), prior.beta_coefficient.observe(loss(data)["squared_td_error"])
    >>> loss.beta is prior.beta
    True
    """

    regularizer: PriorKL
    _stand_ins = QLearningLoss._stand_ins | {ValueEstimators.TD0: RegValueEstimators.PRIOR_SOFT_TD0}

    def __init__(
        self,
        value_network: Any,
        *,
        prior: ActionPrior | PriorLike | None = None,
        beta: float | None = None,
        prior_network: TensorDictModuleBase | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(prior, ActionPrior) and beta is not None:
            raise ValueError(f"beta must be set in the ActionPrior given as prior, got beta={beta!r} as well.")
        shared = _as_prior(value_network, prior, 1.0 if beta is None else beta)
        super().__init__(value_network, regularizer=PriorKL(prior=shared, network=prior_network), **kwargs)
        self._reports_error = True  # for an inverse temperature that follows it

    @property
    def prior(self) -> ActionPrior:
        """``rho`` and ``beta``."""
        assert self.regularizer.prior is not None
        return self.regularizer.prior

    @property
    def log_prior(self) -> Tensor:
        """``ln rho [A]``, that of ``loss.prior``; unused with a prior_network."""
        return self.prior.log_prior

    @property
    def prior_network(self) -> TensorDictModuleBase | None:
        """The state-dependent prior, if there is one."""
        return self.regularizer.network


class MutualInformationIQNLoss(MutualInformationDQNLoss):
    """MIRL over quantiles: ``r + gamma sum_a pi(a|s') (z_j(s', a) - (1/beta) ln (pi(a|s') / rho(a)))``.

    One policy ``pi ~ rho exp(beta mean_k z(., ., sigma_k))`` from K fresh fractions of the target network, shared by
    all quantiles, as in :class:`MunchausenIQNLoss`, with the prior in place of the uniform one. The mean of the target
    over quantiles is that of :class:`MutualInformationDQNLoss` if the policy reads the same quantiles.

    Args:
        value_network: a :class:`~torchrl_reg.modules.QuantileQActor`.
        prior, beta, prior_network: see :class:`MutualInformationDQNLoss`.
        num_quantiles, num_target_quantiles, num_policy_quantiles, reuse_quantiles: see :class:`IQNLoss`.
        kappa, share_fractions, delay_value, action_space, reduction: see there; no double variant.
        use_prioritized_weights, weight_reduction, diagnostics: see there.

    Returns (in a TensorDict): as :class:`MutualInformationDQNLoss`; TD errors (reward units) are those of the means
    over quantiles. Writes the priority ``[*B, 1]``, the row's quantile loss.

    Raises:
        ValueError: a coefficient, count or prior out of range.

    Source: ours, after :class:`MunchausenIQNLoss` and Grau-Moya et al. 2019 (MIRL), who use the expected value.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl_reg.modules import ImplicitQuantileNetwork, QuantileQActor
    >>> from torchrl_reg.objectives import HardTargetUpdate, MutualInformationIQNLoss
    >>> net = ImplicitQuantileNetwork(torch.nn.Linear(4, 16), num_features=16, num_actions=3, num_cells=32)
    >>> loss = MutualInformationIQNLoss(QuantileQActor(net, spec=Categorical(3)), prior=[0.5, 0.25, 0.25], beta=2.0)
    >>> target_update = HardTargetUpdate(loss, period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> bool(loss(data)["kl"] >= 0)
    True
    """

    head_type = ImplicitQuantiles


def _as_prior(network: Any, prior: ActionPrior | PriorLike | None, beta: float) -> ActionPrior:
    known = _actions_of(network)
    if isinstance(prior, ActionPrior):
        if known not in (None, prior.num_actions):
            raise ValueError(f"The prior must be over the network's {known} actions, got {prior.num_actions}.")
        return prior
    if known is None and prior is None:
        raise ValueError("prior must be given where the value network has no action spec, got None.")
    count = len(prior) if known is None else known  # type: ignore[arg-type]
    return ActionPrior(count, probabilities=prior, beta=beta)


def _actions_of(network: Any) -> int | None:
    """Number of actions in the spec of a Q-value actor, if it has one."""
    spec = network.spec if isinstance(network, QValueActor) else None
    if spec is None:
        return None
    keys = [key for key in spec.keys(True, True) if hasattr(getattr(spec[key], "space", None), "n")]
    return int(spec[keys[0]].space.n) if keys else None
