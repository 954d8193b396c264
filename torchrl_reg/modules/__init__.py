"""Networks, distributions, actors and exploration modules."""

from torchrl_reg.modules.boltzmann import BoltzmannQActor
from torchrl_reg.modules.implicit_quantile import ImplicitQuantileNetwork
from torchrl_reg.modules.quantile_actor import QuantileQActor

__all__ = ["BoltzmannQActor", "ImplicitQuantileNetwork", "QuantileQActor"]
