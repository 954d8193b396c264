"""Atari: names, frames, ends and starts of episodes."""

from __future__ import annotations

import pytest
import torch

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.envs.atari import atari_vector_env
from torchrl_reg.envs.settings import FAMILIES, resolve


def test_names_action_sets_and_stack():
    for game in ("ms_pacman", "MsPacman", "mspacman"):
        assert make_env(EnvSettings("atari", game=game), 1).action_spec_unbatched.n == 9
    env = make_env(EnvSettings("atari", game="pong", minimal_actions=False, frame_stack=2), 2)
    assert env.action_spec_unbatched.n == 18 and env.reset()["observation"].shape == (2, 2, 84, 84)


@pytest.mark.parametrize(("frame_skip", "cap", "last_step"), [(4, 120, 30), (4, 122, 31), (3, 90, 30)])
def test_the_cap_counts_frames_and_truncates(frame_skip, cap, last_step, restart, walk):
    env = make_env(EnvSettings("atari", game="pong", max_episode_frames=cap, frame_skip=frame_skip), 2)
    batch, _ = walk(env, restart(env, 0), torch.zeros(last_step + 2, 2, dtype=torch.int64))
    expected = torch.zeros(2, last_step + 2, 1, dtype=torch.bool)
    expected[:, last_step - 1] = True
    assert torch.equal(batch["next", "truncated"], expected) and not batch["next", "terminated"].any()


def test_only_game_over_terminates_and_the_final_frames_are_kept(restart, walk):
    env = make_env(EnvSettings("atari", game="Breakout"), 2)
    batch, _ = walk(env, restart(env, 0), 400)
    done = batch["next", "done"].squeeze(-1)
    assert done.any(1).all() and not batch["next", "truncated"].any()
    # Five lives: an episode cut at a lost life would be about five times shorter.
    assert done.sum(1).max() <= 4
    # A stack moves on by one frame at every step, the last of an episode included ...
    assert torch.equal(batch["next", "observation"][:, :, :-1], batch["observation"][:, :, 1:])
    # ... and the next episode starts with other frames than the last one ended with.
    after, last = batch["observation"][:, 1:][done[:, :-1]], batch["next", "observation"][:, :-1]
    assert (after != last[done[:, :-1]]).flatten(1).any(1).all()
    assert (after[:, :3] == 0).all()


def test_noop_starts_and_sticky_actions_reach_the_game(restart, walk):
    def copies_differ(**settings):
        # the ball appears after FIRE, at a position that depends on the time since the reset
        env = make_env(EnvSettings("atari", game="breakout", **settings), 4)
        actions = torch.tensor([1, *[2, 3] * 6]).unsqueeze(-1).expand(-1, 4)
        seen = walk(env, restart(env, 0), actions)[0]["next", "observation"]
        return (seen != seen[:1]).any().item()

    assert not copies_differ(sticky_actions=0.0)
    assert copies_differ(sticky_actions=0.0, noop_max=30) and copies_differ()


def test_a_finished_game_must_be_reset_before_it_is_played_on():
    settings = resolve(EnvSettings("atari", game="pong", max_episode_frames=8))
    games = atari_vector_env(2, **FAMILIES["atari"].options(settings))
    games.reset(seed=[1, 2])
    still = torch.zeros(2, dtype=torch.int64).numpy()
    games.step(still)
    *_, truncated, _ = games.step(still)
    assert truncated.all()
    with pytest.raises(match=r"games \[0, 1\] must be reset before the next step"):
        games.step(still)
    games.reset(options={"reset_mask": truncated})
    games.step(still)
    games.close()
