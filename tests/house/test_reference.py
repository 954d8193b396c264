"""What the API reference is made of: the page of methods, and a docstring for every public name."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from torchrl_reg import objectives

ROOT = Path(__file__).parents[2]
ROOMS = (
    "agents",
    "envs",
    "functional",
    "modules",
    "objectives",
    "objectives.value",
    "planning",
    "regularizers",
    "tabular",
)
SHAPE, SOURCE = r"\[[*A-Z0-9]", r"Source|et al|[12]\d{3}"


def public(room: ModuleType) -> dict[str, object]:
    found = {name: getattr(room, name) for name in room.__all__}
    return {name: each for name, each in found.items() if inspect.isclass(each) or inspect.isfunction(each)}


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_a_docstring_of_its_own(room: str) -> None:
    for name, each in public(importlib.import_module(f"torchrl_reg.{room}")).items():
        text = vars(each).get("__doc__") if inspect.isclass(each) else each.__doc__
        assert text and len(text.split()) >= 5, f"{room}.{name}"


def test_equations_and_losses_have_formula_shapes_and_source() -> None:
    functional = importlib.import_module("torchrl_reg.functional")
    losses = {name: each for name, each in public(objectives).items() if name.endswith("Loss")}
    del losses["QLearningLoss"]  # the frame of the others
    for name, each in {**public(functional), **losses}.items():
        text = inspect.getdoc(each) or ""
        around = text + (inspect.getdoc(inspect.getmodule(each)) or "")
        assert "`" in text, f"{name} has no formula"
        assert re.search(SHAPE, around), f"{name} has no shapes"
        assert re.search(SOURCE, around), f"{name} has no source"


def test_the_page_of_methods_names_every_loss_and_recipes_that_exist() -> None:
    page = (ROOT / "torchrl_reg/METHODS.md").read_text()
    for name in objectives.__all__:
        if name.endswith("Loss") and name != "QLearningLoss":
            assert f"`{name}`" in page or f"`{name}(" in page, name
    named = re.findall(r"recipes/(\w+)\.py", page)  # those of a user's own need not be: no test asks for documents
    assert named and all((ROOT / f"recipes/{name}.py").exists() for name in named)
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| method")]
    for row in rows:
        assert row.replace("\\|", "").count("|") == 6, row


@pytest.mark.slow
def test_the_api_pages_are_written_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("pdoc")
    done = subprocess.run([sys.executable, ROOT / ".ci/docs", tmp_path], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "advantage learning" in (tmp_path / "torchrl_reg.html").read_text()  # the page of methods
    assert (tmp_path / "torchrl_reg/objectives.html").is_file()
