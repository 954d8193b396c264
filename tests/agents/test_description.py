"""Descriptions of policies, read from anybody's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_reg.agents.description import built


@pytest.mark.parametrize("trusted", [[], ["os:system"]])
def test_no_file_has_a_command_run(tmp_path: Path, trusted: list[str]) -> None:
    """Not even one in a forged run folder, whose configuration names what may be imported."""
    said = {"call": "os:system", "args": [f"touch {tmp_path / 'run'}"], "kwargs": {}}
    with pytest.raises(ValueError, match="must name what says that a file may name it"):
        built(said, trusted=trusted)
    assert not (tmp_path / "run").exists()
