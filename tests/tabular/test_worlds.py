"""TabularMDP's validation, and the worlds it can be made from."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_reg.tabular import (
    TabularMDP,
    chain,
    gridworld,
    gridworld_cells,
    random_mdp,
    value_iteration,
)

STAY = torch.eye(2).unsqueeze(1).expand(2, 3, 2)  # S = 2, A = 3
ZERO = torch.zeros(2, 3)


def test_fields_are_float64_copies():
    r = torch.ones(2, 3)
    mdp = TabularMDP(STAY, r, 0.9)
    r.zero_()
    assert mdp.P.dtype == mdp.r.dtype == torch.float64
    assert mdp.r.sum() == 6 and (mdp.num_states, mdp.num_actions) == (2, 3)
    assert mdp.terminal.tolist() == [False, False]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((STAY[:, :, :1], ZERO, 0.9), r"P must have shape \[S, A, S\], got \[2, 3, 1\]"),
        ((STAY, ZERO.T, 0.9), r"r must have shape \[S, A\] = \[2, 3\], got \[3, 2\]"),
        ((STAY * 0.9, ZERO, 0.9), r"every P\[s, a\] must sum to 1, got a row that is off by 0.1"),
        ((STAY * 2 - 0.5, ZERO, 0.9), r"P must not be negative, got a smallest entry of -0.5"),
        ((STAY, ZERO + math.nan, 0.9), r"P and r must be finite"),
        ((STAY, ZERO, 1.0), r"gamma must be in \[0, 1\), got 1.0"),
        ((STAY, ZERO, -0.1), r"gamma must be in \[0, 1\), got -0.1"),
        ((STAY, ZERO, 0.9, torch.zeros(3, dtype=torch.bool)), r"terminal must be bool of shape"),
        ((STAY, ZERO, 0.9, torch.zeros(2)), r"terminal must be bool of shape"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TabularMDP(*fields)


def test_backup_by_hand():
    P = torch.tensor([[[0.25, 0.75]], [[1.0, 0.0]]])
    mdp = TabularMDP(P, torch.tensor([[1.0], [5.0]]), 0.5)
    v, bonus = torch.tensor([2.0, 4.0], dtype=torch.float64), torch.tensor([[-0.5], [0.0]])
    assert mdp.backup(v, bonus).tolist() == [[0.5 + 0.5 * 3.5], [5.0 + 0.5 * 2.0]]
    ending = TabularMDP(P, mdp.r, 0.5, torch.tensor([False, True]))
    assert ending.backup(v, bonus).tolist() == [[0.5 + 0.5 * 0.5], [0.0]]


def test_random_mdp_is_seeded_and_branches():
    one, same, other = (random_mdp(6, 3, 0.9, seed=seed, branching=2) for seed in (4, 4, 5))
    assert torch.equal(one.P, same.P) and torch.equal(one.r, same.r)
    assert not torch.equal(one.r, other.r)
    assert ((one.P > 0).sum(-1) == 2).all()
    assert (random_mdp(6, 3, 0.9, seed=4).P > 0).all()
    assert (random_mdp(6, 3, 0.9, seed=4, deterministic=True).P.amax(-1) == 1).all()
    assert (one.r >= -1).all() and (one.r < 1).all() and one.r.std() > 0.3


def test_bad_branching_is_refused():
    for branching in (0, 7):
        with pytest.raises(ValueError, match=r"branching must be in 1 to 6"):
            random_mdp(6, 3, 0.9, seed=0, branching=branching)
    with pytest.raises(ValueError, match=r"branching must be 1 or None if deterministic"):
        random_mdp(6, 3, 0.9, seed=0, branching=2, deterministic=True)


def test_chain():
    mdp = chain(4, 0.5, slip=0.2, goal_reward=2.0, step_reward=-1.0)
    assert mdp.P[1].tolist() == [[0.9, 0.0, 0.1, 0.0], [0.1, 0.0, 0.9, 0.0]]
    assert mdp.P[0, 0].tolist() == [0.9, 0.1, 0.0, 0.0]
    torch.testing.assert_close(mdp.r[2], torch.tensor([-0.7, 1.7], dtype=torch.float64))
    assert mdp.terminal.tolist() == [False, False, False, True]
    v = value_iteration(chain(5, 0.9)).v
    expected = torch.tensor([0.729, 0.81, 0.9, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(v, expected)


def test_gridworld_moves_walls_and_goal():
    layout = """
        ..G
        .#.
    """
    cells = gridworld_cells(layout)
    assert cells == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)]
    mdp = gridworld(layout, 0.9)
    moves = mdp.P.argmax(-1).tolist()
    assert moves[0] == [0, 1, 3, 0]  # up stays, right, down, left stays
    assert moves[1] == [1, 2, 1, 0]  # down is a wall
    assert moves[4] == [2, 4, 4, 4]  # left is a wall
    assert mdp.r[1].tolist() == [-1.0, 9.0, -1.0, -1.0] and mdp.r[4, 0] == 9.0
    assert mdp.terminal.tolist() == [False, False, True, False, False]
    v = value_iteration(mdp).v.tolist()
    assert v == pytest.approx([-1 + 0.9 * 9, 9.0, 0.0, -1 + 0.9 * (-1 + 0.9 * 9), 9.0])


def test_gridworld_slip_mixes_in_a_random_move():
    mdp = gridworld(["..G"], 0.9, slip=0.4)
    expected = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)  # up and down stay
    torch.testing.assert_close(mdp.P[1, 1], expected)
    assert mdp.r[1, 1].item() == pytest.approx(0.7 * 9 - 0.3)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (["..", "."], r"lines of equal length"),
        (["..S"], r"'#', '.' and 'G' only, got \['S'\]"),
        (["#G"], r"a free cell"),
    ],
)
def test_bad_layouts_are_refused(layout, message):
    with pytest.raises(ValueError, match=message):
        gridworld(layout, 0.9)


def test_bad_slip_and_length_are_refused():
    with pytest.raises(ValueError, match=r"slip must be in \[0, 1\], got 1.5"):
        gridworld(["..G"], 0.9, slip=1.5)
    with pytest.raises(ValueError, match=r"num_states must be at least 2, got 1"):
        chain(1, 0.9)
