"""Checkpoints: complete or reported as damaged, and a stopped run resumes as if it had not been.

Environments, what is carried from batch to batch, and random generators come back as they were; a run stopped at any
instant and started again ends like one that was never interrupted, and says so meanwhile.
"""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import random
import shutil
import signal
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.checkpoint import Checkpoint
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import SliceSampler
from torchrl.envs import TransformedEnv, VecNormV2

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab import UserError, make_replay, read_metrics, strip_wall_clock
from torchrl_reg.lab.run import files
from torchrl_reg.lab.run.checkpoint import CheckpointFolder, restorable_part
from torchrl_reg.lab.run.replay_chunks import ReplayChunks
from torchrl_reg.modules import NStepTransform


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
    with pytest.raises(UserError) as caught:
        _Training(tmp_path).folder.load_latest()
    sentence = str(caught.value)
    assert str(newest) in sentence and "checkpoint-000000000100.torchrl is intact" in sentence
    assert "\n" not in sentence
    assert _names(tmp_path) == before
    newest.unlink()  # as the message states
    _assert_restored(tmp_path, 100, history[100])


@pytest.mark.parametrize(
    ("frames", "name", "net", "said"),
    [
        (200, "replay/000000000005-000000000010.pt", None, r"000000000005-000000000010.pt is missing or damaged"),
        (100, "checkpoint-000000000100.torchrl", None, "start from the beginning"),
        (100, None, torch.nn.Linear(3, 1), r"^[^\n]*does not match this program[^\n]*$"),
    ],
    ids=["replay", "the only one", "another program"],
)
def test_what_cannot_be_loaded_is_one_sentence(tmp_path, frames, name, net, said):
    training, _ = _saved(tmp_path, *range(100, frames + 1, 100))
    if name is not None:
        file = tmp_path / "checkpoints" / name
        file.write_bytes(file.read_bytes()[:-1])
    training.folder.components["net"] = net or training.net
    with pytest.raises(UserError, match=said):
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
    with pytest.raises(UserError) as caught:
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


class Stop(Exception):
    """Ends a run between two batches."""


def storable():
    return make_env(EnvSettings("cartpole"), 4)


@pytest.fixture
def stopped():
    """``stopped(collect, ...)``: that run ends by ``Stop``, and its lock goes as with its process in real life."""

    def stop(collect, *arguments):
        with pytest.raises(Stop):
            collect(*arguments)
        gc.collect()

    return stop


def test_a_checkpoint_changes_nothing_where_environments_can_be_stored(make_run, through):
    def ends(every: int) -> list[list[int]]:
        run, batches = make_run(f"every={every}", log_every_frames=10_000, checkpoint_every_frames=every), []
        path = through(run, 120, 4, lambda batch: batches.append(batch["next", "done"].squeeze(-1)), storable())
        assert "cut_episodes" not in read_metrics(path / "metrics.jsonl")[-1]
        return torch.cat(batches, 1).nonzero().tolist()

    assert ends(12) == ends(1_000) != []


def test_environments_that_come_out_otherwise_on_another_machine_lose_their_episodes(
    make_run, through, stopped, monkeypatch, capsys, tmp_path
):
    batches = []

    def collect(stop_at: int | None = None) -> None:
        run, n_step = make_run("moved", progress=True, checkpoint_every_frames=24), NStepTransform(3, 0.9)

        def each(batch):
            batches.append(n_step.inv(batch))
            if run.frames == stop_at:
                raise Stop

        through(run, 48, 12, each, storable(), {"n_step": n_step})

    stopped(collect, 36)
    monkeypatch.setattr(type(restorable_part(storable())), "restore", lambda *_: False)
    batches.clear()
    collect()
    assert "this machine computes the environments differently: their episodes end here" in capsys.readouterr().out
    # The two rows that waited for their windows end in the steps that were there, and are no ends of the task.
    first = batches[0]
    assert first["steps_to_next_obs"].squeeze(-1).tolist() == [[2, 1, 3]] * 4
    assert first["next", "truncated"].squeeze(-1).tolist() == [[True, True, False]] * 4
    assert not first["next", "terminated"].any()
    assert json.loads((tmp_path / "moved/done.json").read_text())["cut_episodes"] == 4


@pytest.mark.filterwarnings("ignore:Support of VecNormV2:UserWarning")
def test_trajectories_statistics_and_slices_resume_exactly(make_run, cartpole, stopped):
    def collect(name: str, stop_at: int | None = None) -> list[dict]:
        run = make_run(name, log_every_frames=36, checkpoint_every_frames=96)
        env = TransformedEnv(cartpole(), VecNormV2(in_keys=["observation"], decay=0.9))
        sampler = SliceSampler(slice_len=4, traj_key=("collector", "traj_ids"), strict_length=False)
        replay = make_replay(120, 24, storage=LazyTensorStorage(120, ndim=2), sampler=sampler)
        net = torch.nn.Linear(4, 1)

        def policy(state):
            return state.set("action", (net(state["observation"]).squeeze(-1) > torch.randn(4)).long())

        how = {"parts": {"replay": replay, "net": net}, "track_trajectories": True}
        for batch in run.collect(env, policy, total_frames=360, frames_per_batch=12, **how):
            replay.extend(batch)
            sample = replay.sample()
            ids = sample["collector", "traj_ids"].double().sum()
            with torch.no_grad():
                net.weight += 0.01 * sample["observation"].mean(0)
            run.record(TensorDict({"loss": sample["observation"].double().sum(), "ids": ids}))
            if run.frames == stop_at:
                raise Stop
        return [strip_wall_clock(row) for row in read_metrics(run.finish() / "metrics.jsonl")]

    expected = collect("whole")
    for stop_at in (84, 108, 300):
        stopped(collect, "stopped", stop_at)
    assert collect("stopped") == expected and expected[-1]["ids"] > 300


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


class DrawsWhenLoaded:
    """A part whose restoring draws from every global generator."""

    def state_dict(self):
        return {}

    def load_state_dict(self, _):
        draws()


def test_generators_are_restored_after_all_that_draws_from_them(make_run, through, stopped, monkeypatch):
    def collect(name: str, stop_at: int | None = None) -> list:
        run, drawn = make_run(name, checkpoint_every_frames=24), []
        replay = make_replay(64, 4)

        def each(batch):
            replay.extend(batch.reshape(-1))
            drawn.append((draws(), replay.sample()["observation"].tolist()))
            if run.frames == stop_at:
                raise Stop

        through(run, 72, 12, each, storable(), {"zeroes": DrawsWhenLoaded(), "replay": replay})
        return drawn

    kind = type(restorable_part(storable()))
    restore = kind.restore
    monkeypatch.setattr(kind, "restore", lambda *arguments: (restore(*arguments), draws())[0])
    whole = collect("whole")
    stopped(collect, "stopped", 60)
    assert collect("stopped") == whole[4:]


def _rows(folder: Path, event: str = "") -> list[dict]:
    return [strip_wall_clock(row) for row in read_metrics(folder / "metrics.jsonl") if event in row["event"]]


def _tensors(value: Any, name: str) -> dict[str, torch.Tensor]:
    """Every tensor in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {key: found for part, item in items for key, found in _tensors(item, f"{name}/{part}").items()}


def _final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint: weights, target, optimizer, exploration."""
    (path,) = (folder / "checkpoints").glob("*.torchrl")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".pt")]
        return _tensors({name: torch.load(io.BytesIO(archive.read(name)), weights_only=True) for name in names}, "")


def _assert_same_weights(one: Path, other: Path) -> None:
    first, second = _final_tensors(one), _final_tensors(other)
    assert first.keys() == second.keys() and any("loss" in name for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("checkpoint-*.torchrl"))


def _last_line(folder: Path) -> str:
    """The one line on stderr since it was read last."""
    (line,) = (folder / "stderr.txt").read_text().strip().splitlines()
    (folder / "stderr.txt").write_text("")
    return line


@pytest.mark.parametrize("setting", ["algo.prioritized=true", "run.overlap=true"])
def test_three_sigkills_change_nothing(start, finish, kill_when, tmp_path, setting):
    settings = ["run.checkpoint_every_frames=200", "algo.total_frames=850", "algo.max_grad_norm=0.5", setting]
    assert finish("run.dir=whole", *settings) == 0
    killed = tmp_path / "killed"
    rows = _rows(tmp_path / "whole")
    assert [row["event"] for row in rows].count("eval") == 3  # two on schedule, one at the end

    # Before the first checkpoint, while one is being written, and anywhere after the third.
    kill_when(start("run.dir=killed", *settings), lambda: (killed / "metrics.jsonl").exists())
    assert not _checkpoints(killed)
    saving = killed / "checkpoints"
    kill_when(
        start("run.dir=killed", *settings),
        lambda: len(_checkpoints(killed)) == 2 and any(saving.rglob("*partial*")),
    )
    resumed_at = _checkpoints(killed)[-1]
    process = start("run.dir=killed", *settings)
    pause = random.uniform(0.0, 0.3)
    kill_when(process, lambda: len(_rows(killed)) > 0.8 * len(rows) and not time.sleep(pause))
    assert _checkpoints(killed)[-1] > resumed_at

    assert finish("run.dir=killed", *settings) == 0
    assert _rows(killed) == rows
    _assert_same_weights(tmp_path / "whole", killed)


def test_the_seed_makes_the_run_and_evaluating_more_often_changes_nothing(finish, tmp_path):
    short = ["algo.total_frames=300", "run.evaluate_every_frames"]
    for name, seed, every in (("one", 3, 10_000), ("two", 3, 100), ("other", 4, 10_000)):
        assert finish(f"run.dir={name}", f"run.seed={seed}", f"{short[1]}={every}", short[0]) == 0
    one, two = tmp_path / "one", tmp_path / "two"
    assert _rows(one, "train") == _rows(two, "train") != _rows(tmp_path / "other", "train")
    assert _rows(one, "eval") == _rows(two, "eval")[-1:] != _rows(tmp_path / "other", "eval")
    _assert_same_weights(one, two)


def test_a_finished_run_keeps_its_weights_and_is_not_run_again(finish, tmp_path):
    arguments, folder = ["run.dir=done", "run.checkpoint_every_frames=200", "algo.total_frames=300"], tmp_path / "done"
    assert finish(*arguments) == 0
    assert os.listdir(folder / "checkpoints") == ["checkpoint-000000000304.torchrl"]  # and no replay buffer
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert finish(*arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert "already finished: done" in (tmp_path / "stdout.txt").read_text()
    # Without a file that it had, it is not said to be finished.
    for name in ("metrics.jsonl", "policy.safetensors", "checkpoints/checkpoint-000000000304.torchrl"):
        if name in json.loads((folder / "done.json").read_text())["files"]:
            (folder / name).rename(tmp_path / "away")
            assert finish(*arguments) == 1
            line = _last_line(tmp_path)
            assert line.startswith(f"done holds a finished run without its {name}; left are checkpoints, command.txt")
            (tmp_path / "away").rename(folder / name)
    assert len(json.loads((folder / "done.json").read_text())["files"]) >= 2
    # A done.json that a crash emptied is written again.
    shutil.copytree(folder, tmp_path / "whole")
    said = json.loads((folder / "done.json").read_text())
    (folder / "done.json").write_bytes(b"")
    assert finish(*arguments) == 0
    assert (
        json.loads((folder / "done.json").read_text()) | {n: said[n] for n in ("wall_seconds", "cpu_seconds")} == said
    )
    assert _rows(folder) == _rows(tmp_path / "whole")
    _assert_same_weights(folder, tmp_path / "whole")


def _wait_for_checkpoint(folder: Path, process) -> None:
    while not _checkpoints(folder):
        assert process.is_alive()
        time.sleep(0.005)


def test_a_signal_ends_the_run_with_one_line_that_says_how_to_go_on(start, tmp_path):
    # Not compiled, as so long a run would be: PyTorch's compiler warns where there is no GPU.
    settings = ["run.checkpoint_every_frames=100", "algo.total_frames=1000000", "run.compile=false"]
    process = start("run.dir=run", *settings)
    _wait_for_checkpoint(tmp_path / "run", process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(20)
    assert process.exitcode == 143
    line = _last_line(tmp_path)
    frames = int(_checkpoints(tmp_path / "run")[-1].stem[-12:])  # none of the stop: it would end the episodes
    assert frames % 100 < 16
    assert line.startswith(f"stopped; the same command continues from frame {frames:,}, as a checkpoint in between ")
    assert "run.dir=run" in line and "tiny_dqn.py" in line


def test_damage_stops_the_run_until_it_is_removed(start, finish, kill_when, tmp_path):
    arguments, folder = ["run.dir=run", "run.checkpoint_every_frames=100", "algo.total_frames=500"], tmp_path / "run"
    kill_when(start(*arguments), lambda: len(_checkpoints(folder)) == 2)
    newest = _checkpoints(folder)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    before = _checkpoints(folder)
    assert finish(*arguments) == 1
    assert _last_line(tmp_path).startswith(f"Checkpoint run/checkpoints/{newest.name} is damaged")
    assert _checkpoints(folder) == before
    newest.unlink()
    rows = folder / "metrics.jsonl"
    rows.write_text(rows.read_text().replace('"event": "train"', '"event": "brain"', 1))
    assert finish(*arguments) == 1
    line = _last_line(tmp_path)
    assert line.startswith("run/metrics.jsonl is ") and "delete run/checkpoints and run the same command" in line
    shutil.rmtree(folder / "checkpoints")
    assert finish(*arguments) == 0
    assert {row["event"] for row in _rows(folder)} == {"train", "eval"}


def test_a_full_disk_stops_the_run_in_one_sentence_and_it_goes_on_later(start, finish, tmp_path):
    resource = pytest.importorskip("resource")
    arguments = ["run.dir=run", "run.checkpoint_every_frames=100", "algo.total_frames=300"]
    process = start(*arguments)
    _wait_for_checkpoint(tmp_path / "run", process)
    # No file may grow beyond 3 kB from now on; a checkpoint takes 20.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (3_000, resource.RLIM_INFINITY))
    process.join(20)
    if process.exitcode == 0:
        pytest.skip("the run was over before the limit came")
    assert process.exitcode == 1
    line = _last_line(tmp_path)
    assert "could not be written to run/checkpoints" in line and "earlier checkpoints are intact" in line
    assert finish(*arguments) == 0
