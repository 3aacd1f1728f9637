"""How a roll-out goes, as a form has it: canaries, limits, lifetime, conditions. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from policies.strict import TableError, build
from service.console.act_order import CONDITIONS, EXPECTED, LIFETIMES_S, read_expect
from service.fleet.roll_out_plan import DEFAULT_LEAST_ENDED, MAX_BOARDS, Rules, canaries

SHARE, COUNT, NONE = "share", "count", "none"
USUAL: Mapping[str, str] = {
    "canary": SHARE,
    "canary_share": "10",
    "canary_count": "1",
    "parallel": "50",
    "stop_at": "20",
    "least_ended": str(DEFAULT_LEAST_ENDED),
    "wait_canary_min": "0",
    "valid_s": "86400",
}
"""What the form has at first: as `temperd fleet roll-out` does without options, but with canaries."""
MAX_WAIT_MIN = 31 * 24 * 60  # as long as a command may live
_WHOLE = re.compile(r"[0-9]{1,9}")
_DECIMAL = re.compile(r"[0-9]{1,4}([.,][0-9]{1,4})?")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a field is not taken: the key of a text below `roll_out.fault`, and what the text names."""

    key: str
    values: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Waves:
    """What the form asks for."""

    rules: Rules
    expect: dict[str, object]
    valid_s: int


def read_waves(given: Mapping[str, str], boards: int) -> tuple[Waves | None, dict[str, Fault]]:
    """Rules, conditions and lifetime; or by field what is wrong.

    Args:
        given: the fields as posted.
        boards: how many the roll-out is for.
    """
    faults: dict[str, Fault] = {}
    typed = {**USUAL, **given}
    share, count = 0.0, 0
    if typed["canary"] == SHARE:
        share = _percent(typed, "canary_share", faults)
    elif typed["canary"] == COUNT:
        count = _whole(typed, "canary_count", 1, boards, faults)
    elif typed["canary"] != NONE:
        faults["canary"] = Fault("choice")
    rules = {
        "parallel": _whole(typed, "parallel", 1, MAX_BOARDS, faults),
        "stop_at": _percent(typed, "stop_at", faults),
        "least_ended": _whole(typed, "least_ended", 1, MAX_BOARDS, faults),
        "wait_canary_s": _whole(typed, "wait_canary_min", 0, MAX_WAIT_MIN, faults) * 60.0,
    }
    valid_s = int(typed["valid_s"]) if _WHOLE.fullmatch(typed["valid_s"]) else -1
    if valid_s not in LIFETIMES_S:
        faults["valid_s"] = Fault("choice")
    expect = read_expect(ticked(given))
    if expect is None:
        faults["expect"] = Fault("expect")
    if faults or expect is None:
        return None, faults
    made = rules_of({**rules, "canary": canaries(boards, share, count)}, faults)
    return (None if made is None else Waves(made, expect, valid_s)), faults


def read_resumed(given: Mapping[str, str]) -> tuple[dict[str, object], dict[str, Fault]]:
    """Rules that change as a roll-out goes on, those that were filled in; or by field what is wrong."""
    faults: dict[str, Fault] = {}
    found: dict[str, object] = {}
    if given.get("stop_at", "").strip():
        found["stop_at"] = _percent(given, "stop_at", faults)
    for name in ("parallel", "least_ended"):
        if given.get(name, "").strip():
            found[name] = _whole(given, name, 1, MAX_BOARDS, faults)
    return found, faults


def rules_of(table: Mapping[str, object], faults: dict[str, Fault]) -> Rules | None:
    """The rules; or `None`, and what is wrong among the faults."""
    try:
        return build(Rules, table)
    except TableError as error:
        faults[error.key] = Fault("rule", {"what": error.what})
        return None


def ticked(given: Mapping[str, str]) -> dict[str, str]:
    """The fields of the conditions that are ticked: `expect_on.active_model` ticks `expect.active_model`."""
    on = [key for key in CONDITIONS if given.get(f"expect_on.{key}")]
    return {f"{EXPECTED}{key}": given.get(f"{EXPECTED}{key}", "").strip().lower() for key in on}


def _whole(given: Mapping[str, str], name: str, least: int, most: int, faults: dict[str, Fault]) -> int:
    text = given.get(name, "").strip()
    if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
        faults[name] = Fault("whole", {"least": least, "most": most})
        return least
    return int(text)


def _percent(given: Mapping[str, str], name: str, faults: dict[str, Fault]) -> float:
    """A share, 0..1, of a number of per cent."""
    text = given.get(name, "").strip().removesuffix("%").rstrip()
    share = float(text.replace(",", ".")) / 100 if _DECIMAL.fullmatch(text) else math.nan
    if not 0 < share <= 1:
        faults[name] = Fault("percent")
        return 1.0
    return share
