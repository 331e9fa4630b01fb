"""The connection over which sessions and shards are changed, and what it learned of them.

It carries nothing else, so that no load delays a renewal. It keeps what the node's session owns in
step with what the server said, and decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from kelpie.core.errors import KelpieError, StoreError
from kelpie.core.limits import SHARD_COUNT
from kelpie.storage.postgres.driver import (
    DriverError,
    ServerConnection,
    close_gently,
    is_lost,
    is_transient,
    state_of,
    translate_error,
)
from kelpie.storage.records import ShardGrant

T = TypeVar("T")

_ATTEMPTS: Final = 2  # a connection that broke while it was idle is made anew once

Connect = Callable[[], Awaitable[ServerConnection]]


class ExpectedError(KelpieError):
    """The server refused for the reason that was expected. Never leaves this package."""


class Control:
    """One connection, one session and its shards.

    Attributes:
        session: The session that joined last, which claims are made for; empty before.
        is_living: Whether it has not ended, as far as this node knows.
        changed: Called when other shards are owned than before.
    """

    __slots__ = ("_connect", "_connection", "_grants", "_turn", "changed", "is_living", "session")

    def __init__(self, connect: Connect, connection: ServerConnection | None = None) -> None:
        self._connect = connect
        self._connection = connection
        self._turn = asyncio.Lock()
        self._grants: dict[int, int] = {}
        self.session: str = ""
        self.is_living = False
        self.changed: Callable[[], None] = _nothing

    def grants(self) -> tuple[ShardGrant, ...]:
        """Return what `session` owns, by shard, as far as this node did it."""
        return tuple(ShardGrant(shard, epoch) for shard, epoch in sorted(self._grants.items()))

    def epoch(self, shard: int) -> int:
        """Return the epoch under which `session` owns a shard, -1 when it does not."""
        return self._grants.get(shard, -1)

    def shards(self) -> tuple[int, ...]:
        """Return the shards that `session` owns."""
        return tuple(self._grants)

    def begin(self, session: str) -> None:
        """Go on with a session that has joined and owns nothing yet."""
        assert session, "a session has a name"
        assert session != self.session or not self.is_living, "a session joins once"
        self.session, self.is_living = session, True
        self._note({})
        assert not self._grants, "a session begins with nothing"

    def end(self, session: str) -> None:
        """Own nothing any more if it is `session` that has ended."""
        assert session, "a session has a name"
        if session == self.session:
            self.is_living = False
            self._note({})
        assert self.is_living or not self._grants, "an ended session owns nothing"

    def gain(self, session: str, grants: list[ShardGrant]) -> None:
        """Own shards for `session`."""
        if session == self.session and grants:
            self._note(self._grants | {grant.shard: grant.epoch for grant in grants})

    def lose(self, session: str, grants: list[ShardGrant]) -> None:
        """Own shards no longer that were owned under these epochs."""
        if session == self.session and grants:
            gone = {grant.shard for grant in grants if self.epoch(grant.shard) == grant.epoch}
            kept = {shard: e for shard, e in self._grants.items() if shard not in gone}
            self._note(kept)

    async def do(
        self, question: Callable[[ServerConnection], Awaitable[T]], *, expected: str = ""
    ) -> T:
        """Return what a statement answers that may come twice.

        Args:
            question: Asks it.
            expected: The server's code of a refusal that the caller explains.

        Raises:
            ExpectedError: The server refused with ``expected``.
            StoreError: The database cannot be reached, or failed.
        """
        async with self._turn:
            attempt = 0
            while True:
                attempt += 1
                try:
                    return await question(await self._connected())
                except DriverError as error:
                    if expected and state_of(error) == expected:
                        raise ExpectedError(str(error)) from error
                    if is_lost(error):
                        self._drop()
                    elif not is_transient(error):
                        raise translate_error(error, "the cluster's rows") from error
                    if attempt == _ATTEMPTS:
                        message = f"the database gives no answer ({error}); try again"
                        raise StoreError(message) from error
                except asyncio.CancelledError:
                    self._drop()  # half a conversation cannot be gone on with
                    raise

    async def close(self) -> None:
        """Let go of the connection after the question under way; harmless when there is none."""
        assert self.is_living or not self._grants, "an ended session owns nothing"
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                await close_gently(connection)
        assert self._connection is None, "nobody opens one after its end"

    def check_invariants(self) -> None:
        """Assert what always holds between two calls."""
        assert all(0 <= shard < SHARD_COUNT for shard in self._grants)
        assert all(epoch >= 1 for epoch in self._grants.values()), "an epoch counts owners"
        assert self.is_living or not self._grants, "an ended session owns nothing"

    async def _connected(self) -> ServerConnection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        return self._connection

    def _note(self, grants: dict[int, int]) -> None:
        self._grants = grants
        self.check_invariants()
        self.changed()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


def _nothing() -> None:
    return None
