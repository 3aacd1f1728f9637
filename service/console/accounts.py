"""Users, their passwords and sessions."""

from __future__ import annotations


class Accounts:
    """See the module."""
