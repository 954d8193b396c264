"""The figure of the multi-goal point: read from finished runs, shares counted by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tensordict import TensorDict

from torchrl_reg import load_policy

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = ["env=multigoal", "algo.total_frames=96", "algo.learning_starts_frames=64", "algo.batch_size=8"]
TINY += ["policy.num_cells=[8]", "run.eval_episodes=1", "run.progress=false"]


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipes_{name}_of_multigoal", RECIPES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_where_points_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up for half of them, nowhere for the others."""
    script = load("multigoal", monkeypatch)
    upwards = torch.tensor([[0.0, 0.9], [0.0, 0.0]] * 3)
    actor = lambda td: td.set("action", upwards)  # noqa: E731
    walks, goal = script.paths(SimpleNamespace(actor=actor), 6)
    assert goal.tolist() == [2, 4] * 3
    assert (
        len(walks[1]) == 31
        and all(walk[0].tolist() == [0.0, 0.0] for walk in walks)
        and 5 <= len(walks[0]) <= 7
        and walks[0][-1, 1] > 4
    )


def test_which_way_actions_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four point right, one left, one down."""
    script = load("multigoal", monkeypatch)
    actions = torch.tensor([[0.9, 0.3], [0.2, 0.1], [-0.5, 0.4], [-0.1, -0.2]])
    actor = lambda td: td.set("action", actions)  # noqa: E731
    assert script.directions(SimpleNamespace(actor=actor), 4).tolist() == [0.5, 0.25, 0.0, 0.25]


@pytest.mark.parametrize("name", ["soft_q", "sac", "virel"])
def test_a_run_is_read_and_drawn(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, recipe = load("multigoal", monkeypatch), load(name, monkeypatch)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", f"run.dir={tmp_path / 'run'}", *TINY])
    recipe.main()
    trained = script.read(tmp_path / "run")
    assert trained.name == "run"
    state = TensorDict({"observation": torch.randn(5, 2)}, [5])
    torch.manual_seed(0)
    expected = load_policy(tmp_path / "run")(state.copy())["action"]
    torch.manual_seed(0)
    torch.testing.assert_close(trained.actor(state.copy())["action"], expected)  # as trained, not as drawn
    # Networks are drawn anew at each reading: what agrees comes from the checkpoint.
    values = [each.q(state["observation"], torch.zeros(5, 2)) for each in (trained, script.read(tmp_path / "run"))]
    torch.testing.assert_close(*values)
    assert len(trained.critics) == 2 and values[0].std() > 0
    (shares,) = script.draw([trained], 8, tmp_path / "figure.png")
    assert sum(shares) == pytest.approx(1) and (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_compiled_soft_q_run_is_the_eager_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One graph of the losses and their gradients; with PyTorch's own random numbers, as drawn without compiling."""
    recipe, rows = load("soft_q", monkeypatch), {}
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        settings = [f"run.dir={folder}", *TINY, "run.log_every_frames=32", f"run.compile={compiled}"]
        monkeypatch.setattr(sys, "argv", ["soft_q.py", *settings])
        recipe.main()
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        rows[compiled] = [line for line in lines if "loss_qvalue" in line]
    assert "no single graph" not in capsys.readouterr().err
    assert rows["true"][-1]["updates"] == 32 and len(rows["true"]) == len(rows["false"])
    for eager, row in zip(rows["false"], rows["true"], strict=True):
        for name in ("loss_qvalue", "loss_actor", "td_error", "value", "ess", "spread"):
            assert row[name] == pytest.approx(eager[name], rel=1e-4, abs=1e-6)


def test_what_is_no_run_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("multigoal", monkeypatch)
    with pytest.raises(SystemExit):
        script.main([str(tmp_path)])
    assert "must hold a finished run of soft_q, sac or virel on env=multigoal" in capsys.readouterr().err
