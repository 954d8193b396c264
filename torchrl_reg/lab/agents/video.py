"""Frames as a GIF or an MP4, or in a window."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from itertools import chain, count
from pathlib import Path

import numpy as np

from torchrl_reg.lab.agents.pictures import Picture
from torchrl_reg.lab.errors import AgentError

FORMATS = (".gif", ".mp4")


def write_video(path: Path, frames: Iterable[Picture], frames_per_second: float) -> int:
    """Writes ``frames`` (uint8 ``[H, W, 3]``, all of one size) to a ``.gif`` or ``.mp4``; returns how many.

    Raises:
        AgentError: another suffix, no frame, or what writes this format is not installed.
    """
    if path.suffix not in FORMATS:
        raise AgentError(f"A video must be a file ending in {' or '.join(FORMATS)}, got {path.name}.")
    numbers = count()
    remaining = (frame for frame, _ in zip(frames, numbers, strict=False))
    first = next(remaining, None)
    if first is None:
        raise AgentError(f"{path} must have at least one frame, got none.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write = _write_gif if path.suffix == ".gif" else _write_mp4
    write(path, first, chain([first], remaining), frames_per_second)
    return next(numbers)


def _write_gif(path: Path, first: Picture, frames: Iterable[Picture], frames_per_second: float) -> None:
    from PIL import Image

    # One palette for all frames would flicker less, but costs a pass over them; players round times to 10 ms.
    images = (Image.fromarray(frame).quantize(128, dither=Image.Dither.NONE) for frame in frames)
    milliseconds = max(20, round(100 / frames_per_second) * 10)
    next(images).save(path, save_all=True, append_images=images, duration=milliseconds, loop=0, optimize=False)


def _write_mp4(path: Path, first: Picture, frames: Iterable[Picture], frames_per_second: float) -> None:
    try:
        import imageio_ffmpeg
    except ImportError:
        said = "An MP4 needs imageio-ffmpeg, got none: pip install 'torchrl_reg[play]'; a GIF does not."
        raise AgentError(said) from None
    size = first.shape[1], first.shape[0]
    with closing(imageio_ffmpeg.write_frames(str(path), size, fps=frames_per_second, macro_block_size=2)) as writer:
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))


def show_in_window(title: str, frames: Iterable[Picture], frames_per_second: float) -> int:
    """Shows ``frames`` in a window until they end or it is closed; returns how many were shown.

    Raises:
        AgentError: pygame is not installed.
    """
    try:
        import pygame
    except ImportError:
        raise AgentError("A window needs pygame, got none: pip install 'torchrl_reg[recipes]', or use --out.") from None
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
