"""Speed of eight seeds in one process: steps/s of all together, compared with those of one."""

from __future__ import annotations

from tests.benchmarks.cartpole import STARTS, ours
from tests.benchmarks.measure import Table, main
from tests.benchmarks.scripts import Size


def table(frames: int = 6_000, device: str = "cpu") -> Table:
    """Steps/s on CartPole of eight seeds trained together (``run.seeds``), and of one alone."""
    size = Size(frames, STARTS, every=4, batch=32, device=device)
    cases = {"recipes/m_dqn.py, one seed": ours(size, 8)}
    cases["eight seeds together, run.seeds"] = ours(size, 8, seeds=8)
    cases["the same compiled"] = ours(size, 8, seeds=8, compile=True)
    return Table("CartPole, 1 update per 4 frames, batch 32, 8 environments a seed", "steps/s", cases)


if __name__ == "__main__":
    main(table)
