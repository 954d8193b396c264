"""What a check found: a line for each thing tried, with the number expected, the one seen, and the known error.

Statuses are ``"pass"``, ``"fail"`` and ``"n/a"``: not applicable, skipped, or not claimed; the note says which.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchrl_reg.printable import printable
from torchrl_reg.testing.mistakes import KNOWN_ERRORS


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Args:
        name: what.
        status: ``"pass"``, ``"fail"`` or ``"n/a"``.
        expected, got: the numbers compared, where they differ most.
        errors: names of known errors, of :data:`KNOWN_ERRORS`.
        note: where the numbers are from, or why it was not tried.
    """

    name: str
    status: str
    expected: float | None = None
    got: float | None = None
    errors: tuple[str, ...] = ()
    note: str = ""


def compared(
    name: str,
    expected: Tensor,
    got: Tensor,
    errors: Sequence[str] = (),
    note: str = "",
    rtol: float = 1e-4,
    atol: float = 1e-6,
) -> Check:
    """Passes if two tensors are equal to ``rtol`` and ``atol``; has the numbers where they differ most."""
    expected, got = expected.detach().double().flatten(), got.detach().double().flatten()
    worst, right = int((expected - got).abs().argmax()), torch.allclose(expected, got, rtol=rtol, atol=atol)
    numbers = expected[worst].item(), got[worst].item()
    return Check(name, "pass", *numbers) if right else Check(name, "fail", *numbers, tuple(errors), note)


def raised(error: Exception) -> str:
    """``raises ...``, in one line."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    said = (str(error).strip() or repr(error)).splitlines()[0]
    return f"raises {type(error).__name__}: {said[:80]}"


def tried(name: str) -> Callable[[Callable[..., Check]], Callable[..., Check]]:
    """Of a check that a stranger's loss may answer with any exception: that is not applicable."""

    def decorated(check: Callable[..., Check]) -> Callable[..., Check]:
        @functools.wraps(check)
        def safe(*args: Any, **kwargs: Any) -> Check:
            try:
                return check(*args, **kwargs)
            except Exception as error:
                return Check(name, "n/a", note=raised(error))

        return safe

    return decorated


@dataclass
class Report:
    """All checks of one loss.

    Args:
        loss: its name. claim: what it was held to, in words. checks: in the order they were made.
    """

    loss: str
    claim: str
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True if nothing failed."""
        return all(check.status != "fail" for check in self.checks)

    @property
    def errors(self) -> list[str]:
        """Names of the known errors that were seen, each once."""
        return list(dict.fromkeys(name for check in self.checks for name in check.errors))

    def as_dict(self) -> dict[str, object]:
        """All of it, for JSON, which has no NaN: None."""
        checks = [
            {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in vars(check).items()}
            for check in self.checks
        ]
        return {"loss": self.loss, "claim": self.claim, "passed": self.passed, "errors": self.errors, "checks": checks}

    def rows(self) -> list[tuple[str, ...]]:
        """The checks as text: name, status, expected, got, and the errors or the note."""

        def number(value: float | None) -> str:
            return "" if value is None else f"{value:.6g}"

        return [
            (c.name, c.status, number(c.expected), number(c.got), printable("; ".join([*c.errors, c.note]).strip("; ")))
            for c in self.checks
        ]

    def summary(self) -> str:
        """How many passed, and what each error that was seen means."""
        counts = [f"{sum(c.status == status for c in self.checks)} {status}" for status in ("pass", "fail", "n/a")]
        lines = [", ".join(counts), *(f"{name}: {KNOWN_ERRORS[name]}." for name in self.errors)]
        if not self.passed and not self.errors:
            lines.append("No known errors, alone or two together, explain these numbers.")
        return "\n".join(lines)

    def __str__(self) -> str:
        header = ("check", "status", "expected", "got", "known error, or note")
        title = f"{self.loss} as {self.claim}"
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            table = [header, *self.rows()]
            widths = [max(len(row[i]) for row in table) for i in range(4)]
            lines = [
                "  ".join([f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)] + [row[4]]) for row in table
            ]
            return "\n".join([title, *(line.rstrip() for line in lines), self.summary()])
        drawn = Table(title=title, title_justify="left")
        for name in header:
            drawn.add_column(name, justify="right" if name in ("expected", "got") else "left")
        for row in self.rows():
            drawn.add_row(*(Text(cell) for cell in row))
        console = Console(file=io.StringIO(), width=120)
        console.print(drawn)
        return f"{console.file.getvalue()}{self.summary()}"  # type: ignore[attr-defined]
