"""Statistics, tables and figures of finished runs, without torch: numpy, and matplotlib for figures."""

from torchrl_reg.lab.analysis.find import find_runs
from torchrl_reg.lab.analysis.groups import Group, group_runs
from torchrl_reg.lab.analysis.published import (
    human_normalized_score,
    normalized_score,
    random_returns,
    sac_returns,
)
from torchrl_reg.lab.analysis.runs import RunRecord
from torchrl_reg.lab.errors import UserError

__all__ = [
    "UserError",
    "Group",
    "RunRecord",
    "find_runs",
    "group_runs",
    "human_normalized_score",
    "normalized_score",
    "random_returns",
    "sac_returns",
]
