"""A picture with the policy beside it: Q-values, the chosen action, the entropy, the return so far."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from torchrl_reg.agents.errors import AgentError
from torchrl_reg.agents.pictures import Picture

WIDTH = 260  # pixels of the panel
_MARGIN, _LINE, _NAME, _VALUE = 12, 19, 85, 52
_INK, _FAINT, _PAPER, _CHOSEN, _OTHER = (40, 40, 45), (120, 120, 125), (250, 250, 247), (215, 95, 30), (120, 160, 190)
_MOST = 18  # actions shown


@dataclass(frozen=True)
class Moment:
    """A state and what the policy makes of it.

    Args:
        picture: uint8 ``[H, W, 3]``.
        step: steps taken before.
        reward_so_far: undiscounted, in reward units.
        q: action values ``[A]``; None of a continuous policy, and of the last state.
        action: the chosen action: an index, or ``[D]`` numbers; None of the last state.
        entropy: of the policy that samples, nats; None where it has none in closed form.
        largest_entropy: ``ln A``; None of a density.
    """

    picture: Picture
    step: int
    reward_so_far: float
    q: Tensor | None = None
    action: Tensor | None = None
    entropy: float | None = None
    largest_entropy: float | None = None


# A line of the panel, with a bar from ``start`` to ``end`` (shares of the width) if it has a ``value``.
_Row = namedtuple("_Row", ["text", "ink", "start", "end", "value", "colour"], defaults=[_INK, 0.0, 0.0, "", _CHOSEN])


class Panel:
    """Draws moments of one episode; its bars span the Q-values seen so far.

    Args:
        title: the first line.
        actions: name of each discrete action.

    Raises:
        AgentError: Pillow is not installed.
    """

    def __init__(self, title: str, actions: tuple[str, ...]) -> None:
        try:
            from PIL import ImageFont
        except ImportError:
            raise AgentError("play needs Pillow, got none: pip install 'torchrl_reg[play]'.") from None
        self._title, self._actions = title, actions
        self._font = ImageFont.load_default(size=13)
        self._low, self._high = np.inf, -np.inf

    def frame(self, moment: Moment) -> Picture:
        """The picture with the panel to its right; height and width are even, as MP4 requires."""
        from PIL import Image, ImageDraw

        height, width = moment.picture.shape[:2]
        image = Image.new("RGB", (_even(width + WIDTH), _even(max(height, 280))), _PAPER)
        image.paste(Image.fromarray(moment.picture), (0, 0))
        pen = ImageDraw.Draw(image)
        left, y, span = width + _MARGIN, _MARGIN, WIDTH - 2 * _MARGIN - _NAME - _VALUE
        for row in self._rows(moment):
            pen.text((left, y), row.text, font=self._font, fill=row.ink)
            if row.value:
                bar = left + _NAME + row.start * span, left + _NAME + row.end * span + 1
                pen.rectangle((bar[0], y + 3, bar[1], y + _LINE - 4), fill=row.colour)
                pen.text((left + _NAME + span + 6, y), row.value, font=self._font, fill=_INK)
            y += _LINE if row.text else _LINE // 2
        return np.asarray(image)

    def _rows(self, moment: Moment) -> Iterator[_Row]:
        yield _Row(self._title)
        yield _Row(f"step {moment.step}   return {moment.reward_so_far:.4g}", _FAINT)
        if moment.entropy is not None:
            of = "" if moment.largest_entropy is None else f" of {moment.largest_entropy:.2f}"
            yield _Row(f"policy entropy {moment.entropy:.3f}{of} nats", _FAINT)
        yield _Row("")
        if moment.action is None:
            yield _Row("the end")
        elif moment.q is not None:
            yield from self._q_values(moment.q, int(moment.action))
        else:
            yield _Row("action")
            for index, value in enumerate(moment.action.reshape(-1).tolist()[:_MOST]):
                at = 0.5 + 0.5 * float(np.clip(value, -1, 1))
                yield _Row(str(index), _CHOSEN, min(at, 0.5), max(at, 0.5), f"{value:.3g}")

    def _q_values(self, q: Tensor, chosen: int) -> Iterator[_Row]:
        self._low, self._high = min(self._low, q.min().item()), max(self._high, q.max().item())
        yield _Row("q(s, a)")
        for index, value in enumerate(q.tolist()[:_MOST]):
            share = (value - self._low) / max(self._high - self._low, 1e-9)
            ink, colour = (_CHOSEN, _CHOSEN) if index == chosen else (_INK, _OTHER)
            yield _Row(self._actions[index][:12], ink, 0.0, share, f"{value:.3g}", colour)


def _even(pixels: int) -> int:
    return pixels + pixels % 2
