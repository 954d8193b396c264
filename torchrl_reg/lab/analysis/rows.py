"""Rows: summaries of finished runs for documents, a JSON object per line, small enough for the repository.

A file begins with a line for each recipe, ``{"base": "recipes/pqn.py", "config": {...}, ...}``: the resolved settings
and the machine of the first run saved. A line for each method and task follows, ``{"group": DIGEST}``, whose ``config``
holds the differences from the base, and after it a line for each of its runs, with the differences from both. Lines
stay short and a file is self-contained. The order of lines does not depend on the order of saving.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from torchrl_reg.lab.analysis.runs import Column, RunRecord
from torchrl_reg.lab.documents import read_text
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.files import write_atomically
from torchrl_reg.lab.run.folder import with_targets
from torchrl_reg.lab.run.settings import WITHOUT_EFFECT

Row = dict[str, Any]
#: Points of a curve, and for each curve the columns to read it from, of which the first present is used.
POINTS = 20
_CURVES = {"return": ("return_last_100",), "td_error": ("td_error",), "entropy": ("entropy",), "gap": ("action_gap",)}
#: The identity of a run: two rows equal in these must be equal in everything.
KEY = ("method", "env", "digest", "seed", "commit")
#: Fields of a base line: defaults for the runs of its recipe.
_BASE_FIELDS = ("versions", "processor", "device", "threads", "compiled", "config")
#: Fields of a group line: values for its runs.
_GROUP_FIELDS = ("method", "script", "env", "settings")
_ORDER = (
    *("digest", *_GROUP_FIELDS, "seed", "commit", "frames", *_BASE_FIELDS[:-1]),
    *("wall_seconds", "cpu_seconds", "scores", "curve", "config"),
)
_VERSIONS = ("python", "torch", "torchrl", "tensordict", "numpy", "gymnasium")
#: Left out of a row's overrides.
_IGNORED_OVERRIDES = WITHOUT_EFFECT | {"run.seed"}


def digest(config: Mapping[str, Any]) -> str:
    """A digest of all resolved settings, twelve digits; it does not depend on which of them are defaults.

    >>> digest({"algo.tau": 0.03, "algo.alpha": 1}) == digest({"algo.alpha": 1.0, "algo.tau": 0.03})
    True
    """
    numbers = {key: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for key, v in config.items()}
    return hashlib.sha256(json.dumps(numbers, sort_keys=True, default=str).encode()).hexdigest()[:12]


def row_of(run: RunRecord) -> Row:
    """The row of a finished run, with its complete ``config``.

    ``settings`` are the overrides of its command, ``scores`` are values with their numbers of episodes (``last_row``:
    with the frames since the previous row), ``curve`` has twenty points per column, each the mean over a twentieth of
    the run.

    Raises:
        UserError: the run is not finished.
    """
    if run.done is None:
        raise UserError(f"{run.path} must be a finished run to be saved, got one without done.json.")
    start = run.starts[-1] if run.starts else {}
    versions = start.get("versions") or {}
    commits = run.short_commits
    row: Row = {"method": run.recipe, "script": run.script, "env": run.env, "settings": _overrides(run.command)}
    row |= {
        "digest": digest(run.config | {"script": run.script}),
        "seed": run.seed,
        "commit": " ".join(commits),
        "frames": run.frames,
    }
    row |= {"versions": {name: versions[name] for name in _VERSIONS if name in versions}}
    row |= {name: start.get(name) for name in ("processor", "device", "threads")}
    row |= {"compiled": run.done.get("compiled"), "wall_seconds": _rounded(run.wall_seconds)}
    row |= {"cpu_seconds": _rounded(run.done.get("cpu_seconds")), "scores": _scores(run), "curve": _curves(run)}
    row["config"] = run.config
    return {name: row[name] for name in _ORDER}


def _overrides(command: str) -> str:
    """The overrides in a command, without ``_IGNORED_OVERRIDES``."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    start = next((i for i, word in enumerate(words) if word.endswith(".py")), 2 if words[:2] == _RUN else len(words))
    found = [word for word in words[start + 1 :] if "=" in word and word.partition("=")[0] not in _IGNORED_OVERRIDES]
    return shlex.join(found)


_RUN = ["torchrl-reg", "run"]


def _rounded(value: object) -> float | None:
    """``value`` to five digits; None if it is not a finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.5g}")


def _scores(run: RunRecord) -> dict[str, list[float | None]]:
    columns, found = run.all_columns, {}
    for name in ("greedy", "sampled"):
        _, values = columns.get("eval", {}).get(f"return_{name}_mean", (None, np.zeros(0)))
        if len(values):
            found[name] = [_rounded(float(values[-1])), run.config.get("run.eval_episodes")]
    train = columns.get("train", {})
    for name, column in (("last_100", "return_last_100"), ("last_row", "return_mean")):
        frames, values = train.get(column, (np.zeros(0), np.zeros(0)))
        if len(values):
            every = int(frames[-1] - frames[-2]) if len(frames) > 1 else int(frames[-1])
            episodes = train.get("episodes", (None, np.zeros(0)))[1]
            count = every if name == "last_row" else int(min(100, np.nansum(episodes))) if len(episodes) else None
            found[name] = [_rounded(float(values[-1])), count]
    return found


def _curves(run: RunRecord) -> dict[str, list[float | None]]:
    found = {}
    for name, columns in _CURVES.items():
        frames, values = next(
            (c for column in columns if len((c := run.training(column))[0])), (np.zeros(0), np.zeros(0))
        )
        if len(frames):
            window = np.clip(np.ceil(frames / run.frames * POINTS).astype(int) - 1, 0, POINTS - 1)
            means = [values[window == i].mean() if (window == i).any() else math.nan for i in range(POINTS)]
            found[name] = [None if math.isnan(each) else float(f"{each:.3g}") for each in means]
    return found


def read_rows(path: Path) -> list[Row]:
    """The complete rows of a file; none if there is no file.

    Raises:
        UserError: a line is not a row, or lacks its base or group.
    """
    bases, groups, rows = _parsed(path)
    found = []
    for row in rows:
        if "digest" in row:
            group = groups[row["digest"]]
            base = bases[group["script"]]
            merged = base["config"] | group["config"]
            config = {key: value for key, value in merged.items() if value != _ABSENT}
            row = {name: (base | group | row | {"config": config})[name] for name in _ORDER}
        found.append(row)
    return found


#: The value of a setting that a run lacks and its base has.
_ABSENT = "(absent)"
Lines = dict[str, Row]


def _parsed(path: Path) -> tuple[Lines, Lines, list[Row]]:
    """Bases by script, groups by digest, and the other lines."""
    bases: Lines = {}
    groups: Lines = {}
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            row = json.loads(line)
            if "base" in row:
                bases[row.pop("base")] = row
            elif "group" in row:
                _ = bases[row["script"]]
                groups[row.pop("group")] = row
            else:
                _ = groups[row["digest"]] if "digest" in row else row
                rows.append(row)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} must hold a row a line, got {line[:60]!r} in line {number} ({error!r}).") from None
    return bases, groups, rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Adds ``rows`` to those in ``path``; saving a row again changes nothing.

    Raises:
        UserError: two rows of one run and commit differ.
    """
    found: dict[tuple[object, ...], Row] = {}
    bases, groups, _ = _parsed(path)
    for row in (*read_rows(path), *rows):
        if "digest" not in row:
            raise UserError(f"{path} must hold rows of runs alone to take more of them, got another: {row}.")
        key = tuple(row[name] for name in KEY)
        known = found.setdefault(key, row)
        if known != row:
            names = [name for name in (known | row) if known.get(name) != row.get(name)]
            one, other = ({name: each.get(name) for name in names} for each in (known, row))
            who = ", ".join(f"{name}={value}" for name, value in zip(KEY, key, strict=True))
            raise UserError(f"{path} must hold one row of each run and commit, got two of {who}: {one} and {other}.")
        base = bases.setdefault(row["script"], {name: row[name] for name in _BASE_FIELDS})
        named = {name: row[name] for name in _GROUP_FIELDS} | {"config": _config_changes(base["config"], row["config"])}
        groups.setdefault(row["digest"], named)
    lines: list[Row] = [{"base": script, **base} for script, base in sorted(bases.items())]
    last = None
    for _, row in sorted(found.items(), key=lambda item: [str(part) for part in item[0]]):
        group = groups[row["digest"]]
        if row["digest"] != last:
            lines.append({"group": row["digest"], **group})
        shared, last = bases[row["script"]] | group | {"config": row["config"]}, row["digest"]
        lines.append({name: value for name, value in row.items() if name not in shared or shared[name] != value})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def _config_changes(base: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in which ``config`` differs from ``base``, sorted."""
    absent = {key: _ABSENT for key in base if key not in config}
    return dict(sorted(({k: v for k, v in config.items() if k not in base or base[k] != v} | absent).items()))


def record_of(row: Row, path: Path) -> RunRecord:
    """The :class:`RunRecord` of a row, for tables and figures; ``path`` is the file of the row."""
    frames, scores = row["frames"], row["scores"]
    end = np.array([frames], np.int64)

    def column(frames: ArrayLike, values: Iterable[float | None]) -> Column:
        return np.asarray(frames, np.int64), np.array([math.nan if v is None else v for v in values], np.float64)

    evaluated = {
        f"return_{name}_mean": column(end, scores[name][:1]) for name in ("greedy", "sampled") if name in scores
    }
    points = np.linspace(0, frames, POINTS + 1).round()[1:]
    train = {columns[0]: column(points, row["curve"][n]) for n, columns in _CURVES.items() if n in row["curve"]}
    if "last_100" in scores:
        before = train.get("return_last_100", (np.zeros(0, np.int64), np.zeros(0)))
        train["return_last_100"] = column([*before[0][:-1], frames], [*before[1][:-1], scores["last_100"][0]])
    if "last_row" in scores:
        value, every = scores["last_row"]
        train["return_mean"] = column([frames - every, frames], [None, value])
    machine = {"versions": row["versions"], "processor": row["processor"]}
    commits = [(commit.removesuffix("+"), commit.endswith("+")) for commit in row["commit"].split()]
    starts = tuple({"commit": commit, "uncommitted_changes": changed, **machine} for commit, changed in commits)
    run = RunRecord(
        path=path / f"{row['method']}/{row['env']}/{row['digest']}/seed={row['seed']}",
        recipe=row["method"],
        env=row["env"],
        seed=row["seed"],
        config=with_targets(row["config"]),
        starts=starts,
        done={"frames": frames, "wall_seconds": row["wall_seconds"]},
        command=row["settings"],
        script=row["script"],
    )
    vars(run)["all_columns"] = {"eval": evaluated, "train": train}  # sets the cached property
    return run
