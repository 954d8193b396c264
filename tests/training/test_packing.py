from __future__ import annotations

import io

import numpy as np
import torch
from tensordict import TensorDict

from torchrl_reg.training.packing import pack_arrays, pack_tensordict, unpack_arrays, unpack_tensordict


def _through_a_file(data):
    file = io.BytesIO()
    torch.save(data, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_arrays_in_nested_data_come_back_as_they_were():
    generator = np.random.default_rng(3)
    legacy = np.random.RandomState(4)
    data = {
        "rows": [np.arange(6, dtype=np.uint8).reshape(2, 3), None, (1.5, "text", 2**100)],
        "legacy": legacy.get_state(legacy=False),
        "generator": generator.bit_generator.state,
        "tensor": torch.arange(2),
        "number": np.float32(0.25),
    }
    found = unpack_arrays(_through_a_file(pack_arrays(data)))
    assert found["rows"][0].dtype == np.uint8 and (found["rows"][0] == data["rows"][0]).all()
    assert found["rows"][1:] == data["rows"][1:] and found["number"] == 0.25
    assert torch.equal(found["tensor"], data["tensor"])
    expected = generator.random(3), legacy.rand(3)
    other, other_legacy = np.random.default_rng(0), np.random.RandomState(0)
    other.bit_generator.state = found["generator"]
    other_legacy.set_state(found["legacy"])
    assert (other.random(3) == expected[0]).all() and (other_legacy.rand(3) == expected[1]).all()


def test_a_packed_tensordict_is_a_copy():
    rows = TensorDict({"a": torch.arange(6).reshape(2, 3), "next": {"b": torch.zeros(2, 1, dtype=torch.bool)}}, [2])
    packed = pack_tensordict(rows[:, None][:, 0])
    expected = rows.clone()
    rows["a"].zero_()
    assert (unpack_tensordict(_through_a_file(packed)) == expected).all()
