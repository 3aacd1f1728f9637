"""Faults 46 to 49: from the file that lies, through the reading, to what the governor decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.board.profile import named_policy_text, pick_profile
from agent.board.sysfs import BoardRoots, SysfsBoard, read_model
from policies.governor import GovernorState, decide
from policies.outlook import Outlook
from policies.policy import parse_policy
from policies.reading import Action, Decision, Health, Reading
from tests.simulators.board_trees import BOARDS, CPUFREQ, SUPPLY, THERMAL, UNREADABLE, BoardTree

BATTERY, MAINS = f"{SUPPLY}/BAT0", f"{SUPPLY}/AC"
PI5_TEMP, JETSON_TEMP = f"{THERMAL}/thermal_zone0/temp", f"{THERMAL}/thermal_zone8/temp"
FAN = f"{THERMAL}/cooling_device0/cur_state"
PI5_CAP = f"{CPUFREQ}/policy0/scaling_max_freq"
PI5_SLOWEST = 1_500_000_000


class Steered:
    """A board of files under the policy that ships for it: a reading and a decision a second."""

    def __init__(self, folder: Path, name: str) -> None:
        self.tree = BoardTree(folder, BOARDS[name]())
        roots = BoardRoots.of_tree(folder)
        profile = pick_profile(read_model(roots))
        self.policy = parse_policy(named_policy_text(profile.policy_name))
        self.board, self.state = SysfsBoard(roots, profile), GovernorState()
        self.second, self.reading, self.decision = 0, Reading(0.0), Decision()

    def tick(self, *, apply: bool = False) -> Decision:
        self.reading = self.board.read(float(self.second))
        self.state, self.decision = decide(self.policy, self.state, self.reading, Outlook())
        self.complaints = self.board.apply(self.decision) if apply else ()
        self.second += 1
        return self.decision

    def ticks(self, count: int) -> Decision:
        for _ in range(count):
            self.tick()
        return self.decision

    def health(self, of: str) -> Health:
        return dict(self.reading.health)[of]

    def rules(self) -> set[str]:
        return {self.decision.rule, *self.decision.notes}


MakeSteered = Callable[[str], Steered]


@pytest.fixture
def steered(tmp_path: Path) -> MakeSteered:
    return lambda name: Steered(tmp_path / name, name)


def failed_safe(steered: Steered) -> None:
    """No believable temperature: slow at once, at the lowest clock; then paused with cooling at its maximum."""
    assert steered.reading.temperature_celsius is None
    decision = steered.decision
    assert (decision.action, decision.rule) == (Action.SLOW, "thermal.sensor-missing")
    assert decision.frequency_cap_hz == PI5_SLOWEST
    assert decision.duty <= 0.5
    assert decision.cooling_level >= 3
    decision = steered.ticks(steered.policy.thermal.missing_pause_readings)
    assert (decision.action, decision.rule, decision.duty) == (Action.PAUSE, "thermal.sensor-missing-pause", 0.0)
    assert (decision.frequency_cap_hz, decision.cooling_level) == (PI5_SLOWEST, 4)


def well_again(steered: Steered) -> None:
    steered.tree.set(PI5_TEMP, "53500")
    steered.tick()
    assert (steered.reading.temperature_celsius, steered.health("temperature")) == (53.5, Health.OK)
    assert steered.decision.action is Action.RUN


def gone(tree: BoardTree) -> None:
    tree.remove(PI5_TEMP)


def zone_gone(tree: BoardTree) -> None:
    tree.remove(f"{THERMAL}/thermal_zone0")


def invalid_argument(tree: BoardTree) -> None:
    tree.link(PI5_TEMP, UNREADABLE)


def no_file(tree: BoardTree) -> None:
    tree.make_folder(PI5_TEMP)


def dangling(tree: BoardTree) -> None:
    tree.link(PI5_TEMP, "nowhere")


def loop(tree: BoardTree) -> None:
    tree.link(PI5_TEMP, "temp")


def no_number(tree: BoardTree) -> None:
    tree.set(PI5_TEMP, "N/A")


@pytest.mark.parametrize("fault", [gone, invalid_argument, no_file, dangling, loop, no_number])
def test_a_temperature_that_cannot_be_read_fails_safe(steered: MakeSteered, fault: Callable[[BoardTree], None]) -> None:
    board = steered("raspberry-pi-5")
    assert board.ticks(3).action is Action.RUN
    fault(board.tree)
    board.tick()
    assert board.health("temperature") is Health.MISSING
    failed_safe(board)
    well_again(board)


@pytest.mark.parametrize("raw", ["0", "-256000", "-40000", "150000", "9999999"])
def test_a_temperature_that_no_board_has_fails_safe(steered: MakeSteered, raw: str) -> None:
    board = steered("raspberry-pi-5")
    board.ticks(3)
    board.tree.set(PI5_TEMP, raw)
    board.tick()
    assert board.health("temperature") is Health.IMPOSSIBLE
    failed_safe(board)
    well_again(board)


def test_a_zone_that_vanishes_fails_safe_and_is_found_again(steered: MakeSteered) -> None:
    board = steered("raspberry-pi-5")
    board.ticks(3)
    zone_gone(board.tree)
    board.tick()
    assert board.health("temperature") is Health.MISSING
    failed_safe(board)
    board.tree.set(f"{THERMAL}/thermal_zone3/type", "cpu-thermal")
    board.tree.set(f"{THERMAL}/thermal_zone3/temp", "53500")
    board.tick()
    assert (board.reading.temperature_celsius, board.decision.action) == (53.5, Action.RUN)


def test_a_lost_zone_is_not_replaced_by_a_cooler_one(steered: MakeSteered) -> None:
    board = steered("jetson-orin-nano")
    board.ticks(2)
    board.tree.remove(f"{THERMAL}/thermal_zone8")  # tj-thermal, the hottest; cpu-thermal is still there
    board.tick()
    assert (board.reading.temperature_celsius, board.health("temperature")) == (None, Health.MISSING)
    assert board.decision.rule == "thermal.sensor-missing"


def test_a_frozen_temperature_fails_safe_until_it_moves(steered: MakeSteered) -> None:
    board = steered("raspberry-pi-5")
    frozen_after_s = board.board.profile.frozen_after_s
    assert frozen_after_s is not None
    assert board.ticks(int(frozen_after_s) + 1).action is Action.RUN
    board.tick()
    assert board.health("temperature") is Health.FROZEN
    failed_safe(board)
    well_again(board)


def test_a_jump_of_sixty_kelvin_fails_safe_and_is_believed_when_it_holds(steered: MakeSteered) -> None:
    board = steered("raspberry-pi-5")
    board.ticks(3)
    board.tree.set(PI5_TEMP, "112950")
    seen = []
    for _ in range(4):
        board.tick()
        seen.append((board.health("temperature"), board.decision.rule))
    glitch = (Health.IMPOSSIBLE, "thermal.sensor-missing")
    assert seen == [glitch, glitch, glitch, (Health.OK, "thermal.critical")]
    assert board.decision.action is Action.ABORT
    assert board.decision.reverify


def test_a_jump_that_was_a_glitch_leaves_no_trace(steered: MakeSteered) -> None:
    board = steered("raspberry-pi-5")
    board.ticks(3)
    board.tree.set(PI5_TEMP, "112950")
    board.tick()
    well_again(board)


def test_zones_that_are_renumbered_while_the_board_runs_are_still_told_apart(steered: MakeSteered) -> None:
    """Fault 47: the number that was the die becomes the coolest zone."""
    board = steered("jetson-orin-nano")
    for zone in ("thermal_zone5", "thermal_zone6", "thermal_zone7"):
        board.tree.set(f"{THERMAL}/{zone}/temp", "30000")
    seen = []
    for other in ("thermal_zone5", "thermal_zone0", "thermal_zone7"):
        board.tick()
        seen.append(board.reading.temperature_celsius)
        board.tree.swap(f"{THERMAL}/thermal_zone8", f"{THERMAL}/{other}")
        board.tick()
        seen.append(board.reading.temperature_celsius)
    assert seen == [50.0] * 6
    assert board.decision.action is Action.RUN


def test_cooling_devices_that_are_renumbered_are_still_told_apart(steered: MakeSteered) -> None:
    board = steered("jetson-orin-nano")
    board.tick(apply=True)
    board.tree.swap(f"{THERMAL}/cooling_device0", f"{THERMAL}/cooling_device1")
    board.tree.set(JETSON_TEMP, "72000")  # above the resting baseline by more than the slow trip: cooling on
    board.board.apply(Decision(cooling_level=2))
    assert board.tree.get(f"{THERMAL}/cooling_device1/cur_state") == "2"
    assert board.tree.get(f"{THERMAL}/cooling_device0/cur_state") == "0"  # cpufreq-cpu0: never a fan


@pytest.mark.parametrize(
    ("files", "health"),
    [
        ({"capacity": "101"}, Health.IMPOSSIBLE),
        ({"capacity": "-1", "status": "Unknown"}, Health.IMPOSSIBLE),
        ({"capacity": "100", "voltage_now": "9600000"}, Health.IMPOSSIBLE),  # 3.2 V a cell: nearly empty
        ({"capacity": "95", "voltage_now": "10900000"}, Health.IMPOSSIBLE),
        (
            {"capacity": "60", "voltage_min_design": "", "technology": "Li-ion", "voltage_now": "3250000"},
            Health.IMPOSSIBLE,
        ),
        ({"capacity": "Unknown", "charge_now": "", "status": "Unknown"}, Health.MISSING),
        ({"capacity": "", "charge_full": "0", "status": "Unknown"}, Health.MISSING),
    ],
)
def test_a_charge_that_cannot_be_believed_off_mains_slows(
    steered: MakeSteered, files: dict[str, str], health: Health
) -> None:
    """Fault 48."""
    board = steered("battery-board")
    board.tick()
    assert "battery.unknown" not in board.rules()
    for key, text in files.items():
        board.tree.set(f"{BATTERY}/{key}", text)
    board.tick()
    assert (board.reading.charge, board.health("charge"), board.reading.on_mains) == (None, health, False)
    assert board.decision.action is Action.SLOW
    assert "battery.unknown" in board.rules()
    top = board.reading.operating_points[-1].frequency_hz
    assert board.decision.frequency_cap_hz is not None
    assert board.decision.frequency_cap_hz <= 0.73 * top


def test_a_full_battery_that_sags_is_a_supply_that_drops(steered: MakeSteered) -> None:
    board = steered("battery-board")
    board.tree.set(f"{BATTERY}/capacity", "100")
    board.tree.set(f"{BATTERY}/voltage_now", "9600000")
    board.tick()
    assert board.reading.undervoltage
    assert board.decision.rule == "supply.undervoltage"
    assert {"battery.unknown", "supply.undervoltage"} <= board.rules()


@pytest.mark.parametrize(
    ("capacity", "volts"),
    [("100", "12500000"), ("90", "11100000"), ("89", "10900000"), ("30", "9600000"), ("55", "0"), ("55", "junk")],
)
def test_a_voltage_that_fits_the_charge_is_no_reason_to_doubt(steered: MakeSteered, capacity: str, volts: str) -> None:
    board = steered("battery-board")
    board.tree.set(f"{BATTERY}/capacity", capacity)
    board.tree.set(f"{BATTERY}/voltage_now", volts)
    board.tick()
    assert board.reading.charge == int(capacity) / 100
    assert board.health("charge") is Health.OK


def test_an_unknown_charge_on_mains_limits_nothing(steered: MakeSteered) -> None:
    board = steered("battery-board")
    board.tree.set(f"{MAINS}/online", "1")
    board.tree.set(f"{BATTERY}/capacity", "101")
    board.tick()
    assert (board.reading.charge, board.reading.on_mains) == (None, True)
    assert board.decision.action is Action.RUN


def test_a_battery_whose_driver_dies_is_an_unknown_charge_off_mains(steered: MakeSteered) -> None:
    board = steered("battery-board")
    board.tick()
    board.tree.remove(BATTERY)
    board.tree.remove(MAINS)
    board.tick()
    assert (board.reading.charge, board.reading.on_mains, board.health("charge")) == (None, False, Health.MISSING)
    assert "battery.unknown" in board.rules()


def read_only_number() -> Path:
    """A number of the running kernel that nobody may write, root neither."""
    path = Path("/sys/kernel/uevent_seqnum")
    if not path.exists():
        pytest.skip("needs /sys/kernel/uevent_seqnum, a read-only file of a real sysfs")
    return path


def test_a_cap_that_is_refused_is_told_and_the_clock_no_longer_counts_as_steerable(steered: MakeSteered) -> None:
    """Fault 49: duty, depth and cooling go on."""
    board = steered("raspberry-pi-5")
    board.tick(apply=True)
    assert board.health("frequency-cap") is Health.OK
    number = int(read_only_number().read_text("utf-8"))
    board.tree.set(f"{CPUFREQ}/policy0/scaling_available_frequencies", f"{max(number - 1, 1)} 2400000")
    board.tree.link(PI5_CAP, read_only_number())
    board.second += 20  # the table is listed again
    board.tree.set(PI5_TEMP, "84000")
    board.tick(apply=True)
    assert board.decision.frequency_rule.startswith("thermal.")
    assert ["cannot be written" in said for said in board.complaints] == [True]
    board.tick(apply=True)
    assert board.complaints == ()
    assert board.health("frequency-cap") is Health.REFUSED
    assert not board.reading.steerable
    assert board.decision.action >= Action.SLOW
    assert board.tree.get(FAN) == str(board.decision.cooling_level)


def test_a_cap_that_another_program_sets_back_is_told_and_set_again(steered: MakeSteered) -> None:
    """Fault 49."""
    board = steered("raspberry-pi-5")
    board.tick(apply=True)
    board.tree.set(PI5_TEMP, "84000")
    board.tick(apply=True)
    assert board.tree.get(PI5_CAP) == "1500000"
    board.tree.set(PI5_CAP, "2400000")
    board.tick(apply=True)
    assert board.reading.frequency_cap_hz == 2_400_000_000
    assert ["another program" in said for said in board.complaints] == [True]
    assert board.tree.get(PI5_CAP) == "1500000"
    board.tree.set(PI5_CAP, "2400000")
    board.tick(apply=True)
    assert (board.complaints, board.health("frequency-cap")) == ((), Health.OVERRIDDEN)
    assert board.reading.steerable
    board.tick(apply=True)
    board.tick(apply=True)
    assert board.health("frequency-cap") is Health.OK
