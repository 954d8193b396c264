"""What is read from run folders, whatever state they are in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torchrl_reg.analysis import AnalysisError, find_runs


def test_a_run_folder_is_read(make_run, tmp_path: Path) -> None:
    folder = make_run("sweep/x", [1.0, 5.0], recipe="iq", env="mujoco/hopper", seed=3, algo__tau=0.5)
    (run,) = find_runs(tmp_path)
    assert (run.path, run.recipe, run.env, run.seed) == (folder, "iq", "mujoco/hopper", 3)
    assert run.config["algo.tau"] == 0.5 and run.config["net.num_cells"] == [128, 128]
    assert not {"run.dir", "run.seed", "run.progress", "run.loggers"} & set(run.config)
    assert run.commits == ("a" * 40,) and run.short_commits == ("aaaaaaa",)
    assert run.done == {"frames": 200} and run.command == "python recipes/iq.py run.seed=3"
    frames, values = run.evaluations()
    assert frames.tolist() == [100, 200] and values.tolist() == [1.0, 5.0]
    assert [row["event"] for row in run.rows] == ["train", "eval", "eval"]
    assert run.evaluations()[1].tolist() == [1.0, 5.0]  # now from the rows in memory
    assert run.training("loss")[1].tolist() == [1.0]
    assert len(run.training("return_mean")[0]) == len(run.evaluations("nothing")[0]) == 0  # null, and absent


def test_a_half_written_last_row_is_left_out(make_run, tmp_path: Path) -> None:
    folder = make_run("x", [1.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "eval", "frames": 200, "return_gre')
    (run,) = find_runs(tmp_path)
    assert run.evaluations()[0].tolist() == [100] and len(run.rows) == 2


def test_a_run_that_only_began_is_a_run(make_run, tmp_path: Path) -> None:
    folder = make_run("x", done=False)
    for name in ("metrics.jsonl", "provenance.json", "command.txt"):
        (folder / name).unlink()
    (run,) = find_runs(tmp_path)
    assert (run.recipe, run.done, run.commits, run.rows, run.command) == ("unknown", None, (), [], "")


def test_commits_are_those_of_every_start(make_run, tmp_path: Path) -> None:
    folder = make_run("x")
    starts = [{"commit": c, "uncommitted_changes": c == "b" * 40} for c in ("a" * 40, "b" * 40, "a" * 40, None)]
    (folder / "provenance.json").write_text(json.dumps({"starts": starts}))
    (run,) = find_runs(tmp_path)
    assert run.commits == ("a" * 40, "b" * 40, "unknown")
    assert run.short_commits == ("aaaaaaa", "bbbbbbb+", "unknown")


def test_snapshots_jobs_checkpoints_and_hidden_folders_hold_no_runs(make_run, tmp_path: Path) -> None:
    for folder in ("s/code/recipes/x", "s/jobs/1", "s/.hydra", "s/checkpoints/a", "s/m/seed=1", "s/m/seed=0"):
        make_run(folder, seed=int(folder[-1] == "1"))
    (tmp_path / "s/m/seed=0/checkpoints").mkdir()
    (tmp_path / "s/m/seed=0.log").write_text("noise"), (tmp_path / "s/sweep.yaml").write_text("{}")
    found = [str(run.path.relative_to(tmp_path)) for run in find_runs(tmp_path)]
    assert found == ["s/m/seed=0", "s/m/seed=1"]
    # a root that is a run, and roots within each other, give each run once
    assert len(find_runs([tmp_path / "s/m/seed=0", tmp_path, tmp_path / "s"])) == 2


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("config.yaml", "a: [", "config.yaml must be YAML"),
        ("config.yaml", "a: 1", "config.yaml must be that of a run, with env.name and run.seed"),
        ("config.yaml", "", "config.yaml must be that of a run"),
        ("done.json", "{", "done.json must be JSON, got '{'"),
        (
            "metrics.jsonl",
            '{"event": "eval"}\nnoise "eval"\n{}\n',
            "JSON object a line, got 'noise \"eval\"' in line 2",
        ),
    ],
)
def test_a_broken_file_is_one_sentence(make_run, tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (make_run("x") / name).write_text(text)
    with pytest.raises(AnalysisError) as error:
        [run.rows for run in find_runs(tmp_path)]
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_missing_root_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="must be an existing folder, got .*nowhere"):
        find_runs(tmp_path / "nowhere")
    assert find_runs(tmp_path) == []
