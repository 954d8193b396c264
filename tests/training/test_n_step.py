"""n-step transitions against a loop over the raw episode data."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_reg.training import ConfigError
from torchrl_reg.training.loop.value_learning import NStep

GAMMA = 0.9


def stream(envs: int, length: int, seed: int = 0) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(length).expand(envs, length) + 100 * torch.arange(envs).unsqueeze(-1)
    terminated = torch.rand(envs, length, 1, generator=generator) < 0.15
    truncated = torch.rand(envs, length, 1, generator=generator) < 0.15
    following = {
        "observation": time.unsqueeze(-1) + 1,
        "reward": torch.randn(envs, length, 1, generator=generator, dtype=torch.float64),
        "terminated": terminated,
        "truncated": truncated,
        "done": terminated | truncated,
    }
    return TensorDict({"observation": time.unsqueeze(-1), "action": time % 3, "next": following}, [envs, length])


def expected(data: TensorDict, n: int) -> dict[int, tuple[float, int, bool, int]]:
    """By start time: reward, next observation, terminated, steps; only windows that are complete."""
    out = {}
    for env in data.unbind(0):
        for t in range(len(env)):
            total = 0.0
            for i in range(n):
                if t + i >= len(env):
                    break
                row = env[t + i]["next"]
                total += GAMMA**i * float(row["reward"])
                if bool(row["done"]) or i == n - 1:
                    key = int(env[t]["observation"])
                    out[key] = (total, int(row["observation"]), bool(row["terminated"]), i + 1)
                    break
    return out


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("extra", [0, 2, 5])
def test_windows(n: int, extra: int) -> None:
    length = n + extra
    data = stream(3, 28)
    data["next", "done"][:, -1] = True
    data["next", "truncated"][:, -1] = True
    windows, seen = NStep(n, GAMMA), []
    for start in range(0, 28, length):
        # the last piece may be short: only the first one must hold a window
        rows = windows(data[:, start : start + length]).reshape(-1)
        seen += [
            (
                int(r["observation"]),
                (
                    pytest.approx(float(r["next", "reward"])),
                    int(r["next", "observation"]),
                    bool(r["next", "terminated"]),
                    int(r["steps_to_next_obs"]) if n > 1 else 1,
                ),
            )
            for r in rows
        ]
    wanted = expected(data, n)
    assert sorted(k for k, _ in seen) == sorted(wanted)
    assert all(wanted[k] == row for k, row in seen)
    assert windows.transform.waiting is None or n == 1


def test_input_is_left_alone_and_n_is_checked() -> None:
    data = stream(2, 6)
    before = data.clone()
    NStep(3, GAMMA)(data)
    assert (data == before).all()
    with pytest.raises(ConfigError, match="algo.collect_steps"):
        NStep(3, GAMMA)(stream(2, 2))
    with pytest.raises(ConfigError, match="algo.n_steps"):
        NStep(0, GAMMA)


def test_waiting_rows_go_through_a_checkpoint() -> None:
    data = stream(3, 20)
    without = NStep(3, GAMMA)
    expected_rows = [without(data[:, :8]), without(data[:, 8:])]
    before, after = NStep(3, GAMMA), NStep(3, GAMMA)
    first = before(data[:, :8])
    after.load_state_dict(before.state_dict())
    second = after(data[:, 8:])
    assert (first == expected_rows[0]).all() and (second == expected_rows[1]).all()
    assert second.shape[1] == 12 and torch.equal(second["observation"][:, 0], data["observation"][:, 6])


def test_cut_episodes_do_not_reach_into_the_next_batch() -> None:
    data = stream(2, 10)
    data["next", "done"][:] = data["next", "terminated"][:] = data["next", "truncated"][:] = False
    windows = NStep(4, GAMMA)
    windows(data[:, :5])
    windows.cut_episodes()
    rows = windows(data[:, 5:])
    assert rows["steps_to_next_obs"].squeeze(-1).tolist() == [[3, 2, 1, 4, 4]] * 2
    assert rows["next", "truncated"].squeeze(-1).tolist() == [[True, True, True, False, False]] * 2
    assert not rows["next", "terminated"].any()
