"""What this project asks of RAUC, of a stand-in and of the real one: the same calls, the same answers."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.errors import BoardError
from service.rauc import Rauc, RaucState, is_there
from tests.simulators.rauc import (
    COMPATIBLE,
    METHODS,
    READABLE,
    SIGNALS,
    RealRauc,
    Slots,
    StandInRauc,
    lacks_rauc,
    private_bus,
    say_completed,
)

CONTENT = bytes(range(256)) * 16
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="no dbus-daemon here (apt install dbus)"),
]
NO_RAUC = lacks_rauc()


class Board:
    """A board that RAUC updates."""

    def __init__(self, rauc: StandInRauc | RealRauc, folder: Path) -> None:
        self.rauc, self._folder = rauc, folder
        self.client = Rauc()

    @property
    def slots(self) -> Slots:
        return self.rauc.slots

    def bundle(self, version: str) -> Path:
        if isinstance(self.rauc, RealRauc):
            return self.rauc.bundle(version, CONTENT)
        path = self._folder / f"{version}.raucb"
        path.write_bytes(f"bundle {version} ".encode() + CONTENT)
        return path

    def install(self, path: Path) -> list[float]:
        told: list[float] = []
        asyncio.run(self.client.install(str(path), told.append))
        return told

    def state(self) -> RaucState:
        return asyncio.run(self.client.state())


async def until_it_installs(client: Rauc) -> None:
    while (await client.state()).operation == "idle":  # noqa: ASYNC110 - another process's word
        await asyncio.sleep(0.01)


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with private_bus(tmp_path) as address:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
        yield address


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.skipif(bool(NO_RAUC), reason=NO_RAUC))])
def board(request: pytest.FixtureRequest, bus: str, tmp_path: Path) -> Iterator[Board]:
    slots = Slots(tmp_path / "slots")
    rauc = StandInRauc(bus, slots) if request.param == "stand-in" else RealRauc(bus, slots, tmp_path)
    yield Board(rauc, tmp_path)
    rauc.close()


@pytest.mark.skipif(bool(NO_RAUC), reason=NO_RAUC)
def test_the_stand_in_has_the_signatures_of_the_real_one(bus: str, tmp_path: Path) -> None:
    rauc = RealRauc(bus, Slots(tmp_path / "slots"), tmp_path)
    try:
        assert rauc.introspected() == {"method": METHODS, "signal": SIGNALS, "property": READABLE}
    finally:
        rauc.close()


def test_a_bundle_is_installed_booted_and_marked(board: Board) -> None:
    assert is_there() == ""
    assert board.state() == RaucState(COMPATIBLE, "A")
    board.install(board.bundle("2.0"))
    assert board.slots.primary == "B"
    assert CONTENT in (board.slots.folder / "B").read_bytes()
    assert board.rauc.boot() == "B"
    assert (board.state().boot_slot, board.state().version) == ("B", "2.0")
    assert asyncio.run(board.client.mark("good"))
    assert board.slots.state("B") == "good"
    asyncio.run(board.client.mark("bad"))
    assert board.slots.state("B") == "bad"
    assert board.rauc.boot() == "A", "the boot loader goes back"


def test_what_rauc_refuses_is_told_in_its_words(board: Board, tmp_path: Path) -> None:
    if isinstance(board.rauc, RealRauc):
        bundle, word = board.rauc.bundle("2.0", CONTENT, compatible="another-board"), "ompatible"
    else:
        bundle, word = board.bundle("2.0"), "Compatible mismatch"
        board.rauc.error = "Compatible mismatch: expected board-x"
    with pytest.raises(BoardError, match=word) as refused:
        board.install(bundle)
    assert refused.value.code == "rauc-failed"
    broken = tmp_path / "broken.raucb"
    broken.write_bytes(b"no bundle at all")
    if isinstance(board.rauc, RealRauc):
        with pytest.raises(BoardError) as refused:
            board.install(broken)
        assert refused.value.code == "rauc-failed"
    assert board.slots.primary == "A"
    assert board.state().operation == "idle"


def test_an_installation_that_is_at_work_is_not_joined(bus: str, tmp_path: Path) -> None:
    rauc = StandInRauc(bus, Slots(tmp_path / "slots"))
    board = Board(rauc, tmp_path)
    rauc.hangs = True

    async def both() -> list[float]:
        told: list[float] = []
        first = asyncio.ensure_future(board.client.install(str(board.bundle("2.0")), told.append))
        await until_it_installs(board.client)
        with pytest.raises(BoardError) as refused:
            await board.client.install(str(board.bundle("2.1")), told.append)
        assert refused.value.code == "rauc-busy"
        while not told:  # noqa: ASYNC110 - a list that somebody else fills
            await asyncio.sleep(0.01)
        rauc.release()
        await first
        return told

    assert asyncio.run(both())[0] == 0.5
    rauc.close()


def test_the_word_of_another_than_rauc_ends_no_installation(bus: str, tmp_path: Path) -> None:
    rauc = StandInRauc(bus, Slots(tmp_path / "slots"))
    board = Board(rauc, tmp_path)
    rauc.hangs, rauc.error = True, "the slot cannot be written"

    async def deceived() -> None:
        told: list[float] = []
        work = asyncio.ensure_future(board.client.install(str(board.bundle("2.0")), told.append))
        while not told:  # noqa: ASYNC110 - it waits for the end now
            await asyncio.sleep(0.01)
        await asyncio.to_thread(say_completed, bus)
        rauc.release()
        await work

    with pytest.raises(BoardError, match="the slot cannot be written"):
        asyncio.run(deceived())
    rauc.close()


@pytest.mark.parametrize("ask", [lambda client: client.state(), lambda client: client.mark("good")])
def test_a_board_without_rauc_says_what_to_install(bus: str, ask: Callable[[Rauc], object]) -> None:
    del bus
    assert "apt install rauc" in is_there()
    with pytest.raises(BoardError, match="apt install rauc") as absent:
        asyncio.run(ask(Rauc()))  # type: ignore[arg-type]
    assert absent.value.code == "not-updatable"


def test_a_board_without_a_bus_cannot_be_updated_nor_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path / 'none'}")
    assert "no system bus" in is_there()
    with pytest.raises(BoardError) as absent:
        asyncio.run(Rauc().state())
    assert absent.value.code == "not-updatable"
    with pytest.raises(BoardError) as absent:
        asyncio.run(Rauc().reboot())
    assert absent.value.code == "reboot-needed"


def test_a_bus_that_goes_away_during_an_installation_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def cut(stack: Iterator[str]) -> BoardError:
        work = asyncio.ensure_future(Rauc().install(str(bundle), lambda _share: None))
        await until_it_installs(Rauc())
        await asyncio.to_thread(next, stack, None)
        with pytest.raises(BoardError) as gone:
            await work
        return gone.value

    def held() -> Iterator[str]:
        with private_bus(tmp_path) as address:
            yield address

    stack = held()
    address = next(stack)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    rauc = StandInRauc(address, Slots(tmp_path / "slots"))
    rauc.hangs = True
    bundle = tmp_path / "2.0.raucb"
    bundle.write_bytes(b"bundle 2.0 x")
    assert asyncio.run(cut(stack)).code == "not-updatable"
    rauc.close()


def test_logind_restarts_the_board_or_says_why_not(bus: str, tmp_path: Path) -> None:
    rauc = StandInRauc(bus, Slots(tmp_path / "slots"))
    asyncio.run(Rauc().reboot())
    assert rauc.reboots == 1
    rauc.denied = True
    with pytest.raises(BoardError, match="not you") as denied:
        asyncio.run(Rauc().reboot())
    assert denied.value.code == "reboot-needed"
    rauc.close()
