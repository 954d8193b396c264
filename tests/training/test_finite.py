"""A run whose numbers are no longer finite stops, says where, and keeps its last good checkpoint."""

from __future__ import annotations

import json
import math

import pytest
import torch

from torchrl_reg.training import ConfigError, RunSettings, read_metrics
from torchrl_reg.training.errors import DivergedError
from torchrl_reg.training.finite import FiniteWatch
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
