"""What a temperature sensor says, and whether to believe it."""

from __future__ import annotations

from typing import NamedTuple

from policies.reading import Health

COLDEST_CELSIUS, HOTTEST_CELSIUS = -40.0, 150.0
"""Silicon is rated -40..125 °C: beyond, with a margin, the sensor lies (-256 °C is a well-known lie)."""
JUMP_KELVIN = 25.0
"""A die does not jump this far between two readings of a running board ..."""
JUMP_KELVIN_PER_S = 10.0
"""... plus this for each second between them."""
JUMP_READINGS = 3
"""A jump that holds for this many readings is no glitch: then it is believed."""


class Judged(NamedTuple):
    """A value that may be believed, or `None` and why not."""

    value: float | None
    health: Health


MISSING = Judged(None, Health.MISSING)
IMPOSSIBLE = Judged(None, Health.IMPOSSIBLE)


def judge_millidegrees(millidegrees: int | None) -> Judged:
    """Degrees Celsius from the kernel's millidegrees, unless no board can have them.

    Zero exactly is what drivers give before their first conversion.
    """
    if millidegrees is None:
        return MISSING
    celsius = millidegrees / 1000.0
    if millidegrees == 0 or not COLDEST_CELSIUS < celsius < HOTTEST_CELSIUS:
        return IMPOSSIBLE
    return Judged(celsius, Health.OK)


class DieSensor:
    """Believes or disbelieves a sequence of die temperatures.

    Args:
        frozen_after_s: a value that stays the same to its last digit for longer is disbelieved until it moves;
            `None`: never (coarse sensors rest on one value for minutes).
    """

    def __init__(self, frozen_after_s: float | None) -> None:
        self._frozen_after_s = frozen_after_s
        self._same: tuple[float, float] | None = None
        self._good: tuple[float, float] | None = None
        self._jumps = 0

    def judge(self, said: Judged, mono_s: float) -> Judged:
        """`said` when it can be believed at monotonic time `mono_s`, else why not."""
        celsius = said.value
        if celsius is None:
            return said
        if self._frozen(celsius, mono_s):
            return Judged(None, Health.FROZEN)
        if self._jumped(celsius, mono_s):
            return IMPOSSIBLE
        self._good, self._jumps = (celsius, mono_s), 0
        return said

    def _frozen(self, celsius: float, mono_s: float) -> bool:
        if self._same is None or self._same[0] != celsius:
            self._same = (celsius, mono_s)
        return self._frozen_after_s is not None and mono_s - self._same[1] > self._frozen_after_s

    def _jumped(self, celsius: float, mono_s: float) -> bool:
        if self._good is None or self._jumps >= JUMP_READINGS:
            return False
        reach = JUMP_KELVIN + JUMP_KELVIN_PER_S * max(mono_s - self._good[1], 0.0)
        if abs(celsius - self._good[0]) <= reach:
            return False
        self._jumps += 1
        return True
