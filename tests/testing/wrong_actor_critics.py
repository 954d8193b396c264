"""Discrete SAC as people write it, right, and with one mistake each."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.objectives import LossModule

TAU, GAMMA = 0.4, 0.9


class DiscreteSAC(LossModule):
    """CleanRL's sac_atari.py as a module: two critics, their targets, a categorical actor."""

    through_the_policy = False

    def __init__(self, actor: Any, critic: Any) -> None:
        super().__init__()
        self.actor, self.qf1, self.qf2 = actor, critic, copy.deepcopy(critic)
        self.qf1_target, self.qf2_target = copy.deepcopy(critic), copy.deepcopy(critic)

    def policy(self, state: Any) -> tuple[Tensor, Tensor]:
        log_pi = self.actor.get_dist(state.select("observation")).logits.log_softmax(-1)
        return log_pi.exp(), log_pi

    def q(self, critic: nn.Module, state: Any) -> Tensor:
        return critic(state.select("observation"))["action_value"]

    def least(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.min(first, second)

    def value(self, state: Any) -> Tensor:
        pi, log_pi = self.policy(state)
        q = self.least(self.q(self.qf1_target, state), self.q(self.qf2_target, state))
        return (pi * (q - TAU * log_pi)).sum(-1)

    def actor_loss(self, state: Any) -> Tensor:
        pi, log_pi = self.policy(state)
        q = self.judged(torch.min(self.q(self.qf1, state), self.q(self.qf2, state)))
        return self.actor_objective(pi, log_pi, q).sum(-1).mean()

    def judged(self, q: Tensor) -> Tensor:
        return q.detach()

    def actor_objective(self, pi: Tensor, log_pi: Tensor, q: Tensor) -> Tensor:
        return pi * (TAU * log_pi - q)

    def trained(self) -> list[nn.Module]:
        return [self.qf1, self.qf2]

    def critic_losses(self, data: Any) -> list[Tensor]:
        following = data["next"]
        with torch.set_grad_enabled(self.through_the_policy):
            going = (~following["terminated"]).to(following["reward"].dtype).squeeze(-1)
            y = following["reward"].squeeze(-1) + GAMMA * going * self.value(following)
        action = data["action"].unsqueeze(-1)
        taken = [self.q(critic, data).gather(-1, action).squeeze(-1) for critic in self.trained()]
        return [((q - y) ** 2).mean() for q in taken]

    def forward(self, data: Any) -> TensorDict:
        loss = torch.stack(self.critic_losses(data)).sum()
        return TensorDict({"loss_qvalue": loss, "loss_actor": self.actor_loss(data)}, [])


class FirstCritic(DiscreteSAC):
    def least(self, first: Tensor, second: Tensor) -> Tensor:
        return first


class LargestCritic(DiscreteSAC):
    def least(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.max(first, second)


class EntropyMissing(DiscreteSAC):
    def value(self, state: Any) -> Tensor:
        q = torch.min(self.q(self.qf1_target, state), self.q(self.qf2_target, state))
        return (self.policy(state)[0] * q).sum(-1)


class OnlineCritics(DiscreteSAC):
    def value(self, state: Any) -> Tensor:
        pi, log_pi = self.policy(state)
        return (pi * (torch.min(self.q(self.qf1, state), self.q(self.qf2, state)) - TAU * log_pi)).sum(-1)


class NoEntropy(DiscreteSAC):
    def actor_objective(self, pi: Tensor, log_pi: Tensor, q: Tensor) -> Tensor:
        return -pi * q


class NarrowedPolicy(DiscreteSAC):
    def actor_objective(self, pi: Tensor, log_pi: Tensor, q: Tensor) -> Tensor:
        return pi * (-TAU * log_pi - q)


class NoTau(DiscreteSAC):
    def actor_objective(self, pi: Tensor, log_pi: Tensor, q: Tensor) -> Tensor:
        return pi * (log_pi - q)


class Descends(DiscreteSAC):
    def actor_objective(self, pi: Tensor, log_pi: Tensor, q: Tensor) -> Tensor:
        return pi * (q - TAU * log_pi)


class TrainsCritics(DiscreteSAC):
    def judged(self, q: Tensor) -> Tensor:
        return q


class OneCriticTrained(DiscreteSAC):
    def trained(self) -> list[nn.Module]:
        return [self.qf1]


class ActorInTheTarget(DiscreteSAC):
    through_the_policy = True


class LossPerCritic(DiscreteSAC):
    """Right: a check reads the first, and sees that the other critic is trained, too."""

    def forward(self, data: Any) -> TensorDict:
        first, second = self.critic_losses(data)
        return TensorDict({"loss_qf1": first, "loss_qf2": second, "loss_actor": self.actor_loss(data)}, [])


WRONG = {
    TrainsCritics: "actor's loss trains the critics",
    OneCriticTrained: "critic left out",
    ActorInTheTarget: "critics' loss trains the actor",
    FirstCritic: "minimum of the critics missing",
    LargestCritic: "minimum of the critics missing",
    EntropyMissing: "entropy missing",
    OnlineCritics: "online for target network",
    NoEntropy: "entropy missing in the actor's loss",
    NarrowedPolicy: "sign of the entropy in the actor's loss",
    NoTau: "tau missing in the actor's loss",
    Descends: "actor's loss turned round",
}
