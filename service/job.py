"""The job machine: one literal table of legal transitions. A missing key is the error, and the state stays.

No clock, no file, no network: the journal keeps what this module decides.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from agent.errors import TemperdError

MAX_ATTEMPTS = 3  # a job that took the board down three times will do it again
MAX_REASON_CHARACTERS = 500  # a sentence or two; foreign error texts can be pages


class State(StrEnum):
    """Where a job is."""

    RECEIVED = "RECEIVED"
    REJECTED = "REJECTED"
    ACCEPTED = "ACCEPTED"
    DEFERRED = "DEFERRED"
    PULLING = "PULLING"
    VERIFYING = "VERIFYING"
    UNSEALING = "UNSEALING"
    PLANNING = "PLANNING"
    COMPILING = "COMPILING"
    TRAINING = "TRAINING"
    PAUSED = "PAUSED"
    EVALUATING = "EVALUATING"
    SEALING = "SEALING"
    PROMOTING = "PROMOTING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    TIMED_OUT = "TIMED_OUT"
    ROLLED_BACK = "ROLLED_BACK"


class Event(StrEnum):
    """What happens to a job."""

    ACCEPT = "accept"
    REJECT = "reject"
    DEFER = "defer"
    PULL = "pull"
    VERIFY = "verify"
    UNSEAL = "unseal"
    PLAN = "plan"
    COMPILE = "compile"
    TRAIN = "train"
    PAUSE = "pause"
    EVALUATE = "evaluate"
    SEAL = "seal"
    PROMOTE = "promote"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    TIME_OUT = "time-out"
    ROLL_BACK = "roll-back"
    RESTART = "restart"
    SUSPEND = "suspend"


S, E = State, Event
TABLE: dict[tuple[State, Event], State] = {
    (S.RECEIVED, E.ACCEPT): S.ACCEPTED,
    (S.RECEIVED, E.REJECT): S.REJECTED,
    (S.RECEIVED, E.CANCEL): S.CANCELED,
    (S.ACCEPTED, E.DEFER): S.DEFERRED,
    (S.ACCEPTED, E.PULL): S.PULLING,
    (S.ACCEPTED, E.FAIL): S.FAILED,
    (S.ACCEPTED, E.CANCEL): S.CANCELED,
    (S.ACCEPTED, E.TIME_OUT): S.TIMED_OUT,
    (S.DEFERRED, E.DEFER): S.DEFERRED,  # for another reason
    (S.DEFERRED, E.PULL): S.PULLING,
    (S.DEFERRED, E.FAIL): S.FAILED,
    (S.DEFERRED, E.CANCEL): S.CANCELED,
    (S.DEFERRED, E.TIME_OUT): S.TIMED_OUT,
    (S.PULLING, E.VERIFY): S.VERIFYING,
    (S.PULLING, E.FAIL): S.FAILED,
    (S.PULLING, E.CANCEL): S.CANCELED,
    (S.PULLING, E.TIME_OUT): S.TIMED_OUT,
    (S.PULLING, E.RESTART): S.PULLING,
    (S.PULLING, E.SUCCEED): S.SUCCEEDED,  # the attempt before had promoted its model when the board went down
    (S.VERIFYING, E.UNSEAL): S.UNSEALING,
    (S.VERIFYING, E.FAIL): S.FAILED,
    (S.VERIFYING, E.CANCEL): S.CANCELED,
    (S.VERIFYING, E.TIME_OUT): S.TIMED_OUT,
    (S.VERIFYING, E.RESTART): S.PULLING,
    (S.UNSEALING, E.PLAN): S.PLANNING,
    (S.UNSEALING, E.FAIL): S.FAILED,
    (S.UNSEALING, E.CANCEL): S.CANCELED,
    (S.UNSEALING, E.TIME_OUT): S.TIMED_OUT,
    (S.UNSEALING, E.RESTART): S.PULLING,
    (S.PLANNING, E.COMPILE): S.COMPILING,
    (S.PLANNING, E.FAIL): S.FAILED,
    (S.PLANNING, E.CANCEL): S.CANCELED,
    (S.PLANNING, E.TIME_OUT): S.TIMED_OUT,
    (S.PLANNING, E.RESTART): S.PULLING,
    (S.COMPILING, E.TRAIN): S.TRAINING,
    (S.COMPILING, E.FAIL): S.FAILED,
    (S.COMPILING, E.CANCEL): S.CANCELED,
    (S.COMPILING, E.TIME_OUT): S.TIMED_OUT,
    (S.COMPILING, E.RESTART): S.PULLING,
    (S.TRAINING, E.EVALUATE): S.EVALUATING,
    (S.TRAINING, E.FAIL): S.FAILED,
    (S.TRAINING, E.CANCEL): S.CANCELED,
    (S.TRAINING, E.TIME_OUT): S.TIMED_OUT,
    (S.TRAINING, E.RESTART): S.PULLING,
    # A worker waits between two pieces of work, in any stage before promotion; it goes back to the stage it names.
    (S.PULLING, E.PAUSE): S.PAUSED,
    (S.VERIFYING, E.PAUSE): S.PAUSED,
    (S.UNSEALING, E.PAUSE): S.PAUSED,
    (S.PLANNING, E.PAUSE): S.PAUSED,
    (S.COMPILING, E.PAUSE): S.PAUSED,
    (S.TRAINING, E.PAUSE): S.PAUSED,
    (S.EVALUATING, E.PAUSE): S.PAUSED,
    (S.SEALING, E.PAUSE): S.PAUSED,
    (S.PAUSED, E.PAUSE): S.PAUSED,  # for another reason
    (S.PAUSED, E.PULL): S.PULLING,
    (S.PAUSED, E.VERIFY): S.VERIFYING,
    (S.PAUSED, E.UNSEAL): S.UNSEALING,
    (S.PAUSED, E.PLAN): S.PLANNING,
    (S.PAUSED, E.COMPILE): S.COMPILING,
    (S.PAUSED, E.TRAIN): S.TRAINING,
    (S.PAUSED, E.EVALUATE): S.EVALUATING,
    (S.PAUSED, E.SEAL): S.SEALING,
    (S.PAUSED, E.FAIL): S.FAILED,
    (S.PAUSED, E.CANCEL): S.CANCELED,
    (S.PAUSED, E.TIME_OUT): S.TIMED_OUT,
    (S.PAUSED, E.RESTART): S.PULLING,
    (S.EVALUATING, E.SEAL): S.SEALING,
    (S.EVALUATING, E.FAIL): S.FAILED,
    (S.EVALUATING, E.CANCEL): S.CANCELED,
    (S.EVALUATING, E.TIME_OUT): S.TIMED_OUT,
    (S.EVALUATING, E.RESTART): S.PULLING,
    (S.SEALING, E.PROMOTE): S.PROMOTING,
    (S.SEALING, E.FAIL): S.FAILED,
    (S.SEALING, E.CANCEL): S.CANCELED,
    (S.SEALING, E.TIME_OUT): S.TIMED_OUT,
    (S.SEALING, E.RESTART): S.PULLING,
    # Stopped on purpose, or its network is away: no attempt is lost, the checkpoint is kept.
    (S.PULLING, E.SUSPEND): S.DEFERRED,
    (S.VERIFYING, E.SUSPEND): S.DEFERRED,
    (S.UNSEALING, E.SUSPEND): S.DEFERRED,
    (S.PLANNING, E.SUSPEND): S.DEFERRED,
    (S.COMPILING, E.SUSPEND): S.DEFERRED,
    (S.TRAINING, E.SUSPEND): S.DEFERRED,
    (S.PAUSED, E.SUSPEND): S.DEFERRED,
    (S.EVALUATING, E.SUSPEND): S.DEFERRED,
    (S.SEALING, E.SUSPEND): S.DEFERRED,
    # Promotion is neither canceled nor timed out: it ends in seconds, with the new model good or the old one back.
    (S.PROMOTING, E.SUCCEED): S.SUCCEEDED,
    (S.PROMOTING, E.ROLL_BACK): S.ROLLED_BACK,
    (S.PROMOTING, E.FAIL): S.FAILED,
    (S.PROMOTING, E.RESTART): S.PULLING,
}
TERMINAL = frozenset({S.REJECTED, S.SUCCEEDED, S.FAILED, S.CANCELED, S.TIMED_OUT, S.ROLLED_BACK})
WORKING = frozenset(state for state, event in TABLE if event is E.RESTART)
"""States with a worker process behind them; after a restart of the daemon they get `Event.RESTART`."""
STAGE_EVENTS: dict[State, Event] = {
    S.PULLING: E.PULL,
    S.VERIFYING: E.VERIFY,
    S.UNSEALING: E.UNSEAL,
    S.PLANNING: E.PLAN,
    S.COMPILING: E.COMPILE,
    S.TRAINING: E.TRAIN,
    S.EVALUATING: E.EVALUATE,
    S.SEALING: E.SEAL,
    S.PROMOTING: E.PROMOTE,
}
"""The event that enters each stage a worker asks for."""


class TransitionError(TemperdError):
    """The table has no such transition; the job is unchanged."""

    reason = "wrong-state"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a job stands and why."""

    state: State = State.RECEIVED
    attempt: int = 1
    reason_code: str = ""
    """Stable and machine-readable; empty where nothing is to explain."""
    reason: str = ""


class WireStatus(NamedTuple):
    """What the fleet sees: a word of the contract, and the stage where the job is running."""

    status: str
    step: str


def advance(standing: Standing, event: Event, reason_code: str = "", reason: str = "") -> Standing:
    """The standing after `event`. A restart beyond `MAX_ATTEMPTS` fails the job with `too-many-attempts`.

    Raises:
        TransitionError: the table has no such transition.
    """
    try:
        state = TABLE[standing.state, event]
    except KeyError:
        raise TransitionError(f"a job that is {standing.state} cannot {event}") from None
    if event is not Event.RESTART:
        return Standing(state, standing.attempt, reason_code, reason[:MAX_REASON_CHARACTERS])
    if standing.attempt >= MAX_ATTEMPTS:
        told = reason or f"the daemon or the board went down in each of {MAX_ATTEMPTS} attempts"
        return Standing(State.FAILED, standing.attempt, "too-many-attempts", told[:MAX_REASON_CHARACTERS])
    return Standing(state, standing.attempt + 1, reason_code, reason[:MAX_REASON_CHARACTERS])


def wire_status(state: State) -> WireStatus:
    """The contract's word for `state`; `step` names the stage of a running job, else it is empty."""
    if state in STAGE_EVENTS:
        return WireStatus("running", state.lower())
    return WireStatus(state.lower(), "")


def diagram() -> str:
    """The table as a Mermaid state diagram, as it stands in docs/jobs.md."""
    edges: dict[tuple[State, State], list[str]] = {}
    for (state, event), after in TABLE.items():
        edges.setdefault((state, after), []).append(event)
    lines = ["stateDiagram-v2", "    [*] --> RECEIVED"]
    lines += [f"    {state} --> {after}: {', '.join(events)}" for (state, after), events in edges.items()]
    lines += [f"    {state} --> [*]" for state in State if state in TERMINAL]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(diagram())
