"""Networks, distributions, actors and exploration modules."""

from torchrl_reg.modules.action_prior import PriorEGreedyModule, PriorUpdate
from torchrl_reg.modules.autoregressive_actor import AutoregressiveMulticategorical, AutoregressiveMulticategoricalActor
from torchrl_reg.modules.box_actor import ActionBins
from torchrl_reg.modules.critic_ensemble import AveragedCritics, CriticEnsemble
from torchrl_reg.modules.flow_actor import FlowActor, FlowDistribution
from torchrl_reg.modules.gaussian_actor import gaussian_actor
from torchrl_reg.modules.implicit_quantile import ImplicitQuantileNetwork, QuantileQActor
from torchrl_reg.modules.latent_action import LatentActionTransform, stacked_log_prob
from torchrl_reg.modules.layers import Dueling, NoisyLinear
from torchrl_reg.modules.multicategorical import Multicategorical
from torchrl_reg.modules.multicategorical_actor import MulticategoricalActor, SingleDimensionActor
from torchrl_reg.modules.n_step import NStepTransform
from torchrl_reg.modules.networks import NetSettings, num_actions, prior_network, q_network, quantile_network
from torchrl_reg.modules.policies import (
    PolicySettings,
    bin_value_network,
    policy,
    state_action_value_network,
    state_value_network,
)
from torchrl_reg.modules.q_actors import BoltzmannQActor, CategoricalQActor, FixedQuantileQActor
from torchrl_reg.modules.sampler_actor import StochasticSamplerActor
from torchrl_reg.modules.torsos import ImpalaCNN, MinAtarCNN, NatureCNN
from torchrl_reg.regularizers.action_prior import ActionPrior

__all__ = [
    "ActionBins",
    "ActionPrior",
    "AutoregressiveMulticategorical",
    "AutoregressiveMulticategoricalActor",
    "AveragedCritics",
    "BoltzmannQActor",
    "CategoricalQActor",
    "FixedQuantileQActor",
    "CriticEnsemble",
    "Dueling",
    "FlowActor",
    "FlowDistribution",
    "ImpalaCNN",
    "ImplicitQuantileNetwork",
    "LatentActionTransform",
    "MinAtarCNN",
    "Multicategorical",
    "MulticategoricalActor",
    "NStepTransform",
    "NatureCNN",
    "NetSettings",
    "NoisyLinear",
    "PolicySettings",
    "PriorEGreedyModule",
    "PriorUpdate",
    "QuantileQActor",
    "SingleDimensionActor",
    "StochasticSamplerActor",
    "bin_value_network",
    "gaussian_actor",
    "num_actions",
    "policy",
    "prior_network",
    "q_network",
    "quantile_network",
    "stacked_log_prob",
    "state_action_value_network",
    "state_value_network",
]
