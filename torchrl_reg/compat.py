"""Every private name of TorchRL, tensordict and torch that this package uses, each with the reason.

Nothing else here may import one. ``tests/house/test_compat.py`` fails by name for whichever of them a newer
release moves, so that an upgrade starts with a list and not with a traceback from inside a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams

# vmap and grad: one that is batched cannot be written into one that is not.
from torch._C._functorch import is_functorch_wrapped_tensor as is_transformed

# Tensors as one vector in one call, where a loop of views takes as long as a step of the optimizer.
from torch._utils import _flatten_dense_tensors as flatten_tensors

# A batch-statistics layer of any rank; torch has no public common base.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

# Hooks on every module: where there are some, a layer is called and not just run.
from torch.nn.modules.module import _has_any_global_hook as has_global_module_hooks

# Hooks on every optimizer: where there are some, a step goes through optimizer.step().
from torch.optim.optimizer import _global_optimizer_post_hooks as global_post_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks as global_pre_hooks

# Sees every operation of a thread, random ones among them.
from torch.utils._python_dispatch import TorchDispatchMode

# Over dicts, lists and tuples of tensors, as checkpoints nest them; torch.utils has no public form of it.
from torch.utils._pytree import tree_map, tree_map_only

# "categorical", "one_hot", ... from a spec or a string: a loss must read stored actions as TorchRL's losses do.
from torchrl.data.utils import _find_action_space as find_action_space

# The hook that warns where a target network has no updater.
from torchrl.objectives.common import _updater_check_forward_prehook as updater_warning

# The registry behind make_value_estimator("name"): to refuse the estimators of another backup by name.
from torchrl.objectives.utils import _VALUE_ESTIMATOR_REGISTRY as VALUE_ESTIMATOR_REGISTRY

# "td0" -> ValueEstimators.TD0, so that our estimators answer to TorchRL's names.
from torchrl.objectives.utils import _coerce_value_type as coerce_value_type

__all__ = [
    "BatchNorm",
    "LOSS_MODULE_NAMES",
    "TARGET_UPDATER_NAMES",
    "TENSORDICT_MODULE_NAMES",
    "TRANSFORM_NAMES",
    "TorchDispatchMode",
    "VALUE_ESTIMATOR_REGISTRY",
    "backward",
    "call_hooks",
    "coerce_value_type",
    "compile_trace",
    "entries_of",
    "entry",
    "find_action_space",
    "flat_entries",
    "flatten_tensors",
    "forget_updater_warning",
    "has_global_module_hooks",
    "has_step_hooks",
    "held_tensordict",
    "is_listened_to",
    "is_transformed",
    "own_compiled_call",
    "shallow_copy",
    "trace",
    "tree_map",
    "tree_map_only",
    "unchecked_tensordict",
    "updater_warning",
]

#: Private methods that a subclass of LossModule has to call or override.
LOSS_MODULE_NAMES = {
    "_AcceptedKeys": "declares what set_keys accepts",
    "_forward_value_estimator_keys": "overridden: set_keys also reaches the estimator's action and action_value",
    "_default_device": "where coefficients are made",
    "_reduce_loss": "reduction, masks and priority weights as in every loss of TorchRL",
    "_loss_mask_keys": "rows outside the mask must not send NaN through the target",
    "_expand_loss_mask": "the same mask in the shape of a row's loss",
    "_has_update_associated": "whether each target network has an updater",
    "_clear_weakrefs": "called at the end of forward, for torch.compile",
    "_apply": "overridden: bound networks follow a cast",
}
#: Of TargetNetUpdater: which parameters belong together.
TARGET_UPDATER_NAMES = {
    "_source_names": "names of the online parameters of each network",
    "_target_names": "names of the target parameters of each network",
}
#: Of an instance of TensorDictModule: whether calling its inner module alone is the same computation.
TENSORDICT_MODULE_NAMES = {
    "_kwargs": "out-to-argument names, if the module is called with keywords",
    "method": "the method it calls, if not forward",
}
#: Of TensorStorage: what writing rows leaves behind, for a storage that writes them itself.
STORAGE_NAMES = {
    "_storage": "the rows",
    "_set_last_cursor": "where the last rows went",
    "_get_new_len": "how many rows there are",
    "_bump_mutation_revision": "that the rows are others now",
}
#: Of Transform: what ReplayBuffer.extend calls.
TRANSFORM_NAMES = {"_inv_call": "overridden: n-step windows are made where data enter a buffer"}


def held_tensordict(params: TensorDictBase) -> Any:
    """The tensordict that ``params`` wraps: ``tensordict.to_module(loss)`` replaces it, and so is noticed."""
    return params._param_td if isinstance(params, TensorDictParams) else params


def entry(tensordict: TensorDictBase, key: NestedKey) -> Any:
    """``tensordict.get(key, None)`` of a tensor, from the dict a TensorDict keeps: a tenth of the cost, ten a loss."""
    found: Any = tensordict
    for part in (key,) if isinstance(key, str) else key:
        if type(found) is not TensorDict or not isinstance(part, str):
            return tensordict.get(key, None)
        found = found._tensordict.get(part)
        if found is None:
            return None
    return found


def unchecked_tensordict(entries: dict[Any, Any], batch_size: Sequence[int] = (), device: Any = None) -> TensorDict:
    """``TensorDict(entries, batch_size)`` without its checks."""
    made = TensorDict._new_unsafe(entries, torch.Size(batch_size))
    # As an argument, the device would be checked for being Apple's on every call, at half of the cost.
    made._device = device if device is None else torch.device(device)
    return made


def entries_of(tensordict: TensorDictBase) -> dict[Any, Any]:
    """The dict in which a TensorDict keeps its entries; of any other kind a copy of them."""
    return tensordict._tensordict if type(tensordict) is TensorDict else dict(tensordict.items())


def flat_entries(tensordict: TensorDictBase) -> tuple[list[tuple[str, ...]], list[torch.Tensor]]:
    """The paths and the tensors of all entries, nested ones too."""
    names, tensors = [], []
    for name, value in entries_of(tensordict).items():
        if isinstance(value, TensorDictBase):
            inner, found = flat_entries(value)
            names += [(name, *path) for path in inner]
            tensors += found
        else:
            names.append((name,))
            tensors.append(value)
    return names, tensors


def trace(function: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> torch.fx.GraphModule:
    """The operations of ``function(*tensors)``, which runs once, gradients among them."""
    from torch.fx.experimental.proxy_tensor import make_fx  # a second of import

    try:
        return make_fx(function)(*tensors)
    finally:
        for tensor in tensors:  # left behind in what was written to, which could then not be copied or saved
            vars(tensor).pop("proxy", None)


def compile_trace(graph: torch.fx.GraphModule, tensors: Sequence[torch.Tensor]) -> Callable[..., Any]:
    """``graph`` as code of inductor, without guards; random numbers are those of eager PyTorch.

    Compiled code is kept for the next process in ``TORCHINDUCTOR_CACHE_DIR``.
    """
    from torch._inductor import compile  # seconds of import

    return compile(graph, [*tensors], options={"fallback_random": True})


def shallow_copy(tensordict: TensorDictBase) -> TensorDictBase:
    """``tensordict.copy()``: the same tensors under entries, nested ones too, that may be set; a tenth of the cost."""
    if type(tensordict) is not TensorDict:
        return tensordict.copy()
    entries = tensordict._tensordict.items()
    copied = {key: shallow_copy(value) if isinstance(value, TensorDictBase) else value for key, value in entries}
    made = unchecked_tensordict(copied, tensordict.batch_size, tensordict.device)
    made.names = tensordict.names if tensordict._has_names() else None
    return made


def backward(total: torch.Tensor) -> None:
    """``total.backward()`` of a scalar, straight to the engine: the checks on the way take some 30 us."""
    one = (torch.ones_like(total),)
    keep_graph, create_graph, inputs = False, False, ()
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward((total,), one, keep_graph, create_graph, inputs, allow_unreachable=True, accumulate_grad=True)


def forget_updater_warning(loss: Any) -> None:
    """Remove the hook that warns of a target network without updater, once each has one: it slows down every call."""
    hooks = loss._forward_pre_hooks
    if all(loss._has_update_associated.values()):
        for key in [key for key, hook in hooks.items() if hook is updater_warning]:
            del hooks[key]


def call_hooks(module: torch.nn.Module) -> tuple[Any, ...]:
    """The dicts, kept for the life of ``module``, of the hooks that a call of it runs besides its ``forward``."""
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


#: The compiled call of a module after ``module.compile()``.
own_compiled_call = attrgetter("_compiled_call_impl")


def is_listened_to(module: torch.nn.Module) -> bool:
    """True if calling ``module`` does more than its ``forward``: hooks, or a compiled form."""
    return any(call_hooks(module)) or own_compiled_call(module) is not None


def has_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """True if ``optimizer.step()`` has a hook, or a scheduler that counts its calls."""
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(own or global_pre_hooks or global_post_hooks or "step" in vars(optimizer))
