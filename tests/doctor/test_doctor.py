from __future__ import annotations

import json
import math
import subprocess

import pytest

from torchrl_reg.cli import main
from torchrl_reg.doctor import machine
from torchrl_reg.doctor.machine import Finding
from torchrl_reg.doctor.records import read_config, record_findings
from torchrl_reg.doctor.temperature import largest_entropy, temperature_finding


def _run(*arguments: str) -> int:
    return main(["doctor", *arguments])


def _folder(path, entropies, *, config="env: {name: cartpole}\nalgo: {tau: 0.5}\n", **columns):
    path.mkdir()
    (path / "config.yaml").write_text(config)
    rows = [{"event": "train", "frames": 8 * i, "entropy": value, **columns} for i, value in enumerate(entropies)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"event": "tra')
    return path


def _tau(folder):
    return temperature_finding(folder, read_config(folder / "config.yaml"))


def _judged(path, rows, algo="", evaluations=()):
    """What the doctor says of a run with these training rows, by name."""
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text(f"env: {{name: cartpole}}\nalgo: {{{algo}}}\n")
    every = [{"event": "train", "frames": 10 * i, "updates": i, **row} for i, row in enumerate(rows, 1)]
    every += [{"event": "eval", "frames": 10, "return_greedy_mean": value} for value in evaluations]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in every))
    return {found.name: found for found in record_findings(path, read_config(path / "config.yaml"))}


@pytest.fixture
def only(monkeypatch):
    """Replaces the checks of the machine, which take seconds."""
    return lambda *checks: monkeypatch.setattr("torchrl_reg.commands.doctor.CHECKS", checks)


def test_a_check_that_raises_is_one_line_and_the_others_go_on(only, capsys):
    def broken():
        raise RuntimeError("first line\nsecond line")

    only(broken, lambda: [Finding("after", "ok", "fine")])
    assert _run() == 0
    out = capsys.readouterr().out
    assert "warn     broken  could not be checked: first line second line\n" in out
    assert "ok       after   fine\n" in out
    assert out.endswith("1 ok, 1 to look at, 0 missing; nothing essential is broken.\n")


@pytest.mark.parametrize(("essential", "code"), [(True, 1), (False, 0)])
def test_the_exit_code_says_whether_something_essential_is_missing(only, capsys, essential, code):
    only(lambda: [Finding("torch", "missing", "not installed", "pip install torch", essential)])
    assert _run() == code
    assert "-> pip install torch" in capsys.readouterr().out


def test_json(only, capsys):
    only(lambda: [Finding("disk", "warn", "1.0 GiB free", "free some")])
    assert _run("--json") == 0
    expected = {"name": "disk", "status": "warn", "detail": "1.0 GiB free", "todo": "free some", "essential": False}
    assert json.loads(capsys.readouterr().out) == [expected]


def test_a_folder_that_is_no_run_is_refused(only, capsys, tmp_path):
    only()
    assert _run(str(tmp_path / "absent")) == 1
    captured = capsys.readouterr()
    assert (
        captured.err
        == f"torchrl-reg: RUN must be a run folder, which holds a config.yaml, got {tmp_path / 'absent'}.\n"
    )
    assert captured.out == ""


def test_of_runs_the_records_are_judged_and_not_the_machine(only, capsys, tmp_path):
    only(lambda: pytest.fail("the machine was checked"))
    run = _folder(tmp_path / "run", [0.69, 0.69, 0.69])
    assert _run(str(run)) == 0
    out = capsys.readouterr().out
    assert "tau" in out and out.count("\nwarn") + out.startswith("warn") == 1
    assert out.endswith("torchrl-reg doctor without a RUN checks the machine.\n")


def test_numpy_and_pyyaml_are_on_the_checklist(monkeypatch):
    monkeypatch.setattr(machine, "_version", lambda package: None)
    assert {"numpy", "PyYAML"} <= {found.name for found in machine._optional_packages() if found.status == "missing"}


def test_this_machine_has_the_pinned_packages():
    found = {finding.name: finding for finding in machine._pinned_packages()}
    assert set(found) == {"torch", "torchrl", "tensordict", "gymnasium"}
    assert {finding.status for finding in found.values()} == {"ok"}


def test_a_version_beside_its_pin_is_noticed(monkeypatch):
    monkeypatch.setattr(machine, "_version", lambda package: None if package == "torchrl" else "1.0")
    found = {finding.name: finding for finding in machine._pinned_packages()}
    assert found["torch"].status == "warn" and "1.0, pinned" in found["torch"].detail
    assert found["torchrl"].status == "missing" and found["torchrl"].essential


@pytest.mark.parametrize(
    ("code", "status", "detail"),
    [
        ("print('noise'); print('version 3')", "ok", "version 3"),
        ("import no_such_module", "missing", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os; os.abort()", "missing", "crashed with signal 6"),
    ],
)
def test_probes_survive_what_they_try(code, status, detail):
    found = machine._probed("probe", code, "install it")
    assert (found.status, found.detail) == (status, detail)


def test_a_module_that_is_not_installed_is_not_tried():
    found = machine._probed("probe", "raise SystemExit('tried')", "install it", module="no_such_module")
    assert (found.status, found.detail) == ("missing", "no_such_module is not installed")


def test_slurm_without_sbatch_and_with_a_dead_controller(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert [finding.status for finding in machine._slurm()] == ["missing"]
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    silent = subprocess.CompletedProcess([], 1, "", "slurm_load_ctl_conf error: Unable to contact slurm controller")
    monkeypatch.setattr(machine, "_answer", lambda *command: silent)
    (found,) = machine._slurm()
    assert found.status == "warn" and "Unable to contact slurm controller" in found.detail


def test_a_command_that_hangs_is_an_answer_too(monkeypatch):
    monkeypatch.setattr(machine, "_SLURM_SECONDS", 0.1)
    assert machine._answer("sleep", "5").returncode == 1


@pytest.mark.parametrize(
    ("entropies", "status", "shown"),
    [
        ([0.69, 0.690, 0.6869], "warn", "99.5%, 99.5%, 99.1% of ln 2 = 0.693"),
        ([0.69, 0.3, 0.0001], "warn", "99.5%, 43.3%, 0.0% of ln 2"),
        ([0.69, 0.3, 0.07], "ok", "99.5%, 43.3%, 10.1% of ln 2"),
    ],
)
def test_entropy_as_a_share_of_ln_a(tmp_path, entropies, status, shown):
    found = _tau(_folder(tmp_path / "run", entropies, tau=0.5, action_gap=2.0))
    assert found.status == status
    assert shown in found.detail and "tau=0.5" in found.detail and "action gap / tau = 4" in found.detail
    assert ("uniform" in found.todo) == (entropies[-1] > 0.6)
    assert ("greedy" in found.todo) == (entropies[-1] < 0.01)


def test_ln_a_over_bins_is_d_ln_k():
    config = {"env": {"name": "pendulum"}, "policy": {"name": "multicategorical", "num_bins": 7}}
    largest, symbol = largest_entropy(config)
    assert symbol == "1 ln 7" and largest == pytest.approx(math.log(7))


@pytest.mark.parametrize(
    ("entropies", "detail"),
    [([], "no training row yet"), ([None, None], "this method reports no entropy: nothing to judge")],
)
def test_runs_without_an_entropy(tmp_path, entropies, detail):
    assert _tau(_folder(tmp_path / "run", entropies)).detail == detail


def test_an_environment_that_cannot_be_built_is_named(tmp_path):
    found = _tau(_folder(tmp_path / "run", [0.5], config="env: {name: chess}\n"))
    assert found.status == "warn" and "got 'chess'" in found.detail


def test_rows_that_are_not_finite_are_counted(tmp_path):
    found = _judged(tmp_path, [{"loss": 0.5}, {"loss": None}, {"loss": None, "td_error": None}])["numbers"]
    assert (found.status, found.detail) == ("warn", "2 of 3 training rows are not finite, the first at frame 20")
    (tmp_path / "failed.json").write_text(json.dumps({"last_line": "loss is nan at frame 30"}))
    found = _judged(tmp_path, [{"loss": 0.5, "return_mean": None}])
    assert found["numbers"].status == "ok"
    assert found["end"].status == "warn" and "loss is nan at frame 30" in found["end"].detail


@pytest.mark.parametrize(
    ("row", "algo", "warned"),
    [
        ({"action_gap": 480.0}, "gamma: 0.9", False),
        ({"action_gap": 520.0}, "gamma: 0.9", True),
        ({"value": -520.0}, "gamma: 0.9", True),
        ({"value": -520.0, "tau": 0.5, "entropy": 2.0}, "gamma: 0.9", False),  # of which 10 * 0.5 * 2 may be entropy
        ({"loss": 1e5}, "", False),
        ({"loss": 3e5}, "", True),
    ],
)
def test_values_beyond_what_returns_allow(tmp_path, row, algo, warned):
    found = _judged(tmp_path, [{"return_mean": -20.0}, row], algo, evaluations=[50.0])["values"]
    assert (found.status == "warn") == warned
    assert ("explode" in found.todo) == warned


def test_values_that_the_run_itself_found_to_diverge(tmp_path):
    rows = [{"return_mean": -20.0}, {"loss": 3.0, "diverged_frames": 1250}, {"loss": 3.0, "diverged_frames": 1250}]
    found = _judged(tmp_path, rows)["values"]
    assert (found.status, found.detail) == ("warn", "they outgrew what rewards allow at frame 1,250")
    assert "explode" in found.todo


def test_the_share_of_clipped_bonuses(tmp_path):
    rows = [{"bonus_clipped": value} for value in (0.9, 0.9, 0.9, 0.1, 0.2, 0.3, 0.4, 0.7)]
    found = _judged(tmp_path, rows)["bonus"]
    assert found.status == "warn" and found.detail.startswith("55.0% of the Munchausen bonuses are clipped")
    assert _judged(tmp_path, rows[:-1])["bonus"].status == "ok"


def test_a_soft_value_that_rests_on_one_sample(tmp_path):
    rows = [{"ess": value} for value in (9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.3, 1.5)]
    found = _judged(tmp_path, rows, "num_value_samples: 16")["samples"]
    assert found.status == "warn" and "raise num_value_samples or tau" in found.todo
    assert found.detail == "the soft value rests on 1.4 of 16 sampled actions in the last quarter (ess)"
    assert _judged(tmp_path, rows[:-2], "num_value_samples: 16")["samples"].status == "ok"
    assert _judged(tmp_path, [{"ess": 5.0}], "num_value_samples: 64")["samples"].status == "warn"
    assert "samples" not in _judged(tmp_path, [{"td_error": 1.0}], "num_value_samples: 16")


@pytest.mark.parametrize(
    ("algo", "updates", "detail"),
    [
        ("target_period_updates: 50", 240, "a copy every 50 updates, which makes 4 in the 240 updates"),
        ("target_period_updates: 50", 251, None),
        # Of a run that goes on, what is to come counts.
        ("target_period_updates: 50, total_frames: 2010, learning_starts_frames: 10, update_every_frames: 8", 1, None),
        (
            "target_period_updates: 51, total_frames: 2010, learning_starts_frames: 10, update_every_frames: 8",
            1,
            "which makes 4 in the 250 updates",
        ),
    ],
)
def test_a_target_period_longer_than_the_run(tmp_path, algo, updates, detail):
    found = _judged(tmp_path, [{"updates": updates}], algo)["target network"]
    assert (found.status == "warn") == (detail is not None)
    assert detail is None or detail in found.detail


@pytest.mark.parametrize(
    ("algo", "frames", "status"),
    [
        ("learning_starts_frames: 50, total_frames: 100", 40, "ok"),
        ("learning_starts_frames: 50, total_frames: 100", 60, "warn"),
        ("learning_starts_frames: 100, total_frames: 100", 60, "warn"),
    ],
)
def test_learning_that_never_starts(tmp_path, algo, frames, status):
    assert _judged(tmp_path, [{"updates": 0, "frames": frames}], algo)["learning"].status == status


def test_exploration_that_is_dead(tmp_path):
    rows = [{"return_mean": value} for value in (-200.0, -199.0)]
    algo = "eps_end: 0.0, eps_frames: 30, learning_starts_frames: 10, total_frames: 100"
    found = _judged(tmp_path, rows, algo)["exploration"]
    assert (found.status, found.detail) == ("warn", "epsilon is 0 for the last 60% of the run")
    assert _judged(tmp_path, rows, algo.replace("30", "70"))["exploration"].status == "ok"
    assert _judged(tmp_path, rows, algo.replace("0.0", "0.1"))["exploration"].status == "ok"
    found = _judged(tmp_path, [{"return_mean": -200.0}] * 10)["exploration"]
    assert (found.status, found.detail) == ("warn", "every training episode returned -200, in all 10 rows")
    assert _judged(tmp_path, [{"return_mean": -200.0}] * 9)["exploration"].status == "ok"


def test_a_config_that_cannot_be_read_is_a_sentence(only, capsys, tmp_path):
    run = _folder(tmp_path / "run", [0.5], config="env: [")
    assert _run(str(run)) == 0
    assert f"could not be checked: {run}/config.yaml must be YAML, got something else." in capsys.readouterr().out
