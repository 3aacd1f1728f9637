"""The gate is the owner's: a policy from afar may ask for more than the board's own, never for less."""

from __future__ import annotations

from policies.policy import GatePolicy

STRICTER_ABOVE = ("least_gain", "class_least")
STRICTER_BELOW = ("class_samples", "class_drop", "weight_growth", "weight_update", "head_rms", "held_out_drop")


def milder(own: GatePolicy, asked: GatePolicy) -> tuple[str, str] | None:
    """The first key in which `asked` lets more pass than `own`, and a sentence about it; `None` where none does.

    Held-out data of the owner must stay those; where there are none, any may be named.
    """
    for key in STRICTER_ABOVE:
        if getattr(asked, key) < getattr(own, key):
            return f"gate.{key}", _sentence(own, asked, key)
    for key in STRICTER_BELOW:
        if getattr(asked, key) > getattr(own, key):
            return f"gate.{key}", _sentence(own, asked, key)
    if own.held_out and asked.held_out != own.held_out:
        return "gate.held_out", _sentence(own, asked, "held_out")
    return None


def _sentence(own: GatePolicy, asked: GatePolicy, key: str) -> str:
    mine, theirs = getattr(own, key), getattr(asked, key)
    return f"{theirs!r} is milder than this board's own {mine!r}: a command may make the gate stricter only"
