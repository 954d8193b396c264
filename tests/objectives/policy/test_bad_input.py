"""What the losses over a policy refuse, and that they say why: argument, what was expected, what came."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torch.distributions import Normal
from torchrl.modules import ProbabilisticActor

from torchrl_reg.modules import FlowActor, MulticategoricalActor, gaussian_actor

BAD = [
    ("m_iq", {"tau": 0.0}, r"tau must be a finite number > 0 .*got 0.0"),
    ("m_iq", {"tau": -1.0}, r"tau must be a finite number > 0 .*got -1.0"),
    ("m_iq", {"tau": None}, r"tau must be a finite number > 0 .*got None"),
    ("m_iq", {"alpha": 2.0}, r"alpha must be in \[0, 1\], got 2.0"),
    ("m_iq", {"clip_min": 0.5}, r"clip_min must be <= 0 .*got 0.5"),
    ("m_iq", {"loss_function": "l3"}, "loss_function must be .*got 'l3'"),
    ("m_iq", {"reduction": "median"}, "reduction must be .*got 'median'"),
    ("m_iq", {"target_entropy": float("nan")}, "target_entropy must be a finite number .*got nan"),
    ("m_iq", {"target_entropy": "auto"}, "target_entropy must be a finite number .*got 'auto'"),
    ("pcl", {"tau": -0.1}, r"tau must be a finite number >= 0 .*got -0.1"),
    ("pcl", {"tau": None}, r"tau must be a finite number >= 0 .*got None"),
    ("pcl", {"lam": -0.1}, r"lam must be a finite number >= 0 .*got -0.1"),
    ("pcl", {"tau": 0.0, "lam": 0.0}, "tau or lam must be > 0.*got 0 and 0"),
    ("pcl", {"rollout": 0}, "rollout must be an integer >= 1 .*got 0"),
    ("pcl", {"rollout": 2.0}, "rollout must be an integer >= 1 .*got 2.0"),
    ("trust_pcl", {"max_kl": 0.0}, r"max_kl must be a finite number > 0 \(nats\), got 0.0"),
    ("trust_pcl", {"max_kl": -0.1}, r"max_kl must be a finite number > 0 \(nats\), got -0.1"),
    ("trust_pcl", {"max_kl": 0.1, "lam": 0.0}, "lam must be > 0 where it is learnt.*got 0.0"),
    ("pcl", {"reduction": "median"}, "reduction must be .*got 'median'"),
    ("pcl", {"delay_value": "no"}, "delay_value must be True or False, got 'no'"),
    ("m_iq", {"delay_value": None}, "delay_value must be True or False, got None"),
    ("m_iq", {"delay_actor": "no"}, "delay_actor must be True or False, got 'no'"),
    ("m_iq", {"residual": 1}, "residual must be True or False, got 1"),
    (
        "m_iq",
        {"use_prioritized_weights": "maybe"},
        "use_prioritized_weights must be True, False or 'auto', got 'maybe'",
    ),
]


@pytest.mark.parametrize(("name", "kwargs", "message"), BAD)
def test_bad_arguments(cases: Any, name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        cases[name].loss(**kwargs)
    assert "\n" not in str(error.value)


def test_unknown_arguments_and_keys(cases: Any) -> None:
    for name, argument in (("m_iq", "lam"), ("trust_pcl", "alpha"), ("m_iq", "taau")):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{argument}'"):
            cases[name].loss(**{argument: 0.5})
    for name in ("m_iq", "trust_pcl"):
        with pytest.raises(ValueError, match="not an accepted tensordict key"):
            cases[name].loss().set_keys(nonsense="a")


def test_coefficients_are_checked_wherever_they_are_set(cases: Any) -> None:
    for name, settings in (
        ("m_iq", {"tau": 0.0, "alpha": 2.0, "clip_min": 0.5}),
        ("trust_pcl", {"tau": -1.0, "lam": -1.0}),
    ):
        loss = cases[name].loss()
        for coefficient, value in settings.items():
            with pytest.raises(ValueError, match=f"{coefficient} must be"):
                setattr(loss, coefficient, value)
            with pytest.raises(ValueError, match=f"{coefficient} must be"):
                loss.make_value_estimator(gamma=0.9, **{coefficient: value})
        with pytest.raises(ValueError, match="gamma must be in"):
            loss.make_value_estimator(gamma=1.5)
    learnt = cases["trust_pcl"].loss(max_kl=0.1)
    with pytest.raises(ValueError, match="lam must be > 0 where it is learnt.*got 0.0"):
        learnt.lam = 0.0


def test_unbounded_action_spaces(cases: Any) -> None:
    """Where the actor is built: the loss never sees the space."""
    box = {"low": [-1.0, -torch.inf], "high": [1.0, torch.inf]}
    for build in (
        lambda: MulticategoricalActor(nn.Linear(4, 10), num_bins=5, **box),
        lambda: gaussian_actor(nn.Linear(4, 4), **box),
        lambda: FlowActor(nn.Linear(4, 8), 8, **box),
    ):
        with pytest.raises(ValueError, match=r"needs a bounded action space .*got low=\[-1.0, -inf\]"):
            build()
    with pytest.raises(ValueError, match="num_bins must be at least 2, got 1"):
        MulticategoricalActor(nn.Linear(4, 2), low=[-1.0] * 2, high=[1.0] * 2, num_bins=1)


@pytest.mark.parametrize("name", ["m_iq", "trust_pcl"])
def test_an_actor_without_log_prob(cases: Any, name: str) -> None:
    plain = TensorDictModule(nn.Linear(4, 2), in_keys=["observation"], out_keys=["action"])
    with pytest.raises(ValueError, match="actor_network must give the log_prob .*got TensorDictModule"):
        cases[name].loss((plain, cases[name].networks()[1]))


@pytest.mark.parametrize("name", ["m_iq_gaussian", "trust_pcl_gaussian"])
@pytest.mark.parametrize("rows", [1, 2, 6])
def test_a_log_prob_per_dimension(cases: Any, name: str, rows: int) -> None:
    """Also where the numbers of rows and dimensions happen to be equal."""
    net = nn.Sequential(nn.Linear(4, 4), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=Normal,
        return_log_prob=True,
    )
    loss = cases[name].loss((actor, cases[name].networks()[1]))
    data = cases[name].batch(rows)
    with pytest.raises(ValueError, match=r"one log_prob per action, shape .*got .*Independent"):
        loss(data)


def test_sequences_that_are_too_short(cases: Any) -> None:
    loss = cases["trust_pcl"].loss(rollout=6)
    with pytest.raises(ValueError, match=r"rollout=6 needs sequences .* at least 6 steps, got batch size \[9, 5\]"):
        loss(cases["trust_pcl"].batch(9))
    with pytest.raises(ValueError, match=r"got batch size \[\]"):
        loss(cases["trust_pcl"].batch(9)[0, 0])


def test_the_unified_form_needs_logits_that_are_values(cases: Any, actor: Any) -> None:
    from torchrl_reg.modules import AutoregressiveMulticategoricalActor

    case = cases["trust_pcl_unified"]
    box = {"low": [-1.0] * 2, "high": [1.0] * 2, "num_bins": 5}
    for policy in (
        actor("gaussian"),
        actor("categorical"),
        AutoregressiveMulticategoricalActor(nn.Linear(4, 8), 8, **box),
    ):
        with pytest.raises(ValueError, match="value_network=None .*needs a MulticategoricalActor.*got"):
            case.loss((policy, None))


def test_a_missing_value_network(cases: Any) -> None:
    with pytest.raises(ValueError, match="value_network must be a TensorDict module .*got NoneType"):
        cases["m_iq"].loss((cases["m_iq"].networks()[0], None))
    with pytest.raises(ValueError, match="value_network must be a TensorDict module .*got Linear"):
        cases["m_iq"].loss((cases["m_iq"].networks()[0], nn.Linear(4, 1)))
    with pytest.raises(ValueError, match="value_network must be a TensorDict module .*got Linear"):
        cases["trust_pcl"].loss((cases["trust_pcl"].networks()[0], nn.Linear(4, 1)))


@pytest.mark.parametrize("name", ["m_iq", "m_iq_gaussian", "m_iq_flow", "trust_pcl"])
def test_actions_outside_the_box_or_nan(cases: Any, name: str) -> None:
    case = cases[name]
    data = case.batch(6)
    data["action"][0] = torch.tensor([0.0, -3.0])
    with pytest.raises(
        ValueError, match=r"must lie in the policy's box, from \[-1.0, -2.0\] to \[1.0, 2.0\], got .* -3"
    ):
        case.loss()(data)
    data["action"][0] = torch.nan
    with pytest.raises(ValueError, match="action 'action' must be finite"):
        case.loss()(data)
    data["collector", "mask"] = torch.ones(*data.batch_size, 1, dtype=torch.bool)
    data["collector", "mask"][0] = False
    assert case.loss()(data)["loss"].isfinite()


@pytest.mark.parametrize("name", ["m_iq", "m_iq_gaussian", "m_iq_flow", "trust_pcl"])
def test_actions_that_rounding_put_outside_the_box(cases: Any, name: str) -> None:
    data = cases[name].batch(6)
    data["action"][0] = torch.tensor([1 + 1e-6, -2 - 1e-5])
    assert cases[name].loss()(data)["loss"].isfinite()


@pytest.mark.parametrize("name", ["m_iq", "trust_pcl"])
def test_missing_entries_and_empty_batches(cases: Any, name: str) -> None:
    case = cases[name]
    for key, role in (("action", "stored action"), (("next", "reward"), "reward of each step")):
        with pytest.raises(KeyError, match=role):
            case.loss()(case.batch(6).exclude(key))
    with pytest.raises(ValueError, match="at least one row"):
        case.loss()(case.batch(6)[:0])
