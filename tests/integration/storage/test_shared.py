"""One file for several nodes: sessions that end for good, and shards with one owner at a time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import msgspec
import pytest

from kelpie.core.errors import (
    ConflictError,
    FencedError,
    InvalidFieldError,
    NotFoundError,
    SessionEndedError,
)
from kelpie.core.limits import SHARD_COUNT
from kelpie.storage.cluster import NODE_NAME_DEFAULT, NodeRow
from kelpie.storage.records import Commit, CommitReceipt, ShardGrant
from kelpie.storage.sqlite import migrations
from kelpie.storage.sqlite.engine import connect_writer
from tests.contract.store.world import NOW_MS, Hand, SqliteEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from kelpie.storage.sqlite.store import SqliteStore


@pytest.fixture
def engine(tmp_path: Path) -> SqliteEngine:
    return SqliteEngine(tmp_path)


@asynccontextmanager
async def shared(engine: SqliteEngine) -> AsyncIterator[SqliteStore]:
    """The store as nodes have it that join."""
    store = await engine.open(node="")
    try:
        yield store
    finally:
        await store.close()


def node(name: str, session: str = "") -> NodeRow:
    session = session or f"session-{name}"
    return NodeRow(session, name, f"{name}:1", "initializing", 0, 5_000, False, False, NOW_MS, 0)


async def owned(store: SqliteStore, session: str) -> list[ShardGrant]:
    view = await store.cluster()
    return [ShardGrant(row.shard, row.epoch) for row in view.shards if row.session == session]


async def written_by(store: SqliteStore, commit: Commit) -> CommitReceipt:
    """Commit when it is this coroutine's turn, not when it is made."""
    return await store.commit(commit)


async def test_a_store_that_is_opened_for_nodes_has_every_shard_free(engine: SqliteEngine) -> None:
    async with shared(engine) as store:
        view = await store.cluster()
    assert view.nodes == ()
    assert [row.shard for row in view.shards] == list(range(SHARD_COUNT))
    assert {(row.session, row.pinned) for row in view.shards} == {("", "")}
    assert store.grants() == ()
    assert store.session == ""


async def test_a_node_that_has_the_store_for_itself_is_a_cluster_of_one(
    engine: SqliteEngine,
) -> None:
    async with engine.opened() as store:
        view = await store.cluster()
        assert [(each.name, each.state, each.ttl_ms) for each in view.nodes] == [
            (NODE_NAME_DEFAULT, "running", 0)
        ]
        assert await owned(store, store.session) == list(store.grants())
        assert len(store.grants()) == SHARD_COUNT
    async with engine.opened() as store:
        living = [each for each in (await store.cluster()).nodes if not each.ended_ms]
        assert [each.session for each in living] == [store.session]


async def test_leases_outlive_the_process_that_keeps_the_file(engine: SqliteEngine) -> None:
    async with shared(engine) as store:
        await store.join(node("a"))
        taken = await store.claim("session-a", [ShardGrant(3, 1)])
    async with shared(engine) as store:
        assert not await store.session_ended("session-a")
        assert await owned(store, "session-a") == taken


async def test_a_node_alone_ends_every_lease_and_gives_its_shards_back(
    engine: SqliteEngine,
) -> None:
    async with shared(engine) as store:
        await store.join(node("a"))
        (taken,) = await store.claim("session-a", [ShardGrant(3, 1)])
    async with engine.opened() as store:
        assert await store.session_ended("session-a")
        alone = store.session
        epoch = store.grants()[3].epoch
        assert epoch > taken.epoch
    async with shared(engine) as store:
        assert await store.session_ended(alone)
        row = (await store.cluster()).shards[3]
        assert (row.session, row.epoch > epoch) == ("", True)


async def test_two_living_nodes_never_have_one_name(engine: SqliteEngine) -> None:
    async with shared(engine) as store:
        await store.join(node("a"))
        with pytest.raises(ConflictError, match="another name"):
            await store.join(node("a", "session-other"))
        assert await store.end_session("session-a", None, now_ms=NOW_MS)
        await store.join(node("a", "session-other"))
        names = [(each.name, bool(each.ended_ms)) for each in (await store.cluster()).nodes]
        assert names == [("a", False), ("a", True)]
        with pytest.raises(InvalidFieldError):
            await store.join(node("", "session-third"))


@pytest.mark.requirement("K-17", "K-14")
async def test_a_session_that_has_ended_is_never_renewed_and_owns_nothing(
    engine: SqliteEngine,
) -> None:
    async with shared(engine) as store:
        await store.join(node("a"))
        assert await store.renew("session-a") == 1
        (taken,) = await store.claim("session-a", [ShardGrant(0, 1)])
        assert not await store.end_session("session-a", 0, now_ms=NOW_MS)
        assert await store.end_session("session-a", 1, now_ms=NOW_MS)
        assert await store.end_session("session-a", 1, now_ms=NOW_MS)
        for refused in (
            store.renew("session-a"),
            store.set_node_state("session-a", "running"),
            store.claim("session-a", [ShardGrant(1, 1)]),
        ):
            with pytest.raises(SessionEndedError):
                await refused
        assert await owned(store, "session-a") == []
        row = (await store.cluster()).shards[0]
        assert (row.session, row.epoch) == ("", taken.epoch + 1)


@pytest.mark.requirement("K-13", "K-16")
async def test_of_two_nodes_that_claim_a_shard_one_gets_it(engine: SqliteEngine) -> None:
    async with shared(engine) as store:
        await store.join(node("a"))
        await store.join(node("b"))
        wish = [ShardGrant(0, 1), ShardGrant(1, 1)]
        first, second = await asyncio.gather(
            store.claim("session-a", wish), store.claim("session-b", [*wish, ShardGrant(2, 1)])
        )
        assert first == [ShardGrant(0, 2), ShardGrant(1, 2)]
        assert second == [ShardGrant(2, 2)]


@pytest.mark.requirement("K-13")
async def test_what_a_node_let_go_it_cannot_write_any_more(engine: SqliteEngine) -> None:
    async with shared(engine) as store:
        await store.join(node("a"))
        hand = Hand(store)
        shard = hand.actor.shard
        (grant,) = await store.claim("session-a", [ShardGrant(shard, 1)])
        await store.release_shards("session-b", [grant])
        await store.release_shards("session-a", [ShardGrant(shard, grant.epoch - 1)])
        assert await owned(store, "session-a") == [grant]
        turn = hand.prepare(epoch=grant.epoch, state=b"one")
        # In one batch, which must not go on with the epoch that it read at its beginning.
        written, _, late = await asyncio.gather(
            written_by(store, turn),
            store.release_shards("session-a", [grant]),
            written_by(store, msgspec.structs.replace(turn, expected_version=1)),
            return_exceptions=True,
        )
        assert not isinstance(written, BaseException)
        assert isinstance(late, FencedError)


async def test_cordon_and_pin_are_kept_and_refuse_what_is_not_there(engine: SqliteEngine) -> None:
    async with shared(engine) as store:
        await store.join(node("a"))
        await store.set_node_state("session-a", "running")
        await store.cordon("a", is_cordoned=True, is_draining=False)
        await store.pin(7, "a")
        view = await store.cluster()
        assert view.nodes[0]._replace(renewals=0) == node("a")._replace(
            state="running", is_cordoned=True
        )
        assert view.shards[7].pinned == "a"
        await store.pin(7, "")
        await store.cordon("a", is_cordoned=False, is_draining=True)
        view = await store.cluster()
        assert (view.nodes[0].is_cordoned, view.nodes[0].is_draining) == (False, True)
        assert view.shards[7].pinned == ""
        with pytest.raises(NotFoundError):
            await store.cordon("b", is_cordoned=True, is_draining=False)
        with pytest.raises(InvalidFieldError):
            await store.pin(SHARD_COUNT, "a")


async def test_a_store_of_the_second_schema_keeps_its_epochs(engine: SqliteEngine) -> None:
    engine.path.parent.mkdir()
    with closing(connect_writer(engine.path)) as connection:
        assert migrations.migrate(connection, migrations.MIGRATIONS[:2]) == 2
        connection.execute("INSERT INTO sessions VALUES ('session-old', 1, NULL)")
        rows = [(shard, 41, "session-old") for shard in range(SHARD_COUNT)]
        connection.executemany("INSERT INTO shards VALUES (?, ?, ?)", rows)
    async with engine.opened() as store:
        assert {grant.epoch for grant in store.grants()} == {42}
        assert await store.session_ended("session-old")
