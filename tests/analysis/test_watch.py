from __future__ import annotations

import json
import os
import shutil
from io import StringIO

import numpy as np
import pytest

pytest.importorskip("rich")

from rich.console import Console

from torchrl_reg.analysis.curves import mean_curve
from torchrl_reg.analysis.record import Tail
from torchrl_reg.analysis.terminal_plot import braille_plot
from torchrl_reg.analysis.watch_frame import watch_frame
from torchrl_reg.analysis.watched import Watcher
from torchrl_reg.cli import main


def _write_run(
    path, *, recipe="m_dqn", env="cartpole", seed=0, tau=0.03, frames=(100, 200), total=400, fps=10.0, done=False
):
    path.mkdir(parents=True)
    algo = {"total_frames": total, "tau": tau}
    config = {"env": {"name": env, "game": ""}, "run": {"seed": seed, "dir": str(path)}, "algo": algo}
    (path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (path / "command.txt").write_text(f"python recipes/{recipe}.py run.seed={seed}\n")
    rows = [_train(frame, frame / 10 + seed, fps) for frame in frames]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done:
        (path / "done.json").write_text('{"frames": 400}')
    return path


def _train(frames, value, fps=10.0):
    return {"event": "train", "frames": frames, "return_mean": value, "fps": fps, "wall_seconds": frames / fps}


def _shown(capsys, monkeypatch, *arguments, columns=120):
    monkeypatch.setenv("COLUMNS", str(columns))
    code = main(["watch", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_one_frame_counts_runs_frames_speed_and_time_left(tmp_path, capsys, monkeypatch):
    _write_run(tmp_path / "m_dqn/cartpole/default/seed=0", seed=0, frames=(100, 200, 400), done=True)
    _write_run(tmp_path / "m_dqn/cartpole/default/seed=1", seed=1, frames=(100, 200))
    code, out, _ = _shown(capsys, monkeypatch, tmp_path, "--once")
    assert code == 0
    assert out.startswith("2 runs  1 done  1 running  600 of 800 frames\n")
    line = next(line for line in out.splitlines() if "m_dqn" in line)
    # Done 1 of 2; 600 frames, (400 + 200) / 800; 10 frames/s; 200 frames left; both seeds have 200 frames: 20, 21.
    assert line.split()[1:-1] == ["m_dqn", "1/2", "600", "75%", "10", "20s", "20.5"]


def test_planned_runs_wait_until_they_begin(tmp_path, capsys, monkeypatch):
    sweep = tmp_path / "sweep"
    _write_run(sweep / "m_dqn/cartpole/tau=1/seed=0", frames=(100, 200, 400), done=True)
    listed = [f"m_dqn/cartpole/tau={tau}/seed={seed}" for tau in (1, 2) for seed in range(3)]
    rows = [json.dumps({"array": None, "elements": [[run] for run in listed[:3]]}), '{"array": ']
    rows.append(json.dumps({"array": "7", "elements": [listed[2:]]}))
    (sweep / "jobs.jsonl").write_text("\n".join(rows))
    (sweep / "m_dqn/cartpole/tau=1/seed=1.failed").write_text("{}")
    for folder in (sweep, tmp_path):
        _, out, _ = _shown(capsys, monkeypatch, folder, "--once")
        assert out.startswith("6 runs  1 done  1 failed  4 waiting  400 of 2.4k frames\n")
        assert "1/3 1 failed" in out
    _, out, _ = _shown(capsys, monkeypatch, sweep / "m_dqn/cartpole/tau=1", "--once")
    assert out.startswith("3 runs  1 done  1 failed  1 waiting  400 of 1.2k frames\n")


def test_a_line_a_run(tmp_path, capsys, monkeypatch):
    _write_run(tmp_path / "a/seed=0", seed=0)
    _write_run(tmp_path / "a/seed=1", seed=1)
    _, out, _ = _shown(capsys, monkeypatch, tmp_path, "--once", "--runs")
    assert "a/seed=0" in out and "a/seed=1" in out


@pytest.mark.parametrize("height", [8, 20, 40, 43, 200])
def test_a_frame_fits_the_screen(tmp_path, height):
    for env in "abcdefgh":
        _write_run(tmp_path / env / "seed=0", env=env)
    watcher = Watcher([tmp_path])
    watcher.refresh()
    console = Console(width=100, file=StringIO())
    console.print(watch_frame(watcher, single=False, width=100, height=height))
    out = console.file.getvalue()
    assert out.count("\n") <= height + (height == 8)  # one table is always there
    assert (" more environments" in out) == (height < 33)
    assert ("\u2800" in out) == (height >= 8 * 4 + 1 + 10)  # a plot as soon as one has room beside all tables
    assert (out.count("● ") == 8) == (height >= 8 * 4 + 1)


def test_states(tmp_path):
    _write_run(tmp_path / "seed=0", seed=0, done=True)
    _write_run(tmp_path / "seed=1", seed=1)
    (tmp_path / "seed=1.failed").write_text("{}")
    (_write_run(tmp_path / "seed=2", seed=2) / "metrics.jsonl").unlink()
    _write_run(tmp_path / "seed=3", seed=3)
    os.utime(_write_run(tmp_path / "seed=4", seed=4) / "metrics.jsonl", (0, 0))
    watcher = Watcher([tmp_path])
    watcher.refresh()
    assert [run.state() for run in watcher.runs.values()] == ["done", "failed", "waiting", "running", "silent"]


def test_half_a_line_waits_for_its_end_and_a_cut_file_is_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == ([], False)
    path.write_text(json.dumps(_train(100, 1.0)) + "\n" + '{"event": "tr')
    assert [row["frames"] for row in tail.read()[0]] == [100]
    assert tail.read() == ([], False)
    with path.open("a") as file:
        file.write('ain", "frames": 200}\nnot json\n[1]\n')
    assert tail.read() == ([{"event": "train", "frames": 200}], False)
    # A resumed run: as long as before, but other rows.
    lines = [json.dumps(_train(frames, 2.0)) for frames in (100, 150, 300, 350)]
    path.write_text("\n".join(lines) + "\n")
    rows, cut = tail.read()
    assert cut and [row["frames"] for row in rows] == [100, 150, 300, 350]
    path.unlink()
    assert tail.read() == ([], True)


def test_runs_appear_vanish_and_resume_between_two_looks(tmp_path):
    first = _write_run(tmp_path / "seed=0", seed=0)
    watcher = Watcher([tmp_path])
    watcher.refresh()
    _write_run(tmp_path / "seed=1", seed=1)
    (first / "metrics.jsonl").write_text(json.dumps(_train(100, 3.0)) + "\n")
    watcher.refresh()
    frames, returns = watcher.runs[first].returns("train")
    assert watcher.runs[first].frames == 100 and (frames.tolist(), returns.tolist()) == ([100], [3.0])
    assert len(watcher.runs) == 2
    shutil.rmtree(first)
    watcher.refresh()
    assert [path.name for path in watcher.runs] == ["seed=1"]


def test_a_command_written_after_the_config_names_the_recipe(tmp_path):
    run = _write_run(tmp_path / "seed=0")
    command = (run / "command.txt").read_text()
    (run / "command.txt").unlink()
    watcher = Watcher([tmp_path])
    watcher.refresh()
    assert [group.name for group in watcher.groups()] == ["unknown"]
    (run / "command.txt").write_text(command)
    watcher.refresh()
    assert [group.name for group in watcher.groups()] == ["m_dqn"] and watcher.runs[run].frames == 200


def test_a_config_that_is_no_run_is_named_and_the_others_are_shown(tmp_path, capsys, monkeypatch):
    _write_run(tmp_path / "seed=0")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.yaml").write_text("a: 1\n")
    code, out, _ = _shown(capsys, monkeypatch, tmp_path, "--once")
    assert code == 0 and "m_dqn" in out and "must be that of a run" in out


def test_one_seed_twice_is_shown_run_by_run(tmp_path, capsys, monkeypatch):
    _write_run(tmp_path / "one", seed=0)
    _write_run(tmp_path / "two", seed=0)
    _, out, _ = _shown(capsys, monkeypatch, tmp_path, "--once")
    assert " one " in out and " two " in out


@pytest.mark.parametrize("rows", ["", '{"event": "train", "frames": 8, "return_mean": null, "fps": null}\n'])
def test_a_run_with_nothing_to_draw(tmp_path, capsys, monkeypatch, rows):
    (_write_run(tmp_path / "seed=0") / "metrics.jsonl").write_text(rows)
    code, out, _ = _shown(capsys, monkeypatch, tmp_path, "--once", columns=40)
    assert code == 0 and "cartpole" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "torchrl-reg: FOLDER must be an existing folder, got absent.\n"),
        ([".", "--every", "0"], "torchrl-reg: --every must be > 0 seconds, got 0.\n"),
        ([".", "--every", "nan"], "torchrl-reg: --every must be > 0 seconds, got nan.\n"),
    ],
)
def test_bad_arguments(capsys, monkeypatch, arguments, message):
    assert _shown(capsys, monkeypatch, *arguments) == (1, "", message)


def test_the_mean_curve_holds_at_each_frame_the_runs_that_span_it():
    frames, values = mean_curve(
        [(np.array(x), np.array(y)) for x, y in (([0, 10], [0.0, 10.0]), ([5, 20], [20.0, 50.0]))]
    )
    assert frames.tolist() == [0, 5, 10, 20]
    assert values.tolist() == [0, (5 + 20) / 2, (10 + 30) / 2, 50]


def test_a_rising_line_in_braille():
    rows, limits = braille_plot([(np.array([0.0, 3.0]), np.array([0.0, 3.0]))], width=2, height=1)
    assert limits == (0, 3, 0, 3)
    # Dots (3, 0), (2, 1) in the left character and (1, 0), (0, 1) in the right one.
    assert rows == [[(chr(0x2800 + 0x40 + 0x20), 0), (chr(0x2800 + 0x02 + 0x08), 0)]]


def test_methods_are_told_apart_at_80_columns(tmp_path, capsys, monkeypatch):
    for place, tau in enumerate((0.001, 0.002)):
        for alpha in (0.125, 0.25):
            run = _write_run(tmp_path / f"{place}{alpha}/seed=0", recipe="mutual_information", tau=tau)
            config = json.loads((run / "config.yaml").read_text())
            config["algo"]["alpha"] = alpha
            (run / "config.yaml").write_text(json.dumps(config))
    _, out, _ = _shown(capsys, monkeypatch, tmp_path, "--once", columns=80)
    for tau in (0.001, 0.002):
        for alpha in (0.125, 0.25):
            assert f"mutual_information tau={tau} alpha={alpha} " in out
    assert max(map(len, out.splitlines())) <= 80
    _, out, _ = _shown(capsys, monkeypatch, tmp_path, "--once", columns=50)
    assert [out.count(part) for part in ("tau=0.001", "tau=0.002", "alpha=0.25", "alpha=0.125")] == [2] * 4


def test_what_slurm_says_is_on_the_screen(tmp_path, capsys, monkeypatch):
    pytest.importorskip("slurm.status")
    _write_run(tmp_path / "s/m_dqn/cartpole/default/seed=0")
    listed = [[f"m_dqn/cartpole/default/seed={seed}"] for seed in range(3)]
    (tmp_path / "s/jobs.jsonl").write_text(json.dumps({"array": "7", "elements": listed}) + "\n")
    (tmp_path / "s/sweep.yaml").write_text("{}")
    for name, text in (("sbatch", ""), ("squeue", "7_1|PENDING|PartitionTimeLimit\n7_2|PENDING|Priority\n")):
        (tmp_path / name).write_text(f"#!/bin/sh\nprintf '{text}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    _, out, _ = _shown(capsys, monkeypatch, tmp_path / "s", "--once", columns=140)
    assert "waiting: 1 for PartitionTimeLimit: never starts: lower cluster.minutes" in out
    (tmp_path / "squeue").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    _, out, _ = _shown(capsys, monkeypatch, tmp_path / "s", "--once", columns=140)
    assert "squeue failed: no controller." in out


def test_runs_whose_values_diverged_are_named(tmp_path, capsys, monkeypatch):
    healthy, diverged = (_write_run(tmp_path / f"x/seed={seed}", seed=seed) for seed in range(2))
    with (diverged / "metrics.jsonl").open("a") as file:
        file.write(
            "".join(json.dumps({**_train(frames, 1.0), "diverged_frames": 1250}) + "\n" for frames in (300, 350))
        )
    _, out, _ = _shown(capsys, monkeypatch, tmp_path, "--once")
    assert "values diverged in x/seed=1 at frame 1,250\n" in out and out.count("diverged") == 1


def test_failures_are_shown_with_their_last_words(tmp_path, capsys, monkeypatch):
    for seed in range(8):
        run = _write_run(tmp_path / f"x/seed={seed}", seed=seed)
        (run / "failed.json").write_text(json.dumps({"last_line": f"loss is nan\x1b[2J, seed {seed}"}))
    (tmp_path / "x/seed=0.failed").write_text(json.dumps({"last_line": "killed: out of memory"}))
    _, out, _ = _shown(capsys, monkeypatch, tmp_path, "--once")
    assert "x/seed=0 failed: killed: out of memory" in out and "3 more failed" in out
    assert "x/seed=4 failed: loss is nan\\x1b[2J, seed 4" in out and "seed 5" not in out and "\x1b" not in out
