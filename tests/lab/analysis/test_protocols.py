"""Comparison of run folders with published scores: equal protocols, and each possible difference."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torchrl_reg.lab.analysis import find_runs, group_runs
from torchrl_reg.lab.analysis.inference import power_of_equality
from torchrl_reg.lab.analysis.protocols import Gap, Published, gap, gaps, protocol_table, published_scores
from torchrl_reg.lab.analysis.published import published_file
from torchrl_reg.lab.analysis.tables import markdown, tidy_csv
from torchrl_reg.lab.commands.main import main
from torchrl_reg.lab.errors import UserError

Seeds = Callable[..., Path]


def one(name: str, env: str, frames: int | None = None) -> Published:
    (found,) = [p for p in published_scores() if (p.name, p.env, frames or p.frames) == (name, env, p.frames)]
    return found


DQN, PQN = one("CleanRL dqn.py", "cartpole"), one("CleanRL pqn.py", "cartpole")
MILLION = one("Young & Tian DQN", "minatar/breakout", 1_000_000)
HOPPER = one("Dopamine SAC", "mujoco/hopper", 100_000)
METRIC = "metric greedy evaluation, not last 100 training episodes"


@pytest.fixture
def seeds(make_run: Callable[..., Path], tmp_path: Path) -> Seeds:
    """Finished runs with the protocol of ``published`` but for ``settings``; one a training return."""

    def make(published: Published = DQN, returns=(480.0, 490.0, 500.0), **settings: Any) -> Path:
        frames, column = settings.pop("frames", published.frames), settings.pop("column", published.column)
        every = settings.pop("rows", published.every or 5000)
        theirs = {key.replace(".", "__"): value for key, value in published.settings.items()}
        settings = {
            "env": published.env,
            "recipe": published.method,
            "algo__total_frames": frames,
            **theirs,
            **settings,
        }
        settings = {key: value for key, value in settings.items() if value != "gone"}
        for seed, value in enumerate(returns):
            rows = [{"event": "train", "frames": f, column: v} for f, v in ((frames - every, 1.0), (frames, value))]
            more = {"seed": seed, "train": rows, "every": frames // 2}
            make_run(f"{published.method}/seed={seed}", [1.0, 77.0 + seed], **more, **settings)
        return tmp_path

    return make


def gap_of(folder: Path, published: Published = DQN, column: str | None = None) -> Gap:
    (group,) = group_runs(find_runs(folder))
    return gap(group, published, column)


def test_the_same_protocol_stands_beside(seeds: Seeds) -> None:
    found = gap_of(seeds())
    assert (found.differs, found.column, found.ours.value) == ((), "return_last_100", 490.0)
    # Welch: sqrt((10^2 + 16.11^2) / 3), 3.34 degrees of freedom
    line = "| CleanRL dqn.py: 488.69 ± 16.11 (sd, 3 seeds) | last 100 training episodes | 490 [465, 515] | +1.31"
    text = markdown([protocol_table([found])])
    assert line in text and "CleanRL dqn.py: vwxyzjn/cleanrl fe8d8a0" in text


JAX = one("CleanRL dqn_jax.py", "cartpole")


@pytest.mark.parametrize(
    ("published", "returns", "word"),
    [
        (
            DQN,
            (490.0,) * 5 + (491.0,) * 5,
            "undecided",
        ),  # so near, but the published three vary by more than the margin
        (DQN, (400.0, 410.0, 420.0), "below"),
        (JAX, (495.0, 497.0, 499.0, 493.0), "equal"),
        (JAX, (450.0, 455.0, 460.0, 452.0), "below"),
        (JAX, (480.0,), "undecided"),  # one seed has no deviation
        (one("CleanRL pqn.py", "mountaincar"), (-200.0, -200.0), "equal"),
    ],
)
def test_a_gap_differs_is_equal_or_undecided(seeds: Seeds, published: Published, returns, word: str) -> None:
    found = gap_of(seeds(published, returns), published)
    assert found.verdict.word == word
    assert found.difference.value == pytest.approx(sum(returns) / len(returns) - published.mean)


def test_margins_stand_with_the_power_that_they_have() -> None:
    """Of equal agents, our seeds as planned beside the published ones; the file states it."""
    stated = [row for row in published_file()["scores"] if "margin" in row]
    assert len(stated) >= 20
    for row in stated[::5]:
        found = power_of_equality(row["margin"] / max(row["spread"], 1e-9), row["ours"], row["seeds"])
        assert found == pytest.approx(row["power"], abs=0.006), row


@pytest.mark.parametrize(
    ("published", "change", "differs"),
    [
        (DQN, {"frames": 100_000}, "frames 100k, not 500k"),
        (DQN, {"frames": 497_000}, "frames 497k, not 500k"),
        (PQN, {"frames": 499_712}, None),  # near enough where a rollout is longer
        (DQN, {"algo__eps_end": 0.01}, "eps_end 0.01, not 0.05"),
        (DQN, {"algo__eps_starts_frames": None}, "eps_starts_frames null, not 0"),
        (DQN, {"env__max_episode_frames": 200}, "max_episode_frames 200, not 500"),
        (DQN, {"net__num_cells": [64]}, "num_cells [64], not [120,84]"),
        (DQN, {"shaping__name": "munchausen"}, "shaping munchausen, not none"),
        (DQN, {"algo__loss_function": "gone"}, "loss_function not recorded, not l2"),
        (DQN, {"algo__priority_exponent": 0.5}, "priority_exponent 0.5, not 0"),  # no row there has it
        (DQN, {"net__noise_sigma": 0.5}, "noise_sigma 0.5, not 0"),
        (DQN, {"algo__eps_decay": "exponential"}, "eps_decay exponential, not linear"),
        (PQN, {"net__dueling": "mean"}, "dueling mean, not none"),
        (PQN, {"net__input_low": [-1.0]}, "input_low [-1], not []"),
        (HOPPER, {"algo__learning_rate": 0.001}, "learning_rate 0.001, not 0.0003"),
        (DQN, {"column": "loss"}, METRIC),
        (MILLION, {"env__max_episode_frames": 10_000}, "max_episode_frames 10000, not null"),
        (MILLION, {"env__max_episode_frames": 1_000_000}, None),  # no run reaches it
        (HOPPER, {"algo__reward_scale": 1.0}, "reward_scale 1, not 0.1"),
        (HOPPER, {"rows": 5_000}, "frames between rows 5000, not 1000"),  # returns since the row before
    ],
)
def test_another_protocol_says_what_differs(seeds: Seeds, published: Published, change: dict, differs) -> None:
    found = gap_of(seeds(published, **change), published)
    assert found.differs == (() if differs is None else (differs,))
    if differs is not None:
        (row,) = protocol_table([found]).rows
        assert found.difference is None and found.verdict is None
        assert row.words["published"] == published.name and row.words["gap"] == f"differs: {differs}"
        assert set(row.numbers) == {"ours"}, "a published number stands nowhere"


def test_the_metric_asked_for_and_another_method_differ(seeds: Seeds) -> None:
    folder = seeds()
    found = gap_of(folder, column="return_greedy_mean")
    assert (found.ours.value, found.differs) == (78.0, (METRIC,))
    differs = gap_of(folder, one("CleanRL c51.py", "acrobot")).differs
    assert differs[:2] == ("method dqn, not c51", "environment cartpole, not acrobot")
    assert "num_atoms not recorded, not 101" in differs and "adam_eps 1e-08, not 7.8125e-05" in differs


def test_of_several_lengths_the_one_that_ours_has(seeds: Seeds) -> None:
    (found,) = gaps(group_runs(find_runs(seeds(MILLION, (9.0, 9.5)))))
    assert found.published is MILLION and not found.differs


def test_every_source_has_a_row_and_so_has_what_nobody_published(seeds: Seeds, make_run, tmp_path, capsys) -> None:
    (seeds(returns=(500.0, 500.0, 500.0)) / "dqn/seed=2/done.json").unlink()
    train = [{"event": "train", "frames": 60, "return_last_100": 321.0}]
    make_run("m_dqn/seed=0", train=train), make_run("m_dqn/seed=1", train=train, seed=1, done=False)
    assert main(["table", str(tmp_path), "--published"]) == 0
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("| cartpole")]
    sources = [line.split(" | ")[4].partition(" ± ")[0] for line in lines]
    assert sources == ["CleanRL dqn.py: 488.69", "CleanRL dqn_jax.py: 498.38", ""]
    assert " | 321 |  | " in lines[2] and " | 500 | +1.62 [-4.069, +7.309], equal | " in lines[1]
    assert err.count("dqn/seed=2 is not finished (500000 frames") == err.count("is not finished (60 frames") == 1
    rows = list(csv.DictReader(io.StringIO(tidy_csv([protocol_table(gaps(group_runs(find_runs(tmp_path))))]))))
    numbers = {row["statistic"]: row["value"] for row in rows[:6]}
    assert (numbers["published mean"], numbers["published sd"]) == ("488.69", "16.11")
    assert numbers["gap"].startswith("+11.31 [-28.71, +51.33], undecided")


def test_published_takes_folders_on_either_side(seeds: Seeds, capsys, monkeypatch) -> None:
    monkeypatch.chdir(seeds(returns=(500.0,)))
    answers = []
    for words in (
        "dqn --published",
        "--published dqn",
        "--published dqn .",
        "--published .",
        "--env * --published dqn",
    ):
        assert main(["table", *words.split()]) == 0
        answers.append(capsys.readouterr())
    assert "+11.31" in answers[0].out and len({answer.out for answer in answers}) == 1
    for words in ("--published", "--published absent", "--published mirl", ""):
        with pytest.raises(SystemExit, match="2"):
            main(["table", *words.split()])
        assert "table: error: the following arguments are required: FOLDER\n" in capsys.readouterr().err


def test_what_has_no_score_of_ours_or_of_anybody_is_one_sentence(seeds: Seeds, make_run, tmp_path, capsys) -> None:
    with pytest.raises(UserError, match="results must hold a method with a published score .*, got m_dqn on cart"):
        gaps(group_runs(find_runs(make_run("m_dqn/seed=0"))))
    assert main(["table", str(tmp_path), "--published", "--score", "best"]) == 1
    assert "score must be left out with --published alone, got 'best'." in capsys.readouterr().err
    folder = seeds(returns=(500.0,)) / "dqn"
    (folder / "seed=0/done.json").unlink()
    with pytest.raises(UserError, match="at least one run with a score, got none: .* is not finished"):
        gaps(group_runs(find_runs(folder)))
    assert not gaps(group_runs(find_runs(folder)), unfinished=True)[0].differs


def test_the_shipped_scores() -> None:
    scores = published_scores()
    assert len(scores) == 45 and all(each.source and each.seeds > 1 and each.kind in ("sd", "") for each in scores)
    texts = [value for each in scores for value in each.settings.values() if isinstance(value, str)]
    assert not any(text[0].isdigit() for text in texts), "1e-8 is a text to YAML, 1.0e-8 a number"
    twin = one("CleanRL c51_jax.py", "mountaincar")
    assert (twin.method, twin.mean, twin.spread, twin.seeds) == ("c51", -174.3, 36.35, 3)
    assert twin.settings["env.max_episode_frames"] == 200 and twin.settings["algo.adam_eps"] == 7.8125e-5
    assert twin.settings["algo.eps_frames"] == 250_000 and "net.num_atoms" not in DQN.settings
    assert one("Tianshou SAC", "mujoco/reacher").settings["env.max_episode_frames"] == 50
