"""PQN: Q-learning without replay and without a target network, by lambda-returns of many environments' rollouts.

    python recipes/pqn.py                                       # CleanRL's settings of classic control
    python recipes/pqn.py regularizer=entropy shaping=munchausen  # soft and Munchausen PQN
    python recipes/pqn.py env=minatar/breakout +paper=gallici2024_minatar

Takes any regularizer and shaping of ``q_learning.py``. Returns are corrected for actions that are not greedy, so that
the fixed point is the regularized optimum for any behaviour; the published form, Peng's, is ``algo.correct=false``.

Sources: Gallici et al., "Simplifying Deep Temporal Difference Learning", ICLR 2025, and its code; Harutyunyan et al.
2016 for the correction. Ours: the regularizer and the shaping.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torchrl.envs.utils import ExplorationType

from torchrl_reg.envs import EnvSettings, frames_per_step, make_env
from torchrl_reg.lab import RecipeConfig, RolloutLearner, RolloutLearning, Run, build, recipe, require
from torchrl_reg.modules import ActorSequential, BoltzmannQActor, EpsilonGreedyModule, NetSettings, QActor, q_network
from torchrl_reg.objectives import QLearningLoss, Shaping
from torchrl_reg.regularizers import Regularizer


@dataclass
class Algo(RolloutLearning):
    """Hyperparameters of the method; rollouts, optimizer and exploration are described in RolloutLearning."""

    lmbda: float = 0.65  # trace parameter of the returns
    correct: bool = True  # correct the returns for the actions taken; false: Peng's, as published
    time_limits_end: bool = False  # no bootstrap after a time limit, as published
    loss_function: str = "l2"  # also half_l2, smooth_l1, l1
    explore: str = "greedy"  # between random actions: greedy, or sampled from the regularizer's policy
    num_envs: int = 4  # environments stepped together
    collect_steps: int = 128  # steps of each in a rollout
    learning_rate: float = 2.5e-4  # RAdam, annealed to 0
    batch_size: int = 128  # rows of a rollout in a minibatch
    eps_start: float = 1.0  # probability of a random action
    eps_end: float = 0.05
    eps_frames: int = 250_000  # frames of linear annealing

    def validate(self) -> None:
        require(0 <= self.lmbda <= 1, "algo.lmbda", "in [0, 1]", self.lmbda)
        super().validate()


@dataclass
class Config(RecipeConfig):
    defaults: ClassVar[list[Any]] = [{"net": "mlp"}, {"regularizer": "none"}, {"shaping": "none"}, {"env": "cartpole"}]

    regularizer: dict[str, Any] = field(default_factory=dict)
    shaping: dict[str, Any] = field(default_factory=dict)
    env: EnvSettings = field(default_factory=lambda: EnvSettings("cartpole"))
    net: NetSettings = field(default_factory=NetSettings)
    algo: Algo = field(default_factory=Algo)

    def validate(self) -> None:
        kinds: dict[str, type] = {"regularizer": Regularizer, "shaping": Shaping}
        for name, chosen in self.slots().items():
            fits = chosen is None or isinstance(chosen, kinds[name])
            require(fits, f"{name}._target_", f"that of a {kinds[name].__name__}", getattr(self, name).get("_target_"))

    def slots(self) -> dict[str, Any]:
        """Slots 1 and 2 as objects."""
        return {"regularizer": build(self.regularizer), "shaping": build(self.shaping)}


def train(cfg: Config) -> Path:
    algo = cfg.algo
    run = Run(cfg, frames_per_step=frames_per_step(cfg.env))

    # What acts: epsilon-greedy in the Q-values. Evaluated greedy, and sampled from the regularizer's policy.
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    spec = env.full_action_spec_unbatched["action"].to(run.device)
    actor = QActor(q_network(cfg.net, env).to(run.device), spec=spec)
    egreedy = EpsilonGreedyModule(spec, eps_init=algo.eps_start, eps_end=algo.eps_end, device=run.device)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)

    # What it learns: q(s, a) towards G = r + bonus + gamma (V(s') + lambda (G' - q(s', a'))), once per rollout.
    loss = QLearningLoss(actor, **cfg.slots(), delay_value=False, loss_function=algo.loss_function)  # type: ignore[arg-type]
    returns: dict[str, Any] = {"correct": algo.correct, "time_limits_end": algo.time_limits_end}
    loss.make_value_estimator("regularized_qlambda", gamma=algo.gamma, lmbda=algo.lmbda, **returns)
    sampled = BoltzmannQActor(actor, regularizer=loss.regularizer)  # follows the loss's temperature
    explorer = ActorSequential(sampled if algo.explore == "sampled" else actor, egreedy)
    evaluated = explorer if loss.regularizer.greedy_policy else sampled
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": (evaluated, ExplorationType.RANDOM)})

    # What it stores: one rollout, with the Q-values it was acted on, split into minibatches.
    learner = RolloutLearner(run, algo, loss, egreedy)

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
