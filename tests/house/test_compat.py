"""Detects private names of ``compat.py`` that a newer TorchRL, tensordict or torch has moved."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tensordict import LazyStackedTensorDict, TensorDict
from tensordict.nn import TensorDictModule, TensorDictParams
from torch import nn
from torchrl.data import Categorical, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Transform
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss, LossModule, SoftUpdate

ROOT = Path(__file__).parents[2]
COMPAT = ROOT / "torchrl_reg" / "compat.py"
FOREIGN = {"torch", "torchrl", "tensordict", "submitit"}


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


def table(name: str) -> dict[str, str]:
    """A table of ``compat.py``, read without importing it."""
    for node in ast.parse(COMPAT.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"compat.py has no table {name}")


@pytest.mark.parametrize(("module", "name"), private_imports(COMPAT), ids=lambda x: x)
def test_imported_names_are_where_they_were(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name), f"{module}.{name} has moved"


def actor() -> QValueActor:
    return QValueActor(nn.Linear(4, 3), spec=Categorical(3))


def replay() -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(storage=LazyTensorStorage(4), batch_size=2)


HOLDERS: dict[str, Callable[[], Any]] = {
    "LOSS_MODULE_NAMES": lambda: DQNLoss(actor()),
    "TARGET_UPDATER_NAMES": lambda: SoftUpdate(DQNLoss(actor(), delay_value=True), eps=0.9),
    "TENSORDICT_MODULE_NAMES": lambda: TensorDictModule(nn.Linear(4, 3), {"input": "x"}, ["y"], method="forward"),
    "STORAGE_NAMES": lambda: replay().storage,
    "TRANSFORM_NAMES": lambda: Transform,
}
FILLED = ("TARGET_UPDATER_NAMES", "TENSORDICT_MODULE_NAMES")


@pytest.mark.parametrize("names", HOLDERS)
def test_each_still_has_its_private_names(names: str) -> None:
    holder = HOLDERS[names]()
    for name, reason in table(names).items():
        assert hasattr(holder, name), f"{names}: {name} has moved: {reason}"
        assert names not in FILLED or getattr(holder, name), name


def test_every_table_is_looked_at() -> None:
    assert set(re.findall(r"^(\w+_NAMES)\b", COMPAT.read_text(), re.M)) == set(HOLDERS)


def test_reduction_and_replay_and_batch_norm_work_as_they_did(compat: ModuleType) -> None:
    assert {"tensordict", "weights"} <= set(inspect.signature(LossModule._reduce_loss).parameters)
    assert replay()._writer.tracks_generations is False
    assert all(issubclass(cls, compat.BatchNorm) for cls in (nn.BatchNorm1d, nn.BatchNorm2d, torch.nn.SyncBatchNorm))


def test_a_swap_is_noticed(compat: ModuleType) -> None:
    loss = DQNLoss(actor(), delay_value=False)
    params = loss.value_network_params
    assert isinstance(params, TensorDictParams)
    held = compat.held_tensordict(params)
    with TensorDict.from_module(loss).detach().clone().to_module(loss):
        assert compat.held_tensordict(params) is not held, "tensordict.to_module no longer replaces _param_td"


def test_no_other_file_imports_a_private_name() -> None:
    others = [p for room in ("torchrl_reg", "recipes", "slurm") for p in (ROOT / room).rglob("*.py") if p != COMPAT]
    found = {str(p.relative_to(ROOT)): names for p in others if (names := private_imports(p))}
    assert not found


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
            found, expected = compat.entry(td, key), td.get(key, None)
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
