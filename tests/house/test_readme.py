"""The README's scripts run as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


SCRIPTS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
ENDINGS = ["assert len(buffer) == 5_000", "assert len(buffer) == 2_000"]


@pytest.mark.parametrize(("script", "ending"), list(zip(SCRIPTS, ENDINGS, strict=True)), ids=["m_dqn", "m_iq"])
def test_the_scripts_are_short_and_run(script: str, ending: str, tmp_path: Path) -> None:
    assert len([line for line in script.splitlines() if line.strip()]) <= 20
    (tmp_path / "script.py").write_text(f"{script}\n{ending}\n")
    subprocess.run([sys.executable, str(tmp_path / "script.py")], check=True, timeout=240, cwd=tmp_path)


def test_every_recipe_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    for recipe in (ROOT / "recipes").glob("*.py"):
        assert f"`{recipe.stem}`" in text
    for preset in (ROOT / "recipes/conf/paper").glob("*.yaml"):
        assert f"+paper={preset.stem}" in text
