"""Opens a store in a database for a node of this machine, and keeps its lease while it is open.

A lock on this machine makes the node's name its own here, and tells other commands where it can be
asked; see `kelpie.storage.holder`. The blobs lie in the data directory, which the nodes of one
machine share.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from kelpie.actors.supervisor import Supervisor
from kelpie.app.alone import keep_lease, read_earlier, take_over, write_session
from kelpie.core.dsn import Dsn
from kelpie.core.errors import KelpieError, SessionEndedError, StoreError
from kelpie.core.ids import derive_uuid
from kelpie.core.limits import LEASE_TTL_MS
from kelpie.ports.clock import Clock
from kelpie.ports.rng import Rng
from kelpie.ports.telemetry import Telemetry
from kelpie.settings import Settings
from kelpie.storage.cluster import NodeRow
from kelpie.storage.holder import HolderLock
from kelpie.storage.postgres.store import PostgresStore

BLOBS_DIRECTORY: Final = "blobs"


class LoneStore(PostgresStore):
    """The store of a node that does not join again: it stops when its session was ended."""

    __slots__ = ()

    @property
    def failure(self) -> KelpieError | None:
        """Why nothing is written any more; None while all is well."""
        if self.session and not self._control.is_living:
            message = "another node took this one for dead and ended its session; start it again"
            return SessionEndedError(message, session=self.session)
        return super().failure


@asynccontextmanager
async def open_database(
    settings: Settings,
    dsn: Dsn,
    *,
    address: str,
    clock: Clock,
    rng: Rng,
    telemetry: Telemetry,
) -> AsyncGenerator[LoneStore]:
    """Yield the store of ``dsn`` with every shard that no living node owns; closed at the end.

    Waits as long as a lease if another node does not live any more. At the end the session is
    ended, so that nobody waits for this node.

    Raises:
        StoreHeldError: A process of this machine has the node's name.
        ConflictError: A living node elsewhere has it.
        ConfigError: The address is wrong, or the server would lose what it acknowledges.
        StoreVersionError: The schema is newer than this program.
        StoreError: The database cannot be reached.
    """
    place = settings.store.path
    for directory in (settings.data_dir, place.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = HolderLock.acquire(place, address=address)
    try:
        store = await LoneStore.open(
            dsn.text,
            clock=clock,
            rng=rng,
            blobs_path=settings.data_dir / BLOBS_DIRECTORY,
            address=address,
            name=settings.node,
        )
        try:
            node = _make_node(settings.node, address, clock, rng)
            session_file = place.with_name(place.name + ".session")
            await _join(store, node, session_file, clock, telemetry)
            supervisor = Supervisor(clock=clock, telemetry=telemetry)
            supervisor.keep("app.lease", lambda: keep_lease(store, node, clock=clock))
            try:
                yield store
            finally:
                await supervisor.close()
                with suppress(StoreError):  # a database that is away learns it from the next node
                    await store.end_session(node.session, None, now_ms=clock.now_ms())
        finally:
            await store.close()
    finally:
        lock.release()


def _make_node(name: str, address: str, clock: Clock, rng: Rng) -> NodeRow:
    return NodeRow(
        session=f"session-{derive_uuid(rng.bytes(16), 0)}",
        name=name,
        address=address,
        state="running",
        renewals=0,
        ttl_ms=LEASE_TTL_MS,
        is_cordoned=False,
        is_draining=False,
        started_ms=clock.now_ms(),
        ended_ms=0,
    )


async def _join(
    store: PostgresStore, node: NodeRow, session_file: Path, clock: Clock, telemetry: Telemetry
) -> None:
    grants = await take_over(store, node, clock=clock, earlier=read_earlier(session_file))
    write_session(session_file, node.session)
    telemetry.log("info", "node.joined", node=node.name, session=node.session, shards=len(grants))
