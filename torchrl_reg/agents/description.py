"""A description of what a policy is made of, as JSON, and the same modules built from it.

A network records how it was built (:func:`torchrl_reg.modules.rebuildable`); what acts on top of it has a row in
``_PARTS``. A description names rows and builders of this package, and regularizers that are already imported, so that
reading one executes nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tensordict.nn import TensorDictSequential
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torchrl.data import TensorSpec
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.modules import (
    ActionPrior,
    BoltzmannQActor,
    CategoricalQActor,
    FixedQuantileQActor,
    PriorEGreedyModule,
    QuantileQActor,
)
from torchrl_reg.modules.rebuilding import Spaces, rebuilt
from torchrl_reg.regularizers import Coefficient, Entropy, Regularizer, Tsallis

Description = dict[str, Any]


class Undescribed(ValueError):
    """A module that has no row."""


@dataclass(frozen=True)
class Part:
    """A kind of module: how to describe one, apart from its weights, and how to build one from that.

    Args:
        kind: the class, exactly: a subclass may act differently.
        describe: a module -> what ``build`` needs, JSON.
        build: that, and the spec of an action -> a module with weights of its own.
    """

    kind: type
    describe: Callable[[Any], Description]
    build: Callable[[Description, TensorSpec], nn.Module]


def described(module: nn.Module) -> Description:
    """What ``module`` is made of.

    Raises:
        Undescribed: a part of it has no row, has hooks, or reads other entries than ``"observation"``.
    """
    for below in module.modules():
        if below._forward_hooks or below._forward_pre_hooks:
            raise Undescribed(f"hooks on a {type(below).__name__}")
    if "built_by" in vars(module):
        return {"part": "network", **vars(module)["built_by"]}
    for name, part in _PARTS.items():
        if type(module) is part.kind:
            return {"part": name, **part.describe(module)}
    raise Undescribed(f"no description of {type(module).__name__}")


def built(description: Description) -> Any:
    """A module with this description (see :func:`described`), on the CPU, with weights of its own.

    The global generators are left as they were: a run builds one in the middle of its training.

    Raises:
        ValueError: a part or a setting that this version does not know.
    """
    spec = spaces_of(description).full_action_spec_unbatched["action"]
    with torch.random.fork_rng(devices=[]):
        return _built(description, spec)


@contextmanager
def weights_of_at_most(size: int) -> Iterator[None]:
    """Refuses parameters that take more than ``size`` bytes together, before they are filled."""
    left = size

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 0 if parameter is None else parameter.nbytes
        if left < 0:
            raise ValueError(f"Its weights must take the {size:,} bytes of the file, got more.")

    counting = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        counting.remove()


def spaces_of(description: Description) -> Spaces:
    """The spaces of the first network in ``description``.

    Raises:
        ValueError: there is no network in it.
    """
    found = _first_spaces(description)
    if found is None:
        raise ValueError("A description must have a network in it, got none.")
    return Spaces(**found)


def _first_spaces(description: Any) -> dict[str, Any] | None:
    if isinstance(description, dict):
        if description.get("part") == "network":
            return description["spaces"]
        description = list(description.values())
    if isinstance(description, list):
        return next((found for each in description if (found := _first_spaces(each)) is not None), None)
    return None


def _built(description: Description, spec: TensorSpec) -> Any:
    if description["part"] == "network":
        return rebuilt(description)
    if description["part"] not in _PARTS:
        raise ValueError(f"part must be one of network, {', '.join(_PARTS)}, got {description['part']!r}.")
    return _PARTS[description["part"]].build(description, spec)


def _q_network(actor: QValueActor) -> Description:
    if list(actor.in_keys) != ["observation"]:
        raise Undescribed(f"a {type(actor).__name__} that reads {list(actor.in_keys)}")
    return described(actor.module[0].module)


def _quantile_actor(actor: QuantileQActor) -> Description:
    return {"network": described(actor.quantile_network), "num_quantiles": actor.module[0].module.num_quantiles}


def _categorical_actor(actor: CategoricalQActor) -> Description:
    low, high = float(actor.distribution.support[0]), float(actor.distribution.support[-1])
    grid = {"num_atoms": actor.distribution.size, "value_min": low, "value_max": high}
    return {"network": described(actor.distribution.network), "grid": grid}


def _fixed_quantile_actor(actor: FixedQuantileQActor) -> Description:
    return {"network": described(actor.distribution.network), "num_quantiles": actor.distribution.size}


def _boltzmann(actor: BoltzmannQActor) -> Description:
    said = {"actor": described(actor.actor), "num_actions": None if actor.prior is None else actor.prior.num_actions}
    return said if actor.prior is not None else said | {"regularizer": _described_regularizer(actor.regularizer)}


def _built_boltzmann(said: Description, spec: TensorSpec) -> BoltzmannQActor:
    actor = _built(said["actor"], spec)
    if said["num_actions"] is not None:
        return BoltzmannQActor(actor, prior=ActionPrior(said["num_actions"]))
    if "regularizer" not in said:  # as it was written before regularizers described themselves
        return BoltzmannQActor(
            actor, regularizer=Entropy(1.0) if said["index"] is None else Tsallis(1.0, said["index"])
        )
    name, known = said["regularizer"]["name"], _regularizers(Regularizer)
    if name not in known:
        raise ValueError(f"regularizer must be a class that is imported before the policy is read, got {name!r}.")
    made = known[name](*said["regularizer"]["args"], **said["regularizer"]["kwargs"])
    return BoltzmannQActor(actor, regularizer=made)


def _described_regularizer(regularizer: Regularizer) -> Description:
    """Its class, and what it was built with; its coefficients come with the weights."""
    args, kwargs = regularizer.built_with
    given = {"args": [_plain(value) for value in args], "kwargs": {key: _plain(value) for key, value in kwargs.items()}}
    return {"name": _name(type(regularizer)), **given}


def _plain(value: Any) -> Any:
    if isinstance(value, (Coefficient, torch.Tensor)):
        value = (value.value if isinstance(value, Coefficient) else value).tolist()
    try:
        json.dumps(value)
    except TypeError:
        raise Undescribed(f"a policy whose regularizer was built with a {type(value).__name__}") from None
    return value


def _name(kind: type) -> str:
    """What a file calls a regularizer: its class, with its module unless that is ours."""
    return kind.__qualname__ if kind.__module__.startswith("torchrl_reg.") else f"{kind.__module__}.{kind.__qualname__}"


def _regularizers(kind: type) -> dict[str, type]:
    """Every regularizer defined so far, by name: reading a policy imports nothing."""
    kinds: list[type] = kind.__subclasses__()
    known = {_name(each): each for each in kinds}
    below = [_regularizers(base) for base in known.values()]
    return {name: each for names in below for name, each in names.items()} | known


def _prior_exploration(module: PriorEGreedyModule) -> Description:
    return {
        "num_actions": module.prior.num_actions,
        "floor": module.prior.floor,
        "log_prior_key": module.log_prior_key,
    }


def _built_prior_exploration(said: Description, spec: TensorSpec) -> PriorEGreedyModule:
    prior = ActionPrior(said["num_actions"], floor=said["floor"])
    return PriorEGreedyModule(spec, prior, log_prior_key=said["log_prior_key"])


#: Coefficients (epsilon, tau, priors) are buffers: they come with the weights.
_PARTS = {
    "q_actor": Part(
        QValueActor,
        lambda actor: {"network": _q_network(actor)},
        lambda said, spec: QValueActor(_built(said["network"], spec), spec=spec),
    ),
    "quantile_q_actor": Part(
        QuantileQActor,
        _quantile_actor,
        lambda said, spec: QuantileQActor(
            _built(said["network"], spec), spec=spec, num_quantiles=said["num_quantiles"]
        ),
    ),
    "categorical_q_actor": Part(
        CategoricalQActor,
        _categorical_actor,
        lambda said, spec: CategoricalQActor(_built(said["network"], spec), spec=spec, **said["grid"]),
    ),
    "fixed_quantile_q_actor": Part(
        FixedQuantileQActor,
        _fixed_quantile_actor,
        lambda said, spec: FixedQuantileQActor(
            _built(said["network"], spec), spec=spec, num_quantiles=said["num_quantiles"]
        ),
    ),
    "boltzmann": Part(BoltzmannQActor, _boltzmann, _built_boltzmann),
    "epsilon_greedy": Part(EGreedyModule, lambda module: {}, lambda said, spec: EGreedyModule(spec)),
    "prior_epsilon_greedy": Part(PriorEGreedyModule, _prior_exploration, _built_prior_exploration),
    "sequence": Part(
        TensorDictSequential,
        lambda sequence: {"parts": [described(part) for part in sequence.module]},
        lambda said, spec: TensorDictSequential(*(_built(part, spec) for part in said["parts"])),
    ),
}
