"""Checks of this machine for ``torchrl-reg doctor``.

Every check yields findings (ok, warn or missing) and what to do about them. Packages that may crash the interpreter
(Box2D under ``-W error``, simulators without their libraries) are tried in a separate process.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

_PROBE_SECONDS = 120
_SLURM_SECONDS = 10
_LITTLE_DISK_GIB = 5
_LONGEST_DETAIL = 240


_QUIET_MUJOCO = "import mujoco; mujoco.set_mju_user_warning(lambda message: None)\n"
_ADROIT = f"""{_QUIET_MUJOCO}import contextlib, io
with contextlib.redirect_stderr(io.StringIO()): import gymnasium_robotics
gymnasium.register_envs(gymnasium_robotics)"""
_MINATAR = "import minatar.gym; minatar.gym.register_envs()"
#: Of each family of environments its package, module, extras, what comes before gymnasium.make, and what is made.
_FAMILIES = {
    "ALE roms": ("ale_py", "ale_py", "recipes,atari", "import ale_py", "ALE/Breakout-v5"),
    "MuJoCo": ("mujoco", "mujoco", "recipes,mujoco", _QUIET_MUJOCO, "Hopper-v5"),
    "Adroit": ("gymnasium_robotics", "gymnasium-robotics", "recipes,adroit", _ADROIT, "AdroitHandPen-v1"),
    "MinAtar": ("minatar", "minatar", "recipes", _MINATAR, "MinAtar/Breakout-v1"),
    "Box2D": ("Box2D", "box2d", "recipes,box2d", "", "LunarLander-v3"),
}
#: By extra, the packages that only some of the commands need.
_OPTIONAL = {
    "recipes": ("numpy", "hydra-core"),
    "report": ("PyYAML", "matplotlib", "rich", "jinja2", "plotext"),
    "slurm": ("submitit", "hydra-submitit-launcher"),
}
#: Builds a sampler that is compiled code.
_SAMPLER = """import torchrl._torchrl
from torchrl.data.replay_buffers.samplers import PrioritizedSampler
PrioritizedSampler(max_capacity=8, alpha=0.6, beta=0.4)
print('torchrl._torchrl loads, PrioritizedSampler can be built')"""
#: Makes and steps an environment of a family.
_STEPS = """import gymnasium, importlib.metadata, logging; logging.disable(logging.WARNING)
{before}
env = gymnasium.make({env!r}); env.reset(seed=0); env.step(env.action_space.sample())
print({package!r}, importlib.metadata.version({package!r}) + {env!r}.join((', ', ' steps')))"""


@dataclass(frozen=True)
class Finding:
    """One line of the checklist.

    Args:
        name: what was looked at.
        status: ``"ok"``, ``"warn"`` (works, or not sure to) or ``"missing"``.
        detail: what was found, one line.
        todo: what to do about it; empty if nothing.
        essential: without it no recipe runs, so the command fails.
    """

    name: str
    status: Literal["ok", "warn", "missing"]
    detail: str
    todo: str = ""
    essential: bool = False

    @classmethod
    def judged(cls, name: str, detail: str, todo: str = "") -> Finding:
        """A finding that is ok unless there is something to do about it."""
        return cls(name, "warn" if todo else "ok", detail, todo)


def checked(check: Callable[[], Iterable[Finding]], name: str = "") -> list[Finding]:
    """The findings of ``check``; an exception becomes one, named ``name`` or after the function."""
    try:
        return list(check())
    except Exception as error:
        shown = name or getattr(check, "__name__", "check").strip("_").replace("_", " ")
        return [Finding(shown, "warn", f"could not be checked: {_one_line(error)}")]


def _one_line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_DETAIL else text[: _LONGEST_DETAIL - 3] + "..."


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Iterable[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}", essential=True)


def _pinned_packages() -> Iterable[Finding]:
    from packaging.requirements import Requirement

    requirements = map(Requirement, importlib.metadata.requires("torchrl_reg") or ())
    pins = {each.name: each.specifier for each in requirements if each.marker is None}
    for name in ("torch", "torchrl", "tensordict", "gymnasium"):
        version, pin = _version(name), pins.get(name)
        if version is None:
            yield Finding(name, "missing", "not installed", f'pip install "{name}{pin or ""}"', essential=True)
        elif pin is not None and not pin.contains(version, prereleases=True):
            todo = f'pip install "{name}{pin}": no other version was tried'
            yield Finding(name, "warn", f"{version}, pinned {pin}", todo)
        else:
            yield Finding(name, "ok", f"{version}" + (f", pinned {pin}" if pin else ""))


def _compiled_sampler() -> Iterable[Finding]:
    todo = "pip install --force-reinstall 'torch>=2.14' torchrl==0.14.1: with an older torch it does not load"
    yield _probed("compiled sampler", _SAMPLER, todo, essential=True)


def _gpu() -> Iterable[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            detail = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
            yield Finding(f"gpu {index}", "ok", detail)
    elif shutil.which("nvidia-smi"):
        todo = "compare nvidia-smi's driver with torch.version.cuda; run.device=cpu works meanwhile"
        yield Finding("gpu", "warn", f"nvidia-smi is there, but torch (CUDA {torch.version.cuda}) sees no GPU", todo)
    else:
        todo = "fine for classic control, MinAtar and short MuJoCo; long Atari runs need a GPU"
        yield Finding("gpu", "missing", "none: CPU only", todo)


def _environments() -> Iterable[Finding]:
    """Imports each family, builds one environment and steps it, in a separate process."""
    for name, (module, package, extras, before, env) in _FAMILIES.items():
        code = _STEPS.format(before=before, env=env, package=package)
        yield _probed(name, code, f'pip install "torchrl_reg[{extras}]"', module=module)


def _probed(name: str, code: str, todo: str, *, module: str = "", essential: bool = False) -> Finding:
    """Runs ``code`` in a fresh interpreter; its last line of output is the detail."""
    if module and not importlib.util.find_spec(module):
        return Finding(name, "missing", f"{module} is not installed", todo, essential)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "SDL_VIDEODRIVER": "dummy"}
    command = [sys.executable, "-c", code]
    try:
        with TemporaryDirectory() as folder:  # simulators leave logs where they run
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_PROBE_SECONDS, env=environment, cwd=folder
            )
    except subprocess.TimeoutExpired:
        detail = f"no answer within {_PROBE_SECONDS} s"
        return Finding(name, "warn", detail, "try again on a quieter machine", essential)
    if done.returncode == 0:
        return Finding(name, "ok", _one_line(done.stdout.strip().rpartition("\n")[2]))
    said = done.stderr.strip().rpartition("\n")[2]
    reason = f"crashed with signal {-done.returncode}" if done.returncode < 0 else _one_line(said or "failed silently")
    return Finding(name, "missing", reason, todo, essential)


def _optional_packages() -> Iterable[Finding]:
    for extra, packages in _OPTIONAL.items():
        for package in packages:
            missing = Finding(package, "missing", "not installed", f'pip install "torchrl_reg[{extra}]"')
            yield Finding(package, "ok", version) if (version := _version(package)) else missing


def _slurm() -> Iterable[Finding]:
    if shutil.which("sbatch") is None:
        yield Finding("slurm", "missing", "no sbatch on PATH", "sweeps still run here with cluster=local")
        return
    version = _answer("sbatch", "--version")
    alive = _answer("scontrol", "ping")
    if alive.returncode != 0 or "UP" not in alive.stdout.upper():
        said = _one_line(alive.stdout.strip() or alive.stderr.strip() or "no answer")
        todo = "ask where the controller is, or set SLURM_CONF; cluster=local works meanwhile"
        yield Finding("slurm", "warn", f"{version.stdout.strip()}, but the controller does not answer: {said}", todo)
        return
    yield Finding("slurm", "ok", f"{version.stdout.strip()}: {_one_line(alive.stdout)}")
    partitions = _answer("sinfo", "--noheader", "--format=%P %D %c %l %G")
    lines = [line.split() for line in partitions.stdout.splitlines() if line.strip()]
    shown = "; ".join(f"{p[0]} ({p[1]} nodes, {p[2]} CPUs, at most {p[3]}, {p[4]})" for p in lines if len(p) == 5)
    said = shown or _one_line(partitions.stderr or "sinfo names none")
    yield Finding.judged("partitions", said, "" if shown else "ask for a partition")
    accounting = _answer("sacct", "--noheader", "--allocations", "--starttime=now-1minute")
    silent = _one_line(accounting.stderr or "does not answer") if accounting.returncode else ""
    todo = "without accounting, the state of ended jobs comes from their own files" if silent else ""
    yield Finding.judged("sacct", silent or "answers", todo)


def _answer(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SLURM_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", _one_line(error))


def _threads() -> Iterable[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS", "unset")
    detail = f"torch uses {threads}, OMP_NUM_THREADS={variable}, {cores} cores to use; recipes set run.threads"
    todo = f"export OMP_NUM_THREADS={cores} or less: threads would wait in turn" if threads > cores else ""
    yield Finding.judged("threads", detail, todo)


def _disk() -> Iterable[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    todo = "checkpoints with a replay buffer can take gigabytes: free some, or set run.dir elsewhere"
    yield Finding.judged("disk", f"{free:.1f} GiB free in {Path.cwd()}", todo if free < _LITTLE_DISK_GIB else "")


#: In the order of the checklist.
CHECKS: tuple[Callable[[], Iterable[Finding]], ...] = (
    _python,
    _pinned_packages,
    _compiled_sampler,
    _gpu,
    _environments,
    _optional_packages,
    _slurm,
    _threads,
    _disk,
)
