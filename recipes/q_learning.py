"""Any cell of the table: a regularizer, a reward shaping, a head and a bootstrap, each a choice on the command line.

    python recipes/q_learning.py +method=dqn                   # a paper's four choices; --help lists them
    python recipes/q_learning.py regularizer=tsallis shaping=munchausen head=quantile bootstrap=n_step
    python recipes/q_learning.py +method=iqn regularizer._target_=my_module.MyRegularizer +regularizer.tau=0.1

A choice's ``_target_`` names its class, and its other settings are that class's arguments (Hydra's ``instantiate``).
Your own class goes in by its import path, from the working directory or PYTHONPATH. ``m_dqn.py`` and ``m_iqn.py`` are
two cells written out. Lambda-returns need rollouts: ``pqn.py`` takes the same regularizers and shapings.

Sources: Geist, Scherrer, Pietquin, "A Theory of Regularized Markov Decision Processes", ICML 2019; for each method
``conf/method/<method>.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torchrl.envs.utils import ExplorationType

from torchrl_reg.envs import EnvSettings, frame_stack, frames_per_step, make_env
from torchrl_reg.lab import EpsilonSchedule, RecipeConfig, Run, ValueLearner, ValueLearning, build, recipe, require
from torchrl_reg.modules import ActorSequential, BoltzmannQActor, EpsilonGreedyModule, NetSettings
from torchrl_reg.objectives import HardTargetUpdate, QLearningLoss, Shaping
from torchrl_reg.objectives.heads import ExpectedValue, Head
from torchrl_reg.regularizers import Regularizer


@dataclass
class Algo(ValueLearning):
    """Hyperparameters of the method; replay, schedule, optimizer and exploration are described in ValueLearning."""

    double_dqn: bool = False  # the online network chooses the policy at s'; not with a shaping
    delay_value: bool = True  # bootstrap on a target network; false: on the online network
    loss_function: str = "smooth_l1"  # of head=expected: Huber, delta 1; also l2, l1
    explore: str = "greedy"  # between random actions: greedy, or sampled from the regularizer's policy
    learning_rate: float = 2e-3  # Adam, annealed to 0
    batch_size: int = 32  # transitions
    replay_capacity: int = 50_000  # transitions
    eps_start: float = 1.0  # probability of a random action
    eps_end: float = 0.05
    eps_frames: int = 10_000  # frames of linear annealing


@dataclass
class Config(RecipeConfig):
    defaults: ClassVar[list[Any]] = [
        {"net": "mlp"},
        *({"regularizer": "none"}, {"shaping": "none"}, {"head": "expected"}, {"bootstrap": "one_step"}),
        {"env": "cartpole"},
        *({"optional replay": "${env}"}, {"optional tuned": "q_learning/${env}"}),
    ]
    paper_needs: ClassVar[tuple[str, ...]] = ("method", "regularizer", "shaping", "head")

    method: str = ""  # of the paper; set by +method
    regularizer: dict[str, Any] = field(default_factory=dict)
    shaping: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    env: EnvSettings = field(default_factory=lambda: EnvSettings("cartpole"))
    # CartPole's discounted returns reach 100, with a Munchausen term -100; other ranges are in conf/net and conf/env.
    net: NetSettings = field(default_factory=lambda: NetSettings(num_atoms=101, value_min=-100.0, value_max=100.0))
    algo: Algo = field(default_factory=Algo)

    def validate(self) -> None:
        kinds: dict[str, type] = {"regularizer": Regularizer, "shaping": Shaping, "head": Head}
        for name, chosen in self.slots().items():
            fits = chosen is None or isinstance(chosen, kinds[name])
            require(fits, f"{name}._target_", f"that of a {kinds[name].__name__}", getattr(self, name).get("_target_"))

    def slots(self) -> dict[str, Any]:
        """Slots 1 to 3 as objects."""
        head = {key: value for key, value in self.head.items() if key not in ("actor", "network")}
        slots = {"regularizer": self.regularizer, "shaping": self.shaping, "head": head}
        return {name: build(settings) for name, settings in slots.items()}


def train(cfg: Config) -> Path:
    algo = cfg.algo
    run = Run(cfg, frames_per_step=frames_per_step(cfg.env))

    # What acts: epsilon-greedy in the Q-values. Evaluated greedy, and sampled from the regularizer's policy.
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    spec = env.full_action_spec_unbatched["action"].to(run.device)
    network = build(cfg.head["network"], cfg.net, env).to(run.device)
    actor = build(cfg.head["actor"], network, spec=spec)
    egreedy = EpsilonGreedyModule(spec, eps_init=algo.eps_start, eps_end=algo.eps_end, device=run.device)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)

    # What it learns: Z(s, a) towards r + bonus + gamma sum_a' pi(a'|s') (Z(s', a') - cost(a')).
    slots = cfg.slots()
    loss = QLearningLoss(
        actor,
        **slots,
        double_dqn=algo.double_dqn,
        delay_value=algo.delay_value,
        loss_function=algo.loss_function if isinstance(slots["head"], ExpectedValue) else None,  # type: ignore[arg-type]
        weight_reduction=algo.weight_reduction,  # type: ignore[arg-type]
    ).make_value_estimator(gamma=algo.gamma)
    sampled = BoltzmannQActor(actor, regularizer=loss.regularizer)  # follows the loss's temperature
    explorer = ActorSequential(sampled if algo.explore == "sampled" else actor, egreedy)
    evaluated = explorer if loss.regularizer.greedy_policy else sampled
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": (evaluated, ExplorationType.RANDOM)})
    target = HardTargetUpdate(loss, period_updates=algo.target_period_updates) if algo.delay_value else None

    # What it stores: transitions of n steps, sampled uniformly or by priority.
    schedule = EpsilonSchedule(egreedy, algo)
    learner = ValueLearner(run, algo, loss, target, schedule, frame_stack=frame_stack(cfg.env))

    # The loop
    for batch in learner.collect(env, explorer):
        learner.store(batch)
        for minibatch in learner.minibatches():
            scalars = learner.update(minibatch)
            loss.observe(scalars)
            run.record(scalars)
    return run.finish()


main = recipe(Config, train)

if __name__ == "__main__":
    main()
