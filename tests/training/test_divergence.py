"""Values that grow beyond what rewards allow, though finite, are said once and recorded, and healthy ones are not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from torchrl_reg.training import read_metrics, strip_wall_clock
from torchrl_reg.training.run.divergence import ValueWatch

#: Diverges within 600 frames, and no number becomes infinite.
DIVERGING = ["algo.lr=1e3", "algo.total_frames=600", "run.checkpoint_every_frames=96"]


def _batch(chosen: float | None = None) -> TensorDict:
    batch = TensorDict({"next": {"reward": torch.tensor([[[0.5], [-2.0]], [[0.0], [1.0]]])}}, [2, 2])
    return batch if chosen is None else batch.set("chosen_action_value", torch.full((2, 2, 1), chosen))


@pytest.mark.parametrize(
    ("limit", "gamma", "column", "others"),
    [
        (200.0, 0.9, "td_error", {}),  # ten times 2 / (1 - .9)
        (200.0, 0.9, "value", {"loss_actor": 1e9}),  # which means something else where there is a value
        (200.0, 0.9, "loss_actor", {}),
        (40.0, 0.5, "value", {}),
        (260.0, 0.9, "value", {"tau": 0.5, "entropy": -1.2}),
        (250.0, 0.9, "loss_actor", {"alpha": 0.5, "entropy": 1.0}),
        (700.0, 0.9, "value", {"tau": 0.5}),  # 10 nats, if none are reported
        (230.0, 0.9, "value", {"bonus": -0.3, "bonus_clipped": 0.1}),
        (200.0, 0.9, "value", {"bonus": -1e6, "bonus_clipped": 0.0}),
        (200.0, 0.9, "value", {"tau": 1e6, "entropy": 1.2, "bellman_error": 1e6}),
        (200.0, 0.9, "value", {"tau": math.inf, "entropy": 1.2}),
        (math.inf, 1.0, "value", {}),
        (math.inf, None, "value", {}),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_bound(tmp_path, capsys, limit, gamma, column, others, sign):
    for share, beyond in ((0.99, False), (1.01, math.isfinite(limit))):
        watch = ValueWatch(tmp_path)
        watch.see(_batch())
        watch.see(_batch() * 0.5)
        value = sign * share * (limit if math.isfinite(limit) else 1e30)
        row = {"frames": 30, "updates": 4, column: value, "return_mean": None, **others}
        assert watch.judge(row, gamma) == ({"diverged_frames": 30} if beyond else {})
        assert watch.judge(row | {"frames": 40}, gamma) == ({"diverged_frames": 30} if beyond else {})
        assert watch.judge({"frames": 50, "updates": 4}, gamma) == ({"diverged_frames": 30} if beyond else {})
        said = capsys.readouterr().err.splitlines()
        assert len(said) == beyond
        expected = f"warning: {tmp_path} diverges: {column} is {abs(value):.3g} at frame 30, "
        assert not beyond or said[0].startswith(expected)


@pytest.mark.parametrize("name", ["loss", "loss_qvalue"])
def test_a_loss_is_at_most_a_squared_error(tmp_path, capsys, name):
    for loss, beyond in ((199.0**2, False), (201.0**2, True), (math.nan, False)):
        watch = ValueWatch(tmp_path)
        watch.see(_batch())
        assert bool(watch.judge({"frames": 30, "updates": 4, name: loss, "td_error": 3.0}, 0.9)) == beyond
    assert f"diverges: the root of {name} is 201 at frame 30, " in capsys.readouterr().err


def test_the_values_the_policy_chose_by_count_once_there_are_updates(tmp_path):
    for chosen, updates, beyond in ((-199.0, 3, False), (-201.0, 3, True), (-201.0, 0, False), (math.nan, 3, False)):
        watch = ValueWatch(tmp_path)
        watch.see(_batch(chosen))
        assert bool(watch.judge({"frames": 30, "updates": updates}, 0.9)) == beyond
    # Where no reward was seen, those of an untrained network are no divergence.
    watch = ValueWatch(tmp_path)
    watch.see(_batch() * 0)
    assert not watch.judge({"frames": 30, "updates": 3, "td_error": 9.9}, 0.9)
    assert watch.judge({"frames": 30, "updates": 3, "td_error": 10.1}, 0.9)


def test_the_largest_entropy_and_reward_count_and_are_restored(tmp_path):
    watch, again = ValueWatch(tmp_path), ValueWatch(tmp_path)
    watch.see(_batch())
    assert not watch.judge({"frames": 10, "updates": 1, "tau": 0.5, "entropy": 1.2}, 0.9)
    again.load_state_dict(watch.state_dict())
    row = {"frames": 20, "updates": 2, "tau": 0.5, "entropy": 0.0}
    assert not again.judge(row | {"value": 259.0}, 0.9)
    assert again.judge(row | {"value": 261.0}, 0.9) == {"diverged_frames": 20}


def _rows(folder: Path) -> list[dict]:
    return [strip_wall_clock(row) for row in read_metrics(folder / "metrics.jsonl")]


def test_a_diverging_run_says_so_once_and_resumes_to_the_same_rows(start, finish, kill_when, tmp_path):
    assert finish("run.dir=whole", *DIVERGING) == 0
    (line,) = [line for line in (tmp_path / "stderr.txt").read_text().splitlines() if "diverges" in line]
    train = [row for row in _rows(tmp_path / "whole") if row["event"] == "train"]
    found = json.loads((tmp_path / "whole/done.json").read_text())["diverged_frames"]
    assert f"at frame {found}, " in line and 64 < found < 600
    assert [row.get("diverged_frames") for row in train] == [found if row["frames"] >= found else None for row in train]

    killed = tmp_path / "killed"
    for saved in (2, 5):
        names = [f"checkpoint-{96 * saved:012d}.torchrl"]
        kill_when(
            start("run.dir=killed", *DIVERGING),
            lambda names=names: all((killed / "checkpoints" / name).exists() for name in names),
        )
    assert finish("run.dir=killed", *DIVERGING) == 0
    assert _rows(killed) == _rows(tmp_path / "whole")
    assert json.loads((killed / "done.json").read_text())["diverged_frames"] == found
    assert (tmp_path / "stderr.txt").read_text().count("warning: killed diverges") == 1


def test_each_seed_of_a_process_has_its_own_and_a_healthy_run_none(finish, tmp_path):
    assert finish("run.seeds=[0,3]", "run.dir=together", *DIVERGING) == 0
    assert finish("run.seed=3", "run.dir=alone", *DIVERGING) == 0
    assert finish("run.dir=healthy", *DIVERGING[1:]) == 0
    assert _rows(tmp_path / "together/seed=3") == _rows(tmp_path / "alone")
    said = (tmp_path / "stderr.txt").read_text()
    assert [said.count(f"{name} diverges") for name in ("seed=0", "seed=3", "alone", "healthy")] == [1, 1, 1, 0]
    assert json.loads((tmp_path / "healthy/done.json").read_text())["diverged_frames"] is None
