"""The pages of the reference: the table of methods is complete, and what is written of the package can be read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_reg import objectives

ROOT = Path(__file__).parents[2]


def test_the_page_of_methods_names_every_loss_and_recipes_that_exist() -> None:
    page = (ROOT / "torchrl_reg/METHODS.md").read_text()
    losses = {name for name in objectives.__all__ if name.endswith("Loss")} - {"QLearningLoss"}
    assert losses <= set(re.findall(r"`(\w+Loss)\b", page))
    named = re.findall(r"recipes/(\w+)\.py", page)  # those of a user's own need not be: no test asks for documents
    assert named and all((ROOT / f"recipes/{name}.py").exists() for name in named)


@pytest.mark.slow
def test_the_pages_are_written_without_a_warning_and_their_links_lead_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run([ROOT / ".ci/docs", tmp_path], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    pages = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "torchrl_reg/GUIDE.html", "recipes/RESULTS.html", "api/objectives.heads.html"} <= set(pages)
    for name, page in pages.items():
        for link in re.findall(r'(?:href|src)="([^"#:$?]+)(?:[#?][^"]*)?"', page):
            assert (tmp_path / name).parent.joinpath(link).exists(), (name, link)
