"""The path-consistency loss against its equation, and on sequences from TorchRL's slice sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.data.replay_buffers import SliceSampler

from torchrl_reg.modules import MulticategoricalActor
from torchrl_reg.objectives import PathConsistencyLoss, PolyakTargetUpdate

GAMMA, TAU, LAM, BINS = 0.9, 0.5, 0.3, (5, 5)


def logits_at(loss: Any, params: Any, observation: Tensor) -> Tensor:
    with params.to_module(loss.actor_network):
        return loss.actor_network.network(observation)


def log_pi_at(loss: Any, params: Any, row: Any) -> Tensor:
    parts = logits_at(loss, params, row["observation"]).split(list(loss.actor_network.bins.num_bins), -1)
    return sum(part.log_softmax(-1)[row["action_index"][d]] for d, part in enumerate(parts))  # type: ignore[return-value]


def value_at(name: str, loss: Any, observation: Tensor, lagged: bool = False) -> Tensor:
    if name == "trust_pcl_unified":
        parts = logits_at(loss, loss.actor_network_params, observation).split(list(BINS), -1)
        return (TAU + loss.lam) * sum(part.logsumexp(-1) for part in parts)
    params = loss.target_value_network_params if lagged else loss.value_network_params
    with params.to_module(loss.value_network):
        return loss.value_network.module(observation).squeeze(-1)


def slow(name: str, case: Any, loss: Any, data: Any, mask: Tensor | None = None) -> Tensor:
    """Each step's loss [B, T], sub-trajectory by sub-trajectory."""
    lam, delayed = case.kwargs["lam"], bool(case.kwargs.get("delay_value"))
    total = []
    for b in range(data.shape[0]):
        for t in range(data.shape[1]):
            squares, gain = [], 0.0
            for n in range(1, loss.rollout + 1):
                i = t + n - 1
                if i >= data.shape[1] or (n > 1 and data[b, i - 1]["next", "done"]):
                    break
                if mask is not None and not mask[b, i]:
                    break
                row = data[b, i]
                log_pi = log_pi_at(loss, loss.actor_network_params, row)
                log_mu = log_pi_at(loss, loss.target_actor_network_params, row).detach()
                gain = gain + GAMMA ** (n - 1) * (
                    row["next", "reward"].squeeze() - TAU * log_pi - lam * (log_pi - log_mu)
                )
                end = value_at(name, loss, row["next", "observation"], lagged=delayed)
                end = (end.detach() if delayed else end) * float(not row["next", "terminated"])
                squares.append((gain + GAMMA**n * end - value_at(name, loss, data[b, t]["observation"])).square())
            total.append(0.5 * sum(squares) / len(squares) if squares else torch.zeros((), dtype=torch.float64))
    return torch.stack(total).reshape(data.shape)


@pytest.mark.parametrize("name", ["pcl", "trust_pcl", "trust_pcl_delayed", "trust_pcl_unified"])
@pytest.mark.parametrize("rows", [1, 4])
def test_loss_is_the_equation(cases: Any, name: str, rows: int) -> None:
    case = cases[name]
    loss = case.loss().double()
    data = case.batch(rows, dtype=torch.float64)
    expected = slow(name, case, loss, data)
    gradients = torch.autograd.grad(expected.mean(), list(loss.parameters()))
    out = loss(data)
    torch.testing.assert_close(out["loss"], expected.mean(), rtol=0, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(out["loss"], list(loss.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(data["td_error"].squeeze(-1), expected.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["trust_pcl", "trust_pcl_delayed", "trust_pcl_unified"])
def test_no_sub_trajectory_crosses_a_masked_step(cases: Any, name: str) -> None:
    case = cases[name]
    loss, data = case.loss().double(), case.batch(6, dtype=torch.float64)
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    expected = slow(name, case, loss, data, mask)
    gradients = torch.autograd.grad(expected.sum() / mask.sum(), list(loss.parameters()))
    data["collector", "mask"] = mask.unsqueeze(-1)
    for key in ("observation", ("next", "observation"), ("next", "reward")):
        data[key][~mask] = torch.nan
    out = loss(data)
    torch.testing.assert_close(out["loss"], expected.sum() / mask.sum(), rtol=0, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(out["loss"], list(loss.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


class Normalizer(torch.nn.Module):
    """``scale sum_d logsumexp(logits_d)`` of a network of bins."""

    def __init__(self, network: torch.nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, observation: Tensor) -> Tensor:
        parts = self.network(observation).split(list(BINS), -1)
        return self.scale * sum(part.logsumexp(-1, keepdim=True) for part in parts)  # type: ignore[return-value]


def test_the_unified_form_is_a_pair_of_networks_that_share_their_weights(cases: Any) -> None:
    from torchrl.modules import ValueOperator

    case = cases["trust_pcl_unified"]
    unified = case.loss().double()
    actor, twin = case.networks()[0], case.networks()[0]
    value = ValueOperator(Normalizer(twin.network, TAU + LAM), in_keys=["observation"])
    pair = PathConsistencyLoss(actor, value, **case.kwargs).make_value_estimator(gamma=GAMMA)
    PolyakTargetUpdate(pair, rate=0.5)
    pair.double()
    pair.target_actor_network_params.data.update_(unified.target_actor_network_params.data)
    data = case.batch(4, dtype=torch.float64)
    one, two = unified(data)["loss"], pair(data)["loss"]
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    ours = torch.autograd.grad(one, list(unified.parameters()))
    actor_part = torch.autograd.grad(two, list(pair.actor_network.parameters()), retain_graph=True)
    value_part = torch.autograd.grad(two, list(pair.value_network.parameters()))
    for whole, first, second in zip(ours, actor_part, value_part, strict=True):
        torch.testing.assert_close(whole, first + second, rtol=0, atol=1e-12)


def test_diagnostics_are_those_of_the_batch(cases: Any) -> None:
    case = cases["trust_pcl"]
    loss, data = case.loss().double(), case.batch(6, dtype=torch.float64)
    out = loss(data)
    tables = []
    for params in (loss.actor_network_params, loss.target_actor_network_params):
        logits = logits_at(loss, params, data["observation"]).detach().unflatten(-1, (2, 5))
        tables.append(logits.log_softmax(-1))
    online, mu = tables
    chosen = online.gather(-1, data["action_index"].unsqueeze(-1)).sum((-2, -1))
    want = {
        "kl": (online.exp() * (online - mu)).sum((-2, -1)).mean(),
        "entropy": -(online.exp() * online).sum((-2, -1)).mean(),
        "log_pi": chosen.mean(),
        "lam": torch.tensor(LAM),
        "tau": torch.tensor(TAU),
    }
    one_step = case.loss(rollout=1).double()(data)
    torch.testing.assert_close(out["td_error"], one_step["td_error"])
    torch.testing.assert_close(one_step["td_error"], one_step["path_error"])
    assert out["path_error"] != out["td_error"]
    for name, value in want.items():
        torch.testing.assert_close(out[name].double(), value.double(), rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("key", ["traj_key", "end_key"])
def test_slices_of_a_replay_buffer(key: str, value_network: Any) -> None:
    """Sampled flat, reshaped to [-1, T]: every slice lies in one episode, and the loss is that of the sequences."""
    actor = MulticategoricalActor(torch.nn.Linear(4, 10), low=[-1.0] * 2, high=[1.0] * 2, num_bins=5)
    lengths, steps = [4, 7, 3, 9, 12], 35
    torch.manual_seed(0)
    episode = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths))
    done = torch.zeros(steps, 1, dtype=torch.bool)
    done[torch.tensor(lengths).cumsum(0) - 1] = True
    ends = {"done": done, "terminated": done & (episode.unsqueeze(-1) % 2 == 0), "reward": torch.randn(steps, 1)}
    data = TensorDict(
        {
            "observation": torch.randn(steps, 4),
            "episode": episode,
            "time": torch.arange(steps),
            "next": {"observation": torch.randn(steps, 4), **ends},
        },
        [steps],
    )
    data["next", "truncated"] = done & ~data["next", "terminated"]
    with torch.no_grad():
        actor(data)
    where = {"traj_key": "episode"} if key == "traj_key" else {"end_key": ("next", "done")}
    sampler = SliceSampler(slice_len=4, strict_length=True, **where)
    buffer = ReplayBuffer(storage=LazyTensorStorage(steps), sampler=sampler, batch_size=64)
    buffer.extend(data)
    slices = buffer.sample().reshape(-1, 4)
    assert slices.shape == (16, 4)
    assert (slices["time"].diff(dim=-1) == 1).all() and (slices["episode"] == slices["episode"][:, :1]).all()
    assert 2 not in slices["episode"] and len(slices["episode"].unique()) > 2
    loss = PathConsistencyLoss(actor, value_network(), tau=TAU, lam=LAM, rollout=4, reduction="none")
    loss.make_value_estimator(gamma=GAMMA)
    PolyakTargetUpdate(loss, rate=0.5)
    got = loss(slices)["loss"]
    stacked = torch.stack([data[i : i + 4] for i in slices["time"][:, 0].tolist()])
    stacked["next", "truncated"] |= False
    # The sampler marks the last step of a slice as truncated: it is bootstrapped there, as a window that ends is.
    torch.testing.assert_close(got, loss(stacked)["loss"])
    assert slices["next", "terminated"].any() and not slices["next", "terminated"].all(0).any()
    flat = buffer.sample()
    loss.rollout = 100
    with pytest.raises(ValueError, match=r"rollout=100 needs sequences .*got batch size \[64\].*reshape"):
        loss(flat)
