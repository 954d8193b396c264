"""M-DQN on CartPole in many processes, or machines: Ray collectors, replay and learners, by TorchRL's own trainer.

    python recipes/ray_m_dqn.py                                  # two collectors and two learners on this machine
    python recipes/ray_m_dqn.py --address auto --learners 8      # in a running Ray cluster
    python recipes/ray_m_dqn.py --frames 100000 --collectors 4

The loss and the target update are those of m_dqn.py; all else is TorchRL's, whose learners average their gradients.
Needs ``pip install 'torchrl_reg[ray]'``. Expect about 450 in the last training episodes, which still explore.
Source: as of m_dqn.py.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from tensordict.nn import TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import MLP, EGreedyModule, QValueActor
from torchrl.trainers.algorithms import DQNTrainer

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.objectives import HardTargetUpdate, MunchausenDQNLoss


def main(arguments: Sequence[str] | None = None) -> float:
    """Trains, and returns the mean return of the last 20 training episodes, which explore."""
    parser = argparse.ArgumentParser(description="M-DQN on CartPole with Ray collectors, replay and learners.")
    for name, default in (("frames", 50_000), ("collectors", 2), ("learners", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    parser.add_argument("--address", help="of a Ray cluster (default: start one here and stop it)")
    chosen = parser.parse_args(arguments)
    smallest = min(chosen.frames - 63, chosen.collectors, chosen.learners)
    if smallest < 1 or 16 % chosen.collectors or 64 % chosen.learners:
        parser.error("--frames must be at least 64, --collectors a divisor of 16 and --learners one of 64")
    if importlib.util.find_spec("ray") is None:
        raise SystemExit("ray_m_dqn needs ray, got none: pip install 'torchrl_reg[ray]'.")
    torch.manual_seed(chosen.seed)
    make, returns = partial(make_env, EnvSettings("cartpole"), 4), deque[float](maxlen=20)
    spec = make().full_action_spec_unbatched["action"]
    actor = QValueActor(MLP(4, 2, num_cells=[128, 128], activation_class=torch.nn.ReLU), spec=spec)
    egreedy = EGreedyModule(spec, eps_init=1.0, eps_end=0.05, annealing_num_steps=10_000)
    loss = MunchausenDQNLoss(actor, tau=0.03, alpha=0.9, clip_min=-1.0, loss_function="smooth_l1")
    loss.make_value_estimator(gamma=0.99)
    here = {"num_cpus": 1 + chosen.collectors + chosen.learners, "include_dashboard": False, "log_to_driver": False}
    one, start = {"num_cpus": 1}, here if chosen.address is None else {"address": chosen.address}
    frames = {"frames_per_batch": 64, "total_frames": chosen.frames}  # Ray's collector stops at once at -1
    remote: dict[str, Any] = {"backend": "ray", "backend_options": {"ray_init_config": start, "remote_configs": one}}
    explorer = TensorDictSequential(loss.value_network, egreedy)
    collector = Collector([make] * chosen.collectors, explorer, sync=True, **frames, **remote)
    remote = {"service_backend": "ray", "service_backend_options": {"remote_config": one}}
    replay = TensorDictReplayBuffer(storage=partial(LazyTensorStorage, 50_000), batch_size=64, **remote)
    parts: dict[str, Any] = {"loss_module": loss, "target_net_updater": HardTargetUpdate(loss, period_updates=50)}
    parts |= {"collector": collector, "replay_buffer": replay, "greedy_module": egreedy, "enable_logging": False}
    parts |= {"learner_backend": "ray", "learner_backend_options": {"world_size": chosen.learners}}
    parts |= {"optimizer": torch.optim.Adam(loss.parameters(), 2e-3), "optim_steps_per_batch": 16, "frame_skip": 1}
    trainer = DQNTrainer(**parts, total_frames=chosen.frames, seed=chosen.seed)
    ends = lambda batch: returns.extend(batch["next", "episode_reward"][batch["next", "done"]].tolist())  # noqa: E731
    trainer.register_op("pre_steps_log", ends)
    trainer.train()
    mean_return = sum(returns) / max(1, len(returns))
    print(f"mean return of the last {len(returns)} training episodes: {mean_return:.1f}")
    return mean_return


if __name__ == "__main__":
    main()
