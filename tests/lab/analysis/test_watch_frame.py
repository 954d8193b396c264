"""The screen of ``torchrl-reg watch``."""

from __future__ import annotations

import json
import os
from io import StringIO
from itertools import product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rich")
pytest.importorskip("plotext")

from rich.console import Console

from torchrl_reg.lab.analysis.sweeps import Watcher
from torchrl_reg.lab.analysis.watch_frame import _plot, sparkline, watch_frame
from torchrl_reg.lab.commands.main import main


@pytest.fixture
def shown(capsys, monkeypatch):
    """What one frame of the folders shows."""

    def show(*words: str | Path, columns: int = 140) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["watch", *map(str, words), "--once"]) == 0
        return capsys.readouterr().out

    return show


def test_one_frame_counts_runs_frames_speed_and_time_left(going, shown, tmp_path: Path) -> None:
    going("m_dqn/seed=0", frames=(100, 200, 400), done=True), going("m_dqn/seed=1", seed=1)
    out = shown(tmp_path)
    assert out.startswith("2 runs  1 done  1 running  600 of 800 frames\n")
    line = next(line for line in out.splitlines() if "m_dqn" in line)
    # Done 1 of 2; 600 frames, (400 + 200) / 800; 10 frames/s; 200 frames left; both seeds have 200 frames: 20, 21.
    assert line.split()[1:-1] == ["m_dqn", "1/2", "600", "75%", "10", "20s", "20.5"]
    out = shown(tmp_path, "--runs")
    assert " m_dqn/seed=0 " in out and " m_dqn/seed=1 " in out


def test_planned_runs_wait_until_they_begin(going, shown, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    going("sweep/m_dqn/cartpole/tau=1/seed=0", frames=(100, 200, 400), done=True)
    listed = [f"m_dqn/cartpole/tau={tau}/seed={seed}" for tau in (1, 2) for seed in range(3)]
    rows = [
        json.dumps({"elements": [[run] for run in listed[:3]]}),
        '{"array": ',
        json.dumps({"elements": [listed[2:]]}),
    ]
    (sweep / "jobs.jsonl").write_text("\n".join(rows))
    (sweep / "m_dqn/cartpole/tau=1/seed=1.failed").write_text("{}")
    for folder in (sweep, tmp_path):
        out = shown(folder)
        assert out.startswith("6 runs  1 done  1 failed  4 waiting  400 of 2.4k frames\n")
        assert " 400  33% " in out and "1/3 1 failed" in out
    out = shown(sweep / "m_dqn/cartpole/tau=1")
    assert out.startswith("3 runs  1 done  1 failed  1 waiting  400 of 1.2k frames\n")


@pytest.mark.parametrize("height", [8, 20, 40, 43, 200])
def test_a_frame_fits_the_screen(going, tmp_path: Path, height: int) -> None:
    for env in "abcdefgh":
        going(f"{env}/seed=0", env=env)
    watcher = Watcher([tmp_path])
    watcher.refresh()
    console = Console(width=100, file=StringIO())
    console.print(watch_frame(watcher, single=False, width=100, height=height))
    out = console.file.getvalue()
    assert out.count("\n") <= height + (height == 8)  # one table is always there
    assert (" more environments" in out) == (height < 33)
    assert any("\u2800" < c <= "\u28ff" for c in out) == (
        height >= 8 * 4 + 1 + 10
    )  # a plot as soon as one has room beside all tables
    assert (out.count("● ") == 8) == (height >= 8 * 4 + 1)


def test_what_cannot_be_grouped_or_read_or_drawn_is_shown_all_the_same(going, shown, tmp_path: Path) -> None:
    going("one"), going("two")  # one seed twice
    (going("three", env="a") / "metrics.jsonl").write_text("")
    (going("four", env="b") / "metrics.jsonl").write_text('{"event": "train", "frames": 8, "return_mean": null}\n')
    (going("five") / "config.yaml").write_text("a: 1\n")
    out = shown(tmp_path)
    assert all(f" {name} " in out for name in ("one", "two", "three", "four")) and "must be that of a run" in out


def test_bad_arguments(capsys) -> None:
    assert main(["watch", "absent"]) == 1
    assert capsys.readouterr() == ("", "torchrl-reg: FOLDER must be an existing folder, got no folder absent.\n")
    for every in ("0", "nan"):
        assert main(["watch", ".", "--every", every]) == 1
        assert capsys.readouterr() == ("", f"torchrl-reg: --every must be > 0 seconds, got {every}.\n")


def test_methods_are_told_apart_at_80_columns(going, shown, tmp_path: Path) -> None:
    settings = [f"tau={tau} alpha={alpha}" for tau, alpha in product((0.001, 0.002), (0.125, 0.25))]
    for text in settings:
        more = {f"algo__{key}": float(value) for key, value in (word.split("=") for word in text.split())}
        going(f"{text}/seed=0", recipe="mutual_information", **more)
    out = shown(tmp_path, columns=80)
    assert all(f"mutual_information {text} " in out for text in settings) and max(map(len, out.splitlines())) <= 80
    out = shown(tmp_path, columns=50)
    assert [out.count(part) for part in ("tau=0.001", "tau=0.002", "alpha=0.25", "alpha=0.125")] == [2] * 4


def test_what_slurm_says_is_on_the_screen(going, shown, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("slurm.status")
    going("s/m_dqn/cartpole/default/seed=0")
    listed = [[f"m_dqn/cartpole/default/seed={seed}"] for seed in range(3)]
    (tmp_path / "s/jobs.jsonl").write_text(json.dumps({"array": "7", "elements": listed}) + "\n")
    (tmp_path / "s/sweep.yaml").write_text("{}")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    pending = "7_1|PENDING|PartitionTimeLimit\n7_2|PENDING|Priority\n"
    for name, text in (("sbatch", ""), ("squeue", pending)):
        (tmp_path / name).write_text(f"#!/bin/sh\nprintf '{text}'\n")
        (tmp_path / name).chmod(0o755)
    assert "waiting: 1 for PartitionTimeLimit: never starts: lower cluster.minutes" in shown(tmp_path / "s")
    (tmp_path / "squeue").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    assert "squeue failed: no controller." in shown(tmp_path / "s")


def test_runs_that_diverged_or_failed_are_named_with_their_last_words(going, shown, tmp_path: Path) -> None:
    for seed in range(8):
        path = going(f"x/seed={seed}", seed=seed)
        (path / "failed.json").write_text(json.dumps({"last_line": f"loss is nan\x1b[2J, seed {seed}"}))
    (tmp_path / "x/seed=0.failed").write_text(json.dumps({"last_line": "killed: out of memory"}))
    with (tmp_path / "x/seed=1/metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "frames": 300, "diverged_frames": 1250}\n' * 2)
    out = shown(tmp_path)
    assert "x/seed=0 failed: killed: out of memory" in out and "3 more failed" in out
    assert "x/seed=4 failed: loss is nan\\x1b[2J, seed 4" in out and "seed 5" not in out and "\x1b" not in out
    assert "values diverged in x/seed=1 at frame 1,250\n" in out and out.count("diverged") == 1


def test_a_rising_line_in_braille_between_its_limits() -> None:
    drawn = _plot([(np.array([0.0, 3000.0]), np.array([0.5, 3.5]))], width=60)
    lines = drawn.plain.splitlines()
    assert len(lines) == 10 and {len(line) for line in lines} == {59}
    assert [line[:10].strip() for line in lines] == ["3.5", "", "", "", "2", "", "", "", "0.5", ""]
    assert lines[-1].split() == ["0", "3k", "frames"]
    ends = [[i for i, c in enumerate(line) if "\u2800" < c <= "\u28ff"] for line in lines[:-1]]
    assert all(min(above) >= max(below) for above, below in zip(ends, ends[1:], strict=False)) and min(ends[-1]) == 10


@pytest.mark.parametrize("ends", [(1e308, -1e308), (1e16, 1e16), (1e300, 1e300), (5.0, 5.0), (1e17, 1e17 + 16)])
def test_values_of_any_size_are_drawn_without_a_word(ends: tuple[float, float], capsys) -> None:
    """A span of 1 is lost beside values of 1e16, and one of 2e308 is infinite."""
    assert len(_plot([(np.array([0.0, 2.0**61]), np.array(ends))], width=80).plain.splitlines()) == 10
    assert capsys.readouterr() == ("", "") and len(sparkline(ends, 12)) == 2
