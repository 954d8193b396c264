"""``run.seeds``: several seeds in one process, each as if it had been run alone."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from torchrl_reg.lab import read_metrics, strip_wall_clock
from torchrl_reg.lab.run.divergence import warn
from torchrl_reg.lab.run.logger import RunLogger
from torchrl_reg.lab.run.settings import RunSettings
from torchrl_reg.lab.run.stop import STOP, StopFrame
from torchrl_reg.lab.seeds.seeds_together import train_seeds
from torchrl_reg.lab.seeds.workers import current_worker

RECIPES = Path(__file__).parents[3] / "recipes"
TINY = ["algo.total_frames=600", "run.checkpoint_every_frames=150"]
BOTH = "run.seeds=[0,3]"


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
    assert finish(BOTH, "run.dir=together", *settings) == 0
    assert finish("run.seed=3", "run.dir=alone", *settings) == 0
    assert rows(tmp_path / "together/seed=3") == rows(tmp_path / "alone")
    assert rows(tmp_path / "together/seed=0") != rows(tmp_path / "alone")
    said = (tmp_path / "stderr.txt").read_text().count("each seed is updated separately")
    assert said == (0 if prioritized else 1)


def test_killed_and_started_again_they_end_like_runs_never_interrupted(start, finish, kill_when, tmp_path):
    """Killed anywhere, between the checkpoints of two seeds, or between the ends of two: all go on from one frame."""
    assert finish(BOTH, "run.dir=whole", *TINY) == 0
    killed, resumed = tmp_path / "killed", []
    arguments = (BOTH, "run.dir=killed", *TINY)
    for saved, common in ((160, 0), (464, 304)):
        latest = [killed / f"seed={seed}/checkpoints/checkpoint-{saved:012d}.torchrl" for seed in (0, 3)]
        kill_when(start(*arguments), lambda latest=latest: all(path.exists() for path in latest))
        latest[1].unlink()  # as if the kill had come a moment earlier
        resumed += [f"resuming killed/seed={seed} at frame {common}, " for seed in (0, 3) if common]
    kill_when(start(*arguments), (killed / "seed=0/done.json").exists)
    # No seed is done before all have their last checkpoint.
    assert not (killed / "seed=3/done.json").exists() and newest(killed) == "checkpoint-000000000608.torchrl"
    assert (killed / "seed=3/checkpoints" / newest(killed)).exists()
    assert finish(*arguments) == 0
    said = (tmp_path / "stdout.txt").read_text()
    assert [said.count(sentence) for sentence in resumed] == [1, 1]
    assert [said.count(f"starting killed/seed={seed}, ") for seed in (0, 3)] == [
        2,
        2,
    ]  # of the first kill nothing is left
    assert "already finished: killed/seed=0" in said
    for seed in (0, 3):
        assert rows(killed / f"seed={seed}") == rows(tmp_path / "whole" / f"seed={seed}")


def test_seeds_without_a_common_checkpoint_go_on_from_their_own(finish, tmp_path):
    settings = [*TINY, "algo.lr=1e38", "algo.learning_starts_frames=400"]  # fails after the second checkpoint
    assert finish("run.seed=3", "run.dir=some/seed=3", *settings) == 1
    assert finish(BOTH, "run.dir=some", *settings) == 1
    said = (tmp_path / "stdout.txt").read_text()
    assert "resuming some/seed=3 at frame 304, " in said and "starting some/seed=0, " in said
    (tmp_path / "some/seed=5").mkdir()
    (tmp_path / "some/seed=5/notes.txt").write_text("not a run")
    assert finish("run.seeds=[4,5]", "run.dir=some", *TINY) == 1
    assert "some/seed=5, which has no config.yaml" in (tmp_path / "stderr.txt").read_text()


def test_a_seed_that_joins_later_leaves_the_checkpoints_of_the_others(start, finish, kill_when, tmp_path):
    assert finish(BOTH, "run.dir=whole", *TINY) == 0
    killed = tmp_path / "killed"
    latest = [killed / f"seed={seed}/checkpoints/checkpoint-000000000160.torchrl" for seed in (0, 3)]
    kill_when(start(BOTH, "run.dir=killed", *TINY), lambda: all(path.exists() for path in latest))
    assert finish("run.seeds=[0,3,5]", "run.dir=killed", *TINY) == 0
    said = (tmp_path / "stdout.txt").read_text()
    assert all(f"resuming killed/seed={seed} at frame" in said for seed in (0, 3)) and "starting killed/seed=5" in said
    for seed in (0, 3):
        assert rows(killed / f"seed={seed}") == rows(tmp_path / "whole" / f"seed={seed}")


def test_seeds_stop_side_by_side_and_a_lagging_one_at_its_own_frame(monkeypatch):
    stop = StopFrame()
    assert not any(stop.stop_or_pass(frames, 8, seed) for seed, frames in (("a", 96), ("b", 96), ("c", 8), ("a", 104)))
    monkeypatch.setattr(STOP, "requested", KeyboardInterrupt())
    assert not stop.stop_or_pass(104, 8, "b"), "a has gone on from there"
    assert stop.stop_or_pass(16, 8, "c")
    assert not stop.stop_or_pass(112, 8, "a", can_stop=False) and not stop.stop_or_pass(112, 8, "b")
    assert stop.stop_or_pass(120, 8, "a") and stop.stop_or_pass(120, 8, "b")


def test_a_seed_that_fails_does_not_stop_the_others(capsys):
    def train(config):
        if config.run.seed in (1, 2):
            raise KeyError(f"of seed {config.run.seed}")
        trained.append(config.run.seed)

    trained, configs = [], [SimpleNamespace(run=SimpleNamespace(seed=seed)) for seed in range(4)]
    with pytest.raises(KeyError, match="of seed 1"):
        train_seeds(train, configs)
    assert trained == [0, 3] and capsys.readouterr().err == "run.seed=2: KeyError('of seed 2')\n"


def test_one_bar_for_all_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", sys)  # a notebook has a bar, here one of text

    def train(config):
        seed = config.run.seed
        (tmp_path / str(seed)).mkdir()
        logger = RunLogger(tmp_path / str(seed), RunSettings(dir=str(tmp_path)))
        logger.start(600, 0)
        try:
            for frames in (300, 600):
                logger.advance(300, [10.0 * seed])
                logger.train(frames)
                current_worker().barrier("batch", None, lambda given: given)
                if seed == 2:
                    warn("seed 2 is odd.")
                    raise KeyError("of seed 2")
        finally:
            logger.stop()

    with pytest.raises(KeyError):
        train_seeds(train, [SimpleNamespace(run=SimpleNamespace(seed=seed)) for seed in range(1, 4)])
    out, err = capsys.readouterr()
    drawn = [line for line in re.split(r"[\r\n]", out) if "%|" in line]
    assert "seeds=0/3" in drawn[0] and "100%|" in drawn[-1] and "600/600" in drawn[-1]
    assert "mean return=20 (10 to 30) seeds=2/2" in drawn[-1] and err == "warning: seed 2 is odd.\n"


# ------------------------------------------------------------ recipes whose losses are stacked

SMALL = ["algo.total_frames=2400", "net.num_cells=[16,16]", "run.progress=false", "run.eval_episodes=4"]
SMALL += ["run.evaluate_every_frames=1000", "run.checkpoint_every_frames=400", "run.log_every_frames=160"]
SMALL += ["run.diagnostics_every_updates=3"]
#: Gradients of a stack with layer norms are clipped, and RAdam steps.
ROLLOUTS = ["net.layer_norm=image", "algo.collect_steps=20", "algo.batch_size=16", "algo.max_grad_norm=0.3"]


def run(recipe: str, folder: Path, *settings: str) -> subprocess.Popen[bytes]:
    more = {"pqn": ROLLOUTS, "rainbow": ["+method=rainbow"]}.get(recipe, [])
    script = RECIPES / f"{'q_learning' if recipe == 'rainbow' else recipe}.py"
    command = [sys.executable, str(script), *SMALL, *more, *settings, f"run.dir={folder}"]
    with open(f"{folder}.txt", "w") as errors:
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=errors)


def rows_alike(one: Path, other: Path) -> None:
    """But for the order of summation."""
    found, expected = rows(one), rows(other)
    assert [row["event"] for row in found].count("train") >= 2
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.pop("event") == theirs.pop("event")
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)


# Rainbow's priorities keep its seeds apart, and its noise must come out the same.
@pytest.mark.parametrize(("recipe", "saved"), [("m_dqn", 1216), ("m_iqn", 2016), ("pqn", 1200), ("rainbow", 1216)])
def test_a_stack_gives_what_each_gives_alone_and_ends_the_same_to_the_last_bit_after_a_kill(tmp_path, recipe, saved):
    seeds, whole, alone, killed = "run.seeds=[1,0]", *(tmp_path / name for name in ("whole", "alone", "killed"))
    process, others = run(recipe, killed, seeds), [run(recipe, whole, seeds), run(recipe, alone, "run.seed=1")]
    latest = [killed / f"seed={seed}/checkpoints/checkpoint-{saved:012d}.torchrl" for seed in (0, 1)]
    while not all(path.exists() for path in latest):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    latest[0].unlink()  # as if the kill had come between the two
    assert [each.wait() for each in (run(recipe, killed, seeds), *others)] == [0, 0, 0]
    said = (tmp_path / "whole.txt").read_text()
    # Or nothing was computed together. The rows do not tell: on some processors they are the same to the last bit.
    assert "separately" not in said, said
    rows_alike(whole / "seed=1", alone)
    # Each folder holds no more than its own: a checkpoint of one network, not of the stack.
    sizes = [next(folder.rglob("*.torchrl")).stat().st_size for folder in (alone, whole / "seed=1")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    for seed in (0, 1):
        one, other = whole / f"seed={seed}", killed / f"seed={seed}"
        assert rows(one) == rows(other)
        torch.testing.assert_close(final_weights(one), final_weights(other), rtol=0, atol=0)
