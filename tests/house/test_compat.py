"""Detects private names of ``compat.py`` that a newer release has moved, and private names that it does not hold."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tensordict import LazyStackedTensorDict, TensorDict
from tensordict.nn import TensorDictModule, TensorDictParams
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Categorical, LazyTensorStorage, PrioritizedSampler, TensorDictReplayBuffer
from torchrl.envs import GymWrapper
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, LossModule, SoftUpdate
from torchrl.objectives.value import TD0Estimator

ROOT = Path(__file__).parents[2]
COMPAT = ROOT / "torchrl_reg" / "compat.py"
FOREIGN = {"torch", "torchrl", "tensordict", "submitit", "gymnasium", "hydra", "omegaconf"}


@pytest.fixture
def compat() -> ModuleType:
    """Imported late: where a name has moved it cannot be, and this file has to say which."""
    return importlib.import_module("torchrl_reg.compat")


@pytest.fixture
def objectives() -> ModuleType:
    return importlib.import_module("torchrl_reg.objectives")


def private_imports(path: Path) -> list[tuple[str, str]]:
    """``(module, name)`` of each private name of a foreign package that ``path`` imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FOREIGN:
            private_module = any(part.startswith("_") for part in node.module.split("."))  # type: ignore[union-attr]
            found += [(node.module, a.name) for a in node.names if private_module or a.name.startswith("_")]
        elif isinstance(node, ast.Import):
            parts = (alias.name.split(".") for alias in node.names)
            found += [(".".join(p), "") for p in parts if p[0] in FOREIGN and any(x.startswith("_") for x in p)]
    return found  # type: ignore[return-value]


def attributes() -> dict[str, dict[str, str]]:
    """``ATTRIBUTES`` of ``compat.py``, read without importing it."""
    nodes = (node for node in ast.parse(COMPAT.read_text()).body if isinstance(node, ast.Assign))
    return next(ast.literal_eval(node.value) for node in nodes if ast.unparse(node.targets[0]) == "ATTRIBUTES")


ATTRIBUTES = attributes()
LISTED = {name for names in ATTRIBUTES.values() for name in names}


@pytest.mark.parametrize(("module", "name"), private_imports(COMPAT), ids=lambda x: x)
def test_imported_names_are_where_they_were(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name), f"{module}.{name} has moved"


def actor() -> QValueActor:
    return QValueActor(nn.Linear(4, 3), spec=Categorical(3))


def replay() -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(storage=LazyTensorStorage(4), batch_size=2)


def cart_pole() -> Any:
    return pytest.importorskip("gymnasium").make("CartPole-v1")


def vector_env() -> Any:
    return pytest.importorskip("gymnasium").vector.SyncVectorEnv([cart_pole])


#: Of classes whose private names are partly those of instances.
HOLDERS: dict[str, Callable[[], Any]] = {
    "torch.nn.Module": nn.Module,
    "torch.optim.Optimizer": lambda: torch.optim.SGD(nn.Linear(1, 1).parameters()),
    "torch.distributions.Distribution": lambda: torch.distributions.Normal(0.0, 1.0),
    "torch._ops.OpOverload": lambda: torch.ops.aten.rand.default,
    "tensordict.TensorDict": TensorDict,
    "tensordict.nn.TensorDictParams": lambda: TensorDictParams(TensorDict()),
    "tensordict.nn.TensorDictModule": lambda: TensorDictModule(nn.Linear(4, 3), {"x": "x"}, ["y"], method="forward"),
    "torchrl.objectives.LossModule": lambda: DQNLoss(actor()),
    "torchrl.objectives.TargetNetUpdater": lambda: SoftUpdate(DQNLoss(actor(), delay_value=True), eps=0.9),
    "torchrl.objectives.value.ValueEstimatorBase": lambda: TD0Estimator(gamma=0.9, value_network=None),
    "torchrl.modules.EGreedyModule": lambda: EGreedyModule(Categorical(3)),
    "torchrl.data.ReplayBuffer": replay,
    "torchrl.data.LazyTensorStorage": lambda: replay().storage,
    "torchrl.data.PrioritizedSampler": lambda: PrioritizedSampler(4, 0.6, 0.4),
    "torchrl.collectors.Collector": lambda: Collector(GymWrapper(cart_pole()), frames_per_batch=1, total_frames=1),
    "torchrl.envs.GymWrapper": lambda: GymWrapper(cart_pole()),
    "gymnasium.vector.SyncVectorEnv": vector_env,
}
#: Those whose names must also be true there.
FILLED = ("torchrl.objectives.TargetNetUpdater", "tensordict.nn.TensorDictModule")


def holder_of(owner: str) -> Any:
    pytest.importorskip(owner.partition(".")[0])
    return HOLDERS.get(owner, lambda: pkgutil.resolve_name(owner))()


@pytest.mark.parametrize("owner", ATTRIBUTES)
def test_each_still_has_its_private_names(owner: str) -> None:
    holder = holder_of(owner)
    for name, reason in ATTRIBUTES[owner].items():
        assert hasattr(holder, name), f"{owner}.{name} has moved: {reason}"
        assert owner not in FILLED or getattr(holder, name), name


def is_private(name: object) -> bool:
    return isinstance(name, str) and re.match("_[a-zA-Z]", name) is not None and not name.endswith("__")


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted((ROOT / "torchrl_reg").rglob("*.py"))}


def private_attributes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """``(line, name)`` of each ``x._name``, ``getattr(x, "_name")`` and ``attrgetter("_name")``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith(("attr", "attrgetter")):
            words = (word.value for word in node.args if isinstance(word, ast.Constant))
            yield from ((node.lineno, word) for word in words if is_private(word))


def own_names(tree: ast.AST) -> Iterator[str]:
    """Names that classes define: methods, fields, and what is assigned to ``self`` or ``cls``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from (part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.ClassDef))
            assigned = (part for part in node.body if isinstance(part, ast.Assign | ast.AnnAssign))
            names = (name for part in assigned for name in ast.walk(part) if isinstance(name, ast.Name))
            yield from (name.id for name in names if isinstance(name.ctx, ast.Store))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            yield node.attr


def is_own(owner: ast.expr) -> bool:
    return isinstance(owner, ast.Name) and owner.id in ("self", "cls")


#: Private in form only.
PUBLIC = {"_exit", "_replace"}  # of os and of named tuples


def test_every_private_attribute_is_of_this_package_or_listed() -> None:
    """Else a newer release without it fails at a line that may run once in a long run, as that of a checkpoint."""
    known = {name for tree in trees().values() for name in own_names(tree)} | LISTED | PUBLIC
    found = [(path, *place) for path, tree in trees().items() for place in private_attributes(tree)]
    assert not [f"{path.relative_to(ROOT)}:{line}: {name}" for path, line, name in found if name not in known]


def modules() -> Iterator[ModuleType]:
    """All of ours but those that need an extra which is not installed."""
    for found in pkgutil.walk_packages([str(ROOT / "torchrl_reg")], "torchrl_reg."):
        with contextlib.suppress(ImportError):
            yield importlib.import_module(found.name)


def names_shared_with_a_base(module: ModuleType, bases: dict[type, set[str]]) -> Iterator[str]:
    """Private names that a class of ``module`` defines or reads and that its foreign base class has, too."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef) and inspect.isclass(cls := getattr(module, node.name)):
            foreign = {base for base in cls.__mro__ if not base.__module__.startswith("torchrl_reg")} - {object}
            theirs = set().union(*(set(vars(base)) | bases.get(base, set()) for base in foreign))
            names = {*own_names(node), *(name for _, name in private_attributes(node))} & theirs
            yield from (f"{module.__name__}.{node.name}.{name}" for name in names if is_private(name))


def test_every_private_name_shared_with_a_base_is_listed() -> None:
    """Else a newer release that moves it no longer calls our method, and one shared by chance is called for theirs."""
    pytest.importorskip("gymnasium")
    bases = {pkgutil.resolve_name(owner): set(dir(holder_of(owner))) for owner in HOLDERS}
    found = [name for module in modules() for name in names_shared_with_a_base(module, bases)]
    assert not [name for name in found if name.rpartition(".")[2] not in LISTED]


def test_every_listed_name_is_used() -> None:
    used = {name for tree in trees().values() for name in own_names(tree)}
    used |= {name for tree in trees().values() for _, name in private_attributes(tree)}
    assert not {name for name in LISTED - used if is_private(name)}


def test_reduction_and_replay_and_batch_norm_work_as_they_did(compat: ModuleType) -> None:
    assert {"tensordict", "weights"} <= set(inspect.signature(LossModule._reduce_loss).parameters)
    assert replay()._writer.tracks_generations is False
    assert all(issubclass(cls, compat.BatchNorm) for cls in (nn.BatchNorm1d, nn.BatchNorm2d, torch.nn.SyncBatchNorm))


def test_a_swap_is_noticed(compat: ModuleType) -> None:
    loss = DQNLoss(actor(), delay_value=False)
    params = loss.value_network_params
    assert isinstance(params, TensorDictParams)
    held = compat.wrapped_tensordict(params)
    with TensorDict.from_module(loss).detach().clone().to_module(loss):
        assert compat.wrapped_tensordict(params) is not held, "tensordict.to_module no longer replaces _param_td"


def test_no_other_file_imports_a_private_name() -> None:
    others = [p for room in ("torchrl_reg", "recipes", "slurm") for p in (ROOT / room).rglob("*.py") if p != COMPAT]
    found = [(str(p.relative_to(ROOT)), *names) for p in others for names in private_imports(p)]
    assert not [names for names in found if names[2] not in ATTRIBUTES.get(names[1], ())]


def test_sweeps_use_no_private_attribute() -> None:
    """Such as submitit's ``executor._executor`` or ``job._process``."""
    for path in (ROOT / "slurm").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
                assert isinstance(node.value, ast.Name) and node.value.id == "self", f"{path.name}: {node.attr}"


def test_forward_is_wrapped_once(objectives: ModuleType) -> None:
    class Mine(objectives.MunchausenDQNLoss):
        pass

    wrappers, function = 0, Mine(actor()).__class__.forward
    while hasattr(function, "__wrapped__"):
        wrappers += function.__code__.co_name == "new_forward"
        function = function.__wrapped__
    assert wrappers == 1


def test_a_forward_is_inherited_and_an_own_one_is_wrapped(objectives: ModuleType) -> None:
    class Inherits(objectives.MunchausenDQNLoss):
        pass

    class Own(Inherits):
        def forward(self, tensordict: Any) -> Any:
            return exploration_type()

    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert Own(actor(), delay_value=False).forward(TensorDict()) == Own.deterministic_sampling_mode
    assert ["forward" in vars(cls) for cls in Own.__mro__[:3]] == [True, False, False]
    assert "forward" in vars(LossModule) and "forward" in vars(DQNLoss)


def test_an_entry_is_what_get_returns(compat: ModuleType) -> None:
    """Also of nested keys however they are written, and of stacks that are no dict."""
    rows = TensorDict({"a": {"b": torch.ones(2, 1)}, "next": {"a": {"b": torch.zeros(2, 1)}}}, [2])
    lazy = LazyStackedTensorDict(rows, rows.clone())
    keys = ["a", ("a", "b"), ("next", ("a", "b")), "absent", ("absent", "b"), ("a", "absent"), ("next", ("a", "c"))]
    for td in (rows, lazy, TensorDictParams(rows.select("a"), no_convert=True)):
        for key in keys:
            found, expected = compat.fast_get(td, key), td.get(key, None)
            assert type(found) is type(expected), key
            assert found is expected if td is rows else found is None or bool((found == expected).all()), key


def test_scalars_make_an_ordinary_tensordict(compat: ModuleType) -> None:
    out = compat.unchecked_tensordict({"loss": torch.ones(()), "entropy": torch.zeros(())})
    assert out.batch_size == torch.Size([]) and set(out.keys()) == {"loss", "entropy"} and not out.is_locked
    assert float(out.set("more", torch.ones(3)).clone()["loss"]) == 1.0
    for device in (None, "cpu", torch.device("cpu")):
        assert compat.unchecked_tensordict({}, device=device).device == TensorDict({}, device=device).device


def test_the_warning_of_a_missing_updater_stays_until_there_is_one(compat: ModuleType, objectives: ModuleType) -> None:
    rows = {"observation": torch.zeros(2, 4), "action": torch.zeros(2, dtype=torch.long)}
    flags = dict.fromkeys(("done", "terminated"), torch.zeros(2, 1, dtype=torch.bool))
    data = TensorDict(rows | {"next": {"observation": torch.zeros(2, 4), "reward": torch.ones(2, 1), **flags}}, [2])
    loss = objectives.MunchausenDQNLoss(actor())
    with pytest.warns(UserWarning, match="target network updater"):
        loss(data)
    loss.data_checks = "first"
    objectives.HardTargetUpdate(loss, period_updates=10)
    loss(data)
    assert compat.updater_warning not in loss._forward_pre_hooks.values()


def test_backward_is_that_of_the_tensor(compat: ModuleType) -> None:
    found = []
    for way in (torch.Tensor.backward, compat.backward):
        weight, seen = torch.arange(1.0, 4.0).requires_grad_(), []
        weight.register_hook(seen.append)
        for _ in range(2):
            way((weight.exp() * weight).sum())
        assert len(seen) == 2
        found.append(weight.grad)
        with pytest.raises(RuntimeError, match="does not require grad"):
            way(torch.ones(()))
    assert torch.equal(*found), "the engine of torch.autograd is called in another way"
