"""Trained agents as things one can use: saved, loaded elsewhere, evaluated, shown, exported.

Needs torch, torchrl and gymnasium alone: no Hydra, no recipe, and nothing here unpickles anything.
"""

from torchrl_reg.agents.errors import AgentError
from torchrl_reg.agents.saved import SavedPolicy, load_policy, read_policy, save_policy

__all__ = ["AgentError", "SavedPolicy", "load_policy", "read_policy", "save_policy"]
