"""Answers to commands that are no jobs: in the ledger before they are told, told until the broker confirmed them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping

from service.command_types import COLLECT_REPORT, Command
from service.journal import Journal
from service.kept import recall_table
from service.logs import logger
from service.statuses import Statuses

RECENT = "answers"
"""Name in the journal's memory: the latest commands answered here, their types by id."""
RECENT_KEPT = 50  # told once more after a start or when the broker lost all: 20 KB on the wire
RESULTS = "answer-results"
"""The same: what the latest of them gave, by id."""
RESULTS_KEPT = 8  # a policy that changes every key gives 10 KB; written with each answer that has a result
MAX_REASON = 200  # characters of the ledger's ten thousand rows

log = logger("commands")


class Answers:
    """See the module.

    Args:
        journal: the ledger.
        statuses: publishes.
        long_result: what a command gave that is too long to be kept here, by its id; `None` where nothing is kept.
    """

    def __init__(self, journal: Journal, statuses: Statuses, long_result: Callable[[str], object]) -> None:
        self._journal, self._statuses, self._long_result = journal, statuses, long_result
        recent = recall_table(journal, RECENT)
        self._recent = {key: kind for key, kind in recent.items() if isinstance(kind, str)}
        self._results: dict[str, object] = recall_table(journal, RESULTS)
        self._waiting = dict(self._recent)
        self._in_flight: set[str] = set()
        self._fresh: set[str] = set()
        """Answers of this start that the broker has not confirmed."""

    def give(
        self,
        command: Command,
        status: str,
        code: str = "",
        reason: str = "",
        *,
        marks: Mapping[str, str] | None = None,
        result: Mapping[str, object] | None = None,
    ) -> None:
        """End a command: durable together with `marks`, see `Journal.record`, then told.

        Raises:
            BoardError: the disk refuses; nothing was told.
        """
        recent = [(key, kind) for key, kind in self._recent.items() if key != command.id][1 - RECENT_KEPT :]
        kept, results = {**dict(recent), command.id: command.type}, self._results
        whole = {**(marks or {}), RECENT: json.dumps(kept)}
        if result is not None:
            results = {**dict(list(results.items())[1 - RESULTS_KEPT :]), command.id: result}
            whole[RESULTS] = json.dumps(results, allow_nan=False)
        outcome = ":".join((status, code, reason[:MAX_REASON])).rstrip(":")
        self._journal.record(command.id, command.digest, outcome, whole)
        self._recent, self._results = kept, results
        self._fresh = (self._fresh & kept.keys()) | {command.id}
        self._waiting[command.id] = command.type
        self._tell(command.id, command.type)

    def repeat(self, command_id: str, kind: str) -> None:
        """Tell the answer of a command that has one once more."""
        self._tell(command_id, kind)

    def publish_pending(self) -> None:
        """Tell what the broker has not confirmed."""
        for command_id, kind in list(self._waiting.items()):
            if command_id not in self._in_flight:
                self._tell(command_id, kind)

    def broker_lost(self, latest: int = RECENT_KEPT) -> None:
        """The broker lost what it kept, or the latest of it: so many answers are told once more."""
        self._waiting = dict(list(self._recent.items())[-latest:]) | self._waiting

    def _tell(self, command_id: str, kind: str) -> None:
        outcome = self._journal.outcome(command_id)
        if outcome is None:  # older than the ledger
            self._waiting.pop(command_id, None)
            return
        status, code, reason = (*outcome.split(":", 2), "", "")[:3]
        result = self._results.get(command_id) or self._long_result(command_id)
        if result is None and kind == COLLECT_REPORT and status == "succeeded":
            if command_id not in self._fresh:
                self._waiting.pop(command_id, None)  # without its report, the answer would replace a better one
                return
            reason = "a later report has taken its place"
        done = self._statuses.publish_plain(kind, command_id, status, code, reason, result=result)
        if done is not None:
            self._in_flight.add(command_id)
            done.add_done_callback(lambda future: self._answered(command_id, future))

    def _answered(self, command_id: str, future: asyncio.Future[bool]) -> None:
        self._in_flight.discard(command_id)
        if future.result():
            self._fresh.discard(command_id)
            # Only here: that it is told once more after a start costs less than a write for each.
            self._waiting.pop(command_id, None)
