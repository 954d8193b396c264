"""Regularized reinforcement learning on TorchRL.

Three ways in: compose the losses of :mod:`torchrl_reg.objectives` in your own TorchRL script, run
``torchrl-reg run m_iqn``, or sweep a recipe on a cluster. What came out of a run is an actor again:
``load_policy("results/m_iqn/cartpole/default/seed=0")``, see :func:`torchrl_reg.lab.agents.load_policy`.

The four slots of a method: :mod:`torchrl_reg.regularizers`, the shapings of :mod:`torchrl_reg.objectives`,
:mod:`torchrl_reg.objectives.heads` and :mod:`torchrl_reg.objectives.value`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrl_reg.lab.agents import load_policy as load_policy

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on first access: reading tables needs no torch.
    if name == "load_policy":
        from torchrl_reg.lab.agents import load_policy

        return load_policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
