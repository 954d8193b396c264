"""Saved policies: restored bit for bit, or refused in one sentence.

Their weights in 8 bits; and the agents that come with the package: small, whole, and as good as they say.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
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
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab.agents import load_policy, read_policy, save_policy
from torchrl_reg.lab.agents.saved import dequantize, encode, quantize, read
from torchrl_reg.lab.agents.trained import facts_of, trained_agents
from torchrl_reg.lab.commands.main import main
from torchrl_reg.lab.errors import UserError
from torchrl_reg.modules import ActionPrior, BoltzmannQActor, NetSettings, q_network
from torchrl_reg.modules.rebuilding import Spaces

SMALL = modules.NetSettings(num_cells=[8, 6], num_policy_quantiles=5, input_low=[-2.0] * 4, input_high=[3.0] * 4)
SPEC = Categorical(2)
CARTPOLE, PENDULUM = (make_env(EnvSettings(name), num_envs=2) for name in ("cartpole", "pendulum"))


def q_actor() -> Any:
    return QValueActor(modules.q_network(SMALL, CARTPOLE), spec=SPEC)


def epsilon_greedy() -> nn.Module:
    actor = modules.QActor(modules.q_network(SMALL, CARTPOLE), spec=SPEC)
    return modules.ActorSequential(actor, modules.EpsilonGreedyModule(SPEC, eps_init=0.4, eps_end=0.3))


def of_torchrl() -> nn.Module:
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
    "of_torchrl": of_torchrl,
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
    content = encode({"w": torch.arange(3.0), "b": torch.tensor([2.5], dtype=torch.float64)}, said)
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
        (lambda: with_hook("", "forward"), "got hooks on a ActorSequential"),
        (lambda: with_hook("module.0.module.0.module.1", "forward_pre"), "got hooks on a [A-Z]"),
    ],
)
def test_a_module_that_could_not_be_built_again_is_refused(make: Callable, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
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
    with pytest.raises(UserError) as caught:
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
    path.write_bytes(encode({"w": torch.zeros(2)}, {"format": "pt"}))
    assert "must be of format 'torchrl_reg policy 2', got 'pt'" in refused(path)
    path.write_bytes(whole)
    load_policy(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(value: float, tmp_path: Path, monkeypatch) -> None:
    policy = boltzmann()
    with torch.no_grad():
        next(policy.parameters())[0, 1] = value
    with pytest.raises(UserError, match=rf"^policy must have finite weights, got {value} in .*weight\.$"):
        save_policy(tmp_path / "policy.safetensors", policy)
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr("torchrl_reg.lab.agents.saved.check_finite", lambda *_: None)
        save_policy(tmp_path / "policy.safetensors", policy)
    assert f"must have finite weights, got {value} in " in refused(tmp_path / "policy.safetensors")


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The file with other content under a checksum that fits."""
    tensors, metadata, data = read(path)
    said = json.loads(metadata["content"])
    said = change(said) or said
    text = said if isinstance(said, str) else json.dumps(said)
    digest = hashlib.sha256(text.encode() + data).hexdigest()
    path.write_bytes(encode(tensors, {**metadata, "content": text, "sha256": digest}))


def network(said: dict[str, Any]) -> dict[str, Any]:
    return said["policy"]["args"][0]["args"][0]


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
    "a function of ours": lambda said: network(said).update(call="torchrl_reg.lab.run.files:write_atomically"),
    "a spec of another kind": lambda said: said["policy"]["args"][0]["kwargs"].update(
        spec={"spec": "Composite", "n": 2}
    ),
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
    for content in (json.dumps({"frames": 192, "evaluation": ended}), ""):  # empty after a crash: the run continues
        done.write_text(content)
        assert read_policy(tmp_path).facts["evaluation"] == row
    done.write_text(json.dumps({"evaluation": {**ended, "return_greedy_mean": 12.25}}))
    assert "belongs to another run" in refused(path) and "12.5 there and 12.25 here" in refused(path)
    done.write_text("{}")
    assert "must hold the last evaluation of a finished run" in refused(path)


def test_a_later_version_and_a_missing_package_are_one_sentence(tmp_path: Path, monkeypatch) -> None:
    path = saved(tmp_path)
    monkeypatch.delattr("torchrl_reg.modules.q_network")
    assert "cannot be built by this version of torchrl_reg: call must name an attribute of its module" in refused(path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="^A saved policy needs safetensors, got none: pip install"):
        load_policy(path)


# -- weights in 8 bits ----------------------------------------------------------------------------------------------


def test_rows_keep_their_largest_weight_and_the_rest_to_half_a_level() -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 8, 8, 8) * torch.logspace(-3, 3, 16).reshape(-1, 1, 1, 1)
    weight[3] = 0
    state = {"a": weight, "bias": torch.randn(5000), "count": torch.arange(5000).reshape(50, 100)}
    small = quantize(state)
    assert small["a"].dtype == torch.int8 and set(small) == {"a", "a.scale", "bias", "count"}
    again = dequantize(small)
    largest = weight.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1)
    assert ((again["a"] - weight).abs() <= largest / 254 * 1.00001).all() and (again["a"][3] == 0).all()
    torch.testing.assert_close(again["a"].flatten(1).abs().amax(1), largest.flatten())
    assert again["bias"] is state["bias"] and again["count"] is state["count"] and set(again) == set(state)


def test_a_weight_that_is_called_scale_is_left_alone() -> None:
    state = {"norm.scale": torch.ones(3), "norm": torch.ones(3)}
    assert set(dequantize(quantize(state))) == {"norm.scale", "norm"}


def test_a_small_file_holds_nearly_the_same_policy(tmp_path) -> None:
    torch.manual_seed(0)
    spaces = Spaces({"observation": ([8], "float32")}, 3, [], [])
    policy = QValueActor(q_network(NetSettings(num_cells=[128, 128]), spaces), spec=Categorical(3))
    save_policy(tmp_path / "whole", policy)
    save_policy(tmp_path / "small", policy, small=True)
    assert (tmp_path / "small").stat().st_size < 0.35 * (tmp_path / "whole").stat().st_size
    rows = TensorDict({"observation": torch.randn(200, 8)}, [200])
    whole, small = (load_policy(tmp_path / name)(rows.clone())["action_value"] for name in ("whole", "small"))
    assert 0 < (whole - small).abs().max() < 0.02 * whole.abs().max()


# -- the agents that come with the package --------------------------------------------------------------------------


AGENTS = trained_agents()


def test_the_size_of_the_agents_is_bounded() -> None:
    assert {"m_dqn/cartpole", "m_dqn/minatar/breakout", "sac/mujoco/reacher"} <= AGENTS.keys()  # at any depth
    sizes = [file.stat().st_size for file in AGENTS.values()]
    assert len(sizes) >= 40 and max(sizes) <= 200_000 and sum(sizes) <= 8_000_000


@pytest.mark.parametrize("name", AGENTS)
def test_each_agent_acts_and_says_where_it_comes_from(name: str) -> None:
    saved, facts = read_policy(name), facts_of(AGENTS[name])
    assert facts == saved.facts and set(facts["training"]) == {"command", "commit", "frames", "scores"}
    assert facts["training"]["command"].startswith("python recipes/") and "/root" not in facts["training"]["command"]
    assert facts["evaluation"]["episodes"] == 100 and len(facts["training"]["scores"]) >= 1
    needs = {"minatar": "minatar", "mujoco": "mujoco", "atari": "ale_py"}.get(saved.env_settings.name)
    if needs:
        pytest.importorskip(needs)
    env = saved.make_env(2)
    assert saved.policy(env.reset())["action"].shape[0] == 2


def test_the_name_of_an_agent_is_enough_and_its_score_is_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    rows = TensorDict({"observation": torch.zeros(3, 4)}, [3])
    assert load_policy("m_dqn/cartpole")(rows)["action"].shape == (3,)
    assert main(["evaluate", "dqn/acrobot", "--mode", "greedy"]) == 0
    told = capsys.readouterr().out
    score = facts_of(AGENTS["dqn/acrobot"])["evaluation"]["return_greedy_mean"]
    assert f"the first 100 repeat the run's last evaluation exactly: {score:.6g}" in told


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_every_agents_score_is_repeated(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", name]) == 0
    assert capsys.readouterr().out.count("repeat the run's last evaluation exactly") == 2


def test_the_list_of_agents_needs_no_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; "
        "from torchrl_reg.lab.commands.main import main; sys.exit(main(['list']))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_the_list_of_agents_has_a_row_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--env", "cartpole", "--commands"]) == 0
    told = capsys.readouterr().out
    assert "m_dqn/cartpole" in told and " 500 " in told and "500 [500, 500]" not in told and "dqn/acrobot" not in told
    assert "python recipes/q_learning.py +method=m_dqn env=cartpole" in told
    assert main(["list", "--env", "nowhere"]) == 1
    assert "--env must be an environment of a trained agent, got 'nowhere': acrobot" in capsys.readouterr().err


def test_an_unknown_name_is_refused_and_a_folder_of_that_name_comes_first(tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError, match="or the name of a trained agent"):
        load_policy("m_dqn/nowhere")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m_dqn/cartpole").mkdir(parents=True)
    with pytest.raises(UserError, match=r"must be a run folder"):
        load_policy("m_dqn/cartpole")


@pytest.mark.parametrize("command", ["evaluate", "play"])
def test_a_path_written_as_a_path_is_a_path(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("./m_dqn/cartpole", Path("m_dqn/cartpole")):
        with pytest.raises(UserError, match=r"must be a run folder"):
            load_policy(path)
    assert main([command, "./m_dqn/cartpole"]) == 1 and "must be a run folder" in capsys.readouterr().err


def test_a_name_that_no_folder_can_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"^x{200}\.\.\. could not be read: File name too long\.$"):
        load_policy("x" * 5000)


def test_videos_of_agents_do_not_go_into_the_package(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("pygame")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    assert main(["play", "m_dqn/cartpole", "--max-steps", "3"]) == 0
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["greedy-seed=0.gif"]
