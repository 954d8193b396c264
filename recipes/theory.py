"""Two theorems drawn from exact tables: how errors average out, and why control as inference seeks risk.

    python recipes/theory.py
    python recipes/theory.py algo.problems=20 algo.updates=1000 algo.noise=0.3

1. Errors of the updates reach the policy of value iteration in a discounted sum, and that of M-VI and IQ as
   E_k = (1 - alpha) sum_j alpha^(k-j) eps_j, at alpha = 1 as their plain average (Vieillard et al. 2020, Munchausen RL,
   theorem 2; Vieillard et al. 2021, Implicitly regularized RL, theorem 2). errors.png: losses of the policies, their
   bounds, and the size of E_k, for errors that are independent, that alternate in sign, and that stay.
2. The posterior policy of the model in which exp(r / tau) is the probability of being optimal gambles, as its KL
   divergence lets it change the transitions; maximum-entropy RL takes the other direction and cannot (Levine 2018; the
   VIREL source). inference.png: a gamble, random problems, and what each expects of a slippery chain.

A minute on a laptop. The theorems are tested in ``tests/tabular``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from torchrl_reg import tabular
from torchrl_reg.lab import RecipeConfig, RunSettings, Study, recipe, require, stream_seed
from torchrl_reg.lab.analysis.curves import LIGHT, Line, chart
from torchrl_reg.lab.analysis.plots import draw
from torchrl_reg.lab.analysis.statistics import mean_interval
from torchrl_reg.tabular import TabularMDP, random_mdp

STATES, ACTIONS, GAMMA, STEPS = 6, 4, 0.9, 10
KINDS = ("independent", "alternating", "constant")
TAUS = (0.2, 0.5)


@dataclass
class Algo:
    """Settings of both parts; ours."""

    problems: int = 5  # random ones
    updates: int = 200  # of value iteration
    tau: float = 0.5  # temperature of M-VI and IQ, reward units; rewards are in [-1, 1]
    alphas: list[float] = field(default_factory=lambda: [0.9, 1.0])  # Munchausen weights beside value iteration
    noise: float = 1.0  # standard deviation of an error, reward units

    def validate(self) -> None:
        for name in ("problems", "updates", "tau", "noise"):
            require(getattr(self, name) > 0, f"algo.{name}", "> 0", getattr(self, name))
        fits = len(set(self.alphas)) == len(self.alphas) > 0 and min(self.alphas) >= 0 and max(self.alphas) <= 1
        require(fits, "algo.alphas", "a list of weights in [0, 1], without repetition", self.alphas)


@dataclass
class Config(RecipeConfig):
    """Frames are problems. Of ``run`` the folder, the seed, threads, loggers and progress apply."""

    defaults: ClassVar[list[Any]] = []
    algo: Algo = field(default_factory=Algo)
    run: RunSettings = field(default_factory=RunSettings)


def train(cfg: Config) -> Path:
    problems = cfg.algo.problems
    with Study(cfg, (len(KINDS) + 1) * problems) as study:
        rows = []
        for kind in KINDS:
            rows += study.part(kind, lambda kind=kind: {"rows": errors(cfg, kind)}, frames=problems)["rows"]  # type: ignore[misc]
        for row in rows:
            study.log("errors", **row)
            told = f"loss at the end {np.mean(row['losses'][-1]):.2g}, at most {row['share_of_bound']:.3f} of its bound"
            study.say(f"{row['kind']} errors, {row['method']}: {told}")
        found = study.part("inference", lambda: inference(cfg), frames=problems)
        study.log("inference", **found)
        draw_errors(rows, study.path / "errors.png")
        draw_inference(found, study.path / "inference.png")
        return study.finish()


def errors(cfg: Config, kind: str) -> list[dict[str, Any]]:
    """By method: losses of the policies and their bounds, ``[T, problems]``, after the recorded updates."""
    algo, rows = cfg.algo, []
    times = sorted(
        {(round(algo.updates ** (i / 40)) - 1) | 1 for i in range(41)}
    )  # odd ones, where signs do not cancel
    for tau, alpha in [(0.0, 0.0), *((algo.tau, alpha) for alpha in algo.alphas)]:
        found = []
        for i in range(algo.problems):
            mdp, noise = random_mdp(STATES, ACTIONS, GAMMA, seed=i), algo.noise * drawn(cfg, kind, i)
            solve: Any = tabular.munchausen_value_iteration if alpha == 1 else tabular.implicit_q_iteration
            loop = {"num_iterations": algo.updates, "noise": lambda k, noise=noise: noise[k], "return_iterates": True}
            iterates = [solve(mdp, tau, alpha, **loop).iterates[k] for k in times]
            losses = tabular.policy_losses(mdp, iterates, (1 - alpha) * tau)
            at = torch.tensor(times) - 1
            bounds = tabular.policy_loss_bounds(mdp, noise, tau, alpha)[at]
            found.append((losses, bounds, tabular.averaged_errors(noise, alpha).abs().amax((-2, -1))[at]))
        losses, bounds, sizes = (torch.stack(each, -1) for each in zip(*found, strict=True))
        method = "value iteration" if tau == 0 else f"M-VI and IQ, alpha {alpha:g}"
        row = {"kind": kind, "method": method, "alpha": alpha, "tau": tau, "updates": times}
        columns = {"losses": losses, "bounds": bounds, "averaged_errors": sizes}
        share = (losses / bounds).max().item()
        rows.append(row | {name: each.tolist() for name, each in columns.items()} | {"share_of_bound": share})
    return rows


def drawn(cfg: Config, kind: str, problem: int) -> Tensor:
    """Errors ``[updates, S, A]`` of standard deviation 1: new ones, or the first with changing sign or for ever."""
    generator = torch.Generator().manual_seed(stream_seed(cfg.run.seed, "errors", problem))
    found = torch.randn(cfg.algo.updates, STATES, ACTIONS, dtype=torch.float64, generator=generator)
    if kind == "independent":
        return found
    sign = torch.ones(len(found)) if kind == "constant" else (-1.0) ** torch.arange(len(found))
    return sign.view(-1, 1, 1) * found[:1]


def inference(cfg: Config) -> dict[str, Any]:
    """The probability of gambling, the gain in value that the posterior believes in, and arrivals in a chain."""
    chances, randomness = torch.linspace(0, 1, 21).tolist(), torch.linspace(0, 1, 11).tolist()
    gambles: dict[str, list[float]] = {}
    gains: dict[str, list[list[float]]] = {}
    for tau in TAUS:
        for name, luck in (("inference", True), ("maximum entropy", False)):
            plans = [tabular.optimality_messages(gamble(p), tau, 2, believe_in_luck=luck) for p in chances]
            gambles[f"{name}, tau {tau:g}"] = [plan.pi[0, 0, 1].item() for plan in plans]
        gains[f"tau {tau:g}"] = [[believed_gain(i, m, tau) for i in range(cfg.algo.problems)] for m in randomness]
    shown = {"chances": chances, "gambles": gambles, "randomness": randomness, "gains": gains}
    return shown | {"arrivals": arrivals(TAUS[-1])}


def gamble(chance: float) -> TabularMDP:
    """State 0: action 0 pays .5; action 1 leads to state 2, which pays 1 in the next step, with this probability."""
    P = torch.zeros(3, 2, 3, dtype=torch.float64)
    P[0, 0, 1] = P[1, :, 1] = P[2, :, 2] = 1.0
    P[0, 1] = torch.tensor([0.0, 1 - chance, chance], dtype=torch.float64)
    return TabularMDP(P, torch.tensor([[0.5, 0.0], [0.0, 0.0], [1.0, 1.0]]), GAMMA)


def believed_gain(problem: int, randomness: float, tau: float) -> float:
    """Posterior's value above that of maximum-entropy RL, mean over first states, as transitions become random."""
    sure, mixed = (random_mdp(STATES, ACTIONS, GAMMA, seed=problem, deterministic=on) for on in (True, False))
    mdp = TabularMDP((1 - randomness) * sure.P + randomness * mixed.P, mixed.r, GAMMA)
    luck, soft = (tabular.optimality_messages(mdp, tau, STEPS, believe_in_luck=on).v[0].mean() for on in (True, False))
    return (luck - soft).item()


def arrivals(tau: float) -> dict[str, list[float]]:
    """Probability of having reached the end of a slippery chain of 6 states, by step, from its first state."""
    mdp = tabular.chain(6, GAMMA, slip=0.6, goal_reward=2.0, step_reward=-0.1)
    first = torch.eye(6, dtype=torch.float64)[0]
    luck, soft = (tabular.optimality_messages(mdp, tau, STEPS, start=first, believe_in_luck=on) for on in (True, False))
    real = tabular.state_visits(mdp, luck.pi, soft.P, first)
    named = {"inference believes": luck.visits, "inference, played": real, "maximum entropy, played": soft.visits}
    return {name: visits[:, -1].tolist() for name, visits in named.items()}


def draw_errors(rows: list[dict[str, Any]], path: Path) -> None:
    """Above the losses of the policies (mean over problems) and their bounds, below the sizes of E_k."""
    methods, charts = list(dict.fromkeys(row["method"] for row in rows)), []
    span = (1e-3, 1.5 * max(np.mean(row["bounds"], 1).max() for row in rows))
    for columns, y_label in ((("losses", "bounds"), "max |q* - q_pi|"), (("averaged_errors",), "max |E_k|")):
        for place, kind in enumerate(KINDS):
            lines = []
            for row in (row for row in rows if row["kind"] == kind):
                for dashes, column in enumerate(columns):
                    label = f"bound, {row['method']}" if dashes else row["method"]
                    y = np.mean(row[column], 1)
                    series = methods.index(row["method"]) + dashes * len(LIGHT)
                    lines.append(Line(label, series, np.array(row["updates"]), y))
            low, high = span if len(columns) == 2 else (1e-3, 10.0)
            title = f"{kind} errors" if len(columns) == 2 else "the averaged error"
            more = {
                "x_label": "",
                "y_label": "" if place else y_label,
                "log_x": True,
                "may_log": True,
                "span": (low, high),
            }
            charts.append(chart(title, lines, **more))
    draw(
        charts, path, columns=3, x_label=f"updates k, odd (means of {len(rows[0]['losses'][0])} problems; reward units)"
    )


def draw_inference(found: dict[str, Any], path: Path) -> None:
    """The gamble, the gain that the posterior believes in, and what it expects of a chain beside what happens."""
    gambles = [
        Line(label, series, np.array(found["chances"]), np.array(y))
        for label, series, y in zip(found["gambles"], (1, 0, 11, 10), found["gambles"].values(), strict=True)
    ]
    gains = [
        Line(f"gain believed in, {label}", 2 + 4 * place, np.array(found["randomness"]), *mean_interval(np.array(y).T))
        for place, (label, y) in enumerate(found["gains"].items())
    ]
    chain = [
        Line(label, series, np.arange(STEPS + 1), np.array(y))
        for series, (label, y) in zip((3, 4, 5), found["arrivals"].items(), strict=True)
    ]
    draw(
        [
            chart("a sure 0.5, or 1 with this probability", gambles, x_label="probability of winning", level=0.5,
                  y_label="probability of gambling", span=(0.0, 1.0)),
            chart("value above maximum entropy's", gains, x_label="randomness of transitions",
                  y_label="reward units"),
            chart(f"a slippery chain, tau {TAUS[-1]:g}", chain, x_label="step", y_label="probability of having arrived",
                  span=(0.0, 1.0)),
        ],
        path,
        columns=3,
    )  # fmt: skip


main = recipe(Config, train)

if __name__ == "__main__":
    main()
