"""Tables between markers: generated, compared, and refused for unknown markers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from torchrl_reg.lab.analysis.pages import stale_tables, with_tables, write_page
from torchrl_reg.lab.commands.main import main
from torchrl_reg.lab.errors import UserError

TABLES = {"scores": lambda word: f"| score |\n|---|\n| {word or 'all'} |", "one": lambda word: f"{word} 7"}
PAGE = "Prose.\n\n<!-- table: scores -->\n<!-- end -->\n\nA cell <!-- table: one of us -->old<!-- end -->, and more.\n"


def test_tables_are_filled_and_prose_is_left_alone() -> None:
    made = with_tables(PAGE, TABLES, "p.md")
    assert made == (
        "Prose.\n\n<!-- table: scores -->\n\n| score |\n|---|\n| all |\n\n<!-- end -->\n\n"
        "A cell <!-- table: one of us -->of us 7<!-- end -->, and more.\n"
    )
    assert with_tables(made, TABLES, "p.md") == made and list(stale_tables(made, made, "p.md")) == []


def test_what_was_edited_is_shown_beside_what_the_rows_give() -> None:
    made = with_tables(PAGE, TABLES, "p.md")
    said = list(stale_tables(made.replace("| all |", "| 99 |").replace("of us 7", "of us 8"), made, "p.md"))
    assert said[0].startswith("p.md, table scores: the page has '| 99 |' and the rows give '| all |'")
    assert len(said) == 2 and said[1].startswith("p.md, table one of us: ") and "of us 8<" in said[1]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<!-- table: score --><!-- end -->", "p.md must mark tables that exist, got 'score'. Did you mean 'scores'?"),
        ("No marker.", "p.md must hold a marker such as <!-- table: scores -->, got none."),
    ],
)
def test_a_page_without_a_table_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        with_tables(text, TABLES, "p.md")
    assert str(error.value) == sentence
    with pytest.raises(UserError, match="page must be an existing file"):
        write_page(Path("absent.md"), TABLES)


def test_from_runs_to_a_page_in_two_commands(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, value in enumerate((3.0, 4.0, 8.0)):
        make_run(f"runs/seed={seed}", [1.0, value], seed=seed, env="acrobot")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["table", "../runs", "--save", "rows.jsonl"]) == 0
    assert main(["results", "rows.jsonl", "--page", "page.md"]) == 0
    page = Path("page.md").read_text()
    assert (
        page.startswith("<!-- table: runs -->") and "| acrobot | m_dqn | 3 | 200 | 5.0 [-1.6, 11.6] | aaaaaaa |" in page
    )
    Path("page.md").write_text(page.replace("5.0 [", "6.0 [") + "\nMine.\n")
    assert main(["results", "rows.jsonl", "--page", "page.md"]) == 0
    assert Path("page.md").read_text() == page + "\nMine.\n"
