"""What the actor routes accept."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from kelpie.core.limits import ACTOR_ID_BYTES_MAX, DEAD_LETTERS_PAGE_MAX
from kelpie.server.ops.requests import Limit, Strict


class Arguments(msgspec.Struct, frozen=True):
    """A method's arguments by name; the method's own schema is in ``GET /v1/actor-types``."""


class ActorListQuery(Strict, frozen=True, kw_only=True):
    """Parameters of ``GET /v1/actors``; ``after`` reads ``type/key``."""

    type: Annotated[str, Meta(max_length=ACTOR_ID_BYTES_MAX)] | None = None
    after: Annotated[str, Meta(max_length=ACTOR_ID_BYTES_MAX)] | None = None
    limit: Limit = 100


class DeadLetterQuery(Strict, frozen=True, kw_only=True):
    """Parameters of ``GET /v1/dead-letters``."""

    limit: Annotated[int, Meta(ge=1, le=DEAD_LETTERS_PAGE_MAX)] = 100
