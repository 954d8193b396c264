"""What is typed, as the settings that a run gets, as the name of its folder, and as a sentence if it is wrong."""

from __future__ import annotations

import os
from dataclasses import asdict

import pytest
import tiny_dqn

from torchrl_reg.lab.cli.overrides import default_folder
from torchrl_reg.lab.documents import flat

RESULTS = "results/tiny_dqn"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {"env.name": "CartPole-v1", "net.cells": [16], "algo.lr": 1e-3}),
        # An environment may bring network and hyperparameters, a preset overrides it, and the user wins.
        ("env=acrobot", {"env.name": "Acrobot-v1", "net.cells": [64, 64], "algo.lr": 5e-5}),
        ("algo.lr=0.5 net=small env=acrobot", {"env.name": "Acrobot-v1", "net.cells": [16], "algo.lr": 0.5}),
        ("env=acrobot +paper=quick", {"algo.lr": 0.02, "algo.total_frames": 160}),
        ("algo.total_frames=1e6 net.cells=[1e1,2.0,64]", {"algo.total_frames": 1_000_000, "net.cells": [10, 2, 64]}),
        ("algo.gamma=0.9 algo.lr=${algo.gamma} run.dir=${oc.env:PLACE}/x", {"algo.lr": 0.9, "run.dir": "some where/x"}),
        # A path in Hydra's own language stays.
        (r"run.dir=a\=b/seed\=0", {"run.dir": "a=b/seed=0"}),
        ("run.dir='a=b/seed=0'", {"run.dir": "a=b/seed=0"}),
        ('run.dir="a=b/seed=0"', {"run.dir": "a=b/seed=0"}),
    ],
)
def test_settings_as_typed(words, expected, command, monkeypatch, tmp_path):
    monkeypatch.setenv("PLACE", "some where")
    code, err, cfg = command(*words.split())
    assert (code, err) == (0, "") and isinstance(cfg.algo, tiny_dqn.Algo) and isinstance(cfg.env, tiny_dqn.EnvSettings)
    found = flat(asdict(cfg))
    assert repr({name: found[name] for name in expected}) == repr(expected)  # and of these types
    assert not list(tmp_path.iterdir()) and os.environ.get("HYDRA_FULL_ERROR", "0") == "0"  # nothing is left of Hydra


@pytest.mark.parametrize(
    "folder", ["results/tiny/env=x,algo.lr=0.1/seed=0", "a (b) [c]: it's, {d}", '"a (b) [c]: its, {d}"', "ä/ö"]
)
def test_any_path_may_be_the_folder(command, folder):
    _, err, cfg = command(f"run.dir={folder}")
    assert (cfg.run.dir, err) == (folder.strip('"'), "")


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("net=small", "cartpole/default"),
        ("env=cartpole algo.lr=1e-3 env.max_episode_frames=60 run.device=auto", "cartpole/default"),
        ("algo.max_grad_norm=null algo.prioritized=yes", "cartpole/algo.prioritized=true"),
        ("net.cells=[16] algo.lr=.10", "cartpole/algo.lr=0.1"),
        ("algo.total_frames=2e3", "cartpole/algo.total_frames=2000"),
        ("+paper=quick algo.total_frames=160 env=acrobot", "acrobot/paper=quick"),
        ("env=acrobot net=wide algo.lr=5e-5", "acrobot/default"),
        ("env=acrobot algo.lr=1e-3", "acrobot/algo.lr=0.001"),
        ("env=acrobot net=small", "acrobot/net=small"),
    ],
)
def test_one_run_has_one_folder_however_it_is_written(words, folder, command):
    assert command(*words.split())[2].run.dir == f"{RESULTS}/{folder}/seed=0"


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


BAD = {
    "gamma=1": "gamma is not a setting; did you mean algo.gamma?",
    "+algo.gamm=1": "algo.gamm is not a setting; did you mean algo.gamma?",
    "run.zzz=1": "run.zzz is not a setting; --cfg job lists all settings.",
    "algo.gamma=abc": "algo.gamma must be a number, got 'abc'.",
    "algo.num_envs=1.5": "algo.num_envs must be an integer, got 1.5.",
    "algo.num_envs=true": "algo.num_envs must be an integer, got True.",
    "algo.num_envs=1e40": "algo.num_envs must be an integer, got 1e+40.",
    "net.cells=[8,x]": "net.cells[1] must be an integer, got 'x'.",
    "net.cells=3": "net.cells must be a list, written [a,b].",
    "algo.lr=null": "algo.lr must have a value, got null.",
    "algo.lr=inf": "algo.lr must be a finite number, got inf.",
    "algo.prioritized=maybe": "algo.prioritized must be true or false, got 'maybe'.",
    "algo.num_envs=-1.5": "algo.num_envs must be an integer, got -1.5.",
    "algo=3": "algo is a group of settings; set one of them, algo.<name>=<value>.",
    "env=cartpol": "env=cartpol is not known; choose one of acrobot, cartpole, deep/acrobot (did you mean cartpole?).",
    "env=deep/acrobat": "env=deep/acrobat is not known; choose one of acrobot, cartpole, deep/acrobot "
    "(did you mean deep/acrobot?).",
    "env=Own/Pole-v1": "env=Own/Pole-v1 is not known; choose one of acrobot, cartpole, deep/acrobot "
    "(did you mean env=gym env.game=Own/Pole-v1?).",
    "net=zzz": "net=zzz is not known; choose one of small, wide.",
    "paper=quick": "Could not override 'paper'. No match in the defaults list. To append to your default list use "
    "+paper=quick.",
    "cartpole": "'cartpole' is not of the form name=value; did you mean env=cartpole?",
    "algo.lr=[1": "'algo.lr=[1' is not of the form name=value.",
    "=3": "Config group override must be a string or a list. Got int.",
    "--gamma=1": "--gamma=1 is not an option; settings are written name=value, without dashes.",
    "algo.lr=0.1,0.2": "algo.lr must be one value, got 0.1,0.2; -m runs each of them.",
    "~algo.lr": "algo.lr: Algo (DictConfig) does not support deletion.",
    "algo.gamma=2": "algo.gamma must be in [0, 1], got 2.0.",
    "algo.gamma=${oc.env:TEXT}": "algo.gamma cannot be resolved: While dereferencing interpolation "
    "'${oc.env:TEXT}': Value 'some text' of type 'str' could not be converted to Float.",
    "run.dir=${oc.env:NOPE}/x": "run.dir cannot be resolved: KeyError raised while resolving interpolation: "
    "\"Environment variable 'NOPE' not found\".",
    "algo.gamma=${algo.nope}": "algo.gamma cannot be resolved: Interpolation key 'algo.nope' not found.",
    "net.cells=[${net}]": "net.cells[0] cannot be resolved: Interpolation to parent node detected.",
    "algo=${algo}": "algo cannot be resolved: Recursive interpolation detected.",
    "--help algo.gamma=${algo.gamma}": "algo.gamma cannot be resolved: Recursive interpolation detected.",
    "--resolve": "The --resolve flag can only be used in conjunction with --cfg or --help.",
    "-m --cfg job": "Only one of --run, --multirun, --cfg, --info and --shell_completion can be specified.",
    "run.dir=''": "run.dir must be a folder, or null for one named after the settings, got ''.",
    "run.seed=-1": "run.seed must be at least 0, got -1.",
    "run.eval_episodes=1e8": "run.eval_episodes must be from 1 to 100,000, got 100000000.",
    "run.loggers=[csv]": "run.loggers must be a list of values from ['tensorboard', 'wandb'], got 'csv'.",
}


@pytest.mark.parametrize(("words", "sentence"), BAD.items(), ids=BAD)
def test_a_user_error_is_one_sentence_and_exit_code_1(words, sentence, command, tmp_path, monkeypatch):
    monkeypatch.setenv("TEXT", "some text")
    assert command(*words.split()) == (1, sentence + "\n", [])
    assert not list(tmp_path.iterdir())
