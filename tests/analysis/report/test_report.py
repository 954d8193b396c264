from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from torchrl_reg.analysis.report import report_html
from torchrl_reg.analysis.report.scores import learning_curve, profiles
from torchrl_reg.analysis.report.sweep import read_sweep
from torchrl_reg.cli import main

_VOID = {"meta", "br", "wbr", "path", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Refuses tags that do not close; keeps text, attributes and the cells of tables."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)
            if self._in_cell:
                self.rows[-1][-1] += data


def _report(root: Path) -> tuple[str, Page]:
    html = report_html(read_sweep(root))
    return html, Page(html)


def test_every_number_of_the_table_is_that_of_a_hand_computation(tmp_path, write_run):
    write_run(tmp_path, recipe="dqn", seed=0, scores=(9.0, 1.0))
    write_run(tmp_path, recipe="dqn", seed=1, scores=(9.0, 3.0))
    write_run(tmp_path, recipe="m_dqn", seed=0, scores=(0.0, -150.25))
    write_run(tmp_path, recipe="m_dqn", seed=1, scores=(0.0, 77.0), done=False)  # not finished: no score
    write_run(tmp_path, recipe="m_dqn", seed=0, env="acrobot", scores=(0.0, None))  # its last evaluation was not finite
    _, page = _report(tmp_path)
    # Of two seeds a bootstrap mean is the lower with probability 1/4: the ends of the interval are the seeds.
    assert page.rows == [
        ["method", "acrobot", "cartpole", "seeds", "commit"],
        ["dqn", "", "2.00 [1.00, 3.00]", "2", "0123456"],
        ["m_dqn", "no finished run", "−150.2 ", "0 of 1 acrobot1 of 2 cartpole", "0123456"],
    ]
    assert "last evaluation is not a finite number: m_dqn/acrobot/tau=0.03/seed=0." in "".join(page.text)


def test_what_the_header_counts_and_warns_of(tmp_path, write_run):
    runs = [write_run(tmp_path, seed=seed, done=seed == 0) for seed in range(3)]
    for seed in (2, 3):  # the last never made its folder
        runs[0].with_name(f"seed={seed}.failed").write_text("{}")
    listed = [str(runs[0].with_name(f"seed={seed}").relative_to(tmp_path)) for seed in range(5)]
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"array": None, "elements": [listed]}) + "\n")
    (runs[0] / "done.json").write_text(json.dumps({"frames": 200, "diverged_frames": 1250, "wall_seconds": 4444e3}))
    with (runs[1] / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "frames": 300, "diverged_frames": 300, "entropy": 0.1}\n' * 2)
    _, page = _report(tmp_path)
    text = " ".join("".join(page.text).split())
    assert "1 of 5 runs finished1 waiting2 failed1 method1 environment3 seeds each700 frames1,234 h of run time" in text
    assert "1 run is not finished; the summary leaves out what is not." in text
    folder = "m_dqn/cartpole/tau=0.03"
    assert f"Values diverged in {folder}/seed=0 at frame 1,250, {folder}/seed=1 at frame 300." in text
    assert "diverged_frames" not in text  # it is no diagnostic to draw


def test_a_method_that_lacks_an_environment_has_no_profile_and_the_others_keep_their_colours(tmp_path, write_run):
    for env in ("cartpole", "acrobot"):
        for recipe, score in (("b", 0.0), ("c", 1.0)):
            write_run(tmp_path, recipe=recipe, env=env, scores=(score,))
    write_run(tmp_path, recipe="a", env="acrobot", scores=(0.0,))
    lines, beyond = profiles(read_sweep(tmp_path), points=3)
    assert [(line.label, line.series, line.y.tolist()) for line in lines] == [("b", 1, [0, 0, 0]), ("c", 2, [1, 1, 0])]
    assert beyond == 0


def test_name_question_plan_failures_and_commands_are_shown(tmp_path, write_run):
    (tmp_path / "sweep.yaml").write_text("name: ablation\nquestion: Does it help?\ngrid: {algo.tau: [0.1]}\n")
    run = write_run(tmp_path, seed=0, done=False)
    failed = {"returncode": 137, "last_line": "Killed: out of memory", "ended_at": "2026-01-01T00:00:00"}
    run.with_name("seed=0.failed").write_text(json.dumps(failed))
    (run / "failed.json").write_text(json.dumps(failed))  # the same failure in the run's own words
    run.with_name("seed=1.failed").write_text('{"retu')  # half written, and the run never made its folder
    run.with_name("seed=1.log").write_text("Traceback\nValueError: the last line\n\n")
    write_run(tmp_path, seed=2).with_name("seed=2.failed").write_text("{}")  # run again since
    _, page = _report(tmp_path)
    text = "".join(page.text)
    assert "Does it help?" in text and "algo.tau" in text
    assert "python recipes/m_dqn.py run.seed=0 run.dir=seed=0" in text
    folder = "m_dqn/cartpole/tau=0.03"
    assert page.rows[-2:] == [
        [f"{folder}/seed=0", "137", "2026-01-01T00:00:00", "Killed: out of memory"],
        [f"{folder}/seed=1", "", "", "ValueError: the last line"],
    ]


@pytest.mark.parametrize("case", ["no finished run", "only a failure", "no metrics", "one seed", "nulls", "torn line"])
def test_missing_parts(tmp_path, write_run, case):
    if case == "no finished run":
        write_run(tmp_path, done=False, scores=())
    elif case == "only a failure":
        (tmp_path / "seed=3.failed").write_text('{"returncode": 1, "last_line": "boom"}')
    elif case == "no metrics":
        run = write_run(tmp_path, done=False)
        for name in ("metrics.jsonl", "provenance.json", "command.txt"):
            (run / name).unlink()
    elif case == "one seed":
        write_run(tmp_path)
    elif case == "nulls":
        write_run(tmp_path, scores=(None, None))
    else:
        with (write_run(tmp_path) / "metrics.jsonl").open("a") as file:
            file.write('{"event": "ev')
    html, page = _report(tmp_path)
    assert f"<h1>{tmp_path.name}".replace("_", "_<wbr>") in html
    assert "NaN" not in html and ">nan" not in html and "None" not in "".join(page.text)
    assert page.tags


def test_names_from_outside_are_escaped(tmp_path, write_run):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    root = tmp_path / "sweep"
    root.mkdir()
    (root / "sweep.yaml").write_text(json.dumps({"name": evil, "question": evil, "grid": {evil: [evil]}}))
    for value in (evil, "plain"):
        run = write_run(root, env="a<b>&c", settings={"mode": value, "tau": 0.1}, folder=f"m={value == evil}")
        (run / "command.txt").write_text(f"python recipes/m_dqn.py '{evil}'\n")
        run.with_name("seed=9.failed").write_text(json.dumps({"returncode": evil, "last_line": evil, "ended_at": evil}))
    html, page = _report(root)
    assert html.count("<script>") == 1 and "<img" not in html
    assert [tag for tag, _ in page.tags].count("script") == html.count('<script type="application/json">') + 1
    assert "alert(2)" in "".join(page.text)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_the_page_loads_nothing(tmp_path, write_run):
    write_run(tmp_path)
    html, page = _report(tmp_path)
    assert not any(word in html for word in ("http://", "https://", "url(", "@import", "fetch(", "XMLHttpRequest"))
    assert not any(
        name in ("src", "href", "srcset", "xlink:href") for _, attributes in page.tags for name in attributes
    )
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert "default-src 'none'" in str(policy)


def test_the_same_runs_give_the_same_page_beside_them(tmp_path, write_run, capsys):
    for seed in range(3):
        write_run(tmp_path, seed=seed, scores=(1.0 + seed, 2.0 * seed))
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == report_html(read_sweep(tmp_path))


def test_a_learning_curve_goes_dashed_where_seeds_are_missing(tmp_path, write_run):
    write_run(tmp_path, seed=0, scores=(1.0, 2.0, 3.0))
    write_run(tmp_path, seed=1, scores=(3.0, None, 5.0, 7.0), done=False)
    (group,) = read_sweep(tmp_path).groups
    line = learning_curve(group, "return_greedy_mean", 0)
    assert line is not None and line.label.endswith("(2)")
    assert line.x.tolist() == [100, 300] and line.y.tolist() == [2.0, 4.0]
    assert line.low is not None and line.low.tolist() == [1.0, 3.0]
    assert line.more_x.tolist() == [400] and line.more_y.tolist() == [7.0]


def test_the_column_over_all_environments_is_the_interquartile_mean_of_scaled_scores(tmp_path, write_run):
    for env, scale in (("cartpole", 500.0), ("acrobot", 4.0)):
        for seed in (0, 1):
            write_run(tmp_path, recipe="dqn", env=env, seed=seed, scores=(scale * seed / 4,))
            write_run(tmp_path, recipe="m_dqn", env=env, seed=seed, scores=(scale,))
    _, page = _report(tmp_path)
    # dqn: 0, 0, 1/4, 1/4 without the lowest and the highest.
    assert page.rows[0][:2] == ["method", "all, scaled IQM"]
    assert page.rows[1][1].startswith("0.125 [0.00, 0.250]") and page.rows[2][1] == "1.00 [1.00, 1.00]"


def test_atari_games_are_scaled_by_random_and_human_scores(tmp_path, write_run):
    write_run(tmp_path, recipe="dqn", env="atari/AirRaid", scores=(9.0,))  # no human score: in no average
    for game, random, human in (("Pong", -20.7, 14.6), ("Breakout", 1.7, 30.5)):
        write_run(tmp_path, recipe="dqn", env=f"atari/{game}", scores=(random,))
        write_run(tmp_path, recipe="m_dqn", env=f"atari/{game}", scores=(2 * human - random,))
    html, page = _report(tmp_path)
    assert [row[1].split()[0] for row in page.rows[1:3]] == ["0.00", "2.00"]
    assert "0 is the random policy and 1 a human" in html
    assert "1 of 3 games has no human score: AirRaid" in html and "AirRaid" in str(page.rows[0])


def test_many_environments_are_rows(tmp_path, write_run):
    for i in range(7):
        for recipe in ("dqn", "m_dqn"):
            write_run(tmp_path, recipe=recipe, env=f"game{i}", scores=(float(i),), done=i < 6 or recipe == "dqn")
    _, page = _report(tmp_path)
    assert page.rows[0] == ["environment", "dqn", "m_dqn"]
    assert page.rows[1:3] == [["game0", "0.00 ", "0.00 "], ["game1", "1.00 ", "1.00 "]]
    assert page.rows[7:] == [
        ["game6", "6.00 ", "no finished run"],
        ["seeds", "1", "6 of 7 runs"],
        ["commit", "0123456", "0123456"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "results must be an existing folder, got absent."),
        (["empty"], "FOLDER must hold run folders, got empty with none."),
        (["sweep", "-o", "no/such/folder.html"], "--out must be a file that can be written, got no/such/folder.html"),
        (["sweep", "--column", "fps"], "--column must be an evaluation of the runs, got 'fps'; they have"),
        (["broken"], "broken/sweep.yaml must hold name, question, recipe, grid and seeds, got str."),
    ],
)
def test_bad_arguments(tmp_path, write_run, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_run(Path("sweep"))
    write_run(Path("broken"))
    Path("broken/sweep.yaml").write_text("just words\n")
    assert main(["report", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"torchrl-reg: {message}") and captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize("command", ["report", "watch"])
def test_neither_command_imports_torch(tmp_path, write_run, command):
    write_run(tmp_path)
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom torchrl_reg.cli import main\n"
        f"assert main({[command, str(tmp_path)]!r}) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def best_of(html: str) -> list[str]:
    return [part.partition("<")[0] for part in html.split('<b class="best">')[1:]]


def test_bold_is_only_what_lies_above_all_other_intervals(tmp_path, write_run):
    for seed, scores in enumerate(((5.0, 9.0), (6.0, 8.0), (5.5, 3.0))):
        write_run(tmp_path, recipe="dqn", env="apart", seed=seed, scores=scores[:1])
        write_run(tmp_path, recipe="iqn", env="apart", seed=seed, scores=(scores[0] + 2,))
        write_run(tmp_path, recipe="dqn", env="overlap", seed=seed, scores=scores[1:])
        write_run(tmp_path, recipe="iqn", env="overlap", seed=seed, scores=(scores[1] + 0.5,))
    write_run(tmp_path, recipe="dqn", env="single", scores=(1.0,))
    write_run(tmp_path, recipe="iqn", env="single", scores=(9.0,))
    assert best_of(_report(tmp_path)[0])[1:] == ["7.50"]  # and before it the mean over all


def test_forty_methods_are_sorted(tmp_path, write_run):
    for i in range(40):
        write_run(tmp_path, recipe=f"r{i:02}", scores=(float(i * 7 % 40),))
    html, page = _report(tmp_path)
    found = [float(row[1].split()[0]) for row in page.rows[1:41]]
    assert found == sorted(found, reverse=True) and len(found) == 40
    assert html.count('aria-pressed="true"') == 8 and "overflow: auto" in html.partition(".legend {")[2][:400]


def test_long_curves_are_averaged(tmp_path, write_run):
    noise = [float(i % 2) for i in range(2_000)]
    write_run(tmp_path, seed=0, scores=noise), write_run(tmp_path, seed=1, scores=noise)
    (group,) = read_sweep(tmp_path).groups
    line = learning_curve(group, "return_greedy_mean", 0)
    assert len(line.x) == 200 and line.x[-1] == 200_000 and np.allclose(line.y, 0.5)
