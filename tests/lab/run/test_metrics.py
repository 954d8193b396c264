"""Rows on disk: complete, finite, and dropped after the checkpoint on resume."""

from __future__ import annotations

import json
import os

import pytest
import torch
from tensordict import TensorDict

from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.metrics import MetricsFile, RunningMeans, read_metrics, strip_wall_clock


@pytest.fixture
def metrics(tmp_path):
    return MetricsFile(tmp_path / "metrics.jsonl")


def test_rows_survive_and_a_half_written_line_is_left_out(metrics, tmp_path):
    metrics.append({"event": "train", "frames": 10, "loss": 0.5, "fps": 3.0})
    with open(metrics.path, "a") as file:
        file.write('{"event": "tr')
    rows = read_metrics(metrics.path)
    assert [strip_wall_clock(row) for row in rows] == [{"event": "train", "frames": 10, "loss": 0.5}]
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_a_row_that_fits_in_part_is_an_error(metrics):
    resource = pytest.importorskip("resource")
    metrics.append({"frames": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (metrics.mark()["bytes"] + 5, hard))
    try:
        with pytest.raises(UserError, match=r"metrics.jsonl could not be written \(File too large\)"):
            metrics.append({"frames": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_metrics(metrics.path) == [{"frames": 1}]


@pytest.mark.parametrize(
    ("damage", "said"),
    [(os.unlink, "0 of the 28 bytes written: it was deleted"), (lambda p: os.truncate(p, 5), "was truncated")],
)
def test_rows_that_vanish_while_the_run_goes_on_are_noticed_at_the_next_row_and_checkpoint(metrics, damage, said):
    metrics.append({"frames": 1})
    metrics.append({"frames": 2})
    damage(metrics.path)
    for ask in (metrics.mark, lambda: metrics.append({"frames": 3})):
        with pytest.raises(UserError, match=f"{said}.*during the run: put it back from a copy, or delete "):
            ask()


def test_of_a_folder_that_is_gone_nobody_says_that_its_checkpoints_are_intact(tmp_path):
    metrics = MetricsFile(tmp_path / "run/metrics.jsonl")
    with pytest.raises(UserError, match="run is gone, with its checkpoints: put it back from a copy, or the same"):
        metrics.append({"frames": 1})
    (tmp_path / "run").touch()  # no folder
    with pytest.raises(UserError, match="untouched, so make .*run writable"):
        metrics.append({"frames": 1})


def test_values_that_json_has_no_word_for_become_null(metrics):
    metrics.append({"loss": float("nan"), "td_error": float("inf"), "return_mean": None})
    refuse = {"parse_constant": pytest.fail}  # NaN, Infinity
    assert json.loads(metrics.path.read_text(), **refuse) == {"loss": None, "td_error": None, "return_mean": None}


def test_rows_past_a_checkpoint_are_dropped(metrics):
    metrics.restart()
    nothing = metrics.mark()
    assert nothing["bytes"] == 0
    metrics.append({"frames": 1})
    mark = metrics.mark()
    metrics.append({"frames": 2})
    again = MetricsFile(metrics.path)
    again.continue_from(mark)
    assert read_metrics(metrics.path) == [{"frames": 1}] and again.mark() == mark
    again.append({"frames": 3})
    both = again.mark()
    MetricsFile(metrics.path).continue_from(both)  # the digest goes on where the checkpoint left it
    MetricsFile(metrics.path).continue_from(nothing)
    assert read_metrics(metrics.path) == []


def _zero_first_row(path):
    path.write_bytes(bytes(10) + path.read_bytes()[10:])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "is gone: put it back from a copy, or delete "),
        (lambda path: os.truncate(path, 10), r"is damaged \(10 bytes, of 30 recorded in the checkpoint\)"),
        (lambda path: os.truncate(path, 0), r"is damaged \(0 bytes, of 30"),
        (lambda path: path.write_text(path.read_text().replace("7", "8")), "30 bytes recorded in the checkpoint were"),
        (lambda path: os.truncate(path, 1_000) or _zero_first_row(path), "were changed"),
    ],
)
def test_rows_that_are_not_those_written_are_noticed(metrics, damage, said):
    for frames in (17, 27):
        metrics.append({"frames": frames})
    mark = metrics.mark()
    metrics.append({"frames": 3})
    damage(metrics.path)
    before = metrics.path.read_bytes() if metrics.path.exists() else None
    with pytest.raises(UserError, match=said) as refusal:
        MetricsFile(metrics.path).continue_from(mark)
    assert str(refusal.value).count("checkpoints and run the same command to start from the beginning.") == 1
    assert (metrics.path.read_bytes() if metrics.path.exists() else None) == before


def added(means, *updates):
    for update in updates:
        means.add(TensorDict({name: torch.tensor(value) for name, value in update.items()}))
    return means


def test_means_of_updates_with_different_entries_go_on_from_their_state():
    updates = [{"loss": 1.0, "kl": 3.0}, {"loss": 2.0, "kl": 5.0}, {"loss": 6.0}]
    resumed = RunningMeans()
    resumed.load_state_dict(added(RunningMeans(), *updates[:1]).state_dict())
    for means in (added(RunningMeans(), *updates), added(resumed, *updates[1:])):
        assert means.pop() == {"loss": 3.0, "kl": 4.0}
        assert means.pop() == {}


def test_the_sum_of_many_updates_keeps_its_digits():
    means = added(RunningMeans(), *[{"loss": 0.1}] * 20_000)
    # A float32 sum is off by 1e-5 here.
    assert means.pop()["loss"] == pytest.approx(float(torch.tensor(0.1)), abs=1e-9)
