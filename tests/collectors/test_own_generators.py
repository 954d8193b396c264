"""Separate generators draw the same numbers as the global ones."""

from __future__ import annotations

import pytest
import torch

from torchrl_reg.collectors.own_generators import OwnGenerators

DRAWS = {
    "rand": lambda: torch.rand(3),
    "randn": lambda: torch.randn(3, dtype=torch.float64),
    "randint": lambda: torch.randint(5, (4,)),
    "randint from": lambda: torch.randint(2, 9, (4,)),
    "randperm": lambda: torch.randperm(6),
    "normal": lambda: torch.normal(torch.zeros(3), torch.ones(3)),
    "multinomial": lambda: torch.multinomial(torch.tensor([0.2, 0.8]), 5, replacement=True),
    "bernoulli": lambda: torch.bernoulli(torch.full((7,), 0.3)),
    "in place": lambda: torch.empty(3).uniform_() + torch.empty(3).exponential_() + torch.empty(3).normal_(),
    "categorical": lambda: torch.distributions.Categorical(logits=torch.zeros(4)).sample((3,)),
    "gaussian": lambda: torch.distributions.Normal(torch.zeros(3), 1.0).rsample(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_own_generators_draw_the_same_numbers_before_and_after_a_checkpoint(name: str) -> None:
    torch.manual_seed(11)
    before, expected = torch.get_rng_state(), [DRAWS[name]() for _ in range(2)]
    torch.set_rng_state(before)
    mode, resumed = OwnGenerators(seed=11), OwnGenerators(seed=0)
    with mode:
        first = DRAWS[name]()
    resumed.load_state_dict(mode.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    with resumed:
        torch.testing.assert_close([first, DRAWS[name]()], expected, rtol=0, atol=0)


def test_a_given_generator_stays_and_what_takes_none_is_refused() -> None:
    with OwnGenerators(seed=1):
        drawn = torch.rand(3, generator=torch.Generator().manual_seed(4))
        with pytest.raises(NotImplementedError, match="take a generator"):
            torch.native_dropout(torch.ones(3), 0.5, True)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(4)))
