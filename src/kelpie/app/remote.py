"""The typed references of actor classes over HTTP.

    async with kelpie.connect("http://127.0.0.1:8283") as remote:
        await remote.ref(Counter, "a").add(1)

Arguments and results pass the same method types as in process; errors are the server's, by code.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from kelpie.actors.api.definition import Actor
from kelpie.actors.api.method import Method
from kelpie.actors.api.reference import Address
from kelpie.core.errors import DeadlineError, InvalidFieldError, KelpieError, UnavailableError
from kelpie.core.limits import INVOCATION_TIMEOUT_MS
from kelpie.core.quoting import quote_text

A = TypeVar("A", bound=Actor[Any])

CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_MARGIN_S: Final = 5.0  # between the server's deadline and the client's own
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_encode: Final = msgspec.json.Encoder().encode


class _Reply(msgspec.Struct):
    result: msgspec.Raw


class _Described(msgspec.Struct):
    code: str
    message: str
    retriable: bool = False
    fields: dict[str, Any] = {}


class _Refusal(msgspec.Struct):
    error: _Described


class Remote:
    """The actors of one server. Made by `connect`. Implements `Caller`."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self._http = http
        self._url = url

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
        message = method.pack(args, kwargs)
        values = {name: getattr(message, name) for name in message.__struct_fields__}
        timeout_ms = target.timeout_ms or INVOCATION_TIMEOUT_MS
        headers = {
            "content-type": "application/json",
            "x-kelpie-timeout-ms": str(timeout_ms),
        }
        if target.idempotency_key is not None:
            headers["idempotency-key"] = target.idempotency_key
        names = (target.type_name, target.key, method.name)
        path = "/v1/actors/" + "/".join(quote(name, safe="") for name in names)
        response = await self._send(path, _encode(values), headers, timeout_ms)
        if response.status_code != 200:
            raise error_of(response)
        try:
            result = msgspec.json.decode(response.content, type=_Reply).result
            return _decoder(method).decode(result)
        except msgspec.MsgspecError as error:
            message_text = f"{self._url} answered {method.name} with another type: {error}"
            raise InvalidFieldError("result", message_text) from error

    async def _send(
        self, path: str, content: bytes, headers: dict[str, str], timeout_ms: int
    ) -> httpx.Response:
        wait_s = timeout_ms / 1000 + ANSWER_MARGIN_S
        timeout = httpx.Timeout(wait_s, connect=CONNECT_TIMEOUT_S)
        try:
            return await self._http.post(path, content=content, headers=headers, timeout=timeout)
        except httpx.ReadTimeout:
            text = f"{self._url} did not answer within {wait_s:,.1f} s; its outcome may follow"
            raise DeadlineError(text, timeout_ms=timeout_ms) from None
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            text = f"{self._url} does not answer: {why}; what was asked for may have happened"
            raise UnavailableError(text) from error


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
        yield Remote(http, url)


@cache
def _decoder(method: Method[Any, Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(method.result)


def error_of(response: httpx.Response) -> KelpieError:
    """Return the typed error that a refusing response describes.

    A code that this program does not know becomes a `KelpieError` with that code.
    """
    try:
        described = msgspec.json.decode(response.content, type=_Refusal).error
    except msgspec.MsgspecError:
        text = f"the server answered with HTTP status {response.status_code}"
        return KelpieError(text, http_status=response.status_code)
    kind = _errors_by_code().get(described.code)
    if kind is None:
        # Code and retriability are facts of a class, so what nobody knows gets one of its own.
        facts = {"code": described.code, "retriable": described.retriable}
        kind = cast("type[KelpieError]", type("RemoteError", (KelpieError,), facts))
    error = kind.__new__(kind)
    KelpieError.__init__(error, described.message, **described.fields)
    for name, value in described.fields.items():
        if name in kind.__init__.__annotations__ and not hasattr(error, name):
            setattr(error, name, value)
    return error


@cache
def _errors_by_code() -> dict[str, type[KelpieError]]:
    return {kind.code: kind for kind in _tree(KelpieError)}


def _tree(kind: type[KelpieError]) -> Iterator[type[KelpieError]]:
    for each in kind.__subclasses__():
        yield from _tree(each)
    yield kind
