"""The tanh-normal actor."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import nn
from torchrl.modules import TanhNormal

from torchrl_reg.modules import gaussian_actor


def test_gaussian_log_prob_is_finite_on_the_bounds() -> None:
    actor = gaussian_actor(nn.Linear(4, 4), low=[-2.3, -1.0], high=[0.7, 1.0])
    dist = actor.get_dist(TensorDict({"observation": torch.randn(4)}, []))
    assert isinstance(dist, TanhNormal)
    log_prob = dist.log_prob(torch.tensor([[-2.3, -1.0], [0.7, 1.0], [0.7, -1.0]]))
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert all(p.grad.isfinite().all() for p in actor.parameters())


def test_gaussian_keeps_its_bounds_and_follows_its_network() -> None:
    actor = gaussian_actor(nn.Linear(4, 4), low=[-2.3, -1.0], high=[0.7, 1.0])
    data = TensorDict({"observation": torch.randn(5, 4)}, [5])
    with torch.inference_mode():  # what is made here has no gradient later
        actor(data)
    for rows in (data, data, data[:1], data.double()):
        actor.to(rows["observation"].dtype)
        dist, (loc, scale) = actor.get_dist(rows), actor.module[0](rows.clone()).select("loc", "scale").values()
        low, high = (torch.tensor(bound, dtype=loc.dtype) for bound in ([-2.3, -1.0], [0.7, 1.0]))
        plain = TanhNormal(loc, scale, low=low, high=high)
        torch.manual_seed(0)
        sample = dist.sample()
        torch.manual_seed(0)
        torch.testing.assert_close(sample, plain.sample(), rtol=0, atol=0)
        torch.testing.assert_close(dist.log_prob(sample), plain.log_prob(sample), rtol=0, atol=0)
        dist.rsample().sum().backward()
        assert not sample.requires_grad


def test_gaussian_keys_and_scales() -> None:
    actor = gaussian_actor(nn.Linear(4, 4), low=-1.0, high=1.0, in_keys=["x"], scale_lb=0.3)
    td = actor(TensorDict({"x": 1e3 * torch.randn(50, 4)}, [50]))
    assert actor.stored_action_key == "action"
    assert {"action", "action_log_prob", "loc", "scale"} <= set(td.keys())
    assert td["scale"].min() == torch.tensor(0.3) and td["action"].abs().max() <= 1


def test_gaussian_compiles_in_one_graph() -> None:
    actor = gaussian_actor(nn.Linear(4, 4), low=[-2.3, -1.0], high=[0.7, 1.0])

    def both(td: TensorDict, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return actor(td)["action"], actor.get_dist(td).log_prob(action)

    td, replayed = TensorDict({"observation": torch.randn(5, 4)}, [5]), torch.zeros(5, 2)
    action, log_prob = torch.compile(both, fullgraph=True, backend="eager")(td, replayed)
    dist = actor.get_dist(td)
    torch.testing.assert_close(log_prob, dist.log_prob(replayed))
    torch.testing.assert_close(td["action_log_prob"], dist.log_prob(action), rtol=0, atol=0.01)


def test_the_box_is_exact_in_float64_and_of_the_networks_dtype() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        network = nn.Linear(4, 2).to(dtype)
        network.bias.data[0] = 1e4  # every action at the upper bound
        data = TensorDict({"observation": torch.zeros(3, 4, dtype=dtype)}, [3])
        actor = gaussian_actor(network, low=[-0.2], high=[0.1])
        dist = actor.get_dist(data)
        assert dist.high.item() == torch.tensor(0.1, dtype=dtype).item() and dist.high.dtype == dtype
        out = actor(data.clone())
        assert out["action"].dtype == dtype and (out["action"].double() - 0.1).abs().max() < 2 * torch.finfo(dtype).eps
