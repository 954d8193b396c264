"""Finite MDPs as batches and tables as networks: one-hot states, one value per state and action, float64."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.tabular import TabularMDP


def all_transitions(mdp: TabularMDP) -> TensorDict:
    """Every (s, a, s') of positive probability, with that probability as its weight; terminal states act no more."""
    s, a, following = (mdp.P * (~mdp.terminal).double()[:, None, None]).nonzero(as_tuple=True)
    eye, stop = torch.eye(mdp.num_states, dtype=torch.float64), mdp.terminal[following].unsqueeze(-1)
    ends = {"reward": mdp.r[s, a].unsqueeze(-1), "done": stop, "terminated": stop}
    root = {"observation": eye[s], "action": a, "priority_weight": mdp.P[s, a, following]}
    return TensorDict({**root, "next": {"observation": eye[following], **ends}}, [len(s)])


def table(q: Tensor) -> QValueActor:
    """The values ``q [S, A]`` as a network."""
    net = nn.Linear(*q.shape, bias=False, dtype=torch.float64)
    net.weight.data.copy_(q.T)
    return QValueActor(net, spec=Categorical(q.shape[1]))
