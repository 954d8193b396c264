"""Atari games as models: what they show, clip and draw, and pools of emulators."""

from __future__ import annotations

import pytest
import torch

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.planning import AtariModel


def test_it_shows_what_the_training_environment_shows() -> None:
    settings = EnvSettings("atari", game="Breakout", sticky_actions=0.0, noop_max=0)
    env, model = make_env(settings, num_envs=1), AtariModel("Breakout", noop_max=0)
    row, state = env.reset(), model.reset(1, seed=0)
    assert model.num_actions == env.full_action_spec_unbatched["action"].space.n
    for step in range(60):
        ours, theirs = model.observation(state)[0], row["observation"][0]
        assert ours.shape == theirs.shape == (4, 84, 84) and ours.dtype == torch.uint8
        assert (ours.int() - theirs.int()).abs().max() <= 1  # OpenCV rounds otherwise
        action = torch.tensor([(1, 2, 2, 3)[step % 4] if step % 7 else 1])
        row = env.step(row.set("action", action))["next"]
        _, state, ended = model.step(state, action)
        assert row["reward"].item() == model.raw_reward(state).item() and row["terminated"].item() == ended.item()
    env.close()


def test_it_branches_and_clips() -> None:
    model = AtariModel("SpaceInvaders", observe=False)
    start = model.reset(2, seed=0)
    with pytest.raises(ValueError, match="observe must be True for a model whose states are looked at, got False"):
        model.observation(start)

    def played() -> list[list[float]]:
        rewards, at = [], start
        for _ in range(150):
            reward, at, _ = model.step(at, torch.tensor([1, 1]))
            assert torch.equal(reward, model.raw_reward(at).sign())
            rewards.append(model.raw_reward(at).tolist())
        return rewards

    once = played()
    assert once == played()
    one, two = zip(*once, strict=True)
    assert max(one + two) > 1 and one != two  # the no-ops of the second seed shift its game


def test_sticky_actions_come_from_the_generator() -> None:
    generator = torch.Generator()
    model = AtariModel("Breakout", sticky_actions=0.5, generator=generator, noop_max=0)
    assert model.stochastic and model.num_outcomes == 1
    start = model.reset(1, seed=0)

    def seen(seed: int) -> torch.Tensor:
        generator.manual_seed(seed)
        state = start
        for action in (1, 2, 2, 2, 3, 3, 3):
            _, state, _ = model.step(state, torch.tensor([action]))
        return model.observation(state)

    assert torch.equal(seen(1), seen(1)) and not torch.equal(seen(1), seen(2))


def test_a_pool_of_emulators_plays_as_one() -> None:
    """The same rewards, images and ends whichever process plays; states that are released are gone there, too."""
    records, models = [], []
    for num_emulators in (1, 2):
        generator = torch.Generator().manual_seed(0)
        model = AtariModel("Breakout", sticky_actions=0.3, generator=generator, num_emulators=num_emulators)
        state, record = model.reset(3, seed=4), []
        for step in range(20):
            reward, after, ended = model.step(state[[0, 1, 2, 1]], torch.tensor([1, 3, 2, step % 4]))
            record.append((reward, ended, model.observation(after)))
            state = after[[0, 2, 3]]
            model.release(0, keep=state)
        records.append([torch.stack(part) for part in zip(*record, strict=True)])
        models.append(model)
    assert all(torch.equal(one, two) for one, two in zip(*records, strict=True))
    assert not torch.equal(records[0][2][-1, 0], records[0][2][-1, 1])
    alone, pool = models
    still = torch.tensor([0, 0, 0])
    alone.step(torch.tensor(list(alone._snapshots)), still)
    assert len(alone._pool[0]._saved) == 3 + 3
    assert {snapshot.saved[0] for snapshot in pool._snapshots.values()} == {0, 1}
    processes = [emulator._process for emulator in pool._pool]
    assert [process.poll() for process in processes] == [None, None]
    processes[0].kill()
    with pytest.raises(RuntimeError, match="The process of an emulator ended with exit code -9"):
        pool.step(state, still)
    del model, pool
    models.clear()
    assert [process.poll() for process in processes] == [-9, 0]
