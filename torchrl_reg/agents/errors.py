"""What a user is told when a saved agent cannot be written, read or used as asked."""

from __future__ import annotations


class AgentError(ValueError):
    """A saved agent that is missing, damaged, foreign or unusable as asked; the message is one sentence."""

    user_error = True
