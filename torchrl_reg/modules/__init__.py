"""Networks, distributions, actors and exploration modules."""

from torchrl_reg.modules.boltzmann import BoltzmannQActor
from torchrl_reg.modules.implicit_quantile import ImplicitQuantileNetwork
from torchrl_reg.modules.networks import NetSettings, num_actions, q_network, quantile_network
from torchrl_reg.modules.quantile_actor import QuantileQActor
from torchrl_reg.modules.torsos import MinAtarCNN, NatureCNN

__all__ = [
    "BoltzmannQActor",
    "ImplicitQuantileNetwork",
    "MinAtarCNN",
    "NatureCNN",
    "NetSettings",
    "QuantileQActor",
    "num_actions",
    "q_network",
    "quantile_network",
]
