"""The environment that a saved policy was trained in."""

from __future__ import annotations

from torchrl.envs import EnvBase

from torchrl_reg.agents.errors import AgentError
from torchrl_reg.agents.saved import SavedPolicy
from torchrl_reg.envs import EnvError, EnvSettings, make_env


def env_settings(saved: SavedPolicy) -> EnvSettings:
    """The settings of the environment that ``saved`` was evaluated in.

    Raises:
        AgentError: it does not say.
    """
    if "env" not in saved.facts:
        raise AgentError(f"{saved.path} must say which environment its policy acts in, got none.")
    try:
        return EnvSettings(**saved.facts["env"])
    except TypeError:
        raise AgentError(f"{saved.path} must name an environment of torchrl_reg, got {saved.facts['env']}.") from None


def env_of(saved: SavedPolicy, num_envs: int) -> EnvBase:
    """``num_envs`` of these environments on the CPU.

    Raises:
        AgentError: it is not known, or cannot be built on this machine; the message says what is missing.
    """
    try:
        return make_env(env_settings(saved), num_envs)
    except EnvError as error:
        raise AgentError(str(error)) from None
