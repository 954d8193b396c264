"""What an environment is: one dataclass for all families, checked against the family it names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

Builder = Callable[..., Any]


class EnvError(ValueError):
    """An environment that cannot be built as asked: a wrong setting, game name or missing extra."""

    user_error = True


@dataclass
class EnvSettings:
    """Names an environment and what a paper may change in it; ``None`` means the family's default.

    A field that does not apply to the family raises unless it holds the value that changes nothing
    (``frame_skip=1``, ``frame_stack=1``, ``sticky_actions=0``, ``noop_max=0``).

    Not frozen, because Hydra refuses overrides of a frozen schema.

    Args:
        name: discrete actions: ``"cartpole"``, ``"acrobot"``, ``"lunarlander"``, ``"minatar"``, ``"atari"`` or
            ``"gridworld"``; continuous ones: ``"pendulum"``, ``"mountaincar_continuous"``, ``"multigoal"``,
            ``"mujoco"`` or ``"adroit"``.
            An environment of your own goes by the name it was registered under, see :func:`register_env`.
        game: the game of ``"minatar"`` or ``"atari"``, for instance ``"breakout"``, the world of ``"gridworld"``
            (corridor, square, grid) or the task of ``"mujoco"``
            (hopper, walker2d, halfcheetah, ant, humanoid) or ``"adroit"`` (door, hammer, pen, relocate).
        max_episode_frames: frames after which an episode is *truncated* (cartpole and acrobot 500, lunarlander
            1000, minatar 10 000, atari 108 000, pendulum, adroit and gridworld 200, multigoal 30,
            mountaincar_continuous 999, mujoco 1000; MinAtar itself has no limit, and good agents rarely die).
        sticky_actions: probability of repeating the previous action (MinAtar .1 per step, Atari .25
            per emulator frame).
        frame_skip: emulator frames an action lasts (Atari 4); observations are the maximum of the
            last two of them.
        frame_stack: last observations stacked along the channels (Atari 4).
        noop_max: upper bound of the random number of no-op frames at an episode's start (Atari 0).
        minimal_actions: only the actions that do something in the game (Atari, MinAtar: True).
        difficulty_ramping: enemies speed up with the score (MinAtar: True).
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

    def validate(self) -> None:
        """Resolves the settings in place, so that the environment actually used is recorded; see :func:`resolve`."""
        vars(self).update(vars(resolve(self)))


# Environments of the user's own, by name.
_REGISTERED: dict[str, tuple[Builder, bool]] = {}

# The value of a field that leaves any environment as it is.
_NEUTRAL = {"sticky_actions": 0.0, "frame_skip": 1, "frame_stack": 1, "noop_max": 0}

# Which fields a family has, and their defaults.
_FAMILIES: dict[str, dict[str, bool | int | float]] = {
    "cartpole": {"max_episode_frames": 500},
    "acrobot": {"max_episode_frames": 500},
    "lunarlander": {"max_episode_frames": 1_000},
    "minatar": {
        "max_episode_frames": 10_000,
        "sticky_actions": 0.1,
        "minimal_actions": True,
        "difficulty_ramping": True,
    },
    "atari": {
        "max_episode_frames": 108_000,
        "sticky_actions": 0.25,
        "frame_skip": 4,
        "frame_stack": 4,
        "noop_max": 0,
        "minimal_actions": True,
    },
    "pendulum": {"max_episode_frames": 200},
    "mountaincar_continuous": {"max_episode_frames": 999},
    "mujoco": {"max_episode_frames": 1_000},
    "adroit": {"max_episode_frames": 200},
    "gridworld": {"max_episode_frames": 200},
    "multigoal": {"max_episode_frames": 30},
}
_WITH_GAMES = {"minatar", "atari", "mujoco", "adroit", "gridworld"}
_AT_LEAST = {"max_episode_frames": 1, "frame_skip": 1, "frame_stack": 1, "noop_max": 0}


def register_env(
    name: str,
    build: Builder,
    *,
    max_episode_frames: int,
    vectorized: bool = False,
    games: bool = False,
    **defaults: bool | int | float,
) -> None:
    """Makes ``EnvSettings(name)``, and so ``env.name=<name>`` of every recipe, build an environment of your own.

    Args:
        name: one that no environment has yet.
        build: ``build(**options)`` returns one ``gymnasium.Env`` with raw rewards, which is copied. Its
            options are ``max_episode_frames``, those of ``defaults`` and, with ``games``, ``game``, as the settings
            have them.
        max_episode_frames: frames after which an episode is truncated by default; ``build`` must enforce it.
        vectorized: ``build(num_envs, **options)`` returns a TorchRL ``EnvBase`` of batch size ``[num_envs]``, or a
            gymnasium ``VectorEnv`` that leaves resets to its caller (``AutoresetMode.DISABLED``).
        games: whether the settings must name a game.
        defaults: the other fields of :class:`EnvSettings` that apply (``frame_skip``, ``sticky_actions``, ...), with
            their defaults.

    A checkpoint stores the seed of an environment's last reset and the actions since; one that is ``vectorized`` gives
    its state by :class:`Restorable`, or its episodes end at every checkpoint.

    Raises:
        EnvError: a name that is taken, a ``build`` that cannot be called, an unknown field or a default out of range.

    >>> import gymnasium
    >>> def long_pole(max_episode_frames):
    ...     return gymnasium.make("CartPole-v1", max_episode_steps=max_episode_frames)
    >>> register_env("long_pole", long_pole, max_episode_frames=5_000)
    >>> resolve(EnvSettings("long_pole")).max_episode_frames
    5000
    """
    if not isinstance(name, str) or not name or name in _FAMILIES:
        raise EnvError(f"name must be one that no environment has yet, got {name!r}.")
    if not callable(build):
        raise EnvError(f"build must be a function that returns an environment, got {build!r}.")
    fitting = {field.name for field in fields(EnvSettings)} - {"name", "game"}
    unknown = sorted(set(defaults) - fitting)
    if unknown:
        raise EnvError(unknown_name("defaults", unknown[0], fitting))
    options = {"max_episode_frames": max_episode_frames, **defaults}
    for option, value in options.items():
        _check_value(option, value)
    _FAMILIES[name], _REGISTERED[name] = options, (build, vectorized)
    if games:
        _WITH_GAMES.add(name)


def registered(name: str) -> tuple[Builder, bool] | None:
    """The builder of a user's environment of that name, and whether it is vectorized."""
    return _REGISTERED.get(name)


def resolve(settings: EnvSettings) -> EnvSettings:
    """The same settings with every ``None`` that applies replaced by the family's default.

    Raises:
        EnvError: unknown ``name``, missing or superfluous ``game``, a field that does not apply to
            the family, or a value of the wrong type or range.
    """
    if not isinstance(settings, EnvSettings):
        raise EnvError(f"settings must be EnvSettings, such as EnvSettings('cartpole'), got {settings!r}.")
    if settings.name not in _FAMILIES:
        raise EnvError(unknown_name("name", settings.name, _FAMILIES))
    _check_game(settings)
    defaults = _FAMILIES[settings.name]
    values: dict[str, Any] = {"name": settings.name, "game": settings.game}
    for field in fields(settings):
        if field.name in values:
            continue
        value = getattr(settings, field.name)
        if value is None:
            values[field.name] = defaults.get(field.name, _NEUTRAL.get(field.name))
            continue
        _check_value(field.name, value)
        if field.name not in defaults and value != _NEUTRAL.get(field.name):
            raise EnvError(f"{field.name} must be unset for {settings.name!r}, got {value!r}.")
        values[field.name] = value
    return EnvSettings(**values)


def family_options(resolved: EnvSettings) -> dict[str, Any]:
    """The fields that apply to the family, for its builder's keyword arguments."""
    names = [*_FAMILIES[resolved.name], *(["game"] if resolved.name in _WITH_GAMES else [])]
    return {name: getattr(resolved, name) for name in names}


def frames_per_step(settings: EnvSettings) -> int:
    """Environment frames that one step of the built environment consumes: 4 for default Atari."""
    frame_skip = resolve(settings).frame_skip
    assert frame_skip is not None  # resolve() fills it for every family
    return frame_skip


def frame_stack(settings: EnvSettings) -> int:
    """Images stacked in one observation of the built environment: 4 for default Atari, 1 where none are."""
    stack = resolve(settings).frame_stack
    assert stack is not None  # resolve() fills it for every family
    return stack


def unknown_name(argument: str, got: object, valid: Iterable[str]) -> str:
    """One sentence that names the argument, what came, the nearest valid name and all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(got).lower(), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{argument} must be one of {', '.join(names)}, got {got!r}.{hint}"


def _check_game(settings: EnvSettings) -> None:
    if not isinstance(settings.game, str):
        raise EnvError(f"game must be a string, got {settings.game!r}.")
    if settings.name in _WITH_GAMES and not settings.game:
        raise EnvError(f"game must be the name of the {settings.name} game, got an empty string.")
    if settings.name not in _WITH_GAMES and settings.game:
        raise EnvError(f"game must be empty for {settings.name!r}, got {settings.game!r}.")


def _check_value(name: str, value: object) -> None:
    if name in _AT_LEAST:
        if isinstance(value, bool) or not isinstance(value, int) or value < _AT_LEAST[name]:
            raise EnvError(f"{name} must be an int >= {_AT_LEAST[name]}, got {value!r}.")
    elif name == "sticky_actions":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= 1:  # type: ignore[operator]
            raise EnvError(f"{name} must be a probability in [0, 1], got {value!r}.")
    elif not isinstance(value, bool):
        raise EnvError(f"{name} must be True or False, got {value!r}.")
