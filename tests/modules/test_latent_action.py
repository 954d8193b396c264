"""Policies in the latent space of frozen flows: exact densities of the stack, and losses that train on top."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import check_env_specs
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import SACLoss

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import FlowActor, LatentActionTransform, gaussian_actor, stacked_log_prob
from torchrl_reg.objectives import PolyakTargetUpdate, VIRELLoss

BOX = {"low": [-1.0, -2.0], "high": [1.0, 3.0]}
UNIT = {"low": [-1.0, -1.0], "high": [1.0, 1.0]}


def flow(seed: int, box: dict[str, Any] = UNIT, size: int = 3) -> FlowActor:
    """A flow far from the identity, narrow enough for a grid to resolve its density."""
    torch.manual_seed(seed)
    actor = FlowActor(nn.Linear(size, 8), 8, **box, num_cells=8)
    nn.init.normal_(actor.weight_out, std=0.3)
    nn.init.normal_(actor.bias_out, std=0.2)
    with torch.no_grad():
        actor.bias_out[:, : len(actor.low)] -= 0.5  # the log-scales
    return actor.double()


def states(count: int = 1) -> TensorDict:
    return TensorDict({"observation": torch.linspace(-1, 1, 3 * count).reshape(count, 3).double()}, [count])


LAYERS = [LatentActionTransform(flow(0, BOX)), LatentActionTransform(flow(1))]


def through(td: TensorDict, latent: Tensor) -> Tensor:
    for layer in reversed(LAYERS):
        latent, _ = layer.action(td, latent)
    return latent


def test_a_layer_and_its_inverse() -> None:
    td = states(5)
    h = torch.empty(5, 2, dtype=torch.float64).uniform_(-0.95, 0.95)
    action, log_det = LAYERS[0].action(td, h)
    back, same = LAYERS[0].latent(td, action)
    torch.testing.assert_close(back, h)
    torch.testing.assert_close(same, log_det)
    assert ((action > torch.tensor([-1.0, -2.0])) & (action < torch.tensor([1.0, 3.0]))).all()
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda x, i=i: LAYERS[0].action(td[i], x)[0], h[i])
        torch.testing.assert_close(jacobian.det().abs().log(), log_det[i])


def test_the_density_of_the_stack_integrates_to_one_and_is_that_of_its_samples() -> None:
    """Numerically: over a grid of the environment's box, and in boxes of it against 200 000 samples."""
    top, td, n, coarse = flow(2), states(), 600, 4
    axes = [torch.linspace(lo, hi, n + 1, dtype=torch.float64) for lo, hi in ((-1, 1), (-2, 3))]
    grid = torch.cartesian_prod(*[(axis[1:] + axis[:-1]) / 2 for axis in axes])
    cell = 2 * 5 / n**2
    with torch.no_grad():
        density = stacked_log_prob(td.expand(len(grid)), grid, top, LAYERS).exp() * cell
        sample = through(td.expand(200_000), top.get_dist(td.expand(200_000)).sample())
    assert abs(density.sum() - 1) < 2e-3
    mass = density.reshape(coarse, n // coarse, coarse, n // coarse).sum((1, 3))
    index = ((sample - torch.tensor([-1.0, -2.0])) / torch.tensor([2.0, 5.0]) * coarse).long().clamp(max=coarse - 1)
    share = (index[:, 0] * coarse + index[:, 1]).bincount(minlength=coarse**2).reshape(coarse, coarse) / len(sample)
    assert mass.max() < 0.9 and (mass > 0.05).sum() == 4  # it is neither a point nor uniform
    torch.testing.assert_close(share.double(), mass, rtol=0, atol=5e-3)


def test_a_fresh_flow_above_acts_as_the_flow_below() -> None:
    td = states(4)
    fresh = FlowActor(nn.Linear(3, 8), 8, **UNIT, num_cells=8).double()
    below = flow(0, BOX)
    action = below.get_dist(td).sample()
    expected = below.get_dist(td).log_prob(action)
    torch.testing.assert_close(stacked_log_prob(td, action, fresh, LAYERS[:1]), expected)
    assert not torch.allclose(stacked_log_prob(td, action, flow(2), LAYERS[:1]), expected)


def pendulum(seed: int = 0) -> tuple[EnvBase, FlowActor]:
    actor = flow(seed, {"low": [-2.0], "high": [2.0]}).float()
    return make_env(EnvSettings("pendulum"), num_envs=2).append_transform(LatentActionTransform(actor)), actor


def test_the_environment_gets_the_action_and_the_data_keep_the_latent() -> None:
    env, actor = pendulum()
    check_env_specs(env)
    twin = make_env(EnvSettings("pendulum"), num_envs=2)
    env.set_seed(3), twin.set_seed(3)
    start, other = env.reset(), twin.reset()
    h = torch.tensor([[0.9], [-0.2]])
    u, _ = actor.get_dist(start).before_squash(h.atanh())
    stepped = env.step(start.set("action", h))
    expected = twin.step(other.set("action", 2 * u.detach().tanh()))
    torch.testing.assert_close(stepped["next", "reward"], expected["next", "reward"])
    torch.testing.assert_close(stepped["action"], h)
    assert expected["next", "reward"].std() > 0


def test_two_layers_in_an_environment() -> None:
    env, _ = pendulum()
    stacked = env.append_transform(LatentActionTransform(flow(1, {"low": [-1.0], "high": [1.0]}).float()))
    assert stacked.rollout(3)["action"].abs().max() <= 1


@pytest.mark.parametrize("method", ["virel", "sac"])
def test_losses_train_on_top_and_the_flow_stays(method: str) -> None:
    env, _ = pendulum()
    layer = env.transform[-1]
    before = [p.clone() for p in layer.flow.parameters()]
    torch.manual_seed(0)
    actor = gaussian_actor(MLP(in_features=3, out_features=2, num_cells=[16]), low=[-1.0], high=[1.0])
    critics = [
        ValueOperator(MLP(in_features=4, out_features=1, num_cells=[16]), in_keys=["observation", "action"])
        for _ in range(2)
    ]
    loss = VIRELLoss(actor, critics) if method == "virel" else SACLoss(actor, critics, target_entropy=-1.0)
    loss.make_value_estimator(gamma=0.99)
    PolyakTargetUpdate(loss, rate=0.005)
    data = env.rollout(20, actor).reshape(-1)
    out = loss(data)
    sum(value for name, value in out.items() if name.startswith("loss")).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in actor.parameters())
    assert all(p.grad is None for p in layer.flow.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, layer.flow.parameters(), strict=True))


def test_the_flow_is_a_copy() -> None:
    actor = flow(0)
    layer = LatentActionTransform(actor)
    with torch.no_grad():
        actor.bias_out.add_(1.0)
    td, h = states(), torch.zeros(1, 2, dtype=torch.float64)
    assert not torch.allclose(layer.action(td, h)[0], LatentActionTransform(actor).action(td, h)[0])
    assert actor.bias_out.requires_grad and not layer.flow.bias_out.requires_grad


def test_what_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"flow must be a FlowActor, got Linear\."):
        LatentActionTransform(nn.Linear(2, 2))  # type: ignore[arg-type]

    def env(name: str) -> EnvBase:
        return make_env(EnvSettings(name), num_envs=2)

    wide = LatentActionTransform(flow(0, {"low": [-3.0], "high": [3.0]}))

    with pytest.raises(ValueError, match=r"flow must have the environment's action size 1, got 2\."):
        env("pendulum").append_transform(LatentActionTransform(flow(0))).action_spec  # noqa: B018
    with pytest.raises(ValueError, match=r"flow must act within the environment's bounds, got \[-3.0\] to \[3.0\] for"):
        env("pendulum").append_transform(wide).action_spec  # noqa: B018
    with pytest.raises(ValueError, match="action size no dimension, got 2|box of actions, got Categorical"):
        env("cartpole").append_transform(LatentActionTransform(flow(0))).action_spec  # noqa: B018
    with pytest.raises(KeyError, match="data must have 'observation', which the flow reads, got none"):
        LAYERS[1].inv(TensorDict({"action": torch.zeros(1, 2)}, [1]))


@pytest.mark.parametrize("bound", ["low", "high"])
def test_every_dimension_has_to_fit(bound: str) -> None:
    layer, box = LAYERS[0], {"low": LAYERS[0].flow.low.clone(), "high": LAYERS[0].flow.high.clone()}
    layer.transform_action_spec(Bounded(**box))
    box[bound][1] *= 0.5
    with pytest.raises(ValueError, match="flow must act within the environment's bounds"):
        layer.transform_action_spec(Bounded(**box))
