"""The folder of a run: its one owner, its settings, and where it was computed."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shlex
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchrl_reg.lab.errors import ConfigError
from torchrl_reg.lab.run.divergence import FAILED
from torchrl_reg.lab.run.files import write_atomically
from torchrl_reg.lab.run.folder import is_done
from torchrl_reg.lab.run.provenance import differences, provenance
from torchrl_reg.lab.run.run_owner import LOCK, OWNER, is_alive, read_owner, this_process

HEARTBEAT_SECONDS = 20.0


class FolderLock:
    """Held until :meth:`release`, until the object is forgotten, or until its process ends, however that happens.

    Raises:
        ConfigError: another process holds ``folder``; the sentence names it.
        OSError: the lock file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        descriptor = os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT, 0o666)
        owner, beating = folder / OWNER, threading.Event()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(_refusal(folder)) from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            descriptor = -1
            _own(folder)
            threading.Thread(target=_beat, args=(owner, beating), daemon=True).start()
        else:
            write_atomically(owner, json.dumps(this_process()) + "\n")
        self._owner, self._is_locked = owner, descriptor >= 0
        self.release = weakref.finalize(self, _release, descriptor, owner, beating)

    def remove_owner(self) -> None:
        """Takes the name off a folder that stays locked: a kill before :meth:`release` then leaves nothing behind."""
        if self._is_locked:
            self._owner.unlink(missing_ok=True)


def _own(folder: Path) -> None:
    """Makes the owner file, which only one of several processes can."""
    owner = folder / OWNER
    if owner.exists() and not is_alive(owner):
        # Moved away under a name of our own: of several that see it stale, one gets it.
        stale = folder / f"{OWNER}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(owner, stale)
            if is_alive(stale):  # another process was quicker, and this is its file
                with contextlib.suppress(FileExistsError):
                    os.link(stale, owner)
            stale.unlink()
    try:
        with open(owner, "x", encoding="utf-8") as file:
            file.write(json.dumps(this_process()) + "\n")
    except FileExistsError:
        raise ConfigError(_refusal(folder)) from None


def _beat(owner: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(owner)


def _release(descriptor: int, owner: Path, beating: threading.Event) -> None:
    beating.set()
    if read_owner(owner) == this_process():
        with contextlib.suppress(OSError):
            owner.unlink()
    if descriptor >= 0:
        os.close(descriptor)


def _refusal(folder: Path) -> str:
    said = read_owner(folder / OWNER)
    who = f"process {said['pid']} on {said['host']} since {said['since']}" if said else "another process"
    return f"{folder} is being written by {who}; wait for it, end it, or choose another run.dir."


#: Settings that may differ when a run resumes: they change what is shown, or (device, threads) the last digits at most.
RESUMABLE = frozenset(
    {
        *("run.dir", "run.loggers", "run.progress", "run.on_nan", "run.video_every_frames"),
        *("run.device", "run.threads", "run.log_every_frames", "run.seeds"),
    }
)
#: Settings that differ, told in one refusal.
_SHOWN = 6
#: The shell command that repeats this run, where the recipe knows better than ``sys.argv``.
COMMAND: ContextVar[str | None] = ContextVar("command", default=None)


class RunFolder:
    """``path`` and the config that belongs in it.

    Args:
        config: a recipe's config dataclass; ``config.run.dir`` names the folder.

    Raises:
        ConfigError: ``run.dir`` is not set, or the folder belongs to something else.
    """

    def __init__(self, config: Any) -> None:
        if not config.run.dir:
            raise ConfigError("run.dir must be the folder of the run, got None.")
        self.path = Path(config.run.dir)
        self.config = config
        self._lock: FolderLock | None = None
        with _one_sentence(self.path, "used"):
            self._check_owner()

    @property
    def is_done(self) -> bool:
        """True if the run in this folder came to its end."""
        return is_done(self.path)

    def open(self, device: torch.device) -> None:
        """Makes the folder with its ``config.yaml``, or opens that of the same run, and locks it.

        Called once all of the recipe's objects could be built, so that a config that cannot run
        leaves no folder behind.
        """
        with _one_sentence(self.path, "made"):
            self.path.mkdir(parents=True, exist_ok=True)
        with _one_sentence(self.path, "used"):
            self._open(device)

    def _open(self, device: torch.device) -> None:
        self._lock = FolderLock(self.path)
        # The first file: any folder with something in it has a config, whenever the run was killed.
        if not (self.path / "config.yaml").exists():
            resolved = _plain(self.config)
            resolved.run.device = str(device)  # what "auto" turned out to be
            write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(resolved))
        write_atomically(self.path / "command.txt", command() + "\n")
        (self.path / FAILED).unlink(missing_ok=True)  # of the start before this one
        starts = self._earlier_starts()
        starts.append(provenance(device, type(self.config)))
        write_atomically(self.path / "provenance.json", json.dumps({"starts": starts}, indent=2) + "\n")
        resumes = len(starts) > 1 and any(self.path.glob("checkpoints/checkpoint-*"))
        if resumes and (changed := differences(starts[-2], starts[-1])):
            elsewhere = f"warning: this run began elsewhere ({'; '.join(changed)}), so that its numbers may differ from"
            print(elsewhere, "those of a run that was never interrupted.", file=sys.stderr, flush=True)

    def close(self, done: dict[str, Any]) -> None:
        """Writes ``done.json``, the last file of a run, and releases the folder."""
        if self._lock is not None:
            self._lock.remove_owner()
        done = {**done, "files": [name for name in self._kept() if (self.path / name).exists()]}
        write_atomically(self.path / "done.json", json.dumps(done, indent=2) + "\n")
        if self._lock is not None:
            self._lock.release()

    def check_done(self) -> None:
        """Removes the name of a dead owner from a finished run.

        Raises:
            ConfigError: files are gone that it had when it finished.
        """
        if (owner := self.path / OWNER).exists() and not is_alive(owner):
            owner.unlink(missing_ok=True)
        try:
            files = json.loads((self.path / "done.json").read_text(encoding="utf-8")).get("files", [])
        except (ValueError, AttributeError):
            files = []
        if gone := [name for name in files if not (self.path / name).exists()]:
            left = ", ".join(sorted(path.name for path in self.path.iterdir() if not path.name.startswith(".")))
            raise ConfigError(
                f"{self.path} holds a finished run without its {', '.join(gone)}; left are {left}: put back what is "
                "gone from a copy, or delete the folder to run it again."
            )

    def _kept(self) -> list[str]:
        """The files without which a finished run is not whole, if it ever had them."""
        checkpoints = sorted(self.path.glob("checkpoints/checkpoint-*"))
        return ["metrics.jsonl", "policy.safetensors", *(f"checkpoints/{path.name}" for path in checkpoints)]

    def _earlier_starts(self) -> list[dict[str, Any]]:
        path = self.path / "provenance.json"
        try:
            starts = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.exists() else []
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is damaged ({type(error).__name__}): delete it and run the same command to continue."
            ) from None
        return [start for start in starts if isinstance(start, dict)]

    def _check_owner(self) -> None:
        saved = self.path / "config.yaml"
        if saved.exists():
            _refuse_other_config(self.path, _flat(_saved_config(saved)), _flat(_plain(self.config)))
        elif self.path.is_dir():
            foreign = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("."))
            if foreign:
                raise ConfigError(
                    f"run.dir must be an empty or new folder, or that of the same run, got "
                    f"{self.path}, which has no config.yaml but holds {', '.join(foreign[:3])}."
                )
        elif self.path.exists():
            raise ConfigError(f"run.dir must be a folder, got the file {self.path}.")


@contextmanager
def _one_sentence(path: Path, what: str) -> Iterator[None]:
    """Reports a folder that cannot be read or written as an error the user can fix."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"run.dir={path} cannot be {what}: {error.strerror or error}.") from error


def _saved_config(path: Path) -> Any:
    try:
        # None of ours has an alias, and a few lines of them would unfold to gigabytes.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(path.read_text(encoding="utf-8"))):
            raise ValueError("it holds YAML aliases")
        saved = OmegaConf.load(path)
        if not OmegaConf.is_dict(saved) or not saved:
            raise ValueError("no settings in it")
        OmegaConf.to_container(saved, resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError) as error:
        damaged = f"{path} is damaged ({' '.join(str(error).split())[:80]})"
        raise ConfigError(f"{damaged}: put it back from a copy, or choose another run.dir.") from None
    return saved


def command() -> str:
    """The shell command that starts this run again."""
    return COMMAND.get() or shlex.join([Path(sys.executable).name, *sys.argv])


def _plain(config: Any) -> Any:
    # asdict, because the type hints of a class that was pickled by value (a recipe's, in a worker
    # of a launcher) cannot be resolved, and OmegaConf.structured would try.
    return config if OmegaConf.is_config(config) else OmegaConf.create(dataclasses.asdict(config))


def _flat(node: Any, name: str = "") -> dict[str, Any]:
    """``{"algo.tau": 0.03, ...}`` without those that may differ."""
    if not name:
        node = OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    if not isinstance(node, dict) or (name and not node):
        return {} if name in RESUMABLE else {name: node}
    below = [_flat(value, f"{name}.{key}" if name else str(key)) for key, value in node.items()]
    return {key: value for part in below for key, value in part.items()}


def _refuse_other_config(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    different = [
        f"{key}: {there.get(key, 'absent')} there, {here.get(key, 'absent')} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key, "absent") != here.get(key, "absent")
    ]
    if different:
        shown = [*different[:_SHOWN], *([f"and {len(different) - _SHOWN} more"] if len(different) > _SHOWN else [])]
        advice = "choose another run.dir, or the same settings to resume it."
        raise ConfigError(f"run.dir={path} belongs to a run with other settings ({'; '.join(shown)}); {advice}")
