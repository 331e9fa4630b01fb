"""A pause is a row and an audit record, and both are there after a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kelpie.core.errors import FencedError
from kelpie.core.ids import TENANT_DEFAULT
from kelpie.storage.audit import verify_chain
from kelpie.storage.records import StoredPause
from tests.contract.store.world import NOW_MS, Engine, Hand, actor_id

if TYPE_CHECKING:
    from kelpie.storage.protocol import Store

ADA = actor_id("ada")


def epoch(store: Store) -> int:
    return next(grant.epoch for grant in store.grants() if grant.shard == ADA.shard)


def note(by: str, at_ms: int = NOW_MS) -> StoredPause:
    return StoredPause(ADA, by, at_ms)


@pytest.mark.requirement("ACTOR-PAUSE-SURVIVES")
async def test_a_pause_survives_a_restart_and_its_end_does_too(engine: Engine) -> None:
    async with engine.opened() as store:
        assert await store.pause_actor(note("key:0"), epoch=epoch(store))
        assert not await store.pause_actor(note("local"), epoch=epoch(store))
    async with engine.opened() as store:
        assert await store.pauses() == [note("key:0")]
        assert await store.resume_actor(note("local", NOW_MS + 1), epoch=epoch(store))
        assert not await store.resume_actor(note("local", NOW_MS + 2), epoch=epoch(store))
    async with engine.opened() as store:
        assert await store.pauses() == []


async def test_each_change_is_a_link_of_the_actors_own_audit_chain(engine: Engine) -> None:
    async with engine.opened() as store:
        await store.pause_actor(note("key:0"), epoch=epoch(store))
        await Hand(store).turn(state=b"s")
        await store.resume_actor(note("local", NOW_MS + 1), epoch=epoch(store))
        chain = [record async for record in store.audit_chain(ADA.shard)]
        assert [(each.kind, each.principal, each.at_ms) for each in chain] == [
            ("actor.paused", "key:0", NOW_MS),
            ("actor.resumed", "local", NOW_MS + 1),
        ]
        verify_chain(chain, shard=ADA.shard)
        assert len([each async for each in store.audit(TENANT_DEFAULT)]) == 2


async def test_an_earlier_owner_can_neither_pause_nor_resume(engine: Engine) -> None:
    async with engine.opened() as store:
        old = epoch(store)
    async with engine.opened() as store:
        with pytest.raises(FencedError):
            await store.pause_actor(note("local"), epoch=old)
        await store.pause_actor(note("local"), epoch=epoch(store))
        with pytest.raises(FencedError):
            await store.resume_actor(note("local"), epoch=old)
        assert await store.pauses() == [note("local")]
