"""A run in this process: its clock, its rows, and what it insists on."""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_dqn
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage
from torchrl.data.replay_buffers import SliceSampler
from torchrl.envs import TransformedEnv, VecNormV2

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.training import ConfigError, NStep, Run, RunSettings, read_metrics, strip_wall_clock
from torchrl_reg.training.run.env_state import restorable_part


@pytest.fixture
def make_run(tmp_path):
    def make(name: str = "run", **settings) -> Run:
        settings = {"progress": False, "eval_episodes": 2, **settings}
        return Run(tiny_dqn.Config(run=RunSettings(dir=str(tmp_path / name), **settings)))

    return make


def _env(num_envs: int = 4):
    return tiny_dqn.make_env(tiny_dqn.EnvSettings("CartPole-v1"), num_envs)


def _push_right(state):
    return state.set("action", torch.ones(state.batch_size, dtype=torch.long))


ACTING: list[bool] = []  # while a CountingPolicy acts


def _push_right_alone(state):
    assert not ACTING, "evaluated while a thread collects"
    return _push_right(state)


class CountingPolicy(torch.nn.Module):
    """Pushes to the right, and writes how many batches have been seen."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, state):
        ACTING.append(True)
        time.sleep(0.005)
        ACTING.pop()
        return _push_right(state).set("batches_seen", self.seen.expand(state.batch_size).clone())


def _events(folder: Path) -> list[tuple[str, int]]:
    return [(row["event"], row["frames"]) for row in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize(("every", "expected"), [(4, 202), (7, 115), (0.5, 1620), (3.2, 253), (10_000, 0)])
def test_updates_due_keep_the_exact_ratio(make_run, every, expected):
    run = make_run()
    due = []
    for frames in range(12, 901, 24):
        run.frames = frames
        due.append(run.updates_due(every, learning_starts_frames=90))
    assert sum(due) == expected == int((run.frames - 90) // every)
    assert due[:4] == [0, 0, 0, 0]  # frames 12 to 84
    assert max(due) - min(due[5:]) <= 1  # carried over, never in bursts


def test_frames_count_the_frame_skip_and_rows_follow_the_schedules(make_run):
    run = make_run(log_every_frames=50, evaluate_every_frames=120, checkpoint_every_frames=100)
    run.frames_per_step = 4
    run.evaluate_with(_env(2), {"greedy": _push_right})
    run.track()
    seen = []
    for batch in run.collect(_env(), _push_right, total_frames=240, frames_per_batch=32):
        assert batch.batch_size == (4, 2)
        seen.append(run.frames)
        run.record(TensorDict({"loss": torch.tensor(float(run.frames))}))
    path = run.finish()
    assert seen == list(range(32, 257, 32))
    trains = [frames for event, frames in _events(path) if event == "train"]
    evaluations = [frames for event, frames in _events(path) if event == "eval"]
    assert trains == [64, 128, 160, 224, 256]  # the first batch at or past each multiple, and the end
    assert evaluations == [128, 256]
    rows = {row["frames"]: row for row in read_metrics(path / "metrics.jsonl") if row["event"] == "train"}
    assert rows[64]["loss"] == (32 + 64) / 2 and rows[160]["loss"] == 160
    assert rows[256]["updates"] == 8


def test_training_returns_are_those_of_whole_episodes(make_run):
    run = make_run(log_every_frames=10_000, checkpoint_every_frames=52)
    run.track()
    for batch in run.collect(_env(), _push_right, total_frames=7 * 52, frames_per_batch=4):
        if run.frames % 52 == 0:  # a checkpoint resets the environments now: an end, though nothing terminated
            assert batch["next", "done"].all() == (run.frames < 7 * 52)
    path = run.finish()
    (row,) = read_metrics(path / "metrics.jsonl")
    # Always to the right, an episode lasts 8 to 10 steps; one cut by a checkpoint would be shorter.
    assert 8 <= row["return_mean"] <= 11
    # 13 steps fit one whole episode per environment between two checkpoints, and there are 7.
    assert row["episodes"] == 4 * 7
    # Between two checkpoints nobody lives as long as twice 8 steps, so each of the 6 cuts every second episode.
    assert row["cut_episodes"] == json.loads((path / "done.json").read_text())["cut_episodes"] == 4 * 6


def test_the_mean_of_the_last_hundred_training_episodes(make_run, monkeypatch):
    monkeypatch.setattr("torchrl_reg.training.run.logger._WINDOW", 5)
    run = make_run(log_every_frames=4, evaluate_every_frames=10**6, checkpoint_every_frames=10**6)
    run.track()
    ended: list[float] = []
    seen = {}
    for batch in run.collect(_env(), _push_right, total_frames=240, frames_per_batch=40):
        for step in range(10):  # in time, whichever environment it is
            ended += batch["next", "episode_reward"][:, step][batch["next", "done"][:, step]].tolist()
        seen[run.frames] = list(ended)
    rows = {row["frames"]: row for row in read_metrics(run.finish() / "metrics.jsonl") if row["event"] == "train"}
    assert len(seen[240]) > 15
    for frames, returns in seen.items():
        last = returns[-5:]
        assert rows[frames].get("return_last_100") == (sum(last) / len(last) if last else None)


def test_an_overlapped_run_is_one_batch_behind_in_what_acts_and_in_nothing_else(make_run):
    acted = {}
    for overlap in (False, True):
        run = make_run(f"overlap={overlap}", overlap=overlap, evaluate_every_frames=32, checkpoint_every_frames=10**6)
        number = CountingPolicy()
        run.evaluate_with(_env(2), {"greedy": _push_right_alone})
        run.track(policy=number)
        updates, acted[overlap] = 0, []
        for batch in run.collect(_env(), number, total_frames=160, frames_per_batch=16):
            acted[overlap].append(batch["batches_seen"].unique().item())
            number.seen += 1
            updates += run.updates_due(6, learning_starts_frames=20)
        assert run.frames == 160 and updates == (160 - 20) // 6
        assert [f for event, f in _events(run.finish()) if event == "eval"] == [32, 64, 96, 128, 160]
    assert acted == {False: list(range(10)), True: [0, *range(9)]}


def test_an_overlapped_run_needs_a_policy_that_can_be_copied(make_run):
    run = make_run(overlap=True)
    run.track()
    with pytest.raises(ConfigError, match="run.overlap must be false with a function, which cannot be copied"):
        next(run.collect(_env(), _push_right, total_frames=8, frames_per_batch=8))


def test_a_run_whose_environments_cannot_be_stored_says_so_at_its_start(make_run, capsys):
    for env, said in ((_env(), True), (make_env(EnvSettings("cartpole"), 4), False)):
        run = make_run(f"said={said}", progress=True, checkpoint_every_frames=52)
        run.track()
        for _ in run.collect(env, _push_right, total_frames=8, frames_per_batch=8):
            pass
        sentence = "this environment's state cannot be stored: a checkpoint ends all episodes, every 52 frames"
        assert (sentence in capsys.readouterr().out.splitlines()) == said


def test_a_checkpoint_changes_nothing_where_environments_can_be_stored(make_run):
    def lengths(every: int) -> list[list[int]]:
        run = make_run(f"every={every}", log_every_frames=10_000, checkpoint_every_frames=every)
        run.track()
        env, batches = make_env(EnvSettings("cartpole"), 4), []
        for batch in run.collect(env, _push_right, total_frames=120, frames_per_batch=4):
            batches.append(batch["next", "done"].squeeze(-1))
        assert "cut_episodes" not in read_metrics(run.finish() / "metrics.jsonl")[-1]
        return torch.cat(batches, 1).nonzero().tolist()

    assert lengths(12) == lengths(1_000) != []


def test_environments_that_come_out_otherwise_on_another_machine_lose_their_episodes(
    make_run, monkeypatch, capsys, tmp_path
):
    def collect(stop_at: int | None = None) -> list[torch.Tensor]:
        run = make_run("moved", progress=True, checkpoint_every_frames=24)
        n_step, batches = NStep(3, 0.9), []
        run.track(n_step=n_step)
        for batch in run.collect(
            make_env(EnvSettings("cartpole"), 4), _push_right, total_frames=48, frames_per_batch=12
        ):
            batches.append(n_step(batch))
            if run.frames == stop_at:
                raise _Stop
        run.finish()
        return batches

    with pytest.raises(_Stop):
        collect(stop_at=36)
    gc.collect()
    kind = type(restorable_part(make_env(EnvSettings("cartpole"), 4)))
    monkeypatch.setattr(kind, "restore", lambda *_: False)
    first, _ = collect()
    assert "this machine computes the environments differently: their episodes end here" in capsys.readouterr().out
    # The two rows that waited for their windows end in the steps that were there, and are no ends of the task.
    assert first["steps_to_next_obs"].squeeze(-1).tolist() == [[2, 1, 3]] * 4
    assert first["next", "truncated"].squeeze(-1).tolist() == [[True, True, False]] * 4
    assert not first["next", "terminated"].any()
    assert json.loads((tmp_path / "moved" / "done.json").read_text())["cut_episodes"] == 4


def test_rows_without_episodes_or_updates(make_run):
    run = make_run(log_every_frames=4)
    run.track()
    for _ in run.collect(_env(), _push_right, total_frames=4, frames_per_batch=4):
        pass
    (row,) = read_metrics(run.finish() / "metrics.jsonl")
    assert row["episodes"] == 0 and row["return_mean"] is None and "loss" not in row


def test_mass_that_a_grid_clips_is_warned_of_once_above_one_percent(make_run, capsys):
    for shares, warned in (((0.004, 0.01), 0), ((0.004, 0.013, 0.2), 1)):
        run = make_run(f"clipped={max(shares)}", log_every_frames=8)
        run.track()
        for _, share in zip(
            run.collect(_env(), _push_right, total_frames=8 * len(shares), frames_per_batch=8), shares, strict=True
        ):
            run.record({"loss": torch.tensor(1.0), "clipped_mass": torch.tensor(share)})
        run.finish()
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == warned
    assert lines[0].startswith("warning: 1.3% of the targets' mass at frame 16 lies outside the grid of returns")


def test_events_of_the_recipe(make_run):
    run = make_run()
    run.track()
    for _ in run.collect(_env(), _push_right, total_frames=8, frames_per_batch=8):
        run.log("search", simulations=50)
    rows = read_metrics(run.finish() / "metrics.jsonl")
    assert rows[0] == {"event": "search", "frames": 8, "simulations": 50}


def test_annealing_is_linear_and_stops(make_run):
    run = make_run()
    values = []
    for run.frames in (0, 50, 100, 300, 500, 900):
        values.append(run.annealed(1.0, 0.2, over_frames=400, after_frames=100))
    assert values == pytest.approx([1.0, 1.0, 1.0, 0.6, 0.2, 0.2])


def test_what_is_not_tracked_is_named(make_run):
    run = make_run()
    replay = run.replay(100, 10)
    run.track(target=None)
    with pytest.raises(ValueError, match=r"run\.track\(\) must name all .* got none of replay"):
        next(run.collect(_env(), _push_right, total_frames=8, frames_per_batch=8))
    run.track(replay=replay)
    next(run.collect(_env(), _push_right, total_frames=8, frames_per_batch=8))


def test_done_says_where_it_ended_and_the_folder_is_closed(make_run):
    run = make_run()
    run.evaluate_with(_env(2), {"greedy": _push_right})
    run.track()
    for _ in run.collect(_env(), _push_right, total_frames=8, frames_per_batch=8):
        pass
    done = json.loads((run.finish() / "done.json").read_text())
    assert done["frames"] == 8 and done["evaluation"]["return_greedy_mean"] > 0
    with pytest.raises(ConfigError, match="holds a finished run"):
        make_run()


def test_a_run_takes_subnormal_numbers_for_zero(make_run):
    tiny = torch.full((2,), 1e-40)
    assert (tiny * 0.5).all()
    make_run()
    assert not (tiny * 0.5).any()


def test_networks_come_from_the_seed_and_nothing_else(make_run):
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_run(name, seed=seed, progress=False, threads=1)
        weights.append(torch.nn.Linear(3, 3).weight)
        torch.rand(5)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_threads_and_device(make_run):
    torch.set_num_threads(2)
    assert make_run().device.type in ("cpu", "cuda")
    assert torch.get_num_threads() == 1
    with pytest.raises(ConfigError, match="run.device must be"):
        make_run("other", device="tpu9")


def test_missing_logger_packages_are_named(make_run, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "wandb" else found(n, *a))
    with pytest.raises(ConfigError, match="needs the package wandb, got none: pip install"):
        make_run(loggers=["wandb"])


def test_tensorboard_sees_the_rows(make_run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run(loggers=["tensorboard"], log_every_frames=8)
    run.track()
    for _ in run.collect(_env(), _push_right, total_frames=16, frames_per_batch=8):
        run.record(TensorDict({"loss": torch.tensor(0.25)}))
    path = run.finish()
    events = EventAccumulator(str(path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(8, 0.25), (16, 0.25)]


def test_the_buffer_is_made_before_the_update_that_reprioritizes_it(make_run):
    run = make_run()
    run._made["loss"] = object()
    with pytest.raises(ValueError, match="run.replay.. must come before run.make_update"):
        run.replay(100, 10)


def test_a_storage_of_the_recipes_own(make_run):
    run = make_run()
    storage = LazyTensorStorage(60, ndim=2)
    replay = run.replay(60, 10, storage=storage)
    assert replay.storage is storage and replay.batch_size == 10
    with pytest.raises(ConfigError, match="replay capacity must be that of its storage, 60, got 50"):
        run.replay(50, 10, storage=storage)


class _Stop(Exception):
    pass


def _slice_run(run: Run, stop_at: int | None = None) -> list[dict]:
    """Trajectory slices from an environment with running statistics, killed by an exception."""
    env = TransformedEnv(_env(), VecNormV2(in_keys=["observation"], decay=0.9))
    sampler = SliceSampler(slice_len=4, traj_key=("collector", "traj_ids"), strict_length=False)
    storage = LazyTensorStorage(120, ndim=2)
    replay = run.replay(120, 24, storage=storage, sampler=sampler)
    net = torch.nn.Linear(4, 1)

    def policy(state):
        return state.set("action", (net(state["observation"]).squeeze(-1) > torch.randn(4)).long())

    run.track(replay=replay, net=net)
    for batch in run.collect(env, policy, total_frames=480, frames_per_batch=12, track_trajectories=True):
        replay.extend(batch)
        sample = replay.sample()
        ids = sample["collector", "traj_ids"].double().sum()
        with torch.no_grad():
            net.weight += 0.01 * sample["observation"].mean(0)
        run.record(TensorDict({"loss": sample["observation"].double().sum(), "ids": ids}))
        if stop_at is not None and run.frames >= stop_at:
            raise _Stop
    return [strip_wall_clock(row) for row in read_metrics(run.finish() / "metrics.jsonl")]


@pytest.mark.filterwarnings("ignore:Support of VecNormV2:UserWarning")
def test_trajectories_statistics_and_slices_resume_exactly(make_run):
    settings = {"log_every_frames": 36, "checkpoint_every_frames": 96}
    expected = _slice_run(make_run("whole", **settings))
    for stop_at in (90, 100, 350):
        with pytest.raises(_Stop):
            _slice_run(make_run("stopped", **settings), stop_at)
        gc.collect()  # of the run, whose lock went with its process in real life
    assert _slice_run(make_run("stopped", **settings)) == expected
    assert expected[-1]["ids"] > 500


def _draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


class _DrawsWhenLoaded:
    """A part whose restoring draws from every global generator."""

    def state_dict(self):
        return {}

    def load_state_dict(self, _):
        _draws()


def test_generators_are_restored_after_all_that_draws_from_them(make_run, monkeypatch):
    def collect(name: str, stop_at: int | None = None) -> list:
        run = make_run(name, checkpoint_every_frames=24)
        replay = run.replay(64, 4)
        run.track(zeroes=_DrawsWhenLoaded(), replay=replay)
        env, drawn = make_env(EnvSettings("cartpole"), 4), []
        for batch in run.collect(env, _push_right, total_frames=72, frames_per_batch=12):
            replay.extend(batch.reshape(-1))
            drawn.append((_draws(), replay.sample()["observation"].tolist()))
            if run.frames == stop_at:
                raise _Stop
        run.finish()
        return drawn

    kind = type(restorable_part(make_env(EnvSettings("cartpole"), 4)))
    restore = kind.restore
    monkeypatch.setattr(kind, "restore", lambda *arguments: (restore(*arguments), _draws())[0])
    whole = collect("whole")
    with pytest.raises(_Stop):
        collect("stopped", stop_at=60)
    gc.collect()
    assert collect("stopped") == whole[4:]


@pytest.mark.curves
def test_without_matplotlib_the_run_says_so_and_ends_well(make_run, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "torchrl_reg.training.run.curves", raising=False)
    run = make_run()
    run.track()
    for _ in run.collect(_env(), _push_right, total_frames=8, frames_per_batch=8):
        pass
    path = run.finish()
    assert (path / "done.json").exists() and not (path / "curves.png").exists()
    assert capsys.readouterr().err.startswith("no curves.png: matplotlib")


@pytest.mark.curves
def test_a_plot_that_fails_does_not_stand_between_a_run_and_its_end(make_run, monkeypatch, capsys):
    def fail(folder):
        raise ValueError("bad\nrow")

    monkeypatch.setattr("torchrl_reg.training.run.curves.draw_curves", fail)
    run = make_run()
    run.track()
    for _ in run.collect(_env(), _push_right, total_frames=8, frames_per_batch=8):
        pass
    assert (run.finish() / "done.json").exists()
    assert capsys.readouterr().err == "no curves.png: ValueError: bad row.\n"


def test_a_view_that_fails_is_dropped_and_the_run_goes_on(make_run, monkeypatch, capsys):
    class Broken:
        def log_scalar(self, name, value, step):
            raise OSError("no route to host")

    monkeypatch.setattr("torchrl_reg.training.run.logger._open_views", lambda names, path: [Broken()])
    run = make_run(log_every_frames=8)
    run.track()
    for _ in run.collect(_env(), _push_right, total_frames=24, frames_per_batch=8):
        pass
    assert len(read_metrics(run.finish() / "metrics.jsonl")) == 3
    assert capsys.readouterr().err == "warning: Broken shows nothing from frame 8 on (OSError: no route to host).\n"


def test_the_first_line_says_when_the_first_row_comes(make_run, capsys):
    run = make_run(progress=True, log_every_frames=300, evaluate_every_frames=500, checkpoint_every_frames=8)
    run.track()
    batches = run.collect(_env(), _push_right, total_frames=1_000, frames_per_batch=8)
    next(batches), next(batches)
    batches.close()
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"starting {run.path}, first row at 300 of 1,000 frames"
    run = make_run("short", progress=True)
    run.track()
    for _ in run.collect(_env(), _push_right, total_frames=8, frames_per_batch=8):
        pass
    assert capsys.readouterr().out.startswith(f"starting {run.path}, first row at 8 of 8 frames\n")
