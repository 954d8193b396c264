"""The tour arrives where it says."""

from __future__ import annotations

import pytest


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
