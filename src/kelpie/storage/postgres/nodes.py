"""Sessions and shards in PostgreSQL: the `ClusterStore` over a connection of its own.

Its connection carries nothing else, so that no load delays a renewal. It keeps what its session
owns in step with what the server said; it decides nothing about leases or placement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from kelpie.core.errors import (
    ConflictError,
    KelpieError,
    NotFoundError,
    SessionEndedError,
    StoreError,
)
from kelpie.core.ids import derive_uuid
from kelpie.core.limits import LEASE_DURATION_MS, SHARD_COUNT
from kelpie.ports.rng import Rng
from kelpie.storage.cluster import ClusterView, NodeRow, NodeState, ShardRow
from kelpie.storage.postgres.driver import (
    CLIENT_TIMEOUT_S,
    Connection,
    DriverError,
    is_lost,
    is_transient,
    state_of,
    translate_error,
)
from kelpie.storage.postgres.link import close_gently
from kelpie.storage.postgres.migrations.nodes import SESSION_OVER
from kelpie.storage.records import ShardGrant

T = TypeVar("T")

_NODE_COLUMNS: Final = (
    "session, name, address, state, renewals, ttl_ms, is_cordoned, is_draining, started_ms,"
    " ended_ms"
)
_VIEW_ENDED_MAX: Final = 100  # of the sessions that ended lately
_UNIQUE: Final = "23505"
_ATTEMPTS: Final = 2  # a connection that broke while it was idle is made anew once

GrantsChanged = Callable[[], None]


class PostgresNodes:
    """The rows that say who may write. Every method is one transaction.

    Attributes:
        session: The session that joined last, which claims are made for.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        session: str,
        changed: GrantsChanged,
    ) -> None:
        self.session = session
        self._connect = connect
        self._changed = changed
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        self._grants: dict[int, int] = {}
        self._has_joined = False

    @property
    def has_joined(self) -> bool:
        """Whether `session` was added and has not ended through this object."""
        return self._has_joined

    def grants(self) -> tuple[ShardGrant, ...]:
        """Return what `session` owns, by shard, as far as this object did it."""
        return tuple(ShardGrant(shard, epoch) for shard, epoch in sorted(self._grants.items()))

    def epoch(self, shard: int) -> int | None:
        """Return the epoch under which `session` owns a shard."""
        return self._grants.get(shard)

    async def join(self, node: NodeRow) -> None:
        """Add a living session with ``renewals`` 0; it is `session` from now on.

        Raises:
            ConflictError: A living session has the node's name; it must end first.
        """
        assert node.session, "a session has a name"
        values = (node.session, node.name, node.address, node.state, node.ttl_ms)
        marks = (node.is_cordoned, node.is_draining, node.started_ms)

        async def add(connection: Connection) -> None:
            await connection.execute(
                "INSERT INTO sessions VALUES ($1, $2, $3, $4, 0, $5, $6, $7, $8, 0)",
                *(*values, *marks),
                timeout=CLIENT_TIMEOUT_S,
            )

        try:
            await self._do(add, refused=_UNIQUE)
        except _RefusedError as error:
            if not await self._is_ours(node):
                message = f"a living node is called {node.name!r}; end it first, or rename one"
                raise ConflictError(message, node=node.name) from error
        self.session = node.session
        self._has_joined = True
        self._note({})

    async def _is_ours(self, node: NodeRow) -> bool:
        """Return whether the row is there after all: the answer to its insertion was lost."""
        query = "SELECT 1 FROM sessions WHERE session = $1 AND name = $2 AND ended_ms = 0"
        found = await self._do(lambda c: c.fetchval(query, node.session, node.name))
        return found is not None

    async def renew(self, session: str) -> int:
        """Count one renewal of a living session and return how many there were.

        Raises:
            SessionEndedError: It has ended; nothing renews it.
        """
        query = (
            "UPDATE sessions SET renewals = renewals + 1 WHERE session = $1 AND ended_ms = 0"
            " RETURNING renewals"
        )
        renewals = await self._do(lambda c: c.fetchval(query, session, timeout=CLIENT_TIMEOUT_S))
        if renewals is None:
            raise self._over(session)
        assert renewals >= 1, "renewals are counted"
        return int(renewals)

    async def set_node_state(self, session: str, state: NodeState) -> None:
        """Write down what a living session's node is doing.

        Raises:
            SessionEndedError: It has ended.
        """
        query = (
            "UPDATE sessions SET state = $2 WHERE session = $1 AND ended_ms = 0 RETURNING session"
        )
        if await self._do(lambda c: c.fetchval(query, session, state)) is None:
            raise self._over(session)

    async def cluster(self) -> ClusterView:
        """Return the living sessions, the ones that ended lately, and the shards; one snapshot."""
        query = (
            f"SELECT ARRAY(SELECT ROW({_NODE_COLUMNS}) FROM (SELECT * FROM sessions"  # noqa: S608
            f" ORDER BY ended_ms > 0, ended_ms DESC, name LIMIT {SHARD_COUNT + _VIEW_ENDED_MAX})"
            " s), ARRAY(SELECT ROW(shard, epoch, session, pinned) FROM shards ORDER BY shard)"
        )
        row = await self._do(lambda c: c.fetchrow(query, timeout=CLIENT_TIMEOUT_S))
        assert row is not None, "a query without a table has a row"
        nodes = tuple(NodeRow(*node) for node in row[0])
        return ClusterView(nodes, tuple(ShardRow(*shard) for shard in row[1]))

    async def session_ended(self, session: str) -> bool:
        """Return whether a session has ended, or was never known."""
        query = "SELECT 1 FROM sessions WHERE session = $1 AND ended_ms = 0"
        return await self._do(lambda c: c.fetchval(query, session)) is None

    async def claim(self, session: str, shards: Sequence[ShardGrant]) -> list[ShardGrant]:
        """Own those shards that are still free under the epochs seen, each with its next epoch.

        Returns what is owned now; others were quicker with the rest.

        Raises:
            SessionEndedError: The session has ended.
        """
        wanted = [tuple(grant) for grant in shards]
        query = "SELECT shard, epoch FROM claim_1($1, $2) ORDER BY shard"
        try:
            rows = await self._do(
                lambda c: c.fetch(query, session, wanted, timeout=CLIENT_TIMEOUT_S),
                refused=SESSION_OVER,
            )
        except _RefusedError as error:
            raise self._over(session) from error
        gained = [ShardGrant(row["shard"], row["epoch"]) for row in rows]
        assert {each.shard for each in gained} <= {each.shard for each in shards}, "only these"
        if session == self.session:
            self._note(self._grants | dict(gained))
        return gained

    async def claim_all(self) -> tuple[ShardGrant, ...]:
        """Own every shard that is free, for a node that is alone."""
        view = await self.cluster()
        free = [ShardGrant(row.shard, row.epoch) for row in view.shards if not row.session]
        await self.claim(self.session, free)
        return self.grants()

    async def release(self, session: str, shards: Sequence[ShardGrant]) -> None:
        """Let go of shards that this session owns under these epochs; others are left alone."""
        owned = [tuple(grant) for grant in shards]
        query = "SELECT release_1($1, $2)"
        if session == self.session:
            gone = {shard for shard, epoch in shards if self._grants.get(shard) == epoch}
            self._note({shard: e for shard, e in self._grants.items() if shard not in gone})
        await self._do(lambda c: c.fetch(query, session, owned, timeout=CLIENT_TIMEOUT_S))

    async def end_session(self, session: str, renewals: int | None, *, now_ms: int) -> bool:
        """End a session for good and free its shards, raising their epochs, in one transaction.

        With ``renewals`` only if its counter still says so; None ends it whatever it says. Returns
        whether it is ended now.
        """
        query = "SELECT end_session_1($1, $2, $3)"
        values = (session, renewals, now_ms)
        is_ended = bool(
            await self._do(lambda c: c.fetchval(query, *values, timeout=CLIENT_TIMEOUT_S))
        )
        if is_ended and session == self.session:
            self._has_joined = False
            self._note({})
        return is_ended

    async def cordon(self, name: str, *, is_cordoned: bool, is_draining: bool) -> None:
        """Mark the living session of the node ``name``.

        Raises:
            NotFoundError: No living session has that name.
        """
        query = (
            "UPDATE sessions SET is_cordoned = $2, is_draining = $3"
            " WHERE name = $1 AND ended_ms = 0 RETURNING session"
        )
        if await self._do(lambda c: c.fetchval(query, name, is_cordoned, is_draining)) is None:
            raise NotFoundError("node", name)

    async def pin(self, shard: int, name: str) -> None:
        """Let only the node ``name`` own the shard while that node lives; empty lets any."""
        assert 0 <= shard < SHARD_COUNT, "there is no other shard"
        query = "UPDATE shards SET pinned = $2 WHERE shard = $1 RETURNING shard"
        found = await self._do(lambda c: c.fetchval(query, shard, name))
        assert found == shard, "every shard has a row"

    async def lose(self, shards: Sequence[int]) -> None:
        """Forget shards that were found to be another's."""
        gone = frozenset(shards)
        self._note({shard: e for shard, e in self._grants.items() if shard not in gone})

    async def close(self) -> None:
        """Let go of the connection; harmless when there is none."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await close_gently(connection)
        assert self._connection is None

    def check_invariants(self) -> None:
        """Assert what always holds between two calls."""
        assert all(0 <= shard < SHARD_COUNT for shard in self._grants)
        assert all(epoch >= 1 for epoch in self._grants.values()), "an epoch counts owners"

    def _note(self, grants: dict[int, int]) -> None:
        self._grants = grants
        self._changed()
        self.check_invariants()

    def _over(self, session: str) -> SessionEndedError:
        if session == self.session:
            self._has_joined = False
            self._note({})
        message = f"session {session} has ended; this node must join with another"
        return SessionEndedError(message, session=session)

    async def _do(
        self, question: Callable[[Connection], Awaitable[T]], *, refused: str = ""
    ) -> T:
        """Return what a statement answers.

        Raises:
            StoreError: The database cannot be reached, or failed.
        """
        async with self._turn:
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    connection = await self._connected()
                    return await question(connection)
                except DriverError as error:
                    if refused and state_of(error) == refused:
                        raise _RefusedError(str(error)) from error
                    if is_lost(error):
                        self._drop()
                    elif not is_transient(error):
                        raise translate_error(error, "the cluster's rows") from error
                    if attempt == _ATTEMPTS:
                        message = f"the database cannot be reached ({error}); try again"
                        raise StoreError(message) from error
                except asyncio.CancelledError:
                    self._drop()
                    raise
        raise AssertionError("every attempt returns or raises")

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


class _RefusedError(KelpieError):
    """The server refused for the reason that was expected. Never leaves this module."""


def new_session(rng: Rng) -> str:
    """Return a session id that nobody had before."""
    return f"session-{derive_uuid(rng.bytes(16), 0)}"


def lone_node(session: str, *, name: str, address: str, now_ms: int) -> NodeRow:
    """Return the row of a node that is alone in its store."""
    return NodeRow(
        session=session,
        name=name,
        address=address,
        state="running",
        renewals=0,
        ttl_ms=LEASE_DURATION_MS,
        is_cordoned=False,
        is_draining=False,
        started_ms=now_ms,
        ended_ms=0,
    )
