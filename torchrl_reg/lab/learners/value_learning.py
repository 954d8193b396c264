"""What the value-based recipes share: their hyperparameters, schedules, and everything around the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from tensordict import TensorDictBase
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torchrl.envs import EnvBase
from torchrl.modules import EGreedyModule
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater

from torchrl_reg.lab.errors import require
from torchrl_reg.lab.learners.checks import check_replay_learning
from torchrl_reg.lab.learners.network_diagnostics import with_network_diagnostics
from torchrl_reg.lab.learners.optimizers import make_optimizer
from torchrl_reg.lab.learners.replay import StratifiedSampler, rows_in_time, store
from torchrl_reg.lab.run.evaluation import Policy
from torchrl_reg.lab.run.run import Run
from torchrl_reg.modules.n_step import NStepTransform


@dataclass
class ValueLearning:
    """Hyperparameters of learning Q-values from replay, in frames and updates: default, unit, source; for CartPole.

    A recipe's ``Algo`` derives from it and adds its method's own; env and paper presets override both. Sources: [C]
    the released code of Vieillard et al. 2020, which runs Dopamine's agents [D].
    """

    total_frames: int = 60_000  # environment frames, frame skip included
    gamma: float = 0.99  # discount [C, D]
    n_steps: int = 1  # of the return [C, D]
    optimizer: str = "adam"  # also radam, and rmsprop, which is centered
    learning_rate: float = 2e-3  # of the optimizer
    anneal_learning_rate: bool = True  # linearly to 0 over the run: steadier at the end on CartPole; off in presets
    rms_decay: float = 0.95  # of the running averages of rmsprop, per update
    adam_eps: float = 1e-5  # of any; 3.125e-4 in [C, D]: slower and less steady at 1e-3 (recipes/NEGATIVE_RESULTS.md)
    batch_size: int = 32  # transitions [C, D]
    max_grad_norm: float | None = None  # clip of the gradients' global norm; null: none
    replay_capacity: int = 50_000  # transitions [C, CartPole]
    priority_exponent: float = 0.0  # of prioritized replay: probabilities follow priority ** this; 0 is uniform
    importance_exponent: float = 0.0  # of its weights, 0 is none, 1 corrects them in full
    importance_exponent_end: float | None = None  # reached linearly at the end of the run; null: constant
    weight_reduction: str = "normalized"  # of rows l with those weights w: sum(w l) / sum(w); mean: mean(w l)
    learning_starts_frames: int = 1_000
    update_every_frames: float = 4  # frames per gradient update [C, D]
    target_period_updates: int = 50  # updates between target copies
    eps_start: float = 1.0  # epsilon-greedy around the greedy action
    eps_end: float = 0.05  # .01 in [C, D]: more exploration solves CartPole sooner
    eps_frames: int = 10_000  # frames of linear annealing
    eps_starts_frames: int | None = None  # where annealing begins; null: where learning does
    eps_decay: str = "linear"  # or exponential: towards eps_end, by a factor e every eps_frames
    eps_off_frames: int | None = None  # no epsilon from there on; 0: never any, as with noisy layers
    random_until_learning: bool = False  # uniformly random actions until then, whatever epsilon is
    num_envs: int = 8  # environments stepped together
    collect_steps: int = 4  # steps of each between rounds of updates; at least n_steps
    network_diagnostics: bool = False  # policy churn, action swaps, rank of features, dead units: a quarter slower
    clip_rewards: bool = False  # to [-1, 1] for learning; reported returns stay raw
    reward_scale: float = 1.0  # of the rewards that are learnt from, after the clip; reported returns stay raw

    def validate(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: a value out of range; the sentence names it.
        """
        check_replay_learning(self)


class LinearSchedule:
    """Anneals any number linearly: a rate of exploration, a learning rate, a temperature.

    It keeps no state, so a resumed run needs none. Anything else with ``step(run)`` will do in its place.

    Args:
        assign: takes the number that is due, e.g. ``loss.regularizer.coefficient.assign`` or ``egreedy.eps.fill_``.
        start, end: the numbers before and after.
        over_frames: frames from one to the other.
        after_frames: frames before that.

    >>> from types import SimpleNamespace
    >>> run = SimpleNamespace(annealed=lambda start, end, over, after: start + (end - start) * 0.5)  # half is over
    >>> seen = []
    >>> LinearSchedule(seen.append, 1.0, 0.1, over_frames=1_000).step(run)
    >>> seen
    [0.55]
    """

    def __init__(
        self, assign: Callable[[float], Any], start: float, end: float, over_frames: int, after_frames: int = 0
    ) -> None:
        self.assign, self.start, self.end = assign, start, end
        self.over_frames, self.after_frames = over_frames, after_frames

    def step(self, run: Any) -> None:
        """Assigns what is due at ``run.frames``."""
        self.assign(run.annealed(self.start, self.end, self.over_frames, self.after_frames))


class EpsilonSchedule(LinearSchedule):
    """Anneals the ``eps`` of an exploration module linearly, as set by ``algo``.

    Args:
        module: an epsilon-greedy module.
        algo: the hyperparameters: ``eps_start`` to ``eps_end`` over ``eps_frames``, from ``eps_starts_frames`` on; with
            ``random_until_learning`` it is 1 before ``learning_starts_frames``; with ``eps_decay="exponential"`` it is
            ``eps_end + (eps_start - eps_end) exp(-frames / eps_frames)``; 0 from ``eps_off_frames`` on.
    """

    def __init__(self, module: EGreedyModule, algo: ValueLearning) -> None:
        self.module = module
        starts, self.random_frames = algo.eps_starts_frames, 0
        self.algo, self.after = algo, algo.learning_starts_frames if starts is None else starts
        after = self.after
        super().__init__(lambda eps: module.eps.fill_(eps), algo.eps_start, algo.eps_end, algo.eps_frames, after)
        if algo.random_until_learning and algo.learning_starts_frames > 0:
            self.random_frames = algo.learning_starts_frames
            self.assign(1.0)
        elif algo.eps_off_frames == 0:
            self.assign(0.0)

    def step(self, run: Any) -> None:
        """Assigns the epsilon that is due at ``run.frames``."""
        algo = self.algo
        if run.frames < self.random_frames:
            self.assign(1.0)
        elif algo.eps_off_frames is not None and run.frames >= algo.eps_off_frames:
            self.assign(0.0)
        elif algo.eps_decay == "exponential":
            left = math.exp(-max(0, run.frames - self.after) / algo.eps_frames)
            self.assign(algo.eps_end + (algo.eps_start - algo.eps_end) * left)
        else:
            super().step(run)


class ValueLearner:
    """Collects, stores and learns with any loss on Q-values, as set by ``algo``. The loop stays in the recipe::

        for batch in learner.collect(env, explorer):
            learner.store(batch)
            for minibatch in learner.minibatches():
                run.record(learner.update(minibatch))

    Args:
        run: the run, whose checkpoints hold everything created here.
        algo: the hyperparameters.
        loss: a loss with a value estimator.
        target: the updater of its target network.
        exploration: the schedule of the epsilon-greedy module; or a module alone, which is checkpointed, and annealed
            by nobody but the caller.
        frame_stack: images stacked in one observation. With one-step returns they are stored one at a time, in a
            quarter of the memory; n-step rows skip frames and stay stacked.
        parameters: parameters or parameter groups for the optimizer; by default all of ``loss``. Only the learning
            rate of the first group is annealed.

    Attributes:
        replay: single transitions, or n-step ones, sampled uniformly, or by priority.
        optimizer: the one that ``algo`` names.
        update: ``update(minibatch)``, see :func:`~torchrl_reg.lab.make_update`.
    """

    def __init__(
        self,
        run: Run,
        algo: ValueLearning,
        loss: LossModule,
        target: TargetNetUpdater,
        exploration: EpsilonSchedule | EGreedyModule,
        *,
        frame_stack: int = 1,
        parameters: Iterable[Any] | None = None,
    ) -> None:
        self.run, self.algo, self.loss = run, algo, loss
        stack = frame_stack if algo.n_steps == 1 else 1
        kept: dict[str, Any] = {"frame_stack": stack, "num_envs": algo.num_envs}
        if algo.priority_exponent:
            kept["sampler"] = StratifiedSampler(algo.replay_capacity, algo.priority_exponent, algo.importance_exponent)
        self.replay = run.replay(algo.replay_capacity, algo.batch_size, **kept)
        self.n_step = NStepTransform(algo.n_steps, algo.gamma) if algo.n_steps > 1 else None
        self.optimizer = make_optimizer(
            algo.optimizer,
            loss.parameters() if parameters is None else parameters,
            learning_rate=algo.learning_rate,
            eps=algo.adam_eps,
            decay=algo.rms_decay,
            capturable=run.cudagraphs,
        )
        self.update = run.make_update(loss, self.optimizer, target, max_grad_norm=algo.max_grad_norm)
        if algo.network_diagnostics:
            every = run.settings.diagnostics_every_updates
            self.update = with_network_diagnostics(self.update, loss.value_network, lambda: run.updates % every == 0)
        run.track(loss=loss, optimizer=self.optimizer, target=target, replay=self.replay)
        scheduled = isinstance(exploration, EpsilonSchedule)
        run.track(n_step=self.n_step, exploration=exploration.module if scheduled else exploration)
        #: What :meth:`collect` steps by itself.
        self.schedules: list[Any] = [exploration] if scheduled else []
        if algo.anneal_learning_rate:
            self.schedules.append(LinearSchedule(self._assign_rate, algo.learning_rate, 0.0, algo.total_frames))
        if algo.priority_exponent and algo.importance_exponent_end is not None:
            exponents = (algo.importance_exponent, algo.importance_exponent_end)
            assign = partial(setattr, self.replay.sampler, "beta")
            self.schedules.append(LinearSchedule(assign, *exponents, algo.total_frames))

    def collect(self, env: EnvBase, policy: Policy, schedules: Iterable[Any] | None = None) -> Iterator[TensorDictBase]:
        """Batches ``[num_envs, collect_steps]`` of the run.

        After each, the ``schedules`` are stepped, in place of those that ``algo`` asks for: a
        :class:`LinearSchedule` of a temperature, torch's learning-rate schedulers (by a batch, once learning has
        started), TorchRL's exploration modules (by the frames of a batch), or anything with ``step(run)``. To add one,
        give ``[*learner.schedules, one]``. Those with a ``state_dict`` are checkpointed.
        """
        run, algo = self.run, self.algo
        used = self.schedules if schedules is None else list(schedules)
        run.track(**{f"schedule_{i}": one for i, one in enumerate(used) if hasattr(one, "state_dict")})
        frames = algo.num_envs * algo.collect_steps * run.frames_per_step
        for batch in run.collect(env, policy, total_frames=algo.total_frames, frames_per_batch=frames):
            yield batch
            for schedule in used:
                _step(schedule, run, frames)

    def _assign_rate(self, rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = rate

    def store(self, batch: TensorDictBase) -> None:
        """Stores what the loss reads from ``batch``, in time order; clips and scales the rewards in place.

        Raises:
            ConfigError: a first batch of fewer than ``algo.n_steps`` steps.
        """
        if self.algo.clip_rewards:
            batch["next", "reward"].clamp_(-1, 1)
        if self.algo.reward_scale != 1:
            batch["next", "reward"].mul_(self.algo.reward_scale)
        observe_rewards(self.loss, batch)
        rows = batch if self.n_step is None else self.n_step.inv(batch)
        require(rows is not None, "algo.collect_steps", f">= {self.algo.n_steps}, algo.n_steps", batch.shape[-1])
        store(self.replay, rows_in_time(rows, [*self.loss.in_keys, "steps_to_next_obs"]))

    def minibatches(self) -> Iterator[TensorDictBase]:
        """A minibatch for each update due now."""
        return self.run.minibatches(self.replay, self.algo.update_every_frames, self.algo.learning_starts_frames)


def observe_rewards(loss: Any, batch: TensorDictBase) -> None:
    """Shows ``loss`` the rewards of a batch that was collected, if it looks at them (``loss.observe_rewards``)."""
    getattr(loss, "observe_rewards", lambda _: None)(batch)


def _step(schedule: Any, run: Any, frames: int) -> None:
    """Steps ``schedule`` by one batch of ``frames`` frames.

    torch's learning-rate schedulers count batches from the first update on, TorchRL's exploration modules count frames;
    others, like ours, are given the run.
    """
    if isinstance(schedule, LRScheduler):
        if run.updates:  # before the first it would warn
            schedule.step()
    elif isinstance(schedule, nn.Module):
        schedule.step(frames)  # type: ignore[operator]
    else:
        schedule.step(run)
