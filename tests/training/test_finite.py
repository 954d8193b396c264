"""A run whose numbers are no longer finite stops, says where, and keeps its last good checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import tiny_dqn
import torch
from torchrl.envs.utils import ExplorationType
from torchrl.modules import QValueActor

from torchrl_reg.agents import load_policy
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import BoltzmannQActor, NetSettings, q_network
from torchrl_reg.training import ConfigError, Run, RunSettings, read_metrics
from torchrl_reg.training.errors import DivergedError
from torchrl_reg.training.run.divergence import FiniteWatch
from torchrl_reg.training.settings import RecipeConfig, validate

#: Finite until the updates begin, and never again; a checkpoint comes before.
DIVERGING = ["run.dir=run", "algo.lr=1e38", "algo.learning_starts_frames=200", "run.checkpoint_every_frames=96"]


def _optimizer(parameters: list[float], gradients: list[float]) -> torch.optim.Optimizer:
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
    assert watch.is_finite(200, {"loss": 0.5}, [_optimizer([1.0], [2.0])], None)
    with pytest.raises(DivergedError) as stop:
        watch.is_finite(300, row, [_optimizer(parameters, gradients)], tmp_path / "checkpoint-200")
    sentence = str(stop.value)
    assert sentence.startswith(f"{named} at frame 300 (finite at 200), so the run stopped; ")
    assert f"the last good checkpoint is {tmp_path}/checkpoint-200" in sentence
    failure = json.loads((tmp_path / "failed.json").read_text())
    assert (failure["frames"], failure["last_finite_frames"], failure["returncode"]) == (300, 200, 1)
    assert failure["last_line"] == sentence


def test_an_infinite_moment_of_the_optimizer_is_seen(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight], lr=0.5)
    for gradient, expected in ((1e18, None), (1e22, "the largest moment of the optimizer is inf at frame 1 ")):
        weight.grad = torch.tensor([0.5, gradient])
        optimizer.step()
        assert weight.isfinite().all()
        if expected is None:
            assert FiniteWatch(tmp_path).is_finite(1, {"loss": 0.5}, [optimizer], None)
        else:
            with pytest.raises(DivergedError, match=f"^{expected}"):
                FiniteWatch(tmp_path).is_finite(1, {"loss": 0.5}, [optimizer], None)


def test_large_numbers_are_finite_and_other_columns_may_be_anything(tmp_path):
    row = {"loss": 3e38, "soft_gap": math.inf, "return_mean": None}
    assert FiniteWatch(tmp_path).is_finite(1, row, [_optimizer([3e38, 3e38], [3e38, -3e38])], None)
    assert FiniteWatch(tmp_path).is_finite(1, {}, [], None)


def test_a_diverged_run_fails_and_its_checkpoint_is_from_before(finish, tmp_path):
    assert finish(*DIVERGING) == 1
    (line,) = (tmp_path / "stderr.txt").read_text().splitlines()
    assert "at frame 256 (finite at 192), so the run stopped; the last good checkpoint is run/checkpoints/" in line
    assert line.count("checkpoint-000000000192.torchrl") == 1
    assert json.loads((tmp_path / "run" / "failed.json").read_text())["frames"] == 256
    assert not (tmp_path / "run" / "done.json").exists()
    newest = sorted((tmp_path / "run" / "checkpoints").glob("*.torchrl"))[-1]
    assert newest.name == "checkpoint-000000000192.torchrl"
    # Started again it meets the same end; told to go on it does, and does not call its state good.
    assert finish(*DIVERGING) == 1
    assert finish(*DIVERGING, "run.on_nan=continue", "algo.total_frames=1_200") == 0
    warning = (tmp_path / "stderr.txt").read_text().splitlines()[2]
    assert warning.startswith("warning: ") and "as run.on_nan=continue the run goes on" in warning
    assert json.loads((tmp_path / "run" / "done.json").read_text())["first_not_finite_frames"] == 256
    assert not (tmp_path / "run" / "failed.json").exists()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.torchrl")] == [newest.name]
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["frames"] >= 1_200


def test_a_checkpoint_between_two_rows_is_not_written_from_numbers_that_are_not_finite(finish, tmp_path):
    assert finish(*DIVERGING, "run.log_every_frames=10000") == 1
    (line,) = (tmp_path / "stderr.txt").read_text().splitlines()
    assert "at frame 288 (finite at 192)" in line and "checkpoint-000000000192.torchrl" in line


SAMPLED, GREEDY = ExplorationType.RANDOM, ExplorationType.DETERMINISTIC


def _policy_run(path, at: dict[int, Callable], *, on_nan: str, evaluated: dict, samples: bool) -> Run:
    """A run that collects with softmax(q / .5) or its mode; ``at[frames](network, actor)`` is called there."""
    run = Run(tiny_dqn.Config(run=RunSettings(**SETTINGS, dir=str(path), on_nan=on_nan)))
    env = make_env(EnvSettings("cartpole"), 4)
    network = q_network(NetSettings(num_cells=[8]), env)
    greedy = QValueActor(network, spec=env.full_action_spec_unbatched["action"])
    actor = BoltzmannQActor(greedy, tau=0.5)
    run.evaluate_with(make_env(EnvSettings("cartpole"), 2), {k: (actor, kind) for k, kind in evaluated.items()})
    run.track(optimizer=torch.optim.SGD(network.parameters(), lr=0.1))
    for _ in run.collect(env, actor if samples else greedy, total_frames=128, frames_per_batch=16):
        if run.frames in at:
            at[run.frames](network, actor)
    return run


SETTINGS = {"progress": False, "eval_episodes": 2, "evaluate_every_frames": 32, "log_every_frames": 1_000}


def _spoil(network, _):
    with torch.no_grad():
        next(network.parameters())[0, 0] = math.nan


def _evaluations(path) -> list[int]:
    return [row["frames"] for row in read_metrics(path / "metrics.jsonl") if row["event"] == "eval"]


@pytest.mark.parametrize("evaluated", [{"greedy": GREEDY}, {"sampled": SAMPLED}])
def test_the_last_good_policy_survives_an_evaluation_before_the_next_row(tmp_path, evaluated):
    saved = []
    at = {48: lambda *_: saved.append((tmp_path / "policy.safetensors").read_bytes()), 64: _spoil}
    with pytest.raises(
        DivergedError, match=r"^the largest parameter is nan at frame 64 \(finite at 32\), so the run st"
    ):
        _policy_run(tmp_path, at, on_nan="stop", evaluated=evaluated, samples=False)
    assert saved == [(tmp_path / "policy.safetensors").read_bytes()]
    assert load_policy(tmp_path) is not None and _evaluations(tmp_path) == [32]


def test_a_run_told_to_go_on_keeps_the_last_good_policy_and_evaluates_no_other(tmp_path, capsys):
    evaluated = {"greedy": GREEDY, "sampled": SAMPLED}
    _policy_run(tmp_path, {80: _spoil}, on_nan="continue", evaluated=evaluated, samples=False).finish()
    (warning,) = capsys.readouterr().err.splitlines()
    assert "at frame 96 (finite at 64); as run.on_nan=continue the run goes on" in warning
    assert json.loads((tmp_path / "done.json").read_text())["first_not_finite_frames"] == 96
    assert _evaluations(tmp_path) == [32, 64]
    assert all(weight.isfinite().all() for weight in load_policy(tmp_path).parameters())


def test_buffers_of_the_policy_count_too_though_no_optimizer_has_them(tmp_path):
    def spoil(_, actor):
        actor.regularizer.tau.fill_(math.nan)

    run = _policy_run(tmp_path, {80: spoil}, on_nan="stop", evaluated={"greedy": GREEDY}, samples=False)
    run.finish()
    assert _evaluations(tmp_path) == [32, 64] and load_policy(tmp_path).tau == 0.5


@pytest.mark.parametrize("on_nan", ["stop", "continue"])
def test_a_policy_that_can_no_longer_sample_ends_the_run_in_one_sentence(tmp_path, on_nan):
    with pytest.raises(DivergedError) as stop:
        _policy_run(tmp_path, {48: _spoil}, on_nan=on_nan, evaluated={"sampled": SAMPLED}, samples=True)
    sentence = str(stop.value)
    assert sentence.startswith("the largest parameter is nan at frame 48 (finite at 32), so the run stopped; ")
    assert ("go on regardless with run.on_nan=continue" in sentence) == (on_nan == "stop")
    assert ("as such a policy cannot be sampled, and run.on_nan=continue does not help" in sentence) == (
        on_nan == "continue"
    )
    assert json.loads((tmp_path / "failed.json").read_text())["last_line"] == sentence


def test_an_error_of_a_finite_policy_stays_what_it_is(tmp_path):
    def spoil(network, _):
        network[0].weight.data = torch.zeros(8, 3)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as error:
        _policy_run(tmp_path, {48: spoil}, on_nan="stop", evaluated={"sampled": SAMPLED}, samples=True)
    assert not isinstance(error.value, DivergedError)
    assert not (tmp_path / "failed.json").exists()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_settings_are_finite(value):
    import dataclasses

    @dataclasses.dataclass
    class Algo:
        rate: float = 1.0
        rates: list[float] = dataclasses.field(default_factory=list)

    @dataclasses.dataclass
    class Config(RecipeConfig):
        algo: Algo = dataclasses.field(default_factory=Algo)

    validate(Config())
    with pytest.raises(ConfigError, match=r"^algo.rate must be a finite number, got "):
        validate(Config(algo=Algo(rate=value)))
    with pytest.raises(ConfigError, match=r"^algo.rates\[1\] must be a finite number, got "):
        validate(Config(algo=Algo(rates=[1.0, value])))
    with pytest.raises(ConfigError, match="run.on_nan must be one of stop, continue, got 'ignore'"):
        validate(Config(run=RunSettings(on_nan="ignore")))
