"""The tiny recipe's command line, in this process: what it prints, returns and leaves behind."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tiny_dqn
import torch
from tensordict import TensorDict

from torchrl_reg.envs import EnvSettings
from torchrl_reg.lab import RecipeConfig, recipe
from torchrl_reg.lab.cli import command_line as signals
from torchrl_reg.lab.cli.sentences import with_setting
from torchrl_reg.lab.errors import Interrupted, UserError
from torchrl_reg.modules import NetSettings


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (Interrupted(signal.SIGTERM), 143)])
def test_a_signal_in_the_middle_of_a_swap_of_parameters_is_a_stop_and_no_error(command, stop, code):
    # TensorDict's to_module turns it into a RuntimeError about the truth of a TensorDict.
    network = torch.nn.Linear(2, 1)

    def train(_cfg):
        with TensorDict.from_module(network).to_module(network):
            raise stop

    got, err, _ = command(train=train)
    assert got == code
    assert err.strip().startswith("stopped; the same command continues: python ")


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_may_come_three_times_and_ends_the_process_if_it_hangs(command, monkeypatch, number):
    left, before = [], {each: signal.getsignal(each) for each in STOPPING}
    monkeypatch.setattr(os, "_exit", left.append)

    def train(_cfg):
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)

    try:
        code, err, _ = command(train=train)
        signal.raise_signal(number)  # while the interpreter exits
        assert code == 128 + number and left == []
        assert err.strip().startswith("stopped; the same command continues: python ")
        monkeypatch.setattr(signals, "_MAX_STOP_SECONDS", 0.0)
        signal.raise_signal(number)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert left == [128 + number]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("run.device=gpu", "run.device must be auto, cpu, cuda or cuda:<n>, got 'gpu'."),
        ("run.device=meta", "run.device must be auto, cpu, cuda or cuda:<n>, got 'meta'."),
        ("run.device=cuda:99", "run.device=cuda:99 needs a CUDA device, got "),
        ("run.device=cpu run.cudagraphs=true", "run.cudagraphs=true needs a CUDA device"),
        ("algo.max_grad_norm=0", "max_grad_norm must be positive, got 0"),
        ("algo.batch_size=900", "algo.replay_capacity must be at least 900, got 500."),
        # The allocator refuses the first, and the second has no size that fits 64 bits.
        ("algo.replay_capacity=1e17 run.device=cpu", "Out of memory ("),
        ("algo.replay_capacity=1e18 run.device=cpu", "Out of memory ("),
    ],
)
def test_settings_that_do_not_fit_together_leave_no_folder(command, tmp_path, words, sentence):
    code, err, _ = command(*words.split(), train=tiny_dqn.train)
    assert code == 1 and err.startswith(sentence) and err.count("\n") == 1
    assert not list(tmp_path.iterdir()) or "memory" in sentence


@pytest.mark.parametrize("text", ["", "5", '{"a": 1}'])
def test_a_check_of_something_else_is_one_sentence(command, monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    sentence = f"--check must be given a JSON list of command lines on stdin, got {text!r}.\n"
    assert command("--check")[:2] == (1, sentence)


def test_errors_meant_for_users_are_one_sentence_and_bugs_keep_their_traceback(command, monkeypatch):
    def refuse(cfg):
        raise UserError("tau: expected a number > 0,\n got -1.")

    assert command(train=refuse)[:2] == (1, "tau: expected a number > 0, got -1.\n")

    def bug(cfg):
        raise ValueError("shapes differ")

    with pytest.raises(ValueError, match="shapes differ"):
        command(train=bug)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # Hydra's own switch shows the traceback of both
    with pytest.raises(Exception, match="Could not override 'algo.gamm'"):
        command("algo.gamm=1")


def test_missing_packages_are_one_sentence():
    modules = ["hydra", "omegaconf", "yaml", "tqdm", "greenlet", "safetensors", "filelock"]
    code = f"import sys; sys.modules.update(dict.fromkeys({modules})); from torchrl_reg.lab import Run"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    packages = "hydra-core, omegaconf, pyyaml, tqdm, greenlet, safetensors, filelock"
    sentence = f"torchrl_reg.lab needs {packages}, got none: pip install 'torchrl_reg[recipes]'.\n"
    assert (done.returncode, done.stderr) == (1, sentence)


@pytest.mark.parametrize("words", ["recipes/m_dqn.py", "slurm/launch.py", "-m torchrl_reg.lab.commands.main status x"])
def test_windows_is_refused_in_one_sentence(words, tmp_path):
    lacks = "import signal, sys; sys.modules['fcntl'] = sys.modules['termios'] = None; del signal.SIGUSR1"
    (tmp_path / "sitecustomize.py").write_text(lacks)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *words.split()], cwd=root, env=env, capture_output=True, text=True
    )
    start = "torchrl-reg: " if words.startswith("-m") else ""
    assert done.stderr.startswith(f"{start}Runs and sweeps need POSIX signals") and done.stderr.count("\n") == 1
    assert done.returncode == 1 and "use WSL" in done.stderr


def test_a_yaml_file_that_is_none_is_named_with_its_line(command, tmp_path):
    shutil.copytree(Path(tiny_dqn.__file__).parent, tmp_path / "recipe")
    (tmp_path / "recipe/conf/env/broken.yaml").write_text("name: x\n  cells: [1\n")
    code, err, seen = command("env=broken", script=tmp_path / "recipe/tiny_dqn.py")
    assert (code, err.count("\n"), seen) == (1, 1, [])
    assert "conf/env/broken.yaml, line 2 is not YAML: " in err


def test_a_sweep_runs_every_seed_in_its_own_folder(command):
    code, err, seen = command("-m", "run.seed=0,3", "algo.total_frames=1e3,2.5e3")
    assert (code, err) == (0, "")
    folder = "results/tiny_dqn/cartpole/algo.total_frames={}/seed={}"
    assert [cfg.run.dir for cfg in seen] == [folder.format(n, seed) for seed in (0, 3) for n in (1000, 2500)]


def test_a_sweep_that_a_later_run_would_end_does_not_begin(command, tmp_path):
    code, err, seen = command("-m", "algo.gamma=0.5,2")
    assert (code, seen) == (1, []) and err == "algo.gamma must be in [0, 1], got 2.0.\n"
    code, err, seen = command("-m", "run.dir=fixed", "run.seed=0,1")
    assert (code, seen) == (1, [])
    assert err == "run.dir must be another folder for each run of -m, got fixed for several.\n"
    assert [cfg.run.dir for cfg in command("-m", "run.dir='at/${run.seed}'", "run.seed=0,1")[2]] == ["at/0", "at/1"]


@pytest.mark.parametrize(
    "words",
    [
        ["run.seed=0,1", "run.dir='at/${hydra:job.num}'"],
        ["run.seed=0,1", "run.dir='at/${run.seed}/${now:%Y}'"],
        ["env=glob(cart*)"],
        ["hydra.searchpath=[file://{here}]", "env=mine,cartpole", "run.dir='at/${env.name}'"],
        ["--config-dir={here}", "env=mine,cartpole"],
    ],
)
def test_a_sweep_that_hydra_alone_can_tell_runs(command, tmp_path, words):
    (tmp_path / "env").mkdir()
    (tmp_path / "env/mine.yaml").write_text("name: CartPole-v1\n")
    code, err, seen = command("-m", *(word.replace("{here}", str(tmp_path)) for word in words))
    assert (code, err) == (0, "") and seen


def test_a_sweep_over_groups_of_seeds_has_a_folder_for_each(command):
    groups = (
        "-m",
        "run.seeds=[0,1],[2,3]",
        "run.dir=out",
        "algo.total_frames=64",
        "run.device=cpu",
        "run.eval_episodes=1",
    )
    assert command(*groups, train=tiny_dqn.train)[0] == 0
    code, err, _ = command("-m", "run.seeds=[0,1],[1,2]", "run.dir=out")
    assert code == 1 and "got out/seed=1 for several" in err


@pytest.mark.parametrize("words", ["run.dir=a=b", "+run.dir=a=b", "++run.dir=a=b", "run.dir=a=${run.seed}"])
def test_a_folder_may_have_an_equals_sign(command, words):
    assert command(words)[2].run.dir in ("a=b", "a=0")


def test_a_folder_below_home(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert command("run.dir=~/runs/x")[2].run.dir == str(tmp_path / "home/runs/x")


def test_a_copy_of_a_recipe_takes_our_groups(command, tmp_path):
    copy = tmp_path / "mine/tiny_dqn.py"
    copy.parent.mkdir()
    shutil.copy(tiny_dqn.__file__, copy)
    code, err, _ = command("env=breakout", script=copy)
    assert code == 1 and err.startswith("env=breakout is not known; choose one of ") and "minatar/breakout" in err
    code, err, _ = command("--config-name", "foo")
    assert code == 1 and re.fullmatch(r"--config-name must name a file in .*/conf, got foo\.\n", err)


def test_an_argument_of_the_library_is_named_as_a_setting():
    @dataclass
    class Config(RecipeConfig):
        env: EnvSettings = field(default_factory=lambda: EnvSettings("cartpole"))
        net: NetSettings = field(default_factory=NetSettings)

    for said, named in (
        ("game must be one of", "env.game must be one of"),
        ("NetSettings.name must be", "net.name must be"),
        ("name must be", "name must be"),  # of which
        ("tau must be", "tau must be"),
    ):
        assert with_setting(f"{said} x, got y.", Config) == f"{named} x, got y."


QUICK = ["run.device=cpu", "run.progress=false", "run.eval_episodes=1", "algo.total_frames=64"]


def _evaluated(folder):
    return json.loads((folder / "done.json").read_text())["evaluation"]["return_greedy_mean"]


def test_a_sweeper_is_told_the_last_evaluation(command, tmp_path):
    from hydra_plugins import ask_tell

    ask_tell.TOLD.clear()
    search = ["-m", "hydra/sweeper=ask_tell", "algo.lr=interval(0.1, 0.3)", "run.seeds=[0,1]", *QUICK]
    assert command(*search, train=tiny_dqn.train)[0] == 0
    (low, first), (high, second) = ask_tell.TOLD
    assert "algo.lr=0.15" in low and "algo.lr=0.25" in high
    for lr, told in ((0.15, first), (0.25, second)):
        seeds = sorted(tmp_path.glob(f"results/tiny_dqn/cartpole/*algo.lr={lr}*/seed=*"))
        assert len(seeds) == 2 and told == sum(map(_evaluated, seeds)) / 2
    assert command(*search)[2] == []  # a finished trial is not repeated, and told again
    assert [told for _, told in ask_tell.TOLD] == [first, second] * 2


def test_optuna_searches_and_goes_on(command, tmp_path, monkeypatch):
    monkeypatch.setenv("SQLALCHEMY_SILENCE_UBER_WARNING", "1")  # the sweeper's optuna needs SQLAlchemy 1.4
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    import optuna

    storage = f"sqlite:///{tmp_path / 'study.db'}"
    search = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=2"]
    search += ["hydra.sweeper.n_jobs=1", "hydra.sweeper.study_name=lr", f"hydra.sweeper.storage={storage}"]
    for trials in (2, 4):
        assert command(*search, "algo.lr=tag(log, interval(1e-3, 1e-1))", *QUICK, train=tiny_dqn.train)[0] == 0
        found = optuna.load_study(study_name="lr", storage=storage).trials
        assert len(found) == trials
        for trial in found:
            (folder,) = tmp_path.glob(f"results/tiny_dqn/cartpole/*algo.lr={trial.params['algo.lr']}*/seed=0")
            assert trial.value == _evaluated(folder)


def test_a_recipe_without_groups(tmp_path, monkeypatch):
    @dataclass
    class Bare(RecipeConfig):
        defaults = []

    seen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("inspect.getfile", lambda _: tiny_dqn.__file__)
    monkeypatch.setattr(sys, "argv", ["tiny_dqn.py", "run.seed=5"])
    recipe(Bare, lambda cfg: seen.append(cfg) or ".")()
    assert seen[0].run.dir == "results/tiny_dqn/none/default/seed=5"
