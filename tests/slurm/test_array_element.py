"""One element of the array, without SLURM: retries, giving up, stopping."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_harness import wait_until

from slurm.array_element import ArrayElement, Commands
from slurm.code_digest import digest

PROLOGUE = """
import os, signal, sys, time
from pathlib import Path
run = Path(sys.argv[1])
run.mkdir(exist_ok=True)
lives = run / "lives"
n = len(lives.read_text()) if lives.exists() else 0
lives.write_text("x" * (n + 1))
"""


def element(folder: Path, *bodies: str, **more) -> ArrayElement:
    """An element whose runs are Python programs; ``run`` is their folder, ``n`` counts their earlier lives."""
    runs = [
        ((f"r{i}",), (sys.executable, "-c", PROLOGUE + body, str(folder / f"r{i}"))) for i, body in enumerate(bodies)
    ]
    return ArrayElement(Commands(str(folder), str(folder), "abc", runs, **more))


def lives(folder: Path, name: str = "r0") -> int:
    path = folder / name / "lives"
    return len(path.read_text()) if path.exists() else 0


DONE = "(run / 'done.json').write_text('{}')"


def test_runs_go_side_by_side_and_a_second_call_does_nothing(tmp_path):
    waits = "\nwhile not (run.parent / {!r}).exists(): time.sleep(0.05)\n"  # each for the other
    both = element(tmp_path, waits.format("r1") + DONE, waits.format("r0") + DONE)
    (tmp_path / "r0.failed").write_text("{}")  # of an earlier job
    both()
    both()
    assert lives(tmp_path) == lives(tmp_path, "r1") == 1 and not (tmp_path / "r0.failed").exists()


def test_relative_paths_are_below_the_folder_of_the_launch(tmp_path):
    (tmp_path / "launched").mkdir()
    reads = "import os; (run / os.path.basename(os.getcwd())).write_text('x'); " + DONE
    element(tmp_path, reads, launched_from=str(tmp_path / "launched"))()
    assert (tmp_path / "r0/launched").exists()
    element(tmp_path / "other", reads, launched_from=str(tmp_path / "gone"))()
    assert (tmp_path / "other/r0/other").exists(), "the folder of the code"


def test_an_element_runs_the_code_that_was_launched_and_no_other(tmp_path):
    copy = tmp_path / "copy"
    (copy / "recipes").mkdir(parents=True)
    (copy / "recipes/m_dqn.py").write_text("tau = 0.5\n")
    launched = digest({"recipes/m_dqn.py": copy / "recipes/m_dqn.py"})
    for name in ("recipes/__pycache__/m_dqn.pyc", "recipes/notes.md", "slurm/status.py", ".nfs01"):  # none of a run
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("x")
    program = PROLOGUE + DONE

    def call(run: str) -> None:
        runs = [((run,), (sys.executable, "-c", program, str(tmp_path / run)))]
        ArrayElement(Commands(str(tmp_path), str(copy), "abc", runs, digest=launched))()

    call("r0")
    (copy / "recipes/m_dqn.py").write_text("tau = 0.9\n")
    with pytest.raises(RuntimeError, match=f"^{copy} must hold the code that was launched"):
        call("r1")
    assert lives(tmp_path) == 1 and lives(tmp_path, "r1") == 0
    assert "got changed files" in json.loads((tmp_path / "r1.failed").read_text())["last_line"]


def test_a_killed_run_starts_again_a_few_times_and_an_error_does_not(tmp_path):
    bodies = [
        "n == 0 and os.kill(os.getpid(), signal.SIGKILL); " + DONE,
        "n == 0 and sys.exit(137); " + DONE,
    ]  # a shell's
    bodies += ["sys.exit('one reason')", "print('another'); sys.exit(100)", "print('so long')"]
    bodies += ["os.kill(os.getpid(), signal.SIGKILL)"]
    said = r"4 of 6 runs failed: r2 \(exit code 1\): one reason; r3 \(exit code 100\): another; "
    said += r"r4 \(exit code 0\): so long; r5 \(exit code -9\): "
    with pytest.raises(RuntimeError, match=said):
        element(tmp_path, *bodies, retries=1)()
    assert [lives(tmp_path, f"r{i}") for i in range(6)] == [2, 2, 1, 1, 1, 2]
    assert sorted(path.stem for path in tmp_path.glob("*.failed")) == ["r2", "r3", "r4", "r5"]
    assert json.loads((tmp_path / "r2.failed").read_text())["last_line"] == "one reason"


def test_a_run_that_another_process_holds_is_not_started_before_it_lets_go(tmp_path):
    (tmp_path / "r0").mkdir()
    lock = os.open(tmp_path / "r0" / ".lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(RuntimeError, match="r0: another process writes it"):
        element(tmp_path, DONE, lock_seconds=0.6)()
    thread = threading.Thread(target=element(tmp_path, DONE))
    thread.start()
    time.sleep(1)
    assert lives(tmp_path) == 0
    os.close(lock)
    thread.join(10)
    assert lives(tmp_path) == 1


def test_of_seeds_trained_together_only_the_unfinished_fail_and_all_are_waited_for(tmp_path):
    finishes = "(run / f'seed={n}').mkdir(exist_ok=True); (run / f'seed={n}/done.json').write_text('{}'); sys.exit(1)"
    names = ("r0/seed=0", "r0/seed=1")
    command = (sys.executable, "-c", PROLOGUE + finishes, str(tmp_path / "r0"))
    both = ArrayElement(Commands(str(tmp_path), str(tmp_path), "abc", [(names, command)]))
    with pytest.raises(RuntimeError, match=r"r0/seed=1 \(exit code 1\)"):
        both()
    assert [path.name for path in (tmp_path / "r0").glob("*.failed")] == ["seed=1.failed"]
    with pytest.raises(RuntimeError):  # the second life finishes seed 1, but reports a failure
        both()
    both()
    assert lives(tmp_path) == 2


@pytest.mark.parametrize(
    "on_sigterm", ["lambda *_: ((run / 'polite').touch(), sys.exit(143))", "signal.SIG_IGN"], ids=["polite", "deaf"]
)
def test_stop_ends_a_run_and_leaves_no_mark(tmp_path, on_sigterm):
    one = element(tmp_path, f"signal.signal(signal.SIGTERM, {on_sigterm}); (run / 'ready').touch(); time.sleep(60)")
    thread = threading.Thread(target=one)
    thread.start()
    wait_until((tmp_path / "r0/ready").exists)
    one.stop(grace_seconds=1.0)
    thread.join(10)
    assert not thread.is_alive() and not (tmp_path / "r0.failed").exists()
    assert (tmp_path / "r0/polite").exists() == ("polite" in on_sigterm)


def test_a_run_that_is_being_saved_is_asked_once_and_its_workers_are_not(tmp_path):
    saves = "signal.signal(signal.SIGTERM, lambda *_: (run / 'asked').open('a').write('x')); "
    body = f"os.fork(); {saves}(run / f'ready{{os.getpid()}}').touch(); time.sleep(1.5); {DONE}"
    one = element(tmp_path, body)
    thread = threading.Thread(target=one)
    thread.start()
    wait_until(lambda: len(list((tmp_path / "r0").glob("ready*"))) == 2)
    one.request_stop()
    time.sleep(0.3)  # at once, the two would be one signal
    one.stop(grace_seconds=10.0)
    thread.join(10)
    assert (tmp_path / "r0/asked").read_text() == "x" and (tmp_path / "r0/done.json").exists()


def test_a_full_disk_at_the_log_is_one_failure(tmp_path):
    (tmp_path / "r0.log").symlink_to("/dev/full")
    with pytest.raises(RuntimeError, match="1 of 2 runs failed: r0: .*No space left on device"):
        element(tmp_path, DONE, DONE)()
    assert lives(tmp_path, "r1") == 1


def test_a_run_is_told_its_code_threads_and_commit_and_ignores_the_elements_signal(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    names = ("OMP_NUM_THREADS", "TORCHRL_REG_COMMIT", "PYTHONPATH")
    body = "os.kill(os.getpid(), signal.SIGUSR2); "
    body += f"(run / 'env').write_text(' '.join([os.getcwd(), *(os.environ[k] for k in {names!r})]))"
    one = element(tmp_path, f"{body}; {DONE}", threads=3)
    one()
    assert (tmp_path / "r0" / "env").read_text() == f"{tmp_path} 3 abc {tmp_path}:/elsewhere"
    assert len(pickle.dumps(one)) < 2_000  # it holds no state


@pytest.fixture
def usr2() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR2)
    yield
    signal.signal(signal.SIGUSR2, before)


def test_three_jobs_without_a_checkpoint_are_followed_by_no_fourth(tmp_path, usr2):
    (tmp_path / "r0/checkpoints").mkdir(parents=True)
    (tmp_path / "r0/checkpoints/checkpoint-1").touch()
    (tmp_path / "r1").mkdir()
    (tmp_path / "r1/done.json").write_text("{}")  # both of an earlier job
    again = element(tmp_path, DONE).checkpoint().function  # soon after its beginning
    assert again.jobs_without_checkpoint == 0 and signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
    one = element(tmp_path, "sys.exit(1)", DONE, minutes=0)
    for count in (1, 2, 3):
        with contextlib.suppress(RuntimeError):
            one()
        asked = one.checkpoint()
        if count < 3:
            one = pickle.loads(pickle.dumps(asked.function))
            assert one.jobs_without_checkpoint == count and one.commands == asked.function.commands
    assert asked is None and not (tmp_path / "r1.failed").exists()
    assert "lower run.checkpoint_every_frames or raise cluster.minutes" in (tmp_path / "r0.failed").read_text()


@pytest.mark.parametrize("clock_is_wrong_by", [0, -3600, 3600])
def test_a_checkpoint_in_between_counts_whatever_the_file_servers_clock_says(tmp_path, usr2, clock_is_wrong_by):
    saves = "(run / 'checkpoints').mkdir(); saved = run / 'checkpoints' / 'checkpoint-1'; saved.touch(); "
    saves += f"now = time.time() + {clock_is_wrong_by}; os.utime(saved, (now, now)); sys.exit(1)"
    one = ArrayElement(element(tmp_path, saves, minutes=0).commands, jobs_without_checkpoint=2)
    with pytest.raises(RuntimeError):
        one()
    assert one.checkpoint().function.jobs_without_checkpoint == 0


def test_it_imports_no_analysis_and_no_torch():
    code = (
        "import sys, slurm.array_element; print([m for m in sys.modules if m in ('torch', 'torchrl_reg.lab.analysis')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
