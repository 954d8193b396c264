from __future__ import annotations

import json

import pytest

pytest.importorskip("matplotlib")

from torchrl_reg.training.run.curves import draw_curves


def _write(folder, rows):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_curves_of_a_run(tmp_path):
    rows = []
    for frames in range(100, 1_000, 100):
        row = {"event": "train", "frames": frames, "return_mean": frames / 10, "loss": 1 / frames, "kl": 0.1}
        rows.append(row | {f"diagnostic_{i}": float(i) for i in range(6)})
        returns = {"return_greedy_mean": 5.0, "return_greedy_std": 1.0}
        rows.append({"event": "eval", "frames": frames, **returns, "episodes": 10})
    rows[2]["return_mean"] = None  # no episode ended
    rows[4]["loss"] = None  # it was not finite
    path = draw_curves(_write(tmp_path / "run", rows))
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000


@pytest.mark.parametrize("rows", [[], [{"event": "train", "frames": 8, "return_mean": None}]])
def test_a_run_with_nothing_to_show(tmp_path, rows):
    assert draw_curves(_write(tmp_path / "run", rows)).exists()
