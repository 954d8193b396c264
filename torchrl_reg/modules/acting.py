"""Acting on a dict of tensors: by a module's method ``plain(state)`` if it has one, else through a TensorDict.

Shapes: ``N`` states, the first dimension of every entry.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn

from torchrl_reg.compat import has_hooks
from torchrl_reg.regularizers.policies import SavedArguments

State = dict[Any, Tensor]
#: Reads its inputs ``[N, ...]`` from a state and writes its outputs there.
PlainPolicy = Callable[[State], None]


def plain_policy(policy: Callable[..., Any]) -> PlainPolicy:
    """``policy`` as a function of a dict of tensors, under the exploration type of the call.

    That is its method ``plain(state)`` if its class defines one together with ``forward`` or after it, and if none of
    its modules has hooks or was compiled; else ``policy`` is called on a TensorDict of the state.

    >>> import torch
    >>> from torchrl.data import Categorical
    >>> from torchrl_reg.modules import QActor
    >>> state = {"observation": torch.randn(8, 4)}
    >>> plain_policy(QActor(nn.Linear(4, 3), spec=Categorical(3)))(state)
    >>> list(state)
    ['observation', 'action_value', 'action', 'chosen_action_value']
    """
    hooked = isinstance(policy, nn.Module) and any(map(has_hooks, policy.modules()))
    if has_plain(type(policy)) and not hooked:  # type: ignore[arg-type]
        return policy.plain  # type: ignore[attr-defined]
    return partial(act_through_tensordict, policy)


def act(policy: Any, state: State) -> None:
    """Calls ``policy`` on ``state``, by ``plain`` if it has that; hooks on ``policy`` are not called."""
    if has_plain(type(policy)):  # type: ignore[arg-type]
        policy.plain(state)
    else:
        act_through_tensordict(policy, state)


@cache
def has_plain(kind: type) -> bool:
    """True if the class has ``plain`` and no subclass overrides ``forward`` without it."""
    levels = (vars(level).keys() for level in kind.__mro__)
    return next(("plain" in own for own in levels if {"plain", "forward"} & own), False)


def act_through_tensordict(policy: Callable[..., Any], state: State) -> None:
    """Calls ``policy`` on a TensorDict of ``state`` and writes its outputs to ``state``."""
    first = next(iter(state.values()))
    tensordict = TensorDict(dict(state), [len(first)], device=first.device)
    for key, value in policy(tensordict).items(include_nested=True, leaves_only=True):
        state[key] = value


class ActorSequential(SavedArguments, TensorDictSequential):
    """A :class:`~tensordict.nn.TensorDictSequential` that also acts on a dict of tensors, one module after the other.

    >>> import torch
    >>> from torchrl.data import Categorical
    >>> from torchrl_reg.modules import EpsilonGreedyModule, QActor
    >>> spec = Categorical(3)
    >>> explorer = ActorSequential(QActor(nn.Linear(4, 3), spec=spec), EpsilonGreedyModule(spec, eps_init=0.1))
    >>> state = {"observation": torch.randn(8, 4)}
    >>> explorer.plain(state)
    >>> state["action"].shape
    torch.Size([8])
    """

    def plain(self, state: State) -> None:
        """:meth:`forward` on a dict of tensors."""
        if self._select_before_return or self.partial_tolerant:
            act_through_tensordict(self, state)
            return
        for part in self._modules["module"]._modules.values():
            act(part, state)
