"""The published scores in the package, against numbers in the papers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from torchrl_reg.envs.mujoco import MUJOCO_GAMES as GAMES
from torchrl_reg.lab.analysis import human_normalized_score, normalized_score, published, sac_returns
from torchrl_reg.lab.analysis.published import published_table
from torchrl_reg.lab.errors import UserError


def test_neither_torch_nor_a_table_is_read_before_it_is_asked_for() -> None:
    code = (
        "import sys; sys.addaudithook(lambda event, a: event == 'open' and '/data/' in str(a[0]) and print(a[0]))\n"
        "import torchrl_reg.lab.analysis.report, torchrl_reg.lab.analysis.tables\n"
        "import torchrl_reg.lab.analysis.published as p\n"
        "print('torch' in sys.modules or 'gymnasium' in sys.modules, 'asked'); p.published_table('mirl')"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = shown.split("False asked\n")
    assert before == "" and after.strip().endswith("published.yaml")


def test_games_are_found_as_the_environments_spell_them() -> None:
    for game in ("SpaceInvaders", "space_invaders", "spaceinvaders"):
        assert human_normalized_score(game, [148.0, 1668.7]).tolist() == [0.0, 1.0]
    # Boxing: random .1, human 12.1
    np.testing.assert_allclose(human_normalized_score("Boxing", 91.6), (91.6 - 0.1) / 12.0)


def test_an_unknown_game_is_one_sentence_with_the_nearest() -> None:
    said = r"^game must be an Atari game with reference scores, got 'SpaceInvader'. Did you mean 'space_invaders'\?$"
    with pytest.raises(UserError, match=said):
        human_normalized_score("SpaceInvader", 1.0)


def test_the_shipped_tables_hold_the_papers_numbers() -> None:
    references = published.atari_reference_scores()
    assert len(references) == 57 and references["video_pinball"][0] == 16256.9
    assert all(human > random for random, human in references.values())
    mirl = published_table("mirl")
    columns = {name: [row[name] for row in mirl.scores.values()] for name in mirl.columns}
    means = {name: round(float(np.mean(each)), 2) for name, each in columns.items()}
    assert means == {"dqn": 356.26, "sql": 388.83, "mirl": 413.46}
    assert np.median(columns["mirl"]) == 330.19 and len(mirl.scores) == 19
    assert published_table("ments").row("space_invaders") == {"dqn": 625.0, "uct": 656.0, "ments": 1503.0}
    assert published_table("ments").row("Pong") is None
    assert all(set(anchors) < set(GAMES) for anchors in sac_returns().values())
    assert sac_returns()[3_200_000]["halfcheetah"] == 13570 and sac_returns()[1_000_000]["hopper"] == 2738.4


def test_every_game_of_the_tables_has_a_reference_and_is_an_ale_game() -> None:
    roms = {rom.replace("_", "") for rom in pytest.importorskip("ale_py.roms").get_all_rom_ids()}
    tables = [published_table(name) for name in published.published_names()]
    games = {game for table in tables if table.family == "atari" for game in table.scores}
    assert all(published.has_human_score(game) for game in games)
    assert {name.replace("_", "").lower() for name in games | set(published.atari_reference_scores())} <= roms


def test_random_is_zero_the_reference_is_one_and_nothing_is_clipped() -> None:
    assert normalized_score([-560.0, -60.0, 4940.0, 7440.0], -60.0, 4940.0).tolist() == [-0.1, 0.0, 1.0, 1.5]
    got = normalized_score(np.arange(6.0).reshape(2, 3), np.array([0.0, 1.0, 2.0]), np.array([[10.0], [20.0]]))
    np.testing.assert_allclose(got, [[0, 0, 0], [3 / 20, 3 / 19, 3 / 18]])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((1.0, [0.0, 4.0], 4.0), "got reference=4 with random=4."),
        ((np.nan, 0.0, 1.0), "score must be finite numbers, got nan."),
        ((1.0, 0.0, np.nan), "reference must be finite numbers, got nan."),
        (("high", 0.0, 1.0), "score must be finite numbers, got 'high'."),
        (([1.0, 2.0], [0.0, 0.0, 0.0], 1.0), "shapes that broadcast, got (2,), (3,) and ()."),
    ],
)
def test_bad_scores_end_in_one_sentence(arguments: tuple, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        normalized_score(*arguments)
    assert sentence in str(error.value) and "\n" not in str(error.value)
