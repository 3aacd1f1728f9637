"""The board through sysfs and procfs: readings from the kernel's files, limits written into them.

Nothing here forks, blocks for long or believes a sensor blindly. docs/boards.md lists every file and its unit; each
family of sensors has a module of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.board.clocks import CpuClocks, GpuClock
from agent.board.cooling import Cooling, Fan
from agent.board.files import BoardRoots, read_text
from agent.board.firmware import FirmwareFlags
from agent.board.firmware_mailbox import FirmwareMailbox
from agent.board.hwmon import MonitorChips
from agent.board.levers import Levers
from agent.board.plausible import Judged
from agent.board.power import PowerSources, Watts
from agent.board.power_supply import PowerSupplies
from agent.board.powercap import EnergyCounters
from agent.board.powerd_link import PowerdLink
from agent.board.proc import CpuTimes, available_bytes, pressures
from agent.board.profile import BoardProfile
from agent.board.thermal_zones import ThermalZones
from policies.reading import Decision, Health, OperatingPoint, Reading

__all__ = ["BoardRoots", "SysfsBoard", "read_model"]


def read_model(roots: BoardRoots) -> str:
    """The device-tree model, or an empty text on machines without one."""
    return read_text(roots.proc / "device-tree/model") or ""


class SysfsBoard:
    """A board behind a sysfs root.

    Args:
        roots: where /sys and /proc are.
        profile: what kind of board it is.
        undo_file: where to remember the limits found before the first change, so that they are put back even when the
            process was killed; `None`: remembered in memory only.
        powerd: socket of temperd-powerd, for levers that this user may not write; empty: without it.
    """

    def __init__(
        self, roots: BoardRoots, profile: BoardProfile, undo_file: Path | None = None, powerd: str = ""
    ) -> None:
        self.profile = profile
        self._proc = roots.proc
        self._zones = ThermalZones(roots.sys, profile)
        self._cooling = Cooling(roots.sys, profile.fan_types)
        self._clocks, self._gpu = CpuClocks(roots.sys), GpuClock(roots.sys)
        self._supplies, self._chips = PowerSupplies(roots.sys), MonitorChips(roots.sys)
        self._counters, self._firmware = EnergyCounters(roots.sys), FirmwareFlags(roots.sys)
        self._power, self._times = PowerSources(profile), CpuTimes(roots.proc)
        self._table: tuple[tuple[int, ...], tuple[OperatingPoint, ...]] = (), ()
        self._had_fan = False
        self._mono_s = 0.0
        boot = read_text(roots.proc / "sys/kernel/random/boot_id") or ""
        link = PowerdLink(Path(powerd), roots.sys) if powerd else None
        self._levers = Levers(roots.sys, undo_file, boot, link)
        self._mailbox = FirmwareMailbox(link if profile.name.startswith("raspberry-pi") else None)

    def read(self, mono_s: float) -> Reading:
        """Look at the board once; never raises.

        Args:
            mono_s: the monotonic clock, in seconds, at the time of the call.
        """
        self._mono_s = mono_s
        die, ambient = self._zones.read(mono_s)
        frequency, cap = self._clocks.read(mono_s)
        points = self._points()
        fans, kernel_throttles = self._cooling.read(mono_s)
        supply, chips, firmware = (
            self._supplies.read(mono_s),
            self._chips.read(mono_s),
            self._firmware.read(mono_s, self._mailbox.bits),
        )
        has_counter, counted = self._counters.read(mono_s)
        busy = self._times.utilisation()
        power = self._power.choose(
            (chips.watts, supply.watts, counted),
            has_meter=chips.has_meter or has_counter,
            modelled=self._power.model(busy, frequency, points, die.value),
        )
        return Reading(
            mono_s=mono_s,
            temperature_celsius=die.value,
            ambient_celsius=self._zones.ambient_celsius(die.value),
            ambient_is_baseline=self._zones.ambient_is_baseline,
            frequency_hz=frequency,
            frequency_cap_hz=cap,
            gpu_frequency_hz=self._gpu.read(mono_s),
            operating_points=points,
            charge=None if supply.charge is None else supply.charge.value,
            on_mains=supply.on_mains,
            undervoltage=firmware.undervoltage or chips.undervoltage or supply.undervoltage,
            throttled=firmware.throttled or kernel_throttles or chips.over_current,
            cooling_max=fans[0].most if fans else 0,
            cooling_level=fans[0].level if fans else None,
            power_watts=power.watts,
            power_is_modelled=power.is_modelled or self.profile.emulated,
            power_source=power.source,
            utilisation=busy,
            memory_available_bytes=available_bytes(self._proc),
            pressure=pressures(self._proc),
            health=tuple(self._health(die, ambient, supply.charge, power, fans)),
        )

    def apply(self, decision: Decision) -> tuple[str, ...]:
        """Write the limits of `decision` and read each back.

        A clock is never raised above, nor cooling lowered below, what was found before the first change.

        Returns:
            Complaints that are new since the last call: a lever that is refused or overridden is named once, and once
            more after it had worked in between.
        """
        for policy in self._clocks.policies(self._mono_s):
            self._levers.hold_down(policy.path / "scaling_max_freq", policy.cap_khz(decision.frequency_cap_hz))
        fans, _ = self._cooling.read(self._mono_s)
        for fan in fans:  # the level is one of the strongest: the same share of each
            share = -(-decision.cooling_level * fan.most // fans[0].most)
            self._levers.hold_up(fan.path / "cur_state", min(share, fan.most))
        if not self._firmware.there:
            self._mailbox.ask()
        return self._levers.complaints()

    def restore(self) -> tuple[str, ...]:
        """Put back every limit that was changed, by this process or by one that was killed; say what would not go."""
        self._levers.restore()
        self._mailbox.rest()
        return self._levers.complaints()

    def _points(self) -> tuple[OperatingPoint, ...]:
        table = tuple(self._clocks.table_khz(self._mono_s))
        if table != self._table[0]:  # worked out once: the voltages take longer than all reading
            self._table = table, tuple(OperatingPoint(khz * 1000, self._power.volts(khz * 1000)) for khz in table)
        return self._table[1]

    def _health(
        self, die: Judged, ambient: Judged | None, charge: Judged | None, power: Watts, fans: tuple[Fan, ...]
    ) -> Iterator[tuple[str, Health]]:
        levers = self._levers.health
        yield "temperature", die.health
        if ambient is not None:
            yield "ambient", ambient.health
        if charge is not None:
            yield "charge", charge.health
        if power.health is not None:
            yield "power", power.health
        if self._table[1]:
            yield "frequency-cap", levers.get("frequency-cap", Health.OK)
        elif self.profile.points:
            yield "frequency-cap", Health.MISSING
        self._had_fan = self._had_fan or bool(fans)
        if self._had_fan:
            yield "cooling", levers.get("cooling", Health.OK) if fans else Health.MISSING
