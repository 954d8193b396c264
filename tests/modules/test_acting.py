"""``plain`` on a dict of tensors acts like ``forward`` on a TensorDict."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Categorical, OneHot
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.modules import ActorSequential, EpsilonGreedyModule, MulticategoricalActor, QActor
from torchrl_reg.modules.acting import State, act_through_tensordict, plain_policy


def explorer(one_hot: bool = False, **how: Any) -> ActorSequential:
    spec = OneHot(3) if one_hot else Categorical(3)
    exploration = EpsilonGreedyModule(spec, eps_init=0.6, eps_end=0.6, action_mask_key=how.get("action_mask_key"))
    return ActorSequential(QActor(nn.Linear(4, 3), spec=spec, **how), exploration)


def state_of(count: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"observation": torch.randn(count, 4), "mask": torch.rand(count, 3) < 0.7}


@pytest.mark.parametrize("kind", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC, None])
@pytest.mark.parametrize(
    "how", [{}, {"one_hot": True}, {"action_mask_key": "mask"}, {"action_value_key": "q"}], ids=str
)
@pytest.mark.parametrize("count", [1, 40])
def test_numbers_and_draws_are_those_of_torchrls_modules(count: int, how: dict[str, Any], kind: Any) -> None:
    policy = explorer(**how)
    actor, exploration = policy
    spec = exploration.spec["action"]
    keys = {key: value for key, value in how.items() if key != "one_hot"}
    masked = how.get("action_mask_key")
    theirs = TensorDictSequential(
        QValueActor(actor.network, spec=spec, **keys), EGreedyModule(spec, eps_init=0.6, action_mask_key=masked)
    )
    state = state_of(count)
    state["mask"][:, 0] = True
    expected = TensorDict(dict(state), [count])
    with set_exploration_type(kind), torch.no_grad():
        torch.manual_seed(2)
        theirs(expected)
        drawn = torch.rand(2)
        for plain in (plain_policy(policy), partial(act_through_tensordict, policy)):
            found = dict(state)
            torch.manual_seed(2)
            plain(found)
            assert torch.equal(torch.rand(2), drawn)  # both draw as much
            torch.testing.assert_close(found, expected.to_dict(), rtol=0, atol=0)


def test_random_numbers_drawn_before_take_the_place_of_new_ones() -> None:
    policy, state = explorer(), state_of(40)
    torch.manual_seed(2)
    policy.plain(expected := dict(state))
    torch.manual_seed(2)
    drawn = policy[1].draw(40)
    policy[0].plain(state)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        policy[1].plain(state, drawn)
    assert torch.equal(state["action"], expected["action"])


class Loud(MulticategoricalActor):
    """Overrides ``forward`` but inherits ``plain``."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return super().forward(tensordict).set("loud", torch.ones(3))


class Quiet(Loud):
    def plain(self, state: State) -> None:
        state["action"] = torch.zeros(3, 1)


def test_a_forward_of_its_own_and_a_selection_of_outputs_are_followed() -> None:
    bins: dict[str, Any] = {"low": -1.0, "high": 1.0, "num_bins": 5}
    selecting = explorer()
    selecting.select_out_keys("action")
    actor = QActor(nn.Linear(4, 3), spec=Categorical(3))
    actor.select_out_keys("action")
    for policy, keys in (
        (selecting, {"action"}),
        (actor, {"action"}),
        (Loud(nn.Linear(4, 5), **bins), {"action", "action_index", "action_log_prob", "loud"}),
        (ActorSequential(Loud(nn.Linear(4, 5), **bins)), {"action", "action_index", "action_log_prob", "loud"}),
        (Quiet(nn.Linear(4, 5), **bins), {"action"}),
    ):
        state = {"observation": torch.ones(3, 4)}
        plain_policy(policy)(state)
        assert set(state) == {"observation", *keys}


@pytest.mark.parametrize("part", ["0", "0.module.0", "0.module.0.module", "0.module.1", "1"])
@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_on_any_part_are_called(hook: str, part: str) -> None:
    policy, called = explorer(), []
    getattr(policy.get_submodule(f"module.{part}"), hook)(lambda *_: called.append(True))
    plain_policy(policy)(state := state_of(3))
    assert called == [True] and state["action"].shape == (3,)


def test_copies_and_other_networks_act_with_their_own_weights() -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    actor, state = QActor(network(), spec=Categorical(3)), state_of(3)
    actor.plain(state)
    for other in (copy.deepcopy(actor), pickle.loads(pickle.dumps(actor)), actor):
        if other is actor:
            actor.module[0].module = network()
        else:
            with torch.no_grad():
                other.network[0].weight.zero_()
        other.plain(again := {"observation": state["observation"]})
        assert torch.equal(again["action_value"], other.network(state["observation"]))
        assert not torch.equal(again["action_value"], state["action_value"])
