"""The health of runs, from their rows."""

from __future__ import annotations

import json

import pytest

from torchrl_reg.lab.doctor.records import read_config, record_findings


def judged(path, rows, algo=""):
    """What the doctor says of a run with these training rows and an evaluation that returned 50, by name."""
    (path / "config.yaml").write_text(f"env: {{name: cartpole}}\nalgo: {{{algo}}}\n")
    every = [{"event": "train", "frames": 10 * i, "updates": i, **row} for i, row in enumerate(rows, 1)]
    every.append({"event": "eval", "frames": 10, "return_greedy_mean": 50.0})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in every))
    return {found.name: found for found in record_findings(path, read_config(path / "config.yaml"))}


def column(name, *values):
    return [{name: value} for value in values]


RETURNS = {"return_mean": -20.0}
COPIES = "target_period_updates: {}, total_frames: 2010, learning_starts_frames: 10, update_every_frames: 8"
EPSILON = "eps_end: {}, eps_frames: {}, learning_starts_frames: 10, total_frames: 100"
LEARNS = "learning_starts_frames: {}, total_frames: 100"
ROWS = [
    ("numbers", column("loss", 0.5, None, None), "", "2 of 3 training rows are not finite, the first at frame 20"),
    ("numbers", [{"loss": 0.5, "td_error": None}], "", "1 of 1 training rows are not finite"),
    ("numbers", [{"loss": 0.5, "return_mean": None}], "", None),
    ("values", [RETURNS, {"action_gap": 480.0}], "gamma: 0.9", None),
    ("values", [RETURNS, {"action_gap": 520.0}], "gamma: 0.9", "values explode"),
    ("values", [RETURNS, {"value": -520.0}], "gamma: 0.9", "values explode"),
    # Of which 10 * 0.5 * 2 may be entropy:
    ("values", [RETURNS, {"value": -520.0, "tau": 0.5, "entropy": 2.0}], "gamma: 0.9", None),
    ("values", [RETURNS, {"loss": 2e5}], "", None),
    ("values", [RETURNS, {"loss": 3e5}], "", "values explode"),
    (
        "values",
        [RETURNS, {"diverged_frames": 1250}, {"diverged_frames": 1250}],
        "",
        "what rewards allow at frame 1,250",
    ),
    (
        "bonus",
        column("bonus_clipped", 0.9, 0.9, 0.9, 0.1, 0.2, 0.3, 0.4, 0.7),
        "",
        "55.0% of the Munchausen bonuses",
    ),
    ("bonus", column("bonus_clipped", 0.9, 0.9, 0.9, 0.1, 0.2, 0.3, 0.4), "", None),
    (
        "samples",
        column("ess", 9, 9, 9, 9, 9, 9, 1.3, 1.5),
        "num_value_samples: 16",
        "on 1.4 of 16 sampled actions",
    ),
    ("samples", column("ess", 9, 9, 9, 9, 9, 9), "num_value_samples: 16", None),
    ("samples", column("ess", 5.0), "num_value_samples: 64", "raise num_value_samples or tau"),
    (
        "target network",
        column("updates", 240),
        "target_period_updates: 50",
        "which makes 4 in the 240",
    ),
    ("target network", column("updates", 251), "target_period_updates: 50", None),
    # Of a run that goes on, what is to come counts.
    ("target network", column("updates", 1), COPIES.format(50), None),
    ("target network", column("updates", 1), COPIES.format(51), "which makes 4 in the 250 updates"),
    ("learning", [{"updates": 0, "frames": 40}], LEARNS.format(50), None),
    ("learning", [{"updates": 0, "frames": 60}], LEARNS.format(50), "no update in 60 frames"),
    ("learning", [{"updates": 0, "frames": 60}], LEARNS.format(100), "is not before total_frames=100"),
    (
        "exploration",
        column("return_mean", -200, -199),
        EPSILON.format(0.0, 30),
        "0 for the last 60% of the run",
    ),
    ("exploration", column("return_mean", -200, -199), EPSILON.format(0.0, 70), None),
    ("exploration", column("return_mean", -200, -199), EPSILON.format(0.1, 30), None),
    ("exploration", column("return_mean", *[-200] * 10), "", "every training episode returned -200, in all 10 rows"),
    ("exploration", column("return_mean", *[-200] * 9), "", None),
]


@pytest.mark.parametrize(("name", "rows", "algo", "warning"), ROWS)
def test_what_is_judged_ok_and_what_is_warned_of(tmp_path, name, rows, algo, warning):
    found = judged(tmp_path, rows, algo)[name]
    assert found.status == ("warn" if warning else "ok")
    assert (warning or "") in f"{found.detail}: {found.todo}"


def test_a_run_that_stopped_itself_says_why_and_what_has_no_column_is_not_judged(tmp_path):
    (tmp_path / "failed.json").write_text(json.dumps({"last_line": "loss is nan at frame 30"}))
    found = judged(tmp_path, [{"td_error": 1.0}], "num_value_samples: 16")
    assert found["end"].status == "warn" and "loss is nan at frame 30" in found["end"].detail
    assert not found.keys() & {"samples", "bonus", "exploration", "target network"}
