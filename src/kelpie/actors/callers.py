"""Callers outside, as senders of messages: the ids under which their submitted calls wait in line.

A caller's calls to one actor have their turns in the order of submission, as the messages of an
actor have; so a caller has an id of the same form, of a type that nobody may host.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from kelpie.core.ids import ActorId, Tenant

RESERVED_PREFIX: Final = "kelpie."
CALLER_TYPE: Final = f"{RESERVED_PREFIX}caller"

CallStatus = Literal["pending", "running", "completed", "failed", "cancelled", "dead"]
"""Of a submitted call: ``running`` while its handler runs, ``failed`` when its actor refused it,
``dead`` when it failed too often."""

_OTHER: Final = re.compile(r"[^A-Za-z0-9._:@+-]")
_QUOTED: Final = re.compile(r"((?:~[0-9a-f]{2})+)")


def caller_id(tenant: Tenant, principal: str) -> ActorId:
    """Return the sender of what ``principal`` submits; `principal_of` is the way back.

    Raises:
        LimitExceededError: The principal is too long.
    """
    quoted = _OTHER.sub(lambda found: _quote(found[0]), principal)
    return ActorId(tenant, CALLER_TYPE, f"p:{quoted}")


def principal_of(sender: ActorId) -> str | None:
    """Return the caller that the sender stands for; None for an actor."""
    if sender.type != CALLER_TYPE:
        return None
    return _QUOTED.sub(lambda found: _unquote(found[1]), sender.key[2:])


def _quote(text: str) -> str:
    return "".join(f"~{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))


def _unquote(text: str) -> str:
    return bytes.fromhex(text.replace("~", "")).decode("utf-8", "surrogatepass")
