"""Validation of TabularMDP, and the worlds in the package."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from torchrl_reg.tabular import TabularMDP, chain, gridworld, gridworld_cells, random_mdp, value_iteration

STAY = torch.eye(2).unsqueeze(1).expand(2, 3, 2)  # S = 2, A = 3
ZERO = torch.zeros(2, 3)


def test_fields_are_float64_copies():
    r = torch.ones(2, 3)
    mdp = TabularMDP(STAY, r, 0.9)
    r.zero_()
    assert mdp.P.dtype == mdp.r.dtype == torch.float64
    assert mdp.r.sum() == 6 and (mdp.num_states, mdp.num_actions) == (2, 3)
    assert mdp.terminal.tolist() == [False, False]


garnet = partial(random_mdp, 6, 3, 0.9, seed=4)
BAD = [
    (TabularMDP, (STAY[:, :, :1], ZERO, 0.9), {}, r"P must have shape \[S, A, S\], got \[2, 3, 1\]"),
    (TabularMDP, (STAY, ZERO.T, 0.9), {}, r"r must have shape \[S, A\] = \[2, 3\], got \[3, 2\]"),
    (TabularMDP, (STAY * 0.9, ZERO, 0.9), {}, r"every P\[s, a\] must sum to 1, got a row that is off by 0.1"),
    (TabularMDP, (STAY * 2 - 0.5, ZERO, 0.9), {}, "P must not be negative, got a smallest entry of -0.5"),
    (TabularMDP, (STAY, ZERO + math.nan, 0.9), {}, "P and r must be finite"),
    (TabularMDP, (STAY, ZERO, 1.0), {}, r"gamma must be in \[0, 1\), got 1.0"),
    (TabularMDP, (STAY, ZERO, -0.1), {}, r"gamma must be in \[0, 1\), got -0.1"),
    (TabularMDP, (STAY, ZERO, 0.9, torch.zeros(3, dtype=torch.bool)), {}, "terminal must be bool of shape"),
    (TabularMDP, (STAY, ZERO, 0.9, torch.zeros(2)), {}, "terminal must be bool of shape"),
    (garnet, (), {"branching": 0}, "branching must be in 1 to 6, got 0"),
    (garnet, (), {"branching": 7}, "branching must be in 1 to 6, got 7"),
    (garnet, (), {"branching": 2, "deterministic": True}, "branching must be 1 or None if deterministic, got 2"),
    (gridworld, (["..", "."], 0.9), {}, "lines of equal length"),
    (gridworld, (["..S"], 0.9), {}, r"'#', '.' and 'G' only, got \['S'\]"),
    (gridworld, (["#G"], 0.9), {}, "a free cell"),
    (gridworld, (["..G"], 0.9), {"slip": 1.5}, r"slip must be in \[0, 1\], got 1.5"),
    (chain, (1, 0.9), {}, "num_states must be at least 2, got 1"),
]


@pytest.mark.parametrize(("build", "arguments", "options", "sentence"), BAD)
def test_bad_arguments_are_refused(build, arguments, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(*arguments, **options)


def test_backup_by_hand():
    P = torch.tensor([[[0.25, 0.75]], [[1.0, 0.0]]])
    mdp = TabularMDP(P, torch.tensor([[1.0], [5.0]]), 0.5)
    v, bonus = torch.tensor([2.0, 4.0], dtype=torch.float64), torch.tensor([[-0.5], [0.0]])
    assert mdp.backup(v, bonus).tolist() == [[0.5 + 0.5 * 3.5], [5.0 + 0.5 * 2.0]]
    ending = TabularMDP(P, mdp.r, 0.5, torch.tensor([False, True]))
    assert ending.backup(v, bonus).tolist() == [[0.5 + 0.5 * 0.5], [0.0]]


def test_random_mdp_is_seeded_and_branches():
    one, same, other = garnet(branching=2), garnet(branching=2), random_mdp(6, 3, 0.9, seed=5)
    assert torch.equal(one.P, same.P) and torch.equal(one.r, same.r) and not torch.equal(one.r, other.r)
    assert ((one.P > 0).sum(-1) == 2).all() and (garnet().P > 0).all()
    assert (garnet(deterministic=True).P.amax(-1) == 1).all()
    assert (one.r >= -1).all() and (one.r < 1).all() and one.r.std() > 0.3


def test_chain():
    mdp = chain(4, 0.5, slip=0.2, goal_reward=2.0, step_reward=-1.0)
    assert mdp.P[1].tolist() == [[0.9, 0.0, 0.1, 0.0], [0.1, 0.0, 0.9, 0.0]]
    assert mdp.P[0, 0].tolist() == [0.9, 0.1, 0.0, 0.0]
    assert mdp.r[2].tolist() == pytest.approx([-0.7, 1.7])
    assert mdp.terminal.tolist() == [False, False, False, True]
    assert value_iteration(chain(5, 0.9)).v.tolist() == pytest.approx([0.729, 0.81, 0.9, 1.0, 0.0])


def test_gridworld_moves_walls_goal_and_slip():
    layout = """
        ..G
        .#.
    """
    assert gridworld_cells(layout) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)]
    mdp = gridworld(layout, 0.9)
    moves = mdp.P.argmax(-1).tolist()
    assert moves[0] == [0, 1, 3, 0]  # up stays, right, down, left stays
    assert moves[1] == [1, 2, 1, 0]  # down is a wall
    assert moves[4] == [2, 4, 4, 4]  # left is a wall
    assert mdp.r[1].tolist() == [-1.0, 9.0, -1.0, -1.0] and mdp.r[4, 0] == 9.0
    assert mdp.terminal.tolist() == [False, False, True, False, False]
    v = value_iteration(mdp).v.tolist()
    assert v == pytest.approx([-1 + 0.9 * 9, 9.0, 0.0, -1 + 0.9 * (-1 + 0.9 * 9), 9.0])
    slippery = gridworld(["..G"], 0.9, slip=0.4)
    assert slippery.P[1, 1].tolist() == pytest.approx([0.1, 0.2, 0.7])  # up and down stay
    assert slippery.r[1, 1].item() == pytest.approx(0.7 * 9 - 0.3)
