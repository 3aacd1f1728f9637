"""Trees of /sys and /proc in the shape of real boards: paths, names and units as their kernels document them.

The values are written down here, not copied from a board. To look at one, or to measure with it:

    python -m tests.simulators.board_trees DIR
    temperd bench board --tree DIR/jetson-orin-nano
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

Files = dict[str, str]

THERMAL, CPUFREQ = "sys/class/thermal", "sys/devices/system/cpu/cpufreq"
SUPPLY, HWMON, POWERCAP = "sys/class/power_supply", "sys/class/hwmon", "sys/class/powercap"
PI4_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
PI5_THROTTLED = "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"
"""The Pi 5's soc node bears its address; where the firmware node lies in it is assumed."""
UNREADABLE = "/proc/self/clear_refs"
"""The kernel lets nobody read this file: EINVAL for root, EACCES for others."""


class BoardTree:
    """One tree on disk, and what can happen to its files.

    Args:
        folder: where `sys` and `proc` are made.
        files: contents by name.
    """

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        self.folder = folder
        for name, text in files.items():
            self.set(name, text)

    def set(self, name: str, text: str) -> None:
        """Let the file say `text`."""
        path = self.folder / name
        self.remove(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")

    def get(self, name: str) -> str:
        """What the file says."""
        return (self.folder / name).read_text("utf-8").strip("\0 \n")

    def remove(self, name: str) -> None:
        """Take a file, a link or a folder away."""
        path = self.folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def link(self, name: str, target: str | Path) -> None:
        """Put a link in the file's place: to `UNREADABLE`, to nowhere, or to itself (ELOOP)."""
        self.remove(name)
        (self.folder / name).symlink_to(target)

    def make_folder(self, name: str) -> None:
        """Put a folder in the file's place: it opens, and cannot be read (EISDIR)."""
        self.remove(name)
        (self.folder / name).mkdir()

    def swap(self, one: str, other: str) -> None:
        """Exchange two folders, as when drivers load in another order."""
        first, second, spare = self.folder / one, self.folder / other, self.folder / "spare"
        first.rename(spare)
        second.rename(first)
        spare.rename(second)


def _zone(number: int, kind: str, millidegrees: str, *trips: int) -> Files:
    zone = f"{THERMAL}/thermal_zone{number}"
    files = {f"{zone}/type": kind, f"{zone}/temp": millidegrees, f"{zone}/mode": "enabled"}
    files |= {f"{zone}/policy": "step_wise", f"{zone}/available_policies": "step_wise"}
    for index, trip in enumerate(trips):
        files[f"{zone}/trip_point_{index}_temp"] = str(trip)
        files[f"{zone}/trip_point_{index}_type"] = "critical" if index == len(trips) - 1 else "active"
    return files


def _cooling(number: int, kind: str, level: int, most: int) -> Files:
    device = f"{THERMAL}/cooling_device{number}"
    return {f"{device}/type": kind, f"{device}/cur_state": str(level), f"{device}/max_state": str(most)}


def _cpufreq(number: int, cores: str, table: range | tuple[int, ...], now: int, driver: str = "cpufreq-dt") -> Files:
    policy, listed = f"{CPUFREQ}/policy{number}", list(table)
    return {
        f"{policy}/related_cpus": cores,
        f"{policy}/scaling_driver": driver,
        f"{policy}/scaling_governor": "ondemand",
        f"{policy}/scaling_available_frequencies": " ".join(map(str, listed)),
        f"{policy}/cpuinfo_min_freq": str(listed[0]),
        f"{policy}/cpuinfo_max_freq": str(listed[-1]),
        f"{policy}/scaling_min_freq": str(listed[0]),
        f"{policy}/scaling_max_freq": str(listed[-1]),
        f"{policy}/scaling_cur_freq": str(now),
    }


def _hwmon(number: int, name: str, **files: str) -> Files:
    return {f"{HWMON}/hwmon{number}/{key}": text for key, text in ({"name": name} | files).items()}


def _proc(model: str, total_kb: int, cores: int, *, pressure: bool) -> Files:
    each = "\n".join(f"cpu{core} 2500 5 800 41000 120 0 40 0 0 0" for core in range(cores))
    files = {
        "proc/stat": f"cpu  {2500 * cores} {5 * cores} {800 * cores} {41000 * cores} {120 * cores} 0 {40 * cores} 0 0 0"
        f"\n{each}\nintr 1000000 0 0\nctxt 2000000\nbtime 1764500000\nprocesses 4321",
        "proc/meminfo": f"MemTotal:       {total_kb} kB\nMemFree:        {total_kb // 3} kB\n"
        f"MemAvailable:   {total_kb // 2} kB\nBuffers:        40000 kB",
        "proc/sys/kernel/random/boot_id": "5f0a7a52-8f0e-4c36-9f42-0f5d4f5e6c11",
    }
    if model:
        files["proc/device-tree/model"] = f"{model}\0"
    for name in ("cpu", "memory", "io") if pressure else ():
        files[f"proc/pressure/{name}"] = (
            "some avg10=1.50 avg60=0.40 avg300=0.10 total=123456\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0"
        )
    return files


def raspberry_pi_4() -> Files:
    """One zone, no fan, no meter, no battery; Raspberry Pi OS leaves pressure (PSI) off."""
    return {
        **_zone(0, "cpu-thermal", "47225", 110_000),
        **_cpufreq(0, "0 1 2 3", range(600_000, 1_800_001, 100_000), 1_800_000),
        **_hwmon(0, "cpu_thermal", temp1_input="47225"),
        **_hwmon(1, "rpi_volt", in0_lcrit_alarm="0"),
        PI4_THROTTLED: "0",
        **_proc("Raspberry Pi 4 Model B Rev 1.4", 3_884_000, 4, pressure=False),
    }


def raspberry_pi_5() -> Files:
    """With its fan, whose five trip points make the kernel switch it."""
    return {
        **_zone(0, "cpu-thermal", "52950", 50_000, 60_000, 67_500, 75_000, 110_000),
        **_cooling(0, "pwm-fan", 1, 4),
        **_cpufreq(0, "0 1 2 3", range(1_500_000, 2_400_001, 100_000), 2_400_000),
        **_hwmon(0, "cpu_thermal", temp1_input="52950"),
        **_hwmon(1, "rp1_adc", in1_input="1468", in2_input="2501", temp1_input="55472"),
        **_hwmon(2, "pwmfan", fan1_input="3296", pwm1="75"),
        **_hwmon(3, "rpi_volt", in0_lcrit_alarm="0"),
        PI5_THROTTLED: "0",
        **_proc("Raspberry Pi 5 Model B Rev 1.0", 8_256_000, 4, pressure=False),
    }


JETSON_TABLE = (*range(115_200, 1_497_601, 76_800), 1_510_400)
JETSON_ZONES = ("cpu", "gpu", "cv0", "cv1", "cv2", "soc0", "soc1", "soc2", "tj")


def jetson_orin_nano() -> Files:
    """Nine zones, two clusters, an INA3221 with labels, the graphics processor in devfreq.

    The three zones of accelerators that this module lacks give EAGAIN: here a text that is no number.
    """
    files: Files = {}
    for number, name in enumerate(JETSON_ZONES):
        dead = name.startswith("cv")
        files |= _zone(number, f"{name}-thermal", "" if dead else str(48_000 + 250 * number), 85_000, 99_000)
    kinds = ("pwm-fan", "cpufreq-cpu0", "cpufreq-cpu4", "devfreq-17000000.gpu", "cpu-throttle-alert")
    for number, kind in enumerate((*kinds, "gpu-throttle-alert", "hot-surface-alert")):
        files |= _cooling(number, kind, 0, 3 if kind == "pwm-fan" else 1)
    gpu = "sys/class/devfreq/17000000.gpu"
    return {
        **files,
        **_cpufreq(0, "0 1 2 3", JETSON_TABLE, 1_036_800, "tegra194"),
        **_cpufreq(4, "4 5", JETSON_TABLE, 1_510_400, "tegra194"),
        f"{gpu}/cur_freq": "306000000",
        f"{gpu}/min_freq": "306000000",
        f"{gpu}/max_freq": "624750000",
        f"{gpu}/available_frequencies": "306000000 408000000 510000000 612000000 624750000",
        **_hwmon(0, "pwmfan", pwm1="60"),
        **_hwmon(1, "pwm_tach", rpm="1600"),
        **_hwmon(
            2,
            "ina3221",
            in1_label="VDD_IN",
            in1_input="5016",
            curr1_input="960",
            in2_label="VDD_CPU_GPU_CV",
            in2_input="5008",
            curr2_input="240",
            in3_label="VDD_SOC",
            in3_input="5008",
            curr3_input="288",
            in7_label="sum of shunt voltages",
        ),
        **_hwmon(3, "soctherm_oc", oc1_event_cnt="0", oc2_event_cnt="2", oc3_event_cnt="0"),
        f"{SUPPLY}/ucsi-source-psy-1-00081/type": "USB",
        f"{SUPPLY}/ucsi-source-psy-1-00081/online": "0",
        **_proc("NVIDIA Jetson Orin Nano Developer Kit", 7_800_000, 6, pressure=True),
    }


def mini_pc() -> Files:
    """x86: cpufreq without a table, a processor's energy counter, ECC memory, no device tree.

    The zone `acpitz` of such boards rests on one value for ever; `x86_pkg_temp` is the die.
    """
    files: Files = _zone(0, "acpitz", "27800", 119_000) | _zone(1, "x86_pkg_temp", "41000", 100_000)
    for core in range(4):
        files |= _cooling(core, "Processor", 0, 10)
        policy = f"{CPUFREQ}/policy{core}"
        files |= _cpufreq(core, str(core), (800_000, 3_400_000), 1_187_432 + core, "intel_pstate")
        del files[f"{policy}/scaling_available_frequencies"]
    files |= _cooling(4, "intel_powerclamp", -1, 50)
    for name, kind, microjoules in (
        ("intel-rapl:0", "package-0", "51923847212"),
        ("intel-rapl:0:0", "core", "23187236123"),
        ("intel-rapl-mmio:0", "package-0", "51923847212"),
    ):
        files[f"{POWERCAP}/{name}/name"] = kind
        files[f"{POWERCAP}/{name}/energy_uj"] = microjoules
        files[f"{POWERCAP}/{name}/max_energy_range_uj"] = "262143328850"
    return {
        **files,
        **_hwmon(0, "acpitz", temp1_input="27800"),
        **_hwmon(1, "nvme", temp1_input="38850"),
        **_hwmon(2, "coretemp", temp1_input="41000", temp1_label="Package id 0"),
        "sys/devices/system/edac/mc/mc0/ce_count": "0",
        "sys/devices/system/edac/mc/mc0/ue_count": "0",
        **_proc("", 16_200_000, 4, pressure=True),
    }


def battery_board() -> Files:
    """A mini PC that runs on a battery of three cells, off the mains, with a wireless mouse beside it."""
    battery = f"{SUPPLY}/BAT0"
    return {
        **mini_pc(),
        f"{SUPPLY}/AC/type": "Mains",
        f"{SUPPLY}/AC/online": "0",
        f"{battery}/type": "Battery",
        f"{battery}/present": "1",
        f"{battery}/status": "Discharging",
        f"{battery}/technology": "Li-ion",
        f"{battery}/capacity": "81",
        f"{battery}/voltage_min_design": "11100000",
        f"{battery}/voltage_now": "11900000",
        f"{battery}/current_now": "1200000",
        f"{battery}/charge_now": "3240000",
        f"{battery}/charge_full": "4000000",
        f"{SUPPLY}/hidpp_battery_0/type": "Battery",
        f"{SUPPLY}/hidpp_battery_0/scope": "Device",
        f"{SUPPLY}/hidpp_battery_0/capacity": "5",
        f"{SUPPLY}/hidpp_battery_0/status": "Discharging",
    }


def unknown_board() -> Files:
    """A board no profile knows: three zones, none of a type that is known, and no cpufreq."""
    return {
        **_zone(0, "ddr-thermal", "39000", 105_000),
        **_zone(1, "soc-thermal", "44000", 105_000),
        **_zone(2, "bigcore0-thermal", "45000", 115_000),
        **_proc("Radxa ROCK 5B", 8_000_000, 8, pressure=True),
    }


BOARDS = {
    "raspberry-pi-4": raspberry_pi_4,
    "raspberry-pi-5": raspberry_pi_5,
    "jetson-orin-nano": jetson_orin_nano,
    "mini-pc": mini_pc,
    "battery-board": battery_board,
    "unknown-board": unknown_board,
}


def main(folder: Path) -> None:
    """Write every board below `folder`."""
    for name, files in BOARDS.items():
        BoardTree(folder / name, files())
        sys.stdout.write(f"{folder / name}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
