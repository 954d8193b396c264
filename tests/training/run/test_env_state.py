"""Environments, what is carried from batch to batch, and random generators come back as they were."""

from __future__ import annotations

import gc
import json
import random

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage
from torchrl.data.replay_buffers import SliceSampler
from torchrl.envs import TransformedEnv, VecNormV2

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.training import NStep, read_metrics, strip_wall_clock
from torchrl_reg.training.run.env_state import restorable_part


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
        run, n_step = make_run("moved", progress=True, checkpoint_every_frames=24), NStep(3, 0.9)
        run.track(n_step=n_step)

        def each(batch):
            batches.append(n_step(batch))
            if run.frames == stop_at:
                raise Stop

        through(run, 48, 12, each, storable())

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
        replay = run.replay(120, 24, storage=LazyTensorStorage(120, ndim=2), sampler=sampler)
        net = torch.nn.Linear(4, 1)

        def policy(state):
            return state.set("action", (net(state["observation"]).squeeze(-1) > torch.randn(4)).long())

        run.track(replay=replay, net=net)
        for batch in run.collect(env, policy, total_frames=360, frames_per_batch=12, track_trajectories=True):
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
        replay = run.replay(64, 4)
        run.track(zeroes=DrawsWhenLoaded(), replay=replay)

        def each(batch):
            replay.extend(batch.reshape(-1))
            drawn.append((draws(), replay.sample()["observation"].tolist()))
            if run.frames == stop_at:
                raise Stop

        through(run, 72, 12, each, storable())
        return drawn

    kind = type(restorable_part(storable()))
    restore = kind.restore
    monkeypatch.setattr(kind, "restore", lambda *arguments: (restore(*arguments), draws())[0])
    whole = collect("whole")
    stopped(collect, "stopped", 60)
    assert collect("stopped") == whole[4:]
