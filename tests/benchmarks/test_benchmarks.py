"""The benchmarks in small: every case runs, references compute what they claim, numbers are medians."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.distributions import AffineTransform, Normal, TanhTransform, TransformedDistribution
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from tests.benchmarks import atari, cartpole, control, minatar, planning, pqn, scripts, seeds
from tests.benchmarks.measure import Table, main, measured
from torchrl_reg.objectives import HardTargetUpdate, MunchausenDQNLoss, QLearningLoss
from torchrl_reg.planning import UCT, SyntheticTrees

ON_DEVICES = (cartpole, seeds, minatar, atari)


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


def test_options_rows_and_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def table(frames: int = 5) -> Table:
        """Frames."""
        return Table("t", "us", {"a": lambda: float(frames)})

    path = tmp_path / "new/rows.json"
    main(table, ["--rounds", "2", "--frames", "7", "--save", str(path)])
    assert "x1.00 of a" in capsys.readouterr().out
    (row,) = json.loads(path.read_text())
    expected = {"table": "t", "name": "a", "amount": 7.0, "ratio": 1.0, "unit": "us", "reference": "a", "rounds": 2}
    assert row == row | expected | {"options": {"frames": 7}, "torch": torch.__version__} and "processor" in row
    for words in (["--rounds", "0"], ["--device", "cuda"]):  # no network of this table is on a device
        with pytest.raises(SystemExit):
            main(table, words)
        assert words[0] in capsys.readouterr().err


def test_cartpole_collects_and_learns() -> None:
    assert all(measure() > 0 for measure in cartpole.by_hand(scripts.Size(1_100, 1_000, 4, 32)).values())
    assert cartpole.torchrl_parts(scripts.Size(2_400, 1_000, 4, 32)) > 0
    assert cartpole.ours(scripts.Size(3_000, 1_000, 4, 32), 8)() > 0
    with pytest.raises(SystemExit, match="more frames"):
        cartpole.ours(scripts.Size(1_200, 1_000, 10, 8), 8)()


def test_minatar_and_hopper_collect_and_learn() -> None:
    pytest.importorskip("minatar"), pytest.importorskip("mujoco")
    assert all(measure() > 0 for measure in list(minatar.table(1_600).cases.values())[:2])
    assert control.cleanrl_sac(scripts.Size(48, 32, 1, 16)) > 0
    names = list(cases := control.table(256, starts=96).cases)
    assert [name.split(",")[0] for name in names[1:]] == [
        f"recipes/{name}" for name in ("sac.py", "iq.py", "iq.py", "virel.py", "soft_q.py")
    ] + [f"recipes/{name} compiled" for name in ("sac.py", "iq.py", "iq.py")]
    assert cases[names[2]]() > 0 and cases[names[5]]() > 0


def test_rollouts_are_measured() -> None:
    assert pqn.cleanrl_pqn(1_024) > 0 and pqn.least_pqn(1_024) > 0
    assert list(minatar.table(1_000).cases.values())[-1]() > 0


def test_hand_written_returns_are_those_of_the_estimator() -> None:
    torch.manual_seed(0)
    q = torch.nn.Linear(4, 2)
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
    compiled = [measure for name, measure in cartpole.table().cases.items() if "compiled" in name]
    assert compiled and all(measure() > 0 for measure in (*atari.table().cases.values(), *compiled))


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
    q, batch = control.mlp(8, 4), 32
    rows = torch.randn(batch, 8), torch.randn(batch, 8), torch.randint(4, (batch,)), torch.randn(batch)
    ended = torch.rand(batch, 1) < 0.1
    after = {"observation": rows[1], "reward": rows[3].unsqueeze(-1), "done": ended, "terminated": ended}
    data = TensorDict({"observation": rows[0], "action": rows[2], "next": after}, [batch])
    actor, how = QValueActor(q, spec=Categorical(4)), {"tau": 0.03, "alpha": 0.9, "clip_min": -1.0}
    loss = MunchausenDQNLoss(actor, **how, loss_function="smooth_l1").make_value_estimator(gamma=0.99)
    HardTargetUpdate(loss, period_updates=10)
    target = copy.deepcopy(q)
    target[-1].weight.data *= 40
    for parameter, other in zip(loss.target_value_network_params.values(True, True), target.parameters(), strict=True):
        parameter.data.copy_(other)
    by_hand = scripts.munchausen(q, target, *rows, ended.squeeze(-1).float())
    torch.testing.assert_close(by_hand, loss(data)["loss"])


@pytest.mark.parametrize("kind", [scripts.Ring, scripts.NumpyRing])
def test_rings_keep_the_newest_rows_whole(kind: type) -> None:
    ring = kind(6, np.zeros((1, 2)), np.zeros(1, np.int64))
    for step in range(8):
        ring.add(np.full((1, 2), step), np.full((1, 2), -step), *np.full((3, 1), step))
    seen, following, numbers, rewards, ended = ring.sample(200)
    assert set(numbers.tolist()) == {2, 3, 4, 5, 6, 7} and numbers.dtype == torch.int64
    assert all(torch.equal(each, numbers.float()) for each in (seen[:, 1], -following[:, 1], rewards, ended))


@pytest.mark.parametrize("trees", [1, 3])
def test_searches_are_measured(trees: int) -> None:
    pytest.importorskip("numba")
    assert all(row["amount"] > 0 for row in measured(planning.table(9, trees), 1))


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

    for module in ON_DEVICES:
        for name in {"cleanrl_dqn", "m_dqn", "recipe"} & set(vars(module)):
            monkeypatch.setattr(module, name, device_of)
    monkeypatch.setattr(atari, "breakout", lambda: None)
    for module in ON_DEVICES:
        for name, measure in module.table(device="cuda:1").cases.items():
            if not name.startswith("stable"):
                measure()
    assert set(given) == {"cuda:1"} and len(given) > 15


@pytest.mark.gpu
def test_scripts_and_recipe_learn_on_a_gpu() -> None:
    assert all(measure() > 0 for measure in cartpole.by_hand(scripts.Size(1_100, 1_000, 4, 8, "cuda")).values())
    assert all(measure() > 0 for measure in list(minatar.table(1_600, "cuda").cases.values())[:2])


def test_the_gradients_of_the_least_pqn_are_autograds() -> None:
    q = pqn._network()
    parameters = list(q.parameters())
    o, a, returns = torch.randn(7, 4), torch.randint(2, (7,)), torch.randn(7)
    loss = torch.nn.functional.mse_loss(q(o).gather(1, a.unsqueeze(-1)).squeeze(), returns)
    found = pqn.hand_gradients([parameter.detach() for parameter in parameters], o, a, returns)
    torch.testing.assert_close(found, list(torch.autograd.grad(loss, parameters)))
