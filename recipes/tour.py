"""A tour in three stops: the soft optimum of a small world, a loss that finds it, and what Munchausen adds.

    python recipes/tour.py
    python recipes/tour.py --side 7 --tau 0.5 --out results/tour
    python recipes/tour.py --updates 20

1. Soft value iteration solves a gridworld exactly: q = r + gamma tau ln sum_a' exp(q(s', a') / tau).
2. ``SoftDQNLoss`` on a table reaches the same q. With every transition in the batch and a step size that writes the
   target into each cell, its updates are exactly those of soft value iteration.
3. ``MunchausenDQNLoss`` adds alpha tau ln pi(a|s) to the reward. At temperature tau / (1 - alpha) its policy is the
   same, and every action gap is 1 / (1 - alpha) times as large: errors of a network flip fewer decisions.

Takes under a minute on a laptop and draws ``tour.png``. Sources: Haarnoja et al. 2017 (soft Q-learning);
Vieillard, Pietquin, Geist, "Munchausen Reinforcement Learning", NeurIPS 2020 (theorem 2 there states the factor
(1 + alpha) / (1 - alpha); the fixed point has 1 / (1 - alpha)).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.objectives import HardTargetUpdate, MunchausenDQNLoss, SoftDQNLoss
from torchrl_reg.tabular import TabularMDP, gridworld, soft_value_iteration

GAMMA = 0.9
ALPHAS = (0.0, 0.5, 0.8, 0.9)


@dataclass
class Tour:
    """Results of the three stops.

    Args:
        q: soft optimal action values ``[S, A]``.
        sweep_errors, loss_errors: max |q_k - q| after k sweeps of value iteration, and k updates of the loss.
        gap_growth: measured factor of the action gaps by alpha.
    """

    q: Tensor
    sweep_errors: list[float]
    loss_errors: list[float]
    gap_growth: dict[float, float]


def all_transitions(mdp: TabularMDP) -> TensorDict:
    """Each transition of a deterministic world once: one-hot observations ``[N, S]``, N = S A without the goal's."""
    state, action, following = mdp.P.nonzero(as_tuple=True)
    state, action, following = (index[~mdp.terminal[state]] for index in (state, action, following))
    one_hot = torch.eye(mdp.num_states, dtype=torch.float64)
    stops = mdp.terminal[following].unsqueeze(-1)
    reward = mdp.r[state, action].unsqueeze(-1)
    after = {"observation": one_hot[following], "reward": reward, "done": stops, "terminated": stops}
    return TensorDict({"observation": one_hot[state], "action": action, "next": after}, [len(state)])


def table(mdp: TabularMDP) -> QValueActor:
    """A network with one number for every state and action, all zero."""
    net = nn.Linear(mdp.num_states, mdp.num_actions, bias=False, dtype=torch.float64)
    nn.init.zeros_(net.weight)
    return QValueActor(net, spec=Categorical(mdp.num_actions))


def train(loss: SoftDQNLoss | MunchausenDQNLoss, mdp: TabularMDP, updates: int) -> list[Tensor]:
    """Tables ``[S, A]`` after 0, 1, ..., ``updates`` gradient steps on all transitions."""
    loss.make_value_estimator(gamma=GAMMA)
    batch = all_transitions(mdp)
    # The mean of (q - y)^2 has the gradient 2 (q - y) / N, so this step size writes y into every cell.
    optimizer = torch.optim.SGD(loss.parameters(), lr=len(batch) / 2)
    target = HardTargetUpdate(loss, period_updates=1)
    (weight,) = loss.parameters()
    tables = [weight.detach().T.clone()]
    for _ in range(updates):
        optimizer.zero_grad()
        loss(batch)["loss"].backward()
        optimizer.step()
        target.step()
        tables.append(weight.detach().T.clone())
    return tables


def gaps(q: Tensor, mdp: TabularMDP) -> Tensor:
    """``max_a q(s, a) - q(s, a)`` of the states that are not terminal, summed."""
    return (q.amax(-1, keepdim=True) - q)[~mdp.terminal].sum()


def tour(side: int, tau: float, updates: int) -> Tour:
    mdp = gridworld(["." * side] * (side - 1) + ["." * (side - 1) + "G"], GAMMA)
    moves = ~mdp.terminal

    # Stop 1: exact dynamic programming.
    q = soft_value_iteration(mdp, tau).q
    sweeps = soft_value_iteration(mdp, tau, num_iterations=updates, return_iterates=True).iterates

    # Stop 2: the same fixed point, by gradient descent on a loss.
    tables = train(SoftDQNLoss(table(mdp), tau=tau, loss_function="l2", diagnostics=False), mdp, updates)

    # Stop 3: the same policy with wider gaps.
    growth = {}
    for alpha in ALPHAS:
        loss = MunchausenDQNLoss(
            table(mdp),
            tau=tau / (1 - alpha),
            alpha=alpha,
            clip_min=None,
            loss_function="l2",
            action_space="categorical",
        )
        growth[alpha] = (gaps(train(loss, mdp, 3 * updates)[-1], mdp) / gaps(q, mdp)).item()
    return Tour(
        q=q,
        sweep_errors=[(each.q - q)[moves].abs().max().item() for each in sweeps],
        loss_errors=[(each - q)[moves].abs().max().item() for each in tables],
        gap_growth=growth,
    )


def draw(found: Tour, side: int, tau: float, path: Path) -> None:
    """Three panels: the soft optimum, the distance to it, the action gaps."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.9), layout="constrained")  # readable on a page 720 pixels wide
    with rc_context({"font.size": 8, "axes.titlesize": 8, "axes.titlelocation": "left"}):
        figure.suptitle(f"A {side} x {side} gridworld with its goal in a corner, gamma {GAMMA}, tau {tau}")
        draw_stops(found, side, tau, figure.subplots(1, 3))
        figure.savefig(path, dpi=200)


def draw_stops(found: Tour, side: int, tau: float, panels: Sequence[Any]) -> None:
    """Draws each stop into one of three axes."""
    world, way, wider = panels
    value = tau * torch.logsumexp(found.q / tau, -1)
    world.imshow(value.reshape(side, side).numpy(), cmap="YlGnBu")
    policy = torch.softmax(found.q / tau, -1).reshape(side, side, 4)
    down, right = policy[..., 2] - policy[..., 0], policy[..., 1] - policy[..., 3]
    down[-1, -1] = right[-1, -1] = 0.0  # the goal is terminal
    world.quiver(right.numpy(), down.numpy(), angles="xy", pivot="mid", scale=1.6 * side, color="tab:orange")
    world.set(title="soft value and mean direction", xticks=[], yticks=[])
    way.semilogy(found.sweep_errors, label="soft value iteration", linewidth=5, alpha=0.35)
    way.semilogy(found.loss_errors, "--", label="SoftDQNLoss on a table")
    way.set(title="distance to the soft optimum", xlabel="sweeps, or updates", ylabel="max |q - q*|")
    way.legend(frameon=False, fontsize=7)
    alphas = torch.linspace(0, max(found.gap_growth), 100).numpy()
    wider.plot(alphas, 1 / (1 - alphas), color="0.6", label="1 / (1 - alpha)")
    wider.plot(list(found.gap_growth), list(found.gap_growth.values()), "o", label="MunchausenDQNLoss")
    wider.set(title="Munchausen widens action gaps", xlabel="alpha", ylabel="gap / gap at alpha = 0")
    wider.legend(frameon=False, fontsize=7)


def main(arguments: Sequence[str] | None = None) -> Tour:
    parser = argparse.ArgumentParser(description="From soft value iteration to Munchausen DQN in three stops.")
    parser.add_argument("--side", type=int, default=5, help="cells along a side of the world (default: %(default)s)")
    parser.add_argument("--tau", type=float, default=0.3, help="temperature, reward units (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=60, help="of the loss (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/tour"), help="folder (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.side < 2 or not chosen.tau > 0 or chosen.updates < 1:
        parser.error(
            f"--side must be >= 2, --tau > 0 and --updates >= 1, got {chosen.side}, {chosen.tau}, {chosen.updates}"
        )
    try:  # before the work
        chosen.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out must be a folder that can be written, got {chosen.out}: {error.strerror}")
    torch.set_num_threads(1)  # more are slower on tables this small
    found = tour(chosen.side, chosen.tau, chosen.updates)
    print(f"1. soft value iteration: the action gaps sum to {found.q.amax(-1).sub(found.q.T).sum():.4g}")
    print(f"2. SoftDQNLoss is {found.loss_errors[-1]:.1e} from its fixed point after {chosen.updates} updates")
    print("3. alpha     gaps grow by     1 / (1 - alpha)")
    for alpha, factor in found.gap_growth.items():
        print(f"   {alpha:<9g} {factor:<16.4f} {1 / (1 - alpha):.4f}")
    draw(found, chosen.side, chosen.tau, chosen.out / "tour.png")
    print(f"{chosen.out / 'tour.png'}")
    return found


if __name__ == "__main__":
    main()
