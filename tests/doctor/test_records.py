"""The health of runs, from their rows."""

from __future__ import annotations

import json

import pytest

from torchrl_reg.doctor.records import read_config, record_findings


def _judged(path, rows, algo="", evaluations=()):
    """What the doctor says of a run with these training rows, by name."""
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text(f"env: {{name: cartpole}}\nalgo: {{{algo}}}\n")
    every = [{"event": "train", "frames": 10 * i, "updates": i, **row} for i, row in enumerate(rows, 1)]
    every += [{"event": "eval", "frames": 10, "return_greedy_mean": value} for value in evaluations]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in every))
    return {found.name: found for found in record_findings(path, read_config(path / "config.yaml"))}


def test_rows_that_are_not_finite_are_counted(tmp_path):
    found = _judged(tmp_path, [{"loss": 0.5}, {"loss": None}, {"loss": None, "td_error": None}])["numbers"]
    assert (found.status, found.detail) == ("warn", "2 of 3 training rows are not finite, the first at frame 20")
    (tmp_path / "failed.json").write_text(json.dumps({"last_line": "loss is nan at frame 30"}))
    found = _judged(tmp_path, [{"loss": 0.5, "return_mean": None}])
    assert found["numbers"].status == "ok"
    assert found["end"].status == "warn" and "loss is nan at frame 30" in found["end"].detail


@pytest.mark.parametrize(
    ("row", "algo", "warned"),
    [
        ({"action_gap": 480.0}, "gamma: 0.9", False),
        ({"action_gap": 520.0}, "gamma: 0.9", True),
        ({"value": -520.0}, "gamma: 0.9", True),
        ({"value": -520.0, "tau": 0.5, "entropy": 2.0}, "gamma: 0.9", False),  # of which 10 * 0.5 * 2 may be entropy
        ({"loss": 1e5}, "", False),
        ({"loss": 3e5}, "", True),
    ],
)
def test_values_beyond_what_returns_allow(tmp_path, row, algo, warned):
    found = _judged(tmp_path, [{"return_mean": -20.0}, row], algo, evaluations=[50.0])["values"]
    assert (found.status == "warn") == warned
    assert ("explode" in found.todo) == warned


def test_values_that_the_run_itself_found_to_diverge(tmp_path):
    rows = [{"return_mean": -20.0}, {"loss": 3.0, "diverged_frames": 1250}, {"loss": 3.0, "diverged_frames": 1250}]
    found = _judged(tmp_path, rows)["values"]
    assert (found.status, found.detail) == ("warn", "they outgrew what rewards allow at frame 1,250")
    assert "explode" in found.todo


def test_the_share_of_clipped_bonuses(tmp_path):
    rows = [{"bonus_clipped": value} for value in (0.9, 0.9, 0.9, 0.1, 0.2, 0.3, 0.4, 0.7)]
    found = _judged(tmp_path, rows)["bonus"]
    assert found.status == "warn" and found.detail.startswith("55.0% of the Munchausen bonuses are clipped")
    assert _judged(tmp_path, rows[:-1])["bonus"].status == "ok"


def test_a_soft_value_that_rests_on_one_sample(tmp_path):
    rows = [{"ess": value} for value in (9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.3, 1.5)]
    found = _judged(tmp_path, rows, "num_value_samples: 16")["samples"]
    assert found.status == "warn" and "raise num_value_samples or tau" in found.todo
    assert found.detail == "the soft value rests on 1.4 of 16 sampled actions in the last quarter (ess)"
    assert _judged(tmp_path, rows[:-2], "num_value_samples: 16")["samples"].status == "ok"
    assert _judged(tmp_path, [{"ess": 5.0}], "num_value_samples: 64")["samples"].status == "warn"
    assert "samples" not in _judged(tmp_path, [{"td_error": 1.0}], "num_value_samples: 16")


@pytest.mark.parametrize(
    ("algo", "updates", "detail"),
    [
        ("target_period_updates: 50", 240, "a copy every 50 updates, which makes 4 in the 240 updates"),
        ("target_period_updates: 50", 251, None),
        # Of a run that goes on, what is to come counts.
        ("target_period_updates: 50, total_frames: 2010, learning_starts_frames: 10, update_every_frames: 8", 1, None),
        (
            "target_period_updates: 51, total_frames: 2010, learning_starts_frames: 10, update_every_frames: 8",
            1,
            "which makes 4 in the 250 updates",
        ),
    ],
)
def test_a_target_period_longer_than_the_run(tmp_path, algo, updates, detail):
    found = _judged(tmp_path, [{"updates": updates}], algo)["target network"]
    assert (found.status == "warn") == (detail is not None)
    assert detail is None or detail in found.detail


@pytest.mark.parametrize(
    ("algo", "frames", "status"),
    [
        ("learning_starts_frames: 50, total_frames: 100", 40, "ok"),
        ("learning_starts_frames: 50, total_frames: 100", 60, "warn"),
        ("learning_starts_frames: 100, total_frames: 100", 60, "warn"),
    ],
)
def test_learning_that_never_starts(tmp_path, algo, frames, status):
    assert _judged(tmp_path, [{"updates": 0, "frames": frames}], algo)["learning"].status == status


def test_exploration_that_is_dead(tmp_path):
    rows = [{"return_mean": value} for value in (-200.0, -199.0)]
    algo = "eps_end: 0.0, eps_frames: 30, learning_starts_frames: 10, total_frames: 100"
    found = _judged(tmp_path, rows, algo)["exploration"]
    assert (found.status, found.detail) == ("warn", "epsilon is 0 for the last 60% of the run")
    assert _judged(tmp_path, rows, algo.replace("30", "70"))["exploration"].status == "ok"
    assert _judged(tmp_path, rows, algo.replace("0.0", "0.1"))["exploration"].status == "ok"
    found = _judged(tmp_path, [{"return_mean": -200.0}] * 10)["exploration"]
    assert (found.status, found.detail) == ("warn", "every training episode returned -200, in all 10 rows")
    assert _judged(tmp_path, [{"return_mean": -200.0}] * 9)["exploration"].status == "ok"
