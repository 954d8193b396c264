"""Image environments end to end: steps/s of our recipe beside typical scripts, one thread.

The clock starts at the first update. Shapes: ``C`` channels, ``H`` and ``W`` pixels.
"""

from __future__ import annotations

import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from torchrl_reg.bench import recipes
from torchrl_reg.bench.cartpole import EPSILON, GAMMA, Columns, Ring, munchausen
from torchrl_reg.bench.measure import Case, Table
from torchrl_reg.envs import EnvError, EnvSettings
from torchrl_reg.modules import NetSettings

EVERY, BATCH = 4, 32  # steps per update; transitions


def minatar_tables(steps: int = 3_000, device: str = "cpu") -> list[Table]:
    """MinAtar Breakout, one convolution and 128 hidden units."""
    reference = "hand-written M-DQN, 8 environments"
    algo = _algo(steps, starts=500)
    parts = {"env": EnvSettings("minatar", game="breakout"), "net": NetSettings("minatar", num_cells=[128])}
    cases = [Case(reference, lambda: hand_written_minatar(steps, device=device), reference)]
    for n in (8, 32):
        measure = recipes.speed("m_dqn", parts, algo | {"num_envs": n}, log_every=500, device=device)
        cases.append(Case(f"recipes/m_dqn.py, {n} environments", measure, reference))
    return [Table(f"MinAtar Breakout, 1 update per {EVERY} steps, batch {BATCH}", "steps/s", cases)]


def atari_tables(steps: int = 640, device: str = "cpu") -> list[Table]:
    """Atari Breakout, four frames stacked, the network of Mnih et al. 2015."""
    reference = "CleanRL's loop of dqn_atari.py, written again"
    frames = {name: 4 * value for name, value in _algo(steps, starts=192).items() if name in _IN_FRAMES}
    parts = {  # short episodes, since the greedy policy evaluated at the end never launches the ball
        "env": EnvSettings("atari", game="Breakout", max_episode_frames=2_000),
        "net": NetSettings("nature", num_cells=[512]),
    }
    cases = [Case(reference, lambda: cleanrl_atari(steps, starts=192, device=device), reference)]
    ways: list[tuple[str, dict[str, bool]]] = [
        ("recipes/m_dqn.py, 8 environments", {}),
        ("the same with run.overlap, 2 cores", {"overlap": True}),
    ]
    if device != "cpu" or _computes_in_bfloat16():
        ways.append(("the same with run.overlap and run.bf16", {"overlap": True, "bf16": True}))
    for name, run in ways:
        algo = _algo(steps, starts=192) | frames
        measure = recipes.speed("m_dqn", parts, algo, log_every=512, per_step=4, device=device, **run)
        cases.append(Case(name, measure, reference))
    return [Table(f"Atari Breakout, 1 update per {EVERY} steps, batch {BATCH}", "steps/s", cases)]


def _computes_in_bfloat16() -> bool:
    """Whether this CPU has instructions for it; without them it is emulated, far slower than float32."""
    flags = Path("/proc/cpuinfo")
    return flags.exists() and bool({"avx512_bf16", "amx_bf16"} & set(flags.read_text().split()))


_IN_FRAMES = ("total_frames", "learning_starts_frames", "update_every_frames")


def _algo(steps: int, *, starts: int) -> dict[str, float]:
    sizes = {"total_frames": steps, "learning_starts_frames": starts, "update_every_frames": EVERY}
    return sizes | {"batch_size": BATCH, "replay_capacity": 10_000, "eps_start": EPSILON, "eps_end": EPSILON}


def hand_written_minatar(steps: int, starts: int = 500, num_envs: int = 8, device: str = "cpu") -> float:
    """Steps/s of Munchausen DQN in plain PyTorch over ``minatar.Environment``.

    Raises:
        EnvError: minatar is not installed.
    """
    try:
        from minatar import Environment
    except ModuleNotFoundError:
        raise EnvError("bench minatar needs minatar, got none: pip install 'torchrl_reg[recipes]'.") from None
    torch.set_num_threads(1)
    envs = [Environment("breakout", sticky_action_prob=0.1) for _ in range(num_envs)]
    actions = np.array(envs[0].minimal_action_set())
    for env in envs:
        env.reset()

    def images() -> np.ndarray:
        return np.stack([env.state().transpose(2, 0, 1) for env in envs]).astype(np.uint8)

    def build() -> nn.Sequential:
        flat = nn.Linear(16 * 8 * 8, 128)
        return nn.Sequential(
            nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Flatten(), flat, nn.ReLU(), nn.Linear(128, len(actions))
        )

    def step(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        results = [env.act(actions[a]) for env, a in zip(envs, chosen, strict=True)]
        after = images()
        ended = np.array([end for _, end in results])
        for env, end in zip(envs, ended, strict=True):
            if end:
                env.reset()
        return after, np.array([reward for reward, _ in results], np.float32), ended, images() if ended.any() else after

    q, target = build().to(device), build().to(device)
    target.load_state_dict(q.state_dict())
    optimizer = torch.optim.Adam(q.parameters(), lr=2.5e-4, fused=True)
    ring = Ring(10_000, _images((4, 10, 10)), device)
    observation, start, updates, earned = images(), 0.0, 0, 0.0
    for number in range(0, steps, num_envs):
        if number >= starts and not start:
            start = time.perf_counter()
        with torch.no_grad():
            greedy = q(torch.from_numpy(observation).to(device).float()).argmax(1).cpu().numpy()
        random = np.random.randint(len(actions), size=num_envs)
        chosen = np.where(np.random.rand(num_envs) < EPSILON, random, greedy)
        after, reward, ended, following = step(chosen)
        ring.add(observation, after, chosen, reward, ended)
        observation = following
        earned += num_envs / EVERY if number >= starts else 0
        while updates < int(earned):
            o, o2, a, r, end = ring.sample(BATCH)
            optimizer.zero_grad()
            munchausen(q, target, o.float(), o2.float(), a, r, end).backward()
            optimizer.step()
            updates += 1
            if updates % 250 == 0:
                target.load_state_dict(q.state_dict())
    return (steps - starts) / (time.perf_counter() - start)


def cleanrl_atari(steps: int, starts: int, device: str = "cpu") -> float:
    """Steps/s of the loop of CleanRL's ``dqn_atari.py``: one environment, DQN, Adam, stacked images in the buffer.

    Raises:
        EnvError: ale-py or OpenCV, with which gymnasium scales images, is not installed.
    """
    try:
        import ale_py
        import cv2  # type: ignore[import-not-found]  # noqa: F401
    except ModuleNotFoundError as error:
        needs = f"bench atari needs {error.name}, got none: pip install 'torchrl_reg[atari,bench]'."
        raise EnvError(needs) from None
    torch.set_num_threads(1)
    gymnasium.register_envs(ale_py)
    envs = SyncVectorEnv([_preprocessed_breakout], autoreset_mode=AutoresetMode.SAME_STEP)
    count = int(envs.single_action_space.n)  # type: ignore[attr-defined]
    q, target = nature(count).to(device), nature(count).to(device)
    target.load_state_dict(q.state_dict())
    optimizer = torch.optim.Adam(q.parameters(), lr=1e-4)
    ring = Ring(steps, _images((4, 84, 84)), device)
    observation, _ = envs.reset(seed=1)
    start = 0.0
    for number in range(steps):
        if number == starts:
            start = time.perf_counter()
        if np.random.rand() < EPSILON:
            actions = np.random.randint(count, size=1)
        else:
            actions = q(torch.Tensor(observation).to(device) / 255.0).argmax(1).cpu().numpy()
        following, reward, terminated, truncated, infos = envs.step(actions)
        after = infos["final_obs"][0][None] if (terminated | truncated)[0] else following
        ring.add(observation, after, actions, np.sign(reward), terminated)
        observation = following
        if number >= starts and number % EVERY == 0:
            o, o2, a, r, end = ring.sample(BATCH)
            with torch.no_grad():
                y = r + GAMMA * target(_scaled(o2)).max(dim=1).values * (1 - end)
            loss = nn.functional.mse_loss(y, q(_scaled(o)).gather(1, a.unsqueeze(1)).squeeze(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (steps - starts) / (time.perf_counter() - start)


def _preprocessed_breakout() -> gymnasium.Env:
    """The work of CleanRL's wrappers, in their order: RGB images, maximum, scaling, grayscale."""
    from gymnasium import wrappers

    game = wrappers.RecordEpisodeStatistics(gymnasium.make("ALE/Breakout-v5", frameskip=1))
    small = wrappers.ResizeObservation(wrappers.MaxAndSkipObservation(game, skip=4), (84, 84))
    return wrappers.FrameStackObservation(wrappers.GrayscaleObservation(small), 4)


def nature(num_actions: int) -> nn.Sequential:
    """The network of Mnih et al. 2015."""
    convolutions: list[nn.Module] = []
    for sizes in ((4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)):
        convolutions += [nn.Conv2d(*sizes), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, num_actions))


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 255.0


def _images(shape: tuple[int, ...]) -> Columns:
    return [(shape, np.uint8), (shape, np.uint8), ((), np.int64), ((), np.float32), ((), np.float32)]
