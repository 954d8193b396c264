"""The report: its table against a hand computation, names, warnings, missing and hostile input."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from torchrl_reg.lab.analysis.report import report_html
from torchrl_reg.lab.analysis.report.scores import learning_curve, profiles
from torchrl_reg.lab.analysis.report.sweep import read_sweep
from torchrl_reg.lab.commands.main import main

_VOID = {"meta", "br", "wbr", "path", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Refuses tags that do not close; keeps text, attributes and the cells of tables."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open += [tag] if tag not in _VOID else []
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data


def _report(root: Path) -> tuple[str, Page]:
    html = report_html(read_sweep(root))
    return html, Page(html)


def test_every_number_of_the_table_is_that_of_a_hand_computation(tmp_path, write_run):
    for seed in (0, 1):
        write_run(tmp_path, recipe="dqn", seed=seed, scores=(9.0, 1.0 + 2 * seed))
    write_run(tmp_path, recipe="m_dqn", seed=0, scores=(0.0, -150.25))
    write_run(tmp_path, recipe="m_dqn", seed=1, scores=(0.0, 77.0), done=False)  # not finished: no score
    write_run(tmp_path, recipe="m_dqn", seed=0, env="acrobot", scores=(0.0, None))  # its last evaluation was not finite
    _, page = _report(tmp_path)
    # t at .975 with one degree of freedom is 12.7, the standard error 1
    assert page.rows == [
        ["method", "acrobot", "cartpole", "seeds", "commit"],
        ["dqn", "", "2.00 [−10.7, 14.7]", "2", "0123456"],
        ["m_dqn", "no finished run", "−150.2 ", "0 of 1 acrobot1 of 2 cartpole", "0123456"],
    ]
    assert "last evaluation is not a finite number: m_dqn/acrobot/tau=0.03/seed=0." in page.text


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
    text = " ".join(page.text.split())
    assert "1 of 5 runs finished1 waiting2 failed1 method1 environment3 seeds each700 frames1,234 h of run time" in text
    assert "1 run is not finished; the summary leaves out what is not." in text
    folder = "m_dqn/cartpole/tau=0.03"
    assert f"Values diverged in {folder}/seed=0 at frame 1,250, {folder}/seed=1 at frame 300." in text
    assert "diverged_frames" not in text  # it is no diagnostic to draw


def test_a_method_that_lacks_an_environment_has_no_profile_and_the_others_keep_their_colours(tmp_path, write_run):
    for env, (recipe, score) in product(("cartpole", "acrobot"), (("b", 0.0), ("c", 1.0))):
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
    said = ("Does it help?", "algo.tau", "python recipes/m_dqn.py run.seed=0 run.dir=seed=0")
    assert all(words in page.text for words in said)
    ours, never_begun = (f"m_dqn/cartpole/tau=0.03/seed={seed}" for seed in (0, 1))
    assert page.rows[-2] == [ours, "137", "2026-01-01T00:00:00", "Killed: out of memory"]
    assert page.rows[-1] == [never_begun, "", "", "ValueError: the last line"]


@pytest.mark.parametrize("case", ["no finished run", "only a failure", "no metrics", "one seed", "nulls"])
def test_missing_parts(tmp_path, write_run, case):
    if case == "only a failure":
        (tmp_path / "seed=3.failed").write_text('{"returncode": 1, "last_line": "boom"}')
    else:
        scores = {"no finished run": (), "nulls": (None, None)}.get(case, (1.0, 2.0))
        run = write_run(tmp_path, done=case in ("one seed", "nulls"), scores=scores)
        for name in ("metrics.jsonl", "provenance.json", "command.txt") if case == "no metrics" else ():
            (run / name).unlink()
    html, page = _report(tmp_path)
    assert f"<h1>{tmp_path.name}".replace("_", "_<wbr>") in html
    assert "NaN" not in html and ">nan" not in html and "None" not in page.text


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
    assert "alert(2)" in page.text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_the_page_beside_the_runs_is_the_same_for_the_same_runs_and_loads_nothing(tmp_path, write_run, capsys):
    for seed in range(3):
        write_run(tmp_path, seed=seed, scores=(1.0 + seed, 2.0 * seed))
    assert main(["report", str(tmp_path)]) == 0 and capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    html, page = _report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
    assert not any(word in html for word in ("http://", "https://", "url(", "@import", "fetch(", "XMLHttpRequest"))
    names = {name: value for _, attributes in page.tags for name, value in attributes.items() if name != "content"}
    assert not {"src", "href", "srcset", "xlink:href"} & set(names)
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert "default-src 'none'" in str(policy)


def test_a_learning_curve_goes_dashed_where_seeds_are_missing(tmp_path, write_run):
    write_run(tmp_path, seed=0, scores=(1.0, 2.0, 3.0))
    write_run(tmp_path, seed=1, scores=(3.0, None, 5.0, 7.0), done=False)
    (group,) = read_sweep(tmp_path).groups
    line = learning_curve(group, "return_greedy_mean", 0)
    parts = (line.x, line.y, line.low, line.more_x, line.more_y)
    half = 12.706204736174687  # t at .975 with one degree of freedom; the standard error is 1
    assert [part.tolist() for part in parts] == [[100, 300], [2, 4], [2 - half, 4 - half], [400], [7.0]]
    assert line.label.endswith("(2)")


def test_the_column_over_all_environments_is_the_interquartile_mean_of_scaled_scores(tmp_path, write_run):
    for (env, scale), seed in product((("cartpole", 500.0), ("acrobot", 4.0)), (0, 1)):
        write_run(tmp_path, recipe="dqn", env=env, seed=seed, scores=(scale * seed / 4,))
        write_run(tmp_path, recipe="m_dqn", env=env, seed=seed, scores=(scale,))
    _, page = _report(tmp_path)
    # dqn: 0, 0, 1/4, 1/4 without the lowest and the highest.
    assert page.rows[0][:2] == ["method", "all, scaled IQM"]
    assert page.rows[1][1] == "0.125 " and page.rows[2][1] == "1.00 "


def test_atari_games_are_scaled_by_random_and_human_scores(tmp_path, write_run):
    write_run(tmp_path, recipe="dqn", env="atari/AirRaid", scores=(9.0,))  # no human score: in no average
    for game, random, human in (("Pong", -20.7, 14.6), ("Breakout", 1.7, 30.5)):
        for recipe, score in (("dqn", random), ("m_dqn", 2 * human - random)):
            write_run(tmp_path, recipe=recipe, env=f"atari/{game}", scores=(score,))
    html, page = _report(tmp_path)
    assert [row[1].split()[0] for row in page.rows[1:3]] == ["0.00", "2.00"] and "AirRaid" in str(page.rows[0])
    said = ("0 is the random policy and 1 a human", "1 of 3 games has no human score: AirRaid")
    assert all(words in html for words in said)


def test_many_environments_are_rows(tmp_path, write_run):
    for i, recipe in product(range(7), ("dqn", "m_dqn")):
        write_run(tmp_path, recipe=recipe, env=f"game{i}", scores=(float(i),), done=i < 6 or recipe == "dqn")
    _, page = _report(tmp_path)
    finished = [[f"game{i}", f"{i}.00 ", f"{i}.00 "] for i in range(6)]
    last = [["game6", "6.00 ", "no finished run"], ["seeds", "1", "6 of 7 runs"], ["commit", "0123456", "0123456"]]
    assert page.rows == [["environment", "dqn", "m_dqn"], *finished, *last]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "results must be an existing folder, got no folder absent."),
        (["empty"], "FOLDER must hold run folders, got empty with none."),
        (["sweep", "-o", "no/such/folder.html"], "--out must be a file that can be written, got no/such/folder.html"),
        (["sweep", "--column", "fps"], "--column must be an evaluation of the runs, got 'fps'; they have"),
        (["broken"], "broken/sweep.yaml must hold name, question, recipe, grid and seeds, got str."),
    ],
)
def test_bad_arguments(tmp_path, write_run, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_run(Path("sweep")), write_run(Path("broken"))
    Path("broken/sweep.yaml").write_text("just words\n")
    assert main(["report", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"torchrl-reg: {message}") and captured.err.count("\n") == 1 and captured.out == ""


def test_a_report_imports_no_torch(tmp_path, write_run):
    write_run(tmp_path)
    code = "import sys\nsys.modules['torch'] = None\nfrom torchrl_reg.lab.commands.main import main\n"
    code += f"assert main(['report', {str(tmp_path)!r}]) == 0\n"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_bold_is_only_what_differs_from_all_others(tmp_path, write_run):
    runs = {"apart": ((5.0, 9.0), (6.0, 10.0), (5.5, 9.5)), "overlap": ((9.0, 8.9), (8.0, 8.8), (3.0, 8.5))}
    for env, of in (runs | {"single": ((1.0, 9.0),)}).items():
        for seed, scores in enumerate(of):
            for recipe, score in zip(("dqn", "iqn"), scores, strict=True):
                write_run(tmp_path, recipe=recipe, env=env, seed=seed, scores=(score,))
    bold = [part.partition("<")[0] for part in _report(tmp_path)[0].split('<b class="best">')[1:]]
    assert bold == ["9.50"]


def test_forty_methods_are_sorted(tmp_path, write_run):
    for i in range(40):
        write_run(tmp_path, recipe=f"r{i:02}", scores=(float(i * 7 % 40),))
    html, page = _report(tmp_path)
    assert [float(row[1].split()[0]) for row in page.rows[1:41]] == list(range(39, -1, -1))
    assert html.count('aria-pressed="true"') == 8 and "overflow: auto" in html.partition(".legend {")[2][:400]


def test_long_curves_are_averaged(tmp_path, write_run):
    for seed in (0, 1):
        write_run(tmp_path, seed=seed, scores=[float(i % 2) for i in range(2_000)])
    (group,) = read_sweep(tmp_path).groups
    line = learning_curve(group, "return_greedy_mean", 0)
    assert len(line.x) == 200 and line.x[-1] == 200_000 and np.allclose(line.y, 0.5)


def test_at_the_cap_a_mean_has_no_interval_but_the_seeds_there(tmp_path, write_run):
    for seed, score in enumerate((500.0, 290.0, 500.0)):
        write_run(tmp_path, recipe="dqn", env="cartpole", seed=seed, scores=(score,))
        write_run(tmp_path, recipe="m_dqn", env="cartpole", seed=seed, scores=(200.0 + seed,))
    _, page = _report(tmp_path)
    cells = {row[0]: row[1] for row in page.rows[1:3]}
    assert cells["dqn"].split() == ["430.0", "2", "of", "3", "at", "500"] and "[" in cells["m_dqn"]
