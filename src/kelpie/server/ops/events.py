"""Event logs by cursor: a page, or a stream that goes on."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Final

import msgspec

from kelpie.core.errors import InvalidFieldError, KelpieError
from kelpie.core.ids import ActorId
from kelpie.core.limits import EVENT_PAGE_ROWS_MAX, INTEGER_MAX, STREAM_PING_INTERVAL_MS
from kelpie.server.errors import error_body
from kelpie.server.http import Response, Stream, encode_event, json_response
from kelpie.server.operations import Call, Nothing
from kelpie.server.ops.names import actor_name, parse_actor
from kelpie.server.ops.requests import EventQuery
from kelpie.server.ops.responses import EventOut, EventPage
from kelpie.storage.records import StoredEvent

LOOK_INTERVAL_S: Final = 1.0
FOLLOW_ROWS_FIRST: Final = 4  # read ahead for one reader before their size is known
FOLLOW_BYTES_AIM: Final = 1024 * 1024  # and more and more of them, as long as they are small
KEEP_ALIVE: Final = b": keep-alive\n\n"

_decode: Final = msgspec.msgpack.Decoder().decode

Reading = Call[EventQuery, Nothing]


async def read_events(call: Reading) -> Response | Stream:
    """Return events after a cursor, once, or as a stream that goes on.

    The first page is read before the answer begins, so that a bad cursor is a proper refusal.
    """
    query = call.query
    actor = parse_actor(call, query.actor) if query.actor is not None else None
    follows = query.follow or call.accepts_events
    cursor = _cursor(call) if follows else query.after
    limit = min(query.limit, FOLLOW_ROWS_FIRST) if follows else query.limit
    events = await _read(call, actor, cursor, limit)
    if follows:
        return Stream(chunks=_follow(call, actor, cursor, events))
    following = _position(events[-1], actor) if events else cursor
    shown = [_view(event) for event in events]
    return json_response(EventPage(events=shown, next_after=following))


async def _follow(
    call: Reading, actor: ActorId | None, cursor: int, events: list[StoredEvent]
) -> AsyncGenerator[bytes, None]:
    """Yield events until the caller leaves or the node drains."""
    clock = call.deps.clock
    quiet_since_ns = clock.boot_ns()
    with call.deps.hub.watch(actor) as watch:
        try:
            while call.deps.runtime.accepting() or events:
                for event in events:
                    cursor = _position(event, actor)
                    yield encode_event(_view(event), kind=event.kind, cursor=cursor)
                if events or await watch.wait(LOOK_INTERVAL_S):
                    quiet_since_ns = clock.boot_ns()
                elif clock.boot_ns() - quiet_since_ns >= STREAM_PING_INTERVAL_MS * 1_000_000:
                    quiet_since_ns = clock.boot_ns()
                    yield KEEP_ALIVE
                events = await _read(call, actor, cursor, count_ahead(events))
        except KelpieError as error:
            yield encode_event(error_body(error), kind="error")


def count_ahead(events: list[StoredEvent]) -> int:
    """Return how many events to read after these, so that a slow reader holds little memory.

    Thousands may follow at once, and what is read waits here until its reader takes it.
    """
    if not events:
        return FOLLOW_ROWS_FIRST
    size_bytes = sum(len(event.body) for event in events) // len(events) + 1
    rows = min(FOLLOW_BYTES_AIM // size_bytes, len(events) * 2, EVENT_PAGE_ROWS_MAX)
    assert rows <= EVENT_PAGE_ROWS_MAX, "a page is bounded"
    return max(1, rows)


async def _read(call: Reading, actor: ActorId | None, after: int, limit: int) -> list[StoredEvent]:
    store = call.deps.store
    if actor is not None:
        return await store.events(actor, after, limit)
    return await store.events_tail(call.tenant, after, limit)


def _cursor(call: Reading) -> int:
    """Return where to begin: after the last event that a reconnecting reader has seen."""
    if not call.last_event:
        return call.query.after
    if not call.last_event.isdecimal() or len(call.last_event) > 19:
        raise InvalidFieldError("header.Last-Event-ID", "must be an event's id")
    return min(int(call.last_event), INTEGER_MAX)


def _position(event: StoredEvent, actor: ActorId | None) -> int:
    return event.position if actor is None else event.sequence


def _view(event: StoredEvent) -> EventOut:
    body: Any = _decode(event.body) if event.body else None
    return EventOut(
        position=event.position,
        actor=actor_name(event.actor),
        sequence=event.sequence,
        at_ms=event.at_ms,
        kind=event.kind,
        body=body,
    )
