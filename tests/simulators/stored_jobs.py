"""Jobs and telemetry written into a store, as a board would have told them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from service.command_types import FINE_TUNE, new_id
from service.fleet.store import Batch, Fact, Sample, Status, Store

TENANT = "default"


def write(store: Store, *facts: Fact, now: float) -> None:
    """All in one batch."""
    batch = Batch()
    for fact in facts:
        batch.add(fact)
    store.write(batch, now)


def fine_tune(board: str, began: float, took: float, place: int, **result: object) -> tuple[str, list[Status]]:
    """A job that ran from then (seconds since 1970), so long; its id and its statuses. `place` tells ids apart."""
    found = new_id(int((began - 2) * 1000), lambda size: bytes([place]) * size)
    told = {"metric": "accuracy", "train_samples": 600, "wall_s": took, **result}
    statuses = []
    for version, status, ts in ((1, "accepted", began - 1), (2, "running", began), (3, "succeeded", began + took)):
        body: dict[str, object] = {"id": found, "status": status, "version": version, "ts": ts, "step": ""}
        if status == "succeeded":
            body |= {"result": told, "attempt": 1}
        statuses.append(Status(TENANT, board, found, FINE_TUNE, version, status, ts, json.dumps(body)))
    return found, statuses


def telemetry(
    board: str, began: float, values: Mapping[str, object], seconds: range, group: str = "board"
) -> list[Sample]:
    """The same values each second."""
    text = json.dumps(dict(values))
    return [Sample(TENANT, board, group, group, int(began) + at, int((began + at) * 1000), at, text) for at in seconds]
