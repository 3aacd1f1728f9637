"""One device: what it is, what it does, its charts, and the report that it was asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from agent.errors import BoardError, CommandError, NetworkError, SpecError
from agent.keys_consoles import Role
from service.command_types import COLLECT_REPORT, KNOWN, SET_POLICY, UPDATE_AGENT, UPDATE_SYSTEM
from service.console import device_facts as facts
from service.console.act_send import may_send, send
from service.console.act_sent import new_token
from service.console.device_chart import (
    DEFAULT_SPAN_S,
    METRICS,
    PANELS,
    SPANS_S,
    ChartNumbers,
    ChartQuery,
    read_chart_query,
)
from service.console.device_reads import NOT_FOUND, checked, known, read_board, read_chart
from service.console.device_report import Report, newest_report, report_of
from service.console.forms import read_form
from service.console.page import Viewer, needs, render, room_of, viewer_of
from service.console.rows import finite
from service.console.texts import translator, words
from service.fleet.boards import table

TABLE_BUCKETS = 60  # of the page for whoever has no scripts: a minute each of an hour
SEE_OTHER, UNPROCESSABLE, UNAVAILABLE = 303, 422, 503
ABOUT_JOBS = ("pause", "resume", "cancel", "promote")
"""Commands that name a job: they stand beside the job, not in the list."""
WRITTEN_S = 60.0  # the word that a report was made is heard at once, the report comes with the store's next portion
REFRESH_S = "1"
ORDER = ("fine-tune", "evaluate", "set-policy", "rollback", "scrub", "qualify", UPDATE_AGENT, UPDATE_SYSTEM)
RULE_WORDS = ("rule", "alarm", "status.action")


@dataclass(frozen=True, slots=True)
class Action:
    """Something that may be sent to the board: its type and the page that asks for it."""

    type: str
    href: str


def actions(told: facts.Told, viewer: Viewer) -> list[Action]:
    """What this viewer may send to this board, as far as it carries it out; commands about jobs are not among it."""
    able = told.board.capabilities if told.board is not None else {}
    return [
        Action(kind, f"/device/{told.name}/policy" if kind == SET_POLICY else f"/device/{told.name}/act/{kind}")
        for kind in ORDER
        if may_send(viewer, kind) and table(able.get(kind)).get("supported") is not False and kind in KNOWN
    ]


def job_actions(name: str, one: facts.Command | None, viewer: Viewer) -> list[Action]:
    """What may be done to a command now, by its status."""
    if one is None:
        return []
    wanted: list[str] = []
    if one.ended:
        wanted = ["promote"] if one.status == "succeeded" and one.result.get("staged") is True else []
    elif one.type in ("", "fine-tune"):
        wanted = ["resume" if one.status == "paused" and one.reason_code == "held" else "pause", "cancel"]
    elif one.type in ("qualify", "evaluate", "promote", "rollback", UPDATE_AGENT, UPDATE_SYSTEM):
        wanted = ["cancel"]
    return [Action(kind, f"/device/{name}/act/{kind}?job={one.id}") for kind in wanted if may_send(viewer, kind)]


def chart_settings(name: str, language: str) -> dict[str, Any]:
    """What the scripts of the charts need: panels with their words, and the words of rules and alarms."""
    t = translator(language)
    return {
        "board": name,
        "panels": [
            {
                "name": panel.name, "title": t(f"device.panel.{panel.name}"), "unit": panel.unit,
                "digits": panel.digits, "low": panel.low, "high": panel.high,
                "curves": [
                    {
                        "metric": curve.metric, "label": t(f"device.curve.{curve.name}"), "scale": curve.scale,
                        "steps": curve.steps, "dashed": curve.dashed, "unit": curve.unit or panel.unit,
                        "holds": curve.holds_s,
                    }
                    for curve in panel.curves
                ],
            }
            for panel in PANELS
        ],
        "spans": list(SPANS_S),
        "span": DEFAULT_SPAN_S,
        "words": dict(words(language, "device.script")),
        "rules": dict(words(language, "rule")),
        "alarms": dict(words(language, "alarm")),
        "actions": dict(words(language, "status.action")),
    }  # fmt: skip


@needs(Role.VIEWER)
async def page(request: Request) -> Response:
    """`/device/{name}`; with `?live` only the parts that change."""
    room, viewer, name = room_of(request), viewer_of(request), request.path_params["name"]
    try:
        told, trouble = await read_board(room, name)
    except HTTPException:
        return unknown_board(request, name)
    commands = [facts.command(*item) for item in told.commands]
    current = facts.current(commands)
    readings = told.latest["board"][1] if "board" in told.latest else {}
    context: dict[str, Any] = {
        "told": told,
        "trouble": trouble,
        "state": str(facts.state_of(told)),
        "online": bool(told.row.online) if told.row else bool(told.board and told.board.online),
        "since": finite(told.board.conn.get("ts")) if told.board else None,
        "clock": facts.text(told.birth.get("clock"), 32),
        "birth": told.birth,
        "release": table(told.birth.get("release")),
        "policy": table(told.birth.get("policy")),
        "about": table(told.birth.get("board")),
        "commands": commands,
        "current": current,
        "current_actions": job_actions(name, current, viewer),
        "staged_actions": {one.id: job_actions(name, one, viewer) for one in commands if one.ended},
        "readings": {key: facts.text(readings.get(key), 64) for key in ("action", "rule", "power_source")},
        "modelled": facts.power_is_modelled(told),
        "actions": actions(told, viewer),
        "models": facts.models(told.birth, commands),
        "sensors": facts.sensors(told),
        "alarms": facts.raised(told.alarms),
        "tiles": facts.tiles(told),
        "groups": [
            (group, ts, facts.cells(group, values, told.birth))
            for group, (ts, values) in list(told.latest.items())[: facts.MAX_TABLES]
        ],
        "updates": [one for one in commands if one.type in (UPDATE_AGENT, UPDATE_SYSTEM)][:5],
        "may_report": may_send(viewer, COLLECT_REPORT),
        "token": new_token(),
    }
    if "live" in request.query_params:
        return render(request, "device/live.html", headers={"Cache-Control": "no-store"}, **context)
    return render(request, "device/page.html", settings=chart_settings(name, viewer.language), **context)


def unknown_board(request: Request, name: str) -> Response:
    """The page that says that there is no such board."""
    return render(request, "device/unknown.html", status=NOT_FOUND, name=name[:63])


@needs(Role.VIEWER)
async def numbers(request: Request) -> Response:
    """`/device/{name}/table`: what the charts show, for whoever has no scripts."""
    room, name = room_of(request), request.path_params["name"]
    checked(name)
    error, found = "", ChartNumbers((), {}, 0.0, 0.0)
    query = ChartQuery(room.now() - DEFAULT_SPAN_S, room.now())
    status = 200
    try:
        query = read_chart_query({**request.query_params, "buckets": str(TABLE_BUCKETS), "metrics": ""}, room.now())
        found = await read_chart(room, name, query)
    except SpecError as raised:
        error, status = str(raised), UNPROCESSABLE
    except (BoardError, NetworkError) as raised:
        error, status = str(raised), UNAVAILABLE
    if not found.starts and not known(room, name):
        return unknown_board(request, name)
    shown = [metric for metric in METRICS if found.summary(metric)]
    curves = {curve.metric: (panel, curve) for panel in PANELS for curve in panel.curves}
    rows = [
        (ts, [_last(found, metric, at, curves[metric][1].scale) for metric in shown])
        for at, ts in reversed(list(enumerate(found.starts)))
    ]
    return render(
        request, "device/table.html", status=status,
        name=name, query=query, error=error, numbers=found, rows=rows, spans=SPANS_S,
        curves=[curves[metric] for metric in shown],
    )  # fmt: skip


def _last(found: ChartNumbers, metric: str, at: int, scale: float) -> float | None:
    value = found.columns[metric][2][at]
    return None if value is None or not math.isfinite(value) else value * scale


@needs(Role.OPERATOR)
async def report(request: Request) -> Response:
    """`/device/{name}/report`: the newest report of the board."""
    return await _report_page(request)


async def _report_page(request: Request, error: str = "", status: int = 200) -> Response:
    found = await _newest(request)
    if found is None:
        return unknown_board(request, request.path_params["name"])
    told, asked, made = found
    waits = facts.known_job(request.query_params.get("asked"))  # just sent: its board has not answered yet
    if waits and (asked is None or asked.id < waits):
        asked = facts.command(waits, COLLECT_REPORT, {})
    headers = {"Cache-Control": "no-store"}
    if asked is not None and asked.status == "succeeded" and not asked.result and told.now - asked.begun < WRITTEN_S:
        headers["Refresh"] = REFRESH_S
    return render(
        request, "device/report.html", status=status, headers=headers,
        told=told, asked=asked, report=made, error=error, token=new_token(),
    )  # fmt: skip


async def _newest(request: Request) -> tuple[facts.Told, facts.Command | None, Report | None] | None:
    """The board, the newest command that asked for a report, and the newest report that came; `None`: no such board."""
    try:
        told, _ = await read_board(room_of(request), request.path_params["name"])
    except HTTPException:
        return None
    commands = [facts.command(*item) for item in told.commands]
    asked = next((one for one in commands if one.type == COLLECT_REPORT), None)
    return told, asked, newest_report(commands)


@needs(Role.OPERATOR)
async def ask_report(request: Request) -> Response:
    """Send `collect-report`; a second post of one form sends nothing more."""
    room, viewer, name = room_of(request), viewer_of(request), request.path_params["name"]
    checked(name)
    form = await read_form(request)
    try:
        asked = await send(room, viewer, name, COLLECT_REPORT, {}, token=form.get("token", ""))
    except (SpecError, CommandError) as error:
        return await _report_page(request, str(error), UNPROCESSABLE)
    except (BoardError, NetworkError) as error:
        return await _report_page(request, str(error), UNAVAILABLE)
    return RedirectResponse(f"/device/{name}/report?asked={asked}", SEE_OTHER)


@needs(Role.OPERATOR)
async def report_file(request: Request) -> Response:
    """`/device/{name}/report/{id}.json`: a report as a file."""
    name, wanted = request.path_params["name"], request.path_params["id"]
    checked(name, wanted)
    told, _ = await read_board(room_of(request), name)
    found = next((facts.command(*item) for item in told.commands if item[0] == wanted), None)
    if found is None or report_of(found) is None:
        raise HTTPException(NOT_FOUND)
    body: Mapping[str, Any] = json.loads(json.dumps(found.result), parse_constant=lambda _: None)
    headers = {"Content-Disposition": f'attachment; filename="{name}-report.json"', "Cache-Control": "no-store"}
    return JSONResponse(body, headers=headers)


ROUTES: list[BaseRoute] = [
    Route("/device/{name}", page, methods=["GET"]),
    Route("/device/{name}/table", numbers, methods=["GET"]),
    Route("/device/{name}/report", report, methods=["GET"]),
    Route("/device/{name}/report", ask_report, methods=["POST"]),
    Route("/device/{name}/report/{id}.json", report_file, methods=["GET"]),
]
