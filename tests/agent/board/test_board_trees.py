"""Trees in the shape of real boards, read whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from agent.board.edac import MemoryErrors, memory_errors
from agent.board.profile import pick_profile
from agent.board.sysfs import BoardRoots, SysfsBoard, read_model
from policies.reading import Decision, Health, Reading
from tests.simulators.board_trees import (
    BOARDS,
    CPUFREQ,
    HWMON,
    PI4_THROTTLED,
    PI5_THROTTLED,
    POWERCAP,
    SUPPLY,
    THERMAL,
    BoardTree,
)

MakeBoard = Callable[[str], tuple[BoardTree, SysfsBoard]]
BATTERY = f"{SUPPLY}/BAT0"


def board_of(tree: BoardTree) -> SysfsBoard:
    roots = BoardRoots.of_tree(tree.folder)
    return SysfsBoard(roots, pick_profile(read_model(roots)))


@pytest.fixture
def make(tmp_path: Path) -> MakeBoard:
    def made(name: str) -> tuple[BoardTree, SysfsBoard]:
        tree = BoardTree(tmp_path / name, BOARDS[name]())
        return tree, board_of(tree)

    return made


def second_reading(board: SysfsBoard) -> Reading:
    """Rates and shares need two."""
    board.read(0.0)
    return board.read(1.0)


WHOLE: Mapping[str, Mapping[str, object]] = {
    "raspberry-pi-4": {
        "temperature_celsius": 47.225,
        "ambient_celsius": 47.225,  # the coolest die so far
        "frequency_hz": 1_800_000_000,
        "frequency_cap_hz": 1_800_000_000,
        "charge": None,
        "on_mains": None,
        "cooling_max": 0,
        "cooling_level": None,
        "power_source": "",  # the load is not known yet: the counters of /proc/stat stand still in a tree of files
        "pressure": (),
        "health": (("temperature", Health.OK), ("frequency-cap", Health.OK)),
    },
    "raspberry-pi-5": {
        "temperature_celsius": 52.95,
        "ambient_celsius": 50.0,
        "frequency_hz": 2_400_000_000,
        "cooling_max": 4,
        "cooling_level": 1,
        "power_source": "",
        "health": (("temperature", Health.OK), ("frequency-cap", Health.OK), ("cooling", Health.OK)),
    },
    "jetson-orin-nano": {
        "temperature_celsius": 50.0,  # tj-thermal
        "frequency_hz": 1_510_400_000,  # the faster cluster
        "gpu_frequency_hz": 306_000_000,
        "cooling_max": 3,
        "cooling_level": 0,
        "on_mains": None,  # its USB socket can feed others
        "power_watts": 5016 * 960 / 1e6,  # VDD_IN alone: the other channels are parts of it
        "power_is_modelled": False,
        "power_source": "hwmon",
        "pressure": (("cpu", 0.015), ("memory", 0.015), ("io", 0.015)),
        "health": (
            ("temperature", Health.OK),
            ("power", Health.OK),
            ("frequency-cap", Health.OK),
            ("cooling", Health.OK),
        ),
    },
    "mini-pc": {
        "temperature_celsius": 41.0,
        "frequency_hz": 1_187_435_000,
        "frequency_cap_hz": 3_400_000_000,
        "on_mains": None,
        "power_watts": 0.0,  # the counter stands still in a tree of files
        "power_source": "powercap",
        "health": (("temperature", Health.OK), ("power", Health.OK), ("frequency-cap", Health.OK)),
    },
    "battery-board": {
        "charge": 0.81,
        "on_mains": False,
        "power_watts": 11.9 * 1.2,
        "power_source": "power_supply",
        "undervoltage": False,
        "health": (
            ("temperature", Health.OK),
            ("charge", Health.OK),
            ("power", Health.OK),
            ("frequency-cap", Health.OK),
        ),
    },
    "unknown-board": {
        "temperature_celsius": 45.0,  # the hottest of those that sound like a die
        "frequency_hz": None,
        "operating_points": (),
        "power_watts": None,
        "health": (("temperature", Health.OK),),
    },
}


@pytest.mark.parametrize("name", BOARDS)
def test_whole_boards(make: MakeBoard, name: str) -> None:
    tree, board = make(name)
    reading = second_reading(board)
    expected = {"undervoltage": False, "throttled": False, **WHOLE[name]}
    assert {key: getattr(reading, key) for key in expected} == {
        key: pytest.approx(value) if isinstance(value, float) else value for key, value in expected.items()
    }
    total_kb = int(tree.get("proc/meminfo").split()[1])
    assert reading.memory_available_bytes == total_kb // 2 * 1024
    assert board.profile.name == (
        name if name in ("raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano") else "generic"
    )


def test_the_tables_of_all_clusters_are_offered_and_each_is_capped_by_its_own(make: MakeBoard) -> None:
    tree, board = make("jetson-orin-nano")
    tree.set(f"{CPUFREQ}/policy4/scaling_available_frequencies", "268800 729600 1190400")
    points = [point.frequency_hz // 1000 for point in board.read(0.0).operating_points]
    assert (points[0], points[-1], len(points)) == (115_200, 1_510_400, 20)
    board.apply(Decision(frequency_cap_hz=1_036_800_000))
    assert tree.get(f"{CPUFREQ}/policy0/scaling_max_freq") == "1036800"
    assert tree.get(f"{CPUFREQ}/policy4/scaling_max_freq") == "729600"


def test_without_a_table_steps_between_the_lowest_and_the_highest_clock_are_offered(make: MakeBoard) -> None:
    tree, board = make("mini-pc")
    reading = board.read(0.0)
    assert [p.frequency_hz // 1_000_000 for p in reading.operating_points] == list(range(800, 3401, 100))
    assert reading.steerable
    board.apply(Decision(frequency_cap_hz=2_450_000_000))
    assert {tree.get(f"{CPUFREQ}/policy{core}/scaling_max_freq") for core in range(4)} == {"2400000"}
    board.restore()
    assert {tree.get(f"{CPUFREQ}/policy{core}/scaling_max_freq") for core in range(4)} == {"3400000"}


@pytest.mark.parametrize(
    ("low", "high", "points"),
    [
        ("0", "3400000", 0),
        ("3400000", "800000", 0),
        ("800000", "9" * 18, 0),
        ("800000", "x", 0),
        ("50000", "19999000", 128),
    ],
)
def test_clock_limits_that_make_no_sense_give_no_table_and_a_table_has_a_bound(
    make: MakeBoard, low: str, high: str, points: int
) -> None:
    tree, board = make("mini-pc")
    for core in range(4):
        tree.set(f"{CPUFREQ}/policy{core}/cpuinfo_min_freq", low)
        tree.set(f"{CPUFREQ}/policy{core}/cpuinfo_max_freq", high)
    assert len(board.read(0.0).operating_points) == points


def test_without_cpufreq_nothing_is_steered(make: MakeBoard) -> None:
    tree, board = make("raspberry-pi-4")
    tree.remove(CPUFREQ)
    reading = board.read(0.0)
    assert (reading.frequency_hz, reading.frequency_cap_hz, reading.operating_points) == (None, None, ())
    assert not reading.steerable
    assert dict(reading.health)["frequency-cap"] is Health.MISSING  # this kind of board should have it
    assert board.apply(Decision(frequency_cap_hz=600_000_000)) == ()


@pytest.mark.parametrize("name", [PI4_THROTTLED, PI5_THROTTLED, "sys/devices/platform/soc:firmware/get_throttled"])
@pytest.mark.parametrize(
    ("bits", "flags"), [("50005", (True, True)), ("80008", (False, True)), ("50000", (False, False))]
)
def test_the_firmware_s_flags_wherever_they_are(
    make: MakeBoard, name: str, bits: str, flags: tuple[bool, bool]
) -> None:
    tree, board = make("raspberry-pi-4")
    tree.remove("sys/devices/platform")
    tree.set(name, bits)
    reading = board.read(0.0)
    assert (reading.undervoltage, reading.throttled) == flags


def test_jetson_s_throttling_alerts_and_over_current_events_count_once(make: MakeBoard) -> None:
    tree, board = make("jetson-orin-nano")
    assert not second_reading(board).throttled  # events since the start of the board are not events now
    tree.set(f"{HWMON}/hwmon3/oc1_event_cnt", "1")
    assert [board.read(2.0).throttled, board.read(3.0).throttled] == [True, False]
    tree.set(f"{THERMAL}/cooling_device4/cur_state", "1")
    assert board.read(4.0).throttled
    tree.set(f"{THERMAL}/cooling_device4/cur_state", "0")
    tree.set(f"{THERMAL}/cooling_device3/cur_state", "1")  # the graphics processor is held down: the module is hot
    assert board.read(5.0).throttled


@pytest.mark.parametrize(
    ("changed", "watts"),
    [
        ({"in1_label": "VDD_GPU_SOC"}, (5016 * 960 + 5008 * 240 + 5008 * 288) / 1e6),
        ({"in1_label": "NC"}, (5008 * 240 + 5008 * 288) / 1e6),
        ({"in1_label": "VDD_CPU", "in3_label": "VDD_IN"}, 5008 * 288 / 1e6),
        ({"in2_input": "junk"}, 5016 * 960 / 1e6),
    ],
)
def test_the_channel_that_carries_everything_is_preferred_else_all_are_added(
    make: MakeBoard, changed: dict[str, str], watts: float
) -> None:
    tree, board = make("jetson-orin-nano")
    for key, text in changed.items():
        tree.set(f"{HWMON}/hwmon2/{key}", text)
    assert board.read(0.0).power_watts == pytest.approx(watts)


def test_a_meter_without_a_power_register_is_volts_times_amperes(make: MakeBoard) -> None:
    tree, board = make("raspberry-pi-5")
    for key, text in {"name": "ina226", "in1_input": "5100", "curr1_input": "1000"}.items():
        tree.set(f"{HWMON}/hwmon9/{key}", text)
    reading = board.read(0.0)
    assert reading.power_watts == pytest.approx(5.1)
    assert reading.power_source == "hwmon"


def test_a_meter_that_falls_silent_or_lies_is_ill_and_the_model_serves(make: MakeBoard) -> None:
    tree, board = make("jetson-orin-nano")
    seen = []
    for second, text in enumerate(["960", "", "999999999", "960"]):
        tree.set(f"{HWMON}/hwmon2/curr1_input", text)
        tree.set("proc/stat", f"cpu {1000 + 100 * second} 0 0 {100 * second} 0 0 0 0")
        reading = board.read(float(second))
        seen.append((reading.power_source, dict(reading.health)["power"]))
    model = "model"
    assert seen == [("hwmon", Health.OK), (model, Health.MISSING), (model, Health.IMPOSSIBLE), ("hwmon", Health.OK)]


def test_energy_counters_of_all_packages_are_added_and_the_platform_s_stands_for_all(make: MakeBoard) -> None:
    tree, board = make("mini-pc")
    tree.set(f"{POWERCAP}/intel-rapl:1/name", "package-1")
    seen = []
    for second, second_package in enumerate(["1000000", "4000000"]):
        tree.set(f"{POWERCAP}/intel-rapl:0/energy_uj", str(1_000_000 * second))
        tree.set(f"{POWERCAP}/intel-rapl:1/energy_uj", second_package)
        seen.append(board.read(float(second)).power_watts)
    tree.set(f"{POWERCAP}/intel-rapl:1/name", "psys")
    tree.set(f"{POWERCAP}/intel-rapl:1/energy_uj", "5000000")
    board.read(2.0)
    tree.set(f"{POWERCAP}/intel-rapl:1/energy_uj", "12000000")
    tree.set(f"{POWERCAP}/intel-rapl:0/energy_uj", "3000000")  # a part of what the platform counts
    assert [*seen, board.read(3.0).power_watts] == [None, 4.0, 7.0]


def test_a_counter_is_not_ill_at_its_first_reading(make: MakeBoard) -> None:
    _, board = make("mini-pc")
    seen = [dict(board.read(second).health).get("power") for second in (0.0, 1.0)]
    assert seen == [None, Health.OK]


def test_a_counter_that_may_not_be_read_or_fell_without_a_range_is_no_power(make: MakeBoard) -> None:
    tree, board = make("mini-pc")
    second_reading(board)
    tree.set(f"{POWERCAP}/intel-rapl:0/energy_uj", "5")
    tree.remove(f"{POWERCAP}/intel-rapl:0/max_energy_range_uj")
    assert board.read(2.0).power_watts is None
    tree.make_folder(f"{POWERCAP}/intel-rapl:0/energy_uj")
    reading = board.read(3.0)
    assert (reading.power_watts, dict(reading.health)["power"]) == (None, Health.MISSING)


def test_power_of_a_battery_counts_while_it_feeds_the_board(make: MakeBoard) -> None:
    tree, board = make("battery-board")
    tree.remove(POWERCAP)
    tree.set(f"{BATTERY}/current_now", "-1200000")
    assert board.read(0.0).power_watts == pytest.approx(11.9 * 1.2)
    tree.set(f"{BATTERY}/power_now", "15000000")
    assert board.read(1.0).power_watts == pytest.approx(15.0)
    tree.set(f"{BATTERY}/status", "Charging")
    assert board.read(2.0).power_watts is None


def test_a_gauge_without_capacity_is_counted(make: MakeBoard) -> None:
    tree, board = make("battery-board")
    tree.remove(f"{BATTERY}/capacity")
    assert board.read(0.0).charge == 0.81
    tree.set(f"{BATTERY}/charge_full", "0")
    reading = board.read(1.0)
    assert (reading.charge, dict(reading.health)["charge"]) == (None, Health.MISSING)


def test_an_empty_bay_is_no_battery(make: MakeBoard) -> None:
    tree, board = make("battery-board")
    tree.set(f"{BATTERY}/present", "0")
    tree.set(f"{SUPPLY}/AC/online", "1")
    reading = board.read(0.0)
    assert (reading.charge, reading.on_mains) == (None, True)
    assert "charge" not in dict(reading.health)


@pytest.mark.parametrize("most", ["0", "-1", "junk"])
def test_a_fan_without_levels_is_none(make: MakeBoard, most: str) -> None:
    tree, board = make("raspberry-pi-5")
    tree.set(f"{THERMAL}/cooling_device0/max_state", most)
    reading = board.read(0.0)
    assert (reading.cooling_max, reading.cooling_level) == (0, None)


def test_the_level_is_that_of_the_strongest_fan_and_the_same_share_of_each(make: MakeBoard) -> None:
    tree, board = make("raspberry-pi-5")
    for key, text in {"type": "rpi-poe-fan", "max_state": "255", "cur_state": "100"}.items():
        tree.set(f"{THERMAL}/cooling_device1/{key}", text)
    reading = board.read(0.0)
    assert (reading.cooling_max, reading.cooling_level) == (255, 100)
    for asked, levels in ((110, ["2", "110"]), (128, ["3", "128"]), (255, ["4", "255"])):
        board.apply(Decision(cooling_level=asked))
        assert [tree.get(f"{THERMAL}/cooling_device{number}/cur_state") for number in (0, 1)] == levels


def test_memory_errors_are_counted(make: MakeBoard) -> None:
    tree, _ = make("mini-pc")
    tree.set("sys/devices/system/edac/mc/mc0/ce_count", "3")
    assert memory_errors(BoardRoots.of_tree(tree.folder)) == MemoryErrors(3, 0)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("some avg10=25.00 avg60=0 avg300=0 total=1", 0.25),
        ("full avg10=25.00", None),
        ("some avg10=nan", None),
        ("some avg10=101", None),
        ("some avg10=", None),
        ("some", None),
        ("", None),
    ],
)
def test_pressure(make: MakeBoard, text: str, share: float | None) -> None:
    tree, board = make("jetson-orin-nano")
    tree.set("proc/pressure/memory", text)
    assert dict(board.read(0.0).pressure).get("memory") == share


def test_devices_that_come_later_are_seen_within_ten_seconds(make: MakeBoard) -> None:
    tree, board = make("raspberry-pi-5")
    board.read(0.0)
    tree.set(f"{THERMAL}/thermal_zone7/type", "ambient-thermal")
    tree.set(f"{THERMAL}/thermal_zone7/temp", "21500")
    ambient = [board.read(float(second)).ambient_celsius for second in range(1, 12)]
    assert ambient[-1] == 21.5
    assert ambient[0] == 50.0
