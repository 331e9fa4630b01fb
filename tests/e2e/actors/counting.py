"""The product with one hosted actor class, for the kill test: `python counting.py DIRECTORY PORT`.

Everything around the class is what `kelpie serve` runs; the route gives a caller's JSON to the
class through the same gateway, with the caller's idempotency key.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kelpie import Actor, State, command, query
from kelpie.actors.api.gateway import Gateway
from kelpie.actors.api.hosting import ActorMachine
from kelpie.app.opened import App, open_app
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.server.http import Response, header, read_body, send_response
from kelpie.server.serve import Listening, serve
from kelpie.settings import load_settings

if TYPE_CHECKING:
    from kelpie.server.http import AsgiApp, Receive, Scope, Send

ROUTE = "/v1/actors/"
BODY_BYTES_MAX = 4_096


class Tally(State):
    """What a counter remembers."""

    total: int = 0


class Counter(Actor[Tally]):
    """Counts."""

    actor_type = "counter"

    @command
    def add(self, amount: int) -> int:
        """Add, and return the new total."""
        self.state.total += amount
        return self.state.total

    @query
    def total(self) -> int:
        """Return the total."""
        return self.state.total


def with_counters(app: App) -> AsgiApp:
    """The product's ASGI callable with ``POST /v1/actors/{type}/{key}/{method}`` beside it."""
    node = app.node
    node.runtime.register(ActorMachine(Counter))
    gateway = Gateway(
        engine=node.runtime,
        store=node.store,
        hub=node.hub,
        wake_outbox=node.outbox.wake,
        kinds=[Counter],
    )

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(ROUTE):
            await app.asgi(scope, receive, send)
            return
        kind, key, method = scope["path"].removeprefix(ROUTE).split("/")
        once = header(scope, b"idempotency-key")
        result = await gateway.call(
            ActorId(TENANT_DEFAULT, kind, key),
            method,
            await read_body(scope, receive, BODY_BYTES_MAX) or b"{}",
            principal="test",
            key=once.decode() if once else None,
        )
        await send_response(send, Response(body=b'{"result":' + result + b"}"))

    return answer


async def run(data_dir: Path, port: int) -> None:
    """Serve until killed; a line on stdout says that requests are answered."""
    settings = load_settings(
        environment=dict(os.environ), cwd=data_dir, home=data_dir, flags={"data_dir": str(data_dir)}
    )

    async def announce(_listening: Listening) -> None:
        print("{}", flush=True)

    async with open_app(settings, drive=True) as app:
        await serve(
            with_counters(app),
            host="127.0.0.1",
            port=port,
            on_ready=announce,
            should_stop=asyncio.Event(),
        )


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2])))
