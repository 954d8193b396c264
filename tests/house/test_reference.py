"""The API reference: its pages, and that of the methods."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_reg import objectives

ROOT = Path(__file__).parents[2]


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
def test_the_pages_are_written_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("pdoc")
    done = subprocess.run([sys.executable, ROOT / ".ci/docs", tmp_path], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    pages = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "guide.html", "results.html", "torchrl_reg/objectives/heads.html"} <= set(pages)
    assert (
        "advantage learning" in pages["methods.html"]
        and "ImplicitQuantiles" in pages["torchrl_reg/objectives/heads.html"]
    )
    for name, page in pages.items():
        assert "Initialize internal Module" not in page and "mathjax" not in page.lower(), name
        shown = re.sub(r'<div class="pdoc-code.*?</div>', "", page, flags=re.S)
        assert "~torchrl" not in shown, name
        for link in re.findall(r'(?:href|src)="([^"#:$]+)(?:#[^"]*)?"', page):
            assert (tmp_path / name).parent.joinpath(link).exists(), (name, link)
