"""Frames as a GIF or an MP4, or in a window."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from torchrl_reg.lab.agents.pictures import Picture
from torchrl_reg.lab.errors import UserError


def write_video(path: Path, frames: Iterable[Picture], frames_per_second: float) -> int:
    """Writes ``frames`` (uint8 ``[H, W, 3]``, all of one size) to a ``.gif`` or ``.mp4``; returns how many.

    Raises:
        UserError: another suffix, no frame, or what writes this format is not installed.
    """
    # A GIF is written at its end: reduced to 128 colours, a frame waits for that in a third of its memory.
    gif = {"duration": round(1000 / frames_per_second), "loop": 0, "bits": 7}
    options: dict[str, dict[str, Any]] = {".gif": gif, ".mp4": {"fps": frames_per_second, "macro_block_size": 2}}
    if path.suffix not in options:
        raise UserError(f"A video must be a file ending in {' or '.join(options)}, got {path.name}.")
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise UserError(f"A video needs {error.name}, got none: pip install 'torchrl_reg[play]'.") from None
    frames = iter(frames)
    first = next(frames, None)  # before there is a file: it may be refused
    if first is None:
        raise UserError(f"{path} must have at least one frame, got none.")
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    partial = path.with_name(f".partial-{path.name}")  # with the suffix, which chooses the format
    writer: Any = imageio.get_writer(partial, **options[path.suffix])
    try:
        with writer:
            for count, frame in enumerate(chain([first], frames), 1):  # noqa: B007
                writer.append_data(frame)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def show_in_window(title: str, frames: Iterable[Picture], frames_per_second: float) -> int:
    """Shows ``frames`` in a window until they end or it is closed; returns how many were shown.

    Raises:
        UserError: pygame is not installed.
    """
    try:
        import pygame
    except ImportError:
        raise UserError("A window needs pygame, got none: pip install 'torchrl_reg[recipes]', or use --out.") from None
    shown, window, clock = 0, None, pygame.time.Clock()
    pygame.display.init()
    try:
        for shown, frame in enumerate(frames, 1):  # noqa: B007
            window = window or pygame.display.set_mode((frame.shape[1], frame.shape[0]))
            pygame.display.set_caption(title)
            window.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
            pygame.display.flip()
            clock.tick(frames_per_second)
            if any(event.type == pygame.QUIT for event in pygame.event.get()):
                break
    finally:
        pygame.display.quit()
    return shown
