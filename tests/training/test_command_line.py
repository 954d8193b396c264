"""The tiny recipe's command line, in this process: what it prints, returns and leaves behind."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_dqn
import torch
from hydra.core.config_store import ConfigStore
from tensordict import TensorDict

from torchrl_reg.training import RecipeConfig, files, recipe
from torchrl_reg.training.cli import signals
from torchrl_reg.training.cli.overrides import default_folder
from torchrl_reg.training.errors import Interrupted
from torchrl_reg.training.run import metrics


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """``command(*overrides)`` -> exit code, stderr, the config that reached ``train``."""
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()

    def run(*overrides: str, train=None):
        seen = []

        def remember(cfg):
            seen.append(cfg)
            return tmp_path

        # The name of a recipe, and its conf folder, come from the file of its train().
        chosen = train or remember
        with monkeypatch.context() as patched:
            patched.setattr("inspect.getfile", lambda _: tiny_dqn.__file__)
            main = recipe(tiny_dqn.Config, chosen)
        monkeypatch.setattr(sys, "argv", ["tiny_dqn.py", *overrides])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return code, capfd.readouterr().err, seen[0] if len(seen) == 1 else seen

    return run


def test_the_dataclass_is_the_default(command):
    code, err, cfg = command()
    assert (code, err) == (0, "")
    assert isinstance(cfg, tiny_dqn.Config) and isinstance(cfg.algo, tiny_dqn.Algo)
    assert isinstance(cfg.env, tiny_dqn.EnvSettings)
    assert cfg.env.name == "CartPole-v1" and cfg.net.cells == [16] and cfg.algo.lr == 1e-3
    assert cfg.run.dir == "results/tiny_dqn/cartpole/default/seed=0"


def test_an_environment_may_bring_network_and_hyperparameters_and_the_user_wins(command):
    _, _, cfg = command("env=acrobot")
    assert (cfg.env.name, cfg.net.cells, cfg.algo.lr) == ("Acrobot-v1", [64, 64], 5e-5)
    _, _, cfg = command("env=acrobot", "net=small", "algo.lr=0.5")
    assert (cfg.env.name, cfg.net.cells, cfg.algo.lr) == ("Acrobot-v1", [16], 0.5)
    _, _, cfg = command("algo.lr=0.5", "env=acrobot")
    assert cfg.algo.lr == 0.5


@pytest.mark.parametrize("folder", ["results/tiny/env=x,algo.lr=0.1/seed=0", "a (b) [c]: it's, {d}", "plain", "ä/ö"])
def test_any_path_may_be_the_folder(command, folder):
    _, err, cfg = command(f"run.dir={folder}")
    assert (cfg.run.dir, err) == (folder, "")
    _, err, cfg = command(f'run.dir="{folder}"')
    assert (cfg.run.dir, err) == (folder, "")


def test_a_path_in_hydras_own_language_stays(command):
    for written in (r"a\=b/seed\=0", "'a=b/seed=0'", '"a=b/seed=0"'):
        assert command(f"run.dir={written}")[2].run.dir == "a=b/seed=0"


def test_a_setting_may_refer_to_another_and_to_the_environment(command, monkeypatch):
    monkeypatch.setenv("FOLDER", "some where")
    _, err, cfg = command("algo.gamma=0.9", "algo.lr=${algo.gamma}", "run.dir=${oc.env:FOLDER}/x")
    assert (err, cfg.algo.lr, cfg.run.dir) == ("", 0.9, "some where/x")


def test_integers_in_scientific_notation(command):
    _, _, cfg = command("algo.total_frames=1e6", "net.cells=[1e1,2.0,64]", "algo.lr=1e-3")
    assert (cfg.algo.total_frames, list(cfg.net.cells), cfg.algo.lr) == (1_000_000, [10, 2, 64], 1e-3)
    assert isinstance(cfg.algo.total_frames, int)
    _, _, seen = command("-m", "algo.total_frames=1e3,2.5e3")
    assert [cfg.algo.total_frames for cfg in seen] == [1000, 2500]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([], ["net=small"]),
        ([], ["env=cartpole", "algo.lr=1e-3", "env.max_episode_frames=60", "run.device=auto"]),
        (["env=acrobot"], ["env=acrobot", "net=wide", "algo.lr=5e-5"]),
        (["algo.lr=0.10"], ["net.cells=[16]", "algo.lr=.1"]),
        (["algo.prioritized=True", "algo.max_grad_norm=null"], ["algo.prioritized=yes"]),
        (["env=acrobot", "+paper=quick"], ["+paper=quick", "algo.total_frames=160", "env=acrobot"]),
        (["algo.total_frames=2000"], ["algo.total_frames=2e3"]),
    ],
)
def test_one_run_has_one_folder_however_it_is_written(command, one, other):
    assert command(*one)[2].run.dir == command(*other)[2].run.dir


def test_settings_that_matter_stay_in_the_name(command):
    assert command("env=acrobot", "algo.lr=1e-3")[2].run.dir == "results/tiny_dqn/acrobot/algo.lr=0.001/seed=0"
    assert command("env=acrobot", "net=small")[2].run.dir == "results/tiny_dqn/acrobot/net=small/seed=0"


def test_a_folder_named_by_an_earlier_version_is_used_again(command, tmp_path):
    (tmp_path / "results/tiny_dqn/cartpole/net=small/seed=0").mkdir(parents=True)
    assert command("net=small")[2].run.dir == "results/tiny_dqn/cartpole/net=small/seed=0"


def test_a_preset_overrides_the_environment(command):
    _, _, cfg = command("env=acrobot", "+paper=quick")
    assert (cfg.algo.lr, cfg.algo.total_frames) == (0.02, 160)
    assert cfg.run.dir == "results/tiny_dqn/acrobot/paper=quick/seed=0"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["algo.gamm=1"], "algo.gamm is not a setting; did you mean algo.gamma?"),
        (["gamma=1"], "gamma is not a setting; did you mean algo.gamma?"),
        (["+algo.gamm=1"], "algo.gamm is not a setting; did you mean algo.gamma?"),
        (["env.nmae=x"], "env.nmae is not a setting; did you mean env.name?"),
        (["run.zzz=1"], "run.zzz is not a setting; --cfg job lists all settings."),
        (["algo.gamma=abc"], "algo.gamma must be a number, got 'abc'."),
        (["algo.num_envs=1.5"], "algo.num_envs must be an integer, got '1.5'."),
        (["algo.num_envs=true"], "algo.num_envs must be an integer, got 'True'."),
        (["net.cells=[8,x]"], "net.cells[1] must be an integer, got 'x'."),
        (["algo.lr=null"], "algo.lr must have a value, got null."),
        (["algo=3"], "algo is a group of settings; set one of them, algo.<name>=<value>."),
        (
            ["env=cartpol"],
            "env=cartpol is not known; choose one of acrobot, cartpole, deep/acrobot (did you mean cartpole?).",
        ),
        (
            ["env=deep/acrobat"],
            "env=deep/acrobat is not known; choose one of acrobot, cartpole, deep/acrobot "
            "(did you mean deep/acrobot?).",
        ),
        (["net.cells=3"], "net.cells must be a list, written [a,b]."),
        (["net=zzz"], "net=zzz is not known; choose one of small, wide."),
        (["+paper=zzz"], "paper=zzz is not known; choose one of quick."),
        (["paper=quick"], "paper has no default choice; to add one write +paper=<choice>."),
        (["cartpole"], "'cartpole' is not of the form name=value; did you mean env=cartpole?"),
        (["algo.lr=[1"], "'algo.lr=[1' is not of the form name=value."),
        (["=3"], "'=3' is not of the form name=value."),
        (
            ["--gamma=1"],
            "--gamma=1 is not an option; settings are written name=value, without dashes.",
        ),
        (
            ["algo.lr=0.1,0.2"],
            "Ambiguous value for argument 'algo.lr=0.1,0.2'; to sweep over it add -m, to pass a list write [a,b].",
        ),
        (["~env"], "~env would remove env, which this recipe needs; set it instead, env=<value>."),
        (["~algo.lr"], "~algo.lr would remove algo.lr, which this recipe needs; set it instead, algo.lr=<value>."),
        (["algo.lr=inf"], "algo.lr must be a finite number, got inf."),
        (["algo.lr=nan"], "algo.lr must be a finite number, got nan."),
        (["algo.num_envs=2.5e0"], "algo.num_envs must be an integer, got '2.5'."),
        (["algo.num_envs=1e40"], "algo.num_envs must be an integer, got '1e+40'."),
        (["algo.gamma=2"], "algo.gamma must be in [0, 1], got 2.0."),
        (["run.seed=-1"], "run.seed must be at least 0, got -1."),
        (["algo.gamma=${oc.env:TEXT}"], "algo.gamma must be a number, got 'some text'."),
        (
            ["run.dir=${oc.env:NOPE}/x"],
            "run.dir cannot be resolved: KeyError raised while resolving interpolation: \"Environment variable 'NOPE' "
            'not found".',
        ),
        (["algo.gamma=${algo.nope}"], "algo.gamma cannot be resolved: Interpolation key 'algo.nope' not found."),
        (["algo.gamma=${algo.gamma}"], "algo.gamma cannot be resolved: Recursive interpolation detected."),
        (["net.cells=[${net}]"], "net.cells[0] cannot be resolved: Interpolation to parent node detected."),
        (["algo=${algo}"], "algo cannot be resolved: Recursive interpolation detected."),
        (["--help", "algo.gamma=${algo.gamma}"], "Recursive interpolation detected."),
        (["--resolve"], "--resolve must go with --cfg job, which prints the settings, got it alone."),
        (["--cfg"], "argument --cfg/-c: expected one argument."),
        (
            ["-m", "--cfg", "job"],
            "--run, --multirun, --cfg, --info and --shell-completion must be asked for one at a time, got several.",
        ),
        (["algo.prioritized=3"], "algo.prioritized must be true or false, got 3."),
        (["-m", "algo.prioritized=true,2"], "algo.prioritized must be true or false, got true,2."),
        (["run.dir="], "run.dir must be a folder, or null for one named after the settings, got ''."),
        (["run.dir=''"], "run.dir must be a folder, or null for one named after the settings, got ''."),
        (["run.eval_episodes=1e8"], "run.eval_episodes must be from 1 to 100,000, got 100000000."),
        (
            ["run.loggers=[csv]"],
            "run.loggers must be a list of values from ['tensorboard', 'wandb'], got 'csv'.",
        ),
    ],
)
def test_a_user_error_is_one_sentence_and_exit_code_1(command, tmp_path, overrides, sentence, monkeypatch):
    monkeypatch.setenv("TEXT", "some text")
    code, err, seen = command(*overrides)
    assert err == sentence + "\n"
    assert code == 1 and seen == []
    assert not list(tmp_path.iterdir())


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


def test_ctrl_c_may_be_pressed_three_times_and_ends_the_process_if_it_hangs(command, monkeypatch):
    left, before = [], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(os, "_exit", left.append)

    def train(_cfg):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)

    try:
        code, err, _ = command(train=train)
        signal.raise_signal(signal.SIGINT)  # while the interpreter exits
        assert code == 130 and left == []
        assert err.strip().startswith("stopped; the same command continues: python ")
        monkeypatch.setattr(signals, "_PATIENCE_SECONDS", 0.0)
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert left == [130]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["run.device=gpu"], "run.device must be auto, cpu, cuda or cuda:<n>, got 'gpu'."),
        (["run.device=meta"], "run.device must be auto, cpu, cuda or cuda:<n>, got 'meta'."),
        (["run.device=cuda:99"], "run.device=cuda:99 needs a CUDA device, got "),
        (["run.device=cpu", "run.cudagraphs=true"], "run.cudagraphs=true needs a CUDA device"),
        (["algo.frames_per_batch=18"], "frames_per_batch must be a positive multiple of 4"),
        (["algo.max_grad_norm=0"], "max_grad_norm must be positive, got 0"),
        (["algo.batch_size=900"], "replay capacity must be at least 900, got 500."),
    ],
)
def test_settings_that_do_not_fit_together_leave_no_folder(command, tmp_path, overrides, sentence):
    code, err, _ = command(*overrides, train=tiny_dqn.train)
    assert code == 1 and err.startswith(sentence) and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_full_disk_at_a_metrics_row_is_one_sentence_and_the_run_goes_on_later(command, tmp_path, monkeypatch):
    arguments = ["run.dir=run", "run.device=cpu", "run.log_every_frames=64", "run.evaluate_every_frames=10000"]
    arguments += ["run.checkpoint_every_frames=96", "run.eval_episodes=1", "algo.total_frames=192"]
    rows = iter(range(100))

    def fail(path, data):
        if next(rows) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write does: without the name
        files.append(path, data)

    monkeypatch.setattr(metrics, "append", fail)
    code, err, _ = command(*arguments, train=tiny_dqn.train)
    assert code == 1 and err.count("\n") == 1
    assert err.startswith("run/metrics.jsonl could not be written (No space left on device); checkpoints are intact")
    gc.collect()  # of the run, whose lock goes with its process in real life
    code, err, _ = command(*arguments, train=tiny_dqn.train)
    written = metrics.read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert (code, err) == (0, "")
    assert [row["frames"] for row in written if row["event"] == "train"] == [64, 128, 192]


def test_another_run_in_the_folder_is_refused(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("algo: {gamma: 0.5}\n")
    code, err, _ = command("run.dir=run")
    assert code == 1 and "algo.gamma: 0.5 there, 0.99 here" in err and err.count("\n") == 1


def test_a_finished_run_is_reported_and_not_repeated(command, tmp_path, capfd):
    (tmp_path / "run").mkdir()
    _, _, cfg = command("run.dir=run")
    from torchrl_reg.training.run.run_folder import RunFolder

    RunFolder(cfg).close({})
    with pytest.raises(Exception, match="not a string"):
        raise Exception("not a string")
    code, err, seen = command("run.dir=run")
    assert code == 1 and "done.json" in err and seen == []


def _library(text):
    """A function of a module that counts as one of the library."""
    namespace = {"__name__": "torchrl_reg.objectives.made_up"}
    exec(text, namespace)
    return namespace["train"]


def test_errors_meant_for_users_are_one_sentence_and_bugs_keep_their_traceback(command):
    class Refusal(ValueError):
        user_error = True

    def refuse(cfg):
        raise Refusal("tau: expected a number > 0,\n got -1.")

    assert command(train=refuse)[:2] == (1, "tau: expected a number > 0, got -1.\n")
    bad_argument = _library("def train(cfg):\n    if cfg:\n        raise ValueError('tau must be > 0, got -1.')")
    assert command(train=bad_argument)[:2] == (1, "tau must be > 0, got -1.\n")

    def bug(cfg):
        raise ValueError("shapes differ")

    with pytest.raises(ValueError, match="shapes differ"):
        command(train=bug)
    for text, said in (
        ("list(zip([1], [], strict=True))", "zip"),
        ("int('x')", "invalid literal"),
        ("[].index(3)", "not in list"),
        ("a, b = [1]", "not enough values"),
        ("import torch; torch.ones(2) @ torch.ones(3)", "inconsistent tensor size"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=said):
            command(train=_library(f"def train(cfg):\n    {text}"))

    def full_disk(cfg):
        raise OSError(28, "No space left on device", "metrics.jsonl")

    code, err, _ = command(train=full_disk)
    assert code == 1 and "No space left on device: 'metrics.jsonl'" in err


def test_settings_that_do_not_fit_the_memory_are_one_sentence(command):
    for capacity in ("1e17", "1e18"):
        code, err, _ = command(
            f"algo.replay_capacity={capacity}", f"run.dir={capacity}", "run.device=cpu", train=tiny_dqn.train
        )
        assert code == 1 and err.count("\n") == 1, err
        assert err.startswith("Out of memory (") and "lower replay_capacity, batch_size" in err
        gc.collect()

    def exhaust(cfg):
        raise MemoryError

    assert command(train=exhaust)[1].startswith("Out of memory (MemoryError): lower replay_capacity")


@pytest.mark.parametrize("module", ["hydra", "omegaconf", "yaml", "tqdm", "safetensors"])
def test_a_missing_package_is_one_sentence(module):
    code = f"import sys; sys.modules[{module!r}] = None; import torchrl_reg.training"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "got none: pip install 'torchrl_reg[recipes]'." in done.stderr


def test_a_yaml_file_that_is_none_is_named_with_its_line(tmp_path):
    shutil.copytree(Path(tiny_dqn.__file__).parent, tmp_path / "recipe")
    (tmp_path / "recipe/conf/env/broken.yaml").write_text("name: x\n  cells: [1\n")
    command = [sys.executable, str(tmp_path / "recipe/tiny_dqn.py"), f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run([*command, "env=broken"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "conf/env/broken.yaml, line 2 is not YAML: mapping values are not allowed here." in done.stderr


def test_hydras_own_switch_shows_the_traceback(command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="algo.gamm is not a setting"):
        command("algo.gamm=1")


def test_a_sweep_runs_every_seed_in_its_own_folder(command):
    code, err, seen = command("-m", "run.seed=0,3", "algo.lr=0.1")
    assert (code, err) == (0, "")
    assert [cfg.run.dir for cfg in seen] == [f"results/tiny_dqn/cartpole/algo.lr=0.1/seed={seed}" for seed in (0, 3)]


QUICK = ["run.device=cpu", "run.progress=false", "run.eval_episodes=1", "algo.total_frames=64"]


def _evaluated(folder):
    return json.loads((folder / "done.json").read_text())["evaluation"]["return_greedy_mean"]


def test_a_sweeper_is_told_the_last_evaluation(command, tmp_path, capfd):
    from hydra_plugins import ask_tell

    ask_tell.TOLD.clear()
    search = ["-m", "hydra/sweeper=ask_tell", "algo.lr=interval(0.1, 0.3)", "run.seeds=[0,1]", *QUICK]
    assert command(*search, train=tiny_dqn.train)[0] == 0
    (low, first), (high, second) = ask_tell.TOLD
    assert ("algo.lr=0.15" in low, "algo.lr=0.25" in high) == (True, True)
    for lr, told in ((0.15, first), (0.25, second)):
        seeds = sorted(tmp_path.glob(f"results/tiny_dqn/cartpole/*algo.lr={lr}*/seed=*"))
        assert len(seeds) == 2 and told == sum(map(_evaluated, seeds)) / 2
    capfd.readouterr()
    assert command(*search)[2] == []  # a finished trial is not repeated, and told again
    assert [told for _, told in ask_tell.TOLD] == [first, second] * 2


def test_optuna_searches_and_goes_on(command, tmp_path):
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


def test_hydra_leaves_no_folders_of_its_own(command, tmp_path):
    command()
    assert not list(tmp_path.iterdir())
    assert os.environ.get("HYDRA_FULL_ERROR", "0") == "0"


def test_the_default_folder_tells_the_settings():
    def name(*overrides: str) -> str:
        return str(default_folder("m_dqn", "atari", list(overrides), 2))

    assert name() == "results/m_dqn/atari/default/seed=2"
    assert name("env=atari", "run.seed=2", "run.dir=x", "run.loggers=[wandb]") == name()
    assert name("net=big", "algo.tau=0.1") == name("algo.tau=0.1", "net=big")
    assert name("env.game=a/../b", "+paper=x") == ("results/m_dqn/atari/env.game=a-..-b,paper=x/seed=2")
    long = [f"algo.setting_{i}=0.123" for i in range(20)]
    assert len(name(*long).split("/")[3]) == 120
    assert name(*long) != name(*long[:-1], "algo.setting_19=0.124")


def test_a_recipe_without_groups(command, monkeypatch):
    @dataclass
    class Bare(RecipeConfig):
        groups = {}

    seen = []
    monkeypatch.setattr("inspect.getfile", lambda _: tiny_dqn.__file__)
    monkeypatch.setattr(sys, "argv", ["tiny_dqn.py", "run.seed=5"])
    recipe(Bare, lambda cfg: seen.append(cfg) or ".")()
    assert seen[0].run.dir == "results/tiny_dqn/none/default/seed=5"
    assert isinstance(ConfigStore.instance(), ConfigStore)
