"""Batteries, chargers and the mains, as the kernel's power_supply class shows them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from agent.board.devices import DeviceClass
from agent.board.files import read_int, read_text
from agent.board.plausible import IMPOSSIBLE, MISSING, Judged
from policies.reading import Health

FULL_PERCENT = 100
BATTERIES = ("Battery", "UPS")
FULL_CLAIM = 0.9
"""A battery that claims this much is above `voltage_min_design`, which is its nominal or its lowest allowed voltage."""
HALF_CLAIM, HALF_CELL_VOLTS = 0.5, 3.3
"""A lithium-ion cell that is half full rests at about 3.75 V and does not sag below this under load (assumed)."""
ONE_CELL_VOLTS = 4.5  # above, the pack has more than one cell in series
LITHIUM_ION = ("Li-ion", "Li-poly")


class Supply(NamedTuple):
    """What is known of the supply."""

    charge: Judged | None
    """0..1, the emptiest battery; `None`: the board has no battery."""
    on_mains: bool | None
    undervoltage: bool
    """A battery's voltage contradicts its charge."""
    watts: float | None
    """Out of the batteries while they feed the board alone; `None` where that is not so or not measured."""


class PowerSupplies:
    """The supplies of one board.

    Args:
        sys_root: where /sys is.
    """

    def __init__(self, sys_root: Path) -> None:
        self._all = DeviceClass(sys_root / "class/power_supply", "", "type", lambda _: True)
        self._has_battery = False

    def read(self, mono_s: float) -> Supply:
        """Look at every supply of the system; those of peripherals (`scope` = Device) do not count."""
        batteries: list[Path] = []
        online: list[bool] = []
        for kind, path in self._all.devices(mono_s):
            if read_text(f"{path}/scope") == "Device":
                continue  # the battery of a mouse or a headset
            if kind in BATTERIES:
                if read_int(f"{path}/present") != 0:
                    batteries.append(path)
            else:
                online.append((read_int(f"{path}/online") or 0) > 0)
        if not batteries:
            return self._without_battery(mains=any(online))
        self._has_battery = True
        return _with_batteries(batteries, online)

    def _without_battery(self, *, mains: bool) -> Supply:
        if not self._has_battery:
            return Supply(None, True if mains else None, undervoltage=False, watts=None)
        # It was there: taken out, or its driver died. Without a sign of mains the board may be running on it.
        return Supply(MISSING, mains, undervoltage=False, watts=None)


def _with_batteries(batteries: list[Path], online: list[bool]) -> Supply:
    states = [read_text(f"{path}/status") for path in batteries]
    charging = any(state in ("Charging", "Full", "Not charging") for state in states)
    charges = [_charge(path) for path in batteries]
    lies = any(_contradicted(one.value, path) for one, path in zip(charges, batteries, strict=True))
    lost = next((one for one in charges if one.value is None), IMPOSSIBLE if lies else None)
    charge = lost or Judged(min(one.value for one in charges if one.value is not None), Health.OK)
    discharging = all(state == "Discharging" for state in states)
    return Supply(
        charge,
        any(online) if online else charging,
        undervoltage=lies,
        watts=_watts(batteries) if discharging else None,
    )


def _charge(path: Path) -> Judged:
    percent = read_int(f"{path}/capacity")
    if percent is not None:
        share = percent / FULL_PERCENT
    else:  # gauges that only count
        found = (_share(path, kind) for kind in ("energy", "charge"))
        counted = next((one for one in found if one is not None), None)
        if counted is None:
            return MISSING
        share = counted
    return Judged(share, Health.OK) if 0.0 <= share <= 1.0 else IMPOSSIBLE


def _share(path: Path, kind: str) -> float | None:
    now, full = read_int(f"{path}/{kind}_now"), read_int(f"{path}/{kind}_full")
    return now / full if now is not None and full is not None and full > 0 else None


def _contradicted(charge: float | None, path: Path) -> bool:
    """Whether the voltage cannot be that of a battery so full (fault 48)."""
    microvolts = read_int(f"{path}/voltage_now")
    if charge is None or charge < HALF_CLAIM or microvolts is None or microvolts <= 0:
        return False
    design = read_int(f"{path}/voltage_min_design")
    if design is not None and charge >= FULL_CLAIM and microvolts < design:
        return True
    one_cell = microvolts / 1e6 < ONE_CELL_VOLTS and read_text(f"{path}/technology") in LITHIUM_ION
    return one_cell and microvolts / 1e6 < HALF_CELL_VOLTS


def _watts(batteries: list[Path]) -> float | None:
    total = 0.0
    for path in batteries:
        microwatts = read_int(f"{path}/power_now")
        if microwatts is not None:
            total += abs(microwatts) / 1e6
            continue
        microvolts, microamperes = read_int(f"{path}/voltage_now"), read_int(f"{path}/current_now")
        if microvolts is None or microamperes is None:
            return None
        total += microvolts * abs(microamperes) / 1e12  # some gauges count a current out of the battery as negative
    return total if total > 0.0 else None
