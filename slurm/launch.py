"""Launches a sweep: one job array on SLURM, or the same runs on this machine.

    python slurm/launch.py sweep=munchausen_ablation dry=true
    python slurm/launch.py sweep=munchausen_ablation cluster=gpu cluster.partition=a100 cluster.runs_per_job=4
    python slurm/launch.py sweep=iq_mujoco cluster=local sweep.seeds=[0,1] name=try

``sweep=`` chooses the runs (``conf/sweep``), ``cluster=`` the place (``conf/cluster``). Runs go to
``results/<name>/<recipe>/<env>/<settings>/seed=<seed>``; a second launch submits what is neither done nor queued.
``python slurm/status.py <name>`` shows their progress, ``torchrl-reg report results/<name>`` their results.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import signal
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

try:
    import hydra
    import yaml
    from hydra.core.config_store import ConfigStore
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf import MISSING, DictConfig, OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

    from slurm.arms import compared_runs, composed, covering, differences, table
    from slurm.array_element import ArrayElement
    from slurm.clusters import Cluster, blocked, elements, sbatch_text, submit
    from slurm.local import run_debug, run_local
    from slurm.slurm_queue import queued_runs, require_partition
    from slurm.snapshot import Code, code_files, copy_code, current_code, require_whole
    from slurm.status import headline, sweep_status
    from slurm.sweep import PlannedRun, named_settings, planned_runs, seeds_together
    from slurm.sweep_folder import Submitted, SweepFolder
    from torchrl_reg.lab.cli.field_comments import descriptions
    from torchrl_reg.lab.cli.invocation import as_typed
    from torchrl_reg.lab.cli.overrides import quoted
    from torchrl_reg.lab.cli.sentences import sentence
    from torchrl_reg.lab.errors import UserError, first_line
    from torchrl_reg.lab.run.folder import is_done
except ImportError as error:
    needs = f"launch needs {error.name}, got none: pip install 'torchrl_reg[recipes,slurm,report]'."
    raise SystemExit(str(error) if error.name is None else needs) from None

_CONF = Path(__file__).resolve().parent / "conf"


@dataclass
class Sweep:
    """Every seed of every point of ``grid`` for each of ``variants``, over ``base``."""

    question: str = ""  # that the sweep is to answer
    recipe: str | None = None  # a name in recipes/, or the path of your own
    base: dict[str, Any] = field(default_factory=dict)  # settings of all runs
    grid: dict[str, Any] = field(default_factory=dict)  # setting -> list of values
    variants: list[dict[str, Any]] = field(default_factory=list)  # sets of settings, each crossed with the grid
    seeds: Any = 3  # a number of seeds, or a list


@dataclass
class Launch:
    """All options of ``launch.py``."""

    sweep: Sweep = MISSING
    cluster: Cluster = MISSING
    name: str | None = None  # of the folder below root; default: that of the sweep
    root: str = "results"
    dry: bool = False  # only print the commands and the sbatch script
    check: bool = True  # compose every setting with its recipe first
    kept_code: bool = False  # continue with the code of the first launch


def launch(config: Launch, sweep_name: str) -> int:
    """Submits the missing runs; returns the exit code.

    Raises:
        UserError: the sweep cannot be launched; nothing was submitted.
    """
    config.cluster.validate()
    name = config.name or sweep_name.rpartition("/")[2]
    if "/" in name or name.startswith("."):
        raise UserError(f"name must be that of a folder below root, got {name}.")
    folder = SweepFolder(Path(os.path.expanduser(config.root)).resolve() / name)
    sweep = asdict(config.sweep)
    runs = planned_runs(sweep)
    overrides = {text for run in runs for text in run.overrides}
    files = {} if config.kept_code else code_files({run.recipe for run in runs}, overrides)
    code = folder.code_for(sweep, current_code(files) if files else None)
    is_checked = config.check and not config.kept_code
    if is_checked:
        composed(covering(seeds_together(runs, config.cluster.seeds_per_run)))
    if config.cluster.kind == "slurm" and not config.dry:
        require_partition(config.cluster.partition)
    if config.dry:
        _show(_missing(runs, folder, config), folder, config.cluster, code)
        if is_checked:
            _show_differences(runs, sweep)
        return 0
    is_new = not folder.is_launched
    with folder.lock():
        missing = _missing(runs, folder, config)
        folder.write(sweep, code)
        if not missing:
            return 0
        try:
            if files:
                copy_code(files, folder.copy_folder(code))
            require_whole(code, folder.copy_folder(code))
            # Under SLURM the lock is held until the array is in jobs.jsonl, and here until the runs are done.
            return _submit_or_run(missing, folder, config.cluster, code)
        except UserError:
            if is_new:
                folder.remove()
            raise


def _submit_or_run(missing: list[PlannedRun], folder: SweepFolder, cluster: Cluster, code: Code) -> int:
    jobs = _jobs(missing, folder, cluster, code)
    runs = [[name for names, _ in job.commands.runs for name in names] for job in jobs]
    if cluster.kind == "slurm":
        with blocked(signal.SIGINT, signal.SIGTERM):  # an array that is not recorded would be submitted again
            array = submit(jobs, folder.path, folder.path.name, cluster)
            folder.record(Submitted(array, runs))
        print(f"submitted array {array}: {len(jobs)} jobs. {_status_command(folder)}")
        return 0
    folder.record(Submitted(None, runs))
    if cluster.kind == "debug":
        failures = run_debug(missing, folder.path)
    else:
        jobs_at_a_time = "1 job" if cluster.parallel_jobs == 1 else f"{cluster.parallel_jobs} jobs"
        print(f"here, {jobs_at_a_time} at a time. {_status_command(folder)}")
        failures = run_local(jobs, cluster.parallel_jobs, lambda: headline(folder.path.name, sweep_status(folder)))
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _status_command(folder: SweepFolder) -> str:
    return f"{as_typed('python slurm/status.py')} {shlex.quote(str(folder.path))}"


def _missing(runs: list[PlannedRun], folder: SweepFolder, config: Launch) -> list[PlannedRun]:
    queued = queued_runs(folder)
    missing = [r for r in runs if r.folder not in queued and not is_done(folder.path / r.folder)]
    doing = "submit" if config.cluster.kind == "slurm" else "run"
    print(f"{folder.path.name}: {len(runs)} runs, {len(missing)} to {doing}.")
    return missing


def _jobs(missing: list[PlannedRun], folder: SweepFolder, cluster: Cluster, code: Code) -> list[ArrayElement]:
    processes = seeds_together(missing, cluster.seeds_per_run)
    return elements(processes, folder.path, folder.copy_folder(code), code, cluster)


def _show(missing: list[PlannedRun], folder: SweepFolder, cluster: Cluster, code: Code) -> None:
    jobs = _jobs(missing, folder, cluster, code)
    for line in (shlex.join(words) for job in jobs for _, words in job.commands.runs):
        print(line)
    if cluster.kind == "slurm" and jobs:
        print(f"\n{sbatch_text(jobs, folder.path, folder.path.name, cluster)}")


def _show_differences(runs: list[PlannedRun], sweep: dict[str, Any]) -> None:
    compared = compared_runs(runs)
    configs = composed(run for arms in compared.values() for run in arms)
    for family, arms in compared.items():
        known = {run.arm: configs[run.folder] for run in arms if run.folder in configs}
        if len(known) > 1:
            print(f"\n{table(differences(known, named_settings(sweep)), family, len(known))}")


# ------------------------------------------------------------ the command line


def _sentence(error: Exception) -> str:
    """One sentence for an error of Hydra."""
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        return f"{mark.name} must be YAML, got a mistake in line {mark.line + 1}: {error.problem}."
    if isinstance(error, MissingConfigException) and error.options:  # those of the user's folders among them
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice} is not known; choose one of {', '.join(sorted(error.options))}."
    # Hydra names the choices, and further down the file, in its message alone.
    if match := re.match(r"You must specify '(\w+)'.*Available options:(.*)", str(error), re.DOTALL):
        return f"{match[1]} must be chosen: {match[1]}= one of {', '.join(match[2].split())}."
    behind = error.__cause__ or error.__context__
    told = behind if isinstance(error, HydraException) and isinstance(behind, OmegaConfBaseException) else error
    if isinstance(told, OmegaConfBaseException) and (match := re.match("In '([^']+)'", str(error))):
        return _schema_error(match[1], told)
    has_fields = isinstance(told, OmegaConfBaseException | OverrideParseException | MissingConfigException)
    return (sentence(told, (), Launch, _CONF) if has_fields else None) or first_line(error)


def _schema_error(file: str, error: OmegaConfBaseException) -> str:
    """The error of a sweep's or cluster's file that does not fit its schema."""
    group = file.partition("/")[0]
    name = str(error.full_key).removeprefix(f"{group}.")
    if name and not isinstance(error, ConfigKeyError):
        # An item of a list has its place for a name, without that of the list.
        problem = sentence(error, (), Launch, _CONF) if name[0].isalpha() else f"{first_line(error)}."
        return f"{file}.yaml does not fit: {problem}"
    known = [each.name for each in fields(Sweep if group == "sweep" else Cluster)]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"{file}.yaml must hold only {', '.join(known)}, got {name or str(error).partition('.')[0]}{hint}"


def _fail(message: str) -> NoReturn:
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(1)


def _help() -> str:
    """All choices and settings; Hydra's own help would need a sweep first."""
    questions = {path.stem: yaml.safe_load(path.read_text()).get("question", "") for path in _files("sweep")}
    sweeps = [(name, "".join(str(question).partition("?")[:2])) for name, question in questions.items()]
    clusters = [(path.stem, path.read_text().partition("\n")[0].removeprefix("# ")) for path in _files("cluster")]
    parts = [
        as_typed("usage: python slurm/launch.py sweep=NAME cluster=NAME [NAME=VALUE ...]"),
        as_typed(str(__doc__)).strip(),
        _listed("Sweeps, written sweep=NAME:", sweeps),
        _listed("Clusters, written cluster=NAME:", clusters),
        _listed("Settings, written NAME=VALUE, with their defaults:", _settings(Launch, "", ("sweep", "cluster"))),
        _listed("The sweep, in its file or here:", _settings(Sweep, "sweep.")),
        _listed("The cluster:", _settings(Cluster, "cluster.")),
        "--cfg job with a sweep prints every setting and its value.",
    ]
    return "\n\n".join(parts)


def _files(group: str) -> list[Path]:
    return sorted((_CONF / group).glob("*.yaml"))


def _settings(kind: type, prefix: str, skip: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Each setting with its default, and its comment in the source."""
    defaults, comments = OmegaConf.structured(kind), descriptions(kind)
    rows = []
    for each in fields(kind):
        if each.name not in skip:
            value = OmegaConf.create({"": defaults[each.name]})
            shown = OmegaConf.to_yaml(value).partition(":")[2].strip()
            rows.append((f"{prefix}{each.name}={shown}", comments.get(each.name, "")))
    return rows


def _listed(title: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = [title]
    for name, comment in rows:
        lines += textwrap.wrap(f"{name:<31} {comment}", 120, initial_indent="  ", subsequent_indent=" " * 34)
    return "\n".join(lines)


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(_help())
        return
    chosen: list[tuple[Launch, str]] = []

    def app(cfg: DictConfig) -> None:
        config: Any = OmegaConf.to_object(cfg)
        chosen.append((config, HydraConfig.get().runtime.choices["sweep"]))

    sys.argv[1:] = [quoted(word) if word.startswith(("root=", "name=")) else word for word in sys.argv[1:]]
    full_errors = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raises errors instead of printing them over several lines
    schema = OmegaConf.structured(Launch)
    ConfigStore.instance().store(name="schema", node=schema)
    try:
        hydra.main(version_base="1.3", config_path=str(_CONF), config_name="launch")(app)()
        os.environ["HYDRA_FULL_ERROR"] = full_errors  # the runs inherit it
        if chosen:  # not with --help or --cfg
            sys.exit(launch(*chosen[0]))
    except (UserError, HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        _fail(_sentence(error))
    except KeyboardInterrupt:
        _fail("stopped; the same command continues.")
    except BrokenPipeError:  # dry=true | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _fail(f"{error.filename or 'the sweep'} cannot be written: {error.strerror}.")


if __name__ == "__main__":
    main()
