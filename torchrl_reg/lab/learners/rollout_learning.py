"""Learning from rollouts, each used for some epochs and discarded: hyperparameters and learner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.modules import EGreedyModule
from torchrl.objectives import LossModule

from torchrl_reg.compat import unchecked_tensordict
from torchrl_reg.lab.errors import require
from torchrl_reg.lab.learners.learner import Learner, Learning, optimizer_of, scale_rewards
from torchrl_reg.lab.learners.schedules import LinearSchedule
from torchrl_reg.lab.run.run import Run

ANNEALED_BY = ("update", "rollout")


@dataclass
class RolloutLearning(Learning):
    """Hyperparameters of learning Q-values without replay, in frames and updates: default, unit; for CartPole.

    The defaults are CleanRL's of classic control (``+paper=cleanrl_pqn``).
    """

    total_frames: int = 499_712  # environment frames, frame skip included
    gamma: float = 0.99  # discount
    num_envs: int = 4  # environments stepped together
    collect_steps: int = 128  # steps of each in a rollout
    epochs: int = 4  # passes over a rollout, each in an order of its own
    batch_size: int = 128  # rows of a rollout in a minibatch
    optimizer: str = "radam"  # also adam, and rmsprop, which is centered
    learning_rate: float = 2.5e-4  # of the optimizer
    anneal_learning_rate: bool = True  # linearly to 0 over the run
    anneal_by: str = "rollout"  # after each rollout; also after each update
    rms_decay: float = 0.95  # of the running averages of rmsprop, per update
    adam_eps: float = 1e-8  # of any optimizer's denominator
    max_grad_norm: float = 10.0  # of all gradients together
    eps_start: float = 1.0  # epsilon-greedy around the greedy action
    eps_end: float = 0.05
    eps_frames: int = 250_000  # frames of linear annealing, from the first one on
    network_diagnostics: bool = False  # policy churn, rank of features, dead units
    reward_scale: float = 1.0  # of the rewards that are learnt from; reported returns stay raw
    clip_rewards: bool = False  # to [-1, 1] for learning, before they are scaled

    def validate(self) -> None:
        """Checks the ranges.

        Raises:
            UserError: a value out of range; the sentence names it.
        """
        super().validate()
        require(self.anneal_by in ANNEALED_BY, "algo.anneal_by", f"one of {ANNEALED_BY}", self.anneal_by)
        rows = self.num_envs * self.collect_steps
        require(rows % self.batch_size == 0, "algo.batch_size", f"a divisor of the {rows} rows", self.batch_size)


class RolloutLearner(Learner):
    """A learner from rollouts, with a loss whose targets are made once a rollout, as set by ``algo``.

    Args:
        run, algo: see :class:`Learner`.
        loss: a loss whose value estimator makes the targets of a rollout (``regularized_qlambda``).
        exploration: the epsilon-greedy module, which is annealed from the first frame on.

    Attributes:
        optimizer: the one that ``algo`` names.
    """

    def __init__(self, run: Run, algo: RolloutLearning, loss: LossModule, exploration: EGreedyModule) -> None:
        optimizer = optimizer_of(algo, loss.parameters(), run)
        super().__init__(run, algo, loss, optimizer, max_grad_norm=algo.max_grad_norm)
        self.exploration = exploration
        self._rows: dict[Any, Tensor] = {}
        self.schedules.append(LinearSchedule(exploration.eps.fill_, algo.eps_start, algo.eps_end, algo.eps_frames))
        if algo.anneal_learning_rate and algo.anneal_by == "rollout":
            self.anneal_learning_rate()

    def planned_updates(self) -> int:
        """The number of updates of the run."""
        algo = self.algo
        per_rollout = algo.epochs * (algo.num_envs * algo.collect_steps // algo.batch_size)
        return -(-algo.total_frames // self.frames_per_batch) * per_rollout

    def store(self, batch: TensorDictBase) -> None:
        """Stores the rows of a rollout and their targets in place of the last; clips and scales its rewards."""
        scale_rewards(self.algo, batch)
        self.loss.value_estimator(batch)
        self._rows = {key: batch.get(key).flatten(0, 1) for key in self.loss.in_keys}

    def minibatches(self) -> Iterator[TensorDictBase]:
        """The rows of the rollout in ``epochs`` orders, a minibatch after the other."""
        algo, rows, planned = self.algo, self._rows, self.planned_updates()
        by_update = algo.anneal_learning_rate and algo.anneal_by == "update"
        for _ in range(algo.epochs):
            order = torch.randperm(algo.num_envs * algo.collect_steps)
            parts = [values[order].split(algo.batch_size) for values in rows.values()]
            for part in zip(*parts, strict=True):
                if by_update:
                    self.assign_learning_rate(algo.learning_rate * (1 - self.run.updates / planned))
                yield unchecked_tensordict(dict(zip(rows, part, strict=True)), [algo.batch_size])
