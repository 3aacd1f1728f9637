"""Charts and details of a device, as JSON."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from agent.errors import BoardError, NetworkError, SpecError
from agent.keys_consoles import Role
from service.console.device_chart import as_csv, as_json, read_chart_query
from service.console.device_facts import cells, command, raised, sensors, state_of
from service.console.device_reads import checked, known, parsed, read_board, read_chart
from service.console.page import needs, room_of

UNPROCESSABLE, UNAVAILABLE, NOT_FOUND = 422, 503, 404
NO_STORE = {"Cache-Control": "no-store"}


def refused(error: Exception, status: int) -> JSONResponse:
    """An error in words, for scripts."""
    return JSONResponse({"error": str(error)}, status, headers=NO_STORE)


@needs(Role.VIEWER)
async def chart(request: Request) -> Response:
    """`/api/device/{name}/chart`: see `read_chart_query` for what it takes."""
    room, name = room_of(request), request.path_params["name"]
    checked(name)
    try:
        query = read_chart_query(request.query_params, room.now())
        alarms = await room.reads(lambda store: store.alarms(room.settings.tenant, name))
        numbers = await read_chart(room, name, query, map(parsed, alarms))
    except SpecError as error:
        return refused(error, UNPROCESSABLE)
    except (BoardError, NetworkError) as error:
        return refused(error, UNAVAILABLE)
    if not numbers.starts and not known(room, name):
        return JSONResponse({"error": "no such board"}, NOT_FOUND, headers=NO_STORE)
    if query.format == "csv":
        headers = NO_STORE | {"Content-Disposition": f'attachment; filename="{name}.csv"'}
        text = await asyncio.to_thread(as_csv, numbers)
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)
    # On a thread: 2,000 columns of 16 metrics take a twentieth of a second to write down.
    return await asyncio.to_thread(lambda: JSONResponse(as_json(query, numbers), headers=NO_STORE))


@needs(Role.VIEWER)
async def details(request: Request) -> Response:
    """`/api/device/{name}`: what the page tells, for scripts."""
    told, trouble = await read_board(room_of(request), request.path_params["name"])
    body: dict[str, Any] = {
        "name": told.name,
        "state": str(state_of(told)),
        "online": bool(told.row.online) if told.row else bool(told.board and told.board.online),
        "sensors": dict(sensors(told)),
        "alarms": [
            {"type": alarm.type, "severity": alarm.severity, "since": alarm.since, "reason": alarm.reason}
            for alarm in raised(told.alarms)
        ],
        "telemetry": {
            group: {
                "ts": ts,
                "values": {cell.key: cell.text if cell.value is None else cell.value
                           for cell in cells(group, values, told.birth)},
            }
            for group, (ts, values) in told.latest.items()
        },
        "commands": [
            {
                "id": one.id, "type": one.type, "status": one.status, "step": one.step, "progress": one.progress,
                "eta_s": one.eta_s, "reason_code": one.reason_code, "reason": one.reason, "ts": one.ts,
                "energy_j": one.energy_j,
            }
            for one in (command(*item) for item in told.commands)
        ],
        "trouble": trouble,
    }  # fmt: skip
    return JSONResponse(body, headers=NO_STORE)


ROUTES: list[BaseRoute] = [
    Route("/api/device/{name}", details, methods=["GET"]),
    Route("/api/device/{name}/chart", chart, methods=["GET"]),
]
