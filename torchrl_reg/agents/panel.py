"""A picture with the policy beside it: Q-values, the chosen action, the entropy, the return so far."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from torchrl_reg.agents.episode import Moment
from torchrl_reg.agents.errors import AgentError
from torchrl_reg.agents.pictures import Picture

WIDTH = 260  # pixels of the panel
_MARGIN, _LINE = 12, 19
_INK, _FAINT, _PAPER, _CHOSEN, _OTHER = (40, 40, 45), (120, 120, 125), (250, 250, 247), (215, 95, 30), (120, 160, 190)
_MOST = 18  # actions shown


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
            raise AgentError("play needs Pillow, got none: pip install -e '.[play]'.") from None
        self._title, self._actions = title, actions
        self._font = ImageFont.load_default(size=13)
        self._low, self._high = np.inf, -np.inf

    def frame(self, moment: Moment) -> Picture:
        """The picture with the panel to its right; height and width are even, as MP4 requires."""
        from PIL import Image, ImageDraw

        height, width = moment.picture.shape[:2]
        image = Image.new("RGB", (_even(width + WIDTH), _even(max(height, 280))), _PAPER)
        image.paste(Image.fromarray(moment.picture), (0, 0))
        self._pen = ImageDraw.Draw(image)
        self._x, self._y = width + _MARGIN, _MARGIN
        self._write(self._title)
        self._write(f"step {moment.step}   return {moment.reward_so_far:.4g}", _FAINT)
        if moment.entropy is not None:
            of = "" if moment.largest_entropy is None else f" of {moment.largest_entropy:.2f}"
            self._write(f"policy entropy {moment.entropy:.3f}{of} nats", _FAINT)
        self._y += _LINE // 2
        if moment.action is None:
            self._write("the end")
        elif moment.q is not None:
            self._q_values(moment.q, int(moment.action))
        else:
            self._action(moment.action)
        return np.asarray(image)

    def _q_values(self, q: Tensor, chosen: int) -> None:
        self._low, self._high = min(self._low, q.min().item()), max(self._high, q.max().item())
        self._write("q(s, a)")
        for index, value in enumerate(q.tolist()[:_MOST]):
            share = (value - self._low) / max(self._high - self._low, 1e-9)
            colour = _CHOSEN if index == chosen else _OTHER
            self._bar(self._actions[index], f"{value:.3g}", 0.0, share, colour)

    def _action(self, action: Tensor) -> None:
        self._write("action")
        for index, value in enumerate(action.reshape(-1).tolist()[:_MOST]):
            at = 0.5 + 0.5 * float(np.clip(value, -1, 1))
            self._bar(str(index), f"{value:.3g}", min(at, 0.5), max(at, 0.5), _CHOSEN)

    def _bar(self, name: str, value: str, start: float, end: float, colour: tuple[int, int, int]) -> None:
        left, span = self._x + 85, WIDTH - 2 * _MARGIN - 85 - 52
        self._pen.text((self._x, self._y), name[:12], font=self._font, fill=colour if colour == _CHOSEN else _INK)
        box = (left + start * span, self._y + 3, left + end * span + 1, self._y + _LINE - 4)
        self._pen.rectangle(box, fill=colour)
        self._pen.text((left + span + 6, self._y), value, font=self._font, fill=_INK)
        self._y += _LINE

    def _write(self, text: str, colour: tuple[int, int, int] = _INK) -> None:
        self._pen.text((self._x, self._y), text, font=self._font, fill=colour)
        self._y += _LINE


def _even(pixels: int) -> int:
    return pixels + pixels % 2
