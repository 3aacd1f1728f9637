"""Roll-outs at work in this process, and those of others in the state file."""

from __future__ import annotations


class RollOuts:
    """See the module. An asynchronous context manager: roll-outs run inside the block."""
