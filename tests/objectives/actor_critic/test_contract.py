"""What any TorchRL user may expect of every loss over an actor and critics."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torchrl.objectives import SoftUpdate

from torchrl_reg.objectives import HardTargetUpdate, PolyakTargetUpdate, SoftQLearningLoss, VIRELLoss

GAMMA = 0.9
COMPILED = [
    "virel",
    "sac",
    *[pytest.param(name, marks=pytest.mark.slow) for name in ("virel_value", "sac_fixed", "soft_q")],
]


def call(loss: Any, data: Any) -> Any:
    torch.manual_seed(3)  # actions are sampled
    return loss(data)


def losses(out: Any) -> torch.Tensor:
    return torch.stack([out[name] for name in sorted(out.keys()) if name.startswith("loss")])


def value(loss: Any, data: Any) -> torch.Tensor:
    return losses(call(loss, data))


def total(loss: Any, data: Any) -> torch.Tensor:
    return value(loss, data).sum()


def test_keys(case: Any) -> None:
    loss = case.loss()
    following = [("next", k) for k in ("reward", "done", "terminated", "observation")]
    assert set(loss.in_keys) == {"action", "observation", *following}
    assert sorted(name for name, _ in call(loss, case.batch(3)).items() if name.startswith("loss")) == case.losses
    assert sorted(loss.out_keys) == sorted([*case.losses, *case.reported])


def test_set_keys_and_nested_keys(case: Any) -> None:
    data = case.batch(6)
    expected = value(case.loss(), data.clone())
    action = ("agent", "action")
    loss = case.loss(case.networks(in_key=("agent", "pixels"), action_key=action))
    loss.set_keys(action=action, reward=("agent", "r"), done="stop", terminated="end", priority=("p", "delta"))
    moved = data.select()
    moved["agent", "pixels"], moved[action] = data["observation"], data["action"]
    moved["next", "agent", "pixels"] = data["next", "observation"]
    moved["next", "agent", "r"] = data["next", "reward"]
    moved["next", "stop"], moved["next", "end"] = data["next", "done"], data["next", "terminated"]
    torch.testing.assert_close(value(loss, moved), expected)
    assert moved["p", "delta"].shape == (6, 1)


def test_dispatch_without_tensordict(case: Any) -> None:
    data = case.batch(6)
    expected = call(case.loss(), data.clone())
    loss = case.loss()
    torch.manual_seed(3)
    got = loss(
        observation=data["observation"],
        action=data["action"],
        next_observation=data["next", "observation"],
        next_reward=data["next", "reward"],
        next_done=data["next", "done"],
        next_terminated=data["next", "terminated"],
    )
    for name, entry in zip(loss.out_keys, got, strict=True):
        torch.testing.assert_close(entry, expected[name])


def test_float64(case: Any) -> None:
    """All of it is computed in double precision: the target of a float32 reward of 1/3 differs."""
    out = call(case.loss().double(), case.batch(9, dtype=torch.float64))
    assert losses(out).dtype == torch.float64 and losses(call(case.loss(), case.batch(9))).dtype == torch.float32


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction(case: Any, reduction: str) -> None:
    none = call(case.loss(reduction="none"), case.batch(9))
    got = call(case.loss(reduction=reduction), case.batch(9))
    for name in case.losses:
        assert none[name].shape == (9,)
        torch.testing.assert_close(got[name], getattr(none[name], reduction)())
    assert all(got[name] == none[name] for name in case.reported)


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3), (2, 1)])
def test_any_batch_shape(case: Any, shape: tuple[int, ...]) -> None:
    data = case.batch(*shape)
    flat = call(case.loss(reduction="none"), data.reshape(-1))
    got = call(case.loss(reduction="none"), data)
    assert data["td_error"].shape == (*shape, 1)
    for name in case.losses:
        torch.testing.assert_close(got[name], flat[name].reshape(shape))
    for name in case.reported:
        torch.testing.assert_close(got[name], flat[name])


def test_masked_rows_do_not_count_even_if_nan(case: Any) -> None:
    """Neither their content nor whether it is a number; actions are drawn for them all the same."""
    data, mask = case.batch(8), torch.tensor([True, True, False, True, False, True, True, True])
    data["collector", "mask"] = mask.unsqueeze(-1).clone()
    none = call(case.loss(reduction="none"), data.exclude(("collector", "mask")))
    expected = call(case.loss(), data.clone())
    for key in ("observation", "action", ("next", "reward"), ("next", "observation")):
        data[key][~mask] = torch.nan
    loss = case.loss()
    out = call(loss, data)
    torch.testing.assert_close(losses(out), losses(expected))
    for name in case.reported:
        torch.testing.assert_close(out[name], expected[name])
    assert all(x.isfinite() for x in out.values()) and data["td_error"][mask].isfinite().all()
    if case.kwargs.get("mode") != "em":  # there the temperature of all rows weighs each
        for name in case.losses:
            torch.testing.assert_close(out[name], none[name][mask].mean())
    losses(out).sum().backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_what_is_reported_is_a_mean_over_the_rows_that_count(case: Any) -> None:
    """Those of a mask and those of its complement make up all, whose actions are drawn alike."""
    data, mask = case.batch(8), torch.tensor([True, True, False, True, False, True, True, True])
    data["observation"] += 3.0  # a row that is left out is seen as 0
    found = []
    for kept in (mask, ~mask, mask | ~mask):
        data["collector", "mask"] = kept.unsqueeze(-1)
        found.append(call(case.loss(), data.clone()))
    for name in case.reported:
        torch.testing.assert_close((6 * found[0][name] + 2 * found[1][name]) / 8, found[2][name])


def test_nan_after_a_terminal_state_is_harmless(case: Any) -> None:
    data = case.batch(6)
    expected = value(case.loss(), data.clone())
    data["next", "observation"][data["next", "terminated"].squeeze(-1)] = torch.nan
    loss = case.loss()
    torch.testing.assert_close(value(loss, data), expected)
    total(loss, data).backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_priorities_and_their_weights(case: Any) -> None:
    """The largest error of the critics, squared or absolute; weights count for the critics alone."""
    if case.kwargs.get("mode") == "em":
        pytest.skip("the literal M-step is no sum over rows")
    data = case.batch(9)
    none = call(case.loss(reduction="none"), data)
    larger, summed = data["td_error"].squeeze(-1) ** (2 / case.power), none["loss_qvalue"].detach()
    if case.critics == 1:
        torch.testing.assert_close(larger, summed)
    else:
        assert (larger <= summed).all() and (case.critics * larger >= summed).all()
    weights = torch.linspace(0.2, 2.0, 9)
    weighted = case.batch(9)
    weighted["priority_weight"] = weights
    got = call(case.loss(), weighted)
    torch.testing.assert_close(got["loss_qvalue"], (weights * none["loss_qvalue"]).sum() / weights.sum())
    for name in set(case.losses) - {"loss_qvalue"}:
        torch.testing.assert_close(got[name], none[name].mean())


def test_each_loss_reaches_its_own_network(case: Any, lagged_tensors: Any) -> None:
    for name, owner in (
        ("loss_actor", "actor"),
        ("loss_qvalue", "qvalue"),
        ("loss_value", "value"),
        ("loss_alpha", ""),
    ):
        loss = case.loss()
        if name not in loss.out_keys:
            continue
        call(loss, case.batch(9))[name].backward()
        for network in loss._network_names:
            for p in getattr(loss, f"{network}_params").parameters():
                reached = p.grad is not None and p.grad.abs().sum() > 0
                assert reached == (network == f"{owner}_network"), (name, network)
        assert not any(p.requires_grad for p in lagged_tensors(loss))


def test_terminated_drops_the_bootstrap_and_truncated_keeps_it(case: Any) -> None:
    loss = case.loss()

    def with_flags(terminated: bool, truncated: bool, scale: float) -> torch.Tensor:
        data = case.batch(9)
        data["next", "terminated"][:] = terminated
        data["next", "truncated"][:] = truncated
        data["next", "done"][:] = terminated or truncated
        data["next", "observation"] *= scale
        call(loss, data)
        return data["td_error"]

    torch.testing.assert_close(with_flags(True, False, 1.0), with_flags(True, False, 5.0))
    torch.testing.assert_close(with_flags(False, True, 1.0), with_flags(False, False, 1.0))
    assert (with_flags(False, True, 1.0) - with_flags(False, True, 5.0)).abs().max() > 1e-3


def test_data_without_terminated(case: Any) -> None:
    data = case.batch(6)
    data["next", "terminated"] = data["next", "done"]
    expected = value(case.loss(), data.clone())
    del data["next", "terminated"]
    torch.testing.assert_close(value(case.loss(), data), expected)


def test_n_step_discount(case: Any) -> None:
    data = case.batch(9)
    data["steps_to_next_obs"] = torch.full((9, 1), 3)
    three, one = case.loss(), case.loss()
    one.make_value_estimator(gamma=0.9**3)
    torch.testing.assert_close(value(three, data.clone()), value(one, data.exclude("steps_to_next_obs")))


def test_state_dict_round_trip(case: Any) -> None:
    loss, other = case.loss(), case.loss(seed=9, perturb=False)
    loss.tau = 0.2
    before = list(loss.state_dict())
    expected = value(loss, case.batch(9))
    assert list(loss.state_dict()) == before
    assert (value(other, case.batch(9)) != expected).any()
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(value(other, case.batch(9)), expected)
    assert other.tau == loss.tau == pytest.approx(0.2)


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
    twin.tau = 0.1
    torch.testing.assert_close(value(loss, case.batch(9)).detach(), expected)
    assert ((value(twin, case.batch(9)).detach() - expected).abs() > 1e-4).any()


def test_optimizer_and_target_updates_are_seen(case: Any, lagged_tensors: Any) -> None:
    """By every part, the actor's view of the critics included."""
    loss = case.loss()
    first = call(loss, case.batch(9))
    with torch.no_grad():
        for p in loss.qvalue_network_params.parameters():
            p.mul_(1.3)
    second = call(loss, case.batch(9))
    assert all((first[name] != second[name]) == (name != "loss_alpha") for name in case.losses)
    with torch.no_grad():
        for p in lagged_tensors(loss):
            p.mul_(1.3)
    assert (call(loss, case.batch(9))["loss_qvalue"] != second["loss_qvalue"]) == (case.kwargs.get("mode") != "em")


def test_input_is_not_changed_but_for_the_priority(case: Any) -> None:
    data = case.batch(9)
    before = data.clone()
    call(case.loss(), data)
    assert set(data.keys(True, True)) - set(before.keys(True, True)) == {"td_error"}
    assert (data.exclude("td_error") == before).all()


@pytest.mark.parametrize("update", ["polyak", "hard", "torchrl"])
def test_target_updates(case: Any, update: str, lagged_tensors: Any) -> None:
    loss = case.cls(*case.networks(), **case.kwargs).make_value_estimator(gamma=GAMMA)
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


def test_the_temperature_is_schedulable(case: Any) -> None:
    if case.kwargs.get("mode") == "em":
        pytest.skip("takes the temperature of its batch")
    loss = case.loss()
    before = call(loss, case.batch(9))
    loss.tau = 0.2
    after = call(loss, case.batch(9))
    assert before["tau"] == 0.5 and after["tau"] == pytest.approx(0.2)
    assert after["loss_actor"] != before["loss_actor"]
    assert (after["loss_qvalue"] != before["loss_qvalue"]) == (case.cls is not VIRELLoss)
    loss.make_value_estimator(gamma=0.9, tau=0.5)
    torch.testing.assert_close(losses(call(loss, case.batch(9))), losses(before))
    with pytest.raises(ValueError, match="tau must be a finite number > 0"):
        loss.tau = -1.0


def test_two_forward_passes_before_one_backward_pass(case: Any) -> None:
    loss, (first, second) = case.loss(), (case.batch(6, seed=s) for s in (1, 2))
    (total(loss, first) + total(loss, second)).backward()
    together = [p.grad.clone() for p in loss.parameters()]
    loss.zero_grad()
    for data in (first, second):
        total(loss, data).backward()
    for p, gradient in zip(loss.parameters(), together, strict=True):
        torch.testing.assert_close(p.grad, gradient)


@pytest.mark.parametrize("name", COMPILED)
def test_compile_without_break_or_recompilation(cases: Any, name: str) -> None:
    case = cases[name]
    torch._dynamo.reset()
    loss = case.loss()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2, 3):
            got = value(compiled, case.batch(9, seed=seed))
            torch.testing.assert_close(got, value(loss, case.batch(9, seed=seed)))
            got.sum().backward()
            loss.tau = 0.3 + 0.1 * seed
            with torch.no_grad():
                for p in loss.parameters():
                    p.mul_(0.9)


def test_without_gradients(case: Any) -> None:
    """A loss may be evaluated under no_grad, the score of the samplers included."""
    expected = value(case.loss(), case.batch(9)).detach()
    with torch.no_grad():
        torch.testing.assert_close(value(case.loss(), case.batch(9)), expected)


def test_diagnostics(case: Any) -> None:
    out = call(case.loss(), case.batch(9))
    own, always = {"td_error", "value", "tau"}, set(case.loss().out_keys)
    if case.cls is VIRELLoss:
        own, always = own | {"entropy"}, always | {"bellman_error"}
    elif case.cls is SoftQLearningLoss:
        own |= {"ess", "spread"}
    assert set(out.keys()) == always | own
    assert all(x.ndim == 0 and x.isfinite() for x in out.values())
    assert not any(x.requires_grad for key, x in out.items() if not key.startswith("loss"))
    assert set(call(case.loss(diagnostics=False), case.batch(9)).keys()) == always


@pytest.mark.gpu
def test_on_gpu(case: Any) -> None:
    networks = [[n.to("cuda") for n in x] if isinstance(x, list) else x.to("cuda") for x in case.networks()]
    data = case.batch(9).to("cuda")
    out = call(case.loss(networks), data)
    assert losses(out).device.type == "cuda" and data["td_error"].device.type == "cuda"
    assert losses(out).isfinite().all()


def test_critics_given_other_memory_are_followed(case: Any) -> None:
    """``vector_to_parameters`` keeps the parameters and moves their memory: the actor learns from what lies there."""
    loss, twin, data = case.loss(), case.loss(), case.batch(9)
    value(loss, data)
    parameters = [p for p in loss.qvalue_network_params.values(True, True) if p.requires_grad]
    vector_to_parameters(3.0 * parameters_to_vector(parameters) + 1.0, parameters)
    for p in twin.qvalue_network_params.values(True, True):
        p.data.mul_(3.0).add_(1.0)
    torch.testing.assert_close(value(loss, data), value(twin, data))


def test_weights_of_masked_rows_may_be_nan(case: Any) -> None:
    data, mask = case.batch(8), torch.arange(8) < 6
    data["priority_weight"], data["collector", "mask"] = torch.linspace(0.2, 2.0, 8), mask.unsqueeze(-1)
    expected = value(case.loss(), data.clone())
    data["priority_weight"][~mask] = torch.nan
    torch.testing.assert_close(value(case.loss(), data), expected)
