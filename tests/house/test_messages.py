"""Error messages have one form: ``<argument> must <expected>, got <what came>.``"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: ``X must ..., got Y.``, or ``X needs ..., got Y.`` of what a setting takes.
FORM = re.compile(r"\b(must|needs?)\b.*, got \S.*", re.DOTALL)
#: What happened to a file, a run, a solver or SLURM, where no argument is at fault.
HAPPENED = re.compile(
    r"(could not|cannot) be |is damaged|is being launched|belongs to|does not fit|did not converge|failed: |"
    r"holds a finished run|SLURM refused|: put it back|unexpected keyword argument"
)
#: Of abstract or closed interfaces, and reasons that stand within another sentence.
OTHERS = ("NotImplementedError", "AttributeError", "Undescribed")
REASONS = {"{} bytes follow its last tensor", "its header is cut off", "the bytes of {} do not fit its shape", "{} {}"}
REASONS |= {"no settings in it", "it holds YAML aliases"}


def messages(source: str) -> Iterator[tuple[str, str]]:
    """The exception and the text of every ``raise`` with a text of its own; ``{}`` stands for what is filled in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            text = node.exc.args[0]
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            if all(isinstance(part, ast.FormattedValue | ast.Constant) for part in parts):
                said = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts]
                yield ast.unparse(node.exc.func), "".join(said)


def is_well_formed(kind: str, text: str) -> bool:
    if kind in OTHERS or text in REASONS or text == "{}":
        return True
    return bool(FORM.search(text) or HAPPENED.search(text)) and text.endswith((".", "{}"))


def test_errors_name_the_argument_what_was_expected_and_what_came() -> None:
    paths = [path for room in ("torchrl_reg", "slurm", "recipes") for path in (ROOT / room).rglob("*.py")]
    found = [(str(path.relative_to(ROOT)), *said) for path in paths for said in messages(path.read_text())]
    assert len(found) > 100
    assert [each for each in found if not is_well_formed(*each[1:])] == []


def test_what_counts_as_well_formed() -> None:
    good = ["f'tau must be > 0, got {tau}.'", "f'tau must be > 0, got {tau}'", "f'{path} is damaged: {why}.'"]
    bad = ["'tau must be > 0, got -1'", "f'tau: expected > 0, got {tau}.'", "'tau must be > 0.'", "'Bad things.'"]
    for text in good + bad:
        (said,) = messages(f"raise ValueError({text})")
        assert is_well_formed(*said) == (text in good), text
