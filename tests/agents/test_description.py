"""Descriptions of policies, read from anybody's files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.agents import AgentError, read_policy, save_policy
from torchrl_reg.agents.description import built
from torchrl_reg.modules.rebuilding import Spaces
from torchrl_reg.training.cli.building import build

NETWORK = """
from torch import nn

class Network(nn.Linear):
    def __init__(self, spaces):
        super().__init__(spaces.observations["observation"][0][0], spaces.num_actions)
"""


@pytest.mark.parametrize("trusted", [[], ["os:system"]])
def test_no_file_has_a_command_run(tmp_path: Path, trusted: list[str]) -> None:
    """Not even one in a forged run folder, whose configuration names what may be imported."""
    said = {"call": "os:system", "args": [f"touch {tmp_path / 'run'}"], "kwargs": {}}
    with pytest.raises(ValueError, match="must name what says that a file may name it"):
        built(said, trusted=trusted)
    assert not (tmp_path / "run").exists()


def test_a_network_of_ones_own_is_imported_where_the_runs_configuration_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "network_of_test.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    spaces = Spaces({"observation": [[4], "float32"]}, 2, [], [])
    network = build({"path": "network_of_test:Network"}, "net", spaces)
    save_policy(tmp_path / "policy.safetensors", QValueActor(network, spec=Categorical(2)))
    monkeypatch.delitem(sys.modules, "network_of_test")
    with pytest.raises(AgentError, match="call must name what is imported before"):
        read_policy(tmp_path)
    (tmp_path / "provenance.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("net:\n  path: network_of_test:Network\n")
    for _ in range(2):
        loaded = read_policy(tmp_path)
        assert loaded.spaces == spaces and torch.equal(loaded.policy.module[0].module.weight, network.weight)
        save_policy(tmp_path / "policy.safetensors", loaded.policy)  # it can be saved again
