"""The way into the product: always HTTP, over one of three roads.

A named server (``--url``); else the process that holds the store, on its Unix socket; else the
product itself, opened in this process. Commands cannot tell the roads apart.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httpx

from kelpie.cli.asgi import AppTransport
from kelpie.cli.errors import CommandError, bare_error
from kelpie.cli.sse import ServerEvent, read_events
from kelpie.cli.world import HolderInfo, OpenedApp, World
from kelpie.core.limits import INVOCATION_TIMEOUT_MS_MAX, STREAM_PING_INTERVAL_MS
from kelpie.settings import Settings

_CONNECT_TIMEOUT_S: Final = 10.0
_ANSWER_TIMEOUT_S: Final = INVOCATION_TIMEOUT_MS_MAX / 1000
_STREAM_TIMEOUT_S: Final = 4 * STREAM_PING_INTERVAL_MS / 1000
_LOCAL_URL: Final = "http://kelpie"

Json = Any
"""A decoded JSON value."""

Parameters = Mapping[str, str | int | bool | None]
"""Query parameters; those that are None are left out."""


class Api:
    """Requests to the product; failures are `CommandError` that name what to do next.

    Attributes:
        where: What answers, for people.
        is_local: Whether it certainly sees the same files as this process.
    """

    def __init__(self, http: httpx.AsyncClient, *, where: str, is_local: bool) -> None:
        self._http = http
        self.where = where
        self.is_local = is_local

    async def get(self, path: str, **parameters: str | int | bool | None) -> Json:
        """Return the JSON answer of a GET; parameters that are None are left out."""
        return await self._send("GET", path, params=_given(parameters))

    async def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Json:
        """Return the JSON answer of a POST."""
        return await self._send("POST", path, json=dict(body or {}), headers=headers)

    async def delete(self, path: str) -> Json:
        """Return the JSON answer of a DELETE."""
        return await self._send("DELETE", path)

    async def stream(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        parameters: Parameters | None = None,
    ) -> AsyncGenerator[ServerEvent, None]:
        """Yield the server-sent events of one request as they come."""
        timeout = httpx.Timeout(_STREAM_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
        request = self._http.build_request(
            method,
            path,
            params=_given(parameters or {}),
            json=body,
            headers={"accept": "text/event-stream"},
            timeout=timeout,
        )
        response = await self._exchange(request, stream=True)
        try:
            if response.status_code >= 400:
                await response.aread()
                raise refusal_of(response)
            async with aclosing(read_events(response.aiter_bytes())) as events:
                async for event in events:
                    if event.name == "error":
                        raise _error_of(event.data.encode(), response.status_code)
                    yield event
        except httpx.TransportError as error:
            raise self._broken(error) from None
        finally:
            await response.aclose()

    async def _send(self, method: str, path: str, **options: Any) -> Json:
        response = await self._exchange(self._http.build_request(method, path, **options))
        if response.status_code >= 400:
            raise refusal_of(response)
        try:
            return response.json() if response.content else None
        except ValueError:
            raise CommandError("internal", f"{self.where} did not answer in JSON") from None

    async def _exchange(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        try:
            return await self._http.send(request, stream=stream)
        except httpx.TransportError as error:
            raise self._broken(error) from None

    def _broken(self, error: httpx.TransportError) -> CommandError:
        if isinstance(error, httpx.ReadTimeout):
            return CommandError(
                "deadline_exceeded", f"{self.where} did not answer in time; it may still act"
            )
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return CommandError(
                "unavailable", f"{self.where} does not answer: {error}", next_step="kelpie serve"
            )
        message = f"{self.where} broke off: {str(error) or type(error).__name__}; it may still act"
        return CommandError("unavailable", message, next_step="kelpie doctor")


@asynccontextmanager
async def connect(
    world: World, settings: Settings, *, url: str | None, drive: bool
) -> AsyncGenerator[Api, None]:
    """Yield the way to the product: ``url`` or ``KELPIE_URL``, else the holder, else this process.

    Raises:
        CommandError: The URL is malformed, or the store's holder does not listen.
        KelpieError: The product cannot be opened in this process.
    """
    named = url or world.environment.get("KELPIE_URL")
    try:
        async with AsyncExitStack() as stack:
            if named:
                http = _remote(named, world.environment.get("KELPIE_API_KEY", ""))
                where = named
            elif holder := world.read_holder(settings.store.path):
                http = _held(settings, holder)
                where = f"process {holder.pid}"
            else:
                app = await stack.enter_async_context(world.open_app(settings, drive=drive))
                http = _inside(app, await stack.enter_async_context(asyncio.TaskGroup()))
                where = "this process"
            await stack.enter_async_context(http)
            yield Api(http, where=where, is_local=not named)
    except BaseExceptionGroup as errors:
        raise bare_error(errors) from None


def _inside(app: OpenedApp, group: asyncio.TaskGroup) -> httpx.AsyncClient:
    transport = AppTransport(app.asgi, group)
    return httpx.AsyncClient(transport=transport, base_url=_LOCAL_URL, timeout=_ANSWER_TIMEOUT_S)


def _remote(url: str, key: str) -> httpx.AsyncClient:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise CommandError("invalid_field", f"--url: {url[:80]!r} is not an http or https address")
    local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    return httpx.AsyncClient(
        base_url=url.rstrip("/"),
        headers={"authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(_ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
        # A proxy of the environment knows nothing of this machine's own loopback.
        trust_env=not local,
    )


def _held(settings: Settings, holder: HolderInfo) -> httpx.AsyncClient:
    if not holder.address:
        message = (
            f"process {holder.pid} holds {settings.store.path} and does not listen yet; "
            "wait for it or stop it"
        )
        raise CommandError("store_held", message, next_step=f"ps -p {holder.pid}")
    transport = httpx.AsyncHTTPTransport(uds=holder.address.removeprefix("unix:"))
    timeout = httpx.Timeout(_ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
    return httpx.AsyncClient(transport=transport, base_url=_LOCAL_URL, timeout=timeout)


def refusal_of(response: httpx.Response) -> CommandError:
    """Return the error that a refusing response describes."""
    return _error_of(response.content, response.status_code)


def _error_of(content: bytes, status: int) -> CommandError:
    try:
        body = json.loads(content)
        described = cast("dict[str, Any]", body["error"])
        code, message = str(described["code"]), str(described["message"])
        fields = cast("dict[str, Any]", described.get("fields") or {})
    except (ValueError, KeyError, TypeError):
        code, message, fields = "internal", f"the server answered with HTTP status {status}", {}
    return CommandError(code, message, fields=fields, http_status=status)


def _given(parameters: Parameters) -> dict[str, str | int | bool]:
    return {name: value for name, value in parameters.items() if value is not None}


def items_of(answer: Json, key: str = "") -> list[dict[str, Any]]:
    """Return the rows of a list's answer: an array, or the page's ``key``.

    Raises:
        CommandError: The answer is something else.
    """
    rows = cast("dict[str, Any]", answer).get(key) if isinstance(answer, dict) else answer
    if not isinstance(rows, list):
        raise CommandError("internal", "the server answered a list's request with something else")
    return cast("list[dict[str, Any]]", rows)
