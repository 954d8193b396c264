"""Episodes of the evaluated policy, filmed while a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torchrl_reg.agents.errors import AgentError
from torchrl_reg.agents.pictures import draw_without_display
from torchrl_reg.agents.saved import POLICY_FILE, read_policy
from torchrl_reg.agents.show import episode_frames, frames_per_second
from torchrl_reg.agents.video import write_video
from torchrl_reg.training.streams import forked_generators, stream_seed

LONGEST = 2_000  # steps of an episode that are filmed


class Videos:
    """``videos/<frames>.gif``: a greedy episode at the first evaluation past each multiple of ``every_frames``.

    The episode is in an environment of its own, and the run's random streams are left as they were.

    Args:
        folder: of the run.
        every_frames: environment frames between two; None films nothing.
        seed: of the run; every video shows the same first state.
    """

    def __init__(self, folder: Path, every_frames: int | None, seed: int) -> None:
        self._folder, self._every, self._seed = folder, every_frames, seed
        self._filmed_at = 0
        if every_frames is not None:
            draw_without_display()  # before the recipe builds its environments: MuJoCo looks once

    def film(self, frames: int, say: Callable[[str], None]) -> None:
        """Films what ``policy.safetensors`` holds, if it is time; a failure is reported once."""
        if self._every is None or frames // self._every <= self._filmed_at // self._every:
            return
        self._filmed_at = frames
        seed = stream_seed(self._seed, "video")
        try:
            with forked_generators(seed):
                saved = read_policy(self._folder / POLICY_FILE)
                shown = episode_frames(saved, seed=seed, max_steps=LONGEST)
                write_video(self._folder / "videos" / f"{frames:012d}.gif", shown, frames_per_second(saved))
        except AgentError as error:
            self._every = None
            say(f"no videos: {error}")
