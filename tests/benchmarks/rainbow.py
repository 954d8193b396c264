"""How long do updates of Rainbow and of Beyond The Rainbow take? Ours as the recipes make them, beside ones by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import Categorical

from tests.benchmarks.measure import Table, main, microseconds
from tests.benchmarks.scripts import ALPHA, CLIP, GAMMA, TAU
from torchrl_reg.lab.learners.update import make_update
from torchrl_reg.modules import CategoricalQActor, NetSettings, QuantileQActor, q_network, quantile_network
from torchrl_reg.modules.rebuilding import Spaces
from torchrl_reg.objectives import HardTargetUpdate, Munchausen, QLearningLoss
from torchrl_reg.objectives.heads import ImplicitQuantiles
from torchrl_reg.regularizers import Entropy

ACTIONS, ATOMS, FRACTIONS, STEPS = 6, 51, 8, 3
Call = Callable[[], object]


def tables(atari: int = 32) -> list[Table]:
    """Microseconds of an update: Rainbow on MinAtar, batch 32; BTR on Atari, batch ``--atari`` (the paper: 256)."""
    small, large = minibatch(32, (4, 10, 10)), minibatch(atari, (4, 84, 84))
    rainbow = {"by hand": rainbow_by_hand(small), "ours": rainbow_of_ours(small)}
    btr = {"by hand": btr_by_hand(large), "ours": btr_of_ours(large)}
    return [
        Table("Rainbow on MinAtar, batch 32", "us", {name: microseconds(call) for name, call in rainbow.items()}),
        Table(f"BTR on Atari, batch {atari}", "us", {name: microseconds(call, 1) for name, call in btr.items()}),
    ]


def minibatch(size: int, image: tuple[int, int, int]) -> TensorDict:
    """Weighted transitions of three steps."""
    pixels = lambda: torch.randint(256, (size, *image), dtype=torch.uint8)  # noqa: E731
    flags = {key: torch.rand(size, 1) < 0.1 for key in ("done", "terminated")}
    rows = {"observation": pixels(), "action": torch.randint(ACTIONS, (size,)), "priority_weight": torch.rand(size)}
    after = {"observation": pixels(), "reward": torch.rand(size, 1), **flags}
    return TensorDict(rows | {"steps_to_next_obs": torch.full((size, 1), STEPS), "next": after}, [size])


def spaces(image: tuple[int, int, int]) -> Spaces:
    return Spaces({"observation": (list(image), "uint8")}, ACTIONS, [], [])


def rainbow_of_ours(rows: TensorDict) -> Call:
    settings = NetSettings("minatar", num_cells=[128], dueling="mean", noise_sigma=0.5)
    network = q_network(settings, spaces((4, 10, 10)), values_per_action=ATOMS)
    actor = CategoricalQActor(network, num_atoms=ATOMS, value_min=-10, value_max=10, spec=Categorical(ACTIONS))
    return _ours(QLearningLoss(actor, double_dqn=True, weight_reduction="mean", diagnostics=False), rows)


def btr_of_ours(rows: TensorDict) -> Call:
    settings = NetSettings("impala", num_cells=[512], dueling="mean", noise_sigma=0.5, first_cosine=0)
    actor = QuantileQActor(quantile_network(settings, spaces((4, 84, 84))), spec=Categorical(ACTIONS))
    counts = {"num_quantiles": FRACTIONS, "num_target_quantiles": FRACTIONS, "num_policy_quantiles": FRACTIONS}
    head = ImplicitQuantiles(**counts, reuse_quantiles=True, absolute_priority=True)
    shaping = Munchausen(alpha=ALPHA, clip_min=CLIP, online=True)
    return _ours(
        QLearningLoss(actor, regularizer=Entropy(tau=TAU), shaping=shaping, head=head, diagnostics=False), rows
    )


def _ours(loss: QLearningLoss, rows: TensorDict) -> Call:
    loss.make_value_estimator(gamma=GAMMA)
    optimizer = torch.optim.Adam(loss.parameters(), fused=True)
    update = make_update(loss, optimizer, HardTargetUpdate(loss, period_updates=500), max_grad_norm=10.0)
    return lambda: update(rows.copy())


class Noisy(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.sizes = inputs, outputs
        self.weight, self.bias = nn.Parameter(torch.rand(outputs, inputs) * 0.02), nn.Parameter(torch.zeros(outputs))
        self.weight_sigma = nn.Parameter(torch.full((outputs, inputs), 0.01))
        self.bias_sigma = nn.Parameter(torch.full((outputs,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        draws = torch.randn(sum(self.sizes))
        into, out = torch.copysign(draws.abs().sqrt(), draws).split(self.sizes)
        weight = self.weight + self.weight_sigma * (out.unsqueeze(-1) * into)
        return F.linear(x, weight, self.bias + self.bias_sigma * out)


class Streams(nn.Module):
    """Both noisy streams: ``[..., F]`` to ``[..., atoms, A]``."""

    def __init__(self, features: int, cells: int, atoms: int) -> None:
        super().__init__()
        self.value = nn.Sequential(Noisy(features, cells), nn.ReLU(), Noisy(cells, atoms))
        self.advantage = nn.Sequential(Noisy(features, cells), nn.ReLU(), Noisy(cells, atoms * ACTIONS))

    def forward(self, x: Tensor) -> Tensor:
        advantage = self.advantage(x).unflatten(-1, (-1, ACTIONS))
        return self.value(x).unsqueeze(-1) + advantage - advantage.mean(-1, keepdim=True)


class Convolution(nn.Module):
    """Rainbow's network on MinAtar."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.streams = nn.Conv2d(4, 16, 3), Streams(1024, 128, ATOMS)

    def forward(self, x: Tensor) -> Tensor:
        return self.streams(F.relu(self.convolution(x.float())).flatten(1))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        normalized = nn.utils.parametrizations.spectral_norm
        self.first, self.second = (normalized(nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class Impala(nn.Module):
    """BTR's network: images and fractions ``[B, N]`` to ``[B, N, A]``."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, channels in ((4, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.MaxPool2d(3, 2, 1)]
            layers += [Residual(channels), Residual(channels)]
        self.torso = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveMaxPool2d(6), nn.Flatten())
        self.embedding, self.streams = nn.Linear(64, 2304), Streams(2304, 512, 1)

    def forward(self, x: Tensor, fractions: Tensor) -> Tensor:
        cosines = (torch.pi * torch.arange(64) * fractions.unsqueeze(-1)).cos()
        embedded = F.relu(self.embedding(cosines)) * self.torso(x.float() / 255).unsqueeze(1)
        return self.streams(embedded).squeeze(-2)


class ByHand:
    """A network, its target and Adam; the tensors of a minibatch."""

    def __init__(self, net: nn.Module, rows: TensorDict) -> None:
        self.net, self.target = net, copy.deepcopy(net)
        self.optimizer = torch.optim.Adam(net.parameters(), fused=True)
        self.o, self.a, self.weight = rows["observation"], rows["action"], rows["priority_weight"]
        self.o2, self.r = rows["next", "observation"], rows["next", "reward"]
        self.discount = GAMMA**STEPS * (~rows["next", "terminated"]).float()

    def descend(self, losses: Tensor) -> None:
        self.optimizer.zero_grad()
        (losses * self.weight).mean().backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 10.0)
        self.optimizer.step()


def rainbow_by_hand(rows: TensorDict) -> Call:
    it, atoms = ByHand(Convolution(), rows), torch.linspace(-10, 10, ATOMS)
    step, taken = float(atoms[1] - atoms[0]), it.a.view(-1, 1, 1).expand(-1, ATOMS, 1)

    def update() -> None:
        log_p = it.net(it.o).gather(-1, taken).squeeze(-1).log_softmax(-1)
        with torch.no_grad():
            best = (it.net(it.o2).softmax(1) * atoms.unsqueeze(-1)).sum(1).argmax(-1).view(-1, 1, 1)
            p = it.target(it.o2).gather(-1, best.expand(-1, ATOMS, 1)).squeeze(-1).softmax(-1)
            backed_up = (it.r + it.discount * atoms).clamp(-10, 10)
            shares = (1 - (backed_up.unsqueeze(1) - atoms.unsqueeze(-1)).abs() / step).clamp(0, 1)
            masses = (shares * p.unsqueeze(1)).sum(-1)
        it.descend(-(masses * log_p).sum(-1))

    return update


def btr_by_hand(rows: TensorDict) -> Call:
    it = ByHand(Impala(), rows)
    taken = it.a.view(-1, 1, 1).expand(-1, FRACTIONS, 1)

    def update() -> None:
        fractions = torch.rand(len(it.a), FRACTIONS)
        z = it.net(it.o, fractions)
        with torch.no_grad():
            bonus = ALPHA * (TAU * (z.mean(1) / TAU).log_softmax(-1).gather(-1, it.a.unsqueeze(-1))).clamp(CLIP, 0)
            after = it.target(it.o2, torch.rand(len(it.a), FRACTIONS))
            log_pi = (after.mean(1) / TAU).log_softmax(-1).unsqueeze(1)
            values = it.r + bonus + it.discount * (log_pi.exp() * (after - TAU * log_pi)).sum(-1)
        errors = values.unsqueeze(1) - z.gather(-1, taken)
        huber = F.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none")
        it.descend(((fractions.unsqueeze(-1) - (errors < 0).float()).abs() * huber).mean(-1).sum(-1))

    return update


if __name__ == "__main__":
    main(tables)
