"""The operations on user-defined actors.

Calls are the only POST below ``/v1/actors``, so that no verb of ours takes a method's name.
"""

from __future__ import annotations

from typing import Any

from kelpie.server.actors import calls, care, submitted
from kelpie.server.actors.requests import (
    ActorListQuery,
    Arguments,
    CallListQuery,
    CallQuery,
    DeadLetterQuery,
)
from kelpie.server.actors.responses import (
    ActorOut,
    ActorPage,
    ActorTypes,
    CallOut,
    CallPage,
    CallResult,
    DeadLetters,
    KillOut,
    Replayed,
)
from kelpie.server.operations import Nothing, Operation

Table = tuple[Operation[Any, Any], ...]

_CALL_ERRORS = (
    "not_found",
    "conflict",
    "idempotency_key_reused",
    "overloaded",
    "actor_failed",
    "deadline_exceeded",
)


def actor_operations() -> Table:
    """Return the operations on user-defined actors."""
    return (*_calls(), *_submitted(), *_care(), *_letters())


def _calls() -> Table:
    return (
        Operation(
            method="POST",
            path="/v1/actors/{type}/{key}/{method}",
            summary="Call a method of an actor; with Prefer: respond-async, hand the call in",
            tag="actors",
            handler=calls.call_method,
            query=Nothing,
            body=Arguments,
            response=CallResult,
            accepted=CallOut,
            errors=_CALL_ERRORS,
            at_owner=True,
        ),
        Operation(
            method="GET",
            path="/v1/actor-types",
            summary="List the actor classes that this server hosts",
            tag="actors",
            handler=calls.list_types,
            query=Nothing,
            body=Nothing,
            response=ActorTypes,
        ),
    )


def _submitted() -> Table:
    return (
        Operation(
            method="GET",
            path="/v1/calls",
            summary="List submitted calls",
            tag="calls",
            handler=submitted.find,
            query=CallListQuery,
            body=Nothing,
            response=CallPage,
            errors=("not_found",),
        ),
        Operation(
            method="GET",
            path="/v1/calls/{call_id}",
            summary="Show a submitted call, or wait for its end",
            tag="calls",
            handler=submitted.show,
            query=CallQuery,
            body=Nothing,
            response=CallOut,
            errors=("not_found",),
            waits=True,
        ),
        Operation(
            method="POST",
            path="/v1/calls/{call_id}/cancel",
            summary="Take back a submitted call that has not begun",
            tag="calls",
            handler=submitted.cancel,
            query=Nothing,
            body=Nothing,
            response=CallOut,
            errors=("not_found", "call_begun"),
            at_owner=True,
        ),
    )


def _care() -> Table:
    verbs = (
        ("pause", "Let the commands of an actor wait", care.pause, ActorOut),
        ("resume", "Give the waiting commands of an actor their turns", care.resume, ActorOut),
        ("kill", "Stop the handler of an actor and load it anew", care.kill, KillOut),
    )
    return (
        Operation(
            method="GET",
            path="/v1/actors",
            summary="List stored actors",
            tag="actors",
            handler=care.list_actors,
            query=ActorListQuery,
            body=Nothing,
            response=ActorPage,
            errors=("not_found",),
        ),
        Operation(
            method="GET",
            path="/v1/actors/{type}/{key}",
            summary="Show an actor",
            tag="actors",
            handler=care.show_actor,
            query=Nothing,
            body=Nothing,
            response=ActorOut,
            errors=("not_found",),
            at_owner=True,
        ),
        *(
            Operation(
                method="POST",
                path=f"/v1/actor-admin/{{type}}/{{key}}/{verb}",
                summary=f"{summary} (with a key, or on the Unix socket)",
                tag="actors",
                handler=handler,
                query=Nothing,
                body=Nothing,
                response=response,
                errors=("not_found", "key_needed"),
                at_owner=True,
            )
            for verb, summary, handler, response in verbs
        ),
    )


def _letters() -> Table:
    return (
        Operation(
            method="GET",
            path="/v1/dead-letters",
            summary="List messages that failed too often",
            tag="actors",
            handler=care.list_dead_letters,
            query=DeadLetterQuery,
            body=Nothing,
            response=DeadLetters,
        ),
        Operation(
            method="POST",
            path="/v1/dead-letters/{letter_id}/replay",
            summary="Deliver a dead letter again (with a key, or on the Unix socket)",
            tag="actors",
            handler=care.replay,
            query=Nothing,
            body=Nothing,
            response=Replayed,
            errors=("not_found", "key_needed"),
        ),
    )
