"""Domain words for what a run stored: actors, messages, effects, states.

Decodes what commits carry without the product's help, and shows what it cannot decode by its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import msgspec

from kelpie.core.ids import TENANT_DEFAULT, ActorId

TEXT_CHARS_MAX: Final = 60
_TAG: Final = "type"


def show_actor(actor: ActorId) -> str:
    """Return an actor's name as people write it."""
    shown = f"{actor.type}/{actor.key}"
    return shown if actor.tenant == TENANT_DEFAULT else f"{actor.tenant}/{shown}"


def decode(body: bytes | None) -> Any:
    """Return what a body holds, as plain values; None for none, the bytes when undecodable."""
    if body is None:
        return None
    try:
        return msgspec.msgpack.decode(body)
    except msgspec.MsgspecError:
        return body


def show_message(body: bytes) -> str:
    """Return a stored message as the call that it is."""
    value = decode(body)
    fields = fields_of(value)
    if _TAG not in fields:
        return show_value(value)
    named = [f"{name}={show_value(each)}" for name, each in fields.items() if name != _TAG]
    return f"{fields[_TAG]}({', '.join(named)})"


def fields_of(value: Any) -> dict[str, Any]:
    """Return a decoded struct's fields; none of anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def show_value(value: Any) -> str:
    """Return a value on one line, cut when it is long."""
    match value:
        case bytes():
            return f"<{len(value)} bytes>"
        case dict() if not value:
            return "{}"
        case _:
            text = repr(value)
    return text if len(text) <= TEXT_CHARS_MAX else f"{text[: TEXT_CHARS_MAX - 1]}…"


def show_changes(before: Any, after: Any) -> Iterator[str]:
    """Yield the fields of a state that changed, with what they were."""
    if not isinstance(after, dict):
        if before != after:
            yield show_value(after)
        return
    old = fields_of(before)
    for name, value in fields_of(after).items():
        if name not in old:
            yield f"{name} {show_value(value)}"
        elif old[name] != value:
            yield f"{name} {show_value(old[name])} → {show_value(value)}"


def show_time(at_ns: int) -> str:
    """Return a moment of virtual time in seconds."""
    return f"{at_ns / 1e9:.3f} s"
