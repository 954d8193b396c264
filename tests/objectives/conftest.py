"""Losses over a small Q-network, and a batch with off-greedy actions, terminal and truncated rows."""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

sys.path.insert(0, str(Path(__file__).parent))  # the tables of losses and parameter_sets, here and in the rooms below

import critic_cases
from q_cases import ALL, CASES, LossCase


@pytest.fixture(params=list(ALL))
def any_case(request: pytest.FixtureRequest) -> Any:
    return ALL[request.param]


@pytest.fixture
def all_cases() -> dict[str, Any]:
    return ALL


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> LossCase:
    return CASES[request.param]


@pytest.fixture
def cases() -> dict[str, LossCase]:
    return CASES


@pytest.fixture
def batch() -> Callable[..., TensorDict]:
    return critic_cases.transitions


GOLDEN = Path(__file__).with_name("golden.json")


def fingerprint(loss: Any, data: Any, seed: int = 11) -> dict[str, Any]:
    """Results of one call of a float64 loss: scalars, priorities, gradients projected on four directions."""
    loss.zero_grad()
    torch.manual_seed(seed)
    out = loss(data)
    terms = [value for name, value in out.items() if name.startswith("loss")]
    sum(term.sum() for term in terms).backward()
    gradients: dict[str, list[float]] = {}
    networks = {name: getattr(loss, f"{name}_params").flatten_keys(".") for name in loss._network_names}
    if getattr(loss, "prior_network", None) is not None:
        networks["prior_network"] = dict(loss.prior_network.named_parameters())
    for name, flat in networks.items():
        for key in sorted(flat.keys()):
            gradient = getattr(flat.get(key), "grad", None)
            if gradient is not None:
                generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
                views = torch.randn(4, gradient.numel(), generator=generator, dtype=torch.float64)
                gradients[f"{name}.{key}"] = (views @ gradient.flatten().double()).tolist()
    return {
        "scalars": {name: value.detach().double().flatten().tolist() for name, value in sorted(out.items())},
        "priority": data["td_error"].flatten().tolist(),
        "gradients": gradients,
    }


def _tensors(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _tensors(values) for key, values in found.items()}
    return torch.as_tensor(found, dtype=torch.float64)


@pytest.fixture(scope="session")
def golden() -> Iterator[Callable[..., None]]:
    """Compares a loss's fingerprint with the recorded one (``RECORD_GOLDEN=1`` records instead), in float64."""
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    recording = os.environ.get("RECORD_GOLDEN") == "1"

    def check(name: str, loss: Any, data: Any) -> None:
        found = fingerprint(loss, data)
        if recording:
            recorded[name] = found
            return
        expected = recorded[name]
        # Rows that do not count have priority 0; when this was recorded, what their network said by itself.
        mask = data.get(("collector", "mask"), torch.ones_like(data["td_error"], dtype=torch.bool)).flatten()
        expected["priority"] = torch.where(mask, torch.tensor(expected["priority"], dtype=torch.float64), 0.0)
        for part in ("scalars", "gradients", "priority"):
            torch.testing.assert_close(_tensors(found[part]), _tensors(expected[part]), rtol=1e-12, atol=1e-12)

    yield check
    if recording:
        rows = [f"{json.dumps(name)}: {json.dumps(recorded[name])}" for name in sorted(recorded)]
        GOLDEN.write_text("{\n" + ",\n".join(rows) + "\n}\n")
