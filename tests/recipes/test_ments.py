"""Planning online: episodes, the record, going on after a kill, networks of finished runs, user errors."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import pytest
import torch
from hydra import compose, initialize_config_dir
from torchrl.modules import QValueActor

from torchrl_reg.agents import save_policy
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import NetSettings, q_network
from torchrl_reg.training import read_metrics
from torchrl_reg.training.cli.typed_config import typed

RECIPE = Path(__file__).parents[2] / "recipes" / "ments.py"
TINY = ["run.eval_episodes=2", "algo.num_simulations=6", "run.log_every_frames=8", "run.checkpoint_every_frames=8"]


def load() -> ModuleType:
    if "recipes_ments" in sys.modules:
        return sys.modules["recipes_ments"]
    spec = importlib.util.spec_from_file_location("recipes_ments", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def start(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> list[dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", ["ments.py", f"run.dir={folder}", *TINY, *overrides])
    load().main()
    return read_metrics(folder / "metrics.jsonl")


RUNS = {
    "gridworld": ["algo.method=rents", "env.game=corridor", "env.max_episode_frames=30"],
    "cartpole": ["plan=cartpole", "algo.rollout_steps=3", "env.max_episode_frames=12", "algo.method=puct"],
    "minatar": [
        "plan=minatar",
        "env.game=freeway",
        "env.sticky_actions=0.1",
        "algo.rollout_steps=1",
        "env.max_episode_frames=12",
    ],
    "atari": ["plan=atari", "algo.rollout_steps=0", "env.max_episode_frames=48", "env.sticky_actions=0.25"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = start(monkeypatch, tmp_path / "whole", *RUNS[name])
    module, searches = load(), []
    planner = module.Planner.forward

    class Killed(BaseException):
        pass

    def killing(self: Any, *args: Any, **kwargs: Any) -> Any:
        searches.append(self)
        if len(searches) == 7:
            raise Killed
        return planner(self, *args, **kwargs)

    monkeypatch.setattr(module.Planner, "forward", killing)
    with pytest.raises(Killed):
        start(monkeypatch, tmp_path / "killed", *RUNS[name])
    assert not (tmp_path / "killed" / "done.json").exists()
    assert start(monkeypatch, tmp_path / "killed", *RUNS[name]) == expected
    decisions = len(json.loads((tmp_path / "killed/parts/decisions.json").read_text())["decisions"])
    assert decisions > 6 and len(searches) < 2 * decisions  # the first ones were not searched again
    last = expected[-1]
    assert last["event"] == "eval" and last["episodes"] == len(last["returns"]) == 2
    assert last["return_greedy_mean"] == pytest.approx(sum(last["returns"]) / 2)
    done = json.loads((tmp_path / "whole" / "done.json").read_text())
    assert done["evaluation"]["return_greedy_mean"] == last["return_greedy_mean"] and done["frames"] == last["frames"]


def test_seeds_and_settings_make_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ["env.game=grid", "env.max_episode_frames=12", "algo.method=uct"]
    one = start(monkeypatch, tmp_path / "one", *short)
    assert one != start(monkeypatch, tmp_path / "two", *short, "run.seed=1")
    assert [row["event"] for row in one][-2:] == ["act", "eval"] and one[-1]["frames"] <= 24


TRAINED = {
    "cartpole": (EnvSettings("cartpole"), NetSettings(num_cells=[8]), 3),
    "minatar": (EnvSettings("minatar", game="breakout"), NetSettings(name="minatar", num_cells=[8]), 3),
    "atari": (EnvSettings("atari", game="Breakout"), NetSettings(name="nature", num_cells=[8]), 12),
}


def trained(name: str, folder: Path) -> QValueActor:
    """A Q-network as a run of that environment would leave it in its folder."""
    settings, net, _ = TRAINED[name]
    env = make_env(settings, num_envs=1)
    actor = QValueActor(q_network(net, env), spec=env.full_action_spec_unbatched["action"])
    env.close()
    save_policy(folder / "policy.safetensors", actor)
    return actor


@pytest.mark.parametrize("name", TRAINED)
def test_leaves_are_valued_by_the_network_of_a_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor, module, seen = trained(name, tmp_path), load(), []
    evaluation = module.evaluation

    def watched(*args: Any) -> Any:
        evaluate = evaluation(*args)
        return lambda state: (seen.append((args[1].observation(state), evaluate(state))), seen[-1][1])[1]

    monkeypatch.setattr(module, "evaluation", watched)
    short = [f"plan={name}", f"env.max_episode_frames={TRAINED[name][2]}", f"algo.policy={tmp_path}", "algo.tau=0.5"]
    rows = start(monkeypatch, tmp_path / "run", *short)
    assert rows[-1]["event"] == "eval" and len(rows[-1]["returns"]) == 2
    assert [len(observation) for observation, _ in seen[:7]] == [2] * 7  # roots and leaves of both episodes at once
    observation, found = seen[1]
    q = actor.module[0](observation)
    assert torch.allclose(found.q, q) and torch.allclose(found.value, 0.5 * torch.logsumexp(q / 0.5, -1))
    assert torch.allclose(found.prior, (q / 0.5).softmax(-1))


def test_every_choice_composes() -> None:
    module = load()
    with initialize_config_dir(str(RECIPE.parent / "conf"), version_base="1.3"):
        for overrides in (
            *([f"plan={path.stem}"] for path in (RECIPE.parent / "conf/plan").glob("*.yaml")),
            ["plan=atari", "env.game=Qbert", "+paper=xiao2019", "algo.policy=somewhere"],
        ):
            config = compose("ments", overrides=overrides)
            config.run.dir = "unused"
            settings = typed(config, module.Config)
            assert isinstance(settings, module.Config)
            settings.algo.validate()
            settings.env.validate()
    assert (settings.algo.num_simulations, settings.algo.tau, settings.env.game) == (500, 0.8, "Qbert")


@pytest.mark.parametrize("other", ["acrobot", "minatar"])
def test_a_network_of_another_game_is_refused(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained("cartpole", tmp_path)
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, tmp_path / "run", f"plan={other}", f"algo.policy={tmp_path}")
    error = capsys.readouterr().err.strip()
    actions = {"acrobot": 3, "minatar": 3}[other]
    assert stop.value.code == 1 and "\n" not in error
    assert f"algo.policy must be a run of a Q-network of this environment's {actions} actions, got" in error


class Uncopied(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(2)

    def __deepcopy__(self, memo: dict) -> Any:
        raise TypeError("cannot pickle 'SwigPyObject' object")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["algo.method=alphazero"], "algo.method must be one of ments, rents"),
        (["algo.num_simulations=0"], "algo.num_simulations must be > 0, got 0"),
        (["algo.num_emulators=0"], "algo.num_emulators must be > 0, got 0"),
        (["algo.tau=0"], "algo.tau must be > 0, got 0.0"),
        (["algo.epsilon=0"], "algo.epsilon must be > 0, got 0.0"),
        (["algo.c=-1"], "algo.c must be >= 0, got -1.0"),
        (["algo.gamma=1.5"], "algo.gamma must be in [0, 1], got 1.5"),
        (["algo.max_depth=-1"], "algo.max_depth must be >= 0, got -1"),
        (["env.game=goals"], "env.game must be one of corridor, square, grid, got 'goals'"),
        (["env.name=pendulum", "env.game=''"], "env must have discrete actions, got Pendulum-v1 with Box"),
        (
            ["env.name=mountaincar_continuous", "env.game=''"],
            "env.name must be one of gridworld, minatar, atari, cartpole",
        ),
        (["algo.policy=nowhere"], "algo.policy must be None in a gridworld, got 'nowhere'"),
        (["plan=cartpole", "algo.policy=nowhere"], "nowhere must be a run folder or an exported one"),
        (["plan=chess"], "gridworld"),
        (["plan=cartpole", "env.name=lunarlander"], "env must be one that copy.deepcopy can clone, got"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_user_errors_are_one_sentence(
    overrides: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "env.name=lunarlander" in overrides:  # whatever Box2D's objects say of themselves
        monkeypatch.setattr(load().gymnasium, "make", lambda *_, **__: Uncopied())
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, tmp_path / "run", *overrides)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 1 and expected in error and "\n" not in error
    assert not (tmp_path / "run" / "done.json").exists()
