"""The files of an emulated board, laid out and worded as the kernel does.

Every value appears by a rename, so a reader never sees half of one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.board.files import read_int, read_text
from agent.board.injection import NOTHING, OVER_FULL_PERCENT, Injection
from agent.board.physics import CUT_OFF_VOLTS, Constants
from agent.board.profile import EMULATED_PREFIX, named_profile
from agent.board.sensor_model import SENSORS, SensorModel

TRIP_MILLIDEGREES = 110_000
"""Critical trip; the boards' own limits lie below."""
THERMAL = "sys/class/thermal"
CPUFREQ = "sys/devices/system/cpu/cpufreq/policy0"
FAN, HELD_CLOCK = f"{THERMAL}/cooling_device0", f"{THERMAL}/cooling_device1"
CELL, MAINS = "sys/class/power_supply/BAT0", "sys/class/power_supply/AC"
METER, SUPPLY_CHIP = "sys/class/hwmon/hwmon0", "sys/class/hwmon/hwmon1"
AMBIENT_ZONE = "ambient-thermal"
UNDERVOLTAGE_NOW, SOFT_LIMIT_NOW, THROTTLED_NOW = 0x1, 0x8, 0x4
SINCE_BOOT_SHIFT = 16
RAIL_MILLIVOLTS = 5000
"""Input of the Jetson-like board's three-channel meter."""
WRITABLE, READ_ONLY = 0o644, 0o444
CORES = 4
_PRESSURE = "some avg10={0:.2f} avg60={0:.2f} avg300={0:.2f} total=0"  # as the kernel writes it; `full` is not read
TICKS_PER_S = 100.0  # of each core in /proc/stat (USER_HZ)


@dataclass(frozen=True, slots=True)
class Layout:
    """What differs between the trees of the boards."""

    die_zones: tuple[str, ...] = ("cpu-thermal",)
    supply_chip: str | None = None
    """hwmon chip that tells of a dropped supply."""
    firmware: str | None = None
    """Where `get_throttled` is."""


_FIRMWARE = "sys/devices/platform/soc{0}/soc{0}:firmware/get_throttled"
LAYOUTS: Mapping[str, Layout] = {
    "raspberry-pi-4": Layout(supply_chip="rpi_volt", firmware="sys/devices/platform/soc/soc:firmware/get_throttled"),
    "raspberry-pi-5": Layout(supply_chip="rpi_volt", firmware=_FIRMWARE.format("@107c000000")),
    "jetson-orin-nano": Layout(("cpu-thermal", "tj-thermal"), supply_chip="soctherm_oc"),
    "edge-22w": Layout(),
}


@dataclass(frozen=True, slots=True)
class Shown:
    """What the board's files say now."""

    die_celsius: float
    ambient_celsius: float
    frequency_hz: int
    watts: float
    charge: float
    cell_volts: float
    cell_amperes: float
    on_mains: bool
    firmware_throttles: bool
    cooling_state: int
    """Steps by which the kernel holds the clock down."""
    busy_s: float
    """Seconds all cores together were busy since the start, and those that passed."""
    passed_s: float
    injection: Injection


class BoardTree:
    """Writes the tree of one board.

    Args:
        folder: where `sys` and `proc` are made; what another program wrote into the levers before is kept.
        profile: name of the board emulated.
        constants: its clock table, its fan and its battery.
    """

    def __init__(self, folder: Path, profile: str, constants: Constants) -> None:
        self._folder, self._layout, self._constants = folder, LAYOUTS[profile], constants
        self._sensors = SensorModel(SENSORS[profile], seed=0)
        self._written: dict[str, str] = {}
        self._since_boot, self._events = 0, 0
        self._memory_kb = named_profile(profile).memory_bytes >> 10
        self._top_khz = constants.points[-1].frequency_hz // 1000
        self._zones = (*self._layout.die_zones, AMBIENT_ZONE)
        (folder / ".new").mkdir(parents=True, exist_ok=True)
        (folder / "ready").unlink(missing_ok=True)
        self._lay_out(EMULATED_PREFIX + named_profile(profile).models[0])

    def ready(self) -> None:
        """Say that every file is there."""
        self.put("ready", "")

    def asked(self) -> tuple[int | None, int | None]:
        """Clock cap in kHz and fan level, as last written by whoever steers; `None` while unreadable."""
        return read_int(self._folder / CPUFREQ / "scaling_max_freq"), read_int(self._folder / FAN / "cur_state")

    def release_cap(self, mode: int = WRITABLE) -> None:
        """Set the clock cap back to the top, as another program might; `READ_ONLY` refuses further writes."""
        self._written.pop(f"{CPUFREQ}/scaling_max_freq", None)
        self.put(f"{CPUFREQ}/scaling_max_freq", str(self._top_khz), mode)

    def set_fan(self, level: int) -> None:
        """Set the fan, as the kernel's own governor does."""
        self._written.pop(f"{FAN}/cur_state", None)
        self.put(f"{FAN}/cur_state", str(level))

    def put(self, name: str, text: str, mode: int = WRITABLE) -> None:
        """Let the file `name` say `text`, at once; nothing is written when it says so already."""
        if self._written.get(name) == text:
            return
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._folder / ".new" / "value"
        fresh.unlink(missing_ok=True)
        fresh.write_text(f"{text}\n", encoding="ascii")
        fresh.chmod(mode)
        fresh.replace(target)
        self._written[name] = text

    def show(self, now: Shown) -> None:
        """Bring every file up to date."""
        self._show_zones(now)
        self.put(f"{CPUFREQ}/scaling_cur_freq", str(now.frequency_hz // 1000))
        self.put(f"{HELD_CLOCK}/cur_state", str(now.cooling_state))
        self._show_power(now)
        self._show_supply(now)
        self._show_firmware(now)
        self._show_times(now)

    def show_machine(self, injection: Injection = NOTHING) -> None:
        """Memory and pressure are the machine's own: workers really share them. No more memory than the board has."""
        lines = (read_text("/proc/meminfo") or "").splitlines()
        host = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), self._memory_kb)
        most = self._memory_kb if injection.memory_mib is None else int(injection.memory_mib * 1024)
        self.put(
            "proc/meminfo",
            f"MemTotal:       {self._memory_kb} kB\nMemAvailable:   {min(host, self._memory_kb, most)} kB",
        )
        for resource in ("cpu", "memory", "io"):
            name, text = f"proc/pressure/{resource}", read_text(f"/proc/pressure/{resource}")
            if resource == "memory" and injection.memory_pressure is not None:
                text = _PRESSURE.format(injection.memory_pressure * 100)
            if text:
                self.put(name, text)
            else:  # what was asked for before, on a machine that does not tell its own
                self._remove(name)

    def _show_zones(self, now: Shown) -> None:
        zones = reversed(self._zones) if now.injection.renumbers_zones else self._zones
        numbered = [(f"{THERMAL}/thermal_zone{number}", kind) for number, kind in enumerate(zones)]
        if any(self._written.get(f"{zone}/type") != kind for zone, kind in numbered):
            for zone, _ in numbered:  # no temperature ever stands beside the wrong type
                self._remove(f"{zone}/temp")
            for zone, kind in numbered:
                self.put(f"{zone}/type", kind)
                self.put(f"{zone}/trip_point_0_temp", str(TRIP_MILLIDEGREES))
                self.put(f"{zone}/trip_point_0_type", "critical")
        for zone, kind in numbered:
            if kind == AMBIENT_ZONE:
                self.put(f"{zone}/temp", str(round(now.ambient_celsius * 1000)))
            else:
                self._show_die(f"{zone}/temp", now)

    def _show_die(self, name: str, now: Shown) -> None:
        fault = now.injection.temperature
        said = self._sensors.die_millidegrees(now.die_celsius, fault)
        path = self._folder / name
        if said is None:
            if fault == "missing" or not path.is_dir():
                self._remove(name)
            if fault == "unreadable":  # opens, but every read fails
                path.mkdir(exist_ok=True)
            return
        if path.is_dir():
            self._remove(name)
        self.put(name, str(said))

    def _remove(self, name: str) -> None:
        path = self._folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        self._written.pop(name, None)

    def _show_power(self, now: Shown) -> None:
        watts = self._sensors.watts(now.watts)
        if self._sensors.sensors.chip == "ina3221":
            self.put(f"{METER}/in1_input", str(RAIL_MILLIVOLTS))
            self.put(f"{METER}/curr1_input", str(round(watts / RAIL_MILLIVOLTS * 1e6)))
        else:
            self.put(f"{METER}/power1_input", str(round(watts * 1e6)))

    def _show_supply(self, now: Shown) -> None:
        fault = now.injection.battery
        charging = "Full" if now.charge >= 1.0 else "Charging"
        percent = {"over-full": OVER_FULL_PERCENT, "undervolted": 100}.get(fault, round(now.charge * 100))
        volts = CUT_OFF_VOLTS * self._constants.cells * 0.95 if fault == "undervolted" else now.cell_volts
        self.put(f"{MAINS}/online", "1" if now.on_mains else "0")
        if fault == "unknown":
            self.put(f"{CELL}/status", "Unknown")
            self._remove(f"{CELL}/capacity")
        else:
            self.put(f"{CELL}/status", charging if now.on_mains else "Discharging")
            self.put(f"{CELL}/capacity", str(percent))
        self.put(f"{CELL}/voltage_now", str(round(volts * 1e6)))
        self.put(f"{CELL}/current_now", str(round(now.cell_amperes * 1e6)))

    def _show_firmware(self, now: Shown) -> None:
        under = now.injection.undervoltage
        flags = UNDERVOLTAGE_NOW if under else 0
        flags |= (SOFT_LIMIT_NOW | THROTTLED_NOW) if now.firmware_throttles else 0
        self._since_boot |= flags << SINCE_BOOT_SHIFT
        if self._layout.firmware:
            self.put(self._layout.firmware, f"{flags | self._since_boot:x}")
        if self._layout.supply_chip == "rpi_volt":
            self.put(f"{SUPPLY_CHIP}/in0_lcrit_alarm", "1" if under else "0")
        elif self._layout.supply_chip == "soctherm_oc":
            self._events += under
            self.put(f"{SUPPLY_CHIP}/oc1_event_cnt", str(self._events))

    def _show_times(self, now: Shown) -> None:
        busy = round(now.busy_s * TICKS_PER_S * CORES)
        idle = max(round(now.passed_s * TICKS_PER_S * CORES) - busy, 0)
        self.put("proc/stat", f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0")

    def _lay_out(self, model: str) -> None:
        parts, meter = self._constants, self._sensors.sensors.chip
        fixed = {
            f"{FAN}/type": "pwm-fan",
            f"{FAN}/max_state": str(parts.fan_levels),
            f"{HELD_CLOCK}/type": "cpufreq-cpu0",
            f"{HELD_CLOCK}/max_state": str(len(parts.points) - 1),
            f"{CPUFREQ}/scaling_available_frequencies": " ".join(
                str(point.frequency_hz // 1000) for point in parts.points
            ),
            f"{CPUFREQ}/scaling_min_freq": str(parts.points[0].frequency_hz // 1000),
            f"{CPUFREQ}/cpuinfo_max_freq": str(self._top_khz),
            f"{CELL}/type": "Battery",
            f"{CELL}/present": "1",
            f"{CELL}/technology": "Li-ion",
            f"{CELL}/voltage_min_design": str(round(CUT_OFF_VOLTS * parts.cells * 1e6)),
            f"{MAINS}/type": "Mains",
            f"{METER}/name": meter,
            "sys/firmware/devicetree/base/model": f"{model}\0",
        }
        if meter == "ina3221":
            fixed[f"{METER}/in1_label"] = "VDD_IN"
        if self._layout.supply_chip:
            fixed[f"{SUPPLY_CHIP}/name"] = self._layout.supply_chip
        for name, text in fixed.items():
            self.put(name, text)
        self._keep_levers()
        self.show_machine()
        link = self._folder / "proc/device-tree"
        if not link.is_symlink():  # as on a real board
            link.symlink_to("../sys/firmware/devicetree/base")

    def _keep_levers(self) -> None:
        for name, value in (
            (f"{CPUFREQ}/scaling_max_freq", self._top_khz),
            (f"{FAN}/cur_state", self._constants.resting_fan_level),
        ):
            if read_int(self._folder / name) is None:
                self.put(name, str(value))
