"""Text from outside, made harmless for a terminal."""

from __future__ import annotations

MAX_CHARACTERS = 200  # a cell of a table; a reason has at most 500 and is cut there alone
CUT = "…"


def plain(value: object, longest: int = MAX_CHARACTERS) -> str:
    """One line of printable characters, at most `longest` of them.

    Control characters (escape sequences begin with one), line ends, and the marks that turn the direction of writing
    become `?`: a board's name or reason must not move the cursor, set a window's title or fake another line.
    """
    text = value if isinstance(value, str) else "" if value is None else str(value)
    text = text[: longest + 1]  # before the loop: a hostile text may have megabytes
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= longest else shown[: longest - 1] + CUT
