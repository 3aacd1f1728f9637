"""What a form asks for, as one command: arguments, conditions, lifetime and the reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from policies.strict import TableError, build
from service.commands import (
    CANCEL,
    FINE_TUNE,
    MAX_LIFETIME_S,
    PROMOTE,
    ROLLBACK,
    SET_POLICY,
    UPDATE_AGENT,
    UPDATE_SYSTEM,
    Expectation,
)
from service.console.act_send import DEFAULT_VALID_S, LEAST_VALID_S
from service.console.act_sent import TOKEN
from service.console.audit import MAX_WHY
from service.console.schema_form import MAX_WHOLE, Form
from service.console.schema_form_read import Fault, read_form

ASKED = frozenset({CANCEL, PROMOTE, ROLLBACK, SET_POLICY, UPDATE_AGENT, UPDATE_SYSTEM})
"""Sent only after a second page has asked: they end work, or change what a board runs."""
WHY_NEEDED = frozenset({FINE_TUNE, PROMOTE, ROLLBACK, SET_POLICY, UPDATE_AGENT, UPDATE_SYSTEM})
"""What changes a model, a policy or the software."""
LIFETIMES_S = (600, 3600, 6 * 3600, 86_400, 7 * 86_400, MAX_LIFETIME_S)
GUARDED: Mapping[str, tuple[str, ...]] = {
    PROMOTE: ("active_model",),
    ROLLBACK: ("active_model",),
    SET_POLICY: ("policy",),
}
"""Conditions that are ticked at first: these commands are meant for what the sender sees."""
CONDITIONS = ("active_model", "policy", "state_version")
ARGUMENT, EXPECTED = "arg.", "expect."
MOST_VERSION_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Order:
    """A command to a board, as somebody wants it; `token` is empty where the form had none."""

    args: Mapping[str, object]
    expect: Mapping[str, object]
    why: str
    valid_s: int
    token: str


def read_order(
    kind: str, form: Form, given: Mapping[str, str], *, longest_valid_s: int = MAX_LIFETIME_S
) -> tuple[Order, dict[str, Fault]]:
    """The order that a posted form asks for, and by field (`arg.epochs`, `why`) what is wrong with it.

    Args:
        kind: type of the command.
        form: its arguments.
        given: the fields as posted.
        longest_valid_s: how long the board lets a command live.
    """
    typed = {name.removeprefix(ARGUMENT): text for name, text in given.items() if name.startswith(ARGUMENT)}
    args, found = read_form(form, typed)
    faults = {f"{ARGUMENT}{name}" if name else "": fault for name, fault in found.items()}
    common, more = read_common(kind, given, longest_valid_s=longest_valid_s)
    return Order(args, common.expect, common.why, common.valid_s, common.token), faults | more


def read_common(
    kind: str, given: Mapping[str, str], *, longest_valid_s: int = MAX_LIFETIME_S
) -> tuple[Order, dict[str, Fault]]:
    """What the forms of all commands have: an order without arguments; see `read_order`."""
    faults: dict[str, Fault] = {}
    why = given.get("why", "").replace("\r\n", "\n").strip()
    if len(why) > MAX_WHY:
        faults["why"] = Fault("longest", {"count": len(why), "most": MAX_WHY})
    elif not why and kind in WHY_NEEDED:
        faults["why"] = Fault("why")
    valid_s = _seconds(given.get("valid_s", str(min(DEFAULT_VALID_S, longest_valid_s))))
    if not LEAST_VALID_S <= valid_s <= longest_valid_s:
        faults["valid_s"] = Fault("range", {"least": LEAST_VALID_S, "most": longest_valid_s})
    expect = read_expect(given)
    if expect is None:
        faults["expect"], expect = Fault("expect"), {}
    token = given.get("token", "")
    return Order({}, expect, why, valid_s, token if TOKEN.fullmatch(token) else ""), faults


def read_expect(given: Mapping[str, str]) -> dict[str, object] | None:
    """The conditions that are ticked; `None` where one can never hold."""
    found: dict[str, object] = {}
    for key in CONDITIONS:
        text = given.get(f"{EXPECTED}{key}")
        if text is not None:
            found[key] = text
    if "state_version" in found:
        text = str(found["state_version"])
        if not (text.isascii() and text.isdigit() and len(text) <= MOST_VERSION_DIGITS and int(text) < MAX_WHOLE):
            return None
        found["state_version"] = int(text)
    try:
        build(Expectation, found)
    except TableError:
        return None
    return found


def _seconds(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MOST_VERSION_DIGITS else -1
