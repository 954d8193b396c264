"""Losses of distributions as people write them, on plain modules, right, and with one mistake each."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from wrong_losses import ALPHA, C51, GAMMA, LOW, TAU, planted


class MunchausenIQN(nn.Module):
    """Dopamine's M-IQN, one row at a time in none of its parts."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.online = network.quantile_network
        self.frozen = copy.deepcopy(self.online).requires_grad_(False)

    def quantiles(self, network: Any, state: Tensor, count: int) -> tuple[Tensor, Tensor]:
        fractions = torch.rand(len(state), count, dtype=state.dtype)
        return network.quantiles(network.features(state), fractions), fractions

    def policy(self, z: Tensor) -> Tensor:
        return F.log_softmax(z.mean(1) / TAU, -1).unsqueeze(1)

    def targets(self, data: Any) -> Tensor:
        state, after = data["observation"], data["next"]
        z = self.quantiles(self.frozen, after["observation"], 8)[0]
        log_pi = self.policy(z)
        value = (log_pi.exp() * (z - TAU * log_pi)).sum(-1)
        here = F.log_softmax(self.quantiles(self.frozen, state, 4)[0].mean(1) / TAU, -1)
        bonus = ALPHA * (TAU * here.gather(1, data["action"].unsqueeze(-1))).clamp(LOW, 0)
        return after["reward"] + bonus + GAMMA * value * ~after["terminated"]

    def level(self, online: Tensor, target: Tensor) -> Tensor:
        return online.unsqueeze(-1)

    def forward(self, data: Any) -> Any:
        with torch.no_grad():
            y = self.targets(data)
        z, fractions = self.quantiles(self.online, data["observation"], 6)
        z = z[torch.arange(len(z)), :, data["action"]]
        error = y.unsqueeze(1) - z.unsqueeze(2)
        target_fractions = torch.tensor([0.25, 0.75], dtype=z.dtype).repeat(y.shape[1] // 2)
        weight = (self.level(fractions, target_fractions) - (error.detach() < 0).to(z.dtype)).abs()
        return (weight * F.huber_loss(error, torch.zeros_like(error), reduction="none")).sum(1).mean()


class QRDQN(nn.Module):
    """QR-DQN of four quantiles, summed over those of the prediction."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.online = network
        self.target = copy.deepcopy(network)

    def z(self, network: Any, state: Tensor) -> Tensor:
        return network.distribution.outputs(state)

    def level(self, fractions: Tensor) -> Tensor:
        return fractions.view(1, 4, 1)

    def forward(self, data: Any) -> Any:
        rows, after = torch.arange(len(data)), data["next"]
        with torch.no_grad():
            z = self.z(self.target, after["observation"])
            z = z[rows, :, z.mean(1).argmax(-1)]
            y = after["reward"] + GAMMA * z * ~after["terminated"]
        error = y.unsqueeze(1) - self.z(self.online, data["observation"])[rows, :, data["action"]].unsqueeze(2)
        fractions = (torch.arange(4, dtype=y.dtype) + 0.5) / 4
        weight = (self.level(fractions) - (error.detach() < 0).to(y.dtype)).abs()
        loss = (weight * F.huber_loss(error, torch.zeros_like(error), reduction="none")).mean(2).sum(1)
        return loss.mean()


RIGHT = {MunchausenIQN: "m_iqn", QRDQN: "qr_dqn"}


@planted("policy per quantile", "m_iqn")
class PolicyPerQuantile(MunchausenIQN):
    def policy(self, z: Tensor) -> Tensor:
        return F.log_softmax(z / TAU, -1)


@planted("fractions on the target's axis", "qr_dqn")
class FractionsOfTheTarget(QRDQN):
    def level(self, fractions: Tensor) -> Tensor:
        return fractions.view(1, 1, 4)


@planted("fractions on the target's axis", "m_iqn")
class DrawnFractionsOfTheTarget(MunchausenIQN):
    def level(self, online: Tensor, target: Tensor) -> Tensor:
        return target


@planted("fractions turned round", "qr_dqn")
class FractionsTurnedRound(QRDQN):
    def level(self, fractions: Tensor) -> Tensor:
        return 1 - fractions.view(1, 4, 1)


@planted("fractions ignored", "qr_dqn")
class MedianOnly(QRDQN):
    def level(self, fractions: Tensor) -> Tensor:
        return torch.full_like(fractions, 0.5).view(1, 4, 1)


@planted("mass lost on the grid", "c51")
class MassLost(C51):
    def upper(self, low: Tensor, high: Tensor) -> Tensor:
        return high
