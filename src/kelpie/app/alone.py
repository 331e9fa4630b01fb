"""A node that has a shared store for itself: it ends the dead, owns what is free, keeps its lease.

Ends a session only when it was seen unchanged for its whole lease and a margin on this node's own
clock, or when it is an earlier life of this very node, which the lock beside its session's file
proves to be over. Never takes a shard from a session that lives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kelpie.core.errors import SessionEndedError, StoreError
from kelpie.core.limits import LEASE_MARGIN_PARTS, LEASE_RENEWALS_PER_TTL
from kelpie.ports.clock import Clock
from kelpie.storage.cluster import ClusterStore, NodeRow
from kelpie.storage.files import temporary_file
from kelpie.storage.records import ShardGrant

LOOKS_PER_LEASE: Final = 10
_NS_PER_MS: Final = 1_000_000


async def take_over(
    store: ClusterStore, node: NodeRow, *, clock: Clock, earlier: str = ""
) -> list[ShardGrant]:
    """Join as ``node``, and own every shard that no living session owns.

    Sessions that do not live any more are ended first, which takes as long as their leases.

    Args:
        store: Where the cluster's rows are.
        node: The session to begin.
        clock: Tells how long a session was seen unchanged.
        earlier: The session of an earlier life of this node that is over for certain.

    Raises:
        ConflictError: A living node has this node's name.
        StoreError: The store cannot be reached.
    """
    if earlier and not await store.session_ended(earlier):
        await store.end_session(earlier, None, now_ms=clock.now_ms())
    await end_silent_sessions(store, clock=clock)
    await store.join(node)
    view = await store.cluster()
    free = [ShardGrant(row.shard, row.epoch) for row in view.shards if not row.session]
    taken = await store.claim(node.session, free)
    assert all(grant.epoch > 0 for grant in taken), "an epoch counts owners"
    return taken


async def end_silent_sessions(store: ClusterStore, *, clock: Clock) -> None:
    """End every session that is not renewed while its lease and a margin pass.

    Returns as soon as each was ended or seen alive.
    """
    seen: dict[str, tuple[int, int]] = {}
    alive: set[str] = set()
    while True:
        waiting: list[NodeRow] = []
        for node in (await store.cluster()).nodes:
            if node.ended_ms or node.session in alive:
                continue
            now_ns = clock.boot_ns()
            renewals, since_ns = seen.setdefault(node.session, (node.renewals, now_ns))
            if renewals != node.renewals:
                alive.add(node.session)
            elif now_ns - since_ns >= _patience_ms(node) * _NS_PER_MS:
                await store.end_session(node.session, node.renewals, now_ms=clock.now_ms())
            else:
                waiting.append(node)
        if not waiting:
            return
        await clock.sleep(min(node.ttl_ms for node in waiting) / LOOKS_PER_LEASE / 1_000)


def _patience_ms(node: NodeRow) -> int:
    return node.ttl_ms + -(-node.ttl_ms // LEASE_MARGIN_PARTS)


async def keep_lease(store: ClusterStore, node: NodeRow, *, clock: Clock) -> None:
    """Renew a session until it has ended, which this returns for."""
    while True:
        await clock.sleep(node.ttl_ms / LEASE_RENEWALS_PER_TTL / 1_000)
        try:
            await store.renew(node.session)
        except SessionEndedError:
            return
        except StoreError:
            # The store may come back before the lease has ended; if not, its commits are refused.
            continue


def read_earlier(path: Path) -> str:
    """Return the session that an earlier life of this node wrote down, empty without one."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def write_session(path: Path, session: str) -> None:
    """Write a session down for the next life of this node."""
    assert session, "a session has a name"
    with temporary_file(path) as file:
        file.write(session.encode())
