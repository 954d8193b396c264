from __future__ import annotations

import numpy as np

from torchrl_reg.analysis.terminal_plot import braille_plot


def test_a_rising_line_in_braille() -> None:
    rows, limits = braille_plot([(np.array([0.0, 3.0]), np.array([0.0, 3.0]))], width=2, height=1)
    assert limits == (0, 3, 0, 3)
    # Dots (3, 0), (2, 1) in the left character and (1, 0), (0, 1) in the right one.
    assert rows == [[(chr(0x2800 + 0x40 + 0x20), 0), (chr(0x2800 + 0x02 + 0x08), 0)]]
