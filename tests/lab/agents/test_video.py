"""Frames in a file or a window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from torchrl_reg.lab.agents.video import show_in_window, write_video
from torchrl_reg.lab.errors import UserError

FRAMES = [np.full((40, 60, 3), 20 * i, np.uint8) for i in range(3)]


def test_a_gif_has_every_frame_for_its_time(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    assert write_video(tmp_path / "new/a.gif", iter(FRAMES), 8) == 3
    with image.open(tmp_path / "new/a.gif") as written:
        shown = []
        for index in range(written.n_frames):
            written.seek(index)
            shown.append(np.asarray(written.convert("RGB"))[0, 0, 0])
        assert (shown, written.info["duration"], written.info["loop"]) == ([0, 20, 40], 120, 0)


def test_an_mp4_and_a_window_show_every_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    assert write_video(tmp_path / "a.mp4", FRAMES, 8) == 3
    assert ffmpeg.count_frames_and_secs(str(tmp_path / "a.mp4"))[0] == 3
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert show_in_window("three", FRAMES, 200) == 3


def test_a_video_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield np.zeros((8, 8, 3), np.uint8)
        raise KeyError("broken")

    with pytest.raises(KeyError):
        write_video(tmp_path / "a.gif", frames(), 10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "frames", "said"), [("a.png", FRAMES, "in .gif or .mp4"), ("a.gif", [], "got none")])
def test_what_is_no_video_is_refused(name: str, frames: list[np.ndarray], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        write_video(tmp_path / name, frames, 10)
