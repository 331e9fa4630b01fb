"""Domain words for what a run stored: actors, messages, effects, states.

Decodes what commits carry without the product's help, and shows what it cannot decode by its size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, cast

import msgspec

from kelpie.core.ids import TENANT_DEFAULT, ActorId

TEXT_CHARS_MAX: Final = 60
_TAG: Final = "type"
_UUID: Final = re.compile(r"\b([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")


def show_actor(actor: ActorId) -> str:
    """Return an actor's name as people write it, the tails of its UUIDs cut."""
    return cut_ids(name_actor(actor))


def name_actor(actor: ActorId) -> str:
    """Return an actor's whole name, without the default tenant."""
    name = f"{actor.type}/{actor.key}"
    return name if actor.tenant == TENANT_DEFAULT else f"{actor.tenant}/{name}"


def cut_ids(text: str) -> str:
    """Return ``text`` with the first eight digits of each UUID: enough to tell them apart."""
    return _UUID.sub(r"\1", text)


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
            text = cut_ids(repr(value))
    return text if len(text) <= TEXT_CHARS_MAX else f"{text[: TEXT_CHARS_MAX - 1]}…"


def show_changes(before: Any, after: Any, *, prefix: str = "") -> Iterator[str]:
    """Yield the fields of a state that changed, with what they were; a new state's filled ones."""
    if not isinstance(after, dict):
        if before != after:
            yield show_value(after)
        return
    old = fields_of(before)
    for name, value in fields_of(after).items():
        known = old.get(name)
        if known == value or (name not in old and not value):
            continue
        if isinstance(known, dict) and isinstance(value, dict) and known:
            yield from show_changes(known, value, prefix=f"{prefix}{name}.")
        elif name in old:
            yield f"{prefix}{name} {show_value(known)} → {show_value(value)}"
        else:
            yield f"{prefix}{name} {show_value(value)}"
    for name in [each for each in old if each not in fields_of(after)]:
        yield f"{prefix}{name} gone"


def show_time(at_ns: int) -> str:
    """Return a moment of virtual time in seconds."""
    return f"{at_ns / 1e9:.3f} s"
