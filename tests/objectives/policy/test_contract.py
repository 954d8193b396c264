"""What any TorchRL user may expect of every loss over a policy."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torchrl.objectives import SoftUpdate

from torchrl_reg.objectives import HardTargetUpdate, PolyakTargetUpdate

GAMMA = 0.9
OTHER = {"tau": 0.2, "alpha": 0.9, "clip_min": -1.0, "lam": 0.6}


def value(loss: Any, data: Any) -> torch.Tensor:
    torch.manual_seed(3)  # the KL of a flow is estimated from a sample
    return loss(data)["loss"]


def rows(loss: Any, data: Any) -> torch.Tensor:
    loss.reduction = "none"
    return value(loss, data)


def test_keys(case: Any) -> None:
    loss = case.loss()
    following = [("next", k) for k in ("reward", "done", "terminated", "observation")]
    assert set(loss.in_keys) == {"action", "observation", *following}
    assert loss.out_keys == ["loss"]


def test_set_keys_and_nested_keys(case: Any) -> None:
    data = case.batch(6)
    expected = value(case.loss(), data.clone())
    keys = {"in_key": ("agent", "pixels"), "action_key": ("agent", "action")}
    loss = case.loss(case.networks(**keys))
    action = ("agent", "action")
    loss.set_keys(action=action, reward=("agent", "r"), done="stop", terminated="end", priority=("p", "delta"))
    moved = data.select()
    moved["agent", "pixels"], moved[action] = data["observation"], data["action"]
    moved["next", "agent", "pixels"] = data["next", "observation"]
    moved["next", "agent", "r"] = data["next", "reward"]
    moved["next", "stop"], moved["next", "end"] = data["next", "done"], data["next", "terminated"]
    torch.testing.assert_close(value(loss, moved), expected)
    assert moved["p", "delta"].shape == (*data.shape, 1)


def test_value_key(cases: Any) -> None:
    for name in ("m_iq", "trust_pcl"):
        case = cases[name]
        expected = value(case.loss(), case.batch(6))
        actor, network = case.networks()
        network.out_keys = ["v"]
        torch.testing.assert_close(value(case.loss((actor, network)), case.batch(6)), expected)


def test_dispatch_without_tensordict(case: Any) -> None:
    data = case.batch(6)
    loss = case.loss()
    expected = value(loss, data.clone())
    torch.manual_seed(3)
    got = loss(
        observation=data["observation"],
        **{"action": data["action"]},
        next_observation=data["next", "observation"],
        next_reward=data["next", "reward"],
        next_done=data["next", "done"],
        next_terminated=data["next", "terminated"],
    )
    torch.testing.assert_close(got[0] if isinstance(got, tuple) else got, expected)


def test_float64_is_more_exact_than_float32(case: Any) -> None:
    double = value(case.loss().double(), case.batch(9, dtype=torch.float64))
    data = case.batch(9, dtype=torch.float64)  # the same actions
    single = value(case.loss(), data.apply(lambda x: x.float() if x.is_floating_point() else x))
    assert double.dtype == torch.float64 and single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction(case: Any, reduction: str) -> None:
    none = value(case.loss(reduction="none"), case.batch(9))
    assert none.shape == case.batch(9).shape
    torch.testing.assert_close(value(case.loss(reduction=reduction), case.batch(9)), getattr(none, reduction)())


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3), (2, 1)])
def test_any_batch_shape(case: Any, shape: tuple[int, ...]) -> None:
    data = case.batch(*shape)
    flat = rows(case.loss(), data.reshape(-1, data.shape[-1]) if case.sequences else data.reshape(-1))
    got = rows(case.loss(), data)
    assert data["td_error"].shape == (*data.shape, 1)
    torch.testing.assert_close(got, flat.reshape(data.shape))


@pytest.mark.parametrize("everywhere", [False, True])
def test_masked_rows_do_not_count_even_if_nan(case: Any, everywhere: bool) -> None:
    data = case.batch(8)
    mask = torch.tensor([True, True, False, True, False, True, True, True])
    expected = value(case.loss(), data[mask])
    data["collector", "mask"] = mask.reshape(-1, *[1] * data.ndim).expand(*data.shape, 1).clone()
    data["next", "reward"][~mask] = torch.nan
    data["next", "observation"][~mask] = torch.nan
    if everywhere:
        data["observation"][~mask] = torch.nan
        if data["action"].is_floating_point():
            data["action"][~mask] = torch.nan
    before = data.clone()
    loss = case.loss()
    torch.manual_seed(3)
    out = loss(data)
    torch.testing.assert_close(out["loss"], expected)
    assert all(x.isfinite() for x in out.values()) and data["td_error"][mask].isfinite().all()
    out["loss"].backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())
    for key in before.keys(True, True):
        torch.testing.assert_close(data[key], before[key], equal_nan=True)


def test_nan_after_a_terminal_state_is_harmless(case: Any) -> None:
    data = case.batch(6)
    terminated = data["next", "terminated"].squeeze(-1)
    expected = value(case.loss(), data.clone())
    data["next", "observation"][terminated] = torch.nan
    loss = case.loss()
    out = value(loss, data)
    torch.testing.assert_close(out, expected)
    out.backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_priorities_and_their_weights(case: Any) -> None:
    data = case.batch(9)
    none = rows(case.loss(), data)
    torch.testing.assert_close(data["td_error"].squeeze(-1), none.detach())
    weights = torch.linspace(0.2, 2.0, data.numel()).reshape(data.shape)
    weighted = case.batch(9)
    weighted["priority_weight"] = weights
    torch.testing.assert_close(value(case.loss(), weighted), (weights * none).sum() / weights.sum())


def test_gradients_reach_online_parameters_only(case: Any, lagged_tensors: Any) -> None:
    loss = case.loss()
    value(loss, case.batch(9)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    networks = [n for n in case.networks() if n is not None]
    assert len(list(loss.parameters())) == sum(len(list(n.parameters())) for n in networks)
    assert not any(p.requires_grad for p in lagged_tensors(loss))


def test_gradient_into_the_bootstrap_is_what_was_asked_for(case: Any) -> None:
    """Through an input of V(s') that no other term reads."""
    data = case.batch(9)
    following = data["next", "observation"].clone().requires_grad_()
    data["next", "observation"] = following
    (gradient,) = torch.autograd.grad(value(case.loss(), data), following, allow_unused=True)
    if case.online_bootstrap:
        assert (gradient[data["next", "terminated"].squeeze(-1)] == 0).all() and gradient.abs().max() > 1e-4
    else:
        assert gradient is None or not gradient.any()


def test_terminated_drops_the_bootstrap_and_truncated_keeps_it(case: Any) -> None:
    loss = case.loss()

    def with_flags(terminated: bool, truncated: bool, scale: float) -> torch.Tensor:
        data = case.batch(9)
        data["next", "terminated"][:] = terminated
        data["next", "truncated"][:] = truncated
        data["next", "done"][:] = terminated or truncated
        data["next", "observation"] *= scale
        return rows(loss, data)

    torch.testing.assert_close(with_flags(True, False, 1.0), with_flags(True, False, 5.0))
    if not case.sequences:
        torch.testing.assert_close(with_flags(False, True, 1.0), with_flags(False, False, 1.0))
    assert (with_flags(False, True, 1.0) - with_flags(False, True, 5.0)).abs().max() > 1e-3


def test_data_without_terminated(case: Any) -> None:
    data = case.batch(6)
    data["next", "terminated"] = data["next", "done"]
    expected = value(case.loss(), data.clone())
    del data["next", "terminated"]
    torch.testing.assert_close(value(case.loss(), data), expected)


def test_n_step_discount(case: Any) -> None:
    if case.sequences:
        pytest.skip("sequences are their own n-step returns")
    data = case.batch(9)
    data["steps_to_next_obs"] = torch.full((9, 1), 3)
    three, one = case.loss(), case.loss()
    one.make_value_estimator(gamma=0.9**3)
    torch.testing.assert_close(value(three, data.clone()), value(one, data.exclude("steps_to_next_obs")))


def test_state_dict_round_trip(case: Any) -> None:
    loss, other = case.loss(), case.loss(seed=9, perturb=False)
    for name in loss._coefficients():
        setattr(loss, name, OTHER[name])
    before = list(loss.state_dict())
    expected = value(loss, case.batch(9))
    assert list(loss.state_dict()) == before
    assert value(other, case.batch(9)) != expected
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(value(other, case.batch(9)), expected)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_independent(case: Any, how: str, lagged_tensors: Any) -> None:
    loss = case.loss()
    expected = value(loss, case.batch(9)).detach()
    if how == "deepcopy":
        twin = copy.deepcopy(loss)
    else:
        buffer = io.BytesIO()
        torch.save(loss, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    torch.testing.assert_close(value(twin, case.batch(9)).detach(), expected)
    with torch.no_grad():
        for p in [*twin.parameters(), *lagged_tensors(twin)]:
            p.mul_(1.5)
    torch.testing.assert_close(value(loss, case.batch(9)).detach(), expected)
    assert (value(twin, case.batch(9)).detach() - expected).abs() > 1e-4


def test_optimizer_and_target_updates_are_seen(case: Any, lagged_tensors: Any) -> None:
    loss = case.loss()
    first = value(loss, case.batch(9)).detach()
    with torch.no_grad():
        for p in loss.parameters():
            p.mul_(1.3)
    second = value(loss, case.batch(9)).detach()
    with torch.no_grad():
        for p in lagged_tensors(loss):
            p.mul_(1.3)
    third = value(loss, case.batch(9)).detach()
    uses_no_lagged_network = case.sequences and case.kwargs["lam"] == 0
    assert first != second and (second != third) != uses_no_lagged_network


def test_input_is_not_changed_but_for_the_priority(case: Any) -> None:
    data = case.batch(9)
    before = data.clone()
    value(case.loss(), data)
    assert set(data.keys(True, True)) - set(before.keys(True, True)) == {"td_error"}
    assert (data.exclude("td_error") == before).all()


@pytest.mark.parametrize("name", ["m_iq", "m_iq_categorical", "m_iq_gaussian", "trust_pcl", "trust_pcl_unified"])
def test_lazy_networks(cases: Any, name: str) -> None:
    case = cases[name]
    loss = case.cls(*case.networks(lazy=True), **case.kwargs).make_value_estimator(gamma=0.9)
    with pytest.warns(UserWarning, match="No target network updater"):
        assert value(loss, case.batch(5)).isfinite()
    PolyakTargetUpdate(loss, rate=0.5)
    source, target = loss.actor_network_params, loss._target_params("actor_network")
    assert all((target[k] == source[k]).all() for k in source.keys(True, True))


@pytest.mark.parametrize("update", ["polyak", "hard", "torchrl"])
def test_target_updates(case: Any, update: str, lagged_tensors: Any) -> None:
    networks = case.networks()
    loss = case.cls(*networks, **case.kwargs).make_value_estimator(gamma=GAMMA)
    updater = {
        "polyak": lambda: PolyakTargetUpdate(loss, rate=0.25),
        "hard": lambda: HardTargetUpdate(loss, period_updates=1),
        "torchrl": lambda: SoftUpdate(loss, tau=0.25),
    }[update]()
    before = [p.clone() for p in lagged_tensors(loss)]
    with torch.no_grad():
        for p in loss.parameters():
            p.add_(2.0)
    updater.step()
    step = 2.0 if update == "hard" else 0.5
    moved = [after - b for after, b in zip(lagged_tensors(loss), before, strict=True)]
    assert moved and all((x - step).abs().max() < 1e-5 for x in moved)
    assert value(loss, case.batch(5)).isfinite()


def test_coefficients_are_schedulable(case: Any) -> None:
    for name in case.loss()._coefficients():
        if name == "clip_min" and not case.kwargs.get("alpha"):
            continue
        loss = case.loss()
        before = value(loss, case.batch(9))
        setattr(loss, name, OTHER[name])
        after = value(loss, case.batch(9))
        assert (before - after).abs() > 1e-5, name
        torch.testing.assert_close(value(case.loss(**{name: OTHER[name]}), case.batch(9)), after)


def test_a_coefficient_that_is_switched_on_later(cases: Any) -> None:
    """At 0 the lagged policy is not evaluated; a scheduler or a checkpoint must bring it back."""
    for name, coefficient in (("m_iq", "alpha"), ("trust_pcl", "lam")):
        case = cases[name]
        on = case.loss()
        expected = value(on, case.batch(9))

        def off(case: Any = case, coefficient: str = coefficient) -> Any:
            loss = case.loss(**{coefficient: 0.0})
            assert "kl" not in loss(case.batch(9))
            return loss

        scheduled, estimated, loaded, assigned, copied = (off() for _ in range(5))
        setattr(scheduled, coefficient, case.kwargs[coefficient])
        estimated.make_value_estimator(gamma=0.9, **{coefficient: case.kwargs[coefficient]})
        loaded.load_state_dict(on.state_dict())
        setattr(assigned, coefficient, torch.tensor(case.kwargs[coefficient], dtype=torch.float64))
        copied = copy.deepcopy(loaded)
        for loss in (scheduled, estimated, loaded, assigned, copied):
            out = loss(case.batch(9))
            torch.testing.assert_close(out["loss"], expected)
            assert out["kl"] > 0
        loaded.load_state_dict(off().state_dict())
        assert "kl" not in loaded(case.batch(9))


def test_two_forward_passes_before_one_backward_pass(case: Any) -> None:
    loss, (first, second) = case.loss(), (case.batch(6, seed=s) for s in (1, 2))
    total = value(loss, first) + value(loss, second)
    total.backward()
    together = [p.grad.clone() for p in loss.parameters()]
    loss.zero_grad()
    for data in (first, second):
        value(loss, data).backward()
    for p, gradient in zip(loss.parameters(), together, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_train_and_eval_mode_follow_the_networks(cases: Any) -> None:
    for name in ("m_iq", "trust_pcl"):
        actor, network = cases[name].networks()
        actor.network.insert(2, torch.nn.Dropout(0.5))
        loss = cases[name].loss((actor, network))
        data = cases[name].batch(9)
        assert rows(loss, data).ne(loss(data)["loss"]).any()
        actor.eval()
        assert torch.equal(rows(loss, data), loss(data)["loss"])


def test_diagnostics(case: Any) -> None:
    out = case.loss()(case.batch(9))
    names = {"loss", "td_error", "value", "log_pi", "tau"}
    names |= set() if case.kind in ("gaussian", "flow") else {"entropy"}
    names |= {"path_error"} if case.sequences else set()
    names |= {"bonus", "bonus_clipped", "kl"} if case.kwargs.get("alpha") else set()
    names |= {"kl", "lam"} if case.kwargs.get("lam") else set()
    assert set(out.keys()) == names
    assert all(x.ndim == 0 and x.isfinite() for x in out.values())
    assert not any(x.requires_grad for key, x in out.items() if key != "loss")
    assert "bonus" not in names or case.kind == "flow" or 0 < out["bonus_clipped"] < 1
    assert set(case.loss(diagnostics=False)(case.batch(9)).keys()) == {"loss"}


@pytest.mark.gpu
def test_on_gpu(case: Any) -> None:
    loss = case.loss([None if network is None else network.to("cuda") for network in case.networks()])
    data = case.batch(9).to("cuda")
    out = loss(data)
    assert out["loss"].device.type == "cuda" and data["td_error"].device.type == "cuda"
    torch.testing.assert_close(out["loss"].cpu(), case.loss()(case.batch(9))["loss"], rtol=1e-3, atol=1e-5)


def test_two_masks_keep_the_steps_that_both_keep(case: Any) -> None:
    data = case.batch(6)
    shape = data.batch_size
    generator = torch.Generator().manual_seed(4)
    padding, crossing = (torch.rand(*shape, generator=generator) < 0.7 for _ in range(2))
    data["collector", "mask"], data["shifted_valid"] = padding.unsqueeze(-1), crossing.unsqueeze(-1)
    for mask in (padding, crossing):
        for key in ("observation", ("next", "observation"), ("next", "reward")):
            data[key][~mask] = torch.nan
    loss = case.loss()
    out = loss(data)
    out["loss"].backward()
    assert out["loss"].isfinite() and out["td_error"].isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())
