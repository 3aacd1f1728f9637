"""Messages between supervisor and workers: one JSON object a line over stdin and stdout, defined here and nowhere else.

The worker asks before each stage (`Stage`) and goes on at `Go`, so the journal is written before the effect.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from agent.errors import EngineError
from policies.strict import build

OUT_OF_MEMORY = "out-of-memory"  # memory ran out: the next attempt goes on with a smaller micro-batch
WORKER_KILLED = "worker-killed"  # the system ended the worker, as it does when memory runs out
MEMORY_CORRUPT = "memory-corrupt"  # frozen weights changed in memory: the next attempt goes on from before that
METERED = "metered-link"  # the model is not on the board and bytes cost money here
CLOCK_WRONG = "clock-wrong"  # whether metadata is expired cannot be judged yet
SHRINKING_ENGINE = "graph"  # the other engine takes whole batches only
MAX_LINE_BYTES = 256 << 10  # a plan with its cost table has about 20 KB


@dataclass(frozen=True, slots=True)
class Order:
    """Supervisor -> worker, first line: everything the job needs."""

    job_id: str
    spec: dict[str, object]
    state_dir: str
    """The daemon's state folder: keys, store, repository metadata, checkpoints."""
    repository_url: str
    repository_root: str
    """Path of the pinned TUF root metadata."""
    policy: str
    """Path of the policy file in force."""
    threads: int
    board: str = ""
    """Name of the board's profile; models may be for some boards only."""
    attempt: int = 1
    resume_plan: dict[str, object] | None = None
    """The plan of an earlier attempt, so that a resumed job keeps its depth, split and batch."""
    last_end: str = ""
    """How the attempt before this one ended: `out-of-memory`, `worker-killed`, or another reason."""
    metered: bool = False
    """Downloads cost money here: a model that is not on the board is waited for."""
    boot_id: str = ""
    """Of the kernel; empty where it has none. What was measured of the memory counts for one boot."""
    clock_share: float = 1.0
    """Clock cap in force, as a share of the board's top clock."""


@dataclass(frozen=True, slots=True)
class ScrubOrder:
    """Supervisor -> scrub worker, first line; `Steer` follows whenever the decision changes."""

    state_dir: str
    repository_url: str
    repository_root: str
    """Path of the pinned TUF root metadata."""
    metered: bool = False
    """Downloads cost money here: what only a download can mend waits for the next job."""


@dataclass(frozen=True, slots=True)
class SwitchOrder:
    """Supervisor -> worker, first line: make another model active."""

    state_dir: str
    before: str | None
    """Hash of the plaintext of the model that is left; empty: the base; null: it is broken."""
    after: str
    """The same of the one that is to run."""
    promotes: bool
    """It is staged; else one that ran before."""
    threads: int


@dataclass(frozen=True, slots=True)
class EvaluateOrder:
    """Supervisor -> worker, first line: score a model on held-out data; `Steer` follows."""

    state_dir: str
    repository_url: str
    repository_root: str
    """Path of the pinned TUF root metadata."""
    spec: dict[str, object]
    """See `agent.spec.EvaluateSpec`."""
    threads: int
    board: str = ""
    """Name of the board's profile; models may be for some boards only."""
    metered: bool = False
    """Downloads cost money here."""


@dataclass(frozen=True, slots=True)
class SystemOrder:
    """Supervisor -> system worker, first line: bring a system image to the board."""

    state_dir: str
    repository_url: str
    repository_root: str
    """Path of the pinned TUF root metadata."""
    name: str
    version: str
    """Or `latest`."""
    compatible: str
    """What RAUC says that this board is."""
    installed: str = ""
    """Version of the image that runs; empty: not known."""
    allow_downgrade: bool = False
    metered: bool = False
    """Downloads cost money here."""


@dataclass(frozen=True, slots=True)
class SelfTestOrder:
    """Supervisor -> worker, first line: see whether the active model answers; nothing is changed."""

    state_dir: str
    threads: int


@dataclass(frozen=True, slots=True)
class ReleaseOrder:
    """Supervisor -> release worker, first line: bring a release of temperd into a slot."""

    state_dir: str
    repository_url: str
    repository_root: str
    """Path of the pinned TUF root metadata."""
    version: str
    """Or `latest`."""
    slot: str
    """Where it goes: `a` or `b`."""
    running: str
    """Version that runs."""
    running_digest: str = ""
    """Of the release that runs; empty: it is the installed one."""
    refused: tuple[str, ...] = ()
    """Digests of releases that failed on this board."""
    allow_downgrade: bool = False
    metered: bool = False
    """Downloads cost money here."""


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """Scrub worker -> supervisor: the scrub is done; `report` as docs/scrub.md has it."""

    report: dict[str, object]


@dataclass(frozen=True, slots=True)
class Go:
    """Supervisor -> worker: the stage asked for is in the journal."""

    stage: str


@dataclass(frozen=True, slots=True)
class Steer:
    """Supervisor -> worker: what the governor decided. `action` is RUN, SLOW, PAUSE or ABORT."""

    action: str
    duty: float
    least_depth_percent: int
    reverify: bool
    rule: str
    number: int = 0
    """Rises by one with each order of one job; 0: not counted."""
    depth_until_samples: int = 0
    """Once so many samples are done, `depth_after_percent` holds instead; 0: until another order."""
    depth_after_percent: int = 0
    micro_batch_share: float = 1.0
    """Most of the usual micro-batch that goes through a step at once."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Worker -> supervisor: about to enter `stage`."""

    stage: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Planned:
    """Worker -> supervisor: the plan, kept in the journal for a resumed attempt."""

    plan: dict[str, object]


@dataclass(frozen=True, slots=True)
class Progress:
    """Worker -> supervisor, at most about ten a second."""

    epoch: int
    epochs: int
    step: int
    steps: int
    samples: int
    """Samples whose update was finite and kept (N_success of R9)."""
    loss: float
    score: float | None
    """Held-out score by `metric` after an epoch; `None` between."""
    frozen_layers: int
    depth_percent: int
    step_ms: float
    rss_bytes: int
    event: str = ""
    """`depth`, `batch`, `paused`, `resumed`, `checkpoint`, `epoch`, or empty."""
    rule: str = ""
    metric: str = ""
    """`accuracy`, `auc`, `reconstruction_error` or `mae`; empty between epochs."""
    dropped: int = 0
    """Steps that were not finite and changed nothing."""
    obeyed: int = 0
    """Number of the latest `Steer` that training follows."""
    obeyed_mono_s: float = 0.0
    """Since when it does, by the monotonic clock, which all processes of a board share."""
    reused: int = 0
    """Samples of this attempt's steps whose frozen part came from the feature cache: it did not run."""
    micro_batch: int = 0
    """Samples that go through the learning part at once now; 0: not told."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Worker -> supervisor: it rests between two pieces of work, as ordered, or goes on where it was."""

    resting: bool
    rule: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Worker -> supervisor: something worth telling that does not end the job."""

    what: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Worker -> supervisor: the work reached `outcome` SUCCEEDED, or a job ROLLED_BACK."""

    outcome: str
    reason: str
    result: dict[str, object]


@dataclass(frozen=True, slots=True)
class Failed:
    """Worker -> supervisor: the job ended; `code` is a stable reason, `message` says what, where and what to do."""

    code: str
    message: str
    outcome: str = "FAILED"
    result: dict[str, object] = field(default_factory=dict)


Message: TypeAlias = (
    Order
    | ScrubOrder
    | SwitchOrder
    | EvaluateOrder
    | SelfTestOrder
    | SystemOrder
    | ReleaseOrder
    | Go
    | Steer
    | Stage
    | Planned
    | Progress
    | Waits
    | Warned
    | Finished
    | Failed
    | Scrubbed
)
_TYPES: dict[str, type[Message]] = {
    cls.__name__.lower(): cls
    for cls in (
        Order,
        ScrubOrder,
        SwitchOrder,
        EvaluateOrder,
        SelfTestOrder,
        SystemOrder,
        ReleaseOrder,
        Go,
        Steer,
        Stage,
        Planned,
        Progress,
        Waits,
        Warned,
        Finished,
        Failed,
        Scrubbed,
    )
}


def can_shrink(plan: Mapping[str, object]) -> bool:
    """Whether a plan, as `Planned` carries it, can go on with a smaller micro-batch: once, and down to one sample."""
    at_once = plan.get("micro_batch") or plan.get("batch")
    larger = isinstance(at_once, int) and at_once > 1
    return larger and plan.get("engine") == SHRINKING_ENGINE and not plan.get("shrunk")


def encode(message: Message) -> bytes:
    """One line of JSON, newline included."""
    body = {"type": type(message).__name__.lower(), **dataclasses.asdict(message)}
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Read one line.

    Raises:
        EngineError: not one of the messages above; the other side is of another version or broken.
    """
    try:
        body = json.loads(line)
        return build(_TYPES[body.pop("type")], body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError("unreadable message between daemon and worker", where=repr(line[:120])) from error
