"""A server from Python: the typed references of actor classes, submitted calls, runs, approvals.

    async with kelpie.connect("http://127.0.0.1:8283") as remote:
        await remote.ref(Counter, "a").add(1)

Arguments and results pass the same method types as in process; errors are the server's, by code.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from kelpie.actors.api.definition import Actor
from kelpie.actors.api.handle import CallDesk, CallHandle
from kelpie.actors.api.method import Method
from kelpie.actors.api.reference import Address
from kelpie.app.remote_desks import RemoteApprovals, RemoteCalls, RemoteRuns
from kelpie.app.wire import ServerWire, decoder_of
from kelpie.core.errors import InvalidFieldError, OrderError
from kelpie.core.limits import INVOCATION_TIMEOUT_MS
from kelpie.core.quoting import quote_text

A = TypeVar("A", bound=Actor[Any])

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_encode: Final = msgspec.json.Encoder().encode


class _Reply(msgspec.Struct):
    result: msgspec.Raw


class _Kept(msgspec.Struct):
    call_id: str


class Remote:
    """One server. Made by `connect`. Implements `Caller`.

    Attributes:
        calls: Submitted calls, to look for.
        runs: Runs of agents.
        approvals: What waits for a person.
    """

    def __init__(self, wire: ServerWire) -> None:
        self._wire = wire
        self.calls = RemoteCalls(self._wire)
        self.runs = RemoteRuns(self._wire)
        self.approvals = RemoteApprovals(self._wire)

    def ref(
        self,
        kind: type[A],
        key: str,
        *,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> A:
        """Return a typed reference: ``await remote.ref(Counter, "a").add(1)``.

        Args:
            kind: The actor's class; the server hosts a type of its name.
            key: Which actor; it is created by being called.
            timeout_s: How long a call may take.
            idempotency_key: Makes one call of each method through this reference happen once, so
                that it may be repeated when its answer was lost.
        """
        target = Address(kind.type_name(), key, caller=self, idempotency_key=idempotency_key)
        if timeout_s is not None:
            target.timeout_ms = max(1, int(timeout_s * 1000))
        return kind.at(target)

    async def invoke(
        self,
        target: Address,
        method: Method[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call a method for a reference; see `Caller`.

        Raises:
            InvalidFieldError: An argument does not fit; nothing was sent.
            DeadlineError: The server did not answer in time; the outcome may still follow.
            UnavailableError: The server does not answer, or broke off; it may still act.
            KelpieError: What the actor or the server refuses.
        """
        timeout_ms = target.timeout_ms or INVOCATION_TIMEOUT_MS
        headers = {"x-kelpie-timeout-ms": str(timeout_ms)}
        response = await self._send(target, method, args, kwargs, headers)
        result = self._wire.read(response, _Reply).result
        try:
            return decoder_of(method.result).decode(result)
        except msgspec.MsgspecError as error:
            text = f"{self._wire.url} answered {method.name} with another type: {error}"
            raise InvalidFieldError("result", text) from error

    async def submit(
        self,
        target: Address,
        method: Method[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> CallHandle[Any]:
        """Hand a call in for a reference; see `Caller`.

        Without an idempotency key a submission whose answer was lost may have been kept.

        Raises:
            OrderError: The method is no command.
            KelpieError: As `invoke`.
        """
        if method.kind != "command":
            raise OrderError(f"only commands can be submitted, {method.name} is none")
        response = await self._send(target, method, args, kwargs, {"prefer": "respond-async"})
        return CallHandle(self._wire.read(response, _Kept).call_id, method, self.calls)

    def desk(self) -> CallDesk:
        """Return where submitted calls are asked about."""
        return self.calls

    async def _send(
        self,
        target: Address,
        method: Method[Any, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        headers: dict[str, str],
    ) -> httpx.Response:
        message = method.pack(args, kwargs)
        values = {name: getattr(message, name) for name in message.__struct_fields__}
        if target.idempotency_key is not None:
            headers["idempotency-key"] = target.idempotency_key
        names = (target.type_name, target.key, method.name)
        return await self._wire.send(
            "POST",
            "/v1/actors/" + "/".join(quote(name, safe="") for name in names),
            content=_encode(values),
            headers=headers,
            timeout_ms=target.timeout_ms or INVOCATION_TIMEOUT_MS,
        )


@asynccontextmanager
async def connect(url: str, key: str = "") -> AsyncGenerator[Remote]:
    """Yield the actors of the server at ``url``; the connections are closed at the end.

    Args:
        url: Where the server answers, as ``http://host:port``.
        key: An API key; empty where the server asks for none.

    Raises:
        InvalidFieldError: The URL is no http or https address.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidFieldError("url", f"{quote_text(url)} is not an http or https address")
    async with httpx.AsyncClient(
        base_url=url.rstrip("/"),
        headers={"authorization": f"Bearer {key}"} if key else {},
        # A proxy of the environment knows nothing of this machine's own loopback.
        trust_env=parts.hostname not in _LOOPBACK,
    ) as http:
        yield Remote(ServerWire(http, url))
