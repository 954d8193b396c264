"""``slurm/launch.py`` without a cluster: what it shows, refuses and runs on this machine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest
import yaml
from sweep_harness import ROOT, SLURM, launch_command, launch_environment, run_launch, wait_until


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


def test_a_dry_run_shows_commands_and_sbatch_text_and_writes_nothing(tmp_path):
    cluster = ("partition=gpu", "gpus=1", "runs_per_job=3", "minutes=33", "memory_gb=8")
    more = ("+cluster.extra.nodelist=n7", *(f"cluster.{setting}" for setting in cluster))
    done = run_launch("sweep=naps", "dry=true", f"root={tmp_path}", *more)
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if "sleeper.py" in line]
    assert len(commands) == 4
    assert "algo.seconds=0.05" in commands[3] and "run.seed=3" in commands[3]
    options = (
        "array=0-1%2 partition=gpu gpus-per-node=1 cpus-per-task=3 time=33 mem=8GB nodelist=n7 requeue signal=USR2@90"
    )
    for option in options.split():
        assert f"#SBATCH --{option}" in done.stdout
    assert " -P -u -m submitit.core._submit " in done.stdout, "no working directory on the path"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("", "sweep must be chosen: sweep= one of "),
        ("sweep=nap", "sweep=nap is not known; choose one of "),
        ("cluster=moon", "cluster=moon is not known; choose one of debug, gpu, local, slurm."),
        ("sweep.recipe=m_dqnn", "sweep.recipe must be one of iq, m_dqn, m_iqn"),
        ("sweep.grid.algo.checkpoint_every=[]", "sweep.grid.algo.checkpoint_every must hold at least one"),
        ("+sweep.base.algo.frmes=3", f"sweep does not fit {ROOT}/tests/slurm/sleeper.py: algo.frmes is not a setting"),
        ("cluster.minuts=3", "cluster.minuts is not a setting here"),
        ("cluster.minutes=soon", "cluster.minutes: Value 'soon' of type 'str'"),
        ("cluster.minutes=0", "cluster.minutes must be at least 1, got 0."),
        ("cluster.retries=-1", "cluster.retries must be at least 0, got -1."),
        ("cluster.kind=cloud", "cluster.kind must be slurm, local or debug, got cloud."),
        ("nonsense", "'nonsense' is not of the form name=value."),
    ],
)
def test_bad_input_gets_one_sentence_and_nothing_is_submitted(argument, expected, tmp_path):
    chosen = ["sweep=naps"] if argument and not argument.startswith("sweep=") else []
    done = run_launch(*chosen, *filter(None, [argument]), f"root={tmp_path}")
    assert sentence(done).startswith(expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "recipe: dqn\nseed: 3\n",
            "sweep/mine.yaml must hold only question, recipe, base, grid, variants, seeds, got seed; did",
        ),
        ("recipe: [dqn\ngrid: {\n", "sweep/mine.yaml must be YAML, got a mistake in line 2: expected ',' or ']'"),
        ("recipe: dqn\ngrid: 3\n", "sweep/mine.yaml does not fit: sweep.grid: Cannot assign int to Dict[str, Any]."),
        (
            "- a\n- b\n",
            "sweep/mine.yaml must hold only question, recipe, base, grid, variants, seeds, got Invalid type",
        ),
    ],
)
def test_a_mistake_in_a_sweeps_file_is_one_sentence(text, expected, tmp_path):
    (tmp_path / "conf/sweep").mkdir(parents=True)
    (tmp_path / "conf/sweep/mine.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, str(SLURM / "launch.py"), "--config-dir", str(tmp_path / "conf"), "sweep=mine", "dry=true"],
        capture_output=True,
        text=True,
    )
    assert expected in sentence(done)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("name=a/b",), "name must be that of a folder below root, got a/b."),
        (("name=.git",), "name must be that of a folder below root, got .git."),
        (("root=/dev/null",), "/dev/null/naps cannot be written: Not a directory."),
        (("root=/tmp/a%j",), "root and name must not contain '%', got /tmp/a%j/naps."),
        (
            ("cluster=slurm", "cluster.minutes=2"),
            "cluster.signal_seconds must be at most half of cluster.minutes, got 90",
        ),
        (("kept_code=true",), "naps must be a new folder or that of a sweep, got one without sweep.yaml."),
    ],
)
def test_places_that_cannot_be_and_times_that_cannot_work(arguments, expected, tmp_path):
    done = run_launch("sweep=naps", "cluster=local", "check=false", f"root={tmp_path}", *arguments)
    assert expected in sentence(done)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_space_runs(tmp_path):
    root = str(tmp_path / "with space").replace(" ", r"\ ")
    done = run_launch("sweep=naps", "cluster=local", "check=false", "sweep.seeds=1", f"root={root}")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "with space").glob("naps/*/*/*/seed=0/done.json"))) == 1
    dry = run_launch("sweep=naps", "check=false", "dry=true", f"root={root}", "name=two")
    assert f"export PYTHONPATH='{tmp_path}/with space/two/code/" in dry.stdout


def test_own_recipes_of_one_name_stay_apart(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        body = "import sys; from pathlib import Path; run = Path(dict(a.split('=', 1) for a in sys.argv[1:])['run.dir']"
        body += f".replace(chr(92), '')); run.mkdir(parents=True); (run / 'done.json').write_text('{name}')"
        (tmp_path / name / "mine.py").write_text(body)
    variants = ",".join(f"{{recipe: {tmp_path}/{name}/mine.py, env: {name}}}" for name in ("one", "two"))
    more = ("check=false", "sweep.seeds=1", "sweep.base={}", f"sweep.variants=[{variants}]")
    done = run_launch("sweep=naps", "cluster=local", f"root={tmp_path}", "name=x", *more)
    assert done.returncode == 0, done.stderr
    found = {path.parts[-4]: path.read_text() for path in (tmp_path / "x" / "mine").glob("*/*/*/done.json")}
    assert found == {"one": "one", "two": "two"}


def test_a_half_finished_launch_does_not_spoil_the_folder(local_sweep):
    (local_sweep.folder / "code").mkdir(parents=True)
    local_sweep.launch("sweep.seeds=1")
    assert len(local_sweep.finished()) == 1


def test_help_needs_no_sweep():
    done = run_launch("--help")
    assert done.returncode == 0
    assert "sweep: atari60_m_iqn, " in done.stdout and "cluster: debug, gpu, local, slurm" in done.stdout


def test_no_sbatch_on_path_is_one_sentence(tmp_path):
    done = run_launch("sweep=naps", f"root={tmp_path}", "check=false", PATH=os.path.dirname(sys.executable))
    assert sentence(done).startswith("cluster.kind=slurm needs sbatch on PATH, got none; cluster=local")
    assert list(tmp_path.iterdir()) == []


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
    assert "4 runs, 0 to run" in local_sweep.launch("cluster.seeds_per_run=2").stdout


def test_a_failing_run_fails_alone_and_is_made_again(local_sweep):
    failing = local_sweep.launch("+sweep.base.algo.fails_for_seed=2", ok=False)
    assert failing.returncode == 1
    assert "seed=2 (exit code 1): ZeroDivisionError: this seed was made to fail" in failing.stderr
    assert len(local_sweep.finished()) == 3
    (mark,) = local_sweep.folder.glob("*/*/*/*.failed")
    assert json.loads(mark.read_text())["last_line"] == "ZeroDivisionError: this seed was made to fail"
    assert "4 runs, 1 to run" in local_sweep.launch("+sweep.base.algo.fails_for_seed=2", ok=False).stdout


def test_a_folder_of_another_base_or_of_something_else_is_refused(local_sweep, tmp_path):
    local_sweep.launch("sweep.seeds=1")
    refused = sentence(local_sweep.launch("sweep.base.algo.frames=10", ok=False))
    assert "belongs to a sweep with another base (algo.frames: 20 there, 10 here); choose another name=" in refused
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    refused = sentence(run_launch("sweep=naps", "cluster=local", f"root={tmp_path}", "name=mine"))
    assert refused.endswith(
        "mine must be a new folder or that of a sweep, got one without sweep.yaml that holds thesis.tex."
    )
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_folder_of_other_code_is_refused_unless_its_own_copy_goes_on(local_sweep):
    local_sweep.launch("sweep.seeds=1")
    path = local_sweep.folder / "sweep.yaml"
    kept = yaml.safe_load(path.read_text())
    copy = f"{kept['code']['commit'][:7]}-{kept['code']['digest'][:8]}"
    kept["code"]["digest"] = "0" * 64
    path.write_text(yaml.safe_dump(kept))
    assert "belongs to a sweep of other code (commit " in sentence(local_sweep.launch("sweep.seeds=2", ok=False))
    lost = sentence(local_sweep.launch("sweep.seeds=2", "kept_code=true", ok=False))
    assert lost.startswith("kept_code=true needs ") and lost.endswith("00000000, got none.")
    (local_sweep.folder / "code" / copy).rename(local_sweep.folder / "code" / f"{copy[:8]}00000000")
    assert "2 runs, 1 to run" in local_sweep.launch("sweep.seeds=2", "kept_code=true").stdout
    assert [local_sweep.starts(run) for run in local_sweep.finished()] == [[0], [0]]


def test_debug_runs_in_this_process(local_sweep):
    done = run_launch(
        *("sweep=tiny", "cluster=debug", f"root={local_sweep.root}", "name=here", "sweep.base.algo.total_frames=128"),
        *("sweep.seeds=1", "sweep.grid.algo.gamma=[0.9]", "sweep.base.run.checkpoint_every_frames=64", "check=false"),
    )
    assert done.returncode == 0, done.stderr
    assert [run.parts[-4:-1] for run in local_sweep.finished()] == [
        ("tiny_dqn", "acrobot", "algo.gamma=0.9"),
        ("tiny_dqn", "cartpole", "algo.gamma=0.9"),
    ]


def test_ctrl_c_stops_the_runs_and_the_same_command_continues(local_sweep):
    import signal

    more = ("check=false", "name=here", f"root={local_sweep.root}", "sweep.base.algo.seconds=0.2")
    command = launch_command(*local_sweep.arguments, *more)
    process = subprocess.Popen(command, env=launch_environment(), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: any((run / "checkpoint").exists() for run in local_sweep.runs()))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and errors.strip() == "stopped; the same command continues."
    before = len(local_sweep.finished())
    assert before < 4 and not list(local_sweep.folder.glob("*/*/*/*.failed"))
    assert len(list(local_sweep.folder.glob("*/*/*/*.log"))) <= before + 2, "what waited did not begin"
    local_sweep.launch("sweep.base.algo.seconds=0.2")
    assert all(local_sweep.frames(run) == list(range(1, 21)) for run in local_sweep.finished())
    assert sum(len(local_sweep.starts(run)) for run in local_sweep.finished()) > 4
