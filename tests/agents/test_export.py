"""An exported policy loads where nothing but torch, torchrl and gymnasium is installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from torchrl_reg.agents import load_policy, save_policy
from torchrl_reg.cli import main
from torchrl_reg.envs import EnvSettings
from torchrl_reg.training import read_metrics

pytest.importorskip("yaml")
ABSENT = ("hydra", "omegaconf", "yaml", "matplotlib", "PIL", "tqdm", "ale_py", "minatar", "mujoco", "pygame", "Box2D")


def test_an_exported_policy_loads_in_a_bare_environment(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("minatar")
    run = make_run(EnvSettings("minatar", "breakout", max_episode_frames=30))
    (run / "command.txt").write_text("python recipes/m_dqn.py env=minatar/breakout\n")
    assert main(["evaluate", str(run), "--episodes", "5", "--mode", "sampled", "--seed", "9"]) == 0
    assert main(["export", str(run), str(tmp_path / "out/agent")]) == 0
    assert capsys.readouterr().out.endswith("agent: LICENSE, README.md, config.yaml, policy.safetensors\n")
    text = (tmp_path / "out/agent/README.md").read_text()
    last, evaluated = read_metrics(run / "metrics.jsonl")
    assert text.startswith("# m_dqn on minatar/breakout\n") and "96 environment frames with seed 4" in text
    assert f"| greedy | {last['return_greedy_mean']:.6g} |" in text
    assert f"| sampled | {evaluated['return_sampled_mean']:.6g} |" in text and "| 5 | 9 |" in text
    assert "MIT License" in (tmp_path / "out/agent/LICENSE").read_text()
    code = f"import sys\nfor name in {ABSENT!r}: sys.modules[name] = None\n"
    code += "from torchrl_reg import load_policy\nimport pickle, torch\nfrom tensordict import TensorDict\n"
    code += "torch.load = pickle.load = pickle.loads = pickle.Unpickler = None\n"
    code += f"policy = load_policy({str(tmp_path / 'out/agent')!r})\n"
    code += "seen = TensorDict({'observation': torch.ones(1, 4, 10, 10, dtype=torch.uint8)}, [1])\n"
    code += "print(policy(seen)['action_value'].double().tolist())\n"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=200)
    here = load_policy(run).actor.module[0].module(torch.ones(1, 4, 10, 10, dtype=torch.uint8))
    assert shown.stdout.strip() == str(here.double().tolist())


def test_what_cannot_be_exported_is_one_sentence(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(EnvSettings("cartpole"))
    content = bytearray((run / "policy.safetensors").read_bytes())
    assert main(["export", str(run), str(run)]) == 1
    assert "DIR must be a new or empty folder, got" in capsys.readouterr().err
    content[-1] ^= 1
    (run / "policy.safetensors").write_bytes(content)
    assert main(["export", str(run), str(tmp_path / "new")]) == 1
    err = capsys.readouterr().err
    assert "is damaged" in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_hostile_facts_and_folders_are_one_sentence(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(EnvSettings("cartpole"))
    (tmp_path / "loop").symlink_to("loop")
    facts = {"env": {"name": "cartpole"}, "run": {"seed": 4}}
    strange = {"evaluation": {"frames": "x", "return_greedy_mean": "x", "return_greedy_std": [1]}}
    (run / "done.json").unlink()
    evaluate = ["evaluate", str(run)]
    for words, changed, said in (
        (["export", str(run), str(tmp_path / "loop")], {}, "loop cannot be made: "),
        (evaluate, {"env": {"name": "pendulum"}}, "has observations [3] and 1 action dimensions, got"),
        (evaluate, {"env": {"name": "acrobot"}}, "got one for observations [4] and 2 actions."),
        (evaluate, {"env": {"name": 3}}, "name must be"),
        (evaluate, {"env": {"name": "cartpole", "max_episode_frames": "x"}}, "must be an int >= 1"),
        (evaluate, {"env": {"name": []}}, "must name an environment of torchrl_reg"),
        (["export", str(run), str(tmp_path / "a")], {"env": {"name": "\x1b[31m<b>"}, **strange}, ""),
    ):
        save_policy(run / "policy.safetensors", load_policy(run), facts | changed)
        code = main(words)
        err = capsys.readouterr().err
        assert (code, err.count("\n")) == ((1, 1) if said else (0, 0)), err
        assert said in err and err.strip().isprintable()
    text = (tmp_path / "a" / "README.md").read_text()
    assert text.startswith("# unknown on &lt;b>\n") and "\x1b" not in text and "| greedy |" not in text
