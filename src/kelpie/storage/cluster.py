"""Who may write: nodes with their session leases, and shards with their epochs.

The store is the arbiter of a cluster. These are its rows and the few transactions that change
them; `ClusterStore` is kept by every engine (``tests/contract/store`` holds it).

A session that has ended stays ended. A shard's epoch only grows, and grows whenever its owner
changes, so a commit of an earlier owner is refused whatever that owner believes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Protocol

from kelpie.storage.records import ShardGrant

NODE_NAME_DEFAULT: Final = "local"
"""The node that has a store for itself."""

ENDED_SHOWN_MAX: Final = 64
"""How many ended sessions a view shows; the newest."""

NodeState = Literal["initializing", "running", "shutting_down", "stopped"]


class NodeRow(NamedTuple):
    """One session of one node.

    ``renewals`` counts the lease's renewals; whoever sees it unchanged for ``ttl_ms`` and a margin
    on its own clock may end the session. ``address`` is where other nodes reach it
    (``host:port``). A cordoned node takes no further shard, a draining one gives its own away.
    ``ended_ms`` is 0 while the session lives.
    """

    session: str
    name: str
    address: str
    state: NodeState
    renewals: int
    ttl_ms: int
    is_cordoned: bool
    is_draining: bool
    started_ms: int
    ended_ms: int


class ShardRow(NamedTuple):
    """One shard: ``session`` is empty while nobody owns it; ``pinned`` names the one node that may.

    An empty ``pinned`` lets any node own it.
    """

    shard: int
    epoch: int
    session: str
    pinned: str


class ClusterView(NamedTuple):
    """Every living session, the ones that ended lately, and all shards; from one snapshot."""

    nodes: tuple[NodeRow, ...]
    shards: tuple[ShardRow, ...]


class ClusterStore(Protocol):
    """Sessions and shards. Every method is one transaction."""

    async def join(self, node: NodeRow) -> None:
        """Add a living session with ``renewals`` 0; harmless when it is there.

        Raises:
            ConflictError: A living session has the node's name; it must end first.
            SessionEndedError: It was added before, and has ended: its answer had been lost.
        """
        ...

    async def renew(self, session: str) -> int:
        """Count one renewal of a living session and return how many there were.

        Raises:
            SessionEndedError: It has ended; nothing renews it.
        """
        ...

    async def set_node_state(self, session: str, state: NodeState) -> None:
        """Write down what a living session's node is doing.

        Raises:
            SessionEndedError: It has ended.
        """
        ...

    async def cluster(self) -> ClusterView:
        """Return the sessions and the shards."""
        ...

    async def session_ended(self, session: str) -> bool:
        """Return whether a session has ended, or was never known."""
        ...

    async def claim(self, session: str, shards: Sequence[ShardGrant]) -> list[ShardGrant]:
        """Own those shards that are still free under the epochs seen, each with its next epoch.

        Returns what is owned now; others were quicker with the rest.

        Raises:
            SessionEndedError: The session has ended.
        """
        ...

    async def release_shards(self, session: str, shards: Sequence[ShardGrant]) -> None:
        """Let go of shards that this session owns under these epochs; others are left alone.

        Their epochs rise, so that nothing that was still on its way can be written.
        """
        ...

    async def end_session(self, session: str, renewals: int | None, *, now_ms: int) -> bool:
        """End a session for good and free its shards, raising their epochs, in one transaction.

        With ``renewals`` only if its counter still says so (it was not renewed since it was
        seen); None ends it whatever it says, as a node does with its own. Returns whether it is
        ended now.
        """
        ...

    async def cordon(self, name: str, *, is_cordoned: bool, is_draining: bool) -> None:
        """Mark the living session of the node ``name``.

        Raises:
            NotFoundError: No living session has that name.
        """
        ...

    async def pin(self, shard: int, name: str) -> None:
        """Let only the node ``name`` own the shard while that node lives; empty lets any."""
        ...
