"""The product with one more actor type and one more route: a durable echo.

What it adds is the least that a durable call can be: one turn, one commit, one reply behind the
output gate. Everything around it is what ``kelpie serve`` runs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from kelpie.actors.commands import Message, Reply
from kelpie.actors.machine import Decision, Turn
from kelpie.app.opened import App, open_app
from kelpie.core.errors import InvalidFieldError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.server.http import (
    AsgiApp,
    Receive,
    Scope,
    Send,
    header,
    json_response,
    read_body,
    send_response,
)
from kelpie.server.serve import Listening, serve
from kelpie.settings import load_settings
from kelpie.storage.records import StoredActor

ROUTE = "/bench/echo/"
BODY_BYTES_MAX = 4_096


class EchoState(msgspec.Struct, frozen=True):
    """How often the actor has answered, and what last."""

    count: int = 0
    text: str = ""


class Echo(Message, frozen=True, tag="bench.echo"):
    """Remember the text and say it back."""

    reply_type: ClassVar[Any] = str
    text: str


class EchoMachine:
    """An actor that keeps the last text it was told."""

    type_name = "bench_echo"
    schema_version = 1
    message_type = Echo

    def create(self, actor: ActorId) -> EchoState:  # noqa: ARG002  the contract's signature
        """Return the state of an actor that was never called."""
        return EchoState()

    def load(self, stored: StoredActor) -> EchoState:
        """Decode a stored state."""
        return msgspec.msgpack.decode(stored.state, type=EchoState)

    def dump(self, state: EchoState) -> bytes:
        """Encode a state."""
        return msgspec.msgpack.encode(state)

    def query(self, state: EchoState, query: Message) -> EchoState:  # noqa: ARG002  as above
        """Return the state."""
        return state

    def decide(
        self,
        state: EchoState,
        message: Message,
        turn: Turn,  # noqa: ARG002  as above
    ) -> Decision[EchoState]:
        """Remember and echo.

        Raises:
            InvalidFieldError: The message is not an echo.
        """
        if not isinstance(message, Echo):
            raise InvalidFieldError("message", "must be an echo")
        kept = EchoState(state.count + 1, message.text)
        return Decision(state=kept, commands=(Reply(value=message.text),))


def with_echo(app: App) -> AsgiApp:
    """Return the product's ASGI callable with ``POST /bench/echo/{key}`` beside its routes."""
    runtime = app.node.runtime
    runtime.register(EchoMachine())

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(ROUTE):
            await app.asgi(scope, receive, send)
            return
        body = await read_body(scope, receive, BODY_BYTES_MAX)
        actor = ActorId(TENANT_DEFAULT, "bench_echo", scope["path"].removeprefix(ROUTE))
        key = header(scope, b"idempotency-key")
        echoed = await runtime.call(
            actor,
            msgspec.json.decode(body or b"{}", type=Echo),
            principal="bench",
            key=key.decode() if key else None,
        )
        await send_response(send, json_response({"text": echoed}))

    return answer


async def run(data_dir: Path) -> None:
    """Serve until SIGTERM; print the address as one JSON line once requests are answered."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = load_settings(
        environment=dict(os.environ),
        cwd=data_dir,
        home=data_dir,
        flags={"data_dir": str(data_dir)},
    )

    async def announce(listening: Listening) -> None:
        url = f"http://{listening.host}:{listening.port}"
        print(msgspec.json.encode({"url": url}).decode(), flush=True)

    async with open_app(settings, drive=True) as app:
        await serve(
            with_echo(app),
            host="127.0.0.1",
            port=0,
            on_ready=announce,
            should_stop=stop,
        )


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1])))
