"""The four theorems hold on the problems that are drawn, and the figures show them."""

from __future__ import annotations

import pytest


def test_what_is_drawn_holds(load):
    script = load("maximum_entropy")
    gains, distances = script.improvement(2, 0.5)
    assert gains.min() > -1e-10 and (gains[:, 0] > 1e-3).all() and (distances[:, -1] < 1e-6).all()
    soft_q, together = script.gradients(2, 0.5)
    assert (soft_q - together).abs().max() < 1e-12 and soft_q.abs().max() > 0.1
    for values in script.annealing(2, 0.5):  # temperatures, entropies and errors
        assert (values[:, -1] < 1e-3).all() and (values[:, 0] > 0.01).all()
    found = script.composition(4, 0.5)
    for measured, bound in (("excess", "value_bound"), ("loss", "policy_bound")):
        assert (found[measured] <= found[bound]).all() and found[measured].max() > 0


def test_four_figures(load, tmp_path, capsys, monkeypatch):
    script = load("maximum_entropy")
    script.main(["--problems", "1", "--out", str(tmp_path)])
    figures = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert figures.keys() == {"improvement.png", "gradients.png", "virel.png", "composition.png"}
    assert all(figure.startswith(b"\x89PNG") for figure in figures.values())
    assert "largest difference between the two gradients" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script.main(["--tau", "0"])
    assert "--tau and --beta-scale finite and > 0, got" in capsys.readouterr().err
    monkeypatch.setattr(script, "improvement", None)  # the folder is checked before the work
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        script.main(["--out", str(tmp_path / "file/x")])
    assert "--out must be a folder that can be written, got" in capsys.readouterr().err
