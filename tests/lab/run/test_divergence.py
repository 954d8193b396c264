"""A run whose numbers are not finite stops and keeps its last good state; too large values are reported."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_dqn
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType
from torchrl.modules import QValueActor

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab import Run, RunSettings, read_metrics, strip_wall_clock
from torchrl_reg.lab.agents import load_policy
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.divergence import FiniteWatch, ValueWatch
from torchrl_reg.modules import BoltzmannQActor, NetSettings, q_network

#: Finite until the updates begin, and never again; a checkpoint comes before.
INFINITE = ["run.dir=run", "algo.lr=1e38", "algo.learning_starts_frames=200", "run.checkpoint_every_frames=96"]
#: Diverges within 600 frames, and no number becomes infinite.
LARGE = ["algo.lr=1e3", "algo.total_frames=600", "run.checkpoint_every_frames=96"]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [strip_wall_clock(row) for row in read_metrics(folder / "metrics.jsonl")]


def facts(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def optimizer(parameters: list[float], gradients: list[float]) -> torch.optim.Optimizer:
    weight = torch.nn.Parameter(torch.tensor(parameters))
    weight.grad = torch.tensor(gradients)
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(2)), weight], lr=0.1)


@pytest.mark.parametrize(
    ("row", "parameters", "gradients", "named"),
    [
        ({"loss": math.nan, "td_error": 1.0}, [1.0], [1.0], "loss is nan"),
        ({"loss_actor": 1.0, "loss_qvalue": -math.inf}, [1.0], [1.0], "loss_qvalue is -inf"),
        ({"loss": 1.0, "grad_norm": math.inf}, [1.0], [1.0], "grad_norm is inf"),
        ({"loss": 1.0}, [1.0, 2.0], [0.5, -math.inf], "the largest gradient is inf"),
        ({"loss": 1.0}, [math.nan, 2.0], [0.5, 1.0], "the largest parameter is nan"),
    ],
)
def test_what_is_not_finite_is_named(tmp_path, row, parameters, gradients, named):
    watch = FiniteWatch(tmp_path)
    watch.start(100)
    large = {"loss": 3e38, "soft_gap": math.inf, "return_mean": None}  # other columns may be anything
    assert watch.check_finite(150, {}, [], None)
    assert watch.check_finite(200, large, [optimizer([3e38, 3e38], [3e38, -3e38])], None)
    with pytest.raises(UserError) as stop:
        watch.check_finite(300, row, [optimizer(parameters, gradients)], tmp_path / "checkpoint-200")
    sentence = str(stop.value)
    assert sentence.startswith(f"{named} at frame 300 (finite at 200), so the run stopped; ")
    assert f"the last good checkpoint is {tmp_path}/checkpoint-200" in sentence
    failure = facts(tmp_path / "failed.json")
    assert (failure["frames"], failure["last_finite_frames"], failure["returncode"]) == (300, 200, 1)
    assert failure["last_line"] == sentence


def test_an_infinite_moment_of_the_optimizer_is_seen(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2))
    adam = torch.optim.Adam([weight], lr=0.5)

    def is_finite_after(gradient: float) -> bool:
        weight.grad = torch.tensor([0.5, gradient])
        adam.step()
        assert weight.isfinite().all()
        return FiniteWatch(tmp_path).check_finite(1, {"loss": 0.5}, [adam], None)

    assert is_finite_after(1e18)
    with pytest.raises(UserError, match="^the largest moment of the optimizer is inf at frame 1 "):
        is_finite_after(1e22)


def test_a_diverged_run_fails_and_its_checkpoint_is_from_before(finish, tmp_path):
    good, run = "checkpoint-000000000192.torchrl", tmp_path / "run"
    assert finish(*INFINITE) == 1
    (line,) = (tmp_path / "stderr.txt").read_text().splitlines()
    assert (
        f"at frame 256 (finite at 192), so the run stopped; the last good checkpoint is run/checkpoints/{good}" in line
    )
    assert facts(run / "failed.json")["frames"] == 256 and not (run / "done.json").exists()
    assert max(path.name for path in (run / "checkpoints").glob("*.torchrl")) == good
    # At a checkpoint between two rows, too, which is not written.
    assert finish(*INFINITE, "run.log_every_frames=10000", "run.dir=between") == 1
    line = (tmp_path / "stderr.txt").read_text().splitlines()[-1]
    assert "at frame 288 (finite at 192)" in line and good in line
    # Told to go on it does, and does not call its state good.
    assert finish(*INFINITE, "run.on_nan=continue", "algo.total_frames=1_200") == 0
    warning = (tmp_path / "stderr.txt").read_text().splitlines()[2]
    assert warning.startswith("warning: ") and "as run.on_nan=continue the run goes on" in warning
    assert facts(run / "done.json")["first_not_finite_frames"] == 256 and not (run / "failed.json").exists()
    assert [path.name for path in (run / "checkpoints").glob("*.torchrl")] == [good]
    assert rows(run)[-1]["frames"] >= 1_200


# ------------------------------------------------------------ what such a run evaluates and keeps

GREEDY = {"greedy": ExplorationType.DETERMINISTIC}
SAMPLED = {"sampled": ExplorationType.RANDOM}


def policy_run(path: Path, on_nan: str, evaluated: dict, at: dict[int, Callable], samples: bool = False) -> None:
    """A run that collects with softmax(q / .5) or its mode; ``at[frames](network, actor)`` is called there."""
    every = {"evaluate_every_frames": 32, "log_every_frames": 1_000}
    settings = RunSettings(**every, progress=False, eval_episodes=2, dir=str(path), on_nan=on_nan)
    run, env = Run(tiny_dqn.Config(run=settings)), make_env(EnvSettings("cartpole"), 4)
    network = q_network(NetSettings(num_cells=[8]), env)
    greedy = QValueActor(network, spec=env.full_action_spec_unbatched["action"])
    actor = BoltzmannQActor(greedy, tau=0.5)
    run.evaluate_with(make_env(EnvSettings("cartpole"), 2), {k: (actor, kind) for k, kind in evaluated.items()})
    parts = {"optimizer": torch.optim.SGD(network.parameters(), lr=0.1)}
    for _ in run.collect(env, actor if samples else greedy, total_frames=128, frames_per_batch=16, parts=parts):
        at.get(run.frames, lambda *_: None)(network, actor)
    run.finish()


def spoil_weight(network, _):
    with torch.no_grad():
        next(network.parameters())[0, 0] = math.nan


def spoil_buffer(_, actor):
    actor.regularizer.tau.fill_(math.nan)


def spoil_shape(network, _):
    network[0].weight.data = torch.zeros(8, 3)


def evaluations(path: Path) -> list[int]:
    return [row["frames"] for row in rows(path) if row["event"] == "eval"]


@pytest.mark.parametrize("evaluated", [GREEDY, SAMPLED])
def test_the_last_good_policy_survives_an_evaluation_before_the_next_row(tmp_path, evaluated):
    saved = []
    at = {48: lambda *_: saved.append((tmp_path / "policy.safetensors").read_bytes()), 64: spoil_weight}
    with pytest.raises(UserError, match=r"^the largest parameter is nan at frame 64 \(finite at 32\), so the run"):
        policy_run(tmp_path, "stop", evaluated, at)
    assert saved == [(tmp_path / "policy.safetensors").read_bytes()]
    assert load_policy(tmp_path) is not None and evaluations(tmp_path) == [32]


@pytest.mark.parametrize(
    ("on_nan", "spoil", "first"), [("continue", spoil_weight, 96), ("stop", spoil_buffer, None)]
)  # no optimizer has the buffers of a policy, but they count, too
def test_a_run_that_goes_on_keeps_the_last_good_policy_and_evaluates_no_other(tmp_path, capsys, on_nan, spoil, first):
    policy_run(tmp_path, on_nan, GREEDY | SAMPLED, {80: spoil})
    warned = "at frame 96 (finite at 64); as run.on_nan=continue the run goes on" in capsys.readouterr().err
    assert facts(tmp_path / "done.json")["first_not_finite_frames"] == first and warned == (first is not None)
    assert evaluations(tmp_path) == [32, 64]
    policy = load_policy(tmp_path)
    assert policy.tau == 0.5 and all(weight.isfinite().all() for weight in policy.parameters())


@pytest.mark.parametrize(
    ("on_nan", "said"),
    [
        ("stop", "or go on regardless with run.on_nan=continue"),
        ("continue", "as such a policy cannot be sampled, and run.on_nan=continue does not help"),
    ],
)
def test_a_policy_that_can_no_longer_sample_ends_the_run_in_one_sentence(tmp_path, on_nan, said):
    with pytest.raises(UserError) as stop:
        policy_run(tmp_path, on_nan, SAMPLED, {48: spoil_weight}, samples=True)
    sentence = str(stop.value)
    assert sentence.startswith("the largest parameter is nan at frame 48 (finite at 32), so the run stopped; ")
    assert said in sentence and facts(tmp_path / "failed.json")["last_line"] == sentence


def test_an_error_of_a_finite_policy_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError) as error:
        policy_run(tmp_path, "stop", SAMPLED, {48: spoil_shape}, samples=True)
    assert not isinstance(error.value, UserError)
    assert not (tmp_path / "failed.json").exists()


# ------------------------------------------------------------ values beyond what rewards allow


def judged(path: Path, row: dict[str, Any], gamma: float | None = 0.9, scale: float = 1.0, **batch: Any) -> dict:
    """Of a watch that has seen rewards of at most 2 in magnitude."""
    rewards = scale * torch.tensor([[[0.5], [-2.0]], [[0.0], [1.0]]])
    watch = ValueWatch(path)
    for reward in (rewards, 0.5 * rewards):
        watch.observe(TensorDict({"next": {"reward": reward}, **batch}, [2, 2]))
    found = watch.check_divergence({"frames": 30, "updates": 4} | row, gamma)
    assert watch.check_divergence({"frames": 40, "updates": 4} | row, gamma) == found
    assert watch.check_divergence({"frames": 50, "updates": 4}, gamma) == found
    return found


BEYOND = {"diverged_frames": 30}


@pytest.mark.parametrize(
    ("limit", "gamma", "column", "others"),
    [
        (200.0, 0.9, "td_error", {}),  # ten times 2 / (1 - .9)
        (200.0, 0.9, "value", {"loss_actor": 1e9}),  # which means something else where there is a value
        (200.0, 0.9, "loss_actor", {}),
        (40.0, 0.5, "value", {}),
        (260.0, 0.9, "value", {"tau": 0.5, "entropy": -1.2}),
        (250.0, 0.9, "loss_actor", {"alpha": 0.5, "entropy": 1.0}),
        (700.0, 0.9, "value", {"tau": 0.5}),  # 10 nats, if none are reported
        (230.0, 0.9, "value", {"bonus": -0.3, "bonus_clipped": 0.1}),
        (200.0, 0.9, "value", {"bonus": -1e6, "bonus_clipped": 0.0}),
        (200.0, 0.9, "value", {"tau": 1e6, "entropy": 1.2, "bellman_error": 1e6}),
        (200.0, 0.9, "value", {"tau": math.inf, "entropy": 1.2}),
        (math.inf, 1.0, "value", {}),
        (math.inf, None, "value", {}),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_bound(tmp_path, capsys, limit, gamma, column, others, sign):
    largest = limit if math.isfinite(limit) else 1e30
    for share, beyond in ((0.99, False), (1.01, limit < math.inf)):
        row = {column: sign * share * largest, "return_mean": None, **others}
        assert judged(tmp_path, row, gamma) == (BEYOND if beyond else {})
        said = f"warning: {tmp_path} diverges: {column} is {share * largest:.3g} at frame 30, "
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == beyond and all(line.startswith(said) for line in lines)


@pytest.mark.parametrize("name", ["loss", "loss_qvalue"])
def test_a_loss_is_at_most_a_squared_error(tmp_path, capsys, name):
    for loss, found in ((199.0**2, {}), (math.nan, {}), (201.0**2, BEYOND)):
        assert judged(tmp_path, {name: loss, "td_error": 3.0}) == found
    assert f"diverges: the root of {name} is 201 at frame 30, " in capsys.readouterr().err


def test_the_values_the_policy_chose_by_count_once_there_are_updates(tmp_path):
    for chosen, updates, found in ((-199.0, 3, {}), (-201.0, 3, BEYOND), (math.nan, 3, {})):
        assert judged(tmp_path, {"updates": updates}, chosen_action_value=torch.full((2, 2, 1), chosen)) == found
    watch = ValueWatch(tmp_path)
    watch.observe(TensorDict({"chosen_action_value": torch.full((2, 2, 1), -201.0)}, [2, 2]))
    assert watch.check_divergence({"frames": 30, "updates": 0}, 0.9) == {}
    # Where no reward was seen, those of an untrained network are no divergence.
    assert judged(tmp_path, {"td_error": 9.9}, scale=0.0) == {}
    assert judged(tmp_path, {"td_error": 10.1}, scale=0.0) == BEYOND


def test_the_largest_entropy_and_reward_count_and_are_restored(tmp_path):
    watch, again = ValueWatch(tmp_path), ValueWatch(tmp_path)
    watch.observe(TensorDict({"next": {"reward": torch.full((2, 2, 1), -2.0)}}, [2, 2]))
    assert not watch.check_divergence({"frames": 10, "updates": 1, "tau": 0.5, "entropy": 1.2}, 0.9)
    again.load_state_dict(watch.state_dict())
    row = {"frames": 20, "updates": 2, "tau": 0.5, "entropy": 0.0}
    assert not again.check_divergence(row | {"value": 259.0}, 0.9)
    assert again.check_divergence(row | {"value": 261.0}, 0.9) == {"diverged_frames": 20}


def test_each_run_says_so_once_and_resumes_to_the_same_rows(start, finish, kill_when, tmp_path):
    assert finish("run.seeds=[0,3]", "run.dir=together", *LARGE) == 0
    killed, saved = tmp_path / "killed", "checkpoints/checkpoint-000000000480.torchrl"
    kill_when(start("run.seed=3", "run.dir=killed", *LARGE), (killed / saved).exists)
    assert finish("run.seed=3", "run.dir=killed", *LARGE) == 0
    assert finish("run.dir=healthy", *LARGE[1:]) == 0
    assert rows(killed) == rows(tmp_path / "together/seed=3")
    found = facts(killed / "done.json")["diverged_frames"]
    marked = {row["frames"]: row.get("diverged_frames") for row in rows(killed) if row["event"] == "train"}
    assert marked == {frames: found if frames >= found else None for frames in marked} and 64 < found < 480
    said = (tmp_path / "stderr.txt").read_text()
    assert [said.count(f"{name} diverges") for name in ("seed=0", "seed=3", "killed", "healthy")] == [1, 1, 1, 0]
    assert "killed diverges: " in said and f" at frame {found}, " in said
    assert facts(tmp_path / "healthy/done.json")["diverged_frames"] is None
