"""The panel shows the values, the choice and the entropy of a moment.

``torchrl-reg play`` draws every family of environments with the policy beside it.
"""

from __future__ import annotations

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

from torchrl_reg.lab.agents.panel import (
    _CHOSEN,
    _OTHER,
    WIDTH,
    Moment,
    Panel,
    action_probabilities,
    episode_frames,
    played,
)
from torchrl_reg.lab.agents.panel import WIDTH as PANEL_WIDTH
from torchrl_reg.lab.agents.saved import read_policy
from torchrl_reg.lab.commands.main import main
from torchrl_reg.modules import ActionPrior, BoltzmannQActor, PriorEGreedyModule

pytest.importorskip("PIL")
BLACK = np.zeros((301, 99, 3), np.uint8)


def bar(frame: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int]:
    """Width in pixels, and the row, of the longest bar of this colour; to its left is its name."""
    widths = (frame[:, 99 + 97 :] == np.array(colour)).all(-1).sum(1)
    return int(widths.max()), int(widths.argmax())


def test_bars_keep_one_scale() -> None:
    panel = Panel("title", ("up", "down"), (0.0, 3.0))
    first = panel.frame(Moment(BLACK, 0, 0.0, torch.tensor([0.0, 3.0]), torch.tensor(0), 0.5, 0.69))
    assert first.shape == (302, 100 + WIDTH, 3) and np.array_equal(first[:301, :99], BLACK)  # even, for MP4
    (full, low), (width, row) = bar(first, _OTHER), bar(first, _CHOSEN)
    assert width < full / 4 and row < low
    for q, chosen, other in (([3.0, 1.0], 1, 1 / 3), ([1.0, 1.0], 1 / 3, 1 / 3), ([9.0, -9.0], 1, 0)):
        frame = panel.frame(Moment(BLACK, 1, 1.0, torch.tensor(q), torch.tensor(0)))
        assert abs(bar(frame, _CHOSEN)[0] - chosen * full) <= 2 and abs(bar(frame, _OTHER)[0] - other * full) <= 2


def test_the_scale_is_that_of_the_whole_episode(make_run, monkeypatch) -> None:
    saved, ranges, moments = read_policy(make_run("cartpole", max_episode_frames=9)), [], []
    monkeypatch.setattr(Panel, "frame", lambda panel, moment: (ranges.append(panel._q_range), moments.append(moment)))
    list(episode_frames(saved, seed=3, mode="sampled"))
    q = torch.stack([moment.q for moment in moments[:-1]])
    assert len(q) > 4 and set(ranges) == {(q.min().item(), q.max().item())}


def test_a_continuous_action_has_a_bar_from_the_middle() -> None:
    panel = Panel("title", ())
    right, left, beyond = (panel.frame(Moment(BLACK, 0, 0.0, None, torch.tensor([a]))) for a in (0.5, -0.5, 9.0))
    columns = [np.flatnonzero((frame == np.array(_CHOSEN)).all(-1).any(0)) for frame in (right, left)]
    assert columns[1].max() - columns[0].max() < -20
    assert bar(beyond, _CHOSEN)[0] == pytest.approx(2 * bar(right, _CHOSEN)[0], abs=2)


def test_an_entropy_is_shown_and_the_last_state_has_no_choice() -> None:
    panel = Panel("title", ("up", "down"))
    frames = [panel.frame(Moment(BLACK, 3, 2.0, entropy=entropy)) for entropy in (None, 0.5, 0.6)]
    assert len({frame.tobytes() for frame in frames}) == 3 and bar(frames[0], _CHOSEN)[0] == 0


Image = pytest.importorskip("PIL.Image")
STEPS = 4
#: Environment, and what it needs to be drawn here.
WORLDS = {"cartpole": "pygame", "pendulum": "pygame", "minatar/breakout": "minatar", "atari/Pong": "ale_py"}
WORLDS |= {"gym/FrozenLake-v1": "pygame", "gym/Pendulum-v1": "pygame"}
WORLDS |= {"gridworld/grid": "torch", "gridworld/goals": "torch", "mujoco/hopper": "mujoco"}


@pytest.mark.parametrize("name", WORLDS)
def test_an_episode_becomes_a_gif(name: str, make_run, capsys, monkeypatch) -> None:
    pytest.importorskip(WORLDS[name])
    monkeypatch.delenv("DISPLAY", raising=False)
    folder = make_run(*name.split("/"), max_episode_frames=20, episodes=1)
    code = main(["play", str(folder), "--max-steps", str(STEPS), "--mode", "sampled"])
    out, err = capsys.readouterr()
    if "it needs EGL" in err:
        pytest.skip(err)
    assert (code, out) == (0, f"no display, so written to {folder}/videos/sampled-seed=0.gif: {STEPS + 1} frames\n")
    shown = []
    with Image.open(folder / "videos/sampled-seed=0.gif") as image:
        for index in range(image.n_frames):
            image.seek(index)
            shown.append(np.asarray(image.convert("RGB"))[:, : -PANEL_WIDTH - 1])
    assert len(shown) == STEPS + 1 or "grid" in name or "Lake" in name  # GIFs merge frames that are the same
    assert all(picture.std() > 5 for picture in shown)
    assert any(not np.array_equal(shown[0], picture) for picture in shown[1:])


def test_the_last_picture_is_of_the_last_state(make_run) -> None:
    """Also of environments that draw themselves: they are not reset before."""
    pytest.importorskip("Box2D")
    saved = read_policy(make_run("lunarlander", max_episode_frames=5))
    env = saved.make_env(1)
    game = env.base_env._env.envs[0].unwrapped
    heights = [m.picture for m in played(env, saved.policy, lambda state: game.lander.position[1], seed=3)]
    assert len(heights) == 6 and len(set(heights)) == 6
    assert abs(heights[5] - heights[4]) < 2 * abs(heights[4] - heights[3]) + 0.1


def test_the_moments_are_those_of_the_environment(make_run) -> None:
    saved = read_policy(make_run("cartpole", max_episode_frames=7))
    env = saved.make_env(1)
    *moments, last = played(env, saved.policy, lambda state: state["observation"][0].numpy().copy(), seed=3)
    assert [(m.step, m.reward_so_far) for m in (*moments, last)] == [(i, float(i)) for i in range(8)]
    assert all(int(moment.action) == int(moment.q.argmax()) for moment in moments)
    env.set_seed(3)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        seen = env.rollout(7, saved.policy)
    assert np.array_equal([m.picture for m in moments], seen["observation"][0])
    assert np.array_equal(last.picture, seen["next", "observation"][0, -1])
    assert last.action is None and last.q is None


def test_the_probabilities_are_those_of_the_sampling_policy() -> None:
    q, rho = torch.tensor([[0.3, -0.2, 0.9]]), torch.tensor([0.5, 0.3, 0.2])
    acted = TensorDict({"action_value": q, "log_prior": rho.log()[None]}, [1])
    actor, spec = QValueActor(nn.Linear(4, 3), spec=Categorical(3)), Categorical(3)
    prior = ActionPrior(3, probabilities=rho.tolist(), beta=0.5)
    by_state = PriorEGreedyModule(spec, ActionPrior(3, beta=0.5), eps_init=0.4, log_prior_key="log_prior")
    explored = 0.4 * rho + torch.tensor([0.6, 0.0, 0.0])  # ln rho + beta q: -.54, -1.30, -1.16
    for module, expected in (
        (BoltzmannQActor(actor, tau=0.5), torch.softmax(q[0] / 0.5, -1)),
        (BoltzmannQActor(actor, prior=prior), torch.softmax(rho.log() + 0.5 * q[0], -1)),
        (
            TensorDictSequential(actor, EGreedyModule(spec, eps_init=0.4)),
            torch.tensor([0.4 / 3, 0.4 / 3, 0.6 + 0.4 / 3]),
        ),
        (TensorDictSequential(actor, PriorEGreedyModule(spec, prior, eps_init=0.4)), explored),
        (TensorDictSequential(actor, by_state), explored),
        (actor, torch.tensor([0.0, 0.0, 1.0])),
    ):
        torch.testing.assert_close(action_probabilities(module, acted).float(), expected, atol=1e-5, rtol=0)


def test_what_cannot_be_shown_is_one_sentence(make_run, refusal) -> None:
    folder = make_run("cartpole")
    assert "A video must be a file ending in .gif or .mp4, got a.png" in refusal("play", folder, "--out", "a.png")
    assert "--max-steps must be >= 1, got 0" in refusal("play", folder, "--max-steps", 0)


def test_an_environment_without_pictures_is_one_sentence(make_run, refusal, monkeypatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "envs")
    folder = make_run("gym", "Own/Vector-v0", import_module="own_worlds")
    assert "draws itself (rgb_array), got 'Own/Vector-v0', which gives NotImplementedError" in refusal("play", folder)


def test_the_density_of_a_continuous_policy_has_no_largest_entropy(make_run) -> None:
    saved = read_policy(make_run("pendulum", max_episode_frames=3))
    kind = ExplorationType.RANDOM
    moments: list[Any] = list(played(saved.make_env(1), saved.policy, lambda state: None, seed=0, kind=kind))
    assert len(moments) == 4 and moments[0].q is None and moments[0].action.shape == (1,)
    assert moments[0].entropy is not None and moments[0].largest_entropy is None
