"""Curves over seeds: what is read, averaged and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from torchrl_reg.analysis.learning_curves import draw_learning_curves, evaluations, main, mean_interval


def run(folder: Path, returns: list[float], *, every: int = 100) -> Path:
    folder.mkdir(parents=True)
    rows = [{"event": "train", "frames": 50, "loss": 1.0}]
    rows += [
        {"event": "eval", "frames": every * (i + 1), "return_greedy_mean": value} for i, value in enumerate(returns)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_evaluations_are_read_in_order(tmp_path: Path) -> None:
    frames, values = evaluations(run(tmp_path / "a", [1.0, 3.0]))
    assert frames.tolist() == [100, 200] and values.tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match="return_sampled_mean, got none"):
        evaluations(tmp_path / "a", "return_sampled_mean")


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=(400, 2))
    mean, low, high = mean_interval(values)
    half = 1.96 * values.std(0) / 20
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(high - mean, half, rtol=0.1)
    np.testing.assert_allclose(mean - low, half, rtol=0.1)
    one = mean_interval(values[:1])
    assert np.array_equal(one[0], one[1]) and np.array_equal(one[0], one[2])


def test_a_figure_comes_out(tmp_path: Path) -> None:
    run(tmp_path / "iq/0", [1.0, 2.0, 5.0]), run(tmp_path / "iq/1", [2.0, 3.0])
    main([str(tmp_path / "out.png"), f"IQ={tmp_path}/iq/*", "title=Pendulum"])
    assert (tmp_path / "out.png").stat().st_size > 5_000


@pytest.mark.parametrize("arguments", [[], ["out.png"], ["out.png", "IQ"], ["out.png", "IQ=nowhere/*"]])
def test_a_bad_command_line_is_one_sentence(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="expected OUT.png|must name at least one run folder"):
        main(arguments)


def test_bad_groups_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="group 'IQ' must name at least one run folder"):
        draw_learning_curves({"IQ": []}, tmp_path / "out.png")
    folders = [run(tmp_path / "a", [1.0]), run(tmp_path / "b", [1.0], every=70)]
    with pytest.raises(ValueError, match="same frames"):
        draw_learning_curves({"IQ": folders}, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
