"""Everything around a run that is the same for every method; recipes pass in what differs.

The modules below contain no loss and no equation.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrl_reg.lab.cli.command_line import recipe as recipe
    from torchrl_reg.lab.cli.objects import build as build
    from torchrl_reg.lab.errors import UserError as UserError
    from torchrl_reg.lab.errors import require as require
    from torchrl_reg.lab.learners.learner import Learner as Learner
    from torchrl_reg.lab.learners.learner import Learning as Learning
    from torchrl_reg.lab.learners.policy_learning import PolicyLearner as PolicyLearner
    from torchrl_reg.lab.learners.policy_learning import PolicyLearning as PolicyLearning
    from torchrl_reg.lab.learners.replay import StratifiedSampler as StratifiedSampler
    from torchrl_reg.lab.learners.replay import make_replay as make_replay
    from torchrl_reg.lab.learners.rollout_learning import RolloutLearner as RolloutLearner
    from torchrl_reg.lab.learners.rollout_learning import RolloutLearning as RolloutLearning
    from torchrl_reg.lab.learners.schedules import EpsilonSchedule as EpsilonSchedule
    from torchrl_reg.lab.learners.schedules import LinearSchedule as LinearSchedule
    from torchrl_reg.lab.learners.update import make_update as make_update
    from torchrl_reg.lab.learners.value_learning import ValueLearner as ValueLearner
    from torchrl_reg.lab.learners.value_learning import ValueLearning as ValueLearning
    from torchrl_reg.lab.run.base_run import Study as Study
    from torchrl_reg.lab.run.critics import composed_critics as composed_critics
    from torchrl_reg.lab.run.critics import trained_critics as trained_critics
    from torchrl_reg.lab.run.evaluation import evaluate as evaluate
    from torchrl_reg.lab.run.metrics import WALL_CLOCK_COLUMNS as WALL_CLOCK_COLUMNS
    from torchrl_reg.lab.run.metrics import read_metrics as read_metrics
    from torchrl_reg.lab.run.metrics import strip_wall_clock as strip_wall_clock
    from torchrl_reg.lab.run.run import Run as Run
    from torchrl_reg.lab.run.settings import RecipeConfig as RecipeConfig
    from torchrl_reg.lab.run.settings import RunSettings as RunSettings
    from torchrl_reg.lab.run.streams import stream_seed as stream_seed

_MODULES = {
    "UserError": "errors",
    "EpsilonSchedule": "learners.schedules",
    "Learner": "learners.learner",
    "Learning": "learners.learner",
    "LinearSchedule": "learners.schedules",
    "PolicyLearner": "learners.policy_learning",
    "PolicyLearning": "learners.policy_learning",
    "RecipeConfig": "run.settings",
    "RolloutLearner": "learners.rollout_learning",
    "RolloutLearning": "learners.rollout_learning",
    "Run": "run.run",
    "RunSettings": "run.settings",
    "StratifiedSampler": "learners.replay",
    "Study": "run.base_run",
    "ValueLearner": "learners.value_learning",
    "ValueLearning": "learners.value_learning",
    "WALL_CLOCK_COLUMNS": "run.metrics",
    "build": "cli.objects",
    "composed_critics": "run.critics",
    "evaluate": "run.evaluation",
    "make_replay": "learners.replay",
    "make_update": "learners.update",
    "read_metrics": "run.metrics",
    "recipe": "cli.command_line",
    "require": "errors",
    "stream_seed": "run.streams",
    "strip_wall_clock": "run.metrics",
    "trained_critics": "run.critics",
}
__all__ = list(_MODULES)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Imported on first access, so that tables and reports (lab.analysis) do not import torch.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torchrl_reg.lab.cli.extras import check_extras

    check_extras()
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
