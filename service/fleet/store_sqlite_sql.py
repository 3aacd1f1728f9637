"""The statements of the SQLite store."""

from __future__ import annotations

from service.fleet.store import ENDED, NEWER_STATUS
from service.fleet.store_history import MAX_HISTORY

TRIM_ROWS = 2000  # some 20 ms of deleting: stands between two batches

SCHEMA = """
CREATE TABLE devices (
    id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL,
    online INTEGER NOT NULL DEFAULT 0, session INTEGER NOT NULL DEFAULT -1, connection INTEGER NOT NULL DEFAULT -1,
    since REAL, agent TEXT NOT NULL DEFAULT '', board TEXT NOT NULL DEFAULT '', model TEXT NOT NULL DEFAULT '',
    state_version INTEGER NOT NULL DEFAULT -1,
    UNIQUE (tenant, name)
) STRICT;
CREATE TABLE readers (name TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE births (device INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE commands (
    device INTEGER NOT NULL, id TEXT NOT NULL, type TEXT NOT NULL, version INTEGER NOT NULL, status TEXT NOT NULL,
    ts REAL NOT NULL, body TEXT NOT NULL, seen REAL NOT NULL, UNIQUE (device, id)
) STRICT;
CREATE INDEX commands_by_age ON commands (seen);
CREATE TABLE alarms (
    device INTEGER NOT NULL, type TEXT NOT NULL, severity TEXT NOT NULL, ts REAL NOT NULL, body TEXT NOT NULL,
    seen REAL NOT NULL, PRIMARY KEY (device, type)
) STRICT, WITHOUT ROWID;
CREATE TABLE telemetry (
    id INTEGER PRIMARY KEY, device INTEGER NOT NULL, grp TEXT NOT NULL, ts INTEGER NOT NULL, boot INTEGER NOT NULL,
    seq INTEGER NOT NULL, mono_ms INTEGER NOT NULL, received REAL NOT NULL, body TEXT NOT NULL, dated INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX telemetry_once ON telemetry (device, boot, seq);
CREATE INDEX telemetry_by_time ON telemetry (device, grp, ts);
"""
SINCE_2 = """
CREATE TABLE history (
    device INTEGER NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (device, id, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE digests (
    device INTEGER NOT NULL, grp TEXT NOT NULL, slot INTEGER NOT NULL, newest INTEGER NOT NULL, head TEXT NOT NULL,
    numbers BLOB NOT NULL, PRIMARY KEY (device, grp, slot)
) STRICT;
CREATE INDEX digests_by_age ON digests (newest);
CREATE TABLE unsettled (
    device INTEGER NOT NULL, grp TEXT NOT NULL, slot INTEGER NOT NULL, since REAL NOT NULL,
    PRIMARY KEY (device, grp, slot)
) STRICT, WITHOUT ROWID;
CREATE INDEX unsettled_by_age ON unsettled (since);
"""
PRESENCE = """
UPDATE devices SET online = :online, session = :session, connection = :connection, since = :since WHERE id = :id
AND ((:session, :connection, NOT :online) > (session, connection, NOT online)
  OR (:online AND :session < session AND :since > since))
"""
BIRTH = "UPDATE devices SET agent = ?, board = ?, model = ?, state_version = ? WHERE id = ?"
STATUS = f"""
INSERT INTO commands VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device, id) DO UPDATE SET
    type = excluded.type, version = excluded.version, status = excluded.status, ts = excluded.ts, body = excluded.body,
    seen = excluded.seen
WHERE {NEWER_STATUS}
"""  # noqa: S608 - a constant of ours
HISTORY = "INSERT OR IGNORE INTO history VALUES (?, ?, ?, ?)"
SHORTEN = f"""
DELETE FROM history WHERE device = :device AND id = :id AND version <= (
    SELECT version FROM history WHERE device = :device AND id = :id ORDER BY version DESC LIMIT 1 OFFSET {MAX_HISTORY})
"""  # noqa: S608 - a constant of ours
ALARM = """
INSERT INTO alarms VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (device, type) DO UPDATE SET
    severity = excluded.severity, ts = excluded.ts, body = excluded.body, seen = excluded.seen
"""
SAMPLE = """
INSERT INTO telemetry VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device, boot, seq) DO UPDATE SET
    ts = excluded.ts, dated = 1
WHERE excluded.dated > telemetry.dated
"""
UNSETTLE = "INSERT OR IGNORE INTO unsettled VALUES (?, ?, ?, ?)"
UNDIGEST = "DELETE FROM digests WHERE device = ? AND grp = ? AND slot = ?"
SETTLED = "SELECT device, grp, slot FROM unsettled WHERE since < ? ORDER BY since LIMIT ?"
OF_SLOT = "telemetry WHERE device = ? AND grp = ? AND ts >= ? AND ts < ?"
DIGEST = "INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?, ?)"
DEVICES = """
SELECT d.tenant, d.name, d.online, d.since, d.agent, d.board, d.model,
    (SELECT count(*) FROM alarms a WHERE a.device = d.id) AS alarms,
    t.ts, json_extract(t.body, '$.temperature_celsius'), json_extract(t.body, '$.action'),
    json_extract(t.body, '$.rule'), json_extract(t.body, '$.delta_t_celsius'), json_extract(t.body, '$.charge'),
    json_extract(t.body, '$.power_watts'), json_extract(t.body, '$.power_is_modelled'), c.id, c.type, c.status, c.ts
FROM devices d LEFT JOIN commands c ON c.device = d.id AND c.id = (
    SELECT max(m.id) FROM commands m WHERE m.device = d.id)
LEFT JOIN telemetry t ON t.id = (
    SELECT n.id FROM telemetry n WHERE n.device = d.id AND n.grp = 'board' AND n.ts > :oldest AND n.ts <= :newest
    ORDER BY n.ts DESC LIMIT 1)
WHERE (d.tenant, d.name) > (:tenant_after, :name_after) AND (:tenant = '' OR d.tenant = :tenant)
    AND substr(d.name, 1, length(:prefix)) = :prefix
    AND (:online IS NULL OR d.online = :online) AND (:alarmed IS NULL OR (alarms > 0) = :alarmed)
ORDER BY d.tenant, d.name LIMIT :limit
"""
TRIM_COMMANDS = f"""
DELETE FROM commands WHERE rowid IN (
    SELECT rowid FROM commands WHERE seen < ? AND status IN {ENDED} ORDER BY seen LIMIT {TRIM_ROWS})
RETURNING device, id
"""  # noqa: S608 - constants of this module
TRIM = f"""
DELETE FROM telemetry WHERE id IN (SELECT id FROM telemetry ORDER BY id LIMIT {TRIM_ROWS}) AND (:all OR received < :t)
"""  # noqa: S608 - a constant of this module
TRIM_DIGESTS = "DELETE FROM digests WHERE newest < coalesce((SELECT min(id) FROM telemetry), newest + 1)"
