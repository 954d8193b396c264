"""Rows of finished runs: their content, saving them twice, and their use in place of the runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from torchrl_reg.lab.analysis import find_runs
from torchrl_reg.lab.analysis.rows import digest, read_rows, record_of, row_of, write_rows
from torchrl_reg.lab.commands.main import main
from torchrl_reg.lab.errors import UserError


@pytest.fixture
def runs(make_run: Callable[..., Path], tmp_path: Path) -> Path:
    """Two seeds of m_dqn and one of dqn, which lacks a setting, of 400 frames."""
    for recipe, seed in (("m_dqn", 0), ("m_dqn", 1), ("dqn", 0)):
        train = [
            {"event": "train", "frames": f, "return_last_100": f + seed, "return_mean": 2.0 * f, "action_gap": 1 / f}
            | {"episodes": 3, "td_error": None if f < 100 else 0.123456}
            for f in range(10, 401, 10)
        ]
        more = {"algo__tau": 0.05, "commit": "b" * 40} if recipe == "dqn" else {"algo__only": [1, 2]}
        path = make_run(
            f"runs/{recipe}/seed={seed}", recipe=recipe, seed=seed, every=200, returns=(1.5, 7.25), train=train, **more
        )
        done = {"frames": 400, "wall_seconds": 12.3456789, "cpu_seconds": 10.5, "compiled": False}
        (path / "done.json").write_text(json.dumps(done))
    return tmp_path / "runs"


def test_a_row_holds_settings_scores_and_twenty_points(runs: Path) -> None:
    (run,) = [run for run in find_runs(runs) if (run.recipe, run.seed) == ("m_dqn", 1)]
    row = row_of(run)
    assert row["scores"] == {"greedy": [7.25, None], "last_100": [401.0, 100], "last_row": [800.0, 10]}
    assert (row["seed"], row["commit"], row["frames"], row["compiled"]) == (1, "a" * 7, 400, False)
    assert (row["wall_seconds"], row["cpu_seconds"], row["settings"]) == (12.346, 10.5, "")
    assert row["curve"]["return"][:2] == [16.0, 36.0] and row["curve"]["return"][-1] == 396.0  # means of 10, 20; 30, 40
    assert row["curve"]["td_error"][3:6] == [None, 0.123, 0.123] and len(row["curve"]["gap"]) == 20


def test_the_digest_is_of_values_not_of_how_they_were_typed(runs: Path) -> None:
    one, other = [run for run in find_runs(runs) if run.recipe == "m_dqn"]
    assert digest(one.config) == digest(other.config)
    assert digest(one.config | {"algo.alpha": 0.8}) != digest(one.config) == digest(dict(reversed(one.config.items())))
    assert digest({"a": True}) != digest({"a": 1})


def test_saving_again_changes_nothing_in_any_order(runs: Path, tmp_path: Path) -> None:
    rows, path = [row_of(run) for run in find_runs(runs)], tmp_path / "new/rows.jsonl"
    write_rows(path, rows[:1])
    base, group, first = path.read_text().splitlines()
    write_rows(path, rows)
    whole = path.read_text()
    assert len(whole.splitlines()) == 2 + 2 + 3, "bases of two recipes, two groups, three runs"
    assert {base, group, first} <= set(whole.splitlines())
    write_rows(path, reversed(rows))
    write_rows(path, read_rows(path))
    assert path.read_text() == whole
    texts = [sorted(json.dumps(row, sort_keys=True) for row in each) for each in (read_rows(path), rows)]
    assert texts[0] == texts[1]


def test_two_rows_of_one_run_that_differ_are_shown(runs: Path, tmp_path: Path) -> None:
    row, path = row_of(find_runs(runs)[0]), tmp_path / "rows.jsonl"
    write_rows(path, [row])
    before = path.read_text()
    other = row | {"scores": row["scores"] | {"greedy": [9.75, 10]}}
    said = r"two of method=dqn, .*, seed=0, commit=bbbbbbb\+: \{'scores': .*7.25.*\} and \{'scores': .*9.75"
    with pytest.raises(UserError, match=said):
        write_rows(path, [other])
    assert path.read_text() == before
    write_rows(path, [other | {"commit": "c" * 7}])  # of another commit both stand
    assert len(read_rows(path)) == 2


def test_rows_stand_for_their_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, tables = tmp_path / "rows.jsonl", []
    assert main(["table", str(runs), "--save", str(path)]) == 0 and capsys.readouterr().out == f"{path}\n"
    for words in (["--baseline", "dqn"], ["--column", "return_last_100"], ["--column", "return_mean"]):
        for place in (runs, path):
            assert main(["table", str(place), *words]) == 0
            tables.append(capsys.readouterr().out)
    assert tables[::2] == tables[1::2] and "m_dqn" in tables[0]
    run = find_runs(path)[-1]
    np.testing.assert_allclose(run.training("return_last_100")[0][[0, -1]], [20, 400])
    assert run.config["algo.only"] == [1, 2] and "algo.only" not in find_runs(path)[0].config


def test_saved_rows_of_before_group_with_new_runs(runs: Path) -> None:
    """Their objects were named by ``path: module:Name``; beside ``_target_`` a method would be two."""
    row = row_of(find_runs([runs])[0])
    row["config"] |= {"head.path": "torchrl_reg.objectives.heads:Categorical", "shaping.path": None}
    config = record_of(row, runs).config
    assert config["head._target_"] == "torchrl_reg.objectives.heads.Categorical"
    assert not any(name.endswith(".path") for name in config)


def test_unfinished_runs_and_damaged_files_are_one_sentence(runs: Path, tmp_path: Path, capsys) -> None:
    (runs / "dqn/seed=0/done.json").unlink()
    with pytest.raises(UserError, match="must be a finished run to be saved"):
        row_of(find_runs(runs / "dqn")[0])
    path = tmp_path / "rows.jsonl"
    assert main(["table", str(runs), "--save", str(path)]) == 0
    assert "dqn/seed=0 is not finished." in capsys.readouterr().err and len(read_rows(path)) == 2
    assert main(["table", str(runs), "--save", str(tmp_path / "rows.json")]) == 1
    assert "save must name a file that ends in .jsonl, got" in capsys.readouterr().err
    path.write_text(path.read_text().partition("\n")[2])  # without its base
    with pytest.raises(UserError, match="must hold a row a line, got .* in line 1"):
        read_rows(path)
