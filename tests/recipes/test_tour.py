"""The tour arrives where it says."""

from __future__ import annotations

import json
import runpy
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_three_stops(load, tmp_path, capsys):
    tour = load("tour")
    found = tour.main(["--side", "3", "--tau", "0.5", "--updates", "60", "--out", str(tmp_path)])
    assert found.loss_errors == pytest.approx(found.sweep_errors, abs=1e-10)
    assert found.loss_errors[0] > 1 and found.loss_errors[-1] < 1e-10
    assert found.gap_growth == pytest.approx({alpha: 1 / (1 - alpha) for alpha in found.gap_growth}, rel=1e-6)
    assert max(found.gap_growth) == 0.9
    assert (tmp_path / "tour.png").read_bytes().startswith(b"\x89PNG")
    assert "0.9       10.0000" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tour.main(["--tau", "0"])
    assert "--tau > 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tour.main(["--out", str(tmp_path / "tour.png/x")])
    assert "--out must be a folder that can be written, got" in capsys.readouterr().err


def test_the_notebook_is_the_script_and_runs(tmp_path, monkeypatch) -> None:
    maker = runpy.run_path(str(ROOT / ".ci/notebook"))["notebook"]
    text = (ROOT / "recipes/tour.ipynb").read_text()
    assert text == maker((ROOT / "recipes/tour.py").read_text()), "run .ci/notebook"
    display = types.ModuleType("IPython.display")
    display.Image = lambda path, width: Path(path).read_bytes()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("notebook_cells")
    monkeypatch.setitem(sys.modules, "notebook_cells", module)  # where dataclasses look for their names
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            magic = source.replace("%pip", "raise AssertionError  #")  # a checkout's copy is not replaced
            exec(compile(magic, "cell", "exec", dont_inherit=True), vars(module))
    assert module.found.loss_errors[-1] < 1e-9 and (tmp_path / "tour.png").stat().st_size > 10_000
