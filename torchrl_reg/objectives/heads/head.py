"""Slot 3: what the network says at (s, a), and how that is regressed towards a target.

A head is chosen by the actor handed to the loss. It holds options, no tensors: parameters and buffers are read from the
network it is shown.

Shapes: ``*B`` batch, ``A`` actions, ``N`` online and ``M`` target quantiles or atoms (1 for an expected value).
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.modules import QValueActor

from torchrl_reg.objectives.binding import BoundQNetwork
from torchrl_reg.regularizers import Regularized
from torchrl_reg.torchrl_compat import entry


class TargetValues(NamedTuple):
    """What the target network says."""

    q: Tensor | None
    """Q-values ``[*B, A]`` at s, if they were asked for."""
    next_q: Tensor
    """Q-values behind the policy at s' ``[*B, A]``."""
    next_z: Tensor
    """The values that are backed up from s': ``[*B, A]``, or ``[*B, M, A]``."""


class Prediction(NamedTuple):
    """The online network's outputs at s, with gradient."""

    z: Tensor
    """``[*B, A]``, or ``[*B, N, A]``."""
    fractions: Tensor | None = None
    """Quantile fractions of the N, if they were drawn."""


class Regression(NamedTuple):
    """How far the prediction lies from its target."""

    elementwise: Tensor
    """Losses ``[*B]``."""
    priority: Tensor
    """Priorities ``[*B]``, detached."""
    td_error: Tensor | None
    """Difference of the means ``[*B]``, detached; None where nobody asked and it would have cost something."""
    clipped_mass: Tensor | None = None
    """Share of the target's mass that lies outside the grid ``[*B]``; None without a grid, or where nobody asked."""


class Head:
    """Base of the heads: reads what the network says at (s, a), backs up values from s', and measures the distance.

    As written here it reads networks with ``outputs(observation) [*B, N, A]``.
    """

    #: The actor whose network this head reads.
    actor_type: ClassVar[type] = QValueActor
    #: Whether reading it draws random numbers.
    draws: ClassVar[bool] = False
    #: Whether values at successive steps can be mixed in a lambda-return.
    traces: ClassVar[bool] = True
    #: Whether the value is one number, so that the regularizer's own value is the backup.
    expected: ClassVar[bool] = False

    @property
    def stackable(self) -> bool:
        """True if several losses may be computed as one; a head that draws then has its own :meth:`drawn`."""
        return not self.draws

    def drawn(self, rows: int, *, here: bool, double: bool, like: Tensor) -> dict[str, Tensor]:
        """The random numbers of one pass over ``rows`` rows, in its order; it takes them from data that have them.

        ``here`` and ``double`` say whether the target network is read at s, and the online network at s', too;
        ``like`` has their dtype and device.
        """
        return {}

    def check(self, network: Any, loss_function: str | None) -> None:
        """Refuse a network that is not this head's, or a distance of numbers where it has one of its own.

        Raises:
            ValueError: the network is of another kind.
            TypeError: ``loss_function`` is not None.
        """
        if not isinstance(network, self.actor_type):
            article = "an" if self.actor_type.__name__[0] in "AEIOU" else "a"
            raise ValueError(
                f"value_network must be {article} {self.actor_type.__name__}, got {type(network).__name__}."
            )
        if loss_function is not None:
            raise TypeError(
                f"loss_function must be None, as the distance is that of {type(self).__name__}, got {loss_function!r}."
            )

    def online(self, bound: BoundQNetwork, tensordict: TensorDictBase) -> Prediction:
        """The online network's outputs at s."""
        return Prediction(bound.inner.outputs(*bound.inputs(tensordict)))

    def q_values(self, z: Tensor, bound: BoundQNetwork, tensordict: TensorDictBase) -> Tensor:
        """Q-values ``[*B, A]`` of outputs ``z`` at ``tensordict``, forbidden actions masked."""
        return bound.allowed(bound.inner.mean(z.detach()), tensordict)

    def target(
        self, bound: BoundQNetwork, tensordict: TensorDictBase, *, here: bool, here_counts: bool
    ) -> TargetValues:
        """What the target network says at s' and, with ``here``, at s (for more than diagnostics: ``here_counts``)."""
        following, outputs = entry(tensordict, "next"), bound.inner.outputs
        if not here:
            next_z = outputs(*bound.inputs(following))
            return TargetValues(None, self.q_values(next_z, bound, following), next_z)
        z, next_z = bound.both(tensordict, here_counts=here_counts, call=outputs)
        return TargetValues(self.q_values(z, bound, tensordict), self.q_values(next_z, bound, following), next_z)

    def next_online_q(self, bound: BoundQNetwork, tensordict: TensorDictBase) -> Tensor:
        """Q-values ``[*B, A]`` of the online network at s', for double Q-learning."""
        following = entry(tensordict, "next")
        return self.q_values(self.online(bound, following).z, bound, following)

    def backup(
        self, next_z: Tensor, policy: Regularized, bound: BoundQNetwork, *, greedy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """``sum_a pi(a|s') (z(s', a) - cost(a))`` as values ``[*B, M]`` and their masses (None: equal).

        ``greedy`` says that the policy is all on one action.
        """
        raise NotImplementedError

    def regress(
        self,
        prediction: Prediction,
        action: Tensor,
        values: Tensor,
        masses: Tensor | None,
        *,
        bound: BoundQNetwork,
        loss_function: str,
        reports: bool,
    ) -> Regression:
        """Distance of the outputs at the indices ``action [*B]`` from target ``values [*B, M]`` with their ``masses``.

        ``loss_function`` names the distance of an expected value; distributions have their own. ``reports`` says that
        the TD error is wanted.
        """
        raise NotImplementedError


def of_action(z: Tensor, action: Tensor) -> Tensor:
    """Entries ``[*B, N]`` of ``z [*B, N, A]`` at the indices ``action [*B]``."""
    return z.gather(-1, action[..., None, None].expand(*z.shape[:-1], 1)).squeeze(-1)
