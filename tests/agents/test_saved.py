"""A policy comes back bit by bit, or is refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.data import Categorical
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule, QValueActor

import torchrl_reg
from torchrl_reg.agents import AgentError, load_policy, read_policy, save_policy
from torchrl_reg.agents.saved import encoded, read
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import (
    ActionPrior,
    BoltzmannQActor,
    NetSettings,
    PolicySettings,
    PriorEGreedyModule,
    QuantileQActor,
    policy,
    prior_network,
    q_network,
    quantile_network,
)

SMALL = NetSettings(num_cells=[8, 6], num_policy_quantiles=5, input_low=[-2.0] * 4, input_high=[3.0] * 4)


SPEC = Categorical(2)


def q_actor() -> Any:
    return QValueActor(q_network(SMALL, make_env(EnvSettings("cartpole"), num_envs=2)), spec=SPEC)


def epsilon_greedy() -> nn.Module:
    return TensorDictSequential(q_actor(), EGreedyModule(SPEC, eps_init=0.4, eps_end=0.4))


def boltzmann() -> nn.Module:
    return BoltzmannQActor(q_actor(), tau=0.3)


def quantiles() -> nn.Module:
    network = quantile_network(SMALL, make_env(EnvSettings("cartpole"), num_envs=2))
    return BoltzmannQActor(QuantileQActor(network, spec=SPEC, num_quantiles=5), tau=0.3)


def state_prior() -> nn.Module:
    network = prior_network(SMALL, make_env(EnvSettings("cartpole"), num_envs=2), ["observation"])
    nn.init.normal_(network.module.network[-1].weight)
    prior = ActionPrior(2, probabilities=[0.9, 0.1], beta=0.4, floor=1e-3)
    exploration = PriorEGreedyModule(SPEC, prior, eps_init=0.6, log_prior_key="log_prior")
    return TensorDictSequential(q_actor(), network, exploration)


def continuous(name: str) -> nn.Module:
    settings = PolicySettings(name, num_cells=[8, 6], num_bins=5, flow_cells=4, head_cells=4)
    return policy(settings, make_env(EnvSettings("pendulum"), num_envs=2))


POLICIES = {
    "epsilon_greedy": epsilon_greedy,
    "boltzmann": boltzmann,
    "prior": lambda: BoltzmannQActor(q_actor(), prior=ActionPrior(2, probabilities=[0.8, 0.2], beta=0.7)),
    "quantiles": quantiles,
    "state_prior": state_prior,
    **{name: lambda name=name: continuous(name) for name in ("multicategorical", "autoregressive", "flow", "gaussian")},
}


def acted(module: Any, kind: ExplorationType, batch: int = 64) -> TensorDict:
    torch.manual_seed(3)
    width = 4 if "action_value" in module.out_keys else 3
    observed = TensorDict({"observation": torch.randn(batch, width)}, [batch])
    with set_exploration_type(kind), torch.no_grad():
        return module(observed)


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("name", POLICIES)
def test_what_comes_back_acts_alike_bit_by_bit(name: str, batch: int, tmp_path: Path) -> None:
    before = POLICIES[name]()
    save_policy(tmp_path / "policy.safetensors", before)
    loaded = load_policy(tmp_path)
    for key, tensor in before.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
        assert loaded.state_dict()[key].dtype == tensor.dtype
    for kind in (ExplorationType.DETERMINISTIC, ExplorationType.RANDOM):
        there, here = acted(before, kind, batch), acted(loaded, kind, batch)
        assert set(there.keys()) == set(here.keys())
        assert all(torch.equal(there[key], here[key]) for key in set(there.keys()))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_saving_and_loading_draw_no_random_numbers(tmp_path: Path) -> None:
    before = boltzmann()
    torch.manual_seed(1)
    save_policy(tmp_path / "policy.safetensors", before)
    load_policy(tmp_path)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))


def test_a_module_that_could_not_be_built_again_is_refused(tmp_path: Path) -> None:
    own = TensorDictModule(nn.Linear(4, 2), ["observation"], ["action"])
    with pytest.raises(AgentError, match="^policy must be made of this package's networks and actors, got no desc.*"):
        save_policy(tmp_path / "policy.safetensors", own)
    actor = QValueActor(nn.Linear(4, 2), spec=SPEC)
    with pytest.raises(AgentError, match="no description of Linear"):
        save_policy(tmp_path / "policy.safetensors", actor)
    changed = q_actor()
    changed.module[0].module.append(nn.Linear(2, 2))
    with pytest.raises(AgentError, match="gives other weights"):
        save_policy(tmp_path / "policy.safetensors", changed)


def test_buffers_of_training_alone_are_left_out(tmp_path: Path) -> None:
    before = boltzmann()
    before.register_buffer("running_error", torch.ones(2))
    save_policy(tmp_path / "policy.safetensors", before)
    assert "running_error" not in read(tmp_path / "policy.safetensors")[0]
    assert "running_error" in before.state_dict()
    load_policy(tmp_path)


def saved(tmp_path: Path, **facts: Any) -> Path:
    save_policy(tmp_path / "policy.safetensors", boltzmann(), facts)
    return tmp_path / "policy.safetensors"


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def refused(path: Path) -> str:
    with pytest.raises(AgentError) as caught:
        load_policy(path)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and str(path.parent if path.is_file() else path) in text
    return text


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    for position in (-1, -200, 3, 20, 400):
        path.write_bytes(whole)
        flip(path, position)
        assert "damaged" in refused(path) or "format" in refused(path)
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "damaged" in refused(path)
    path.write_bytes(whole + b"x")
    assert "damaged" in refused(path)
    path.write_bytes(whole)
    load_policy(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = boltzmann()
    with torch.no_grad():
        next(policy.parameters())[0, 1] = value
    with pytest.raises(AgentError, match=rf"^policy must have finite weights, got {value} in .*weight\.$"):
        save_policy(tmp_path / "policy.safetensors", policy)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr("torchrl_reg.agents.saved.check_finite", lambda *_: None)
        save_policy(tmp_path / "policy.safetensors", policy)
    assert f"must have finite weights, got {value} in " in refused(tmp_path / "policy.safetensors")


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    assert "with a policy.safetensors in it, got none" in refused(tmp_path)
    assert "got none" in refused(tmp_path / "nowhere")
    (tmp_path / "policy.safetensors").write_bytes(encoded({"w": torch.zeros(2)}, {"format": "pt"}))
    assert "must be of format 'torchrl_reg policy 2', got 'pt'" in refused(tmp_path)


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The file with other content under a checksum that fits."""
    tensors, metadata, data = read(path)
    said = json.loads(metadata["content"])
    said = change(said) or said
    text = said if isinstance(said, str) else json.dumps(said)
    digest = hashlib.sha256(text.encode() + data).hexdigest()
    path.write_bytes(encoded(tensors, {**metadata, "content": text, "sha256": digest}))


def network(said: dict[str, Any]) -> dict[str, Any]:
    return actor(said)["args"][0]


def actor(said: dict[str, Any]) -> dict[str, Any]:
    return said["policy"]["args"][0]


def spaces(said: dict[str, Any]) -> dict[str, Any]:
    return network(said)["args"][1]["settings"]


def settings(said: dict[str, Any]) -> dict[str, Any]:
    return network(said)["args"][0]["settings"]


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "deep": lambda said: "[" * 100_000 + "]" * 100_000,
    "deep in a part": lambda said: said | {"facts": {"run": json.loads("[" * 900 + "]" * 900)}},
    "a list": lambda said: [said],
    "no facts": lambda said: said.pop("facts") and None,
    "facts a list": lambda said: said | {"facts": [1]},
    "env a list": lambda said: said | {"facts": {"env": [1]}},
    "seed a text": lambda said: said | {"facts": {"run": {"seed": "x"}}},
    "no policy": lambda said: {"facts": {}},
    "policy a list": lambda said: said | {"policy": [said["policy"]]},
    "no call": lambda said: said["policy"].pop("call") and None,
    "call a list": lambda said: said["policy"].update(call=[]),
    "no network": lambda said: actor(said)["args"].clear(),
    "no builder": lambda said: network(said).pop("call") and None,
    "settings a list": lambda said: network(said)["args"][0].update(settings=[]),
    "no spaces": lambda said: network(said)["args"].pop() and None,
    "dtype load": lambda said: spaces(said).update(observations={"observation": [[4], "load"]}),
    "shape of another": lambda said: spaces(said).update(observations={"observation": [[3], "float32"]}),
    "shape negative": lambda said: spaces(said).update(observations={"observation": [[-4], "float32"]}),
    "no actions": lambda said: spaces(said).update(num_actions=0),
    "other actions": lambda said: spaces(said).update(num_actions=3),
    "actions a text": lambda said: spaces(said).update(num_actions="2"),
    "wide layers": lambda said: settings(said).update(num_cells=[20_000, 20_000]),
    "endless layers": lambda said: settings(said).update(num_cells=[10**12]),
    "a function of Python's": lambda said: said["policy"].update(call="os:system", args=["true"], kwargs={}),
    "a function of ours": lambda said: network(said).update(call="torchrl_reg.training.run.files:write_atomically"),
    "a part of a module": lambda said: network(said).update(call="torch:nn.Linear", args=[1, 1]),
    "a spec of another kind": lambda said: actor(said)["kwargs"].update(spec={"spec": "Composite", "n": 2}),
    "name of another": lambda said: settings(said).update(name="\x1b[31m"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_content_under_a_valid_checksum_is_one_sentence_in_bounded_memory(
    change: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    path = saved(tmp_path)
    rewritten(path, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refused(path).isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def one(start: int, end: int, shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        header(a=one(0, 8, [2]), b=one(4, 12, [2])) + bytes(12),  # overlapping
        header(a=one(0, 8, [1 << 62, 4])) + bytes(8),
        header(a={"dtype": "load", "shape": [2], "data_offsets": [0, 8]}) + bytes(8),
        (10**6).to_bytes(8, "little") + b"[" * 10**6,
        (1 << 63).to_bytes(8, "little"),
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_tensors_that_do_not_tile_the_file_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "policy.safetensors").write_bytes(content)
    assert "is damaged or no safetensors file" in refused(tmp_path / "policy.safetensors")


def test_a_sparse_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "policy.safetensors").open("wb") as file:
        file.truncate(6 << 30)
    assert "must be at most 1 GiB, got 6,442,450,944 bytes" in refused(tmp_path / "policy.safetensors")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.safetensors").symlink_to("policy.safetensors")
    refused(tmp_path)
    (tmp_path / "policy.safetensors").unlink()
    os.mkfifo(tmp_path / "policy.safetensors")
    refused(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "loop")
    path = tmp_path / "pipe_as_done"
    path.mkdir()
    saved(path, evaluation={"frames": 1})
    os.mkfifo(path / "done.json")
    load_policy(path)


@pytest.mark.parametrize("place", ["", "module.0", "module.0.module.0.module.1", "module.1"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_hooks_would_be_lost_and_are_refused(place: str, kind: str, tmp_path: Path) -> None:
    policy = epsilon_greedy()
    getattr(policy.get_submodule(place), f"register_{kind}_hook")(lambda *_: None)
    with pytest.raises(AgentError, match="got hooks on a [A-Z]"):
        save_policy(tmp_path / "policy.safetensors", policy)


def test_another_runs_policy_is_refused(tmp_path: Path) -> None:
    row = {"event": "eval", "frames": 192, "return_greedy_mean": 12.5, "return_sampled_mean": None}
    path = saved(tmp_path, evaluation=row)
    done = {"frames": 192, "evaluation": {**row, "eval_seconds": 1.0, "return_sampled_mean": float("nan")}}
    (tmp_path / "done.json").write_text(json.dumps(done))
    assert read_policy(tmp_path).facts["evaluation"] == row
    done["evaluation"]["return_greedy_mean"] = 12.25
    (tmp_path / "done.json").write_text(json.dumps(done))
    assert "belongs to another run" in refused(path) and "12.5 there and 12.25 here" in refused(path)
    (tmp_path / "done.json").write_text("")  # by a crash: the run goes on
    assert read_policy(tmp_path).facts["evaluation"] == row
    (tmp_path / "done.json").write_text("{}")
    assert "must hold what a finished run ended with" in refused(path)


def test_a_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    monkeypatch.delattr("torchrl_reg.modules.q_network")
    assert "cannot be built by this version of torchrl_reg: call must name what is imported before" in refused(path)


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(AgentError, match="^A saved policy needs safetensors, got none: pip install"):
        load_policy(path)


def test_the_package_offers_it() -> None:
    assert torchrl_reg.load_policy is load_policy
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = torchrl_reg.nothing_such
