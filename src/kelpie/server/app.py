"""The ASGI callable: one request through the gate, the table, and back.

Order of refusals: unknown path or method, draining, caller, size, JSON, fields. Nothing of a
refused request reaches an actor. An answer leaves only with the durable reply it carries.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, Final

from kelpie.cluster.messages import EdgeAnswer, EdgeCall
from kelpie.core.errors import (
    DrainingError,
    InvalidFieldError,
    KelpieError,
    NotOwnerError,
    OverloadedError,
)
from kelpie.core.ids import TENANT_DEFAULT
from kelpie.core.limits import (
    IDEMPOTENCY_KEY_BYTES_MAX,
    INVOCATION_TIMEOUT_MS,
    INVOCATION_TIMEOUT_MS_MAX,
    REQUEST_BODY_BYTES_MAX,
    STREAMS_CONCURRENT_MAX,
)
from kelpie.server import table
from kelpie.server.auth import LOCAL_SCOPE, authenticate
from kelpie.server.decoding import decode_body, decode_query
from kelpie.server.docs import render_page
from kelpie.server.errors import BodyTooLargeError, error_response
from kelpie.server.http import (
    EVENT_STREAM,
    CallerLeftError,
    Receive,
    Response,
    Scope,
    Send,
    Stream,
    header,
    read_body,
    send_response,
    send_stream,
    while_connected,
)
from kelpie.server.openapi import describe
from kelpie.server.operations import Answer, Call, Operation
from kelpie.server.passed import pack_answer, pack_call, unpack_answer, unpack_call, with_key
from kelpie.server.ports import Deps
from kelpie.server.routing import Router

REQUEST_ID_CHARS_MAX: Final = 128  # what a caller may have echoed back to it
REQUEST_ID_BYTES: Final = 8
_NANOSECONDS_PER_MS: Final = 1_000_000
# Drawn for so many requests at once: who asks the kernel lets go of the interpreter, and under load
# waits to get it back for longer than most of a request takes.
REQUEST_IDS_DRAWN: Final = 64


def create_app(deps: Deps) -> App:
    """Return the ASGI callable over ``deps``."""
    return App(deps=deps, router=_route_all(deps.version))


@cache
def _route_all(version: str) -> Router:
    """Return the one router of this version: describing every type costs far more than the rest."""
    operations = table.operations()
    document = describe(operations, version=version)
    page = render_page(document)
    return Router((*operations, *table.documentation(document, page)))


class App:
    """Serves requests; keeps nothing between them but the count of open streams and unused ids."""

    def __init__(self, *, deps: Deps, router: Router) -> None:
        self._deps = deps
        self._router = router
        self._streams = 0
        self._request_ids: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request.

        Raises:
            RuntimeError: The scope is not HTTP.
        """
        if scope["type"] != "http":
            raise RuntimeError(f"only HTTP is served here, not {scope['type']}")
        request_id = self._request_id(scope)
        started_ns = self._deps.clock.boot_ns()
        exchange = _Exchange(scope, receive, send, request_id)
        try:
            await self._serve(exchange)
        except CallerLeftError:
            exchange.status = 499
        except Exception as error:  # noqa: BLE001  the last border: a bug is one caller's 500
            await self._report(exchange, error)
        finally:
            self._measure(exchange, started_ns)

    async def _serve(self, exchange: _Exchange) -> None:
        try:
            answer = await self._answer(exchange)
        except KelpieError as error:
            answer = error_response(error, safe=exchange.safe)
        if isinstance(answer, Stream) and exchange.scope["method"] == "HEAD":
            await answer.chunks.aclose()
            answer = Response(body=b"", media=EVENT_STREAM)
        if isinstance(answer, Response):
            await exchange.respond(answer)
            return
        self._streams += 1
        try:
            exchange.status = 200
            answer.headers.append((b"x-request-id", exchange.request_id))
            await send_stream(exchange.send, exchange.receive, answer)
        finally:
            self._streams -= 1

    async def _answer(self, exchange: _Exchange) -> Answer:
        scope = exchange.scope
        operation, parameters = self._router.find(scope["method"], _path_of(scope))
        exchange.route = operation.path
        key = _idempotency_key(scope)
        exchange.safe = operation.method in {"GET", "DELETE"} or key is not None
        if not operation.while_draining and not self._deps.runtime.accepting():
            raise DrainingError("the server is shutting down; try again in a moment")
        principal = "" if operation.public else authenticate(scope, self._deps.api_keys)
        if operation.streams and self._streams >= STREAMS_CONCURRENT_MAX:
            raise OverloadedError(f"{STREAMS_CONCURRENT_MAX:,} streams are open; try again later")
        query = decode_query(scope["query_string"], operation.query)
        raw = await _body(operation, exchange)
        body = decode_body(raw, operation.body)
        call: Call[Any, Any] = Call(
            deps=self._deps,
            tenant=TENANT_DEFAULT,
            principal=principal,
            path=parameters,
            query=query,
            body=body,
            key=key,
            local=bool(scope.get(LOCAL_SCOPE)),
            accepts_events=b"text/event-stream" in (header(scope, b"accept") or b""),
            last_event=(header(scope, b"last-event-id") or b"").decode("latin-1"),
            raw=raw,
            timeout_ms=_timeout_ms(scope),
            prefers_async=_prefers_async(scope),
        )
        telemetry = self._deps.telemetry
        with telemetry.span("http.server", route=operation.path, method=operation.method):
            if operation.waits:
                return await while_connected(exchange.receive, _run(operation, call))
            if operation.at_owner:
                return await self._at_owner(exchange, operation, call)
            return await operation.handler(call)

    # --- what the owner of an actor does --------------------------------------------------------

    async def _at_owner(
        self, exchange: _Exchange, operation: Operation[Any, Any], call: Call[Any, Any]
    ) -> Answer:
        """Answer here, or have the node answer that owns what is asked for."""
        forwarding, clock = self._deps.forwarding, self._deps.clock
        timeout_ms = call.timeout_ms or INVOCATION_TIMEOUT_MS
        ends_ns = clock.boot_ns() + timeout_ms * _NANOSECONDS_PER_MS
        try:
            return await operation.handler(call)
        except NotOwnerError as error:
            if forwarding is None:
                raise
            refusal = error
        scope, keyed = exchange.scope, with_key(call)
        request = pack_call(scope["method"], _path_of(scope), scope["query_string"], keyed)
        here = partial(operation.handler, keyed)
        answer = await forwarding.insist(request, here, refusal, ends_ns=ends_ns)
        return unpack_answer(answer) if isinstance(answer, EdgeAnswer) else answer

    async def answer_passed(self, request: EdgeCall, timeout_ms: int) -> EdgeAnswer:
        """Answer what another node's edge passed on; it goes no further than this node.

        Raises:
            NotOwnerError: The actor is not this node's; the error names the owner, if known.
            KelpieError: As the operation refuses.
        """
        operation, parameters = self._router.find(request.method, request.path)
        if not self._deps.runtime.accepting():
            raise DrainingError("the server is shutting down; try again in a moment")
        call = unpack_call(request, operation, parameters, self._deps, timeout_ms)
        with self._deps.telemetry.span("http.passed", route=operation.path, method=request.method):
            response = await operation.handler(call)
        assert isinstance(response, Response), "what is done at the owner does not stream"
        return pack_answer(response)

    def _request_id(self, scope: Scope) -> bytes:
        given = header(scope, b"x-request-id")
        if given and len(given) <= REQUEST_ID_CHARS_MAX and given.isascii():
            return given
        if not self._request_ids:
            drawn = self._deps.rng.bytes(REQUEST_ID_BYTES * REQUEST_IDS_DRAWN).hex().encode()
            step = 2 * REQUEST_ID_BYTES
            self._request_ids = [drawn[at : at + step] for at in range(0, len(drawn), step)]
        return self._request_ids.pop()

    async def _report(self, exchange: _Exchange, error: Exception) -> None:
        self._deps.telemetry.log(
            "error",
            "http.request_failed",
            request_id=exchange.request_id.decode(),
            route=exchange.route,
            error=repr(error),
        )
        if exchange.status == 0:
            reference = exchange.request_id.decode()
            failure = KelpieError(f"the server failed; its log names request {reference}")
            await exchange.respond(error_response(failure, safe=False))

    def _measure(self, exchange: _Exchange, started_ns: int) -> None:
        telemetry = self._deps.telemetry
        seconds = (self._deps.clock.boot_ns() - started_ns) / 1e9
        route, method = exchange.route, exchange.scope["method"][:10]
        telemetry.count(
            "http.server.requests", route=route, method=method, status=str(exchange.status)
        )
        telemetry.observe("http.server.request.duration", seconds, route=route)


class _Exchange:
    """One request on its way: what is known of it, and whether it was answered."""

    __slots__ = ("receive", "request_id", "route", "safe", "scope", "send", "status")

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: bytes) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.request_id = request_id
        self.route = "unmatched"
        self.safe = False
        self.status = 0

    async def respond(self, response: Response) -> None:
        """Send a complete response; remember that the request was answered."""
        self.status = response.status
        response.headers.append((b"x-request-id", self.request_id))
        await send_response(self.send, response, with_body=self.scope["method"] != "HEAD")


def _path_of(scope: Scope) -> str:
    """Return the path as it was received, percent-encoded."""
    raw_path = scope.get("raw_path")
    path: str = raw_path.decode("latin-1") if raw_path else scope["path"]
    return path


async def _run(operation: Operation[Any, Any], call: Call[Any, Any]) -> Response | Stream:
    return await operation.handler(call)


async def _body(operation: Operation[Any, Any], exchange: _Exchange) -> bytes:
    """Return the body; operations of methods without a body never read one."""
    if operation.method == "GET":
        return b""
    data = await read_body(exchange.scope, exchange.receive, REQUEST_BODY_BYTES_MAX)
    if data is None:
        raise BodyTooLargeError
    return data


def _timeout_ms(scope: Scope) -> int | None:
    value = header(scope, b"x-kelpie-timeout-ms")
    if value is None:
        return None
    bound = INVOCATION_TIMEOUT_MS_MAX
    if not value.isdigit() or len(value) > len(str(bound)) or not 1 <= int(value) <= bound:
        problem = f"must be a whole number of milliseconds, 1 to {bound:,}"
        raise InvalidFieldError("header.X-Kelpie-Timeout-Ms", problem)
    return int(value)


def _prefers_async(scope: Scope) -> bool:
    """Whether the caller would rather have a 202 than wait.

    Source: RFC 7240, section 4.1; preferences that are not known are not applied.
    """
    value = header(scope, b"prefer")
    if value is None:
        return False
    preferences = (each.partition(b";")[0].strip().lower() for each in value.split(b","))
    return b"respond-async" in preferences


def _idempotency_key(scope: Scope) -> str | None:
    value = header(scope, b"idempotency-key")
    if value is None:
        return None
    if not 1 <= len(value) <= IDEMPOTENCY_KEY_BYTES_MAX or not value.isascii():
        bound = IDEMPOTENCY_KEY_BYTES_MAX
        raise InvalidFieldError("header.Idempotency-Key", f"must be 1 to {bound} ASCII characters")
    return value.decode("ascii")
