"""Actors on Q-networks: greedy, epsilon-greedy, Boltzmann, quantile, categorical; the implicit quantile network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor, nn
from torchrl.data import Categorical, OneHot, TensorSpec
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.compat import has_hooks, is_transformed
from torchrl_reg.functional.soft import at_least_float32
from torchrl_reg.modules.acting import State, act, act_through_tensordict
from torchrl_reg.modules.ensembles import OutputLinear, is_plain, unstack_layers
from torchrl_reg.modules.layers import check_network, layer_by_layer
from torchrl_reg.regularizers import ActionPrior, Entropy, PriorKL, Regularizer
from torchrl_reg.regularizers.checks import ExactBuffers, check_integer, exact_where_possible
from torchrl_reg.regularizers.policies import SavedArguments


class ImplicitQuantileNetwork(nn.Module):
    """Quantile values ``z(s, a, sigma) = head(psi(s) * phi(sigma))`` with a cosine embedding of the fraction.

    ``phi(sigma) = relu(W cos(pi i sigma) + b)``, ``i = 1..num_cosines``, or from 0 on.

    Args:
        torso: maps one observation tensor ``[*B, ...]`` to features ``[*B, F]``.
        num_features: F.
        num_actions: A.
        num_cosines: size of the cosine basis.
        num_cells: width of the hidden layer of the head.
        first_cosine: the first i: 1 in Dopamine, 0 in the paper and in Beyond The Rainbow.
        head: maps ``[*B, N, F]`` to ``[*B, N, A]`` in place of that hidden layer and a linear one.

    Quantile values are in reward units, fractions in [0, 1].

    Raises:
        ValueError: no torso.

    Source: Dabney et al., "Implicit Quantile Networks", ICML 2018, section 3.1.

    >>> net = ImplicitQuantileNetwork(nn.Linear(4, 16), num_features=16, num_actions=3, num_cells=32)
    >>> net(torch.randn(8, 4), torch.rand(8, 5)).shape
    torch.Size([8, 5, 3])
    """

    #: The class of several stacked networks.
    stacked_form: ClassVar[type[ImplicitQuantileNetwork]]

    def __init__(
        self,
        torso: nn.Module,
        *,
        num_features: int,
        num_actions: int,
        num_cosines: int = 64,
        num_cells: int = 512,
        first_cosine: int = 1,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.torso = check_network(torso, "torso")
        self.embedding = nn.Linear(num_cosines, num_features)
        if head is None:
            head = nn.Sequential(nn.Linear(num_features, num_cells), nn.ReLU(), OutputLinear(num_cells, num_actions))
        self.head = check_network(head, "head")
        self.num_cosines, self.first_cosine = num_cosines, first_cosine

    def features(self, observation: Tensor) -> Tensor:
        """``psi(s) [*B, F]``, computed once for all fractions of a state."""
        return self.torso(observation)

    def quantiles(self, features: Tensor, fractions: Tensor) -> Tensor:
        """Quantile values ``[*B, N, A]`` for ``features [*B, F]`` and ``fractions [*B, N]`` (or ``[N]`` for all)."""
        return self._joint_quantiles([features], [fractions])[0]

    def quantiles_of(self, features: Sequence[Tensor], fractions: Sequence[Tensor]) -> Sequence[Tensor]:
        """:meth:`quantiles` of several states in one pass; ``features`` have one shape, ``fractions`` all but the N."""
        if getattr(self.quantiles, "__func__", None) is not ImplicitQuantileNetwork.quantiles:  # overridden
            return [self.quantiles(state, levels) for state, levels in zip(features, fractions, strict=True)]
        return self._joint_quantiles(features, fractions)

    def _joint_quantiles(self, features: Sequence[Tensor], fractions: Sequence[Tensor]) -> Sequence[Tensor]:
        counts = [levels.shape[-1] for levels in fractions]
        joined = fractions[0] if len(counts) == 1 else torch.cat(list(fractions), -1)
        joined = at_least_float32(joined)  # the cosine of the 64th multiple of a bfloat16 fraction is noise
        multiples = torch.arange(self.num_cosines, device=joined.device, dtype=joined.dtype) + self.first_cosine
        cosines = (math.pi * multiples * joined.unsqueeze(-1)).cos_()
        z, ends = self._values(features, cosines.to(features[0].dtype), counts), list(accumulate(counts))
        # Slices, because the outputs of split cannot be modified in place.
        return [z] if len(ends) == 1 else [z[..., end - n : end, :] for end, n in zip(ends, counts, strict=True)]

    def _values(self, features: Sequence[Tensor], cosines: Tensor, counts: list[int]) -> Tensor:
        """Quantile values ``[*B, sum(counts), A]`` of the ``features``, side by side."""
        embedded = self.embedding(cosines)
        # In place if no hook has seen the layer's output, because allocating memory costs more than the ReLU.
        compiling = torch.compiler.is_compiling()
        embedded = embedded.relu() if compiling or has_hooks(self.embedding) else embedded.relu_()
        head = self.head if compiling else layer_by_layer(self.head)
        return head(_products(features, embedded, counts))

    def forward(self, observation: Tensor, fractions: Tensor) -> Tensor:
        """Quantile values ``[*B, N, A]`` at ``fractions [*B, N]``."""
        return self.quantiles(self.features(observation), fractions)


class StackedQuantileNetwork(ImplicitQuantileNetwork):
    """``S`` quantile networks: features ``[S, *B, F]`` and fractions ``[S, *B, N]`` (or ``[N]`` for all).

    Torsos run stacked; the layers after the fractions run network by network, which is faster for so many rows.
    """

    def _values(self, features: Sequence[Tensor], cosines: Tensor, counts: list[int]) -> Tensor:
        embeddings, heads = unstack_layers([self.embedding, nn.ReLU()]), unstack_layers(list(self.head))  # type: ignore[call-overload]
        if cosines.ndim == 2:
            cosines = cosines.expand(len(heads), 1, *cosines.shape)
        values = []
        for number, (embedding, head) in enumerate(zip(embeddings, heads, strict=True)):
            own = [each[number] for each in features]
            values.append(head(_products(own, embedding(cosines[number]), counts)))
        return torch.stack(values)


ImplicitQuantileNetwork.stacked_form = StackedQuantileNetwork


def _products(features: Sequence[Tensor], embedded: Tensor, counts: list[int]) -> Tensor:
    """Each of ``features [*B, F]`` times its ``counts`` rows of ``embedded [*B, N, F]``, side by side.

    Overwrites ``embedded`` if no gradient needs it.
    """
    first = features[0]
    same = first.shape[:-1] == embedded.shape[:-2] and first.dtype == embedded.dtype
    needed = torch.is_grad_enabled() or torch.compiler.is_compiling() or any(map(is_transformed, features))
    pairs = zip(features, embedded.split(counts, -2), strict=True)
    if needed or not same:
        products = [state.unsqueeze(-2) * part for state, part in pairs]
        return products[0] if len(products) == 1 else torch.cat(products, -2)
    for state, part in pairs:
        part.mul_(state.unsqueeze(-2))
    return embedded


def fraction_dtype(features: Tensor) -> torch.dtype:
    """The dtype of quantile fractions: that of the features, but float32 where autocast lowered them."""
    return torch.promote_types(features.dtype, torch.float32)


class QuantileMean(nn.Module):
    """Mean over ``num_quantiles`` fractions: ``[*B, A]`` Q-values of a quantile network.

    Fractions are drawn uniformly; under deterministic exploration they are the midpoints ``(i + 1/2) / K``, so that an
    evaluation does not depend on a random draw.
    """

    #: Acting draws random numbers; one network stacked for several seeds would draw others.
    draws = True

    def __init__(self, network: ImplicitQuantileNetwork, num_quantiles: int) -> None:
        super().__init__()
        self.network, self.num_quantiles = network, num_quantiles

    def forward(self, observation: Tensor) -> Tensor:
        features = self.network.features(observation)
        count, dtype = self.num_quantiles, fraction_dtype(features)
        if explores():
            fractions = torch.rand((*features.shape[:-1], count), device=features.device, dtype=dtype)
        else:
            steps = torch.arange(count, device=features.device, dtype=dtype)
            fractions = (steps + 0.5) / count
        return self.network.quantiles(features, fractions).mean(-2)


class QActor(SavedArguments, QValueActor):
    """TorchRL's :class:`~torchrl.modules.QValueActor`, which also acts on a dict of tensors and can be saved.

    Args:
        module: the Q-network. kwargs: as for :class:`~torchrl.modules.QValueActor`: ``spec``, ``in_keys``.

    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> actor = QActor(nn.Linear(4, 3), spec=Categorical(3))
    >>> actor(TensorDict({"observation": torch.randn(8, 4)}, [8]))["action_value"].shape
    torch.Size([8, 3])
    """

    def __init__(self, module: Any, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)
        first, greedy = self.module
        numbered = greedy.action_space == "categorical" and greedy.action_mask_key is None
        self._is_plain = numbered and is_plain(first) and list(first.out_keys) == list(greedy.in_keys)
        self._layers: tuple[nn.Module, Callable[..., Tensor]] | None = None

    @property
    def network(self) -> nn.Module:
        """From the in-keys to Q-values ``[*B, A]``."""
        return self.module[0].module

    def plain(self, state: State) -> None:
        """:meth:`forward` on a dict of tensors."""
        if not self._is_plain or self._select_before_return:
            act_through_tensordict(self, state)
            return
        first, greedy = self._modules["module"]._modules.values()
        network = first._modules["module"]
        if self._layers is None or self._layers[0] is not network:
            self._layers = network, layer_by_layer(network)
        q = self._layers[1](*[state[key] for key in first.in_keys])
        action = q.argmax(-1)
        action_key, q_key, chosen_key = greedy.out_keys
        state[q_key], state[action_key] = q, action
        state[chosen_key] = q.gather(-1, action.unsqueeze(-1))

    def __getstate__(self) -> dict[str, Any]:
        # A copy must not run the layers of the original.
        return {**vars(self), "_layers": None}


class EpsilonGreedyModule(SavedArguments, EGreedyModule):
    """TorchRL's :class:`~torchrl.modules.EGreedyModule` with the same random numbers, on a dict of tensors, too.

    Args:
        see :class:`~torchrl.modules.EGreedyModule`.

    >>> module = EpsilonGreedyModule(Categorical(3), eps_init=0.5)
    >>> state = {"action": torch.zeros(8, dtype=torch.long)}
    >>> module.plain(state)
    >>> state["action"].shape
    torch.Size([8])
    """

    #: The spec and number of environments of the cached function of random actions, and that function.
    _random: tuple[Any, int, Callable[[], Tensor]] = (None, 0, torch.empty)

    def draw(self, num_envs: int) -> tuple[Tensor, Tensor]:
        """True to explore (bool ``[num_envs]``), and random actions, drawn in the order of :meth:`forward`."""
        eps, (composite, count, random) = self._buffers["eps"], self._random
        if composite is not self._spec or count != num_envs:
            spec = self.spec[self.action_key]
            # The spec of an environment of several copies has their dimension already.
            batched = spec.ndim > isinstance(spec, OneHot) and spec.shape[0] == num_envs
            random = spec.rand if batched else spec.expand(num_envs, *spec.shape).rand
            if type(spec) is Categorical and spec.mask is None and spec.shape == () and spec.space.n > 0:
                # The same numbers as spec.rand(), in under half of its time.
                random = partial(torch.randint, spec.space.n, (num_envs,), dtype=spec.dtype, device=spec.device)
            self._random = self._spec, num_envs, random
        return torch.rand(num_envs, device=eps.device) < eps, random()

    def plain(self, state: State, drawn: tuple[Tensor, Tensor] | None = None) -> None:
        """:meth:`forward` on a dict of tensors, with ``drawn``, the random numbers of :meth:`draw`, if given."""
        if self.action_mask_key is not None or not isinstance(self.action_key, str):
            act_through_tensordict(self, state)
        elif drawn is not None or exploration_type() in _EXPLORING:
            action = state[self.action_key]
            explore, random = self.draw(action.shape[0]) if drawn is None else drawn
            if action.ndim > 1:
                explore = explore.reshape(-1, *[1] * (action.ndim - 1))
            state[self.action_key] = torch.where(explore, random, action)


class QuantileQActor(QActor):
    """A QValueActor whose Q-values are means over quantile samples: greedy in ``mean_k z(s, a, sigma_k)``.

    Writes ``action_value`` ``[*B, A]``, in reward units.

    Source: Dabney et al. 2018 (IQN).

    Args:
        network: the quantile network; losses read it as ``actor.quantile_network``.
        spec: action spec (``Categorical`` or ``OneHot``), as for :class:`~torchrl.modules.QValueActor`.
        in_keys: one observation key. Default ``["observation"]``.
        num_quantiles: K, fractions averaged when acting.
        **kwargs: as for :class:`~torchrl.modules.QValueActor`.

    Raises:
        ValueError: no quantile network, ``num_quantiles`` < 1, or more than one in-key.

    >>> from torchrl.data import Categorical
    >>> from tensordict import TensorDict
    >>> net = ImplicitQuantileNetwork(nn.Linear(4, 16), num_features=16, num_actions=3, num_cells=32)
    >>> actor = QuantileQActor(net, spec=Categorical(3))
    >>> actor(TensorDict({"observation": torch.randn(8, 4)}, [8]))["action_value"].shape
    torch.Size([8, 3])
    """

    def __init__(
        self,
        network: ImplicitQuantileNetwork,
        *,
        spec: TensorSpec | None = None,
        in_keys: list[NestedKey] | None = None,
        num_quantiles: int = 32,
        **kwargs: Any,
    ) -> None:
        if num_quantiles < 1:
            raise ValueError(f"num_quantiles must be >= 1, got {num_quantiles}.")
        if not hasattr(network, "quantiles"):
            raise ValueError(f"network must be an ImplicitQuantileNetwork, got {network!r}.")
        if in_keys is not None and len(in_keys) != 1:
            raise ValueError(f"in_keys must hold one observation key, got {in_keys}.")
        super().__init__(QuantileMean(network, num_quantiles), spec=spec, in_keys=in_keys, **kwargs)

    @property
    def quantile_network(self) -> ImplicitQuantileNetwork:
        """The quantile network."""
        return self.module[0].module.network


class BoltzmannQActor(SavedArguments, TensorDictModuleBase):
    """Acts with a regularizer's policy: sampled under random exploration, greedy under deterministic exploration.

    With a temperature that is ``pi = softmax(q / tau)``; with a prior ``pi ~ rho exp(beta q)``, and greedy in that.

    Source: Haarnoja et al. 2017 (soft Q-learning); Grau-Moya et al. 2019 (MIRL) for the prior.

    Args:
        actor: any Q-value actor (:class:`~torchrl.modules.QValueActor`, :class:`QuantileQActor`); its parameters are
            shared, not copied. Actions are written in its encoding (categorical or one-hot).
        tau: temperature > 0, in reward units; short for ``regularizer=Entropy(tau)``.
        prior: an :class:`ActionPrior`, shared, not copied; short for ``regularizer=PriorKL(prior=prior)``.
        regularizer: any, shared, not copied. With the loss's the actor follows the loss's temperature.
        action_key, action_value_key: where the actor writes the action and its ``[*B, A]`` Q-values.

    Raises:
        ValueError: ``tau`` not > 0, or not exactly one of ``tau``, ``prior`` and ``regularizer``.

    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> policy = BoltzmannQActor(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)), tau=0.5)
    >>> policy(TensorDict({"observation": torch.randn(8, 4)}, [8]))["action"].shape
    torch.Size([8])
    """

    def __init__(
        self,
        actor: Any,
        *,
        tau: float | None = None,
        prior: ActionPrior | None = None,
        regularizer: Regularizer | None = None,
        action_key: NestedKey = "action",
        action_value_key: NestedKey = "action_value",
    ) -> None:
        if [tau, prior, regularizer].count(None) != 2:
            raise ValueError(
                f"Either tau or prior or regularizer must be given, got tau={tau!r}, prior={prior!r} and "
                f"regularizer={regularizer!r}."
            )
        if not hasattr(actor, "in_keys"):
            raise ValueError(f"actor must be a Q-value actor, such as a QValueActor, got {type(actor).__name__}.")
        super().__init__()
        if regularizer is None:
            regularizer = PriorKL(prior=prior) if prior is not None else Entropy(tau)  # type: ignore[arg-type]
        self.regularizer = regularizer
        self.actor = actor
        self.action_key, self.action_value_key = action_key, action_value_key
        self.in_keys = list(dict.fromkeys((*actor.in_keys, *regularizer.in_keys)))
        self.out_keys = list(actor.out_keys)

    @property
    def tau(self) -> Tensor | None:
        """The current temperature, in reward units, if the regularizer has one."""
        return getattr(self.regularizer, "tau", None)

    @property
    def prior(self) -> ActionPrior | None:
        """The regularizer's prior, if it has one."""
        return getattr(self.regularizer, "prior", None)

    @property
    def spec(self) -> Any:
        """The actor's spec."""
        return self.actor.spec

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict = self.actor(tensordict)
        self.choose(tensordict)
        return tensordict

    def plain(self, state: State) -> None:
        """:meth:`forward` on a dict of tensors."""
        act(self.actor, state)
        self.choose(state)

    def choose(self, state: Any) -> None:
        """Replaces the actor's action by the policy's, in a TensorDict or a dict of tensors of the actor's outputs."""
        samples = explores()
        if not samples and type(self.regularizer).greedy is Regularizer.greedy:
            return  # the actor's own action
        q = state[self.action_value_key]
        states = self._at_states(state, q) if self.regularizer.in_keys else {}
        policy, greedy = self.regularizer.policy, self.regularizer.greedy
        action = sample_action(policy(q, **states)) if samples else greedy(q, **states)
        state[self.action_key] = index = self._encoded(action, q, state[self.action_key])
        if "chosen_action_value" in self.out_keys:
            index = index.long().argmax(-1, keepdim=True) if index.shape == q.shape else index.unsqueeze(-1)
            state["chosen_action_value"] = q.gather(-1, index)

    def _at_states(self, state: Any, q: Tensor) -> dict[str, Tensor]:
        if not isinstance(state, TensorDictBase):
            state = TensorDict({key: state[key] for key in self.regularizer.in_keys}, q.shape[:-1])
        return self.regularizer.at_states(state)

    def _encoded(self, action: Tensor, q: Tensor, like: Tensor) -> Tensor:
        if like.shape == q.shape:
            return torch.nn.functional.one_hot(action, q.shape[-1]).to(like.dtype)
        return action.to(like.dtype)


class QuantileAverage(ExactBuffers):
    """A network of ``N * A`` quantiles, read as ``[*B, N, A]``; its own output is their mean ``[*B, A]``."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = check_network(network, "network"), size

    def outputs(self, *inputs: Tensor) -> Tensor:
        """``[*B, N, A]``."""
        flat = self.network(*inputs)
        if flat.shape[-1] % self.size:
            raise ValueError(
                f"The network must have a multiple of {self.size} outputs (that many for each action), got "
                f"{flat.shape[-1]}."
            )
        return flat.unflatten(-1, (self.size, -1))

    def mean(self, outputs: Tensor) -> Tensor:
        """Means ``[*B, A]`` of ``outputs [*B, N, A]``."""
        return outputs.mean(-2)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.mean(self.outputs(*inputs))


class AtomMean(QuantileAverage):
    """Means ``[*B, A]`` of categorical distributions whose logits a network gives."""

    support: Tensor
    exact_buffers = ("support",)

    def __init__(self, network: nn.Module, support: Tensor) -> None:
        super().__init__(network, len(support))
        self.register_buffer("support", support)

    def mean(self, outputs: Tensor) -> Tensor:
        """``sum_i softmax(outputs)_i z_i [*B, A]`` of logits ``outputs [*B, N, A]``."""
        return (outputs.softmax(-2) * self.support.to(outputs.dtype).unsqueeze(-1)).sum(-2)


class DistributionalActor(QActor):
    """Base of the categorical and the quantile actor: gives access to the module that outputs the distribution."""

    @property
    def distribution(self) -> Any:
        """The module that gives ``outputs(observation) [*B, N, A]`` and their ``mean``."""
        return self.module[0].module


class CategoricalQActor(DistributionalActor):
    """A QValueActor whose Q-values are means of categorical distributions: greedy in ``sum_i z_i p_i(s, a)`` (C51).

    Args:
        network: maps the observation to ``[*B, num_atoms * A]`` logits, the atoms of all actions together by atom.
        num_atoms: N >= 2. value_min, value_max: ends of the grid, in units of return; returns beyond them are clipped.
        spec, in_keys: as for :class:`~torchrl.modules.QValueActor`.
        **kwargs: its other arguments.

    TorchRL's :class:`~torchrl.modules.DistributionalQValueActor` writes log-probabilities where every other actor
    writes Q-values; this one writes Q-values, so that exploration modules and Boltzmann policies take it as it is.

    Raises:
        ValueError: no network, fewer than two atoms, or ``value_min >= value_max``.

    Source: Bellemare, Dabney, Munos, "A Distributional Perspective on Reinforcement Learning", ICML 2017.

    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> actor = CategoricalQActor(nn.Linear(4, 51 * 3), num_atoms=51, value_min=-10, value_max=10, spec=Categorical(3))
    >>> actor(TensorDict({"observation": torch.randn(8, 4)}, [8]))["action_value"].shape
    torch.Size([8, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_atoms: int = 51,
        value_min: float = -10.0,
        value_max: float = 10.0,
        spec: TensorSpec | None = None,
        **kwargs: Any,
    ) -> None:
        check_integer(num_atoms, "num_atoms", 2)
        if not -float("inf") < value_min < value_max < float("inf"):
            raise ValueError(f"value_min must be below value_max, both finite, got {value_min!r} and {value_max!r}.")
        device = next((p.device for p in check_network(network, "network").parameters()), None)
        # In float64, so that a loss in double precision has the exact grid.
        support = torch.linspace(value_min, value_max, num_atoms, dtype=torch.float64)
        super().__init__(AtomMean(network, exact_where_possible(lambda x: x.to(device))(support)), spec=spec, **kwargs)


class FixedQuantileQActor(DistributionalActor):
    """A QValueActor whose Q-values are means of quantiles at the fractions ``(i + 1/2) / N`` (QR-DQN).

    Args:
        network: maps the observation to ``[*B, num_quantiles * A]`` quantiles, by quantile, in reward units.
        num_quantiles: N >= 1.
        spec, in_keys: as for :class:`~torchrl.modules.QValueActor`.
        **kwargs: its other arguments.

    Raises:
        ValueError: no network, or ``num_quantiles`` < 1.

    Source: Dabney et al., "Distributional Reinforcement Learning with Quantile Regression", AAAI 2018.

    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> actor = FixedQuantileQActor(nn.Linear(4, 20 * 3), num_quantiles=20, spec=Categorical(3))
    >>> actor(TensorDict({"observation": torch.randn(8, 4)}, [8]))["action_value"].shape
    torch.Size([8, 3])
    """

    def __init__(
        self, network: nn.Module, *, num_quantiles: int = 200, spec: TensorSpec | None = None, **kwargs: Any
    ) -> None:
        check_integer(num_quantiles, "num_quantiles", 1)
        super().__init__(QuantileAverage(network, num_quantiles), spec=spec, **kwargs)


_EXPLORING = (ExplorationType.RANDOM, None)


def explores() -> bool:
    """True under random exploration, which is also the default."""
    return exploration_type() in _EXPLORING


def sample_action(pi: Tensor) -> Tensor:
    """Actions ``[*B]`` drawn with probabilities ``pi [*B, A]``."""
    return torch.multinomial(pi.reshape(-1, pi.shape[-1]), 1).reshape(pi.shape[:-1])
