"""A client of an ASGI callable, for worlds without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from kelpie.server.http import AsgiApp


class HttpAnswer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        """Return the decoded body."""
        return msgspec.json.decode(self.body)


async def ask(
    app: AsgiApp,
    method: str,
    target: str,
    body: Any = None,
    *,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    left: asyncio.Event | None = None,
) -> HttpAnswer:
    """Send one request and return the whole answer.

    The caller is gone once ``left`` is set; without it, it stays to the end.
    """
    left = left or asyncio.Event()
    path, _, query = target.partition("?")
    data = b"" if body is None else msgspec.json.encode(body)
    lines = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    lines.extend((name.encode(), value.encode()) for name, value in (headers or {}).items())
    if key is not None:
        lines.append((b"idempotency-key", key.encode()))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": lines,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
    }
    sent = False
    status, chunks = 0, list[bytes]()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await left.wait()
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            chunks.append(message.get("body", b""))

    await app(scope, receive, send)
    assert status, "every request is answered"
    return HttpAnswer(status, b"".join(chunks))
