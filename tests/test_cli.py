"""``torchrl-reg`` from the outside: what it prints, refuses and imports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_reg.cli import COMMANDS, main

yaml = pytest.importorskip("yaml")


def make_runs(root: Path, **returns: float) -> Path:
    for recipe, value in returns.items():
        for seed in range(3):
            folder = root / recipe / f"seed={seed}"
            folder.mkdir(parents=True)
            config = {"env": {"name": "atari", "game": "Pong"}, "run": {"seed": seed}, "algo": {"tau": 0.03}}
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            (folder / "command.txt").write_text(f"python recipes/{recipe}.py\n")
            rows = [{"event": "eval", "frames": 100 * i, "return_greedy_mean": value * i + seed} for i in (1, 2)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / "done.json").write_text("{}")
    return root


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_runs(tmp_path, dqn=1.0, m_dqn=5.0)
    assert main(["table", str(tmp_path), "--baseline", "dqn"]) == 0
    out, err = capsys.readouterr()
    assert "| atari/Pong | m_dqn | 3 | 200 | 11.0 [10.0, 12.0]" in out and "**human-normalized over atari/Pong" in out
    assert err == ""
    assert main(["table", str(tmp_path / "dqn"), str(tmp_path / "m_dqn"), "--env", "atari/*", "--method", "m*"]) == 0
    out, _ = capsys.readouterr()
    assert "| m_dqn |" in out and "| dqn |" not in out


def test_training_returns_are_a_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, path in enumerate(sorted(make_runs(tmp_path, dqn=1.0).glob("dqn/*/metrics.jsonl"))):
        rows = [{"event": "train", "frames": 100 * i, "return_last_100": 40.0 * i + seed} for i in (1, 2, 3)]
        path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "dqn/seed=1/metrics.jsonl").write_text('torn "train" row\n')
    assert main(["table", str(tmp_path), "--column", "return_last_100", "--normalize", "none"]) == 0
    out, err = capsys.readouterr()
    assert "**final of return_last_100**" in out and "| 2 | 300 | 121 [120, 122] |" in out
    assert err.count("\n") == 1 and "left out" in err and "seed=1" in err


@pytest.mark.parametrize("kind", ["curves", "aggregate", "profile", "improvement"])
def test_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    pytest.importorskip("matplotlib")
    make_runs(tmp_path, dqn=1.0, m_dqn=5.0)
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        out = tmp_path / f"new/{kind}{suffix}"
        words = ["plot", kind, str(tmp_path), "--out", str(out), "--of", "m_dqn", "--baseline", "dqn"]
        assert main(words) == 0
        assert capsys.readouterr().out == f"{out}\n"
        assert out.read_bytes().startswith(start) and out.stat().st_size > 4_000


@pytest.mark.parametrize("kind", ["curves", "aggregate"])
def test_plots_of_curves_warn(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    pytest.importorskip("matplotlib")
    make_runs(tmp_path, dqn=1.0, m_dqn=5.0)
    run = tmp_path / "dqn/seed=0"
    (run / "done.json").unlink()
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    for seed in (0, 1):
        (tmp_path / f"dqn/seed={seed}/provenance.json").write_text(json.dumps({"starts": [{"commit": f"{seed}" * 8}]}))
    boxing = tmp_path / "boxing/seed=0"
    boxing.mkdir(parents=True)
    for name in ("command.txt", "metrics.jsonl", "done.json"):
        (boxing / name).write_text((tmp_path / "m_dqn/seed=0" / name).read_text())
    config = (tmp_path / "m_dqn/seed=0/config.yaml").read_text()
    (boxing / "config.yaml").write_text(config.replace("Pong", "Boxing"))
    assert main(["plot", kind, str(tmp_path), "--out", str(tmp_path / "x.png")]) == 0
    err = capsys.readouterr().err
    assert f"1 of 7 runs is not finished: {run}." in err
    assert "curves end where the shortest seed does: dqn on atari/Pong at 100 of 200 frames." in err
    assert "seeds were run at several commits: dqn on atari/Pong" in err
    assert ("dqn is in no aggregate, as it lacks atari/Boxing." in err) == (kind == "aggregate")


@pytest.mark.parametrize("command", ["table", "report"])
def test_one_run_in_two_folders_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """``iq.py`` and ``iq.py policy=multicategorical`` are alike."""
    make_runs(tmp_path, dqn=1.0)
    shutil.copytree(tmp_path / "dqn/seed=1", tmp_path / "dqn/env=atari/seed=1")
    (tmp_path / "dqn/seed=1/done.json").unlink()
    assert main([command, str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert f"{tmp_path}/dqn/seed=1 is the same run as {tmp_path}/dqn/env=atari/seed=1, which alone counts." in err
    assert err.count("\n") == 1 and (command == "report" or "| atari/Pong | dqn | 3 | 200 |" in out)


def test_ignored_settings_are_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_runs(tmp_path, dqn=1.0) / "dqn/seed=0/config.yaml"
    config.write_text(config.read_text().replace("0.03", "0.05"))
    for command in ("table", "report"):
        assert main([command, str(tmp_path)]) == 1
        assert "seeds beside each other must have equal settings" in capsys.readouterr().err
        assert main([command, str(tmp_path), "--ignore", "algo.tau"]) == 0
        assert "torchrl-reg: warning: ignored algo.tau" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["table", "NO"], "results must be an existing folder, got NO."),
        (["table", "EMPTY"], "results must hold runs (folders with a config.yaml), got none in EMPTY."),
        (
            ["table", "RUNS", "--score", "worst"],
            "score must be final, best, auc or last<k>, such as last5, got 'worst'.",
        ),
        (["table", "RUNS", "--normalize", "sac"], "normalize=sac must be used with the MuJoCo tasks"),
        (["table", "RUNS", "--baseline", "dnq"], "got 'dnq'. Did you mean 'dqn'?"),
        (["table", "RUNS", "--published", "rainbow"], "published must be one of mirl, ments, sac, got 'rainbow'."),
        (["table", "RUNS", "--published", "mirl"], "published=mirl must share a game of atari with the results"),
        (["table", "RUNS", "--env", "cart*"], "env must match one of atari/Pong, got cart*."),
        (["table", "RUNS", "--column", "return"], "at least one run with a score, got none"),
        (
            ["table", "RUNS", "--by", "algo.tua"],
            "by must name a setting of the runs, got 'algo.tua'. Did you mean 'algo.tau'?",
        ),
        (["plot", "curves", "RUNS", "--out", "x.gif"], "out must end in .png, .svg, .pdf, got 'x.gif'."),
        (["plot", "curves", "RUNS", "--center", "mode"], "center must be one of mean, iqm, got 'mode'."),
        (["plot", "aggregate", "RUNS", "--normalize", "none"], "normalize must be human or sac to average"),
        (["plot", "aggregate", "RUNS", "--aggregate", "max"], "aggregate must be one of IQM, median"),
        (["plot", "improvement", "RUNS", "--of", "dqn"], "baseline must name a method"),
    ],
)
def test_a_users_error_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list, sentence: str
) -> None:
    make_runs(tmp_path / "RUNS", dqn=1.0)
    (tmp_path / "EMPTY").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert sentence in err and err.startswith("torchrl-reg: ") and err.count("\n") == 1 and out == ""


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n    {name} " in text for name in COMMANDS)
    for name in set(COMMANDS) - {"run"}:  # which lists recipes
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        assert "usage: torchrl-reg " + name in capsys.readouterr().out


def test_launch_and_status_pass_their_words_on(tmp_path: Path) -> None:
    def ask(*words: str, folder: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torchrl_reg.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder)

    pytest.importorskip("submitit")
    done = ask("launch", "sweep=dqn_versus_m_dqn", "dry=true", "check=false", "cluster=local", "sweep.seeds=1")
    assert done.returncode == 0 and done.stdout.count("recipes/q_learning.py +method=m_dqn env=") == 2, done.stderr
    refused = ask("status", "nothing", "--root", str(tmp_path), "--json")
    assert refused.returncode == 1 and "must be the folder of a launched sweep" in refused.stderr


def test_a_table_needs_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    make_runs(tmp_path, dqn=1.0)
    code = (
        "import sys\n"
        "for name in ('torch', 'matplotlib', 'omegaconf', 'scipy'): sys.modules[name] = None\n"
        f"from torchrl_reg.cli import main; sys.exit(main(['table', {str(tmp_path)!r}]))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("words", "package", "extras"),
    [
        (["table", "RUNS"], "numpy", "report"),
        (["plot", "curves", "RUNS"], "matplotlib", "report"),
        (["watch", "RUNS"], "rich", "report"),
        (["report", "RUNS"], "jinja2", "report"),
        (["evaluate", "RUNS"], "torch", "recipes"),
    ],
)
def test_a_missing_package_is_one_sentence(words: list[str], package: str, extras: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None\nfrom torchrl_reg.cli import main; sys.exit(main({words!r}))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    sentence = f"torchrl-reg: {words[0]} needs {package}, got none: pip install 'torchrl_reg[{extras}]'.\n"
    assert (done.returncode, done.stderr) == (1, sentence)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    make_runs(tmp_path, dqn=1.0)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "torchrl_reg.cli", "table", str(tmp_path)],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
