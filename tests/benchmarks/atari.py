"""How fast is a whole run on Atari Breakout? Ours beside CleanRL's loop; the network of Mnih et al. 2015."""

from __future__ import annotations

from pathlib import Path

import gymnasium
from gymnasium import wrappers
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from tests.benchmarks import recipes
from tests.benchmarks.measure import Table, main
from tests.benchmarks.scripts import EPSILON, Size, cleanrl_dqn
from torchrl_reg.envs import EnvSettings
from torchrl_reg.modules import NetSettings

STARTS, EVERY, BATCH, SKIP = 192, 4, 32, 4  # steps before the first update, steps per update, transitions, frames


def tables(steps: int = 640, device: str = "cpu") -> list[Table]:
    """Steps/s on Atari Breakout, four frames a step and four stacked."""
    size = Size(steps, STARTS, EVERY, BATCH, device)
    cases = {"CleanRL's loop of dqn_atari.py, written again": lambda: cleanrl_dqn(breakout(), nature, size)}
    algo = {"total_frames": SKIP * steps, "learning_starts_frames": SKIP * STARTS, "update_every_frames": SKIP * EVERY}
    algo |= {"batch_size": BATCH, "replay_capacity": 10_000, "eps_start": EPSILON, "eps_end": EPSILON}
    parts = {  # short episodes, since the greedy policy evaluated at the end never launches the ball
        "env": EnvSettings("atari", game="Breakout", max_episode_frames=2_000),
        "net": NetSettings("nature", num_cells=[512]),
    }
    ways = {"recipes/m_dqn.py, 8 environments": {}, "the same with run.overlap, 2 cores": {"overlap": True}}
    if device != "cpu" or _computes_in_bfloat16():
        ways["the same with run.overlap and run.bf16"] = {"overlap": True, "bf16": True}
    for name, run in ways.items():
        cases[name] = recipes.speed("m_dqn", parts, algo, log_every=512, per_step=SKIP, device=device, **run)
    return [Table(f"Atari Breakout, 1 update per {EVERY} steps, batch {BATCH}", "steps/s", cases)]


def _computes_in_bfloat16() -> bool:
    """Without instructions for it a CPU emulates it, far slower than float32."""
    flags = Path("/proc/cpuinfo")
    return flags.exists() and bool({"avx512_bf16", "amx_bf16"} & set(flags.read_text().split()))


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


class Scaled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images / 255.0


def nature(num_actions: int = 4) -> nn.Sequential:
    """The network of Mnih et al. 2015."""
    convolutions: list[nn.Module] = []
    for sizes in ((4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)):
        convolutions += [nn.Conv2d(*sizes), nn.ReLU()]
    head = [nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, num_actions)]
    return nn.Sequential(Scaled(), *convolutions, *head)


if __name__ == "__main__":
    main(tables)
