"""Reading run folders, also unfinished or damaged ones.

Damaged and very large records: what is left out is named, what is left is read, and memory stays bounded.
"""

from __future__ import annotations

import json
import os
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest

from torchrl_reg.lab.analysis import find_runs
from torchrl_reg.lab.analysis.runs import MAX_CURVE_POINTS, last_rows, metrics_rows, read_columns
from torchrl_reg.lab.commands.main import main
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.folder import is_done


def test_a_run_folder_is_read(make_run, tmp_path: Path) -> None:
    folder = make_run("sweep/x", [1.0, 5.0], recipe="iq", env="mujoco/hopper", seed=3, algo__tau=0.5)
    (run,) = find_runs(tmp_path)
    assert (run.path, run.recipe, run.env, run.seed) == (folder, "iq", "mujoco/hopper", 3)
    assert run.config["algo.tau"] == 0.5 and run.config["net.num_cells"] == [128, 128]
    assert not {"run.dir", "run.seed", "run.progress", "run.loggers"} & set(run.config)
    assert run.done == {"frames": 200} and run.command == "python recipes/iq.py run.seed=3 run.dir=x"
    for columns in ([], ["train", "eval"]):  # evaluations alone, and then from the columns in memory
        frames, values = run.evaluations()
        assert frames.tolist() == [100, 200] and values.tolist() == [1.0, 5.0]
        assert not columns or list(run.all_columns) == columns
    assert run.frames == 200 and run.training("loss")[1].tolist() == [1.0]
    assert run.evaluations("loss")[1].tolist() == [1.0]  # no evaluation has a loss
    assert len(run.training("return_mean")[0]) == len(run.evaluations("nothing")[0]) == 0  # null, and absent


def test_a_run_that_only_began_is_a_run(make_run, tmp_path: Path) -> None:
    folder = make_run("x", done=False)
    for name in ("metrics.jsonl", "provenance.json", "command.txt"):
        (folder / name).unlink()
    (run,) = find_runs(tmp_path)
    assert (run.recipe, run.done, run.commits, run.all_columns, run.command) == ("unknown", None, (), {}, "")


def test_commits_are_those_of_every_start(make_run, tmp_path: Path) -> None:
    starts = [{"commit": c, "uncommitted_changes": c == "b" * 40} for c in ("a" * 40, "b" * 40, "a" * 40, None)]
    starts.append({"commit": None, "versions": {"torchrl_reg": "0.1.0"}})
    (make_run("x") / "provenance.json").write_text(json.dumps({"starts": [None, *starts]}))
    (run,) = find_runs(tmp_path)
    assert run.commits == ("a" * 40, "b" * 40, "unknown", "0.1.0")
    assert run.short_commits == ("aaaaaaa", "bbbbbbb+", "unknown", "0.1.0")


def test_snapshots_jobs_checkpoints_and_hidden_folders_hold_no_runs(make_run, tmp_path: Path) -> None:
    for folder in ("s/code/recipes/x", "s/jobs/1", "s/.hydra", "s/checkpoints/a", "s/m/seed=1", "s/m/seed=0"):
        make_run(folder)
    (tmp_path / "s/m/seed=0.log").write_text("noise"), (tmp_path / "s/sweep.yaml").write_text("{}")
    found = [str(run.path.relative_to(tmp_path)) for run in find_runs(tmp_path)]
    assert found == ["s/m/seed=0", "s/m/seed=1"]
    # a root that is a run, and roots within each other, give each run once
    assert len(find_runs([tmp_path / "s/m/seed=0", tmp_path, tmp_path / "s"])) == 2


def test_rows_without_an_event_or_a_finite_number_are_passed_over(make_run, tmp_path: Path) -> None:
    rows = ['{"event": "eval", "return_greedy_mean": 9}', '{"frames": 8}', '{"event": "eval", "frames": "8"}', "{}"]
    values = {200: "NaN", 300: "1e999", 400: "1" + "0" * 400, 10**30: "2.0"}
    rows += [f'{{"event": "eval", "frames": {at}, "return_greedy_mean": {value}}}' for at, value in values.items()]
    with (make_run("x", [1.0]) / "metrics.jsonl").open("a") as file:
        file.write("\n".join([*rows, '{"event": "eval", "frames": 500, "return_gre']))
    (run,) = find_runs(tmp_path)
    for _ in range(2):  # evaluations alone, and then from the columns in memory
        assert run.evaluations()[1].tolist() == [1.0] and run.ends_without()
        assert run.all_columns and run.frames == 400


def test_a_foreign_config_is_left_out_and_said_so(make_run, tmp_path: Path) -> None:
    make_run("a"), (make_run("b") / "config.yaml").write_text("grid: 1")
    skipped: list[str] = []
    assert [run.path.name for run in find_runs(tmp_path, skipped=skipped)] == ["a"]
    assert len(skipped) == 1 and "b/config.yaml must be that of a run, got no env.name and no run.seed" in skipped[0]


def test_links_are_followed_once(make_run, tmp_path: Path) -> None:
    make_run("elsewhere/seed=0")
    (tmp_path / "here").mkdir()
    (tmp_path / "here/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/round").symlink_to(tmp_path / "here")
    assert [str(run.path.relative_to(tmp_path)) for run in find_runs(tmp_path / "here")] == ["here/linked/seed=0"]
    assert len(find_runs([tmp_path / "here", tmp_path / "elsewhere"])) == 1


@pytest.mark.parametrize(
    ("command", "script"),
    [
        ("python recipes/m_dqn.py x=1", "recipes/m_dqn.py"),
        ("python /home/a/checkout/recipes/m_dqn.py", "recipes/m_dqn.py"),
        ("python ./own/0a1b2c3d/m_dqn.py", "own/0a1b2c3d/m_dqn.py"),
        ("python -m x ../mine/m_dqn.py", "../mine/m_dqn.py"),
        ("torchrl-reg run m_dqn x=1", "recipes/m_dqn.py"),
        ("torchrl-reg run ../mine/m_dqn.py x=1", "../mine/m_dqn.py"),
        ("python -c pass", ""),
    ],
)
def test_which_file_a_recipe_is(make_run, tmp_path: Path, command: str, script: str) -> None:
    (make_run("x") / "command.txt").write_text(command + "\n")
    (run,) = find_runs(tmp_path)
    assert (run.script, run.recipe) == (script, "m_dqn" if script else "unknown")


def test_an_empty_done_json_ends_no_run(tmp_path: Path) -> None:
    found = [is_done(tmp_path)]
    for content in ("", "{}"):
        (tmp_path / "done.json").write_text(content)
        found.append(is_done(tmp_path))
    assert found == [False, False, True]


BOMB = "a: &a [x,x,x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghijklm"))
#: File, what is put behind its content, and what is said of it.
DAMAGE = {
    "row": ("metrics.jsonl", 'torn "eval" row\n{}\n', "JSON object a line, got 'torn \"eval\" row' in line 4"),
    "nul": ("metrics.jsonl", "\0" * 100 + '"eval"\n', "must hold one JSON object a line"),
    "deep row": ("metrics.jsonl", '{"event": "eval", "frames": ' + "[" * 100_000 + "\n", "one JSON object a line"),
    "long row": ("metrics.jsonl", '"eval"' + "x" * (1 << 21) + "\n", "a row longer than 1048576 bytes"),
    "bomb": ("config.yaml", BOMB, "config.yaml must be YAML without aliases, got one"),
    "deep": ("config.yaml", "a: " + "[" * 200_000, "config.yaml must nest at most 32 levels"),
    "large": ("config.yaml", "# " + "x" * (5 << 20), "config.yaml must be at most 4 MiB, got more"),
    "date": ("config.yaml", "a: 2001-99-99\n", "config.yaml must be YAML, got something else"),
    "deep done": ("done.json", "[" * 100_000, 'done.json must be JSON, got \'{"frames": 200}[[['),
}


@pytest.mark.parametrize(
    ("damage", "command"),
    [*((damage, "table") for damage in DAMAGE), ("row", "report"), ("bomb", "report")],
)
def test_a_damaged_run_is_left_out_by_name_and_the_others_are_shown(make_run, tmp_path, capsys, damage, command):
    for seed in (0, 1, 2):
        make_run(f"m_dqn/seed={seed}", [1.0, 7.0], seed=seed)
    name, text, sentence = DAMAGE[damage]
    with (tmp_path / "m_dqn/seed=1" / name).open("a") as file:
        file.write(text)
    assert main([command, str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "seed=1" in err and sentence in err and err.count("\n") == 1 and "seed=0" not in err
    assert "7.00" in (out if command == "table" else (tmp_path / "report.html").read_text())
    assert main(["table", str(tmp_path / "m_dqn/seed=1")]) == 1  # it alone is an error and no warning
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1


@pytest.mark.timeout(100)
@pytest.mark.parametrize("command", ["table", "report"])
@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "../seed=1.log"])
@pytest.mark.parametrize("kind", ["pipe", "zeros"])
def test_a_pipe_or_a_device_in_place_of_a_file_is_named(
    make_run, tmp_path: Path, capsys, kind: str, name: str, command: str
) -> None:
    make_run("m_dqn/seed=0")
    run = make_run("m_dqn/seed=1", seed=1)
    (tmp_path / "m_dqn/seed=1.failed").write_text("{}")
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name) if kind == "pipe" else (run / name).symlink_to("/dev/zero")
    assert main([command, str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err.count("\n") <= 1
    if name.startswith("m"):
        assert "not a file but a folder, a pipe or a device" in out + err


HOSTILE = "\x1b]0;title\x07\x1b[2Jx\x9b2J<img src=x>&\n# no"


def test_names_reach_the_terminal_without_its_codes_and_markdown_without_html(make_run, tmp_path: Path, capsys) -> None:
    for number, name in enumerate(("plain", HOSTILE)):
        folder = make_run(f"m\x1b[31m/{number}", env=f"cartpole/{HOSTILE}", algo__note=name, recipe=f"r{HOSTILE[:8]}")
        (folder / "provenance.json").write_text(json.dumps({"starts": [{"commit": "\x1b[2J<b>"}]}))
    make_run("\x1b[31mbroken").joinpath("config.yaml").write_text("[")
    assert main(["table", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert all(c.isprintable() or c == "\n" for c in out + err)
    assert "2Jx" in out and "\n# no" not in out
    assert "<" not in out.replace("&lt;", "") and "&lt;img src=x>&amp;" in out


def test_long_columns_are_averaged_moving_means_are_not_and_evaluations_stay() -> None:
    count, same = 5 * MAX_CURVE_POINTS + 3, ("loss", "updates", "return_last_100")
    rows = [{"event": "train", "frames": 10 * i, "odd": i if i % 2 else None} for i in range(count)]
    rows = [row | dict.fromkeys(same, row["frames"] // 10) for row in rows]
    rows += [{"event": "eval", "frames": 10 * i, "return_greedy_mean": i} for i in range(count)]
    columns = read_columns(rows)
    frames, loss = columns["train"]["loss"]
    assert MAX_CURVE_POINTS / 2 <= len(frames) <= MAX_CURVE_POINTS and frames[-1] == 10 * (count - 1)
    assert frames[:3].tolist() == [70, 150, 230] and loss[:3].tolist() == [3.5, 11.5, 19.5]  # of eight rows each
    assert columns["train"]["odd"][1][:2].tolist() == [4.0, 12.0]  # of the four that are not null
    for name in same[1:]:
        assert columns["train"][name][1][[0, 1, -1]].tolist() == [7, 15, count - 1]
        assert columns["train"][name][0] is frames
    assert columns["eval"]["return_greedy_mean"][1].tolist() == list(range(count))


def test_a_large_record_is_read_in_little_memory(tmp_path: Path) -> None:
    row = {"event": "train", "return_mean": 1.0, **{f"x{i}": i / 7 for i in range(20)}}
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps({**row, "frames": i}) + "\n" for i in range(5_000))
    tracemalloc.start()
    columns = read_columns(metrics_rows(tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert columns["train"]["x3"][1].mean() == pytest.approx(3 / 7)
    assert peak < 5e6, "the rows as dictionaries take 9 MB"


def test_a_million_columns_are_refused() -> None:
    rows = ({"event": "train", "frames": i, f"x{i}": 1.0} for i in range(2_000))
    with pytest.raises(UserError, match="at most 1000 columns"):
        read_columns(rows)


def lines(*frames: int, **more: float) -> str:
    return "".join(json.dumps({"event": "train", "frames": f, **more}) + "\n" for f in frames)


def test_half_a_line_at_the_end_is_no_row_yet(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert list(metrics_rows(tmp_path)) == last_rows(tmp_path, 200) == []
    path.write_text(lines(100) + '{"event": "tr')
    assert [row["frames"] for row in metrics_rows(tmp_path)] == [100]
    with path.open("a") as file:
        file.write('ain", "frames": 200}\nnot json\n[1]\n')
    assert [row["frames"] for row in last_rows(tmp_path, 200)] == [100, 200]
    with pytest.raises(UserError, match="got 'not json' in line 3"):
        list(metrics_rows(tmp_path))
    assert [row["frames"] for row in metrics_rows(tmp_path, "train")] == [100, 200]


def test_the_end_of_a_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(*range(1_000)) + '{"event')
    found = [row["frames"] for row in last_rows(tmp_path, 200)]
    assert found[-1] == 999 and 3 <= len(found) <= 8
    path.write_text('{"note": 1}\n' * 25_000 + lines(7))  # lines without rows do not end the reading
    assert [row["frames"] for row in metrics_rows(tmp_path)] == [7]
