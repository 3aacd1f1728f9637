"""Levers, direct and through temperd-powerd; faults 49 and 50."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.board.firmware_mailbox import FirmwareMailbox
from agent.board.levers import TRY_AGAIN_ROUNDS, Levers
from agent.board.powerd_firmware import throttled_bits
from agent.board.powerd_link import LATE_ROUNDS, WAITING, PowerdLink
from agent.board.profile import named_profile
from agent.board.sysfs import BoardRoots, SysfsBoard
from agent.errors import BoardError
from policies.reading import Decision, Health
from tests.simulators.powerd_board import (
    CAP,
    CAP4,
    FAN,
    FOUND,
    Client,
    HelperProcess,
    LeverTree,
    SteppedHelper,
    eventually,
)

pytestmark = pytest.mark.once
NOBODY = 65534
OK, REFUSED, OVERRIDDEN = Health.OK, Health.REFUSED, Health.OVERRIDDEN


@pytest.fixture
def tree(tmp_path: Path) -> LeverTree:
    return LeverTree(tmp_path / "t")


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """This process without root's rights, as the kernel sees it."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


class Board:
    """A daemon's levers, held by a user who may not write them; the files and the helper are root's."""

    def __init__(self, folder: Path) -> None:
        self.tree = LeverTree(folder / "t")
        self.undo = folder / "state/undo.json"
        self.undo.parent.mkdir()
        os.chown(self.undo.parent, NOBODY, NOBODY)
        self.helper: HelperProcess | None = None
        self.link = PowerdLink(folder / "t/s", self.tree.sys, wait_s=20.0)
        self.levers = Levers(self.tree.sys, self.undo, "boot-1", self.link)

    def start_helper(self) -> HelperProcess:
        self.helper = HelperProcess(self.tree, "--allow-user", str(NOBODY))
        return self.helper

    def hold(self, khz: int | None, level: int = 0) -> tuple[str, ...]:
        """One round of the governor."""
        with as_nobody():
            for key in (CAP, CAP4):
                self.levers.hold_down(self.tree.sys / key, khz)
            self.levers.hold_up(self.tree.sys / FAN, level)
            return self.levers.complaints()

    def restore(self) -> tuple[str, ...]:
        with as_nobody():
            self.levers.restore()
            return self.levers.complaints()


@pytest.fixture
def board() -> Iterator[Board]:
    if os.geteuid() != 0:
        pytest.skip("needs root: becomes another user")
    with tempfile.TemporaryDirectory(prefix="temperd-") as name:
        Path(name).chmod(0o755)
        made = Board(Path(name))
        yield made
        made.link.close()
        if made.helper and made.helper.child.poll() is None:
            made.helper.stop()


def test_what_may_not_be_written_is_written_by_the_helper(board: Board) -> None:
    board.start_helper()
    assert board.levers.health == {}
    assert board.hold(1_000_000, 3) == ()
    assert board.tree.values() == FOUND | {CAP: "1000000", CAP4: "1000000", FAN: "3"}
    assert board.levers.health == {"frequency-cap": OK, "cooling": OK}
    assert not board.undo.exists()  # the helper remembers
    assert board.hold(1_300_000, 2) == ()
    assert board.tree.values() == FOUND | {CAP: "1300000", FAN: "2"}
    assert board.hold(None, 0) == ()
    assert board.tree.values() == FOUND
    assert board.hold(600_000, 4) == ()
    assert board.restore() == ()
    assert board.tree.values() == FOUND


def test_without_the_helper_each_lacking_lever_is_named_once(board: Board) -> None:
    complaints = board.hold(600_000, 4)
    assert [CAP in complaints[0], CAP4 in complaints[1], FAN in complaints[2], len(complaints)] == [True, True, True, 3]
    assert all("temperd-powerd is not there" in text and "lacking" in text for text in complaints)
    assert board.levers.health == {"frequency-cap": REFUSED, "cooling": REFUSED}
    for khz, level in ((600_000, 4), (None, 0), (1_000_000, 2), (None, 0)):
        assert board.hold(khz, level) == ()
        assert board.levers.health == {"frequency-cap": REFUSED, "cooling": REFUSED}
    assert board.restore() == ()
    assert board.tree.values() == FOUND


def test_a_refused_lever_is_tried_again_while_nothing_is_asked_of_it(board: Board) -> None:
    board.hold(600_000, 4)
    board.start_helper()
    for _ in range(TRY_AGAIN_ROUNDS):
        assert board.hold(None) == ()
    assert board.levers.health == {"frequency-cap": OK, "cooling": OK}
    assert board.tree.values() == FOUND
    assert board.hold(600_000, 4) == ()
    assert board.tree.values() == FOUND | {CAP: "600000", CAP4: "600000", FAN: "4"}


def test_a_lever_that_is_given_to_us_is_written_directly(board: Board) -> None:
    board.hold(600_000)
    board.hold(None)
    for key in (CAP, CAP4):
        os.chown(board.tree.sys / key, NOBODY, NOBODY)
    assert board.hold(1_000_000) == ()
    assert board.levers.health == {"frequency-cap": OK, "cooling": OK}
    assert board.undo.exists()
    assert board.restore() == ()
    assert board.tree.values() == FOUND


def test_fault_50_helper_dies_while_capped(board: Board) -> None:
    helper = board.start_helper()
    assert board.hold(600_000, 4) == ()
    held = board.tree.values()
    helper.kill()
    assert board.hold(600_000, 4) == ()  # what it set stands until it is started again
    helper.start()
    assert board.tree.values() == FOUND
    complaints = board.hold(600_000, 4)
    assert ["temperd-powerd ended" in text for text in complaints] == [True, True, True]
    assert board.levers.health == {"frequency-cap": OK, "cooling": OK}
    assert board.tree.values() == held
    assert board.hold(600_000, 4) == ()
    assert board.restore() == ()
    assert board.tree.values() == FOUND


def test_helper_dies_and_the_job_ends_before_it_is_back(board: Board) -> None:
    helper = board.start_helper()
    board.hold(600_000, 4)
    helper.kill()
    assert len(board.restore()) == 3  # named: it cannot be put back now
    assert board.tree.get(CAP) == "600000"
    helper.start()
    assert board.tree.values() == FOUND
    assert board.restore() == ()


def test_a_daemon_that_is_killed_leaves_nothing_capped(board: Board) -> None:
    board.start_helper()
    board.hold(600_000, 4)
    board.link._sock.close()  # type: ignore[union-attr] # what the kernel does with a killed process
    assert eventually(lambda: board.tree.values() == FOUND)


@pytest.mark.parametrize("through_helper", [True, False])
def test_fault_49_overridden_is_said_once_and_set_again(board: Board, through_helper: bool) -> None:
    if through_helper:
        board.start_helper()
    else:
        for key in (CAP, CAP4, FAN):
            os.chown(board.tree.sys / key, NOBODY, NOBODY)
    board.hold(600_000)
    board.tree.put(CAP, "1800000")
    (complaint,) = board.hold(600_000)
    assert "set to 1800000 by another program" in complaint
    assert board.levers.health["frequency-cap"] is OVERRIDDEN
    assert board.tree.get(CAP) == "600000"
    board.tree.put(CAP, "1800000")
    assert board.hold(600_000) == ()
    assert board.hold(600_000) == ()
    assert board.levers.health["frequency-cap"] is OK
    board.tree.put(CAP, "1300000")
    assert len(board.hold(600_000)) == 1


@pytest.fixture
def forgetful(tree: LeverTree) -> Iterator[LeverTree]:
    """A fan whose level does not stay: the kernel takes 3 for a process's oom_adj and tells 2 from then on."""
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        kernel_file = Path(f"/proc/{sleeper.pid}/oom_adj")
        if not kernel_file.exists() or int(kernel_file.read_text()) != 0:
            sleeper.kill()
            pytest.skip("needs /proc/PID/oom_adj at 0")
        (tree.sys / FAN).unlink()
        (tree.sys / FAN).symlink_to(kernel_file)
        yield tree
        sleeper.kill()


def test_fault_49_silently_overridden_directly(forgetful: LeverTree) -> None:
    levers = Levers(forgetful.sys, None, "boot-1")
    levers.hold_up(forgetful.sys / FAN, 3)
    (complaint,) = levers.complaints()
    assert "stays at 2 although 3 was written" in complaint
    assert levers.health == {"cooling": OVERRIDDEN}
    levers.hold_up(forgetful.sys / FAN, 3)
    assert levers.complaints() == ()


def test_fault_49_silently_overridden_in_the_helper(forgetful: LeverTree) -> None:
    helper = SteppedHelper(forgetful)
    answer = helper.client().ask("set-cooling", device=0, level=3)
    assert answer["error"] == "overridden"
    assert "says 2 although 3 was written" in answer["message"]
    assert helper.limits.held  # it is no more as found
    helper.crash()


def test_another_holder_is_named(board: Board) -> None:
    helper = board.start_helper()
    other = Client(helper.address)
    other.ask("set-cooling", device=1, level=1)
    (complaint,) = {text.split("(", 1)[1] for text in board.hold(600_000)}
    assert "another client holds the limits" in complaint
    other.close()
    assert eventually(lambda: board.tree.values() == FOUND)
    assert board.hold(600_000) == ()
    assert board.levers.health["frequency-cap"] is OK


@pytest.mark.parametrize("through_helper", [True, False])
def test_what_another_program_made_stricter_still_is_left_to_it(board: Board, through_helper: bool) -> None:
    if through_helper:
        board.start_helper()
    else:
        for key in (CAP, CAP4, FAN):
            os.chown(board.tree.sys / key, NOBODY, NOBODY)
    board.hold(1_000_000, 2)
    board.tree.put(CAP, "600000")
    board.tree.put(FAN, "4")  # the kernel's fan governor: it would not ask again
    assert board.hold(1_000_000, 2) == ()
    assert board.restore() == ()
    assert board.tree.values() == FOUND | {CAP: "600000", FAN: "4"}
    assert not board.undo.exists()


def test_a_lever_that_is_gone_is_missing(tree: LeverTree) -> None:
    levers = Levers(tree.sys, None, "boot-1")
    levers.hold_up(tree.sys / FAN, 3)
    (tree.sys / FAN).unlink()
    levers.hold_up(tree.sys / FAN, 3)
    assert levers.health == {"cooling": Health.MISSING}
    tree.put(FAN, "1")
    levers.hold_up(tree.sys / FAN, 3)
    assert levers.health == {"cooling": OK}


# --- the link itself -----------------------------------------------------------------------------------------------


class Threaded:
    """A stepped helper that works by itself."""

    def __init__(self, tree: LeverTree) -> None:
        self.helper = SteppedHelper(tree)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> SteppedHelper:
        self._thread.start()
        return self.helper

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self.helper.close()

    def _run(self) -> None:
        while not self._ending.is_set():
            self.helper.server.turn(0.005)


def linked(helper: SteppedHelper, tree: LeverTree, wait_s: float) -> PowerdLink:
    return PowerdLink(Path(helper.address), tree.sys, wait_s)


def test_a_helper_that_hung_up_while_idle_is_called_again(tree: LeverTree) -> None:
    with Threaded(tree) as helper:
        link = linked(helper, tree, 20.0)
        link.set(CAP, 1_800_000)
        helper.now += 11.0
        assert eventually(lambda: not helper.server._connections)
        link.set(CAP, 600_000)
        assert (link.connections, tree.get(CAP)) == (2, "600000")
        link.restore()
        assert tree.values() == FOUND
        link.close()


def test_throttled_bits_come_over_the_link(tree: LeverTree) -> None:
    with Threaded(tree) as helper:
        link = linked(helper, tree, 20.0)
        with pytest.raises(BoardError, match="no throttling bits"):
            link.throttled()
        tree.put("devices/platform/soc/soc:firmware/get_throttled", "8")
        assert link.throttled() == 8
        link.close()


def test_a_helper_of_another_tree_is_refused(tree: LeverTree, tmp_path: Path) -> None:
    with Threaded(tree) as helper:
        link = PowerdLink(Path(helper.address), tmp_path / "other", 20.0)
        with pytest.raises(BoardError, match="another helper"):
            link.set(CAP, 600_000)
        assert tree.values() == FOUND


def test_other_files_are_never_asked_for(tree: LeverTree) -> None:
    link = PowerdLink(tree.folder / "none", tree.sys)
    with pytest.raises(BoardError, match="clock caps and cooling levels only"):
        link.set("class/thermal/cooling_device0/../../x/cur_state", 1)


def test_a_helper_that_is_starting_is_waited_for_in_later_rounds(tree: LeverTree) -> None:
    helper = SteppedHelper(tree)  # its socket is there, it does not run yet
    link = linked(helper, tree, 0.01)
    for _ in range(3):
        for _ in range(2):
            with pytest.raises(BoardError) as caught:
                link.set(CAP, 600_000)
            assert caught.value.code == WAITING
        link.next_round()
    helper.turn()
    helper.turn()  # the greeting is answered
    with pytest.raises(BoardError) as caught:
        link.set(CAP, 600_000)
    assert caught.value.code == WAITING
    helper.turn()
    assert tree.get(CAP) == "600000"  # asked once, done late
    link.next_round()
    with pytest.raises(BoardError):
        link.set(CAP, 1_000_000)
    helper.turn()
    assert tree.get(CAP) == "1000000"
    link.close()
    helper.close()
    assert tree.values() == FOUND


def test_a_helper_that_stays_silent_is_said_to(tree: LeverTree) -> None:
    helper = SteppedHelper(tree)
    link = linked(helper, tree, 0.001)
    codes = []
    for _ in range(LATE_ROUNDS + 3):
        with pytest.raises(BoardError) as caught:
            link.set(CAP, 600_000)
        codes.append(caught.value.code)
        link.next_round()
    assert codes == [WAITING] * (LATE_ROUNDS + 1) + ["board"] * 2
    link.close()
    helper.close()


def test_a_helper_that_answers_nonsense_is_refused(tree: LeverTree) -> None:
    with Threaded(tree) as helper:
        helper.server._answer = lambda *_: b"{"  # type: ignore[method-assign]
        link = linked(helper, tree, 20.0)
        with pytest.raises(BoardError, match="not JSON"):
            link.set(CAP, 600_000)


def test_mailbox_bits_reach_the_reading_while_a_job_is_at_work(tree: LeverTree) -> None:
    roots, profile = BoardRoots(tree.sys, tree.folder / "proc"), named_profile("raspberry-pi-4")
    with Threaded(tree) as helper:
        bits = [0xD]  # undervoltage, throttled and soft limit now
        helper.server._throttled = lambda: bits[0]
        board = SysfsBoard(roots, profile, None, helper.address)
        assert not board.read(1.0).throttled  # idle: the helper is not kept awake
        assert not helper.server._connections
        board.apply(Decision())
        told = board.read(2.0)
        assert (told.undervoltage, told.throttled) == (True, True)
        bits[0] = 0xD0000  # since boot
        board.apply(Decision())
        assert not board.read(3.0).throttled
        bits[0] = 0x4
        board.apply(Decision())
        board.restore()
        assert not board.read(4.0).throttled
        assert eventually(lambda: not helper.server._connections)


def test_a_board_without_the_firmware_is_asked_once_a_job(tree: LeverTree) -> None:
    asked: list[int] = []

    def look() -> int:
        asked.append(1)
        return throttled_bits(tree.sys, Path("/dev/null"))

    with Threaded(tree) as helper:
        helper.server._throttled = look
        link = linked(helper, tree, 20.0)
        mailbox = FirmwareMailbox(link)
        for times in (1, 2):
            mailbox.ask()
            mailbox.ask()
            assert (mailbox.bits, len(asked)) == (0, times)
            mailbox.rest()
        link.close()


def test_a_list_of_limits_that_cannot_be_removed_is_told_of_and_stops_no_governor(
    tree: LeverTree, tmp_path: Path
) -> None:
    undo = tmp_path / "undo.json"
    levers = Levers(tree.sys, undo, "boot-1")
    levers.hold_down(tree.sys / CAP, 1_000_000)
    undo.unlink()
    undo.mkdir()
    levers.restore()
    assert any("cannot be written" in told for told in levers.complaints())
