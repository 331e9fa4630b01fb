"""One server as a client meets it: requests out, typed answers and typed errors back.

Never repeats a request by itself: what was lost on the way may have happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final, TypeVar

import httpx
import msgspec

from kelpie.actors.described import Described
from kelpie.core.errors import DeadlineError, InvalidFieldError, KelpieError, UnavailableError
from kelpie.core.limits import INVOCATION_TIMEOUT_MS

T = TypeVar("T")

CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_MARGIN_S: Final = 5.0  # between the server's deadline and the client's own

_encode: Final = msgspec.json.Encoder().encode


class _Refusal(msgspec.Struct):
    error: Described


class ServerWire:
    """Requests to one server."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self._http = http
        self.url = url

    async def get(
        self, path: str, kind: type[T], parameters: Mapping[str, Any], *, wait_ms: int = 0
    ) -> T:
        """Return the answer of a GET; parameters that are None are left out.

        Raises:
            KelpieError: As `send`.
        """
        given = {name: value for name, value in parameters.items() if value is not None}
        timeout_ms = INVOCATION_TIMEOUT_MS + wait_ms
        response = await self.send("GET", path, parameters=given, timeout_ms=timeout_ms)
        found: T = self.read(response, kind)
        return found

    async def post(
        self, path: str, kind: Any, body: Any, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Return the answer of a POST.

        Raises:
            KelpieError: As `send`.
        """
        response = await self.send("POST", path, content=_encode(body), headers=headers)
        return self.read(response, kind)

    async def send(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_ms: int = INVOCATION_TIMEOUT_MS,
    ) -> httpx.Response:
        """Return a response that is no refusal.

        Raises:
            DeadlineError: The server did not answer in time; the outcome may still follow.
            UnavailableError: The server does not answer, or broke off; it may still act.
            KelpieError: What the server refuses, by its code.
        """
        wait_s = timeout_ms / 1000 + ANSWER_MARGIN_S
        sent = dict(headers or {})
        if content is not None:
            sent["content-type"] = "application/json"
        try:
            response = await self._http.request(
                method,
                path,
                params=dict(parameters or {}),
                content=content,
                headers=sent,
                timeout=httpx.Timeout(wait_s, connect=CONNECT_TIMEOUT_S),
            )
        except httpx.ReadTimeout:
            text = f"{self.url} did not answer within {wait_s:,.1f} s; its outcome may follow"
            raise DeadlineError(text, timeout_ms=timeout_ms) from None
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            text = f"{self.url} does not answer: {why}; what was asked for may have happened"
            raise UnavailableError(text) from error
        if response.status_code >= 300:
            raise error_of(response)
        return response

    def read(self, response: httpx.Response, kind: Any) -> Any:
        """Return the response's body as ``kind``.

        Raises:
            InvalidFieldError: It is of another type.
        """
        try:
            return decoder_of(kind).decode(response.content)
        except msgspec.MsgspecError as error:
            text = f"{self.url} answered {response.request.url.path} with another type: {error}"
            raise InvalidFieldError("answer", text) from error


@cache
def decoder_of(kind: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder of a type, made once."""
    return msgspec.json.Decoder(kind)


def error_of(response: httpx.Response) -> KelpieError:
    """Return the typed error that a refusing response describes.

    A code that this program does not know becomes a `KelpieError` with that code.
    """
    try:
        return msgspec.json.decode(response.content, type=_Refusal).error.restore()
    except msgspec.MsgspecError:
        text = f"the server answered with HTTP status {response.status_code}"
        return KelpieError(text, http_status=response.status_code)
