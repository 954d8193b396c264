"""The two tables and their markup, on runs whose numbers are known."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
import pytest

from torchrl_reg.lab.analysis import Group
from torchrl_reg.lab.analysis.scores import Scores
from torchrl_reg.lab.analysis.statistics import AGGREGATES, Estimate
from torchrl_reg.lab.analysis.tables import (
    Row,
    Table,
    aggregate_table,
    differences,
    environment_table,
    latex,
    markdown,
    tidy_csv,
    warnings,
)


def scores_of(method: str, env: str, values: Sequence[float]) -> Scores:
    return Scores(Group(method, method, env, {}, ()), np.array(values, float), (1000,) * len(values))


# Pong: random -20.7, human 14.6; Boxing: .1, 12.1
ATARI = [
    scores_of("a", "atari/Boxing", [12.1, 24.1]),  # 1 and 2
    scores_of("b", "atari/Boxing", [0.1, 12.1]),  # 0 and 1
    scores_of("a", "atari/Pong", [-20.7, 14.6]),  # 0 and 1
    scores_of("b", "atari/Pong", [-20.7, 14.6]),
]


def test_an_environments_rows() -> None:
    table = environment_table(ATARI, scale="human", baseline="b", published="mirl")
    assert table.columns == (
        "mean",
        "human-normalized",
        "minus b",
        "verdict",
        "dqn (mirl)",
        "sql (mirl)",
        "mirl (mirl)",
    )
    boxing = table.rows[0]
    assert (boxing.env, boxing.method, boxing.runs, boxing.frames) == ("atari/Boxing", "a", 2, "1k")
    half = 12.7062 * 6  # t at .975 with one degree of freedom, times the standard error
    assert boxing.numbers["mean"] == pytest.approx((18.1, 18.1 - half, 18.1 + half), rel=1e-4)
    assert boxing.numbers["human-normalized"].value == pytest.approx(1.5)
    half = 4.3027 * 72**0.5  # two degrees of freedom, 6^2 + 6^2
    assert boxing.numbers["minus b"] == pytest.approx((12, 12 - half, 12 + half), rel=1e-4)
    assert boxing.words["verdict"] == "undecided (9 seeds would decide)"
    assert boxing.numbers["mirl (mirl)"] == pytest.approx(23.3889)
    assert "minus b" not in table.rows[1].numbers and "mirl (mirl)" not in table.rows[2].numbers
    assert any("Mnih et al. (2015)" in note for note in table.notes)


def test_sac_beside_ours_and_single_runs_without_an_interval() -> None:
    ours = [scores_of("virel", "mujoco/hopper", [1.0, 2.0]), scores_of("virel", "pendulum", [2.0])]
    hopper, pendulum = environment_table(ours, published="sac").rows
    assert hopper.numbers["SAC 20k (sac)"] == 365.4 and hopper.numbers["SAC 100k (sac)"] == 2337.2
    assert pendulum.numbers == {"mean": 2.0}


def test_aggregates_by_hand() -> None:
    a, b = aggregate_table(ATARI, scale="human", baseline="b").rows
    assert a.numbers == pytest.approx(  # four runs: no intervals
        # runs 1 2 0 1; task means 1.5 and .5; P: (.875 + .5) / 2
        {"IQM": 1.0, "median": 1.0, "mean": 1.0, "optimality gap": 0.25, "P(> b)": 0.6875}
    )
    assert a.runs == 4 and "P(> b)" not in b.numbers and b.numbers["optimality gap"] == pytest.approx(0.5)


def test_without_a_scale_only_the_probability_of_improvement_is_averaged() -> None:
    scores = [scores_of("a", "x", [2.0, 3.0]), scores_of("b", "x", [1.0]), *ATARI[2:]]
    assert aggregate_table(scores, scale="none") is None
    table = aggregate_table(scores, scale="none", baseline="b")
    assert table.columns == ("P(> b)",) and table.rows[0].numbers["P(> b)"] == pytest.approx(0.75)
    assert aggregate_table(scores[:2], scale="none", baseline="b") is None  # one environment: the same as its own table


def test_a_method_that_lacks_an_environment_is_in_no_aggregate_and_said_so() -> None:
    scores = ATARI[:3]
    # A baseline that lacks one leaves its column out, not the table.
    (a,) = aggregate_table(scores, scale="human", baseline="b").rows
    assert a.method == "a" and a.numbers.keys() == AGGREGATES.keys()
    assert warnings([], scores, baseline="b") == [
        "b is in no aggregate, as it lacks atari/Pong",
        "there is no P(> b) over all environments, as b lacks some",
    ]
    assert aggregate_table(scores, scale="none", baseline="b") is None
    assert warnings([], scores, baseline="b", averaged=False) == []


def test_games_without_a_human_score_are_in_no_average_but_in_the_table() -> None:
    airraid = [scores_of("a", "atari/AirRaid", [500.0]), scores_of("c", "atari/AirRaid", [1.0])]
    with_it, without = (aggregate_table(each, scale="human", baseline="b") for each in ([*ATARI, *airraid], ATARI))
    assert with_it == without
    rows = environment_table([*ATARI, *airraid], scale="human").rows[-2:]
    found = [(row.env, row.method, "human-normalized" in row.numbers) for row in rows]
    assert found == [("atari/AirRaid", "a", False), ("atari/AirRaid", "c", False)]
    said = "1 of 3 games has no human score: AirRaid; averages over environments leave it out"
    assert warnings([], [*ATARI, *airraid], scale="human") == [said]


def test_aggregates_of_25_runs_have_intervals() -> None:
    values = np.linspace(0.1, 24.1, 13)
    many = [scores_of(method, f"atari/{game}", values - 20) for method in "ab" for game in ("Boxing", "Pong")]
    for sizes, kind in ((13, Estimate), (12, float)):
        cut = [Scores(each.group, each.values[:sizes], each.frames[:sizes]) for each in many]
        a, _ = aggregate_table(cut, scale="human", baseline="b").rows
        assert isinstance(a.numbers["IQM"], kind) and isinstance(a.numbers["P(> b)"], Estimate)  # 48 and 52 runs


def test_at_a_cap_shares_are_compared_instead_of_means() -> None:
    ours, theirs = [500.0] * 9 + [260.0], [500.0] * 2 + [180.0] * 8
    table = environment_table([scores_of("a", "cartpole", ours), scores_of("b", "cartpole", theirs)], baseline="b")
    a, b = table.rows
    assert (a.numbers["mean"], a.words["at 500"]) == (476.0, "9 of 10 [0.55, 1.00]")
    assert (a.numbers["minus b"], a.words["verdict"]) == (232.0, "above")  # Fisher: p = .0055
    assert b.words == {"at 500": "2 of 10 [0.03, 0.56]"}
    few = environment_table(
        [scores_of("a", "cartpole", ours[5:]), scores_of("b", "cartpole", theirs[:5])], baseline="b"
    )
    assert few.rows[0].words["verdict"] == "undecided"


TABLE = Table(
    "t_1",
    (
        Row("atari/Pong", "m_dqn a|b", 2, "1k", "abc", {"mean": Estimate(1.0, -0.001, 20.0), "P(> dqn)": 0.5}),
        Row("atari/Pong", "dqn", 3, "1k", "abc", {"mean": 5.0}),
    ),
    ("mean", "P(> dqn)"),
    ("A note.",),
)


def test_a_verdict_at_a_cap_has_the_direction_of_the_shares() -> None:
    """The mean of the method is higher, but no seed of it reaches the cap, and 19 of 20 of the baseline do."""
    found = differences("cartpole", {"m": np.full(20, 490.0)}, np.array([500.0] * 19 + [0.0]))
    assert found == {"m": (15.0, "below")}


def test_markdown() -> None:
    assert markdown([TABLE]) == (
        "**t_1**\n\n"
        "| env | method | seeds | frames | mean | P(> dqn) | commits |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| atari/Pong | m_dqn a\\|b | 2 | 1k | 1.0 [0.0, 20.0] | 0.50 | abc |\n"
        "| atari/Pong | dqn | 3 | 1k | 5.00 |  | abc |\n\n"
        "A note.\n"
    )


def test_latex() -> None:
    text = latex([TABLE])
    assert "\\begin{tabular}{llrrrrr}\n\\toprule\nenv & method" in text
    assert "atari/Pong & m\\_dqn a|b & 2 & 1k & 1.0 [0.0, 20.0] & 0.50 & abc \\\\\n" in text
    assert "P($>$ dqn)" in text and text.endswith("\\bottomrule\n\\end{tabular}\n") and "% A note.\n" in text


def test_csv_is_tidy_and_unrounded() -> None:
    rows = list(csv.DictReader(io.StringIO(tidy_csv([TABLE, TABLE]))))
    assert len(rows) == 6 and rows[0]["low"] == "-0.001" and rows[0]["statistic"] == "mean"
    assert (rows[1]["value"], rows[1]["low"], rows[2]["method"]) == ("0.5", "", "dqn")
