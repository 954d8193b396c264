"""The benchmarks in small: every case runs, references compute what they claim, numbers are medians."""

from __future__ import annotations

import json
from importlib import import_module

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.distributions import AffineTransform, Normal, TanhTransform, TransformedDistribution
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from tests.benchmarks import cartpole, control, planning, pqn, replay, scripts, update
from tests.benchmarks.measure import Table, main, measured
from torchrl_reg.objectives import HardTargetUpdate, MunchausenDQNLoss, QLearningLoss
from torchrl_reg.planning import UCT, SyntheticTrees

ON_DEVICES = ("cartpole", "compile", "seeds", "minatar", "atari")


def tables_of(topic: str, *arguments: object, **options: object) -> list[Table]:
    return import_module(f"tests.benchmarks.{topic}").tables(*arguments, **options)


def test_medians_and_ratios_are_those_of_the_rounds() -> None:
    amounts = {"a": iter([9.0, 2.0, 4.0, 8.0]), "b": iter([1.0, 3.0, 20.0, 4.0])}
    order: list[str] = []

    def take(name: str) -> float:
        order.append(name)
        return next(amounts[name])

    first, second = measured(Table("t", "us", {"a": lambda: take("a"), "b": lambda: take("b")}), rounds=3)
    assert order == ["a", "b"] * 4  # interleaved, and the first round is not counted
    assert (first["amount"], first["ratio"]) == (4.0, 1.0)
    assert (second["amount"], second["ratio"]) == (4.0, 1.5)  # the median of 1.5, 5 and .5, not of 4 / 4


def test_options_json_and_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    def tables(frames: int = 5) -> list[Table]:
        """Frames."""
        return [Table("t", "us", {"a": lambda: float(frames)})]

    main(tables, ["--rounds", "2", "--json", "--frames", "7"])
    row = {"table": "t", "name": "a", "amount": 7.0, "ratio": 1.0, "unit": "us", "reference": "a", "rounds": 2}
    assert json.loads(capsys.readouterr().out) == [row]
    main(tables, ["--rounds", "1"])
    assert "x1.00 of a" in capsys.readouterr().out
    for words in (["--rounds", "0"], ["--device", "cuda"]):  # no network of these tables is on a device
        with pytest.raises(SystemExit):
            main(tables, words)
        assert words[0] in capsys.readouterr().err


def test_cartpole_collects_and_learns() -> None:
    assert all(measure() > 0 for measure in cartpole.by_hand(scripts.Size(1_100, 1_000, 4, 32)).values())
    assert cartpole.torchrl_parts(scripts.Size(2_400, 1_000, 4, 32)) > 0
    assert cartpole.ours(scripts.Size(3_000, 1_000, 4, 32), 8)() > 0
    with pytest.raises(SystemExit, match="more frames"):
        cartpole.ours(scripts.Size(1_200, 1_000, 10, 8), 8)()


def test_minatar_and_hopper_collect_and_learn() -> None:
    pytest.importorskip("minatar"), pytest.importorskip("mujoco")
    assert all(measure() > 0 for measure in list(tables_of("minatar", 1_600)[0].cases.values())[:2])
    assert control.cleanrl_sac(scripts.Size(48, 32, 1, 16)) > 0
    names = list(cases := control.hopper_table(256, starts=96).cases)
    assert [name.split(",")[0] for name in names[1:]] == ["recipes/sac.py", "recipes/iq.py", "recipes/iq.py"]
    assert cases[names[2]]() > 0


def test_rainbow_and_rollouts_are_measured() -> None:
    for small, large in zip(*(table.cases.items() for table in tables_of("rainbow", 2)), strict=True):
        assert small[1]() > 0 and large[1]() > 0
    assert import_module("tests.benchmarks.pqn").cleanrl_pqn(1_024) > 0


def test_hand_written_returns_are_those_of_the_estimator() -> None:
    torch.manual_seed(0)
    pqn, q = import_module("tests.benchmarks.pqn"), torch.nn.Linear(4, 2)
    o, rewards, dones = torch.randn(129, 4, 4), torch.randn(128, 4), (torch.rand(129, 4) < 0.1).float()
    values = q(o).max(-1).values.detach()
    returns = pqn._returns(q, o[-1], dones[-1], rewards, dones[:-1], values[:-1])
    flags = {"reward": rewards.T, "done": dones[1:].T.bool(), "terminated": dones[1:].T.bool()}
    rows = {key: flag.unsqueeze(-1) for key, flag in flags.items()} | {"observation": o[1:].transpose(0, 1)}
    actions = torch.zeros(4, 128, dtype=torch.long)
    batch = TensorDict({"observation": o[:-1].transpose(0, 1), "action": actions, "next": rows}, [4, 128])
    loss = QLearningLoss(QValueActor(q, spec=Categorical(2)), delay_value=False)
    loss.make_value_estimator("regularized_qlambda", gamma=scripts.GAMMA, lmbda=pqn.TRACE, correct=False)
    loss.value_estimator(batch)
    torch.testing.assert_close(batch["value_target"].squeeze(-1).T, returns)


@pytest.mark.slow
def test_atari_and_compiled_recipes_are_measured() -> None:
    pytest.importorskip("ale_py"), pytest.importorskip("cv2")
    cases = tables_of("atari")[0].cases | tables_of("compile", 6_000)[0].cases
    assert all(measure() > 0 for name, measure in cases.items() if "hand-written" not in name)


def test_hand_written_sac_learns_as_cleanrl_does() -> None:
    torch.manual_seed(0)
    sac = control.SAC(3, torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0]))
    rows = [torch.randn(64, 3), torch.randn(64, 3), torch.rand(64, 2), torch.randn(64), torch.zeros(64)]
    flat = torch.nn.utils.parameters_to_vector
    policy, target = flat(sac.actor.parameters()).clone(), flat(sac.targets.parameters()).clone()
    sac.learn(1, rows)
    assert torch.equal(flat(sac.actor.parameters()), policy) and sac.alpha == 1.0  # odd steps leave the policy alone
    moved = target.lerp(flat(sac.critics.parameters()), control.RATE)
    torch.testing.assert_close(flat(sac.targets.parameters()), moved)
    sac.learn(2, rows)
    assert not torch.equal(flat(sac.actor.parameters()), policy) and sac.alpha != 1.0
    # The density is that of the squashed normal: compare with torch's own transform.
    action, log_density = sac.actor(rows[0])
    features = sac.actor.body(rows[0])
    log_std = -5 + 3.5 * (sac.actor.log_std(features).tanh() + 1)
    transforms = [TanhTransform(), AffineTransform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0]))]
    same = TransformedDistribution(Normal(sac.actor.mean(features), log_std.exp()), transforms)
    assert torch.allclose(same.log_prob(action.detach()).sum(-1, keepdim=True), log_density, atol=1e-2)


def test_hand_written_munchausen_is_the_loss_where_the_clip_is_at_work() -> None:
    torch.manual_seed(0)
    raw = update.Raw(update.mlp(8, update.ACTIONS), data := update.minibatch())
    raw.target[-1].weight.data *= 40
    actor, how = QValueActor(raw.net, spec=update.SPEC), {"tau": 0.03, "alpha": 0.9, "clip_min": -1.0}
    loss = MunchausenDQNLoss(actor, **how, loss_function="smooth_l1")
    loss.make_value_estimator(gamma=0.99)
    HardTargetUpdate(loss, period_updates=10)
    for parameter, other in zip(
        loss.target_value_network_params.values(True, True), raw.target.parameters(), strict=True
    ):
        parameter.data.copy_(other)
    expected = loss(data)["loss"]
    torch.testing.assert_close(raw.m_dqn()[0], expected)
    rows = raw.o, raw.o2, raw.a.squeeze(-1), raw.r, 1 - raw.alive.float()
    torch.testing.assert_close(scripts.munchausen(raw.net, raw.target, *rows), expected)


def test_hand_written_losses_equal_ours() -> None:
    """Raw and ours share the network and the data; the target network is a copy of it."""
    torch.manual_seed(0)
    for raw, ours in (tuple(group.values()) for group in update.forward_calls()):
        by_hand = raw()
        torch.testing.assert_close(ours()["loss"], by_hand[0] if isinstance(by_hand, tuple) else by_hand)


@pytest.mark.parametrize("kind", [scripts.Ring, scripts.NumpyRing])
def test_rings_keep_the_newest_rows_whole(kind: type) -> None:
    ring = kind(6, np.zeros((1, 2)), np.zeros(1, np.int64))
    for step in range(8):
        ring.add(np.full((1, 2), step), np.full((1, 2), -step), *np.full((3, 1), step))
    seen, following, numbers, rewards, ended = ring.sample(200)
    assert set(numbers.tolist()) == {2, 3, 4, 5, 6, 7} and numbers.dtype == torch.int64
    assert all(torch.equal(each, numbers.float()) for each in (seen[:, 1], -following[:, 1], rewards, ended))


def test_replay_and_updates_are_measured() -> None:
    sampling, memory = (measured(table, 1) for table in replay.tables(capacity=400, samples=1))
    assert all(row["amount"] > 0 for row in sampling)
    assert memory[0]["amount"] > 56_000 and memory[1]["ratio"] < 0.2
    for group in (update.quantile_calls(), update.target_calls(), control.update_calls()):
        for call in group.values():
            call()


def test_searches_are_measured() -> None:
    pytest.importorskip("numba"), pytest.importorskip("ale_py")
    for table in (*planning.tables(9, 3, 1)[:-1], planning.atari_table(1, episodes=2, simulations=3)):
        assert all(row["amount"] > 0 for row in measured(table, 1)), table.title
    assert [row["amount"] for row in measured(planning.memory_table(), 1)] == [288.0, 352.0, 212.0]


def test_the_plain_search_is_uct() -> None:
    trees = SyntheticTrees(branching=3, depth=3, seed=2)
    assert sum(planning.scalar_ments(trees, 200)) == 200
    assert planning.scalar_uct(trees, 200) == UCT(num_simulations=200)(trees, trees.roots()).visits[0].tolist()


def test_the_device_reaches_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def device_of(*arguments: object, **_: object) -> object:
        (size,) = (each for each in arguments if isinstance(each, scripts.Size))
        given.append(size.device)
        return lambda: 1.0

    for module in (import_module(f"tests.benchmarks.{topic}") for topic in ON_DEVICES):
        for name in {"cleanrl_dqn", "m_dqn", "recipe"} & set(vars(module)):
            monkeypatch.setattr(module, name, device_of)
    monkeypatch.setattr(import_module("tests.benchmarks.atari"), "breakout", lambda: None)
    for table in (table for topic in ON_DEVICES for table in tables_of(topic, device="cuda:1")):
        for measure in (measure for name, measure in table.cases.items() if not name.startswith("stable")):
            measure()
    assert set(given) == {"cuda:1"} and len(given) > 20


@pytest.mark.gpu
def test_scripts_and_recipe_learn_on_a_gpu() -> None:
    assert all(measure() > 0 for measure in cartpole.by_hand(scripts.Size(1_100, 1_000, 4, 8, "cuda")).values())
    assert all(measure() > 0 for measure in list(tables_of("minatar", 1_600, "cuda")[0].cases.values())[:2])


def test_the_gradients_of_the_least_pqn_are_autograds() -> None:
    q = pqn._network()
    parameters = list(q.parameters())
    o, a, returns = torch.randn(7, 4), torch.randint(2, (7,)), torch.randn(7)
    loss = torch.nn.functional.mse_loss(q(o).gather(1, a.unsqueeze(-1)).squeeze(), returns)
    found = pqn.hand_gradients([parameter.detach() for parameter in parameters], o, a, returns)
    torch.testing.assert_close(found, list(torch.autograd.grad(loss, parameters)))
