"""One operation: what a route accepts, promises and may refuse.

The same table drives routing, decoding, the OpenAPI document and the page at ``/docs``, so none of
them can disagree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import msgspec

from kelpie.actors.commands import Message
from kelpie.core.ids import ActorId, Tenant, derive_uuid
from kelpie.server.http import Response, Stream
from kelpie.server.ports import Deps

Method = Literal["GET", "POST", "PATCH", "PUT", "DELETE"]
Answer = Response | Stream


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters, or an empty body."""


Q = TypeVar("Q", bound=msgspec.Struct)
B = TypeVar("B", bound=msgspec.Struct)


class Call(msgspec.Struct, Generic[Q, B], frozen=True, kw_only=True):
    """One decoded request. A struct, because every request makes one.

    Attributes:
        deps: The collaborators.
        tenant: Whose objects are visible.
        principal: Who asks, for the record.
        path: Path parameters, percent-decoded.
        query: Decoded query parameters.
        body: Decoded body.
        key: The idempotency key, if one came.
        local: Whether the request came over the Unix socket.
        accepts_events: Whether the caller asked for server-sent events.
        last_event: The ``Last-Event-ID`` header, empty without.
        raw: The body as it came.
        timeout_ms: The deadline that the caller asked for, if it did.
        prefers_async: Whether the caller would rather not wait (RFC 7240, ``respond-async``).
    """

    deps: Deps
    tenant: Tenant
    principal: str
    path: Mapping[str, str]
    query: Q
    body: B
    key: str | None = None
    local: bool = False
    accepts_events: bool = False
    last_event: str = ""
    raw: bytes = b""
    timeout_ms: int | None = None
    prefers_async: bool = False

    def ids(self, purpose: str) -> Ids:
        """Return a source of ids for what this request creates.

        A request that comes back under its idempotency key creates the same ids again, so that it
        is recognised as the same.
        """
        if self.key is None:
            return Ids(self.deps.rng.bytes(16))
        scope = f"{self.tenant}\0{self.principal}\0{purpose}\0{self.key}"
        return Ids(hashlib.blake2b(scope.encode(), digest_size=16).digest())

    async def tell(self, actor: ActorId, message: Message, *, part: str = "") -> Any:
        """Run one turn of ``actor`` for this caller and return its durable reply.

        A request that takes several turns names each ``part``, so that each has a key of its own.
        """
        key = self.key
        if key is not None and part:
            key = hashlib.blake2b(f"{key}\0{part}".encode(), digest_size=32).hexdigest()
        return await self.deps.runtime.call(actor, message, principal=self.principal, key=key)


class Ids:
    """Ids that one seed determines, in order."""

    __slots__ = ("_ordinal", "_seed")

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._ordinal = 0

    def next(self, prefix: str) -> str:
        """Return the next id, ``<prefix>-<uuid4>``."""
        text = derive_uuid(self._seed, self._ordinal)
        self._ordinal += 1
        return f"{prefix}-{text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation(Generic[Q, B]):
    """One method on one path template.

    Attributes:
        method: HTTP method; GET answers HEAD too.
        path: Template without a trailing slash; ``{name}`` is one segment.
        summary: One line for the documentation.
        tag: Group in the documentation.
        handler: What answers.
        query: Type of the query parameters.
        body: Type of the JSON body.
        response: Type of the JSON response; None when `media` is not JSON.
        media: Media type of the response.
        accepted: The type of a 202 answer, for callers that would rather not wait.
        errors: Codes beside the ones every operation may answer with.
        streams: Whether it can answer with server-sent events.
        waits: Whether it may take long; then it ends when the caller leaves.
        public: Whether it needs no key.
        while_draining: Whether it is answered while the node shuts down.
        at_owner: Whether it acts on what only the node that owns the actor has in memory. Another
            node passes it on whole, so it must do one thing, and no harm when it arrives twice
            under one idempotency key. Never for what is another machine's own: files, the store.
    """

    method: Method
    path: str
    summary: str
    tag: str
    handler: Callable[[Call[Q, B]], Awaitable[Answer]]
    query: type[Q]
    body: type[B]
    response: Any = None
    media: str = "application/json"
    accepted: Any = None
    errors: tuple[str, ...] = ()
    streams: bool = False
    waits: bool = False
    public: bool = False
    while_draining: bool = False
    at_owner: bool = False
