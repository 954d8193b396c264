"""The data that comes with the package, against numbers known from the papers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from torchrl_reg.analysis import AnalysisError, human_normalized_score
from torchrl_reg.analysis.published import atari_reference_scores, published_names, published_table


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
