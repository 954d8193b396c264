"""What any TorchRL user may expect of every loss."""

from __future__ import annotations

import copy
import inspect
import io
from typing import Any

import pytest
import torch
from torch import nn

from torchrl_reg.objectives.heads import ImplicitQuantiles


def value(loss: Any, data: Any, seed: int = 3) -> torch.Tensor:
    torch.manual_seed(seed)
    return loss(data)["loss"]


def rows(loss: Any, data: Any, seed: int = 3) -> torch.Tensor:
    loss.reduction = "none"
    return value(loss, data, seed)


def test_keys(case: Any, batch: Any) -> None:
    loss = case.loss()
    expected = {
        "action",
        "observation",
        *[("next", k) for k in ("reward", "done", "terminated", "observation")],
    }
    assert set(loss.in_keys) == expected
    assert loss.out_keys == ["loss"]


def test_set_keys_and_nested_keys(case: Any, batch: Any) -> None:
    data = batch(6)
    expected = value(case.loss(), data.clone())
    written = {name: ("agent", name) for name in ("action", "action_value", "chosen_action_value")}
    loss = case.loss(case.actor(in_key=("agent", "pixels"), **{f"{n}_key": key for n, key in written.items()}))
    loss.set_keys(action=written["action"], reward=("agent", "r"), done="stop", terminated="end")
    moved = data.select()
    moved["agent", "pixels"], moved["agent", "action"] = data["observation"], data["action"]
    moved["next", "agent", "pixels"] = data["next", "observation"]
    moved["next", "agent", "r"] = data["next", "reward"]
    moved["next", "stop"], moved["next", "end"] = data["next", "done"], data["next", "terminated"]
    with pytest.raises(KeyError, match="value_network must write 'action_value'"):
        loss(moved)
    loss.set_keys(action_value=written["action_value"], value=written["chosen_action_value"], priority=("p", "delta"))
    torch.testing.assert_close(value(loss, moved), expected)
    assert moved["p", "delta"].shape == (6, 1)


def test_dispatch_without_tensordict(case: Any, batch: Any) -> None:
    data = batch(6)
    loss = case.loss()
    expected = value(loss, data.clone())
    torch.manual_seed(3)
    got = loss(
        observation=data["observation"],
        action=data["action"],
        next_observation=data["next", "observation"],
        next_reward=data["next", "reward"],
        next_done=data["next", "done"],
        next_terminated=data["next", "terminated"],
    )
    torch.testing.assert_close(got, expected)


def test_one_hot_is_categorical(case: Any, batch: Any) -> None:
    data = batch(9)
    expected = value(case.loss(), data.clone())
    data["action"] = nn.functional.one_hot(data["action"], 3).bool()
    torch.testing.assert_close(value(case.loss(case.actor(one_hot=True)), data), expected)


def test_action_with_trailing_dimension(case: Any, batch: Any) -> None:
    data = batch(9)
    expected = value(case.loss(), data.clone())
    data["action"] = data["action"].unsqueeze(-1)
    torch.testing.assert_close(value(case.loss(), data), expected)


def test_float64_is_more_exact_than_float32(case: Any, batch: Any) -> None:
    if case.quantile:
        ImplicitQuantiles.fractions, original = (
            lambda self, features, count: torch.linspace(0.1, 0.9, count, dtype=features.dtype).expand(
                *features.shape[:-1], count
            ),
            ImplicitQuantiles.fractions,
        )
    try:
        double = value(case.loss().double(), batch(9, dtype=torch.float64))
        single = value(case.loss(), batch(9))
    finally:
        if case.quantile:
            ImplicitQuantiles.fractions = original
    assert double.dtype == torch.float64 and single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction(case: Any, batch: Any, reduction: str) -> None:
    data = batch(9)
    none = value(case.loss(reduction="none"), data.clone())
    assert none.shape == (9,)
    torch.testing.assert_close(value(case.loss(reduction=reduction), data), getattr(none, reduction)())


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3), (2, 1)])
def test_any_batch_shape(case: Any, batch: Any, shape: tuple[int, ...]) -> None:
    data = batch(*shape)
    assert rows(case.loss(), data).shape == shape
    assert data["td_error"].shape == (*shape, 1)


def test_masked_rows_do_not_count_even_if_nan(case: Any, batch: Any) -> None:
    if case.kwargs.get("share_fractions") or case.quantile:
        pytest.skip("random fractions differ with the batch shape; see test_masked_quantile_rows")
    data = batch(8)
    mask = torch.tensor([True, True, False, True, False, True, True, True])
    expected = value(case.loss(), data[mask])
    data["collector", "mask"] = mask.unsqueeze(-1)
    data["next", "reward"][~mask] = torch.nan
    data["next", "observation"][~mask] = torch.nan
    data["observation"][~mask] = torch.nan
    loss = case.loss()
    out = value(loss, data)
    torch.testing.assert_close(out, expected)
    out.backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_two_masks_keep_the_rows_that_both_keep(case: Any, batch: Any) -> None:
    data = batch(8)
    padding = torch.tensor([True, True, False, True, False, True, True, True])
    crossing = torch.tensor([True, False, False, True, True, True, False, True])
    both = padding & crossing
    data["collector", "mask"], data["shifted_valid"] = padding.unsqueeze(-1), crossing.unsqueeze(-1)
    for mask in (padding, crossing):
        data["next", "reward"][~mask] = torch.nan
    loss = case.loss()
    torch.manual_seed(3)
    out = loss(data)
    out["loss"].backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())
    assert out["td_error"].isfinite()
    if not case.quantile:  # random fractions differ with the batch shape
        torch.testing.assert_close(out["loss"].detach(), value(case.loss(), data[both].exclude("collector")).detach())


def test_masked_quantile_rows(cases: Any, batch: Any) -> None:
    loss = cases["m_iqn"].loss()
    data = batch(8)
    mask = torch.tensor([True, True, False, True, False, True, True, True])
    none = rows(loss, data.clone())
    loss.reduction = "mean"
    data["collector", "mask"] = mask.unsqueeze(-1)
    data["next", "reward"][~mask] = torch.nan
    data["observation"][~mask] = torch.nan
    out = value(loss, data)
    torch.testing.assert_close(out, none[mask].mean())
    out.backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_priority_weights(case: Any, batch: Any) -> None:
    data = batch(9)
    none = rows(case.loss(), data.clone())
    weights = torch.linspace(0.2, 2.0, 9)
    data["priority_weight"] = weights
    torch.testing.assert_close(value(case.loss(), data), (weights * none).sum() / weights.sum())


def test_gradients_reach_online_parameters_only(case: Any, batch: Any) -> None:
    loss = case.loss()
    value(loss, batch(9)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())
    assert len(list(loss.parameters())) == len(list(case.actor().parameters()))
    assert not any(p.requires_grad for p in loss.target_value_network_params.values(True, True))


def test_terminated_drops_the_bootstrap_and_truncated_keeps_it(case: Any, batch: Any) -> None:
    data = batch(9)
    loss = case.loss()

    def with_flags(terminated: bool, truncated: bool, scale: float) -> torch.Tensor:
        copy_ = data.clone()
        copy_["next", "terminated"][:] = terminated
        copy_["next", "truncated"][:] = truncated
        copy_["next", "done"][:] = terminated or truncated
        copy_["next", "observation"] *= scale
        return rows(loss, copy_)

    torch.testing.assert_close(with_flags(True, False, 1.0), with_flags(True, False, 5.0))
    torch.testing.assert_close(with_flags(False, True, 1.0), with_flags(False, False, 1.0))
    assert (with_flags(False, True, 1.0) - with_flags(False, True, 5.0)).abs().max() > 1e-3


def test_nan_after_a_terminal_state_is_harmless(case: Any, batch: Any) -> None:
    data = batch(4)
    data["next", "terminated"][:] = True
    data["next", "observation"][:] = torch.nan
    assert value(case.loss(diagnostics=False), data).isfinite()


def test_nan_that_counts_is_seen(case: Any, batch: Any) -> None:
    data = batch(4)
    data["next", "terminated"][:], data["next", "observation"][0] = False, torch.nan
    assert not value(case.loss(diagnostics=False), data).isfinite()


def test_n_step_discount(case: Any, batch: Any) -> None:
    data = batch(9)
    data["steps_to_next_obs"] = torch.full((9, 1), 3)
    three = case.loss()
    three.make_value_estimator(gamma=0.9)
    one = case.loss()
    one.make_value_estimator(gamma=0.9**3)
    torch.testing.assert_close(value(three, data.clone()), value(one, data.exclude("steps_to_next_obs")))


def test_state_dict_before_and_after_a_forward_pass(case: Any, batch: Any) -> None:
    loss, other = case.loss(), case.loss(case.actor(seed=9), perturb=False)
    before = list(loss.state_dict())
    expected = value(loss, batch(9))
    assert list(loss.state_dict()) == before
    assert value(other, batch(9)) != expected
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(value(other, batch(9)), expected)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_independent(case: Any, batch: Any, how: str) -> None:
    loss = case.loss()
    expected = value(loss, batch(9)).detach()
    if how == "deepcopy":
        twin = copy.deepcopy(loss)
    else:
        buffer = io.BytesIO()
        torch.save(loss, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    torch.testing.assert_close(value(twin, batch(9)).detach(), expected)
    with torch.no_grad():
        for p in [*twin.parameters(), *twin.target_value_network_params.values(True, True)]:
            p.add_(0.5)
    torch.testing.assert_close(value(loss, batch(9)).detach(), expected)
    assert (value(twin, batch(9)).detach() - expected).abs() > 1e-4


def test_optimizer_and_target_updates_are_seen(case: Any, batch: Any) -> None:
    loss = case.loss()
    first = value(loss, batch(9)).detach()
    with torch.no_grad():
        for p in loss.parameters():
            p.add_(0.1)
    second = value(loss, batch(9)).detach()
    with torch.no_grad():
        for p in loss.target_value_network_params.values(True, True):
            p.add_(0.1)
    third = value(loss, batch(9)).detach()
    assert first != second and second != third


def test_input_is_not_changed_but_for_the_priority(case: Any, batch: Any) -> None:
    data = batch(9)
    before = data.clone()
    value(case.loss(), data)
    assert set(data.keys(True, True)) - set(before.keys(True, True)) == {"td_error"}
    assert (data.exclude("td_error") == before).all()


def test_action_mask(case: Any, batch: Any) -> None:
    data = batch(12)
    data["action"].clamp_(max=1)
    for at in (data, data["next"]):
        at["allowed"] = torch.tensor([True, True, False]).expand(12, 3).clone()
    masked = case.loss(case.actor(action_mask_key="allowed"))
    out = value(masked, data)
    assert out.isfinite()
    # Making the forbidden action look splendid changes nothing.
    unmasked = case.loss(case.actor())
    for loss in (masked, unmasked):
        for params in (loss.value_network_params, loss.target_value_network_params):
            bias = [p for p in params.values(True, True) if p.shape in ((3,), (15,), (21,))][0]
            bias.data.view(-1, 3)[-1, 2] += 50.0  # of the value, the last quantile, the highest atom
    torch.testing.assert_close(value(masked, data), out)
    assert (value(unmasked, data) - out).abs() > 1e-4


SCHEDULED = {"tau": 0.1, "alpha": 0.9, "clip_min": -1.0, "beta": 5.0}


def test_coefficients_are_schedulable(case: Any, batch: Any) -> None:
    for name in case.loss()._coefficients():
        loss = case.loss()
        before = value(loss, batch(9))
        setattr(loss, name, SCHEDULED[name])
        after = value(loss, batch(9))
        assert (before - after).abs() > 1e-5, name
        fresh = case.loss(**{name: SCHEDULED[name]})
        torch.testing.assert_close(value(fresh, batch(9)), after)


def test_without_target_network(case: Any, batch: Any) -> None:
    from torchrl_reg.objectives import PolyakTargetUpdate

    loss = case.cls(case.actor(), delay_value=False, **case.kwargs).make_value_estimator(gamma=0.9)
    delayed = case.loss(perturb=False)
    torch.testing.assert_close(value(loss, batch(9)), value(delayed, batch(9)))
    with pytest.raises(RuntimeError, match="target"):
        PolyakTargetUpdate(loss, rate=0.5)


@pytest.mark.gpu
def test_on_gpu(case: Any, batch: Any) -> None:
    # As a recipe does: the network is on the GPU before the loss exists, and the loss is not moved.
    loss = case.loss(case.actor().to("cuda"))
    data = batch(9).to("cuda")
    out = loss(data)
    assert out["loss"].device.type == "cuda" and data["td_error"].device.type == "cuda"
    if not case.quantile:
        torch.testing.assert_close(out["loss"].cpu(), case.loss()(batch(9))["loss"], rtol=1e-4, atol=1e-5)


def test_coefficients_live_where_the_network_does(cases: Any) -> None:
    loss = cases["m_dqn"].cls(cases["m_dqn"].actor().to("meta"), tau=0.5)
    assert {buffer.device.type for buffer in loss.buffers()} == {"meta"}


def test_data_without_terminated(case: Any, batch: Any) -> None:
    data = batch(6)
    data["next", "terminated"] = data["next", "done"]
    expected = value(case.loss(), data.clone())
    del data["next", "terminated"]
    torch.testing.assert_close(value(case.loss(), data), expected)


def test_diagnostics_under_masks(case: Any, batch: Any) -> None:
    data = batch(8)
    mask = torch.tensor([True, True, False, True, False, True, True, True])
    data["collector", "mask"] = mask.unsqueeze(-1)
    data["observation"][~mask] = torch.nan
    for at in (data, data["next"]):
        at["allowed"] = torch.tensor([True, False, False]).expand(8, 3).clone()
    data["action"][:] = 0
    torch.manual_seed(0)
    out = case.loss(case.actor(action_mask_key="allowed"))(data)
    assert all(out[name].isfinite() and out[name].abs() < 1e3 for name in out.keys())  # noqa: SIM118


def test_bf16_autocast_keeps_targets_in_float32(cases: Any, batch: Any) -> None:
    for name, case in cases.items():
        data = batch(6)
        with torch.autocast("cpu", torch.bfloat16):
            out = case.loss()(data)
        assert out["loss"].dtype == data["td_error"].dtype == torch.float32, name


def test_the_signature_names_the_options_of_the_head(cases: Any) -> None:
    parameters = inspect.signature(cases["m_iqn"].cls).parameters
    assert list(parameters)[:4] == ["value_network", "tau", "alpha", "clip_min"]
    defaults = {"num_quantiles": 64, "num_policy_quantiles": 32, "kappa": 1.0, "share_fractions": False}
    assert {name: parameters[name].default for name in defaults} == defaults
    assert inspect.signature(cases["qr"].cls).parameters["kappa"].default == 1.0
