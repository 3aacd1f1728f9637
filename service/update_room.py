"""What the commands have in common that update a board: one at a time, put off and canceled, told until it is known."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Generic

from agent.errors import BoardError, EngineError, NetworkError
from agent.messages import CLOCK_WRONG, METERED, Failed, Finished, Message
from service.asked import DEFERRED, PULLING, RUNNING, WAITING
from service.endings import CANCELED
from service.logs import logger
from service.statuses import MAX_REASON, Clock
from service.until import RETRY_DISK_S, RETRY_S, Until
from service.update_ledger import A, UpdateLedger
from service.worker_process import STOP_GRACE_S, StartWorker, WorkerProcess

LOOK_S = 1.0
LATER_S = 3600.0  # a metered link is asked for again
PATIENT: Mapping[str, float] = {NetworkError.reason: RETRY_S, CLOCK_WRONG: RETRY_S, METERED: LATER_S}
"""What may be over by itself: reason, and after how many seconds it is looked at again."""
CANCELED_REASON = "canceled by an operator"

log = logger("update")


class UpdateRoom(Generic[A]):
    """See the module.

    Args:
        ledger: remembers the command.
        clock: see `Clock`.
        start: starts a worker.
        nice: scheduling priority of a worker.
        blocks: code of what holds another's work up, which is waited for too.
    """

    def __init__(self, ledger: UpdateLedger[A], clock: Clock, start: StartWorker, nice: int, blocks: str) -> None:
        self._ledger, self._clock = ledger, clock
        self._start, self._nice, self._blocks = start, nice, blocks
        self._worker: WorkerProcess | None = None
        self._canceled = self._working = False
        self._stopped = asyncio.Event()

    # --- commands ----------------------------------------------------------------------------------------------------

    def cancel(self, command_id: str) -> bool:
        """End an update that is not being installed yet; of one that is pulled the status follows within seconds.

        Returns:
            Whether it is canceled, now or before; false where it has ended otherwise, is not known, or is too far.

        Raises:
            BoardError: the disk refuses: not to be acknowledged.
        """
        now = self._ledger.open
        if now is None or now.id != command_id:
            return self._ledger.outcome(command_id).startswith(CANCELED)
        if now.stage not in ("", PULLING):
            return False
        if self._working:
            self._canceled = True
            if self._worker is not None:
                self._worker.kill()
        else:
            self._end(CANCELED, CANCELED, CANCELED_REASON)
        return True

    def repeat(self, command_id: str) -> bool:
        """Publish the status of the command once more; false where it is not known here."""
        return self._ledger.repeat(command_id)

    def publish_pending(self) -> None:
        """Publish what the broker has not confirmed."""
        self._ledger.publish_pending()

    def broker_lost(self) -> None:
        """The broker lost what it kept: all is told once more."""
        self._ledger.broker_lost()

    # --- the work ----------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether it is at work: it pulls, or more."""
        return self._working

    @property
    def _stopping(self) -> bool:
        return self._stopped.is_set()

    def _is_due(self, now: A) -> bool:
        """Whether it is to begin, or to begin again; a clock that was set back must not put it off for years."""
        left_s = now.retry_s - self._clock.now()
        late = now.status == DEFERRED and now.retry_s > 0 and not 0 < left_s <= LATER_S
        return late or now.status == WAITING

    def _begun(self, now: A) -> A:
        """It pulls from here on."""
        fresh = {"status": RUNNING, "stage": PULLING, "code": "", "reason": "", "retry_s": 0.0, "waits_for": None}
        now = self._ledger.advance(**fresh, attempt=now.attempt + (now.status == WAITING))
        log.info("update begins", id=now.id, attempt=now.attempt)
        return now

    async def _work(self, order: Message, module: str) -> Finished | Failed:
        """What a worker, the program `module`, says last.

        Raises:
            BoardError: there is no process.
        """
        last: Message | None = None
        worker = self._worker = await self._start(
            order, self._nice, lambda line: log.info("update worker", line=line), module
        )
        if self._canceled or self._stopping:  # told so while it was started
            worker.kill()
        try:
            async for last in worker.messages():
                await self._hear(last, worker)
        except (EngineError, BoardError) as error:
            last = Failed(error.code, str(error))
            worker.kill()
        finally:
            self._worker = None
            code = await worker.end(0.0 if last is None else STOP_GRACE_S)
        return last if isinstance(last, Finished | Failed) else Failed("worker-crashed", f"the worker ended: {code}")

    async def _hear(self, message: Message, worker: WorkerProcess) -> None:
        """What a worker says on its way; a BoardError ends it."""

    def _put_off(self, code: str, why: str) -> None:
        """Wait for what may be over by itself; else it has failed, and what ran runs on."""
        after_s = RETRY_S if code == self._blocks else PATIENT.get(code)
        if self._canceled:
            self._end(CANCELED, CANCELED, CANCELED_REASON)
        elif after_s is None:
            self._end("failed", code, why)
        else:
            again = self._clock.now() + after_s
            until = Until("clock" if code == CLOCK_WRONG else "job" if code == self._blocks else "network", ts=again)
            self._ledger.advance(
                status=DEFERRED, stage="", code=code, reason=why[:MAX_REASON], retry_s=again, waits_for=until.table()
            )

    async def watch(self) -> None:
        """Beside the work, for ever: see `_look`."""
        while True:
            pause_s = LOOK_S
            try:
                await self._look()
            except BoardError as error:
                log.error("the update waits", why=str(error))  # noqa: TRY400 - said whole
                pause_s = RETRY_DISK_S
            await asyncio.sleep(pause_s)

    async def _look(self) -> None:
        """What is due beside the work; after a BoardError it is done again."""
        raise NotImplementedError

    async def stop(self) -> None:
        """The daemon goes: what was pulled so far stays."""
        self._stopped.set()
        if self._worker is not None:
            self._worker.kill()

    def _end(self, status: str, code: str = "", reason: str = "", result: dict[str, object] | None = None) -> None:
        self._ledger.close(status, code, reason, result)
        self._canceled = False
