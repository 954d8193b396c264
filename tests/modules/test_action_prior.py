"""The action prior, how it and beta are learnt, and who acts by it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.data import Binary, Categorical, OneHot
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import QValueActor

from torchrl_reg.modules import ActionPrior, BoltzmannQActor, PriorEGreedyModule, PriorUpdate
from torchrl_reg.regularizers import BellmanErrorCoefficient

RHO = [0.7, 0.2, 0.1]


def policies(q: torch.Tensor, rho: torch.Tensor, beta: float) -> torch.Tensor:
    pi = rho * (beta * q.double()).exp()
    return pi / pi.sum(-1, keepdim=True)


# -- the prior ------------------------------------------------------------------------------------------------------


def test_a_zero_is_floored_and_the_rest_normalized() -> None:
    prior = ActionPrior(3, probabilities=[0.5, 0.5, 0.0], floor=1e-3)
    rho = prior.log_prior.exp()
    torch.testing.assert_close(rho, torch.tensor([0.5, 0.5, 1e-3], dtype=torch.float64) / 1.001)
    prior.assign(torch.tensor([1.0, 0.0, 0.0]))
    assert prior.log_prior.isfinite().all() and math.isclose(float(prior.log_prior.exp().sum()), 1.0)
    exact = ActionPrior(3, probabilities=RHO).log_prior.exp()
    torch.testing.assert_close(exact, torch.tensor(RHO, dtype=torch.float64), rtol=0, atol=1e-15)


def test_a_floored_action_can_come_back() -> None:
    prior = ActionPrior(3, probabilities=[0.5, 0.5, 0.0], beta=2.0)
    update = PriorUpdate(prior, rate=0.5)
    for _ in range(60):
        update(TensorDict({"action_value": torch.tensor([[0.0, 0.0, 1.0]])}, [1]))
    assert prior.log_prior.exp()[2] > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_prior_keeps_its_precision(dtype: torch.dtype) -> None:
    holder = nn.ModuleList([nn.Linear(2, 2), ActionPrior(3, probabilities=RHO, beta=0.1)]).to(dtype)
    assert holder[0].weight.dtype == dtype and holder[1].log_prior.dtype == torch.float64
    torch.testing.assert_close(holder[1].log_prior.exp(), torch.tensor(RHO, dtype=torch.float64), rtol=0, atol=1e-15)
    assert float(holder[1].beta) == 0.1


BAD = [
    ({"probabilities": [0.5, 0.5]}, "a probability for each of 3 actions"),
    ({"probabilities": [[0.5, 0.5, 0.0]]}, "a probability for each of 3 actions"),
    ({"probabilities": [1.2, -0.1, -0.1]}, "must not have negative probabilities"),
    ({"probabilities": [0.5, 0.4, 0.2]}, "must sum to one"),
    ({"beta": 0}, "beta must be a finite number > 0"),
    ({"beta": float("nan")}, "beta must be a finite number > 0"),
    ({"floor": 0.0}, r"floor must be in \(0, 1 / 3\), got 0.0"),
    ({"floor": 0.4}, "floor must be in"),
]


@pytest.mark.parametrize(("kwargs", "message"), BAD, ids=str)
def test_bad_priors(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionPrior(3, **kwargs)


def test_bad_numbers_of_actions_and_betas() -> None:
    with pytest.raises(ValueError, match="num_actions must be an integer >= 1, got 0"):
        ActionPrior(0)
    with pytest.raises(ValueError, match="beta must be"):
        ActionPrior(3).beta = -1.0


# -- its update -----------------------------------------------------------------------------------------------------


def test_one_environment_is_the_sequential_rule_given_the_policies() -> None:
    """And the policies are those of the prior at the start, so the true sequence differs by the square of the rate."""
    q = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    errors = []
    for rate in (0.02, 0.01):
        prior = ActionPrior(3, probabilities=RHO, beta=2.0)
        frozen = sequential = torch.tensor(RHO, dtype=torch.float64)
        pi = policies(q, frozen, 2.0)
        for t in range(12):
            frozen = (1 - rate) * frozen + rate * pi[t]
            sequential = (1 - rate) * sequential + rate * policies(q[t], sequential, 2.0)
        PriorUpdate(prior, rate=rate)(TensorDict({"action_value": q}, [12]))
        torch.testing.assert_close(prior.log_prior.exp(), frozen, rtol=0, atol=1e-7)
        errors.append((prior.log_prior.exp() - sequential).abs().max())
    assert 3.0 < errors[0] / errors[1] < 5.0


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_environments_side_by_side_count_with_their_mean(rate: float) -> None:
    envs, steps = 4, 5
    q = torch.randn(envs, steps, 3, generator=torch.Generator().manual_seed(1))
    rho = torch.tensor(RHO, dtype=torch.float64)
    pi = policies(q, rho, 2.0)
    for t in range(steps):
        for _ in range(envs):  # the same mean four times: as exchangeable as it gets
            rho = (1 - rate) * rho + rate * pi[:, t].mean(0)
    prior = ActionPrior(3, probabilities=RHO, beta=2.0)
    PriorUpdate(prior, rate=rate)(TensorDict({"action_value": q}, [envs, steps]))
    torch.testing.assert_close(prior.log_prior.exp(), rho, rtol=0, atol=1e-7)
    named = ActionPrior(3, probabilities=RHO, beta=2.0)
    time_first = TensorDict({"action_value": q.transpose(0, 1)}, [steps, envs], names=["time", None])
    PriorUpdate(named, rate=rate)(time_first)
    torch.testing.assert_close(named.log_prior, prior.log_prior)


def test_the_whole_policy_counts_and_not_the_action() -> None:
    batch = TensorDict({"action_value": torch.randn(6, 3), "action": torch.zeros(6, dtype=torch.long)}, [6])
    results = []
    for action in (0, 2):
        prior = ActionPrior(3, probabilities=RHO)
        batch["action"][:] = action
        PriorUpdate(prior, rate=0.5)(batch)
        results.append(prior.log_prior)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_with_an_actor_the_batch_stays_as_it_is() -> None:
    torch.manual_seed(0)
    actor = QValueActor(nn.Linear(4, 3), spec=Categorical(3))
    prior, other = ActionPrior(3, beta=2.0), ActionPrior(3, beta=2.0)
    batch = TensorDict({"observation": torch.randn(6, 4), "action": torch.full((6,), 7)}, [6])
    before = batch.clone()
    PriorUpdate(prior, actor, rate=0.5)(batch)
    assert (batch == before).all() and set(batch.keys()) == set(before.keys())
    PriorUpdate(other, rate=0.5)(actor(batch.select("observation")))
    torch.testing.assert_close(prior.log_prior, other.log_prior, rtol=0, atol=0)
    assert prior.log_prior.grad_fn is None
    assert not list(PriorUpdate(prior, actor, rate=0.5).parameters())


def test_a_single_row_without_batch_dimension() -> None:
    prior = ActionPrior(3, beta=2.0)
    PriorUpdate(prior, rate=1.0)(TensorDict({"action_value": torch.tensor([1.0, 0.0, 0.0])}, []))
    expected = policies(torch.tensor([1.0, 0.0, 0.0]), torch.ones(3) / 3, 2.0)
    torch.testing.assert_close(prior.log_prior.exp(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
def test_rates_outside_the_unit_interval(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate must be in \(0, 1\], got"):
        PriorUpdate(ActionPrior(3), rate=rate)
    with pytest.raises(ValueError, match=r"rate must be in \(0, 1\], got"):
        BellmanErrorCoefficient(1.0, rate=rate)


# -- beta -----------------------------------------------------------------------------------------------------------


def test_beta_moves_towards_one_over_the_loss_within_bounds() -> None:
    bounds = {"low": 0.5, "high": 10.0, "error_floor": 0.01}
    betas = [BellmanErrorCoefficient(x, rate=0.25, inverse=True, **bounds) for x in (1.0, 2.0)]
    prior, other = (ActionPrior(3, beta=beta) for beta in betas)

    def after(loss: float) -> tuple[float, float]:
        for beta in betas:
            beta.observe(torch.tensor(loss))
        return round(float(prior.beta), 6), round(float(other.beta), 6)

    assert after(0.2) == (0.75 * 1 + 0.25 * 5, 0.75 * 2 + 0.25 * 5)
    assert after(0.0) == (10.0, 10.0)  # .75 * 2 + .25 / floor = 26.5, clipped
    for _ in range(20):
        last = after(1e9)
    assert last == (0.5, 0.5)
    wide = BellmanErrorCoefficient(1.0, rate=0.25, inverse=True, low=0.5, high=100.0, error_floor=0.01)
    for error in (0.0, 0.001, 0.01):  # the floor, not the bound, is what holds it
        wide.assign(1.0)
        wide.observe(torch.tensor(error))
        assert round(float(wide.value), 6) == 0.75 * 1 + 0.25 / 0.01
    for bad in ({"low": 0.0}, {"low": 2.0, "high": 1.0}, {"error_floor": 0.0}):
        with pytest.raises(ValueError, match="low <= high|error_floor"):
            BellmanErrorCoefficient(1.0, rate=0.1, **bad)


# -- who acts -------------------------------------------------------------------------------------------------------


def act(module: Any, q: torch.Tensor, kind: ExplorationType = ExplorationType.RANDOM, **more: torch.Tensor) -> Any:
    with set_exploration_type(kind):
        return module(TensorDict({"action_value": q, **more}, q.shape[:-1]))["action"]


def test_greedy_in_the_policy_and_exploring_from_the_prior() -> None:
    torch.manual_seed(0)
    prior = ActionPrior(3, probabilities=RHO, beta=2.0)
    module = PriorEGreedyModule(Categorical(3), prior, eps_init=0.4, eps_end=0.4)
    q = torch.tensor([0.0, 0.5, 0.2]).expand(40_000, 3)  # best by q: 1; by ln rho + 2 q: 0
    assert (act(module, q, ExplorationType.DETERMINISTIC) == 0).all()
    shares = torch.bincount(act(module, q), minlength=3) / 40_000
    torch.testing.assert_close(shares, torch.tensor([0.6 + 0.4 * 0.7, 0.4 * 0.2, 0.4 * 0.1]), rtol=0, atol=0.01)
    prior.beta = 20.0
    assert (act(module, q, ExplorationType.DETERMINISTIC) == 1).all()


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3)])
def test_encodings_and_batch_shapes(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    prior = ActionPrior(3, probabilities=RHO, beta=2.0)
    q = torch.randn(*shape, 3)
    for spec in (Categorical(3), OneHot(3)):
        action = act(PriorEGreedyModule(spec, prior, eps_init=0.5, eps_end=0.5), q)
        assert action.dtype == spec.dtype
        if isinstance(spec, OneHot):
            assert action.shape == q.shape and (action.sum(-1) == 1).all()
            action = action.long().argmax(-1)
        assert action.shape == shape
    batched = Categorical(3, shape=shape) if shape else Categorical(3)
    assert act(PriorEGreedyModule(batched, prior, eps_init=0.5), q).shape == shape
    greedy = prior.greedy(q)
    assert (act(PriorEGreedyModule(Categorical(3), prior, eps_init=0.0, eps_end=0.0), q) == greedy).all()


def test_masked_actions_are_never_taken() -> None:
    torch.manual_seed(0)
    prior = ActionPrior(3, probabilities=RHO, beta=2.0)
    module = PriorEGreedyModule(Categorical(3), prior, eps_init=0.5, eps_end=0.5, action_mask_key="allowed")
    allowed = torch.tensor([False, True, True]).expand(20_000, 3)
    taken = torch.bincount(act(module, torch.tensor([9.0, 0.0, 1.0]).expand(20_000, 3), allowed=allowed), minlength=3)
    expected = torch.tensor([0.0, 0.5 * 2 / 3, 0.5 + 0.5 / 3])
    torch.testing.assert_close(taken / 20_000, expected, rtol=0, atol=0.015)


def test_annealing_steps_count_at_once() -> None:
    module = PriorEGreedyModule(Categorical(3), ActionPrior(3), eps_init=1.0, eps_end=0.2, annealing_num_steps=100)
    module.step(50)
    assert math.isclose(float(module.eps), 0.6, rel_tol=1e-6)
    module.step(500)
    assert math.isclose(float(module.eps), 0.2, rel_tol=1e-6)


def test_bad_specs() -> None:
    with pytest.raises(ValueError, match="over the 4 actions of spec, got 3"):
        PriorEGreedyModule(Categorical(4), ActionPrior(3))
    with pytest.raises(ValueError, match="categorical or one-hot actions, got Binary"):
        PriorEGreedyModule(Binary(3), ActionPrior(3))


@pytest.mark.parametrize("one_hot", [False, True])
def test_the_sampling_actor_samples_the_policy_with_its_prior(one_hot: bool) -> None:
    torch.manual_seed(0)
    prior = ActionPrior(3, probabilities=RHO, beta=2.0)
    net = nn.Linear(1, 3, bias=False)
    net.weight.data.copy_(torch.tensor([[0.0], [0.5], [0.2]]))
    actor = BoltzmannQActor(QValueActor(net, spec=OneHot(3) if one_hot else Categorical(3)), prior=prior)
    data = TensorDict({"observation": torch.ones(40_000, 1)}, [40_000])

    def index(out: Any) -> torch.Tensor:
        return out["action"].long().argmax(-1) if one_hot else out["action"]

    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        out = actor(data.clone())
    assert (index(out) == 0).all() and (out["chosen_action_value"] == 0.0).all()
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        shares = torch.bincount(index(actor(data.clone())), minlength=3) / 40_000
    expected = policies(torch.tensor([0.0, 0.5, 0.2]), torch.tensor(RHO, dtype=torch.float64), 2.0)
    torch.testing.assert_close(shares.double(), expected, rtol=0, atol=0.01)
    with pytest.raises(ValueError, match="Either tau or prior or regularizer must be given"):
        BoltzmannQActor(actor.actor, tau=1.0, prior=prior)


def test_in_a_sequence_with_an_actor() -> None:
    prior = ActionPrior(3, beta=2.0)
    actor = QValueActor(nn.Linear(4, 3), spec=Categorical(3))
    explorer = TensorDictSequential(actor, PriorEGreedyModule(Categorical(3), prior))
    assert explorer.in_keys == ["observation"] and "action" in explorer.out_keys


@pytest.mark.parametrize("key", ["mask", ("collector", "mask")])
def test_padding_counts_for_nothing(key: object) -> None:
    pi = torch.rand(2, 4, 3, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    padded = TensorDict({"action_value": torch.where(mask.unsqueeze(-1), pi, torch.nan)}, [2, 4])
    padded[key] = mask
    prior, by_hand = ActionPrior(3, beta=2.0), ActionPrior(3, beta=2.0)
    PriorUpdate(prior, rate=0.1)(padded)
    policy = by_hand.policy(pi)
    rho = by_hand.log_prior.exp()
    rho = 0.81 * rho + 0.19 * policy[:, 0].mean(0)  # two steps at the first time, one at the second, none after
    rho = 0.9 * rho + 0.1 * policy[0, 1]
    torch.testing.assert_close(prior.log_prior.exp(), rho, rtol=1e-9, atol=0)


def test_a_loss_that_is_not_finite_teaches_beta_nothing() -> None:
    prior = ActionPrior(3, beta=BellmanErrorCoefficient(2.0, rate=0.5, inverse=True))
    for loss in (torch.nan, torch.inf):
        prior.beta_coefficient.observe(torch.tensor(loss))
        assert float(prior.beta) == 2.0


def test_the_greedy_action_of_a_uniform_prior_is_that_of_q() -> None:
    q = 1e-3 * torch.randn(2_000, 6)
    for beta in (1e-3, 1.0, 1e3):
        assert torch.equal(ActionPrior(6, beta=beta).greedy(q), q.argmax(-1))


def test_log_prior_is_assigned_not_replaced() -> None:
    with pytest.raises(AttributeError, match="prior.assign"):
        ActionPrior(3).log_prior = torch.zeros(3)
