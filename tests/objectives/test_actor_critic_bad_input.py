"""Errors of the losses over a policy: one sentence with the argument, the expected and the actual value."""

from __future__ import annotations

from typing import Any

import critic_cases
import policy_cases
import pytest
import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torch.distributions import Categorical, Normal
from torchrl.modules import ProbabilisticActor, ValueOperator

from torchrl_reg.modules import AutoregressiveMulticategoricalActor, MulticategoricalActor, StochasticSamplerActor
from torchrl_reg.regularizers import Coefficient

CASES: dict[str, Any] = {**policy_cases.CASES, **critic_cases.CASES}
NAN = float("nan")
ARGUMENTS = [
    ("m_iq", {"tau": 0.0}, r"tau must be a finite number > 0 .*got 0.0"),
    ("m_iq", {"tau": None}, r"tau must be a finite number > 0 .*got None"),
    ("m_iq", {"alpha": 2.0}, r"alpha must be in \[0, 1\], got 2.0"),
    ("m_iq", {"clip_min": 0.5}, r"clip_min must be <= 0 .*got 0.5"),
    ("m_iq", {"loss_function": "l3"}, "loss_function must be .*got 'l3'"),
    ("m_iq", {"delay_value": None}, "delay_value must be True or False, got None"),
    ("m_iq", {"delay_actor": "no"}, "delay_actor must be True or False, got 'no'"),
    ("m_iq", {"residual": 1}, "residual must be True or False, got 1"),
    ("m_iq", {"target_entropy": NAN}, "target_entropy must be a finite number .*got nan"),
    ("m_iq", {"target_entropy": "auto"}, "target_entropy must be a finite number .*got 'auto'"),
    ("m_iq", {"target_entropy": 3.3}, r"target_entropy must lie between 0 and 3.219 nats .*, got 3.3"),
    ("m_iq", {"target_entropy": 0.0}, r"target_entropy must lie between 0 and 3.219 nats .*, got 0.0"),
    ("m_iq_gaussian", {"target_entropy": -2.0}, r"target_entropy needs a policy whose entropy has a closed form.*got"),
    ("m_iq_flow", {"target_entropy": -2.0}, r"target_entropy needs a policy whose entropy has a closed form.*got a"),
    ("pcl", {"tau": -0.1}, r"tau must be a finite number >= 0 .*got -0.1"),
    ("pcl", {"lam": -0.1}, r"lam must be a finite number >= 0 .*got -0.1"),
    ("pcl", {"tau": 0.0, "lam": 0.0}, "tau or lam must be > 0.*got 0 and 0"),
    ("pcl", {"rollout": 0}, "rollout must be an integer >= 1 .*got 0"),
    ("pcl", {"rollout": 2.0}, "rollout must be an integer >= 1 .*got 2.0"),
    ("pcl", {"rollout": 6}, r"rollout=6 needs sequences .* at least 6 steps, got batch size \[2, 5\]"),
    ("pcl", {"delay_value": "no"}, "delay_value must be True or False, got 'no'"),
    ("trust_pcl", {"max_kl": 0.0}, r"max_kl must be a finite number > 0 \(nats\), got 0.0"),
    ("trust_pcl", {"max_kl": 0.1, "lam": 0.0}, "lam must be > 0 where it is learnt.*got 0.0"),
    ("virel", {"beta_scale": 0.0}, r"beta_scale must be a finite number > 0 .*got 0.0"),
    ("virel", {"tau": 0.0}, r"tau must be a finite number > 0 .*got 0.0"),
    ("virel_fixed", {"tau": -1.0}, r"tau must be a finite number > 0 .*got -1.0"),
    ("virel", {"exponent": 0.5}, "exponent must be >= 1, got 0.5"),
    ("virel", {"rate": 0.0}, r"rate must be in \(0, 1\], got 0.0"),
    ("virel_fixed", {"rate": 0.0}, r"rate must be in \(0, 1\], got 0.0"),
    ("virel", {"tau_min": 0.0}, r"tau_min must be a finite number > 0 .*got 0.0"),
    ("virel", {"mode": "map"}, "mode must be 'td' or 'em', got 'map'"),
    ("virel", {"tau": Coefficient(1.0)}, "beta_scale must be None where tau is a coefficient"),
    ("virel_em", {"beta_scale": None}, "beta_scale must be given where mode='em' .*got None"),
    ("virel_value", {"mode": "em"}, "value_network must be None where mode='em', got one"),
    ("sac", {"tau": 0.0}, r"tau must be a finite number > 0 .*got 0.0"),
    ("sac_fixed", {"tau": -1.0}, r"tau must be a finite number > 0 .*got -1.0"),
    ("sac", {"target_entropy": NAN}, r"target_entropy must be a finite number \(nats\), got nan"),
    ("sac", {"tau": Coefficient(1.0)}, "target_entropy must be None where tau is a coefficient already, got 1.3"),
    ("sac", {"straight_through": "yes"}, "straight_through must be True or False, got 'yes'"),
    ("soft_q", {"tau": 0.0}, r"tau must be a finite number > 0 .*got 0.0"),
    ("soft_q", {"num_value_samples": 0}, "num_value_samples must be an integer >= 1, got 0"),
    ("soft_q", {"num_particles": 2}, "num_particles must be an even number >= 4 .*got 2"),
    ("soft_q", {"num_particles": 5}, "num_particles must be an even number >= 4 .*got 5"),
    ("soft_q", {"proposal": "gaussian"}, "proposal must be 'lattice' or 'uniform' or 'actor', got 'gaussian'"),
    ("soft_q", {"proposal": "actor"}, "proposal='actor' needs a sampler with a density, such as a FlowActor"),
    ("soft_q", {"form": "published"}, "form must be 'exact' or 'haarnoja2017', got 'published'"),
]


def refused(message: str, name: str, networks: Any = None, **kwargs: Any) -> None:
    """Refused when it is built or at the first batch, in one line."""
    with pytest.raises(ValueError, match=message) as error:
        CASES[name].loss(networks, **kwargs)(CASES[name].batch(2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "kwargs", "message"), ARGUMENTS)
def test_arguments(name: str, kwargs: dict[str, Any], message: str) -> None:
    refused(message, name, **kwargs)


def linear(outputs: int, key: str) -> TensorDictModule:
    return TensorDictModule(nn.Linear(4, outputs), in_keys=["observation"], out_keys=[key])


def plain() -> TensorDictModule:
    """Without a log_prob."""
    return linear(2, "action")


def categorical() -> ProbabilisticActor:
    return ProbabilisticActor(linear(3, "logits"), in_keys=["logits"], distribution_class=Categorical)


def bins() -> MulticategoricalActor:
    return MulticategoricalActor(nn.Linear(4, 10), num_bins=5, **critic_cases.BOX)


def per_dimension() -> ProbabilisticActor:
    """Its log_prob has one entry per dimension: the wrong shape ``[2, 2]`` for a batch of 2."""
    net = nn.Sequential(nn.Linear(4, 4), NormalParamExtractor())
    module = TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"])
    return ProbabilisticActor(module, in_keys=["loc", "scale"], distribution_class=Normal, return_log_prob=True)


#: By loss: which of its networks is replaced, and by what.
NETWORKS = [
    *[(name, 0, plain, "must give the log_prob .*got Tens") for name in ("m_iq", "trust_pcl", "virel", "sac")],
    *[
        (f"{n}_gaussian", 0, per_dimension, "one log_prob per action, .*got .*Independent")
        for n in ("m_iq", "trust_pcl")
    ],
    *[(name, 0, categorical, "samples that carry a gradient .*got a") for name in ("virel", "sac")],
    *[(name, 0, bins, "must give reparam.*, got a Multicategorical, .* is biased") for name in ("virel", "sac")],
    ("soft_q", 0, categorical, "actor_network must be a sampler, .*got ProbabilisticActor"),
    ("m_iq", 1, lambda: None, "value_network must be a TensorDict module .*got NoneType"),
    *[(n, 1, lambda: nn.Linear(4, 1), "must be a TensorDict module .*got Linear") for n in ("m_iq", "trust_pcl")],
    ("trust_pcl_unified", 0, categorical, "value_network=None .*needs a MulticategoricalActor.*got ProbabilisticActor"),
    (
        "trust_pcl_unified",
        0,
        lambda: AutoregressiveMulticategoricalActor(nn.Linear(4, 8), 8, num_bins=5, **critic_cases.BOX),
        "value_network=None .*needs a MulticategoricalActor.*got Autoregressive",
    ),
    ("sac", 1, lambda: nn.Linear(6, 1), "qvalue_network must be TensorDict modules .*got Linear"),
    ("sac", 1, list, "one critic or a list of them, got an empty list"),
    (
        "sac",
        1,
        lambda: [critic_cases.make_critic(), ValueOperator(nn.Linear(4, 1))],
        "qvalue_network must read the action 'action', got a critic that reads 'obs",
    ),
]


@pytest.mark.parametrize(("name", "position", "make", "message"), NETWORKS)
def test_networks(name: str, position: int, make: Any, message: str) -> None:
    networks = list(CASES[name].networks())
    networks[position] = make()
    refused(message, name, networks)


def test_a_learnt_coefficient_is_not_assigned_0() -> None:
    with pytest.raises(ValueError, match="lam must be > 0 where it is learnt.*got 0.0"):
        CASES["trust_pcl"].loss(max_kl=0.1).lam = 0.0


# -- data -------------------------------------------------------------------------------------------------------------


def finite(name: str, data: Any) -> bool:
    return CASES[name].loss()(data)[CASES[name].weighted].isfinite()


def test_a_single_step_is_no_sequence() -> None:
    with pytest.raises(ValueError, match=r"needs sequences .*got batch size \[\]"):
        CASES["trust_pcl"].loss()(CASES["trust_pcl"].batch(9)[0, 0])


@pytest.mark.parametrize("name", ["m_iq", "m_iq_gaussian", "m_iq_flow", "trust_pcl", "virel", "sac", "soft_q"])
def test_stored_actions_lie_in_the_box_but_for_rounding(name: str) -> None:
    """Actions in other units, for instance, are an error at the first batch; masked rows are not checked."""
    data = CASES[name].batch(6)
    data["action"][0] = torch.tensor([1 + 1e-6, -2 - 1e-5])
    assert finite(name, data)
    box = r"must lie in the policy's box, from \[-1.0, -2.0\] to \[1.0, 2.0\], got values from -2.001 to .* by 4e-05"
    for bad, message in ((-2.001, box), (NAN, "action 'action' must be finite")):
        data["action"][0] = torch.tensor([0.0, bad])
        with pytest.raises(ValueError, match=message):
            finite(name, data)
    data["collector", "mask"] = torch.ones(*data.batch_size, 1, dtype=torch.bool).index_fill(0, torch.tensor(0), False)
    assert finite(name, data)


@pytest.mark.parametrize("name", ["virel", "sac", "soft_q"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_box_has_the_dtype_of_the_networks(name: str, dtype: torch.dtype, stored: torch.dtype) -> None:
    """bfloat16 has 3 digits: 1.0078 is the number next to 1."""
    loss, data = CASES[name].loss().to(dtype), CASES[name].batch(3, dtype=dtype)
    data["action"][0, 0] = 1.0078 if stored == torch.bfloat16 else 1.0
    data["action"] = data["action"].to(stored)
    out = loss(data)
    assert out["loss_actor"].isfinite() and out["loss_qvalue"].isfinite()
    (out["loss_actor"] + out["loss_qvalue"]).backward()


def test_a_sampler_has_features_and_cells() -> None:
    for features, options in ((0, {}), (4, {"num_cells": []})):
        with pytest.raises(ValueError, match=rf"num_features and num_cells must be >= 1, got {features}"):
            StochasticSamplerActor(nn.Identity(), features, low=[-1.0], high=[1.0], **options)
