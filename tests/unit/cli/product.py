"""A product for command tests: an ASGI app that answers from a table and writes down what came.

It stands where `kelpie.app.open_app` does, so a test drives the command's whole way: options,
settings, transport, decoding, printing, exit status.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from click.testing import CliRunner

from kelpie.app.care import ModelProbe
from kelpie.app.process import Ready
from kelpie.cli import main
from kelpie.cli.world import HolderInfo, ServedProgram, ServerReady, World
from kelpie.core.errors import KelpieError, UnavailableError
from kelpie.sandbox.protocol import TierReport
from kelpie.settings import Settings

LISTED = ModelProbe(3, is_listed=True)


@dataclass(frozen=True)
class Request:
    """What one request said."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass(frozen=True)
class Refusal:
    """An error as the edge answers it."""

    status: int
    code: str
    message: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Events:
    """A stream: each value is one event of that name; it stays open at the end if ``endless``."""

    values: Sequence[Any]
    endless: bool = False
    name: str = ""


Answer = Any
Route = Answer | Callable[[Request], Answer]


class Product:
    """Answers by (method, path); ``requests`` holds what came, ``drives`` how it was opened."""

    def __init__(self, routes: Mapping[tuple[str, str], Route] | None = None) -> None:
        self.routes: dict[tuple[str, str], Route] = dict(routes or {})
        self.requests: list[Request] = []
        self.drives: list[bool] = []

    @property
    def asgi(self) -> Callable[..., Awaitable[None]]:
        return self._serve

    @asynccontextmanager
    async def open(self, settings: Settings, *, drive: bool) -> AsyncIterator[Product]:
        self.drives.append(drive)
        yield self

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        request = await _read(scope, receive)
        self.requests.append(request)
        missing = Refusal(404, "route_not_found", f"no route {request.method} {request.path}")
        route = self.routes.get((request.method, request.path), missing)
        answer = route(request) if callable(route) else route
        match answer:
            case Refusal():
                error = {"code": answer.code, "message": answer.message}
                await _respond(send, answer.status, {"error": error | {"fields": answer.fields}})
            case Events():
                await _stream(send, receive, answer)
            case _:
                await _respond(send, 200, answer)


async def _read(scope: Any, receive: Any) -> Request:
    message = await receive()
    return Request(
        method=scope["method"],
        path=scope["path"],
        query=dict(parse_qsl(scope["query_string"].decode())),
        body=json.loads(message["body"]) if message["body"] else None,
        headers={name.decode(): value.decode() for name, value in scope["headers"]},
    )


async def _respond(send: Any, status: int, value: Any) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


async def _stream(send: Any, receive: Any, events: Events) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for value in events.values:
        data = value if isinstance(value, str) else json.dumps(value)
        head = f"event: {events.name}\n" if events.name else ""
        body = f"{head}data: {data}\n\n".encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})
    if events.endless:
        assert (await receive())["type"] == "http.disconnect"
    await send({"type": "http.response.body", "body": b""})


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """The one JSON value on stdout."""
        return json.loads(self.stdout)

    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.stdout.splitlines()]

    def error(self) -> Any:
        """The JSON error on stderr's last line."""
        return json.loads(self.stderr.splitlines()[-1])["error"]


@dataclass
class Desk:
    """A home, a directory and a product, and commands typed at them."""

    directory: Path
    product: Product = field(default_factory=Product)
    environment: dict[str, str] = field(default_factory=dict)
    holder: HolderInfo | None = None
    served: list[Settings] = field(default_factory=list)
    programs: list[ServedProgram | None] = field(default_factory=list)
    restored: list[Path] = field(default_factory=list)
    lost_after: str | None = None
    database_error: KelpieError | None = None
    tiers: list[TierReport] = field(default_factory=list)
    model: ModelProbe | None = LISTED

    def type(self, *words: str, stdin: str = "") -> Outcome:
        """Run one command line, as the program does."""
        with CliRunner().isolation(input=stdin) as (stdout, stderr, _):
            status = main(list(words), world=self.world())
            sys.stderr.flush()
            return Outcome(status, stdout.getvalue().decode(), stderr.getvalue().decode())

    def world(self) -> World:
        return World(
            environment=self.environment,
            cwd=self.directory,
            home=self.directory / "home",
            open_app=self.product.open,
            read_holder=lambda _: self.holder,
            run_server=self._run_server,
            restore=self._restore,
            accept_loss=self._accept_loss,
            probe_sandboxes=self._probe_sandboxes,
            probe_model=self._probe_model,
            probe_database=self._probe_database,
        )

    async def _run_server(
        self,
        settings: Settings,
        announce: Callable[[ServerReady], None],
        program: ServedProgram | None,
    ) -> int:
        self.served.append(settings)
        self.programs.append(program)
        announce(Ready("http://127.0.0.1:1", held=False))
        return 0

    async def _restore(self, settings: Settings, source: Path) -> dict[str, Any]:
        self.restored.append(source)
        return {"path": str(settings.store.path), "held": True}

    async def _accept_loss(self, settings: Settings) -> dict[str, Any]:
        held = self.lost_after is not None
        return {"store": str(settings.store.path), "held": held, "lost_after": self.lost_after}

    async def _probe_sandboxes(self, settings: Settings) -> list[TierReport]:
        return self.tiers or [TierReport("bubblewrap", works=True, detail="0.8.0")]

    async def _probe_database(self, settings: Settings) -> str:
        if self.database_error is not None:
            raise self.database_error
        return f"PostgreSQL 15, for {settings.node}"

    async def _probe_model(self, settings: Settings) -> ModelProbe:
        if self.model is None:
            raise UnavailableError("the model does not answer")
        return self.model
