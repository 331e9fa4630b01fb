"""Sessions and shards in PostgreSQL: the `ClusterStore`, over the control connection.

Every method is one statement. Whoever moves a shard waits for the batch that has passed its fence.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kelpie.core.errors import (
    ConflictError,
    InvalidFieldError,
    NotFoundError,
    SessionEndedError,
)
from kelpie.core.limits import NAME_CHARS_MAX, SHARD_COUNT
from kelpie.storage.bounds import require_integers, text_bytes
from kelpie.storage.cluster import ENDED_SHOWN_MAX, ClusterView, NodeRow, NodeState, ShardRow
from kelpie.storage.postgres.control import Control, ExpectedError
from kelpie.storage.postgres.driver import CLIENT_TIMEOUT_S, UNIQUE, ServerConnection
from kelpie.storage.postgres.migrations.nodes import SESSION_OVER
from kelpie.storage.records import ShardGrant

_ROW: Final = (
    "ROW(session, name, address, state, renewals, ttl_ms, is_cordoned, is_draining, started_ms,"
    " ended_ms)"
)
_VIEW: Final = (
    f"SELECT ARRAY(SELECT {_ROW} FROM sessions WHERE ended_ms = 0 ORDER BY name),"  # noqa: S608
    f" ARRAY(SELECT {_ROW} FROM sessions WHERE ended_ms > 0 ORDER BY ended_ms DESC"
    f" LIMIT {ENDED_SHOWN_MAX}),"
    " ARRAY(SELECT ROW(shard, epoch, session, pinned) FROM shards ORDER BY shard)"
)


class PostgresNodes:
    """The sessions and shards of one database."""

    __slots__ = ()

    @property
    @abstractmethod
    def _control(self) -> Control:
        """The connection that they are changed over."""

    async def join(self, node: NodeRow) -> None:
        """Add a living session with ``renewals`` 0; this store's work is its own from now on.

        Raises:
            ConflictError: A living session has the node's name; it must end first.
            SessionEndedError: It was added before, and has ended.
        """
        require_integers("node", node.ttl_ms, node.started_ms)
        text_bytes("name", node.name, NAME_CHARS_MAX)
        text_bytes("address", node.address, NAME_CHARS_MAX)
        assert node.session, "a session has a name"
        assert node.renewals == 0, "renewals are counted from the beginning"
        if not node.name:
            raise InvalidFieldError("name", "a node has a name; set one")
        values = (node.session, node.name, node.address, node.state, node.ttl_ms)
        marks = (node.is_cordoned, node.is_draining, node.started_ms)
        query = "INSERT INTO sessions VALUES ($1, $2, $3, $4, 0, $5, $6, $7, $8, 0)"
        try:
            await self._control.do(lambda c: c.execute(query, *values, *marks), expected=UNIQUE)
        except ExpectedError as error:
            # The answer to an earlier try may have been lost.
            query = "SELECT ended_ms FROM sessions WHERE session = $1"
            ended_ms = await self._control.do(lambda c: c.fetchval(query, node.session))
            if ended_ms:
                message = f"session {node.session} has ended; join with another one"
                raise SessionEndedError(message, session=node.session) from error
            if ended_ms is None:
                raise ConflictError(
                    f"a node named {node.name!r} is in the cluster already; give this one another "
                    "name, or wait until the other's lease has ended",
                    name=node.name,
                ) from error
        self._control.begin(node.session)

    async def cluster_identity(self, secret: bytes) -> tuple[str, bytes]:
        """Return the cluster's id and secret; ``secret`` becomes it if there is none yet."""
        assert secret, "a secret is drawn"
        query = "INSERT INTO meta VALUES ('secret', $1) ON CONFLICT DO NOTHING"
        await self._control.do(lambda c: c.execute(query, secret.hex()))
        query = "SELECT (SELECT value FROM meta WHERE name = $1), value FROM meta WHERE name = $2"
        row = await self._control.do(lambda c: c.fetchrow(query, "incarnation", "secret"))
        assert row is not None, "it was written just now"
        cluster, kept = row
        return str(cluster), bytes.fromhex(kept)

    async def renew(self, session: str) -> int:
        """Count one renewal of a living session and return how many there were.

        Raises:
            SessionEndedError: It has ended; nothing renews it.
        """
        query = (
            "UPDATE sessions SET renewals = renewals + 1 WHERE session = $1 AND ended_ms = 0"
            " RETURNING renewals"
        )
        values = (session,)
        renewals = await self._control.do(
            lambda c: c.fetchval(query, *values, timeout=CLIENT_TIMEOUT_S)
        )
        if renewals is None:
            raise self._over(session)
        assert session, "a session has a name"
        assert renewals >= 1, "a counter of renewals only grows"
        return int(renewals)

    async def set_node_state(self, session: str, state: NodeState) -> None:
        """Write down what a living session's node is doing.

        Raises:
            SessionEndedError: It has ended.
        """
        assert session, "a session has a name"
        assert state, "a node is in some state"
        query = "UPDATE sessions SET state = $2 WHERE session = $1 AND ended_ms = 0 RETURNING 1"
        if await self._control.do(lambda c: c.fetchval(query, session, state)) is None:
            raise self._over(session)

    async def cluster(self) -> ClusterView:
        """Return the sessions and the shards, of one snapshot."""
        row = await self._control.do(lambda c: c.fetchrow(_VIEW, timeout=CLIENT_TIMEOUT_S))
        assert row is not None, "a query without a table has a row"
        living, ended, shards = row
        nodes = tuple(NodeRow(*node) for node in (*living, *ended))
        return ClusterView(nodes, tuple(ShardRow(*shard) for shard in shards))

    async def session_ended(self, session: str) -> bool:
        """Return whether a session has ended, or was never known."""
        query = "SELECT 1 FROM sessions WHERE session = $1 AND ended_ms = 0"
        return await self._control.do(lambda c: c.fetchval(query, session)) is None

    async def claim(self, session: str, shards: Sequence[ShardGrant]) -> list[ShardGrant]:
        """Own those shards that are still free under the epochs seen, each with its next epoch.

        Returns what is owned now; others were quicker with the rest.

        Raises:
            SessionEndedError: The session has ended.
        """
        wanted = [tuple(grant) for grant in shards]
        tries = 0

        async def claim(connection: ServerConnection) -> list[Mapping[str, Any]]:
            nonlocal tries
            tries += 1
            query = "SELECT shard, epoch FROM claim_1($1, $2, $3) ORDER BY shard"
            values = (session, wanted, tries > 1)
            return await connection.fetch(query, *values, timeout=CLIENT_TIMEOUT_S)

        try:
            rows = await self._control.do(claim, expected=SESSION_OVER)
        except ExpectedError as error:
            raise self._over(session) from error
        taken = [ShardGrant(row["shard"], row["epoch"]) for row in rows]
        assert len(taken) <= len(shards), "nothing else was asked for"
        self._control.gain(session, taken)
        return taken

    async def release_shards(self, session: str, shards: Sequence[ShardGrant]) -> None:
        """Let go of shards that this session owns under these epochs; others are left alone.

        Their epochs rise, so that nothing that was still on its way can be written.
        """
        assert session, "a session has a name"
        owned = [tuple(grant) for grant in shards]
        self._control.lose(session, list(shards))
        query = "SELECT release_1($1, $2)"
        await self._control.do(lambda c: c.fetch(query, session, owned, timeout=CLIENT_TIMEOUT_S))

    async def end_session(self, session: str, renewals: int | None, *, now_ms: int) -> bool:
        """End a session for good and free its shards, raising their epochs, in one transaction.

        With ``renewals`` only if its counter still says so; None ends it whatever it says. Returns
        whether it is ended now.
        """
        require_integers("now_ms", now_ms)
        query = "SELECT end_session_1($1, $2, $3)"
        values = (session, renewals, now_ms)
        is_ended = bool(
            await self._control.do(lambda c: c.fetchval(query, *values, timeout=CLIENT_TIMEOUT_S))
        )
        if is_ended:
            self._control.end(session)
        return is_ended

    async def cordon(self, name: str, *, is_cordoned: bool, is_draining: bool) -> None:
        """Mark the living session of the node ``name``.

        Raises:
            NotFoundError: No living session has that name.
        """
        query = (
            "UPDATE sessions SET is_cordoned = $2, is_draining = $3"
            " WHERE name = $1 AND ended_ms = 0 RETURNING 1"
        )
        values = (name, is_cordoned, is_draining)
        assert isinstance(is_cordoned, bool), "a mark is there or not"
        assert isinstance(is_draining, bool), "a mark is there or not"
        if await self._control.do(lambda c: c.fetchval(query, *values)) is None:
            raise NotFoundError("node", name, hint='"kelpie cluster status" lists the living ones')

    async def pin(self, shard: int, name: str) -> None:
        """Let only the node ``name`` own the shard while that node lives; empty lets any."""
        if not 0 <= shard < SHARD_COUNT:
            raise InvalidFieldError("shard", f"{shard} is none of 0 to {SHARD_COUNT - 1}")
        text_bytes("name", name, NAME_CHARS_MAX)
        query = "UPDATE shards SET pinned = $2 WHERE shard = $1 RETURNING shard"
        found = await self._control.do(lambda c: c.fetchval(query, shard, name))
        assert found == shard, "a store has all its shards"

    def _over(self, session: str) -> SessionEndedError:
        self._control.end(session)
        message = f"session {session} has ended; join the cluster with another one"
        return SessionEndedError(message, session=session)
