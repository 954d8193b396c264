"""Every private name of torch, tensordict, TorchRL, gymnasium and Hydra that this package uses, each with the reason.

No other file may import one (but for Hydra's, in ``lab/cli``), and the attributes that others read, call or override
stand in ``ATTRIBUTES``.
``tests/house/test_compat.py`` fails for each name that a newer release moves, so that an upgrade starts with a list and
not with a traceback from inside a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams

# True under vmap and grad: a batched tensor cannot be written into one that is not batched.
from torch._C._functorch import is_functorch_wrapped_tensor as is_transformed

# Concatenates tensors in one call; a loop of views takes as long as a step of the optimizer.
from torch._utils import _flatten_dense_tensors as flatten_tensors

# A batch-statistics layer of any rank; torch has no public common base.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

# Hooks on every module: with any, a layer must be called, not only its forward.
from torch.nn.modules.module import _has_any_global_hook as has_global_module_hooks

# Hooks on every optimizer: with any, a step must go through optimizer.step().
from torch.optim.optimizer import _global_optimizer_post_hooks as global_post_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks as global_pre_hooks

# Intercepts every operation of a thread, random ones included.
from torch.utils._python_dispatch import TorchDispatchMode

# Over dicts, lists and tuples of tensors, as checkpoints nest them; torch.utils has no public form of it.
from torch.utils._pytree import tree_map, tree_map_only

# "categorical", "one_hot", ... from a spec or a string: a loss must read stored actions as TorchRL's losses do.
from torchrl.data.utils import _find_action_space as find_action_space

# The hook that warns if a target network has no updater.
from torchrl.objectives.common import _updater_check_forward_prehook as updater_warning

# The registry of make_value_estimator("name"), to reject the estimators of another backup by name.
from torchrl.objectives.utils import _VALUE_ESTIMATOR_REGISTRY as VALUE_ESTIMATOR_REGISTRY

# "td0" -> ValueEstimators.TD0, so that TorchRL's names select our estimators.
from torchrl.objectives.utils import _coerce_value_type as coerce_value_type

__all__ = [
    "ATTRIBUTES",
    "BatchNorm",
    "TorchDispatchMode",
    "VALUE_ESTIMATOR_REGISTRY",
    "backward",
    "call_hooks",
    "coerce_value_type",
    "compile_trace",
    "entries_of",
    "fast_get",
    "find_action_space",
    "flat_entries",
    "flatten_tensors",
    "remove_updater_warning",
    "has_global_module_hooks",
    "has_step_hooks",
    "wrapped_tensordict",
    "has_hooks",
    "is_transformed",
    "compiled_call",
    "shallow_copy",
    "trace",
    "tree_map",
    "tree_map_only",
    "unchecked_tensordict",
    "updater_warning",
]

#: Class or module -> its private attributes that are used here, each with the reason.
ATTRIBUTES = {
    "torch": {
        "_foreach_add_": "one call for all tensors of a step; a loop takes as long as the step",
        "_foreach_copy_": "the same",
        "_foreach_lerp_": "the same",
        "_fused_adam_": "the kernel of Adam(fused=True), without the checks of Optimizer.step",
        "_fused_adamw_": "the same of AdamW",
    },
    "torch.Tensor": {"_version": "how often it was written to: losses are stacked again if a coefficient was assigned"},
    "torch.autograd.Variable": {"_execution_engine": "backward without its checks"},
    "torch.ops.aten": {
        "_softmax": "what softmax is under a dispatch mode, to find its inputs in somebody's loss",
        "_log_softmax": "the same of log_softmax",
    },
    "torch._ops.OpOverload": {"_schema": "whether a random operation has an overload with a generator"},
    "torch.nn.Module": {
        "_modules": "submodules without the slow Module.__getattr__",
        "_parameters": "parameters, likewise",
        "_buffers": "buffers, likewise; set under their name when a cast must not shorten them",
        "_apply": "overridden: bound networks and exact buffers follow a cast",
        "_load_from_state_dict": "overridden: a loaded coefficient notes if it is 0",
        "_forward_hooks": "hooks, with which a module must be called, not only its forward",
        "_forward_pre_hooks": "the same; and the warning of a missing updater is removed here",
        "_backward_hooks": "the same",
        "_backward_pre_hooks": "the same",
        "_compiled_call_impl": "the same of module.compile()",
    },
    "torch.optim.Optimizer": {
        "_optimizer_step_pre_hooks": "hooks, with which a step must go through optimizer.step()",
        "_optimizer_step_post_hooks": "the same",
    },
    "torch.distributions.Distribution": {
        "_batch_shape": "batch_shape without a property, in every step of an actor",
        "_event_shape": "event_shape, likewise",
    },
    "tensordict.TensorDict": {
        "_tensordict": "the dict inside: a tenth of the cost of get and items",
        "_new_unsafe": "a constructor without checks",
        "_device": "set after it, where a check for Apple devices takes half of the time",
        "_has_names": "a copy keeps names of dimensions, which few have",
    },
    "tensordict.nn.TensorDictParams": {"_param_td": "the wrapped tensordict, which to_module(loss) replaces"},
    # They decide if calling its inner module alone computes the same.
    "tensordict.nn.TensorDictModule": {
        "_kwargs": "out-to-argument names, if the module is called with keywords",
        "method": "the method it calls, if not forward",
    },
    "tensordict.nn.TensorDictSequential": {
        "_select_before_return": "after select_out_keys, not all entries are written, so none may skip the tensordict",
    },
    "torchrl.objectives.LossModule": {
        "_AcceptedKeys": "declares what set_keys accepts",
        "_forward_value_estimator_keys": "overridden: set_keys also reaches the estimator's action and action_value",
        "_set_in_keys": "overridden: set_keys calls it by this name",
        "_in_keys": "what TensorDictModuleBase.in_keys reads",
        "_default_device": "device of the coefficients",
        "_reduce_loss": "reduction, masks and priority weights as in every loss of TorchRL",
        "_loss_mask_keys": "rows outside the mask must not send NaN through the target",
        "_expand_loss_mask": "the same mask in the shape of a row's loss",
        "_has_update_associated": "whether each target network has an updater",
        "_clear_weakrefs": "called at the end of forward, for torch.compile",
        "_value_estimator": "the estimator, if there is one; value_estimator would make it",
    },
    "torchrl.objectives.value.ValueEstimatorBase": {
        "_AcceptedKeys": "declares what set_keys accepts",
        "_device": "device of the discount",
    },
    "torchrl.objectives.TargetNetUpdater": {
        "_source_names": "names of the online parameters of each network",
        "_target_names": "names of the target parameters of each network",
    },
    "torchrl.modules.EGreedyModule": {
        "_spec": "the spec as given, by which a cached function of random actions is kept"
    },
    "torchrl.data.ReplayBuffer": {
        "_extend": "extend without the copy of rows for transforms, where there are none",
        "_transform": "whether there are",
        "_rng": "its generator, seeded and saved with a run",
        "_warned_batch_size_conflict": "set: no warning when several minibatches are drawn at once",
    },
    # What a storage that writes rows itself must update.
    "torchrl.data.LazyTensorStorage": {
        "_storage": "the rows",
        "_set_last_cursor": "where the last rows were written",
        "_get_new_len": "how many rows there are",
        "_bump_mutation_revision": "marks the rows as changed",
        "_max_size_along_dim0": "rows of the ring, which has a dimension of environments, too",
        "_empty": "overridden: what is kept beside the rows is emptied with them",
        "_init_standard": "overridden: the entries of the rows are known once there are some",
        "_default_checkpointer": "overridden: saves what is kept beside the rows",
    },
    # What a sampler that draws and writes priorities itself must share with the C++ one.
    "torchrl.data.PrioritizedSampler": {
        "_alpha": "exponent of priorities",
        "_beta": "exponent of weights",
        "_eps": "added to every priority",
        "_rng": "its generator",
        "_max_capacity": "rows of the trees, whose C++ does not check bounds",
        "_max_priority": "the largest priority so far, that of new rows",
        "_max_priority_within_buffer": "whether it is the largest of the rows that are left",
        "_sum_tree": "sums of priorities",
        "_min_tree": "their minima, from which TorchRL weights",
    },
    "torchrl.collectors.Collector": {
        "_carrier": "the last step of each environment, saved with a run",
        "_traj_pool": "the next number of an episode, likewise",
    },
    # TorchRL's documentation tells authors of environments to write these.
    "torchrl.envs.EnvBase": {
        "_reset": "overridden",
        "_step": "overridden",
        "_set_seed": "overridden",
    },
    "torchrl.envs.GymWrapper": {"_env": "the gymnasium environment, stepped without tensordicts"},
    "torchrl.envs.Transform": {"_inv_call": "overridden: n-step windows are built when data enter a buffer"},
    "gymnasium.vector.SyncVectorEnv": {
        "_env_obs": "the observation of each environment, set when one is restored",
        "_observations": "the same, stacked",
        "_terminations": "flags of the last step, false after a restored one",
        "_truncations": "the same",
        "_autoreset_envs": "the same of environments that would be reset",
    },
    # Imported by the laboratory, the only place that may import Hydra.
    "hydra._internal.core_plugins.basic_sweeper": {"BasicSweeper": "how it splits a sweep has no public form"},
    "hydra._internal.utils": {"get_args_parser": "Hydra's options have no public list"},
}


def wrapped_tensordict(params: TensorDictBase) -> Any:
    """The tensordict that ``params`` wraps, by whose identity a replacement by ``to_module(loss)`` is detected."""
    return params._param_td if isinstance(params, TensorDictParams) else params


def fast_get(tensordict: TensorDictBase, key: NestedKey) -> Any:
    """``tensordict.get(key, None)`` of a tensor, from the dict inside: a tenth of the cost, ten times in a loss."""
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
    tensordict = TensorDict._new_unsafe(entries, torch.Size(batch_size))
    # Not as an argument, where a check for Apple devices takes half of the time.
    tensordict._device = device if device is None else torch.device(device)
    return tensordict


def entries_of(tensordict: TensorDictBase) -> dict[Any, Any]:
    """The dict inside a TensorDict; for any other kind a copy of its entries."""
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
    """The operations of ``function(*tensors)``, which runs once, gradients included."""
    from torch.fx.experimental.proxy_tensor import make_fx  # a second of import

    try:
        return make_fx(function)(*tensors)
    finally:
        for tensor in tensors:  # else tensors written to could not be copied or saved
            vars(tensor).pop("proxy", None)


def compile_trace(graph: torch.fx.GraphModule, tensors: Sequence[torch.Tensor]) -> Callable[..., Any]:
    """``graph`` as code of inductor, without guards; random numbers are those of eager PyTorch.

    Compiled code is cached in ``TORCHINDUCTOR_CACHE_DIR``.
    """
    from torch._inductor import compile  # seconds of import

    return compile(graph, [*tensors], options={"fallback_random": True})


def shallow_copy(tensordict: TensorDictBase) -> TensorDictBase:
    """``tensordict.copy()`` at a tenth of the cost: the same tensors, in nested entries that can be set."""
    if type(tensordict) is not TensorDict:
        return tensordict.copy()
    entries = tensordict._tensordict.items()
    copied = {key: shallow_copy(value) if isinstance(value, TensorDictBase) else value for key, value in entries}
    out = unchecked_tensordict(copied, tensordict.batch_size, tensordict.device)
    out.names = tensordict.names if tensordict._has_names() else None
    return out


def backward(total: torch.Tensor) -> None:
    """``total.backward()`` of a scalar, without the checks, which take some 30 us."""
    one = (torch.ones_like(total),)
    keep_graph, create_graph, inputs = False, False, ()
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward((total,), one, keep_graph, create_graph, inputs, allow_unreachable=True, accumulate_grad=True)


def remove_updater_warning(loss: Any) -> None:
    """Removes the hook that warns of target networks without updater, if all have one: it slows down every call."""
    hooks = loss._forward_pre_hooks
    if all(loss._has_update_associated.values()):
        for key in [key for key, hook in hooks.items() if hook is updater_warning]:
            del hooks[key]


def call_hooks(module: torch.nn.Module) -> tuple[Any, ...]:
    """The dicts of the hooks that a call of ``module`` runs, the same objects for the life of ``module``."""
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


#: The compiled call of a module after ``module.compile()``.
compiled_call = attrgetter("_compiled_call_impl")


def has_hooks(module: torch.nn.Module) -> bool:
    """True if calling ``module`` does more than its ``forward``: hooks, or a compiled form."""
    return any(call_hooks(module)) or compiled_call(module) is not None


def has_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """True if ``optimizer.step()`` has a hook, or a scheduler that counts its calls."""
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(own or global_pre_hooks or global_post_hooks or "step" in vars(optimizer))
