"""n-step windows against a loop, and in TorchRL's buffers."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, ReplayBuffer, TensorDictReplayBuffer

from torchrl_reg.modules import NStepTransform

GAMMA, N = 0.9, 3


def stream(envs: int, length: int) -> TensorDict:
    """Steps that end in both ways."""
    generator = torch.Generator().manual_seed(0)
    terminated, truncated = (torch.rand(2, envs, length, 1, generator=generator) < 0.15).unbind()
    time = torch.arange(envs * length).reshape(envs, length, 1)
    step = {"observation": time + 1, "reward": torch.randn(envs, length, 1, generator=generator)}
    step |= {"terminated": terminated, "done": terminated | truncated}
    return TensorDict({"observation": time, "action": time % 3, "next": step}, [envs, length])


def windows_by_hand(steps: TensorDict) -> dict[int, tuple[float, int, bool, int]]:
    """Of each observation whose window is complete: reward, s', terminated, length."""
    out = {}
    for env in steps.unbind(0):
        for t in range(len(env)):
            total = 0.0
            for i, row in enumerate(env[t : t + N].unbind(0)):
                total += GAMMA**i * float(row["next", "reward"])
                if row["next", "done"].item() or i == N - 1:
                    end = row["next"]
                    out[env[t]["observation"].item()] = (
                        pytest.approx(total, abs=1e-6),
                        end["observation"].item(),
                        end["terminated"].item(),
                        i + 1,
                    )
                    break
    return out


def test_windows_over_agents_or_environments_are_refused() -> None:
    steps = stream(3, 3)
    steps["next", "reward"] = torch.randn(3, 3, 3, 1)
    with pytest.raises(ValueError, match=r"The reward must be \[3, 3, 1\], got \[3, 3, 3, 1\]"):
        NStepTransform(N, GAMMA).inv(steps)
    steps = stream(3, 4)
    steps.names = ["time", None]
    with pytest.raises(ValueError, match="time as their last dimension .*, got it as dimension 0"):
        NStepTransform(N, GAMMA).inv(steps)


@pytest.mark.parametrize("piece", [1, 8, 24])
def test_windows_are_those_of_a_loop_in_a_buffer_too(piece: int) -> None:
    raw, transform = stream(2, 24), NStepTransform(N, GAMMA)
    raw["next", "done"][:, -1] = True
    square = ReplayBuffer(storage=LazyTensorStorage(200, ndim=2), transform=NStepTransform(N, GAMMA))
    found = []
    for batch in raw.split(piece, 1):
        square.extend(batch.clone())
        rows = transform.inv(batch.clone())
        found += [] if rows is None else [rows.clone()]
    wanted = windows_by_hand(raw)
    for rows in (torch.cat(found, -1), square[:]):
        assert rows.shape == (2, 24) and torch.equal(rows["action"], raw["action"])
        entries = [rows["next", "reward"], rows["next", "observation"], rows["next", "terminated"]]
        columns = [x.flatten().tolist() for x in (*entries, rows["steps_to_next_obs"])]
        assert dict(zip(rows["observation"].flatten().tolist(), zip(*columns, strict=True), strict=True)) == wanted


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("extra", [0, 3])
def test_windows_depend_neither_on_the_lengths_of_batches_nor_on_checkpoints(n: int, extra: int) -> None:
    data, found, transform = stream(2, 28), [], NStepTransform(n, GAMMA)
    data["next", "done"][:, -1] = True
    before = data.clone()
    for piece in data.split(n + extra, 1):  # the last one may be short: only the first one must hold a window
        found.append(transform.complete(piece))  # what inv gives
        state, transform = transform.state_dict(), NStepTransform(n, GAMMA)
        transform.load_state_dict(state)
    expected = NStepTransform(n, GAMMA).inv(data)
    torch.testing.assert_close(torch.cat(found, 1).to_dict(), expected.to_dict())
    assert transform.waiting is None and (data == before).all()


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
    cut.truncate_episodes()
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


def test_a_single_row_is_refused() -> None:
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(9), transform=NStepTransform(N, GAMMA, flatten=True))
    with pytest.raises(ValueError, match=r"rows \[\*B, T\] in order of time \(buffer.extend\), got a single row"):
        buffer.add(stream(1, 4)[0, 0])
