"""Messages against every trajectory of a small MDP, written out; and the two directions of the KL divergence."""

from __future__ import annotations

import math
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from torchrl_reg.tabular import TabularMDP, forward_messages, optimality_messages, random_mdp

TAU, STEPS = 0.5, 3
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-12)


def small(deterministic: bool = False) -> TabularMDP:
    """Three states, of which the last ends the episode, and two actions."""
    mdp = random_mdp(3, 2, 0.9, seed=4, deterministic=deterministic)
    return TabularMDP(mdp.P, mdp.r, 0.9, torch.tensor([False, False, True]))


class Paths:
    """All paths ``[N]`` of STEPS steps: states, actions, and log-probabilities of the transitions and the posterior."""

    def __init__(self, mdp: TabularMDP) -> None:
        self.states, self.actions, nature, success = [], [], [], []
        start = mdp.start_distribution()
        for states in product(range(3), repeat=STEPS + 1):
            for actions in product(range(2), repeat=STEPS):
                p, r = start[states[0]].item(), 0.0
                for s, a, after in zip(states, actions, states[1:], strict=False):
                    ended = mdp.terminal[s]
                    p *= float(after == s and a == 0) if ended else mdp.P[s, a, after].item()
                    r += 0.0 if ended else mdp.r[s, a].item() - TAU * math.log(2)
                if p > 0:
                    self.states.append(states)
                    self.actions.append(actions)
                    nature.append(p)
                    success.append(p * math.exp(r / TAU))
        self.nature, self.success = (torch.tensor(each, dtype=torch.float64) for each in (nature, success))
        self.posterior = self.success / self.success.sum()
        self.terminal = mdp.terminal

    def under(self, pi: Tensor) -> Tensor:
        """Probability of each path under a policy ``[T, S, A]``."""
        p = self.nature.clone()
        for i, (states, actions) in enumerate(zip(self.states, self.actions, strict=True)):
            for t, (s, a) in enumerate(zip(states, actions, strict=False)):
                p[i] *= 1.0 if self.terminal[s] else pi[t, s, a].item()
        return p

    def visits(self, weight: Tensor) -> Tensor:
        """Weight of each state at each step ``[T + 1, S]``."""
        found = torch.zeros(STEPS + 1, 3, dtype=torch.float64)
        for states, w in zip(self.states, weight, strict=True):
            for t, s in enumerate(states):
                found[t, s] += w
        return found


def kl(p: Tensor, q: Tensor) -> float:
    return (p * (p.log() - q.log())).sum().item()


def test_messages_are_sums_over_all_paths() -> None:
    mdp, paths = small(), Paths(small())
    found = optimality_messages(mdp, TAU, STEPS)
    start = mdp.start_distribution()
    assert (start.log() + found.v[0] / TAU).logsumexp(-1).exp().item() == pytest.approx(paths.success.sum().item())
    close(found.visits, paths.visits(paths.posterior))
    for t, s in product(range(STEPS), range(2)):
        here = [paths.posterior[[p[t] == s and a[t] == k for p, a in zip(paths.states, paths.actions, strict=True)]]
                for k in range(2)]  # fmt: skip
        mass = torch.stack([each.sum() for each in here])
        close(found.pi[t, s], mass / mass.sum())
    product_of_both = (forward_messages(mdp, TAU, STEPS) + found.v / TAU).softmax(-1)
    close(product_of_both, found.visits)


def test_forward_messages_are_partial_sums() -> None:
    mdp, paths = small(), Paths(small())
    forward = forward_messages(mdp, TAU, STEPS).exp()
    close(forward[-1], paths.visits(paths.success)[-1])
    close(forward[0], mdp.start_distribution())
    close(forward[1, 2], (0.5 * 0.5 * (mdp.r[:2] / TAU).exp() * mdp.P[:2, :, 2]).sum())


def test_each_policy_minimizes_its_own_direction_of_the_divergence() -> None:
    mdp, paths = small(), Paths(small())
    posterior, soft = (optimality_messages(mdp, TAU, STEPS, believe_in_luck=luck) for luck in (True, False))
    ahead, back = kl(paths.posterior, paths.under(posterior.pi)), kl(paths.under(soft.pi), paths.posterior)
    assert ahead > 0.01 and back > 0.01 and (posterior.pi - soft.pi)[:, :2].abs().max() > 0.01
    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 0.3):
        noise = scale * torch.randn(soft.pi.shape, dtype=torch.float64, generator=generator)
        for sign in (-1, 1):
            tried = paths.under((posterior.pi.log() + sign * noise).softmax(-1))
            assert kl(paths.posterior, tried) > ahead
            assert kl(paths.under((soft.pi.log() + sign * noise).softmax(-1)), paths.posterior) > back
    assert ahead < kl(paths.posterior, paths.under(soft.pi)) and back < kl(paths.under(posterior.pi), paths.posterior)
    # The evidence lower bound: ln p(O) less the divergence is the maximum-entropy objective.
    start = mdp.start_distribution()
    assert TAU * (math.log(paths.success.sum()) - back) == pytest.approx((start * soft.v[0]).sum().item(), abs=1e-12)


def test_one_gamble_by_hand() -> None:
    """A sure .5 against 1 or 0 with probability .5 each, by way of states that pay in the next step; tau .5."""
    P = torch.zeros(3, 2, 3)
    P[0, 0, 1] = 1.0
    P[0, 1] = torch.tensor([0.0, 0.5, 0.5])
    P[1, :, 1] = P[2, :, 2] = 1.0
    mdp = TabularMDP(P, torch.tensor([[0.5, 0.0], [0.0, 0.0], [1.0, 1.0]]), 0.9)
    luck, soft = (optimality_messages(mdp, 0.5, 2, believe_in_luck=on) for on in (True, False))
    gamble = (1 + math.exp(2)) / 2
    close(luck.q[0, 0], torch.tensor([0.5, 0.5 * math.log(gamble)], dtype=torch.float64))
    close(soft.q[0, 0], torch.tensor([0.5, 0.5]).double())
    close(luck.pi[0, 0], torch.tensor([math.e, gamble], dtype=torch.float64) / (math.e + gamble))
    close(luck.P[0, 0, 1], torch.tensor([0.0, 1.0, math.exp(2)], dtype=torch.float64) / (1 + math.exp(2)))
    close(soft.P[0], mdp.P)


@pytest.mark.parametrize("tau", [0.2, 0.8])
def test_risk_seeking_where_transitions_are_random_and_only_there(tau: float) -> None:
    for seed in range(3):
        for deterministic in (True, False):
            mdp = random_mdp(5, 3, 0.9, seed=seed, deterministic=deterministic)
            luck, soft = (optimality_messages(mdp, tau, 6, believe_in_luck=on) for on in (True, False))
            gain = luck.v - soft.v
            assert gain[-1].abs().max() == 0 and gain.min() > -1e-12
            if deterministic:
                close(luck.q, soft.q)
                close(luck.pi, soft.pi)
                close(luck.P, soft.P)
            else:
                assert gain[0].min() > 1e-3 and (luck.pi - soft.pi).abs().max() > 1e-4


def test_refusals() -> None:
    for arguments, sentence in (((0.0, 3), "tau must be"), ((0.5, 0), "num_steps must be >= 1, got 0")):
        with pytest.raises(ValueError, match=sentence):
            optimality_messages(small(), *arguments)
