"""The data that comes with the package, against numbers known from the papers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from torchrl_reg.analysis import (
    SAC_ANCHORS,
    AnalysisError,
    NormalizedScores,
    human_normalized_score,
    normalized_score,
    sac_normalized_scores,
)
from torchrl_reg.analysis.published import atari_reference_scores, published_names, published_table
from torchrl_reg.envs.mujoco import GAMES


def test_no_table_is_read_before_it_is_asked_for() -> None:
    code = (
        "import sys; sys.addaudithook(lambda event, a: event == 'open' and '/data/' in str(a[0]) and print(a[0]))\n"
        "import torchrl_reg.analysis.report, torchrl_reg.analysis.tables, torchrl_reg.analysis.published as p\n"
        "print('asked'); p.published_names()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = shown.split("asked\n")
    assert before == "" and after.strip().endswith("published.json")


def test_games_are_found_as_the_environments_spell_them() -> None:
    for game in ("SpaceInvaders", "space_invaders", "spaceinvaders"):
        assert human_normalized_score(game, [148.0, 1668.7]).tolist() == [0.0, 1.0]
    # Boxing: random .1, human 12.1
    np.testing.assert_allclose(human_normalized_score("Boxing", 91.6), (91.6 - 0.1) / 12.0)


def test_an_unknown_game_is_one_sentence_with_the_nearest() -> None:
    with pytest.raises(AnalysisError) as error:
        human_normalized_score("SpaceInvader", 1.0)
    assert str(error.value) == (
        "game must be an Atari game with reference scores, got 'SpaceInvader'. Did you mean 'space_invaders'?"
    )
    with pytest.raises(AnalysisError, match="got 'AirRaid'"):
        human_normalized_score("AirRaid", 1.0)


def test_reference_scores_are_of_57_games_and_those_of_the_issue() -> None:
    references = atari_reference_scores()
    assert len(references) == 57 and references["video_pinball"][0] == 16256.9
    assert all(human > random for random, human in references.values())


def test_published_tables_reproduce_the_papers_summaries() -> None:
    mirl = published_table("mirl")
    columns = {name: np.array([row[name] for row in mirl.scores.values()]) for name in mirl.columns}
    assert {name: round(float(each.mean()), 2) for name, each in columns.items()} == {
        "dqn": 356.26, "sql": 388.83, "mirl": 413.46}  # fmt: skip
    assert np.median(columns["mirl"]) == 330.19 and len(mirl.scores) == 19
    assert published_table("ments").of("space_invaders") == {"dqn": 625.0, "uct": 656.0, "ments": 1503.0}
    assert published_table("ments").of("Pong") is None
    with pytest.raises(AnalysisError, match=f"must be one of {', '.join(published_names())}, got 'rainbow'"):
        published_table("rainbow")


def test_every_game_of_the_tables_has_a_reference_and_is_an_ale_game() -> None:
    roms = pytest.importorskip("ale_py.roms").get_all_rom_ids()
    tables = [published_table(name) for name in published_names() if published_table(name).family == "atari"]
    for table in tables:
        for game in table.scores:
            human_normalized_score(game, 1.0)
            assert any(rom.replace("_", "") == game.lower() for rom in roms)
    ids = {rom.replace("_", "") for rom in roms}
    assert {name.replace("_", "") for name in atari_reference_scores()} <= ids


RANDOM = {"hopper": 18.0, "ant": -60.0, "humanoid": 120.0}
SAC = {"hopper": 3018.0, "ant": 4940.0, "humanoid": 6120.0}


def test_random_is_zero_and_the_reference_is_one() -> None:
    assert normalized_score(-60.0, -60.0, 4940.0) == 0
    assert normalized_score(4940.0, -60.0, 4940.0) == 1
    # below random is negative, above the reference more than one: nothing is clipped
    assert normalized_score([-560.0, 7440.0], -60.0, 4940.0).tolist() == [-0.1, 1.5]


def test_arrays_broadcast() -> None:
    got = normalized_score(np.arange(6.0).reshape(2, 3), np.array([0.0, 1.0, 2.0]), np.array([[10.0], [20.0]]))
    np.testing.assert_allclose(got, [[0, 0, 0], [3 / 20, 3 / 19, 3 / 18]])
    assert normalized_score([], 0, 1).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((1.0, [0.0, 4.0], 4.0), "got reference=4 with random=4."),
        ((float("nan"), 0.0, 1.0), "score must be finite numbers, got nan."),
        ((1.0, float("-inf"), 1.0), "random must be finite numbers, got -inf."),
        ((1.0, 0.0, float("nan")), "reference must be finite numbers, got nan."),
        (("high", 0.0, 1.0), "score must be finite numbers, got 'high'."),
        (([1.0, 2.0], [0.0, 0.0, 0.0], 1.0), r"shapes that broadcast, got (2,), (3,) and ()."),
    ],
)
def test_bad_scores_end_in_one_sentence(arguments: tuple, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        normalized_score(*arguments)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_percent_over_seeds_and_tasks() -> None:
    scores = {"ant": [4940.0, 2440.0, -60.0], "hopper": np.array([3018.0, 6018.0]), "humanoid": 1320.0}
    got = sac_normalized_scores(scores, RANDOM, SAC)
    assert isinstance(got, NormalizedScores)
    assert got.per_task == pytest.approx({"ant": 50.0, "hopper": 150.0, "humanoid": 20.0})
    assert got.median == pytest.approx(50.0) and got.mean == pytest.approx(220 / 3)
    assert list(got.per_task) == list(scores)


@pytest.mark.parametrize(
    ("scores", "random", "sac", "sentence"),
    [
        ({}, RANDOM, SAC, "scores must name at least one task, got none."),
        ({"swimmer": 1.0, "ant": 1.0}, RANDOM, SAC, "random must hold every task of scores, got none for swimmer;"),
        ({"ant": 1.0}, RANDOM, {"hopper": 1.0}, "sac must hold every task of scores, got none for ant; it has hopper."),
        ({"ant": []}, RANDOM, SAC, "scores['ant'] must be one return per seed, got an array of shape (0,)."),
        ({"ant": [[1.0, 2.0]]}, RANDOM, SAC, "scores['ant'] must be one return per seed, got an array of shape (1, 2)"),
        ({"ant": [1.0, float("nan")]}, RANDOM, SAC, "scores['ant'] must be finite numbers, got nan."),
        ({"ant": 1.0}, {"ant": 9.0}, {"ant": 9.0}, "sac['ant'] must be above random['ant'], got 9 with random 9."),
        ({"ant": 1.0}, {"ant": float("nan")}, SAC, "random['ant'] must be finite numbers, got nan."),
        ({"ant": 1.0}, {"ant": [1.0]}, SAC, "random['ant'] and sac['ant'] must be single numbers"),
    ],
)
def test_bad_tables_end_in_one_sentence(scores: dict, random: dict, sac: dict, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        sac_normalized_scores(scores, random, sac)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_anchors_are_named_like_the_environments_and_cannot_be_changed() -> None:
    assert all(set(anchors) < set(GAMES) for anchors in SAC_ANCHORS.values())
    assert SAC_ANCHORS[3_200_000]["halfcheetah"] == 13570 and SAC_ANCHORS[1_000_000]["hopper"] == 2738
    scores = sac_normalized_scores(
        SAC_ANCHORS[3_200_000], dict.fromkeys(SAC_ANCHORS[3_200_000], 0.0), SAC_ANCHORS[3_200_000]
    )
    assert scores.mean == scores.median == 100
    with pytest.raises(TypeError):
        SAC_ANCHORS[3_200_000]["hopper"] = 1.0  # type: ignore[index]


def test_torch_is_not_imported() -> None:
    code = "import sys, torchrl_reg.analysis; assert 'torch' not in sys.modules and 'gymnasium' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
