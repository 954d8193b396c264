"""The checks of this machine, and the command that prints what was found."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from torchrl_reg.lab.commands.main import main
from torchrl_reg.lab.doctor import machine
from torchrl_reg.lab.doctor.machine import Finding


def _run(*arguments: str) -> int:
    return main(["doctor", *arguments])


@pytest.fixture
def only(monkeypatch):
    """Replaces the checks of the machine, which take seconds."""
    return lambda *checks: monkeypatch.setattr("torchrl_reg.lab.commands.doctor.CHECKS", checks)


def test_a_check_that_raises_is_one_line_and_the_others_go_on(only, capsys):
    def broken():
        raise RuntimeError("first line\nsecond line")

    only(broken, lambda: [Finding("after", "ok", "fine")])
    assert _run() == 0
    out = capsys.readouterr().out
    assert "warn     broken  could not be checked: first line second line\n" in out
    assert "ok       after   fine\n" in out
    assert out.endswith("1 ok, 1 to look at, 0 missing; nothing essential is broken.\n")


@pytest.mark.parametrize("essential", [True, False])
def test_the_exit_code_says_whether_something_essential_is_missing(only, capsys, essential):
    found = {"name": "torch", "status": "missing", "detail": "not installed", "todo": "get it", "essential": essential}
    only(lambda: [Finding(**found)])
    assert _run() == _run("--json") == essential
    shown, _, listed = capsys.readouterr().out.partition("[")
    assert "-> get it" in shown and json.loads("[" + listed) == [found]


def test_a_folder_that_is_no_run_is_refused(only, capsys, tmp_path):
    only()
    assert _run(str(tmp_path / "absent")) == 1
    sentence = f"torchrl-reg: RUN must be a run folder, which holds a config.yaml, got {tmp_path / 'absent'}.\n"
    assert capsys.readouterr() == ("", sentence)


def test_of_runs_the_records_are_judged_and_not_the_machine(only, capsys, tmp_path: Path):
    only(lambda: pytest.fail("the machine was checked"))
    (tmp_path / "config.yaml").write_text("env: {name: cartpole}\n")
    (tmp_path / "metrics.jsonl").write_text('{"event": "train", "frames": 8, "entropy": 0.69}\n' * 3)
    assert _run(str(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "warn     tau " in out and out.count("\nwarn") + out.startswith("warn") == 1
    assert out.endswith("torchrl-reg doctor without a RUN checks the machine.\n")
    (tmp_path / "config.yaml").write_text("env: [")
    assert _run(str(tmp_path)) == 0
    sentence = f"could not be checked: {tmp_path}/config.yaml must be YAML, got something else."
    assert sentence in capsys.readouterr().out


def test_this_machine_has_the_pinned_packages():
    found = {finding.name: finding for finding in machine._pinned_packages()}
    assert set(found) == {"torch", "torchrl", "tensordict", "gymnasium"}
    assert {finding.status for finding in found.values()} == {"ok"}


def test_a_version_beside_its_pin_is_noticed(monkeypatch):
    monkeypatch.setattr(machine, "_version", lambda package: None if package == "torchrl" else "1.0")
    found = {finding.name: finding for finding in machine._pinned_packages()}
    assert found["torch"].status == "warn" and "1.0, pinned" in found["torch"].detail
    assert found["torchrl"].status == "missing" and found["torchrl"].essential
    monkeypatch.setattr(machine, "_version", lambda package: None)
    assert {"numpy", "PyYAML"} <= {found.name for found in machine._optional_packages() if found.status == "missing"}


@pytest.mark.parametrize(
    ("code", "module", "status", "detail"),
    [
        ("print('noise'); print('version 3')", "", "ok", "version 3"),
        ("import no_such_module", "", "missing", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os; os.abort()", "", "missing", "crashed with signal 6"),
        ("raise SystemExit('tried')", "no_such_module", "missing", "no_such_module is not installed"),
    ],
)
def test_probes_survive_what_they_try(code, module, status, detail):
    found = machine._probed("probe", code, "install it", module=module)
    assert (found.status, found.detail) == (status, detail)


def test_what_hangs_is_an_answer(monkeypatch):
    monkeypatch.setattr(machine, "_SLURM_SECONDS", 0.1)
    assert machine._answer("sleep", "5").returncode == 1


def test_slurm_without_sbatch_and_with_a_dead_controller(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert [finding.status for finding in machine._slurm()] == ["missing"]
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    silent = subprocess.CompletedProcess([], 1, "", "slurm_load_ctl_conf error: Unable to contact slurm controller")
    monkeypatch.setattr(machine, "_answer", lambda *command: silent)
    (found,) = machine._slurm()
    assert found.status == "warn" and "Unable to contact slurm controller" in found.detail
