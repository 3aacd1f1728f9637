"""Two policies key by key, and the jobs that ran under each as far as boards told when it was in force."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.board.profile import named_policy_text, policy_names
from agent.errors import SpecError
from policies.policy import Policy, PolicyError, differences, parse_policy
from service.command_types import COMMAND_ID, FINE_TUNE, SET_POLICY
from service.console.audit import Wanted
from service.console.compare_facts import short
from service.console.compare_read import span_of, time_of
from service.console.device_reads import parsed
from service.fleet.boards import number, table
from service.fleet.store import Filter

if TYPE_CHECKING:
    from service.console.audit import Audit, Record
    from service.fleet.store import Store

MAX_SENT = 50  # policies of the audit trail to choose from
MAX_BOARDS = 200  # whose commands are read for one page: some 50 each, a fifth of a second
MAX_STATUSES = 500  # of one board
MAX_JOBS = 20  # that are shown of one policy
SHIPPED, SENT, TEXT = "ship:", "sent:", "text"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A policy that was parsed.

    Attributes:
        key: as the form names it: `ship:default`, `sent:17` (number of the audit record) or `text`.
        policy: what it says.
        sha256: of its text, as boards tell it.
    """

    key: str
    policy: Policy
    sha256: str


@dataclass(frozen=True, slots=True)
class KeyLine:
    """One key in which two policies differ."""

    key: str
    a: object
    b: object
    difference: float | None
    """The second less the first, where both are numbers."""


class Under(NamedTuple):
    """A job that ran from begin to end under one policy."""

    board: str
    id: str
    status: str
    metric: str
    score: float | None
    wall_s: float | None
    joules_per_sample: float | None
    modelled: bool | None


@dataclass(frozen=True, slots=True)
class Lived:
    """What is known of jobs under one policy.

    Attributes:
        jobs: the newest of each board, at most `MAX_JOBS`.
        count: how many there are.
        boards: how many boards said that it was in force on them.
    """

    jobs: tuple[Under, ...]
    count: int
    boards: int


def shipped(name: str) -> Chosen:
    """A policy that ships.

    Raises:
        SpecError: none has that name.
    """
    if name not in policy_names():
        raise SpecError(f"no policy that ships is called {name[:64]!r}")
    return made_of(SHIPPED + name, named_policy_text(name))


def made_of(key: str, text: str) -> Chosen:
    """A policy of a text.

    Raises:
        SpecError: it is none; says where.
    """
    try:
        policy = parse_policy(text)
    except PolicyError as error:
        raise SpecError(str(error), where=key) from error
    return Chosen(key, policy, hashlib.sha256(text.encode()).hexdigest())


def sent(audit: Audit) -> list[Record]:
    """Records of policies that were sent from here and whose text is in them, newest first."""
    return [record for record in audit.page(Wanted(action=SET_POLICY, rows=MAX_SENT)) if text_of(record) is not None]


def text_of(record: Record) -> str | None:
    """The text of a policy that was sent; `None`: it is not kept, or it was a reset."""
    args = table(record.details.get("args"))
    for found in (record.details.get("text"), args.get("text")):
        if isinstance(found, str) and found:
            return found
    name = args.get("name")
    return named_policy_text(name) if isinstance(name, str) and name in policy_names() else None


def read_sent(audit: Audit, number: str) -> Chosen:
    """A policy of the audit trail, by the number of its record.

    Raises:
        SpecError: that record holds none.
    """
    for record in sent(audit):
        text = text_of(record)
        if str(record.id) == number and text is not None:
            return made_of(SENT + number, text)
    raise SpecError(f"the audit trail has no policy under the number {number[:20]!r}")


def key_lines(a: Policy, b: Policy) -> list[KeyLine]:
    """The keys in which they differ, with dots."""
    found = []
    for key, (x, y) in differences(a, b).items():
        before, after = number(x), number(y)
        difference = after - before if before is not None and after is not None else None
        found.append(KeyLine(key, x, y, difference))
    return found


def look(store: Store, tenant: str, prefix: str, digests: Sequence[str], now: float) -> tuple[list[Lived], int, bool]:
    """Of each policy, by the SHA-256 of its text, the jobs under it; how many boards were read, and whether more fit.

    A policy is known to be in force from a `set-policy` that succeeded to the next one. What a file or a profile put in
    force is not dated, so jobs under it are not told.
    """
    boards = store.devices(Filter(tenant=tenant, prefix=prefix, limit=MAX_BOARDS + 1), now)
    jobs: list[list[Under]] = [[] for _ in digests]
    seen = [0 for _ in digests]
    for board in boards[:MAX_BOARDS]:
        types = store.types(tenant, board.name)
        bodies = [parsed(text) for text in store.statuses(tenant, board.name)[:MAX_STATUSES]]
        spans = in_force([body for body in bodies if types.get(_id(body)) == SET_POLICY], now)
        for index, digest in enumerate(digests):
            held = [(since, until) for since, until, name in spans if name == digest]
            seen[index] += bool(held)
            if held:
                jobs[index] += _under(board.name, [body for body in bodies if types.get(_id(body)) == FINE_TUNE], held)
    lived = [Lived(tuple(found[:MAX_JOBS]), len(found), seen[index]) for index, found in enumerate(jobs)]
    return lived, min(len(boards), MAX_BOARDS), len(boards) > MAX_BOARDS


def in_force(bodies: Iterable[Mapping[str, Any]], now: float) -> list[tuple[float, float, str]]:
    """From when to when which policy was in force, by what a board answered to `set-policy`; oldest first."""
    told = []
    for body in bodies:
        result, when = table(body.get("result")), time_of(body)
        if body.get("status") == "succeeded" and when is not None and {"sha256", "source"} <= result.keys():
            told.append((when, short(result.get("sha256")) if result.get("source") == "command" else ""))
    told.sort()
    told.append((now, ""))
    return [(when, end, digest) for (when, digest), (end, _) in itertools.pairwise(told) if digest]


def _id(body: Mapping[str, Any]) -> str:
    """The command that a status is of; empty: that is no id."""
    found = body.get("id")
    return found if isinstance(found, str) and COMMAND_ID.fullmatch(found) else ""


def _under(board: str, bodies: Sequence[Mapping[str, Any]], held: Sequence[tuple[float, float]]) -> list[Under]:
    found = []
    for body in bodies:
        job = _id(body)
        if not job:
            continue
        began, ended = span_of(job, body, [])
        if began is None or ended is None or not any(since <= began and ended <= until for since, until in held):
            continue
        result = table(body.get("result"))
        energy, metric = table(result.get("energy")), short(result.get("metric"))
        modelled = energy.get("modelled")
        found.append(
            Under(
                board=board,
                id=job,
                status=short(body.get("status")),
                metric=metric,
                score=number(result.get(f"{metric}_after")),
                wall_s=number(result.get("wall_s")),
                joules_per_sample=number(energy.get("joules_per_sample")),
                modelled=modelled if isinstance(modelled, bool) else None,
            )
        )
    return found
