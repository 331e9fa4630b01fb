"""Schema 1, fourth part: the functions that change who may write.

Each is a whole transaction in one round trip. A shard's row is locked before its epoch moves, so
that a batch that has passed its fence ends first, and every later one meets the new epoch.
"""

from __future__ import annotations

from typing import Final

SESSION_OVER: Final = "KP005"
"""The session has ended, or was never known."""

_CLAIM: Final = """
CREATE FUNCTION claim_1(p_session text, p_seen fence_1[], p_again boolean) RETURNS SETOF fence_1
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM sessions WHERE session = p_session AND ended_ms = 0 FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the session has ended' USING ERRCODE = 'KP005';
    END IF;
    PERFORM 1 FROM shards WHERE shard IN (SELECT shard FROM unnest(p_seen)) ORDER BY shard
        FOR UPDATE;
    RETURN QUERY UPDATE shards s SET epoch = s.epoch + 1, session = p_session
        FROM unnest(p_seen) u WHERE s.shard = u.shard AND s.session IN ('', p_session)
        AND (s.session = '' AND s.epoch = u.epoch
            -- What an earlier try took, whose answer was lost.
            OR p_again AND s.session = p_session AND s.epoch = u.epoch + 1)
        RETURNING s.shard, s.epoch;
END $$"""

# The epoch grows here too: what was let go of is not written to, even before somebody takes it.
_RELEASE: Final = """
CREATE FUNCTION release_1(p_session text, p_owned fence_1[]) RETURNS SETOF integer
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM shards WHERE shard IN (SELECT shard FROM unnest(p_owned)) ORDER BY shard
        FOR UPDATE;
    RETURN QUERY UPDATE shards s SET epoch = s.epoch + 1, session = ''
        FROM unnest(p_owned) u
        WHERE s.shard = u.shard AND s.epoch = u.epoch AND s.session = p_session
        RETURNING s.shard;
END $$"""

_END_SESSION: Final = """
CREATE FUNCTION end_session_1(p_session text, p_renewals bigint, p_now_ms bigint) RETURNS boolean
    LANGUAGE plpgsql AS $$
BEGIN
    UPDATE sessions SET ended_ms = greatest(p_now_ms, 1), state = 'stopped'
        WHERE session = p_session AND ended_ms = 0
        AND (p_renewals IS NULL OR renewals = p_renewals);
    IF EXISTS (SELECT 1 FROM sessions WHERE session = p_session AND ended_ms = 0) THEN
        RETURN false;
    END IF;
    PERFORM 1 FROM shards WHERE session = p_session ORDER BY shard FOR UPDATE;
    UPDATE shards SET epoch = epoch + 1, session = '' WHERE session = p_session;
    RETURN true;
END $$"""

STATEMENTS: Final = (_CLAIM, _RELEASE, _END_SESSION)
