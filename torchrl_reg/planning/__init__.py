"""Monte-Carlo tree search of many trees side by side, regularized by the objects that losses and actors use.

Types (:mod:`tree`) <- the search with selection, backup and evaluation (:mod:`search`) <- the named planners
(:mod:`planners`), which work on any :class:`Model`.
"""

from torchrl_reg.planning.atari_model import AtariModel
from torchrl_reg.planning.bandit import BanditRun, softmax_bandit
from torchrl_reg.planning.models import EmulatorModel, GymModel, Snapshot, SyntheticTrees, TabularModel, VectorModel
from torchrl_reg.planning.planners import MENTS, PUCT, RENTS, TENTS, UCT, Planner, SearchResult
from torchrl_reg.planning.scalar_models import CompiledModel, PythonModel, Tables, search_tables
from torchrl_reg.planning.search import (
    E2W,
    UCB1,
    AverageReturns,
    Backup,
    Path,
    PUCTRule,
    QEvaluation,
    RandomRollout,
    RegularizedBackup,
    mcts,
    zero_evaluation,
)
from torchrl_reg.planning.search_actor import ModelEnv, SearchActor
from torchrl_reg.planning.tree import Evaluation, Model, Nodes, Tree

__all__ = [
    "E2W",
    "MENTS",
    "PUCT",
    "RENTS",
    "TENTS",
    "UCB1",
    "UCT",
    "AtariModel",
    "AverageReturns",
    "BanditRun",
    "Backup",
    "CompiledModel",
    "EmulatorModel",
    "Evaluation",
    "GymModel",
    "Model",
    "ModelEnv",
    "Nodes",
    "PUCTRule",
    "Path",
    "Planner",
    "PythonModel",
    "QEvaluation",
    "RandomRollout",
    "RegularizedBackup",
    "SearchActor",
    "SearchResult",
    "Snapshot",
    "SyntheticTrees",
    "Tables",
    "TabularModel",
    "Tree",
    "VectorModel",
    "mcts",
    "search_tables",
    "softmax_bandit",
    "zero_evaluation",
]
