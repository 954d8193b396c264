"""Checks of any loss on Q-values against exact targets, with the name of the known error that explains what it does.

Shapes: ``N`` rows, ``S`` states, ``A`` actions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from torchrl_reg.tabular import (
    Solution,
    TabularMDP,
    advantage_learning,
    munchausen_value_iteration,
    random_mdp,
    soft_value_iteration,
    tsallis_value_iteration,
)
from torchrl_reg.testing.probe import NUM_ACTIONS, NUM_STATES, SUPPORT, Probe, Reading
from torchrl_reg.testing.report import Check, compared, hypotheses, mistakes_of, raised
from torchrl_reg.testing.targets import Distance, Rows, Target, Values, fitted

GROUPS = {"one step": 0, "terminated": 1, "truncated": 2, "n steps": 3}


@dataclass
class Case:
    """Transitions of four kinds between random values, and the losses of each.

    Args:
        probe: the loss. claim: what it claims. values: those of its networks.
        rows: the transitions; ``group [N]`` is the kind of each. reading: the loss and gradient of each.
        more: entries that the data have beside.
        errors, held, fitted: known errors that explain every row, the target that has them, and the distance;
            the claim and None where nothing does.
    """

    probe: Probe
    claim: Target
    values: Values
    rows: Rows
    group: Tensor
    reading: Reading
    more: dict[str, Tensor]
    errors: tuple[str, ...] = ()
    held: Target = field(default_factory=Target)
    fitted: Distance | None = None

    @property
    def tol(self) -> float:
        """Largest relative difference of equal numbers."""
        return 1e-6 if self.probe.dtype == torch.float64 else 2e-4

    @property
    def prediction(self) -> Tensor:
        """``q(s, a) [N]`` of the online network."""
        return self.values.online[self.rows.s, self.rows.a]

    def targets(self, claim: Target) -> Tensor:
        """``[N]`` of ``claim``."""
        return claim(self.rows, self.values)

    def distance(self, y: Tensor, among: Tensor | None = None) -> Distance | None:
        """The distance with which the losses (of the rows ``among``) are those of targets ``y``."""
        every = torch.ones_like(self.group, dtype=torch.bool) if among is None else among
        if self.probe.head == "categorical":
            means = self.probe.mean_targets(self.rows, self.values.online, self.reading)
            right = (means - y)[every].abs().max() < 10 * self.tol
            return Distance("squared", math.nan, torch.square) if right else None
        slope = self.signed()[torch.arange(len(self.rows)), self.rows.s, self.rows.a]
        return fitted((self.prediction - y)[every], self.reading.loss[every], slope[every], self.tol)

    def seen(self) -> Tensor:
        """Targets ``[N]`` as read from the loss and its gradient; right for squares, and for Huber's within 1."""
        if self.probe.head == "categorical":
            return self.probe.mean_targets(self.rows, self.values.online, self.reading)
        grad = self.signed()[torch.arange(len(self.rows)), self.rows.s, self.rows.a]
        return self.prediction - 2 * self.reading.loss / grad

    def reread(self, probe: Probe, index: Any) -> Case:
        """The same for some of the rows, read from another ``probe``."""
        probe.set(self.values)
        more, rows = {name: value[index] for name, value in self.more.items()}, self.rows[index]
        reading = probe.read(rows, **more)
        return replace(self, probe=probe, rows=rows, group=self.group[index], reading=reading, more=more)

    def signed(self) -> Tensor:
        """Gradients ``[N, S, A]`` with respect to the values, summed over what represents them."""
        return self.reading.grad.unflatten(-1, (-1, NUM_ACTIONS)).sum(-2)

    def reached(self) -> Tensor:
        """True where a gradient reaches a value ``[N, S, A]``."""
        size = self.reading.grad.unflatten(-1, (-1, NUM_ACTIONS)).abs().sum(-2)
        return size > 1e-7 * size.amax()


def values_for(claim: Target, generator: torch.Generator, limit: float = math.inf) -> Tensor:
    """Random values ``[S, A]``: gaps about ``tau`` in half of the states, and such as a clip acts on in the others.

    Neither scale exceeds ``limit``, which keeps them on a grid of atoms; two states are worth much more and less,
    which shows values that are clipped.
    """
    tight = claim.tau or 0.3
    wide = max(0.7, 1.5 * (abs(claim.clip_min) if math.isfinite(claim.clip_min) else 0.0))
    scale = (
        torch.tensor([min(tight, limit), min(wide, limit)]).double().repeat_interleave(NUM_STATES // 2).unsqueeze(-1)
    )
    worth = torch.tensor([0.3, 0.3, 5.0, 0.3, -5.0, 0.3], dtype=torch.float64).unsqueeze(-1)
    return worth + scale * torch.randn(NUM_STATES, NUM_ACTIONS, generator=generator, dtype=torch.float64)


def transitions(
    generator: torch.Generator, *, n_step: bool, steps: int = 1, largest: float = 12.0
) -> tuple[Rows, Tensor]:
    """All states and actions, ending in no way, then each way, then after several steps; and the kind of each row.

    Rewards of a third of the rows lie in [-1, 1], of another within 3, and of the last within ``largest``.
    """
    kinds = 4 if n_step else 3
    s, a = torch.ones(NUM_STATES, NUM_ACTIONS).nonzero().repeat(kinds, 1).unbind(-1)
    group = torch.arange(kinds).repeat_interleave(NUM_STATES * NUM_ACTIONS)
    away = torch.randint(1, NUM_STATES, group.shape, generator=generator)
    r = 2 * torch.rand(group.shape, generator=generator, dtype=torch.float64) - 1
    r = r * torch.tensor([1.0, min(3.0, largest), largest], dtype=torch.float64)[(s + a) % 3]
    count = torch.where(group == 3, 2 + away % 2, steps)
    rows = Rows(s, a, r, (s + away) % NUM_STATES, group == 1, group == 2, count)
    place = torch.arange(len(group))
    some = torch.where(group == 0, place % 3 != 2, place % 4 == 0)
    return rows[some], group[some]


def case_of(probe: Probe, claim: Target, *, n_step: bool = False, steps: int = 1) -> Case:
    """Reads ``probe`` on random values; ``n_step`` adds transitions of several steps, ``steps`` is for the others."""
    generator = torch.Generator().manual_seed(1)
    online, target = (values_for(claim, generator, 2.0 if probe.head == "categorical" else math.inf) for _ in range(2))
    extra = [torch.randn(2, *online.shape, generator=generator, dtype=torch.float64)] if probe.logits else []
    largest = 3.0 if probe.head == "categorical" else 12.0
    values = Values(online, target if probe.target else online, *(part for pair in extra for part in pair))
    probe.set(values)
    rows, group = transitions(generator, n_step=n_step, steps=steps, largest=largest)
    more = {"steps_to_next_obs": rows.steps.unsqueeze(-1)} if n_step else {}
    reading = probe.read(rows, **more)
    return Case(probe, claim, values, rows, group, reading, more)


def explained(case: Case) -> Case:
    """The case with what explains it: two known errors, or two of single steps and two of ends and several steps."""
    known = mistakes_of(case.claim)
    late = [m for m in known if m.parts.keys() & {"ends", "bonus_at_end", "reward_at_end", "power"}]
    for plan in ([(known, None)], [(known, case.group == 0), (late, None)]):
        names: tuple[str, ...] = ()
        candidate = case.claim
        for mistakes, among in plan:
            fits = ((n, t) for n, t in hypotheses(candidate, mistakes) if case.distance(case.targets(t), among))
            more, candidate = next(fits, (None, candidate))
            if more is None:
                break
            names += more
        else:
            return replace(case, errors=names, held=candidate, fitted=case.distance(case.targets(candidate)))
    return replace(case, held=case.claim)


def target_checks(case: Case) -> Iterator[Check]:
    """One check for each kind of transition."""
    y, found = case.targets(case.claim), case.targets(case.held) if case.fitted else case.seen()
    for name, number in GROUPS.items():
        among = case.group == number
        if not among.any():
            yield Check(name, "n/a", note="does not read steps_to_next_obs")
            continue
        worst = int(torch.where(among, (found - y).abs().nan_to_num(posinf=1e9), -1.0).argmax())
        row = case.rows[worst]
        note = f"target at s={int(row.s)}, a={int(row.a)}, s'={int(row.next_s)}, r={row.r.item():.3g}"
        errors = [error for error in case.errors if len(case.errors) == 1 or _matters(case, error, among)]
        if case.fitted or not case.distance(y, among):
            yield compared(name, y[among], found[among], errors, note)
        else:
            yield Check(name, "pass", y[worst].item(), y[worst].item())


def _matters(case: Case, name: str, among: Tensor) -> bool:
    """True if the named one of several errors changes a target of these rows."""
    parts = [mistake.parts for mistake in mistakes_of(case.claim) if mistake.name == name]
    changes = [case.targets(replace(case.claim, **p)) - case.targets(case.claim) for p in parts]
    return any(bool((change[among].abs() > 1e-5).any()) for change in changes)


def trace_checks(case: Case) -> Iterator[Check]:
    """Errors that no target shows: tau ln pi clipped above, and a softmax of values without the temperature."""
    claim, rows, q = case.claim, case.rows, case.values.target
    if claim.value != "softmax":
        return
    above, tau, names = 0.0, claim.tau, {1.0: "softmax without tau", 1 / claim.tau: "1 / tau for tau"}
    for s, after, trace in zip(rows.s, rows.next_s, case.reading.traces, strict=True):
        above = trace.clips_above_zero(claim.clip_min) or above
        taken = (t for t in names for at in (s, after) if abs(t - claim.tau) > 1e-6 and trace.softmax_of(q[at] / t))
        tau = next(taken, tau)
    error = (names[tau],) if tau != claim.tau else ()
    yield Check("temperature of softmaxes", "fail" if error else "pass", claim.tau, tau, error)
    if math.isfinite(claim.clip_min) and claim.bonus == "munchausen":
        wrong = ("clip [l0, 1] instead of [l0, 0]",) * bool(above)
        yield Check("upper clip", "fail" if above else "pass", 0.0, above, wrong)


def gradient_check(case: Case) -> Check:
    """The gradient against finite differences of the distance to a constant target, and where else one arrives."""
    name, reached, rows, count = "gradient", case.reached(), case.rows, torch.arange(len(case.rows))
    own, elsewhere, others = reached[count, rows.s, rows.a], reached.clone(), reached[count, rows.s]
    elsewhere[count, rows.s] = False
    others[count, rows.a] = False
    errors = ["gradient through the target"] * bool(elsewhere.any())
    if not own.all():
        greedy = case.values.online[rows.s].argmax(-1)
        is_greedy = bool((others.any(-1) == (greedy != rows.a)).all() and reached[count, rows.s, greedy].all())
        errors += ["greedy action for the stored one"] * is_greedy
        flat = case.fitted is not None and case.fitted.name == "clipped"
        errors += ["no gradient of large errors"] * flat
        errors += ["one-hot action misread"] * (case.probe.one_hot and not is_greedy and not flat)
    elif others.any() and case.claim.bonus != "none":
        errors.append("bonus not detached")
    count_reached = float(reached.sum((-1, -2)).max())
    if elsewhere.any() or others.any() or not own.all():
        return Check(name, "fail", 1.0, count_reached, tuple(errors), "values that get a gradient, of one row")
    if case.probe.head == "categorical":
        return Check(name, "pass", 1.0, count_reached)
    if case.fitted is None:
        return Check(name, "n/a", note="not compared: what it regresses to is unknown")
    error, step = case.prediction - case.targets(case.held), 1e-6
    expected = (case.fitted(error + step) - case.fitted(error - step)) / (2 * step)
    return compared(name, expected, case.signed()[count, rows.s, rows.a], rtol=1e-3)


def fixed_point_check(case: Case) -> Check:
    """The loss at the values of the exact solution of a small MDP, which are their own targets."""
    claim, probe = case.claim, case.probe
    mdp = random_mdp(NUM_STATES, NUM_ACTIONS, claim.gamma, seed=3, deterministic=True)
    terminal = torch.arange(NUM_STATES) == NUM_STATES - 1
    mdp = TabularMDP(mdp.P, mdp.r * (1 - claim.gamma), claim.gamma, terminal)
    solution = _solution(mdp, claim) if case.rows.steps.min() == 1 else None
    if solution is None or (probe.head == "categorical" and solution.q.abs().max() > 0.8 * SUPPORT[-1]):
        return Check("fixed point", "n/a", note="no exact solution of this method, of single steps, on the atoms")
    q = torch.where(terminal.unsqueeze(-1), 0.7, solution.q)  # what a terminal state is said to be worth must not count
    probe.set(Values(q, q, q / claim.tau if claim.actor else None))
    s, a = (~terminal.unsqueeze(-1)).expand_as(q).nonzero()[::2].unbind(-1)
    following, never = mdp.P[s, a].argmax(-1), torch.zeros_like(s, dtype=torch.bool)
    rows = Rows(s, a, mdp.r[s, a], following, terminal[following], never, torch.ones_like(s))
    reading = probe.read(rows)
    residual = reading.loss if probe.head != "categorical" else probe.mean_targets(rows, q, reading) - q[s, a]
    probe.set(case.values)
    worst = residual.abs().max().item()
    if worst < (1e-8 if probe.dtype == torch.float64 else 1e-4):
        return Check("fixed point", "pass", 0.0, worst)
    return Check("fixed point", "fail", 0.0, worst, case.errors, f"residual at the optimum of {NUM_STATES} states")


def _solution(mdp: TabularMDP, claim: Target) -> Solution | None:
    if claim.bonus == "munchausen":
        low = claim.clip_min if math.isfinite(claim.clip_min) else None
        return munchausen_value_iteration(mdp, claim.tau, claim.alpha, low) if claim.alpha < 1 else None
    if claim.bonus != "none":
        return advantage_learning(mdp, claim.alpha, persistent="persistent" in claim.bonus) if claim.alpha < 1 else None
    if claim.value == "sparsemax":
        return tsallis_value_iteration(mdp, claim.tau)
    if claim.value == "max":
        return soft_value_iteration(mdp, 0.0)
    prior = torch.tensor(claim.prior).double() if claim.prior else None
    return soft_value_iteration(mdp, claim.tau, prior=prior) if claim.cost_weight else None


def batch_checks(case: Case) -> Iterator[Check]:
    """A batch is the mean of its rows, and its gradient that of its halves', as data parallelism takes them."""
    probe, count = case.probe, 12
    data, each = probe.data(case.rows, **case.more)[:count], case.reading.loss[:count]
    try:
        got, errors = probe.value(data).detach().double(), []
    except Exception as error:
        yield Check("mean over a batch", "fail", note=f"{raised(error)}, of {count} rows")
        return
    if math.isclose(got, each.sum() / probe.copies, rel_tol=1e-5):
        errors.append("sum for mean")
    elif case.fitted and probe.head != "categorical":
        pairs = case.fitted(case.prediction[:count].unsqueeze(-1) - case.targets(case.held)[:count])
        errors += ["mean over pairs of rows"] * math.isclose(got, pairs.mean(), rel_tol=1e-5)
    yield _of_one(probe, data)
    yield compared("mean over a batch", each.mean(), got, errors, rtol=10 * case.tol)
    whole, half = probe.gradient(data), count // 2
    yield compared("data parallelism", (probe.gradient(data[:half]) + probe.gradient(data[half:])) / 2, whole, errors)


def _of_one(probe: Probe, data: Any) -> Check:
    try:
        probe.value(data[:1])
    except Exception as error:
        return Check("batch of one", "fail", note=f"raises {type(error).__name__}: {str(error)[:70]}")
    return Check("batch of one", "pass")
