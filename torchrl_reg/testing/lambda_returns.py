"""Checks of lambda-returns: those of a function of rewards, values and flags, and those that a loss regresses to.

Shapes: ``T`` time, ``B`` sequences.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchrl.objectives.utils import ValueEstimators

from torchrl_reg.testing.checks import Case
from torchrl_reg.testing.probe import NUM_ACTIONS, NUM_STATES, Probe
from torchrl_reg.testing.report import Check, Report, compared, tried
from torchrl_reg.testing.targets import CheckError, Rows

#: Input -> names of the parameter that takes it.
_PARAMETERS = {
    "reward": ("rewards", "reward", "r", "rew", "rews"),
    "value": ("values", "value", "v", "max_q", "max_qs", "q_values", "qs"),
    "next_value": ("next_values", "next_value", "v_next", "next_v", "values_next"),
    "last_value": ("last_value", "last_values", "last_q", "bootstrap", "bootstrap_value", "final_value", "last_max_q"),
    "terminated": ("terminated", "terminateds", "terminal", "terminals"),
    "truncated": ("truncated", "truncateds", "truncations"),
    "done": ("dones", "done", "d", "ends"),
    "gamma": ("gamma", "discount"),
    "lmbda": ("lmbda", "lam", "lambda_", "lambd", "lmda", "td_lambda", "q_lambda"),
}


@dataclass(frozen=True)
class Returns:
    """``G_t = r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda (G_{t+1} - c_{t+1}))``, as it should be, or with a mistake.

    Where an episode ends, and at the last step, it is ``r_t + gamma V(s_{t+1})``, with V = 0 if s_{t+1} is terminal.

    Args:
        gamma, lmbda: discount and trace parameter.
        value: ``"s'"``; ``"s"`` takes that of the state before, and ``"last"`` that of the last state in the
            second-to-last return. cut: whether an end stops the return.
        zero: which flag makes the value 0: ``"terminated"``, ``"done"`` or ``"never"``.
        last: whether what follows the data counts. costs: whether ``c`` is paid.
    """

    gamma: float
    lmbda: float
    value: str = "s'"
    cut: bool = True
    zero: str = "terminated"
    last: bool = True
    costs: bool = True

    def __call__(
        self,
        reward: Tensor,
        here: Tensor,
        following: Tensor,
        terminated: Tensor,
        done: Tensor,
        cost: Tensor | None = None,
    ) -> Tensor:
        """Returns ``[T, B]`` of ``r_t``, ``V(s_t)``, ``V(s_{t+1})``, flags and costs ``c_t``, each ``[T, B]``."""
        zero = {"terminated": terminated, "done": done, "never": torch.zeros_like(done)}[self.zero]
        value = following.clone()
        if self.value == "s":
            value[:-1] = here[:-1]
        if self.value == "last":
            value[-2] = value[-1]
        if not self.last:
            value[-1] = 0.0
        value = value.masked_fill(zero, 0.0)
        returns = [reward[-1] + self.gamma * value[-1]]
        for t in reversed(range(len(reward) - 1)):
            later = returns[-1] if cost is None or not self.costs else returns[-1] - cost[t + 1]
            mixed = (1 - self.lmbda) * value[t] + self.lmbda * later
            ends = done[t] if self.cut else torch.zeros_like(done[t])
            returns.append(reward[t] + self.gamma * torch.where(ends, value[t], mixed))
        return torch.stack(returns[::-1])


#: The known mistakes, each as the parts of :class:`Returns` that it replaces.
MISTAKES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("wrong state in the lambda-return", {"value": "last"}),
    ("wrong state in the lambda-return", {"value": "s"}),
    ("episodes leak", {"cut": False}),
    ("no bootstrap at truncation", {"zero": "done"}),
    ("bootstrap after a terminal state", {"zero": "never"}),
    ("episodes leak", {"cut": False, "zero": "never"}),
    ("episodes leak", {"cut": False, "zero": "done"}),
    ("lambda ignored", {"lmbda": 0.0}),
    ("lambda ignored", {"lmbda": 1.0}),
    ("gamma missing", {"gamma": 1.0}),
    ("no bootstrap at the end of the data", {"last": False}),
    ("step entropy missing in the lambda-return", {"costs": False}),
)


def check_lambda_return(function: Callable[..., Any], *, gamma: float = 0.9, lmbda: float = 0.7) -> Report:
    """Check ``G_t = r_t + gamma ((1 - lambda) V(s_{t+1}) + lambda G_{t+1})``, a function of tensors ``[T, B]``.

    Rewards and values are in reward units.
    Parameters are recognized by name: ``rewards``; ``next_values`` (``V(s_{t+1})``), or ``values`` (``V(s_t)``) with
    ``last_value [B]`` (without: ``values [T + 1, B]``); ``terminated`` and ``truncated``, or ``dones``, which then ends
    episodes for good; ``gamma``; ``lmbda`` or ``lam``. Values after a truncation are only in ``next_values``.

    Args:
        function: what is checked.
        gamma, lmbda: discount and trace parameter, which a function without such parameters has to have built in.

    Returns:
        The report: ``report.passed``, ``report.errors``.

    Raises:
        CheckError: a parameter that is none of these and has no default, or a result of another shape.

    Source: the recursion of Sutton 1988; of the mistakes, purejaxql's issue 12.

    >>> def wrong(rewards, next_values, dones, gamma, lmbda):  # leaks into the next episode
    ...     g = next_values[-1]
    ...     returns = []
    ...     for r, v in zip(reversed(rewards), reversed(next_values)):
    ...         g = r + gamma * ((1 - lmbda) * v + lmbda * g)
    ...         returns.append(g)
    ...     return torch.stack(returns[::-1])
    >>> check_lambda_return(wrong).errors
    ['episodes leak']
    """
    wanted = _wanted(function)
    generator = torch.Generator().manual_seed(5)
    length, count = 9, 3
    reward, state, following = torch.randn(3, length, count, generator=generator, dtype=torch.float64)
    last = torch.randn(count, generator=generator, dtype=torch.float64)
    terminated = torch.zeros(length, count, dtype=torch.bool)
    terminated[3, 0] = terminated[5, 1] = terminated[7, 2] = True
    truncated = torch.zeros_like(terminated)
    if "next_value" in wanted and {"terminated", "truncated"} & wanted.keys():
        truncated[2, 1] = truncated[6, 0] = True
    done, after = terminated | truncated, torch.cat((state[1:], last.unsqueeze(0)))
    following = torch.where(done, following, after)  # V(s_{t+1}) is that of the next row, unless an episode ends
    alone = "next_value" not in wanted and "last_value" not in wanted
    if "next_value" not in wanted:
        following = after
    values = torch.cat((state, last.unsqueeze(0))) if alone else state
    given = {"reward": reward, "value": values, "next_value": following, "last_value": last, "gamma": gamma}
    given |= {"terminated": terminated, "truncated": truncated, "done": done, "lmbda": lmbda}
    got = function(**{parameter: given[what] for what, parameter in wanted.items()})
    if not isinstance(got, Tensor) or got.shape != reward.shape:
        raise CheckError(
            f"The function must return a tensor {tuple(reward.shape)}, got {getattr(got, 'shape', got)!r}."
        )
    data = (reward, state, following, terminated, done)
    check = _named("lambda-return", got, Returns(gamma, lmbda), lambda returns_of: returns_of(*data))
    name = getattr(function, "__name__", "function")
    return Report(name, f"a lambda-return, gamma={gamma:g}, lambda={lmbda:g}", [check])


def _wanted(function: Callable[..., Any]) -> dict[str, str]:
    wanted = {}
    for name, parameter in inspect.signature(function).parameters.items():
        what = next((what for what, names in _PARAMETERS.items() if name.lower() in names), None)
        if what is not None:
            wanted[what] = name
        elif parameter.default is parameter.empty and not parameter.kind.name.startswith("VAR"):
            known = ", ".join(names[0] for names in _PARAMETERS.values())
            raise CheckError(f"The function's parameters must be among {known}, got {name!r}.")
    if not {"value", "next_value"} & wanted.keys() or "reward" not in wanted:
        raise CheckError(f"The function must take rewards and values, got parameters {', '.join(wanted.values())}.")
    return wanted


@tried("lambda-return")
def lambda_check(probe: Probe, case: Case, lmbda: float) -> Check:
    """The mean loss of whole sequences against that of the lambda-returns of the target that the loss has."""
    name, held = "lambda-return", case.held
    if case.fitted is None or probe.head == "categorical" or held.value == "sparsemax" or held.prior or held.actor:
        return Check(name, "n/a", note="not known what its lambda-return should be")
    loss: Any = probe.loss
    loss.make_value_estimator(ValueEstimators.TDLambda, gamma=held.gamma, lmbda=lmbda)
    probe.set(case.values)
    distance, sequences = case.fitted, list(_sequences(6, 7))
    got = torch.stack([_of_sequence(probe, rows) for rows in sequences])

    def means(returns_of: Returns) -> Tensor:
        return torch.stack([distance(_errors(case, returns_of, rows)).mean() for rows in sequences])

    return _named(name, got, Returns(held.gamma, lmbda), means, "mean loss of a sequence")


def _named(name: str, got: Tensor, claimed: Returns, of: Callable[[Returns], Tensor], note: str = "") -> Check:
    def fits(returns_of: Returns) -> bool:
        return torch.allclose(got.double(), of(returns_of), rtol=1e-5)

    errors = [] if fits(claimed) else [error for error, parts in MISTAKES if fits(replace(claimed, **parts))]
    return compared(name, of(claimed), got, errors[:1], note, rtol=1e-5)


def _of_sequence(probe: Probe, rows: Rows) -> Tensor:
    data = probe.data(rows).unsqueeze(0)
    data.names = [None, "time"]
    return probe.value(data).detach().double()


def _sequences(count: int, length: int) -> Iterator[Rows]:
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        states = torch.randint(NUM_STATES, (length + 1,), generator=generator)
        r = 2 * torch.rand(length, generator=generator, dtype=torch.float64) - 1
        ended = torch.rand(2, length, generator=generator) < 0.2
        after = torch.where(ended.any(0), (states[1:] + 1) % NUM_STATES, states[1:])  # a new episode starts elsewhere
        action = torch.randint(NUM_ACTIONS, (length,), generator=generator)
        terminated, truncated = ended[0], ended[1] & ~ended[0]
        yield Rows(states[:-1], action, r, after, terminated, truncated, torch.ones_like(action))


def _errors(case: Case, returns_of: Returns, rows: Rows) -> Tensor:
    """Predictions less their returns ``[T]``."""
    held, nets = case.held, {"target": case.values.target, "online": case.values.online}
    q = nets[held.next_net]
    behind = nets["online"] if held.double else q
    here, following = (held.state_value(q[at], behind[at]).unsqueeze(-1) for at in (rows.s, rows.next_s))
    bonus = held.copies * held.bonus_of(rows, nets[held.bonus_net])
    cost = None
    if held.value == "softmax" and held.cost_weight:
        log_pi = (nets["target"][rows.s] / held.tau).log_softmax(-1)
        cost = held.cost_weight * log_pi[torch.arange(len(rows)), rows.a].unsqueeze(-1)
    done = (rows.terminated | rows.truncated).unsqueeze(-1)
    returns = returns_of((rows.r + bonus).unsqueeze(-1), here, following, rows.terminated.unsqueeze(-1), done, cost)
    return nets["online"][rows.s, rows.a] - returns.squeeze(-1)
