"""Invalid settings are refused in one sentence."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from torchrl_reg.lab import RecipeConfig, RunSettings, UserError
from torchrl_reg.lab.run.settings import validate


@dataclasses.dataclass
class Algo:
    rate: float = 1.0
    rates: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Config(RecipeConfig):
    algo: Algo = dataclasses.field(default_factory=Algo)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_are_finite(value: float) -> None:
    validate(Config())
    for algo, name in ((Algo(rate=value), "rate"), (Algo(rates=[1.0, value]), r"rates\[1\]")):
        with pytest.raises(UserError, match=rf"^algo\.{name} must be a finite number, got "):
            validate(Config(algo=algo))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"seeds": [1, 1]}, "run.seeds must be different integers, each at least 0, got [1, 1]."),
        ({"threads": 100_000}, "run.threads must be at most 1,024, got 100000."),
        ({"checkpoint_every_frames": 0}, "run.checkpoint_every_frames must be at least 1, or null, got 0."),
        ({"seeds": []}, "run.seeds must be different integers, each at least 0, got []."),
        ({"seeds": [-1]}, "run.seeds must be different integers, each at least 0, got [-1]."),
        ({"seeds": [1, 2], "cudagraphs": True}, "run.cudagraphs must be false with run.seeds, got True."),
        ({"seeds": [1, 2], "overlap": True}, "run.overlap must be false with run.seeds or run.cudagraphs, got True."),
        ({"on_nan": "ignore"}, "run.on_nan must be one of stop, continue, got 'ignore'."),
    ],
)
def test_settings_of_a_run(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        validate(Config(run=RunSettings(**settings)))
    assert str(error.value) == sentence
