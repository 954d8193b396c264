"""Mutual-information regularized DQN (MIRL), and soft Q-learning with a uniform prior (SQL)."""

from __future__ import annotations

from torchrl_reg.objectives.prior_regularized import PriorRegularizedLoss


class MutualInformationDQNLoss(PriorRegularizedLoss):
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
        loss_function, delay_value, action_space, reduction, use_prioritized_weights, diagnostics: see
            :class:`QLearningLoss`. The default distance is Huber (delta 1); the paper uses the square.

    Returns (in a TensorDict): ``loss`` (and ``loss_prior``), the detached ``squared_td_error`` (mean of the plain
    square, whatever the distance), and detached scalars ``entropy`` (nats, online policy at s), ``action_gap``,
    ``kl`` (to the prior), ``soft_gap`` (soft value minus max, <= 0), ``prior_entropy``, ``mutual_information``
    (``I(S; A)``: mean ``KL(pi(.|s) || mean pi)`` over the batch, at most the log of its size), ``td_error`` (mean
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
