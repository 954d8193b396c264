"""n-step windows in TorchRL's buffers and collectors (their numbers: tests/training/test_n_step.py)."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Categorical, LazyTensorStorage, ReplayBuffer, TensorDictPrioritizedReplayBuffer
from torchrl.envs import Compose, GymEnv, InitTracker, SerialEnv, StepCounter, TransformedEnv
from torchrl.modules import QValueActor

from torchrl_reg.modules import NStepTransform
from torchrl_reg.objectives import MunchausenDQNLoss, PolyakTargetUpdate

GAMMA, N, ENVS = 0.9, 3, 2


def actor() -> QValueActor:
    torch.manual_seed(0)
    return QValueActor(nn.Linear(4, 2), spec=Categorical(2))


def collector(frames: int, total: int, postproc: Any = None) -> Collector:
    def env() -> TransformedEnv:
        cartpole = GymEnv("CartPole-v1", categorical_action_encoding=True)
        return TransformedEnv(cartpole, Compose(StepCounter(15), InitTracker()))

    torch.manual_seed(1)
    envs = SerialEnv(ENVS, env)
    envs.set_seed(0)
    return Collector(envs, None, frames_per_batch=frames, total_frames=total, postproc=postproc)


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

    collected = torch.cat([batch.clone() for batch in collector(16, 192, postproc)], -1)
    square = ReplayBuffer(storage=LazyTensorStorage(200, ndim=2), transform=NStepTransform(N, GAMMA))
    for batch in raws:
        square.extend(batch)
    raw = torch.cat(raws, -1)
    wanted = by_hand(raw)
    assert raw["next", "terminated"].any() and (raw["next", "done"] & ~raw["next", "terminated"]).any()
    stored = square[:]
    for rows in (collected, stored):
        assert rows.shape == (ENVS, 96 - N + 1)
        for (e, t), (reward, following, terminated, length) in wanted.items():
            if t >= rows.shape[-1]:
                continue  # late by less than a window
            row = rows[e, t]
            assert row["observation"].equal(raw[e, t]["observation"]) and row["action"].equal(raw[e, t]["action"])
            assert row["next", "observation"].tolist() == following and row["steps_to_next_obs"].item() == length
            assert row["next", "reward"].item() == pytest.approx(reward)
            assert row["next", "terminated"].item() == terminated


def test_a_flat_prioritized_buffer_and_a_loss() -> None:
    buffer = TensorDictPrioritizedReplayBuffer(
        alpha=0.7, beta=0.9, storage=LazyTensorStorage(200), batch_size=32,
        transform=NStepTransform(N, GAMMA, flatten=True),
    )  # fmt: skip
    for batch in collector(16, 96):
        buffer.extend(batch)
    loss = MunchausenDQNLoss(actor(), tau=0.5, alpha=0.5).make_value_estimator(gamma=GAMMA)
    PolyakTargetUpdate(loss, rate=0.5)
    sample = buffer.sample()
    assert len(buffer) == ENVS * (48 - N + 1) and sample["steps_to_next_obs"].max() == N
    loss(sample)["loss"].backward()
    buffer.update_tensordict_priority(sample)
    first = sample[0].clone().exclude("steps_to_next_obs", "priority_weight")
    one_step = MunchausenDQNLoss(actor(), tau=0.5, alpha=0.5)
    one_step.make_value_estimator(gamma=GAMMA ** int(sample["steps_to_next_obs"][0]))
    PolyakTargetUpdate(one_step, rate=0.5)
    one_step(first)
    torch.testing.assert_close(first["td_error"], sample["td_error"][0])


def test_too_short_a_batch_stores_nothing_and_waits() -> None:
    buffer = ReplayBuffer(storage=LazyTensorStorage(50), transform=NStepTransform(N, GAMMA, flatten=True))
    data = TensorDict({"next": {"reward": torch.ones(4, 1), "done": torch.zeros(4, 1, dtype=torch.bool)}}, [4])
    buffer.extend(data[:2])
    assert len(buffer) == 0
    buffer.extend(data[2:])
    assert len(buffer) == 2 and buffer[:]["next", "reward"].unique().item() == pytest.approx(2.71)


def test_waiting_rows_are_saved_and_may_be_cut() -> None:
    data = TensorDict({"next": {"reward": torch.ones(6, 1), "done": torch.zeros(6, 1, dtype=torch.bool)}}, [6])
    first, second, cut = (NStepTransform(N, GAMMA) for _ in range(3))
    first.inv(data[:3])
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    second.load_state_dict(state)
    cut.load_state_dict(state)
    cut.cut_episodes()
    expected = first.inv(data[3:])
    assert (second.inv(data[3:]) == expected).all() and len(expected) == 3
    assert cut.inv(data[3:])["steps_to_next_obs"].squeeze(-1).tolist() == [2, 1, 3]


@pytest.mark.parametrize(
    ("arguments", "sentence"), [((0, 0.9), "n must be"), ((True, 0.9), "n must"), ((2, 1.5), "gamma")]
)
def test_bad_arguments(arguments: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        NStepTransform(*arguments)


def test_a_batch_that_is_refused_leaves_nothing_behind() -> None:
    def rows(length: int) -> TensorDict:
        flags = torch.zeros(length, 1, dtype=torch.bool)
        state = {"observation": torch.arange(length)}
        step = {"reward": torch.ones(length, 1), "done": flags, "terminated": flags, **state}
        return TensorDict({**state, "next": step}, [length])

    transform = NStepTransform(N, GAMMA)
    for key in ("reward", "done"):
        bad = rows(5)
        del bad["next", key]
        with pytest.raises(KeyError):
            transform.inv(bad)
        assert transform.waiting is None
    assert transform.inv(rows(0)) is None or transform.waiting is None
    assert transform.inv(rows(5)).shape == (3,)
