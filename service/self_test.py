"""Whether the active model opens and answers: what a release, or a system, on trial is asked."""

from __future__ import annotations

from agent.errors import TemperdError
from agent.messages import Failed, Finished, Message, SelfTestOrder
from service.logs import logger
from service.worker_process import STOP_GRACE_S, StartWorker, WorkerProcess

log = logger("trial")


async def self_test(order: SelfTestOrder, nice: int, start: StartWorker = WorkerProcess.start) -> str:
    """What is wrong with the active model; empty: nothing. One that is cut off ends its worker.

    Args:
        order: for the worker.
        nice: its scheduling priority.
        start: starts it.
    """
    last: Message | None = None
    code = 0
    try:
        worker = await start(order, nice, lambda line: log.info("worker", line=line))
        try:
            async for last in worker.messages():  # noqa: B007 - the last word counts
                pass
        finally:
            code = await worker.end(0.0 if last is None else STOP_GRACE_S)
    except TemperdError as error:
        return str(error)
    if isinstance(last, Finished):
        log.info("the active model answers", **last.result)
        return ""
    return last.message if isinstance(last, Failed) else f"the worker ended with code {code}"
