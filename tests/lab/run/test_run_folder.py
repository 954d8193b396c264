"""A run folder belongs to one run and one process, and records its settings, starts and end."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from torchrl_reg.lab import RecipeConfig, RunSettings, UserError
from torchrl_reg.lab.run.lock import LOCK, LockedError, acquire, is_locked
from torchrl_reg.lab.run.run_folder import COMMAND, RunFolder

CPU = torch.device("cpu")


@dataclass
class _Algo:
    tau: float = 0.03
    cells: list[int] = field(default_factory=lambda: [8, 8])


@dataclass
class _Config(RecipeConfig):
    algo: _Algo = field(default_factory=_Algo)


def _config(path: Path, tau: float = 0.03, **run) -> _Config:
    return _Config(algo=_Algo(tau=tau), run=RunSettings(dir=str(path), **run))


def _open(config: _Config) -> RunFolder:
    folder = RunFolder(config)
    folder.open(CPU)
    return folder


@pytest.fixture
def closed(tmp_path) -> Path:
    """The folder of a run that has ended."""
    _open(_config(tmp_path)).close({})
    return tmp_path


def test_what_a_folder_says_about_its_run_and_its_starts(tmp_path, monkeypatch):
    COMMAND.set("python recipes/m_dqn.py algo.tau=0.1")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    config = _config(tmp_path, tau=0.1, device="auto")
    _open(config).close({})
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["algo"] == {"tau": 0.1, "cells": [8, 8]} and saved["run"]["seed"] == 0
    assert (saved["run"]["device"], config.run.device) == ("cpu", "auto")  # what auto turned out to be
    assert (tmp_path / "command.txt").read_text() == "python recipes/m_dqn.py algo.tau=0.1\n"
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    _open(config)
    starts = json.loads((tmp_path / "provenance.json").read_text())["starts"]
    assert [start["slurm"] for start in starts] == [{}, {"SLURM_JOB_ID": "4711"}]
    assert starts[0]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"commit", "host", "device", "slurm", "started_at"} <= starts[0].keys()


def test_a_folder_has_one_owner_until_its_run_has_ended_and_then_no_lock(tmp_path):
    first = _open(_config(tmp_path))
    sentence = rf"^{tmp_path} is being written by process {os.getpid()} on .* since 20.*; wait for it, end it, or "
    with pytest.raises(UserError, match=sentence):
        _open(_config(tmp_path))
    shutil.copytree(tmp_path, tmp_path / "copy")
    _open(_config(tmp_path / "copy"))
    first.close({})
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_lock_goes_after_done_json_and_one_left_by_a_kill_in_between_is_nothing(tmp_path, monkeypatch):
    from torchrl_reg.lab.run import run_folder

    def killed(path, content):
        write(path, content)
        if path.name == "done.json":
            with pytest.raises(LockedError):
                acquire(tmp_path / LOCK)
            raise KeyboardInterrupt

    folder, write = _open(_config(tmp_path)), run_folder.write_atomically
    monkeypatch.setattr(run_folder, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.close({})
    del folder
    gc.collect()  # of the run, whose lock goes with its process in real life
    again = RunFolder(_config(tmp_path))
    again.check_done()
    assert again.is_done and not is_locked(tmp_path / LOCK)


def test_a_start_whose_versions_are_no_table_is_no_traceback(tmp_path):
    _open(_config(tmp_path)).close({})
    (tmp_path / "provenance.json").write_text('{"starts": [{"versions": ["torch"], "user_code": 3, "commit": 7}]}')
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/checkpoint-000000000100.torchrl").touch()
    assert len(_open(_config(tmp_path))._earlier_starts()) == 2


def test_the_same_settings_may_return_and_cosmetic_ones_may_differ(tmp_path):
    _open(_config(tmp_path / "run")).close({})
    elsewhere = (tmp_path / "run").rename(tmp_path / "moved")
    folder = RunFolder(_config(elsewhere, loggers=["wandb"], progress=False))
    assert folder.is_done


def test_other_settings_are_refused_with_the_difference(closed):
    before = {path: path.read_bytes() for path in closed.iterdir()}
    differences = r"settings \(algo.tau: 0.03 there, 0.5 here; run.seed: 0 there, 2 here\); choose[^\n]*$"
    with pytest.raises(UserError, match=differences):
        RunFolder(_config(closed, tau=0.5, seed=2))
    assert {path: path.read_bytes() for path in closed.iterdir()} == before


def test_a_run_that_named_its_objects_by_path_is_the_same_run(tmp_path):
    (tmp_path / "config.yaml").write_text(
        OmegaConf.to_yaml(OmegaConf.structured(_config(tmp_path)))
        + "head:\n  path: torchrl_reg.objectives.heads:Quantile\nshaping:\n  name: none\n  path: null\n"
    )
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    now = OmegaConf.create(asdict(_config(tmp_path)))
    now.head, now.shaping = {"_target_": "torchrl_reg.objectives.heads.Quantile"}, {"name": "none"}
    RunFolder(now)
    now.head._target_ = "torchrl_reg.objectives.heads.Categorical"
    with pytest.raises(UserError, match=r"head._target_: torchrl_reg.objectives.heads.Quantile there"):
        RunFolder(now)


class _Kind(Enum):
    ONE = 1
    TWO = 2


@dataclass
class _Odd:
    """Settings whose YAML must come back as it was."""

    data: Path = Path("/data/games")
    kind: _Kind = _Kind.ONE
    texts: list[str] = field(default_factory=lambda: ["2020-01-01", "1e5", "yes", "~", "*a", "12:30", "a: b", ""])
    tree: dict[str, Any] = field(default_factory=lambda: {"a": {"b": {}, "c": [], "d": None}, "e": [{"f": {}}, 1e-5]})


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"data": Path("/data")}, "algo.data: /data/games there, /data here"),
        ({"kind": _Kind.TWO}, "algo.kind: ONE there, TWO here"),
        ({"texts": ["2020-01-01"]}, "algo.texts: .* there, .*2020-01-01.* here"),
        (
            {"tree": {"a": {"b": None, "c": [], "d": {}}, "e": [{"f": {}}, 1e-5]}},
            "algo.tree.a.b: {} there, None here; ",
        ),
        ({"tree": {}}, "algo.tree: absent there, {} here; "),
    ],
)
def test_settings_of_any_kind_come_back_as_they_were(tmp_path, change, difference):
    def folder(**odd):
        run = RunSettings(dir=str(tmp_path))
        return RunFolder(OmegaConf.create({"run": asdict(run), "algo": asdict(_Odd(**odd))}))

    first = folder()
    first.open(CPU)
    first.close({})
    folder()
    with pytest.raises(UserError, match=difference):
        folder(**change)


def test_a_resume_may_use_another_machine_and_says_so(tmp_path, monkeypatch, capsys):
    from torchrl_reg.lab.run import run_folder

    elsewhere = {"versions": {"torch": "2.11.0"}, "commit": "a" * 40, "device": "x86_64", "threads": 1}
    here = {"versions": {"torch": "2.14.0"}, "commit": "b" * 40, "device": "NVIDIA H200", "threads": 8}
    starts = iter([elsewhere, elsewhere, here, here])
    monkeypatch.setattr(run_folder, "provenance", lambda device, recipe: next(starts))
    _open(_config(tmp_path)).close({})
    _open(_config(tmp_path, threads=8, log_every_frames=10, device="cpu")).close({})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint-000000000100.torchrl").touch()
    assert capsys.readouterr().err == ""
    _open(_config(tmp_path)).close({})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "warning: this run began elsewhere (torch 2.11.0 before, 2.14.0 now; commit aaaaaaaaaa before"
    )
    assert "device x86_64 before, NVIDIA H200 now; threads 1 before, 8 now)" in line
    _open(_config(tmp_path))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.yaml", "algo: [", "config.yaml must be YAML, got something else: put it back"),
        (
            "config.yaml",
            "a: " + "[" * 900 + "]" * 900,
            "config.yaml must nest at most 32 levels, got more: put it back",
        ),
        ("config.yaml", "", "config.yaml must hold settings, got none: put it back"),
        ("config.yaml", "3", "config.yaml must hold settings, got none: put it back"),
        ("config.yaml", "algo: ${nothing}", r"config.yaml is damaged \(Interpolation key 'nothing'.*\): put it back"),
        ("config.yaml", "a: &a [1]\nb: [*a, *a]\n", "config.yaml must be YAML without aliases, got one: put it back"),
        ("provenance.json", "{", r"provenance.json is damaged \(JSONDecodeError\): delete it"),
        ("provenance.json", "[]", r"provenance.json is damaged \(TypeError\): delete it"),
        ("provenance.json", "{}", r"provenance.json is damaged \(KeyError\): delete it"),
    ],
)
def test_damaged_files_are_named(closed, name, content, sentence):
    (closed / name).write_text(content)
    with pytest.raises(UserError, match=sentence) as refusal:
        _open(_config(closed))
    assert "\n" not in str(refusal.value)


def test_a_folder_in_which_nothing_was_learnt_takes_other_settings(tmp_path):
    """One that failed before its first row, out of memory say, whose advice is to change a setting."""
    for seed in (0, 1):
        _open(_config(tmp_path, seed=seed))._lock.release()
        assert f"seed: {seed}\n" in (tmp_path / "config.yaml").read_text()
    for kept in ("metrics.previous.jsonl", "parts/a.json"):
        (tmp_path / kept).parent.mkdir(exist_ok=True)
        (tmp_path / kept).write_text("{}\n")
        with pytest.raises(UserError, match="run.seed: 1 there, 2 here"):
            RunFolder(_config(tmp_path, seed=2))
        (tmp_path / kept).unlink()


def test_a_config_of_another_program_stays(tmp_path):
    (tmp_path / "config.yaml").write_text("my: project\n")
    with pytest.raises(UserError, match="belongs to a run with other settings"):
        _open(_config(tmp_path))
    assert (tmp_path / "config.yaml").read_text() == "my: project\n"


def test_a_damaged_end_is_named(tmp_path):
    _open(_config(tmp_path)).close({})
    (tmp_path / "done.json").write_text("x")
    with pytest.raises(UserError, match=r"done.json is damaged: delete it and run the same command"):
        RunFolder(_config(tmp_path)).check_done()


def test_a_long_difference_is_shortened(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "config.yaml").write_text("".join(f"setting_{i}: 1\n" for i in range(30)))
    with pytest.raises(UserError, match="; and [0-9]+ more") as refusal:
        _open(_config(tmp_path))
    assert len(str(refusal.value)) < 600


def test_a_write_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def fail(path, text):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("torchrl_reg.lab.run.run_folder.write_atomically", fail)
    with pytest.raises(UserError, match="cannot be used: Read-only file system"):
        _open(_config(tmp_path / "run"))


def test_a_folder_killed_before_its_config_was_written_can_be_used(tmp_path):
    (tmp_path / ".config.yaml.partial").write_text("algo:")
    (tmp_path / ".lock").write_text("")
    _open(_config(tmp_path))
    assert (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (".", "no config.yaml but holds thesis.tex"),
        ("thesis.tex", "got the file"),
        ("thesis.tex/run", r"cannot be used: Not a directory\.$"),
        ("x" * 300, r"cannot be used: File name too long\.$"),
    ],
)
def test_an_impossible_place_is_refused(tmp_path, place, sentence):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=sentence):
        _open(_config(tmp_path / place))


def test_a_run_needs_a_folder():
    with pytest.raises(UserError, match="run.dir must be the folder"):
        RunFolder(_Config())
