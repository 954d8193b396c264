"""A run in this process: its clock, its rows, its checks."""

from __future__ import annotations

import json
import time

import pytest
import torch
from tensordict import TensorDict

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab import UserError, read_metrics


def rows_of(path, event="train"):
    """The rows of an event by their frames."""
    return {row["frames"]: row for row in read_metrics(path / "metrics.jsonl") if row["event"] == event}


@pytest.mark.parametrize(("every", "expected"), [(4, 202), (7, 115), (0.5, 1620), (3.2, 253), (10_000, 0)])
def test_what_is_due_keeps_the_exact_ratio(make_run, every, expected):
    run, due = make_run(), []
    for run.frames in range(12, 901, 24):
        due.append(run.due(every, after_frames=90))
        run._before = run.frames
    assert sum(due) == expected == int((run.frames - 90) // every)
    assert due[:4] == [0, 0, 0, 0]  # frames 12 to 84
    assert max(due) - min(due[5:]) <= 1  # carried over, never in bursts


def test_frames_count_the_frame_skip_and_rows_follow_the_schedules(make_run, cartpole, push_right, through):
    run, seen = make_run(log_every_frames=50, evaluate_every_frames=120, checkpoint_every_frames=100), []
    run.frames_per_step = 4
    run.evaluate_with(cartpole(2), {"greedy": push_right})
    called: list[int] = []
    run.every(70, lambda: called.append(run.frames))

    def each(batch):
        assert batch.batch_size == (4, 2)
        seen.append(run.frames)
        run.record(TensorDict({"loss": torch.tensor(float(run.frames))}))
        if run.frames == 32:
            run.log("search", simulations=50)

    path = through(run, 240, 32, each)
    rows = rows_of(path)
    assert seen == list(range(32, 257, 32))
    assert list(rows) == [64, 128, 160, 224, 256]  # the first batch at or past each multiple, and the end
    assert list(rows_of(path, "eval")) == [128, 256] and called == [96, 160, 224]
    assert rows[64]["loss"] == (32 + 64) / 2 and rows[160]["loss"] == 160 and rows[256]["updates"] == 8
    assert read_metrics(path / "metrics.jsonl")[0] == {"event": "search", "frames": 32, "simulations": 50}


def test_training_returns_are_those_of_whole_episodes(make_run, through):
    run = make_run(log_every_frames=10_000, checkpoint_every_frames=52)

    def each(batch):
        if run.frames % 52 == 0:  # a checkpoint resets the environments now: an end, though nothing terminated
            assert batch["next", "done"].all() == (run.frames < 7 * 52)

    path = through(run, 7 * 52, 4, each)
    (row,) = rows_of(path).values()
    # Always to the right, an episode lasts 8 to 10 steps; one cut by a checkpoint would be shorter.
    assert 8 <= row["return_mean"] <= 11
    # 13 steps fit one whole episode per environment between two checkpoints, and there are 7.
    assert row["episodes"] == 4 * 7
    # No episode lasts 2 * 8 steps between two checkpoints, so each of the 6 truncates every second episode.
    assert row["cut_episodes"] == json.loads((path / "done.json").read_text())["cut_episodes"] == 4 * 6


def test_the_mean_of_the_last_hundred_training_episodes(make_run, through, monkeypatch):
    monkeypatch.setattr("torchrl_reg.lab.run.logger._WINDOW", 5)
    run = make_run(log_every_frames=4, evaluate_every_frames=10**6, checkpoint_every_frames=10**6)
    ended, seen = [], {}

    def each(batch):
        for step in range(10):  # in time, whichever environment it is
            ended.extend(batch["next", "episode_reward"][:, step][batch["next", "done"][:, step]].tolist())
        seen[run.frames] = ended[-5:]

    rows = rows_of(through(run, 240, 40, each))
    assert len(ended) > 15
    assert {f: row.get("return_last_100") for f, row in rows.items()} == {
        frames: sum(last) / len(last) if last else None for frames, last in seen.items()
    }


ACTING: list[bool] = []  # while a CountingPolicy acts


class CountingPolicy(torch.nn.Module):
    """Pushes to the right, and writes how many batches have been seen."""

    def __init__(self, push_right):
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.push_right = push_right

    def forward(self, state):
        ACTING.append(True)
        time.sleep(0.005)
        ACTING.pop()
        return self.push_right(state).set("batches_seen", self.seen.expand(state.batch_size).clone())


def test_an_overlapped_run_is_one_batch_behind_in_what_acts_and_in_nothing_else(make_run, cartpole, push_right):
    def push_right_alone(state):
        assert not ACTING, "evaluated while a thread collects"
        return push_right(state)

    acted = {}
    for overlap in (False, True):
        run = make_run(f"overlap={overlap}", overlap=overlap, evaluate_every_frames=32, checkpoint_every_frames=10**6)
        number = CountingPolicy(push_right)
        run.evaluate_with(cartpole(2), {"greedy": push_right_alone})
        parts, updates, acted[overlap] = {"policy": number}, 0, []
        for batch in run.collect(cartpole(), number, total_frames=160, frames_per_batch=16, parts=parts):
            acted[overlap].append(batch["batches_seen"].unique().item())
            number.seen += 1
            updates += run.due(6, after_frames=20)
        assert run.frames == 160 and updates == (160 - 20) // 6
        assert list(rows_of(run.finish(), "eval")) == [32, 64, 96, 128, 160]
    assert acted == {False: list(range(10)), True: [0, *range(9)]}


def test_an_overlapped_run_needs_a_policy_that_can_be_copied(make_run, through):
    with pytest.raises(UserError, match="run.overlap must be false with a function, which cannot be copied"):
        through(make_run(overlap=True))


def test_a_run_whose_environments_cannot_be_stored_says_so_at_its_start(make_run, through, capsys):
    sentence = "this environment's state cannot be stored: a checkpoint ends all episodes, every 52 frames"
    for env, said in ((None, True), (make_env(EnvSettings("cartpole"), 4), False)):
        run = make_run(f"said={said}", progress=True, checkpoint_every_frames=52, log_every_frames=300)
        through(run, env=env)
        first, *lines = capsys.readouterr().out.splitlines()
        assert first == f"starting {run.path}, first row at 8 of 8 frames" and (sentence in lines) == said


def test_the_first_line_says_when_the_first_row_comes(make_run, cartpole, push_right, capsys):
    run = make_run(progress=True, log_every_frames=300, evaluate_every_frames=500)
    batches = run.collect(cartpole(), push_right, total_frames=1_000, frames_per_batch=8)
    next(batches)
    batches.close()
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"starting {run.path}, first row at 300 of 1,000 frames"


def test_mass_that_a_grid_clips_is_warned_of_once_above_one_percent(make_run, through, capsys):
    for shares, warned in (([0.004, 0.01], 0), ([0.004, 0.013, 0.2], 1)):
        run, left = make_run(f"warned={warned}", log_every_frames=8), iter(shares)
        through(run, 8 * len(shares), each=lambda _: run.record({"clipped_mass": torch.tensor(next(left))}))  # noqa: B023
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == warned
    assert lines[0].startswith("warning: 1.3% of the targets' mass at frame 16 lies outside the grid of returns")


@pytest.mark.curves
def test_done_says_where_it_ended_and_the_folder_is_closed(make_run, cartpole, push_right, through):
    run = make_run(log_every_frames=4)
    run.evaluate_with(cartpole(2), {"greedy": push_right})
    path = through(run, 4, 4)
    (row,) = rows_of(path).values()
    assert row["episodes"] == 0 and row["return_mean"] is None and "loss" not in row
    done = json.loads((path / "done.json").read_text())
    assert done["frames"] == 4 and done["evaluation"]["return_greedy_mean"] > 0
    assert (path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="holds a finished run"):
        make_run()


def test_networks_come_from_the_seed_and_nothing_else(make_run):
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_run(name, seed=seed)
        weights.append(torch.nn.Linear(3, 3).weight)
        torch.rand(5)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_run_has_one_thread_a_device_and_takes_subnormal_numbers_for_zero(make_run):
    tiny = torch.full((2,), 1e-40)
    assert (tiny * 0.5).all()
    torch.set_num_threads(2)
    assert make_run().device.type in ("cpu", "cuda")
    assert torch.get_num_threads() == 1 and not (tiny * 0.5).any()


@pytest.mark.parametrize(
    ("restorable", "quick", "expected"), [(True, True, [96]), (True, False, [32, 64]), (False, False, [48])]
)
def test_by_default_the_clock_decides_on_checkpoints_unless_they_end_episodes(
    make_run, through, monkeypatch, restorable, quick, expected
):
    for name, value in (("CHECKPOINT_FRAMES", 32), ("ENDING_FRAMES", 48)):
        monkeypatch.setattr(f"torchrl_reg.lab.run.run.{name}", value)
    monkeypatch.setattr("torchrl_reg.lab.run.run.CHECKPOINT_SECONDS", 3600.0 if quick else 0.0)
    env = make_env(EnvSettings("cartpole"), 4) if restorable else None
    run, saved = make_run(evaluate_every_frames=10**6, log_every_frames=32), []
    monkeypatch.setattr("torchrl_reg.lab.run.checkpoint.Resumption.save", lambda self, frames: saved.append(frames))
    through(run, 96, 16, env=env)
    assert saved == [frames for frames in expected if frames < 96]
