"""What the recipes for continuous actions share: their hyperparameters, and everything around the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import EnvBase
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater

from torchrl_reg.lab.errors import require
from torchrl_reg.lab.learners.checks import check_replay_learning
from torchrl_reg.lab.learners.optimizers import make_optimizer
from torchrl_reg.lab.learners.replay import store
from torchrl_reg.lab.learners.value_learning import observe_rewards
from torchrl_reg.lab.run.evaluation import Policy
from torchrl_reg.lab.run.run import Run


@dataclass
class PolicyLearning:
    """Hyperparameters of learning a policy from replay, in frames and updates: default, unit, source; for Pendulum.

    A recipe's ``Algo`` derives from it and adds its method's own; env and paper presets override both. Sources: [S]
    Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018.
    """

    total_frames: int = 10_000  # environment frames
    gamma: float = 0.99  # discount [S]
    learning_rate: float = 1e-3  # Adam, of all networks; 3e-4 on MuJoCo [S]
    adam_eps: float = 1e-8  # PyTorch's
    batch_size: int = 256  # transitions [S]; of pcl.py sequences
    replay_capacity: int = 100_000  # transitions; 1M on MuJoCo [S]
    learning_starts_frames: int = 1_000  # 10k on MuJoCo [S]
    random_until_learning: bool = False  # uniformly random actions until then, in place of the policy's
    update_every_frames: float = 1  # frames per gradient update [S]
    target_rate: float = 0.005  # Polyak rate of the target networks, per update [S]
    num_envs: int = 8  # environments stepped together
    collect_steps: int = 4  # steps of each between two rounds of updates

    def validate(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: a value out of range; the sentence names it.
        """
        check_replay_learning(self)


class _UniformFirst(nn.Module):
    """Acts with ``policy``, whose actions uniformly random ones replace while ``is_early()``."""

    def __init__(self, policy: Policy, env: EnvBase, is_early: Callable[[], bool]) -> None:
        super().__init__()
        self.policy, self.spec, self.is_early = policy, env.action_spec_unbatched, is_early

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict = self.policy(tensordict)  # for its other entries
        return tensordict.set("action", self.spec.rand(tensordict.batch_size)) if self.is_early() else tensordict


class PolicyLearner:
    """Collects frames, stores them and learns with any loss of a policy, as set by ``algo``. The loop is the recipe's::

        for batch in learner.collect(env, actor):
            learner.store(batch)
            for minibatch in learner.minibatches():
                run.record(learner.update(minibatch))

    Args:
        run: the run, whose checkpoints hold everything created here.
        algo: the hyperparameters.
        loss: a loss with a value estimator.
        target: the updater of its target networks; None where there are none.
        max_grad_norm: of all gradients together; None: no clip.
        sequences: store the ``collect_steps`` steps of an environment as one row, instead of single transitions.

    Attributes:
        replay: sampled uniformly.
        optimizer: Adam.
        update: ``update(minibatch)``, see :func:`~torchrl_reg.lab.make_update`.
    """

    def __init__(
        self,
        run: Run,
        algo: PolicyLearning,
        loss: LossModule,
        target: TargetNetUpdater | None,
        *,
        max_grad_norm: float | None = None,
        sequences: bool = False,
    ) -> None:
        self.run, self.algo, self.loss, self.sequences = run, algo, loss, sequences
        rows = algo.replay_capacity // (algo.collect_steps if sequences else 1)
        self.replay = run.replay(rows, algo.batch_size)
        self.optimizer = make_optimizer(
            "adam", loss.parameters(), learning_rate=algo.learning_rate, eps=algo.adam_eps, capturable=run.cudagraphs
        )
        self.update = run.make_update(loss, self.optimizer, target, max_grad_norm=max_grad_norm)
        run.track(loss=loss, optimizer=self.optimizer, target=target, replay=self.replay)

    def collect(self, env: EnvBase, policy: Policy) -> Iterator[TensorDictBase]:
        """Batches ``[num_envs, collect_steps]`` of the run."""
        algo, run = self.algo, self.run
        if algo.random_until_learning:
            taken = [key for key in self.loss.in_keys if key == "action_index"]
            require(not taken, "algo.random_until_learning", "false where the loss reads the index of a bin", True)
            policy = _UniformFirst(policy, env, lambda: run.frames < algo.learning_starts_frames)
        frames = algo.num_envs * algo.collect_steps * run.frames_per_step
        return run.collect(env, policy, total_frames=algo.total_frames, frames_per_batch=frames)

    def store(self, batch: TensorDictBase) -> None:
        """Stores what the loss reads from ``batch``, in order of time; of a binned action the bins."""
        observe_rewards(self.loss, batch)
        rows = batch.select(*self.loss.in_keys)
        store(self.replay, rows if self.sequences else rows.transpose(0, 1).reshape(-1))

    def minibatches(self) -> Iterator[TensorDictBase]:
        """A minibatch for each update due now."""
        return self.run.minibatches(self.replay, self.algo.update_every_frames, self.algo.learning_starts_frames)
