"""The base of all learners: ranges of settings, and the update, schedules and checkpoint around a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from tensordict import TensorDictBase
from torch.optim import Optimizer
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import EnvBase
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater

from torchrl_reg.lab.errors import require
from torchrl_reg.lab.learners.network_diagnostics import with_network_diagnostics
from torchrl_reg.lab.learners.optimizers import OPTIMIZERS, make_optimizer
from torchrl_reg.lab.learners.replay import draw_minibatches, rows_in_time, store
from torchrl_reg.lab.learners.schedules import LinearSchedule, step_schedule
from torchrl_reg.lab.learners.update import make_update
from torchrl_reg.lab.run.divergence import warn
from torchrl_reg.lab.run.evaluation import Policy
from torchrl_reg.lab.run.run import Run
from torchrl_reg.lab.run.settings import MAX_ENVS

_POSITIVE = (
    *("total_frames", "learning_rate", "batch_size", "update_every_frames"),
    *("target_period_updates", "eps_frames", "num_envs", "collect_steps", "n_steps", "reward_scale", "epochs"),
)
_EXPONENTS = ("priority_exponent", "importance_exponent", "importance_exponent_end")
_LOSSES = ("smooth_l1", "l2", "half_l2", "l1")
#: Of settings that several recipes have: names, what is expected, and whether a value is that.
_RANGES: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (_POSITIVE, "> 0", lambda value: value > 0),
    (("adam_eps", "learning_starts_frames", "eps_starts_frames"), ">= 0", lambda value: value >= 0),
    (("eps_off_frames",), ">= 0, or null", lambda value: value >= 0),
    (("max_grad_norm",), "> 0, or null", lambda value: value > 0),
    (("gamma", "eps_start", "eps_end", "rms_decay", *_EXPONENTS), "in [0, 1]", lambda value: 0 <= value <= 1),
    (("alpha",), "in [0, 1]", lambda value: 0 <= value <= 1),
    (("clip_min",), "<= 0 or null", lambda value: value <= 0),
    (("num_critics",), ">= 1", lambda value: value >= 1),
    (("explore",), "greedy or sampled", lambda value: value in ("greedy", "sampled")),
    (("target_rate",), "in (0, 1]", lambda value: 0 < value <= 1),
    (("num_envs",), f"<= {MAX_ENVS:,}", lambda value: value <= MAX_ENVS),
    (("optimizer",), f"one of {OPTIMIZERS}", lambda value: value in OPTIMIZERS),
    (("loss_function",), f"one of {_LOSSES}", lambda value: value in _LOSSES),
)


class Learning:
    """Base of a learner's hyperparameters."""

    def validate(self) -> None:
        """Checks the ranges of the settings present, and that the run is long enough to learn.

        Raises:
            UserError: a value out of range; the sentence names it.
        """
        settings = vars(self)
        for names, expected, holds in _RANGES:
            for name in (name for name in names if settings.get(name) is not None):
                require(holds(settings[name]), f"algo.{name}", expected, settings[name])
        updates = planned_updates(settings)
        if updates is None:
            return
        total, starts = settings["total_frames"], settings.get("learning_starts_frames", 0)
        longest = f"< algo.total_frames = {total:,}, to learn at all"
        require(starts < total, "algo.learning_starts_frames", longest, starts)
        every, longest = settings["update_every_frames"], f"<= {total - starts:,}, the frames that learning lasts"
        require(updates > 0, "algo.update_every_frames", longest, every)


def planned_updates(settings: Mapping[str, Any]) -> int | None:
    """The number of updates of a run; None if ``settings`` do not determine it."""
    if not {"total_frames", "update_every_frames"} <= settings.keys():
        return None
    learning = max(0, settings["total_frames"] - settings.get("learning_starts_frames", 0))
    return int(learning // settings["update_every_frames"])


def unreachable_settings(settings: Mapping[str, Any]) -> list[str]:
    """A sentence on each setting of a recipe's ``algo`` that this run is too short for."""
    found, updates = [], planned_updates(settings)
    period, total = settings.get("target_period_updates", 0), settings.get("total_frames", math.inf)
    if updates is not None and updates < period:
        found.append(f"algo.target_period_updates={period:,} has no effect: this run makes {updates:,} updates")
    starts = settings.get("eps_starts_frames")
    annealed = settings.get("learning_starts_frames", 0) if starts is None else starts
    annealed += settings.get("eps_frames", 0)
    if (
        settings.get("eps_decay") != "exponential"
        and settings.get("eps_off_frames") is None
        and annealed > total
        and settings.get("eps_start") != settings.get("eps_end")
    ):
        found.append(
            f"algo.eps_end={settings['eps_end']} is never reached: epsilon is annealed until frame {annealed:,}, "
            f"and this run ends at {total:,}"
        )
    return found


class Learner:
    """Learns with a loss from the batches of a run. The loop is the recipe's::

        for batch in learner.collect(env, policy):
            learner.store(batch)
            for minibatch in learner.minibatches():
                run.record(learner.update(minibatch))

    A checkpoint holds every attribute and every schedule that has ``state_dict`` and ``load_state_dict`` when
    :meth:`collect` is called.

    Args:
        run: clock, folder and record.
        algo: the hyperparameters: ``total_frames``, ``num_envs``, ``collect_steps``, ``update_every_frames`` and
            ``learning_starts_frames`` at least.
        loss: a loss with a value estimator.
        optimizer: built with ``capturable=run.settings.cudagraphs``.
        target: the updater of the target networks; None where there are none.
        replay: the buffer that :meth:`minibatches` samples from.
        max_grad_norm: of all gradients together; None: no clip.

    Attributes:
        update: ``update(minibatch)``, see :func:`~torchrl_reg.lab.make_update`.
        schedules: what is stepped after each batch, by default as set by ``algo``. Append to it, or replace it: a
            :class:`LinearSchedule` of a temperature, torch's learning-rate schedulers (by a batch, once learning has
            started), TorchRL's exploration modules (by the frames of a batch), or anything with ``step(run)``.
    """

    def __init__(
        self,
        run: Run,
        algo: Any,
        loss: LossModule,
        optimizer: Optimizer,
        target: TargetNetUpdater | None = None,
        *,
        replay: TensorDictReplayBuffer | None = None,
        max_grad_norm: float | None = None,
    ) -> None:
        self.run, self.algo, self.loss = run, algo, loss
        self.optimizer, self.target = optimizer, target
        self.replay: Any = replay  # None: a learner that stores nothing
        self.frames_per_batch = algo.num_envs * algo.collect_steps * run.frames_per_step
        every = run.settings.diagnostics_every_updates

        def wants_diagnostics() -> bool:
            return run.updates % every == 0

        update = make_update(
            loss,
            optimizer,
            target,
            replay=replay,
            max_grad_norm=max_grad_norm,
            device=run.device,
            compile=run.settings.compile,
            updates=self.planned_updates(),
            bf16=run.settings.bf16,
            cudagraphs=run.settings.cudagraphs,
            wants_diagnostics=None if every == 1 else wants_diagnostics,
            report=partial(setattr, run, "compiled"),
        )
        self.update = run.guarded(update)
        if getattr(algo, "network_diagnostics", False):
            self.update = with_network_diagnostics(self.update, loss.value_network, wants_diagnostics)
        self.schedules: list[Any] = []

    def planned_updates(self) -> int | None:
        """The number of updates of the run; None if its settings do not determine it."""
        return planned_updates(vars(self.algo))

    def parts(self) -> dict[str, Any]:
        """Name -> object with a state that a checkpoint holds."""
        scheduled = {f"schedule_{number}": one for number, one in enumerate(self.schedules)}
        owned = {name: part for name, part in vars(self).items() if part is not self.run} | scheduled
        return {
            name: part
            for name, part in owned.items()
            if hasattr(part, "state_dict") and hasattr(part, "load_state_dict")
        }

    def collect(self, env: EnvBase, policy: Policy) -> Iterator[TensorDictBase]:
        """Batches ``[num_envs, collect_steps]`` of the run; the schedules are stepped after each."""
        for sentence in unreachable_settings(vars(self.algo)):
            warn(f"{sentence}.")
        frames = {"total_frames": self.algo.total_frames, "frames_per_batch": self.frames_per_batch}
        for batch in self.run.collect(env, policy, parts=self.parts(), **frames):
            yield batch
            for schedule in self.schedules:
                step_schedule(schedule, self.run, self.frames_per_batch)

    def store(self, batch: TensorDictBase) -> None:
        """Stores what the loss reads from ``batch``, in order of time."""
        store(self.replay, rows_in_time(batch, self.loss.in_keys))

    def minibatches(self) -> Iterator[TensorDictBase]:
        """A minibatch for each update due now: one every ``update_every_frames`` frames, once learning has started."""
        due = self.run.due(self.algo.update_every_frames, self.algo.learning_starts_frames)
        return draw_minibatches(self.replay, due)

    def anneal_learning_rate(self) -> None:
        """Adds the schedule of the learning rate of the first group: linear to 0 over the run."""
        schedule = LinearSchedule(self.assign_learning_rate, self.algo.learning_rate, 0.0, self.algo.total_frames)
        self.schedules.append(schedule)

    def assign_learning_rate(self, rate: float) -> None:
        """Sets the learning rate of the first group."""
        self.optimizer.param_groups[0]["lr"] = rate


def optimizer_of(algo: Any, parameters: Iterable[Any], run: Run) -> Optimizer:
    """The optimizer that ``algo`` names; Adam where it names none."""
    named = {"decay": algo.rms_decay} if hasattr(algo, "rms_decay") else {}
    settings = {"learning_rate": algo.learning_rate, "eps": algo.adam_eps, **named}
    capturable = run.settings.cudagraphs
    return make_optimizer(getattr(algo, "optimizer", "adam"), parameters, capturable=capturable, **settings)


def scale_rewards(algo: Any, batch: TensorDictBase) -> None:
    """Clips, then scales the rewards of ``batch`` in place, as set by ``algo``."""
    if algo.clip_rewards:
        batch["next", "reward"].clamp_(-1, 1)
    if algo.reward_scale != 1:
        batch["next", "reward"].mul_(algo.reward_scale)
