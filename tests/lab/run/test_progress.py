"""Progress of a run: plain lines, a bar, or nothing."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import time
import tty

import pytest

from torchrl_reg.lab.run import progress as progress_module
from torchrl_reg.lab.run.progress import Progress

ROW = {"event": "train", "frames": 2_000, "fps": 500.0, "return_mean": 21.5, "loss": 0.125, "kl": 0.5, "other": 9.0}
EVALUATION = {"event": "eval", "frames": 5_000, "return_greedy_mean": 200.0, "return_greedy_std": 12.25, "episodes": 10}


def begun(*frames: int, enabled: bool = True, total: int = 10_000) -> Progress:
    """A progress whose seeds begin at ``frames``."""
    progress = Progress(total, seeds=len(frames), enabled=enabled)
    for seed, each in enumerate(frames):
        progress.begin(each, seed)
    return progress


@pytest.fixture
def terminal(monkeypatch):
    """``terminal(columns)`` makes stdout and stderr a terminal; what it returns reads the lines drawn so far."""
    opened = []

    def make(columns):
        master, slave = pty.openpty()
        tty.setraw(slave)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        monkeypatch.setattr(sys, "stdout", os.fdopen(slave, "w"))
        monkeypatch.setattr(sys, "stderr", sys.stdout)
        os.set_blocking(master, False)
        opened.extend([reader := os.fdopen(master, "rb"), sys.stdout])
        return lambda: [line for line in re.split(r"[\r\n]", (reader.read() or b"").decode()) if line.strip()]

    yield make
    monkeypatch.undo()
    for each in opened:
        each.close()


@pytest.fixture
def clock(monkeypatch):
    """``clock[0]`` is the time, in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_where_there_is_no_terminal(capsys, clock):
    progress = begun(0)
    for clock[0] in (100.0, 101.0, 140.0):
        progress.train(ROW)
    progress.evaluation(EVALUATION)
    progress.end()
    line = "frame 2,000 of 10,000: fps=500 left=0:00:16 return=21.5 loss=0.125 kl=0.5"
    evaluated = "frame 5,000 of 10,000: evaluated: return_greedy=200 +- 12.2"
    out, err = capsys.readouterr()
    assert out.splitlines() == [line, line, evaluated] and err == ""  # not the line one second later


def test_plain_lines_of_several_seeds_show_mean_and_range(capsys, clock):
    progress = begun(0, 0, 5_000, 0)
    for seed, returned in enumerate((10.0, 30.0, 110.0, 50.0)):
        clock[0] = 100.0 + 31 * (seed == 3)
        progress.train(ROW | {"return_mean": returned, "kl": None}, seed)
        progress.evaluation(EVALUATION | {"return_greedy_mean": returned}, seed) if seed != 2 else None
        progress.evaluation(EVALUATION | {"frames": 6_000, "return_greedy_mean": returned}, seed) if seed < 3 else None
    clock[0] = 200.0
    progress.train(ROW | {"return_mean": 10.0, "kl": None})
    progress.end(3)  # it failed: the others have all come to 6,000
    for seed in range(3):
        progress.frames[seed] = 10_000
        progress.end(seed)
    assert capsys.readouterr().out.splitlines() == [
        "frame 2,000 of 10,000: fps=500 left=0:00:16 mean return=10 (10 to 10) loss=0.125 seeds=0/4",
        "frame 5,000 of 10,000: evaluated 3 seeds: mean return_greedy=30 (10 to 50)",
        "frame 2,000 of 10,000: fps=500 left=0:00:16 mean return=50 (10 to 110) loss=0.125 seeds=0/4",
        "frame 6,000 of 10,000: evaluated 3 seeds: mean return_greedy=50 (10 to 110)",
    ]


def test_a_line_at_least_every_minute(capsys, clock):
    progress = begun(2_000)
    for clock[0], frames in ((159.0, 100), (160.0, 200), (219.0, 300), (221.0, 0), (221.5, 0)):
        progress.frames[0] += frames
        progress.tick()
    progress.say("something else")
    clock[0] = 281.0
    progress.tick()
    progress.end()
    assert capsys.readouterr().out.splitlines() == [
        "frame 2,300 of 10,000: fps=5 after 0:01:00",
        "frame 2,600 of 10,000: fps=5 after 0:02:01",
        "something else",
    ]


def test_a_thread_breaks_the_silence(capsys, monkeypatch):
    monkeypatch.setattr(progress_module, "SILENT_SECONDS", 0.01)
    progress = begun(0)
    end = time.monotonic() + 60
    while not (out := capsys.readouterr().out) and time.monotonic() < end:
        time.sleep(0.01)
    progress.end()
    assert out.startswith("frame 0 of 10,000: fps=0 after 0:00:0")


def test_silence_on_request(capsys):
    progress = begun(0, enabled=False)
    progress.train(ROW)
    progress.evaluation(EVALUATION)
    assert capsys.readouterr() == ("", "")


LONG = ROW | {"td_error": 0.25, "action_gap": -0.0625, "tau": 0.03, "entropy": 0.693, "loss": 12_345.0}


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("returned", [21.5, -12_345.678])
def test_a_terminal_shows_three_numbers_uncut(terminal, columns, returned):
    drawn = terminal(columns)
    progress = begun(1_000, total=1_000_000)
    progress.train(LONG | {"return_mean": returned})
    progress.train(ROW | {"return_mean": None, "loss": 12_345.0})  # no episode ended: the last return stays
    progress.frames[0] += 99_000
    progress.tick()
    progress.say("evaluated")
    progress.end()
    lines = drawn()
    assert "evaluated" in lines and max(map(len, lines)) <= columns
    numbers = f"return={'21.5' if returned > 0 else '-12346'} loss=12345 entropy=0.693"
    assert re.match(rf" 10%\|.+\| 100k/1.00M \d\S+/s \d\d:\d\d left, {numbers}$", lines[-1])


def test_seeds_share_one_bar(terminal):
    drawn = terminal(100)
    progress = begun(0, 4_000, 0)
    for seed, (frames, returned) in enumerate([(10_000, 10.0), (6_000, 30.0), (2_000, 50.0)]):
        progress.frames[seed] += frames
        progress.train(ROW | {"return_mean": returned}, seed)
    progress.tick()
    assert " 73%|" in (line := drawn()[-1]) and "7.33k/10.0k" in line
    assert "mean return=30 (10 to 50) loss=0.125 seeds=2/3" in line
    progress.end(2)  # it failed
    progress.tick()
    assert "100%|" in (line := drawn()[-1]) and "seeds=2/2" in line
    progress.end(0)
    assert not progress._closed.is_set()
    progress.end(1)
    assert progress._closed.is_set()


def test_of_plain_lines_the_first_seed_begins_and_the_others_go_on_without_it(capsys, clock):
    progress = begun(0, 0)
    for seed in (1, 0):
        progress.train(ROW | {"return_mean": 10.0 * seed}, seed)
    progress.end(0)  # it failed
    progress.evaluation(EVALUATION, 1)
    progress.end(1)
    train, evaluation = capsys.readouterr().out.splitlines()
    assert "mean return=5 (0 to 10)" in train and evaluation.endswith("evaluated: return_greedy=200 +- 12.2")


def test_a_notebook_has_a_bar(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", sys)
    progress = begun(1_000)
    progress.train(ROW)
    progress.frames[0] += 9_000
    progress.end()
    out, err = capsys.readouterr()
    assert "10.0k/10.0k" in out and "return=21.5 loss=0.125 kl=0.5" in out and not err


@pytest.mark.parametrize(("seconds", "text"), [(59.9, "0:00:59"), (3_723, "1:02:03"), (400_000, "111:06:40")])
def test_clock(seconds, text):
    assert progress_module._clock(seconds) == text
