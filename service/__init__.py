"""The long-running daemon around the agent: job machine, journal, link, commands, CLI."""
