"""A store as `temperd bench console` reads it: many devices, and one with a day of telemetry each second."""

from __future__ import annotations

import json
import random

from service.bench_ingest_devices import BIRTH, TENANT, reading
from service.fleet.store import Batch, Birth, Presence, Sample, Store

DAY_POINTS = 86_400
CHART_BOARD = "board-00000"
AT_ONCE = 2000  # facts of one commit
BOOT = "00000000-bench"


def fill(store: Store, devices: int, now: float, chance: random.Random) -> None:
    """Write presence, birth and a reading of each device, and a day of the first.

    Raises:
        BoardError, NetworkError: as `Store.write`.
    """
    batch = Batch()
    for place in range(devices):
        name = f"board-{place:05}"
        batch.add(Presence(TENANT, name, online=True, session=1, connection=1, ts=now - 60))
        batch.add(Birth(TENANT, name, 1, "0.0.0", "raspberry-pi-4", "digits 3", json.dumps(BIRTH)))
        batch.add(_sample(name, 1, now - chance.uniform(1, 60), chance))
        batch = _commit(store, batch, now, AT_ONCE)
    for place in range(DAY_POINTS):
        ts = now - DAY_POINTS + place
        batch.add(_sample(CHART_BOARD, 2 + place, ts, chance))
        batch = _commit(store, batch, ts, AT_ONCE)
    _commit(store, batch, now, 1)
    while store.condense(now):  # a consumer does it between two batches, all day long
        pass


def _sample(name: str, seq: int, ts: float, chance: random.Random) -> Sample:
    values = json.dumps(reading(chance), separators=(",", ":"))
    return Sample(TENANT, name, "board", BOOT, seq, round(ts * 1000), 0, values)


def _commit(store: Store, batch: Batch, now: float, least: int) -> Batch:
    """The batch to go on with."""
    if len(batch.samples) < least:
        return batch
    store.write(batch, now)
    return Batch()
