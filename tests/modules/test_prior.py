"""Learning of the action prior, and the actors that use it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Binary, Categorical, OneHot
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import QValueActor

from torchrl_reg.modules import ActionPrior, PriorEGreedyModule, PriorUpdate

RHO = [0.7, 0.2, 0.1]


def policies(q: torch.Tensor, rho: torch.Tensor, beta: float = 2.0) -> torch.Tensor:
    pi = rho * (beta * q.double()).exp()
    return pi / pi.sum(-1, keepdim=True)


def prior_of(beta: float = 2.0) -> ActionPrior:
    return ActionPrior(3, probabilities=RHO, beta=beta)


def updated(q: torch.Tensor, rate: float, **how: Any) -> torch.Tensor:
    """The probabilities after a batch of these values."""
    prior = prior_of()
    PriorUpdate(prior, rate=rate)(TensorDict({"action_value": q}, q.shape[:-1], **how))
    assert prior.log_prior.grad_fn is None
    return prior.log_prior.exp()


# -- its update -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("envs", [1, 4])
def test_environments_side_by_side_count_with_their_mean(rate: float, envs: int) -> None:
    """Given the policies of the prior at the start of the batch; of one environment that is the sequential rule."""
    q = torch.randn(envs, 5, 3, generator=torch.Generator().manual_seed(1))
    rho = torch.tensor(RHO, dtype=torch.float64)
    pi = policies(q, rho)
    for t in range(5):
        for _ in range(envs):  # the same mean four times: as exchangeable as it gets
            rho = (1 - rate) * rho + rate * pi[:, t].mean(0)
    torch.testing.assert_close(updated(q, rate), rho, rtol=0, atol=1e-7)
    torch.testing.assert_close(updated(q.transpose(0, 1), rate, names=["time", None]), rho, rtol=0, atol=1e-7)
    if envs == 1:
        torch.testing.assert_close(updated(q[0], rate), rho, rtol=0, atol=1e-7)


def test_a_single_row_without_batch_dimension() -> None:
    q = torch.tensor([1.0, 0.0, 0.0])
    expected = policies(q, torch.tensor(RHO, dtype=torch.float64))
    torch.testing.assert_close(updated(q, 1.0), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("key", ["mask", ("collector", "mask")])
def test_padding_counts_for_nothing(key: object) -> None:
    q = torch.rand(2, 4, 3, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    padded = TensorDict({"action_value": torch.where(mask.unsqueeze(-1), q, torch.nan)}, [2, 4])
    padded[key] = mask
    prior, rho = prior_of(), torch.tensor(RHO, dtype=torch.float64)
    PriorUpdate(prior, rate=0.1)(padded)
    pi = policies(q, rho)
    rho = 0.81 * rho + 0.19 * pi[:, 0].mean(0)  # two steps at the first time, one at the second, none after
    rho = 0.9 * rho + 0.1 * pi[0, 1]
    torch.testing.assert_close(prior.log_prior.exp(), rho, rtol=1e-9, atol=0)


def test_with_an_actor_the_batch_stays_as_it_is() -> None:
    """And the whole policy counts, not the action that was taken."""
    torch.manual_seed(0)
    actor, prior = QValueActor(nn.Linear(4, 3), spec=Categorical(3)), prior_of()
    batch = TensorDict({"observation": torch.randn(6, 4), "action": torch.full((6,), 7)}, [6])
    before, update = batch.clone(), PriorUpdate(prior, actor, rate=0.5)
    update(batch)
    assert (batch == before).all() and set(batch.keys()) == set(before.keys()) and not list(update.parameters())
    expected = updated(actor(before)["action_value"].detach(), 0.5)
    torch.testing.assert_close(prior.log_prior.exp(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
def test_rates_outside_the_unit_interval(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate must be in \(0, 1\], got"):
        PriorUpdate(ActionPrior(3), rate=rate)


# -- who acts -------------------------------------------------------------------------------------------------------


def explorer(spec: Any, prior: ActionPrior, eps: float, **keys: Any) -> PriorEGreedyModule:
    return PriorEGreedyModule(spec, prior, eps_init=eps, eps_end=eps, **keys)


def act(module: Any, q: torch.Tensor, kind: ExplorationType = ExplorationType.RANDOM, **more: torch.Tensor) -> Any:
    torch.manual_seed(0)
    with set_exploration_type(kind):
        return module(TensorDict({"action_value": q, **more}, q.shape[:-1]))["action"]


def shares(actions: torch.Tensor) -> torch.Tensor:
    return torch.bincount(actions, minlength=3) / len(actions)


def test_greedy_in_the_policy_and_exploring_from_the_prior() -> None:
    prior, q = prior_of(), torch.tensor([0.0, 0.5, 0.2]).expand(40_000, 3)  # best by q: 1; by ln rho + 2 q: 0
    module = explorer(Categorical(3), prior, 0.4)
    assert (act(module, q, ExplorationType.DETERMINISTIC) == 0).all()
    expected = torch.tensor([0.6 + 0.4 * 0.7, 0.4 * 0.2, 0.4 * 0.1])
    torch.testing.assert_close(shares(act(module, q)), expected, rtol=0, atol=0.01)
    prior.beta = 20.0
    assert (act(module, q, ExplorationType.DETERMINISTIC) == 1).all()


def test_masked_actions_are_never_taken() -> None:
    module = explorer(Categorical(3), prior_of(), 0.5, action_mask_key="allowed")
    allowed, q = torch.tensor([False, True, True]), torch.tensor([9.0, 0.0, 1.0])
    taken = shares(act(module, q.expand(20_000, 3), allowed=allowed.expand(20_000, 3)))
    torch.testing.assert_close(taken, torch.tensor([0.0, 0.5 * 2 / 3, 0.5 + 0.5 / 3]), rtol=0, atol=0.015)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3)])
def test_encodings_and_batch_shapes(shape: tuple[int, ...]) -> None:
    prior, q = prior_of(), torch.randn(*shape, 3)
    one_hot = act(explorer(OneHot(3), prior, 0.5), q)
    assert one_hot.shape == q.shape and one_hot.dtype == OneHot(3).dtype and (one_hot.sum(-1) == 1).all()
    index = act(explorer(Categorical(3), prior, 0.5), q)
    assert torch.equal(one_hot.long().argmax(-1), index) and index.dtype == Categorical(3).dtype
    batched = Categorical(3, shape=shape) if shape else Categorical(3)
    assert torch.equal(act(explorer(batched, prior, 0.0), q), prior.greedy(q))


def test_annealing_steps_count_at_once() -> None:
    module = PriorEGreedyModule(Categorical(3), ActionPrior(3), eps_init=1.0, eps_end=0.2, annealing_num_steps=100)
    module.step(50)
    assert float(module.eps) == pytest.approx(0.6)
    module.step(500)
    assert float(module.eps) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (Categorical(4), "over the 4 actions of spec, got 3"),
        (Binary(3), "categorical or one-hot actions, got Binary"),
    ],
)
def test_bad_specs(spec: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PriorEGreedyModule(spec, ActionPrior(3))
