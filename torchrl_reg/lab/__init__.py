"""Everything one run needs that is the same for every method; recipes pass in what differs.

The modules below know no loss, no equation and no environment of this package.
"""

import importlib.util
import sys

# TensorDict looks for pandas at every entry a module writes; where there is none the search costs
# 40 to 100 microseconds each time, unless the absence is on record.
if importlib.util.find_spec("pandas") is None:
    sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]

from torchrl_reg.lab.cli.extras import check_extras

check_extras()

from torchrl_reg.lab.cli.command_line import recipe
from torchrl_reg.lab.cli.typed_config import build
from torchrl_reg.lab.errors import CheckpointError, ConfigError, require
from torchrl_reg.lab.learners.checks import check_replay_learning
from torchrl_reg.lab.learners.policy_learning import PolicyLearner, PolicyLearning
from torchrl_reg.lab.learners.replay import StratifiedSampler
from torchrl_reg.lab.learners.rollout_learning import RolloutLearner, RolloutLearning
from torchrl_reg.lab.learners.update import make_update
from torchrl_reg.lab.learners.value_learning import EpsilonSchedule, LinearSchedule, NStep, ValueLearner, ValueLearning
from torchrl_reg.lab.run.base_run import Study
from torchrl_reg.lab.run.critics import composed_critics, trained_critics
from torchrl_reg.lab.run.evaluation import evaluate
from torchrl_reg.lab.run.metrics import WALL_CLOCK_COLUMNS, read_metrics, strip_wall_clock
from torchrl_reg.lab.run.run import Run
from torchrl_reg.lab.run.settings import RecipeConfig, RunSettings
from torchrl_reg.lab.run.streams import stream_seed

__all__ = [
    "WALL_CLOCK_COLUMNS",
    "CheckpointError",
    "ConfigError",
    "EpsilonSchedule",
    "LinearSchedule",
    "NStep",
    "PolicyLearner",
    "PolicyLearning",
    "RecipeConfig",
    "RolloutLearner",
    "RolloutLearning",
    "Run",
    "RunSettings",
    "StratifiedSampler",
    "Study",
    "ValueLearner",
    "ValueLearning",
    "build",
    "check_replay_learning",
    "composed_critics",
    "evaluate",
    "make_update",
    "read_metrics",
    "recipe",
    "require",
    "stream_seed",
    "strip_wall_clock",
    "trained_critics",
]
