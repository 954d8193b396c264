from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml

from torchrl_reg.training import ConfigError, RecipeConfig, RunSettings
from torchrl_reg.training.run.run_folder import COMMAND, RunFolder

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


def test_what_a_folder_says_about_its_run(tmp_path):
    COMMAND.set("python recipes/m_dqn.py algo.tau=0.1")
    folder = _open(_config(tmp_path / "run", tau=0.1))
    saved = yaml.safe_load((folder.path / "config.yaml").read_text())
    assert saved["algo"] == {"tau": 0.1, "cells": [8, 8]} and saved["run"]["seed"] == 0
    assert (folder.path / "command.txt").read_text() == "python recipes/m_dqn.py algo.tau=0.1\n"
    (start,) = json.loads((folder.path / "provenance.json").read_text())["starts"]
    assert start["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"commit", "host", "device", "slurm", "started_at"} <= start.keys()


def test_slurm_ids_are_noted_and_every_start_is_listed(tmp_path, monkeypatch):
    _open(_config(tmp_path)).close({})
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    (tmp_path / "done.json").unlink()
    _open(_config(tmp_path))
    starts = json.loads((tmp_path / "provenance.json").read_text())["starts"]
    assert [start["slurm"] for start in starts] == [{}, {"SLURM_JOB_ID": "4711"}]


def test_the_same_settings_may_return_and_cosmetic_ones_may_differ(tmp_path):
    _open(_config(tmp_path / "run")).close({})
    elsewhere = (tmp_path / "run").rename(tmp_path / "moved")
    folder = RunFolder(_config(elsewhere, loggers=["wandb"], progress=False))
    assert folder.is_done


def test_other_settings_are_refused_with_the_difference(tmp_path):
    _open(_config(tmp_path)).close({})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError) as caught:
        RunFolder(_config(tmp_path, tau=0.5, seed=2))
    sentence = str(caught.value)
    assert "algo.tau: 0.03 there, 0.5 here; run.seed: 0 there, 2 here" in sentence
    assert "\n" not in sentence and "cells" not in sentence
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_resume_may_use_another_machine_and_says_so(tmp_path, monkeypatch, capsys):
    from torchrl_reg.training.run import run_folder

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


def test_the_device_that_auto_turned_out_to_be_is_stored(tmp_path):
    config = _config(tmp_path, device="auto")
    RunFolder(config).open(torch.device("cpu"))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["run"]["device"] == "cpu"
    assert config.run.device == "auto"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.yaml", "algo: [", r"config.yaml is damaged \(while parsing"),
        ("config.yaml", "", r"config.yaml is damaged \(no settings in it\)"),
        ("config.yaml", "3", r"config.yaml is damaged \("),
        ("config.yaml", "algo: ${nothing}", r"config.yaml is damaged \("),
        (
            "config.yaml",
            "a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]\n",
            r"config.yaml is damaged \(it holds YAML aliases\)",
        ),
        ("provenance.json", "{", r"provenance.json is damaged \(JSONDecodeError\): delete it"),
        ("provenance.json", "[]", r"provenance.json is damaged \(TypeError\): delete it"),
        ("provenance.json", "{}", r"provenance.json is damaged \(KeyError\): delete it"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, sentence):
    _open(_config(tmp_path)).close({})
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=sentence) as refusal:
        _open(_config(tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_long_difference_is_shortened(tmp_path):
    (tmp_path / "config.yaml").write_text("".join(f"setting_{i}: 1\n" for i in range(30)))
    with pytest.raises(ConfigError, match="; and [0-9]+ more") as refusal:
        _open(_config(tmp_path))
    assert len(str(refusal.value)) < 600


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_sentence(tmp_path):
    _open(_config(tmp_path)).close({})
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match="cannot be used: Permission denied"):
            _open(_config(tmp_path))
    finally:
        tmp_path.chmod(0o700)


def test_a_name_that_is_too_long_and_a_write_that_fails_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"cannot be (used|made): File name too long\.$"):
        _open(_config(tmp_path / ("x" * 300)))

    def fail(path, text):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("torchrl_reg.training.run.run_folder.write_atomically", fail)
    with pytest.raises(ConfigError, match="cannot be used: Read-only file system"):
        _open(_config(tmp_path / "run"))


def test_a_folder_with_foreign_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="no config.yaml but holds thesis.tex"):
        RunFolder(_config(tmp_path))


def test_a_folder_killed_before_its_config_was_written_can_be_used(tmp_path):
    (tmp_path / ".config.yaml.partial").write_text("algo:")
    (tmp_path / ".lock").write_text("")
    _open(_config(tmp_path))
    assert (tmp_path / "config.yaml").exists()


def test_a_file_or_an_impossible_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="got the file"):
        RunFolder(_config(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot be made: Not a directory\.$"):
        _open(_config(tmp_path / "file" / "run"))
    with pytest.raises(ConfigError, match="run.dir must be the folder"):
        RunFolder(_Config())
