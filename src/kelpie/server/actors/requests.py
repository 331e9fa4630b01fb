"""What the actor routes accept."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from kelpie.core.limits import ACTOR_ID_BYTES_MAX, CALL_WAIT_MS_MAX, DEAD_LETTERS_PAGE_MAX
from kelpie.server.ops.requests import Limit, Strict
from kelpie.storage.records import CallState


class Arguments(msgspec.Struct, frozen=True):
    """A method's arguments by name; the method's own schema is in ``GET /v1/actor-types``."""


class ActorListQuery(Strict, frozen=True, kw_only=True):
    """Parameters of ``GET /v1/actors``; ``after`` reads ``type/key``."""

    type: Annotated[str, Meta(max_length=ACTOR_ID_BYTES_MAX)] | None = None
    after: Annotated[str, Meta(max_length=ACTOR_ID_BYTES_MAX)] | None = None
    limit: Limit = 100


class CallQuery(Strict, frozen=True, kw_only=True):
    """Parameters of ``GET /v1/calls/{call_id}``: how long to wait for its end, in seconds."""

    wait_s: Annotated[float, Meta(ge=0, le=CALL_WAIT_MS_MAX / 1000)] = 0


class CallListQuery(Strict, frozen=True, kw_only=True):
    """Parameters of ``GET /v1/calls``; ``actor`` reads ``type/key``, ``after`` is a call's id."""

    actor: Annotated[str, Meta(max_length=ACTOR_ID_BYTES_MAX)] | None = None
    state: CallState | None = None
    after: Annotated[str, Meta(max_length=ACTOR_ID_BYTES_MAX)] | None = None
    limit: Limit = 100


class DeadLetterQuery(Strict, frozen=True, kw_only=True):
    """Parameters of ``GET /v1/dead-letters``; ``type`` is the receiver's, built-in or not."""

    type: Annotated[str, Meta(max_length=ACTOR_ID_BYTES_MAX)] | None = None
    limit: Annotated[int, Meta(ge=1, le=DEAD_LETTERS_PAGE_MAX)] = 100
