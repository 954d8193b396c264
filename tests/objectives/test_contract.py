"""TorchRL's contract for every loss, over Q-values, a policy, or an actor and critics."""

from __future__ import annotations

import copy
import io
import itertools
from typing import Any

import pytest
import torch
from critic_cases import lagged
from torchrl.objectives import SoftUpdate

import torchrl_reg.objectives as objectives
from torchrl_reg.objectives import PolyakTargetUpdate
from torchrl_reg.objectives.heads import ImplicitQuantiles

OTHER = {"tau": 0.2, "alpha": 0.9, "clip_min": -1.0, "lam": 0.6, "beta": 5.0}  # other coefficients
MASK = torch.tensor([True, True, False, True, False, True, True, True])


def call(loss: Any, data: Any) -> Any:
    torch.manual_seed(3)  # fractions and actions are drawn, and the KL of a flow is estimated
    return loss(data)


def losses(out: Any) -> torch.Tensor:
    return torch.stack([out[name] for name in sorted(out.keys()) if name.startswith("loss")])


def value(loss: Any, data: Any) -> torch.Tensor:
    return losses(call(loss, data))


def assert_learns(loss: Any, data: Any, expected: torch.Tensor) -> Any:
    """The losses are those expected, and all gradients are finite."""
    out = call(loss, data)
    torch.testing.assert_close(losses(out), expected)
    losses(out).sum().backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())
    return out


def masked(data: Any) -> Any:
    """``data`` with a loss mask."""
    data["collector", "mask"] = MASK.reshape(-1, *[1] * data.ndim).expand(*data.shape, 1).clone()
    return data


@pytest.fixture
def even_fractions(monkeypatch: pytest.MonkeyPatch) -> None:
    def even(_: Any, features: torch.Tensor, count: int) -> torch.Tensor:
        fractions = (torch.arange(count, dtype=features.dtype) + 0.3) / count
        return fractions.expand(*features.shape[:-1], count)

    monkeypatch.setattr(ImplicitQuantiles, "fractions", even)


def test_keys(any_case: Any) -> None:
    loss = any_case.loss()
    following = [("next", k) for k in ("reward", "done", "terminated", "observation")]
    assert set(loss.in_keys) == {"action", "observation", *following}

    for diagnostics in (True, False):
        loss.diagnostics = diagnostics
        assert sorted(loss.out_keys) == sorted(call(loss, any_case.batch(6)).keys())


def test_select_out_keys(any_case: Any) -> None:
    loss, data = any_case.loss(), any_case.batch(6)
    every, kept = list(loss.out_keys), [loss.out_keys[0], "td_error"]
    loss.select_out_keys(*kept)
    assert loss.out_keys == kept == list(call(loss, data.clone()).select(*kept).keys())
    assert set(call(loss, data.clone()).keys()) == set(kept)
    following = {f"next_{key}": data["next", key] for key in ("observation", "reward", "done", "terminated")}
    assert len(loss(observation=data["observation"], action=data["action"], **following)) == 2
    loss.reset_out_keys()
    loss.diagnostics = False
    assert set(call(loss, data).keys()) == set(loss.out_keys) < set(every)


def test_set_keys_and_nested_keys(any_case: Any) -> None:
    data = any_case.batch(6)
    expected = value(any_case.loss(), data.clone())
    action = ("agent", "action")
    loss = any_case.loss(any_case.networks(in_key=("agent", "pixels"), action_key=action))
    loss.set_keys(action=action, reward=("agent", "r"), done="stop", terminated="end", priority=("p", "delta"))
    moved = data.select()
    moved["agent", "pixels"], moved[action] = data["observation"], data["action"]
    moved["next", "agent", "pixels"] = data["next", "observation"]
    moved["next", "agent", "r"] = data["next", "reward"]
    moved["next", "stop"], moved["next", "end"] = data["next", "done"], data["next", "terminated"]
    if any_case.renamed:
        with pytest.raises(KeyError, match="value_network must write 'action_value'"):
            loss(moved)
        loss.set_keys(**any_case.renamed)
    torch.testing.assert_close(value(loss, moved), expected)
    assert moved["p", "delta"].shape == (*data.shape, 1)


def test_dispatch_without_tensordict(any_case: Any) -> None:
    data, loss = any_case.batch(6), any_case.loss()
    expected = call(any_case.loss(), data.clone())
    following = {f"next_{key}": data["next", key] for key in ("observation", "reward", "done", "terminated")}
    torch.manual_seed(3)
    got = loss(observation=data["observation"], action=data["action"], **following)
    for name, entry in zip(loss.out_keys, got if isinstance(got, tuple) else (got,), strict=True):
        torch.testing.assert_close(entry, expected[name])


@pytest.mark.usefixtures("even_fractions")
def test_float64_is_more_exact_than_float32(any_case: Any) -> None:
    data = any_case.batch(9, dtype=torch.float64)  # the same actions
    out = call(any_case.loss().double(), data.clone())
    assert {scalar.dtype for scalar in out.values()} == {torch.float64}  # diagnostics, too
    double = losses(out)
    single = value(any_case.loss(), data.apply(lambda x: x.float() if x.is_floating_point() else x))
    assert single.dtype == torch.float32
    if any_case.weighted == "loss":  # actions drawn in another dtype are others
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["sum", None])
def test_reduction(any_case: Any, reduction: str | None) -> None:
    none = call(any_case.loss(reduction="none"), any_case.batch(9))
    got = call(any_case.loss(reduction=reduction), any_case.batch(9))
    for name in any_case.losses:
        assert none[name].shape == any_case.batch(9).shape
        torch.testing.assert_close(got[name], getattr(none[name], reduction or "mean")())
    assert all(got[name] == none[name] for name in any_case.reported)


@pytest.mark.parametrize("shape", [(1,), (2, 3), (2, 1)])
def test_any_batch_shape(any_case: Any, shape: tuple[int, ...]) -> None:
    data = any_case.batch(*shape)
    flat = data.reshape(-1, data.shape[-1]) if any_case.sequences else data.reshape(-1)
    expected = call(any_case.loss(reduction="none"), flat)
    got = call(any_case.loss(reduction="none"), data)
    assert data["td_error"].shape == (*data.shape, 1)
    for name in any_case.losses:
        torch.testing.assert_close(got[name], expected[name].reshape(data.shape))
    for name in any_case.reported:
        torch.testing.assert_close(got[name], expected[name])


def test_masked_rows_do_not_count_even_if_nan(any_case: Any) -> None:
    """Neither their content nor whether it is a number; random numbers are drawn for them all the same."""
    data = any_case.batch(8)
    none = call(any_case.loss(reduction="none"), data.clone())
    expected = call(any_case.loss(), masked(data).clone())
    for key in ("observation", "action", ("next", "reward"), ("next", "observation")):
        if data[key].is_floating_point():
            data[key][~MASK] = torch.nan
    before = data.clone()
    out = assert_learns(any_case.loss(), data, losses(expected))
    if not getattr(any_case, "em", False):
        for name in any_case.losses:
            torch.testing.assert_close(out[name], none[name][MASK].mean())
    torch.testing.assert_close(dict(out.items()), dict(expected.items()))
    assert all(x.isfinite() for x in out.values())
    assert data["td_error"][MASK].isfinite().all() and not data["td_error"][~MASK].any()
    for key in before.keys(True, True):
        torch.testing.assert_close(data[key], before[key], equal_nan=True)


def test_two_masks_keep_the_rows_that_both_keep(any_case: Any) -> None:
    data, generator = any_case.batch(8), torch.Generator().manual_seed(4)
    padding, crossing = (torch.rand(*data.shape, generator=generator) < 0.7 for _ in range(2))
    expected = data.clone()
    expected["collector", "mask"] = (padding & crossing).unsqueeze(-1)
    data["collector", "mask"], data["shifted_valid"] = padding.unsqueeze(-1), crossing.unsqueeze(-1)
    for key in ("observation", ("next", "observation"), ("next", "reward")):
        data[key][~(padding & crossing)] = torch.nan
    assert_learns(any_case.loss(), data, value(any_case.loss(), expected))


def test_nan_after_a_terminal_state_is_harmless(any_case: Any) -> None:
    data = any_case.batch(6)
    expected = value(any_case.loss(), data.clone())
    data["next", "observation"][data["next", "terminated"].squeeze(-1)] = torch.nan
    assert_learns(any_case.loss(), data, expected)


@pytest.mark.parametrize("weight_reduction", ["normalized", "mean"])
@pytest.mark.parametrize("some_rows", [False, True])
def test_priority_weights(any_case: Any, some_rows: bool, weight_reduction: Any) -> None:
    """They count for the critics alone where there is an actor, and may be NaN in rows that do not count."""
    if getattr(any_case, "em", False):
        pytest.skip("the literal M-step is no sum over rows")
    data = any_case.batch(8)
    none = call(any_case.loss(reduction="none"), data.clone())
    rows = MASK if some_rows else torch.ones_like(MASK)
    weights = torch.linspace(0.2, 2.0, data.numel()).reshape(data.shape)
    data["priority_weight"] = weights.clone()
    if some_rows:
        masked(data)["priority_weight"][~MASK] = torch.nan
    got = call(any_case.loss(weight_reduction=weight_reduction), data)
    for name in any_case.losses:
        row = none[name][rows]
        weighted = (weights[rows] * row).sum() / (
            weights[rows].sum() if weight_reduction == "normalized" else row.numel()
        )
        torch.testing.assert_close(got[name], weighted if name in (any_case.weighted, "loss_prior") else row.mean())


def test_gradients_reach_online_parameters_only(any_case: Any) -> None:
    loss = any_case.loss()
    value(loss, any_case.batch(9)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    networks = [each for n in any_case.networks() if n is not None for each in (n if isinstance(n, list) else [n])]
    networks += [loss.prior_network] if "loss_prior" in any_case.losses else []
    learnt = sum(c.is_learnt for c in loss._coefficients().values())
    assert len(list(loss.parameters())) == sum(len(list(n.parameters())) for n in networks) + learnt
    assert lagged(loss) and not any(p.requires_grad for p in lagged(loss))


def test_terminated_drops_the_bootstrap_and_truncated_keeps_it(any_case: Any) -> None:
    loss = any_case.loss()

    def with_flags(terminated: bool, truncated: bool, scale: float) -> torch.Tensor:
        data = any_case.batch(9)
        data["next", "terminated"][:] = terminated
        data["next", "truncated"][:] = truncated
        data["next", "done"][:] = terminated or truncated
        data["next", "observation"] *= scale
        call(loss, data)
        return data["td_error"]

    torch.testing.assert_close(with_flags(True, False, 1.0), with_flags(True, False, 5.0))
    if not any_case.sequences:
        torch.testing.assert_close(with_flags(False, True, 1.0), with_flags(False, False, 1.0))
    assert (with_flags(False, True, 1.0) - with_flags(False, True, 5.0)).abs().max() > 1e-3


def test_data_without_terminated(any_case: Any) -> None:
    data = any_case.batch(6)
    data["next", "terminated"] = data["next", "done"]
    without = data.exclude(("next", "terminated"))
    torch.testing.assert_close(value(any_case.loss(), without), value(any_case.loss(), data))


def test_n_step_discount(any_case: Any) -> None:
    data, three, one = any_case.batch(9), any_case.loss(), any_case.loss()
    data["steps_to_next_obs"] = torch.full((*data.shape, 1), 3)
    if any_case.sequences:  # are their own n-step returns
        with pytest.raises(ValueError, match="data must hold single steps"):
            three(data)
        return
    one.make_value_estimator(gamma=0.9**3)
    torch.testing.assert_close(value(three, data.clone()), value(one, data.exclude("steps_to_next_obs")))


def test_state_dict_round_trip(any_case: Any) -> None:
    loss, other = any_case.loss(), any_case.loss(seed=9, perturb=False)
    for name in loss._coefficients():
        setattr(loss, name, OTHER[name])
    before = list(loss.state_dict())
    expected = value(loss, any_case.batch(9))
    assert list(loss.state_dict()) == before
    assert (value(other, any_case.batch(9)) != expected).any()
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(value(other, any_case.batch(9)), expected)
    assert all(getattr(other, name) == pytest.approx(OTHER[name]) for name in loss._coefficients())


def pickled(loss: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(loss, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_is_independent(any_case: Any, copied: Any) -> None:
    loss = any_case.loss()
    expected, twin = value(loss, any_case.batch(9)).detach(), copied(loss)
    torch.testing.assert_close(value(twin, any_case.batch(9)).detach(), expected)
    with torch.no_grad():
        for p in [*twin.parameters(), *lagged(twin)]:
            p.mul_(1.5)
    for name in twin._coefficients():
        setattr(twin, name, OTHER[name])
    torch.testing.assert_close(value(loss, any_case.batch(9)).detach(), expected)
    assert ((value(twin, any_case.batch(9)).detach() - expected).abs() > 1e-4).any()


def test_optimizer_and_target_updates_are_seen(any_case: Any) -> None:
    loss = any_case.loss()
    found = [value(loss, any_case.batch(9)).detach()]
    for tensors in (list(loss.parameters()), lagged(loss)):
        with torch.no_grad():
            for p in tensors:
                p.mul_(1.3)
        found.append(value(loss, any_case.batch(9)).detach())
    reads_no_target = any_case.sequences and any_case.kwargs["lam"] == 0 or getattr(any_case, "em", False)
    changed = [bool((before != after).any()) for before, after in itertools.pairwise(found)]
    assert changed == [True, not reads_no_target]


@pytest.mark.parametrize(("update", "rate"), [(PolyakTargetUpdate, "rate"), (SoftUpdate, "tau")])
def test_target_updates(any_case: Any, update: Any, rate: str) -> None:
    loss = any_case.cls(*any_case.networks(), **any_case.kwargs).make_value_estimator(gamma=0.9)
    updater = update(loss, **{rate: 0.25})
    before = [p.clone() for p in lagged(loss)]
    with torch.no_grad():
        torch._foreach_add_(list(loss.parameters()), 2.0)
    updater.step()
    moved = [after - b for after, b in zip(lagged(loss), before, strict=True)]
    assert moved and all((x - 0.5).abs().max() < 1e-5 for x in moved)


def test_coefficients_are_schedulable(any_case: Any) -> None:
    for name in any_case.loss()._coefficients():
        if getattr(any_case, "em", False) or (name == "clip_min" and not any_case.kwargs.get("alpha")):
            continue  # the temperature of the batch; a clip of nothing
        loss = any_case.loss()
        before = value(loss, any_case.batch(9))
        setattr(loss, name, OTHER[name])
        after = value(loss, any_case.batch(9))
        assert ((before - after).abs() > 1e-5).any(), name
        torch.testing.assert_close(value(any_case.loss(**{name: OTHER[name]}), any_case.batch(9)), after)
        if name in any_case.kwargs:
            loss.make_value_estimator(gamma=0.9, **{name: any_case.kwargs[name]})
            torch.testing.assert_close(value(loss, any_case.batch(9)), before)


def test_two_forward_passes_before_one_backward_pass(any_case: Any) -> None:
    loss, (first, second) = any_case.loss(), (any_case.batch(6, seed=s) for s in (1, 2))
    (value(loss, first) + value(loss, second)).sum().backward()
    together = [p.grad.clone() for p in loss.parameters()]
    loss.zero_grad()
    for data in (first, second):
        value(loss, data).sum().backward()
    for p, gradient in zip(loss.parameters(), together, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_without_gradients(any_case: Any) -> None:
    """A loss may be evaluated under no_grad, the score of the samplers included."""
    expected = value(any_case.loss(), any_case.batch(9)).detach()
    with torch.no_grad():
        torch.testing.assert_close(value(any_case.loss(), any_case.batch(9)), expected)


def test_what_it_returns_and_writes(any_case: Any) -> None:
    data, before = any_case.batch(9), any_case.batch(9)
    out = call(any_case.loss(), data)
    assert set(data.keys(True, True)) - set(before.keys(True, True)) == {"td_error"}
    torch.testing.assert_close(dict(data.exclude("td_error").items(True, True)), dict(before.items(True, True)))
    always = {*any_case.losses, *any_case.reported, *({"bellman_error", "squared_td_error"} & any_case.diagnostics)}
    assert set(out.keys()) == always | any_case.diagnostics
    assert all(x.ndim == 0 and x.isfinite() for x in out.values())
    assert not any(x.requires_grad for key, x in out.items() if not key.startswith("loss"))
    assert "bonus_clipped" not in out or any_case.kwargs.get("kind") or 0 <= out["bonus_clipped"] <= 1
    assert set(call(any_case.loss(diagnostics=False), any_case.batch(9)).keys()) == always


@pytest.mark.gpu
def test_on_gpu(any_case: Any) -> None:
    """As in a recipe: networks are on the GPU before the loss exists, and the loss is not moved."""
    move = lambda n: n if n is None else [x.to("cuda") for x in n] if isinstance(n, list) else n.to("cuda")  # noqa: E731
    data = any_case.batch(9).to("cuda")
    out = call(any_case.loss([move(n) for n in any_case.networks()]), data)
    assert losses(out).device.type == "cuda" and data["td_error"].device.type == "cuda"
    assert losses(out).isfinite().all()


#: One of each kind compiles in every run, ``-m slow`` the others; the last few differ too little from one of them.
COMPILED = ["m_dqn", "mirl_network", "m_iqn", "m_c51", "qr_double", "m_iq", "virel", "sac"]
SLOWLY = [
    "soft_dqn",
    "mirl",
    "al",
    "pal",
    "iqn",
    "iqn_double",
    "iqn_reuse",
    "m_iqn_reuse",
    "mi_iqn",
    "mi_iqn_reuse",
    "c51",
]
SLOWLY += ["qr", "sparse", "soft_double", "m_iqn_shared", "trust_pcl", "trust_pcl_gaussian", "trust_pcl_unified"]
SLOWLY += ["m_iq_flow", "m_iq_ragged", "m_iq_categorical", "m_iq_gaussian", "m_iq_residual"]
SLOWLY += ["virel_value", "sac_fixed", "soft_q"]
NEVER = {"virel_q", "virel_flow", "virel_fixed", "virel_em", "soft_q_twin", "soft_q_published", "soft_q_flow"}
NEVER |= {"iq", "pcl", "trust_pcl_categorical", "trust_pcl_delayed"}
SETTINGS = [*[(name, True) for name in COMPILED], ("m_dqn", False)]
SETTINGS += [pytest.param(name, how, marks=pytest.mark.slow) for name in SLOWLY for how in {True, "iqn" in name}]


@pytest.mark.usefixtures("even_fractions")
@pytest.mark.parametrize(("name", "diagnostics"), SETTINGS)
def test_compile_without_break_or_recompilation(all_cases: Any, name: str, diagnostics: bool) -> None:
    case = all_cases[name]
    torch._dynamo.reset()
    torch.distributions.kl._KL_MEMOIZE.clear()  # what ran before must not help
    loss = case.loss(diagnostics=diagnostics)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2, 3):
            got = value(compiled, case.batch(9, seed=seed))
            torch.testing.assert_close(got, value(loss, case.batch(9, seed=seed)))
            got.sum().backward()
            for coefficient in loss._coefficients():
                if coefficient != "clip_min" and case.kwargs.get(coefficient):
                    setattr(loss, coefficient, 0.3 + 0.1 * seed)
            if "prior" in case.kwargs:
                loss.prior.assign(torch.tensor([0.2, 0.3, 0.5]))
            with torch.no_grad():
                for p in loss.parameters():
                    p.mul_(0.9)


def test_the_table_holds_every_loss(all_cases: Any) -> None:
    known = {name for name in objectives.__all__ if name.endswith("Loss")} - {"QLearningLoss"}  # see test_slots.py
    assert set(all_cases) == {*COMPILED, *SLOWLY, *NEVER}
    assert {type(case.loss()).__name__ for case in all_cases.values()} == known
