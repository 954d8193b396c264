"""Turns finished runs into statistics, tables and figures, with numpy and (for figures) matplotlib; no torch."""

from torchrl_reg.lab.analysis.groups import Group, group_runs
from torchrl_reg.lab.analysis.published import (
    RANDOM_RETURNS,
    SAC_ANCHORS,
    NormalizedScores,
    human_normalized_score,
    normalized_score,
    sac_normalized_scores,
)
from torchrl_reg.lab.analysis.runs import RunRecord, find_runs
from torchrl_reg.lab.errors import UserError

__all__ = [
    "RANDOM_RETURNS",
    "SAC_ANCHORS",
    "UserError",
    "Group",
    "NormalizedScores",
    "RunRecord",
    "find_runs",
    "group_runs",
    "human_normalized_score",
    "normalized_score",
    "sac_normalized_scores",
]
