"""Actors that leave a store and arrive in another: seals, commits that come too late, arrivals."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from kelpie.core.digests import digest_bytes
from kelpie.core.errors import (
    ActorMovedError,
    ConflictError,
    CorruptionError,
    FencedError,
    LimitExceededError,
    NotFoundError,
    StoreError,
    VersionConflictError,
)
from kelpie.core.ids import TENANT_DEFAULT
from kelpie.core.limits import MIB, PACKAGE_ROWS_BYTES_MAX
from kelpie.ports.faults import faults_from
from kelpie.storage.moving import Arrival
from kelpie.storage.records import (
    CallEnd,
    EventAppend,
    KvPut,
    ListPut,
    OutboxRow,
    Page,
    ReminderRow,
    ReplyRecord,
    StreamChunk,
    Submission,
)
from kelpie.storage.sqlite.store import SqliteStore
from kelpie.storage.tables import ACTOR_TABLES, ACTORS, KV, TABLES
from tests.contract.store.world import NOW_MS, FakeClock, Hand, SeededRng, actor_id, effect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ADA, BOB = actor_id("ada"), actor_id("bob")
_openings = itertools.count(1)


class DeadProcess(BaseException):
    """The simulated process died."""


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path, clock=FakeClock(), rng=SeededRng(next(_openings)))
    try:
        yield store
    finally:
        store.check_invariants()
        await store.close()


def epoch_of(store: SqliteStore, actor: Any = ADA) -> int:
    return next(grant.epoch for grant in store.grants() if grant.shard == actor.shard)


async def populate(store: SqliteStore) -> Hand:
    """Give ada something of everything; bob sends her two messages."""
    hand = Hand(store)
    await hand.turn(
        state=b"state",
        kv=(KvPut("k", b"v"),),
        events=(EventAppend("e", b"1"), EventAppend("e", b"2")),
        lists=(ListPut("all", "ada", "1", b"item"),),
        effects=(effect(ADA),),
        reminders=(ReminderRow(actor=ADA, name="r", due_ms=5, body=b"r"),),
        reply=ReplyRecord("m", "key", digest_bytes(b"q"), b"reply", NOW_MS + 10**9),
    )
    chunk = StreamChunk("effect-1", 1, 1, "delta", b"d")
    await store.stream_append(ADA, epoch_of(store), [chunk])
    sends = (
        OutboxRow(sender=BOB, receiver=ADA, body=b"first"),
        OutboxRow(sender=BOB, receiver=ADA, body=b"second"),
    )
    await Hand(store, "bob").turn(state=b"", sends=sends)
    submission = Submission(
        call_id="call-1",
        actor=ADA,
        method="m",
        sender=BOB,
        principal="p",
        key="",
        request=digest_bytes(b"q"),
        body=b"call",
        now_ms=NOW_MS,
    )
    await store.submit_call(submission, epoch=epoch_of(store))
    return hand


async def seal(store: SqliteStore, package: str = "package-1") -> Any:
    return await store.seal_actor(
        ADA, package=package, destination="there", principal="me", epoch=epoch_of(store)
    )


async def carry(source: SqliteStore, package: str = "package-1") -> Arrival:
    """Read a sealed actor as a package carries it."""
    (state,) = await source.actor_rows(ADA, ACTORS, after=None, limit=2)
    rows = {
        table.name: await source.actor_rows(ADA, table, after=None, limit=100)
        for table in ACTOR_TABLES
    }
    return Arrival(ADA, package, state, rows, "me", NOW_MS)


@pytest.mark.requirement("TELEPORT-SEALED")
async def test_a_sealed_actor_is_not_loaded_and_no_commit_comes_after_its_seal(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path / "a.db") as store:
        hand = await populate(store)
        made = await seal(store)
        assert (made.state, made.package) == ("sealed", "package-1")
        again = await seal(store, "package-2")
        assert again == made
        with pytest.raises(ActorMovedError, match="there"):
            await store.load(ADA)
        with pytest.raises(VersionConflictError):
            await hand.turn(state=b"too late")
        assert await store.load(BOB) is not None
    async with opened(tmp_path / "a.db") as store:
        with pytest.raises(ActorMovedError):
            await store.load(ADA)
        assert await store.seals() == [made]
        with pytest.raises(FencedError):
            await store.unseal_actor(ADA, principal="me", epoch=1)
        await store.unseal_actor(ADA, principal="me", epoch=epoch_of(store))
        loaded = await store.load(ADA)
        assert loaded is not None
        assert loaded.state == b"state"
        with pytest.raises(NotFoundError):
            await store.unseal_actor(ADA, principal="me", epoch=epoch_of(store))


@pytest.mark.requirement("TELEPORT-SEALED")
async def test_an_actor_whose_effect_runs_is_not_sealed(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        hand = Hand(store)
        await hand.turn(state=b"", effects=(effect(ADA, state="started"),))
        with pytest.raises(ConflictError, match="running"):
            await seal(store)
        await hand.turn(effects=(effect(ADA, state="done"),))
        assert (await seal(store)).state == "sealed"
        with pytest.raises(NotFoundError):
            await store.seal_actor(
                BOB, package="p", destination="d", principal="", epoch=epoch_of(store, BOB)
            )


@pytest.mark.requirement("TELEPORT-WHOLE")
async def test_an_actor_arrives_whole_paused_and_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as source, opened(tmp_path / "b.db") as target:
        await populate(source)
        await seal(source)
        sends = (OutboxRow(sender=BOB, receiver=ADA, body=b"after the seal"),)
        late = Hand(source, "bob")
        late.version = 1
        await late.turn(sends=sends)
        arrival = await carry(source)
        incarnation = await target.import_actor(arrival, epoch=epoch_of(target))
        assert incarnation == 2
        loaded = await target.load(ADA)
        assert loaded is not None
        assert (loaded.state, loaded.event_sequence) == (b"state", 2)
        assert [row.effect_id for row in loaded.effects] == ["effect-1"]
        assert await target.kv_get(ADA, "k") == b"v"
        events = await target.events(ADA, 0, 10)
        assert [event.body for event in events] == [b"1", b"2"]
        assert len(await target.stream(ADA, "effect-1", 1, 0, 10)) == 1
        assert (await target.reply(ADA, "m", "key")) is not None
        items = await target.list_page("all", Page(tenant=TENANT_DEFAULT, limit=5))
        assert [item.body for item in items] == [b"item"]
        waiting = await target.outbox(0, 10)
        assert [message.body for message in waiting] == [b"first", b"second", b"call"]
        call = await target.call(TENANT_DEFAULT, "call-1")
        assert call is not None
        assert call.message_id == waiting[2].message_id
        assert [row.name for row in await target.reminders_due(NOW_MS, 5)] == ["r"]
        assert [pause.actor for pause in await target.pauses()] == [ADA]
        assert (await target.check()).is_sound
        with pytest.raises(ConflictError, match="before"):
            await target.import_actor(arrival, epoch=epoch_of(target))
        other = arrival._replace(package="package-9")
        with pytest.raises(ConflictError, match="in this store"):
            await target.import_actor(other, epoch=epoch_of(target))


@pytest.mark.requirement("TELEPORT-SEALED")
async def test_a_confirmed_export_leaves_a_note_and_dead_letters(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        await populate(store)
        await seal(store)
        late = Hand(store, "bob")
        late.version = 1
        await late.turn(sends=(OutboxRow(sender=BOB, receiver=ADA, body=b"late"),))
        for _ in range(2):
            moved = await store.confirm_move(ADA, principal="me", epoch=epoch_of(store))
            assert moved.state == "moved"
        assert [letter.body for letter in await store.dead_letters(TENANT_DEFAULT, 5)] == [b"late"]
        assert await store.outbox(0, 5) == []
        with pytest.raises(ActorMovedError) as caught:
            await store.load(ADA)
        assert caught.value.is_final
        with pytest.raises(ActorMovedError):
            await seal(store)
        with pytest.raises(ActorMovedError):
            await store.unseal_actor(ADA, principal="me", epoch=epoch_of(store))
        assert await store.call(TENANT_DEFAULT, "call-1") is None
    async with opened(tmp_path / "a.db") as store:
        stats = await store.stats()
        assert (stats.actors, stats.reminders) == (1, 0)


@pytest.mark.requirement("TELEPORT-WHOLE")
async def test_an_actor_that_comes_home_takes_its_old_place(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as home, opened(tmp_path / "b.db") as away:
        await populate(home)
        await seal(home)
        await away.import_actor(await carry(home), epoch=epoch_of(away))
        await home.confirm_move(ADA, principal="me", epoch=epoch_of(home))
        await seal(away, "package-2")
        back = await carry(away, "package-2")
        assert await home.import_actor(back, epoch=epoch_of(home)) == 3
        loaded = await home.load(ADA)
        assert loaded is not None
        assert loaded.state == b"state"
        assert await home.seals() == []
        assert len(await home.events(ADA, 0, 10)) == 2
        assert (await home.check()).is_sound


@pytest.mark.requirement("TELEPORT-HOSTILE")
async def test_an_arrival_that_owns_what_is_anothers_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as source, opened(tmp_path / "b.db") as target:
        await populate(source)
        await seal(source)
        arrival = await carry(source)
        await Hand(target, "bob").turn(state=b"", effects=(effect(BOB),))
        with pytest.raises(ConflictError, match="belongs to"):
            await target.import_actor(arrival, epoch=epoch_of(target))
        assert await target.load(ADA) is None
        assert await target.pauses() == []
        twice = arrival._replace(rows={KV.name: [*arrival.rows[KV.name], *arrival.rows[KV.name]]})
        with pytest.raises(Exception, match=r"UNIQUE|engine|constraint"):
            await target.import_actor(twice, epoch=epoch_of(target))
        assert await target.load(ADA) is None
        assert await target.outbox(0, 5) == []


@pytest.mark.requirement("TELEPORT-HOSTILE")
def test_a_row_with_values_of_another_kind_is_refused() -> None:
    good = ("t", "a", 1, "k", 2, 3, b"v")
    KV.check(good)
    for place, value in ((0, 1), (2, True), (2, 2**63), (3, "\ud800"), (6, "text"), (0, None)):
        row = (*good[:place], value, *good[place + 1 :])
        with pytest.raises(CorruptionError, match="kv"):
            KV.check(row)
    with pytest.raises(CorruptionError):
        KV.check(good[:-1])
    assert TABLES["kv"] is KV


class _Deadly:
    """A source of faults that fires one of them once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fired = False

    def fires(self, name: str) -> bool:
        if name == self.name and not self.fired:
            self.fired = True
            raise DeadProcess
        return False


@pytest.mark.requirement("TELEPORT-WHOLE")
@pytest.mark.parametrize(
    "step",
    ["crash.before_write", "crash.during_transaction", "crash.during_commit", "crash.after_write"],
)
async def test_an_import_that_dies_at_any_step_came_whole_or_not_at_all(
    tmp_path: Path, step: str
) -> None:
    async with opened(tmp_path / "a.db") as source:
        await populate(source)
        await seal(source)
        arrival = await carry(source)
    path = tmp_path / "b.db"
    async with opened(path):
        pass
    dying = await SqliteStore.open(path, clock=FakeClock(), rng=SeededRng(next(_openings)))
    deadly = _Deadly(step)
    with faults_from(deadly), pytest.raises(StoreError):
        await dying.import_actor(arrival, epoch=epoch_of(dying))
    assert deadly.fired
    dying.abandon()
    async with opened(path) as target:
        arrived = await target.load(ADA)
        messages = len(await target.outbox(0, 10))
        pauses = len(await target.pauses())
        if arrived is None:
            assert (messages, pauses) == (0, 0)
            await target.import_actor(arrival, epoch=epoch_of(target))
        else:
            assert (messages, pauses) == (3, 1)
            with pytest.raises(ConflictError, match="before"):
                await target.import_actor(arrival, epoch=epoch_of(target))
        assert (await target.check()).is_sound
        assert (await target.stats()).actors == 1


@pytest.mark.requirement("TELEPORT-WHOLE")
async def test_a_call_that_ended_before_the_move_arrives_with_its_result_and_no_message(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path / "a.db") as source, opened(tmp_path / "b.db") as target:
        hand = await populate(source)
        call = await source.call(TENANT_DEFAULT, "call-1")
        assert call is not None
        ended = CallEnd("completed", b"result", NOW_MS, NOW_MS + 10**9)
        await hand.turn(state=b"after", consumes=call.message_id, call=ended)
        await seal(source)
        await target.import_actor(await carry(source), epoch=epoch_of(target))
        arrived = await target.call(TENANT_DEFAULT, "call-1")
        assert arrived is not None
        assert (arrived.state, arrived.body) == ("completed", b"result")
        waiting = await target.outbox(0, 10)
        assert [message.body for message in waiting] == [b"first", b"second"]
        assert arrived.message_id not in {message.message_id for message in waiting}
        assert (await target.check()).is_sound


@pytest.mark.requirement("TELEPORT-HOSTILE")
async def test_an_arrival_that_is_too_large_for_one_transaction_changes_nothing(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path / "a.db") as source, opened(tmp_path / "b.db") as target:
        await populate(source)
        await seal(source)
        arrival = await carry(source)
        (row,) = arrival.rows[KV.name]
        place = KV.place("value")
        large = (*row[:place], bytes(MIB), *row[place + 1 :])
        many = arrival._replace(rows={KV.name: [large] * (PACKAGE_ROWS_BYTES_MAX // MIB)})
        with pytest.raises(LimitExceededError, match="package"):
            await target.import_actor(many, epoch=epoch_of(target))
        assert await target.load(ADA) is None
        await target.import_actor(arrival, epoch=epoch_of(target))
        assert await target.load(ADA) is not None


async def test_an_actor_that_does_not_live_here_has_no_rows_to_carry(tmp_path: Path) -> None:
    async with opened(tmp_path / "a.db") as store:
        hand = await populate(store)
        with pytest.raises(NotFoundError, match="nobody"):
            await store.actor_rows(actor_id("nobody"), KV, after=None, limit=5)
        assert len(await store.actor_rows(ADA, KV, after=None, limit=5)) == 1
        await hand.delete()
        with pytest.raises(NotFoundError, match="ada"):
            await store.actor_rows(ADA, KV, after=None, limit=5)
