"""Slot 2: what is added to the reward, from the target network's values and policy at s and the stored action.

Shapes: ``*B`` batch, ``A`` actions.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from torchrl_reg.functional import advantage_gap, munchausen_bonus, persistent_advantage_gap
from torchrl_reg.functional.soft import gather_action
from torchrl_reg.regularizers.checks import check_clip, check_flag, check_weight
from torchrl_reg.regularizers.coefficients import Coefficient, CoefficientOwner, as_coefficient, coefficient


class Shaping(CoefficientOwner):
    """Base of the reward shapings: ``shaping(q, tau_log_pi, action, next_q=, terminated=)`` is a bonus ``[*B]``.

    A bonus is in reward units; no gradient passes through it.
    """

    #: Names of the :meth:`diagnostics`.
    diagnostic_keys: ClassVar[tuple[str, ...]] = ("bonus",)
    #: True if it needs to know where episodes terminate.
    reads_terminated: bool = True
    #: True if the policy at s is the online network's, detached, rather than the target network's.
    online: bool = False

    def forward(
        self, q: Tensor, tau_log_pi: Tensor, action: Tensor, *, next_q: Tensor, terminated: Tensor | None = None
    ) -> Tensor:
        """The bonus ``[*B]``, in reward units.

        Args:
            q: Q-values of the target network at s ``[*B, A]``.
            tau_log_pi: its scaled log-policy there ``[*B, A]``, as a regularizer gives it.
            action: stored actions, indices ``[*B]``.
            next_q: its Q-values at s' ``[*B, A]``.
            terminated: whether s' is terminal ``[*B]``; None means nowhere.
        """
        raise NotImplementedError

    def diagnostics(self, bonus: Tensor, tau_log_pi_a: Tensor) -> dict[str, Tensor]:
        """Rows ``[*B]``; ``tau_log_pi_a [*B]`` is the scaled log-policy of the stored action."""
        return {"bonus": bonus}


class Munchausen(Shaping):
    """``bonus = alpha max(tau ln pi(a|s), clip_min) [*B]``, the scaled log-policy of the stored action (reward units).

    With a regularizer other than the entropy it is that regularizer's ``tau_log_pi``: with
    :class:`~torchrl_reg.regularizers.HardMax`, minus the advantage gap; with
    :class:`~torchrl_reg.regularizers.PriorKL`, ``tau ln(pi / rho)``, which may be positive. A prior shifts what
    ``clip_min`` clips by ``-tau ln rho(a)``, a uniform one by ``tau ln A``: the same clip is ``clip_min + tau ln A``
    there. Without a clip a uniform prior gives the policies of the entropy.

    Args:
        alpha: weight in [0, 1]. clip_min: lower clip <= 0 in reward units, None for none. Both can be assigned.
        online: take the log-policy at s from the online network's own pass, detached, as the released code of Beyond
            The Rainbow does; papers take the target network's. One pass less.

    Raises:
        ValueError: a coefficient out of range.

    Source: Vieillard, Pietquin, Geist, "Munchausen Reinforcement Learning", NeurIPS 2020, eq. (2).

    >>> import torch
    >>> q = torch.tensor([[1.0, 0.0]])
    >>> shaping = Munchausen(alpha=0.5, clip_min=-0.3)
    >>> shaping(q, torch.tensor([[-0.1, -0.9]]), torch.tensor([1]), next_q=q)
    tensor([-0.1500])
    """

    coefficient_names = ("alpha", "clip_min")
    diagnostic_keys = ("bonus", "bonus_clipped")
    reads_terminated = False
    alpha = coefficient("alpha_coefficient", "Current weight of the bonus.")
    clip_min = coefficient("clip_min_coefficient", "Current lower clip, in reward units; -inf is none.")

    def __init__(
        self, alpha: float | Coefficient = 0.9, clip_min: float | Coefficient | None = -1.0, *, online: bool = False
    ) -> None:
        super().__init__()
        self.online = check_flag(online, "online")
        self.alpha_coefficient = as_coefficient(alpha, name="alpha", check=check_weight)
        self.clip_min_coefficient = as_coefficient(clip_min, name="clip_min", check=check_clip)

    def forward(self, q: Tensor, tau_log_pi: Tensor, action: Tensor, **_: Any) -> Tensor:
        return munchausen_bonus(gather_action(tau_log_pi, action), self.alpha, self.clip_min)

    def diagnostics(self, bonus: Tensor, tau_log_pi_a: Tensor) -> dict[str, Tensor]:
        """``bonus``, and ``bonus_clipped``: 1 where ``clip_min`` changes the bonus, so nowhere with ``alpha=0``."""
        clipped = (tau_log_pi_a < self.clip_min) & (self.alpha > 0)
        return {"bonus": bonus, "bonus_clipped": clipped.to(bonus.dtype)}


class AdvantageGap(Shaping):
    """``-alpha (max_b q(s, b) - q(s, a))``, or with ``persistent=True`` the smaller of the gaps of ``a`` at s and s'.

    Called with ``q [*B, A]`` and the stored actions ``[*B]``; the bonus ``[*B]`` is in reward units.

    Args:
        alpha: weight in [0, 1]; can be assigned.
        persistent: persistent advantage learning. At a terminal s' it is the gap at s.

    Raises:
        ValueError: ``alpha`` outside [0, 1], a ``persistent`` that is no bool.

    Source: Bellemare et al., "Increasing the Action Gap", AAAI 2016, eqs. (7) and (9).
    """

    coefficient_names = ("alpha",)
    alpha = coefficient("alpha_coefficient", "Current weight of the gap.")

    def __init__(self, alpha: float | Coefficient = 0.9, *, persistent: bool = False) -> None:
        super().__init__()
        self.alpha_coefficient = as_coefficient(alpha, name="alpha", check=check_weight)
        self.persistent = self.reads_terminated = check_flag(persistent, "persistent")

    def forward(
        self, q: Tensor, tau_log_pi: Tensor, action: Tensor, *, next_q: Tensor, terminated: Tensor | None = None
    ) -> Tensor:
        if not self.persistent:
            return -self.alpha * advantage_gap(q, action)
        ended = action.new_zeros(action.shape).bool() if terminated is None else terminated
        return -self.alpha * persistent_advantage_gap(q, next_q, action, ended)
