"""Two jobs, or two policies, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agent.keys_consoles import Role
from service.console.compare_curves import csv_text, numbers, picture, rows
from service.console.compare_facts import OF_ENERGY, Job, Verdict, arguments, lines, spans, words
from service.console.compare_policies_page import ROUTES as POLICIES
from service.console.compare_read import MAX_SEARCH, Named, asked, choices, read_job, read_named
from service.console.page import needs, render, room_of, viewer_of
from service.console.texts import translator
from service.fleet.plain import plain

if TYPE_CHECKING:
    from service.console.room import Room

NOT_FOUND = 404
SIDES = ("a", "b")


@needs(Role.VIEWER)
async def show(request: Request) -> Response:
    """Both jobs, or what there is to choose."""
    room = room_of(request)
    named = {side: _named(request, side) for side in SIDES}
    jobs = dict(zip(SIDES, await asyncio.gather(*(_job(room, named[side]) for side in SIDES)), strict=True))
    unknown = [side for side in SIDES if named[side] and not jobs[side]]
    search = request.query_params.get("board", "")[:MAX_SEARCH]
    a, b = jobs["a"], jobs["b"]
    both = a is not None and b is not None
    chosen, more = ([], False) if both else await choices(room, search)
    context: dict[str, Any] = {
        "named": {side: found.text if found else "" for side, found in named.items()},
        "jobs": jobs,
        "unknown": unknown,
        "search": search,
        "choices": chosen,
        "more": more,
        "both": both,
        "of_energy": OF_ENERGY,
        "Verdict": Verdict,
    }
    if a is not None and b is not None:
        context |= {
            "lines": lines(a, b),
            "words_of": words(a, b),
            "arguments": arguments(a, b),
            "rules": spans(a.rules, b.rules),
            "actions": spans(a.actions, b.actions),
            "curves": numbers({"a": a.curves, "b": b.curves}) if a.curves or b.curves else None,
        }
    return render(request, "compare/jobs.html", status=NOT_FOUND if unknown else 200, **context)


@needs(Role.VIEWER)
async def as_picture(request: Request) -> Response:
    """The curves of both as SVG."""
    a, b = await _both(request)
    t = translator(viewer_of(request).language)
    names = {key: t(f"compare.curve.{key}") for key in _keys(a, b)}
    sides = [(_title("A", a), a.curves), (_title("B", b), b.curves)]
    text = picture(t("compare.picture", a=_title("A", a), b=_title("B", b)), sides, names)
    return _file(text, "image/svg+xml", "svg", request)


@needs(Role.VIEWER)
async def as_table(request: Request) -> Response:
    """The figures of both, or with `part=curves` their curves, as CSV."""
    a, b = await _both(request)
    if request.query_params.get("part") == "curves":
        text = rows([(side, job.board, job.id, job.curves) for side, job in (("a", a), ("b", b))])
        return _file(text, "text/csv; charset=utf-8", "csv", request)
    table: list[tuple[object, ...]] = [("figure", "unit", "a", "b", "difference", "better")]
    table += [("board", "", a.board, b.board, "", ""), ("job", "", a.id, b.id, "", "")]
    table += [(one.key, "", plain(one.a), plain(one.b), "", "") for one in words(a, b)]
    for line in lines(a, b):
        values = ("" if value is None else f"{value:.9g}" for value in (line.a, line.b, line.difference))
        table.append((line.key, line.unit, *values, str(line.verdict)))
    told = {True: "modelled", False: "measured", None: "unknown"}
    table.append(("energy", "", told[a.modelled], told[b.modelled], "", ""))
    for kind, found in (("rule", spans(a.rules, b.rules)), ("action", spans(a.actions, b.actions))):
        for name, x, y in found:
            key = f"{kind} {plain(name) or 'others'}"
            table.append((key, "s", f"{x:.9g}", f"{y:.9g}", f"{y - x:.9g}", ""))
    return _file(csv_text(table), "text/csv; charset=utf-8", "csv", request)


def _named(request: Request, side: str) -> Named | None:
    text = request.query_params.get(side, "")
    if not text:
        return None
    found = read_named(text)
    if found is None:
        raise HTTPException(NOT_FOUND, "a job is named BOARD:JOB")
    return found


async def _job(room: Room, named: Named | None) -> Job | None:
    return None if named is None else await read_job(room, named, await asked(room, named))


async def _both(request: Request) -> tuple[Job, Job]:
    a, b = await asyncio.gather(*(_job(room_of(request), _named(request, side)) for side in SIDES))
    if a is None or b is None:
        raise HTTPException(NOT_FOUND, "the store knows no such job")
    return a, b


def _keys(a: Job, b: Job) -> set[str]:
    return set(a.curves) | set(b.curves)


def _title(letter: str, job: Job) -> str:
    return f"{letter}: {job.board} {job.id[-12:]}"


def _file(text: str, kind: str, ending: str, request: Request) -> Response:
    headers: Mapping[str, str] = {}
    if "download" in request.query_params:
        headers = {"content-disposition": f'attachment; filename="temperd-compare.{ending}"'}
    return Response(text, media_type=kind, headers=dict(headers))


ROUTES: list[BaseRoute] = [
    Route("/compare", show),
    Route("/compare.svg", as_picture),
    Route("/compare.csv", as_table),
    *POLICIES,
]
