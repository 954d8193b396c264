"""Networks, distributions, actors and exploration modules."""

from torchrl_reg.modules.acting import ActorSequential
from torchrl_reg.modules.box_actor import ActionBins, gaussian_actor
from torchrl_reg.modules.ensembles import AveragedCritics, CriticEnsemble
from torchrl_reg.modules.flow import FlowActor, FlowDistribution, LatentActionTransform, stacked_log_prob
from torchrl_reg.modules.layers import Dueling, NoisyLinear
from torchrl_reg.modules.multicategorical import (
    AutoregressiveMulticategorical,
    AutoregressiveMulticategoricalActor,
    Multicategorical,
    MulticategoricalActor,
    SingleDimensionActor,
)
from torchrl_reg.modules.n_step import NStepTransform
from torchrl_reg.modules.networks import (
    ImpalaCNN,
    MinAtarCNN,
    NatureCNN,
    NetSettings,
    num_actions,
    prior_network,
    q_network,
    quantile_network,
)
from torchrl_reg.modules.policies import (
    PolicySettings,
    bin_value_network,
    policy,
    state_action_value_network,
    state_value_network,
)
from torchrl_reg.modules.prior import PriorEGreedyModule, PriorUpdate
from torchrl_reg.modules.q_actors import (
    BoltzmannQActor,
    CategoricalQActor,
    EpsilonGreedyModule,
    FixedQuantileQActor,
    ImplicitQuantileNetwork,
    QActor,
    QuantileQActor,
)
from torchrl_reg.modules.sampler_actor import StochasticSamplerActor
from torchrl_reg.regularizers.prior import ActionPrior

__all__ = [
    "ActionBins",
    "ActionPrior",
    "ActorSequential",
    "AutoregressiveMulticategorical",
    "AutoregressiveMulticategoricalActor",
    "AveragedCritics",
    "BoltzmannQActor",
    "CategoricalQActor",
    "FixedQuantileQActor",
    "CriticEnsemble",
    "Dueling",
    "EpsilonGreedyModule",
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
    "QActor",
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
