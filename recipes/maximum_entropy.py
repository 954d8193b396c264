"""Four theorems behind the maximum-entropy recipes, each computed on random problems and drawn.

    python recipes/maximum_entropy.py
    python recipes/maximum_entropy.py --problems 50 --tau 0.3 --out results/maximum_entropy
    python recipes/maximum_entropy.py --beta-scale 0.1

1. Policy improvement: pi' = softmax(Q^pi / tau) has soft values Q^pi' >= Q^pi in every state and action.
2. The gradient of soft Q-learning is a policy gradient and a value gradient (Schulman, Chen, Abbeel 2017).
3. VIREL: the temperature, the Bellman error of Q, goes to 0 without a schedule, and the policy to the greedy one
   (Fellows et al. 2019); until then every action has positive probability.
4. Composition: the average of two soft Q-functions exceeds the soft optimum of the averaged reward by at most a first
   bound, and its policy loses at most a second bound (Haarnoja et al. 2018, Composable deep reinforcement
   learning for robotic manipulation).

Takes seconds on a laptop and draws four figures. The theorems are tested in ``tests/tabular``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from torchrl_reg import tabular
from torchrl_reg.functional import kl_divergence, policy_entropy, soft_policy
from torchrl_reg.lab.analysis.curves import GREY, LIGHT
from torchrl_reg.lab.analysis.plots import new_figure, save
from torchrl_reg.tabular import TabularMDP, policy_evaluation, random_mdp, soft_composition

STATES, ACTIONS, GAMMA = 6, 4, 0.9


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def improvement(problems: int, tau: float, steps: int = 8) -> tuple[Tensor, Tensor]:
    """Smallest gain over all (s, a) at each soft-greedy step, and the largest distance to the soft optimum.

    Both ``[problems, steps]``, from random policies.
    """
    gains, distances = torch.zeros(2, problems, steps, dtype=torch.float64)
    for i in range(problems):
        mdp = random_mdp(STATES, ACTIONS, GAMMA, seed=i)
        best, pi = tabular.soft_value_iteration(mdp, tau).q, (2 * normal(STATES, ACTIONS, seed=i)).softmax(-1)
        for k in range(steps):
            before = policy_evaluation(mdp, pi, tau).q
            pi = soft_policy(before, tau)
            after = policy_evaluation(mdp, pi, tau).q
            gains[i, k], distances[i, k] = (after - before).min(), (best - before).abs().max()
    return gains, distances


def gradients(problems: int, tau: float) -> tuple[Tensor, Tensor]:
    """The gradient of soft Q-learning's loss in Q, and that of policy and value together, ``[problems, S, A]``.

    For actions of pi = softmax(Q / tau) and any target Qhat, the sampling weights not differentiated:
    grad E .5 (Q - Qhat)^2 = -tau {E[grad ln pi (Qhat - V - tau KL)] - tau grad KL} + grad .5 (V - Vhat)^2.
    """
    log_prior = -math.log(ACTIONS)
    pairs = []
    for i in range(problems):
        q, target = normal(STATES, ACTIONS, seed=2 * i).requires_grad_(), normal(STATES, ACTIONS, seed=2 * i + 1)
        v = tau * torch.logsumexp(log_prior + q / tau, -1)
        log_pi = log_prior + (q - v.unsqueeze(-1)) / tau
        pi, kl = log_pi.exp().detach(), kl_divergence(log_pi, torch.full_like(log_pi, log_prior))
        (soft_q,) = torch.autograd.grad((0.5 * pi * (q - target).square()).sum(), q, retain_graph=True)
        advantage = target - (v + tau * kl).detach().unsqueeze(-1)
        policy_part = (pi * log_pi * advantage).sum() - tau * kl.sum()
        value_part = 0.5 * (v - (pi * target).sum(-1) + tau * kl.detach()).square().sum()
        (together,) = torch.autograd.grad(value_part - tau * policy_part, q)
        pairs.append((soft_q, together))
    return torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])


def annealing(problems: int, beta_scale: float, steps: int = 120) -> tuple[Tensor, Tensor, Tensor]:
    """Temperatures, mean entropies of the policy and distances to Q*, each ``[problems, steps + 1]``."""
    taus, entropies, distances = torch.zeros(3, problems, steps + 1, dtype=torch.float64)
    for i in range(problems):
        mdp = random_mdp(STATES, ACTIONS, GAMMA, seed=i)
        best, q0 = tabular.value_iteration(mdp).q, 2 * normal(STATES, ACTIONS, seed=i)
        run = tabular.virel_iteration(mdp, beta_scale, q0=q0, num_iterations=steps, return_iterates=True)
        taus[i] = torch.tensor([each.tau for each in run.iterates])  # type: ignore[attr-defined]
        entropies[i] = torch.stack([policy_entropy(each.pi).mean() for each in run.iterates])
        distances[i] = torch.stack([(best - each.q).abs().max() for each in run.iterates])
    return taus, entropies, distances


def composition(problems: int, tau: float) -> dict[str, Tensor]:
    """Per problem the largest excess of the averaged Q-function and loss of its policy, and the largest bounds."""
    columns = torch.zeros(4, problems, dtype=torch.float64)
    for i in range(problems):
        mdp = random_mdp(STATES, ACTIONS, GAMMA, seed=i)
        # From two nearly equal tasks to two unrelated ones.
        second = TabularMDP(mdp.P, mdp.r + 10 ** (-2 + 2.5 * i / problems) * normal(STATES, ACTIONS, seed=i), GAMMA)
        c = soft_composition(mdp, second, tau)
        excess, loss = c.q_average - c.q_optimal, c.q_optimal - c.q_executed
        columns[:, i] = torch.stack([each.max() for each in (excess, c.value_bound, loss, c.policy_bound)])
    return dict(zip(("excess", "value_bound", "loss", "policy_bound"), columns, strict=True))


def single_panel(title: str, xlabel: str = "", ylabel: str = "") -> tuple[Figure, Axes]:
    """A figure and its only panel."""
    figure = new_figure(5.2, 3.8)
    panel = figure.add_subplot()
    panel.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure, panel


def draw_lines(panel: Axes, rows: Tensor, color: str, label: str) -> None:
    """One line for each of ``rows``, and one entry in the legend."""
    panel.plot(rows.T, color=color, alpha=0.35, linewidth=1)
    panel.plot([], [], color=color, label=label)
    panel.legend(frameon=False)


def draw_improvement(gains: Tensor, distances: Tensor) -> Figure:
    figure, panel = single_panel("A soft-greedy step never lowers soft Q", "step", "reward units")
    panel.set_yscale("symlog", linthresh=1e-10)
    panel.axhline(0, color=GREY, linewidth=1)
    draw_lines(panel, gains, LIGHT[0], "smallest gain of any (s, a)")
    draw_lines(panel, distances, LIGHT[1], "largest distance to the soft optimum")
    return figure


def draw_gradients(soft_q: Tensor, together: Tensor) -> Figure:
    title = f"Soft Q-learning is a policy gradient\n(largest difference {(soft_q - together).abs().max():.0e})"
    figure, panel = single_panel(title, "gradient of soft Q-learning", "policy gradient and value gradient")
    panel.axline((0, 0), slope=1, color=GREY, linewidth=1)
    panel.plot(soft_q.flatten(), together.flatten(), ".", color=LIGHT[0], markersize=3)
    return figure


def draw_annealing(taus: Tensor, entropies: Tensor, distances: Tensor) -> Figure:
    figure, panel = single_panel("VIREL: random while wrong, greedy when right", "iteration")
    draw_lines(panel, taus.clamp(min=1e-16), LIGHT[0], "temperature: the Bellman error")
    draw_lines(panel, entropies.clamp(min=1e-16), LIGHT[1], "entropy of the policy (nats)")
    draw_lines(panel, distances.clamp(min=1e-16), LIGHT[2], "largest distance to Q*")
    panel.set(yscale="log", ylim=(1e-12, 30))
    return figure


def draw_composition(found: dict[str, Tensor]) -> Figure:
    figure, panel = single_panel("Averaged soft Q-functions stay within the bounds", "bound", "measured")
    ends = [found["excess"].min().item(), found["policy_bound"].max().item()]
    panel.loglog(ends, ends, color=GREY, linewidth=1, label="equal")
    panel.plot(found["value_bound"], found["excess"], "o", color=LIGHT[0], label="average Q above the optimum")
    panel.plot(found["policy_bound"], found["loss"], "s", color=LIGHT[1], label="loss of the average's policy")
    panel.legend(frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Four theorems behind the maximum-entropy recipes, drawn.")
    shown = "(default: %(default)s)"
    parser.add_argument("--problems", type=int, default=20, help=f"random problems of each {shown}")
    parser.add_argument("--tau", type=float, default=0.5, help=f"temperature, reward units {shown}")
    parser.add_argument("--beta-scale", type=float, default=0.5, help=f"of VIREL, 1 / reward units {shown}")
    parser.add_argument("--out", type=Path, default=Path("results/maximum_entropy"), help=f"folder {shown}")
    chosen = parser.parse_args(arguments)
    problems, tau, beta_scale = chosen.problems, chosen.tau, chosen.beta_scale
    if problems < 1 or not 0 < tau < math.inf or not 0 < beta_scale < math.inf:
        got = f"{problems}, {tau}, {beta_scale}"
        parser.error(f"--problems must be >= 1, --tau and --beta-scale finite and > 0, got {got}")
    try:  # before the work
        chosen.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out must be a folder that can be written, got {chosen.out}: {error.strerror}")
    torch.set_num_threads(1)  # more are slower on tables this small
    gains, distances = improvement(problems, tau)
    soft_q, together = gradients(problems, tau)
    taus, entropies, errors = annealing(problems, beta_scale)
    composed = composition(problems, tau)
    excess, loss = ((composed[a] / composed[b]).max() for a, b in (("excess", "value_bound"), ("loss", "policy_bound")))
    print(f"1. smallest gain of a soft-greedy step {gains.min():.1e}; of the first one {gains[:, 0].min():.2g}")
    print(f"2. largest difference between the two gradients {(soft_q - together).abs().max():.1e}")
    print(f"3. temperature {taus[:, 0].mean():.3g} at first, {taus[:, -1].max():.1e} at last, Q off by", end=" ")
    print(f"{errors[:, -1].max():.1e}")
    print(f"4. largest share of the bound on values {excess:.3f}, of that on the policy {loss:.3f}")
    for name, figure in {
        "improvement": draw_improvement(gains, distances),
        "gradients": draw_gradients(soft_q, together),
        "virel": draw_annealing(taus, entropies, errors),
        "composition": draw_composition(composed),
    }.items():
        print(save(figure, chosen.out / f"{name}.png"))


if __name__ == "__main__":
    main()
