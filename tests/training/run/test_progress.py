from __future__ import annotations

import sys
import time

import pytest

from torchrl_reg.training.run import progress as progress_module
from torchrl_reg.training.run.progress import Progress

ROW = {"event": "train", "frames": 2_000, "fps": 500.0, "return_mean": 21.5, "loss": 0.125, "kl": 0.5, "other": 9.0}
EVALUATION = {"event": "eval", "frames": 5_000, "return_greedy_mean": 200.0, "return_greedy_std": 12.25, "episodes": 10}


@pytest.fixture
def clock(monkeypatch):
    """``clock[0]`` is the time, in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_where_there_is_no_terminal(capsys, clock):
    progress = Progress(10_000, 0)
    for clock[0] in (100.0, 101.0, 140.0):
        progress.train(ROW)
    progress.evaluation(EVALUATION)
    progress.close()
    line = "frame 2,000 of 10,000: fps=500 left=0:00:16 return_mean=21.5 loss=0.125 kl=0.5"
    evaluated = "frame 5,000 of 10,000: evaluated: return_greedy=200+-12"
    out, err = capsys.readouterr()
    assert out.splitlines() == [line, line, evaluated] and err == ""  # not the line one second later


def test_a_line_at_least_every_minute(capsys, clock):
    progress = Progress(10_000, 2_000)
    for clock[0], frames in ((159.0, 100), (160.0, 200), (219.0, 300), (221.0, 0), (221.5, 0)):
        progress.frames += frames
        progress.tick()
    progress.say("something else")
    clock[0] = 281.0
    progress.tick()
    progress.close()
    assert capsys.readouterr().out.splitlines() == [
        "frame 2,300 of 10,000: fps=5 after 0:01:00",
        "frame 2,600 of 10,000: fps=5 after 0:02:01",
        "something else",
    ]


def test_a_thread_breaks_the_silence(capsys, monkeypatch):
    monkeypatch.setattr(progress_module, "SILENT_SECONDS", 0.01)
    progress = Progress(10_000, 0)
    end = time.monotonic() + 60
    while not (out := capsys.readouterr().out) and time.monotonic() < end:
        time.sleep(0.01)
    progress.close()
    assert out.startswith("frame 0 of 10,000: fps=0 after 0:00:0")


def test_silence_on_request(capsys):
    progress = Progress(10_000, 0, enabled=False)
    progress.train(ROW)
    progress.evaluation(EVALUATION)
    assert capsys.readouterr() == ("", "")


def test_one_line_on_a_terminal(capsys, monkeypatch):
    for stream in (sys.stderr, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    progress = Progress(10_000, 1_000)
    progress.train(ROW)
    progress.frames += 9_000
    progress.say("evaluated")
    progress.close()
    out, err = capsys.readouterr()
    assert "evaluated" in out and "other" not in err
    assert "return_mean=21.5 loss=0.125 kl=0.5" in err and "10.0k/10.0k" in err


@pytest.mark.parametrize(("seconds", "text"), [(59.9, "0:00:59"), (3_723, "1:02:03"), (400_000, "111:06:40")])
def test_clock(seconds, text):
    assert progress_module._clock(seconds) == text
