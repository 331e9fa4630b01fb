"""Calls and queries to any actor, from any node: answered here, or by the node that owns it.

The surface of `Engine` for the edges. An actor of this node goes straight to the engine. Any other
is asked for at its owner's address; a node that is not the owner names the next one, which is
followed at once; after that, and whenever nobody owns the shard, the router looks again with
growing pauses until the caller's time is up.

A command that leaves this node has a key: the caller's, or one made for it, the same for every
attempt. So an attempt whose outcome nobody heard is repeated without running twice.

Invariants: no attempt outlasts the caller's deadline; what may have happened never ends as an error
that says it did not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from kelpie.actors.activation import Envelope
from kelpie.actors.calls import Calls
from kelpie.actors.commands import Message, encode_message
from kelpie.actors.ownership import Ownership
from kelpie.actors.supervisor import Supervisor
from kelpie.cluster.forwarding import named_owner
from kelpie.cluster.messages import UNDECODABLE, ActorCall, ActorQuery, Asked
from kelpie.cluster.rpc import Lines
from kelpie.core import limits
from kelpie.core.errors import (
    BusyError,
    CommitUnknownError,
    ConflictError,
    DeadlineError,
    DrainingError,
    FencedError,
    KelpieError,
    NotOwnerError,
    SessionEndedError,
    VersionConflictError,
)
from kelpie.core.ids import ActorId
from kelpie.ports.clock import Clock
from kelpie.ports.network import NetworkError
from kelpie.ports.rng import Rng
from kelpie.ports.telemetry import Telemetry

KEY_PREFIX: Final = "forwarded-"
_NANOSECONDS_PER_MS: Final = 1_000_000
_PASSING: Final = (
    NotOwnerError,
    FencedError,
    SessionEndedError,
    DrainingError,
    NetworkError,
    CommitUnknownError,
)


def _untraced() -> str:
    return ""


class Router:
    """Calls and queries to the actors of a cluster.

    Args:
        local: This node's actors.
        lines: The way to the others.
        ownership: Which shards are this node's, and who owns the rest.
        address: Where other nodes reach this one.
        traceparent: Returns the running span's W3C traceparent, empty without one.
    """

    def __init__(
        self,
        *,
        local: Calls,
        lines: Lines,
        ownership: Ownership,
        address: str,
        clock: Clock,
        rng: Rng,
        supervisor: Supervisor,
        telemetry: Telemetry,
        traceparent: Callable[[], str] = _untraced,
    ) -> None:
        self._local = local
        self._lines = lines
        self._ownership = ownership
        self._address = address
        self._clock = clock
        self._rng = rng
        self._supervisor = supervisor
        self._telemetry = telemetry
        self._traceparent = traceparent
        self.may_go_on = local.may_go_on

    def accepting(self) -> bool:
        """Whether new calls are taken."""
        return self._local.accepting()

    async def call(
        self,
        actor: ActorId,
        message: Message,
        *,
        internal: bool = False,
        principal: str,
        key: str | None = None,
        timeout_ms: int = limits.INVOCATION_TIMEOUT_MS,
        chain: tuple[ActorId, ...] = (),
    ) -> Any:
        """Run one turn of any actor and return its reply; see `Engine.call`.

        Raises:
            NotOwnerError: Nobody owned the actor's shard until ``timeout_ms`` passed.
            DeadlineError: ``timeout_ms`` passed; the turn may still happen if it had begun.
            KelpieError: As `Engine.call`.
        """
        if not self._local.accepting() and not internal:
            raise DrainingError("the node is shutting down; try again")
        ends_ns = self._clock.boot_ns() + timeout_ms * _NANOSECONDS_PER_MS
        if self._ownership.owns(actor.shard):
            try:
                return await self._local.call(
                    actor,
                    message,
                    principal=principal,
                    key=key,
                    timeout_ms=timeout_ms,
                    internal=internal,
                    chain=chain,
                )
            except KelpieError as error:
                if not self._has_moved(error, actor, is_keyed=key is not None):
                    raise
        errand = _Command(
            actor, message, principal, key or self._new_key(), is_internal=internal, chain=chain
        )
        return await self._insist(errand, ends_ns, timeout_ms)

    async def query(
        self,
        actor: ActorId,
        query: Message,
        *,
        timeout_ms: int = limits.INVOCATION_TIMEOUT_MS,
        chain: tuple[ActorId, ...] = (),
    ) -> Any:
        """Answer from the last finished turn's state of any actor; see `Engine.query`.

        Raises:
            NotOwnerError: Nobody owned the actor's shard until ``timeout_ms`` passed.
            DeadlineError: ``timeout_ms`` passed.
            KelpieError: As `Engine.query`.
        """
        ends_ns = self._clock.boot_ns() + timeout_ms * _NANOSECONDS_PER_MS
        if self._ownership.owns(actor.shard):
            try:
                return await self._local.query(actor, query, timeout_ms=timeout_ms, chain=chain)
            except KelpieError as error:
                if not self._has_moved(error, actor, is_keyed=True):
                    raise
        return await self._insist(_Query(actor, query, chain), ends_ns, timeout_ms)

    def begin(
        self, actor: ActorId, message: Message, principal: str, timeout_ms: int, *, is_query: bool
    ) -> Envelope:
        """Begin a call or a query without a key; see `Engine.begin`.

        Raises:
            DrainingError: The node is shutting down, and this is no query.
        """
        if self._ownership.owns(actor.shard):
            return self._local.begin(actor, message, principal, timeout_ms, is_query=is_query)
        if not self._local.accepting() and not is_query:
            raise DrainingError("the node is shutting down; try again")
        envelope = Envelope(
            actor=actor,
            message=message,
            principal=principal,
            timeout_ms=timeout_ms,
            is_query=is_query,
        )
        envelope.fail(self._refusal(actor))
        return envelope

    async def answer(self, envelope: Envelope, timeout_ms: int) -> Any:
        """Return the answer to what was begun, from whichever node owns the actor by now.

        Raises:
            KelpieError: As `call` and `query`.
        """
        ends_ns = self._clock.boot_ns() + timeout_ms * _NANOSECONDS_PER_MS
        actor, message = envelope.actor, envelope.message
        try:
            return await self._local.answer(envelope, timeout_ms)
        except KelpieError as error:
            if not self._has_moved(error, actor, is_keyed=envelope.is_query):
                raise
        errand: _Errand = _Query(actor, message)
        if not envelope.is_query:
            errand = _Command(actor, message, envelope.principal, self._new_key())
        return await self._insist(errand, ends_ns, timeout_ms)

    # --- attempts -------------------------------------------------------------------------------

    async def _insist(self, errand: _Errand, ends_ns: int, timeout_ms: int) -> Any:
        """Try wherever the actor may be, until it answers or the time is up."""
        pause_ms, was_sent, next_address, redirects = limits.FORWARD_PAUSE_MS_MIN, False, "", 0
        while True:
            left_ms = (ends_ns - self._clock.boot_ns()) // _NANOSECONDS_PER_MS
            if left_ms <= 0:
                raise self._too_late(errand.actor, timeout_ms, was_sent=was_sent)
            try:
                return await self._attempt(errand, next_address, left_ms)
            except KelpieError as error:
                if not self._has_moved(error, errand.actor, is_keyed=True):
                    raise
                was_sent = was_sent or _may_have_happened(error)
                next_address = named_owner(error)
            self._telemetry.count("kelpie.rpc.retries")
            if next_address and redirects == 0:
                redirects = 1
                continue
            next_address, redirects = "", 0
            await self._clock.sleep(min(pause_ms, left_ms) / 1_000)
            pause_ms = min(2 * pause_ms, limits.FORWARD_PAUSE_MS_MAX)

    async def _attempt(self, errand: _Errand, address: str, left_ms: int) -> Any:
        shard = errand.actor.shard
        if self._ownership.owns(shard):
            return await errand.run_here(self._local, left_ms)
        address = address or self._ownership.owner(shard)
        if not address or address == self._address:
            raise self._refusal(errand.actor)
        value = await self._lines.ask(
            address, errand.pack(), timeout_ms=left_ms, trace=self._traceparent()
        )
        return _read_reply(errand.message, value)

    def _has_moved(self, error: KelpieError, actor: ActorId, *, is_keyed: bool) -> bool:
        """Return whether to look for the actor again: it moved, or may be moving.

        A turn whose outcome is unknown is repeated only under its key.
        """
        if isinstance(error, CommitUnknownError):
            return is_keyed and not self._ownership.owns(actor.shard)
        return has_moved(error, self._ownership, actor.shard)

    def _refusal(self, actor: ActorId) -> NotOwnerError:
        text = f"nobody is known to serve {actor} now; try again"
        owner = self._ownership.owner(actor.shard)
        return NotOwnerError(text, shard=actor.shard, owner=owner)

    def _too_late(self, actor: ActorId, timeout_ms: int, *, was_sent: bool) -> BusyError:
        if not was_sent:
            return self._refusal(actor)
        text = f"{actor} was not reached again within {timeout_ms:,} ms; its outcome may follow"
        return DeadlineError(text, actor=str(actor), timeout_ms=timeout_ms)

    def _new_key(self) -> str:
        return KEY_PREFIX + self._rng.bytes(16).hex()


def has_moved(error: KelpieError, ownership: Ownership, shard: int) -> bool:
    """Return whether an error says that the actor is, or goes, somewhere else.

    When an actor's shard is lost, turns behind the one that was fenced fail as conflicts.
    """
    if isinstance(error, VersionConflictError):
        return not ownership.owns(shard)
    return isinstance(error, _PASSING)


def _may_have_happened(error: KelpieError) -> bool:
    if isinstance(error, NetworkError):
        return error.sent
    return isinstance(error, CommitUnknownError)


def _read_reply(message: Message, value: bytes) -> Any:
    kind = Any if message.reply_type is None else message.reply_type
    try:
        return msgspec.msgpack.decode(value, type=kind)
    except UNDECODABLE as error:
        text = f"the owner replied with another type, as another version might: {error}"
        raise ConflictError(text) from error


# --- what is asked for --------------------------------------------------------------------------


class _Errand(Protocol):
    @property
    def actor(self) -> ActorId: ...

    @property
    def message(self) -> Message: ...

    def pack(self) -> Asked: ...

    async def run_here(self, local: Calls, timeout_ms: int) -> Any: ...


class _Command:
    """One command and its key, the same for every attempt."""

    __slots__ = (
        "_attempt",
        "_body",
        "_chain",
        "_is_internal",
        "_key",
        "_principal",
        "actor",
        "message",
    )

    def __init__(
        self,
        actor: ActorId,
        message: Message,
        principal: str,
        key: str,
        *,
        is_internal: bool = False,
        chain: tuple[ActorId, ...] = (),
    ) -> None:
        self.actor = actor
        self.message = message
        self._principal = principal
        self._key = key
        self._is_internal = is_internal
        self._chain = chain
        self._body = encode_message(message)
        self._attempt = 0

    def pack(self) -> ActorCall:
        assert self._key, "what leaves this node has a key"
        attempt, self._attempt = self._attempt, self._attempt + 1
        assert self._attempt > attempt, "attempts are counted"
        return ActorCall(
            actor=str(self.actor),
            message=self._body,
            principal=self._principal,
            key=self._key,
            is_internal=self._is_internal,
            attempt=attempt,
            chain=tuple(map(str, self._chain)),
        )

    async def run_here(self, local: Calls, timeout_ms: int) -> Any:
        return await local.call(
            self.actor,
            self.message,
            principal=self._principal,
            key=self._key,
            timeout_ms=timeout_ms,
            internal=self._is_internal,
            chain=self._chain,
        )


class _Query:
    """One query."""

    __slots__ = ("_body", "_chain", "actor", "message")

    def __init__(self, actor: ActorId, message: Message, chain: tuple[ActorId, ...] = ()) -> None:
        self.actor = actor
        self._chain = chain
        self.message = message
        self._body = encode_message(message)

    def pack(self) -> ActorQuery:
        return ActorQuery(str(self.actor), self._body, tuple(map(str, self._chain)))

    async def run_here(self, local: Calls, timeout_ms: int) -> Any:
        return await local.query(self.actor, self.message, timeout_ms=timeout_ms, chain=self._chain)
