"""``pytest -p torchrl_reg.testing.pytest_plugin --check-loss "my_module:MyLoss method=m_dqn tau=0.5"``: a test a loss.

The words after the loss are those of :func:`~torchrl_reg.testing.check_loss`. In an ``ini`` file: ``addopts``.
"""

from __future__ import annotations

import ast
from typing import Any

import pytest

from torchrl_reg.testing.loss import check_loss, imported


class LossItem(pytest.Item):
    """Passes if the loss does, and shows the report if it does not."""

    def runtest(self) -> None:
        """Check it."""
        loss, *words = self.name.split()
        pairs = (word.split("=", 1) for word in words)
        claims: dict[str, Any] = {name: _value(text) for name, text in pairs}
        report = check_loss(imported(loss), **claims)
        if not report.passed:
            pytest.fail(str(report), pytrace=False)


def pytest_addoption(parser: Any) -> None:
    """Adds ``--check-loss``."""
    parser.addoption("--check-loss", action="append", default=[], metavar="LOSS", help="my_module:MyLoss, to check")


def pytest_collection_modifyitems(session: Any, config: Any, items: list[Any]) -> None:
    """Adds the losses to the tests."""
    items.extend(LossItem.from_parent(session, name=loss) for loss in config.getoption("check_loss"))


def _value(text: str) -> Any:
    """A number, a flag, or the word itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
