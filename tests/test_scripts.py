"""``torchrl-reg run``: recipes by name or path, from any folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from torchrl_reg.cli import main
from torchrl_reg.commands.scripts import script_folder


def test_without_a_name_it_lists_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 0
    listed = capsys.readouterr().out
    assert main(["run", "--help"]) == 0
    assert capsys.readouterr().out == listed
    for path in script_folder("recipes").glob("*.py"):
        assert f"  {path.stem} " in listed


def test_an_unknown_name_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "m_iqm"]) == 1
    assert "got m_iqm (did you mean m_iqn?)." in capsys.readouterr().err
    assert main(["run", "nothing.py"]) == 1
    assert "or the path of a recipe, got nothing.py." in capsys.readouterr().err


def test_the_words_reach_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    (tmp_path / "mine.py").write_text("import sys, beside\nprint(__name__, sys.argv[1:], beside.NAME)\nsys.exit(3)\n")
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as end:
        main(["run", str(tmp_path / "mine.py"), "-m", "a=b", "--help"])
    assert end.value.code == 3
    assert capsys.readouterr().out == "__main__ ['-m', 'a=b', '--help'] beside\n"
