"""Arrays, generators and tensordicts in checkpoints."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from torchrl_reg.lab.run.packing import own_memory, pack_arrays, pack_tensordict, unpack_arrays, unpack_tensordict


def _file_of(data: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(data, file)
    file.seek(0)
    return file


def test_arrays_and_generators_in_nested_data_come_back_as_they_were():
    generator, legacy = np.random.default_rng(3), np.random.RandomState(4)
    data = {
        "rows": [np.arange(6, dtype=np.uint8).reshape(2, 3), None, (1.5, "text", 2**100)],
        "legacy": legacy.get_state(legacy=False),
        "generator": generator.bit_generator.state,
        "tensor": torch.arange(2),
        "number": np.float32(0.25),
    }
    found = unpack_arrays(torch.load(_file_of(pack_arrays(data)), weights_only=True))
    np.testing.assert_array_equal(found["rows"][0], data["rows"][0], strict=True)
    assert found["rows"][1:] == data["rows"][1:] and found["number"] == 0.25
    assert torch.equal(found["tensor"], data["tensor"])
    other, other_legacy = np.random.default_rng(0), np.random.RandomState(0)
    other.bit_generator.state = found["generator"]
    other_legacy.set_state(found["legacy"])
    assert (other.random(3) == generator.random(3)).all() and (other_legacy.rand(3) == legacy.rand(3)).all()


def test_a_packed_tensordict_is_a_copy_and_a_view_takes_no_more_than_its_own():
    rows = TensorDict({"a": torch.arange(6).reshape(2, 3), "next": {"b": torch.zeros(2, 1, dtype=torch.bool)}}, [2])
    packed = pack_tensordict(rows[:, None][:, 0])
    expected = rows.clone()
    rows["a"].zero_()
    assert (unpack_tensordict(torch.load(_file_of(packed), weights_only=True)) == expected).all()
    whole = torch.ones(10_000)
    assert _file_of(own_memory({"view": [whole[:2]]})).getbuffer().nbytes < 4_000
    assert own_memory([whole])[0] is whole
