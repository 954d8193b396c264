"""Loggers and plots whose failures do not stop a run."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial

import pytest
import torch

from torchrl_reg.lab import RunSettings, UserError, read_metrics
from torchrl_reg.lab.run.logger import RunLogger
from torchrl_reg.lab.seeds.workers import Workers


def test_missing_logger_packages_are_named(make_run, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "wandb" else found(n, *a))
    with pytest.raises(UserError, match="needs the package wandb, got none: pip install"):
        make_run(loggers=["wandb"])


def test_tensorboard_sees_the_rows(make_run, through):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run(loggers=["tensorboard"], log_every_frames=8)
    path = through(run, 16, each=lambda _: run.record({"loss": torch.tensor(0.25)}))
    events = EventAccumulator(str(path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(8, 0.25), (16, 0.25)]


def test_a_view_that_fails_is_dropped_and_the_run_goes_on(make_run, through, monkeypatch, capsys):
    class Broken:
        def log_scalar(self, name, value, step):
            raise OSError("no route to host")

    monkeypatch.setattr("torchrl_reg.lab.run.logger._open_views", lambda names, path: [Broken()])
    path = through(make_run(log_every_frames=8), 24)
    assert len(read_metrics(path / "metrics.jsonl")) == 3
    assert capsys.readouterr().err == "warning: Broken shows nothing from frame 8 on (OSError: no route to host).\n"


@pytest.mark.curves
def test_without_matplotlib_the_run_says_so_and_ends_well(make_run, through, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "torchrl_reg.lab.run.curves", raising=False)
    path = through(make_run())
    assert (path / "done.json").exists() and not (path / "curves.png").exists()
    assert capsys.readouterr().err.startswith("no curves.png: matplotlib")


@pytest.mark.curves
def test_a_plot_that_fails_does_not_stand_between_a_run_and_its_end(make_run, through, monkeypatch, capsys):
    def fail(folder):
        raise ValueError("bad\nrow")

    monkeypatch.setattr("torchrl_reg.lab.run.curves.draw_curves", fail)
    assert (through(make_run()) / "done.json").exists()
    assert capsys.readouterr().err == "no curves.png: ValueError: bad row.\n"


def test_seeds_of_a_process_share_its_processor_time(tmp_path, monkeypatch):
    """Also the one that ends last, when no other is running."""
    clock = [0.0]
    monkeypatch.setattr("time.process_time", lambda: clock[0])

    def take_ten_seconds(seed):
        logger = RunLogger(tmp_path / str(seed), RunSettings())
        clock[0] += 10
        return logger.cpu_seconds()

    assert take_ten_seconds(0) == 10
    workers = Workers([partial(take_ten_seconds, seed) for seed in (1, 2)]).run()
    assert [worker.outcome for worker in workers] == [5, 5]
