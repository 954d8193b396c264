"""SoftActorCriticLoss beside TorchRL's SACLoss: the same numbers, to the last bit, at the same random state."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from torchrl_reg.modules import FlowActor, MulticategoricalActor, gaussian_actor
from torchrl_reg.objectives import PolyakTargetUpdate, SoftActorCriticLoss

STATES, GAMMA, ALPHA, TARGET, RATE = 4, 0.9, 0.5, 1.3, 0.3
BOX = {"low": [-1.0, -2.0], "high": [1.0, 2.0]}
REPORTED = ("loss_actor", "loss_qvalue", "loss_alpha", "alpha", "entropy")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Of everything that is built: SACLoss, cast later, would keep the float32 logarithm of its alpha."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(STATES + 2, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat((observation, action), -1))


def make_actor(kind: str) -> Any:
    def body(out: int) -> nn.Module:
        return nn.Sequential(nn.Linear(STATES, 16), nn.ReLU(), nn.Linear(16, out))

    if kind == "gaussian":
        return gaussian_actor(body(4), **BOX)
    if kind == "bins":
        return MulticategoricalActor(body(10), num_bins=5, **BOX)
    actor = FlowActor(body(8), 8, num_cells=8, **BOX)
    nn.init.normal_(actor.weight_out, std=0.05)
    return actor.to(torch.get_default_dtype())


def batch(size: int, seed: int = 1) -> TensorDict:
    """Transitions of no policy of these; some end, some are cut off, some neither."""
    generator = torch.Generator().manual_seed(seed)

    def normal(width: int) -> Tensor:
        return torch.randn(size, width, generator=generator)

    kind = torch.arange(size).remainder(3).unsqueeze(-1)
    ends = {"terminated": kind == 1, "truncated": kind == 2, "done": kind > 0}
    following = {"observation": 2 * normal(STATES), "reward": normal(1), **ends}
    action = torch.tensor(BOX["high"]) * normal(2).tanh()
    return TensorDict({"observation": 2 * normal(STATES), "action": action, "next": following}, [size])


class Pair:
    """Both losses over equal networks, whose target networks differ from the online ones."""

    def __init__(self, kind: str = "gaussian", critics: int = 2, adapts: bool = True, **ours: Any) -> None:
        torch.manual_seed(0)
        actor, nets = make_actor(kind), [ValueOperator(Critic(), ["observation", "action"]) for _ in range(critics)]
        temperature = {"alpha_init": ALPHA, "fixed_alpha": not adapts, "target_entropy": TARGET}
        copies = copy.deepcopy(nets)
        self.their_critic = copies[0]
        self.theirs = SACLoss(
            copy.deepcopy(actor),
            copies,
            num_qvalue_nets=critics,
            loss_function=ours.get("loss_function", "l2"),
            deactivate_vmap=True,
            **temperature,
        )
        self.theirs.make_value_estimator(gamma=GAMMA)
        ours = {"target_entropy": TARGET if adapts else None, "straight_through": kind == "bins"} | ours
        self.ours = SoftActorCriticLoss(actor, nets, tau=ALPHA, **ours)
        self.ours.make_value_estimator(gamma=GAMMA)
        self.adapts = adapts
        self.targets = [PolyakTargetUpdate(self.ours, rate=RATE), SoftUpdate(self.theirs, tau=RATE)]
        for mine, other in self.tensors("target_qvalue_network_params"):
            other.data.add_(0.3 * torch.randn(other.shape))
            mine.data.copy_(other)

    def both(self, data: TensorDict, seed: int = 3) -> list[tuple[TensorDict, TensorDict]]:
        """Ours and theirs: what a call returns, and its data afterwards."""
        found = []
        for loss in (self.ours, self.theirs):
            given = data.clone()
            torch.manual_seed(seed)
            found.append((loss(given), given))
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
            theirs = {("module", *key.split(".")[1:]): p.grad for key, p in self.their_critic.named_parameters()}
            theirs = {key: grad.unsqueeze(0) for key, grad in theirs.items()}
        ours = self.ours.qvalue_network_params.items(True, True)
        pairs = [(mine.grad, theirs[key[2:]][int(key[1])]) for key, mine in ours]
        pairs += [(a.grad, b.grad) for a, b in self.tensors("actor_network_params") if a.requires_grad]
        return pairs + ([(self.ours.temperature.log_value.grad, self.theirs.log_alpha.grad)] if self.adapts else [])


def assert_identical(pairs: list[tuple[Any, Any]]) -> None:
    assert pairs
    for mine, other in pairs:
        assert mine is not None and mine.dtype == other.dtype and torch.equal(mine, other)


def total(out: TensorDict) -> Tensor:
    return sum(value for name, value in out.items() if name.startswith("loss"))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["gaussian", "flow", "bins"])
@pytest.mark.parametrize("adapts", [True, False], ids=["adapted", "fixed"])
@pytest.mark.parametrize("size", [1, 9])
@pytest.mark.parametrize("critics", [1, 2, 3])
def test_losses_gradients_and_priorities(dtype: torch.dtype, kind: str, adapts: bool, size: int, critics: int) -> None:
    pair = Pair(kind, critics, adapts)
    (mine, ours), (other, theirs) = pair.both(batch(size))
    names = [name for name in REPORTED if adapts or name != "loss_alpha"]
    assert list(pair.ours.out_keys) == names
    assert_identical([(mine[name], other[name]) for name in names])
    assert_identical([(ours["td_error"], theirs["td_error"].unsqueeze(-1))])
    assert mine["loss_actor"].dtype == dtype
    for out in (mine, other):
        total(out).backward()
    assert_identical(pair.gradients())


@pytest.mark.parametrize("loss_function", ["l1", "smooth_l1"])
def test_other_distances(dtype: torch.dtype, loss_function: str) -> None:
    (mine, _), (other, _) = Pair(loss_function=loss_function).both(batch(9))
    assert_identical([(mine[name], other[name]) for name in REPORTED])


@pytest.mark.parametrize("kind", ["gaussian", "flow", "bins"])
@pytest.mark.parametrize("adapts", [True, False], ids=["adapted", "fixed"])
def test_updates_in_a_row(dtype: torch.dtype, kind: str, adapts: bool) -> None:
    """Loss, backward, Adam, Polyak."""
    pair = Pair(kind, adapts=adapts)
    optimizers = [torch.optim.Adam(loss.parameters(), lr=3e-3) for loss in (pair.ours, pair.theirs)]
    before = [mine.clone() for mine, _ in pair.tensors("target_qvalue_network_params")]
    for step in range(8):
        for (out, _), optimizer, target in zip(pair.both(batch(9, step), step), optimizers, pair.targets, strict=True):
            optimizer.zero_grad()
            total(out).backward()
            optimizer.step()
            target.step()
    names = ("actor_network_params", "qvalue_network_params", "target_qvalue_network_params")
    tensors = pair.tensors(*names) + ([(pair.ours.temperature.log_value, pair.theirs.log_alpha)] if adapts else [])
    for mine, other in tensors:
        # Adam rounds an element by its place in the tensor, and theirs are stacked.
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-6)
    assert all((old != new).any() for old, (new, _) in zip(before, pair.tensors(names[2]), strict=True))
    assert (pair.ours.tau != ALPHA) == adapts


def test_the_temperature_moves_the_entropy_towards_its_target() -> None:
    """Up while the entropy is below, down while it is above."""
    for target, sign in ((5.0, 1), (-5.0, -1)):
        loss = SoftActorCriticLoss(
            make_actor("gaussian"), ValueOperator(Critic(), ["observation", "action"]), tau=ALPHA, target_entropy=target
        )
        PolyakTargetUpdate(loss, rate=RATE)
        loss(batch(9))["loss_alpha"].backward()
        torch.optim.SGD([loss.temperature.log_value], lr=0.1).step()
        assert sign * (loss.tau - ALPHA) > 0


def test_the_actors_loss_leaves_the_critics_alone() -> None:
    """Not even a gradient is computed for them: their frozen copies share the memory and need none."""
    pair = Pair()
    pair.both(batch(9))[0][0]["loss_actor"].backward()
    assert all(p.grad is None for p in pair.ours.qvalue_network_params.parameters())
    detached = pair.ours._detached[0].network
    assert not any(p.requires_grad for p in detached.parameters())
    online = pair.ours.qvalue_network_params.parameters()
    assert [p.data_ptr() for p in detached.parameters()] == [p.data_ptr() for p in online]


def test_networks_that_do_more_are_called_as_modules() -> None:
    """Hooks are heard, and an actor or critics of further classes give the same numbers."""
    expected = Pair().both(batch(9))[0][0]
    pair, calls = Pair(), list[str]()
    pair.ours.actor_network.module[0].register_forward_hook(lambda *_: calls.append("actor"))
    pair.ours.qvalue_network.critics[1].register_forward_hook(lambda *_: calls.append("critic"))
    out = pair.both(batch(9))[0][0]
    assert calls == ["actor", "critic", "actor"]  # the copies of critics were made before
    assert_identical([(out[name], expected[name]) for name in REPORTED])
    actor = type("Actor", (ProbabilisticActor,), {})
    critic = type("Operator", (ValueOperator,), {})
    for module, kind in ((pair.ours.actor_network, actor), *((c, critic) for c in pair.ours.qvalue_network.critics)):
        module.__class__ = kind
    out = copy.deepcopy(pair).both(batch(9))[0][0]
    assert_identical([(out[name], expected[name]) for name in REPORTED])
