"""Every cell regularizer x shaping x head x bootstrap, and every named one, against its equation in Python loops.

One table drives all of it: a new regularizer is one row of :data:`REGULARIZERS`.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.objectives import AdvantageGap, HardTargetUpdate, Munchausen, QLearningLoss
from torchrl_reg.objectives.heads import FixedQuantiles, ImplicitQuantiles
from torchrl_reg.regularizers import (
    ActionPrior,
    BellmanErrorCoefficient,
    Boltzmann,
    DualCoefficient,
    Entropy,
    HardMax,
    PriorKL,
    Tsallis,
)

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


#: name: (regularizer, its policy at q [A], each action's share of its cost, its scaled log-policy)
REGULARIZERS: dict[str, Any] = {
    "hard_max": (
        HardMax,
        lambda q: nn.functional.one_hot(q.argmax(), len(q)).double(),
        lambda q, pi: torch.zeros_like(q),
        lambda q, pi: q - q.max(),
    ),
    "entropy": (lambda: Entropy(TAU), boltzmann, lambda q, pi: TAU * pi.log(), lambda q, pi: TAU * pi.log()),
    "boltzmann": (lambda: Boltzmann(TAU), boltzmann, lambda q, pi: torch.zeros_like(q), lambda q, pi: TAU * pi.log()),
    "prior_kl": (
        lambda: PriorKL(TAU, prior=RHO),
        lambda q: boltzmann(q, RHO),
        lambda q, pi: TAU * (pi / RHO).log(),
        lambda q, pi: TAU * (pi / RHO).log(),
    ),
    "tsallis": (lambda: Tsallis(TAU), sparsemax, deformed, deformed),
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
NAMED = {
    "soft_dqn": ("entropy", "none", "expected"),
    "soft_double": ("entropy", "none", "expected"),
    "m_dqn": ("entropy", "munchausen", "expected"),
    "al": ("hard_max", "gap", "expected"),
    "pal": ("hard_max", "persistent", "expected"),
    "mirl": ("prior_kl", "none", "expected"),
    "sparse": ("tsallis", "none", "expected"),
    "virel_q": ("boltzmann", "none", "expected"),
    **dict.fromkeys(("iqn", "iqn_double", "iqn_reuse"), ("hard_max", "none", "implicit")),
    **dict.fromkeys(("m_iqn", "m_iqn_reuse", "m_iqn_shared"), ("entropy", "munchausen", "implicit")),
    **dict.fromkeys(("mi_iqn", "mi_iqn_reuse"), ("prior_kl", "none", "implicit")),
    **dict.fromkeys(("qr", "qr_double"), ("hard_max", "none", "fixed")),
    "c51": ("hard_max", "none", "atoms"),
    "m_c51": ("entropy", "munchausen", "atoms"),
}


def build(cases: Any, cell: tuple[str, str, str], regularizer: Any = None, **kwargs: Any) -> Any:
    case, head = HEADS[cell[2]]
    kwargs |= {"regularizer": regularizer or REGULARIZERS[cell[0]][0](), "shaping": SHAPINGS[cell[1]]()}
    return with_fixed_fractions(type(cases[case])(QLearningLoss, kwargs, cases[case].head).loss(head=head()))


def with_fixed_fractions(loss: Any) -> Any:
    if isinstance(loss.head, ImplicitQuantiles):
        loss.head.kappa = KAPPA
        loss.head.fractions = lambda features, count: fixed(count).expand(*features.shape[:-1], count)
    loss.reduction = "none"
    return loss.double()


def fixed(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.3) / count


class Oracle:
    """The expected loss, from the networks' outputs alone."""

    def __init__(self, loss: Any, cell: tuple[str, str, str]) -> None:
        self.loss, self.cell = loss, cell
        _, self.policy, self.cost, self.log = REGULARIZERS[cell[0]]

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

    def drawn(self, count: str) -> int:
        return getattr(self.loss.head, count, 0)

    def means(self, z: Tensor) -> Tensor:
        if self.cell[2] != "atoms":
            return z.mean(0)
        return (z.softmax(0) * self.support.unsqueeze(-1)).sum(0)

    @property
    def support(self) -> Tensor:
        return torch.linspace(-3.0, 4.0, 7, dtype=torch.float64)

    def next_atoms(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values behind s' before discounting, their masses, and the mean values there."""
        z = behind = self.outputs(observation, self.drawn("num_target_quantiles"), "target_value_network_params")
        if self.cell[2] == "implicit" and not self.loss.head.reuse_quantiles:
            more = self.drawn("num_target_quantiles") + self.drawn("num_policy_quantiles")
            both = self.outputs(observation, more, "target_value_network_params")
            z, behind = both.split((len(z), len(both) - len(z)))
        q = chooses = self.means(behind)
        if self.loss.double_dqn:
            online = self.outputs(observation, self.drawn("num_policy_quantiles"), "value_network_params")
            chooses = self.means(online)
        pi = self.policy(chooses)
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
        z = self.outputs(row["observation"], self.drawn("num_policy_quantiles"), "target_value_network_params")
        q, action = self.means(z), int(row["action"])
        pi = self.policy(q)
        gap, next_gap = q.max() - q[action], next_q.max() - next_q[action]
        ended = bool(row["next", "terminated"])
        bonus = {
            "none": 0.0,
            "munchausen": ALPHA * self.log(q, pi)[action].clamp(min=CLIP),
            "gap": -ALPHA * gap,
            "persistent": -ALPHA * (gap if ended else torch.minimum(gap, next_gap)),
        }[self.cell[1]]
        return bonus, self.cost(q, pi)[action]

    @torch.no_grad()
    def target(self, row: Any, steps: int = 1) -> tuple[Tensor, Tensor]:
        values, masses, next_q = self.next_atoms(row["next", "observation"])
        bonus, _ = self.root(row, next_q)
        alive = 0.0 if bool(row["next", "terminated"]) else 1.0
        return row["next", "reward"] + bonus + GAMMA**steps * alive * values, masses

    def distance(self, row: Any, values: Tensor, masses: Tensor) -> Tensor:
        z = self.outputs(row["observation"], 5, "value_network_params")[:, int(row["action"])]
        if self.cell[2] == "expected":
            return (z[0] - values[0]).square()
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


def assert_is_the_equation(loss: Any, cell: tuple[str, str, str], data: Any) -> None:
    """One step and three: values; and gradients and priorities."""
    oracle, rows = Oracle(loss, cell), data.unbind(0)
    expected = torch.stack([oracle.distance(row, *oracle.target(row)) for row in rows])
    out = loss(data)["loss"]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    assert out.std() > 1e-3
    parameters = list(loss.parameters())
    gradients = [torch.autograd.grad(x.mean(), parameters) for x in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)
    if cell[2] == "atoms":
        targets = [oracle.target(row) for row in rows]
        clipped = torch.stack([masses[(values < -3.0) | (values > 4.0)].sum() for values, masses in targets])
        torch.testing.assert_close(loss(data)["clipped_mass"], clipped.mean(), rtol=0, atol=1e-10)
    if cell[2] == "expected":
        found = torch.stack([oracle.outputs(row["observation"], 0, "value_network_params")[0] for row in rows])
        errors = found.gather(-1, data["action"].unsqueeze(-1)).squeeze(-1)
        expected = (errors - torch.cat([oracle.target(row)[0] for row in rows])).square()
    torch.testing.assert_close(data["td_error"].squeeze(-1), expected, rtol=0, atol=1e-10)
    data["steps_to_next_obs"] = torch.full((len(rows), 1), 3)
    expected = torch.stack([oracle.distance(row, *oracle.target(row, 3)) for row in rows])
    torch.testing.assert_close(loss(data)["loss"], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(loss(data[:1])["loss"], expected[:1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_every_cell(cases: Any, batch: Any, cell: Any) -> None:
    assert_is_the_equation(build(cases, cell), cell, batch(7, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMED)
def test_every_named_loss(cases: Any, batch: Any, name: str) -> None:
    assert NAMED.keys() == cases.keys() - {"mirl_network"}  # whose prior differs in each row
    assert_is_the_equation(with_fixed_fractions(cases[name].loss()), NAMED[name], batch(7, dtype=torch.float64))


@pytest.mark.parametrize("head", HEADS)
def test_double_chooses_online_and_evaluates_frozen(cases: Any, batch: Any, head: str) -> None:
    cell = ("entropy", "none", head)
    assert_is_the_equation(build(cases, cell, double_dqn=True), cell, batch(7, dtype=torch.float64))


@pytest.mark.parametrize("cell", [c for c in CELLS if c[1] != "gap" and c[2] in ("expected", "fixed")], ids="-".join)
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


@pytest.mark.parametrize("forbidden", [-float("inf"), torch.finfo(torch.float32).min])
def test_persistent_gap_where_the_action_is_forbidden_at_the_next_state(
    cases: Any, batch: Any, monkeypatch: pytest.MonkeyPatch, forbidden: float
) -> None:
    """The gap there is infinite, so the one at s is the smaller; at a terminal s' (row 1) there is no other one."""
    loss, data = cases["pal"].loss(), batch(3)
    data["next", "reward"], data["next", "terminated"] = torch.zeros(3, 1), torch.tensor([[False], [True], [False]])
    q = torch.tensor([[1.0, 3.0, forbidden], [5.0, 1.0, forbidden], [forbidden, 4.0, 1.0]])
    next_q = torch.tensor([[forbidden, 2.0, 0.0], [torch.nan] * 3, [forbidden, 2.0, 1.5]])
    online, target = loss._bound(data)
    monkeypatch.setattr(target, "both", lambda *_, **__: (q, next_q))
    how: dict[str, Any] = {"online": online, "target_network": target}
    found = loss.value_estimator.target(loss.head, data, torch.arange(3), **how)
    torch.testing.assert_close(found.bonus, torch.tensor([-1.0, -2.0, -0.25]))
    # gamma .9 times the best next value, minus half the gap
    torch.testing.assert_close(found.values.squeeze(-1), torch.tensor([1.8 - 1.0, -2.0, 1.8 - 0.25]))


def test_what_looks_like_a_coefficient_is_not_lost(cases: Any) -> None:
    """A prior's, a discount, one that no part owns; and what a subclass keeps for itself."""

    class Weighted(QLearningLoss):
        alpha: float = 0.0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.alpha, self.lam, self.margin = 0.5, nn.Parameter(torch.ones(())), 2.0

    actor = cases["m_dqn"].actor()
    loss = Weighted(actor, regularizer=Entropy(TAU))
    loss.tau = 0.25
    assert float(loss.regularizer.tau) == 0.25 == float(copy.deepcopy(loss).tau)
    assert (loss.alpha, loss.margin) == (0.5, 2.0) and dict(loss.named_parameters())["lam"] is loss.lam
    prior = ActionPrior(3, beta=2.0)
    loss = QLearningLoss(actor, regularizer=PriorKL(prior=prior))
    loss.beta = 0.5
    assert float(prior.beta) == 0.5
    with pytest.raises(AttributeError, match="QLearningLoss has no coefficient 'tau', only beta"):
        loss.tau = 0.3
    with pytest.raises(AttributeError, match="gamma is a hyperparameter of make_value_estimator"):
        loss.gamma = 0.9
    assert not any(hasattr(loss, name) for name in ("tau", "alpha", "lam", "gamma", "lmbda"))


def learnt(kind: str) -> Any:
    if kind == "follows the error":
        beta = BellmanErrorCoefficient(2.0, rate=0.5, inverse=True)
        return PriorKL(prior=ActionPrior(3, probabilities=RHO.tolist(), beta=beta))
    tau = DualCoefficient(TAU, target=0.5, rises="below", name="tau")
    return Entropy(tau) if kind == "entropy" else PriorKL(tau, prior=RHO)


@pytest.mark.parametrize("kind", ["entropy", "prior_kl", "follows the error"])
def test_what_is_learnt_and_reported_leaves_masked_rows_out(cases: Any, batch: Any, kind: str) -> None:
    loss = build(cases, ("entropy", "munchausen", "expected"), regularizer=learnt(kind))
    loss.reduction = "mean"
    data, mask = batch(8, dtype=torch.float64), torch.tensor([True, True, False, True, False, True, True, True])
    alone, everything = loss(data[mask].clone()), loss(data.clone())
    data["collector", "mask"] = mask.unsqueeze(-1)
    out = dict(loss(data).items())
    told = {"squared_td_error", "mutual_information"} if "error" in kind else {"loss_tau"}
    assert {"loss", "entropy", "kl", "bonus_clipped"} | told <= out.keys()
    torch.testing.assert_close(out, dict(alone.items()))
    for name, value in out.items():
        assert name in ("tau", "beta", "prior_entropy") or (value - everything[name]).abs() > 1e-4, name
    if "error" in kind:
        torch.testing.assert_close(out["squared_td_error"], data["td_error"][mask].mean())
    else:
        tau = loss.regularizer.tau_coefficient
        torch.testing.assert_close(out["loss_tau"], tau.objective(out[loss.regularizer.dual_statistic]))
    loss.diagnostics = False
    expected = {name: out[name] for name in {"loss"} | told - {"mutual_information"}}
    torch.testing.assert_close(dict(loss(data).items()), expected)


@pytest.mark.parametrize(
    "shaping", [None, Munchausen(0.5, -0.3), Munchausen(0.5, -0.3, online=True), AdvantageGap(0.5)]
)
@pytest.mark.parametrize("estimator", ["regularized_td0", "regularized_tdlambda", "regularized_qlambda"])
@pytest.mark.parametrize("norm", [False, True])
def test_out_keys_are_those_returned(batch: Any, shaping: Any, estimator: str, norm: bool) -> None:
    """``kl`` needs the target network's policy at s, which targets do not always read."""
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.Linear(8, 3))
    if norm:
        net[1].eval()
    actor = QValueActor(net, spec=Categorical(3))
    loss = QLearningLoss(actor, regularizer=Entropy(TAU), shaping=shaping).make_value_estimator(estimator, gamma=0.9)
    HardTargetUpdate(loss, period_updates=10)
    shape = (6,) if norm or estimator == "regularized_td0" else (2, 3)
    if norm and estimator == "regularized_tdlambda":
        pytest.skip("batch normalization takes rows, not sequences")
    data = batch(*shape)
    data["value_target"] = torch.ones(*shape, 1)
    assert sorted(loss.out_keys) == sorted(loss(data).keys())
