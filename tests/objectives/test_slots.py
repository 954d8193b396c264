"""Every cell regularizer x shaping x head x bootstrap against its equation, in Python loops over rows, atoms, actions.

One table drives all of it: a new regularizer is one row of :data:`REGULARIZERS`.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchrl_reg.objectives import AdvantageGap, Munchausen, PolyakTargetUpdate, QLearningLoss
from torchrl_reg.objectives.heads import FixedQuantiles, ImplicitQuantiles
from torchrl_reg.regularizers import ActionPrior, Entropy, HardMax, PriorKL, Tsallis

GAMMA, TAU, ALPHA, CLIP, KAPPA, LAMBDA = 0.9, 0.5, 0.5, -0.3, 0.5, 0.7
RHO = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)


def boltzmann(q: Tensor, rho: Any = 1.0) -> Tensor:
    weights = rho * torch.exp((q - q.max()) / TAU)
    return weights / weights.sum()


def sparsemax(q: Tensor) -> Tensor:
    """The largest threshold that leaves a mass of one, by trying every number of actions."""
    z = (q / TAU).sort(descending=True).values
    thresholds = [(z[:k].sum() - 1) / k for k in range(1, len(z) + 1)]
    return torch.clamp(q / TAU - torch.stack(thresholds).max(), min=0.0)


def deformed(q: Tensor, pi: Tensor) -> Tensor:
    return TAU * (pi - 0.5 - pi.square().sum() / 2)


#: name: (regularizer, its policy at q [A], each action's share of its cost, its scaled log-policy, its cold limit)
REGULARIZERS: dict[str, Any] = {
    "hard_max": (
        HardMax,
        lambda q: nn.functional.one_hot(q.argmax(), len(q)).double(),
        lambda q, pi: torch.zeros_like(q),
        lambda q, pi: q - q.max(),
        HardMax,
    ),
    "entropy": (
        lambda: Entropy(TAU),
        boltzmann,
        lambda q, pi: TAU * pi.log(),
        lambda q, pi: TAU * pi.log(),
        lambda: Entropy(1e-12),
    ),
    "prior_kl": (
        lambda: PriorKL(TAU, prior=RHO),
        lambda q: boltzmann(q, RHO),
        lambda q, pi: TAU * (pi / RHO).log(),
        lambda q, pi: TAU * (pi / RHO).log(),
        lambda: PriorKL(1e-12, prior=RHO),
    ),
    "tsallis": (lambda: Tsallis(TAU), sparsemax, deformed, deformed, lambda: Tsallis(1e-12)),
}
SHAPINGS = {
    "none": lambda: None,
    "munchausen": lambda: Munchausen(ALPHA, CLIP),
    "gap": lambda: AdvantageGap(ALPHA),
    "persistent": lambda: AdvantageGap(ALPHA, persistent=True),
}
HEADS = {
    "expected": ("m_dqn", lambda: None),
    "fixed": ("qr", lambda: FixedQuantiles(KAPPA)),
    "implicit": ("iqn", lambda: ImplicitQuantiles(num_quantiles=5, num_target_quantiles=4, num_policy_quantiles=3)),
    "atoms": ("c51", lambda: None),
}
CELLS = list(itertools.product(REGULARIZERS, SHAPINGS, HEADS))


def build(cases: Any, cell: tuple[str, str, str], regularizer: Any = None, **kwargs: Any) -> Any:
    case, head = HEADS[cell[2]]
    made = REGULARIZERS[cell[0]][0]() if regularizer is None else regularizer
    loss = QLearningLoss(
        cases[case].actor(), regularizer=made, shaping=SHAPINGS[cell[1]](), head=head(), reduction="none", **kwargs
    )
    loss.make_value_estimator(gamma=GAMMA)
    PolyakTargetUpdate(loss, rate=0.5)
    generator = torch.Generator().manual_seed(7)
    for p in loss.target_value_network_params.values(True, True):
        if p.dtype.is_floating_point and p.ndim and p.requires_grad is False and p.shape != (7,):  # not the atoms
            p.data.add_(0.3 * torch.randn(p.shape, generator=generator))
    if cell[2] == "implicit":
        loss.head.kappa = KAPPA
        loss.head.fractions = lambda features, count: fixed(count).expand(*features.shape[:-1], count)
    return loss.double()


def fixed(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.3) / count


class Oracle:
    """What a loss should be, from the networks' outputs alone."""

    def __init__(self, loss: Any, cell: tuple[str, str, str]) -> None:
        self.loss, self.cell = loss, cell
        _, self.policy, self.cost, self.log, _ = REGULARIZERS[cell[0]]

    def outputs(self, observation: Tensor, count: int, params: str) -> Tensor:
        """``[N, A]``: outputs of one state."""
        loss = self.loss
        with getattr(loss, params).to_module(loss.value_network):
            net = loss.value_network
            if self.cell[2] == "expected":
                return net.module[0].module(observation).unsqueeze(0)
            if self.cell[2] == "implicit":
                return net.quantile_network(observation, fixed(count))
            return net.distribution.network(observation).unflatten(-1, (-1, 3))

    def means(self, z: Tensor) -> Tensor:
        if self.cell[2] != "atoms":
            return z.mean(0)
        return (z.softmax(0) * self.support.unsqueeze(-1)).sum(0)

    @property
    def support(self) -> Tensor:
        return torch.linspace(-3.0, 4.0, 7, dtype=torch.float64)

    def next_atoms(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values behind s' before discounting, their masses, and the mean values there."""
        target = "target_value_network_params"
        if self.cell[2] == "implicit":
            both = self.outputs(observation, 7, target)
            z, q = both[:4], both[4:].mean(0)
        else:
            z = self.outputs(observation, 0, target)
            q = self.means(z)
        pi = self.policy(q)
        cost = torch.where(pi > 0, self.cost(q, pi), 0.0)
        if self.cell[2] != "atoms":
            values = torch.stack([sum(pi[a] * (z[j, a] - cost[a]) for a in range(3)) for j in range(len(z))])
            return values, torch.full((len(z),), 1 / len(z), dtype=torch.float64), q
        pairs = [(i, a) for i in range(7) for a in range(3)]
        p = z.softmax(0)
        values = torch.stack([self.support[i] - cost[a] for i, a in pairs])
        return values, torch.stack([pi[a] * p[i, a] for i, a in pairs]), q

    def root(self, row: Any, next_q: Tensor) -> tuple[float | Tensor, Tensor]:
        """The bonus, and the stored action's share of the cost."""
        z = self.outputs(row["observation"], 3, "target_value_network_params")
        q, action = self.means(z), int(row["action"])
        pi = self.policy(q)
        gap, next_gap = q.max() - q[action], next_q.max() - next_q[action]
        ended = bool(row["next", "terminated"])
        bonus = {
            "none": 0.0,
            "munchausen": ALPHA * self.log(q, pi)[action].clamp(CLIP, 0.0),
            "gap": -ALPHA * gap,
            "persistent": -ALPHA * (gap if ended else torch.minimum(gap, next_gap)),
        }[self.cell[1]]
        return bonus, self.cost(q, pi)[action]

    def target(self, row: Any, steps: int = 1) -> tuple[Tensor, Tensor]:
        values, masses, next_q = self.next_atoms(row["next", "observation"])
        bonus, _ = self.root(row, next_q)
        alive = 0.0 if bool(row["next", "terminated"]) else 1.0
        return row["next", "reward"] + bonus + GAMMA**steps * alive * values, masses

    def distance(self, row: Any, values: Tensor, masses: Tensor) -> Tensor:
        z = self.outputs(row["observation"], 5, "value_network_params")[:, int(row["action"])]
        if self.cell[2] == "expected":
            return nn.functional.smooth_l1_loss(z[0], values[0])
        if self.cell[2] == "atoms":
            projected = torch.zeros(7, dtype=torch.float64)
            for value, mass in zip(values, masses, strict=True):
                near = (value.clamp(-3.0, 4.0) - self.support).abs() / (7.0 / 6.0)
                projected = projected + (1.0 - near).clamp(min=0.0) * mass
            return -(projected * z.log_softmax(0)).sum()
        fractions = fixed(5) if self.cell[2] == "implicit" else (torch.arange(5, dtype=torch.float64) + 0.5) / 5
        total = torch.zeros((), dtype=torch.float64)
        for i, j in itertools.product(range(5), range(len(values))):
            delta = values[j] - z[i]
            huber = 0.5 * delta**2 if delta.abs() <= KAPPA else KAPPA * (delta.abs() - 0.5 * KAPPA)
            total = total + (fractions[i] - float(delta < 0)).abs() * huber / KAPPA / len(values)
        return total


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_one_and_n_steps(cases: Any, batch: Any, cell: Any) -> None:
    loss = build(cases, cell)
    oracle = Oracle(loss, cell)
    data = batch(7, dtype=torch.float64)
    for steps in (None, 3):
        if steps:
            data["steps_to_next_obs"] = torch.full((7, 1), steps)
        out = loss(data)
        with torch.no_grad():
            expected = torch.stack([oracle.distance(row, *oracle.target(row, steps or 1)) for row in data.unbind(0)])
        torch.testing.assert_close(out["loss"].detach(), expected, rtol=0, atol=1e-10)
        assert out["loss"].std() > 1e-3
    one = loss(data[:1])["loss"].detach()
    torch.testing.assert_close(one, expected[:1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("cell", [c for c in CELLS if c[2] in ("expected", "fixed")], ids="-".join)
def test_lambda_returns(cases: Any, batch: Any, cell: Any) -> None:
    loss = build(cases, cell)
    loss.make_value_estimator("tdlambda", gamma=GAMMA, lmbda=LAMBDA)
    oracle = Oracle(loss, cell)
    data = batch(3, 4, dtype=torch.float64)
    data.names = [None, "time"]
    out = loss(data)["loss"].detach()
    for b in range(3):
        following = None
        for t in reversed(range(4)):
            row = data[b, t]
            values, masses, next_q = oracle.next_atoms(row["next", "observation"])
            bonus, cost = oracle.root(row, next_q)
            cut = following is None or bool(row["next", "done"])
            tail = values if cut else (1 - LAMBDA) * values + LAMBDA * following
            alive = 0.0 if bool(row["next", "terminated"]) else 1.0
            target = (row["next", "reward"] + bonus + GAMMA * alive * tail).detach()
            torch.testing.assert_close(out[b, t], oracle.distance(row, target, masses).detach(), rtol=0, atol=1e-10)
            following = target - cost


@pytest.mark.parametrize("cell", [c for c in CELLS if c[1] == "none"], ids="-".join)
def test_cold_is_the_hard_maximum(cases: Any, batch: Any, cell: Any) -> None:
    data = batch(9, dtype=torch.float64)
    cold = build(cases, cell, regularizer=REGULARIZERS[cell[0]][4]())
    hard = build(cases, ("hard_max", *cell[1:]))
    torch.testing.assert_close(cold(data)["loss"], hard(data)["loss"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("regularizer", list(REGULARIZERS))
def test_the_mean_of_the_mixture_is_the_regularized_value(cases: Any, batch: Any, regularizer: str) -> None:
    """Every action's atoms, moved by its share of the cost, have the same mean: that of the whole."""
    loss = build(cases, (regularizer, "none", "atoms"))
    oracle = Oracle(loss, (regularizer, "none", "atoms"))
    for row in batch(5, dtype=torch.float64).unbind(0):
        values, masses, q = oracle.next_atoms(row["next", "observation"])
        value = loss.regularizer(q).value
        torch.testing.assert_close((values * masses).sum(), value.to(values.dtype), rtol=0, atol=1e-12)
        by_action, weights = (x.reshape(7, 3) for x in (values, masses))
        means = (by_action * weights).sum(0) / weights.sum(0)
        assert (means - value)[weights.sum(0) > 0].abs().max() < 1e-12


@pytest.mark.parametrize("cell", [("entropy", "none", head) for head in HEADS], ids="-".join)
def test_double_chooses_online_and_evaluates_frozen(cases: Any, batch: Any, cell: Any) -> None:
    loss, oracle = build(cases, cell, double_dqn=True), None
    oracle = Oracle(loss, cell)
    data = batch(6, dtype=torch.float64)
    out = loss(data)["loss"].detach()
    for i, row in enumerate(data.unbind(0)):
        online = oracle.means(oracle.outputs(row["next", "observation"], 3, "value_network_params"))
        pi = boltzmann(online)
        oracle.policy, oracle.cost = (lambda q, pi=pi: pi), (lambda q, p, pi=pi: TAU * pi.log())
        torch.testing.assert_close(out[i], oracle.distance(row, *oracle.target(row)).detach(), rtol=0, atol=1e-10)


ASSIGNED = {"tau": 0.2, "alpha": 0.9, "clip_min": -0.1}


@pytest.mark.parametrize("cell", [c for c in CELLS if c[2] == "expected"], ids="-".join)
def test_every_coefficient_of_every_slot_is_assigned_on_the_loss(
    cases: Any, batch: Any, cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, data = build(cases, cell), batch(7, dtype=torch.float64)
    owned = {n for part in (loss.regularizer, loss.shaping) if part is not None for n in part.coefficients()}
    for name, number in ASSIGNED.items():
        if name not in owned:
            with pytest.raises(AttributeError, match=f"QLearningLoss has no coefficient {name!r} to assign, only"):
                setattr(loss, name, number)
            assert not hasattr(loss, name)
            continue
        before = loss(data)["loss"]
        setattr(loss, name, number)
        assert float(getattr(loss, name)) == number and (loss(data)["loss"] - before).abs().max() > 1e-4
        monkeypatch.setitem(globals(), {"tau": "TAU", "alpha": "ALPHA", "clip_min": "CLIP"}[name], number)
        with pytest.raises(ValueError, match=f"{name} must be"):
            setattr(loss, name, float("nan"))
    torch.testing.assert_close(loss(data)["loss"], build(cases, cell)(data)["loss"], rtol=0, atol=1e-12)


def test_what_looks_like_a_coefficient_is_not_lost(cases: Any) -> None:
    """A regularizer's own name, a prior's, a discount; and what a subclass keeps for itself."""

    class Warm(Entropy):
        def coefficients(self) -> dict[str, Any]:
            return {"warmth": self.tau_coefficient}

    class Weighted(QLearningLoss):
        alpha: float = 0.0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.alpha, self.lam, self.margin = 0.5, nn.Parameter(torch.ones(())), 2.0

    actor = cases["m_dqn"].actor()
    loss = Weighted(actor, regularizer=Warm(TAU))
    loss.warmth = 0.25
    assert float(loss.regularizer.tau) == 0.25 == float(copy.deepcopy(loss).warmth)
    assert (loss.alpha, loss.margin) == (0.5, 2.0) and "lam" in dict(loss.named_parameters())
    prior = ActionPrior(3, beta=2.0)
    loss = QLearningLoss(actor, regularizer=PriorKL(prior=prior))
    loss.beta = 0.5
    assert float(prior.beta) == 0.5
    with pytest.raises(AttributeError, match="has no coefficient 'tau' to assign, only beta; gamma"):
        loss.tau = 0.3
    with pytest.raises(AttributeError, match=r"'gamma' to assign, .* are given to make_value_estimator"):
        loss.gamma = 0.9


def test_a_learnt_temperature_reaches_its_entropy(cases: Any, batch: Any) -> None:
    from torchrl_reg.regularizers import DualCoefficient

    tau = DualCoefficient(1.0, target=0.5, rises="below", name="tau")
    loss = build(cases, ("entropy", "munchausen", "expected"), regularizer=Entropy(tau), diagnostics=False)
    loss.reduction = "mean"
    assert loss.out_keys == ["loss", "loss_tau"]
    optimizer = torch.optim.Adam([tau.log_value], lr=0.05)
    data = batch(20, dtype=torch.float64)
    for _ in range(300):
        optimizer.zero_grad()
        loss(data)["loss_tau"].backward()
        optimizer.step()
    loss.diagnostics = True
    torch.testing.assert_close(loss(data)["entropy"], torch.tensor(0.5, dtype=torch.float64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["entropy", "prior_kl"])
def test_what_is_learnt_and_reported_leaves_masked_rows_out(cases: Any, batch: Any, kind: str) -> None:
    from torchrl_reg.regularizers import DualCoefficient

    tau = DualCoefficient(TAU, target=0.5, rises="below", name="tau")
    regularizer = Entropy(tau) if kind == "entropy" else PriorKL(tau, prior=RHO)
    loss = build(cases, (kind, "munchausen", "expected"), regularizer=regularizer)
    loss.reduction = "mean"
    data, mask = batch(8, dtype=torch.float64), torch.tensor([True, True, False, True, False, True, True, True])
    alone, everything = loss(data[mask].clone()), loss(data.clone())
    data["collector", "mask"] = mask.unsqueeze(-1)
    out = loss(data)
    names = {"loss", "loss_tau", "entropy", "kl", "bonus_clipped"}
    assert names | ({"mutual_information"} if kind == "prior_kl" else set()) <= set(dict(out.items()))
    for name, value in out.items():
        torch.testing.assert_close(value, alone[name])
        assert name in ("tau", "prior_entropy", "squared_td_error") or (value - everything[name]).abs() > 1e-4, name
