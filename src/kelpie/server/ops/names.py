"""Names of actors as people write them within their tenant."""

from __future__ import annotations

from typing import Any

from kelpie.core.errors import InvalidFieldError
from kelpie.core.ids import ActorId
from kelpie.core.quoting import quote_text
from kelpie.server.operations import Call


def parse_actor(call: Call[Any, Any], text: str, *, field: str = "query.actor") -> ActorId:
    """Return the actor of the caller's tenant that ``type/key`` names.

    Raises:
        InvalidFieldError: The text reads otherwise.
        LimitExceededError: The name is too long.
    """
    kind, slash, key = text.partition("/")
    if not slash or "/" in key:
        raise InvalidFieldError(field, f"{quote_text(text)} must read type/key")
    return ActorId(call.tenant, kind, key)


def actor_name(actor: ActorId) -> str:
    """Return ``type/key``."""
    return f"{actor.type}/{actor.key}"
