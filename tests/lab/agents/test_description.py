"""Descriptions of policies, read from untrusted files."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.lab.agents import description, load_policy, read_policy, save_policy
from torchrl_reg.lab.agents.description import Untrusted, rebuild, trusted_module
from torchrl_reg.lab.cli.objects import build
from torchrl_reg.lab.commands.main import main
from torchrl_reg.lab.errors import UserError
from torchrl_reg.modules import NetSettings, q_network
from torchrl_reg.modules.rebuilding import Spaces

SPACES = Spaces({"observation": [[4], "float32"]}, 2, [], [])
NETWORK = """
from torch import nn

class Network(nn.Linear):
    def __init__(self, spaces):
        super().__init__(spaces.observations["observation"][0][0], spaces.num_actions)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a user's network, whose module can be imported but is not."""
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "network_of_test.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = build({"_target_": "network_of_test.Network"}, SPACES)
    save_policy(folder / "policy.safetensors", QValueActor(network, spec=Categorical(2)))
    (folder / "provenance.json").write_text("{}")
    (folder / "config.yaml").write_text("net:\n  _target_: network_of_test.Network\n# network_of_test:Network\n")
    monkeypatch.delitem(sys.modules, "network_of_test")
    return folder


@pytest.mark.parametrize("trust", [[], ["os"]])
def test_no_file_has_a_command_run(tmp_path: Path, trust: list[str]) -> None:
    """Not even from a trusted module: only networks are built."""
    said = {"call": "os:system", "args": [f"touch {tmp_path / 'run'}"], "kwargs": {}}
    with pytest.raises(
        ValueError, match="must name a class or function marked by torchrl_reg.modules.rebuilding.rebuildable"
    ):
        rebuild(said, trust=trust)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evaluate", "play", "export"])
def test_a_folder_has_nothing_imported_that_the_caller_does_not_name(folder, command, capsys, monkeypatch) -> None:
    """Names in its config.yaml are not imported either."""
    more = [str(folder.parent / "exported")] * (command == "export")
    monkeypatch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
    with pytest.raises(UserError, match=r"names the module 'network_of_test'.*load_policy\(..., trust=\['network_of"):
        load_policy(folder)
    with pytest.raises(Untrusted, match="names the module 'network_of_test'"):
        trusted_module("network_of_test", ["os", "network", "network_of_test.below"])
    assert main([command, str(folder), *more]) == 1
    assert "--trust network_of_test" in capsys.readouterr().err and "network_of_test" not in sys.modules


class Refusing:
    """Fails when the module is looked up."""

    def find_spec(self, name: str, *_: object) -> None:
        assert name != "network_of_test"


def test_what_the_caller_trusts_is_imported(folder: Path, tmp_path: Path) -> None:
    assert trusted_module("os.path", ["os"]) is os.path
    for trust in (["network_of_test"], ("os", "network_of_test")):
        loaded = read_policy(folder, trust=trust)
        assert loaded.spaces == SPACES and type(loaded.policy.module[0].module).__name__ == "Network"
        facts = {"env": {"name": "cartpole"}, "run": {"seed": 4}}
        save_policy(folder / "policy.safetensors", loaded.policy, facts)  # it can be saved again
    played = ["play", "--max-steps", "2", "--out", str(tmp_path / "episode.gif")]
    for command, *more in (["evaluate", "--episodes", "1"], played, ["export", str(tmp_path / "exported")]):
        sys.modules.pop("network_of_test", None)
        assert main([command, str(folder), *more, "--trust", "network_of_test"]) == 0
    with pytest.raises(UserError, match=r"or a module of trust=\['network_of_test'\] \(--trust network_of_test\)"):
        load_policy(folder)  # imported by now, but the class does not say that a file may name it


@pytest.mark.parametrize("trust", ["network_of_test", [3], ["no_such_module"]])
def test_trust_is_a_list_of_modules(folder: Path, trust: Any) -> None:
    with pytest.raises(UserError, match="trust (must be a list of modules|names .* cannot be imported)"):
        load_policy(folder, trust=trust)


def test_a_module_that_imports_what_it_is_asked_for_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy, asked = types.ModuleType("lazy_module_of_test"), []
    lazy.__getattr__ = asked.append  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, lazy.__name__, lazy)
    with pytest.raises(ValueError, match="call must name an attribute of its module"):
        rebuild({"call": "lazy_module_of_test:Network", "args": [], "kwargs": {}})
    assert "Network" not in asked


@pytest.mark.parametrize(
    "n, said", [(10**10, "at most 1,000,000, got 10,000,000,000"), (3, "between 2 actions, got 3")]
)
def test_a_choice_is_between_the_actions_of_the_environment(tmp_path: Path, n: int, said: str, monkeypatch) -> None:
    network = q_network(NetSettings(num_cells=[3]), SPACES)
    with monkeypatch.context() as patch:
        patch.setattr(description, "_MAX_INTEGER", 10**11)
        save_policy(tmp_path / "p", QValueActor(network, spec=Categorical(n)))
    with pytest.raises(UserError, match=said):
        load_policy(tmp_path / "p")
