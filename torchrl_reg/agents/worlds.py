"""The environment that a saved policy was trained in."""

from __future__ import annotations

from torchrl.envs import EnvBase

from torchrl_reg.agents.errors import AgentError
from torchrl_reg.agents.saved import SavedPolicy
from torchrl_reg.envs import EnvError, EnvSettings, make_env
from torchrl_reg.modules.rebuilding import Spaces


def env_settings(saved: SavedPolicy) -> EnvSettings:
    """The settings of the environment that ``saved`` was evaluated in.

    Raises:
        AgentError: it does not say.
    """
    if "env" not in saved.facts:
        raise AgentError(f"{saved.path} must say which environment its policy acts in, got none.")
    try:
        settings = EnvSettings(**saved.facts["env"])
        hash(settings.name)  # a list or an object in its place is none
        return settings
    except TypeError:
        raise AgentError(f"{saved.path} must name an environment of torchrl_reg, got {saved.facts['env']}.") from None


def env_of(saved: SavedPolicy, num_envs: int) -> EnvBase:
    """``num_envs`` of these environments on the CPU.

    Raises:
        AgentError: it is not known, cannot be built on this machine, or is not what the policy was built for.
    """
    settings = env_settings(saved)
    try:
        env = make_env(settings, num_envs)
    except EnvError as error:
        raise AgentError(str(error)) from None
    there, here = (_shapes(spaces) for spaces in (Spaces.of(env), saved.spaces))
    if there != here:
        raise AgentError(f"{saved.path} must hold a policy for {settings.name}, which has {there}, got one for {here}.")
    return env


def _shapes(spaces: Spaces) -> str:
    shape, _ = spaces.observations.get("observation", ([], ""))
    actions = f"{len(spaces.low)} action dimensions" if spaces.num_actions is None else f"{spaces.num_actions} actions"
    return f"observations {list(shape)} and {actions}"
