from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.checkpoint import Checkpoint
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_reg.training import CheckpointError, files
from torchrl_reg.training.loop.replay import ReplayChunks
from torchrl_reg.training.run.checkpoint import CheckpointFolder


class _Training:
    """A network, its optimizer, a buffer, and the folder that saves them."""

    def __init__(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        self.net = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.1, fused=True)
        self.replay = TensorDictReplayBuffer(storage=LazyTensorStorage(12), batch_size=4)
        self.folder = CheckpointFolder(
            path / "checkpoints",
            {"net": self.net, "optimizer": self.optimizer},
            ReplayChunks(path / "checkpoints" / "replay", self.replay),
        )

    def step(self, rows: int = 5) -> None:
        self.replay.extend(TensorDict({"x": torch.randn(rows, 2)}, [rows]))
        self.optimizer.zero_grad()
        self.net(self.replay.sample()["x"]).square().mean().backward()
        self.optimizer.step()

    def tensors(self) -> list[torch.Tensor]:
        moments = [value for state in self.optimizer.state_dict()["state"].values() for value in state.values()]
        rows = self.replay.storage._storage[: len(self.replay)]["x"]
        return [*self.net.state_dict().values(), *moments, rows]


def _saved(path: Path, *frames: int) -> tuple[_Training, dict[int, list[torch.Tensor]]]:
    training, history = _Training(path), {}
    for at in frames:
        training.step()
        training.folder.save(at)
        history[at] = [tensor.clone() for tensor in training.tensors()]
    return training, history


def _assert_restored(path: Path, frames: int, expected: list[torch.Tensor]) -> None:
    fresh = _Training(path)
    assert fresh.folder.load_latest() == frames
    assert all(torch.equal(a, b) for a, b in zip(fresh.tensors(), expected, strict=True))


def _names(path: Path) -> list[str]:
    return sorted(p.name for p in (path / "checkpoints").iterdir() if p.name != "replay")


def test_the_newest_is_restored_and_two_are_kept(tmp_path):
    _, history = _saved(tmp_path, 100, 200, 300, 400)
    assert _names(tmp_path) == ["checkpoint-000000000300.torchrl", "checkpoint-000000000400.torchrl"]
    _assert_restored(tmp_path, 400, history[400])
    (tmp_path / "checkpoints" / "checkpoint-000000000400.torchrl").unlink()
    _assert_restored(tmp_path, 300, history[300])


def test_torchrl_reads_the_weights_without_this_package(tmp_path):
    assert _Training(tmp_path).folder.load_latest() is None  # nothing to load
    training, _ = _saved(tmp_path, 100)
    net = torch.nn.Linear(2, 1)
    assert Checkpoint(net=net).load(training.folder.newest()).loaded == {"net"}
    assert torch.equal(net.weight, training.net.weight)


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "garbage"])
def test_a_damaged_checkpoint_is_named_and_the_earlier_one_offered(tmp_path, harm):
    _, history = _saved(tmp_path, 100, 200)
    folder = tmp_path / "checkpoints"
    newest = folder / "checkpoint-000000000200.torchrl"
    content = bytearray(newest.read_bytes())
    content[len(content) // 3] ^= 0xFF
    harmed = {"flip": content, "cut": content[:-40], "empty": b"", "garbage": b"x" * 500}
    newest.write_bytes(harmed[harm])
    before = _names(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        _Training(tmp_path).folder.load_latest()
    sentence = str(caught.value)
    assert str(newest) in sentence and "checkpoint-000000000100.torchrl is intact" in sentence
    assert "\n" not in sentence
    assert _names(tmp_path) == before
    newest.unlink()  # as the sentence says
    _assert_restored(tmp_path, 100, history[100])


@pytest.mark.parametrize(
    ("frames", "name", "net", "said"),
    [
        (200, "replay/000000000005-000000000010.pt", None, r"000000000005-000000000010.pt is missing or damaged"),
        (100, "checkpoint-000000000100.torchrl", None, "start from the beginning"),
        (100, None, torch.nn.Linear(3, 1), r"^[^\n]*does not fit this program[^\n]*$"),
    ],
    ids=["replay", "the only one", "another program"],
)
def test_what_cannot_be_loaded_is_one_sentence(tmp_path, frames, name, net, said):
    training, _ = _saved(tmp_path, *range(100, frames + 1, 100))
    if name is not None:
        file = tmp_path / "checkpoints" / name
        file.write_bytes(file.read_bytes()[:-1])
    training.folder.components["net"] = net or training.net
    with pytest.raises(CheckpointError, match=said):
        training.folder.load_latest()


def test_what_a_killed_save_left_behind_is_ignored_and_removed(tmp_path):
    _, history = _saved(tmp_path, 100)
    folder = tmp_path / "checkpoints"
    (folder / ".checkpoint-000000000200.torchrl.partial").write_bytes(b"half")
    stage = folder / "..checkpoint-000000000200.torchrl.partial.stage-0f"
    stage.mkdir()
    (stage / "manifest.json").write_text("{")
    (folder / "replay" / ".000000000005-000000000010.pt.partial").write_bytes(b"half")
    (folder / "replay" / "000000000005-000000000010.pt").write_bytes(b"written, never referenced")
    _assert_restored(tmp_path, 100, history[100])
    assert not list(folder.rglob(".*"))
    training = _Training(tmp_path)
    training.folder.load_latest()
    training.step()
    training.folder.save(200)
    _assert_restored(tmp_path, 200, training.tensors())


@pytest.mark.parametrize("call", [0, 1, 2, 3])
def test_a_full_disk_leaves_the_earlier_checkpoints_and_no_litter(tmp_path, monkeypatch, call):
    training, history = _saved(tmp_path, 100, 200)
    training.step()
    calls = iter(range(100))

    def fail(path: Path, _sync=files.sync) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        _sync(path)

    monkeypatch.setattr(files, "sync", fail)
    with pytest.raises(CheckpointError) as caught:
        training.folder.save(300)
    monkeypatch.undo()
    assert "No space left on device" in str(caught.value) and "\n" not in str(caught.value)
    assert "earlier checkpoints are intact" in str(caught.value)
    assert not list((tmp_path / "checkpoints").rglob(".*"))
    if "checkpoint-000000000300.torchrl" not in _names(tmp_path):
        _assert_restored(tmp_path, 200, history[200])


def test_a_finished_run_keeps_its_last_archive_only(tmp_path):
    training, _ = _saved(tmp_path, 100, 200)
    training.folder.save(250, with_replay=False)
    training.folder.keep_only_last()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-000000000250.torchrl"]
    fresh = _Training(tmp_path)
    assert fresh.folder.load_latest() == 250
    assert torch.equal(fresh.net.weight, training.net.weight)
