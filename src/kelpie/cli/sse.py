"""Server-sent events as the command line reads them.

Source: the HTML standard, section 9.2.6 ("Interpreting an event stream"); a line
ends with a newline, perhaps after a carriage return, which is what the server writes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, NamedTuple

from kelpie.cli.errors import CommandError
from kelpie.core.limits import MESSAGE_BYTES_MAX

_BUFFER_BYTES_MAX: Final = 2 * MESSAGE_BYTES_MAX


class ServerEvent(NamedTuple):
    """One event of a stream; ``id`` is the cursor after it, empty if it has none."""

    name: str
    data: str
    id: str


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[ServerEvent, None]:
    """Yield the events of a stream that arrives in pieces of any size; an unfinished one is lost.

    Raises:
        CommandError: An event is larger than the server may send.
    """
    buffer = b""
    name, identity, data = "", "", list[str]()
    async for chunk in chunks:
        *lines, buffer = (buffer + chunk).split(b"\n")
        if len(buffer) > _BUFFER_BYTES_MAX:
            raise CommandError(
                "internal", f"the server sent over {_BUFFER_BYTES_MAX:,} bytes at once"
            )
        for raw in lines:
            field, _, value = raw.decode(errors="replace").removesuffix("\r").partition(":")
            value = value.removeprefix(" ")
            match field:
                case "data":
                    data.append(value)
                case "event":
                    name = value
                case "id":
                    identity = value
                case "" if data and not value:
                    yield ServerEvent(name, "\n".join(data), identity)
                    name, data = "", []
                case _:
                    pass
