"""Learning from rollouts, each used for some epochs and thrown away: hyperparameters, and all around the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.modules import EGreedyModule
from torchrl.objectives import LossModule

from torchrl_reg.compat import unchecked_tensordict
from torchrl_reg.lab.errors import require
from torchrl_reg.lab.learners.checks import check_replay_learning
from torchrl_reg.lab.learners.network_diagnostics import with_network_diagnostics
from torchrl_reg.lab.learners.optimizers import make_optimizer
from torchrl_reg.lab.learners.value_learning import LinearSchedule
from torchrl_reg.lab.run.evaluation import Policy
from torchrl_reg.lab.run.run import Run

ANNEALED_BY = ("update", "rollout")


@dataclass
class RolloutLearning:
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
            ConfigError: a value out of range; the sentence names it.
        """
        check_replay_learning(self)
        for name in ("epochs", "max_grad_norm", "reward_scale"):
            require(getattr(self, name) > 0, f"algo.{name}", "> 0", getattr(self, name))
        require(self.anneal_by in ANNEALED_BY, "algo.anneal_by", f"one of {ANNEALED_BY}", self.anneal_by)
        rows = self.num_envs * self.collect_steps
        require(rows % self.batch_size == 0, "algo.batch_size", f"a divisor of the {rows} rows", self.batch_size)


class RolloutLearner:
    """Collects rollouts and learns from each with a loss whose targets are made once, as set by ``algo``::

        for batch in learner.collect(env, explorer):
            for minibatch in learner.minibatches(batch):
                run.record(learner.update(minibatch))

    Args:
        run: the run, whose checkpoints hold everything created here.
        algo: the hyperparameters.
        loss: a loss whose value estimator makes the targets of a rollout (``regularized_qlambda``).
        exploration: the epsilon-greedy module, which is annealed from the first frame on.

    Attributes:
        optimizer: the one that ``algo`` names.
        update: ``update(minibatch)``, see :func:`~torchrl_reg.lab.make_update`.
    """

    def __init__(self, run: Run, algo: RolloutLearning, loss: LossModule, exploration: EGreedyModule) -> None:
        self.run, self.algo, self.loss = run, algo, loss
        self.optimizer = make_optimizer(
            algo.optimizer,
            loss.parameters(),
            learning_rate=algo.learning_rate,
            eps=algo.adam_eps,
            decay=algo.rms_decay,
            capturable=run.cudagraphs,
        )
        self.update = run.make_update(loss, self.optimizer, max_grad_norm=algo.max_grad_norm)
        if algo.network_diagnostics:
            every = run.settings.diagnostics_every_updates
            self.update = with_network_diagnostics(self.update, loss.value_network, lambda: run.updates % every == 0)
        run.track(loss=loss, optimizer=self.optimizer, exploration=exploration)
        self._rollout_frames = algo.num_envs * algo.collect_steps * run.frames_per_step
        per_rollout = algo.epochs * (algo.num_envs * algo.collect_steps // algo.batch_size)
        self._planned_updates = -(-algo.total_frames // self._rollout_frames) * per_rollout
        #: What :meth:`collect` steps.
        self.schedules = [LinearSchedule(exploration.eps.fill_, algo.eps_start, algo.eps_end, algo.eps_frames)]
        if algo.anneal_learning_rate and algo.anneal_by == "rollout":
            self.schedules.append(LinearSchedule(self._assign_rate, algo.learning_rate, 0.0, algo.total_frames))

    def collect(self, env: EnvBase, policy: Policy) -> Iterator[TensorDictBase]:
        """Rollouts ``[num_envs, collect_steps]`` of the run; the schedules are stepped after each."""
        frames = self.algo.total_frames
        for batch in self.run.collect(env, policy, total_frames=frames, frames_per_batch=self._rollout_frames):
            yield batch
            for schedule in self.schedules:
                schedule.step(self.run)

    def minibatches(self, batch: TensorDictBase) -> Iterator[TensorDictBase]:
        """The rows of a rollout with their targets, in ``epochs`` orders, a minibatch after the other."""
        algo = self.algo
        by_update = algo.anneal_learning_rate and algo.anneal_by == "update"
        if algo.clip_rewards:
            batch["next", "reward"].clamp_(-1, 1)
        if algo.reward_scale != 1:
            batch["next", "reward"].mul_(algo.reward_scale)
        self.loss.value_estimator(batch)
        rows = {key: batch.get(key).flatten(0, 1) for key in self.loss.in_keys}
        count = algo.num_envs * algo.collect_steps
        for _ in range(algo.epochs):
            order = torch.randperm(count)
            parts = [values[order].split(algo.batch_size) for values in rows.values()]
            for part in zip(*parts, strict=True):
                if by_update:
                    self._assign_rate(algo.learning_rate * (1 - self.run.updates / self._planned_updates))
                yield unchecked_tensordict(dict(zip(rows, part, strict=True)), [algo.batch_size])

    def _assign_rate(self, rate: float) -> Any:
        self.optimizer.param_groups[0]["lr"] = rate
