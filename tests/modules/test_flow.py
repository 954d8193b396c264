"""The flow policy: initialization, layers, resets; its density is tested in test_box_actor.py.

And policies in the latent space of frozen flows: exact densities of the stack.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Normal
from torchrl.data import Bounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import check_env_specs
from torchrl.modules import TanhNormal

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import FlowActor, LatentActionTransform, stacked_log_prob

LOW, HIGH = [-2.3, -1.0, 0.0], [0.7, 1.0, 3.0]


def test_starts_as_the_tanh_of_a_standard_normal(states: Any) -> None:
    dist = FlowActor(nn.Linear(4, 8), 8, low=LOW, high=HIGH).get_dist(states(6))
    action = dist.sample()
    plain = TanhNormal(torch.zeros(6, 3), torch.ones(6, 3), low=torch.tensor(LOW), high=torch.tensor(HIGH))
    torch.testing.assert_close(dist.log_prob(action), plain.log_prob(action), rtol=1e-3, atol=1e-3)
    centre = (torch.tensor(LOW) + torch.tensor(HIGH)) / 2
    torch.testing.assert_close(dist.deterministic_sample, centre.expand(6, 3))


def test_layers_move_every_dimension_and_depend_on_the_state(make: Any, states: Any) -> None:
    dist = make("flow", num_layers=2).get_dist(states(2))
    moved = [c.scale_and_shift(torch.zeros(2, 3))[1][0] != 0 for c in dist.couplings]
    assert torch.stack(moved).tolist() == [[True, False, True], [False, True, False]]
    assert not torch.allclose(*dist.deterministic_sample)


def test_log_scales_are_bounded(make: Any, states: Any) -> None:
    actor = make("flow", max_log_scale=0.7)
    nn.init.normal_(actor.weight_out, std=100.0)
    dist = actor.get_dist(states(50))
    s = torch.stack([c.scale_and_shift(torch.randn(50, 3))[0] for c in dist.couplings])
    assert 0.69 < s.abs().max() <= 0.7


def test_reparametrized_samples_have_gradients_and_samples_have_none(make: Any, states: Any) -> None:
    actor = make("flow")
    dist = actor.get_dist(states(5))
    assert not dist.sample().requires_grad
    dist.rsample().sum().backward()
    assert actor.weight_out.grad.any() and actor.torso.weight.grad.any()
    with pytest.raises(NotImplementedError):
        dist.entropy()


@pytest.mark.parametrize("functional", [False, True])
def test_reset_parameters_recursive_reaches_the_couplings(functional: bool, make: Any) -> None:
    actor = make("flow")
    before = {name: p.clone() for name, p in actor.named_parameters()}
    if functional:
        params = actor.reset_parameters_recursive(TensorDict.from_module(actor))
        after = {name: params[tuple(name.split("."))] for name in before}
    else:
        actor.reset_parameters_recursive()
        after = dict(actor.named_parameters())
    assert not any(after[name].equal(p) for name, p in before.items())
    assert not after["weight_out"].any() and not after["bias_out"].any()


# -- policies above a flow ------------------------------------------------------------------------------------------


BOX = {"low": [-1.0, -2.0], "high": [1.0, 3.0]}
UNIT = {"low": [-1.0, -1.0], "high": [1.0, 1.0]}


@pytest.fixture
def layers(make: Any) -> list[LatentActionTransform]:
    """One on the environment's box, and one above it."""
    return [LatentActionTransform(make("flow", 2, num_layers=n, **box).double()) for n, box in ((4, BOX), (3, UNIT))]


@pytest.fixture
def td(states: Any) -> TensorDict:
    return states(5, dtype=torch.float64)


def test_a_layer_and_its_inverse(layers: Any, td: TensorDict) -> None:
    h = torch.empty(5, 2, dtype=torch.float64).uniform_(-0.95, 0.95)
    action, log_det = layers[0].action(td, h)
    torch.testing.assert_close(layers[0].latent(td, action), (h, log_det))
    assert ((action > torch.tensor([-1.0, -2.0])) & (action < torch.tensor([1.0, 3.0]))).all()
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda x, i=i: layers[0].action(td[i], x)[0], h[i])
        torch.testing.assert_close(jacobian.det().abs().log(), log_det[i])


def test_the_density_of_the_stack_is_that_of_its_base_by_the_whole_jacobian(layers: Any, make: Any, td: Any) -> None:
    top = make("flow", 2, num_layers=2, **UNIT).double()

    def through(z: Tensor) -> Tensor:
        h = top.squashed(top.get_dist(td[0]).before_squash(z)[0])
        for layer in reversed(layers):
            h, _ = layer.action(td[0], h)
        return h

    z = torch.tensor([0.4, -0.7], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(through, z)
    expected = Normal(0.0, 1.0).log_prob(z).sum() - jacobian.det().abs().log()
    torch.testing.assert_close(stacked_log_prob(td[0], through(z), top, layers), expected)


def test_a_fresh_flow_above_acts_as_the_flow_below(layers: Any, td: TensorDict) -> None:
    fresh = FlowActor(nn.Linear(4, 8), 8, **UNIT, num_cells=8).double()
    below = layers[0].flow.get_dist(td)
    action = below.sample()
    torch.testing.assert_close(stacked_log_prob(td, action, fresh, layers[:1]), below.log_prob(action))


def pendulum(*transforms: LatentActionTransform) -> EnvBase:
    env = make_env(EnvSettings("pendulum"), num_envs=2)
    for transform in transforms:
        env = env.append_transform(transform)
    return env


def test_the_environment_gets_the_action_and_the_data_keep_the_latent(make: Any) -> None:
    actor = make("flow", 1, inputs=3, low=[-2.0], high=[2.0])
    env, twin = pendulum(LatentActionTransform(actor)), pendulum()
    check_env_specs(env)
    env.set_seed(3), twin.set_seed(3)
    start, other = env.reset(), twin.reset()
    h = torch.tensor([[0.9], [-0.2]])
    u, _ = actor.get_dist(start).before_squash(h.atanh())
    stepped = env.step(start.set("action", h))
    expected = twin.step(other.set("action", 2 * u.detach().tanh()))
    torch.testing.assert_close(stepped["next", "reward"], expected["next", "reward"])
    torch.testing.assert_close(stepped["action"], h)
    assert expected["next", "reward"].std() > 0
    above = LatentActionTransform(make("flow", 1, inputs=3, low=[-1.0], high=[1.0]))
    assert env.append_transform(above).rollout(3)["action"].abs().max() <= 1


def test_the_flow_is_a_copy(make: Any, td: TensorDict) -> None:
    actor, h = make("flow", 2).double(), torch.zeros(5, 2, dtype=torch.float64)
    layer = LatentActionTransform(actor)
    with torch.no_grad():
        actor.bias_out.add_(1.0)
    assert not torch.allclose(layer.action(td, h)[0], LatentActionTransform(actor).action(td, h)[0])
    assert actor.bias_out.requires_grad and not any(p.requires_grad for p in layer.flow.parameters())


@pytest.mark.parametrize(
    ("env", "flow", "sentence"),
    [
        ("pendulum", (2, UNIT), r"flow must have the environment's action size 1, got 2\."),
        ("pendulum", (1, {"low": [-3.0], "high": [3.0]}), r"within the environment's bounds, got \[-3.0\] to \[3.0\]"),
        ("cartpole", (2, UNIT), "action size no dimension, got 2|box of actions, got Categorical"),
    ],
)
def test_environments_that_do_not_fit(env: str, flow: Any, sentence: str, make: Any) -> None:
    layer = LatentActionTransform(make("flow", flow[0], **flow[1]))
    with pytest.raises(ValueError, match=sentence):
        make_env(EnvSettings(env), num_envs=2).append_transform(layer).action_spec  # noqa: B018


@pytest.mark.parametrize("bound", ["low", "high"])
def test_every_dimension_has_to_fit(bound: str, layers: Any) -> None:
    box = {name: getattr(layers[0].flow, name).clone() for name in ("low", "high")}
    layers[0].transform_action_spec(Bounded(**box))
    box[bound][1] *= 0.5
    with pytest.raises(ValueError, match="flow must act within the environment's bounds"):
        layers[0].transform_action_spec(Bounded(**box))


def test_what_is_no_flow_and_what_it_does_not_find(layers: Any) -> None:
    with pytest.raises(ValueError, match=r"flow must be a FlowActor, got Linear\."):
        LatentActionTransform(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="data must have 'observation', which the flow reads, got none"):
        layers[1].inv(TensorDict({"action": torch.zeros(1, 2)}, [1]))
