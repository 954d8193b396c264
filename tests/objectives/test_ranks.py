"""Two ranks of a process group with half of a batch each do what one process does with the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

CHILD = Path(__file__).with_name("ranks_child.py")


def test_gradients_and_coefficients_of_two_ranks_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    jobs = [(0, 1), (0, 2), (1, 2)]
    files = [tmp_path / f"{rank}_of_{world}.pt" for rank, world in jobs]
    words = [[*map(str, job), str(tmp_path / "store"), str(file)] for job, file in zip(jobs, files, strict=True)]
    children = [
        subprocess.Popen([sys.executable, str(CHILD), *each], stderr=subprocess.PIPE, text=True) for each in words
    ]
    errors = [child.communicate(timeout=300)[1] for child in children]
    assert not any(child.returncode for child in children), errors[0] or errors[1]
    alone, *ranks = [torch.load(file) for file in files]
    for rank in ranks:
        for found, expected in zip(rank, alone, strict=True):
            assert found.keys() == expected.keys() and len(expected) > 10
            for name, tensor in expected.items():
                torch.testing.assert_close(
                    found[name], tensor, rtol=1e-9, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
                )
