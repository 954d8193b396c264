"""Every public name says what it computes: formula, shapes, units and source, but for those listed as having none."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = (
    *("agents", "analysis", "collectors", "envs", "functional", "modules", "objectives", "objectives.heads"),
    *("objectives.value", "planning", "regularizers", "tabular", "training"),
)
PARTS = ("formula", "shapes", "units", "source")
#: Names that compute no equation of their own, and which parts they have instead of all four.
OTHERS: dict[tuple[str, ...], str] = {
    # Tensors in, tensors out, or tensors held: environments, models, collectors, networks, records.
    ("shapes", "units"): """
        FastCollector OverlappedCollector GoalGridworldEnv MinAtar TabularEnv make_env register_env
        ActionBins CriticEnsemble SingleDimensionActor bin_value_network policy prior_network q_network quantile_network
        state_action_value_network state_value_network
        Shaping Regularizer
        AtariModel BanditRun Backup EmulatorModel Evaluation GymModel Model ModelEnv Nodes Path Planner QEvaluation
        SearchActor SearchResult Tables TabularModel Tree VectorModel search_tables zero_evaluation
        Composition Iterate Messages PriorIterate PriorSolution Quadrature Solution TabularAgents TabularMDP
        VIRELIterate VIRELSolution policy_losses state_visits
    """,
    ("shapes",): "plain_policy",
    # What others have published, with shapes but without an equation: networks and worlds.
    ("shapes", "source"): "MinAtarCNN NatureCNN",
    ("shapes", "units", "source"): "MultiGoalEnv QuantileQActor chain gridworld random_mdp SyntheticTrees",
    # Numbers without a shape.
    ("formula", "units", "source"): "BellmanErrorCoefficient DualCoefficient PolyakTargetUpdate",
    ("units", "source"): "HardTargetUpdate RANDOM_RETURNS SAC_ANCHORS",
    ("units",): """
        NormalizedScores EnvSettings RecordedVectorEnv frames_per_step Snapshot NStep Run RunSettings WALL_CLOCK_COLUMNS
        EpsilonSchedule LinearSchedule PolicyLearner PolicyLearning RolloutLearner RolloutLearning
        ValueLearner ValueLearning
    """,
    ("source",): "METHODS MIRL_WORLDS",
    ("formula",): "stream_seed",
    # Errors, settings, files and machinery, in words alone.
    (): """
        AgentError SavedPolicy load_policy read_policy save_policy
        AnalysisError Group RunRecord find_runs group_runs
        fast_vector EnvError Restorable frame_stack resolve NetSettings PolicySettings num_actions
        RegValueEstimators Head head_of Coefficient Method gridworld_cells
        CheckpointError ConfigError RecipeConfig Study check_replay_learning evaluate make_update read_metrics recipe
        require strip_wall_clock build composed_critics trained_critics
    """,
}
DEMANDED = {name: parts for parts, names in OTHERS.items() for name in names.split()}
_OPERATOR = re.compile(r"\s(?:[-+*/~=]|<-)\s|\bE[\[|]|\bsum_|logsumexp|softmax")
_SHAPE = re.compile(r"\[\*?[A-Z][\w ]*[,\]]|\[(?:num_envs|seeds|rows)\b|0-dimensional")
_UNIT = re.compile(
    r"reward unit|units? of|nats?\b|frames|seconds|without unit|percent|probabilit|steps\b|updates\b|points",
    re.IGNORECASE,
)


def public_names(room: str) -> dict[str, str]:
    """The docstring of every name in ``__all__``; that of a constant is the text below it."""
    module = importlib.import_module(f"torchrl_reg.{room}")
    found = {}
    for name in module.__all__:
        each = getattr(module, name)
        if inspect.isclass(each):
            found[name] = inspect.cleandoc(vars(each).get("__doc__") or "")
        elif inspect.isfunction(each):
            found[name] = inspect.getdoc(each) or ""
        else:
            found[name] = constants(module.__file__).get(name, "")
    return found


def constants(file: str | None) -> dict[str, str]:
    """Texts below the module-level assignments in the package whose ``__init__.py`` is ``file``."""
    found = {}
    assert file is not None
    for path in Path(file).parent.rglob("*.py"):
        body = ast.parse(path.read_text()).body
        for node, below in zip(body, body[1:], strict=False):
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[target.id] = str(below.value.value)
    return found


def parts_of(text: str) -> set[str]:
    """Which of ``PARTS`` a docstring has.

    A formula is mathematics (``:math:``) or code with an operator; what stands in a doctest does not count.
    """
    prose = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith((">>>", "...")))
    spans = re.findall(r"``([^`]+)``", prose)
    found = {
        "formula": "math:" in prose or any(_OPERATOR.search(span) for span in spans),
        "shapes": any(_SHAPE.search(span) for span in spans),
        "units": _UNIT.search(prose),
        "source": "Source: " in prose,
    }
    return {part for part, there in found.items() if there}


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_says_what_it_computes(room: str) -> None:
    names = public_names(room)
    assert [name for name, text in names.items() if len(text.split()) < 5] == []
    missing = {name: set(DEMANDED.get(name, PARTS)) - parts_of(text) for name, text in names.items()}
    assert {name: parts for name, parts in missing.items() if parts} == {}


def test_every_exception_is_a_public_name_and_none_is_listed_twice() -> None:
    listed = [name for names in OTHERS.values() for name in names.split()]
    assert len(listed) == len(set(listed))
    assert set(listed) <= {name for room in ROOMS for name in public_names(room)}


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_method_is_documented(room: str) -> None:
    module, bare = importlib.import_module(f"torchrl_reg.{room}"), []
    for name in module.__all__:
        each = getattr(module, name)
        for method, found in vars(each).items() if inspect.isclass(each) else ():
            # At first use TensorDict makes a property of a module's out_keys.
            origin = getattr(getattr(found, "fget", found), "__module__", None)
            ours = (origin or "").startswith("torchrl_reg")
            if not method.startswith("_") and ours and (inspect.isfunction(found) or isinstance(found, property)):
                bare += [] if inspect.getdoc(getattr(each, method)) else [f"{name}.{method}"]
    assert bare == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Nothing of the kind, of ``tau`` in ``[0, 1]``.", set()),
        ("Doctests do not count.\n\n>>> x = ``a + b``", set()),
        ("Soft value ``tau ln sum_a exp(q / tau)`` ``[*B]``, in reward units.", {"formula", "shapes", "units"}),
        (r"With :math:`\pi(a)`, as [V20] does, of ``value``, - and - ``others``.", {"formula"}),
        ("A network of ``q`` - of some - ``r`` ``[S, A]``.\n\nSource: ours.", {"shapes", "source"}),
    ],
)
def test_what_counts_as_a_part(text: str, parts: set[str]) -> None:
    assert parts_of(text) == parts
