"""The copy of the code that jobs run."""

from __future__ import annotations

import subprocess

import pytest
from sweep_harness import ROOT

from slurm.snapshot import code_files, copy_code, current_code

PACKAGES = ("torchrl_reg", "recipes", "slurm")


def test_a_copy_of_the_code_holds_every_file_and_no_results(tmp_path):
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True).stdout.split()
    tracked = [name for name in listed if not name.startswith("recipes/results/")]
    if not tracked:
        pytest.skip("not a git checkout")
    files = code_files(["m_dqn"])
    assert files.keys() >= set(tracked)
    assert not [name for name in files if "__pycache__" in name]
    copy = copy_code(files, tmp_path / "copy")
    assert all((copy / name).read_bytes() == (ROOT / name).read_bytes() for name in tracked)


@pytest.mark.parametrize("word", ["env.import_module=mine", "+env.import_module='mine'", "head._target_=mine.Head"])
def test_a_module_of_yours_is_copied(word, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("x = 1")
    monkeypatch.chdir(tmp_path)
    assert code_files(["m_dqn"], [word])["mine.py"] == tmp_path / "mine.py"


@pytest.mark.parametrize(
    ("name", "counts"),
    [("recipes/README.md", False), ("slurm/status.py", False), ("torchrl_reg/lab/analysis/data/published.json", False)]
    + [("slurm/array_element.py", True), ("torchrl_reg/envs/new.json", True)],
)
def test_what_changes_no_run_does_not_make_other_code(name, counts, tmp_path):
    (tmp_path / "changed").write_text("x")
    files = code_files(["m_dqn"])
    assert (current_code(files).digest != current_code({**files, name: tmp_path / "changed"}).digest) == counts
