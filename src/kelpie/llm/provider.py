"""One model provider over HTTP: moves bytes between a wire and the network.

Owns deadlines, retries, the bounds of a body, and what is told to telemetry. Knows no dialect.
Invariants: a call ends within its timeout; it is repeated only while nothing of an answer has been
handed out; no error message holds the key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    aclosing,
    contextmanager,
    suppress,
)
from typing import Final
from urllib.parse import urlsplit

import msgspec

from kelpie.core.errors import InvalidFieldError, ModelError
from kelpie.core.limits import (
    MODEL_CONNECT_TIMEOUT_MS,
    MODEL_DRAIN_TIMEOUT_MS,
    MODEL_ERROR_BYTES_MAX,
    MODEL_RESPONSE_BYTES_MAX,
    MODEL_TIMEOUT_MS,
)
from kelpie.llm.listing import decode_models
from kelpie.llm.model import Delta, ModelAnswer, ModelRequest
from kelpie.llm.refusals import TransientModelError, describe, error_of, read_refusal
from kelpie.llm.retry import Deadline, RetryPolicy, read_retry_after_ms
from kelpie.llm.sse import ServerSentEvent, SseParser
from kelpie.llm.wire import Wire
from kelpie.ports.clock import Clock
from kelpie.ports.network import HttpRequest, HttpResponse, Network, NetworkError
from kelpie.ports.rng import Rng
from kelpie.ports.telemetry import Attribute, Telemetry

_CALL_ID_BYTES: Final = 12  # 96 random bits: no two calls of a conversation meet
_USER_AGENT: Final = "kelpie"
_TOO_LATE: Final = "the answer was not complete within the timeout"


class HttpModelProvider:
    """Calls the models of one endpoint; safe for any number of calls at once."""

    def __init__(
        self,
        *,
        name: str,
        base_url: str,
        api_key: str,
        wire: Wire,
        network: Network,
        clock: Clock,
        rng: Rng,
        telemetry: Telemetry,
        retry: RetryPolicy | None = None,
        timeout_ms: int = MODEL_TIMEOUT_MS,
        capture_content: bool = False,
    ) -> None:
        self._name = name
        self._base_url = base_url
        self._api_key = api_key
        self._wire = wire
        self._network = network
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry
        self._retry = retry or RetryPolicy()
        self._timeout_ms = timeout_ms
        self._capture_content = capture_content
        address = urlsplit(base_url)
        self._attributes: dict[str, Attribute] = {
            "gen_ai.provider.name": name,
            "server.address": address.hostname or "",
            "server.port": address.port or (443 if address.scheme == "https" else 80),
        }

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Delta | ModelAnswer, None]:
        """Yield deltas as they arrive, then exactly one `ModelAnswer`, last.

        Close the iterator (``contextlib.aclosing``) when leaving it early: that closes the
        exchange. Retries transient failures before the first delta only, with jitter, honouring
        ``retry-after``, all within the timeout.

        Raises:
            InvalidFieldError: The handle, an option or a message does not fit this provider.
            ModelError: The provider refused, failed, or answered garbage.
        """
        model = self._strip_prefix(request.model)
        http = self._request("POST", self._wire.chat_path, self._wire.encode(model, request))
        deadline = Deadline(clock=self._clock, timeout_ms=self._timeout_ms)
        with self._span(model, request):
            retries = 0
            begun = False
            while True:
                try:
                    async with aclosing(self._attempt(http, deadline)) as batches:
                        async for batch in batches:
                            begun = begun or bool(batch)
                            for item in batch:
                                if isinstance(item, ModelAnswer):
                                    yield self._complete(item, model, deadline)
                                else:
                                    yield item
                except ModelError as error:
                    retries += 1
                    delay_ms = None if begun else self._plan_retry(error, retries, deadline)
                    if delay_ms is None:
                        raise self._fail(error, model, retries) from error
                else:
                    return
                self._telemetry.count("llm.retries", provider=self._name)
                await self._clock.sleep(delay_ms / 1000)

    async def list_models(self) -> list[str]:
        """Return the model names the endpoint offers, without the provider's prefix.

        Raises:
            ModelError: The endpoint does not answer, or not with such a list.
        """
        deadline = Deadline(clock=self._clock, timeout_ms=MODEL_CONNECT_TIMEOUT_MS)
        request = self._request("GET", self._wire.models_path, b"")
        try:
            async with AsyncExitStack() as stack:
                response = await self._open(request, deadline, stack)
                body = await _Body(response, deadline, stack).read(
                    size_bytes_max=MODEL_RESPONSE_BYTES_MAX
                )
            return decode_models(body)
        except ModelError as error:
            raise self._named(error) from error

    def _strip_prefix(self, handle: str) -> str:
        provider, slash, model = handle.partition("/")
        if provider != self._name or not slash or not model:
            raise InvalidFieldError("model", f"{handle[:64]!r} must read {self._name}/<name>")
        return model

    def _request(self, method: str, path: str, body: bytes) -> HttpRequest:
        headers = {"user-agent": _USER_AGENT, **self._wire.headers(self._api_key)}
        if body:
            headers["content-type"] = "application/json"
        return HttpRequest(
            method=method,
            url=self._base_url + path,
            headers=headers,
            body=body,
            connect_timeout_ms=min(MODEL_CONNECT_TIMEOUT_MS, self._timeout_ms),
            idle_timeout_ms=self._timeout_ms,
        )

    async def _attempt(
        self, request: HttpRequest, deadline: Deadline
    ) -> AsyncGenerator[Sequence[Delta | ModelAnswer], None]:
        """Yield what one exchange brings, in the pieces it comes in; the answer is last."""
        assembler = self._wire.assembler(new_call_id=self._new_call_id)
        async with AsyncExitStack() as stack:
            response = await self._open(request, deadline, stack)
            body = _Body(response, deadline, stack)
            if "json" in response.headers.get("content-type", ""):
                # A server that does not stream, or a refusal that calls itself a success.
                whole = await body.read(size_bytes_max=MODEL_RESPONSE_BYTES_MAX)
                yield assembler.feed(ServerSentEvent(b"", whole))
            else:
                parser = SseParser()
                while not assembler.done:
                    chunk = await body.next()
                    events = parser.close() if chunk is None else parser.feed(chunk)
                    deltas = [delta for event in events for delta in assembler.feed(event)]
                    if deltas:
                        yield deltas
                    if chunk is None:
                        break
                else:
                    await body.drain()
        yield [assembler.finish()]

    async def _open(
        self, request: HttpRequest, deadline: Deadline, stack: AsyncExitStack
    ) -> HttpResponse:
        """Return a successful response once its head has come; ``stack`` closes the exchange."""
        with _translating():
            async with asyncio.timeout(deadline.remaining_ms() / 1000):
                response = await stack.enter_async_context(self._network.exchange(request))
        if response.status == 200:
            return response
        asked_ms = read_retry_after_ms(response.headers, now_ms=self._clock.now_ms())
        try:
            refusal = await _Body(response, deadline, stack).read(
                size_bytes_max=MODEL_ERROR_BYTES_MAX, cut=True
            )
        except ModelError:
            refusal = b""  # the refusal counts, not that its body broke off
        raise error_of(read_refusal(refusal), status=response.status, retry_after_ms=asked_ms)

    def _plan_retry(self, error: ModelError, retry: int, deadline: Deadline) -> int | None:
        """Return how long to wait before the next attempt, None when there is to be none."""
        if not isinstance(error, TransientModelError) or retry > self._retry.retries_max:
            return None
        delay_ms = self._retry.delay_ms(
            retry=retry, asked_ms=error.retry_after_ms, fraction=self._rng.fraction()
        )
        return delay_ms if delay_ms < deadline.remaining_ms() else None

    def _new_call_id(self) -> str:
        return f"call_{self._rng.bytes(_CALL_ID_BYTES).hex()}"

    def _named(self, error: ModelError) -> ModelError:
        """Return ``error`` with a message for people."""
        message = describe(error, provider=self._name, secret=self._api_key)
        if isinstance(error, TransientModelError):
            return TransientModelError(
                error.reason, message, status=error.status, retry_after_ms=error.retry_after_ms
            )
        return ModelError(error.reason, message, status=error.status)

    def _span(self, model: str, request: ModelRequest) -> AbstractContextManager[None]:
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
            **self._attributes,
        }
        for option in ("temperature", "max_tokens"):
            if option in request.options:
                attributes[f"gen_ai.request.{option}"] = request.options[option]
        if self._capture_content:
            attributes["gen_ai.input.messages"] = msgspec.json.encode(request.messages).decode()
        return self._telemetry.span(f"chat {model}", **attributes)

    def _complete(self, answer: ModelAnswer, model: str, deadline: Deadline) -> ModelAnswer:
        """Report a finished call, and return its answer with the model's name filled in."""
        usage, labels = answer.usage, {"provider": self._name, "model": model}
        duration_s = (self._timeout_ms - deadline.remaining_ms()) / 1000
        self._telemetry.observe("gen_ai.client.operation.duration", duration_s, **labels)
        for kind, tokens in (("input", usage.prompt_tokens), ("output", usage.completion_tokens)):
            self._telemetry.observe("gen_ai.client.token.usage", tokens, type=kind, **labels)
        output = msgspec.json.encode(answer).decode() if self._capture_content else None
        self._telemetry.log(
            "debug",
            "llm.call.finished",
            provider=self._name,
            model=model,
            finish=answer.finish,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            duration_s=duration_s,
            output=output,
        )
        return answer if answer.model else msgspec.structs.replace(answer, model=model)

    def _fail(self, error: ModelError, model: str, attempts: int) -> ModelError:
        """Report a failed call, and return its error with a message for people."""
        named = self._named(error)
        self._telemetry.count("llm.errors", provider=self._name, reason=error.reason)
        self._telemetry.log(
            "warning",
            "llm.call.failed",
            provider=self._name,
            model=model,
            reason=error.reason,
            status=error.status,
            attempts=attempts,
            error=named.message,
        )
        return named


class _Body:
    """A response's body, read within a deadline; ``stack`` ends the reading, however far it got."""

    def __init__(self, response: HttpResponse, deadline: Deadline, stack: AsyncExitStack) -> None:
        self._chunks = response.chunks()
        self._deadline = deadline
        close: Callable[[], Awaitable[None]] | None = getattr(self._chunks, "aclose", None)
        if close is not None:  # a generator, which would otherwise be closed at some later time
            stack.push_async_callback(close)

    async def next(self) -> bytes | None:
        """Return the next chunk, None at the end.

        Raises:
            TransientModelError: The body broke off, or the deadline passed.
        """
        remaining_ms = self._deadline.remaining_ms()
        if remaining_ms == 0:  # a flood leaves the timer below no chance to fire
            raise TransientModelError("timeout", _TOO_LATE)
        with _translating():
            async with asyncio.timeout(remaining_ms / 1000):
                return await anext(self._chunks, None)

    async def read(self, *, size_bytes_max: int, cut: bool = False) -> bytes:
        """Return the whole body; with ``cut`` no more than its beginning.

        Raises:
            ModelError: The body is larger than the bound, broke off, or took too long.
        """
        pieces: list[bytes] = []
        size_bytes = 0
        while (chunk := await self.next()) is not None:
            pieces.append(chunk)
            size_bytes += len(chunk)
            if size_bytes > size_bytes_max:
                if not cut:
                    raise ModelError(
                        "too_large", f"the response is larger than {size_bytes_max:,} bytes"
                    )
                break
        return b"".join(pieces)[:size_bytes_max]

    async def drain(self) -> None:
        """Read to the end, if it comes soon, so that the connection can carry another call."""
        with suppress(NetworkError, TimeoutError):  # the answer is whole already
            async with asyncio.timeout(MODEL_DRAIN_TIMEOUT_MS / 1000):
                while await anext(self._chunks, None) is not None:
                    pass


@contextmanager
def _translating() -> Generator[None, None, None]:
    """Turn what a network raises into the errors of this room."""
    try:
        yield
    except NetworkError as error:
        raise TransientModelError("unreachable", error.message) from error
    except TimeoutError as error:
        raise TransientModelError("timeout", _TOO_LATE) from error
