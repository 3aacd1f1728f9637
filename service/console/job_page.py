"""One job: its history, energy and charts; downloads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from agent.errors import BoardError, NetworkError
from agent.keys_consoles import Role
from service.command_types import COMMAND_ID
from service.console import device_facts as facts
from service.console import job_facts
from service.console.device_chart import ChartQuery
from service.console.device_page import chart_settings, job_actions, unknown_board
from service.console.device_reads import read_chart
from service.console.job_files import JobRows, picture
from service.console.job_reads import JobTold, read_job, read_window, windows
from service.console.page import needs, render, room_of, viewer_of
from service.console.texts import translator, words

UNAVAILABLE = 503
PICTURE_BUCKETS = 600  # the picture has 706 pixels for them
AT_ONCE = frozenset({"cancel", "pause", "resume", "promote", "rollback", "set-policy", "collect-report"})
"""Commands that take no time worth a chart, and no energy that is told."""


@needs(Role.VIEWER)
async def page(request: Request) -> Response:
    """`/device/{name}/jobs/{id}`; with `?live` only the parts that change."""
    viewer, name, job_id = viewer_of(request), request.path_params["name"], request.path_params["id"]
    try:
        job = await read_job(room_of(request), name, job_id)
    except HTTPException:
        return unknown_board(request, name)
    result = job.one.result
    t = translator(viewer.language)
    context: dict[str, Any] = {
        "told": job.told,
        "job": job,
        "one": job.one,
        "gate": job_facts.gate_of(result),
        "energy": job_facts.energy_of(result),
        "warnings": job_facts.warnings_of(result),
        "rest": job_facts.rest_of(result),
        "arguments": _arguments(job),
        "about": _about(job),
        "works": job.one.type not in AT_ONCE,
        "stages": [{"from": stage.since, "to": stage.until, "name": step_words(t, stage.name)} for stage in job.stages],
        "actions": job_actions(name, job.one, viewer),
        "modelled": job.one.energy_is_modelled
        if job.one.energy_is_modelled is not None
        else facts.power_is_modelled(job.told),
    }
    if "live" in request.query_params:
        return render(request, "job/live.html", headers={"Cache-Control": "no-store"}, **context)
    settings = chart_settings(name, viewer.language) | {
        "job": job_id,
        "since": job.since,
        "until": job.until,
        "open": not job.one.ended,
    }
    return render(request, "job/page.html", settings=settings, **context)


def step_words(t: Callable[..., str], name: str) -> str:
    """A stage in words: a step, or a status without one."""
    return t(f"status.step.{name}", t(f"status.{name}", name))


def _arguments(job: JobTold) -> str | None:
    """What the command was asked to do, as JSON; `None`: not known here."""
    given = job.record.details.get("args") if job.record is not None else None
    return job_facts.arguments_text(given) if isinstance(given, dict) else None


def _about(job: JobTold) -> str:
    """The job that the command is about, such as the one to pause; empty: none that is known."""
    given = job.record.details.get("args") if job.record is not None else None
    other = given.get("job") if isinstance(given, dict) else None
    return other if isinstance(other, str) and COMMAND_ID.fullmatch(other) else ""


@needs(Role.VIEWER)
async def svg(request: Request) -> Response:
    """`/device/{name}/jobs/{id}.svg`: the job's charts as one picture."""
    room, language = room_of(request), viewer_of(request).language
    name = request.path_params["name"]
    job = await read_job(room, name, request.path_params["id"])
    query = ChartQuery(job.since, job.until, PICTURE_BUCKETS)
    try:
        numbers = await read_chart(room, name, query)
    except (BoardError, NetworkError) as error:
        return PlainTextResponse(f"{error}\n", UNAVAILABLE)
    t = translator(language)
    modelled = t("device.modelled") if facts.power_is_modelled(job.told) else ""
    kind = t(f"status.type.{job.one.type}", job.one.type)
    stages = [replace(stage, name=step_words(t, stage.name)) for stage in job.stages]
    texts = picture(f"{name}: {kind} {job.one.id}", numbers, stages, job.since, words(language, "device"), modelled)
    return Response(texts, media_type="image/svg+xml", headers=_attached(name, job, "svg"))


@needs(Role.VIEWER)
async def table(request: Request) -> Response:
    """`/device/{name}/jobs/{id}.csv`: the telemetry of the job's span, a row for each message."""
    room, name = room_of(request), request.path_params["name"]
    job = await read_job(room, name, request.path_params["id"])
    rows = JobRows(job.since, job.stages)

    async def lines() -> AsyncIterator[str]:
        yield rows.head()
        for since, until in windows(job):
            yield "".join(rows.rows(await read_window(room, name, rows, since, until)))

    return StreamingResponse(lines(), media_type="text/csv; charset=utf-8", headers=_attached(name, job, "csv"))


def _attached(name: str, job: JobTold, ending: str) -> dict[str, str]:
    file = f"{name}-{job.one.id}.{ending}"
    return {"Content-Disposition": f'attachment; filename="{file}"', "Cache-Control": "no-store"}


ROUTES: list[BaseRoute] = [
    Route("/device/{name}/jobs/{id}.svg", svg, methods=["GET"]),
    Route("/device/{name}/jobs/{id}.csv", table, methods=["GET"]),
    Route("/device/{name}/jobs/{id}", page, methods=["GET"]),
]
