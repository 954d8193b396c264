"""The agents that come with the package: small, whole, and as good as they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from torchrl_reg import load_policy
from torchrl_reg.agents import AgentError, read_policy
from torchrl_reg.agents.trained import facts_of, trained_agents
from torchrl_reg.cli import main

AGENTS = trained_agents()


def test_their_size_is_bounded() -> None:
    assert {"m_dqn/cartpole", "m_dqn/minatar/breakout", "sac/mujoco/reacher"} <= AGENTS.keys()  # at any depth
    sizes = [file.stat().st_size for file in AGENTS.values()]
    assert len(sizes) >= 40 and max(sizes) <= 200_000 and sum(sizes) <= 8_000_000


@pytest.mark.parametrize("name", AGENTS)
def test_each_acts_and_says_where_it_comes_from(name: str) -> None:
    saved, facts = read_policy(name), facts_of(AGENTS[name])
    assert facts == saved.facts and set(facts["training"]) == {"command", "commit", "frames", "scores"}
    assert facts["training"]["command"].startswith("python recipes/") and "/root" not in facts["training"]["command"]
    assert facts["evaluation"]["episodes"] == 100 and len(facts["training"]["scores"]) >= 1
    needs = {"minatar": "minatar", "mujoco": "mujoco", "atari": "ale_py"}.get(saved.env_settings.name)
    if needs:
        pytest.importorskip(needs)
    env = saved.make_env(2)
    assert saved.policy(env.reset())["action"].shape[0] == 2


def test_a_name_is_enough_and_its_score_is_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    rows = TensorDict({"observation": torch.zeros(3, 4)}, [3])
    assert load_policy("m_dqn/cartpole")(rows)["action"].shape == (3,)
    assert main(["evaluate", "dqn/acrobot", "--mode", "greedy"]) == 0
    told = capsys.readouterr().out
    score = facts_of(AGENTS["dqn/acrobot"])["evaluation"]["return_greedy_mean"]
    assert f"the first 100 repeat the run's last evaluation exactly: {score:.6g}" in told


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_every_score_is_repeated(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", name]) == 0
    assert capsys.readouterr().out.count("repeat the run's last evaluation exactly") == 2


def test_the_list_needs_no_torch() -> None:
    program = "import sys; sys.modules['torch'] = None; from torchrl_reg.cli import main; sys.exit(main(['list']))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_the_list_has_a_row_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--env", "cartpole", "--commands"]) == 0
    told = capsys.readouterr().out
    assert "m_dqn/cartpole" in told and "500 [500, 500]" in told and "dqn/acrobot" not in told
    assert "python recipes/q_learning.py +method=m_dqn env=cartpole" in told


def test_an_unknown_name_is_refused_and_a_folder_of_that_name_comes_first(tmp_path, monkeypatch) -> None:
    with pytest.raises(AgentError, match="or the name of a trained agent"):
        load_policy("m_dqn/nowhere")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m_dqn/cartpole").mkdir(parents=True)
    with pytest.raises(AgentError, match=r"must be a run folder"):
        load_policy("m_dqn/cartpole")


@pytest.mark.parametrize("command", ["evaluate", "play"])
def test_a_path_written_as_a_path_is_a_path(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("./m_dqn/cartpole", Path("m_dqn/cartpole")):
        with pytest.raises(AgentError, match=r"must be a run folder"):
            load_policy(path)
    assert main([command, "./m_dqn/cartpole"]) == 1 and "must be a run folder" in capsys.readouterr().err


def test_a_name_that_no_folder_can_have_is_refused() -> None:
    with pytest.raises(AgentError, match=r"^x{200}\.\.\. could not be read: File name too long\.$"):
        load_policy("x" * 5000)


def test_videos_of_them_do_not_go_into_the_package(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("pygame")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    assert main(["play", "m_dqn/cartpole", "--max-steps", "3"]) == 0
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["greedy-seed=0.gif"]
