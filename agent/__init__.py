"""The work on one board: trust, unseal, plan, compile, train, evaluate, promote, account, touch the hardware."""

__version__ = "0.1.0"
