"""Planning online: MENTS, RENTS, TENTS, UCT or PUCT searches from every state that an episode reaches.

    python recipes/ments.py
    python recipes/ments.py plan=cartpole algo.method=uct
    python recipes/ments.py plan=atari env.game=Pong +paper=xiao2019 algo.policy=RUN_FOLDER  # a run of +method=dqn

Sources: Xiao, Huang, Mei, Schuurmans, Mueller, "Maximum Entropy Monte-Carlo Planning", NeurIPS 2019 [X19]; Dam et al.,
"Convex Regularization in Monte-Carlo Tree Search", ICML 2021 [D21]; Kocsis and Szepesvari 2006 (UCT); Silver et al.
2017 (PUCT). Nothing is learnt: run.eval_episodes episodes are played side by side, their leaves evaluated in one
batch, and the run ends with their returns. Decisions are saved every run.checkpoint_every_frames; a run that was killed
replays them and continues.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_reg import load_policy, planning
from torchrl_reg.envs import EnvSettings, MinAtar, frames_per_step
from torchrl_reg.lab import RecipeConfig, RunSettings, Study, recipe, require, stream_seed
from torchrl_reg.planning import MENTS, PUCT, RENTS, TENTS, UCT, EmulatorModel, Planner
from torchrl_reg.regularizers import HardMax
from torchrl_reg.tabular import MIRL_WORLDS, gridworld

PLANNERS = {"ments": MENTS, "rents": RENTS, "tents": TENTS, "uct": UCT, "puct": PUCT}
GYM = {"cartpole": "CartPole-v1", "acrobot": "Acrobot-v1", "lunarlander": "LunarLander-v3", "pendulum": "Pendulum-v1"}


@dataclass
class Algo:
    """Hyperparameters: default, unit, source. The defaults suit the gridworld; plans and presets change them."""

    method: str = "ments"  # ments, rents, tents, uct or puct
    num_simulations: int = 100  # of one decision
    tau: float = 0.1  # temperature, reward units [D21]; with a network also of the prior
    epsilon: float = 0.1  # exploration of E2W [D21]; well below ln(num_simulations) / actions
    c: float = 1.5  # weight of UCT's and PUCT's bonus, reward units [D21]
    gamma: float = 0.95  # discount of the search; ours
    max_depth: int = 0  # max. actions in one simulation; 0: no limit
    rollout_steps: int = 20  # random actions that value a new leaf; 0: its value is 0; ours
    num_emulators: int = 1  # Atari processes side by side; affects only the time
    policy: str | None = None  # run folder of a trained Q-network, which values leaves instead of random actions

    def validate(self) -> None:
        require(self.method in PLANNERS, "algo.method", f"one of {', '.join(PLANNERS)}", self.method)
        for name in ("num_simulations", "num_emulators", "tau", "epsilon"):
            require(getattr(self, name) > 0, f"algo.{name}", "> 0", getattr(self, name))
        for name in ("c", "max_depth", "rollout_steps"):
            require(getattr(self, name) >= 0, f"algo.{name}", ">= 0", getattr(self, name))
        require(0 <= self.gamma <= 1, "algo.gamma", "in [0, 1]", self.gamma)


@dataclass
class Config(RecipeConfig):
    """Settings of ``run`` for devices, networks and evaluations during training do not apply."""

    defaults: ClassVar[list[Any]] = [{"plan": "gridworld"}]
    env: EnvSettings = field(default_factory=lambda: EnvSettings("gridworld", game="square"))
    algo: Algo = field(default_factory=Algo)
    run: RunSettings = field(default_factory=lambda: RunSettings(checkpoint_every_frames=200))


def train(cfg: Config) -> Path:
    algo, episodes = cfg.algo, cfg.run.eval_episodes
    generator = torch.Generator()

    # What plans: a model of the environment, a search in it, and the values of new leaves.
    model = planning_model(cfg, generator)
    planner = make_planner(algo)
    evaluate = evaluation(cfg, model, planner, generator)

    # The loop
    skip, limit = frames_per_step(cfg.env), cfg.env.max_episode_frames or 0
    with Study(cfg, episodes * limit) as study:
        decisions = (study.load("decisions") or {"decisions": []})["decisions"]
        state = model.reset(episodes, stream_seed(cfg.run.seed, "train_env"))
        returns, running = torch.zeros(episodes, dtype=torch.float64), torch.arange(episodes)
        saved_at = logged_at = 0
        for decision in range(-(-limit // skip)):
            generator.manual_seed(stream_seed(cfg.run.seed, "search", decision))
            torch.manual_seed(stream_seed(cfg.run.seed, "network", decision))  # a quantile network draws fractions
            if decision == len(decisions):
                found = planner(model, state, evaluate=evaluate, generator=generator)
                decisions.append([found.action.tolist(), found.value.mean().item()])
            actions, value = decisions[decision]
            generator.manual_seed(stream_seed(cfg.run.seed, "step", decision))
            reward, state, ended = model.step(state, torch.tensor(actions))
            # Unclipped rewards: the search may have used clipped ones.
            returns[running] += model.raw_reward(state) if isinstance(model, EmulatorModel) else reward
            study.advance(skip * len(running))
            state, running = state[~ended], running[~ended]
            if isinstance(model, EmulatorModel):
                model.release(0, keep=state)
            if study.frames - logged_at >= cfg.run.log_every_frames or len(running) == 0:
                logged_at = study.frames
                columns = {"root_value": value, "return_so_far": returns.mean().item(), "running": len(running)}
                study.log("act", decision=decision + 1, **columns)
            if study.frames - saved_at >= (cfg.run.checkpoint_every_frames or 200) and decision + 1 == len(decisions):
                saved_at = study.frames
                study.store("decisions", {"decisions": decisions})
            if len(running) == 0:
                break
        spread = {"return_greedy_std": returns.std(correction=0).item(), "episodes": episodes}
        study.evaluation({"return_greedy_mean": returns.mean().item(), **spread, "returns": returns.tolist()})
        study.say(f"returns {returns.tolist()}")
        return study.finish()


def planning_model(cfg: Config, generator: torch.Generator) -> Any:
    """The environment as a model, whose random numbers come from ``generator``."""
    env = cfg.env

    def settings(*names: str) -> dict[str, Any]:
        return {name: getattr(env, name) for name in names}

    if env.name == "gridworld":
        require(env.game in MIRL_WORLDS, "env.game", f"one of {', '.join(MIRL_WORLDS)}", env.game)
        return planning.TabularModel(gridworld(MIRL_WORLDS[env.game], gamma=0.0), generator=generator)
    if env.name == "atari":
        own = settings("frame_skip", "frame_stack", "sticky_actions", "noop_max", "minimal_actions")
        own |= {"observe": cfg.algo.policy is not None, "num_emulators": cfg.algo.num_emulators}
        return planning.AtariModel(env.game, generator=generator, **own)
    if env.name == "minatar":
        own = settings("sticky_actions", "minimal_actions", "difficulty_ramping")
        return planning.VectorModel(
            MinAtar(1, game=env.game, max_episode_frames=10**9, **own)
        )  # train() enforces the limit
    known = ", ".join(("gridworld", "minatar", "atari", *GYM))
    require(env.name in GYM, "env.name", f"one of {known}, which can be planned in", env.name)
    return planning.GymModel(gymnasium.make(GYM[env.name], disable_env_checker=True))


def make_planner(algo: Algo) -> Planner:
    """The planner named ``algo.method``."""
    own = {"c": algo.c} if algo.method in ("uct", "puct") else {"tau": algo.tau, "epsilon": algo.epsilon}
    rest = {"num_simulations": algo.num_simulations, "gamma": algo.gamma, "max_depth": algo.max_depth or None}
    return PLANNERS[algo.method](**own, **rest)


def evaluation(cfg: Config, model: Any, planner: Planner, generator: torch.Generator) -> Any:
    """Values of new leaves: by a trained network, by random actions, or 0."""
    algo = cfg.algo
    if algo.policy is None:
        rollout: Any = {"max_steps": algo.rollout_steps, "gamma": algo.gamma, "generator": generator}
        return planning.RandomRollout(model, **rollout) if algo.rollout_steps else planning.zero_evaluation
    require(isinstance(model, EmulatorModel), "algo.policy", "None in a gridworld", algo.policy)
    actor = load_policy(algo.policy)

    def q_network(observation: Tensor) -> Tensor:
        return actor(TensorDict({"observation": observation}, [len(observation)]))["action_value"]

    try:
        actions = q_network(model.observation(model.reset(1, 0))).shape[-1]
    except (KeyError, RuntimeError, ValueError):
        actions = None
    model.release(0)
    expected = f"a run of a Q-network of this environment's {model.num_actions} actions"
    require(actions == model.num_actions, "algo.policy", expected, algo.policy)
    regularizer = HardMax() if planner.regularizer is None else planner.regularizer
    return planning.QEvaluation(q_network, regularizer, prior_tau=algo.tau, observe=model.observation)


main = recipe(Config, train)

if __name__ == "__main__":
    main()
