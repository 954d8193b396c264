"""Known errors differ from each other in what they change, and each is explained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from torchrl_reg.testing.checks import transitions, values_for
from torchrl_reg.testing.claims import METHODS, made_claim
from torchrl_reg.testing.mistakes import KNOWN_ERRORS, hypotheses, mistakes_of
from torchrl_reg.testing.targets import Values

NUMBERS = {"tau": 0.5, "alpha": 0.6, "clip_min": -0.4, "gamma": 0.9}
KINDS = sorted({(value, bonus) for value, bonus, _ in METHODS.values()})


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("double", [False, True])
def test_no_two_mistakes_look_alike(kind: tuple[str, str], double: bool) -> None:
    """Their targets differ on the rows of a check by far more than its tolerance, those of one name apart."""
    claim = made_claim(*kind, NUMBERS | {"double": double})
    generator = torch.Generator().manual_seed(1)
    values = Values(values_for(claim, generator), values_for(claim, generator))
    rows, _ = transitions(generator, n_step=True)
    found = list(hypotheses(claim, mistakes_of(claim)))
    singles = [(names, target(rows, values)) for names, target in found if len(names) < 2]
    assert len(singles) > 5
    for i, (names, y) in enumerate(singles):
        for others, z in singles[:i]:
            assert names == others or (y - z).abs().max() > 1e-4, (names, others)


def test_every_mistake_has_an_entry() -> None:
    for kind in KINDS:
        claim = made_claim(*kind, NUMBERS)
        for made in (claim, replace(claim, double=True), replace(claim, actor=True)):
            assert {mistake.name for mistake in mistakes_of(made)} <= set(KNOWN_ERRORS)
