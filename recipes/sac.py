"""Soft actor-critic, the baseline: its temperature fixed or adapted to a target entropy.

    python recipes/sac.py
    python recipes/sac.py algo.adapt_tau=false algo.tau=0.1
    python recipes/sac.py env=mujoco/hopper run.seed=1
    python recipes/sac.py env=multigoal env.game=up algo.below=RUN  # acts through the flow that RUN has trained

Source: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018 [H18]; ``algo.below``: the same,
"Latent Space Policies for Hierarchical Reinforcement Learning", 2018 [H18b]. Expect an evaluation return above
-200 on Pendulum-v1 (recipes/RESULTS.md). ``policy=multicategorical`` takes the expectation over the bins exactly where
the action has one dimension (TorchRL's DiscreteSACLoss); beyond, it differentiates action and log-probability through a
straight-through Gumbel-softmax sample, which is biased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType
from torchrl.objectives import DiscreteSACLoss

from torchrl_reg import load_policy
from torchrl_reg.envs import EnvSettings, frames_per_step, make_env
from torchrl_reg.lab import PolicyLearner, PolicyLearning, RecipeConfig, Run, UserError, recipe, require
from torchrl_reg.modules import (
    LatentActionTransform,
    PolicySettings,
    SingleDimensionActor,
    bin_value_network,
    policy,
    state_action_value_network,
)
from torchrl_reg.objectives import PolyakTargetUpdate, SoftActorCriticLoss


@dataclass
class Algo(PolicyLearning):
    """Hyperparameters of the method; those of its replay, schedule and optimizer are PolicyLearning's."""

    tau: float = 1.0  # temperature (alpha in [H18]), reward units; where it starts if adapted
    adapt_tau: bool = True  # to the target entropy [H18]
    below: str | None = None  # run folder of a flow policy, frozen: its latent space is the action space [H18b]
    target_entropy: float | None = None  # nats; null: minus the action dimensions [H18], of bins half of ln(bins) each
    learning_rate: float = 1e-3  # Adam, of all networks
    batch_size: int = 256  # transitions
    replay_capacity: int = 100_000  # transitions

    def validate(self) -> None:
        require(0 < self.tau < math.inf, "algo.tau", "finite and > 0", self.tau)
        unused = self.target_entropy is None or self.adapt_tau
        require(unused, "algo.target_entropy", "null where algo.adapt_tau=false", self.target_entropy)
        super().validate()


@dataclass
class Config(RecipeConfig):
    defaults: ClassVar[list[Any]] = [{"policy": "gaussian"}, {"env": "pendulum"}]

    env: EnvSettings = field(default_factory=lambda: EnvSettings("pendulum"))
    policy: PolicySettings = field(default_factory=lambda: PolicySettings("gaussian"))
    algo: Algo = field(default_factory=Algo)

    def validate(self) -> None:
        differentiable = self.policy.name != "autoregressive"  # its samples carry no gradient to the policy
        require(differentiable, "policy.name", "gaussian, flow or multicategorical for SAC", self.policy.name)


def layer_below(run: str) -> LatentActionTransform:
    """The flow of a finished run as a layer between a policy and the environment."""
    try:
        return LatentActionTransform(load_policy(run))
    except ValueError:
        raise UserError(f"algo.below must be the folder of a finished run with policy=flow, got {run}.") from None


def make_loss(cfg: Config, env: EnvBase, actor: Any, device: torch.device) -> SoftActorCriticLoss | DiscreteSACLoss:
    """The SAC loss with two critics; of one-dimensional bins TorchRL's, which sums over them."""
    algo = cfg.algo
    dims = env.full_action_spec_unbatched["action"].shape[-1]
    binned = cfg.policy.name == "multicategorical"
    auto = 0.5 * sum(torch.tensor(actor.bins.num_bins).log().tolist()) if binned else -float(dims)
    if binned and algo.target_entropy is not None:
        require(
            0 < algo.target_entropy < 2 * auto, "algo.target_entropy", f"in (0, {2 * auto:.3f})", algo.target_entropy
        )
    entropy = auto if algo.target_entropy is None else algo.target_entropy
    if not (binned and dims == 1):
        critics = [state_action_value_network(cfg.policy, env).to(device) for _ in range(2)]
        target = entropy if algo.adapt_tau else None
        loss = SoftActorCriticLoss(actor, critics, tau=algo.tau, target_entropy=target, straight_through=binned)
        return loss.make_value_estimator(gamma=algo.gamma)
    # A list of critics: from a single one TorchRL would initialize the copies itself, not as the layers do.
    view = SingleDimensionActor(actor)
    discrete = DiscreteSACLoss(
        view,
        [bin_value_network(cfg.policy, env).to(device) for _ in range(2)],
        action_space="categorical",
        loss_function="l2",
        alpha_init=algo.tau,
        fixed_alpha=not algo.adapt_tau,
        target_entropy=entropy,
    )
    discrete.set_keys(action=view.stored_action_key)
    discrete.make_value_estimator(gamma=algo.gamma)
    return discrete


def train(cfg: Config) -> Path:
    algo = cfg.algo
    run = Run(cfg, frames_per_step=frames_per_step(cfg.env))

    # What acts: samples of the policy. Evaluated at its mode, and sampled.
    env, below = make_env(cfg.env, algo.num_envs, device=run.device), None
    if algo.below is not None:
        below = layer_below(algo.below).to(run.device)
        env = env.append_transform(below)
    actor = policy(cfg.policy, env).to(run.device)
    acts = actor if below is None else partial(below.play, actor)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)
    run.evaluate_with(eval_env, {"greedy": acts, "sampled": (acts, ExplorationType.RANDOM)})

    # What it learns: Q(s, a) towards r + gamma (min Q_target - tau ln pi)(s', a'), pi towards softmax(Q / tau).
    loss = make_loss(cfg, env, actor, run.device)
    target = PolyakTargetUpdate(loss, rate=algo.target_rate)

    # What it stores: single transitions, sampled uniformly.
    learner = PolicyLearner(run, algo, loss, target)

    # The loop
    for batch in learner.collect(env, actor):
        if "action_index" in loss.in_keys:  # the form DiscreteSACLoss takes
            batch = batch.clone(False).set("action_index", batch["action_index"].squeeze(-1))
        learner.store(batch)
        for minibatch in learner.minibatches():
            run.record(learner.update(minibatch))
    return run.finish()


main = recipe(Config, train)

if __name__ == "__main__":
    main()
