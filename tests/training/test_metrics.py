from __future__ import annotations

import json
import os

import pytest
import torch
from tensordict import TensorDict

from torchrl_reg.training.errors import RecordError
from torchrl_reg.training.run.logger import RunningMeans
from torchrl_reg.training.run.metrics import MetricsFile, read_metrics, strip_wall_clock


def test_rows_survive_and_a_half_written_line_is_left_out(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"event": "train", "frames": 10, "loss": 0.5, "fps": 3.0})
    with open(metrics.path, "a") as file:
        file.write('{"event": "tr')
    rows = read_metrics(metrics.path)
    assert [strip_wall_clock(row) for row in rows] == [{"event": "train", "frames": 10, "loss": 0.5}]
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_a_row_that_fits_in_part_is_an_error(tmp_path):
    resource = pytest.importorskip("resource")
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"frames": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (metrics.mark()["bytes"] + 5, hard))
    try:
        with pytest.raises(RecordError, match=r"metrics.jsonl could not be written \(File too large\)"):
            metrics.append({"frames": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_metrics(metrics.path) == [{"frames": 1}]


def test_values_that_json_has_no_word_for_become_null(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"loss": float("nan"), "td_error": float("inf"), "return_mean": None})
    line = metrics.path.read_text()
    assert "NaN" not in line and "Infinity" not in line
    assert json.loads(line) == {"loss": None, "td_error": None, "return_mean": None}


def test_rows_past_a_checkpoint_are_dropped(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
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


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "is gone: put it back from a copy, or delete "),
        (lambda path: os.truncate(path, 10), r"is damaged \(10 bytes, of 30 that the checkpoint knows\)"),
        (lambda path: os.truncate(path, 0), r"is damaged \(0 bytes, of 30"),
        (lambda path: path.write_text(path.read_text().replace("7", "8")), "30 bytes that the checkpoint knows were c"),
        (lambda path: os.truncate(path, 1_000) or _zero_first_row(path), "were changed"),
    ],
)
def test_rows_that_are_not_those_written_are_noticed(tmp_path, damage, said):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for frames in (17, 27):
        metrics.append({"frames": frames})
    mark = metrics.mark()
    metrics.append({"frames": 3})
    damage(metrics.path)
    before = metrics.path.read_bytes() if metrics.path.exists() else None
    with pytest.raises(RecordError, match=said) as refusal:
        MetricsFile(metrics.path).continue_from(mark)
    assert str(refusal.value).count("checkpoints and run the same command to start from the beginning.") == 1
    assert (metrics.path.read_bytes() if metrics.path.exists() else None) == before


def _zero_first_row(path):
    path.write_bytes(bytes(10) + path.read_bytes()[10:])


def test_means_of_updates_with_different_entries():
    means = RunningMeans()
    means.add(TensorDict({"loss": torch.tensor(1.0), "kl": torch.tensor(3.0)}))
    means.add(TensorDict({"loss": torch.tensor(2.0), "kl": torch.tensor(5.0)}))
    means.add(TensorDict({"loss": torch.tensor(6.0)}))
    assert means.pop() == {"loss": 3.0, "kl": 4.0}
    assert means.pop() == {}


def test_means_continue_from_their_state():
    values = [TensorDict({"loss": torch.tensor(x)}) for x in (0.1, 0.7, 0.3)]
    whole, first, second = RunningMeans(), RunningMeans(), RunningMeans()
    for value in values:
        whole.add(value)
    first.add(values[0])
    second.load_state_dict(first.state_dict())
    for value in values[1:]:
        second.add(value)
    assert second.pop() == whole.pop()


def test_the_sum_of_many_updates_keeps_its_digits():
    means = RunningMeans()
    for _ in range(20_000):
        means.add(TensorDict({"loss": torch.tensor(0.1)}))
    # A float32 sum is off by 1e-5 here.
    assert means.pop()["loss"] == pytest.approx(float(torch.tensor(0.1)), abs=1e-9)
