"""Schema 1, second part: the functions that write, each a whole transaction in one round trip.

A batch of commits is one call of ``commit_1``: no lock ever waits for a node to say the next word,
so that a node that stops between two statements holds nobody up. Every check is part of the
statement that writes, and the count of changed rows says whether every check held. If one did not,
the function raises ``KP…`` and the whole batch was never there; the caller finds the culprit.

A function's name ends in the number of its signature. A later signature is a new function beside
the old one, so that nodes of two versions write side by side.

Every call first marks its writer's row with the batch's number, its ``xid`` and its result, under
the generation of the connection: that settles what became of a batch whose answer was lost, and
shuts out a connection that was given up.

Locks are taken in one order: the writer's row, shards, then rows whose owner is one of those
shards. Only list items and effects can meet those of other shards; callers sort them.
"""

from __future__ import annotations

from typing import Final

STALE_WRITER: Final = "KP001"
"""The connection was given up: a later one took its writer's row."""
FENCED: Final = "KP002"
"""A shard's epoch is not the one that was carried."""
REFUSED: Final = "KP003"
"""A check did not hold."""
CROWDED: Final = "KP004"
"""A tenant has as many calls as it may have."""

_TYPES: Final = (
    "CREATE TYPE fence_1 AS (shard integer, epoch bigint)",
    """CREATE TYPE actor_1 AS (tenant text, actor text, shard integer, epoch bigint,
        incarnation bigint, expected bigint, version bigint, schema_version bigint, events bigint,
        floored bigint, now_ms bigint, tombstoned boolean, has_state boolean, checksum bigint,
        state bytea)""",
    """CREATE TYPE event_1 AS (tenant text, actor text, behind bigint, shard integer, epoch bigint,
        at_ms bigint, kind text, checksum bigint, body bytea)""",
    """CREATE TYPE reply_1 AS (tenant text, actor text, incarnation bigint, method text, key text,
        shard integer, epoch bigint, request text, expires_ms bigint, checksum bigint,
        reply bytea)""",
    "CREATE TYPE consumed_1 AS (message_id bigint, receiver text)",
    """CREATE TYPE call_end_1 AS (message_id bigint, tenant text, shard integer, state text,
        ended_ms bigint, expires_ms bigint, checksum bigint, body bytea)""",
    """CREATE TYPE send_1 AS (tenant text, shard integer, epoch bigint, receiver_shard integer,
        sender text, receiver text, not_before_ms bigint, checksum bigint, body bytea)""",
    """CREATE TYPE fired_1 AS (actor text, incarnation bigint, name text, due_ms bigint)""",
    """CREATE TYPE reminder_1 AS (tenant text, actor text, incarnation bigint, name text,
        shard integer, epoch bigint, due_ms bigint, checksum bigint, body bytea)""",
    "CREATE TYPE own_key_1 AS (actor text, incarnation bigint, key text)",
    """CREATE TYPE kv_1 AS (tenant text, actor text, incarnation bigint, key text, shard integer,
        epoch bigint, checksum bigint, value bytea)""",
    """CREATE TYPE effect_1 AS (tenant text, effect_id text, actor text, incarnation bigint,
        shard integer, epoch bigint, kind text, state text, is_open boolean, digest text,
        attempt bigint, session text, due_ms bigint, created_ms bigint, updated_ms bigint,
        checksum bigint, body bytea)""",
    """CREATE TYPE list_item_1 AS (tenant text, collection text, item_id text, sort_key text,
        owner text, incarnation bigint, version bigint, shard integer, epoch bigint,
        deleted_ms bigint, checksum bigint, body bytea)""",
    """CREATE TYPE list_gone_1 AS (tenant text, collection text, item_id text, owner text,
        deleted_ms bigint)""",
    """CREATE TYPE audit_1 AS (shard integer, sequence bigint, tenant text, epoch bigint,
        at_ms bigint, actor text, kind text, principal text, body bytea, previous bytea,
        hash bytea)""",
    """CREATE TYPE chunk_1 AS (tenant text, actor text, effect_id text, attempt bigint,
        sequence bigint, shard integer, epoch bigint, is_first boolean, kind text, checksum bigint,
        body bytea)""",
    """CREATE TYPE call_1 AS (tenant text, call_id text, actor text, method text, principal text,
        key text, request text, ordinal bigint, shard integer, epoch bigint, created_ms bigint,
        checksum bigint, body bytea)""",
    "CREATE TYPE call_key_1 AS (tenant text, call_id text)",
)

_MARK: Final = """
CREATE FUNCTION mark_1(p_holder text, p_writer integer, p_generation bigint, p_batch bigint,
    p_at_ms bigint, p_result bigint[]) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    taken bigint;
BEGIN
    UPDATE writers SET batch = p_batch, result = p_result, at_ms = p_at_ms,
        number = pg_current_xact_id()::text::bigint
            + (SELECT value::bigint FROM meta WHERE name = 'base')
        WHERE holder = p_holder AND writer = p_writer AND generation = p_generation
        RETURNING number INTO taken;
    IF taken IS NULL THEN
        RAISE EXCEPTION 'this connection was given up' USING ERRCODE = 'KP001';
    END IF;
    RETURN taken;
END $$"""

_FENCE: Final = """
CREATE FUNCTION fence_off_1(p_fences fence_1[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    found bigint;
BEGIN
    SELECT count(*) INTO found FROM (
        SELECT 1 FROM unnest(p_fences) f JOIN shards s ON s.shard = f.shard AND s.epoch = f.epoch
        ORDER BY s.shard FOR SHARE OF s) held;
    IF found <> cardinality(p_fences) THEN
        RAISE EXCEPTION 'an epoch has moved' USING ERRCODE = 'KP002';
    END IF;
END $$"""

_CHECK: Final = """
CREATE FUNCTION check_1(p_found bigint, p_wanted bigint, p_what text) RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    IF p_found <> p_wanted THEN
        RAISE EXCEPTION '% of % held', p_found, p_wanted USING ERRCODE = 'KP003', DETAIL = p_what;
    END IF;
END $$"""

# The rows were linked outside, from a head that may have been another's: the chain is looked at.
_LINK: Final = """
CREATE FUNCTION link_audit_1(p_audit audit_1[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    found bigint;
BEGIN
    INSERT INTO audit SELECT u.* FROM unnest(p_audit) u;
    SELECT count(*) INTO found FROM unnest(p_audit) u
        LEFT JOIN audit a ON a.shard = u.shard AND a.sequence = u.sequence - 1
        WHERE u.previous = coalesce(a.hash, decode(repeat('00', 32), 'hex'))
        AND (a.hash IS NOT NULL) = (u.sequence > 1);
    PERFORM check_1(found, cardinality(p_audit), 'audit');
END $$"""

# What `commit_1` does step by step. Each block is skipped when its array is empty.
_ACTORS: Final = """
    IF cardinality(p_created) > 0 THEN
        INSERT INTO actors AS a SELECT u.tenant, u.actor, u.shard, u.epoch, u.incarnation,
            u.version, u.schema_version, u.events, coalesce(u.floored, 0), u.now_ms, u.tombstoned,
            u.checksum, u.state FROM unnest(p_created) u
            ON CONFLICT (actor) DO UPDATE SET epoch = excluded.epoch,
            incarnation = excluded.incarnation, version = excluded.version,
            schema_version = excluded.schema_version,
            event_sequence = a.event_sequence + excluded.event_sequence,
            event_floor = CASE WHEN excluded.tombstoned
                THEN a.event_sequence + excluded.event_floor ELSE a.event_floor END,
            updated_ms = excluded.updated_ms, tombstoned = excluded.tombstoned,
            checksum = excluded.checksum, state = excluded.state
            WHERE a.tombstoned AND a.incarnation < excluded.incarnation
            AND a.shard = excluded.shard;
        GET DIAGNOSTICS found = ROW_COUNT;
        PERFORM check_1(found, cardinality(p_created), 'created');
    END IF;
    IF cardinality(p_changed) > 0 THEN
        UPDATE actors a SET epoch = u.epoch, version = u.version,
            schema_version = CASE WHEN u.has_state THEN u.schema_version ELSE a.schema_version END,
            event_sequence = a.event_sequence + u.events,
            event_floor = coalesce(a.event_sequence + u.floored, a.event_floor),
            updated_ms = u.now_ms, tombstoned = u.tombstoned,
            checksum = CASE WHEN u.has_state THEN u.checksum ELSE a.checksum END,
            state = CASE WHEN u.has_state THEN u.state ELSE a.state END
            FROM unnest(p_changed) u
            WHERE a.actor = u.actor AND a.shard = u.shard AND a.incarnation = u.incarnation
            AND a.version = u.expected AND NOT a.tombstoned;
        GET DIAGNOSTICS found = ROW_COUNT;
        PERFORM check_1(found, cardinality(p_changed), 'changed');
    END IF;
    IF p_deletes THEN
        INSERT INTO purges (tenant, actor, incarnation, shard, epoch, event_floor, at_ms)
            SELECT a.tenant, a.actor, a.incarnation, a.shard, a.epoch, a.event_floor, u.now_ms
            FROM unnest(p_created || p_changed) u JOIN actors a ON a.actor = u.actor
            WHERE u.tombstoned;
    END IF;"""

_CAUSES: Final = """
    IF cardinality(p_consumed) > 0 THEN
        DELETE FROM outbox o USING unnest(p_consumed) u
            WHERE o.message_id = u.message_id AND o.receiver = u.receiver;
        GET DIAGNOSTICS found = ROW_COUNT;
        PERFORM check_1(found, cardinality(p_consumed), 'consumed');
    END IF;
    IF cardinality(p_ended) > 0 THEN
        UPDATE calls c SET state = u.state, ended_ms = u.ended_ms, expires_ms = u.expires_ms,
            checksum = u.checksum, body = u.body FROM unnest(p_ended) u
            WHERE c.message_id = u.message_id AND c.state = 'pending';
    END IF;
    IF cardinality(p_fired) > 0 THEN
        DELETE FROM reminders r USING unnest(p_fired) u WHERE r.actor = u.actor
            AND r.incarnation = u.incarnation AND r.name = u.name AND r.due_ms = u.due_ms;
        GET DIAGNOSTICS found = ROW_COUNT;
        PERFORM check_1(found, cardinality(p_fired), 'fired');
    END IF;"""

_ROWS: Final = """
    IF cardinality(p_reminders) > 0 THEN
        INSERT INTO reminders SELECT u.* FROM unnest(p_reminders) u
            ON CONFLICT (actor, incarnation, name) DO UPDATE SET epoch = excluded.epoch,
            due_ms = excluded.due_ms, checksum = excluded.checksum, body = excluded.body;
    END IF;
    IF cardinality(p_reminders_gone) > 0 THEN
        DELETE FROM reminders r USING unnest(p_reminders_gone) u WHERE r.actor = u.actor
            AND r.incarnation = u.incarnation AND r.name = u.key;
    END IF;
    IF cardinality(p_kv) > 0 THEN
        INSERT INTO kv SELECT u.* FROM unnest(p_kv) u
            ON CONFLICT (actor, incarnation, key) DO UPDATE SET epoch = excluded.epoch,
            checksum = excluded.checksum, value = excluded.value;
    END IF;
    IF cardinality(p_kv_gone) > 0 THEN
        DELETE FROM kv k USING unnest(p_kv_gone) u
            WHERE k.actor = u.actor AND k.incarnation = u.incarnation AND k.key = u.key;
    END IF;
    IF cardinality(p_effects) > 0 THEN
        INSERT INTO effects AS e SELECT u.* FROM unnest(p_effects) u
            ON CONFLICT (tenant, effect_id) DO UPDATE SET epoch = excluded.epoch,
            kind = excluded.kind, state = excluded.state, is_open = excluded.is_open,
            digest = excluded.digest, attempt = excluded.attempt, session = excluded.session,
            due_ms = excluded.due_ms, created_ms = excluded.created_ms,
            updated_ms = excluded.updated_ms, checksum = excluded.checksum, body = excluded.body
            WHERE e.actor = excluded.actor AND e.incarnation = excluded.incarnation;
        GET DIAGNOSTICS found = ROW_COUNT;
        PERFORM check_1(found, cardinality(p_effects), 'effects');
    END IF;
    IF cardinality(p_lists) > 0 THEN
        INSERT INTO lists AS l SELECT u.* FROM unnest(p_lists) u
            ON CONFLICT (tenant, collection, item_id) DO UPDATE SET sort_key = excluded.sort_key,
            owner = excluded.owner, incarnation = excluded.incarnation, version = excluded.version,
            shard = excluded.shard, epoch = excluded.epoch, deleted_ms = excluded.deleted_ms,
            checksum = excluded.checksum, body = excluded.body
            WHERE l.owner = excluded.owner OR l.deleted_ms IS NOT NULL OR NOT EXISTS (
                SELECT 1 FROM actors a WHERE a.actor = l.owner AND a.incarnation = l.incarnation
                AND NOT a.tombstoned);
        GET DIAGNOSTICS found = ROW_COUNT;
        PERFORM check_1(found, cardinality(p_lists), 'lists');
    END IF;
    IF cardinality(p_lists_gone) > 0 THEN
        UPDATE lists l SET deleted_ms = u.deleted_ms, checksum = 0, body = ''
            FROM unnest(p_lists_gone) u WHERE l.tenant = u.tenant AND l.collection = u.collection
            AND l.item_id = u.item_id AND l.owner = u.owner AND l.deleted_ms IS NULL;
    END IF;
    IF cardinality(p_replies) > 0 THEN
        INSERT INTO replies AS r SELECT u.* FROM unnest(p_replies) u
            ON CONFLICT (actor, incarnation, method, key) DO UPDATE SET epoch = excluded.epoch,
            request = excluded.request, expires_ms = excluded.expires_ms,
            checksum = excluded.checksum, reply = excluded.reply
            WHERE r.expires_ms <= p_now_ms_min;
        GET DIAGNOSTICS found = ROW_COUNT;
        PERFORM check_1(found, cardinality(p_replies), 'replies');
    END IF;"""

_APPENDS: Final = """
    IF cardinality(p_events) > 0 THEN
        INSERT INTO events SELECT (taken << 20) | u.ordinality, u.tenant, u.actor,
            a.event_sequence - u.behind, u.shard, u.epoch, u.at_ms, u.kind, u.checksum, u.body
            FROM unnest(p_events) WITH ORDINALITY u JOIN actors a ON a.actor = u.actor;
        sequences := ARRAY(SELECT a.event_sequence FROM unnest(p_appended) WITH ORDINALITY
            u (actor, place) JOIN actors a ON a.actor = u.actor ORDER BY u.place);
        UPDATE writers SET result = sequences WHERE holder = p_holder AND writer = p_writer;
    END IF;
    IF cardinality(p_sends) > 0 THEN
        INSERT INTO outbox SELECT (taken << 20) | u.ordinality, u.tenant, u.shard, u.epoch,
            u.receiver_shard, u.sender, u.receiver, 0, u.not_before_ms, '', u.checksum, u.body
            FROM unnest(p_sends) WITH ORDINALITY u;
    END IF;
    IF cardinality(p_audit) > 0 THEN
        PERFORM link_audit_1(p_audit);
    END IF;
    IF cardinality(p_chunks) > 0 THEN
        SELECT count(*) INTO found FROM unnest(p_chunks) u JOIN actors a ON a.actor = u.actor
            WHERE NOT u.is_first OR NOT EXISTS (SELECT 1 FROM streams s WHERE s.actor = u.actor
            AND s.incarnation = a.incarnation AND s.effect_id = u.effect_id
            AND s.attempt = u.attempt AND s.sequence >= u.sequence);
        PERFORM check_1(found, cardinality(p_chunks), 'stream');
        INSERT INTO streams SELECT u.tenant, u.actor, u.effect_id, u.attempt, u.sequence,
            a.incarnation, u.shard, u.epoch, u.kind, u.checksum, u.body
            FROM unnest(p_chunks) u JOIN actors a ON a.actor = u.actor AND NOT a.tombstoned;
        GET DIAGNOSTICS found = ROW_COUNT;
        PERFORM check_1(found, cardinality(p_chunks), 'stream');
    END IF;"""

_CALLS: Final = """
    IF cardinality(p_forgotten) > 0 THEN
        WITH gone AS (DELETE FROM calls c USING unnest(p_forgotten) u WHERE c.tenant = u.tenant
            AND c.call_id = u.call_id AND c.expires_ms > 0 RETURNING c.tenant, c.shard),
            counted AS (SELECT tenant, shard, count(*) AS gone FROM gone GROUP BY tenant, shard)
        UPDATE call_counts k SET kept = k.kept - n.gone FROM counted n
            WHERE k.tenant = n.tenant AND k.shard = n.shard;
    END IF;
    IF cardinality(p_calls) > 0 THEN
        INSERT INTO calls SELECT u.tenant, u.call_id, u.actor, u.method, u.principal, u.key,
            u.request, (taken << 20) | u.ordinal, u.shard, u.epoch, 'pending', u.created_ms, 0, 0,
            u.checksum, u.body FROM unnest(p_calls) u;
        INSERT INTO call_counts AS k SELECT u.tenant, u.shard, count(*) FROM unnest(p_calls) u
            GROUP BY u.tenant, u.shard ORDER BY u.tenant, u.shard
            ON CONFLICT (tenant, shard) DO UPDATE SET kept = k.kept + excluded.kept;
        FOR crowded IN SELECT t.tenant, n.kept - p_kept_max AS excess
                FROM (SELECT DISTINCT u.tenant FROM unnest(p_calls) u) t
                JOIN LATERAL (SELECT sum(k.kept) AS kept FROM call_counts k
                    WHERE k.tenant = t.tenant) n ON n.kept > p_kept_max LOOP
            WITH places AS (SELECT DISTINCT u.shard FROM unnest(p_calls) u
                    WHERE u.tenant = crowded.tenant),
                oldest AS (SELECT c.call_id FROM places p CROSS JOIN LATERAL (
                    SELECT d.call_id, d.expires_ms FROM calls d WHERE d.tenant = crowded.tenant
                    AND d.shard = p.shard AND d.expires_ms > 0
                    ORDER BY d.expires_ms LIMIT crowded.excess) c
                    ORDER BY c.expires_ms LIMIT crowded.excess),
                gone AS (DELETE FROM calls c USING oldest o WHERE c.tenant = crowded.tenant
                    AND c.call_id = o.call_id RETURNING c.shard),
                counted AS (SELECT shard, count(*) AS gone FROM gone GROUP BY shard),
                moved AS (UPDATE call_counts k SET kept = k.kept - n.gone FROM counted n
                    WHERE k.tenant = crowded.tenant AND k.shard = n.shard RETURNING n.gone)
            SELECT coalesce(sum(gone), 0) INTO found FROM moved;
            IF found < crowded.excess THEN
                RAISE EXCEPTION 'a tenant keeps too many calls' USING ERRCODE = 'KP004';
            END IF;
        END LOOP;
    END IF;"""

# Housework, in proportion to what was written, so that nothing that expired can pile up.
_EXPIRE: Final = """
    IF cardinality(p_replies) > 0 THEN
        DELETE FROM replies WHERE ctid = ANY (ARRAY(SELECT ctid FROM replies
            WHERE expires_ms <= p_now_ms ORDER BY expires_ms LIMIT 2 * cardinality(p_replies)
            FOR UPDATE SKIP LOCKED));
    END IF;
    IF p_list_deletions > 0 THEN
        DELETE FROM lists WHERE ctid = ANY (ARRAY(SELECT ctid FROM lists
            WHERE deleted_ms IS NOT NULL AND deleted_ms <= p_now_ms - p_list_kept_ms
            ORDER BY deleted_ms LIMIT 2 * p_list_deletions FOR UPDATE SKIP LOCKED));
    END IF;
    IF cardinality(p_calls) + cardinality(p_ended) > 0 THEN
        WITH places AS (SELECT DISTINCT tenant, shard FROM
                (SELECT u.tenant, u.shard FROM unnest(p_calls) u
                UNION ALL SELECT u.tenant, u.shard FROM unnest(p_ended) u) written),
            expired AS (SELECT c.tenant, c.call_id FROM places p CROSS JOIN LATERAL (
                SELECT d.tenant, d.call_id FROM calls d WHERE d.tenant = p.tenant
                AND d.shard = p.shard AND d.expires_ms > 0 AND d.expires_ms <= p_now_ms
                LIMIT 2 * (cardinality(p_calls) + cardinality(p_ended))) c
                LIMIT 2 * (cardinality(p_calls) + cardinality(p_ended))),
            gone AS (DELETE FROM calls c USING expired x WHERE c.tenant = x.tenant
                AND c.call_id = x.call_id RETURNING c.tenant, c.shard),
            counted AS (SELECT tenant, shard, count(*) AS gone FROM gone GROUP BY tenant, shard)
        UPDATE call_counts k SET kept = k.kept - n.gone FROM counted n
            WHERE k.tenant = n.tenant AND k.shard = n.shard;
    END IF;"""

_COMMIT: Final = f"""
CREATE FUNCTION commit_1(p_holder text, p_writer integer, p_generation bigint, p_batch bigint,
    p_now_ms bigint, p_now_ms_min bigint, p_kept_max bigint, p_list_kept_ms bigint,
    p_list_deletions integer, p_deletes boolean, p_fences fence_1[], p_created actor_1[],
    p_changed actor_1[], p_consumed consumed_1[], p_ended call_end_1[], p_fired fired_1[],
    p_reminders reminder_1[], p_reminders_gone own_key_1[], p_kv kv_1[], p_kv_gone own_key_1[],
    p_effects effect_1[], p_lists list_item_1[], p_lists_gone list_gone_1[], p_replies reply_1[],
    p_events event_1[], p_appended text[], p_sends send_1[], p_audit audit_1[],
    p_chunks chunk_1[], p_forgotten call_key_1[], p_calls call_1[],
    OUT taken bigint, OUT sequences bigint[]) LANGUAGE plpgsql AS $$
DECLARE
    found bigint;
    crowded record;
BEGIN
    sequences := '{{}}';
    taken := mark_1(p_holder, p_writer, p_generation, p_batch, p_now_ms, sequences);
    PERFORM fence_off_1(p_fences);
{_ACTORS}{_CAUSES}{_ROWS}{_APPENDS}{_CALLS}{_EXPIRE}
END $$"""

STATEMENTS: Final = (*_TYPES, _MARK, _FENCE, _CHECK, _LINK, _COMMIT)
