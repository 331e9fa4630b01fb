"""Calls under idempotency keys: one turn for each key, and its kept reply for whoever asks again.

Owns the keyed calls that are on their way. Invariant: two calls under one key are one turn, or one
of them is refused.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from kelpie.actors.activation import Envelope
from kelpie.actors.commands import encode_message, tag_of
from kelpie.actors.turns import Turns
from kelpie.core import limits
from kelpie.core.digests import digest_bytes
from kelpie.core.errors import ConflictError, InvalidFieldError, KelpieError, KeyReusedError
from kelpie.core.ids import ActorId


class KeyedCalls:
    """The keyed calls of one process."""

    __slots__ = ("_ownership", "_running", "_store", "_supervisor", "_turns")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._store = turns.ports.store
        self._supervisor = turns.ports.supervisor
        self._ownership = turns.ports.ownership
        self._running: dict[tuple[ActorId, str, str], Envelope] = {}

    def begin(self, envelope: Envelope, key: str) -> Envelope:
        """Begin the one turn of the key and return its envelope, or the one that is on its way.

        Raises:
            KeyReusedError: The key is on its way with another request.
            InvalidFieldError: It is no key.
        """
        if not 1 <= len(key.encode()) <= limits.IDEMPOTENCY_KEY_BYTES_MAX:
            bound = limits.IDEMPOTENCY_KEY_BYTES_MAX
            raise InvalidFieldError("Idempotency-Key", f"must be 1 to {bound} bytes")
        assert envelope.key is None, "one call has one key"
        method = tag_of(envelope.message)
        request = digest_bytes(encode_message(envelope.message))
        scope = (envelope.actor, method, key)
        running = self._running.get(scope)
        if running is not None:
            if running.request != request:
                raise _key_reused(key, method)
            return running
        envelope.key = key
        envelope.request = request
        envelope.after = partial(self._running.pop, scope, None)
        self._running[scope] = envelope
        self._supervisor.start("actors.keyed", self._run(envelope, method))
        return envelope

    async def _run(self, envelope: Envelope, method: str) -> None:
        assert envelope.key is not None
        if not self._ownership.serves(envelope.actor.shard):
            envelope.fail(self._ownership.refusal(envelope.actor.shard))
            return
        try:
            kept = await self._store.reply(envelope.actor, method, envelope.key)
        except KelpieError as error:
            envelope.fail(error)
            return
        if kept is None:
            self._turns.dispatch(envelope)
        elif kept.request != envelope.request:
            envelope.fail(_key_reused(envelope.key, method))
        else:
            reply_type = envelope.message.reply_type
            kind = Any if reply_type is None else reply_type
            try:
                envelope.succeed(msgspec.msgpack.decode(kept.reply, type=kind))
            except msgspec.ValidationError as error:
                problem = f"{method} was carried out, and returns another type now: {error}"
                envelope.fail(ConflictError(problem, key=envelope.key[:64]))

    def check_invariants(self) -> None:
        """Assert what holds between turns."""
        for envelope in self._running.values():
            assert envelope.request, "a key comes with its request's digest"
            assert not envelope.is_answered, "an answered call is no call on its way"


def _key_reused(key: str, method: str) -> KeyReusedError:
    return KeyReusedError(
        f"Idempotency-Key {key[:64]!r} was used for another {method} request; choose a new key",
        key=key[:64],
    )
