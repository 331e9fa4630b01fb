"""Reads an agent's transcript by cursor, straight from its ordered map.

Messages never change once stored, so what is read needs no turn of the agent.
"""

from __future__ import annotations

from typing import Final

import msgspec

from kelpie.agents.model import TranscriptMessage, message_key
from kelpie.core.errors import NotFoundError
from kelpie.core.ids import ActorId
from kelpie.storage.protocol import Store

SCAN_ROWS: Final = 500  # rows of one read while looking for a cursor
_START: Final = message_key(0)
_END: Final = "message0"  # the next prefix after "message/"

_decode: Final = msgspec.msgpack.Decoder(TranscriptMessage).decode


class _Identity(msgspec.Struct, frozen=True):
    """The part of a stored message that a search needs."""

    id: str
    sequence: int
    run_id: str = ""


_decode_identity: Final = msgspec.msgpack.Decoder(_Identity).decode


async def read_page(
    store: Store,
    agent: ActorId,
    *,
    after: str | None,
    before: str | None,
    limit: int,
    descending: bool,
) -> list[TranscriptMessage]:
    """Return up to ``limit`` messages strictly between the cursors, in the order asked for.

    With ``before`` alone the page ends at the cursor, so that a reader can walk backwards.

    Raises:
        NotFoundError: A cursor names no message of this agent.
    """
    assert limit >= 1
    low, high = _START, _END
    backwards = after is None and before is not None
    for cursor, is_after in ((after, True), (before, False)):
        if cursor is None:
            continue
        sequence = await find_sequence(store, agent, cursor)
        if is_after != descending:
            low = max(low, message_key(sequence + 1))
        else:
            high = min(high, message_key(sequence))
    if low >= high:
        return []
    rows = await store.kv_range(
        agent, low, high, limit=limit, descending=descending is not backwards
    )
    messages = [_decode(value) for _, value in rows]
    return messages[::-1] if backwards else messages


async def find_sequence(store: Store, agent: ActorId, message_id: str) -> int:
    """Return the sequence of a message; recent ones are found first.

    Raises:
        NotFoundError: The agent has no such message.
    """
    high = _END
    while True:
        rows = await store.kv_range(agent, _START, high, limit=SCAN_ROWS, descending=True)
        for _, value in rows:
            found = _decode_identity(value)
            if found.id == message_id:
                return found.sequence
        if len(rows) < SCAN_ROWS:
            raise NotFoundError("message", message_id)
        high = rows[-1][0]


async def read_run(store: Store, agent: ActorId, run_id: str) -> list[TranscriptMessage]:
    """Return the messages of one run, oldest first; they are contiguous."""
    high = _END
    found: list[TranscriptMessage] = []
    while True:
        rows = await store.kv_range(agent, _START, high, limit=SCAN_ROWS, descending=True)
        for _, value in rows:
            if _decode_identity(value).run_id == run_id:
                found.append(_decode(value))
            elif found:
                return found[::-1]
        if len(rows) < SCAN_ROWS:
            return found[::-1]
        high = rows[-1][0]


async def has_call(store: Store, agent: ActorId, tool_call_id: str) -> bool:
    """Return whether the agent's recent messages hold a tool call of this id."""
    rows = await store.kv_range(agent, _START, _END, limit=SCAN_ROWS, descending=True)
    messages = (_decode(value) for _, value in rows)
    return any(call.id == tool_call_id for message in messages for call in message.tool_calls)


async def read_ids(store: Store, agent: ActorId, first: int, last: int) -> dict[int, str]:
    """Return the ids of the messages with these sequences (inclusive), by sequence."""
    assert 1 <= first <= last
    low, end = message_key(first), message_key(last + 1)
    ids: dict[int, str] = {}
    while True:
        rows = await store.kv_range(agent, low, end, limit=SCAN_ROWS)
        for _, value in rows:
            identity = _decode_identity(value)
            ids[identity.sequence] = identity.id
        if len(rows) < SCAN_ROWS:
            return ids
        low = rows[-1][0] + "\0"
