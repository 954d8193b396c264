from __future__ import annotations

import io

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Categorical, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import PrioritizedSampler
from torchrl.modules import MLP, QValueActor
from torchrl.objectives import DQNLoss, HardUpdate, LossModule

from torchrl_reg.objectives import HardTargetUpdate, MunchausenDQNLoss
from torchrl_reg.training import ConfigError, make_update
from torchrl_reg.training.loop.update import _as_cuda_graph, _gradient_step, worth_compiling


def _dqn(seed: int = 0, device: str = "cpu") -> DQNLoss:
    torch.manual_seed(seed)
    net = MLP(in_features=3, out_features=2, num_cells=[8], device=device)
    actor = QValueActor(net, in_keys=["observation"], action_space="categorical")
    loss = DQNLoss(actor, delay_value=True, double_dqn=False, action_space="categorical")
    loss.make_value_estimator(gamma=0.9)
    HardUpdate(loss, value_network_update_interval=10**9)  # or it warns that there is none
    return loss


def _minibatch(rows: int = 10, device: str = "cpu") -> TensorDict:
    generator = torch.Generator().manual_seed(1)
    done = torch.rand(rows, 1, generator=generator) < 0.3
    return TensorDict(
        {
            "observation": torch.randn(rows, 3, generator=generator),
            "action": torch.randint(2, (rows,), generator=generator),
            "next": {
                "observation": torch.randn(rows, 3, generator=generator),
                "reward": torch.randn(rows, 1, generator=generator),
                "done": done,
                "terminated": done,
            },
        },
        batch_size=[rows],
        device=device,
    )


class _TwoTerms(LossModule):
    """``loss_a = mean(w)^2 * 3``, ``loss_b = sum(w)``, and entries that are not losses."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.5, -2.0]))

    def forward(self, tensordict: TensorDict) -> TensorDict:
        return TensorDict(
            {
                "loss_a": 3 * self.w.mean().square(),
                "loss_b": self.w.sum().reshape(1),
                "entropy": self.w.detach().abs().sum(),
                "per_sample": torch.ones(4),
            }
        )


def test_one_update_is_loss_backward_step_target():
    loss, by_hand = _dqn(), _dqn()
    update = make_update(
        loss,
        torch.optim.SGD(loss.parameters(), lr=0.1),
        HardUpdate(loss, value_network_update_interval=2),
    )
    target = HardUpdate(by_hand, value_network_update_interval=2)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    for _ in range(5):
        scalars = update(_minibatch())
        expected = by_hand(_minibatch())["loss"]
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        target.step()
        assert torch.equal(scalars["loss"], expected.detach())
    for one, other in zip(loss.state_dict().values(), by_hand.state_dict().values(), strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)


def test_losses_are_summed_and_scalars_come_back_detached():
    loss = _TwoTerms()
    scalars = make_update(loss, torch.optim.SGD(loss.parameters(), lr=0.1))(TensorDict())
    assert set(scalars.keys()) == {"loss_a", "loss_b", "entropy"}
    assert all(v.shape == () and not v.requires_grad for v in scalars.values())
    # d/dw (3 mean(w)^2 + sum(w)) = 3 mean(w) + 1 = -1.25
    assert torch.allclose(loss.w, torch.tensor([0.5, -2.0]) + 0.125)


def test_the_gradient_norm_is_clipped_and_reported():
    loss = _TwoTerms()
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    scalars = make_update(loss, optimizer, max_grad_norm=0.3)(TensorDict())
    assert scalars["grad_norm"].item() == pytest.approx(1.25 * 2**0.5)
    moved = loss.w.detach() - torch.tensor([0.5, -2.0])
    assert moved.norm().item() == pytest.approx(0.3, rel=1e-4)


def test_priorities_reach_the_buffer():
    loss = _dqn()
    replay = TensorDictReplayBuffer(
        storage=LazyTensorStorage(10),
        sampler=PrioritizedSampler(10, alpha=1.0, beta=0.5),
        batch_size=10,
    )
    replay.extend(_minibatch())
    update = make_update(loss, torch.optim.SGD(loss.parameters(), lr=0.0), replay=replay)
    sample = replay.sample()
    scalars = update(sample)
    assert list(scalars.keys()) == ["loss"]
    data = _minibatch()
    loss(data)
    leaves = torch.as_tensor(replay.sampler._sum_tree[sample["index"]])
    assert torch.allclose(leaves, data["td_error"][sample["index"]].reshape(-1), atol=1e-5)
    assert leaves.std() > 0


def test_nothing_is_read_on_the_host(monkeypatch):
    loss = _dqn()
    update = make_update(loss, torch.optim.SGD(loss.parameters(), lr=0.1), max_grad_norm=1.0)
    update(_minibatch())

    def refuse(*_args):
        raise AssertionError("an update synchronized with the host")

    for name in ("item", "tolist", "__float__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    update(_minibatch())


def _munchausen() -> MunchausenDQNLoss:
    torch.manual_seed(0)
    actor = QValueActor(MLP(in_features=3, out_features=2, num_cells=[8]), spec=Categorical(2))
    loss = MunchausenDQNLoss(actor)
    HardTargetUpdate(loss, period_updates=10)
    return loss


def traced(monkeypatch):
    """Functions given to torch.compile from now on, which are traced but not lowered: that is slow."""
    compiled = []

    def compile_eagerly(function, fullgraph=False, **_):
        compiled.append(function)
        return torch._dynamo.optimize("eager", nopython=fullgraph)(function)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    return compiled


def test_a_compiled_update_is_the_eager_one(monkeypatch):
    compiled = traced(monkeypatch)
    losses, results = [_munchausen(), _munchausen()], []
    for loss in losses:
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.1, fused=True)
        update = make_update(loss, optimizer, compile=loss is losses[0])
        results.append([update(_minibatch())["loss"] for _ in range(3)])
    assert [function.__name__ for function in compiled if not isinstance(function, LossModule)] == ["graph"]
    assert results[0] == results[1]
    for one, other in zip(*(loss.parameters() for loss in losses), strict=True):
        assert torch.equal(one, other)


def test_priorities_and_data_checks_of_a_compiled_update(monkeypatch):
    traced(monkeypatch)
    loss = _munchausen()
    update = make_update(loss, torch.optim.SGD(loss.parameters(), lr=0.0), compile=True)
    bad, good, expected = _minibatch(), _minibatch(), _minibatch()
    bad["next", "reward"][3] = torch.nan
    with pytest.raises(ValueError, match="must be finite, got NaN or infinity in 1 rows"):
        update(bad)
    update(good)
    loss(expected)
    assert torch.equal(good["td_error"], expected["td_error"])


def test_a_loss_without_a_single_graph_has_its_forward_pass_compiled(monkeypatch, capsys):
    traced(monkeypatch)

    class Breaking(_TwoTerms):
        def forward(self, tensordict: TensorDict) -> TensorDict:
            torch._dynamo.graph_break()
            return super().forward(tensordict)

    loss = Breaking()
    update = make_update(loss, torch.optim.SGD(loss.parameters(), lr=0.1), compile=True)
    update(TensorDict())
    assert "no single graph, so only the forward pass is compiled" in capsys.readouterr().err
    assert torch.allclose(loss.w, torch.tensor([0.5, -2.0]) + 0.125)


@pytest.mark.parametrize(
    ("updates", "network", "device", "pays"),
    [
        (None, torch.nn.Linear(3, 2), "cpu", False),
        (10**7, torch.nn.Conv2d(3, 2, 3), "cpu", False),
        (10**7, torch.nn.Linear(3, 2), "cuda", False),
    ],
)
def test_compiled_by_itself_where_that_pays(updates, network, device, pays):
    assert worth_compiling(network, updates, torch.device(device)) is pays


def test_what_nobody_asked_for_is_compiled_in_long_runs_alone(monkeypatch):
    for updates, expected in ((100_000, ["graph"]), (99_999, [])):
        compiled, loss = traced(monkeypatch), _munchausen()
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.1, fused=True)
        update = make_update(loss, optimizer, compile=None, updates=updates)
        update(_minibatch())
        assert [function.__name__ for function in compiled] == expected
        monkeypatch.undo()


def test_where_it_cannot_compile_what_nobody_asked_for_it_goes_on(monkeypatch, capsys):
    def compile_nothing(function, **_):
        def broken(*_):
            raise RuntimeError("No working C++ compiler found")

        return broken

    monkeypatch.setattr(torch, "compile", compile_nothing)
    losses, results = [_munchausen(), _munchausen()], []
    for loss, compile in zip(losses, (None, False), strict=True):
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.1, fused=True)
        update = make_update(loss, optimizer, compile=compile, updates=10**6)
        results.append([update(_minibatch())["loss"] for _ in range(3)])
    assert results[0] == results[1]
    said = capsys.readouterr().err
    assert said.count("nothing is compiled (No working C++ compiler found)") == 1
    asked = make_update(losses[0], torch.optim.SGD(losses[0].parameters(), lr=0.1), compile=True)
    with pytest.raises(RuntimeError, match=r"No working C\+\+ compiler"):
        asked(_minibatch())


def test_diagnostics_at_an_interval():
    loss = _munchausen()
    count = iter(range(9))
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.0)
    update = make_update(loss, optimizer, wants_diagnostics=lambda: next(count) % 3 == 0)
    seen = ["entropy" in update(_minibatch()) for _ in range(5)]
    assert seen == [True, False, False, True, False]


def test_bad_arguments_are_one_sentence():
    loss = _dqn()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"^max_grad_norm must be positive, got -1\.$"):
        make_update(loss, optimizer, max_grad_norm=-1)
    with pytest.raises(ConfigError, match="needs a CUDA device, got run.device=cpu"):
        make_update(loss, optimizer, cudagraphs=True)
    with pytest.raises(ConfigError, match="capturable=True"):
        make_update(loss, optimizer, cudagraphs=True, device="cuda")


class _NoTerms(_TwoTerms):
    def forward(self, tensordict: TensorDict) -> TensorDict:
        return super().forward(tensordict).select("entropy")


def test_a_module_without_losses_is_refused():
    loss = _NoTerms()
    with pytest.raises(ValueError, match="loss must return an entry whose name starts with 'loss', got none"):
        make_update(loss, torch.optim.SGD(loss.parameters(), lr=0.1))(TensorDict())


def test_in_bfloat16_networks_compute_and_targets_are_float32():
    torch.manual_seed(0)
    actor = QValueActor(MLP(in_features=3, out_features=2, num_cells=[16]), spec=Categorical(2))
    loss = MunchausenDQNLoss(actor, tau=0.5, alpha=0.5, clip_min=-0.3, loss_function="l2").make_value_estimator(
        gamma=0.9
    )
    HardTargetUpdate(loss, period_updates=10)
    minibatch = _minibatch(64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        q, next_q = (actor(rows.select("observation"))["action_value"] for rows in (minibatch, minibatch["next"]))
    assert q.dtype == torch.bfloat16
    q, next_q = q.double(), next_q.double()  # of the online and of the target network: they are still alike
    action, following = minibatch["action"].unsqueeze(-1), minibatch["next"]
    bonus = (0.5 * (q / 0.5).log_softmax(-1).gather(-1, action)).clamp(-0.3, 0)
    soft_value = 0.5 * (next_q / 0.5).logsumexp(-1, keepdim=True)
    goal = following["reward"] + 0.5 * bonus + 0.9 * ~following["terminated"] * soft_value
    expected = (q.gather(-1, action) - goal).square().mean().item()
    before = loss(minibatch)["loss"].item()
    optimizer = torch.optim.Adam(loss.parameters(), fused=True)
    found = make_update(loss, optimizer, bf16=True)(minibatch)["loss"]
    assert found.dtype == torch.float32 and found.item() == pytest.approx(expected, rel=1e-5)
    assert abs(found.item() - before) > 1e-4 * before  # and it is not what float32 gives
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in loss.parameters() if p.requires_grad)


@pytest.mark.slow
def test_a_compiled_update_in_bfloat16_is_the_eager_one():
    found = []
    for compile in (False, True):
        torch.manual_seed(0)
        actor = QValueActor(MLP(in_features=3, out_features=2, num_cells=[16]), spec=Categorical(2))
        loss = MunchausenDQNLoss(actor, tau=0.5).make_value_estimator(gamma=0.9)
        HardTargetUpdate(loss, period_updates=10)
        update = make_update(loss, torch.optim.Adam(loss.parameters(), fused=True), compile=compile, bf16=True)
        found.append([update(_minibatch(32))["loss"].item() for _ in range(5)])
    assert found[0] == pytest.approx(found[1], rel=2e-2)  # bfloat16 is rounded at other places in a fused graph


@pytest.mark.filterwarnings("ignore:This module is instantiated on a machine without CUDA:UserWarning")
@pytest.mark.filterwarnings("ignore:Tensordict is registered in PyTree:UserWarning")
@pytest.mark.skipif(torch.cuda.is_available(), reason="without CUDA a graph passes its calls through")
def test_a_captured_step_returns_its_priorities_and_leaves_the_minibatch_alone():
    loss = _dqn()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    optimizer.defaults["capturable"] = True
    step = _gradient_step(loss, optimizer, None, "td_error", compile=False)
    graphed = _as_cuda_graph(step, optimizer, torch.device("cuda"))
    batch, plain = _minibatch(), _minibatch()
    expected = loss(plain)["loss"].detach()
    scalars = graphed(batch)
    assert torch.equal(scalars["loss"], expected)
    assert torch.equal(scalars["priority"], plain["td_error"])
    assert "td_error" not in list(batch.keys())


def _annealed_updates(loss, optimizer, update, steps):
    """The losses of these steps, at rates that float32 holds exactly."""
    device, history = next(loss.parameters()).device.type, []
    for step in steps:
        optimizer.param_groups[0]["lr"] = 0.5 ** (5 + step)
        history.append(update(_minibatch(device=device))["loss"].item())
    return history


def _pass_through(loss, optimizer):
    step = _gradient_step(loss, optimizer, None, None, compile=False)
    return _as_cuda_graph(step, optimizer, torch.device("cuda"))


@pytest.mark.filterwarnings("ignore:This module is instantiated on a machine without CUDA:UserWarning")
@pytest.mark.filterwarnings("ignore:Tensordict is registered in PyTree:UserWarning")
@pytest.mark.skipif(torch.cuda.is_available(), reason="without CUDA a graph passes its calls through")
def test_a_captured_step_reads_its_rate_from_one_tensor_and_resumes_exactly():
    def fused_adam(loss):
        return torch.optim.Adam(loss.parameters(), lr=0.5, fused=True, capturable=True)

    eager = _dqn()
    optimizer = fused_adam(eager)
    expected = _annealed_updates(eager, optimizer, make_update(eager, optimizer), range(8))

    loss = _dqn()
    optimizer = fused_adam(loss)
    update = _pass_through(loss, optimizer)
    history = _annealed_updates(loss, optimizer, update, range(1))
    rate = optimizer.param_groups[0]["lr"]  # the memory that a graph would read
    history += _annealed_updates(loss, optimizer, update, range(1, 4))
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.5**8

    checkpoint = io.BytesIO()
    torch.save({"loss": loss.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
    checkpoint.seek(0)
    states = torch.load(checkpoint)
    resumed = _dqn(seed=1)
    optimizer = fused_adam(resumed)
    update = _pass_through(resumed, optimizer)  # before the state is loaded, as in a run
    resumed.load_state_dict(states["loss"])
    optimizer.load_state_dict(states["optimizer"])
    assert history + _annealed_updates(resumed, optimizer, update, range(4, 8)) == expected


@pytest.mark.filterwarnings("ignore:This module is instantiated on a machine without CUDA:UserWarning")
@pytest.mark.filterwarnings("ignore:Tensordict is registered in PyTree:UserWarning")
@pytest.mark.skipif(torch.cuda.is_available(), reason="without CUDA a graph passes its calls through")
def test_a_loaded_rate_is_in_force_before_the_next_annealing():
    loss = _dqn()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.5, fused=True, capturable=True)
    update = _pass_through(loss, optimizer)
    update(_minibatch())
    rate = optimizer.param_groups[0]["lr"]
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = torch.tensor(0.125)
    optimizer.load_state_dict(state)
    update(_minibatch())
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.125


@pytest.mark.gpu
def test_a_cuda_graph_follows_the_learning_rate():
    histories = []
    for graphs in (False, True):
        loss = _dqn(device="cuda")
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.5, fused=True, capturable=True)
        update = make_update(loss, optimizer, device="cuda", cudagraphs=graphs)
        histories.append(_annealed_updates(loss, optimizer, update, range(20)))
    assert histories[1] == pytest.approx(histories[0], rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("prioritized", [False, True])
def test_cuda_graphs_repeat_the_eager_updates(prioritized):
    losses = [_dqn(device="cuda") for _ in range(2)]
    results = []
    for loss, graphs in zip(losses, (False, True), strict=True):
        sampler = PrioritizedSampler(10, alpha=1.0, beta=0.5) if prioritized else None
        replay = TensorDictReplayBuffer(storage=LazyTensorStorage(10), sampler=sampler, batch_size=10)
        replay.extend(_minibatch())
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.01, capturable=True)
        update = make_update(
            loss,
            optimizer,
            HardUpdate(loss, value_network_update_interval=3),
            replay=replay,
            max_grad_norm=1.0,
            device="cuda",
            cudagraphs=graphs,
        )
        rows = torch.arange(10)
        history = []
        for step in range(30):
            batch = _minibatch()[rows.roll(step)].set("index", rows.roll(step)).to("cuda")
            if prioritized:
                batch.set("priority_weight", torch.ones(10, device="cuda"))
            history.append(update(batch)["loss"].item())
        leaves = torch.as_tensor(replay.sampler._sum_tree[rows]) if prioritized else rows
        results.append((history, leaves))
    (eager, eager_leaves), (graphed, graphed_leaves) = results
    assert graphed == pytest.approx(eager, rel=1e-4)
    assert torch.allclose(eager_leaves.float(), graphed_leaves.float(), rtol=1e-4)
    for one, other in zip(losses[0].parameters(), losses[1].parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
