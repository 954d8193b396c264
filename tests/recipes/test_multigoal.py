"""The figure of the multi-goal point: read from finished runs, with hand-counted shares."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from torchrl.checkpoint import Checkpoint

from torchrl_reg import load_policy

TINY = "env=multigoal algo.total_frames=96 algo.learning_starts_frames=64 algo.batch_size=8"
TINY += " policy.num_cells=[8] run.eval_episodes=1 run.progress=false"


def acting(*actions):
    """A policy that gives these ``actions``."""
    return SimpleNamespace(actor=lambda td: td.set("action", torch.tensor(actions)))


def test_where_points_arrive(load):
    """Up for half of them, nowhere for the others."""
    walks, goal = load("multigoal").paths(acting(*[[0.0, 0.9], [0.0, 0.0]] * 3), 6)
    assert goal.tolist() == [2, 4] * 3
    assert len(walks[1]) == 31 and 5 <= len(walks[0]) <= 7 and walks[0][-1, 1] > 4
    assert all(walk[0].tolist() == [0.0, 0.0] for walk in walks)


def test_which_way_actions_point(load):
    """Two of four point right, one left, one down."""
    policy = acting([0.9, 0.3], [0.2, 0.1], [-0.5, 0.4], [-0.1, -0.2])
    assert load("multigoal").directions(policy, 4).tolist() == [0.5, 0.25, 0.0, 0.25]


@pytest.mark.parametrize("name", ["soft_q", "sac", "virel"])
def test_a_run_is_read_and_drawn(name, start, load, tmp_path):
    script = load("multigoal")
    start(f"{name} {TINY}")
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


def test_composed_values_are_the_mean_of_two_runs_and_stay_as_they_are(start, load, tmp_path):
    """The smaller of a run's critics, averaged over the runs; the sampler alone learns."""
    script = load("multigoal")
    for folder, game in (("one", "right_up"), ("two", "up_left")):
        start(f"soft_q {TINY} env.game={game} run.seed={len(game)}", folder)
    rows = start(f"soft_q {TINY} env.game=up algo.compose=[{tmp_path / 'one'},{tmp_path / 'two'}]", "both")
    one, two, both = (script.read(tmp_path / name) for name in ("one", "two", "both"))
    state, action = torch.randn(6, 2), torch.rand(6, 2)
    separate = torch.stack([each.q(state, action) for each in (one, two)])
    torch.testing.assert_close(both.q(state, action), separate.mean(0))
    assert (separate[0] - separate[1]).abs().max() > 0.01 and rows[-1]["updates"] == 32
    assert len(one.critics) == 2 and len(both.critics) == 1
    (path,) = (tmp_path / "both" / "checkpoints").iterdir()
    loss = SimpleNamespace(state_dict=dict, load_state_dict=lambda state: vars(loss).update(state=state))
    Checkpoint(loss=loss).load(path)
    for task, run in enumerate((one, two)):
        for name, weight in run.critics[1].state_dict().items():
            assert loss.state[f"qvalue_network_params.critics.0.tasks.{task}.critics.1.{name}"].equal(weight)
    weights = [next(each.actor.parameters()).flatten()[:5] for each in (one, both)]
    assert (weights[0] - weights[1]).abs().max() > 1e-3


def test_a_layer_above_a_trained_flow_plays_through_it(start, load, tmp_path, capsys):
    from torchrl_reg import load_policy

    start(f"sac {TINY} policy=flow", "below")
    rows = start(f"sac {TINY} env.game=up algo.below={tmp_path / 'below'}", "above")
    assert rows[-1]["event"] == "eval" and not (tmp_path / "above" / "policy.safetensors").exists()
    flow, h = load_policy(tmp_path / "below"), torch.tensor([[0.3, -0.6]])
    states = TensorDict({"observation": torch.tensor([[1.0, 2.0]])}, [1])
    layer = load("sac").layer_below(str(tmp_path / "below"))
    played = layer.play(lambda td: td.set("action", h), states.clone())["action"]
    u, _ = flow.get_dist(states).before_squash(h.atanh())
    torch.testing.assert_close(played, flow.squashed(u), atol=1e-5, rtol=0)
    assert (played - h).abs().max() > 1e-3


def test_runs_that_do_not_fit_are_one_sentence(start, tmp_path, capfd):
    for words, sentence in (
        (f"soft_q {TINY} algo.compose=[{tmp_path / 'none'}]", "algo.compose must be the folder of a finished run with"),
        (
            f"sac {TINY} algo.below={tmp_path / 'none'}",
            "algo.below must be the folder of a finished run with policy=flow",
        ),
    ):
        with pytest.raises(SystemExit):
            start(words, words[:3])
        assert sentence in capfd.readouterr().err


@pytest.mark.slow
def test_a_compiled_soft_q_run_is_the_eager_one(start, capsys, tmp_path):
    """With PyTorch's own random numbers, as drawn without compiling; the end of the run says which it was."""
    words = f"soft_q {TINY} run.log_every_frames=32 run.compile"
    eager, compiled = ([row for row in start(f"{words}={on}", on) if "ess" in row] for on in ("false", "true"))
    assert "not compiled" not in capsys.readouterr().err
    for on in ("false", "true"):
        assert json.loads((tmp_path / on / "done.json").read_text())["compiled"] is (on == "true")
    assert compiled[-1]["updates"] == 32 and len(compiled) == len(eager)
    for one, other in zip(eager, compiled, strict=True):
        for name in ("loss_qvalue", "loss_actor", "td_error", "value", "ess", "spread"):
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6)


def test_what_is_no_run_is_one_sentence(load, tmp_path, capsys):
    with pytest.raises(SystemExit):
        load("multigoal").main([str(tmp_path)])
    assert "must hold a finished run of soft_q, sac or virel on env=multigoal" in capsys.readouterr().err
