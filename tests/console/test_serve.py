"""The console's parts, opened and closed as a whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from agent.errors import BoardError
from service.console.room import Room
from service.console.serve import open_room


def test_a_folder_is_for_one_console(make_room: Callable[..., Room]) -> None:
    settings = make_room().settings

    async def play() -> None:
        async with open_room(settings, now=time.time, monotonic=time.monotonic):
            with pytest.raises(BoardError, match="another console") as refused:
                await open_room(settings, now=time.time, monotonic=time.monotonic).__aenter__()
            assert refused.value.code == "busy"
        async with open_room(settings, now=time.time, monotonic=time.monotonic) as again:
            assert again.accounts.has_owner()

    asyncio.run(play())
