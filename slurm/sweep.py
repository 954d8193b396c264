"""The runs of a sweep, each in a folder whose path states its settings."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchrl_reg.lab.documents import flat as flat_settings
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.folder import folder_name

# In the path already, or without influence on the results.
_UNNAMED = ("recipe", "+method", "env", "run.seed")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Args:
        recipe: a name in ``recipes/``, or the path of your own.
        overrides: of its command line, without ``run.dir``.
        folder: below the sweep's: ``<method>/<env>/<settings>/seed=<seed>``; without ``+method`` it is the recipe.
        arm: the method and the settings chosen for it, which distinguish it from runs on the same environment.
        seeds: the folders of the runs that this one trains together (``run.seeds``), each below ``folder``.
    """

    recipe: str
    overrides: tuple[str, ...]
    folder: str
    arm: str = ""
    seeds: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[str, ...]:
        """Where its results go."""
        return self.seeds or (self.folder,)


def planned_runs(sweep: Mapping[str, Any]) -> list[PlannedRun]:
    """Every seed of every point of ``grid`` for every one of ``variants``, ``base`` underneath.

    A variant may have a ``grid`` of its own, which is crossed with that of the sweep.

    Raises:
        UserError: an empty grid, an axis that is not a list, a run named twice, no recipe, or a setting that is the
            sweep's to choose (``run.seed``, ``run.dir``).

    >>> sweep = {"recipe": "m_dqn", "base": {"env": "acrobot"}, "grid": {"algo": {"tau": [0.1, 1]}}, "seeds": 2}
    >>> [run.folder for run in planned_runs(sweep)][1:3]
    ['m_dqn/acrobot/algo.tau=0.1/seed=1', 'm_dqn/acrobot/algo.tau=1/seed=0']
    """
    base = flat(sweep.get("base") or {})
    _refuse_reserved("base", base)
    axes = _axes(sweep.get("grid") or {}, "grid")
    variants = sweep.get("variants") or []
    if not axes and not variants:
        raise UserError(
            "sweep.grid must hold at least one list of settings (or sweep.variants one set), got an empty grid; "
            "sweep.variants=[{}] runs the base alone."
        )
    seeds = _seeds(sweep.get("seeds"))
    runs = []
    for number, variant in enumerate(variants or [{}]):
        place = f"variants[{number}]"
        if not isinstance(variant, Mapping) or not isinstance(variant.get("grid") or {}, Mapping):
            raise UserError(f"sweep.{place} must hold settings (name: value), got {variant!r}.")
        own = _axes(variant.get("grid") or {}, f"{place}.grid")
        settings = flat({key: value for key, value in variant.items() if key != "grid"})
        _refuse_reserved(place, settings)
        twice = sorted(settings.keys() & (axes.keys() | own.keys()) | axes.keys() & own.keys())
        if twice:
            raise UserError(f"sweep.{place} must not set what sweep.grid varies, got {twice[0]} in both.")
        varied = axes | own
        for point in itertools.product(*varied.values()):
            chosen = settings | dict(zip(varied, point, strict=True))
            recipe = {"recipe": sweep.get("recipe"), **base, **chosen}["recipe"]
            if not recipe:
                raise UserError("sweep.recipe must name a recipe (or each variant one), got none.")
            runs += [_planned(str(recipe), base, chosen, seed) for seed in seeds]
    (folder, times), *_ = Counter(run.folder for run in runs).most_common(1)
    if times > 1:
        raise UserError(f"the runs of a sweep must differ, got {folder} twice.")
    return runs


def seeds_together(runs: Sequence[PlannedRun], max_seeds: int) -> list[PlannedRun]:
    """The same runs, up to ``max_seeds`` that differ by their seed alone as one with ``run.seeds``.

    >>> sweep = {"recipe": "m_dqn", "grid": {"algo.tau": [0.1, 1]}, "seeds": 3}
    >>> [(run.overrides[-1], run.folder) for run in seeds_together(planned_runs(sweep), 2)][:2]
    [('run.seeds=[0,1]', 'm_dqn/default/algo.tau=0.1'), ('run.seed=2', 'm_dqn/default/algo.tau=0.1/seed=2')]
    """
    found = []
    for parent, same in itertools.groupby(runs, lambda run: run.folder.rpartition("/")[0]):
        alike = list(same)
        for part in (alike[first : first + max_seeds] for first in range(0, len(alike), max_seeds)):
            seeds = ",".join(run.overrides[-1].removeprefix("run.seed=") for run in part)
            overrides = (*part[0].overrides[:-1], f"run.seeds=[{seeds}]")
            joined = replace(part[0], overrides=overrides, folder=parent, seeds=tuple(run.folder for run in part))
            found.append(part[0] if len(part) == 1 else joined)
    return found


def named_settings(sweep: Mapping[str, Any]) -> set[str]:
    """The settings of the sweep's grids and variants."""
    variants = sweep.get("variants") or []
    grids = [each.get("grid") or {} for each in (sweep, *variants)]
    return {key for tree in (*grids, *variants) for key in flat(tree)}


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings as in :func:`torchrl_reg.lab.documents.flat`, without empty sections: they set nothing."""
    return {key: value for key, value in flat_settings(settings).items() if value != {}}


def override(key: str, value: Any) -> str:
    """``key=value`` in Hydra's grammar.

    >>> override("algo.clip_min", None), override("env", "minatar/breakout"), override("net.num_cells", [64, 64])
    ('algo.clip_min=null', 'env=minatar/breakout', 'net.num_cells=[64,64]')
    """
    return f"{key}={_literal(value)}"


def _planned(recipe: str, base: Mapping[str, Any], chosen: Mapping[str, Any], seed: int) -> PlannedRun:
    settings = {k: v for k, v in {**base, **chosen}.items() if k != "recipe"}
    # Groups (env, +paper) first: Hydra takes them in any order, people read them first.
    overrides = tuple(override(k, settings[k]) for k in sorted(settings, key=lambda key: "." in key))
    named = [override(k, chosen[k]) for k in sorted(chosen) if k not in _UNNAMED]
    method = str(settings.get("+method") or Path(recipe).stem)
    parts = (method, str(settings.get("env", "default")), ",".join(named) or "default", f"seed={seed}")
    folder = "/".join(folder_name(part) for part in parts)
    arm = " ".join([parts[0], *(text for text in named if not text.startswith("env."))])
    return PlannedRun(recipe, (*overrides, f"run.seed={seed}"), folder, arm)


def _refuse_reserved(place: str, settings: Iterable[str]) -> None:
    ours = {"run.seed": "sweep.seeds=[0,1,2] chooses seeds", "run.dir": "root= and name= choose the folder"}
    for key in settings:
        if key in ours:
            raise UserError(f"sweep.{place}.{key} must not be set, got a value; {ours[key]}.")


def _axes(grid: Mapping[str, Any], place: str) -> dict[str, list[Any]]:
    axes = flat(grid)
    _refuse_reserved(place, axes)
    for key, values in axes.items():
        if not isinstance(values, list | tuple):
            raise UserError(f"sweep.{place}.{key} must be a list of values, got {values!r}.")
        if not values:
            raise UserError(f"sweep.{place}.{key} must hold at least one value, got an empty list.")
    return {key: list(values) for key, values in axes.items()}


def _seeds(seeds: Any) -> list[int]:
    listed = list(range(seeds)) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds
    if not isinstance(listed, list) or not listed or not all(isinstance(s, int) and s >= 0 for s in listed):
        raise UserError(f"sweep.seeds must be a number of seeds or a list of them, got {seeds!r}.")
    return listed


def _literal(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(_literal(item) for item in value)}]"
    text = str(value)
    if not isinstance(value, str):
        return text
    if re.fullmatch(r"[A-Za-z0-9_./:+=,-]+", text):
        return re.sub("([=,])", r"\\\1", text)
    return "'" + text.replace("'", "\\'") + "'"
