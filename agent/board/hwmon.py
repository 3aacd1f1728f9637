"""Monitor chips: power meters, the Raspberry Pi's undervoltage alarm and Jetson's over-current events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from agent.board.devices import DeviceClass
from agent.board.files import read_int, read_text

ONE_CHANNEL = ("ina219", "ina220", "ina226", "ina230", "ina231", "ina260", "ina238")
THREE_CHANNELS = "ina3221"
INPUT_LABELS = ("VDD_IN", "POM_5V_IN")
"""The channel that carries the whole module: Jetson Orin Nano and NX and Xavier NX; Jetson Nano."""
CHANNELS = range(1, 4)
UNUSED_LABELS = ("NC", "")
ALARM_CHIP = "rpi_volt"
EVENT_CHIP = "soctherm_oc"
EVENTS = range(1, 4)
"""Jetson: under-voltage and over-current events, counted since the start of the board."""
WANTED = (*ONE_CHANNEL, THREE_CHANNELS, ALARM_CHIP, EVENT_CHIP)


class Monitors(NamedTuple):
    """What the chips say."""

    has_meter: bool
    watts: float | None
    """Into the board, by the first meter that tells; `None` where none does."""
    undervoltage: bool
    over_current: bool
    """Events were counted since the reading before: the hardware held the clock down."""


class MonitorChips:
    """The hwmon chips of one board.

    Args:
        sys_root: where /sys is.
    """

    def __init__(self, sys_root: Path) -> None:
        self._chips = DeviceClass(sys_root / "class/hwmon", "hwmon", "name", WANTED.__contains__)
        self._events: int | None = None

    def read(self, mono_s: float) -> Monitors:
        """Look at every chip once."""
        meters: list[float | None] = []
        alarm, events = False, None
        for name, path in self._chips.devices(mono_s):
            if name == ALARM_CHIP:
                alarm = alarm or read_int(f"{path}/in0_lcrit_alarm") == 1
            elif name == EVENT_CHIP:
                events = sum(read_int(f"{path}/oc{n}_event_cnt") or 0 for n in EVENTS)
            elif not any(meters):
                meters.append(_three_channels(path) if name == THREE_CHANNELS else _one_channel(path))
        before, self._events = self._events, events
        return Monitors(
            bool(meters),
            next((watts for watts in meters if watts is not None), None),
            alarm,
            events is not None and before is not None and events > before,
        )


def _one_channel(chip: Path) -> float | None:
    microwatts = read_int(f"{chip}/power1_input")
    return _channel_watts(chip, 1) if microwatts is None else microwatts / 1e6


def _three_channels(chip: Path) -> float | None:
    """Watts of the channel that carries everything, else of all channels in use together."""
    labels = {number: read_text(f"{chip}/in{number}_label") for number in CHANNELS}
    for number, label in labels.items():
        if label in INPUT_LABELS:
            return _channel_watts(chip, number)
    used = [number for number, label in labels.items() if label is not None and label not in UNUSED_LABELS]
    watts = list(_each(chip, used or [1]))  # without labels: the first is the input on Jetson boards
    return None if None in watts else sum(value for value in watts if value is not None)


def _each(chip: Path, numbers: list[int]) -> Iterator[float | None]:
    for number in numbers:
        yield _channel_watts(chip, number)


def _channel_watts(chip: Path, number: int) -> float | None:
    """Volts times amperes: an INA3221 has no register of power."""
    millivolts, milliamperes = read_int(f"{chip}/in{number}_input"), read_int(f"{chip}/curr{number}_input")
    return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e6
