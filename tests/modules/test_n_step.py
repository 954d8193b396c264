"""n-step windows in TorchRL's buffers and collectors."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.envs import Compose, GymEnv, InitTracker, SerialEnv, StepCounter, TransformedEnv

from torchrl_reg.modules import NStepTransform

GAMMA, N, ENVS = 0.9, 3, 2


def by_hand(steps: TensorDict) -> dict[tuple[int, int], tuple[float, list[float], bool, int]]:
    """Of each row whose window is complete: reward, s', terminated, length."""
    out = {}
    for e, env in enumerate(steps.unbind(0)):
        for t in range(len(env)):
            total = 0.0
            for i, row in enumerate(env[t : t + N].unbind(0)):
                total += GAMMA**i * float(row["next", "reward"])
                if row["next", "done"].item() or i == N - 1:
                    following = row["next", "observation"].tolist()
                    out[e, t] = (total, following, bool(row["next", "terminated"]), i + 1)
                    break
    return out


def test_a_collector_and_a_buffer_give_the_same_windows() -> None:
    raws, transform = [], NStepTransform(N, GAMMA)

    def postproc(batch: TensorDict) -> Any:
        raws.append(batch.clone())
        return transform.inv(batch)

    def env() -> TransformedEnv:
        cartpole = GymEnv("CartPole-v1", categorical_action_encoding=True)
        return TransformedEnv(cartpole, Compose(StepCounter(15), InitTracker()))

    torch.manual_seed(1)
    envs = SerialEnv(ENVS, env)
    envs.set_seed(0)
    collector = Collector(envs, None, frames_per_batch=16, total_frames=192, postproc=postproc)
    collected = torch.cat([batch.clone() for batch in collector], -1)
    square = ReplayBuffer(storage=LazyTensorStorage(200, ndim=2), transform=NStepTransform(N, GAMMA))
    for batch in raws:
        square.extend(batch)
    raw = torch.cat(raws, -1)
    wanted = by_hand(raw)
    assert raw["next", "terminated"].any() and (raw["next", "done"] & ~raw["next", "terminated"]).any()
    for rows in (collected, square[:]):
        assert rows.shape == (ENVS, 96 - N + 1)
        for (e, t), expected in wanted.items():
            if t >= rows.shape[-1]:
                continue  # late by less than a window
            row, end = rows[e, t], rows[e, t]["next"]
            assert row["observation"].equal(raw[e, t]["observation"]) and row["action"].equal(raw[e, t]["action"])
            assert end["reward"].item() == pytest.approx(expected[0])
            found = end["observation"].tolist(), end["terminated"].item(), row["steps_to_next_obs"].item()
            assert found == expected[1:]


def ones(length: int) -> TensorDict:
    """Steps with a reward of one that end nothing."""
    flags = torch.zeros(length, 1, dtype=torch.bool)
    return TensorDict({"next": {"reward": torch.ones(length, 1), "done": flags}}, [length])


def test_too_short_a_batch_stores_nothing_and_waits() -> None:
    buffer = ReplayBuffer(storage=LazyTensorStorage(50), transform=NStepTransform(N, GAMMA, flatten=True))
    data = ones(4)
    buffer.extend(data[:2])
    assert len(buffer) == 0
    data["next", "reward"][:2] = 9.0  # a collector may write its next batch to the same memory
    buffer.extend(data[2:])
    assert len(buffer) == 2 and buffer[:]["next", "reward"].unique().item() == pytest.approx(2.71)


def test_waiting_rows_are_saved_and_may_be_cut() -> None:
    first, second, cut = (NStepTransform(N, GAMMA) for _ in range(3))
    first.inv(ones(3))
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    second.load_state_dict(state)
    cut.load_state_dict(state)
    cut.cut_episodes()
    expected = first.inv(ones(3))
    assert (second.inv(ones(3)) == expected).all() and len(expected) == 3
    assert cut.inv(ones(3))["steps_to_next_obs"].squeeze(-1).tolist() == [2, 1, 3]


@pytest.mark.parametrize("key", ["reward", "done"])
def test_a_batch_that_is_refused_leaves_nothing_behind(key: str) -> None:
    transform, bad = NStepTransform(N, GAMMA), ones(5)
    del bad["next", key]
    with pytest.raises(KeyError):
        transform.inv(bad)
    assert transform.inv(ones(0)) is None and transform.waiting is None
    assert transform.inv(ones(5)).shape == (3,)


@pytest.mark.parametrize(
    ("arguments", "sentence"), [((0, 0.9), "n must be"), ((True, 0.9), "n must"), ((2, 1.5), "gamma")]
)
def test_bad_arguments(arguments: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        NStepTransform(*arguments)
