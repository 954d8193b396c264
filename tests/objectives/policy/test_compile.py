"""Every loss over a policy compiles into one graph, which coefficients and parameters that change do not recompile."""

from __future__ import annotations

from typing import Any

import pytest
import torch

#: One compiles in every run, ``-m slow`` the others.
COMPILED_SLOWLY = ("trust_pcl", "m_iq_flow", "m_iq_ragged", "m_iq_categorical", "m_iq_gaussian", "m_iq_residual")
COMPILED_SLOWLY += ("trust_pcl_gaussian", "trust_pcl_unified")
COMPILED: list[Any] = ["m_iq", *[pytest.param(name, marks=pytest.mark.slow) for name in COMPILED_SLOWLY]]


def value(loss: Any, data: Any) -> torch.Tensor:
    torch.manual_seed(3)  # the KL of a flow is estimated from a sample
    return loss(data)["loss"]


@pytest.mark.parametrize("name", COMPILED)
def test_compile_without_break_or_recompilation(cases: Any, name: str) -> None:
    case = cases[name]
    torch._dynamo.reset()
    torch.distributions.kl._KL_MEMOIZE.clear()  # what ran before must not help
    loss = case.loss()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2, 3):
            got = value(compiled, case.batch(9, seed=seed))
            torch.testing.assert_close(got, value(loss, case.batch(9, seed=seed)))
            got.backward()
            for name in loss._coefficients():
                if name != "clip_min" and case.kwargs.get(name):
                    setattr(loss, name, 0.3 + 0.1 * seed)
            with torch.no_grad():
                for p in loss.parameters():
                    p.mul_(0.9)
