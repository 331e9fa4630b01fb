"""Outgoing HTTP on httpx: one client, one pool of connections.

Never follows a redirect (a credential would go along), never sends loopback traffic through a
proxy, never retries: the rooms above decide what may be repeated.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx

from kelpie.core.errors import InvalidFieldError
from kelpie.ports.network import HttpRequest, NetworkError

_CONNECTIONS_MAX: Final = 256  # above the concurrent model calls of one node, with room to spare
_CONNECTIONS_IDLE_MAX: Final = 32
_LOOPBACK: Final = ("all://localhost", "all://127.0.0.1", "all://[::1]")
_BEFORE_SENDING: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
"""Failures that provably came before the first byte of the request."""


class _Response:
    """A response whose head has arrived."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._bodies: list[AsyncGenerator[bytes]] = []
        self._headers = {name.lower(): value for name, value in response.headers.items()}

    @property
    def status(self) -> int:
        """The status code."""
        return self._response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, names in lower case."""
        return self._headers

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            NetworkError: The body broke off or stalled past the idle timeout.
        """
        body = self._read()
        self._bodies.append(body)
        return body

    async def close(self) -> None:
        """Close the exchange, and the bodies that nobody read to their end."""
        for body in self._bodies:
            await body.aclose()
        await self._response.aclose()

    async def _read(self) -> AsyncGenerator[bytes]:
        try:
            async for chunk in self._response.aiter_bytes():
                yield chunk
        except httpx.HTTPError as error:
            raise _network_error(error, self._response.request.url) from error


class HostNetwork:
    """Implements the network port; a context manager that closes its connections.

    Args:
        unix_socket: Send every request to this socket instead of the URL's host.
        trust_environment: Whether proxies named by the environment apply (never to loopback).
    """

    def __init__(self, *, unix_socket: Path | None = None, trust_environment: bool = True) -> None:
        # The system's certificates, not a bundled list: a private authority is installed there.
        context = ssl.create_default_context()
        limits = httpx.Limits(
            max_connections=_CONNECTIONS_MAX, max_keepalive_connections=_CONNECTIONS_IDLE_MAX
        )
        path = str(unix_socket) if unix_socket else None
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(verify=context, limits=limits, uds=path),
            verify=context,
            limits=limits,
            mounts=dict.fromkeys(_LOOPBACK),
            trust_env=trust_environment and unix_socket is None,
            follow_redirects=False,
            headers={"accept-encoding": "identity"},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; exchanges in flight fail."""
        await self._client.aclose()

    @asynccontextmanager
    async def exchange(self, request: HttpRequest) -> AsyncGenerator[_Response]:
        """Send ``request`` and yield the response; leaving the context closes the exchange.

        Raises:
            NetworkError: No response head arrived; ``sent`` says whether the request may have.
            InvalidFieldError: The URL cannot be parsed.
        """
        prepared = self._prepare(request)
        try:
            response = await self._client.send(prepared, stream=True)
        except httpx.HTTPError as error:
            raise _network_error(error, prepared.url) from error
        arrived = _Response(response)
        try:
            yield arrived
        finally:
            await arrived.close()

    def _prepare(self, request: HttpRequest) -> httpx.Request:
        connect = request.connect_timeout_ms / 1_000
        idle = request.idle_timeout_ms / 1_000
        try:
            return self._client.build_request(
                request.method,
                request.url,
                headers=dict(request.headers),
                content=request.body,
                timeout=httpx.Timeout(connect=connect, pool=connect, read=idle, write=idle),
            )
        except httpx.InvalidURL as error:
            raise InvalidFieldError("url", f"{request.url[:200]!r}: {error}") from error


def _network_error(error: httpx.HTTPError, url: httpx.URL) -> NetworkError:
    sent = not isinstance(error, _BEFORE_SENDING)
    # Scheme, host and port only: a query may carry a credential.
    where = f"{url.scheme}://{url.netloc.decode('ascii', 'replace').rpartition('@')[2]}"
    detail = str(error) or "no further detail"
    return NetworkError(f"{where}: {type(error).__name__}: {detail}", sent=sent)
