"""A device on the CPU, "sim", on which operations that would make the host wait for a GPU raise.

Its tensors compute on the CPU, so that results can be compared with the CPU's own; but they say that they lie on "sim",
and every operation on them comes by :func:`_run`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
#: What reads a value, or makes a shape of one: on a GPU the host waits. (CUDA's ``multinomial`` and ``normal`` check
#: what they are given.)
_SYNCHRONIZING = {
    *(aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten.multinomial, aten.bincount),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave),
    *(aten.normal.Tensor_Tensor, aten.normal.float_Tensor),
}
_INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index)
_FILLING = (aten.fill, aten.fill_, aten.masked_fill, aten.masked_fill_)  # they take a number from the CPU
_COPYING = (aten._to_copy, aten.copy_, aten.copy)


class Synchronized(AssertionError):
    """The host waited for the device."""


class OnTwoDevices(AssertionError):
    """An operation met a tensor that was left on the CPU."""


#: All violations so far, caught exceptions included.
violations: list[str] = []
_free = [False]  # whether the host may wait


class SimTensor(Tensor):
    """A tensor on the simulated device; ``elem`` lies on the CPU."""

    elem: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, elem: Tensor) -> SimTensor:
        size, dtype, offset = elem.size(), elem.dtype, elem.storage_offset()
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, size, strides=elem.stride(), storage_offset=offset, dtype=dtype, device="sim:0"
        )
        made.elem = elem
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **kwargs: Any) -> Any:
        return self.cpu().numpy(**kwargs)

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **kwargs})

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, new: SimTensor) -> None:
        if not isinstance(new, SimTensor):
            raise _violated(OnTwoDevices, "parameter.data = a tensor on the CPU")
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.elem = new.elem

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            new: Tensor = self.detach().clone().requires_grad_(self.requires_grad)
            new.__dict__.update({k: copy.deepcopy(v, memo) for k, v in vars(self).items() if k != "elem"})
            memo[id(self)] = new
        return memo[id(self)]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"SimTensor({self.elem})"


class _Factories(TorchDispatchMode):
    """Sends what makes tensors on the device by :func:`_run`, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Module:
    """``torch.sim``."""

    def synchronize(self, device: Any = None) -> None:
        if not _free[0]:
            raise _violated(Synchronized, "torch.cuda.synchronize()")

    def is_initialized(self) -> bool:
        return True

    is_available = is_initialized

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def manual_seed_all(self, seed: int) -> None:
        """Its random numbers are the CPU's."""


@contextmanager
def host_may_wait(*operations: Any) -> Iterator[None]:
    """Inside, the host may wait: for these operations, or without any for all, in setting up and checking results."""
    before, _free[0] = _free[0], _free[0] or not operations
    _SYNCHRONIZING.difference_update(operations)
    try:
        yield
    finally:
        _free[0] = before
        _SYNCHRONIZING.update(operations)


@contextmanager
def watched_device() -> Iterator[None]:
    """Inside there is a device "sim"; every violation is an error at the end, caught or not.

    The first time registers it for the whole process.
    """
    if not hasattr(torch, "sim"):
        torch.utils.backend_registration._setup_privateuseone_for_python_backend("sim", backend_module=_Module())
    violations.clear()
    with pytest.MonkeyPatch.context() as patch, _Factories():
        for make in (torch.tensor, torch.as_tensor):
            patch.setattr(torch, make.__name__, _by_a_copy(make))
        yield
    assert not violations


def agree(ours: Any, theirs: Any) -> None:
    """Compares results on the device with those on the CPU."""
    with host_may_wait():
        torch.testing.assert_close(tree_map_only(Tensor, Tensor.cpu, ours), theirs, equal_nan=True)


def _by_a_copy(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor``: PyTorch makes the tensor on the CPU and copies it unseen by Python, so it is copied here."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != "sim":
            return make(data, *args, **kwargs) if device is None else make(data, *args, device=device, **kwargs)
        return (data if isinstance(data, Tensor) else make(data)).to(device, **kwargs)

    return made


def _violated(kind: type[AssertionError], what: str) -> AssertionError:
    violations.append(what)
    return kind(what)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """``func`` on the CPU, on behalf of "sim" where one of its tensors or its ``device`` is there."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    if device != "sim" and not any(isinstance(tensor, SimTensor) for tensor in tensors):
        return func(*args, **kwargs)
    if not _free[0]:
        _check(func, args, kwargs, tensors, device)
    if torch.Tag.inplace_view in func.tags:  # the shape that the tensor shows changes, too
        with no_dispatch():
            func(*args, **kwargs)
    args, kwargs = tree_map_only(SimTensor, lambda tensor: tensor.elem, (args, kwargs))
    out = func(*args, **(kwargs if device is None else kwargs | {"device": torch.device("cpu")}))
    if device not in (None, "sim"):
        return out
    # An operation in place returns the very tensor that it was given.
    same = {id(getattr(tensor, "elem", tensor)): tensor for tensor in tensors}
    return tree_map_only(Tensor, lambda tensor: same[id(tensor)] if id(tensor) in same else SimTensor(tensor), out)


def _check(func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], device: str | None) -> None:
    """Raise if the host would wait for ``func``, or if a tensor it needs was left on the CPU."""
    name, packet = str(func), func.overloadpacket
    left = [tensor for tensor in tensors if not isinstance(tensor, SimTensor)]
    if packet in _COPYING:
        # From memory that is not pinned the host waits either way; from pinned memory it need not.
        pinned_in = kwargs.get("non_blocking", len(args) > 2 and args[2])
        to_device = isinstance(args[0], SimTensor) if packet is not aten._to_copy else device in (None, "sim")
        if (left or device not in (None, "sim")) and not (to_device and pinned_in):
            raise _violated(Synchronized, f"{name} between the devices")
        return
    masked = packet in _INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
    if masked and (len(args) < 3 or args[2].numel() != 1):  # one value is filled in
        raise _violated(Synchronized, f"{name} with a mask, whose rows are counted")
    if func in _SYNCHRONIZING or packet in _SYNCHRONIZING:
        raise _violated(Synchronized, name)
    if left and not (packet in _FILLING and all(tensor.ndim == 0 for tensor in left)):
        shapes = ", ".join(f"{list(tensor.shape)} on {tensor.device.type}" for tensor in tensors)
        raise _violated(OnTwoDevices, f"{name} of {shapes}")
