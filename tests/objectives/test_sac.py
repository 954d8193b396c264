"""SoftActorCriticLoss beside TorchRL's SACLoss: the same numbers, to the last bit, at the same random state."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from critic_cases import CASES, make_critic
from policy_cases import make_actor
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives import SACLoss, SoftUpdate

from torchrl_reg.objectives import PolyakTargetUpdate, SoftActorCriticLoss

ALPHA, TARGET = 0.5, 1.3


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Of everything that is built: SACLoss, cast later, would keep the float32 logarithm of its alpha."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


class Pair:
    """Both losses over equal networks, whose target networks differ from the online ones."""

    def __init__(self, kind: str, critics: int, adapts: bool, loss_function: str = "l2") -> None:
        actor, nets = make_actor(kind).to(torch.get_default_dtype()), [make_critic(seed) for seed in range(critics)]
        copies = copy.deepcopy(nets)
        self.their_critic, self.adapts = copies[0], adapts
        self.theirs = SACLoss(
            copy.deepcopy(actor),
            copies,
            num_qvalue_nets=critics,
            loss_function=loss_function,
            deactivate_vmap=True,
            alpha_init=ALPHA,
            fixed_alpha=not adapts,
            target_entropy=TARGET,
        )
        ours: dict[str, Any] = {"target_entropy": TARGET if adapts else None, "loss_function": loss_function}
        self.ours = SoftActorCriticLoss(actor, nets, tau=ALPHA, straight_through=kind == "multicategorical", **ours)
        for loss in (self.ours, self.theirs):
            loss.make_value_estimator(gamma=0.9)
        self.updates = PolyakTargetUpdate(self.ours, rate=0.3), SoftUpdate(self.theirs, tau=0.3)  # or they would warn
        for mine, other in self.tensors("target_qvalue_network_params"):
            other.data.add_(0.3 * torch.randn(other.shape))
            mine.data.copy_(other)

    def both(self, size: int, seed: int = 3) -> list[tuple[TensorDict, TensorDict]]:
        """Ours and theirs: what a call returns, and its data afterwards."""
        found = []
        for loss in (self.ours, self.theirs):
            data = CASES["sac"].batch(size, seed=seed, dtype=torch.get_default_dtype())
            torch.manual_seed(3)
            found.append((loss(data), data))
        return found

    def tensors(self, *names: str) -> list[tuple[Tensor, Tensor]]:
        """The parameters of that name, ours and theirs; of theirs, which are stacked, the critic's."""
        pairs = []
        for name in names:
            stacked = dict(getattr(self.theirs, name).items(True, True))
            for key, mine in getattr(self.ours, name).items(True, True):
                critic = "qvalue" in name
                pairs.append((mine, stacked[key[2:]].data[int(key[1])] if critic else stacked[key]))
        return pairs

    def gradients(self) -> list[tuple[Tensor, Tensor]]:
        """Of every learnt parameter, ours and theirs."""
        theirs = {
            key: value.grad for key, value in self.theirs.qvalue_network_params.items(True, True) if value.is_leaf
        }
        if not theirs:  # of a single critic they are expanded
            own = self.their_critic.named_parameters()
            theirs = {("module", *key.split(".")[1:]): p.grad.unsqueeze(0) for key, p in own}
        ours = self.ours.qvalue_network_params.items(True, True)
        pairs = [(mine.grad, theirs[key[2:]][int(key[1])]) for key, mine in ours]
        pairs += [(a.grad, b.grad) for a, b in self.tensors("actor_network_params") if a.requires_grad]
        return pairs + ([(self.ours.tau_coefficient.log_value.grad, self.theirs.log_alpha.grad)] if self.adapts else [])


def total(out: TensorDict) -> Tensor:
    return sum(value for name, value in out.items() if name.startswith("loss"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("kind", "critics", "adapts", "size", "loss_function"),
    [
        ("gaussian", 2, True, 9, "l2"),
        ("gaussian", 1, True, 1, "l2"),
        ("gaussian", 3, False, 9, "l1"),
        ("flow", 1, False, 9, "smooth_l1"),
        ("flow", 2, True, 1, "l2"),
        ("multicategorical", 2, True, 9, "l2"),
        ("multicategorical", 3, False, 1, "l2"),
    ],
)
def test_losses_gradients_and_priorities(
    dtype: torch.dtype, kind: str, critics: int, adapts: bool, size: int, loss_function: str
) -> None:
    pair = Pair(kind, critics, adapts, loss_function)
    (mine, ours), (other, theirs) = pair.both(size)
    names = ["loss_actor", "loss_qvalue", *(["loss_alpha"] if adapts else []), "alpha", "entropy"]
    assert list(pair.ours.out_keys)[: len(names)] == names
    for out in (mine, other):
        total(out).backward()
    pairs = [(mine[name], other[name]) for name in names] + pair.gradients()
    for a, b in [*pairs, (ours["td_error"], theirs["td_error"].unsqueeze(-1))]:
        assert a.dtype == b.dtype == dtype and torch.equal(a, b)
