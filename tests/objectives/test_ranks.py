"""Two ranks of a process group with half of a batch each do what one process does with the whole.

Each is this file in a separate process, which takes a share of a batch through every loss of the contract's table and
those whose coefficients are learnt from the batch.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import critic_cases
import torch
from q_cases import ALL
from tensordict import TensorDict
from torch import Tensor
from torch import distributed as dist
from torchrl.data import Categorical
from torchrl.modules import QValueActor
from torchrl.objectives import LossModule

from torchrl_reg import objectives
from torchrl_reg.modules import PriorUpdate
from torchrl_reg.objectives import DiscreteVIRELLoss, MutualInformationDQNLoss, PolyakTargetUpdate, QLearningLoss
from torchrl_reg.objectives.heads import ImplicitQuantiles
from torchrl_reg.regularizers import ActionPrior, BellmanErrorCoefficient, DualCoefficient, Entropy

ROWS = 12
OTHERS: dict[str, Any] = {"m_iq": {"target_entropy": 2.0}, "trust_pcl": {"max_kl": 0.1}, "sac": {}}
OTHERS |= {"iq": {}, "soft_q": {}}
OTHERS |= {"virel": {"rate": 0.5}, "virel_em": {"rate": 0.5}}


def alike(*size: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """The same draws ``[count, D]`` for every row of a batch, in [0, 1); of flows the rows come after the count."""
    shape = size if isinstance(size[0], int) else tuple(size[0])
    drawn = (*shape[:-2], 1, shape[-1]) if shape[-2] in (ROWS, ROWS // 2) else shape[-2:]
    return torch.linspace(0.1, 0.9, math.prod(drawn), dtype=dtype).reshape(drawn).expand(shape)


def losses() -> Iterator[tuple[str, Any, TensorDict]]:
    """Each with another batch."""
    actors = [QValueActor(critic_cases.mlp(4, 3), spec=Categorical(3)) for _ in range(3)]
    dual = DualCoefficient(0.5, target=0.4, rises="below", name="tau")
    beta = BellmanErrorCoefficient(2.0, rate=0.5, inverse=True, high=1e9)
    prior = ActionPrior(3, probabilities=[0.6, 0.3, 0.1], beta=beta)
    for name, loss in {
        "dual": QLearningLoss(actors[0], regularizer=Entropy(dual)),
        "mirl, learnt": MutualInformationDQNLoss(actors[1], prior=prior),
        "virel_q, learnt": DiscreteVIRELLoss(actors[2], beta_scale=0.3, rate=0.5),
    }.items():
        PolyakTargetUpdate(loss.make_value_estimator(gamma=0.9), rate=0.5)
        yield name, loss, critic_cases.transitions(ROWS, 4, dtype=torch.float64)
    for name, kwargs in OTHERS.items():
        yield f"{name}, learnt", ALL[name].loss(**kwargs), ALL[name].batch(ROWS, dtype=torch.float64)
    for name, case in ALL.items():
        yield name, case.loss(), case.batch(ROWS, dtype=torch.float64)


def results(rank: int, world: int, masked: bool) -> dict[str, Tensor]:
    """Mean gradients over the ranks, coefficients and priors after an update; ``masked`` leaves unequal shares."""
    found: dict[str, Tensor] = {}
    torch.manual_seed(0)
    for name, loss, data in losses():
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        if masked:
            kept = torch.rand(data.shape) < torch.linspace(0.3, 1.0, ROWS).reshape(-1, *[1] * (data.ndim - 1))
            data["collector", "mask"] = kept.unsqueeze(-1)
        data = data.chunk(world)[rank].contiguous()
        loss.zero_grad()
        with mock.patch("torch.rand", alike), mock.patch("torch.randn", alike):
            out = loss(data)
        sum(term for key, term in out.items() if key.startswith("loss")).backward()
        if hasattr(loss, "observe"):
            loss.observe(out)
        if name == "mirl, learnt":
            data.names = [None, "time"]
            PriorUpdate(loss.prior, loss.value_network, rate=0.01)(data)
            found["mirl prior"] = loss.prior.log_prior.exp()
        found |= {f"{name} {key}": c.value for key, c in loss._coefficients().items()}
        for key, parameter in loss.named_parameters():
            if parameter.grad is None or (masked and "log_value" not in key):
                continue
            if world > 1:
                dist.all_reduce(parameter.grad)
            found[f"{name} {key}"] = parameter.grad / world
    return found


def test_no_loss_is_missing() -> None:
    public = {thing for name in objectives.__all__ if isinstance(thing := getattr(objectives, name), type)}
    assert {kind for kind in public if issubclass(kind, LossModule)} <= {type(loss) for _, loss, _ in losses()}


def test_gradients_and_coefficients_of_two_ranks_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    jobs = [(0, 1), (0, 2), (1, 2)]
    files = [tmp_path / f"{rank}_of_{world}.pt" for rank, world in jobs]
    words = [[*map(str, job), str(tmp_path / "store"), str(file)] for job, file in zip(jobs, files, strict=True)]
    children = [
        subprocess.Popen([sys.executable, __file__, *each], stderr=subprocess.PIPE, text=True) for each in words
    ]
    errors = [child.communicate(timeout=300)[1] for child in children]
    assert not any(child.returncode for child in children), errors[0] or errors[1]
    alone, *ranks = [torch.load(file) for file in files]
    for rank in ranks:
        for found, expected in zip(rank, alone, strict=True):
            assert found.keys() == expected.keys() and len(expected) > 10
            for name, tensor in expected.items():
                torch.testing.assert_close(
                    found[name], tensor, rtol=1e-9, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
                )


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    # Draws of a share are those of the whole: all the same.
    torch.normal = lambda mean, std, *size, **kwargs: mean + 0.3 * std
    torch.distributions.normal._standard_normal = lambda shape, **kwargs: torch.full(shape, 0.3, **kwargs)
    ImplicitQuantiles.fractions = lambda _, features, count: ((torch.arange(count) + 0.3) / count).expand(
        *features.shape[:-1], count
    )
    rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.save([results(rank, world, masked) for masked in (False, True)], out)
    if world > 1:
        dist.destroy_process_group()
