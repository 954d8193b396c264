"""Laws of the failure probability: recovered where they hold, and distinguished."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from studies.failures import draw_failures, failures_table, fitted

TIME = np.unique(np.geomspace(4, 1000, 40).round())


def exponential(c: float, scale: float) -> np.ndarray:
    return scale * TIME * np.exp(-TIME / (c * np.log(TIME) ** 3))


def test_constants_are_found_again() -> None:
    for wrong, law, rate, scale in (
        (1e6 * exponential(0.5, 2e-3), True, 2.0, 2e-3),
        (1e6 * 0.7 * TIME**-0.4, False, 0.4, 0.7),
    ):
        found = fitted(TIME, wrong, 1_000_000, exponential=law)
        assert found.rate == pytest.approx(rate) and np.exp(found.log_scale) == pytest.approx(scale)
        assert found.excess == pytest.approx(1) and found(TIME) * 1e6 == pytest.approx(wrong)
        other = fitted(TIME, wrong, 1_000_000, exponential=not law)
        late = (TIME >= 20) & (wrong >= 5)
        assert other.excess > 1.1 and (other(TIME) * 1e6 >= wrong * (1 - 1e-9))[late].all()


def test_the_bound_is_the_tightest_by_hand() -> None:
    """ln P is 0, -1, -3, -4 at ln t = 4, 5, 6, 7."""
    time, p = np.exp([4.0, 5.0, 6.0, 7.0]), np.exp([0.0, -1.0, -3.0, -4.0])
    found = fitted(time, 1e4 * p, 10_000, exponential=False)
    # Above (4, 0) and (7, -4): slope -4/3 is below (5, -1); slope -1 through both (4, 0), (5, -1) has gaps 0, 0, 1, 1;
    # slope -3/2 through (5, -1), (7, -4) has gaps 1/2, 0, 1/2, 0.
    assert found.rate == pytest.approx(1.5) and found.log_scale == pytest.approx(6.5)
    assert found.excess == pytest.approx(np.exp(0.25))


def test_few_failures_and_short_searches_are_not_fitted() -> None:
    wrong = np.where(TIME < 100, 50.0, 3.0)
    bent = np.where(TIME < 20, 900.0, 1000 * TIME**-0.5)
    assert fitted(TIME[:3], wrong[:3], 1000, exponential=True) is None
    assert fitted(TIME[-10:], wrong[-10:], 1000, exponential=False) is None
    assert fitted(TIME, bent, 1000, exponential=False).rate == pytest.approx(0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    laws = {"uct": 1e6 * 0.7 * TIME**-0.4, "ments": 1e6 * exponential(0.5, 2e-3)}
    rows = [
        {"event": "failures", "frames": 0, "method": m, "problem": "two arms", "simulations": TIME.tolist()}
        | {"wrong": wrong.tolist(), "searches": 1_000_000}
        for m, wrong in laws.items()
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_figure_has_each_method_and_its_law(folder: Path, monkeypatch) -> None:
    drawn = {}
    monkeypatch.setattr("studies.failures.draw", lambda charts, path, **more: drawn.update(c=charts))
    draw_failures(folder, folder / "x.png")
    (chart,) = drawn["c"]
    uct, uct_law, ments, ments_law = chart.lines
    assert [line.label for line in (uct, ments)] == ["UCT", "MENTS"] and chart.x.log and chart.y.log
    assert uct_law.label == "bound C t^-rho, fitted" and ments_law.label == "bound C t exp(-t / c (ln t)^3), fitted"
    assert uct.y == pytest.approx(0.7 * TIME**-0.4) and ments_law.x.min() >= 20
    assert ments_law.y == pytest.approx(ments.y[ments.x >= 20]) and (ments.low < ments.y).all()


def test_the_table_by_hand(folder: Path) -> None:
    _, _, uct, ments = failures_table(folder).splitlines()
    assert uct.startswith("| two arms | UCT | ") and uct.endswith("| 0.4 (1.00) |")
    assert f"{0.7 * 1000**-0.4:.2g} |" in uct and "| 0.5 (1.00) |" in ments


def test_a_folder_without_failures_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="a run of ments_trees with its failures, got none"):
        failures_table(tmp_path)
