"""Speed of whole runs on Atari Breakout, compared with CleanRL's loop; the network of Mnih et al. 2015."""

from __future__ import annotations

from pathlib import Path

import gymnasium
from gymnasium import wrappers
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from tests.benchmarks.measure import Table, main
from tests.benchmarks.scripts import Size, cleanrl_dqn, recipe
from torchrl_reg.envs import EnvSettings
from torchrl_reg.modules import NetSettings

SKIP = 4  # frames a step


def table(steps: int = 640, device: str = "cpu") -> Table:
    """Steps/s on Atari Breakout, four frames a step and four stacked."""
    size = Size(steps, starts=192, every=4, batch=32, device=device)
    cases = {"CleanRL's loop of dqn_atari.py, written again": lambda: cleanrl_dqn(breakout(), Nature, size)}
    parts = {  # short episodes, since the greedy policy evaluated at the end never launches the ball
        "env": EnvSettings("atari", game="Breakout", max_episode_frames=2_000),
        "net": NetSettings("nature", num_cells=[512]),
    }
    ways = {"recipes/m_dqn.py, 8 environments": {}, "the same with run.overlap, 2 cores": {"overlap": True}}
    flags = Path("/proc/cpuinfo")  # without instructions for bfloat16 a CPU emulates it, far slower than float32
    if device != "cpu" or (flags.exists() and {"avx512_bf16", "amx_bf16"} & set(flags.read_text().split())):
        ways["the same with run.overlap and run.bf16"] = {"overlap": True, "bf16": True}
    for name, run in ways.items():
        cases[name] = recipe("m_dqn", parts, size, log_every=512, per_step=SKIP, replay_capacity=10_000, **run)
    return Table("Atari Breakout, 1 update per 4 steps, batch 32", "steps/s", cases)


def breakout() -> SyncVectorEnv:
    """The work of CleanRL's wrappers, in their order: RGB images, maximum, scaling (by OpenCV), grayscale."""
    import ale_py

    gymnasium.register_envs(ale_py)

    def build() -> gymnasium.Env:
        game = wrappers.RecordEpisodeStatistics(gymnasium.make("ALE/Breakout-v5", frameskip=1))
        small = wrappers.ResizeObservation(wrappers.MaxAndSkipObservation(game, skip=SKIP), (84, 84))
        clipped = wrappers.TransformReward(small, lambda reward: max(-1.0, min(1.0, reward)))
        return wrappers.FrameStackObservation(wrappers.GrayscaleObservation(clipped), 4)

    return SyncVectorEnv([build], autoreset_mode=AutoresetMode.SAME_STEP)


class Nature(nn.Module):
    """The network of Mnih et al. 2015."""

    def __init__(self, num_actions: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for sizes in ((4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)):
            layers += [nn.Conv2d(*sizes), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, num_actions))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images / 255.0)


if __name__ == "__main__":
    main(table)
