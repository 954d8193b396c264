"""Sweeps of the tests: launched like a user's, on a throwaway cluster where a test is marked ``slurm``.

``.ci/slurm_start`` brings such a cluster up in seconds. Without one these tests are skipped; with ``REQUIRE_SLURM=1``
they fail, so that CI cannot skip them silently.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from sweep_harness import Sweep, has_cluster  # noqa: E402


@pytest.fixture
def local_sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path, "here", ("sweep=naps", "cluster=local"))


@pytest.fixture(scope="session")
def cluster() -> None:
    if has_cluster():
        return
    message = "no SLURM here: sudo .ci/slurm_start brings one up"
    if os.environ.get("REQUIRE_SLURM") == "1":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture
def sweep(cluster: None, tmp_path: Path) -> Iterator[Sweep]:
    """Four runs of naps on the cluster; what is left of it afterwards is cancelled."""
    tmp_path.chmod(0o755)
    name = f"t{uuid.uuid4().hex[:10]}"
    yield Sweep(tmp_path, name, ("sweep=naps", "cluster=slurm", "cluster.minutes=10", "check=false"))
    subprocess.run(["scancel", "-n", name], timeout=30)
