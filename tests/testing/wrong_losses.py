"""Losses as people write them, plain and right, and with one mistake each; none uses this package."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives import LossModule

TAU, ALPHA, LOW, GAMMA = 0.5, 0.6, -0.4, 0.9
NUMBERS: dict[str, Any] = {"tau": TAU, "alpha": ALPHA, "clip_min": LOW, "gamma": GAMMA}
#: Name of the error -> losses that have it.
PLANTED: dict[str, list[tuple[type, str]]] = {}


def planted(name: str, method: str = "m_dqn") -> Any:
    """Lists a loss under the name that a check must give its error, and the method that it claims to be."""

    def listed(cls: type) -> type:
        PLANTED.setdefault(name, []).append((cls, method))
        return cls

    return listed


class DQN(LossModule):
    """CleanRL's dqn.py as a module: a second network, a gather, a mean squared error."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.q_network, self.target_network = network, copy.deepcopy(network)
        self.target_network.requires_grad_(False)

    def q(self, network: Any, data: Any) -> Tensor:
        return network(data.select("observation", "action_mask", strict=False))["action_value"]

    def bootstrap(self, data: Any) -> Tensor:
        return self.q(self.target_network, data["next"]).max(-1).values

    def ended(self, data: Any) -> Tensor:
        return data["next", "terminated"].squeeze(-1)

    def discount(self, data: Any) -> Any:
        return GAMMA

    def bonus(self, data: Any) -> Tensor | float:
        return 0.0

    def target(self, data: Any) -> Tensor:
        reward = data["next", "reward"].squeeze(-1) + self.bonus(data)
        return reward + self.discount(data) * self.bootstrap(data) * (1 - self.ended(data).to(reward.dtype))

    def predicted(self, data: Any) -> Tensor:
        return self.q(self.q_network, data).gather(-1, data["action"].unsqueeze(-1)).squeeze(-1)

    def forward(self, tensordict: Any) -> TensorDict:
        with torch.no_grad():
            y = self.target(tensordict)
        return TensorDict({"loss": F.mse_loss(self.predicted(tensordict), y)}, [])


class SoftDQN(DQN):
    def bootstrap(self, data: Any) -> Tensor:
        return TAU * (self.q(self.target_network, data["next"]) / TAU).logsumexp(-1)


class MunchausenDQN(DQN):
    def bootstrap(self, data: Any) -> Tensor:
        q = self.q(self.target_network, data["next"])
        log_pi = F.log_softmax(q / TAU, -1)
        return (log_pi.exp() * (q - TAU * log_pi)).sum(-1)

    def log_pi_of(self, data: Any, network: Any = None, state: Any = None) -> Tensor:
        q = self.q(network or self.target_network, data if state is None else state)
        return F.log_softmax(q / TAU, -1).gather(-1, data["action"].unsqueeze(-1)).squeeze(-1)

    def bonus(self, data: Any) -> Tensor | float:
        return ALPHA * (TAU * self.log_pi_of(data)).clamp(LOW, 0)


class NStepDQN(DQN):
    def discount(self, data: Any) -> Any:
        return GAMMA ** data.get("steps_to_next_obs", torch.ones(1, dtype=torch.int64)).squeeze(-1)


class OneHotDQN(DQN):
    def __init__(self, network: Any) -> None:
        super().__init__(network)
        self.action_space = network.spec["action"].__class__.__name__.lower().replace("onehot", "one-hot")

    def predicted(self, data: Any) -> Tensor:
        action, q = data["action"], self.q(self.q_network, data)
        return (q * (F.one_hot(action, 3) if action.ndim < q.ndim else action)).sum(-1)


class C51(LossModule):
    """CleanRL's c51.py as a module; the network gives log-probabilities ``[B, atoms, A]``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.q_network, self.target_network = network, copy.deepcopy(network)
        self.atoms = network.support

    def log_p(self, network: Any, data: Any, action: Tensor) -> Tensor:
        log_p = network(data.select("observation"))["action_value"]
        return log_p[torch.arange(len(action)), :, action]

    def ended(self, data: Any) -> Tensor:
        return data["next", "terminated"]

    def clipped(self, z: Tensor) -> Tensor:
        return z.clamp(self.atoms[0], self.atoms[-1])

    def upper(self, low: Tensor, high: Tensor) -> Tensor:
        return high + (low == high)

    def forward(self, data: Any) -> TensorDict:
        atoms, following = self.atoms, data["next"]
        with torch.no_grad():
            p = self.target_network(following.select("observation"))["action_value"].exp()
            greedy = (p * atoms.unsqueeze(-1)).sum(1).argmax(-1)
            next_p, step = p[torch.arange(len(greedy)), :, greedy], atoms[1] - atoms[0]
            z = self.clipped(following["reward"] + GAMMA * atoms * ~self.ended(data))
            b = (z - atoms[0]) / step
            low, high = b.floor().clamp(0, len(atoms) - 1), b.ceil().clamp(0, len(atoms) - 1)
            projected = torch.zeros_like(next_p)
            for row in range(len(projected)):
                projected[row].index_add_(0, low[row].long(), (self.upper(low, high) - b)[row] * next_p[row])
                projected[row].index_add_(0, high[row].long(), (b - low)[row] * next_p[row])
        cross_entropy = -(projected * self.log_p(self.q_network, data, data["action"])).sum(-1)
        return TensorDict({"loss": cross_entropy.mean()}, [])


class WeightedDQN(DQN):
    """Schaul et al.: the mean of w l."""

    weights = True

    def weighted(self, loss: Tensor, w: Tensor) -> Tensor:
        return (w * loss).mean()

    def forward(self, tensordict: Any) -> TensorDict:
        with torch.no_grad():
            y = self.target(tensordict)
        loss = (self.predicted(tensordict) - y).square()
        return TensorDict({"loss": self.weighted(loss, tensordict.get("priority_weight", torch.ones_like(loss)))}, [])


class NormalizedDQN(WeightedDQN):
    """TorchRL: the weighted mean."""

    def weighted(self, loss: Tensor, w: Tensor) -> Tensor:
        return (w * loss).sum() / w.sum()


RIGHT = {DQN: "dqn", SoftDQN: "soft_dqn", MunchausenDQN: "m_dqn", NStepDQN: "dqn", OneHotDQN: "dqn", C51: "c51"}
RIGHT |= {WeightedDQN: "dqn", NormalizedDQN: "dqn"}


@planted("softmax without tau")
class PublishedSoftmax(MunchausenDQN):
    """BY571/Munchausen-RL before its issue 2: the targets are right, their policy is not."""

    def bootstrap(self, data: Any) -> Tensor:
        q = self.q(self.target_network, data["next"])
        shifted = q - q.max(-1, keepdim=True).values
        tau_log_pi = shifted - TAU * (shifted / TAU).logsumexp(-1, keepdim=True)
        return (F.softmax(q, -1) * (q - tau_log_pi)).sum(-1)


@planted("softmax without tau")
class SoftmaxOfValues(MunchausenDQN):
    def bootstrap(self, data: Any) -> Tensor:
        q = self.q(self.target_network, data["next"])
        log_pi = F.log_softmax(q, -1)
        return (log_pi.exp() * (q - TAU * log_pi)).sum(-1)


@planted("softmax without tau", "soft_dqn")
class LogsumexpOfValues(SoftDQN):
    def bootstrap(self, data: Any) -> Tensor:
        return TAU * self.q(self.target_network, data["next"]).logsumexp(-1)


@planted("softmax without tau")
class BonusOfValues(MunchausenDQN):
    def log_pi_of(self, data: Any, network: Any = None, state: Any = None) -> Tensor:
        q = self.q(self.target_network, data)
        return F.log_softmax(q, -1).gather(-1, data["action"].unsqueeze(-1)).squeeze(-1)


@planted("clip [l0, 1] instead of [l0, 0]")
class PublishedClip(MunchausenDQN):
    """google-research's m_dqn.py, as in its issue 467."""

    def bonus(self, data: Any) -> Tensor | float:
        return ALPHA * torch.clip(TAU * self.log_pi_of(data), min=LOW, max=1)


@planted("tau missing in the TD target")
class TauMissing(MunchausenDQN):
    def bootstrap(self, data: Any) -> Tensor:
        q = self.q(self.target_network, data["next"])
        log_pi = F.log_softmax(q / TAU, -1)
        return (log_pi.exp() * (q - log_pi)).sum(-1)


@planted("max for the soft value")
class HardValue(MunchausenDQN):
    def bootstrap(self, data: Any) -> Tensor:
        return self.q(self.target_network, data["next"]).amax(-1)


@planted("entropy missing")
class ExpectedSarsa(MunchausenDQN):
    def bootstrap(self, data: Any) -> Tensor:
        q = self.q(self.target_network, data["next"])
        return (F.softmax(q / TAU, -1) * q).sum(-1)


@planted("sign of the entropy")
class EntropyPaid(MunchausenDQN):
    def bootstrap(self, data: Any) -> Tensor:
        q = self.q(self.target_network, data["next"])
        log_pi = F.log_softmax(q / TAU, -1)
        return (log_pi.exp() * (q + TAU * log_pi)).sum(-1)


@planted("online for target network", "dqn")
class OnlineTarget(DQN):
    def bootstrap(self, data: Any) -> Tensor:
        return self.q(self.q_network, data["next"]).max(-1).values


@planted("double Q-learning not claimed", "dqn")
class DoubleDQN(DQN):
    def bootstrap(self, data: Any) -> Tensor:
        greedy = self.q(self.q_network, data["next"]).argmax(-1, keepdim=True)
        return self.q(self.target_network, data["next"]).gather(-1, greedy).squeeze(-1)


@planted("double Q-learning missing", "double_dqn")
class NotDoubleDQN(DQN):
    pass


@planted("gamma missing", "dqn")
class Undiscounted(DQN):
    def discount(self, data: Any) -> Any:
        return 1.0


@planted("discount of n steps", "dqn")
class CountedFromZero(DQN):
    def discount(self, data: Any) -> Any:
        return GAMMA ** (data.get("steps_to_next_obs", torch.full((1,), 2)).squeeze(-1) - 1)


@planted("no bootstrap at truncation", "dqn")
class DoneForTerminated(DQN):
    def ended(self, data: Any) -> Tensor:
        return data["next", "done"].squeeze(-1)


@planted("bootstrap after a terminal state", "dqn")
class NeverEnds(DQN):
    def ended(self, data: Any) -> Tensor:
        return torch.zeros_like(data["next", "done"].squeeze(-1))


@planted("no bootstrap at truncation", "c51")
class DoneInC51(C51):
    def ended(self, data: Any) -> Tensor:
        return data["next", "done"]


@planted("bonus missing")
class NoBonus(MunchausenDQN):
    def bonus(self, data: Any) -> Tensor | float:
        return 0.0


@planted("bonus counted twice")
class TwoBonuses(MunchausenDQN):
    def target(self, data: Any) -> Tensor:
        return super().target(data) + self.bonus(data)


@planted("sign of the bonus")
class BonusSubtracted(MunchausenDQN):
    def bonus(self, data: Any) -> Tensor | float:
        return -super().bonus(data)


@planted("bonus of the next state")
class NextBonus(MunchausenDQN):
    def bonus(self, data: Any) -> Tensor | float:
        return ALPHA * (TAU * self.log_pi_of(data, state=data["next"])).clamp(LOW, 0)


@planted("bonus of the greedy action")
class GreedyBonus(MunchausenDQN):
    def bonus(self, data: Any) -> Tensor | float:
        q = self.q(self.target_network, data)
        return ALPHA * (TAU * F.log_softmax(q / TAU, -1).amax(-1)).clamp(LOW, 0)


@planted("bonus from the online network")
class OnlineBonus(MunchausenDQN):
    def bonus(self, data: Any) -> Tensor | float:
        return ALPHA * (TAU * self.log_pi_of(data, self.q_network)).clamp(LOW, 0)


@planted("bonus lost at terminal states")
class MaskedBonus(MunchausenDQN):
    def target(self, data: Any) -> Tensor:
        following = self.bonus(data) + GAMMA * self.bootstrap(data)
        return data["next", "reward"].squeeze(-1) + torch.where(self.ended(data), 0.0, following)


@planted("tau missing in the bonus")
class UnscaledBonus(MunchausenDQN):
    def bonus(self, data: Any) -> Tensor | float:
        return ALPHA * self.log_pi_of(data).clamp(LOW, 0)


@planted("alpha missing")
class FullBonus(MunchausenDQN):
    def bonus(self, data: Any) -> Tensor | float:
        return (TAU * self.log_pi_of(data)).clamp(LOW, 0)


@planted("clip missing")
class UnclippedBonus(MunchausenDQN):
    def bonus(self, data: Any) -> Tensor | float:
        return ALPHA * TAU * self.log_pi_of(data)


@planted("clip before tau")
class ClippedLog(MunchausenDQN):
    def bonus(self, data: Any) -> Tensor | float:
        return ALPHA * TAU * self.log_pi_of(data).clamp(LOW, 0)


@planted("clip after alpha")
class ClippedBonus(MunchausenDQN):
    def bonus(self, data: Any) -> Tensor | float:
        return (ALPHA * TAU * self.log_pi_of(data)).clamp(LOW, 0)


@planted("gradient through the target", "dqn")
class FullGradient(DQN):
    """The residual gradient: the bootstrap of the online network is not detached."""

    def forward(self, tensordict: Any) -> TensorDict:
        q = self.q(self.q_network, tensordict["next"]).max(-1).values
        with torch.no_grad():
            y = self.target(tensordict) - GAMMA * torch.where(self.ended(tensordict), 0.0, q)
        y = y + GAMMA * torch.where(self.ended(tensordict), 0.0, q)
        return TensorDict({"loss": F.mse_loss(self.predicted(tensordict), y)}, [])


@planted("bonus not detached")
class AttachedBonus(MunchausenDQN):
    """The bonus is read from the target network, and a gradient reaches the online one through its copy at s."""

    def forward(self, tensordict: Any) -> TensorDict:
        online = self.log_pi_of(tensordict, self.q_network)
        with torch.no_grad():
            y = self.target(tensordict)
        attached = ALPHA * TAU * (online - online.detach())
        return TensorDict({"loss": F.mse_loss(self.predicted(tensordict), y + attached)}, [])


@planted("rewards clipped", "dqn")
class ClippedRewards(DQN):
    def target(self, data: Any) -> Tensor:
        data = data.clone()
        data["next", "reward"] = data["next", "reward"].clamp(-1, 1)
        return super().target(data)


@planted("rewards clipped", "dqn")
class SignsOfRewards(DQN):
    def bonus(self, data: Any) -> Tensor | float:
        r = data["next", "reward"].squeeze(-1)
        return r.sign() - r


@planted("overflow of large values", "soft_dqn")
class LogSumExp(SoftDQN):
    def bootstrap(self, data: Any) -> Tensor:
        return TAU * (self.q(self.target_network, data["next"]) / TAU).exp().sum(-1).log()


@planted("overflow of large values")
class LogOfSoftmax(MunchausenDQN):
    def bootstrap(self, data: Any) -> Tensor:
        q = self.q(self.target_network, data["next"])
        pi = F.softmax(q / TAU, -1)
        return (pi * (q - TAU * pi.log())).sum(-1)


@planted("priority weights ignored", "dqn")
class WeightsIgnored(WeightedDQN):
    def weighted(self, loss: Tensor, w: Tensor) -> Tensor:
        return loss.mean()


@planted("priority weights squared", "dqn")
class WeightsSquared(WeightedDQN):
    def weighted(self, loss: Tensor, w: Tensor) -> Tensor:
        return (w**2 * loss).mean()


@planted("priority weights squared", "dqn")
class NormalizedSquares(WeightedDQN):
    def weighted(self, loss: Tensor, w: Tensor) -> Tensor:
        return (w**2 * loss).sum() / w.sum()


@planted("sum for mean", "dqn")
class Summed(DQN):
    def forward(self, tensordict: Any) -> TensorDict:
        with torch.no_grad():
            y = self.target(tensordict)
        return TensorDict({"loss": (self.predicted(tensordict) - y).square().sum()}, [])


@planted("mean over pairs of rows", "dqn")
class Broadcast(DQN):
    def forward(self, tensordict: Any) -> TensorDict:
        with torch.no_grad():
            y = self.target(tensordict)
        return TensorDict({"loss": (self.predicted(tensordict).unsqueeze(-1) - y).square().mean()}, [])


@planted("one-hot action misread", "dqn")
class OneHotIndex(OneHotDQN):
    def predicted(self, data: Any) -> Tensor:
        action = data["action"]
        index = action.unsqueeze(-1) if action.ndim == 1 else action.long()  # entries 0 and 1 for actions 0 and 1
        return self.q(self.q_network, data).gather(-1, index)[..., 0]


@planted("greedy action for the stored one", "dqn")
class GreedyPrediction(DQN):
    def predicted(self, data: Any) -> Tensor:
        return self.q(self.q_network, data).amax(-1)


@planted("action mask ignored", "dqn")
class MaskIgnored(DQN):
    masks = True

    def q(self, network: Any, data: Any) -> Tensor:
        return network.module[0](data.select("observation"))["action_value"]


@planted("padding counts", "dqn")
class PaddingCounts(DQN):
    masks = True
