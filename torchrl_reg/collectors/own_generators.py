"""Random numbers from generators of one's own, for code that takes none."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from torchrl_reg.compat import TorchDispatchMode


class OwnGenerators(TorchDispatchMode):
    """Inside, PyTorch's random functions draw from generators of this mode instead of the global ones.

    The numbers are those that a global generator in the same state would give. Only the thread that enters is
    affected, so that two threads draw reproducibly, whichever comes first. Costs some microseconds an operation.

    Args:
        seed: of all its generators, of which each device has one.

    Raises:
        NotImplementedError: at a random operation that has no form with a generator.

    >>> with OwnGenerators(seed=3):
    ...     drawn = torch.rand(2)
    >>> bool((drawn == torch.rand(2, generator=torch.Generator().manual_seed(3))).all())
    True
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed
        self._generators: dict[str, torch.Generator] = {}

    def of(self, device: torch.device | str) -> torch.Generator:
        """The generator of a device."""
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:  # the same device under another name
            device = torch.device("cuda", torch.cuda.current_device())
        name = str(device)
        if name not in self._generators:
            self._generators[name] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[name]

    def state_dict(self) -> dict[str, Any]:
        """The state of each generator."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what :meth:`state_dict` gave."""
        for device, held in state.items():
            self.of(device).set_state(held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        tensor = next((value for value in args if isinstance(value, Tensor)), None)
        device = kwargs.get("device") or (torch.device("cpu") if tensor is None else tensor.device)
        return _taking_a_generator(func)(*args, **{**kwargs, "generator": self.of(device)})


@cache
def _taking_a_generator(func: Any) -> Any:
    """The overload of ``func`` with a generator besides its arguments."""
    names = {argument.name for argument in func._schema.arguments}
    if "generator" in names:
        return func
    for overload in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, overload)
        if {argument.name for argument in other._schema.arguments} == names | {"generator"}:
            return other
    raise NotImplementedError(f"a policy must draw with functions that take a generator, got {func}.")
