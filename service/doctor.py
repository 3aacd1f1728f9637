"""`temperd doctor`: what a board has and lacks, as findings; each with why it matters and the command that mends it.

A check looks at one thing and yields findings. It changes nothing, takes no lock, and shows no secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from agent.board.files import BoardRoots
from agent.errors import TemperdError
from service.config import Config

MAX_TEXT = 400  # characters of one sentence: foreign error texts can be pages


class Grade(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: a stable name, for programs.
        grade: `bad`: it does not work so; `warn`: it works, and could fail or be better.
        what: what was found.
        why: why it matters; empty where nothing is wrong.
        mend: the command, or the line of the configuration, that mends it.
    """

    check: str
    grade: Grade
    what: str
    why: str = ""
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """What the checks look at.

    Attributes:
        config: of the daemon.
        config_path: where it was read.
        roots: where the board is read; `None`: an emulated board whose daemon does not run.
        emulated: whether the board is emulated.
        live: view of the running daemon; `None`: it does not run.
        credential: whether the service manager keeps an identity for the daemon; told to root only.
        unit: properties of temperd.service, and `Manager.*` of systemd itself; empty without systemd.
        now: seconds since 1970.
        mono_s: monotonic clock, seconds.
        user: name of the user whose eyes we use.
    """

    config: Config
    config_path: Path
    roots: BoardRoots | None
    emulated: bool
    live: Mapping[str, object] | None
    now: float
    mono_s: float
    user: str
    credential: bool = False
    unit: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        """The state folder."""
        return Path(self.config.device.state_dir)

    @property
    def daemon(self) -> str:
        """How the commands that are suggested become the daemon's user."""
        return "sudo " if self.unit.get("LoadState") == "loaded" else ""


Check: TypeAlias = Callable[[Scene], Iterable[Finding]]


def ok(check: str, what: str) -> Finding:
    """Nothing to do."""
    return Finding(check, Grade.OK, what[:MAX_TEXT])


def warn(check: str, what: str, why: str, mend: str = "") -> Finding:
    """It works, and could fail or be better."""
    return Finding(check, Grade.WARN, what[:MAX_TEXT], why, mend[:MAX_TEXT])


def bad(check: str, what: str, why: str, mend: str = "") -> Finding:
    """It does not work so."""
    return Finding(check, Grade.BAD, what[:MAX_TEXT], why, mend[:MAX_TEXT])


def refused(check: str, error: TemperdError, why: str, mend: str = "") -> Finding:
    """`bad`, in the words of an error; `mend` where the error does not say it."""
    where = f" ({error.where})" if error.where else ""
    return bad(check, f"{error.what}{where}", why, error.fix or mend)


def examine(scene: Scene, checks: Mapping[str, Check]) -> list[Finding]:
    """All findings, in the order of the checks; a check that breaks off is a finding and ends no other.

    Args:
        scene: see `Scene`.
        checks: by the name under which a check that breaks off is told.
    """
    return [finding for name, check in checks.items() for finding in _safely(scene, name, check)]


def _safely(scene: Scene, name: str, check: Check) -> Iterator[Finding]:
    try:
        yield from check(scene)
    except TemperdError as error:
        yield refused(name, error, "nothing more could be looked at there")
    except OSError as error:
        what = f"cannot be looked at: {error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        yield warn(name, what, f"this is what {scene.user} sees", "sudo temperd doctor")


def worst(findings: Sequence[Finding]) -> Grade:
    """The most serious grade; `ok` where there is nothing."""
    return max((one.grade for one in findings), key=list(Grade).index, default=Grade.OK)


def table(findings: Sequence[Finding]) -> dict[str, object]:
    """For programs."""
    counts = {str(grade): sum(one.grade is grade for one in findings) for grade in Grade}
    return {"schema": 1, "verdict": str(worst(findings)), **counts, "findings": [asdict(one) for one in findings]}


def lines(findings: Sequence[Finding]) -> list[str]:
    """For people: what is wrong with its remedy, then a line that counts."""
    told = []
    for one in findings:
        told.append(f"{one.grade:<4}  {one.check:<14} {_plain(one.what)}")
        if one.why:
            told.append(f"{'':21}{_plain(one.why)}")
        if one.mend:
            told.append(f"{'':21}-> {_plain(one.mend)}")
    counts = ", ".join(f"{sum(one.grade is grade for one in findings)} {grade}" for grade in Grade)
    return [*told, counts]


def _plain(text: str) -> str:
    """A broker or a server may have worded it: nothing that moves a terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)
