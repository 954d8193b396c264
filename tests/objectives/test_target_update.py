"""Target updates: exact period, exact rate, and they follow the loss across devices and dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import NoisyLinear, QValueActor

from torchrl_reg.objectives import HardTargetUpdate, MunchausenDQNLoss, PolyakTargetUpdate

KINDS = pytest.mark.parametrize(("kind", "how"), [(HardTargetUpdate, "period_updates"), (PolyakTargetUpdate, "rate")])


def build(cases: Any) -> Any:
    case = cases["m_dqn"]
    return MunchausenDQNLoss(case.actor(), **case.kwargs)


def move(loss: Any, by: float = 2.0) -> None:
    with torch.no_grad():
        for p in loss.parameters():
            p.add_(by)


def is_copied(loss: Any) -> bool:
    online, target = (dict(p.items(True, True)) for p in (loss.value_network_params, loss.target_value_network_params))
    return all(target[key].equal(tensor) for key, tensor in online.items())


@pytest.mark.parametrize("period", [1, 3])
def test_hard_update_copies_on_exactly_every_period(cases: Any, period: int) -> None:
    """Also where the counter was restored in between."""
    loss = build(cases)
    update, copied = HardTargetUpdate(loss, period_updates=period), []
    for count in range(1, 3 * period + 1):
        move(loss)
        update.step()
        copied += [count] if is_copied(loss) else []
        state, update = update.state_dict(), HardTargetUpdate(build(cases), period_updates=period)
        update.load_state_dict(state)
        update.loss_module = loss
    assert copied == [period, 2 * period, 3 * period]


@KINDS
@pytest.mark.parametrize("bad", [True, "x", None, 0, 1.5])
def test_bad_rates_and_periods(cases: Any, kind: Any, how: str, bad: Any) -> None:
    expected = {"rate": r"must be in \(0, 1\]", "period_updates": "must be an integer >= 1"}[how]
    with pytest.raises(ValueError, match=f"{how} {expected}, got {bad!r}"):
        kind(build(cases), **{how: bad})


@KINDS
def test_a_cast_between_steps_is_followed(cases: Any, kind: Any, how: str) -> None:
    loss = build(cases)
    update = kind(loss, **{how: 1})
    for cast in (loss.double, loss.bfloat16, loss.float):
        update.step()
        cast()
        move(loss)
        update.step()
        assert is_copied(loss)


def test_parameters_given_other_memory_are_followed(cases: Any) -> None:
    """As ``vector_to_parameters`` gives it: the same parameters, of which one or all lie elsewhere."""
    loss = build(cases)
    update = PolyakTargetUpdate(loss, rate=1.0)
    for chosen in ([0], range(4)):
        update.step()
        parameters = list(loss.parameters())
        for i in chosen:
            parameters[i].data = parameters[i].data + 5.0
        update.step()
        assert is_copied(loss)


@KINDS
def test_buffers_are_copied_and_noise_is_not(batch: Any, kind: Any, how: str) -> None:
    """Statistics in buffers (vectors of spectral norm, batch statistics) are copied with the weights; noise is not."""
    torch.manual_seed(0)
    wide = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8))
    net = nn.Sequential(wide, nn.BatchNorm1d(8), nn.Tanh(), NoisyLinear(8, 3))
    loss = MunchausenDQNLoss(QValueActor(net, spec=Categorical(3)), tau=0.5, alpha=0.5, clip_min=-0.3)
    update = kind(loss, **{how: 2 if how == "period_updates" else 0.25})

    def tensors(prefix: str) -> dict[str, torch.Tensor]:
        params = getattr(loss, f"{prefix}value_network_params").flatten_keys(".")
        return {name.removeprefix("module.0.module."): leaf.detach().clone() for name, leaf in params.items()}

    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    for cast in (lambda: None, loss.double):
        cast()
        for step in (1, 2):
            optimizer.zero_grad()
            loss(batch(9, seed=step, dtype=next(net.parameters()).dtype))["loss"].backward()
            optimizer.step()
            net[3].reset_noise()
            before = tensors("target_")
            update.step()
        online, target = tensors(""), tensors("target_")
        noise = {name for name in online if name.endswith("_epsilon")}
        buffers = {name for name, _ in net.named_buffers()} - noise
        assert noise and {name.split(".")[-1] for name in buffers} >= {"_u", "_v", "running_var", "num_batches_tracked"}
        assert all(target[name].equal(online[name]) for name in buffers)
        assert all(target[name].equal(before[name]) and not target[name].equal(online[name]) for name in noise)
        for name in online.keys() - noise - buffers:
            moved = online[name] if kind is HardTargetUpdate else torch.lerp(before[name], online[name], 0.25)
            torch.testing.assert_close(target[name], moved)


def test_right_after_a_copy_spectrally_normalized_networks_agree_in_train_mode(batch: Any) -> None:
    """One step of power iteration a pass, from the same vectors: the same values, pass after pass."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
    loss = MunchausenDQNLoss(QValueActor(net, spec=Categorical(3)), tau=0.5, alpha=0.5, clip_min=-0.3)
    update, data = HardTargetUpdate(loss, period_updates=1), batch(5)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.mul_(1.7)
        loss(data)
        update.step()
        online, target = loss._bound(data)
        for _ in range(3):
            torch.testing.assert_close(online(data), target(data), rtol=0, atol=0)
