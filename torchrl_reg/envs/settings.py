"""Settings of an environment: one dataclass for all families, checked against the family it names."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import gymnasium

Builder = Callable[..., Any]


@dataclass
class EnvSettings:
    """The name of an environment and its options; ``None`` is the default of the family.

    A field that does not apply to the family must be None or neutral (``frame_skip=1``, ``frame_stack=1``,
    ``sticky_actions=0``, ``noop_max=0``).

    Not frozen, because Hydra refuses overrides of a frozen schema.

    Args:
        name: discrete actions: ``"cartpole"``, ``"acrobot"``, ``"mountaincar"``, ``"lunarlander"``, ``"minatar"``,
            ``"atari"`` or ``"gridworld"``; continuous ones: ``"pendulum"``, ``"mountaincar_continuous"``,
            ``"multigoal"``, ``"mujoco"`` or ``"adroit"``; either: ``"gym"``.
            Or a name passed to :func:`register_env`.
        game: the game of ``"minatar"`` or ``"atari"``, for instance ``"breakout"``, the world of ``"gridworld"``
            (corridor, square, grid, goals) or the task of ``"mujoco"`` (hopper, walker2d, halfcheetah, ant, humanoid,
            swimmer, reacher, inverted_pendulum, inverted_double_pendulum) or ``"adroit"`` (door, hammer, pen,
            relocate); for ``"multigoal"`` the goals (``"right_up"``), all if empty; for ``"gym"`` the id of any
            gymnasium environment, such as ``"FrozenLake-v1"``.
        max_episode_frames: frames after which an episode is *truncated* (cartpole and acrobot 500, lunarlander
            1000, minatar 10 000, atari 108 000, pendulum, mountaincar, adroit and gridworld 200, multigoal 30,
            mountaincar_continuous 999, mujoco 1000, gym that of the id; MinAtar itself has no limit, and episodes
            of good agents rarely terminate).
        sticky_actions: probability of repeating the previous action (MinAtar .1 per step, Atari .25
            per emulator frame).
        frame_skip: emulator frames per action (Atari 4); observations are the maximum of the last two.
        frame_stack: observations stacked along the channels (Atari 4).
        noop_max: upper bound of the random number of no-op frames at the start of an episode (Atari 0).
        minimal_actions: only the actions that have an effect in the game (Atari, MinAtar: True).
        difficulty_ramping: enemies speed up with the score (MinAtar: True).
        kwargs: keyword arguments of the environment's constructor (gym).
        import_module: module to import first, which registers environments with gymnasium or :func:`register_env`.
    """

    name: str
    game: str = ""
    max_episode_frames: int | None = None
    sticky_actions: float | None = None
    frame_skip: int | None = None
    frame_stack: int | None = None
    noop_max: int | None = None
    minimal_actions: bool | None = None
    difficulty_ramping: bool | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    import_module: str = ""

    def validate(self) -> None:
        """Resolves the settings in place, so that a run records the values in use; see :func:`resolve`."""
        vars(self).update(vars(resolve(self)))


@dataclass(frozen=True)
class Family:
    """The environments of one ``EnvSettings.name``.

    Args:
        build: if ``vectorized``, ``build(num_envs, **options)`` returns a gymnasium ``VectorEnv`` or a TorchRL
            ``EnvBase``; else ``build(**options)`` returns one ``gymnasium.Env``.
        vectorized: see ``build``.
        games: the field ``game`` applies.
        defaults: the other fields of :class:`EnvSettings` that apply, with their defaults.
        needs_game: an empty ``game`` is an error.
        takes_kwargs: the field ``kwargs`` applies.
        defaults_of: function from settings to the defaults that depend on the game; raises a ValueError for an unknown
            game.
    """

    build: Builder
    vectorized: bool
    games: bool
    defaults: Mapping[str, bool | int | float]
    needs_game: bool = True
    takes_kwargs: bool = False
    defaults_of: Callable[[EnvSettings], Mapping[str, int]] | None = None

    @classmethod
    def from_signature(cls, build: Builder, *, vectorized: bool = True) -> Family:
        """A family with the arguments of ``build`` as its fields and defaults."""
        arguments = inspect.signature(build).parameters
        defaults = {name: arguments[name].default for name in _OPTIONS if name in arguments}
        return cls(build, vectorized, "game" in arguments, defaults)

    def options(self, resolved: EnvSettings) -> dict[str, Any]:
        """Keyword arguments of ``build``: the fields that apply."""
        others = ("game",) * self.games + ("kwargs",) * self.takes_kwargs
        return {name: getattr(resolved, name) for name in (*self.defaults, *others)}


#: Families by name: those of :mod:`torchrl_reg.envs.vectorized` and of :func:`register_env`.
FAMILIES: dict[str, Family] = {}

_OPTIONS = tuple(
    option.name for option in fields(EnvSettings) if option.name not in ("name", "game", "kwargs", "import_module")
)
# Values that leave any environment unchanged.
_NEUTRAL = {"sticky_actions": 0.0, "frame_skip": 1, "frame_stack": 1, "noop_max": 0}
_MINIMUM = {"num_envs": 1, "max_episode_frames": 1, "frame_skip": 1, "frame_stack": 1, "noop_max": 0}


def register_env(
    name: str,
    build: Builder,
    *,
    max_episode_frames: int,
    vectorized: bool = False,
    games: bool = False,
    **defaults: bool | int | float,
) -> None:
    """Registers an environment under ``EnvSettings(name)``, and ``env.name=<name>`` of every recipe.

    Args:
        name: a new name.
        build: ``build(**options)`` returns one ``gymnasium.Env`` with raw rewards, once per copy. Its options are the
            settings' ``max_episode_frames``, those named in ``defaults`` and, with ``games``, ``game``.
        max_episode_frames: default of the frames after which an episode is truncated; ``build`` must enforce it.
        vectorized: ``build(num_envs, **options)`` returns a TorchRL ``EnvBase`` of batch size ``[num_envs]``, or a
            gymnasium ``VectorEnv`` that leaves resets to its caller (``AutoresetMode.DISABLED``).
        games: the settings must name a game.
        defaults: the other fields of :class:`EnvSettings` that apply (``frame_skip``, ``sticky_actions``, ...), with
            their defaults.

    A checkpoint stores the seed of an environment's last reset and the actions since. A ``vectorized`` environment must
    be :class:`Restorable`, otherwise its episodes end at every checkpoint.

    Raises:
        ValueError: a name in use, a ``build`` that cannot be called with these options, an unknown field or a default
            out of range.

    >>> import gymnasium
    >>> def long_pole(max_episode_frames):
    ...     return gymnasium.make("CartPole-v1", max_episode_steps=max_episode_frames)
    >>> register_env("long_pole", long_pole, max_episode_frames=5_000)
    >>> resolve(EnvSettings("long_pole")).max_episode_frames
    5000
    """
    if not isinstance(name, str) or not name or name in FAMILIES:
        raise ValueError(f"name must be a new name of an environment, got {name!r}.")
    if not callable(build):
        raise ValueError(f"build must be a function that returns an environment, got {build!r}.")
    options = {"max_episode_frames": max_episode_frames, **defaults}
    for option, value in options.items():
        check_name("defaults", option, _OPTIONS)
        check_value(option, value)
    _check_signature(build, ["num_envs"] * vectorized, [*["game"] * games, *options])
    FAMILIES[name] = Family(build, vectorized, games, options)


def _check_signature(build: Builder, first: list[str], options: list[str]) -> None:
    """Raises a ValueError unless ``build(*first, option=..., ...)`` can be called."""
    try:
        signature = inspect.signature(build)
    except ValueError:  # some functions written in C have no signature
        return
    try:
        signature.bind(*first, **dict.fromkeys(options))
    except TypeError:
        expected = ", ".join([*first, *(f"{option}=" for option in options)])
        raise ValueError(f"build must take ({expected}), got a function of {signature}.") from None


def resolve(settings: EnvSettings) -> EnvSettings:
    """The settings with every ``None`` of a field that applies replaced by the family's default.

    Raises:
        ValueError: unknown ``name``, missing or superfluous ``game``, a field that does not apply to the family, a
            value of the wrong type or range, or an ``import_module`` that is not found.
    """
    if not isinstance(settings, EnvSettings):
        raise ValueError(f"settings must be EnvSettings, such as EnvSettings('cartpole'), got {settings!r}.")
    _import(settings.import_module)
    check_name("name", settings.name, FAMILIES, suggestion=gym_words(str(settings.name)))
    family = FAMILIES[settings.name]
    _check_game(settings, family)
    _check_kwargs(settings, family)
    defaults = dict(family.defaults) if family.defaults_of is None else family.defaults_of(settings)
    filled: dict[str, Any] = {}
    for name in _OPTIONS:
        value, neutral = getattr(settings, name), _NEUTRAL.get(name)
        if value is None:
            filled[name] = defaults.get(name, neutral)
            continue
        check_value(name, value)
        if name not in family.defaults and value != neutral:
            raise ValueError(f"{name} must be unset for {settings.name!r}, got {value!r}.")
    return replace(settings, **filled)


def frames_per_step(settings: EnvSettings) -> int:
    """Environment frames per step: 4 for Atari by default."""
    return resolve(settings).frame_skip or 1


def frame_stack(settings: EnvSettings) -> int:
    """Images stacked in one observation: 4 for Atari by default, 1 without stacking."""
    return resolve(settings).frame_stack or 1


def gym_words(name: str) -> str | None:
    """Overrides that select ``name`` if it has the form of a gymnasium id; else None.

    >>> gym_words("CartPole-v1")
    'env=gym env.game=CartPole-v1'
    """
    return f"env=gym env.game={name}" if re.fullmatch(r"[\w./-]+-v\d+", name) else None


def check_imported(settings: EnvSettings) -> None:
    """Raises a ValueError if ``settings`` from an untrusted file would import a module not imported yet."""
    module = settings.import_module
    if module and module not in sys.modules:
        trusted = f"imported already or trusted, by trust=[{module!r}] or --trust {module}"
        raise ValueError(f"import_module of a saved policy must be a module that is {trusted}, got {module!r}.")


def check_name(argument: str, got: object, valid: Iterable[str], *, suggestion: str | None = None) -> None:
    """Raises a ValueError with all ``valid`` names and the suggestion, or the nearest name, unless ``got`` is one."""
    names = sorted(valid)
    if got not in names:
        near = [suggestion] if suggestion else list(map(repr, difflib.get_close_matches(str(got).lower(), names, n=1)))
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"{argument} must be one of {', '.join(names)}, got {got!r}.{hint}")


def check_value(name: str, value: object) -> None:
    """Raises a ValueError unless ``value`` has the type and range of the setting ``name``."""
    if name in _MINIMUM:
        expected = f"an int >= {_MINIMUM[name]}"
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= _MINIMUM[name]
    elif name == "sticky_actions":
        expected = "a probability in [0, 1]"
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    else:
        expected, fits = "True or False", isinstance(value, bool)
    if not fits:
        raise ValueError(f"{name} must be {expected}, got {value!r}.")


@contextmanager
def needing(packages: str, family: str, extra: str) -> Iterator[None]:
    """Turns a failed import into a ValueError that names the extra to install."""
    try:
        yield
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise ValueError(
            f'env.name={family} needs {packages}, got none: pip install "torchrl_reg[{extra}]".'
        ) from error


def _check_game(settings: EnvSettings, family: Family) -> None:
    if not isinstance(settings.game, str):
        raise ValueError(f"game must be a string, got {settings.game!r}.")
    if family.games and family.needs_game and not settings.game:
        raise ValueError(f"game must be the name of the {settings.name} game, got an empty string.")
    if settings.game and not family.games:
        raise ValueError(f"game must be empty for {settings.name!r}, got {settings.game!r}.")


def _check_kwargs(settings: EnvSettings, family: Family) -> None:
    if not isinstance(settings.kwargs, Mapping) or not all(isinstance(name, str) for name in settings.kwargs):
        raise ValueError(f"kwargs must be a mapping of argument names to values, got {settings.kwargs!r}.")
    if settings.kwargs and not family.takes_kwargs:
        raise ValueError(f"kwargs must be empty for {settings.name!r}, got {dict(settings.kwargs)}.")


def _import(module: str) -> None:
    """Imports ``module``, also from the working directory."""
    if not isinstance(module, str) or not (module == "" or all(part.isidentifier() for part in module.split("."))):
        raise ValueError(f"import_module must be the name of a module, such as 'my_envs', got {module!r}.")
    if not module or module in sys.modules:
        return
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # an import inside of the module
        expected = "a module that is installed, in the working directory or on PYTHONPATH"
        raise ValueError(f"import_module must be {expected}, got {module!r}.") from None
