"""Weights in 8 bits."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.agents import load_policy, save_policy
from torchrl_reg.agents.packing import packed, unpacked
from torchrl_reg.modules import NetSettings, q_network
from torchrl_reg.modules.rebuilding import Spaces


def test_rows_keep_their_largest_weight_and_the_rest_to_half_a_level() -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 8, 8, 8) * torch.logspace(-3, 3, 16).reshape(-1, 1, 1, 1)
    weight[3] = 0
    state = {"a": weight, "bias": torch.randn(5000), "count": torch.arange(5000).reshape(50, 100)}
    small = packed(state)
    assert small["a"].dtype == torch.int8 and set(small) == {"a", "a.scale", "bias", "count"}
    again = unpacked(small)
    largest = weight.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1)
    assert ((again["a"] - weight).abs() <= largest / 254 * 1.00001).all() and (again["a"][3] == 0).all()
    torch.testing.assert_close(again["a"].flatten(1).abs().amax(1), largest.flatten())
    assert again["bias"] is state["bias"] and again["count"] is state["count"] and set(again) == set(state)


def test_a_weight_that_is_called_scale_is_left_alone() -> None:
    state = {"norm.scale": torch.ones(3), "norm": torch.ones(3)}
    assert set(unpacked(packed(state))) == {"norm.scale", "norm"}


def test_a_small_file_holds_nearly_the_same_policy(tmp_path) -> None:
    torch.manual_seed(0)
    spaces = Spaces({"observation": ([8], "float32")}, 3, [], [])
    policy = QValueActor(q_network(NetSettings(num_cells=[128, 128]), spaces), spec=Categorical(3))
    save_policy(tmp_path / "whole", policy)
    save_policy(tmp_path / "small", policy, small=True)
    assert (tmp_path / "small").stat().st_size < 0.35 * (tmp_path / "whole").stat().st_size
    rows = TensorDict({"observation": torch.randn(200, 8)}, [200])
    whole, small = (load_policy(tmp_path / name)(rows.clone())["action_value"] for name in ("whole", "small"))
    assert 0 < (whole - small).abs().max() < 0.02 * whole.abs().max()
