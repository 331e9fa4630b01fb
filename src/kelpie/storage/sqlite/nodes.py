"""Sessions of nodes and owners of shards: the cluster's half of a store that several nodes share.

Each write is a member of a transaction; checks come before writes. Time is never asked for here.

Invariants: a session that has ended is never written to again; a shard's epoch rises whenever its
owner changes, and an ended session owns nothing.
"""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

import asyncio
import sqlite3
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from kelpie.core.errors import ConflictError, InvalidFieldError, NotFoundError, SessionEndedError
from kelpie.core.limits import NAME_CHARS_MAX, SHARD_COUNT
from kelpie.storage.bounds import require_integers, text_bytes
from kelpie.storage.cluster import ENDED_SHOWN_MAX, ClusterView, NodeRow, NodeState, ShardRow
from kelpie.storage.decode import Row
from kelpie.storage.records import ShardGrant
from kelpie.storage.sqlite.batch import Work
from kelpie.storage.sqlite.reader import SqliteReader
from kelpie.storage.sqlite.transaction import Transaction

_COLUMNS: Final = (
    "session, name, address, state, renewals, ttl_ms, is_cordoned, is_draining, started_ms,"
    " coalesce(ended_ms, 0)"
)
_LIVING: Final = f"SELECT {_COLUMNS} FROM sessions WHERE ended_ms IS NULL AND name != ''"
_ENDED: Final = (
    f"SELECT {_COLUMNS} FROM sessions WHERE ended_ms IS NOT NULL AND name != ''"
    " ORDER BY ended_ms DESC LIMIT ?"
)


class SqliteNodes(SqliteReader):
    """The sessions and shards of one file."""

    __slots__ = ()

    @abstractmethod
    def _submit(self, member: Work, size_bytes: int) -> asyncio.Future[Any]:
        """Queue a member of a transaction."""

    async def join(self, node: NodeRow) -> None:
        """Add a living session with ``renewals`` 0; harmless when it is there.

        Raises:
            ConflictError: A living session has the node's name; it must end first.
            SessionEndedError: It was added before, and has ended.
        """
        require_integers("node", node.ttl_ms, node.started_ms)
        size_bytes = text_bytes("name", node.name, NAME_CHARS_MAX)
        size_bytes += text_bytes("address", node.address, NAME_CHARS_MAX)
        if not node.name:
            raise InvalidFieldError("name", "a node has a name; set one")
        await self._submit(partial(join, node=node), size_bytes)

    async def renew(self, session: str) -> int:
        """Count one renewal of a living session and return how many there were.

        Raises:
            SessionEndedError: It has ended; nothing renews it.
        """
        renewals: int = await self._submit(partial(renew, session=session), 0)
        return renewals

    async def set_node_state(self, session: str, state: NodeState) -> None:
        """Write down what a living session's node is doing.

        Raises:
            SessionEndedError: It has ended.
        """
        await self._submit(partial(set_state, session=session, state=state), 0)

    async def cluster(self) -> ClusterView:
        """Return the sessions and the shards, of one snapshot."""
        with self._snapshot("the cluster"):
            return read_cluster(self._reader)

    async def session_ended(self, session: str) -> bool:
        """Return whether a session has ended, or was never known."""
        query = "SELECT 1 FROM sessions WHERE session = ? AND ended_ms IS NULL"
        return await self._fetch_one(query, (session,), "sessions") is None

    async def claim(self, session: str, shards: Sequence[ShardGrant]) -> list[ShardGrant]:
        """Own those shards that are still free under the epochs seen, each with its next epoch.

        Raises:
            SessionEndedError: The session has ended.
        """
        member = partial(claim, session=session, shards=tuple(shards))
        taken: list[ShardGrant] = await self._submit(member, 0)
        assert len(taken) <= len(shards), "nothing else was asked for"
        return taken

    async def release_shards(self, session: str, shards: Sequence[ShardGrant]) -> None:
        """Let go of shards that this session owns under these epochs; others are left alone.

        Their epochs rise, so that nothing that was still on its way can be written.
        """
        await self._submit(partial(release, session=session, shards=tuple(shards)), 0)

    async def end_session(self, session: str, renewals: int | None, *, now_ms: int) -> bool:
        """End a session for good and free its shards, raising their epochs, in one transaction.

        With ``renewals`` only if its counter still says so; None ends it whatever it says.
        Returns whether it is ended now.
        """
        require_integers("now_ms", now_ms)
        member = partial(end, session=session, renewals=renewals, now_ms=now_ms)
        is_ended: bool = await self._submit(member, 0)
        return is_ended

    async def cordon(self, name: str, *, is_cordoned: bool, is_draining: bool) -> None:
        """Mark the living session of the node ``name``.

        Raises:
            NotFoundError: No living session has that name.
        """
        member = partial(cordon, name=name, is_cordoned=is_cordoned, is_draining=is_draining)
        await self._submit(member, 0)

    async def pin(self, shard: int, name: str) -> None:
        """Let only the node ``name`` own the shard while that node lives; empty lets any."""
        if not 0 <= shard < SHARD_COUNT:
            raise InvalidFieldError("shard", f"{shard} is none of 0 to {SHARD_COUNT - 1}")
        size_bytes = text_bytes("name", name, NAME_CHARS_MAX)
        await self._submit(partial(pin, shard=shard, name=name), size_bytes)


def read_cluster(connection: sqlite3.Connection) -> ClusterView:
    """Return the living sessions, those that ended lately, and the shards."""
    living = connection.execute(f"{_LIVING} ORDER BY name").fetchall()
    ended = connection.execute(_ENDED, (ENDED_SHOWN_MAX,)).fetchall()
    query = "SELECT shard, epoch, session, pinned FROM shards ORDER BY shard"
    shards = connection.execute(query).fetchall()
    nodes = (_node(row) for row in (*living, *ended))
    return ClusterView(tuple(nodes), tuple(ShardRow(*row) for row in shards))


def _node(row: Row) -> NodeRow:
    node = NodeRow(*row)
    return node._replace(is_cordoned=bool(node.is_cordoned), is_draining=bool(node.is_draining))


# --- members of transactions --------------------------------------------------------------------


def join(transaction: Transaction, node: NodeRow) -> None:
    """Add a living session; harmless when it is there.

    Raises:
        ConflictError: A living session has the node's name.
        SessionEndedError: It was added before, and has ended.
    """
    query = "SELECT ended_ms FROM sessions WHERE session = ?"
    own = transaction.execute(query, (node.session,)).fetchone()
    if own is not None:  # the answer to an earlier try was lost
        _require_living(transaction, node.session)
        return
    query = "SELECT session FROM sessions WHERE name = ? AND name != '' AND ended_ms IS NULL"
    other = transaction.execute(query, (node.name,)).fetchone()
    if other is not None:
        raise ConflictError(
            f"a node named {node.name!r} is in the cluster already; give this one another name, "
            "or wait until the other's lease has ended",
            name=node.name,
        )
    assert node.session, "a session has a name"
    written = transaction.execute(
        "INSERT INTO sessions (session, name, address, state, ttl_ms, started_ms, is_cordoned,"
        " is_draining) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(node.session, node.name, node.address, node.state, node.ttl_ms, node.started_ms),
            *(int(node.is_cordoned), int(node.is_draining)),
        ),
    ).rowcount
    assert written == 1, "a session has one row"


def renew(transaction: Transaction, session: str) -> int:
    """Count one renewal of a living session.

    Raises:
        SessionEndedError: It has ended.
    """
    _require_living(transaction, session)
    query = "UPDATE sessions SET renewals = renewals + 1 WHERE session = ? RETURNING renewals"
    ((renewals,),) = transaction.execute(query, (session,)).fetchall()
    assert renewals >= 1, "a counter of renewals only grows"
    return int(renewals)


def set_state(transaction: Transaction, session: str, state: NodeState) -> None:
    """Write down what a living session's node is doing.

    Raises:
        SessionEndedError: It has ended.
    """
    _require_living(transaction, session)
    query = "UPDATE sessions SET state = ? WHERE session = ?"
    written = transaction.execute(query, (state, session)).rowcount
    assert written == 1, "a session has one row"


def _require_living(transaction: Transaction, session: str) -> None:
    query = "SELECT 1 FROM sessions WHERE session = ? AND ended_ms IS NULL"
    if transaction.execute(query, (session,)).fetchone() is None:
        message = f"session {session} has ended; join the cluster with another one"
        raise SessionEndedError(message, session=session)


def claim(transaction: Transaction, session: str, shards: Sequence[ShardGrant]) -> list[ShardGrant]:
    """Own those shards that are free under the epochs seen, each with its next epoch.

    Raises:
        SessionEndedError: The session has ended.
    """
    _require_living(transaction, session)
    taken: list[ShardGrant] = []
    for shard, epoch in shards:
        if _move(transaction, ShardGrant(shard, epoch), owner="", taker=session):
            taken.append(ShardGrant(shard, epoch + 1))
    assert all(grant.epoch > 0 for grant in taken), "an epoch counts owners"
    return taken


def release(transaction: Transaction, session: str, shards: Sequence[ShardGrant]) -> None:
    """Free the shards that the session owns under these epochs."""
    assert session, "a session has a name"
    for grant in shards:
        _move(transaction, grant, owner=session, taker="")


def _move(transaction: Transaction, seen: ShardGrant, *, owner: str, taker: str) -> bool:
    """Give a shard to another owner if it is as it was seen; return whether it was."""
    moved = transaction.execute(
        "UPDATE shards SET epoch = epoch + 1, session = ?"
        " WHERE shard = ? AND epoch = ? AND session = ?",
        (taker, seen.shard, seen.epoch, owner),
    ).rowcount
    assert moved <= 1, "a shard has one row"
    if moved:
        transaction.raise_epoch(seen.shard, seen.epoch + 1)
    return bool(moved)


def end(transaction: Transaction, session: str, renewals: int | None, now_ms: int) -> bool:
    """End a session and free its shards, if its counter says what was seen or nobody asks."""
    query = "SELECT renewals FROM sessions WHERE session = ? AND ended_ms IS NULL"
    row = transaction.execute(query, (session,)).fetchone()
    if row is None:
        return True
    if renewals is not None and row[0] != renewals:
        return False
    query = "UPDATE sessions SET ended_ms = ?, state = 'stopped' WHERE session = ?"
    ended = transaction.execute(query, (now_ms, session)).rowcount
    assert ended == 1, "a session has one row"
    query = "SELECT shard, epoch FROM shards WHERE session = ?"
    owned = [ShardGrant(*each) for each in transaction.execute(query, (session,)).fetchall()]
    for grant in owned:
        assert _move(transaction, grant, owner=session, taker=""), "one transaction sees one state"
    return True


def cordon(transaction: Transaction, name: str, *, is_cordoned: bool, is_draining: bool) -> None:
    """Mark the living session of a node.

    Raises:
        NotFoundError: No living session has that name.
    """
    query = "SELECT session FROM sessions WHERE name = ? AND name != '' AND ended_ms IS NULL"
    row = transaction.execute(query, (name,)).fetchone()
    if row is None:
        raise NotFoundError("node", name, hint='"kelpie cluster status" lists the living ones')
    query = "UPDATE sessions SET is_cordoned = ?, is_draining = ? WHERE session = ?"
    written = transaction.execute(query, (int(is_cordoned), int(is_draining), row[0])).rowcount
    assert written == 1, "a session has one row"


def pin(transaction: Transaction, shard: int, name: str) -> None:
    """Let only one node own a shard while it lives; an empty name lets any."""
    assert 0 <= shard < SHARD_COUNT, "a shard of this store"
    query = "UPDATE shards SET pinned = ? WHERE shard = ?"
    written = transaction.execute(query, (name, shard)).rowcount
    assert written == 1, "a store has all its shards"
