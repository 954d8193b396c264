"""Every loss compiles into one graph, which coefficients and parameters that change do not recompile."""

from __future__ import annotations

from typing import Any

import pytest
import torch

#: One of each head, and a prior: every run compiles these with diagnostics, ``-m slow`` the others.
COMPILED = ["m_dqn", "mirl", "m_iqn", "m_c51", "qr_double"]
COMPILED_SLOWLY = ["soft_dqn", "al", "pal", "iqn", "iqn_double", "iqn_reuse", "m_iqn_reuse", "mi_iqn", "mi_iqn_reuse"]
COMPILED_SLOWLY += ["c51", "qr", "sparse", "soft_double", "m_iqn_shared"]


def test_every_case_is_compiled(cases: Any) -> None:
    assert set(COMPILED) | set(COMPILED_SLOWLY) == set(cases)


@pytest.mark.parametrize(
    ("case", "diagnostics"),
    [
        *[(name, True) for name in COMPILED],
        ("m_dqn", False),
        *[pytest.param(name, True, marks=pytest.mark.slow) for name in COMPILED_SLOWLY],
        *[pytest.param(name, False, marks=pytest.mark.slow) for name in COMPILED_SLOWLY if "iqn" not in name],
    ],
    indirect=["case"],
)
def test_compile_without_break_or_recompilation(case: Any, batch: Any, diagnostics: bool) -> None:
    torch._dynamo.reset()
    loss = case.loss(diagnostics=diagnostics)
    if case.quantile:
        loss.head.fractions = lambda f, n: ((torch.arange(n) + 0.3) / n).expand(*f.shape[:-1], n)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2, 3):
            torch.testing.assert_close(compiled(batch(9, seed=seed))["loss"], loss(batch(9, seed=seed))["loss"])
            if "tau" in case.kwargs:
                loss.tau = 0.3 + 0.1 * seed
            if "beta" in case.kwargs:
                loss.beta = 1.0 + seed
                loss.prior.assign(torch.tensor([0.2, 0.3, 0.5]))
            with torch.no_grad():
                for p in loss.parameters():
                    p.mul_(0.9)
