"""Care of single actors: list, show, pause, resume, kill; dead letters and their second chance.

Looking is for every caller. What changes how an actor runs is for the owner's socket and for
callers with a key: a server without keys cannot tell one local program from another.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kelpie.core.errors import InvalidFieldError, NotFoundError
from kelpie.core.ids import ActorId
from kelpie.core.limits import INTEGER_MAX
from kelpie.server.actors.calls import named_actor
from kelpie.server.actors.requests import ActorListQuery, DeadLetterQuery
from kelpie.server.actors.responses import (
    ActorOut,
    ActorPage,
    ActorRowOut,
    DeadLetterOut,
    DeadLetters,
    KillOut,
    Replayed,
)
from kelpie.server.errors import KeyNeededError
from kelpie.server.http import Response, json_response
from kelpie.server.operations import Call, Nothing
from kelpie.server.ops.names import actor_name, parse_actor
from kelpie.storage.records import ActorRow, DeadLetter

ID_DIGITS_MAX: Final = len(str(INTEGER_MAX))

Plain = Call[Nothing, Nothing]


async def list_actors(call: Call[ActorListQuery, Nothing]) -> Response:
    """Return stored actors of one user-defined type, or of all of them, by type and key."""
    query = call.query
    after = parse_actor(call, query.after, field="query.after") if query.after else None
    rows: list[ActorRow] = []
    for kind in _kinds(call, after):
        key = after.key if after is not None and after.type == kind else ""
        wanted = query.limit + 1 - len(rows)
        rows += await call.deps.store.actors(call.tenant, kind, after=key, limit=wanted)
        if len(rows) > query.limit:
            break
    paused = await call.deps.actors.paused_among([row.actor for row in rows[: query.limit]])
    shown = [_row(row, is_paused=row.actor in paused) for row in rows[: query.limit]]
    following = f"{shown[-1].type}/{shown[-1].key}" if len(rows) > query.limit else None
    return json_response(ActorPage(actors=shown, next_after=following))


def _kinds(call: Call[ActorListQuery, Nothing], after: ActorId | None) -> list[str]:
    wanted = call.query.type
    if wanted is not None:
        if not call.deps.actors.hosts(wanted):
            raise NotFoundError("actor type", wanted)
        if after is not None and after.type != wanted:
            raise InvalidFieldError("query.after", f"names no actor of type {wanted!r}")
        return [wanted]
    names = [kind.name for kind in call.deps.actors.types()]
    return [name for name in names if after is None or name >= after.type]


async def show_actor(call: Plain) -> Response:
    """Return one actor: how it is in memory, and what the store has of it.

    An actor exists from its first commit on. One that only answered queries is in memory for a
    while and never existed, so that the answer does not depend on who was evicted.
    """
    actor = named_actor(call)
    return json_response(await _view(call, actor))


async def pause(call: Plain) -> Response:
    """Let the actor's commands wait until it is resumed."""
    actor = _administered(call, "pause")
    await call.deps.actors.pause(actor, principal=call.principal)
    return json_response(await _view(call, actor, must_exist=False))


async def resume(call: Plain) -> Response:
    """Give the waiting commands their turns."""
    actor = _administered(call, "resume")
    await call.deps.actors.resume(actor, principal=call.principal)
    return json_response(await _view(call, actor, must_exist=False))


async def kill(call: Plain) -> Response:
    """Stop the actor's handler; its next call loads what is durable."""
    actor = _administered(call, "kill")
    return json_response(KillOut(killed=call.deps.actors.kill(actor)))


async def list_dead_letters(call: Call[DeadLetterQuery, Nothing]) -> Response:
    """Return the newest messages that failed too often, to whatever type.

    What fails between Kelpie's own types is an operator's business as well, so it is shown; but
    what it says is those types' own, so its body is not.
    """
    query = call.query
    letters = await call.deps.store.dead_letters(call.tenant, query.limit, type_name=query.type)
    return json_response(DeadLetters(dead_letters=[_letter(call, each) for each in letters]))


async def replay(call: Plain) -> Response:
    """Give a dead letter all its attempts again."""
    text = call.path["letter_id"]
    _require_known(call, "replay a dead letter")
    if not text.isdecimal() or not text.isascii() or len(text) >= ID_DIGITS_MAX:
        raise NotFoundError("dead letter", text[:ID_DIGITS_MAX])
    await call.deps.actors.replay(int(text))
    return json_response(Replayed(id=int(text)))


def _administered(call: Plain, verb: str) -> ActorId:
    _require_known(call, f"{verb} an actor")
    return named_actor(call)


def _require_known(call: Call[Any, Any], deed: str) -> None:
    if not call.local and not call.principal.startswith("key:"):
        raise KeyNeededError(deed)


async def _view(call: Plain, actor: ActorId, *, must_exist: bool = True) -> ActorOut:
    seen = call.deps.actors.inspect(actor)
    version, durable, incarnation = seen.version, seen.durable_version, seen.incarnation
    size_bytes = seen.size_bytes
    if version == 0:
        stored = await call.deps.store.load(actor)
        if stored is not None and not stored.tombstoned:
            version = durable = stored.version
            incarnation, size_bytes = stored.incarnation, len(stored.state)
        elif must_exist and not (seen.paused or seen.mailbox or seen.handler):
            raise NotFoundError("actor", actor_name(actor))
    return ActorOut(
        type=actor.type,
        key=actor.key,
        phase=seen.phase,
        version=version,
        durable_version=durable,
        incarnation=incarnation,
        paused=seen.paused,
        mailbox=seen.mailbox,
        handler=seen.handler,
        handler_ms=seen.handler_ms,
        size_bytes=size_bytes,
    )


def _row(row: ActorRow, *, is_paused: bool) -> ActorRowOut:
    return ActorRowOut(
        type=row.actor.type,
        key=row.actor.key,
        version=row.version,
        incarnation=row.incarnation,
        paused=is_paused,
        updated_ms=row.updated_ms,
    )


def _letter(call: Call[Any, Any], letter: DeadLetter) -> DeadLetterOut:
    built_in = letter.receiver.type in call.deps.actors.built_in_types
    body: Any = msgspec.msgpack.decode(letter.body) if letter.body and not built_in else None
    return DeadLetterOut(
        id=letter.message_id,
        sender=actor_name(letter.sender),
        receiver=actor_name(letter.receiver),
        built_in=built_in,
        attempts=letter.attempts,
        error=letter.error,
        at_ms=letter.at_ms,
        body=body,
    )
