"""What the governor learnt of the board, kept in the board's record from one start of the daemon to the next."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from agent.board.record import BoardRecord, read_record, write_record
from agent.errors import TemperdError
from agent.strict_json import canonical
from policies.strict import TableError
from service.logs import logger
from service.steering import Steering

SAVE_EVERY_S = 600.0  # while a job trains: what ten minutes teach is learnt again in ten, and a card wears by writes

NOT_FINITE = "not-finite"

log = logger("governor")


class Learnt:
    """Loads the models of this board at the start, and saves them when a job has ended and now and then.

    Args:
        state: folder of the record.
        board: the device-tree model; a record of another board is not used.
        profile: name of the board's profile.
        steering: what learns.
    """

    def __init__(self, state: Path, board: str, profile: str, steering: Steering) -> None:
        self._state, self._board, self._profile, self._steering = state, board, profile, steering
        self._worked, self._saved_s = False, 0.0
        self._kept = b""
        self._refused = ""

    def load(self) -> None:
        """Give the governor what was learnt before. A record that is broken or wrong costs what was learnt, no more."""
        try:
            found = read_record(self._state, self._board)
            if found.complaint:
                log.warning("what was learnt of the board is not used", why=found.complaint)
            if found.record and found.record.models:
                self._steering.take_learnt(found.record.models)
                self._kept = canonical(found.record.models)
        except (TemperdError, TableError) as error:
            log.warning("what was learnt of the board is not used", why=str(error))

    def tick(self, mono_s: float, *, working: bool) -> None:
        """Call once a second; `working` says whether a job is at work."""
        ended, self._worked = self._worked and not working, working
        if not working and not ended:
            self._saved_s = mono_s
        elif ended or mono_s - self._saved_s >= SAVE_EVERY_S:
            self._saved_s = mono_s
            self.save()

    def save(self) -> None:
        """Write the models, unless the record has them; a disk that refuses is told of once."""
        models = self._steering.learnt()
        try:
            if canonical(models) == self._kept:
                return
            record = read_record(self._state, self._board).record or BoardRecord(self._board, self._profile)
            write_record(self._state, dataclasses.replace(record, models=models))
            self._kept, self._refused = canonical(models), ""
        except TemperdError as error:
            if error.code != self._refused:
                log.warning("what was learnt of the board cannot be kept", why=str(error))
            self._refused = error.code
        except ValueError as error:  # a number that is none must cost what was learnt, not the governor
            if self._refused != NOT_FINITE:
                log.warning("what was learnt of the board cannot be kept", why=str(error))
            self._refused = NOT_FINITE
