"""What does not fit is one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.modules import ProbabilisticActor, ValueOperator

from torchrl_reg.modules import MulticategoricalActor, StochasticSamplerActor
from torchrl_reg.regularizers.coefficient import Coefficient

BAD = [
    ("virel", {"beta_scale": 0.0}, r"beta_scale must be a finite number > 0 .*got 0.0"),
    ("virel", {"beta_scale": -1.0}, r"beta_scale must be a finite number > 0 .*got -1.0"),
    ("virel", {"tau": 0.0}, r"tau must be a finite number > 0 .*got 0.0"),
    ("virel_fixed", {"tau": -1.0}, r"tau must be a finite number > 0 .*got -1.0"),
    ("virel", {"exponent": 0.5}, "exponent must be >= 1, got 0.5"),
    ("virel", {"rate": 0.0}, r"rate must be in \(0, 1\], got 0.0"),
    ("virel", {"tau_min": 0.0}, r"tau_min must be a finite number > 0 .*got 0.0"),
    ("virel", {"mode": "map"}, "mode must be 'td' or 'em', got 'map'"),
    ("virel", {"tau": Coefficient(1.0)}, "beta_scale must be None where tau is a coefficient"),
    ("virel_em", {"beta_scale": None}, "beta_scale must be given where mode='em' .*got None"),
    ("virel_value", {"mode": "em"}, "value_network must be None where mode='em', got one"),
    ("virel", {"loss_function": "l3"}, "loss_function must be .*got 'l3'"),
    ("sac", {"tau": 0.0}, r"tau must be a finite number > 0 .*got 0.0"),
    ("sac_fixed", {"tau": -1.0}, r"tau must be a finite number > 0 .*got -1.0"),
    ("sac", {"target_entropy": float("nan")}, r"target_entropy must be a finite number \(nats\), got nan"),
    ("sac", {"tau": Coefficient(1.0)}, "target_entropy must be None where tau is a coefficient already, got 1.3"),
    ("soft_q", {"tau": 0.0}, r"tau must be a finite number > 0 .*got 0.0"),
    ("soft_q", {"num_value_samples": 0}, "num_value_samples must be an integer >= 1, got 0"),
    ("soft_q", {"proposal": "gaussian"}, "proposal must be 'lattice' or 'uniform' or 'actor', got 'gaussian'"),
    ("soft_q", {"proposal": "actor"}, "proposal='actor' needs a sampler with a density, such as a FlowActor"),
    ("soft_q", {"form": "published"}, "form must be 'exact' or 'haarnoja2017', got 'published'"),
    ("soft_q", {"reduction": "median"}, "reduction must be .*got 'median'"),
]


@pytest.mark.parametrize(("name", "kwargs", "message"), BAD)
def test_bad_arguments(cases: Any, name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        cases[name].loss(**kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["virel", "sac", "soft_q"])
def test_a_critic_that_ignores_the_action(cases: Any, name: str) -> None:
    blind = ValueOperator(nn.Linear(4, 1), in_keys=["observation"])
    actor, critics = cases[name].networks()
    with pytest.raises(ValueError, match="qvalue_network must read the action 'action', got a critic that reads 'obs"):
        cases[name].loss((actor, [*critics, blind]))
    with pytest.raises(ValueError, match="qvalue_network must be TensorDict modules .*got Linear"):
        cases[name].loss((actor, nn.Linear(6, 1)))
    with pytest.raises(ValueError, match="one critic or a list of them, got an empty list"):
        cases[name].loss((actor, []))


@pytest.mark.parametrize("name", ["virel", "sac"])
def test_actors_that_do_not_fit(cases: Any, name: str) -> None:
    critics = cases[name].networks()[1]
    plain = TensorDictModule(nn.Linear(4, 2), in_keys=["observation"], out_keys=["action"])
    with pytest.raises(ValueError, match="actor_network must give the log_prob .*got TensorDictModule"):
        cases[name].loss((plain, critics))
    with pytest.raises(ValueError, match="actor_network must be a sampler, .*got ProbabilisticActor"):
        cases["soft_q"].loss((cases[name].networks()[0], critics[:1]))
    logits = TensorDictModule(nn.Linear(4, 3), in_keys=["observation"], out_keys=["logits"])
    categorical = ProbabilisticActor(logits, in_keys=["logits"], distribution_class=Categorical)
    loss = cases[name].loss((categorical, critics))
    with pytest.raises(ValueError, match="samples that carry a gradient .*got a"):
        loss(cases[name].batch(3))


@pytest.mark.parametrize("name", ["virel", "sac", "soft_q"])
def test_stored_actions_outside_the_box(cases: Any, name: str) -> None:
    """A buffer of actions in other units, say; told at the first batch."""
    data = cases[name].batch(3)
    data["action"][1, 1] = 5.0
    with pytest.raises(
        ValueError, match=r"must lie in the policy's box, from \[-1.0, -2.0\] to \[1.0, 2.0\], got values"
    ):
        cases[name].loss()(data)
    data["collector", "mask"] = torch.tensor([True, False, True]).unsqueeze(-1)
    assert cases[name].loss()(data)["loss_qvalue"].isfinite()


@pytest.mark.parametrize("name", ["virel", "sac"])
def test_straight_through_samples_have_to_be_asked_for(cases: Any, name: str) -> None:
    bins = MulticategoricalActor(nn.Linear(4, 10), num_bins=5, low=[-1.0, -2.0], high=[1.0, 2.0])
    networks = (bins, cases[name].networks()[1])
    with pytest.raises(ValueError, match="must give reparametrized samples, .* got a Multicategorical, .* is biased"):
        cases[name].loss(networks)(cases[name].batch(3))
    with pytest.raises(ValueError, match="straight_through must be True or False, got 'yes'"):
        cases["sac"].loss(straight_through="yes")
    assert cases["sac"].loss(networks, straight_through=True)(cases["sac"].batch(3))["loss_actor"].isfinite()


@pytest.mark.parametrize("name", ["virel", "sac", "soft_q"])
def test_actions_that_rounding_put_outside_the_box(cases: Any, name: str) -> None:
    data = cases[name].batch(3)
    data["action"][0] = torch.tensor([1 + 1e-6, -2 - 1e-5])
    assert cases[name].loss()(data)["loss_qvalue"].isfinite()
    data["action"][0, 1] = -2.001
    with pytest.raises(ValueError, match="got values from -2.001 to .*; rounding may put them outside by 4e-05"):
        cases[name].loss()(data)
    # bfloat16 knows 3 digits: 1.0078 is the next number to 1.
    data["action"] = data["action"].clamp(-1, 1.0078).bfloat16()
    assert cases[name].loss()(data)["loss_qvalue"].isfinite()


@pytest.mark.parametrize("name", ["virel", "sac", "soft_q"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_box_has_the_dtype_of_the_networks(cases: Any, name: str, dtype: torch.dtype, stored: torch.dtype) -> None:
    loss, data = cases[name].loss().to(dtype), cases[name].batch(3, dtype=dtype)
    data["action"] = data["action"].to(stored)
    out = loss(data)
    assert out["loss_actor"].isfinite() and out["loss_qvalue"].isfinite()
    sum(out[key] for key in ("loss_actor", "loss_qvalue")).backward()


def test_samplers_that_do_not_fit() -> None:
    for low, high in (([-1.0, -torch.inf], [1.0, torch.inf]), ([1.0], [-1.0])):
        with pytest.raises(ValueError, match="needs a bounded action space|low must be below high|low"):
            StochasticSamplerActor(nn.Identity(), 4, low=low, high=high)
    with pytest.raises(ValueError, match="num_features and num_cells must be >= 1, got 0"):
        StochasticSamplerActor(nn.Identity(), 0, low=[-1.0], high=[1.0])
    with pytest.raises(ValueError, match="num_features and num_cells must be >= 1, got 4 and \\[\\]"):
        StochasticSamplerActor(nn.Identity(), 4, low=[-1.0], high=[1.0], num_cells=[])
