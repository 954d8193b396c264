"""``torchrl-reg run``, ``launch`` and ``status``: scripts by name or path, from any folder."""

from __future__ import annotations

import sys

import pytest

from torchrl_reg.cli import main
from torchrl_reg.commands.scripts import script_folder


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
