"""Losses in other styles: modules of plain PyTorch on tensors, unreduced, with clips in two steps; right, and wrong."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from wrong_losses import ALPHA, GAMMA, LOW, TAU, planted


class PlainDQN(nn.Module):
    """On a plain module and tensors, ``[B, 1]`` in places, one loss a row, as a tuple with what is logged."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.online = network.module[0].module
        self.frozen = copy.deepcopy(self.online).requires_grad_(False)

    def value(self, observation: Tensor) -> Tensor:
        return self.frozen(observation).max(1, keepdim=True)[0]

    def going(self, following: Any) -> Tensor:
        return 1 - following["terminated"].to(following["reward"].dtype)

    def bonus(self, observation: Tensor, action: Tensor) -> Tensor | float:
        return 0.0

    def target(self, data: Any, action: Tensor) -> Tensor:
        following, bonus = data["next"], self.bonus(data["observation"], action)
        return following["reward"] + bonus + GAMMA * self.value(following["observation"]) * self.going(following)

    def distance(self, q: Tensor, y: Tensor) -> Tensor:
        return F.huber_loss(q, y, reduction="none", delta=0.3)

    def forward(self, data: Any) -> Any:
        action = data["action"].view(-1, 1)
        with torch.no_grad():
            y = self.target(data, action)
        loss = self.distance(self.online(data["observation"]).gather(1, action), y)
        return loss, {"target": y.mean()}


class PlainSoftDQN(PlainDQN):
    def value(self, observation: Tensor) -> Tensor:
        return TAU * torch.logsumexp(self.frozen(observation) / TAU, 1, keepdim=True)


class PlainMunchausen(PlainSoftDQN):
    def clip(self, tau_log_pi: Tensor) -> Tensor:
        return tau_log_pi.clamp_min(LOW).clamp_max(0)

    def bonus(self, observation: Tensor, action: Tensor) -> Tensor | float:
        return ALPHA * self.clip(TAU * F.log_softmax(self.frozen(observation) / TAU, 1).gather(1, action))


class PlainVIREL(PlainDQN):
    def value(self, observation: Tensor) -> Tensor:
        q = self.frozen(observation)
        return (F.softmax(q / TAU, 1) * q).sum(1, keepdim=True)


class LogCosh(PlainDQN):
    def distance(self, q: Tensor, y: Tensor) -> Tensor:
        return torch.log(torch.cosh(q - y)).mean()


class PlainDoubleDQN(PlainDQN):
    def value(self, observation: Tensor) -> Tensor:
        return self.frozen(observation).gather(1, self.online(observation).argmax(1, keepdim=True))


RIGHT = {PlainDQN: "dqn", PlainSoftDQN: "soft_dqn", PlainMunchausen: "m_dqn", PlainVIREL: "virel", LogCosh: "dqn"}
RIGHT |= {PlainDoubleDQN: "double_dqn"}


@planted("no bootstrap at truncation", "dqn")
class PlainDone(PlainDQN):
    def going(self, following: Any) -> Tensor:
        return 1 - following["done"].to(following["reward"].dtype)


@planted("truncated for terminated", "dqn")
class Truncated(PlainDQN):
    def going(self, following: Any) -> Tensor:
        return 1 - following["truncated"].to(following["reward"].dtype)


@planted("mask of ends turned round", "dqn")
class Inverted(PlainDQN):
    def going(self, following: Any) -> Tensor:
        return following["terminated"].to(following["reward"].dtype)


@planted("reward lost at terminal states", "dqn")
class RewardMasked(PlainDQN):
    def target(self, data: Any, action: Tensor) -> Tensor:
        return super().target(data, action) * self.going(data["next"])


@planted("bootstrap from the state before", "dqn")
class SameState(PlainDQN):
    def target(self, data: Any, action: Tensor) -> Tensor:
        value = self.value(data["observation"])
        return data["next", "reward"] + GAMMA * value * self.going(data["next"])


@planted("no gradient of large errors", "dqn")
class ClippedError(PlainDQN):
    """DQN's \"we clip the error term to [-1, 1]\", taken at its word."""

    def distance(self, q: Tensor, y: Tensor) -> Tensor:
        return (q - y).clamp(-1, 1) ** 2


@planted("double Q-learning turned round", "double_dqn")
class TurnedRound(PlainDQN):
    def value(self, observation: Tensor) -> Tensor:
        return self.online(observation).gather(1, self.frozen(observation).argmax(1, keepdim=True))


@planted("entropy not claimed", "virel")
class SoftVIREL(PlainSoftDQN):
    pass


@planted("prior missing or uniform", "soft_dqn")
class LogMeanExp(PlainSoftDQN):
    def value(self, observation: Tensor) -> Tensor:
        return super().value(observation) - TAU * math.log(3)


@planted("prior missing or uniform", "sql")
class NoPrior(PlainSoftDQN):
    pass


@planted("tau missing in the TD target", "soft_dqn")
class LogsumexpWithoutTau(PlainSoftDQN):
    def value(self, observation: Tensor) -> Tensor:
        return torch.logsumexp(self.frozen(observation) / TAU, 1, keepdim=True)


@planted("1 / tau for tau", "soft_dqn")
class InverseTau(PlainSoftDQN):
    def value(self, observation: Tensor) -> Tensor:
        return torch.logsumexp(self.frozen(observation) * TAU, 1, keepdim=True) / TAU


@planted("1 / tau for tau")
class InverseTauInThePolicy(PlainMunchausen):
    """Its targets are correct for every policy, as in BY571's loss."""

    def value(self, observation: Tensor) -> Tensor:
        q = self.frozen(observation)
        return (F.softmax(q * TAU, 1) * (q - TAU * F.log_softmax(q / TAU, 1))).sum(1, keepdim=True)


@planted("softmax without tau")
class SoftmaxByHand(PlainMunchausen):
    def value(self, observation: Tensor) -> Tensor:
        q = self.frozen(observation)
        weight = torch.exp(q - q.max(1, keepdim=True)[0])
        pi = weight / weight.sum(1, keepdim=True)
        return (pi * (q - TAU * F.log_softmax(q / TAU, 1))).sum(1, keepdim=True)


@planted("clip [l0, 1] instead of [l0, 0]")
class TwoClips(PlainMunchausen):
    def clip(self, tau_log_pi: Tensor) -> Tensor:
        return tau_log_pi.clamp_min(LOW).clamp_max(1)


@planted("clip [l0, 1] instead of [l0, 0]")
class ClipsOfTensors(PlainMunchausen):
    def clip(self, tau_log_pi: Tensor) -> Tensor:
        low, high = (torch.tensor(x, dtype=tau_log_pi.dtype) for x in (LOW, 1.0))
        return torch.maximum(torch.minimum(tau_log_pi, high), low)
