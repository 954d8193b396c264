"""Whether tau suits the rewards of a run."""

from __future__ import annotations

import json
import math

import pytest

from torchrl_reg.lab.doctor.records import read_config
from torchrl_reg.lab.doctor.temperature import largest_entropy, temperature_finding


def _folder(path, entropies, *, config="env: {name: cartpole}\nalgo: {tau: 0.5}\n", **columns):
    path.mkdir()
    (path / "config.yaml").write_text(config)
    rows = [{"event": "train", "frames": 8 * i, "entropy": value, **columns} for i, value in enumerate(entropies)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"event": "tra')
    return path


def _tau(folder):
    return temperature_finding(folder, read_config(folder / "config.yaml"))


@pytest.mark.parametrize(
    ("entropies", "status", "shown"),
    [
        ([0.69, 0.690, 0.6869], "warn", "99.5%, 99.5%, 99.1% of ln 2 = 0.693"),
        ([0.69, 0.3, 0.0001], "warn", "99.5%, 43.3%, 0.0% of ln 2"),
        ([0.69, 0.3, 0.07], "ok", "99.5%, 43.3%, 10.1% of ln 2"),
    ],
)
def test_entropy_as_a_share_of_ln_a(tmp_path, entropies, status, shown):
    found = _tau(_folder(tmp_path / "run", entropies, tau=0.5, action_gap=2.0))
    assert found.status == status
    assert shown in found.detail and "tau=0.5" in found.detail and "action gap / tau = 4" in found.detail
    assert ("uniform" in found.todo) == (entropies[-1] > 0.6)
    assert ("greedy" in found.todo) == (entropies[-1] < 0.01)


def test_ln_a_over_bins_is_d_ln_k():
    config = {"env": {"name": "pendulum"}, "policy": {"name": "multicategorical", "num_bins": 7}}
    largest, symbol = largest_entropy(config)
    assert symbol == "1 ln 7" and largest == pytest.approx(math.log(7))


@pytest.mark.parametrize(
    ("entropies", "name", "status", "detail"),
    [
        ([], "cartpole", "warn", "no training row yet"),
        ([None, None], "cartpole", "ok", "this method reports no entropy: nothing to judge"),
        ([0.5], "chess", "warn", "got 'chess'"),
    ],
)
def test_what_cannot_be_judged(tmp_path, entropies, name, status, detail):
    found = _tau(_folder(tmp_path / "run", entropies, config=f"env: {{name: {name}}}\n"))
    assert found.status == status and detail in found.detail
