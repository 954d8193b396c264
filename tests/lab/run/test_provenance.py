"""Commits of the package and of the user's code, never confused."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys

import pytest
import torch

from torchrl_reg.lab.run import provenance

PLACE = "torchrl_reg/lab/run/provenance.py"


def _git(folder, *arguments: str) -> str:
    identity = ["-c", "user.name=me", "-c", "user.email=me@here"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _repository(folder, *files: str) -> str:
    _git(folder, "init", "-q")
    _git(folder, "add", *files)
    _git(folder, "commit", "-qm", "first")
    return _git(folder, "rev-parse", "HEAD")


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Provenance of a run with the package copied to ``site`` and the recipe in ``mine``, both below ``tmp_path``."""
    monkeypatch.delenv("TORCHRL_REG_COMMIT", raising=False)

    def tell(site: str) -> dict:
        for name, file in (("own_recipe", "mine/own_recipe.py"), ("copied", f"{site}/{PLACE}")):
            spec = importlib.util.spec_from_file_location(name, tmp_path / file)
            monkeypatch.setitem(sys.modules, name, importlib.util.module_from_spec(spec))
            spec.loader.exec_module(sys.modules[name])
        return sys.modules["copied"].provenance(torch.device("cpu"), sys.modules["own_recipe"].Config)

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own_recipe.py").write_text("class Config: pass\n")
    return tell


@pytest.fixture
def copy(tmp_path):
    """``copy(site)``: the package lies below ``site``."""

    def made(site: str):
        (tmp_path / site / PLACE).parent.mkdir(parents=True)
        return shutil.copy(provenance.__file__, tmp_path / site / PLACE)

    return made


def test_installed_below_a_users_repository_the_commit_is_not_taken_for_ours(tmp_path, told, copy, monkeypatch):
    copy("mine/venv")
    theirs = _repository(tmp_path / "mine", "own_recipe.py")
    start = told("mine/venv")
    mine = {"repository": str(tmp_path / "mine"), "commit": theirs, "uncommitted_changes": False}
    assert (start["commit"], start["uncommitted_changes"], start["user_code"]) == (None, False, mine)
    monkeypatch.setenv("TORCHRL_REG_COMMIT", "abc+")  # a sweep's copy, with the commit in the launcher's environment
    start = told("mine/venv")
    assert (start["commit"], start["uncommitted_changes"], start["user_code"]) == ("abc", True, mine)


def test_a_checkout_beside_a_users_repository_has_both_commits(tmp_path, told, copy):
    copy("ours")
    ours = _repository(tmp_path / "ours", "torchrl_reg")
    theirs = _repository(tmp_path / "mine", "own_recipe.py")
    (tmp_path / "mine/own_recipe.py").write_text("class Config: changed = True\n")
    start = told("ours")
    assert (start["commit"], start["uncommitted_changes"]) == (ours, False)
    assert (start["user_code"]["commit"], start["user_code"]["uncommitted_changes"]) == (theirs, True)


def test_a_recipe_of_the_package_s_own_repository_has_no_user_code(tmp_path, told, copy):
    copy("mine")
    ours = _repository(tmp_path / "mine", "own_recipe.py", "torchrl_reg")
    start = told("mine")
    assert start["commit"] == ours and start["user_code"] is None


def test_the_processor():
    assert provenance.provenance(torch.device("cpu"), type(None))["processor"] == provenance.processor() != ""
    before, now = {"processor": "A"}, {"processor": "B"}
    assert provenance.differences(before, now) == ["processor A before, B now"]
