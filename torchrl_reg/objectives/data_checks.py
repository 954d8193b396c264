"""Checks of the data that a loss is handed: missing entries, NaN, actions of the wrong kind, broken paths."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection
from torch import Tensor, distributions
from torchrl.modules import MaskedCategorical, MaskedOneHotCategorical, OneHotCategorical

from torchrl_reg.compat import remove_updater_warning
from torchrl_reg.objectives.value import done_flag

if TYPE_CHECKING:
    from torchrl_reg.objectives.base import RegularizedLoss


def check_before_forward(loss: RegularizedLoss, args: tuple[Any, ...]) -> None:
    """The forward pre-hook: checks the first batch or all, by ``loss.data_checks``; never while compiling."""
    if torch.compiler.is_compiling() or loss.data_checks == "never" or not args or isinstance(args[0], Tensor):
        return
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return
    remove_updater_warning(loss)
    check_data(loss, args[0])
    if loss.data_checks == "first":  # until one has passed
        loss.data_checks = "never"


check_before_forward.only_checks = True  # type: ignore[attr-defined]  # so a graph may leave it out

_ONE_HOT = (distributions.OneHotCategorical, OneHotCategorical, MaskedOneHotCategorical)
_INDEX = (distributions.Categorical, MaskedCategorical)
#: Tolerance for actions beyond their box, in widths of the box, besides the rounding of their dtype.
BOX_TOLERANCE = 1e-5


def check_data(loss: RegularizedLoss, tensordict: TensorDictBase) -> None:
    """Raise if ``loss`` cannot learn from ``tensordict``; rows outside the loss mask may hold anything.

    Raises:
        TypeError: ``tensordict`` is no TensorDict.
        KeyError: an entry is missing.
        ValueError: no rows, a reward or an action that is not finite, an action of another kind than the network's, or
            outside the policy's box, steps < 1, weights that are negative or not finite, steps that do not follow one
            another where paths are learnt from.
    """
    if not is_tensor_collection(tensordict):
        raise TypeError(
            f"data must be a TensorDict (or its entries as keyword arguments), got {type(tensordict).__name__}."
        )
    if 0 in tensordict.batch_size:
        raise ValueError(f"The batch must have at least one row, got batch size {list(tensordict.batch_size)}.")
    keys = loss.tensor_keys
    _check_entries(loss, tensordict)
    mask = loss._loss_mask(tensordict)
    if loss.follows_paths and tensordict.batch_dims:
        _check_paths(loss, tensordict, mask)
    if mask is not None:
        with contextlib.suppress(RuntimeError, NotImplementedError):  # where values cannot be read
            tensordict = tensordict[mask]
    rows, action = loss._rewards(tensordict), tensordict.get(keys.action)
    for key in (("next", keys.terminated), ("next", keys.done)):
        flag = tensordict.get(key, None)
        if flag is not None and flag.dtype != torch.bool:
            raise ValueError(f"The entry {key!r} must be bool, got {flag.dtype}.")
    if _any(~rows.isfinite()):
        count = int((~rows.isfinite()).sum())
        raise ValueError(f"The reward {('next', keys.reward)!r} must be finite, got NaN or infinity in {count} rows.")
    _check_numbers(tensordict, keys.steps_to_next_obs, 1)
    if loss.use_prioritized_weights:
        _check_numbers(tensordict, keys.priority_weight, 0)
    if hasattr(loss, "action_space"):
        num_actions = _num_actions(getattr(loss, "value_network", None))
        _check_discrete(action, loss.action_space, keys.action, tensordict.batch_dims, rows, num_actions)
        _check_range(action, loss.action_space, num_actions)
    if "actor_network" in loss._network_names:
        if action.is_floating_point():
            _check_box(action, loss.actor_network, keys.action)
        else:
            _check_discrete_policy(action, loss.actor_network, keys.action, tensordict.batch_dims)


def _check_entries(loss: RegularizedLoss, tensordict: TensorDictBase) -> None:
    keys = loss.tensor_keys
    flags = [("next", keys.terminated), ("next", keys.done)]
    missing = [key for key in loss.in_keys if key not in flags and tensordict.get(key, None) is None]
    if flags[0] in loss.in_keys and all(tensordict.get(key, None) is None for key in flags):
        missing += [flags[0]]
    if missing:
        roles = {keys.action: "the stored action", ("next", keys.reward): "the reward of each step"}
        roles |= {flags[0]: "whether the next state is terminal"}
        role = roles.get(missing[0], "an input of a network")
        raise KeyError(
            f"data must have an entry {missing[0]!r}, where the loss looks for {role}, got none; other names are set "
            "by loss.set_keys(...) and the networks' in_keys."
        )
    if hasattr(loss, "action_space") and keys.action_value not in loss.value_network.out_keys:
        raise KeyError(
            f"value_network must write {keys.action_value!r}, where the loss looks for the Q-values, got out_keys "
            f"{loss.value_network.out_keys}; other names are set by loss.set_keys(action_value=...)."
        )


def _check_paths(loss: RegularizedLoss, tensordict: TensorDictBase, mask: Tensor | None) -> None:
    """Each of the steps ``[*B, T]`` must start where the one before led, unless the episode ended there."""
    follows, time = ~done_flag(tensordict, loss.tensor_keys).squeeze(-1), tensordict.batch_dims - 1
    follows = follows if mask is None else follows & mask & mask.roll(-1, -1)
    follows, count = follows[..., :-1], follows.shape[-1] - 1
    for key in set(loss._states_read()) & set(loss._next_state_keys()):
        led, here = tensordict.get(("next", key)).narrow(time, 0, count), tensordict.get(key).narrow(time, 1, count)
        differ = (led != here) & (led == led) & (here == here)  # not where either is NaN
        if _any(broken := follows & differ.reshape(*follows.shape, -1).any(-1)):
            raise ValueError(
                f"data must be sequences [*B, T] of successive steps, got {('next', key)!r} other than the next step's "
                f"{key!r} in {int(broken.sum())} of {int(follows.sum())} places: sample slices of episodes with "
                "TorchRL's SliceSampler and reshape them to [-1, T]."
            )


def _check_discrete(
    action: Tensor, action_space: str, key: NestedKey, batch_dims: int, rows: Tensor, num_actions: int | None
) -> None:
    """Kind and shape of actions ``[*B]`` (or ``[*B, 1]``) or ``[*B, A]``; no value is read."""
    # An action for each reward, of N agents say, is an index however few dimensions the batch has.
    one_hot = action.ndim > batch_dims and action.shape[-1] > 1 and action.shape != rows.shape
    one_hot = one_hot or (action_space == "one_hot" and num_actions == 1 and action.shape[-1:] == (1,))
    shape = list(action.shape)
    if action_space == "one_hot" and not one_hot:
        raise ValueError(
            f"The action {key!r} must be one-hot ([*B, A]) as the network's action space is, got shape {shape}; give "
            "action_space='categorical' (and a Categorical spec) for integer actions."
        )
    if action_space == "categorical" and (one_hot or action.is_floating_point() or action.dtype == torch.bool):
        raise ValueError(
            f"The action {key!r} must hold integers [*B] as the network's action space is 'categorical', got "
            f"{action.dtype} of shape {shape}; give action_space='one-hot' (and a OneHot spec) for one-hot actions."
        )


def _check_discrete_policy(action: Tensor, actor: Any, key: NestedKey, batch_dims: int) -> None:
    """Shape of the discrete actions of a policy whose distribution is known, which would score others silently."""
    kinds = [getattr(module, "distribution_class", None) for module in actor.modules()]
    for kind in (kind for kind in kinds if isinstance(kind, type)):
        one_hot = issubclass(kind, _ONE_HOT)  # TorchRL's is a subclass of Categorical, too
        if (one_hot or issubclass(kind, _INDEX)) and action.ndim != batch_dims + one_hot:
            what = "be one-hot ([*B, A])" if one_hot else "hold indices [*B]"
            raise ValueError(f"The action {key!r} must {what} for {kind.__name__}, got shape {list(action.shape)}.")


def _num_actions(network: Any) -> int | None:
    """How many there are by the spec of a Q-network; None if it has none."""
    spec: Any = getattr(network, "spec", None)
    leaves = spec.values(True, True) if hasattr(spec, "keys") else []
    return next((int(leaf.space.n) for leaf in leaves if hasattr(getattr(leaf, "space", None), "n")), None)


def _check_range(action: Tensor, action_space: str, num_actions: int | None) -> None:
    """Values of discrete actions: a single 1, or an index of those the network has (a bad one kills a GPU process)."""
    if action_space == "one_hot":
        wrong = ((action != 0).sum(-1) != 1) | (action.sum(-1) != 1)
        if _any(wrong):
            raise ValueError(f"The action must have a single 1 in each row (one-hot), got {action[wrong][0].tolist()}.")
        return
    wrong = action < 0 if num_actions is None else (action < 0) | (action >= num_actions)
    if _any(wrong):
        expected = "an index >= 0" if num_actions is None else f"one of 0 to {num_actions - 1}"
        raise ValueError(f"The action must be {expected}, got {int(action[wrong][0])}.")


def _check_numbers(tensordict: TensorDictBase, key: NestedKey, low: int) -> None:
    """An entry of a number in each row, where there is one: finite, and ``low`` or more."""
    values = tensordict.get(key, None)
    if values is not None and _any(wrong := ~(values.isfinite() & (values >= low))):
        raise ValueError(f"The entry {key!r} must be finite and >= {low}, got {values[wrong][0].item()}.")


def _check_box(action: Tensor, actor: Any, key: NestedKey) -> None:
    """Values of actions ``[*B, D]``: finite, and within the bounds of ``actor`` where it has them."""
    if _any(~action.isfinite()):
        raise ValueError(f"The action {key!r} must be finite, got NaN or infinity.")
    box = _bounds(actor)
    if box is None:
        return
    low, high = (bound.to(action) for bound in box)
    slack = BOX_TOLERANCE * (high - low) + torch.finfo(action.dtype).eps * torch.maximum(low.abs(), high.abs())
    if _any((action < low - slack) | (action > high + slack)):
        raise ValueError(
            f"The action {key!r} must lie in the policy's box, from {low.tolist()} to {high.tolist()}, got values from "
            f"{action.amin().item():.6g} to {action.amax().item():.6g}; rounding may put them outside by "
            f"{slack.amax().item():.2g}."
        )


def _bounds(actor: Any) -> tuple[Tensor, Tensor] | None:
    """``low, high [D]`` of an actor's box, where it has one."""
    source = actor.bins if hasattr(actor, "bins") else actor
    if not hasattr(source, "low"):
        modules = [module for module in actor.modules() if hasattr(module, "distribution_kwargs")]
        source = modules[-1].distribution_kwargs if modules else {}
        if "low" not in source or "high" not in source:
            return None
        return torch.as_tensor(source["low"]), torch.as_tensor(source["high"])
    return source.low, source.high


def _any(condition: Tensor) -> bool:
    """True if any entry is true; False where values cannot be read (under vmap, on the meta device)."""
    with contextlib.suppress(RuntimeError, NotImplementedError):
        return bool(condition.any())
    return False
