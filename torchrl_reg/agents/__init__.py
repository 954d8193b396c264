"""Trained agents, ready to use: saved, loaded elsewhere, evaluated, shown, exported.

Needs torch, torchrl, gymnasium and safetensors: no Hydra, no recipe, and nothing here unpickles anything.
"""

from torchrl_reg.agents.errors import AgentError
from torchrl_reg.agents.saved import SavedPolicy, load_policy, read_policy, save_policy

__all__ = ["AgentError", "SavedPolicy", "load_policy", "read_policy", "save_policy"]
