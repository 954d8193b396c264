"""Acting by a regularizer's policy."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical, OneHot
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import QValueActor

from torchrl_reg.modules import BoltzmannQActor

TAU = 0.5
Q = torch.tensor([0.3, -0.4, 0.6])


class Constant(nn.Module):
    """The same Q-values everywhere."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return Q.expand(*observation.shape[:-1], 3)


def act(actor: nn.Module, count: int = 20_000, kind: ExplorationType = ExplorationType.RANDOM, **extra: torch.Tensor):
    torch.manual_seed(0)
    with set_exploration_type(kind):
        return actor(TensorDict({"observation": torch.zeros(count, 1), **extra}, [count]))


@pytest.mark.parametrize("one_hot", [False, True])
def test_boltzmann_frequencies(one_hot: bool) -> None:
    actor = QValueActor(Constant(), spec=OneHot(3) if one_hot else Categorical(3))
    out = act(BoltzmannQActor(actor, tau=TAU))
    index = out["action"].long().argmax(-1) if one_hot else out["action"]
    frequencies = torch.bincount(index, minlength=3) / len(index)
    torch.testing.assert_close(frequencies, torch.softmax(Q / TAU, -1), rtol=0, atol=0.015)
    torch.testing.assert_close(out["chosen_action_value"].squeeze(-1), Q[index])


def test_boltzmann_is_greedy_under_deterministic_exploration() -> None:
    out = act(BoltzmannQActor(QValueActor(Constant(), spec=Categorical(3)), tau=TAU), 50, ExplorationType.DETERMINISTIC)
    assert (out["action"] == 2).all()


def test_boltzmann_never_takes_a_masked_action() -> None:
    actor = QValueActor(Constant(), spec=Categorical(3), action_mask_key="allowed")
    allowed = torch.tensor([True, True, False]).expand(5_000, 3)
    out = act(BoltzmannQActor(actor, tau=TAU), 5_000, allowed=allowed)
    frequencies = torch.bincount(out["action"], minlength=3) / 5_000
    torch.testing.assert_close(frequencies[:2], torch.softmax(Q[:2] / TAU, -1), rtol=0, atol=0.03)
    assert frequencies[2] == 0


@pytest.mark.parametrize("tau", [0.0, -1.0])
def test_boltzmann_needs_a_temperature(tau: float) -> None:
    with pytest.raises(ValueError, match="tau must be a finite number > 0"):
        BoltzmannQActor(QValueActor(Constant(), spec=Categorical(3)), tau=tau)


def test_one_temperature_for_loss_and_actor() -> None:
    """Assigned once, it holds for whoever shares the regularizer; the evaluated policy does not go stale."""
    from torchrl_reg.objectives import MunchausenDQNLoss

    actor = QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3))
    loss = MunchausenDQNLoss(actor, tau=0.5)
    policy = BoltzmannQActor(actor, regularizer=loss.regularizer)
    loss.tau = 1e-9
    data = TensorDict({"observation": torch.randn(200, 4)}, [200])
    assert (policy(data.clone())["action"] == actor(data.clone())["action"]).all()
    loss.tau = 1e9
    assert (policy(data.clone())["action"] != actor(data.clone())["action"]).any()
    with pytest.raises(ValueError, match="Either tau or prior or regularizer must be given"):
        BoltzmannQActor(actor, tau=0.5, regularizer=loss.regularizer)
