"""Decisions as pure functions: no clock, no file, no sensor, no thread; standard library only."""
