"""Launches a sweep: one submitit array on SLURM, or the same runs on this machine.

    python slurm/launch.py sweep=munchausen_ablation dry=true
    python slurm/launch.py sweep=munchausen_ablation cluster=gpu cluster.partition=a100 cluster.runs_per_job=4
    python slurm/launch.py sweep=iq_mujoco cluster=local sweep.seeds=[0,1] name=try

``sweep=`` says what (``conf/sweep``), ``cluster=`` where (``conf/cluster``). Runs go to
``results/<name>/<recipe>/<env>/<settings>/seed=<seed>``; launching again submits only what is neither done nor queued.
``python slurm/status.py <name>`` tells how it goes, ``torchrl-reg report results/<name>`` what came out.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from clusters import Cluster, command, elements, run_here, run_in_process, sbatch_text, submit
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from recipe_settings import check_settings
from slurm_queue import queued_runs, require_partition
from snapshot import Code, code_files, copy_code, current_code
from sweep import PlannedRun, SweepError, flat, planned_runs, read_sweep


@dataclass
class Sweep:
    """What to run: every seed of every point of ``grid`` for every one of ``variants``, ``base`` underneath."""

    question: str = ""  # what the sweep is to answer
    recipe: str | None = None  # a name out of recipes/, or the path of a recipe of your own
    base: dict[str, Any] = field(default_factory=dict)  # settings of all runs
    grid: dict[str, Any] = field(default_factory=dict)  # setting -> list of values
    variants: list[dict[str, Any]] = field(default_factory=list)  # sets of settings, each crossed with the grid
    seeds: Any = 3  # how many, or a list


@dataclass
class Launch:
    """All that ``launch.py`` can be told."""

    sweep: Sweep = MISSING
    cluster: Cluster = MISSING
    name: str | None = None  # of the folder below root; default: that of the sweep
    root: str = "results"
    dry: bool = False  # show what would be submitted
    check: bool = True  # try every setting on the recipes' schemas before anything is submitted
    kept_code: bool = False  # go on with the code the sweep was first launched with


def launch(config: Launch, sweep_name: str) -> int:
    """Submits what is missing; returns the exit code.

    Raises:
        SweepError: the sweep cannot be launched; nothing was submitted.
    """
    config.cluster.validate()
    name = config.name or sweep_name
    folder = Path(config.root).resolve() / name
    runs = planned_runs(asdict(config.sweep))
    files = code_files({run.recipe for run in runs})
    code = _code(folder, config, current_code(files))
    if config.cluster.kind == "slurm" and not config.dry:
        require_partition(config.cluster.partition)
    if config.check and not config.kept_code:
        check_settings(runs)
    with _sweep_lock(folder, config.dry):
        missing = _missing(runs, folder)
        print(f"{name}: {len(runs)} runs, {len(missing)} to {'submit' if config.cluster.kind == 'slurm' else 'run'}.")
        if config.dry:
            return _show(missing, folder, name, config.cluster, code)
        if not missing:
            return 0
        copy_code(files, folder / "code" / code.folder_name)
        # Under SLURM the lock is held until the array is in jobs.jsonl, and here until the runs are done.
        return _carry_out(missing, folder, name, config, code)


def _carry_out(missing: list[PlannedRun], folder: Path, name: str, config: Launch, code: Code) -> int:
    cluster, there = config.cluster, folder / "code" / code.folder_name
    jobs = elements(missing, folder, there, code.label, cluster)
    is_new = not (folder / "sweep.yaml").exists()
    _write_sweep(folder, config, code)
    if cluster.kind == "slurm":
        try:
            array = submit(jobs, folder, name, cluster)
        except SweepError:
            if is_new:
                shutil.rmtree(folder)
            raise
        print(f"submitted array {array}: {len(jobs)} jobs. python slurm/status.py {name}")
        return 0
    debug = cluster.kind == "debug"
    failures = run_in_process(missing, folder) if debug else run_here(jobs, cluster.parallel_jobs)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _missing(runs: list[PlannedRun], folder: Path) -> list[PlannedRun]:
    queued = queued_runs(folder)
    return [run for run in runs if run.folder not in queued and not (folder / run.folder / "done.json").exists()]


def _code(folder: Path, config: Launch, code: Code) -> Code:
    """The code to run, if it and the settings are those the folder was first launched with."""
    if not (folder / "sweep.yaml").exists():
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise SweepError(f"{folder} must be a new folder or that of a sweep, got one without sweep.yaml.")
        return code
    before = read_sweep(folder)
    _refuse_other_base(folder, before, asdict(config.sweep))
    first = Code(**before["code"])
    if config.kept_code:
        return first
    if first.digest != code.digest:
        raise SweepError(
            f"{folder} belongs to a sweep of other code (commit {first.commit[:7]} there, {code.commit[:7]} and the "
            "files on disk here); kept_code=true goes on with the sweep's own copy, name=... starts anew."
        )
    return code


def _refuse_other_base(folder: Path, before: dict[str, Any], sweep: dict[str, Any]) -> None:
    there = {"recipe": before["recipe"], **flat(before["base"])}
    here = {"recipe": sweep["recipe"], **flat(sweep["base"])}
    different = [
        f"{key}: {there.get(key, 'absent')} there, {here.get(key, 'absent')} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key, "absent") != here.get(key, "absent")
    ]
    if different:
        raise SweepError(
            f"{folder} belongs to a sweep with another base ({'; '.join(different)}); choose another name=."
        )


def _show(missing: list[PlannedRun], folder: Path, name: str, cluster: Cluster, code: Code) -> int:
    there = folder / "code" / code.folder_name
    for run in missing:
        print(shlex.join(command(run, folder, there)))
    if cluster.kind == "slurm" and missing:
        number = -(-len(missing) // cluster.runs_per_job)
        print(f"\n{sbatch_text(number, folder, name, cluster, there)}")
    return 0


def _write_sweep(folder: Path, config: Launch, code: Code) -> None:
    text = yaml.safe_dump({"name": folder.name, **asdict(config.sweep), "code": asdict(code)}, sort_keys=False)
    partial = folder / f".sweep.yaml.{os.getpid()}"
    partial.write_text(text)
    partial.replace(folder / "sweep.yaml")


@contextmanager
def _sweep_lock(folder: Path, dry: bool) -> Iterator[None]:
    """Two launches of one sweep at once would submit its runs twice."""
    if dry:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".launch.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepError(f"{folder} is being launched by another process.") from None
        except OSError:
            pass  # a file system without locks
        yield


# ------------------------------------------------------------ the command line


def _sentence(error: Exception) -> str:
    """Hydra's errors in one sentence each."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice} is not known; choose one of {', '.join(sorted(error.options or ()))}."
    text = str(error).strip()
    if match := re.match(r"You must specify '(\w+)'.*Available options:(.*)", text, re.DOTALL):
        return f"{match[1]} must be chosen: {match[1]}= one of {', '.join(match[2].split())}."
    if match := re.match(r"Could not override '([^']+)'", text):
        may_grow = match[1].startswith(("sweep.", "cluster.extra"))
        hint = f"+{match[1]}=... adds it" if may_grow else "--cfg job lists them"
        return f"{match[1]} is not a setting here; {hint}."
    if match := re.match(r"Error parsing override '([^']*)'", text):
        return f"{match[1]!r} is not of the form name=value."
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None)
    return f"{key}: {str(cause).splitlines()[0]}." if key else text.splitlines()[0]


def _fail(sentence: str) -> NoReturn:
    print(" ".join(sentence.split()), file=sys.stderr)
    sys.exit(1)


def main() -> None:
    chosen: list[tuple[Launch, str]] = []

    def app(cfg: DictConfig) -> None:
        config: Any = OmegaConf.to_object(cfg)
        chosen.append((config, HydraConfig.get().runtime.choices["sweep"]))

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raises errors instead of printing them over several lines
    schema = OmegaConf.structured(Launch)
    ConfigStore.instance().store(name="schema", node=schema)
    try:
        hydra.main(version_base="1.3", config_path=str(Path(__file__).parent / "conf"), config_name="launch")(app)()
        if chosen:  # not with --help or --cfg
            sys.exit(launch(*chosen[0]))
    except (SweepError, HydraException, OmegaConfBaseException) as error:
        _fail(_sentence(error))
    except KeyboardInterrupt:
        _fail("stopped; the same command continues.")
    except BrokenPipeError:  # dry=true | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
