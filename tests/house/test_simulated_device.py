"""GPU code without a GPU: on a simulated device, host synchronization or a tensor on the wrong device raises.

:mod:`simulated_device` registers "sim" with PyTorch's Python backend, which is for good, so the checks of
:mod:`simulated_updates` and :mod:`simulated_modules` run in a process of their own. Its tensors hold values
(``FakeTensorMode`` would hold none), so every result is compared with the CPU's. First the simulation is shown planted
mistakes, some caught by those who make them: reads (``.item()``, ``bool``, ``.tolist()``, ``.cpu()``, masks whose rows
are counted, ...), numbers and tensors copied there from ordinary memory, tensors left on the CPU. Then follow, with the
CPU's numbers:

- every loss, regularizer, shaping and head in the update step: forward, backward, clipping, fused Adam by itself and by
  ``OptimizerStep``, target updates, diagnostics switched on and off, weights, masks, n-step rows, learnt coefficients,
  and the sums that a log row reads. The host may wait for the first batch, whose values are checked;
- the batched step of several seeds, a learnt prior, coefficients assigned between updates;
- every actor, with and without TensorDicts, and the networks for images.

By design the host waits, and may do so here, for the first batch, in setting up, for a log row, and for
``torch.multinomial`` where a policy draws its action (the environment reads that next). TorchRL has it wait for
priorities, which lie in a tree on the CPU, and for its vectorized lambda-returns, which read where episodes end
(``make_value_estimator("tdlambda", vectorized=False)`` does not).

Cannot be simulated: how CUDA graphs repeat kernels, streams and pinned memory (a copy with ``non_blocking`` counts as
one that does not wait); kernels of inductor and Triton, and so ``run.compile``; autocast (``bf16``), whose rules
PyTorch has per device; generators on the device (random numbers are the CPU's); memory, rounding and nondeterminism of
CUDA's kernels; several devices; ``loss.to(device)`` of a loss built elsewhere, which gives parameters other memory;
what asks for CUDA by name (``is_cuda``): replay and stacked frames on a GPU, overlapped collection, generators of a
checkpoint. Waits inside CUDA's kernels are known by a list (``_SYNCHRONIZING``). Tree search and environments are left
out. For the rest there are the tests marked ``gpu``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no Python backend",
)
def test_no_update_waits_for_the_device_or_leaves_a_tensor_behind() -> None:
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "--tb=short", "-p", "no:cacheprovider"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command += [str(HERE / "simulated_updates.py"), str(HERE / "simulated_modules.py")]
    found = subprocess.run(command, cwd=HERE.parents[1], env=environ, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr[-2_000:]
    assert int(found.stdout.rsplit(" passed", 1)[0].split()[-1]) > 100
