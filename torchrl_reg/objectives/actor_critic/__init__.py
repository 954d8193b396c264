"""Losses with a policy of their own: over critics Q(s, a), or over a value network."""
