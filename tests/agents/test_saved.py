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

from torchrl_reg import modules
from torchrl_reg.agents import AgentError, load_policy, read_policy, save_policy
from torchrl_reg.agents.saved import encoded, read
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import ActionPrior, BoltzmannQActor

SMALL = modules.NetSettings(num_cells=[8, 6], num_policy_quantiles=5, input_low=[-2.0] * 4, input_high=[3.0] * 4)
SPEC = Categorical(2)
CARTPOLE, PENDULUM = (make_env(EnvSettings(name), num_envs=2) for name in ("cartpole", "pendulum"))


def q_actor() -> Any:
    return QValueActor(modules.q_network(SMALL, CARTPOLE), spec=SPEC)


def epsilon_greedy() -> nn.Module:
    return TensorDictSequential(q_actor(), EGreedyModule(SPEC, eps_init=0.4, eps_end=0.4))


def boltzmann() -> nn.Module:
    return BoltzmannQActor(q_actor(), tau=0.3)


def quantiles() -> nn.Module:
    network = modules.quantile_network(SMALL, CARTPOLE)
    return BoltzmannQActor(modules.QuantileQActor(network, spec=SPEC, num_quantiles=5), tau=0.3)


def state_prior() -> nn.Module:
    network = modules.prior_network(SMALL, CARTPOLE, ["observation"])
    nn.init.normal_(network.module.network[-1].weight)
    prior = ActionPrior(2, probabilities=[0.9, 0.1], beta=0.4, floor=1e-3)
    exploration = modules.PriorEGreedyModule(SPEC, prior, eps_init=0.6, log_prior_key="log_prior")
    return TensorDictSequential(q_actor(), network, exploration)


def continuous(name: str) -> nn.Module:
    settings = modules.PolicySettings(name, num_cells=[8, 6], num_bins=5, flow_cells=4, head_cells=4)
    return modules.policy(settings, PENDULUM)


POLICIES = {
    "epsilon_greedy": epsilon_greedy,
    "boltzmann": boltzmann,
    "prior": lambda: BoltzmannQActor(q_actor(), prior=ActionPrior(2, probabilities=[0.8, 0.2], beta=0.7)),
    "quantiles": quantiles,
    "state_prior": state_prior,
    **{name: lambda name=name: continuous(name) for name in ("multicategorical", "autoregressive", "flow", "gaussian")},
}


def acted(module: Any, kind: ExplorationType, batch: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    width = 4 if "action_value" in module.out_keys else 3
    with set_exploration_type(kind), torch.no_grad():
        return module(TensorDict({"observation": torch.randn(batch, width)}, [batch])).to_dict()


@pytest.mark.parametrize("name", POLICIES)
def test_what_comes_back_acts_alike_bit_by_bit_and_no_random_number_is_drawn(name: str, tmp_path: Path) -> None:
    before, generator = POLICIES[name](), torch.get_rng_state()
    save_policy(tmp_path / "policy.safetensors", before)
    loaded = load_policy(tmp_path)
    assert torch.equal(torch.get_rng_state(), generator)
    exact = {"rtol": 0, "atol": 0}
    torch.testing.assert_close(dict(loaded.state_dict()), dict(before.state_dict()), **exact)
    for kind in (ExplorationType.DETERMINISTIC, ExplorationType.RANDOM):
        for batch in (1, 64):
            torch.testing.assert_close(acted(loaded, kind, batch), acted(before, kind, batch), **exact)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_metadata_stand_in_one_order_in_every_process(tmp_path: Path) -> None:
    said = {name: f"{name}\u00e4" for name in "fbdace"}  # the package would shuffle them
    content = encoded({"w": torch.arange(3.0), "b": torch.tensor([2.5], dtype=torch.float64)}, said)
    end = 8 + int.from_bytes(content[:8], "little")
    assert list(json.loads(content[8:end])["__metadata__"]) == sorted(said) and end % 8 == 0
    (tmp_path / "file").write_bytes(content)
    tensors, metadata, _ = read(tmp_path / "file")
    assert metadata == said and tensors["w"].tolist() == [0, 1, 2] and tensors["b"].tolist() == [2.5]


def with_layer() -> nn.Module:
    actor = q_actor()
    actor.module[0].module.append(nn.Linear(2, 2))
    return actor


def with_hook(place: str, kind: str) -> nn.Module:
    policy = epsilon_greedy()
    getattr(policy.get_submodule(place), f"register_{kind}_hook")(lambda *_: None)
    return policy


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: TensorDictModule(nn.Linear(4, 2), ["observation"], ["action"]),
            "^policy must be made of .*, got no desc",
        ),
        (lambda: QValueActor(nn.Linear(4, 2), spec=SPEC), "no description of Linear"),
        (with_layer, "gives other weights"),
        (lambda: with_hook("", "forward"), "got hooks on a TensorDictSequential"),
        (lambda: with_hook("module.0.module.0.module.1", "forward_pre"), "got hooks on a [A-Z]"),
    ],
)
def test_a_module_that_could_not_be_built_again_is_refused(make: Callable, said: str, tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=said):
        save_policy(tmp_path / "policy.safetensors", make())


def test_a_loaded_policy_has_no_noise(tmp_path: Path) -> None:
    """It is evaluated so, while the one in training keeps its noise."""
    settings = modules.NetSettings(num_cells=[8], noise_sigma=0.5, dueling="mean")
    policy = QValueActor(modules.q_network(settings, CARTPOLE), spec=SPEC)
    save_policy(tmp_path / "policy.safetensors", policy)
    loaded, states = load_policy(tmp_path / "policy.safetensors"), TensorDict({"observation": torch.randn(5, 4)}, [5])
    first, second = (loaded(states.clone())["action_value"] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(first, policy.eval()(states.clone())["action_value"])


def test_buffers_of_training_alone_are_left_out(tmp_path: Path) -> None:
    before = boltzmann()
    before.register_buffer("running_error", torch.ones(2))
    save_policy(tmp_path / "policy.safetensors", before)
    assert "running_error" not in read(tmp_path / "policy.safetensors")[0] and "running_error" in before.state_dict()
    load_policy(tmp_path)


def saved(tmp_path: Path, **facts: Any) -> Path:
    save_policy(tmp_path / "policy.safetensors", boltzmann(), facts)
    return tmp_path / "policy.safetensors"


def refused(path: Path) -> str:
    with pytest.raises(AgentError) as caught:
        load_policy(path)
    text = str(caught.value)
    assert text.endswith(".") and text.isprintable() and str(path.parent if path.is_file() else path) in text
    return text


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in (0, 7, 100, len(whole) - 1)] + [whole + b"x"]
    for position in (-1, -200, 3, 20, 400):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        damaged.append(bytes(flipped))
    entry = {"dtype": "load", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": entry}).encode()
    damaged += [len(header).to_bytes(8, "little") + header + bytes(8), (1 << 63).to_bytes(8, "little")]
    for content in damaged:
        path.write_bytes(content)
        said = refused(path)
        assert "damaged" in said or "format" in said
    path.write_bytes(encoded({"w": torch.zeros(2)}, {"format": "pt"}))
    assert "must be of format 'torchrl_reg policy 2', got 'pt'" in refused(path)
    path.write_bytes(whole)
    load_policy(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(value: float, tmp_path: Path, monkeypatch) -> None:
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


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The file with other content under a checksum that fits."""
    tensors, metadata, data = read(path)
    said = json.loads(metadata["content"])
    said = change(said) or said
    text = said if isinstance(said, str) else json.dumps(said)
    digest = hashlib.sha256(text.encode() + data).hexdigest()
    path.write_bytes(encoded(tensors, {**metadata, "content": text, "sha256": digest}))


def actor(said: dict[str, Any]) -> dict[str, Any]:
    return said["policy"]["args"][0]


def network(said: dict[str, Any]) -> dict[str, Any]:
    return actor(said)["args"][0]


def settings(said: dict[str, Any], place: int) -> dict[str, Any]:
    """Those of the network (place 0), or the spaces (1)."""
    return network(said)["args"][place]["settings"]


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "deep": lambda said: "[" * 100_000 + "]" * 100_000,
    "deep in a part": lambda said: said | {"facts": {"run": json.loads("[" * 900 + "]" * 900)}},
    "env a list": lambda said: said | {"facts": {"env": [1]}},
    "seed a text": lambda said: said | {"facts": {"run": {"seed": "x"}}},
    "no spaces": lambda said: network(said)["args"].pop() and None,
    "dtype load": lambda said: settings(said, 1).update(observations={"observation": [[4], "load"]}),
    "shape of another": lambda said: settings(said, 1).update(observations={"observation": [[3], "float32"]}),
    "shape negative": lambda said: settings(said, 1).update(observations={"observation": [[-4], "float32"]}),
    "wide layers": lambda said: settings(said, 0).update(num_cells=[20_000, 20_000]),
    "endless layers": lambda said: settings(said, 0).update(num_cells=[10**12]),
    "a function of ours": lambda said: network(said).update(call="torchrl_reg.training.run.files:write_atomically"),
    "a spec of another kind": lambda said: actor(said)["kwargs"].update(spec={"spec": "Composite", "n": 2}),
    "name of another": lambda said: settings(said, 0).update(name="\x1b[31m"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_content_under_a_valid_checksum_is_one_sentence_in_bounded_memory(change, tmp_path: Path) -> None:
    path = saved(tmp_path)
    rewritten(path, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_what_is_no_file_is_refused_and_a_sparse_one_unread(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    assert "with a policy.safetensors in it, got none" in refused(tmp_path) and "got none" in refused(
        tmp_path / "nowhere"
    )
    for make in (lambda: path.symlink_to(path.name), lambda: os.mkfifo(path)):
        make()
        refused(tmp_path)
        path.unlink()
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "loop")
    with path.open("wb") as file:
        file.truncate(6 << 30)
    assert "must be at most 1 GiB, got 6,442,450,944 bytes" in refused(path)
    saved(tmp_path, evaluation={"frames": 1})
    os.mkfifo(tmp_path / "done.json")
    load_policy(tmp_path)


def test_another_runs_policy_is_refused(tmp_path: Path) -> None:
    row = {"event": "eval", "frames": 192, "return_greedy_mean": 12.5, "return_sampled_mean": None}
    path, done = saved(tmp_path, evaluation=row), tmp_path / "done.json"
    ended = {**row, "eval_seconds": 1.0, "return_sampled_mean": float("nan")}
    for content in (json.dumps({"frames": 192, "evaluation": ended}), ""):  # empty by a crash: the run goes on
        done.write_text(content)
        assert read_policy(tmp_path).facts["evaluation"] == row
    done.write_text(json.dumps({"evaluation": {**ended, "return_greedy_mean": 12.25}}))
    assert "belongs to another run" in refused(path) and "12.5 there and 12.25 here" in refused(path)
    done.write_text("{}")
    assert "must hold what a finished run ended with" in refused(path)


def test_a_later_version_and_a_missing_package_are_one_sentence(tmp_path: Path, monkeypatch) -> None:
    path = saved(tmp_path)
    monkeypatch.delattr("torchrl_reg.modules.q_network")
    assert "cannot be built by this version of torchrl_reg: call must name something in its module" in refused(path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(AgentError, match="^A saved policy needs safetensors, got none: pip install"):
        load_policy(path)
