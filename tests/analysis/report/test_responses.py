from __future__ import annotations

import numpy as np

from torchrl_reg.analysis.report.responses import heat_maps, responses
from torchrl_reg.analysis.report.sweep import read_sweep


def test_responses_and_heat_maps(tmp_path, write_run):
    for tau in (0.1, 0.01):
        for alpha in (0.0, None, 0.9):
            for seed in (0, 1):
                score = 10 * tau + (2.0 if alpha is None else alpha) + seed
                write_run(tmp_path, seed=seed, settings={"tau": tau, "alpha": alpha}, scores=(score,))
    groups = read_sweep(tmp_path).groups
    found = {response.x_label: response for response in responses(groups, "return_greedy_mean")}
    assert list(found) == ["algo.tau", "algo.alpha"]
    assert found["algo.alpha"].ticks == ("0", "0.9", "null")
    assert found["algo.alpha"].title == "alpha on cartpole"
    assert [line.label for line in found["algo.alpha"].lines] == ["m_dqn tau=0.01", "m_dqn tau=0.1"]
    np.testing.assert_allclose(found["algo.alpha"].lines[1].y, [1.5, 2.4, 3.5])
    np.testing.assert_allclose(found["algo.alpha"].lines[1].low, [1.0, 1.9, 3.0])
    (heat_map,) = heat_maps(groups, "return_greedy_mean")
    assert (heat_map.rows, heat_map.columns) == ("algo.tau", "algo.alpha")
    assert heat_map.row_values == ("0.01", "0.1") and heat_map.counts == ((2, 2, 2), (2, 2, 2))
    np.testing.assert_allclose(heat_map.cells, [[0.6, 1.5, 2.6], [1.5, 2.4, 3.5]])


def test_each_recipe_has_a_heat_map_of_what_every_cell_has(tmp_path, write_run):
    for tau in (0.1, 0.2):
        for alpha in (0.0, 0.9):
            settings = {"tau": tau, "alpha": alpha, "lr": 1}
            write_run(tmp_path, settings=settings, scores=(tau + alpha,))
            write_run(tmp_path, recipe="dqn", settings=settings, scores=(100.0,))
    write_run(tmp_path, settings={"tau": 0.1, "alpha": 0.0, "lr": 2}, scores=(1000.0,))  # in one cell alone
    maps = {(m.recipe, m.rows, m.columns): m for m in heat_maps(read_sweep(tmp_path).groups, "return_greedy_mean")}
    ours = maps["m_dqn", "algo.tau", "algo.alpha"]
    np.testing.assert_allclose(ours.cells, [[0.1, 1.0], [0.2, 1.1]])
    assert ours.note == "unbalanced: 1 of 2 combinations of the other settings are in every cell"
    assert maps["dqn", "algo.tau", "algo.alpha"].cells == ((100.0, 100.0), (100.0, 100.0))
    assert ours.counts == ((1, 1), (1, 1)) and maps["dqn", "algo.tau", "algo.alpha"].note == ""


def test_a_mean_over_many_combinations_holds_those_with_every_value(tmp_path, write_run):
    for lr in range(8):
        for tau in (0.1, 0.2, 0.3):
            for seed in (0, 1):
                if lr < 7 or tau < 0.3:  # the eighth, far above the others, lacks a value
                    score = 10.0 * lr + tau + (1000.0 if lr == 7 else 0.0)
                    write_run(tmp_path, seed=seed, settings={"tau": tau, "lr": lr}, scores=(score,))
    (found,) = [r for r in responses(read_sweep(tmp_path).groups, "return_greedy_mean") if r.x_label == "algo.tau"]
    (line,) = found.lines
    np.testing.assert_allclose(line.y, [30.1, 30.2, 30.3])
    # Both seeds of a combination agree, so runs drawn within each combination leave nothing to vary.
    np.testing.assert_allclose(line.low, line.y), np.testing.assert_allclose(line.high, line.y)
    assert found.note == "over 7 combinations of the other settings (7 of 8: those with all values)"


def test_settings_that_only_change_together_have_no_response(tmp_path, write_run):
    write_run(tmp_path, settings={"tau": 0.1, "alpha": 0.0})
    write_run(tmp_path, settings={"tau": 0.2, "alpha": 0.9})
    groups = read_sweep(tmp_path).groups
    assert responses(groups, "return_greedy_mean") == [] and heat_maps(groups, "return_greedy_mean") == []


def test_labels_of_responses_are_as_one_would_type_them(tmp_path, write_run):
    for tau in (0.1, 0.2):
        for double in (True, False):
            write_run(tmp_path, settings={"tau": tau, "double": double}, scores=(tau,))
    (found,) = responses(read_sweep(tmp_path).groups, "return_greedy_mean")
    assert [line.label for line in found.lines] == ["m_dqn double=false", "m_dqn double=true"]
