"""One or several critics Q(s, a) as one module.

Shapes: ``*B`` batch, ``C`` critics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn
from torchrl.modules import ValueOperator


class CriticEnsemble(TensorDictModuleBase):
    """The values of all critics, each of which keeps its own parameters; writes ``"action_values"`` ``[C, *B]``.

    Args:
        critics: TensorDict modules that write Q(s, a) ``[*B, 1]`` in reward units, such as ``ValueOperator(net,
            in_keys=["observation", "action"])``; their last out-key counts.

    Raises:
        ValueError: no critic, or one that is no TensorDict module.

    >>> from tensordict import TensorDict
    >>> from torchrl.modules import MLP, ValueOperator
    >>> critics = [ValueOperator(MLP(in_features=6, out_features=1), in_keys=["observation", "action"]) for _ in "ab"]
    >>> data = TensorDict({"observation": torch.randn(8, 4), "action": torch.randn(8, 2)}, [8])
    >>> CriticEnsemble(critics).values(data).shape
    torch.Size([2, 8])
    """

    def __init__(self, critics: Sequence[Any]) -> None:
        super().__init__()
        for critic in critics:
            if not isinstance(critic, TensorDictModuleBase):
                raise ValueError(
                    "qvalue_network must be TensorDict modules that write Q(s, a) [*B, 1], such as ValueOperators, got "
                    f"{type(critic).__name__}."
                )
        if not critics:
            raise ValueError("qvalue_network must be one critic or a list of them, got an empty list.")
        self.critics = nn.ModuleList(critics)
        self.in_keys: list[NestedKey] = list(dict.fromkeys(key for critic in critics for key in critic.in_keys))
        self.out_keys = ["action_values"]

    def values(self, tensordict: TensorDictBase) -> Tensor:
        """Q(s, a) of every critic ``[C, *B]``; ``tensordict`` is left as it was."""
        values = []
        for critic in self.critics:
            made: Any = critic(tensordict.select(*critic.in_keys))  # type: ignore[misc]
            values.append(made.get(critic.out_keys[-1]).squeeze(-1))  # type: ignore[index]
        return torch.stack(values)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        values = self.values(tensordict)
        return tensordict.set("action_values", values.movedim(0, -1))


class AveragedCritics(TensorDictModuleBase):
    r"""The critics of several tasks as one of their mean reward: :math:`\frac1n \sum_i \min_c Q_{i, c}`.

    Writes ``"state_action_value"`` ``[*B, 1]``, in reward units. How far the softmax of an average of soft-optimal
    values is from the optimum is bounded in :func:`torchrl_reg.tabular.soft_composition`.

    Source: Haarnoja et al. 2018 (Composable deep reinforcement learning for robotic manipulation).

    Args:
        critics: of each task, as of :class:`CriticEnsemble`.

    >>> from tensordict import TensorDict
    >>> from torchrl.modules import MLP, ValueOperator
    >>> critics = [ValueOperator(MLP(in_features=6, out_features=1), in_keys=["observation", "action"]) for _ in "abc"]
    >>> data = TensorDict({"observation": torch.randn(8, 4), "action": torch.randn(8, 2)}, [8])
    >>> AveragedCritics([critics[:2], critics[2:]])(data)["state_action_value"].shape
    torch.Size([8, 1])
    """

    def __init__(self, critics: Sequence[Sequence[Any]]) -> None:
        super().__init__()
        self.tasks = nn.ModuleList(CriticEnsemble(each) for each in critics)
        self.in_keys = list(dict.fromkeys(key for task in self.tasks for key in task.in_keys))  # type: ignore[union-attr]
        self.out_keys = ["state_action_value"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        values = [task.values(tensordict).amin(0) for task in self.tasks]  # type: ignore[operator]
        return tensordict.set("state_action_value", torch.stack(values).mean(0).unsqueeze(-1))


def is_plain(module: Any) -> bool:
    """True if calling the network on the in-keys, in order, is all the TensorDict module around it does.

    It costs 160 us a call.
    """
    if type(module) not in (TensorDictModule, ValueOperator) or module._forward_hooks or module._forward_pre_hooks:
        return False
    return not getattr(module, "_kwargs", None) and getattr(module, "method", None) in (None, "forward")
