"""What the actor routes answer."""

from __future__ import annotations

from typing import Any

from kelpie.server.ops.responses import Out


class CallResult(Out, frozen=True, kw_only=True):
    """What a method returned."""

    result: Any


class CallErrorOut(Out, frozen=True, kw_only=True):
    """Why a call failed or is dead, as any route says it."""

    code: str
    message: str
    retriable: bool
    fields: dict[str, Any]


class CallOut(Out, frozen=True, kw_only=True):
    """One submitted call.

    ``state`` is ``pending``, ``running``, ``completed``, ``failed`` (its actor refused it),
    ``cancelled`` or ``dead`` (it failed too often). ``result`` is null unless it completed,
    ``error`` unless it failed or is dead; lists show neither. ``ended_ms`` and ``expires_ms`` are
    null while it has not ended; after ``expires_ms`` it is forgotten.
    """

    call_id: str
    actor: str
    method: str
    state: str
    principal: str
    created_ms: int
    ended_ms: int | None
    expires_ms: int | None
    result: Any
    error: CallErrorOut | None


class CallPage(Out, frozen=True, kw_only=True):
    """Submitted calls by submission; ``next_after`` is null on the last page."""

    calls: list[CallOut]
    next_after: str | None


class ActorRowOut(Out, frozen=True, kw_only=True):
    """One stored actor; ``version`` counts the turns that changed it."""

    type: str
    key: str
    version: int
    incarnation: int
    paused: bool
    updated_ms: int


class ActorPage(Out, frozen=True, kw_only=True):
    """Stored actors by type and key; ``next_after`` is null on the last page."""

    actors: list[ActorRowOut]
    next_after: str | None


class ActorOut(Out, frozen=True, kw_only=True):
    """One actor as the server has it now.

    ``phase`` is ``absent`` when it is on disk only; ``mailbox`` counts the calls that wait;
    ``handler`` is the async method that runs, with the milliseconds it has taken.
    """

    type: str
    key: str
    phase: str
    version: int
    durable_version: int
    incarnation: int
    paused: bool
    mailbox: int
    handler: str
    handler_ms: int
    size_bytes: int


class KillOut(Out, frozen=True, kw_only=True):
    """Whether the actor was in memory when it was stopped."""

    killed: bool


class MethodOut(Out, frozen=True, kw_only=True):
    """One method: JSON schemas of its arguments object and of its result."""

    name: str
    kind: str
    doc: str
    arguments: dict[str, Any]
    result: dict[str, Any]


class ActorTypeOut(Out, frozen=True, kw_only=True):
    """One actor class that this server hosts."""

    name: str
    doc: str
    schema_version: int
    methods: list[MethodOut]


class ActorTypes(Out, frozen=True, kw_only=True):
    """The actor classes that this server hosts, by name."""

    types: list[ActorTypeOut]


class DeadLetterOut(Out, frozen=True, kw_only=True):
    """A message that failed too often; ``error`` ends with the traceback where there was one.

    ``sender`` is ``kelpie.caller/…`` for a submitted call, and an actor otherwise. ``built_in``
    says that the receiver is of one of Kelpie's own types, whose ``body`` is not shown.
    """

    id: int
    sender: str
    receiver: str
    built_in: bool
    attempts: int
    error: str
    at_ms: int
    body: Any


class DeadLetters(Out, frozen=True, kw_only=True):
    """The newest dead letters, newest first."""

    dead_letters: list[DeadLetterOut]


class Replayed(Out, frozen=True, kw_only=True):
    """The letter that was put back into its lane."""

    id: int
