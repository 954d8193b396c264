"""``run.video_every_frames`` films episodes and changes nothing else."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from torchrl_reg.training import read_metrics, strip_wall_clock

Image = pytest.importorskip("PIL.Image")
DQN = Path(__file__).parents[2] / "recipes" / "q_learning.py"
TINY = ["algo.total_frames=192", "algo.learning_starts_frames=64", "algo.batch_size=8", "net.num_cells=[16]"]
TINY += ["run.evaluate_every_frames=32", "run.log_every_frames=64", "run.eval_episodes=1", "env.max_episode_frames=6"]


def start(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> list[dict[str, object]]:
    spec = importlib.util.spec_from_file_location("recipes_q_learning", DQN)
    assert spec is not None and spec.loader is not None
    monkeypatch.setitem(sys.modules, "recipes_q_learning", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(sys.modules["recipes_q_learning"])
    monkeypatch.setattr(sys, "argv", ["q_learning.py", f"run.dir={folder}", *TINY, *overrides])
    sys.modules["recipes_q_learning"].main()
    return [strip_wall_clock(row) for row in read_metrics(folder / "metrics.jsonl")]


def test_episodes_are_filmed_and_nothing_else_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    without = start(monkeypatch, tmp_path / "without")
    filmed = start(monkeypatch, tmp_path / "filmed", "run.video_every_frames=70")
    assert filmed == without
    videos = sorted((tmp_path / "filmed/videos").iterdir())
    assert [path.name for path in videos] == ["000000000096.gif", "000000000160.gif"]
    for path in videos:
        with Image.open(path) as image:
            assert image.n_frames == 7  # six steps and the last state
    assert not (tmp_path / "without/videos").exists()


def test_what_cannot_be_filmed_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    start(monkeypatch, tmp_path / "run", "run.video_every_frames=32")
    assert capsys.readouterr().out.count("no videos: play needs Pillow, got none") == 1
    assert (tmp_path / "run/done.json").exists()
