"""The way into the product: always HTTP, over one of three roads.

A named server (``--url``); else the process that holds the store, on its Unix socket; else the
product itself, opened in this process. Commands cannot tell the roads apart.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httpx

from kelpie.cli.asgi import AppTransport
from kelpie.cli.errors import CommandError, bare_error
from kelpie.cli.patience import Patience
from kelpie.cli.processes import STOPPED, name_process, process_state
from kelpie.cli.sse import ServerEvent, read_events
from kelpie.cli.world import HolderInfo, OpenedApp, World
from kelpie.core.limits import INVOCATION_TIMEOUT_MS_MAX, STREAM_PING_INTERVAL_MS
from kelpie.core.quoting import quote_text
from kelpie.settings import Settings
from kelpie.settings.start import is_loopback

_CONNECT_TIMEOUT_S: Final = 10.0
_ANSWER_TIMEOUT_S: Final = INVOCATION_TIMEOUT_MS_MAX / 1000
_STREAM_TIMEOUT_S: Final = 4 * STREAM_PING_INTERVAL_MS / 1000
_PART: Final = re.compile(r"\A(?:body|query|path)\.")
_LOCAL_URL: Final = "http://kelpie"

Json = Any
"""A decoded JSON value."""

Parameters = Mapping[str, str | int | bool | None]
"""Query parameters; those that are None are left out."""


def _say_nothing(_: str) -> None:
    """Take no notice of what is waited for."""


class Api:
    """Requests to the product; failures are `CommandError` that name what to do next.

    Attributes:
        where: What answers, for people.
        is_local: Whether it certainly sees the same files as this process.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        *,
        where: str,
        is_local: bool,
        patience: Patience | None = None,
    ) -> None:
        self._http = http
        self._patience = patience or Patience(_say_nothing, who=where)
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

    async def patch(self, path: str, body: Mapping[str, Any]) -> Json:
        """Return the JSON answer of a PATCH."""
        return await self._send("PATCH", path, json=dict(body))

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
                raise self._refusal(response.content, response.status_code)
            async with aclosing(read_events(response.aiter_bytes())) as events:
                async for event in events:
                    if event.name == "error":
                        raise self._refusal(event.data.encode(), response.status_code)
                    yield event
        except httpx.TransportError as error:
            raise self._broken(error) from None
        finally:
            await response.aclose()

    async def _send(self, method: str, path: str, **options: Any) -> Json:
        response = await self._exchange(self._http.build_request(method, path, **options))
        if response.status_code >= 400:
            raise self._refusal(response.content, response.status_code)
        try:
            return response.json() if response.content else None
        except ValueError:
            raise CommandError("internal", f"{self.where} did not answer in JSON") from None

    async def _exchange(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        try:
            # What is posted may ask a model, and what is followed may not have happened yet.
            with self._patience.during(may_be_long=stream or request.method == "POST"):
                return await self._http.send(request, stream=stream)
        except httpx.TransportError as error:
            raise self._broken(error) from None

    def _refusal(self, content: bytes, status: int) -> CommandError:
        described = _error_of(content, status)
        if described is not None:
            return described
        message = f"{self.where} answered with HTTP status {status}, and not as Kelpie does"
        advice = "" if self.is_local else "; is the address right (--url, KELPIE_URL)?"
        return CommandError("unavailable", message + advice)

    def _broken(self, error: httpx.TransportError) -> CommandError:
        if isinstance(error, httpx.ReadTimeout):
            return CommandError(
                "deadline_exceeded", f"{self.where} did not answer in time; it may still act"
            )
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return self._silent(error)
        reason = str(error) or type(error).__name__
        if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
            reason = "the connection ended in the middle of an answer"
        message = f"{self.where} broke off: {reason}; it may still act"
        return CommandError("unavailable", message, next_step="kelpie doctor")

    def _silent(self, error: httpx.TransportError) -> CommandError:
        """Return the error of a server that cannot be reached at all."""
        message = f"{self.where} does not answer: {error}"
        if self.is_local:
            return CommandError("unavailable", message, next_step="kelpie doctor")
        if is_loopback(self._http.base_url.host):
            return CommandError("unavailable", message, next_step="kelpie serve")
        advice = "is the address right (--url, KELPIE_URL), and does kelpie serve run there?"
        return CommandError("unavailable", f"{message}; {advice}")


@asynccontextmanager
async def connect(
    world: World,
    settings: Settings,
    *,
    url: str,
    drive: bool,
    say: Callable[[str], None] = _say_nothing,
) -> AsyncGenerator[Api, None]:
    """Yield the way to the product: ``url`` if it is not empty, else the holder, else this process.

    ``say`` is told what is waited for once that takes long.

    Raises:
        CommandError: The URL is malformed, or the store's holder does not listen.
        KelpieError: The product cannot be opened in this process.
    """
    try:
        async with AsyncExitStack() as stack:
            pid = 0
            if url:
                http = _remote(url, world.environment.get("KELPIE_API_KEY", ""))
                where = url
            elif holder := find_holder(world, settings):
                http = _held(settings, holder)
                pid = holder.pid
                where = name_process(pid)
            else:
                opened = world.open_app(_quiet(settings), drive=drive)
                app = await stack.enter_async_context(opened)
                http = _inside(app, await stack.enter_async_context(asyncio.TaskGroup()))
                where = "this process"
            await stack.enter_async_context(http)
            who = f"{where}, which holds {settings.store.place}," if pid else where
            patience = Patience(say, who=who, pid=pid)
            yield Api(http, where=where, is_local=not url, patience=patience)
    except BaseExceptionGroup as errors:
        raise bare_error(errors) from None


def find_holder(world: World, settings: Settings) -> HolderInfo | None:
    """Return a process of this machine that holds the store, the one of our own name first."""
    for path in settings.store.list_places():
        holder = world.read_holder(path)
        if holder is not None:
            return holder
    return None


def _quiet(settings: Settings) -> Settings:
    """Return settings that log errors only, unless a person chose: the command says what happens.

    A server's log is read apart from what its clients print; here both come out of one process.
    """
    if settings.origin("log.level").layer != "default":
        return settings
    return dataclasses.replace(settings, log=dataclasses.replace(settings.log, level="error"))


def _inside(app: OpenedApp, group: asyncio.TaskGroup) -> httpx.AsyncClient:
    transport = AppTransport(app.asgi, group)
    return httpx.AsyncClient(transport=transport, base_url=_LOCAL_URL, timeout=_ANSWER_TIMEOUT_S)


def _remote(url: str, key: str) -> httpx.AsyncClient:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        message = f"--url or KELPIE_URL: {quote_text(url)} is not an http or https address"
        raise CommandError("invalid_field", message)
    return httpx.AsyncClient(
        base_url=url.rstrip("/"),
        headers={"authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(_ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
        # A proxy of the environment knows nothing of this machine's own loopback.
        trust_env=not is_loopback(parts.hostname),
    )


def _held(settings: Settings, holder: HolderInfo) -> httpx.AsyncClient:
    if not holder.address:
        found = f"{name_process(holder.pid)} holds {settings.store.place} and takes no requests"
        advice = "a command that runs, or a server that starts; wait for it"
        if process_state(holder.pid) in STOPPED:
            advice = "it is stopped; let it go on (fg in its terminal), or end it"
        message = f"{found}: {advice}"
        step = f"ps -p {holder.pid}" if holder.pid else "kelpie doctor"
        raise CommandError("store_held", message, next_step=step)
    transport = httpx.AsyncHTTPTransport(uds=holder.address.removeprefix("unix:"))
    timeout = httpx.Timeout(_ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
    return httpx.AsyncClient(transport=transport, base_url=_LOCAL_URL, timeout=timeout)


def _error_of(content: bytes, status: int) -> CommandError | None:
    """Return the error that a refusal describes; None if it is not Kelpie's."""
    try:
        body = json.loads(content)
        described = cast("dict[str, Any]", body["error"])
        code, message = str(described["code"]), str(described["message"])
        fields = cast("dict[str, Any]", described.get("fields") or {})
    except (ValueError, KeyError, TypeError):
        return None
    # Whoever typed an option or an argument knows nothing of the request's parts.
    message = _PART.sub("", message)
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
