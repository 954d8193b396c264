"""Path-consistency residuals: against an explicit loop, and zero where theory says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from torchrl_reg import tabular
from torchrl_reg.functional import path_consistency

GAMMA, TAU, LAM = 0.9, 0.5, 0.3
NAN = float("nan")


def slow(x: dict[str, Tensor], rollout: int, tau: float, lam: float) -> tuple[Tensor, Tensor]:
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


def sequences(rows: int, length: int, seed: int, nan: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("reward", "value", "next_value", "log_pi", "log_pi_reference")
    x = {n: torch.randn(rows, length, generator=generator, dtype=torch.float64) for n in names}

    def flags(share: float) -> Tensor:
        return torch.rand(rows, length, generator=generator) < share

    x["terminated"] = flags(0.15)
    x["done"], x["mask"] = x["terminated"] | flags(0.15), ~flags(0.15)
    if nan:
        x["next_value"][x["terminated"]] = NAN
        for n in names:
            x[n][~x["mask"]] = NAN
    return x


@pytest.mark.parametrize("rollout", [1, 3, 7])
@pytest.mark.parametrize("rows", [1, 12])
def test_is_the_explicit_loop(rollout: int, rows: int) -> None:
    for seed in range(5):
        x = sequences(rows, 7, seed)
        expected, exists = slow(x, rollout, TAU, LAM)
        got, got_exists = path_consistency(**x, tau=TAU, lam=LAM, gamma=GAMMA, rollout=rollout)
        assert torch.equal(got_exists, exists)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert rows == 1 or 0.1 < exists.double().mean() < 0.95


def test_without_reference_and_mask_and_with_tensor_coefficients() -> None:
    x = sequences(12, 7, 0, nan=False)
    x["mask"][:] = True
    expected, exists = slow(x, 3, TAU, 0.0)
    tensors = {"tau": torch.tensor(TAU), "gamma": torch.tensor(GAMMA, dtype=torch.float64)}
    plain = {k: v for k, v in x.items() if k not in ("mask", "log_pi_reference")}
    got, got_exists = path_consistency(**plain, **tensors, rollout=3)
    assert torch.equal(got_exists, exists)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_leading_dimensions_and_none_at_all() -> None:
    x = sequences(12, 7, 1)
    settings: dict[str, Any] = {"tau": TAU, "lam": LAM, "gamma": GAMMA, "rollout": 3}
    expected = path_consistency(**x, **settings)
    folded = path_consistency(**{k: v.reshape(3, 4, 7) for k, v in x.items()}, **settings)
    single = path_consistency(**{k: v[5] for k, v in x.items()}, **settings)
    for i in range(2):
        assert torch.equal(folded[i].flatten(0, 1), expected[i]) and torch.equal(single[i], expected[i][5])


def test_nan_that_does_not_count_sends_no_gradient() -> None:
    x = sequences(6, 7, 2)
    names = ("reward", "value", "next_value", "log_pi")
    leaves = {n: x[n].clone().requires_grad_() for n in names}
    residual, _ = path_consistency(**{**x, **leaves}, tau=TAU, lam=LAM, gamma=GAMMA, rollout=3)
    for n, gradient in zip(names, torch.autograd.grad(residual.square().sum(), list(leaves.values())), strict=True):
        assert gradient.isfinite().all(), n
        assert (gradient[~x["mask"]] == 0).all() and gradient[x["mask"]].abs().max() > 0, n


def test_refuses_what_does_not_fit() -> None:
    x = sequences(2, 4, 0)
    for rollout in (0, 5):
        with pytest.raises(ValueError, match=rf"rollout={rollout} needs .*got 4"):
            path_consistency(**x, tau=TAU, gamma=GAMMA, rollout=rollout)
    for name in ("value", "done", "log_pi_reference", "mask"):
        with pytest.raises(ValueError, match="shape"):
            path_consistency(**{**x, name: x[name][:, :1]}, tau=TAU, gamma=GAMMA, rollout=2)
    without = {k: v for k, v in x.items() if k != "log_pi_reference"}
    with pytest.raises(ValueError, match="log_pi_reference"):
        path_consistency(**without, tau=TAU, gamma=GAMMA, rollout=2, lam=LAM)


# -- theory ---------------------------------------------------------------------------------------------------------


def walk(mdp: tabular.TabularMDP, length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """States, actions and next states [8, T] under a random behaviour."""
    generator = torch.Generator().manual_seed(seed)
    s = torch.randint(mdp.num_states, (8,), generator=generator)
    behaviour = torch.rand(mdp.num_states, mdp.num_actions, generator=generator) ** 4
    steps = []
    for _ in range(length):
        a = torch.multinomial(behaviour[s], 1, generator=generator).squeeze(-1)
        following = torch.multinomial(mdp.P[s, a], 1, generator=generator).squeeze(-1)
        steps.append((s, a, following))
        s = following
    return tuple(torch.stack(x, -1) for x in zip(*steps, strict=True))  # type: ignore[return-value]


def residuals(mdp: tabular.TabularMDP, v: Tensor, log_pi: Tensor, path: Any, rollout: int, **kwargs: Any) -> Tensor:
    s, a, following = path
    no = torch.zeros_like(s, dtype=torch.bool)
    flags = {"done": no, "terminated": no}
    out = path_consistency(
        mdp.r[s, a], v[s], v[following], log_pi[s, a], gamma=mdp.gamma, rollout=rollout, **flags, **kwargs
    )
    return out[0]


@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_vanishes_at_the_soft_optimum_of_a_deterministic_mdp(tau: float) -> None:
    for seed in range(3):
        mdp = tabular.random_mdp(6, 4, GAMMA, seed=seed, deterministic=True)
        best = tabular.soft_value_iteration(mdp, tau)
        log_pi = best.tau_log_pi / tau
        path = walk(mdp, 9, seed)
        assert residuals(mdp, best.v, log_pi, path, 9, tau=tau).abs().max() < 1e-10
        assert residuals(mdp, best.v, log_pi, path, 9, tau=1.1 * tau).abs().max() > 1e-2
        assert residuals(mdp, best.v + 0.1, log_pi, path, 9, tau=tau).abs().max() > 1e-3


def one_step(mdp: tabular.TabularMDP, v: Tensor, log_pi: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Mean and second moment [S, A] over s' of the one-step residual."""
    shape = mdp.P.shape
    s, a, following = (x.reshape(-1, 1) for x in torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"))
    reference = kwargs.pop("log_mu", None)
    if reference is not None:
        kwargs["log_pi_reference"] = reference[s, a]
    c = residuals(mdp, v, log_pi, (s, a, following), 1, **kwargs).reshape(shape)
    return (mdp.P * c).sum(-1), (mdp.P * c.square()).sum(-1)


def test_only_the_mean_vanishes_where_transitions_are_stochastic() -> None:
    mdp = tabular.random_mdp(6, 4, GAMMA, seed=1, branching=3)
    best = tabular.soft_value_iteration(mdp, TAU)
    mean, second = one_step(mdp, best.v, best.tau_log_pi / TAU, tau=TAU)
    assert mean.abs().max() < 1e-10 and second.min() > 1e-5


def test_trust_pcl_optimum_under_a_fixed_reference() -> None:
    mdp = tabular.random_mdp(6, 4, GAMMA, seed=2, branching=3)
    log_mu = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    v, total = torch.zeros(6, dtype=torch.float64), TAU + LAM
    for _ in range(400):
        scores = (mdp.r + LAM * log_mu + GAMMA * (mdp.P @ v)) / total
        v = total * scores.logsumexp(-1)
    log_pi = scores.log_softmax(-1)
    mean, second = one_step(mdp, v, log_pi, tau=TAU, lam=LAM, log_mu=log_mu)
    assert mean.abs().max() < 1e-10 and second.min() > 1e-5
    assert one_step(mdp, v, log_pi, tau=TAU, lam=LAM, log_mu=log_pi)[0].abs().max() > 1e-2


def test_a_reference_that_is_the_policy_itself_gives_the_soft_optimum() -> None:
    mdp = tabular.random_mdp(6, 4, GAMMA, seed=3, branching=3)
    best = tabular.soft_value_iteration(mdp, TAU)
    log_pi = best.tau_log_pi / TAU
    mean, _ = one_step(mdp, best.v, log_pi, tau=TAU, lam=LAM, log_mu=log_pi)
    assert mean.abs().max() < 1e-10
