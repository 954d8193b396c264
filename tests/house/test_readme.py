"""The README's script runs as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def script() -> str:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[0]


def test_the_script_is_short_and_runs(tmp_path: Path) -> None:
    lines = [line for line in script().splitlines() if line.strip()]
    assert len(lines) <= 20
    code = script() + "\nassert len(buffer) == 5_000\n"
    (tmp_path / "script.py").write_text(code)
    subprocess.run([sys.executable, str(tmp_path / "script.py")], check=True, timeout=240, cwd=tmp_path)


def test_every_recipe_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    for recipe in (ROOT / "recipes").glob("*.py"):
        assert f"`{recipe.stem}`" in text
    for preset in (ROOT / "recipes/conf/paper").glob("*.yaml"):
        assert f"+paper={preset.stem}" in text
