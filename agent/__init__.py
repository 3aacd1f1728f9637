"""The work on one board: trust, unseal, plan, compile, train, evaluate, promote, account, touch the hardware."""
