"""The panel shows the values, the choice and the entropy of a moment."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_reg.agents.panel import _CHOSEN, _OTHER, WIDTH, Moment, Panel

pytest.importorskip("PIL")
BLACK = np.zeros((301, 99, 3), np.uint8)


def bar(frame: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int]:
    """Width in pixels, and the row, of the longest bar of this colour; to its left is its name."""
    widths = (frame[:, 99 + 97 :] == np.array(colour)).all(-1).sum(1)
    return int(widths.max()), int(widths.argmax())


def test_bars_span_the_values_seen_so_far() -> None:
    panel = Panel("title", ("up", "down"))
    first = panel.frame(Moment(BLACK, 0, 0.0, torch.tensor([0.0, 1.0]), torch.tensor(0), 0.5, 0.69))
    assert first.shape == (302, 100 + WIDTH, 3) and np.array_equal(first[:301, :99], BLACK)  # even, for MP4
    (full, low), (width, row) = bar(first, _OTHER), bar(first, _CHOSEN)
    assert width < full / 4 and row < low
    for q, chosen, other in (([3.0, 1.0], 1, 1 / 3), ([1.0, 1.0], 1 / 3, 1 / 3)):
        frame = panel.frame(Moment(BLACK, 1, 1.0, torch.tensor(q), torch.tensor(0)))
        assert abs(bar(frame, _CHOSEN)[0] - chosen * full) < 2 and abs(bar(frame, _OTHER)[0] - other * full) < 2


def test_a_continuous_action_has_a_bar_from_the_middle() -> None:
    panel = Panel("title", ())
    right, left, beyond = (panel.frame(Moment(BLACK, 0, 0.0, None, torch.tensor([a]))) for a in (0.5, -0.5, 9.0))
    columns = [np.flatnonzero((frame == np.array(_CHOSEN)).all(-1).any(0)) for frame in (right, left)]
    assert columns[1].max() - columns[0].max() < -20
    assert bar(beyond, _CHOSEN)[0] == pytest.approx(2 * bar(right, _CHOSEN)[0], abs=2)


def test_an_entropy_is_shown_and_the_last_state_has_no_choice() -> None:
    panel = Panel("title", ("up", "down"))
    frames = [panel.frame(Moment(BLACK, 3, 2.0, entropy=entropy)) for entropy in (None, 0.5, 0.6)]
    assert len({frame.tobytes() for frame in frames}) == 3 and bar(frames[0], _CHOSEN)[0] == 0
