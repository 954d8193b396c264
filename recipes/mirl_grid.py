"""Tabular MIRL beside Q-learning, SQL and SQL_m: learning curves and the learnt action prior on three gridworlds.

    python recipes/mirl_grid.py
    python recipes/mirl_grid.py algo.worlds=[corridor] algo.num_seeds=50
    python recipes/mirl_grid.py algo.methods=[sql,mirl] algo.mirl.prior_rate=0.1 run.seed=1

Source: Grau-Moya, Leibfried, Vrancx, "Soft Q-Learning with Mutual-Information Regularization", ICLR 2019 [G19]. From
it: the updates, the rewards (9 at the goal, else -1), the restart at random, the names of the worlds. Ours, because it
does not say: their maps, the step sizes and schedules (tuned alike for all methods, see Algo), the time limit.
Expect, in a minute or two, all methods to solve the worlds; MIRL in 54-59% of Q-learning's steps where few actions are
of use (corridor, square) and in as many where all are (grid). See curves.png, priors.png and table.md of the run.
All seeds of all methods learn side by side; a run that was killed starts again from the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchrl_reg import tabular
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab import RecipeConfig, RunSettings, Study, recipe, require, stream_seed
from torchrl_reg.lab.run.files import write_atomically
from torchrl_reg.tabular import METHODS, MIRL_WORLDS, TabularAgents, TabularMDP, episode_return, gridworld


@dataclass
class AgentSettings:
    """Hyperparameters of one method; those that it does not have change nothing."""

    q_rate: float = 0.97  # step size of the action values; ours
    epsilon: float = 0.031  # probability of exploring; ours
    beta_growth: float = 0.0032  # c of beta_i = c i [G19], 1 / reward units a step; value ours; not Q-learning
    prior_rate: float = 0.078  # step size of the prior; ours; SQL_m and MIRL


def agent(**settings: float) -> Any:
    return field(default_factory=lambda: AgentSettings(**settings))


@dataclass
class Algo:
    """Hyperparameters: default, unit, source.

    The agents' are the best of 40 random settings, the same 40 for every method (5 seeds, which are not those of a run;
    4000 steps; log-uniform in q_rate .4-1, epsilon .005-.3, beta_growth .001-1, prior_rate .001-.3, the promising part
    of a first search of 48 wider ones), by the greedy return averaged over the run and the worlds.
    """

    methods: list[str] = field(default_factory=lambda: list(METHODS))  # ql, sql, sql_m, mirl [G19]
    worlds: list[str] = field(default_factory=lambda: list(MIRL_WORLDS))  # corridor, square, grid [G19]
    num_seeds: int = 20  # agents of each method in each world
    total_frames: int = 6_000  # environment steps of each agent in each world; ours
    max_episode_frames: int = 200  # steps until an episode is cut, and evaluated; ours
    gamma: float = 0.99  # discount; ours
    ql: AgentSettings = agent(q_rate=0.87, epsilon=0.017)
    sql: AgentSettings = agent(q_rate=0.99, epsilon=0.038, beta_growth=0.029)
    sql_m: AgentSettings = agent()
    mirl: AgentSettings = agent()

    def validate(self) -> None:
        for name, chosen, known in (("methods", self.methods, METHODS), ("worlds", self.worlds, MIRL_WORLDS)):
            all_known = len(chosen) > 0 and set(chosen) <= set(known)
            require(all_known, f"algo.{name}", f"a list of values from {list(known)}", chosen)
            require(len(set(chosen)) == len(chosen), f"algo.{name}", "a list without repetition", chosen)
        for name in ("num_seeds", "total_frames", "max_episode_frames"):
            require(getattr(self, name) > 0, f"algo.{name}", "> 0", getattr(self, name))
        require(0 <= self.gamma < 1, "algo.gamma", "in [0, 1)", self.gamma)
        for method in METHODS:
            settings = getattr(self, method)
            for rate in ("q_rate", "prior_rate"):
                require(0 < getattr(settings, rate) <= 1, f"algo.{method}.{rate}", "in (0, 1]", getattr(settings, rate))
            require(0 <= settings.epsilon <= 1, f"algo.{method}.epsilon", "in [0, 1]", settings.epsilon)
            require(settings.beta_growth > 0, f"algo.{method}.beta_growth", "> 0", settings.beta_growth)


@dataclass
class Config(RecipeConfig):
    """Of ``run``, what concerns devices, checkpoints, training rows and sampled evaluations does not apply."""

    defaults: ClassVar[list[Any]] = []
    algo: Algo = field(default_factory=Algo)
    run: RunSettings = field(default_factory=lambda: RunSettings(evaluate_every_frames=100))

    def validate(self) -> None:
        every, total = self.run.evaluate_every_frames, self.algo.total_frames
        require(every <= total, "run.evaluate_every_frames", f"<= algo.total_frames = {total}", every)


def train(cfg: Config) -> Path:
    algo = cfg.algo
    with Study(cfg, algo.total_frames * len(algo.worlds)) as study:
        for world in algo.worlds:
            learn_in(world, cfg, study)
        # Here, and not above: what a launcher pickles must not name a module that its worker does not find.
        from studies.gridworlds import draw_grid_curves, draw_priors, grid_table

        draw_grid_curves(study.path, study.path / "curves.png")
        if "mirl" in algo.methods:
            draw_priors(study.path, study.path / "priors.png")
        table = grid_table(study.path)
        write_atomically(study.path / "table.md", table + "\n")
        study.say(table)
        return study.finish(frames=algo.total_frames)


def learn_in(world: str, cfg: Config, study: Study) -> None:
    """Learns in ``world`` with all seeds of all methods, and writes the rows of that world."""
    algo = cfg.algo
    mdp = gridworld(MIRL_WORLDS[world], algo.gamma)
    optimal = episode_return(
        mdp, tabular.value_iteration(mdp).q.argmax(-1).unsqueeze(0), algo.max_episode_frames
    ).item()
    study.log("world", frames=0, world=world, layout=list(MIRL_WORLDS[world]), optimal_return=optimal)

    # What acts: in each environment an agent of its own, greedy in its policy or exploring from its prior.
    rows = [method for method in algo.methods for _ in range(algo.num_seeds)]
    settings = {n: torch.tensor([getattr(getattr(algo, m), n) for m in rows]) for n in vars(algo.ql)}
    seed = stream_seed(cfg.run.seed, "actor", world)
    agents = TabularAgents(rows, mdp.num_states, mdp.num_actions, gamma=algo.gamma, seed=seed, **settings)
    env = make_env(EnvSettings("gridworld", game=world, max_episode_frames=algo.max_episode_frames), len(rows))
    env.set_seed(stream_seed(cfg.run.seed, "train_env", world))

    # What it learns, in the loop: q(s, a) towards r + gamma / beta ln sum_a' rho(a') exp(beta q(s', a')), and rho
    # towards pi(.|s). It stores nothing.
    state, rewards, since = env.reset(), torch.zeros(len(rows)), 0
    for frames in range(1, algo.total_frames + 1):
        step, state = env.step_and_maybe_reset(state.set("action", agents.act(state["state"])))
        after = step["next"]
        reward, terminated = after["reward"].squeeze(-1), after["terminated"].squeeze(-1)
        agents.learn(step["state"], step["action"], reward, after["state"], terminated)
        rewards, since = rewards + reward, since + 1
        if frames % cfg.run.evaluate_every_frames == 0 or frames == algo.total_frames:
            study.log("eval", frames=frames, world=world, **evaluation(agents, mdp, algo, rewards / since))
            study.advance(since)
            rewards, since = torch.zeros_like(rewards), 0
    study.log("final", frames=algo.total_frames, world=world, **priors(agents, mdp, algo))


def evaluation(agents: TabularAgents, mdp: TabularMDP, algo: Algo, rewards: Tensor) -> dict[str, Any]:
    """By method, each seed's expected greedy return and mean reward since the last evaluation, and their means."""
    returns = by_method(algo, episode_return(mdp, agents.greedy_actions(), algo.max_episode_frames))
    earned = by_method(algo, rewards)
    columns: dict[str, Any] = {}
    for method, found in returns.items():
        columns[f"{method}_return_mean"] = found.mean().item()
        columns[f"{method}_returns"] = found.tolist()
        columns[f"{method}_rewards"] = earned[method].tolist()
    return columns


def priors(agents: TabularAgents, mdp: TabularMDP, algo: Algo) -> dict[str, Any]:
    """The priors learnt, and MIRL's greedy actions beside the prior that is exact at its inverse temperature."""
    columns: dict[str, Any] = {"prior": {name: prior.tolist() for name, prior in by_method(algo, agents.prior).items()}}
    greedy = by_method(algo, torch.nn.functional.one_hot(agents.greedy_actions(), mdp.num_actions).double())
    if "mirl" in greedy:
        beta = algo.mirl.beta_growth * algo.total_frames
        exact = tabular.mutual_information_iteration(mdp, beta).prior
        columns |= {"mirl_greedy": greedy["mirl"].mean(0).tolist(), "mirl_beta": beta, "exact_prior": exact.tolist()}
    return columns


def by_method(algo: Algo, values: Tensor) -> dict[str, Tensor]:
    """The rows ``[num_seeds, ...]`` of each method."""
    return dict(zip(algo.methods, values.split(algo.num_seeds), strict=True))


main = recipe(Config, train)

if __name__ == "__main__":
    main()
