"""Whose code ran: the package's commit and the user's, never one for the other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "torchrl_reg"
TELL = """
import json, sys, torch
sys.path.insert(0, {script!r})
import own_recipe
from torchrl_reg.training.run import provenance
print(json.dumps(provenance.provenance(torch.device("cpu"), own_recipe.Config)))
"""


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=me", "-c", "user.email=me@here"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def _repository(folder: Path, *files: str) -> str:
    _git(folder, "init", "-q")
    _git(folder, "add", *files)
    _git(folder, "commit", "-qm", "first")
    return _git(folder, "rev-parse", "HEAD")


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What a start says with the package copied to ``site`` and the recipe in ``mine``, both below ``tmp_path``."""
    monkeypatch.delenv("TORCHRL_REG_COMMIT", raising=False)

    def tell(site: str) -> dict:
        import json

        code = TELL.format(script=str(tmp_path / "mine"))
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": str(tmp_path / site), "PATH": "/usr/bin:/bin"},
            check=True,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout)

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own_recipe.py").write_text("class Config: pass\n")
    return tell


def test_installed_below_a_users_repository_the_commit_is_not_taken_for_ours(tmp_path, told):
    shutil.copytree(PACKAGE, tmp_path / "mine" / "venv" / "torchrl_reg", ignore=shutil.ignore_patterns("__pycache__"))
    theirs = _repository(tmp_path / "mine", "own_recipe.py")
    start = told("mine/venv")
    assert start["commit"] is None and start["uncommitted_changes"] is False
    mine = {"repository": str(tmp_path / "mine"), "commit": theirs, "uncommitted_changes": False}
    assert start["user_code"] == mine


def test_a_checkout_beside_a_users_repository_has_both_commits(tmp_path, told):
    shutil.copytree(PACKAGE, tmp_path / "ours" / "torchrl_reg", ignore=shutil.ignore_patterns("__pycache__"))
    ours = _repository(tmp_path / "ours", "torchrl_reg")
    theirs = _repository(tmp_path / "mine", "own_recipe.py")
    (tmp_path / "mine" / "own_recipe.py").write_text("class Config: changed = True\n")
    start = told("ours")
    assert (start["commit"], start["uncommitted_changes"]) == (ours, False)
    assert (start["user_code"]["commit"], start["user_code"]["uncommitted_changes"]) == (theirs, True)


def test_a_recipe_of_the_package_s_own_repository_has_no_user_code(tmp_path, told):
    shutil.copytree(PACKAGE, tmp_path / "mine" / "torchrl_reg", ignore=shutil.ignore_patterns("__pycache__"))
    ours = _repository(tmp_path / "mine", "own_recipe.py", "torchrl_reg")
    start = told("mine")
    assert start["commit"] == ours and start["user_code"] is None
