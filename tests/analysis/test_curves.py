"""Learning curves as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from torchrl_reg.analysis import AnalysisError, find_runs, group_runs
from torchrl_reg.analysis.curves import aggregate_curve, group_curve, mean_curve
from torchrl_reg.analysis.statistics import mean


def test_a_groups_curve_holds_the_frames_at_which_every_seed_has_a_return(make_run, tmp_path: Path) -> None:
    make_run("a", [1.0, None, 3.0, 4.0]), make_run("b", [5.0, 6.0, 7.0], seed=1), make_run("c", [], seed=2)
    (group,) = group_runs(find_runs(tmp_path))
    frames, values = group_curve(group)
    assert frames.tolist() == [100, 300] and values.tolist() == [[1.0, 3.0], [5.0, 7.0]]
    assert group_curve(group, "return_sampled_mean") is None
    make_run("d", seed=3, every=70)
    with pytest.raises(AnalysisError, match="same frames, got different ones in .*/a and .*/d"):
        group_curve(group_runs(find_runs(tmp_path))[0])


def test_aggregates_over_environments_meet_at_common_frames(make_run, tmp_path: Path) -> None:
    # Pong every 100 frames, normalized 0, 1, 2; Boxing every 200: 0, 2
    make_run("a", [-20.7, 14.6, 49.9], env="atari/Pong"), make_run("b", [0.1, 24.1], env="atari/Boxing", every=200)
    frames, band = aggregate_curve(group_runs(find_runs(tmp_path)), "human", mean, frames=400)
    assert frames.tolist() == [200.0, 250.0, 300.0]
    np.testing.assert_allclose(band, [[(1 + 0) / 2, (1.5 + 0.5) / 2, (2 + 1) / 2]] * 3, atol=1e-12)


def test_the_mean_curve_holds_at_each_frame_the_runs_that_span_it() -> None:
    curves = [(np.array(x), np.array(y)) for x, y in (([0, 10], [0.0, 10.0]), ([5, 20], [20.0, 50.0]))]
    frames, values = mean_curve(curves)
    assert frames.tolist() == [0, 5, 10, 20] and values.tolist() == [0, (5 + 20) / 2, (10 + 30) / 2, 50]
