"""Who may write: sessions that end for good, and shards with one owner at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from kelpie.core.errors import (
    ConflictError,
    FencedError,
    InvalidFieldError,
    NotFoundError,
    SessionEndedError,
    StoreError,
)
from kelpie.core.limits import SHARD_COUNT
from kelpie.storage.cluster import NodeRow
from kelpie.storage.records import (
    AuditAppend,
    CommitReceipt,
    EventAppend,
    KvPut,
    ShardGrant,
    StreamChunk,
)
from tests.contract.store.world import NOW_MS, Hand

if TYPE_CHECKING:
    from kelpie.storage.cluster import ClusterStore, ShardRow
    from tests.contract.store.world import Engine


def node(name: str, session: str = "") -> NodeRow:
    session = session or f"session-{name}"
    return NodeRow(session, name, f"{name}:1", "initializing", 0, 5_000, False, False, NOW_MS, 0)


async def seen(store: ClusterStore, *shards: int) -> list[ShardGrant]:
    """What a node wishes for when it has just looked: these shards under the epochs they have."""
    view = await store.cluster()
    return [ShardGrant(shard, view.shards[shard].epoch) for shard in shards]


async def look(store: ClusterStore, shard: int) -> ShardRow:
    return (await store.cluster()).shards[shard]


async def owned(store: ClusterStore, session: str) -> list[ShardGrant]:
    view = await store.cluster()
    return [ShardGrant(row.shard, row.epoch) for row in view.shards if row.session == session]


async def test_a_store_that_no_node_has_joined_has_every_shard_free(engine: Engine) -> None:
    async with engine.shared() as store:
        view = await store.cluster()
        assert view.nodes == ()
        assert [row.shard for row in view.shards] == list(range(SHARD_COUNT))
        assert {(row.session, row.pinned) for row in view.shards} == {("", "")}
        assert await store.session_ended("session-nobody")


async def test_a_session_is_seen_as_it_joined_and_its_renewals_are_counted(engine: Engine) -> None:
    async with engine.shared() as store:
        await store.join(node("a"))
        await store.join(node("b"))
        assert (await store.cluster()).nodes == (node("a"), node("b"))
        assert [await store.renew("session-a") for _ in range(3)] == [1, 2, 3]
        await store.set_node_state("session-a", "running")
        a, b = (await store.cluster()).nodes
        assert a == node("a")._replace(state="running", renewals=3)
        assert b == node("b")
        assert not await store.session_ended("session-a")


async def test_a_join_whose_answer_was_lost_is_repeated_until_its_session_has_ended(
    engine: Engine,
) -> None:
    async with engine.shared() as store:
        await store.join(node("a"))
        await store.join(node("a"))
        assert (await store.cluster()).nodes == (node("a"),)
        assert await store.end_session("session-a", 0, now_ms=5)
        with pytest.raises(SessionEndedError):
            await store.join(node("a"))
        await store.join(node("a", "session-again"))
        assert not await store.session_ended("session-again")


async def test_two_living_nodes_never_have_one_name(engine: Engine) -> None:
    async with engine.shared() as store:
        await store.join(node("a"))
        with pytest.raises(ConflictError, match="another name"):
            await store.join(node("a", "session-other"))
        assert await store.session_ended("session-other")
        assert await store.end_session("session-a", None, now_ms=NOW_MS)
        await store.join(node("a", "session-other"))
        nodes = [(each.session, bool(each.ended_ms)) for each in (await store.cluster()).nodes]
        assert nodes == [("session-other", False), ("session-a", True)]
        with pytest.raises(InvalidFieldError):
            await store.join(node("", "session-third"))


@pytest.mark.requirement("K-17", "K-14")
async def test_a_session_that_has_ended_is_never_renewed_and_owns_nothing(engine: Engine) -> None:
    async with engine.shared() as store:
        await store.join(node("a"))
        (taken,) = await store.claim("session-a", await seen(store, 0))
        assert await store.end_session("session-a", 0, now_ms=NOW_MS)
        assert await store.session_ended("session-a")
        for refused in (
            store.renew("session-a"),
            store.set_node_state("session-a", "running"),
            store.claim("session-a", await seen(store, 1)),
        ):
            with pytest.raises(SessionEndedError):
                await refused
        assert await owned(store, "session-a") == []
        row = await look(store, 0)
        assert (row.session, row.epoch) == ("", taken.epoch + 1)
        assert await store.end_session("session-a", 0, now_ms=NOW_MS), "it stays ended"
        assert (await look(store, 0)).epoch == row.epoch, "and ends once"


@pytest.mark.requirement("K-17")
async def test_a_session_that_was_renewed_since_it_was_seen_is_not_ended(engine: Engine) -> None:
    async with engine.shared() as store:
        await store.join(node("a"))
        taken = await store.claim("session-a", await seen(store, 0, 1))
        assert await store.renew("session-a") == 1
        assert not await store.end_session("session-a", 0, now_ms=NOW_MS)
        assert await owned(store, "session-a") == taken
        assert await store.renew("session-a") == 2
        assert not await store.session_ended("session-a")
        assert await store.end_session("session-a", None, now_ms=NOW_MS), "its own node may"


@pytest.mark.requirement("K-13", "K-16")
async def test_of_two_nodes_that_claim_a_shard_one_gets_it(engine: Engine) -> None:
    async with engine.shared() as store:
        await store.join(node("a"))
        await store.join(node("b"))
        wish = await seen(store, 0, 1, 2)
        first, second = await asyncio.gather(
            store.claim("session-a", wish[:2]), store.claim("session-b", wish)
        )
        raised = [ShardGrant(shard, epoch + 1) for shard, epoch in wish]
        assert sorted([*first, *second]) == raised
        assert await owned(store, "session-a") == sorted(first)
        assert await owned(store, "session-b") == sorted(second)


@pytest.mark.requirement("K-13")
async def test_a_claim_under_an_epoch_that_has_moved_takes_nothing(engine: Engine) -> None:
    async with engine.shared() as store:
        await store.join(node("a"))
        await store.join(node("b"))
        stale = await seen(store, 5)
        taken = await store.claim("session-a", stale)
        await store.release_shards("session-a", taken)
        assert await store.claim("session-b", stale) == []
        ahead = [ShardGrant(5, (await look(store, 5)).epoch + 1)]
        assert await store.claim("session-b", ahead) == []
        assert (await look(store, 5)).session == ""


@pytest.mark.requirement("K-13")
async def test_only_the_owner_lets_go_and_only_under_its_epoch(engine: Engine) -> None:
    async with engine.shared() as store:
        await store.join(node("a"))
        await store.join(node("b"))
        (grant,) = await store.claim("session-a", await seen(store, 9))
        await store.release_shards("session-b", [grant])
        await store.release_shards("session-a", [ShardGrant(9, grant.epoch - 1)])
        assert await owned(store, "session-a") == [grant]
        await store.release_shards("session-a", [grant])
        row = await look(store, 9)
        assert (row.session, row.epoch > grant.epoch) == ("", True)


async def test_epochs_never_fall_whoever_comes_and_goes(engine: Engine) -> None:
    epochs: list[int] = []
    for round_number in range(3):
        async with engine.shared() as store:
            session = f"session-{round_number}"
            await store.join(node("a", session))
            for _ in range(2):
                (grant,) = await store.claim(session, await seen(store, 3))
                epochs.append(grant.epoch)
                await store.release_shards(session, [grant])
                epochs.append((await look(store, 3)).epoch)
            await store.claim(session, await seen(store, 3))
            epochs.append((await look(store, 3)).epoch)
            await store.end_session(session, None, now_ms=NOW_MS)
            epochs.append((await look(store, 3)).epoch)
    assert epochs == sorted(set(epochs)), "each change of owner raises it"


@pytest.mark.requirement("K-13")
async def test_a_former_owner_writes_nothing(engine: Engine) -> None:
    async with engine.shared() as store:
        await store.join(node("a"))
        await store.join(node("b"))
        hand = Hand(store)
        shard = hand.actor.shard
        (first,) = await store.claim("session-a", await seen(store, shard))
        await hand.turn(epoch=first.epoch, state=b"one")
        assert await store.end_session("session-a", 0, now_ms=NOW_MS)
        zombie: dict[str, Any] = {
            "state": b"zombie",
            "kv": (KvPut("k", b"v"),),
            "events": (EventAppend("e", b""),),
            "audit": (AuditAppend("zombie", "p", b""),),
        }
        with pytest.raises(FencedError):
            await hand.turn(epoch=first.epoch, **zombie)
        (second,) = await store.claim("session-b", await seen(store, shard))
        with pytest.raises(FencedError):
            await hand.turn(epoch=first.epoch, **zombie)
        chunk = StreamChunk("effect-1", 1, 1, "text", b"zombie")
        with pytest.raises(FencedError):
            await store.stream_append(hand.actor, first.epoch, [chunk])
        await hand.turn(epoch=second.epoch, state=b"two")
        loaded = await store.load(hand.actor)
        assert loaded is not None
        assert (loaded.state, loaded.version, loaded.event_sequence) == (b"two", 2, 0)
        assert await store.kv_get(hand.actor, "k") is None
        assert [record async for record in store.audit_chain(shard)] == []
        assert await store.stream(hand.actor, "effect-1", 1, 0, 9) == []


@pytest.mark.requirement("K-13")
async def test_a_take_over_in_the_middle_of_many_commits_cuts_them_once(engine: Engine) -> None:
    count = 40
    async with engine.shared() as store:
        await store.join(node("a"))
        hand = Hand(store)
        shard = hand.actor.shard
        (grant,) = await store.claim("session-a", await seen(store, shard))
        turns = [
            store.commit(hand.prepare(epoch=grant.epoch, expected_version=version))
            for version in range(count)
        ]
        ended, *outcomes = await asyncio.gather(
            store.end_session("session-a", None, now_ms=NOW_MS), *turns, return_exceptions=True
        )
        assert ended is True
        kept = [receipt for receipt in outcomes if isinstance(receipt, CommitReceipt)]
        refused = [error for error in outcomes if isinstance(error, BaseException)]
        # Those behind a refused one expect a version that never came to be.
        assert all(isinstance(error, FencedError | StoreError) for error in refused)
        assert [receipt.version for receipt in kept] == list(range(1, len(kept) + 1))
        loaded = await store.load(hand.actor)
        assert (0 if loaded is None else loaded.version) == len(kept)
        assert len(kept) + len(refused) == count


async def test_cordon_and_pin_are_kept_and_refuse_what_is_not_there(engine: Engine) -> None:
    async with engine.shared() as store:
        await store.join(node("a"))
        await store.cordon("a", is_cordoned=True, is_draining=False)
        await store.pin(7, "a")
        view = await store.cluster()
        assert view.nodes == (node("a")._replace(is_cordoned=True),)
        assert view.shards[7].pinned == "a"
        await store.pin(7, "")
        await store.cordon("a", is_cordoned=False, is_draining=True)
        view = await store.cluster()
        assert (view.nodes[0].is_cordoned, view.nodes[0].is_draining) == (False, True)
        assert view.shards[7].pinned == ""
        for wrong in ("b", ""):
            with pytest.raises(NotFoundError):
                await store.cordon(wrong, is_cordoned=True, is_draining=False)
        for shard in (-1, SHARD_COUNT):
            with pytest.raises(InvalidFieldError):
                await store.pin(shard, "a")


async def test_a_pin_outlives_its_node_and_a_shards_owners(engine: Engine) -> None:
    async with engine.shared() as store:
        await store.join(node("a"))
        await store.pin(7, "a")
        await store.claim("session-a", await seen(store, 7))
        await store.end_session("session-a", None, now_ms=NOW_MS)
        assert (await look(store, 7)).pinned == "a"
