"""Hand-computed returns in both forms, and path-consistency residuals against an explicit loop.

That the residuals vanish at the optimum is a test of the loss.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from torchrl_reg.functional import lambda_return, path_consistency, q_lambda_return

REWARD = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
NEXT_VALUE = torch.tensor([10.0, 20.0, 0.0, 40.0], dtype=torch.float64)  # an episode ends with step 2
CORRECTION = torch.tensor([-99.0, -1.0, -2.0, -3.0], dtype=torch.float64)  # the first belongs to no earlier return
ENDS = torch.tensor([False, False, True, False])


def test_a_rollout_by_hand():
    # From behind: 8 + 40/2; 4, the end; 2 + (20 + (4 - 20 + 2)/4)/2; 1 + (10 + (10.25 - 10 + 1)/4)/2.
    returns = q_lambda_return(REWARD, NEXT_VALUE, CORRECTION, ENDS, gamma=0.5, lmbda=0.25)
    assert returns.tolist() == [6.15625, 10.25, 4.0, 28.0]


def test_a_later_episode_leaves_the_returns_of_earlier_ones_alone():
    """Masked entries may be NaN (rewards, values, corrections), and so may those after the last step."""
    clean = q_lambda_return(REWARD, NEXT_VALUE, CORRECTION, ENDS, gamma=0.5, lmbda=0.25)
    for bad in (math.nan, math.inf):
        reward, value, correction = REWARD.clone(), NEXT_VALUE.clone(), CORRECTION.clone()
        for each in (reward, value, correction):
            each[3:] = bad
        returns = q_lambda_return(reward, value, correction, ENDS, gamma=0.5, lmbda=0.25)
        assert returns[:3].tolist() == clean[:3].tolist() and not returns[3].isfinite()


@pytest.mark.parametrize("lmbda", [0.0, 0.65, 1.0])
def test_both_forms_of_the_return_are_one(lmbda):
    draw = torch.Generator().manual_seed(0)
    reward, value, correction = torch.randn(3, 5, 9, generator=draw, dtype=torch.float64)
    ends = torch.rand(5, 9, generator=draw) < 0.3
    columns = (x.unsqueeze(-1) for x in (reward, value, ends))
    explicit = lambda_return(*columns, gamma=0.9, lmbda=lmbda, action_cost=correction.unsqueeze(-1)).squeeze(-1)
    found = q_lambda_return(reward, value, correction, ends, gamma=0.9, lmbda=torch.tensor(lmbda, dtype=torch.float64))
    torch.testing.assert_close(found, explicit, rtol=1e-14, atol=1e-14)


# -- path consistency -----------------------------------------------------------------------------------------------


GAMMA, TAU, LAM = 0.9, 0.5, 0.3
SETTINGS: dict[str, Any] = {"tau": TAU, "lam": LAM, "gamma": GAMMA, "rollout": 3}
NAMES = ("reward", "value", "next_value", "log_pi", "log_pi_reference")


def residuals_by_loops(x: dict[str, Tensor], rollout: int, tau: float, lam: float) -> tuple[Tensor, Tensor]:
    """The definition, one sub-trajectory and one step at a time."""
    rows, length = x["reward"].shape
    out = torch.zeros(rows, length, rollout, dtype=torch.float64)
    exists = torch.zeros(rows, length, rollout, dtype=torch.bool)
    for b in range(rows):
        for t in range(length):
            total, discount = -float(x["value"][b, t]), 1.0
            for n in range(1, rollout + 1):
                i = t + n - 1
                if i >= length or not bool(x["mask"][b, i]) or (n > 1 and bool(x["done"][b, i - 1])):
                    break
                log_pi = float(x["log_pi"][b, i])
                kl = log_pi - float(x["log_pi_reference"][b, i])
                total += discount * (float(x["reward"][b, i]) - tau * log_pi - lam * kl)
                discount *= GAMMA
                end = 0.0 if bool(x["terminated"][b, i]) else float(x["next_value"][b, i])
                out[b, t, n - 1], exists[b, t, n - 1] = total + discount * end, True
    return out, exists


def sequences(rows: int, length: int, seed: int, masked: float = 0.15) -> dict[str, Tensor]:
    """Steps that end in every way; NaN behind terminal states and in the masked ones."""
    generator = torch.Generator().manual_seed(seed)
    x = {n: torch.randn(rows, length, generator=generator, dtype=torch.float64) for n in NAMES}

    def flags(share: float) -> Tensor:
        return torch.rand(rows, length, generator=generator) < share

    x["terminated"] = flags(0.15)
    x["done"], x["mask"] = x["terminated"] | flags(0.15), ~flags(masked)
    x["next_value"][x["terminated"]] = torch.nan
    return x | {n: x[n].masked_fill(~x["mask"], torch.nan) for n in NAMES}


@pytest.mark.parametrize("rollout", [1, 3, 7])
@pytest.mark.parametrize("rows", [1, 12])
def test_path_consistency_is_the_explicit_loop(rollout: int, rows: int) -> None:
    for seed in range(5):
        x = sequences(rows, 7, seed)
        found = path_consistency(**x, **SETTINGS | {"rollout": rollout})
        torch.testing.assert_close(found, residuals_by_loops(x, rollout, TAU, LAM), rtol=0, atol=1e-12)
    assert rows == 1 or 0.1 < found[1].double().mean() < 0.95


def test_a_termination_that_is_not_called_done_ends_a_path() -> None:
    x = sequences(12, 7, 0)
    found = path_consistency(**x | {"done": x["done"] & ~x["terminated"]}, **SETTINGS)
    torch.testing.assert_close(found, path_consistency(**x, **SETTINGS))


def test_without_reference_and_mask_and_with_tensor_coefficients() -> None:
    x = sequences(12, 7, 0, masked=0.0)
    plain = {k: v for k, v in x.items() if k not in ("mask", "log_pi_reference")}
    tensors = {"tau": torch.tensor(TAU), "gamma": torch.tensor(GAMMA, dtype=torch.float64)}
    found = path_consistency(**plain, **tensors, rollout=3)
    torch.testing.assert_close(found, residuals_by_loops(x, 3, TAU, 0.0), rtol=0, atol=1e-12)


def test_nan_that_does_not_count_sends_no_gradient() -> None:
    x = sequences(6, 7, 2)
    leaves = {n: x[n].clone().requires_grad_() for n in NAMES}
    residual, _ = path_consistency(**{**x, **leaves}, **SETTINGS)
    for n, gradient in zip(NAMES, torch.autograd.grad(residual.square().sum(), list(leaves.values())), strict=True):
        assert gradient.isfinite().all(), n
        assert (gradient[~x["mask"]] == 0).all() and gradient[x["mask"]].abs().max() > 0, n


X = sequences(2, 4, 0)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"rollout": 0}, "rollout=0 needs .*got 4"),
        ({"rollout": 5}, "rollout=5 needs .*got 4"),
        *(({name: X[name][:, :1]}, "shape") for name in ("value", "done", "log_pi_reference", "mask")),
        ({"log_pi_reference": None}, "log_pi_reference"),
    ],
)
def test_path_consistency_refuses_what_does_not_fit(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        path_consistency(**X | SETTINGS | changed)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16])
def test_rewards_of_any_dtype_give_the_returns_of_float32(dtype: torch.dtype) -> None:
    """Integer rewards must not make integers of discounts and values, nor half precision round the sums."""
    torch.manual_seed(0)
    reward, values = torch.ones(64), torch.randn(3, 64)
    flags = {name: torch.zeros(64, dtype=torch.bool) for name in ("done", "terminated")}

    def returns(reward: Tensor) -> list[Tensor]:
        columns = (reward.unsqueeze(-1), values[0].unsqueeze(-1), flags["done"].unsqueeze(-1))
        paths = path_consistency(reward, *values, tau=0.5, gamma=0.99, rollout=9, **flags)
        return [
            lambda_return(*columns, gamma=0.9, lmbda=0.8),
            q_lambda_return(reward, values[0], values[1], flags["done"], gamma=0.9, lmbda=0.5),
            paths[0],
        ]

    for found, expected in zip(returns(reward.to(dtype)), returns(reward), strict=True):
        assert torch.equal(found, expected)
