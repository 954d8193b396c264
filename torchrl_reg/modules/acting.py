"""Acting on a dict of tensors: a module that can has ``plain(state)``; anything else is given a TensorDict.

Shapes: ``N`` states, the first dimension of every entry.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn

from torchrl_reg.compat import is_listened_to
from torchrl_reg.regularizers.policies import Recorded

State = dict[Any, Tensor]
#: Reads its inputs ``[N, ...]`` from a state and writes its outputs there.
PlainPolicy = Callable[[State], None]


def plain_policy(policy: Callable[..., Any]) -> PlainPolicy:
    """``policy`` as a function of a dict of tensors, under the exploration type of the call.

    That is its method ``plain(state)``, if it has one, in the class of its ``forward`` or below, and if no module in it
    has hooks or was compiled; else ``policy`` is given a TensorDict of the state.

    >>> import torch
    >>> from torchrl.data import Categorical
    >>> from torchrl_reg.modules import QActor
    >>> state = {"observation": torch.randn(8, 4)}
    >>> plain_policy(QActor(nn.Linear(4, 3), spec=Categorical(3)))(state)
    >>> list(state)
    ['observation', 'action_value', 'action', 'chosen_action_value']
    """
    hooked = isinstance(policy, nn.Module) and any(map(is_listened_to, policy.modules()))
    if has_plain(type(policy)) and not hooked:  # type: ignore[arg-type]
        return policy.plain  # type: ignore[attr-defined]
    return partial(act_through_tensordict, policy)


def act(policy: Any, state: State) -> None:
    """Calls ``policy`` on ``state``, by its ``plain`` where it has one; hooks on ``policy`` are not called."""
    if has_plain(type(policy)):  # type: ignore[arg-type]
        policy.plain(state)
    else:
        act_through_tensordict(policy, state)


@cache
def has_plain(kind: type) -> bool:
    """True if ``plain`` belongs to the current ``forward`` and not to one that a subclass has replaced."""
    levels = (vars(level).keys() for level in kind.__mro__)
    return next(("plain" in own for own in levels if {"plain", "forward"} & own), False)


def act_through_tensordict(policy: Callable[..., Any], state: State) -> None:
    """Calls ``policy`` on a TensorDict of ``state``, and writes there what it returns."""
    first = next(iter(state.values()))
    given = TensorDict(dict(state), [len(first)], device=first.device)
    for key, value in policy(given).items(include_nested=True, leaves_only=True):
        state[key] = value


class ActorSequential(Recorded, TensorDictSequential):
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

    def __init__(self, *modules: Any, **kwargs: Any) -> None:
        super().__init__(*modules, **kwargs)
        self._all_plain = all(has_plain(type(part)) for part in self.module)  # type: ignore[arg-type]

    def plain(self, state: State) -> None:
        """:meth:`forward` on a dict of tensors."""
        if self._select_before_return or self.partial_tolerant:
            act_through_tensordict(self, state)
            return
        for part in self._modules["module"]._modules.values():
            if self._all_plain:
                part.plain(state)
            else:
                act(part, state)
