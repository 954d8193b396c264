"""Tree search on synthetic trees: MENTS beside UCT at equal simulations; how often each fails; E2W's softmax bandit.

    python recipes/ments_trees.py
    python recipes/ments_trees.py algo.methods=[uct,puct,ments,rents] algo.branching=[8] algo.depth=[3]
    python recipes/ments_trees.py algo.tau=0.02 algo.num_trees=100 algo.bandit_repetitions=20000
    python recipes/ments_trees.py algo.failure_repetitions=100000 algo.branching=[2] algo.depth=[1]

Sources: Xiao, Huang, Mei, Schuurmans, Mueller, "Maximum Entropy Monte-Carlo Planning", NeurIPS 2019 [X19]; the trees,
their noise, epsilon and tau as in the code of Dam et al., "Convex Regularization in Monte-Carlo Tree Search", ICML 2021
[D21]. Ours: leaves valued by a random rollout, the number of simulations, intervals over trees, the paired comparison.
Expect, in some minutes, the figures in RESULTS.md. See trees.png, regret.png, bandit.png, failures.png and table.md;
a run that was killed continues with the first method and tree that it had not finished.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import torch

from torchrl_reg import planning
from torchrl_reg.lab import RecipeConfig, RunSettings, Study, recipe, require, stream_seed
from torchrl_reg.lab.run.files import write_atomically
from torchrl_reg.planning import MENTS, PUCT, RENTS, TENTS, UCT, Planner, SearchResult, SyntheticTrees
from torchrl_reg.regularizers import HardMax

PLANNERS = {"uct": UCT, "puct": PUCT, "ments": MENTS, "rents": RENTS, "tents": TENTS}
#: Branching and mean rewards of the leaves of two problems, whose first action is best by .2 (softly by .17); ours.
PROBLEMS = {"two arms": (2, [0.5, 0.3]), "tree of depth 2": (2, [0.6, 0.2, 0.4, 0.3])}


@dataclass
class Algo:
    """Hyperparameters: default, unit, source."""

    methods: list[str] = field(default_factory=lambda: ["uct", "ments"])  # also puct, rents, tents
    branching: list[int] = field(default_factory=lambda: [2, 4, 8])  # actions k; 2 to 16 in [D21]
    depth: list[int] = field(default_factory=lambda: [1, 2, 4])  # d; 1 to 5 in [D21]
    noise: list[float] = field(default_factory=lambda: [0.05, 0.5])  # of a leaf's reward, whose mean is in [0, 1] [D21]
    num_trees: int = 50  # trees of each kind; 25 in [D21]
    num_simulations: int = 2_000  # 10 000 in [D21]
    tau: float = 0.1  # temperature, reward units [D21]
    epsilon: float = 0.1  # exploration of E2W [D21]
    c: float = 0.25  # width of UCT's and PUCT's bonus, reward units; sqrt(2) in theory; ours, a guess
    bandit_repetitions: int = 2_000  # of the softmax bandit; 0 leaves it out
    bandit_pulls: int = 10_000  # of each repetition
    failure_repetitions: int = 2_000  # searches whose wrong choices are counted; 0 leaves them out
    failure_simulations: int = 1_000  # of each
    failure_noise: float = 0.5  # of a leaf's reward

    def validate(self) -> None:
        known = set(self.methods) <= set(PLANNERS) and len(set(self.methods)) == len(self.methods) > 0
        require(known, "algo.methods", f"a list of values from {list(PLANNERS)}, without repetition", self.methods)
        for name in ("branching", "depth"):
            sizes = getattr(self, name)
            require(len(sizes) > 0 and min(sizes) >= 1, f"algo.{name}", "a list of numbers >= 1", sizes)
        noise = self.noise
        require(len(noise) > 0 and min(noise) >= 0, "algo.noise", "a list of standard deviations >= 0", noise)
        leaves = max(self.branching) ** max(self.depth) * self.num_trees
        require(leaves <= 10**8, "algo.branching ** algo.depth * algo.num_trees", "at most 1e8 leaves", leaves)
        for name in ("num_trees", "num_simulations", "bandit_pulls", "tau", "epsilon", "failure_simulations"):
            require(getattr(self, name) > 0, f"algo.{name}", "> 0", getattr(self, name))
        for name in ("c", "bandit_repetitions", "failure_repetitions", "failure_noise"):
            require(getattr(self, name) >= 0, f"algo.{name}", ">= 0", getattr(self, name))


@dataclass
class Config(RecipeConfig):
    """Frames are simulations. Of ``run`` the folder, the seed, threads, loggers and progress apply."""

    defaults: ClassVar[list[Any]] = []
    algo: Algo = field(default_factory=Algo)
    run: RunSettings = field(default_factory=RunSettings)


def train(cfg: Config) -> Path:
    algo = cfg.algo
    kinds = list(product(algo.branching, algo.depth, algo.noise))
    simulations = algo.num_trees * algo.num_simulations
    with Study(cfg, simulations * len(kinds) * len(algo.methods)) as study:
        for epsilon in (0.1, 1e9) if algo.bandit_repetitions else ():
            name = f"bandit-{epsilon:g}"
            study.log("bandit", **study.part(name, lambda epsilon=epsilon: bandit(cfg, epsilon)))  # type: ignore[misc]
        for method, problem in product(algo.methods, PROBLEMS if algo.failure_repetitions else ()):
            name = f"failures-{method}-{problem.replace(' ', '-')}"
            study.log("failures", **study.part(name, lambda m=method, p=problem: failures(cfg, m, p)))  # type: ignore[misc]
        for kind in kinds:
            for method in algo.methods:
                name = f"{method}-{'-'.join(map(str, kind))}"
                row = study.part(name, lambda m=method, k=kind: searched(cfg, m, *k), frames=simulations)  # type: ignore[misc]
                study.log("trees", **row)
        # Here, and not above: what a launcher pickles must not name a module that its worker does not find.
        from studies.failures import draw_failures, failures_table
        from studies.synthetic_trees import differences_table, draw_bandit, draw_trees, trees_table

        draw_trees(study.path, study.path / "trees.png")
        draw_trees(study.path, study.path / "regret.png", "regret")
        if algo.bandit_repetitions:
            draw_bandit(study.path, study.path / "bandit.png")
        table = f"{trees_table(study.path)}\n\n{differences_table(study.path)}"
        if algo.failure_repetitions:
            draw_failures(study.path, study.path / "failures.png")
            table += f"\n\n{failures_table(study.path)}"
        write_atomically(study.path / "table.md", table + "\n")
        study.say(table)
        return study.finish()


def bandit(cfg: Config, epsilon: float) -> dict[str, Any]:
    """The softmax bandit with E2W, or with uniform sampling (an ``epsilon`` that explores only)."""
    times, seed = log_spaced(10, cfg.algo.bandit_pulls), stream_seed(cfg.run.seed, "bandit", str(epsilon))
    task: dict[str, Any] = {"noise": 0.3, "tau": 0.3, "epsilon": epsilon, "record_at": times, "seed": seed}
    run = planning.softmax_bandit([0.1, 0.5, 0.3, 0.8], num_repetitions=cfg.algo.bandit_repetitions, **task)
    errors = {"error_u": run.error_u.tolist(), "error_value": run.error_value.tolist()}
    return {"epsilon": epsilon, "time": times, **errors, "limit_u": run.limit_u, "limit_value": run.limit_value}


def failures(cfg: Config, method: str, problem: str) -> dict[str, Any]:
    """By number of simulations, how many searches of one tree, repeated with new noise, choose a wrong root action."""
    algo, (branching, means) = cfg.algo, PROBLEMS[problem]
    depth = {2: 1, 4: 2}[len(means)]
    model = SyntheticTrees(branching, depth, noise=algo.failure_noise, seed=0)
    model.leaf_mean = torch.tensor([means], dtype=torch.float64)
    model.generator.manual_seed(stream_seed(cfg.run.seed, "failure_noise", method, problem))
    generator = torch.Generator().manual_seed(stream_seed(cfg.run.seed, "failures", method, problem))
    planner, times = made_planner(method, algo, algo.failure_simulations), log_spaced(4, algo.failure_simulations, 40)
    wrong = dict.fromkeys(times, 0)

    def record(count: int, found: SearchResult) -> None:
        if count in wrong:
            wrong[count] += int((found.action != 0).sum())

    evaluate = planning.RandomRollout(model, max_steps=depth, generator=generator)
    for first in range(0, algo.failure_repetitions, 1_000):  # of which trees fit into memory
        roots = torch.zeros(min(1_000, algo.failure_repetitions - first), dtype=torch.int64)
        planner(model, roots, evaluate=evaluate, generator=generator, watch=record)
    counts = {"simulations": times, "wrong": list(wrong.values()), "searches": algo.failure_repetitions}
    return {"method": method, "problem": problem, **counts}


def searched(cfg: Config, method: str, branching: int, depth: int, noise: float) -> dict[str, Any]:
    """By number of simulations and tree: errors of the root's value, and the simple regret of the action chosen."""
    algo, seed, stream = cfg.algo, cfg.run.seed, (method, branching, depth, str(noise))
    tree_seed = stream_seed(seed, "trees", branching, depth)
    trees = SyntheticTrees(branching, depth, algo.num_trees, noise=noise, seed=tree_seed)
    trees.generator.manual_seed(stream_seed(seed, "noise", *stream))
    generator = torch.Generator().manual_seed(stream_seed(seed, "search", *stream))
    planner = made_planner(method, algo, algo.num_simulations)
    exact = trees.root_q(HardMax())
    best = exact.amax(-1)
    # RENTS's own value depends on the policies above a node: its error is that to the maximum.
    own = HardMax() if planner.regularizer is None or method == "rents" else planner.regularizer
    target, times = trees.root_value(own), recorded(branching, algo.num_simulations)
    columns: dict[str, list[list[float]]] = {"value_error": [], "max_error": [], "regret": []}

    def record(count: int, found: SearchResult) -> None:
        if count in times:
            columns["value_error"].append((found.value - target).abs().tolist())
            columns["max_error"].append((found.value - best).abs().tolist())
            columns["regret"].append((best - exact.gather(-1, found.action.unsqueeze(-1)).squeeze(-1)).tolist())

    evaluate = planning.RandomRollout(trees, max_steps=depth, generator=generator)
    planner(trees, trees.roots(), evaluate=evaluate, generator=generator, watch=record)
    kind = {"method": method, "branching": branching, "depth": depth, "noise": noise}
    return {**kind, "simulations": times, **columns}


def made_planner(method: str, algo: Algo, num_simulations: int) -> Planner:
    """The planner that ``method`` names, without discount as in [D21]."""
    own = {"c": algo.c} if method in ("uct", "puct") else {"tau": algo.tau, "epsilon": algo.epsilon}
    return PLANNERS[method](num_simulations=num_simulations, **own)


def recorded(branching: int, simulations: int) -> list[int]:
    """When a search is recorded: at equal ratios, from the first time that all actions can have been tried."""
    return sorted({*log_spaced(branching, simulations), max(simulations // 20, 1)})


def log_spaced(first: int, last: int, count: int = 24) -> list[int]:
    """Whole numbers from ``first`` to ``last``, at equal ratios."""
    first = min(first, last)
    return sorted({round(first * (last / first) ** (i / (count - 1))) for i in range(count)})


main = recipe(Config, train)

if __name__ == "__main__":
    main()
