"""The four theorems hold on the problems that are drawn, and the figures show them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "maximum_entropy.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipes_maximum_entropy", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_drawn_holds(script: ModuleType) -> None:
    gains, distances = script.improvement(2, 0.5)
    assert gains.min() > -1e-10 and (gains[:, 0] > 1e-3).all() and (distances[:, -1] < 1e-6).all()
    soft_q, together = script.gradients(2, 0.5)
    assert (soft_q - together).abs().max() < 1e-12 and soft_q.abs().max() > 0.1
    taus, entropies, errors = script.annealing(2, 0.5)
    for values in (taus, entropies, errors):
        assert (values[:, -1] < 1e-3).all() and (values[:, 0] > 0.01).all()
    found = script.composition(4, 0.5)
    for measured, bound in (("excess", "value_bound"), ("loss", "policy_bound")):
        assert (found[measured] <= found[bound]).all() and found[measured].max() > 0


def test_four_figures(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--problems", "1", "--out", str(tmp_path / "figures")])
    names = {"improvement.png", "gradients.png", "virel.png", "composition.png"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "figures").iterdir())
    assert "largest difference between the two gradients" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script.main(["--tau", "0"])
    assert "--tau and --beta-scale finite and > 0, got" in capsys.readouterr().err
