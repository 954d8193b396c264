"""What a user is told when finished runs cannot be read, compared or shown as asked."""

from __future__ import annotations


class AnalysisError(ValueError):
    """What was asked of finished runs cannot be done; the message is one sentence saying what to change."""
