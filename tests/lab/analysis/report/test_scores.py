"""Responses of a score to settings, and heat maps of two."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from torchrl_reg.lab.analysis.report.scores import heat_maps, responses
from torchrl_reg.lab.analysis.report.sweep import read_sweep


@pytest.fixture
def found(tmp_path, write_run):
    """Responses by setting, and heat maps, of runs ``(settings, score, more)``."""

    def look(*runs):
        for settings, score, more in runs:
            write_run(tmp_path, settings=settings, scores=(score,), **more)
        groups, column = read_sweep(tmp_path).groups, "return_greedy_mean"
        return {each.x_label: each for each in responses(groups, column)}, heat_maps(groups, column)

    return look


def test_responses_and_heat_maps(found):
    grid = product((0.1, 0.01), (0.0, None, 0.9), (0, 1))
    charts, (heat_map,) = found(
        *(({"tau": t, "alpha": a}, 10 * t + (2.0 if a is None else a) + seed, {"seed": seed}) for t, a, seed in grid)
    )
    assert list(charts) == ["algo.tau", "algo.alpha"]
    alpha = charts["algo.alpha"]
    assert (alpha.title, alpha.ticks) == ("alpha on cartpole", ("0", "0.9", "null"))
    assert [line.label for line in alpha.lines] == ["m_dqn tau=0.01", "m_dqn tau=0.1"]
    np.testing.assert_allclose(
        [alpha.lines[1].y, alpha.lines[1].low], [[1.5, 2.4, 3.5], np.array([1.5, 2.4, 3.5]) - 0.5 * 12.706204736]
    )
    assert (heat_map.rows, heat_map.columns) == ("algo.tau", "algo.alpha")
    assert heat_map.row_values == ("0.01", "0.1") and heat_map.counts == ((2, 2, 2), (2, 2, 2))
    np.testing.assert_allclose(heat_map.cells, [[0.6, 1.5, 2.6], [1.5, 2.4, 3.5]])


def test_each_recipe_has_a_heat_map_of_what_every_cell_has(found):
    grid = [{"tau": tau, "alpha": alpha, "lr": 1} for tau, alpha in product((0.1, 0.2), (0.0, 0.9))]
    runs = [(settings, settings["tau"] + settings["alpha"], {}) for settings in grid]
    runs += [(settings, 100.0, {"recipe": "dqn"}) for settings in grid]
    _, maps = found(*runs, ({"tau": 0.1, "alpha": 0.0, "lr": 2}, 1000.0, {}))  # in one cell alone
    dqn, ours = (
        {m.recipe: m for m in maps if (m.rows, m.columns) == ("algo.tau", "algo.alpha")}[r] for r in ("dqn", "m_dqn")
    )
    np.testing.assert_allclose(ours.cells, [[0.1, 1.0], [0.2, 1.1]])
    assert ours.note == "unbalanced: 1 of 2 combinations of the other settings are in every cell"
    assert (dqn.cells, dqn.note, ours.counts) == (((100.0, 100.0), (100.0, 100.0)), "", ((1, 1), (1, 1)))


def test_a_mean_over_many_combinations_holds_those_with_every_value(found):
    # The eighth, far above the others, lacks a value.
    grid = [(lr, tau) for lr, tau in product(range(8), (0.1, 0.2, 0.3)) if lr < 7 or tau < 0.3]
    score = {(lr, tau): 10.0 * lr + tau + 1000.0 * (lr == 7) for lr, tau in grid}
    charts, _ = found(*(({"tau": t, "lr": lr}, score[lr, t], {"seed": s}) for (lr, t), s in product(grid, (0, 1))))
    (line,) = charts["algo.tau"].lines
    # Both seeds of a combination agree, so runs drawn within each combination leave nothing to vary.
    np.testing.assert_allclose([line.y, line.low, line.high], [[30.1, 30.2, 30.3]] * 3)
    assert charts["algo.tau"].note == "over 7 combinations of the other settings (7 of 8: those with all values)"


def test_settings_that_only_change_together_have_no_response(found):
    assert found(*(({"tau": tau, "alpha": alpha}, 1.0, {}) for tau, alpha in ((0.1, 0.0), (0.2, 0.9)))) == ({}, [])


def test_labels_of_responses_are_as_one_would_type_them(found):
    charts, _ = found(*(({"tau": t, "double": double}, t, {}) for t, double in product((0.1, 0.2), (True, False))))
    assert [line.label for line in charts["algo.tau"].lines] == ["m_dqn double=false", "m_dqn double=true"]
