"""The statements of the PostgreSQL store."""

from __future__ import annotations

from service.fleet.store import ENDED, NEWER_STATUS
from service.fleet.store_history import MAX_HISTORY

SCHEMA = """
CREATE TABLE temperd_schema (version INTEGER NOT NULL);
CREATE TABLE devices (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant TEXT COLLATE "C" NOT NULL, name TEXT COLLATE "C" NOT NULL,
    online BOOLEAN NOT NULL DEFAULT false, session BIGINT NOT NULL DEFAULT -1, connection BIGINT NOT NULL DEFAULT -1,
    since DOUBLE PRECISION, agent TEXT NOT NULL DEFAULT '', board TEXT NOT NULL DEFAULT '',
    model TEXT NOT NULL DEFAULT '', state_version BIGINT NOT NULL DEFAULT -1, UNIQUE (tenant, name)
);
CREATE TABLE readers (name TEXT PRIMARY KEY);
CREATE TABLE births (device BIGINT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE commands (
    device BIGINT NOT NULL, id TEXT COLLATE "C" NOT NULL, type TEXT NOT NULL, version BIGINT NOT NULL,
    status TEXT NOT NULL, ts DOUBLE PRECISION NOT NULL, body TEXT NOT NULL, seen DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (device, id)
);
CREATE INDEX commands_by_age ON commands (seen);
CREATE TABLE alarms (
    device BIGINT NOT NULL, type TEXT COLLATE "C" NOT NULL, severity TEXT NOT NULL, ts DOUBLE PRECISION NOT NULL,
    body TEXT NOT NULL, seen DOUBLE PRECISION NOT NULL, PRIMARY KEY (device, type)
);
"""
SINCE_2 = """
CREATE TABLE history (
    device BIGINT NOT NULL, id TEXT COLLATE "C" NOT NULL, version BIGINT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (device, id, version)
);
CREATE TABLE digests (
    device BIGINT NOT NULL, grp TEXT COLLATE "C" NOT NULL, slot BIGINT NOT NULL, head TEXT NOT NULL,
    numbers BYTEA NOT NULL, PRIMARY KEY (device, grp, slot)
);
CREATE INDEX digests_by_time ON digests (slot);
CREATE TABLE unsettled (
    device BIGINT NOT NULL, grp TEXT COLLATE "C" NOT NULL, slot BIGINT NOT NULL, since DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (device, grp, slot)
);
CREATE INDEX unsettled_by_age ON unsettled (since);
"""
TELEMETRY = """
CREATE TABLE telemetry (
    device BIGINT NOT NULL, grp TEXT COLLATE "C" NOT NULL, ts TIMESTAMPTZ NOT NULL, boot BIGINT NOT NULL,
    seq BIGINT NOT NULL, mono_ms BIGINT NOT NULL, received TIMESTAMPTZ NOT NULL, body JSONB NOT NULL,
    dated BOOLEAN NOT NULL, PRIMARY KEY (device, boot, seq, ts)
)"""
PRESENCE = """
UPDATE devices SET online = %(online)s, session = %(session)s, connection = %(connection)s, since = %(since)s
WHERE id = %(id)s AND ((%(session)s, %(connection)s, NOT %(online)s) > (session, connection, NOT online)
  OR (%(online)s AND %(session)s < session AND %(since)s > since))
"""
BIRTH = "UPDATE devices SET agent = %s, board = %s, model = %s, state_version = %s WHERE id = %s"
BIRTH_BODY = "INSERT INTO births VALUES (%s, %s) ON CONFLICT (device) DO UPDATE SET body = excluded.body"
STATUS = f"""
INSERT INTO commands VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (device, id) DO UPDATE SET
    type = excluded.type, version = excluded.version, status = excluded.status, ts = excluded.ts, body = excluded.body,
    seen = excluded.seen
WHERE {NEWER_STATUS}
"""  # noqa: S608 - a constant of ours
HISTORY = "INSERT INTO history VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING"
SHORTEN = f"""
DELETE FROM history WHERE device = %(device)s AND id = %(id)s AND version <= (
    SELECT version FROM history WHERE device = %(device)s AND id = %(id)s
    ORDER BY version DESC LIMIT 1 OFFSET {MAX_HISTORY})
"""  # noqa: S608 - a constant of ours
ALARM = """
INSERT INTO alarms VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (device, type) DO UPDATE SET
    severity = excluded.severity, ts = excluded.ts, body = excluded.body, seen = excluded.seen
"""
ROWS = """unnest(
    %(device)s::bigint[], %(grp)s::text[], %(ts)s::timestamptz[], %(boot)s::bigint[], %(seq)s::bigint[],
    %(mono)s::bigint[], %(body)s::text[], %(dated)s::boolean[]) AS n (d, g, t, b, s, m, v, k)"""
# A partitioned table knows no key without its time. What had no right time, or one far off, is replaced when it comes
# again; what was dated twice by a board differs by less than an hour.
REPLACED = f"""
DELETE FROM telemetry_other o USING {ROWS} WHERE o.device = n.d AND o.boot = n.b AND o.seq = n.s
    AND (n.k OR NOT o.dated)
RETURNING o.device, o.grp, (extract(epoch FROM o.ts) * 1000)::bigint
"""  # noqa: S608 - a constant of this module
SAMPLES = f"""
INSERT INTO telemetry SELECT d, g, t, b, s, m, %(received)s, v::jsonb, k FROM {ROWS}
WHERE NOT EXISTS (
    SELECT 1 FROM telemetry o WHERE o.device = d AND o.boot = b AND o.seq = s
    AND o.ts > t - interval '1 hour' AND o.ts < t + interval '1 hour')
ORDER BY d, b, s ON CONFLICT DO NOTHING
"""  # noqa: S608 - a constant of this module
BY_TIME = "CREATE INDEX telemetry_by_time ON telemetry (device, grp, ts)"
SLOTS = "unnest(%(device)s::bigint[], %(grp)s::text[], %(slot)s::bigint[]) AS n (d, g, s)"
UNDIGEST = f"DELETE FROM digests USING {SLOTS} WHERE device = d AND grp = g AND slot = s"  # noqa: S608 - of this module
UNSETTLE = f"""
INSERT INTO unsettled SELECT d, g, s, %(since)s FROM {SLOTS} ORDER BY d, g, s ON CONFLICT DO NOTHING
"""  # noqa: S608 - a constant of this module
SETTLED = "SELECT device, grp, slot FROM unsettled WHERE since < %s ORDER BY since LIMIT %s"
DIGEST = """
INSERT INTO digests VALUES (%s, %s, %s, %s, %s) ON CONFLICT (device, grp, slot) DO UPDATE SET
    head = excluded.head, numbers = excluded.numbers
"""
DEVICES = """
SELECT d.tenant, d.name, d.online, d.since, d.agent, d.board, d.model, coalesce(a.number, 0),
    (extract(epoch FROM t.ts) * 1000)::bigint, t.body -> 'temperature_celsius', t.body ->> 'action',
    t.body ->> 'rule', t.body -> 'delta_t_celsius', t.body -> 'charge', t.body -> 'power_watts',
    t.body -> 'power_is_modelled', c.id, c.type, c.status, c.ts
FROM devices d LEFT JOIN (SELECT device, count(*) AS number FROM alarms GROUP BY device) a ON a.device = d.id
LEFT JOIN LATERAL (
    SELECT n.ts, n.body FROM telemetry n WHERE n.device = d.id AND n.grp = 'board'
    AND n.ts > %(oldest)s AND n.ts <= %(newest)s
    ORDER BY n.ts DESC LIMIT 1) t ON true
LEFT JOIN LATERAL (
    SELECT m.id, m.type, m.status, m.ts FROM commands m WHERE m.device = d.id ORDER BY m.id DESC LIMIT 1) c ON true
WHERE (d.tenant, d.name) > (%(tenant_after)s, %(name_after)s) AND (%(tenant)s = '' OR d.tenant = %(tenant)s)
    AND starts_with(d.name, %(prefix)s) AND (%(online)s::boolean IS NULL OR d.online = %(online)s)
    AND (%(alarmed)s::boolean IS NULL OR (coalesce(a.number, 0) > 0) = %(alarmed)s)
ORDER BY d.tenant, d.name LIMIT %(limit)s
"""
TRIM_COMMANDS = f"""
DELETE FROM commands WHERE ctid IN (SELECT ctid FROM commands WHERE seen < %s AND status IN {ENDED} LIMIT %s)
RETURNING device, id
"""  # noqa: S608 - a constant of ours
TRIM_OTHERS = """
DELETE FROM telemetry_other WHERE ctid IN (SELECT ctid FROM telemetry_other WHERE received < %s LIMIT %s)
RETURNING device, grp, (extract(epoch FROM ts) * 1000)::bigint
"""
PARTITIONS = """
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'telemetry'::regclass ORDER BY c.relname
"""
