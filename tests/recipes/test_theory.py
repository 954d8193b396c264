"""The two theorems on random problems: rows of the record against known numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

TINY = "theory algo.problems=2 algo.updates=21 run.progress=false"


NAMES = [f"{kind}, {alpha}" for kind in ("independent", "alternating", "constant") for alpha in (0.0, 0.9, 1.0)]


def test_what_is_drawn_holds(start, tmp_path):
    *errors, inference = start(TINY)
    check_errors(errors)
    check_inference(inference)
    assert all((tmp_path / "run" / name).stat().st_size > 1000 for name in ("errors.png", "inference.png"))


def check_errors(rows):
    """They average out within their bounds."""
    assert [f"{row['kind']}, {row['alpha']}" for row in rows] == NAMES
    for row in rows:
        losses, bounds = np.array(row["losses"]), np.array(row["bounds"])
        assert losses.shape == bounds.shape == (len(row["updates"]), 2) and row["updates"][-1] == 21
        assert (losses >= -1e-12).all() and (losses <= bounds).all()
        assert row["share_of_bound"] == pytest.approx((losses / bounds).max())
    found = dict(zip(NAMES, rows, strict=True))
    first = np.array(found["constant, 0.0"]["averaged_errors"])
    for name, expected in (
        ("constant, 1.0", first[-1]),
        ("constant, 0.9", (1 - 0.9**21) * first[-1]),
        ("alternating, 1.0", first[-1] / 21),
        ("alternating, 0.9", 0.1 * (1 + 0.9**21) / 1.9 * first[-1]),
    ):
        np.testing.assert_allclose(found[name]["averaged_errors"][-1], expected)
    last = {name: np.mean(row["losses"][-1]) for name, row in found.items()}
    assert last["alternating, 1.0"] < 0.1 * last["alternating, 0.0"]
    assert last["independent, 0.9"] < 0.5 * last["independent, 0.0"]


def check_inference(row):
    """It gambles, and believes in luck."""
    even = row["chances"].index(0.5)
    gambles = row["gambles"]
    for tau in (0.2, 0.5):
        assert gambles[f"maximum entropy, tau {tau:g}"][even] == pytest.approx(0.5)
        odds = (1 + math.exp(1 / tau)) / 2 / math.exp(0.5 / tau)
        assert gambles[f"inference, tau {tau:g}"][even] == pytest.approx(odds / (1 + odds))
        gains = np.array(row["gains"][f"tau {tau:g}"])
        assert np.abs(gains[0]).max() < 1e-12 < 0.1 < gains[-1].min()
    believed, played, soft = row["arrivals"].values()
    assert believed[:5] == played[:5] == [0.0] * 5 and believed[-1] > 2 * max(played[-1], soft[-1])


def test_refusals(refused):
    assert "algo.alphas must be a list of weights in [0, 1], without repetition" in refused(f"{TINY} algo.alphas=[1.1]")
    assert "algo.updates must be > 0" in refused(f"{TINY} algo.updates=0")
