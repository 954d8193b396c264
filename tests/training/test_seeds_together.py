"""``run.seeds``: several seeds in one process, each as if it had been run alone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from torchrl_reg.training import read_metrics, strip_wall_clock

RECIPES = Path(__file__).parents[2] / "recipes"
TINY = ["algo.total_frames=600", "run.checkpoint_every_frames=150"]
SMALL = ["algo.total_frames=2400", "net.num_cells=[16,16]", "run.progress=false", "run.eval_episodes=4"]
SMALL += ["run.evaluate_every_frames=1000", "run.checkpoint_every_frames=800", "run.diagnostics_every_updates=3"]


def rows(folder: Path) -> list[dict]:
    return [strip_wall_clock(row) for row in read_metrics(folder / "metrics.jsonl")]


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = (folder / "checkpoints").glob("*.torchrl")
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if "loss" in name and name.endswith(".pt")]
        return torch.load(io.BytesIO(archive.read(name)), weights_only=True)


def newest(folder: Path) -> str:
    return max((path.name for path in folder.glob("seed=*/checkpoints/checkpoint-*")), default="")


@pytest.mark.parametrize("prioritized", [False, True])
def test_a_loss_without_a_stacked_form_gives_the_rows_of_each_alone(finish, tmp_path, prioritized):
    settings = [*TINY, f"algo.prioritized={prioritized}"]
    assert finish("run.seeds=[0,3]", "run.dir=together", *settings) == 0
    assert finish("run.seed=3", "run.dir=alone", *settings) == 0
    assert rows(tmp_path / "together/seed=3") == rows(tmp_path / "alone")
    assert rows(tmp_path / "together/seed=0") != rows(tmp_path / "alone")
    said = (tmp_path / "stderr.txt").read_text().count("each seed is updated separately")
    assert said == (0 if prioritized else 1)


def test_killed_and_started_again_they_end_like_runs_never_interrupted(start, finish, kill_when, tmp_path):
    assert finish("run.seeds=[0,3]", "run.dir=whole", *TINY) == 0
    killed = tmp_path / "killed"
    for _ in range(2):
        seen = newest(killed)
        process = start("run.seeds=[0,3]", "run.dir=killed", *TINY)
        kill_when(process, lambda seen=seen: newest(killed) > seen)
    # One is finished by itself, then both are asked for.
    assert finish("run.seed=3", "run.dir=killed/seed=3", *TINY) == 0
    assert finish("run.seeds=[0,3]", "run.dir=killed", *TINY) == 0
    assert "already finished: killed/seed=3" in (tmp_path / "stdout.txt").read_text()
    for seed in (0, 3):
        assert rows(killed / f"seed={seed}") == rows(tmp_path / "whole" / f"seed={seed}")


@pytest.mark.parametrize(("saved", "common"), [(160, 0), (464, 304)])
def test_a_kill_between_the_checkpoints_of_two_seeds_sends_all_back_to_one_frame(
    start, finish, kill_when, tmp_path, saved, common
):
    assert finish("run.seeds=[0,3]", "run.dir=whole", *TINY) == 0
    killed, name = tmp_path / "killed", f"checkpoint-{saved:012d}.torchrl"
    latest = [killed / f"seed={seed}/checkpoints" / name for seed in (0, 3)]
    kill_when(start("run.seeds=[0,3]", "run.dir=killed", *TINY), lambda: all(path.exists() for path in latest))
    latest[1].unlink()  # as if the kill had come a moment earlier
    assert finish("run.seeds=[0,3]", "run.dir=killed", *TINY) == 0
    said = (tmp_path / "stdout.txt").read_text()
    for seed in (0, 3):
        assert said.count(f"resuming killed/seed={seed} at frame {common}, ") == (common > 0)
        assert said.count(f"starting killed/seed={seed}, ") == (1 if common else 2)
        assert rows(killed / f"seed={seed}") == rows(tmp_path / "whole" / f"seed={seed}")


def test_seeds_without_a_common_checkpoint_go_on_from_their_own(finish, tmp_path):
    settings = [*TINY, "algo.lr=1e38", "algo.learning_starts_frames=400"]  # fails after the second checkpoint
    assert finish("run.seed=3", "run.dir=some/seed=3", *settings) == 1
    assert finish("run.seeds=[0,3]", "run.dir=some", *settings) == 1
    said = (tmp_path / "stdout.txt").read_text()
    assert "resuming some/seed=3 at frame 304, " in said and "starting some/seed=0, " in said


def test_no_seed_is_done_before_all_have_their_last_checkpoint(start, finish, kill_when, tmp_path):
    assert finish("run.seeds=[0,3]", "run.dir=whole", *TINY) == 0
    killed = tmp_path / "killed"
    kill_when(start("run.seeds=[0,3]", "run.dir=killed", *TINY), (killed / "seed=0/done.json").exists)
    assert not (killed / "seed=3/done.json").exists()
    assert newest(killed) == "checkpoint-000000000608.torchrl"
    assert (killed / "seed=3/checkpoints" / newest(killed)).exists()
    assert finish("run.seeds=[0,3]", "run.dir=killed", *TINY) == 0
    assert rows(killed / "seed=3") == rows(tmp_path / "whole/seed=3")


def test_a_seed_that_fails_does_not_stop_the_others(finish, tmp_path):
    (tmp_path / "some/seed=0").mkdir(parents=True)
    (tmp_path / "some/seed=0/notes.txt").write_text("not a run")
    assert finish("run.seeds=[0,3]", "run.dir=some", *TINY) == 1
    assert "some/seed=0, which has no config.yaml" in (tmp_path / "stderr.txt").read_text()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("run.seeds=[1,1]", "run.seeds must be different integers, each at least 0, got [1, 1]."),
        ("run.seeds=[]", "run.seeds must be different integers, each at least 0, got []."),
        ("run.seeds=[-1]", "run.seeds must be different integers, each at least 0, got [-1]."),
        ("run.seeds=[1,2] run.cudagraphs=true", "run.cudagraphs must be false with run.seeds, got True."),
        ("run.seeds=[1,2] run.overlap=true", "run.overlap must be false with run.seeds or run.cudagraphs, got True."),
    ],
)
def test_bad_input_is_one_sentence(finish, tmp_path, settings, sentence):
    assert finish(*settings.split(), "run.dir=bad", *TINY) == 1
    assert (tmp_path / "stderr.txt").read_text().strip().splitlines()[-1] == sentence
    assert not (tmp_path / "bad").exists()


#: Gradients of a stack with layer norms are clipped, and RAdam steps.
ROLLOUTS = ["net.layer_norm=image", "algo.collect_steps=20", "algo.batch_size=16", "algo.max_grad_norm=0.3"]


def run(folder: Path, *settings: str, recipe: str = "m_dqn") -> subprocess.Popen[bytes]:
    settings = (*settings, *ROLLOUTS) if recipe == "pqn" else settings
    command = [sys.executable, str(RECIPES / f"{recipe}.py"), *SMALL, *settings, f"run.dir={folder}"]
    with open(f"{folder}.txt", "w") as errors:
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=errors)


@pytest.mark.parametrize("recipe", ["m_dqn", "pqn", "m_iqn"])
def test_a_stack_gives_the_rows_of_each_alone_but_for_summation_order(tmp_path: Path, recipe: str) -> None:
    together = run(tmp_path / "together", "run.seeds=[0,1]", recipe=recipe)
    alone = run(tmp_path / "alone", "run.seed=1", recipe=recipe)
    codes = together.wait(), alone.wait()
    said = (tmp_path / "together.txt").read_text()
    # Or nothing was computed together. The rows do not tell: on some processors they are the same to the last bit.
    assert codes == (0, 0) and "separately" not in said, said
    found, expected = rows(tmp_path / "together/seed=1"), rows(tmp_path / "alone")
    assert [row["event"] for row in found].count("train") >= 2
    for one, other in zip(found, expected, strict=True):
        assert one.pop("event") == other.pop("event")
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    # Each folder holds no more than its own: a checkpoint of one network, not of the stack.
    archives = [next((tmp_path / name).rglob("*.torchrl")) for name in ("alone", "together/seed=1")]
    assert archives[0].stat().st_size == pytest.approx(archives[1].stat().st_size, rel=0.02)


@pytest.mark.parametrize(
    ("recipe", "checkpoints"), [("m_dqn", (1216, 2016)), ("m_iqn", (1216, 2016)), ("pqn", (1200, 2000))]
)
def test_stacked_seeds_killed_and_started_again_are_the_same_to_the_last_bit(
    tmp_path: Path, recipe: str, checkpoints: tuple[int, ...]
) -> None:
    settings = ["run.seeds=[1,0]", "run.checkpoint_every_frames=400", "run.log_every_frames=160"]
    whole, killed = run(tmp_path / "whole", *settings, recipe=recipe), tmp_path / "killed"
    for saved in checkpoints:
        process = run(killed, *settings, recipe=recipe)
        name = f"checkpoints/checkpoint-{saved:012d}.torchrl"
        while not all((killed / f"seed={seed}" / name).exists() for seed in (0, 1)):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        process.wait()
        (killed / "seed=0" / name).unlink()  # as if the kill had come between the two
    assert run(killed, *settings, recipe=recipe).wait() == 0 and whole.wait() == 0
    for seed in (0, 1):
        assert rows(killed / f"seed={seed}") == rows(tmp_path / "whole" / f"seed={seed}")
        one, other = (final_weights(folder / f"seed={seed}") for folder in (tmp_path / "whole", killed))
        assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
