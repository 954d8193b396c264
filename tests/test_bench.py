"""``torchrl-reg bench`` in small: every case runs, and its numbers are the medians they are said to be."""

from __future__ import annotations

import json

import pytest

from torchrl_reg.bench import cartpole, control, images, losses, planning, replay
from torchrl_reg.bench.measure import Case, Table, measured
from torchrl_reg.bench.scalar_uct import scalar_uct
from torchrl_reg.cli import main
from torchrl_reg.commands.bench import ON_DEVICES, _tables
from torchrl_reg.planning import UCT, SyntheticTrees


def test_medians_and_ratios_are_those_of_the_rounds() -> None:
    amounts = {"a": iter([9.0, 2.0, 4.0, 8.0]), "b": iter([1.0, 3.0, 20.0, 4.0])}
    order = []

    def take(name: str) -> float:
        order.append(name)
        return next(amounts[name])

    cases = [Case("a", lambda: take("a"), "a"), Case("b", lambda: take("b"), "a")]
    first, second = measured(Table("t", "us", cases), rounds=3)
    assert order == ["a", "b"] * 4  # interleaved, and the first round is not counted
    assert (first.amount, first.ratio) == (4.0, 1.0)
    assert (second.amount, second.ratio) == (4.0, 1.5)  # the median of 1.5, 5 and .5, not of 4 / 4


@pytest.mark.parametrize("every, batch", [(10, 16), (4, 8)])
def test_scripts_and_recipe_collect_and_learn(every: int, batch: int) -> None:
    pytest.importorskip("hydra")
    for rate in (
        cartpole.cleanrl_loop(1_100, every, batch),
        cartpole.hand_written(1_100, every, batch),
        cartpole.torchrl_parts(1_100, every, batch),
        cartpole._recipe(3_000, every, batch, 8)(),
    ):
        assert rate > 0


def test_image_scripts_and_recipe_collect_and_learn() -> None:
    pytest.importorskip("hydra")
    reference, ours, _ = images.minatar_tables(1_600)[0].cases
    assert reference.measure() > 0 and ours.measure() > 0


@pytest.mark.slow
def test_atari_scripts_collect_and_learn() -> None:
    pytest.importorskip("ale_py"), pytest.importorskip("cv2")
    assert all(case.measure() > 0 for case in images.atari_tables()[0].cases)


def test_hopper_scripts_and_recipes_collect_and_learn() -> None:
    pytest.importorskip("hydra"), pytest.importorskip("mujoco")
    assert control.cleanrl_sac(48, starts=32) > 0
    cases = control.hopper_table(256, starts=96).cases
    assert [case.name.split(",")[0] for case in cases[1:]] == ["recipes/sac.py", "recipes/iq.py", "recipes/iq.py"]
    assert cases[2].measure() > 0


def test_hand_written_sac_learns_as_cleanrl_does() -> None:
    import torch

    torch.manual_seed(0)
    sac = control.SAC(3, torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0]))
    rows = [torch.randn(64, 3), torch.randn(64, 3), torch.rand(64, 2), torch.randn(64), torch.zeros(64)]

    def flat(module: torch.nn.Module) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    policy, target = flat(sac.actor), flat(sac.targets[0])
    sac.learn(1, rows)
    assert torch.equal(flat(sac.actor), policy) and sac.alpha == 1.0  # odd steps leave the policy alone
    assert torch.allclose(flat(sac.targets[0]), target + control.RATE * (flat(sac.critics[0]) - target))
    sac.learn(2, rows)
    assert not torch.equal(flat(sac.actor), policy) and sac.alpha != 1.0
    # The density is that of the squashed normal: compare with torch's own transform.
    from torch.distributions import AffineTransform, Normal, TanhTransform, TransformedDistribution

    torch.manual_seed(1)
    action, log_density = sac.actor(rows[0])
    features = sac.actor.body(rows[0])
    log_std = -5 + 3.5 * (sac.actor.log_std(features).tanh() + 1)
    transforms = [TanhTransform(), AffineTransform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0]))]
    same = TransformedDistribution(Normal(sac.actor.mean(features), log_std.exp()), transforms)
    assert torch.allclose(same.log_prob(action.detach()).sum(-1, keepdim=True), log_density, atol=1e-2)


@pytest.mark.slow
def test_compiled_recipes_are_measured() -> None:
    assert all(case.measure() > 0 for case in cartpole.compiled_tables(6_000)[0].cases[2:4])


def test_hand_written_munchausen_is_the_loss() -> None:
    import torch
    from tensordict import TensorDict
    from torchrl.data import Categorical
    from torchrl.modules import QValueActor

    from torchrl_reg.objectives import HardTargetUpdate, MunchausenDQNLoss

    torch.manual_seed(0)
    q, target = cartpole.network(), cartpole.network()
    o, o2, r = torch.randn(9, 4), torch.randn(9, 4), torch.randn(9)
    a, end = torch.randint(2, (9,)), (torch.arange(9) % 3 == 0).float()
    actor = QValueActor(q, spec=Categorical(2))
    loss = MunchausenDQNLoss(actor, tau=0.03, alpha=0.9, clip_min=-1.0, loss_function="smooth_l1")
    loss.make_value_estimator(gamma=0.99)
    HardTargetUpdate(loss, period_updates=10)
    for parameter, other in zip(loss.target_value_network_params.values(True, True), target.parameters(), strict=True):
        parameter.data.copy_(other)
    flags = {"terminated": end.bool().unsqueeze(-1), "done": end.bool().unsqueeze(-1)}
    after = {"observation": o2, "reward": r.unsqueeze(-1), **flags}
    expected = loss(TensorDict({"observation": o, "action": a, "next": after}, [9]))["loss"]
    assert torch.allclose(cartpole.munchausen(q, target, o, o2, a, r, end), expected, atol=1e-5)


def test_replay_and_losses_are_measured() -> None:
    sampling, memory = (measured(table, 1) for table in replay.replay_tables(capacity=400, samples=1))
    assert all(row.amount > 0 for row in sampling)
    assert memory[0].amount > 56_000 and memory[1].ratio < 0.2
    assert [case.measure() > 0 for case in losses.update_tables()[1].cases] == [True, True]


def test_searches_are_measured() -> None:
    pytest.importorskip("numba"), pytest.importorskip("ale_py")
    sizes = planning.Sizes(one=9, trees=3, many=2, cost=2, depths=(2, 3), episodes=2, decisions=1, simulations=3)
    for table in planning.planning_tables(sizes):
        rows = measured(table, 1)
        assert all(row.amount > 0 for row in rows) and rows[0].reference in [row.name for row in rows], table.title
    assert [row.amount for row in measured(planning.memory_table(), 1)] == [288.0, 352.0, 212.0]


def test_the_plain_search_is_uct() -> None:
    trees = SyntheticTrees(branching=3, depth=3, seed=2)
    assert scalar_uct(trees, 200) == UCT(num_simulations=200)(trees, trees.roots()).visits[0].tolist()


def test_json_and_refusals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("t", "us", [Case("a", lambda: 2.0, "a")])
    monkeypatch.setattr(losses, "update_tables", lambda: [table])
    assert main(["bench", "update", "--rounds", "2", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["amount"], row["ratio"], row["rounds"]) == ("a", 2.0, 1.0, 2)
    assert main(["bench", "update", "--rounds", "2"]) == 0
    assert "x1.00 of a" in capsys.readouterr().out
    assert main(["bench", "update", "--rounds", "0"]) == 1
    assert "--rounds must be at least 1, got 0." in capsys.readouterr().err
    assert main(["bench", "update", "--device", "cuda"]) == 1
    assert "--device must be cpu but for cartpole, compile, seeds, minatar, atari, got cuda." in capsys.readouterr().err


def test_the_device_reaches_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    for module, name in ((cartpole, "cleanrl_loop"), (cartpole, "hand_written"), (images, "hand_written_minatar")):
        monkeypatch.setattr(module, name, lambda *args, device="", **_: given.append(device or args[-1]) or 1.0)
    monkeypatch.setattr(images, "cleanrl_atari", lambda *_, device, **__: given.append(device) or 1.0)
    monkeypatch.setattr(images.recipes, "speed", lambda *_, device, **__: lambda: given.append(device) or 1.0)
    for topic in ON_DEVICES:
        for table in _tables(topic, 6_000, "cuda:1"):
            for case in table.cases:
                if not case.name.startswith("stable"):
                    case.measure()
    assert set(given) == {"cuda:1"} and len(given) > 20


@pytest.mark.gpu
def test_scripts_and_recipe_learn_on_a_gpu() -> None:
    pytest.importorskip("hydra")
    sizes = (1_100, 4, 8, "cuda")
    assert cartpole.cleanrl_loop(*sizes) > 0 and cartpole.hand_written(*sizes) > 0
    assert all(case.measure() > 0 for case in images.minatar_tables(1_600, "cuda")[0].cases[:2])
