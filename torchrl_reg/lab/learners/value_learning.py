"""Hyperparameters and learner of the value-based recipes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tensordict import TensorDictBase
from torchrl.modules import EGreedyModule
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater

from torchrl_reg.lab.errors import require
from torchrl_reg.lab.learners.learner import Learner, Learning, optimizer_of, scale_rewards
from torchrl_reg.lab.learners.replay import StratifiedSampler, make_replay, rows_in_time, select, store
from torchrl_reg.lab.learners.schedules import EpsilonSchedule, LinearSchedule
from torchrl_reg.lab.run.run import Run
from torchrl_reg.modules.n_step import NStepTransform


@dataclass
class ValueLearning(Learning):
    """Hyperparameters of learning Q-values from replay: default (for CartPole), unit, source.

    A recipe's ``Algo`` derives from it and adds those of its method; env and paper presets override both. Sources: [C]
    the released code of Vieillard et al. 2020, which runs Dopamine's agents [D].
    """

    total_frames: int = 60_000  # environment frames, frame skip included
    gamma: float = 0.99  # discount [C, D]
    n_steps: int = 1  # steps of the n-step return [C, D]
    optimizer: str = "adam"  # adam, radam or rmsprop (centered)
    learning_rate: float = 2e-3  # of the optimizer
    anneal_learning_rate: bool = True  # linearly to 0 over the run: steadier at the end on CartPole; off in presets
    rms_decay: float = 0.95  # decay of rmsprop's running averages, per update
    adam_eps: float = 1e-5  # epsilon in the optimizer's denominator; 3.125e-4 in [C, D] is slower and less steady here
    batch_size: int = 32  # transitions [D]; 128 in [C]
    max_grad_norm: float | None = None  # clip of the gradients' global norm; null: none
    replay_capacity: int = 50_000  # transitions [C, CartPole]
    priority_exponent: float = 0.0  # of prioritized replay: probabilities follow priority ** this; 0 is uniform
    importance_exponent: float = 0.0  # of the importance weights of prioritized replay: 0 none, 1 full correction
    importance_exponent_end: float | None = None  # its value at the end of the run, reached linearly; null: constant
    weight_reduction: str = "normalized"  # of losses l with weights w: sum(w l) / sum(w); mean: mean(w l)
    learning_starts_frames: int = 1_000  # frames before the first update
    update_every_frames: float = 4  # frames per gradient update [C, D]
    target_period_updates: int = 50  # updates between target copies
    eps_start: float = 1.0  # epsilon-greedy around the greedy action
    eps_end: float = 0.05  # .01 in [C, D]: more exploration solves CartPole sooner
    eps_frames: int = 10_000  # frames of linear annealing
    eps_starts_frames: int | None = None  # where annealing begins; null: where learning does
    eps_decay: str = "linear"  # linear, or exponential (by a factor e every eps_frames)
    eps_off_frames: int | None = None  # no epsilon from there on; 0: never any, as with noisy layers
    random_until_learning: bool = False  # uniformly random actions until learning starts
    num_envs: int = 8  # environments stepped together
    collect_steps: int = 4  # steps of each between rounds of updates; at least n_steps
    network_diagnostics: bool = False  # policy churn, action swaps, rank of features, dead units: a quarter slower
    clip_rewards: bool = False  # to [-1, 1] for learning; reported returns stay raw
    reward_scale: float = 1.0  # of the rewards that are learnt from, after the clip; reported returns stay raw

    def validate(self) -> None:
        """Checks the ranges.

        Raises:
            UserError: a value out of range.
        """
        super().validate()
        steps, weighted = self.collect_steps, self.importance_exponent or self.importance_exponent_end
        require(self.n_steps <= steps, "algo.collect_steps", f">= {self.n_steps}", steps)
        uniform = weighted and not self.priority_exponent
        require(not uniform, "algo.importance_exponent", "0 where algo.priority_exponent is 0", weighted)
        for name, choices in (("eps_decay", ("linear", "exponential")), ("weight_reduction", ("normalized", "mean"))):
            require(getattr(self, name) in choices, f"algo.{name}", " or ".join(choices), getattr(self, name))


class ValueLearner(Learner):
    """Learns Q-values from replay with any loss, as set by ``algo``.

    Args:
        run, algo, loss: see :class:`Learner`.
        target: updater of the target network; None without one.
        exploration: schedule of the epsilon-greedy module; or the module, which is then checkpointed but not annealed.
        frame_stack: images stacked in one observation. With one-step returns they are stored one at a time, in a
            quarter of the memory; n-step transitions skip frames and are stored as stacks.
        parameters: parameters or parameter groups for the optimizer; by default all of ``loss``. Only the learning
            rate of the first group is annealed.

    Attributes:
        replay: one-step or n-step transitions, sampled uniformly or by priority.
        optimizer: see ``algo.optimizer``.
        n_step: transform to n-step transitions; None for one-step returns.
    """

    def __init__(
        self,
        run: Run,
        algo: ValueLearning,
        loss: LossModule,
        target: TargetNetUpdater | None,
        exploration: EpsilonSchedule | EGreedyModule,
        *,
        frame_stack: int = 1,
        parameters: Iterable[Any] | None = None,
    ) -> None:
        sampler = None
        if algo.priority_exponent:
            sampler = StratifiedSampler(algo.replay_capacity, algo.priority_exponent, algo.importance_exponent)
        replay = make_replay(
            algo.replay_capacity,
            algo.batch_size,
            device=run.device,
            frame_stack=frame_stack if algo.n_steps == 1 else 1,
            num_envs=algo.num_envs,
            sampler=sampler,
        )
        optimizer = optimizer_of(algo, loss.parameters() if parameters is None else parameters, run)
        super().__init__(run, algo, loss, optimizer, target, replay=replay, max_grad_norm=algo.max_grad_norm)
        self.n_step = NStepTransform(algo.n_steps, algo.gamma) if algo.n_steps > 1 else None
        if isinstance(exploration, EpsilonSchedule):
            self.schedules.append(exploration)
            exploration = exploration.module
        self.exploration = exploration
        if algo.anneal_learning_rate:
            self.anneal_learning_rate()
        if sampler is not None and algo.importance_exponent_end is not None:
            exponents = (algo.importance_exponent, algo.importance_exponent_end)
            self.schedules.append(LinearSchedule(partial(setattr, sampler, "beta"), *exponents, algo.total_frames))

    def store(self, batch: TensorDictBase) -> None:
        """Stores the entries of ``batch`` that the loss reads, in order of time; clips and scales the rewards in place.

        Raises:
            UserError: a first batch of fewer than ``algo.n_steps`` steps.
        """
        scale_rewards(self.algo, batch)
        rows, keys = batch, [*self.loss.in_keys, "steps_to_next_obs"]
        if self.n_step is not None:
            rows = self.n_step.complete(select(batch, [*keys, ("next", "reward"), ("next", "done")]))
            require(rows is not None, "algo.collect_steps", f">= {self.algo.n_steps}, algo.n_steps", batch.shape[-1])
        store(self.replay, rows_in_time(rows, keys))
