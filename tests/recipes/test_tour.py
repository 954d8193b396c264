"""The tour arrives where it says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TOUR = Path(__file__).parents[2] / "recipes" / "tour.py"


def test_the_three_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("recipes_tour", TOUR)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "recipes_tour", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    found = module.main(["--side", "3", "--tau", "0.5", "--updates", "60", "--out", str(tmp_path / "tour")])
    assert found.loss_errors == pytest.approx(found.sweep_errors, abs=1e-10)
    assert found.loss_errors[0] > 1 and found.loss_errors[-1] < 1e-10
    assert found.gap_growth == pytest.approx({alpha: 1 / (1 - alpha) for alpha in found.gap_growth}, rel=1e-6)
    assert max(found.gap_growth) == 0.9
    assert (tmp_path / "tour/tour.png").read_bytes().startswith(b"\x89PNG")
    assert "0.9       10.0000" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        module.main(["--tau", "0"])
    assert "--tau > 0" in capsys.readouterr().err
