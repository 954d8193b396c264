"""Episodes of saved policies: ``torchrl-reg play`` draws every family of environments with the policy beside it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.data import Categorical
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.agents.episode import action_probabilities, played
from torchrl_reg.agents.panel import WIDTH as PANEL_WIDTH
from torchrl_reg.agents.saved import read_policy
from torchrl_reg.cli import main
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import ActionPrior, BoltzmannQActor, PriorEGreedyModule

Image = pytest.importorskip("PIL.Image")
STEPS = 4
#: Environment, and what it needs to be drawn here.
WORLDS = {
    "cartpole": (EnvSettings("cartpole"), "pygame"),
    "acrobot": (EnvSettings("acrobot"), "pygame"),
    "pendulum": (EnvSettings("pendulum"), "pygame"),
    "mountaincar_continuous": (EnvSettings("mountaincar_continuous"), "pygame"),
    "minatar": (EnvSettings("minatar", "breakout"), "minatar"),
    "atari": (EnvSettings("atari", "Pong"), "ale_py"),
    "gridworld": (EnvSettings("gridworld", "grid"), "torch"),
    "goals": (EnvSettings("gridworld", "goals"), "torch"),
    "hopper": (EnvSettings("mujoco", "hopper"), "mujoco"),
}


def opened(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        frames = []
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
        return frames


@pytest.mark.parametrize("name", WORLDS)
def test_an_episode_becomes_a_gif(name: str, make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    settings, needed = WORLDS[name]
    pytest.importorskip(needed)
    folder = make_run(EnvSettings(settings.name, settings.game, max_episode_frames=20), episodes=1)
    # A process of its own: MuJoCo chooses its graphics when it is first imported.
    words = ["play", str(folder), "--max-steps", str(STEPS), "--mode", "sampled"]
    code = f"import sys, os; os.environ.pop('DISPLAY', 0); from torchrl_reg.cli import main; sys.exit(main({words!r}))"
    if name == "hopper":
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
        if "must be able to draw here" in done.stderr:
            pytest.skip(done.stderr)
        assert done.returncode == 0, done.stderr
        out = done.stdout
    else:
        assert main([*words, "--out", str(folder / "videos/sampled-seed=0.gif")]) == 0
        out = capsys.readouterr().out
    assert out == f"{folder}/videos/sampled-seed=0.gif: {STEPS + 1} frames\n"
    frames = opened(folder / "videos/sampled-seed=0.gif")
    assert len(frames) == STEPS + 1 or name in ("gridworld", "goals")  # GIFs merge frames that are the same
    assert all(frame.std() > 5 for frame in frames)
    pictures = [frame[:, : -PANEL_WIDTH - 1] for frame in frames]
    assert any(not np.array_equal(pictures[0], picture) for picture in pictures[1:])


def test_the_moments_are_those_of_the_environment(make_run: Callable[..., Path]) -> None:
    settings = EnvSettings("cartpole", max_episode_frames=7)
    saved = read_policy(make_run(settings))
    env = make_env(settings, 1)
    moments = list(played(env, saved.policy, lambda state: state["observation"][0].numpy().copy(), seed=3))
    assert [moment.step for moment in moments] == list(range(8))
    assert [moment.reward_so_far for moment in moments] == [float(i) for i in range(8)]
    assert all(int(moment.action) == int(moment.q.argmax()) for moment in moments[:-1])
    env.set_seed(3)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        seen = env.rollout(7, saved.policy)
    assert np.array_equal(np.stack([m.picture for m in moments[:-1]]), seen["observation"][0].numpy())
    assert np.array_equal(moments[-1].picture, seen["next", "observation"][0, -1].numpy())
    assert moments[-1].action is None and moments[-1].q is None


def test_the_probabilities_are_those_of_the_sampling_policy() -> None:
    q = torch.tensor([[0.3, -0.2, 0.9]])
    acted = TensorDict({"action_value": q, "log_prior": torch.tensor([[0.5, 0.3, 0.2]]).log()}, [1])
    actor = QValueActor(nn.Linear(4, 3), spec=Categorical(3))
    prior = ActionPrior(3, probabilities=[0.5, 0.3, 0.2], beta=0.5)
    greedy = TensorDictSequential(actor, EGreedyModule(Categorical(3), eps_init=0.4, eps_end=0.4))
    from_prior = TensorDictSequential(actor, PriorEGreedyModule(Categorical(3), prior, eps_init=0.4))
    by_state = PriorEGreedyModule(Categorical(3), ActionPrior(3, beta=0.5), eps_init=0.4, log_prior_key="log_prior")
    boltzmann = torch.softmax(q[0] / 0.5, -1)
    tilted = prior.policy(q[0])
    # ln rho + beta q: -.54, -1.30, -1.16
    explored = torch.tensor([0.6 + 0.4 * 0.5, 0.4 * 0.3, 0.4 * 0.2])
    for module, expected in (
        (BoltzmannQActor(actor, tau=0.5), boltzmann),
        (BoltzmannQActor(actor, prior=prior), tilted),
        (greedy, torch.tensor([0.4 / 3, 0.4 / 3, 0.6 + 0.4 / 3])),
        (from_prior, explored),
        (TensorDictSequential(actor, by_state), explored),
        (actor, torch.tensor([0.0, 0.0, 1.0])),
    ):
        torch.testing.assert_close(action_probabilities(module, acted).float(), expected.float(), atol=1e-5, rtol=0)


def test_what_cannot_be_shown_is_one_sentence(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(EnvSettings("cartpole"))
    for words, sentence in (
        (["--out", "a.png"], "A video must be a file ending in .gif or .mp4, got a.png"),
        (["--max-steps", "0"], "--max-steps must be >= 1, got 0"),
    ):
        assert main(["play", str(folder), *words]) == 1
        err = capsys.readouterr().err
        assert sentence in err and err.count("\n") == 1


def test_the_density_of_a_continuous_policy_has_no_largest_entropy(make_run: Callable[..., Path]) -> None:
    settings = EnvSettings("pendulum", max_episode_frames=3)
    saved = read_policy(make_run(settings))
    moments: list[Any] = list(
        played(make_env(settings, 1), saved.policy, lambda state: None, seed=0, kind=ExplorationType.RANDOM)
    )
    assert len(moments) == 4 and moments[0].q is None and moments[0].action.shape == (1,)
    assert moments[0].entropy is not None and moments[0].largest_entropy is None
