"""The command ``torchrl-reg``: output, errors and imports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_reg.lab.commands.main import COMMANDS, main

yaml = pytest.importorskip("yaml")


@pytest.fixture
def ask(capsys):
    """``ask(*words)`` -> exit code, stdout, stderr."""
    return lambda *words: (main([str(word) for word in words]), *capsys.readouterr())


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def runs(tmp_path):
    """Three seeds of dqn and of m_dqn, which returns five times as much."""
    for recipe, value in (("dqn", 1.0), ("m_dqn", 5.0)):
        for seed in range(3):
            folder = tmp_path / recipe / f"seed={seed}"
            folder.mkdir(parents=True)
            config = {"env": {"name": "atari", "game": "Pong"}, "run": {"seed": seed}, "algo": {"tau": 0.03}}
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            (folder / "command.txt").write_text(f"python recipes/{recipe}.py\n")
            rows = [{"event": "eval", "frames": 100 * i, "return_greedy_mean": value * i + seed} for i in (1, 2)]
            write_rows(folder / "metrics.jsonl", rows)
            (folder / "done.json").write_text("{}")
    return tmp_path


def test_table(ask, runs):
    code, out, err = ask("table", runs, "--baseline", "dqn")
    assert "| atari/Pong | m_dqn | 3 | 200 | 11.0 [8.5, 13.5]" in out and "**human-normalized over atari/Pong" in out
    assert (code, err) == (0, "")
    code, out, _ = ask("table", runs / "dqn", runs / "m_dqn", "--env", "atari/*", "--method", "m*")
    assert code == 0 and "| m_dqn |" in out and "| dqn |" not in out


def test_training_returns_are_a_metric(ask, runs):
    for seed, path in enumerate(sorted(runs.glob("dqn/*/metrics.jsonl"))):
        write_rows(path, [{"event": "train", "frames": 100 * i, "return_last_100": 40.0 * i + seed} for i in (1, 2, 3)])
    (runs / "dqn/seed=1/metrics.jsonl").write_text('torn "train" row\n')
    code, out, err = ask("table", runs / "dqn", "--column", "return_last_100", "--normalize", "none")
    assert "**final of return_last_100**" in out and "| 2 | 300 | 121 [108, 134] |" in out
    assert code == 0 and err.count("\n") == 1 and "left out" in err and "seed=1" in err


@pytest.mark.parametrize("name", ["curves.svg", "aggregate.png", "profile.png", "improvement.svg"])
def test_plot(ask, runs, name):
    pytest.importorskip("matplotlib")
    out = runs / "new" / name
    assert ask("plot", out.stem, runs, "--out", out, "--of", "m_dqn", "--baseline", "dqn") == (0, f"{out}\n", "")
    start = b"<?xml" if out.suffix == ".svg" else b"\x89PNG"
    assert out.read_bytes().startswith(start) and out.stat().st_size > 4_000


@pytest.mark.parametrize("kind", ["curves", "aggregate"])
def test_plots_of_curves_warn(ask, runs, kind):
    pytest.importorskip("matplotlib")
    run, boxing = runs / "dqn/seed=0", runs / "boxing/seed=0"
    shutil.copytree(runs / "m_dqn/seed=0", boxing)
    (boxing / "config.yaml").write_text((boxing / "config.yaml").read_text().replace("Pong", "Boxing"))
    (run / "done.json").unlink()
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    for seed in (0, 1):
        (runs / f"dqn/seed={seed}/provenance.json").write_text(json.dumps({"starts": [{"commit": f"{seed}" * 8}]}))
    code, _, err = ask("plot", kind, runs, "--out", runs / "x.png")
    assert code == 0 and f"1 of 7 runs is not finished: {run}." in err
    assert "curves end where the shortest seed does: dqn on atari/Pong at 100 of 200 frames." in err
    assert "seeds were run at several commits: dqn on atari/Pong" in err
    assert ("dqn is in no aggregate, as it lacks atari/Boxing." in err) == (kind == "aggregate")


@pytest.mark.parametrize("command", ["table", "report"])
def test_one_run_in_two_folders_counts_once(ask, runs, command):
    """``iq.py`` and ``iq.py policy=multicategorical`` behave the same."""
    one, other = runs / "dqn/seed=1", runs / "dqn/env=atari/seed=1"
    shutil.copytree(one, other)
    (one / "done.json").unlink()
    code, out, err = ask(command, runs)
    assert f"{one} is the same run as {other}, which is used alone." in err
    assert code == 0 and err.count("\n") == 1 and (command == "report" or "| atari/Pong | dqn | 3 | 200 |" in out)


@pytest.mark.parametrize("command", ["table", "report"])
def test_ignored_settings_are_said_so(ask, runs, command):
    config = runs / "dqn/seed=0/config.yaml"
    config.write_text(config.read_text().replace("0.03", "0.05"))
    code, _, err = ask(command, runs)
    assert code == 1 and "seeds beside each other must have equal settings" in err
    code, _, err = ask(command, runs, "--ignore", "algo.tau")
    assert code == 0 and "torchrl-reg: warning: ignored algo.tau" in err


BAD = {
    "table NO": "results must be an existing folder, got no folder NO.",
    "table EMPTY": "results must hold runs (folders with a config.yaml), got none in EMPTY.",
    "table . --score worst": "score must be final, best, auc or last<k>, such as last5, got 'worst'.",
    "table . --normalize sac": "normalize=sac must be used with the MuJoCo tasks",
    "table . --baseline dnq": "got 'dnq'. Did you mean 'dqn'?",
    "table . --published rainbow": "published must be one of mirl, ments, sac, got 'rainbow'.",
    "table . --published mirl": "published=mirl must share a game of atari with the results",
    "table . --env cart*": "env must match one of atari/Pong, got cart*.",
    "table . --column return": "at least one run with a score, got none",
    "table . --by algo.tua": "by must name a setting of the runs, got 'algo.tua'. Did you mean 'algo.tau'?",
    "plot curves . --out x.gif": "out must end in .png, .svg, .pdf, got 'x.gif'.",
    "plot curves . --center mode": "center must be one of mean, iqm, got 'mode'.",
    "plot aggregate . --normalize none": "normalize must be human, sac or own_sac to average",
    "plot aggregate . --aggregate max": "aggregate must be one of IQM, median",
    "plot improvement . --of dqn": "baseline must name a method",
}


@pytest.mark.parametrize(("words", "sentence"), BAD.items(), ids=BAD)
def test_a_users_error_is_one_sentence(ask, runs, monkeypatch, words, sentence):
    (runs / "EMPTY").mkdir()
    monkeypatch.chdir(runs)
    code, out, err = ask(*words.split())
    assert (code, out) == (1, "") and sentence in err and err.startswith("torchrl-reg: ") and err.count("\n") == 1


@pytest.mark.parametrize(("word", "hint"), [("lanch", "; did you mean launch?"), ("zzz", ".")])
def test_an_unknown_command_is_named(capsys, word, hint):
    with pytest.raises(SystemExit, match="2"):
        main([word, "results"])
    assert capsys.readouterr().err.endswith(f"error: {word} is not a command{hint}\n")


def test_help_names_every_command(ask, capsys):
    code, text, _ = ask()
    assert code == 0 and all(f"\n    {name} " in text for name in COMMANDS)
    for name in set(COMMANDS) - {"run"}:  # which lists recipes
        with pytest.raises(SystemExit, match="0"):
            sys.exit(main([name, "--help"]))
        assert "usage: torchrl-reg " + name in capsys.readouterr().out


#: In this order, as modules that a command has imported hold what they imported.
MISSING = {
    "table RUNS": ("numpy", "report"),
    "plot curves RUNS": ("matplotlib", "report"),
    "report RUNS": ("jinja2", "report"),
    "evaluate RUNS": ("torch", "recipes"),
    "export RUNS DIR": ("torch", "recipes"),
}
WITHOUT = f"""
import sys
from torchrl_reg.lab.commands.main import main
for words, (package, _) in {MISSING}.items():
    sys.modules[package] = None
    print(main(words.split()), file=sys.stderr)
    del sys.modules[package]
for name in ("torch", "matplotlib", "omegaconf", "scipy"):
    sys.modules[name] = None
main(["table", sys.argv[1]])
"""


def test_a_missing_package_is_one_sentence_and_a_table_needs_few(runs):
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(runs)], capture_output=True, text=True)
    assert done.stderr.splitlines() == [
        line
        for words, (package, extras) in MISSING.items()
        for line in (
            f"torchrl-reg: {words.split()[0]} needs {package}, got none: pip install 'torchrl_reg[{extras}]'.",
            "1",
        )
    ]
    assert done.returncode == 0 and "| atari/Pong | m_dqn | 3 |" in done.stdout


def test_a_reader_that_goes_away_is_no_error(runs):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "torchrl_reg.lab.commands.main", "table", str(runs)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_is_one_sentence(runs):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "torchrl_reg.lab.commands.main", "table", str(runs)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "torchrl-reg: [Errno 28] No space left on device\n")


def test_an_output_that_cannot_be_written_is_one_sentence(ask, runs):
    page = runs / "nowhere/page.md"
    code, _, err = ask("results", runs, "--page", page)
    assert (code, err) == (1, f"torchrl-reg: {page} cannot be read or written: No such file or directory.\n")
