"""``slurm/launch.py`` without a cluster: output, errors, and local runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from sweep_harness import ROOT, SLURM, Sweep, launch_command, launch_environment, wait_until

from slurm import launch
from slurm.clusters import Cluster
from slurm.code_digest import digest, only_code


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one sentence with which ``launch.py`` refuses its arguments, in this process."""

    def refuse(*arguments: str, conf: Path = ROOT / "tests/slurm/conf") -> str:
        monkeypatch.setattr(sys, "argv", ["launch.py", "--config-dir", str(conf), *arguments])
        for name, value in (("RECIPES_OF_TESTS", str(ROOT / "tests")), ("HYDRA_FULL_ERROR", "0")):
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            launch.main()
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert end.value.code == 1
        return line

    return refuse


def test_a_dry_run_shows_commands_and_sbatch_text_and_writes_nothing(tmp_path):
    cluster = ("partition=gpu", "gpus=1", "runs_per_job=3", "minutes=33", "memory_gb=8")
    more = ("+cluster.extra.nodelist=n7", *(f"cluster.{setting}" for setting in cluster))
    shown = Sweep(tmp_path, "naps", ("sweep=naps", "dry=true")).launch(*more).stdout
    commands = [line for line in shown.splitlines() if "sleeper.py" in line]
    assert len(commands) == 4
    assert "algo.seconds=0.05" in commands[3] and "run.seed=3" in commands[3]
    options = "array=0-1%2 partition=gpu gpus-per-node=1 cpus-per-task=3 time=33 mem=8GB nodelist=n7 requeue"
    assert all(f"#SBATCH --{option}" in shown for option in [*options.split(), "signal=USR2@90"])
    assert " -P -u -m submitit.core._submit " in shown, "no working directory on the path"
    assert list(tmp_path.iterdir()) == []


HERE = "sweep=naps cluster=local check=false "
NO_SBATCH = "cluster.kind=slurm needs sbatch on PATH, got none; cluster=local"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "sweep must be chosen: sweep= one of "),
        ("sweep=nap", "sweep=nap is not known; choose one of "),
        ("sweep=naps cluster=moon", "cluster=moon is not known; choose one of debug, gpu, local, slurm."),
        ("sweep=naps sweep.recipe=m_dqnn", "sweep.recipe must be one of iq, m_dqn, m_iqn"),
        ("sweep=naps sweep.grid.algo.checkpoint_every=[]", "sweep.grid.algo.checkpoint_every must hold at least one"),
        ("sweep=naps +sweep.base.algo.frmes=3", f"sweep does not fit {ROOT}/tests/slurm/sleeper.py: algo.frmes is not"),
        ("sweep=naps cluster.minuts=3", "cluster.minuts is not a setting; did you mean cluster.minutes?"),
        (
            "sweep=naps sweep.base.algo.frmes=3",
            "sweep.base.algo.frmes is not set here; did you mean sweep.base.algo.frames",
        ),
        ("sweep=naps cluster.extra.nodelist=n7", "cluster.extra.nodelist is not set here; +cluster.extra.nodelist=..."),
        ("sweep=naps cluster.minutes=soon", "cluster.minutes must be an integer, got 'soon'."),
        ("sweep=naps cluster.minutes=0", "cluster.minutes must be at least 1, got 0."),
        ("sweep=naps cluster.memory_gb=-5", "cluster.memory_gb must be > 0 or null, got -5."),
        ("sweep=naps cluster.retries=-1", "cluster.retries must be at least 0, got -1."),
        ("sweep=naps cluster.kind=cloud", "cluster.kind must be slurm, local or debug, got cloud."),
        ("sweep=naps nonsense", "'nonsense' is not of the form name=value."),
        ("pendulum", "'pendulum' is not of the form name=value; did you mean sweep=pendulum?"),
        (HERE + "name=a/b", "name must be that of a folder below root, got a/b."),
        (HERE + "name=.git", "name must be that of a folder below root, got .git."),
        (HERE + "root=/dev/null", "/dev/null/naps cannot be written: Not a directory."),
        (HERE + "root=/tmp/a%j", "root and name must not contain '%', got /tmp/a%j/naps."),
        (HERE + "cluster=slurm cluster.minutes=2", "cluster.signal_seconds must be at most half of cluster.minutes"),
        (HERE + "kept_code=true", "{root}/naps must be a new folder or that of a sweep, got one without sweep.yaml."),
        ("sweep=naps check=false", NO_SBATCH),
    ],
)
def test_bad_input_gets_one_sentence_and_nothing_is_submitted(arguments, expected, refused, tmp_path, monkeypatch):
    if expected is NO_SBATCH:
        monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    said = refused(f"root={tmp_path}", *arguments.split())
    assert said.startswith(expected.replace("{root}", str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


ONLY = "must hold only question, recipe, base, grid, variants, seeds, got "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("recipe: dqn\nseed: 3\n", ONLY + "seed; did you mean seeds?"),
        ("recipe: [dqn\ngrid: {\n", "must be YAML, got a mistake in line 2: "),
        ("recipe: dqn\ngrid: 3\n", "does not fit: sweep.grid must be a mapping, got 3."),
        ("variants: [3]\n", "does not fit: Cannot assign int to Dict[str, Any]."),
        ("- a\n- b\n", ONLY + "Invalid type"),
    ],
)
def test_a_mistake_in_a_sweeps_file_is_one_sentence(text, expected, refused, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/mine.yaml").write_text(text)
    assert f"sweep/mine.yaml {expected}" in refused("sweep=mine", "dry=true", conf=tmp_path)


def test_the_readmes_sweep_is_planned(tmp_path):
    (example,) = re.findall(r"^```yaml\n(.*?)^```", (SLURM / "README.md").read_text(), re.S | re.M)
    (tmp_path / "my/conf/sweep").mkdir(parents=True)
    (tmp_path / "my/conf/sweep/mine.yaml").write_text(example)
    command = [sys.executable, str(SLURM / "launch.py"), "sweep=mine", "dry=true", "--config-dir", "my/conf"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=launch_environment())
    assert done.returncode == 0, done.stderr
    assert "mine: 30 runs, 30 to submit." in done.stdout and "\n! " not in done.stdout


def test_own_recipes_of_one_name_stay_apart_also_below_a_folder_with_a_space(tmp_path):
    folder = tmp_path / "with space"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        body = "import os, sys; run = dict(a.split('=', 1) for a in sys.argv[1:])['run.dir'].strip(chr(39)); "
        body += f"os.makedirs(run); open(run + '/done.json', 'w').write('{name}')"
        (folder / name / "mine.py").write_text(body)
    variants = ",".join(f"{{recipe: '{folder}/{name}/mine.py', env: {name}}}" for name in ("one", "two"))
    more = ("sweep=naps", "check=false", "sweep.seeds=1", "sweep.base={}", f"sweep.variants=[{variants}]")
    mine = Sweep(Path(str(folder).replace(" ", r"\ ")), "x", more)
    mine.launch("cluster=local")
    found = {path.parts[-4]: path.read_text() for path in (folder / "x/mine").glob("*/*/*/done.json")}
    assert found == {"one": "one", "two": "two"}
    assert f"export PYTHONPATH='{folder}/dry=1/code/" in mine.launch("dry=true", "name=dry=1").stdout


def test_help_needs_no_sweep(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["launch.py", "--help"])
    launch.main()
    lines = capsys.readouterr().out.splitlines()
    known = [path.stem for path in (SLURM / "conf").glob("*/*.yaml")]
    known += [f"cluster.{each.name}" for each in fields(Cluster)]
    begun = {line.split()[0].partition("=")[0]: line for line in lines if line.startswith("  ") and line.strip()}
    assert set(known) <= set(begun), set(known) - set(begun)
    assert begun["cluster.minutes"].split()[:2] == ["cluster.minutes=240", "of"]
    assert begun["gpu"].endswith("One GPU a job, shared by four small runs.")


@pytest.mark.parametrize(
    ("reason", "lower"),
    [
        ("Invalid job array specification", "raise cluster.runs_per_job"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "lower cluster.minutes"),
        ("Memory specification can not be satisfied", "lower cluster.memory_gb"),
        ("Requested node configuration is not available", "lower cluster.gpus, cluster.memory_gb, cluster.threads"),
        ("Something new", "lower what your site does not allow"),
    ],
)
def test_a_refused_array_repeats_what_was_asked_and_names_the_setting(reason, lower, refused, tmp_path, monkeypatch):
    for name, body in (("sbatch", f"echo 'sbatch: error: {reason}' >&2; exit 1"), ("sinfo", "echo low"), ("srun", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    asked = "check=false cluster=slurm cluster.minutes=500 cluster.gpus=2 +cluster.extra.nodelist=n7"
    said = refused("sweep=naps", f"root={tmp_path}/results", *asked.split())
    assert said.startswith(f"SLURM refused the array: sbatch: error: {reason}; it asked for 4 jobs of cluster.gpus=2, ")
    assert "cluster.minutes=500" in said and "cluster.extra.nodelist=n7" in said
    assert lower in said.rpartition("; ")[2]


def test_a_sweep_on_this_machine_runs_once_and_says_how_it_goes_and_what_it_was(local_sweep):
    # One after the other: of two that end at the same moment it would tell once.
    lines = local_sweep.launch("check=false", "cluster.parallel_jobs=1").stdout.splitlines()
    assert lines[1] == f"here, 1 job at a time. python slurm/status.py {local_sweep.folder}"
    assert lines[-1].startswith("here: 4 runs: 4 done, 80 of 80 frames") and len(lines) >= 6
    assert len(local_sweep.finished()) == 4
    assert all(local_sweep.frames(run) == list(range(1, 21)) for run in local_sweep.finished())
    kept = yaml.safe_load((local_sweep.folder / "sweep.yaml").read_text())
    assert kept["question"] == "Do all seeds come to their end?" and len(kept["code"]["digest"]) == 64
    assert "0 to run" in local_sweep.launch().stdout
    assert all(local_sweep.starts(run) == [0] for run in local_sweep.finished())


def test_seeds_may_share_a_process_and_keep_their_folders(local_sweep):
    shown = local_sweep.launch("cluster.seeds_per_run=3", "dry=true").stdout
    commands = [shlex.split(line)[-2:] for line in shown.splitlines() if "sleeper.py" in line]
    assert [seeds for seeds, _ in commands] == ["run.seeds=[0,1,2]", "run.seed=3"]
    assert [place.rpartition("/")[2] for _, place in commands] == [r"algo.checkpoint_every\=5", r"seed\=3"]
    local_sweep.launch("cluster.seeds_per_run=3")
    assert [local_sweep.starts(run) for run in local_sweep.finished()] == [[0]] * 4


def test_a_failing_run_fails_alone_and_is_made_again(local_sweep):
    failing = local_sweep.launch("+sweep.base.algo.fails_for_seed=2", ok=False)
    assert failing.returncode == 1
    assert "seed=2 (exit code 1): ZeroDivisionError: this seed was made to fail" in failing.stderr
    assert len(local_sweep.finished()) == 3
    (mark,) = local_sweep.folder.glob("*/*/*/*.failed")
    assert json.loads(mark.read_text())["last_line"] == "ZeroDivisionError: this seed was made to fail"
    assert "4 runs, 1 to run" in local_sweep.launch("+sweep.base.algo.fails_for_seed=2", ok=False).stdout


def test_a_folder_of_something_else_is_refused(refused, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    said = refused("sweep=naps", "cluster=local", f"root={tmp_path}", "name=mine")
    assert said.endswith(
        "mine must be a new folder or that of a sweep, got one without sweep.yaml that holds thesis.tex."
    )
    assert (tmp_path / "mine/thesis.tex").exists()


def test_another_base_is_refused_and_other_code_unless_the_sweeps_own_copy_goes_on(local_sweep):
    (local_sweep.folder / "code").mkdir(parents=True)  # of a launch that was cut short
    local_sweep.launch("sweep.seeds=1")
    said = sentence(local_sweep.launch("sweep.base.algo.frames=10", ok=False))
    assert "belongs to a sweep with another base (algo.frames: 20 there, 10 here); choose another name=" in said
    path = local_sweep.folder / "sweep.yaml"
    kept = yaml.safe_load(path.read_text())
    copy = f"{kept['code']['commit'][:7]}-{kept['code']['digest'][:8]}"
    code = local_sweep.folder / "code" / copy
    with (code / "recipes/m_dqn.py").open("a") as file:
        file.write("# edited")
    for more in ((), ("kept_code=true",)):
        edited = sentence(local_sweep.launch("sweep.seeds=2", *more, ok=False))
        assert edited.startswith(f"{code} must hold the code that was launched, got changed files: ")
    other = digest(only_code({path.relative_to(code).as_posix(): path for path in code.rglob("*")}))
    kept["code"]["digest"] = other
    path.write_text(yaml.safe_dump(kept))
    assert "belongs to a sweep of other code (commit " in sentence(local_sweep.launch("sweep.seeds=2", ok=False))
    lost = sentence(local_sweep.launch("sweep.seeds=2", "kept_code=true", ok=False))
    assert lost.startswith("kept_code=true needs ") and lost.endswith(f"{other[:8]}, got none.")
    code.rename(local_sweep.folder / "code" / f"{copy[:8]}{other[:8]}")
    assert "2 runs, 1 to run" in local_sweep.launch("sweep.seeds=2", "kept_code=true").stdout
    assert [local_sweep.starts(run) for run in local_sweep.finished()] == [[0], [0]]


@pytest.mark.parametrize("code", [3, None, [], {"commit": 3, "uncommitted_changes": False, "digest": "0"}])
def test_a_sweep_yaml_without_its_code_is_one_sentence(code, refused, tmp_path):
    base = {"algo": {"frames": 20, "seconds": 0.05}}
    (tmp_path / "naps").mkdir()
    kept = {"recipe": f"{ROOT}/tests/slurm/sleeper.py", "base": base, "code": code}
    (tmp_path / "naps/sweep.yaml").write_text(yaml.safe_dump(kept))
    for more in ((), ("kept_code=true",)):
        said = refused("sweep=naps", "check=false", f"root={tmp_path}", "cluster=local", *more)
        wanted = f"{tmp_path}/naps/sweep.yaml must hold under code: commit, uncommitted_changes, digest, got "
        assert said.startswith(wanted)


def test_debug_runs_in_this_process(local_sweep):
    more = ("sweep.seeds=1", "sweep.grid.algo.gamma=[0.9]", "sweep.base.run.checkpoint_every_frames=64", "check=false")
    sweep = Sweep(local_sweep.root, "here", ("sweep=tiny", "cluster=debug", "sweep.base.algo.total_frames=128"))
    sweep.launch(*more)
    found = [run.parts[-4:-1] for run in sweep.finished()]
    assert found == [("tiny_dqn", env, "algo.gamma=0.9") for env in ("acrobot", "cartpole")]


def begin(sweep: Sweep, *more: str) -> subprocess.Popen[str]:
    """A launcher in a separate process group, as started by a shell, once a run has a checkpoint."""
    command = launch_command(*sweep.arguments, "check=false", f"name={sweep.name}", f"root={sweep.root}", *more)
    process = subprocess.Popen(
        command, env=launch_environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: any((run / "checkpoint").exists() for run in sweep.runs()))
    return process


def processes(sweep: Sweep) -> str:
    """Ids of all processes of the runs."""
    return subprocess.run(["pgrep", "-f", f"sleeper.py.*{sweep.folder}"], capture_output=True, text=True).stdout


def test_ctrl_c_stops_the_runs_and_the_same_command_continues(local_sweep):
    process = begin(local_sweep, "sweep.base.algo.seconds=0.2")
    os.killpg(process.pid, signal.SIGINT)  # to all processes of the terminal
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and errors.strip() == "stopped; the same command continues."
    before = len(local_sweep.finished())
    assert before < 4 and not list(local_sweep.folder.glob("*/*/*/*.failed")) and not processes(local_sweep)
    assert len(list(local_sweep.folder.glob("*/*/*/*.log"))) <= before + 2, "what waited did not begin"
    assert all((run / "terminated").exists() for run in local_sweep.runs() if run not in local_sweep.finished())
    local_sweep.launch("sweep.base.algo.seconds=0.2")
    assert all(local_sweep.frames(run) == list(range(1, 21)) for run in local_sweep.finished())
    assert sum(len(local_sweep.starts(run)) for run in local_sweep.finished()) > 4


def test_a_second_ctrl_c_does_not_wait_for_the_runs(local_sweep):
    process = begin(local_sweep, "sweep.base.algo.seconds=0.5", "+sweep.base.algo.deaf=1")
    assert processes(local_sweep)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1)
    process.communicate(timeout=5)
    assert process.returncode == 1
    wait_until(lambda: not processes(local_sweep), 5, "the end of the runs")


def test_runs_end_with_a_launcher_that_was_killed(local_sweep):
    process = begin(local_sweep, "sweep.base.algo.seconds=0.5")
    process.kill()
    process.communicate()
    wait_until(lambda: not processes(local_sweep), 10, "the end of the runs")
    assert all((run / "terminated").exists() for run in local_sweep.runs())
    assert not local_sweep.finished()


@pytest.mark.parametrize("devices", [None, "5,7"])
def test_a_local_run_sees_the_gpus_of_its_launcher(devices, local_sweep, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if devices is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    local_sweep.launch("check=false", "sweep.seeds=1", "sweep.base.algo.frames=1")
    (run,) = local_sweep.finished()
    assert (run / "starts.txt").read_text().split()[1] == (devices or "-")


def test_jobs_run_the_code_of_the_launch_whatever_happens_to_the_checkout(tmp_path):
    checkout = tmp_path / "checkout"
    for package in ("torchrl_reg", "recipes", "slurm"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__", "figures"))
    arguments = ("sweep=naps", "cluster=local", "cluster.parallel_jobs=1", "check=false")
    sweep = Sweep(tmp_path, "here", arguments, checkout)
    with ThreadPoolExecutor() as pool:
        launched = pool.submit(sweep.launch, "sweep.base.algo.seconds=0.1")
        wait_until(sweep.runs)
        for path in checkout.rglob("*.py"):
            path.write_text("raise ImportError('from the checkout')\n")
        launched.result()
    assert len(sweep.finished()) == 4
