"""An exported policy loads where nothing but torch, torchrl and gymnasium is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchrl_reg.lab import read_metrics
from torchrl_reg.lab.agents import load_policy, save_policy
from torchrl_reg.lab.commands.main import main

pytest.importorskip("yaml")
ABSENT = (
    "hydra",
    "omegaconf",
    "yaml",
    "matplotlib",
    "PIL",
    "tqdm",
    "ale_py",
    "minatar",
    "mujoco",
    "pygame",
    "Box2D",
    "ray",
)


def test_an_exported_policy_loads_in_a_bare_environment(make_run, tmp_path: Path, capsys) -> None:
    pytest.importorskip("minatar")
    run, agent = make_run("minatar", "breakout", max_episode_frames=30), tmp_path / "out/agent"
    (run / "command.txt").write_text("python recipes/m_dqn.py env=minatar/breakout\n")
    assert main(["evaluate", str(run), "--episodes", "5", "--mode", "sampled", "--seed", "9"]) == 0
    assert main(["export", str(run), str(agent)]) == 0
    assert capsys.readouterr().out.endswith("agent: LICENSE, README.md, config.yaml, policy.safetensors\n")
    text = (agent / "README.md").read_text()
    last, evaluated = read_metrics(run / "metrics.jsonl")
    assert text.startswith("# m_dqn on minatar/breakout\n") and "96 environment frames with seed 4" in text
    assert f"| greedy | {last['return_greedy_mean']:.6g} |" in text
    assert f"| sampled | {evaluated['return_sampled_mean']:.6g} |" in text and "| 5 | 9 |" in text
    assert "MIT License" in (agent / "LICENSE").read_text()
    code = f"import sys\nfor name in {ABSENT!r}: sys.modules[name] = None\n"
    code += "from torchrl_reg import load_policy\nimport pickle, torch\nfrom tensordict import TensorDict\n"
    code += f"torch.load = pickle.load = pickle.loads = pickle.Unpickler = None\npolicy = load_policy({str(agent)!r})\n"
    code += "seen = TensorDict({'observation': torch.ones(1, 4, 10, 10, dtype=torch.uint8)}, [1])\n"
    code += "print(policy(seen)['action_value'].double().tolist())\n"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=200)
    here = load_policy(run).actor.module[0].module(torch.ones(1, 4, 10, 10, dtype=torch.uint8))
    assert shown.stdout.strip() == str(here.double().tolist())


def test_what_cannot_be_exported_is_one_sentence(make_run, tmp_path: Path, refusal) -> None:
    run, new = make_run("cartpole"), tmp_path / "new"
    (tmp_path / "loop").symlink_to("loop")
    assert "DIR must be a new or empty folder, got" in refusal("export", run, run)
    assert "loop cannot be created: " in refusal("export", run, tmp_path / "loop")
    content = (run / "policy.safetensors").read_bytes()
    (run / "policy.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "is damaged" in refusal("export", run, new) and not new.exists()


def test_hostile_facts_are_one_sentence(make_run, tmp_path: Path, refusal) -> None:
    run = make_run("cartpole")
    (run / "done.json").unlink()
    policy = load_policy(run)

    def said(**facts: object) -> None:
        save_policy(run / "policy.safetensors", policy, {"run": {"seed": 4}, **facts})

    for env, sentence in (
        ({"name": "pendulum"}, "has observations [3] and 1 action dimensions, got"),
        ({"name": "acrobot"}, "got one for observations [4] and 2 actions."),
        ({"name": 3}, "name must be"),
        ({"name": "cartpole", "max_episode_frames": "x"}, "must be an int >= 1"),
        ({"name": []}, "must name an environment of torchrl_reg"),
    ):
        said(env=env)
        assert sentence in refusal("evaluate", run)
    strange = {"frames": "x", "return_greedy_mean": "x", "return_greedy_std": [1]}
    said(env={"name": "\x1b[31m<b>"}, evaluation=strange)
    assert main(["export", str(run), str(tmp_path / "a")]) == 0
    text = (tmp_path / "a" / "README.md").read_text()
    assert text.startswith("# unknown on &lt;b>\n") and "\x1b" not in text and "| greedy |" not in text
