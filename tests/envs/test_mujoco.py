"""MuJoCo's tasks: bounds, ends, and what building one leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.envs.adroit import GAMES as HANDS
from torchrl_reg.envs.mujoco import GAMES

TASKS = [("mujoco", game) for game in GAMES if not game.startswith("inverted")] + [("adroit", game) for game in HANDS]


@pytest.mark.parametrize(
    ("name", "game"), [("pendulum", ""), ("mountaincar_continuous", ""), ("multigoal", ""), *TASKS]
)
def test_the_bounds_are_actions_and_the_limit_truncates(name, game, restart):
    env = make_env(EnvSettings(name, game=game, max_episode_frames=4), 2)
    box = env.full_action_spec_unbatched["action"].space
    state = restart(env, 0)
    for step in range(1, 5):
        action = torch.stack([box.low, box.high])
        assert env.action_spec.is_in(action)
        stepped, state = env.step_and_maybe_reset(state.set("action", action))
        assert stepped["next"].isfinite().all()
        assert (stepped["next", "truncated"] == (step == 4)).all() and not stepped["next", "terminated"].any()
        assert torch.equal(stepped["next", "done"], stepped["next", "truncated"])
    # What the episode ended with is kept, and is not what the next one starts with.
    assert not torch.equal(stepped["next", "observation"], state["observation"])


def test_hopper_terminates_when_it_falls_and_halfcheetah_never(restart, walk):
    hopper = make_env(EnvSettings("mujoco", game="hopper"), 2)
    batch, _ = walk(hopper, restart(hopper, 0), 150)
    ended = batch["next", "done"].squeeze(-1)
    assert ended.any(1).all() and not batch["next", "truncated"].any()
    height, angle = batch["next", "observation"][..., :2].unbind(-1)
    unhealthy = (height < 0.7) | (angle.abs() > 0.2)
    assert torch.equal(ended, unhealthy)
    cheetah = make_env(EnvSettings("mujoco", game="halfcheetah", max_episode_frames=150), 2)
    batch, _ = walk(cheetah, restart(cheetah, 0), 150)
    assert not batch["next", "terminated"].any() and batch["next", "truncated"][:, -1].all()


def test_building_prints_nothing_and_leaves_no_file(tmp_path):
    code = (
        "from torchrl_reg.envs import EnvSettings, make_env\n"
        "for name, game in (('mujoco', 'halfcheetah'), ('adroit', 'door')):\n"
        "    make_env(EnvSettings(name, game=game), 2).rollout(3)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
