"""The files of an emulated board, laid out and worded as the kernel does.

Every value appears by a rename, so a reader never sees half of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.board.files import read_int, read_text
from agent.board.physics import Constants
from agent.board.profile import EMULATED_PREFIX, named_profile

GOLDEN = 0.618_033_988_75
NOISE_KELVIN = 0.06
"""Width of the sensor's noise: its last digit never rests, as in a real converter."""
JUMP_KELVIN = 60.0  # fault 46
TRIP_MILLIDEGREES = 85_000
CPUFREQ = "sys/devices/system/cpu/cpufreq/policy0"
CPU_ZONE, AIR_ZONE = "sys/class/thermal/thermal_zone0", "sys/class/thermal/thermal_zone1"
FAN = "sys/class/thermal/cooling_device0"
CELL, MAINS = "sys/class/power_supply/BAT0", "sys/class/power_supply/AC"
METER, FIRMWARE_CHIP = "sys/class/hwmon/hwmon0", "sys/class/hwmon/hwmon1"
THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
UNDERVOLTAGE_NOW, SOFT_LIMIT_NOW, THROTTLED_NOW = 0x1, 0x8, 0x4
SINCE_BOOT_SHIFT = 16


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
    undervoltage: bool
    throttled: bool
    sensor_fault: str
    """`missing`, `frozen`, `impossible`, `jump` or empty."""


class BoardTree:
    """Writes the tree of one board.

    Args:
        folder: where `sys` and `proc` are made; what another program wrote into the levers before is kept.
        profile: name of the board emulated.
        constants: its clock table and its fan.
    """

    def __init__(self, folder: Path, profile: str, constants: Constants) -> None:
        self._folder = folder
        self._written: dict[str, str] = {}
        self._shows = 0
        self._since_boot = 0
        self._memory_kb = named_profile(profile).memory_bytes >> 10
        self._top_khz = constants.points[-1].frequency_hz // 1000
        (folder / ".new").mkdir(parents=True, exist_ok=True)
        (folder / "ready").unlink(missing_ok=True)
        self._lay_out(EMULATED_PREFIX + named_profile(profile).models[0], constants)

    def ready(self) -> None:
        """Say that every file is there."""
        self.put("ready", "")

    def asked(self) -> tuple[int | None, int | None]:
        """Clock cap in kHz and fan level, as last written by whoever steers; `None` while unreadable."""
        return read_int(self._folder / CPUFREQ / "scaling_max_freq"), read_int(self._folder / FAN / "cur_state")

    def release_cap(self) -> None:
        """Set the clock cap back to the top, as another program might."""
        self._written.pop(f"{CPUFREQ}/scaling_max_freq", None)
        self.put(f"{CPUFREQ}/scaling_max_freq", str(self._top_khz))

    def put(self, name: str, text: str) -> None:
        """Let the file `name` say `text`, at once; nothing is written when it says so already."""
        if self._written.get(name) == text:
            return
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._folder / ".new" / "value"
        fresh.write_text(f"{text}\n", encoding="ascii")
        fresh.replace(target)
        self._written[name] = text

    def show(self, now: Shown) -> None:
        """Bring every file up to date."""
        self._shows += 1
        self._show_die(now)
        self.put(f"{AIR_ZONE}/temp", str(round(now.ambient_celsius * 1000)))
        self.put(f"{CPUFREQ}/scaling_cur_freq", str(now.frequency_hz // 1000))
        self.put(f"{METER}/power1_input", str(round(now.watts * 1e6)))
        self._show_supply(now)
        flags = UNDERVOLTAGE_NOW if now.undervoltage else 0
        flags |= (SOFT_LIMIT_NOW | THROTTLED_NOW) if now.throttled else 0
        self._since_boot |= flags << SINCE_BOOT_SHIFT
        self.put(THROTTLED, f"{flags | self._since_boot:x}")
        self.put(f"{FIRMWARE_CHIP}/in0_lcrit_alarm", "1" if now.undervoltage else "0")
        self._show_memory()

    def _show_die(self, now: Shown) -> None:
        name = f"{CPU_ZONE}/temp"
        if now.sensor_fault == "missing":
            (self._folder / name).unlink(missing_ok=True)
            self._written.pop(name, None)
        elif now.sensor_fault != "frozen" or name not in self._written:
            noise = (self._shows * GOLDEN % 1.0 - 0.5) * NOISE_KELVIN
            celsius = now.die_celsius + noise + (JUMP_KELVIN if now.sensor_fault == "jump" else 0.0)
            self.put(name, "-256000" if now.sensor_fault == "impossible" else str(round(celsius * 1000)))

    def _show_supply(self, now: Shown) -> None:
        self.put(f"{MAINS}/online", "1" if now.on_mains else "0")
        charging = "Full" if now.charge >= 1.0 else "Charging"
        self.put(f"{CELL}/status", charging if now.on_mains else "Discharging")
        self.put(f"{CELL}/capacity", str(round(now.charge * 100)))
        self.put(f"{CELL}/voltage_now", str(round(now.cell_volts * 1e6)))
        self.put(f"{CELL}/current_now", str(round(now.cell_amperes * 1e6)))

    def _show_memory(self) -> None:
        # The machine's own memory is what workers really share: the emulated board has no more than that.
        lines = (read_text(Path("/proc/meminfo")) or "").splitlines()
        host = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), self._memory_kb)
        self.put(
            "proc/meminfo",
            f"MemTotal:       {self._memory_kb} kB\nMemAvailable:   {min(host, self._memory_kb)} kB",
        )

    def _lay_out(self, model: str, constants: Constants) -> None:
        fixed = {
            f"{CPU_ZONE}/type": "cpu-thermal",
            f"{CPU_ZONE}/trip_point_0_temp": str(TRIP_MILLIDEGREES),
            f"{CPU_ZONE}/trip_point_0_type": "critical",
            f"{AIR_ZONE}/type": "ambient-thermal",
            f"{FAN}/type": "pwm-fan",
            f"{FAN}/max_state": str(constants.fan_levels),
            f"{CPUFREQ}/scaling_available_frequencies": " ".join(
                str(point.frequency_hz // 1000) for point in constants.points
            ),
            f"{CPUFREQ}/scaling_min_freq": str(constants.points[0].frequency_hz // 1000),
            f"{CPUFREQ}/cpuinfo_max_freq": str(self._top_khz),
            f"{CELL}/type": "Battery",
            f"{MAINS}/type": "Mains",
            f"{METER}/name": "ina219",
            f"{FIRMWARE_CHIP}/name": "rpi_volt",
            "sys/firmware/devicetree/base/model": f"{model}\0",
        }
        for name, text in fixed.items():
            self.put(name, text)
        for name, value in (
            (f"{CPUFREQ}/scaling_max_freq", self._top_khz),
            (f"{FAN}/cur_state", constants.resting_fan_level),
        ):
            if read_int(self._folder / name) is None:
                self.put(name, str(value))
        link = self._folder / "proc/device-tree"
        link.parent.mkdir(exist_ok=True)
        if not link.is_symlink():  # as on a real board
            link.symlink_to("../sys/firmware/devicetree/base")
