"""Schema 1, third part: the functions of writes that come one by one.

Each is a whole transaction in one round trip, like ``commit_1``, and marks its writer's row the
same way; ``writers.result`` keeps its value.
"""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

from typing import Final

_MARKED: Final = (
    "p_holder text, p_writer integer, p_generation bigint, p_batch bigint, p_at_ms bigint"
)
_MARK: Final = "taken := mark_1(p_holder, p_writer, p_generation, p_batch, p_at_ms, '{}');"
_SETTLE: Final = (
    "UPDATE writers SET result = ARRAY[value] WHERE holder = p_holder AND writer = p_writer;"
)


def _function(name: str, parameters: str, body: str) -> str:
    """Return a function whose ``value`` is returned and kept, after its mark and its fence."""
    return f"""
CREATE FUNCTION {name}({_MARKED}, p_fences fence_1[], {parameters}) RETURNS bigint
    LANGUAGE plpgsql AS $$
DECLARE
    taken bigint;
    value bigint := 0;
BEGIN
    {_MARK}
    PERFORM fence_off_1(p_fences);
{body}
    {_SETTLE}
    RETURN value;
END $$"""


_FAIL_MESSAGE: Final = _function(
    "fail_message_1",
    "p_message_id bigint, p_error text, p_retry_at_ms bigint",
    """
    IF p_retry_at_ms IS NOT NULL THEN
        UPDATE outbox SET attempts = attempts + 1, not_before_ms = p_retry_at_ms, error = p_error
            WHERE message_id = p_message_id;
    ELSE
        WITH gone AS (DELETE FROM outbox WHERE message_id = p_message_id RETURNING *)
        INSERT INTO dead_letters SELECT message_id, tenant, shard, epoch, receiver_shard, sender,
            receiver, attempts + 1, p_error, p_at_ms, checksum, body FROM gone;
    END IF;
    GET DIAGNOSTICS value = ROW_COUNT;""",
)

_BURY_REMINDER: Final = _function(
    "bury_reminder_1",
    "p_actor text, p_name text, p_due_ms bigint, p_attempts bigint, p_error text",
    """
    WITH gone AS (DELETE FROM reminders r USING actors a WHERE a.actor = r.actor
        AND a.incarnation = r.incarnation AND r.actor = p_actor AND r.name = p_name
        AND r.due_ms = p_due_ms RETURNING r.*)
    INSERT INTO dead_letters SELECT (taken << 20) | 1, tenant, shard, epoch, shard, actor, actor,
        p_attempts, p_error, p_at_ms, checksum, body FROM gone;
    GET DIAGNOSTICS value = ROW_COUNT;""",
)

_REVIVE_MESSAGE: Final = _function(
    "revive_message_1",
    "p_tenant text, p_message_id bigint",
    """
    WITH gone AS (DELETE FROM dead_letters WHERE tenant = p_tenant AND message_id = p_message_id
        RETURNING *)
    INSERT INTO outbox SELECT (taken << 20) | 1, tenant, shard, epoch, receiver_shard, sender,
        receiver, 0, 0, '', checksum, body FROM gone;
    IF FOUND THEN
        value := (taken << 20) | 1;
        UPDATE calls SET message_id = value, state = 'pending', ended_ms = 0, expires_ms = 0,
            checksum = 0, body = '' WHERE message_id = p_message_id AND state = 'dead';
    END IF;""",
)

_END_CALL: Final = _function(
    "end_call_1",
    "p_message_id bigint, p_state text, p_expires_ms bigint, p_checksum bigint, p_body bytea,"
    " p_error text",
    """
    IF p_state = 'dead' THEN
        INSERT INTO dead_letters SELECT message_id, tenant, shard, epoch, receiver_shard, sender,
            receiver, attempts + 1, p_error, p_at_ms, checksum, body FROM outbox
            WHERE message_id = p_message_id;
    END IF;
    DELETE FROM outbox WHERE message_id = p_message_id;
    IF FOUND THEN
        value := 1;
        UPDATE calls SET state = p_state, ended_ms = p_at_ms, expires_ms = p_expires_ms,
            checksum = p_checksum, body = p_body
            WHERE message_id = p_message_id AND state = 'pending';
    END IF;""",
)

_PAUSE_ACTOR: Final = _function(
    "pause_actor_1",
    "p_actor text, p_tenant text, p_principal text, p_paused_max bigint, p_audit audit_1[]",
    """
    IF NOT EXISTS (SELECT 1 FROM pauses WHERE actor = p_actor) THEN
        IF (SELECT count(*) FROM pauses) >= p_paused_max THEN
            RAISE EXCEPTION 'too many actors are paused' USING ERRCODE = 'KP004';
        END IF;
        INSERT INTO pauses SELECT p_actor, p_tenant, f.shard, f.epoch, p_principal, p_at_ms
            FROM unnest(p_fences) f;
        PERFORM link_audit_1(p_audit);
        value := 1;
    END IF;""",
)

_RESUME_ACTOR: Final = _function(
    "resume_actor_1",
    "p_actor text, p_audit audit_1[]",
    """
    DELETE FROM pauses WHERE actor = p_actor;
    IF FOUND THEN
        PERFORM link_audit_1(p_audit);
        value := 1;
    END IF;""",
)

_RELEASE_STORE: Final = _function(
    "release_store_1",
    "p_name text",
    """
    DELETE FROM meta WHERE name = p_name;
    GET DIAGNOSTICS value = ROW_COUNT;""",
)

_PURGED: Final = "\n".join(
    f"""
    DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table}
        WHERE actor = purged.actor AND incarnation = purged.incarnation LIMIT unused));
    GET DIAGNOSTICS changed = ROW_COUNT;
    unused := unused - changed;"""
    for table in ("kv", "effects", "reminders", "replies", "streams")
)
# Nobody waits for it and doing it twice changes nothing, so it need not be durable at once.
_PURGE: Final = f"""
CREATE FUNCTION purge_1(p_shards integer[], p_rows bigint) RETURNS boolean
    LANGUAGE plpgsql AS $$
DECLARE
    purged purges%ROWTYPE;
    unused bigint := p_rows;
    changed bigint;
BEGIN
    SELECT * INTO purged FROM purges WHERE shard = ANY (p_shards) ORDER BY purge LIMIT 1
        FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
{_PURGED}
    DELETE FROM events WHERE position = ANY (ARRAY(SELECT position FROM events
        WHERE actor = purged.actor AND sequence <= purged.event_floor LIMIT unused));
    GET DIAGNOSTICS changed = ROW_COUNT;
    unused := unused - changed;
    UPDATE lists SET deleted_ms = purged.at_ms, checksum = 0, body = ''
        WHERE ctid = ANY (ARRAY(SELECT ctid FROM lists WHERE owner = purged.actor
        AND incarnation = purged.incarnation AND deleted_ms IS NULL LIMIT unused FOR UPDATE));
    GET DIAGNOSTICS changed = ROW_COUNT;
    unused := unused - changed;
    IF unused > 0 THEN
        DELETE FROM purges WHERE purge = purged.purge;
    END IF;
    RETURN EXISTS (SELECT 1 FROM purges WHERE shard = ANY (p_shards));
END $$"""

STATEMENTS: Final = (
    _FAIL_MESSAGE,
    _BURY_REMINDER,
    _REVIVE_MESSAGE,
    _END_CALL,
    _PAUSE_ACTOR,
    _RESUME_ACTOR,
    _RELEASE_STORE,
    _PURGE,
)
