from __future__ import annotations

import json
from pathlib import Path, PurePath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.board.levers import Levers
from agent.board.profile import GENERIC, named_profile
from agent.board.sysfs import BoardRoots, SysfsBoard, read_model
from policies.reading import Decision

PI4 = named_profile("raspberry-pi-4")
TABLE = " ".join(str(khz) for khz in range(600_000, 1_800_001, 100_000))
POLICY0 = "sys/devices/system/cpu/cpufreq/policy0"
CAP, FAN = f"{POLICY0}/scaling_max_freq", "sys/class/thermal/cooling_device0/cur_state"
PLAIN = {
    "sys/class/thermal/thermal_zone0/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "70000",
    "sys/class/thermal/thermal_zone1/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": "48312",
    "sys/class/thermal/cooling_device0/type": "pwm-fan",
    "sys/class/thermal/cooling_device0/max_state": "4",
    FAN: "1",
    "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0",
    "sys/class/thermal/cooling_device1/max_state": "12",
    "sys/class/thermal/cooling_device1/cur_state": "0",
    f"{POLICY0}/scaling_available_frequencies": TABLE,
    f"{POLICY0}/scaling_cur_freq": "1500000",
    CAP: "1800000",
    "proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 3000000 kB",
}


class Tree:
    """A sysfs tree of plain files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in PLAIN.items():
            self.set(name, text)

    def set(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def get(self, name: str) -> str:
        return (self.folder / name).read_text().strip()

    def board(self, profile=PI4, undo: Path | None = None) -> SysfsBoard:  # type: ignore[no-untyped-def] # noqa: ANN001 - its default says it
        return SysfsBoard(BoardRoots.of_tree(self.folder), profile, undo)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "tree")


def test_reads_every_value_in_its_unit(tree: Tree) -> None:
    reading = tree.board().read(1.0)
    assert reading.mono_s == 1.0
    assert reading.temperature_celsius == 48.312
    assert reading.frequency_hz == 1_500_000_000
    assert [p.frequency_hz for p in reading.operating_points] == [int(x) * 1000 for x in TABLE.split()]
    assert (reading.operating_points[0].volts, reading.operating_points[-1].volts) == (0.72, 0.88)
    assert (reading.charge, reading.on_mains) == (None, None)
    assert (reading.undervoltage, reading.throttled) == (False, False)
    assert reading.cooling_max == 4
    assert reading.memory_available_bytes == 3_000_000 * 1024


def test_zone_is_chosen_by_type_after_renumbering(tree: Tree) -> None:
    board = tree.board()
    for number, (kind, temp) in enumerate([("cpu-thermal", "51000"), ("gpu-thermal", "90000")]):
        tree.set(f"sys/class/thermal/thermal_zone{number}/type", kind)
        tree.set(f"sys/class/thermal/thermal_zone{number}/temp", temp)
    assert board.read(1.0).temperature_celsius == 51.0


@pytest.mark.parametrize("raw", ["0", "-256000", "", "abc", "9" * 30])
def test_temperature_that_lies_is_missing(tree: Tree, raw: str) -> None:
    tree.set("sys/class/thermal/thermal_zone1/temp", raw)
    assert tree.board().read(1.0).temperature_celsius is None


def test_zone_that_is_gone_is_missing(tree: Tree) -> None:
    (tree.folder / "sys/class/thermal/thermal_zone1/temp").unlink()
    assert tree.board().read(1.0).temperature_celsius is None


def test_an_empty_root_reads_as_nothing(tmp_path: Path) -> None:
    board = SysfsBoard(BoardRoots(tmp_path / "sys", tmp_path / "proc"), GENERIC)
    reading = board.read(1.0)
    assert reading.temperature_celsius is None
    assert reading.operating_points == ()
    assert reading.power_watts is None
    assert board.apply(Decision(frequency_cap_hz=600_000_000, cooling_level=4)) == ()
    assert read_model(BoardRoots(tmp_path / "sys", tmp_path / "proc")) == ""


def test_ambient_sensor_serves_as_ambient_and_its_last_value_stays(tree: Tree) -> None:
    board = tree.board()
    tree.set("sys/class/thermal/thermal_zone2/type", "ambient-thermal")
    tree.set("sys/class/thermal/thermal_zone2/temp", "21000")
    assert board.read(1.0).ambient_celsius == 21.0
    tree.set("sys/class/thermal/thermal_zone2/temp", "-256000")
    assert board.read(2.0).ambient_celsius == 21.0


def test_without_ambient_sensor_the_coolest_die_is_the_baseline_up_to_a_bound(tree: Tree) -> None:
    board = tree.board()
    seen = []
    for second, raw in enumerate(["70000", "48000", "55000"]):
        tree.set("sys/class/thermal/thermal_zone1/temp", raw)
        seen.append(board.read(float(second)).ambient_celsius)
    assert seen == [50.0, 48.0, 48.0]


SUPPLY = "sys/class/power_supply"


@pytest.mark.parametrize(
    ("battery", "mains", "charge", "on_mains"),
    [
        ({"capacity": "55", "status": "Discharging"}, None, 0.55, False),
        ({"capacity": "55", "status": "Charging"}, None, 0.55, True),
        ({"capacity": "55", "status": "Discharging"}, "1", 0.55, True),
        ({"capacity": "55", "status": "Charging"}, "0", 0.55, False),
        ({"capacity": "101", "status": "Full"}, "0", None, False),
        ({"capacity": "-1", "status": "Unknown"}, None, None, False),
        ({"capacity": "55", "status": "Unknown"}, None, 0.55, False),
        ({"status": "Unknown"}, "1", None, True),
        (None, "1", None, True),
        (None, "0", None, None),
        ({"capacity": "3", "status": "Discharging", "scope": "Device"}, None, None, None),
    ],
)
def test_supply(
    tree: Tree,
    battery: dict[str, str] | None,
    mains: str | None,
    charge: float | None,
    on_mains: bool | None,
) -> None:
    for key, value in ({"type": "Battery"} | battery if battery is not None else {}).items():
        tree.set(f"{SUPPLY}/BAT0/{key}", value)
    if mains is not None:
        tree.set(f"{SUPPLY}/AC/type", "Mains")
        tree.set(f"{SUPPLY}/AC/online", mains)
    reading = tree.board().read(1.0)
    assert (reading.charge, reading.on_mains) == (charge, on_mains)


@pytest.mark.parametrize(
    ("name", "text", "undervoltage", "throttled"),
    [
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "50005", True, True),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "50000", False, False),  # since boot, not now
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "8", False, True),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "junk", False, False),
        ("sys/class/thermal/cooling_device1/cur_state", "3", False, True),
        (FAN, "3", False, False),  # a fan that turns throttles nothing
    ],
)
def test_signs_of_throttling(tree: Tree, name: str, text: str, undervoltage: bool, throttled: bool) -> None:
    tree.set(name, text)
    reading = tree.board().read(1.0)
    assert (reading.undervoltage, reading.throttled) == (undervoltage, throttled)


def test_undervoltage_alarm_of_the_firmware_chip(tree: Tree) -> None:
    tree.set("sys/class/hwmon/hwmon0/name", "rpi_volt")
    tree.set("sys/class/hwmon/hwmon0/in0_lcrit_alarm", "1")
    assert tree.board().read(1.0).undervoltage


def test_power_of_a_meter_chip_is_measured(tree: Tree) -> None:
    tree.set("sys/class/hwmon/hwmon3/name", "ina219")
    tree.set("sys/class/hwmon/hwmon3/power1_input", "4250000")
    reading = tree.board().read(1.0)
    assert (reading.power_watts, reading.power_is_modelled) == (4.25, False)


def test_power_of_an_ina3221_is_volts_times_amperes(tree: Tree) -> None:
    tree.set("sys/class/hwmon/hwmon3/name", "ina3221")
    tree.set("sys/class/hwmon/hwmon3/in1_input", "5000")
    tree.set("sys/class/hwmon/hwmon3/curr1_input", "1500")
    assert tree.board().read(1.0).power_watts == 7.5


def test_energy_counter_gives_power_also_when_it_wraps(tree: Tree) -> None:
    folder = "sys/class/powercap/intel-rapl:0"
    tree.set(f"{folder}/name", "package-0")
    tree.set(f"{folder}/max_energy_range_uj", "10000000")
    board = tree.board(GENERIC)
    seen = []
    for second, energy in enumerate(["8000000", "9000000", "1500000"]):
        tree.set(f"{folder}/energy_uj", energy)
        seen.append(board.read(float(second)).power_watts)
    assert seen == [None, 1.0, 2.5]


def test_without_meter_power_is_modelled_from_load_and_clock(tree: Tree) -> None:
    board = tree.board()
    tree.set(f"{POLICY0}/scaling_cur_freq", "1800000")
    tree.set("proc/stat", "cpu 100 0 0 900 0 0 0 0 0 0\ncpu0 1 1 1 1")
    first = board.read(1.0)
    tree.set("proc/stat", "cpu 200 0 0 900 0 0 0 0 0 0")
    busy = board.read(2.0)
    tree.set("proc/stat", "cpu 200 0 0 1000 0 0 0 0 0 0")
    idle = board.read(3.0)
    assert first.power_watts is None
    assert busy.power_watts is not None
    assert idle.power_watts is not None
    assert busy.power_is_modelled
    assert 6.0 < busy.power_watts < 6.8
    assert 2.0 < idle.power_watts < 2.3


def test_cap_and_fan_are_written_and_put_back(tree: Tree, tmp_path: Path) -> None:
    board = tree.board(undo=tmp_path / "undo.json")
    assert board.apply(Decision(frequency_cap_hz=1_300_000_000, cooling_level=3)) == ()
    assert (tree.get(CAP), tree.get(FAN)) == ("1300000", "3")
    assert board.apply(Decision(frequency_cap_hz=1_400_000_000, cooling_level=2)) == ()
    assert (tree.get(CAP), tree.get(FAN)) == ("1400000", "2")
    assert board.restore() == ()
    assert (tree.get(CAP), tree.get(FAN)) == ("1800000", "1")
    assert not (tmp_path / "undo.json").exists()


def test_no_limit_means_as_found(tree: Tree, tmp_path: Path) -> None:
    undo = tmp_path / "undo.json"
    board = tree.board(undo=undo)
    board.apply(Decision(frequency_cap_hz=600_000_000, cooling_level=4))
    assert undo.exists()
    board.apply(Decision(frequency_cap_hz=1_800_000_000, cooling_level=0))
    assert (tree.get(CAP), tree.get(FAN)) == ("1800000", "1")
    assert not undo.exists()


def test_a_lower_limit_and_a_faster_fan_of_somebody_else_are_respected(tree: Tree) -> None:
    tree.set(CAP, "1000000")
    tree.set(FAN, "4")
    board = tree.board()
    assert board.apply(Decision(frequency_cap_hz=1_300_000_000, cooling_level=2)) == ()
    assert (tree.get(CAP), tree.get(FAN)) == ("1000000", "4")
    board.apply(Decision(frequency_cap_hz=800_000_000, cooling_level=0))
    board.apply(Decision(frequency_cap_hz=1_800_000_000, cooling_level=0))
    assert tree.get(CAP) == "1000000"


def test_limits_left_by_a_killed_process_are_put_back(tree: Tree, tmp_path: Path) -> None:
    undo = tmp_path / "undo.json"
    tree.board(undo=undo).apply(Decision(frequency_cap_hz=600_000_000, cooling_level=4))
    assert tree.board(undo=undo).restore() == ()
    assert (tree.get(CAP), tree.get(FAN)) == ("1800000", "1")
    assert not undo.exists()


def test_limits_left_by_a_killed_process_can_be_raised_without_restoring(tree: Tree, tmp_path: Path) -> None:
    undo = tmp_path / "undo.json"
    tree.board(undo=undo).apply(Decision(frequency_cap_hz=600_000_000))
    board = tree.board(undo=undo)
    assert board.apply(Decision(frequency_cap_hz=1_300_000_000)) == ()
    assert tree.get(CAP) == "1300000"
    board.restore()
    assert tree.get(CAP) == "1800000"


def test_undo_file_of_an_earlier_boot_is_ignored(tree: Tree, tmp_path: Path) -> None:
    undo = tmp_path / "undo.json"
    tree.set("proc/sys/kernel/random/boot_id", "one")
    tree.board(undo=undo).apply(Decision(frequency_cap_hz=600_000_000))
    tree.set("proc/sys/kernel/random/boot_id", "two")
    tree.set(CAP, "1700000")
    tree.board(undo=undo).restore()
    assert tree.get(CAP) == "1700000"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot":"","originals":{"a":"x"}}', '{"boot":"","originals":3}'])
def test_unreadable_undo_file_is_said_once_and_replaced(tree: Tree, tmp_path: Path, text: str) -> None:
    undo = tmp_path / "undo.json"
    undo.write_text(text)
    board = tree.board(undo=undo)
    complaints = board.apply(Decision(frequency_cap_hz=1_300_000_000))
    assert ["unreadable" in said for said in complaints] == [True]
    assert set(json.loads(undo.read_text())["originals"]) == {CAP.removeprefix("sys/")}


def test_undo_file_cannot_name_other_files(tree: Tree, tmp_path: Path) -> None:
    victim = tree.folder / "sys/victim"
    victim.write_text("1\n")
    undo = tmp_path / "undo.json"
    names = ["victim", "../sys/victim", f"{CAP.removeprefix('sys/')}/../../../../victim", "class/thermal/x/cur_state"]
    undo.write_text(json.dumps({"boot": "", "originals": dict.fromkeys(names, 7)}))
    tree.board(undo=undo).restore()
    assert victim.read_text() == "1\n"


def read_only_number() -> Path:
    """A number of the running kernel that nobody may write, root neither."""
    path = Path("/sys/kernel/uevent_seqnum")
    if not path.exists():
        pytest.skip("needs /sys/kernel/uevent_seqnum, a read-only file of a real sysfs")
    return path


def test_refused_lever_is_named_once(tree: Tree, tmp_path: Path) -> None:
    fan = tree.folder / FAN
    fan.unlink()
    fan.symlink_to(read_only_number())
    board = tree.board(undo=tmp_path / "undo.json")
    tree.set("sys/class/thermal/cooling_device0/max_state", "100000000")  # above whatever the kernel's number is
    asked = Decision(frequency_cap_hz=1_300_000_000, cooling_level=99_999_999)
    (complaint,) = board.apply(asked)
    assert FAN.removeprefix("sys/") in complaint
    assert "Permission denied" in complaint
    assert board.apply(asked) == ()
    assert tree.get(CAP) == "1300000"  # the other lever works


def test_overridden_limit_is_set_again_and_said_once_an_episode(tree: Tree) -> None:
    board = tree.board()
    decision = Decision(frequency_cap_hz=600_000_000)
    board.apply(decision)
    tree.set(CAP, "1800000")
    (complaint,) = board.apply(decision)
    assert "another program" in complaint
    assert tree.get(CAP) == "600000"
    tree.set(CAP, "1800000")
    assert board.apply(decision) == ()
    assert board.apply(decision) == ()
    tree.set(CAP, "1700000")
    assert len(board.apply(decision)) == 1


def test_limit_that_cannot_be_remembered_is_not_set(tree: Tree, tmp_path: Path) -> None:
    board = tree.board(undo=tmp_path / "absent/undo.json")
    (complaint,) = board.apply(Decision(frequency_cap_hz=600_000_000))
    assert "cannot be remembered" in complaint
    assert tree.get(CAP) == "1800000"


def test_restore_keeps_what_would_not_go_for_the_next_try(tree: Tree, tmp_path: Path) -> None:
    undo = tmp_path / "undo.json"
    board = tree.board(undo=undo)
    board.apply(Decision(frequency_cap_hz=600_000_000))
    cap = tree.folder / CAP
    cap.unlink()
    cap.mkdir()  # neither read nor written, by root neither
    assert len(board.restore()) == 1
    assert undo.exists()
    cap.rmdir()
    tree.set(CAP, "600000")
    assert board.restore() == ()
    assert tree.get(CAP) == "1800000"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(500_000_000, 2_000_000_000), st.integers(0, 6)), max_size=8))
def test_whatever_was_applied_restore_gives_back_what_was_found(tmp_path: Path, row: list[tuple[int, int]]) -> None:
    tree = Tree(tmp_path / "any")
    board = tree.board()
    for cap_hz, level in row:
        assert board.apply(Decision(frequency_cap_hz=cap_hz, cooling_level=level)) == ()
        assert int(tree.get(CAP)) * 1000 <= max(cap_hz, 600_000_000)
        assert 1 <= int(tree.get(FAN)) <= 4
    board.restore()
    assert (tree.get(CAP), tree.get(FAN)) == ("1800000", "1")


def test_levers_touch_nothing_when_nothing_is_asked(tree: Tree, tmp_path: Path) -> None:
    before = (tree.folder / CAP).stat().st_mtime_ns
    levers = Levers(tree.folder / "sys", tmp_path / "undo.json", "")
    levers.hold_down(tree.folder / CAP, None)
    levers.hold_up(tree.folder / FAN, 0)
    levers.restore()
    assert (tree.folder / CAP).stat().st_mtime_ns == before
    assert not (tmp_path / "undo.json").exists()


def test_a_look_that_finds_the_devices_of_the_last_one_makes_no_paths(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were a fifth of what an idle daemon costs each second."""
    for name, text in {"type": "Battery", "capacity": "80", "voltage_now": "3900000", "status": "Discharging"}.items():
        tree.set(f"sys/class/power_supply/BAT0/{name}", text)
    board = tree.board()
    first = board.read(1.0)
    made: list[str] = []
    joined = PurePath.__truediv__

    def counted(self: PurePath, key: str) -> PurePath:
        made.append(key)
        return joined(self, key)

    monkeypatch.setattr(PurePath, "__truediv__", counted)
    again = board.read(2.0)
    assert (again.temperature_celsius, again.charge) == (first.temperature_celsius, first.charge) == (48.312, 0.8)
    assert made == []
