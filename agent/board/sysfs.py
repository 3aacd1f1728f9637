"""The board through sysfs and procfs: readings from the kernel's files, limits written into them.

Nothing here forks, blocks for long or believes a sensor blindly. docs/boards.md lists every file and its unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.board.files import folders, read_int, read_text
from agent.board.levers import FREQUENCIES, Levers
from agent.board.plausible import DieSensor, believable_celsius
from agent.board.profile import BoardProfile, PowerModel
from policies.reading import Decision, OperatingPoint, Reading

MAX_POINTS = 128  # the longest cpufreq tables have about 60 entries
MAX_WATTS = 1000.0  # no board of this class; a larger value is a broken sensor
FULL_PERCENT = 100
KERNEL_THROTTLES = ("cpufreq", "thermal-cpufreq", "Processor", "devfreq", "thermal-devfreq")
"""Beginnings of the cooling-device types that hold a clock down."""
POWER_CHIPS = ("ina219", "ina220", "ina226", "ina230", "ina231", "ina260", "ina238")
UNDERVOLTAGE_BIT, THROTTLED_BITS = 0x1, 0xE


@dataclass(frozen=True, slots=True)
class BoardRoots:
    """Where /sys and /proc are: the kernel's own, or an emulated board's tree."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")

    @staticmethod
    def of_tree(tree: Path) -> BoardRoots:
        """The roots inside the tree of an emulated board."""
        return BoardRoots(tree / "sys", tree / "proc")


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
    """

    def __init__(self, roots: BoardRoots, profile: BoardProfile, undo_file: Path | None = None) -> None:
        self.profile = profile
        self._sys, self._proc = roots.sys, roots.proc
        self._die = DieSensor(profile.frozen_after_s)
        self._baseline = profile.highest_resting_celsius
        self._ambient: float | None = None
        self._energy: tuple[float, int] | None = None
        self._busy: tuple[int, int] | None = None
        boot = read_text(roots.proc / "sys/kernel/random/boot_id") or ""
        self._levers = Levers(roots.sys, undo_file, boot)

    def read(self, mono_s: float) -> Reading:
        """Look at the board once; never raises.

        Args:
            mono_s: the monotonic clock, in seconds, at the time of the call.
        """
        celsius = self._die.believe(self._hottest(self.profile.zone_types), mono_s)
        frequency, points = self._clock()
        charge, on_mains = self._supply()
        firmware = self._firmware_bits()
        watts, modelled = self._power(mono_s, celsius, frequency, points)
        return Reading(
            mono_s=mono_s,
            temperature_celsius=celsius,
            ambient_celsius=self._ambient_celsius(celsius),
            frequency_hz=frequency,
            operating_points=points,
            charge=charge,
            on_mains=on_mains,
            undervoltage=bool(firmware & UNDERVOLTAGE_BIT) or self._undervoltage_alarm(),
            throttled=bool(firmware & THROTTLED_BITS) or self._kernel_throttles(),
            cooling_max=max((most for _, most in self._fans()), default=0),
            power_watts=watts,
            power_is_modelled=modelled or self.profile.emulated,
            memory_available_bytes=self._memory_available(),
        )

    def apply(self, decision: Decision) -> tuple[str, ...]:
        """Write the limits of `decision` and read each back.

        A clock is never raised above, nor cooling lowered below, what was found before the first change.

        Returns:
            Complaints that are new since the last call: a lever that is refused or overridden is named once, and once
            more after it had worked in between.
        """
        for folder in folders(self._sys / FREQUENCIES, "policy"):
            self._levers.hold_down(folder / "scaling_max_freq", self._cap_khz(folder, decision.frequency_cap_hz))
        for folder, most in self._fans():
            self._levers.hold_up(folder / "cur_state", min(decision.cooling_level, most))
        return self._levers.complaints()

    def restore(self) -> tuple[str, ...]:
        """Put back every limit that was changed, by this process or by one that was killed; say what would not go."""
        self._levers.restore()
        return self._levers.complaints()

    def _hottest(self, types: tuple[str, ...]) -> float | None:
        zones = [(read_text(zone / "type"), zone) for zone in folders(self._sys / "class/thermal", "thermal_zone")]
        for wanted in types:
            found = [believable_celsius(read_int(zone / "temp")) for kind, zone in zones if kind == wanted]
            if found:  # the first type there is decides: falling back to a cooler zone would hide a lost sensor
                return None if None in found else max(value for value in found if value is not None)
        return None

    def _ambient_celsius(self, die_celsius: float | None) -> float | None:
        measured = self._hottest(self.profile.ambient_types)
        if measured is not None:
            self._ambient = measured
        if self._ambient is not None:
            return self._ambient  # air does not jump: the last value serves while its sensor is silent
        if die_celsius is not None:
            self._baseline = min(self._baseline, die_celsius)
        return self._baseline

    def _clock(self) -> tuple[int | None, tuple[OperatingPoint, ...]]:
        policies = list(folders(self._sys / FREQUENCIES, "policy"))
        current = [khz for p in policies if (khz := read_int(p / "scaling_cur_freq")) is not None and khz > 0]
        listed = {khz for policy in policies for khz in _khz_table(policy)}
        points = tuple(OperatingPoint(khz * 1000, self._volts(khz * 1000)) for khz in sorted(listed)[:MAX_POINTS])
        return max(current) * 1000 if current else None, points

    def _volts(self, hz: int) -> float:
        points = self.profile.points
        if not points:
            return 0.0
        below = max((p for p in points if p.frequency_hz <= hz), default=points[0])
        above = min((p for p in points if p.frequency_hz >= hz), default=points[-1])
        span = above.frequency_hz - below.frequency_hz
        share = (hz - below.frequency_hz) / span if span > 0 else 0.0
        return below.volts + (above.volts - below.volts) * share

    def _cap_khz(self, folder: Path, cap_hz: int | None) -> int | None:
        table = _khz_table(folder)
        if cap_hz is None or not table or cap_hz >= table[-1] * 1000:
            return None
        return max((khz for khz in table if khz * 1000 <= cap_hz), default=table[0])

    def _fans(self) -> list[tuple[Path, int]]:
        found = []
        for folder in folders(self._sys / "class/thermal", "cooling_device"):
            most = read_int(folder / "max_state")
            if most is not None and most > 0 and read_text(folder / "type") in self.profile.fan_types:
                found.append((folder, most))
        return found

    def _kernel_throttles(self) -> bool:
        return any(
            (read_text(folder / "type") or "").startswith(KERNEL_THROTTLES)
            and (read_int(folder / "cur_state") or 0) > 0
            for folder in folders(self._sys / "class/thermal", "cooling_device")
        )

    def _supply(self) -> tuple[float | None, bool | None]:
        charges: list[float | None] = []
        online: list[bool] = []
        charging = False
        for folder in folders(self._sys / "class/power_supply", ""):
            kind = read_text(folder / "type")
            if read_text(folder / "scope") == "Device":
                continue  # the battery of a mouse or a headset
            if kind == "Battery":
                percent = read_int(folder / "capacity")
                known = percent is not None and 0 <= percent <= FULL_PERCENT
                charges.append(percent / FULL_PERCENT if known and percent is not None else None)
                charging = charging or read_text(folder / "status") in ("Charging", "Full", "Not charging")
            elif kind is not None:
                online.append((read_int(folder / "online") or 0) > 0)
        if not charges:
            return None, True if any(online) else None
        charge = None if None in charges else min(value for value in charges if value is not None)
        return charge, any(online) if online else charging

    def _firmware_bits(self) -> int:
        return read_int(self._sys / "devices/platform/soc/soc:firmware/get_throttled", base=16) or 0

    def _chips(self) -> Iterator[tuple[str, Path]]:
        for folder in folders(self._sys / "class/hwmon", "hwmon"):
            name = read_text(folder / "name")
            if name is not None:
                yield name, folder

    def _undervoltage_alarm(self) -> bool:
        return any(name == "rpi_volt" and read_int(chip / "in0_lcrit_alarm") == 1 for name, chip in self._chips())

    def _power(
        self, mono_s: float, celsius: float | None, frequency: int | None, points: tuple[OperatingPoint, ...]
    ) -> tuple[float | None, bool]:
        for measured in (self._chip_watts(), self._energy_watts(mono_s)):
            if measured is not None and 0.0 <= measured <= MAX_WATTS:
                return measured, False
        return self._modelled_watts(self.profile.power, celsius, frequency, points), True

    def _chip_watts(self) -> float | None:
        for name, chip in self._chips():
            if name in POWER_CHIPS and (microwatts := read_int(chip / "power1_input")) is not None:
                return microwatts / 1e6
            if name == "ina3221":  # the first channel is the whole board's input on Jetson (VDD_IN)
                millivolts, milliamperes = read_int(chip / "in1_input"), read_int(chip / "curr1_input")
                if millivolts is not None and milliamperes is not None:
                    return millivolts * milliamperes / 1e6
        return None

    def _energy_watts(self, mono_s: float) -> float | None:
        package = self._sys / "class/powercap/intel-rapl:0"
        now = read_int(package / "energy_uj")
        if now is None:
            return None
        before, self._energy = self._energy, (mono_s, now)
        if before is None or mono_s <= before[0]:
            return None
        spent = now - before[1]
        if spent < 0:
            spent += read_int(package / "max_energy_range_uj") or 0
        return spent / 1e6 / (mono_s - before[0]) if spent >= 0 else None

    def _modelled_watts(
        self, model: PowerModel | None, celsius: float | None, frequency: int | None, points: tuple[OperatingPoint, ...]
    ) -> float | None:
        busy = self._utilisation()
        point = max((p for p in points if frequency is not None and p.frequency_hz <= frequency), default=None)
        if model is None or point is None or busy is None:
            return None
        return model.watts(point, busy, celsius if celsius is not None else self.profile.highest_resting_celsius)

    def _utilisation(self) -> float | None:
        words = (read_text(self._proc / "stat") or "").partition("\n")[0].split()
        if len(words) < 6 or words[0] != "cpu" or not all(word.isdigit() for word in words[1:]):  # noqa: PLR2004 - cpu user nice system idle iowait
            return None
        ticks = [int(word) for word in words[1:9]]  # guest time, after them, is counted in user time already
        now = (sum(ticks), ticks[3] + ticks[4])
        before, self._busy = self._busy, now
        if before is None or now[0] <= before[0]:
            return None
        return min(max(1.0 - (now[1] - before[1]) / (now[0] - before[0]), 0.0), 1.0)

    def _memory_available(self) -> int | None:
        for line in (read_text(self._proc / "meminfo") or "").splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == "MemAvailable:" and words[1].isdigit():  # noqa: PLR2004 - key and value
                return int(words[1]) * 1024
        return None


def _khz_table(folder: Path) -> list[int]:
    words = (read_text(folder / "scaling_available_frequencies") or "").split()
    return sorted(int(word) for word in words if word.isdigit() and int(word) > 0)
