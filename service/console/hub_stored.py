"""What the hub reads from the store: the list at the start, and what a board said while nobody else can tell."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

from agent.errors import TemperdError
from service.console.reads import Reads
from service.fleet.boards import MAX_BOARDS, table
from service.fleet.store import DeviceRow, Filter, Store

STORED_STATUSES = 20  # of one board, as many as are kept of what is heard

Said = list[tuple[str, dict[str, Any]]]
"""Levels below a board's root, and what was said there."""


async def stored_devices(reads: Reads, tenant: str, now: float) -> dict[str, DeviceRow]:
    """Every device of a tenant by name, as many as a list holds.

    Raises:
        BoardError, NetworkError: the store cannot be read.
    """
    found: dict[str, DeviceRow] = {}
    wanted = Filter(tenant=tenant)
    while len(found) < MAX_BOARDS:
        page = await reads(lambda store, wanted=wanted: store.devices(wanted, now))  # type: ignore[misc]
        found |= {row.name: row for row in page}
        if len(page) < wanted.limit:
            break
        wanted = replace(wanted, after=(page[-1].tenant, page[-1].name))
    return found


async def stored_words(reads: Reads, tenant: str, name: str) -> Said:
    """The newest statuses of a board, and its alarms, as the board said them.

    Raises:
        BoardError, NetworkError: the store cannot be read.
    """

    def ask(store: Store) -> tuple[dict[str, str], list[str], list[str]]:
        return store.types(tenant, name), store.statuses(tenant, name)[:STORED_STATUSES], store.alarms(tenant, name)

    types, statuses, alarms = await reads(ask)
    found: Said = []
    for body in (table(json.loads(text)) for text in statuses):
        command_id = str(body.get("id"))
        found.append((f"cmd/{types.get(command_id, '')}/{command_id}/sts", body))
    return found + [(f"a/{body.get('type')}", body) for body in (table(json.loads(text)) for text in alarms)]


async def stored_birth(reads: Reads, tenant: str, name: str) -> dict[str, Any]:
    """The whole birth of a board; empty where the store has none, or cannot be read."""
    with contextlib.suppress(TemperdError, ValueError):
        text = await reads(lambda store: store.birth(tenant, name))
        return table(json.loads(text)) if text else {}
    return {}
