"""Hyperparameters and learner of the recipes for continuous actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import EnvBase
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater

from torchrl_reg.lab.errors import require
from torchrl_reg.lab.learners.learner import Learner, Learning, optimizer_of
from torchrl_reg.lab.learners.replay import make_replay, store
from torchrl_reg.lab.run.evaluation import Policy
from torchrl_reg.lab.run.run import Run


@dataclass
class PolicyLearning(Learning):
    """Hyperparameters of learning a policy from replay: default (for Pendulum), unit, source.

    A recipe's ``Algo`` derives from it and adds those of its method; env and paper presets override both. Sources: [S]
    Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018.
    """

    total_frames: int = 10_000  # environment frames
    gamma: float = 0.99  # discount [S]
    learning_rate: float = 1e-3  # Adam, of all networks; 3e-4 on MuJoCo [S]
    adam_eps: float = 1e-8  # PyTorch's
    batch_size: int = 256  # transitions [S]; of pcl.py sequences
    replay_capacity: int = 100_000  # transitions; 1M on MuJoCo [S]
    learning_starts_frames: int = 1_000  # frames before the first update; 10k on MuJoCo [S]
    random_until_learning: bool = False  # uniformly random actions until then, in place of the policy's
    update_every_frames: float = 1  # frames per gradient update [S]
    target_rate: float = 0.005  # Polyak rate of the target networks, per update [S]
    num_envs: int = 8  # environments stepped together
    collect_steps: int = 4  # steps of each between two rounds of updates
    reward_scale: float = 1.0  # of the rewards that are learnt from; reported returns stay raw


class _RandomUntilLearning(nn.Module):
    """``policy``, with uniformly random actions while ``is_early()``."""

    def __init__(self, policy: Policy, env: EnvBase, is_early: Callable[[], bool]) -> None:
        super().__init__()
        self.policy, self.spec, self.is_early = policy, env.action_spec_unbatched, is_early

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict = self.policy(tensordict)  # for its other entries
        return tensordict.set("action", self.spec.rand(tensordict.batch_size)) if self.is_early() else tensordict


class PolicyLearner(Learner):
    """Learns a policy from replay with any loss, as set by ``algo``.

    Args:
        run, algo, loss, target, max_grad_norm: see :class:`Learner`.
        sequences: store the ``collect_steps`` steps of an environment as one row, instead of single transitions.

    Attributes:
        replay: sampled uniformly.
        optimizer: Adam.
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
        rows = algo.replay_capacity // (algo.collect_steps if sequences else 1)
        replay = make_replay(rows, algo.batch_size, device=run.device)
        optimizer = optimizer_of(algo, loss.parameters(), run)
        super().__init__(run, algo, loss, optimizer, target, replay=replay, max_grad_norm=max_grad_norm)
        self.sequences = sequences

    def collect(self, env: EnvBase, policy: Policy) -> Iterator[TensorDictBase]:
        """Yields batches ``[num_envs, collect_steps]``."""
        algo, run = self.algo, self.run
        if algo.random_until_learning:
            indices = [key for key in self.loss.in_keys if key == "action_index"]
            require(not indices, "algo.random_until_learning", "false where the loss reads the index of a bin", True)
            policy = _RandomUntilLearning(policy, env, lambda: run.frames < algo.learning_starts_frames)
        return super().collect(env, policy)

    def store(self, batch: TensorDictBase) -> None:
        """Stores the entries of ``batch`` that the loss reads, as transitions in order of time or as sequences.

        Scales the rewards in place.
        """
        if self.algo.reward_scale != 1:
            batch["next", "reward"].mul_(self.algo.reward_scale)
        if not self.sequences:
            return super().store(batch)
        store(self.replay, batch.select(*self.loss.in_keys))
