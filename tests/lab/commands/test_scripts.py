"""``torchrl-reg run``, ``launch`` and ``status``: scripts by name or path, from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_reg.lab.cli.invocation import script_folder, typed_words
from torchrl_reg.lab.commands.main import main


def test_without_a_name_it_lists_every_recipe(capsys):
    assert main(["run"]) == 0
    listed = capsys.readouterr().out
    assert main(["run", "--help"]) == 0
    assert capsys.readouterr().out == listed
    for path in script_folder("recipes").glob("*.py"):
        assert f"  {path.stem} " in listed


def test_an_unknown_name_is_one_sentence(capsys):
    for name, said in (("m_iqm", "got m_iqm (did you mean m_iqn?)."), ("nothing.py", "a recipe, got nothing.py.")):
        assert main(["run", name]) == 1
        assert said in capsys.readouterr().err


def test_the_words_reach_the_script(tmp_path, monkeypatch, capsys):
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    (tmp_path / "mine.py").write_text("import sys, beside\nprint(__name__, sys.argv[1:], beside.NAME)\nsys.exit(3)\n")
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match="3"):
        main(["run", str(tmp_path / "mine.py"), "-m", "a=b", "--help"])
    assert capsys.readouterr().out == "__main__ ['-m', 'a=b', '--help'] beside\n"


def test_a_finished_run_of_the_same_command_is_known_without_torch(tmp_path):
    run = tmp_path / "results/m_dqn/cartpole/default/seed=0"
    (run / "checkpoints").mkdir(parents=True)
    for name, text in (("command.txt", "torchrl-reg run m_dqn a=1\n"), *((n, "{}") for n in WHOLE)):
        (run / name).write_text(text)
    said = f"already finished: {run.relative_to(tmp_path)}\n"
    assert ask(tmp_path, "m_dqn", "a=1") == said
    # Whatever else there is to say is the recipe's.
    for words in (["a=2"], ["a=1", "-m"], ["a=1", "run.seeds=[0,1]"], ["run.dir=elsewhere", "a=1"]):
        assert ask(tmp_path, "m_dqn", *words) == "torch\n"
    os.utime(run / "done.json", (1, 1))
    assert ask(tmp_path, "m_dqn", "a=1") == "torch\n", "the code is newer"
    os.utime(run / "done.json")
    for name in WHOLE:
        text = (run / name).read_text()
        (run / name).unlink()
        assert ask(tmp_path, "m_dqn", "a=1") == "torch\n", name
        (run / name).write_text(text)


WHOLE = ("metrics.jsonl", "policy.safetensors", "done.json")
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from torchrl_reg.lab.commands.main import main
sys.exit(main(["run", *sys.argv[1:]]))
"""


def ask(where: Path, *words: str) -> str:
    """Output of ``torchrl-reg run``; ``torch`` if it would import torch."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=where)
    return done.stdout or f"{'torch' if 'needs torch' in done.stderr else done.stderr}\n"


def test_what_was_typed_is_on_record_and_in_the_help(tmp_path, monkeypatch, capsys):
    script = "from torchrl_reg.lab.cli.invocation import as_typed, typed_words\n"
    script += "print(typed_words(), as_typed('python recipes/m_dqn.py or python slurm/status.py'))\n"
    (tmp_path / "mine.py").write_text(script)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["run", f"{tmp_path}/mine.py"]) == 0
    typed = f"('torchrl-reg', 'run', '{tmp_path}/mine.py') torchrl-reg run m_dqn or torchrl-reg status\n"
    assert capsys.readouterr().out == typed and typed_words() == ()


def test_launch_and_status_pass_their_words_on(tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(SystemExit, match="0"):
        main(["launch", "sweep=dqn_versus_m_dqn", "dry=true", "check=false", "cluster=local", "sweep.seeds=1"])
    assert capsys.readouterr().out.count("recipes/q_learning.py +method=m_dqn env=") == 2
    with pytest.raises(SystemExit, match="1"):
        main(["status", "nothing", "--root", str(tmp_path), "--json"])
    assert "must be the folder of a launched sweep" in capsys.readouterr().err
