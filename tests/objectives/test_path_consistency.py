"""The path-consistency loss against its equation, sub-trajectory by sub-trajectory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from policy_cases import CASES, assert_same, log_prob, log_tables, state_value
from torch import Tensor

GAMMA, TAU = 0.9, 0.5


def values(case: Any, loss: Any, states: Any, *, lagged: bool = False) -> Tensor:
    """``V [B, T]``; of the unified form ``(tau + lam) logsumexp`` of its logits."""
    if not case.unified:
        return state_value(loss, states["observation"], lagged=lagged)
    with loss.actor_network_params.to_module(loss.actor_network):
        logits = loss.actor_network.network(states["observation"])
    return (TAU + loss.lam) * logits.unflatten(-1, (2, 5)).logsumexp(-1).sum(-1)


def written_out(case: Any, loss: Any, data: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Each step's loss ``[B, T]``, half the mean square of the sub-trajectories that start there; mean absolutes."""
    delayed = loss.delay_value
    log_pi, log_mu = (log_prob(log_tables(loss, data, lagged=lagged), data) for lagged in (False, True))
    start, after = values(case, loss, data), values(case, loss, data["next"], lagged=delayed)
    after = (after.detach() if delayed else after) * ~data["next", "terminated"].squeeze(-1)
    gains = data["next", "reward"].squeeze(-1) - TAU * log_pi - case.kwargs["lam"] * (log_pi - log_mu.detach())
    total, absolute = (torch.zeros(data.shape, dtype=torch.float64) for _ in range(2))
    for b, t in torch.cartesian_prod(*map(torch.arange, data.shape)).tolist():
        errors, gain = [], 0.0
        for n, i in enumerate(range(t, min(t + loss.rollout, data.shape[1]))):
            if not mask[b, i] or (n > 0 and data["next", "done"][b, i - 1]):
                break
            gain = gain + GAMMA**n * gains[b, i]
            errors.append(gain + GAMMA ** (n + 1) * after[b, i] - start[b, t])
        if errors:
            total[b, t] = 0.5 * torch.stack(errors).square().mean()
            absolute[b, t] = torch.stack(errors).detach().abs().mean()
    return total, absolute


@pytest.mark.parametrize("name", ["pcl", "trust_pcl", "trust_pcl_delayed", "trust_pcl_unified"])
@pytest.mark.parametrize(("rows", "masked"), [(1, False), (4, False), (6, True)])
def test_loss_is_the_equation(name: str, rows: int, masked: bool) -> None:
    """No sub-trajectory crosses a masked step, whose content counts for nothing."""
    case = CASES[name]
    loss, data = case.loss().double(), case.batch(rows, dtype=torch.float64)
    mask = torch.rand(rows, 5, generator=torch.Generator().manual_seed(1)) < (0.7 if masked else 1.0)
    rows_of_loss, absolute = written_out(case, loss, data.clone(), mask)
    expected = rows_of_loss.sum() / mask.sum()
    if masked:
        data["collector", "mask"] = mask.unsqueeze(-1)
        for key in ("observation", ("next", "observation"), ("next", "reward")):
            data[key][~mask] = torch.nan
    out = loss(data)
    assert_same(out["loss"], expected, loss, loss)
    torch.testing.assert_close(out["path_error"].double(), absolute.sum() / mask.sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(data["td_error"].squeeze(-1), rows_of_loss.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["trust_pcl", "trust_pcl_unified"])
@pytest.mark.parametrize("rows", [1, 6])
def test_rows_that_are_no_path_are_refused(name: str, rows: int) -> None:
    """Shuffled steps, of sequences or flat; resets, masked steps and NaN are ignored by the check of the order."""
    data, draw = CASES[name].batch(rows), torch.Generator().manual_seed(0)
    data["next", "done"][:] = data["next", "terminated"][:] = False
    data["observation"][:, 1:] = data["next", "observation"][:, :-1]
    shuffled = data[:, torch.randperm(5, generator=draw)]
    for wrong in (shuffled, data.reshape(-1)[torch.randperm(5 * rows, generator=draw)]):
        with pytest.raises(ValueError, match=r"successive steps, got .* in \d+ of \d+ places: .* SliceSampler"):
            CASES[name].loss()(wrong)
    for end in ("done", "terminated"):
        ended = shuffled.clone()
        ended["next", end][:] = True
        CASES[name].loss()(ended if end == "done" else ended.exclude(("next", "done")))
    left_out = data.clone()
    left_out["observation"][:, 2] = torch.nan
    left_out["collector", "mask"] = (torch.arange(5) != 2).expand(rows, 5).unsqueeze(-1)
    left_out["next", "observation"][:, 2] = 7.0
    assert CASES[name].loss()(left_out)["loss"].isfinite()
    loss = CASES[name].loss()
    loss(data)
    loss(shuffled)  # the first batch alone is read


def test_the_td_error_is_that_of_one_step() -> None:
    data = CASES["trust_pcl"].batch(6)
    out, one_step = (CASES["trust_pcl"].loss(rollout=rollout)(data) for rollout in (3, 1))
    torch.testing.assert_close(out["td_error"], one_step["path_error"])


@pytest.mark.parametrize("name", ["trust_pcl", "trust_pcl_unified"])
def test_a_learnt_weight_takes_tau_zero(name: str) -> None:
    """Trust-PCL as published on MuJoCo: no entropy term."""
    case = CASES[name]
    torch.testing.assert_close(
        case.loss(tau=0.0, max_kl=0.1)(case.batch(9))["loss"], case.loss(tau=0.0)(case.batch(9))["loss"]
    )
