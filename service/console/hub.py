"""The fleet as it is now: rows for the list, what changes for whoever looks, and the way to the broker."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, Self

from agent.errors import TemperdError
from service.console.hub_ask import BIRTH, CAPABILITIES, Questions
from service.console.hub_details import Details
from service.console.hub_groups import Groups
from service.console.hub_ingest import Consumer, say_fault
from service.console.hub_stored import stored_birth, stored_devices, stored_words
from service.console.hub_watch import Event, Look, Watcher, all_news, news_of, retained_of, tell
from service.console.reads import Reads
from service.console.room import Settings
from service.console.rows import FleetPage, FleetQuery, Row, Summary, make_row, row_table, summarise, summary_table
from service.console.rows_query import select
from service.fleet.boards import Board, Boards
from service.fleet.fleet_link import FOR_A_LIST, FleetLink, Take
from service.fleet.store import DeviceRow
from service.logs import logger

__all__ = ["Event", "Hub"]

GATHER_S = 0.5  # between two looks at what changed: open pages are told twice a second at most
AWAY_S = 5.0  # without a broker after the start: then the store says what it knows of jobs and alarms
AGAIN_S = 30.0  # a store that could not be read: somebody starts the database
SAME_BIRTH = ("agent", "state_version")  # where they differ the store is behind
SECOND = 1_000_000  # revisions in a second: those of a console that starts again are higher than those before

log = logger("console")


class Hub:
    """See the module. An asynchronous context manager: consumes inside the block.

    Args:
        settings: of the console.
        reads: the store.
        now: wall clock, seconds since 1970.
        monotonic: monotonic clock, seconds.

    Raises:
        ConfigError: a certificate, key or password file for the broker cannot be used.
    """

    revision: int
    """Rises with every change of a row."""

    def __init__(
        self, settings: Settings, reads: Reads, *, now: Callable[[], float], monotonic: Callable[[], float]
    ) -> None:
        self._settings, self._reads, self._now, self._monotonic = settings, reads, now, monotonic
        self.revision = self._first = int(now() * SECOND)
        self._unread = ""
        """Why the list could not be read from the store; empty: it was."""
        self.streams: Counter[str] = Counter()
        """Open streams by session."""
        self._boards = Boards(settings.tenant)
        self._root = f"temper/v1/{settings.tenant}/"
        self._stored: dict[str, DeviceRow] = {}
        self._rows: dict[str, Row] = {}
        self._tables: dict[str, tuple[int, dict[str, Any]]] = {}
        self._dirty: set[str] = set()
        self._summary: tuple[int, Summary] | None = None
        self._heard: dict[tuple[str, str], int] = {}
        """Presences and alarms: in which connection each was told last."""
        self._settled = False
        self._watchers: set[Watcher] = set()
        self._looks: dict[str, Look] = {}
        self._taps: list[Take] = []
        self._details = Details()
        self._groups = Groups(settings.fleet_state, settings.tenant, monotonic)
        client_id = f"console-{secrets.token_hex(8)}"
        self._link = FleetLink(settings.mqtt, settings.tenant, client_id, self._take, topics=FOR_A_LIST, paced=True)
        self._questions = Questions(self._link, monotonic)
        self._consumer = Consumer(settings, now=now, monotonic=monotonic) if settings.consume else None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._read_devices()
        await self._link.__aenter__()
        if self._consumer is not None:
            self._consumer.start()
        self._tasks = [
            asyncio.create_task(work(), name=work.__name__) for work in (self._gather, self._settle, self._stand_in)
        ]
        for task in self._tasks:
            task.add_done_callback(say_fault)
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._consumer is not None:
            await self._consumer.stop()
        await self._link.__aexit__(*error)

    # --- what pages ask ----------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        return self._link.connected

    @property
    def trouble(self) -> str:
        """Why the store does not do what it should; empty: it does."""
        return self._unread or (self._consumer.trouble if self._consumer is not None else "")

    @property
    def link(self) -> FleetLink:
        """The connection that listens and sends."""
        return self._link

    @property
    def consumer(self) -> Consumer | None:
        """What writes into the store; `None` where the console does not."""
        return self._consumer

    def query(self, query: FleetQuery) -> FleetPage:
        """A page of the list: what fits the filter, sorted, and how many there are in all.

        Raises:
            BoardError: the file that has the groups cannot be used.
        """
        self._refresh()
        members = self.groups().get(query.group, frozenset()) if query.group else frozenset()
        return select(self._rows.values(), query, members, self.revision)

    def groups(self) -> Mapping[str, frozenset[str]]:
        """Boards by group, as `temperd fleet group` has them.

        Raises:
            BoardError: the file cannot be used.
        """
        return self._groups()

    def summary(self) -> Summary:
        """How many boards there are of each kind."""
        self._refresh()
        if self._summary is None or self._summary[0] != self.revision:
            self._summary = self.revision, summarise(self._rows.values())
        return self._summary[1]

    def row(self, name: str) -> Row | None:
        """One board of the list."""
        self._refresh()
        return self._rows.get(name)

    def table(self, row: Row) -> Mapping[str, Any]:
        """A row of the list as JSON has it, made once for all who look."""
        kept = self._tables.get(row.name)
        if kept is None or kept[0] != row.revision:
            kept = self._tables[row.name] = row.revision, row_table(row)
        return kept[1]

    def board(self, name: str) -> Board | None:
        """All that was heard of one board since the console runs, as `temperd fleet` has it."""
        return self._boards.boards.get(name)

    async def capability(self, name: str, kind: str) -> Mapping[str, Any] | None:
        """What a board says of a command type (`cmd/<type>`), asked from the broker if need be; `None`: nothing."""
        self._details.want(name, self._monotonic())
        if self._details.capability(name, kind) is None:
            await self._ask(name, CAPABILITIES)
        return self._details.capability(name, kind)

    async def birth(self, name: str) -> Mapping[str, Any]:
        """The whole birth of a board, asked from the store or the broker; empty: none."""
        self._details.want(name, self._monotonic())
        if self._details.birth(name) is None:
            stored, board = await stored_birth(self._reads, self._settings.tenant, name), self.board(name)
            told = board.birth if board is not None else {}
            if stored and all(stored.get(key) == told.get(key, stored.get(key)) for key in SAME_BIRTH):
                self._details.take(name, [BIRTH], stored)
            else:
                await self._ask(name, BIRTH)
        return self._details.birth(name) or {}

    async def send(self, device: str, kind: str, command_id: str, envelope: bytes, *, valid_s: int) -> None:
        """Publish a signed command. Its statuses come as `status` events of the board.

        Raises:
            NetworkError: the broker did not confirm it.
            CommandError: the envelope is longer than a device reads.
        """
        if self.board(device) is None:  # of boards that were heard of it listens to all
            self._link.listen(device, f"cmd/{kind}/{command_id}/sts")
        await self._link.send(device, kind, command_id, envelope, expires_s=valid_s)

    # --- what open pages are told ------------------------------------------------------------------------------------

    @asynccontextmanager
    async def subscribe(
        self, *, boards: Collection[str] = (), board: str = "", roll_outs: bool = False, after: int = -1
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """What changes, gathered twice a second at most, as long as the block lasts.

        Args:
            boards: rows of these as `rows` events, with the summary.
            board: everything of this one: `status`, `metrics`, `alarm`, `conn`, `birth` events; first as it is now.
            roll_outs: `roll-out` events.
            after: the last revision seen: what changed since comes first. -1: nothing was seen.
        """
        seen = after if after <= self.revision else -1
        watcher = Watcher(frozenset(boards), board, roll_outs, seen, self.connected)
        if boards or board:
            watcher.wake.set()
        self._watchers.add(watcher)
        look = self._looks.setdefault(board, Look())
        look.users += 1
        if board:
            self._link.listen(board, "m/+")
            for news in all_news(self.board(board), look):
                watcher.note(news)
        try:
            yield self._events(watcher)
        finally:
            self._watchers.discard(watcher)
            look.users -= 1
            if not look.users:
                del self._looks[board]
                if board:
                    self._link.unlisten(board, "m/+")

    def publish(self, event: str, data: Mapping[str, Any]) -> None:
        """Tell subscribers of something that the console itself made, such as a roll-out's counts."""
        self.revision += 1
        made = Event(event, data, self.revision)
        for watcher in self._watchers:
            if watcher.wants(made):
                watcher.put(made)

    @contextmanager
    def tap(self, take: Take) -> Iterator[None]:
        """Also give every message of a board to `take`, as a `FleetLink` would, as long as the block lasts."""
        self._taps.append(take)
        try:
            yield
        finally:
            self._taps.remove(take)

    async def _events(self, watcher: Watcher) -> AsyncIterator[Event]:
        while True:
            await watcher.wake.wait()
            watcher.wake.clear()
            for event in self._news(watcher):
                yield event

    def _news(self, watcher: Watcher) -> list[Event]:
        """What a reader was not told yet; it counts as told."""
        self._refresh()
        found: list[Event] = []
        if watcher.connected is not self.connected:
            watcher.connected = self.connected
            found.append(Event("link", {"connected": self.connected}, self.revision))
        if watcher.boards and (told := self._rows_event(watcher)):
            found.append(told)
        watcher.seen = self.revision
        board, look = self.board(watcher.board), self._looks.get(watcher.board)
        news, watcher.news = watcher.news, {}
        told_now = (tell(told_of, watcher.board, board, look) for told_of in news)
        found += [Event(*event, self.revision) for event in told_now if event is not None]
        found += watcher.made.values()
        watcher.made = {}
        return found

    def _rows_event(self, watcher: Watcher) -> Event | None:
        rows = [row for name in watcher.boards if (row := self._rows.get(name)) and row.revision > watcher.seen]
        fleet = self.summary()
        if not rows and fleet == watcher.fleet:
            return None
        watcher.fleet = fleet
        data = {"rows": [self.table(row) for row in rows], "summary": summary_table(fleet)}
        return Event("rows", data, self.revision)

    # --- what boards say ---------------------------------------------------------------------------------------------

    def _take(self, topic: str, body: Mapping[str, object] | None, retained: bool) -> None:  # noqa: FBT001 - a callback
        for tap in self._taps:
            tap(topic, body, retained)
        name, *levels = topic.removeprefix(self._root).split("/")
        if not topic.startswith(self._root) or not levels:
            return  # nothing that we asked for
        if body is not None and self._details.take(name, levels, body):
            self._questions.came(name)
        changed = self._boards.take(topic, body, now=self._now(), retained=retained) == name
        self._hear(name, "/".join(levels), body)
        if not changed:
            return
        self._dirty.add(name)
        if name in self._looks:
            self._note(name, levels, body)

    def _hear(self, name: str, levels: str, body: Mapping[str, object] | None) -> None:
        """Remember of what is retained in which connection it came; no more than what is kept of the board."""
        board = self.board(name)
        if body is None:
            self._heard.pop((name, levels), None)
        elif board is not None and (levels == "conn" or levels.removeprefix("a/") in board.alarms):
            self._heard[name, levels] = self._link.connections

    def _note(self, name: str, levels: list[str], body: Mapping[str, object] | None) -> None:
        """Somebody looks at a board that said something."""
        look, news = self._looks[name], news_of(levels)
        if levels[0] == "m" and body is not None and look.take(levels[1], body, self._now()):
            news = "metrics", levels[1]
        if news is not None:
            for watcher in self._watchers:
                if watcher.board == name:
                    watcher.note(news)

    def _refresh(self) -> None:
        """Rows of what changed."""
        while self._dirty:
            name = self._dirty.pop()
            board, stored = self.board(name), self._stored.get(name)
            if board is None and stored is None:
                continue
            before = self._rows.get(name)
            made = make_row(board, stored, broker_knows=self._settled)
            if before is None or replace(made, revision=before.revision) != before:
                self.revision += 1
                self._rows[name] = replace(made, revision=self.revision)

    async def _gather(self) -> None:
        """Wake whoever has news."""
        while True:
            await asyncio.sleep(GATHER_S)
            self._refresh()
            for watcher in self._watchers:
                rows = bool(watcher.boards) and watcher.seen != self.revision
                if rows or watcher.news or watcher.made or watcher.connected is not self.connected:
                    watcher.wake.set()

    async def _settle(self) -> None:
        """After each connect: boards that the broker does not know are not there, alarms it has not kept are over."""
        connections = 0
        while True:
            await asyncio.sleep(GATHER_S)
            if self._link.connections == connections:
                continue
            connections = self._link.connections
            known = [one for board in self._boards.boards.values() for one in retained_of(board)]
            quiet = await self._link.wait_quiet()
            if not quiet or self._link.connections != connections:
                connections = 0
                continue
            for name, levels in known:  # some were told by this connection before we looked
                if self._heard.get((name, levels), 0) < connections:
                    self._forget(name, levels)
            self._settled = True
            self._dirty |= self._stored.keys() - self._boards.boards.keys()

    def _forget(self, name: str, levels: str) -> None:
        """A broker that was wiped has it no more, and its board has not come back to say it again."""
        board = self.board(name)
        gone = {**board.conn, "online": False} if levels == "conn" and board is not None else None
        self._take(f"{self._root}{name}/{levels}", gone, retained=True)

    # --- what the store knows ----------------------------------------------------------------------------------------

    async def _read_devices(self) -> None:
        """Every device that is in the store, so that there is a list at once."""
        try:
            self._stored = await stored_devices(self._reads, self._settings.tenant, self._now())
            self._unread = ""
        except TemperdError as error:
            self._unread = str(error)
            log.warning("the list begins empty: the store cannot be read", why=str(error))
        self._dirty |= self._stored.keys()

    async def _stand_in(self) -> None:
        """The list, where it could not be read; and where there is no broker, jobs and alarms as the store has them."""
        await asyncio.sleep(AWAY_S)
        while self._unread:
            await asyncio.sleep(AGAIN_S)
            await self._read_devices()
        for name in list(self._stored):
            if self._link.connections:
                return
            try:
                words = await stored_words(self._reads, self._settings.tenant, name)
            except TemperdError as error:
                log.warning("the store does not tell of jobs and alarms", why=str(error))
                return
            for levels, body in words:
                self._take(f"{self._root}{name}/{levels}", body, retained=True)

    async def _ask(self, name: str, topic: str) -> None:
        if name in self._rows:
            await self._questions.ask(name, topic)
