"""Copies of whole stores: every engine to every other, and what a crash leaves at each step."""

from __future__ import annotations

import sqlite3
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from kelpie.core.errors import (
    ConfigError,
    ConflictError,
    CorruptionError,
    StoreHeldError,
    StoreSealedError,
)
from kelpie.core.limits import COPY_PAGE_ROWS
from kelpie.storage.copying import Copied, CopyMark, copy_store
from kelpie.storage.postgres.copying import PostgresCopy, require_unsealed
from kelpie.storage.records import (
    AuditAppend,
    EventAppend,
    KvPut,
    ListPut,
    OutboxRow,
    ReminderRow,
)
from kelpie.storage.sqlite.copying import SqliteCopy
from kelpie.storage.sqlite.store import SqliteStore
from kelpie.storage.tables import STORE_TABLES, Row
from tests.contract.store.postgres import PostgresEngine
from tests.contract.store.world import FakeClock, Hand, SeededRng, actor_id, effect
from tests.postgres import shared_server

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.requirement("COPY-ONE-OPEN")

ACTORS = 66  # more than a page
LARGE = b"x" * 600_000  # a state in pieces
STEPS = 60
_SUMMED = frozenset({"counters", "shards"})


class DeadProcess(BaseException):
    """The simulated process died."""


@dataclass
class Dying:
    """A side of a copy whose process dies before one of its steps."""

    inner: Any
    fuse: list[int]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name not in {"write", "seal", "open", "begin"}:
            return found

        async def step(*arguments: Any) -> Any:
            self.fuse[0] -= 1
            if self.fuse[0] == 0:
                raise DeadProcess
            return await found(*arguments)

        return step


async def fill(path: Path) -> None:
    """Make a store with rows in every table that a commit can write."""
    store = await SqliteStore.open(path, clock=FakeClock(), rng=SeededRng())
    try:
        for number in range(ACTORS):
            actor = actor_id(f"a{number:03}")
            await Hand(store, actor.key).turn(
                state=LARGE if number == 7 else b"state",
                kv=(KvPut("k", b"v"),),
                events=(EventAppend("e", b"1"), EventAppend("e", b"2")),
                lists=(ListPut("all", f"i{number}", f"{number:03}", b"item"),),
                audit=(AuditAppend("did", "somebody", b""),),
                effects=(effect(actor, f"effect-{number}"),),
                sends=(OutboxRow(sender=actor, receiver=actor_id("a001"), body=b"hello"),),
                reminders=(ReminderRow(actor=actor, name="r", due_ms=5, body=b"r"),),
            )
    finally:
        await store.close()


async def contents(side: Any) -> dict[str, list[Row]]:
    """Return every row of every table, without what belongs to the copy."""
    found: dict[str, list[Row]] = {}
    for table in STORE_TABLES:
        rows: list[Row] = []
        while page := await side.rows(
            table, after=table.key_of(rows[-1]) if rows else None, limit=COPY_PAGE_ROWS
        ):
            rows += page
        found[table.name] = rows
    return found


def open_file(path: Path, *, is_source: bool) -> SqliteCopy:
    return SqliteCopy(path, clock=FakeClock(), rng=SeededRng(2), is_source=is_source)


async def copy_files(source: Path, target: Path, *, dies_at: int = 0) -> Copied:
    """Copy one file to another, by a process that may die before one of its steps."""
    sides = [open_file(source, is_source=True), open_file(target, is_source=False)]
    fuse = [dies_at]
    try:
        dying = [Dying(side, fuse) for side in sides]
        return await copy_store(dying[0], dying[1], tell=lambda _: None)
    finally:
        for side in sides:
            side.close()


async def can_open(path: Path) -> bool:
    """Whether a store can be opened for writing; it is, if it can."""
    try:
        store = await SqliteStore.open(path, clock=FakeClock(), rng=SeededRng(3))
    except StoreSealedError:
        return False
    await store.close()
    return True


async def is_closed(path: Path) -> bool:
    """Whether a store was copied elsewhere, or is a copy in the making; opens nothing."""
    side = open_file(path, is_source=True)
    try:
        state = await side.state()
    except StoreSealedError:
        return True
    finally:
        side.close()
    return state.sealed is not None


async def test_a_copy_holds_every_row_and_starts_held_with_higher_epochs(tmp_path: Path) -> None:
    source, target = tmp_path / "a" / "k.db", tmp_path / "b" / "k.db"
    await fill(source)
    copied = await copy_files(source, target)
    assert copied.rows > 9 * ACTORS
    sides = [open_file(source, is_source=True), open_file(target, is_source=True)]
    before, after = [await contents(side) for side in sides]
    for side in sides:
        side.close()
    assert {name: rows for name, rows in before.items() if name != "shards"} == {
        name: rows for name, rows in after.items() if name != "shards"
    }
    higher = zip(before["shards"], after["shards"], strict=True)
    assert all(new[1] > old[1] for old, new in higher)  # type: ignore[operator]
    assert not await can_open(source)
    store = await SqliteStore.open(target, clock=FakeClock(), rng=SeededRng(4))
    try:
        assert store.held
        assert (await store.check()).is_sound
        loaded = await store.load(actor_id("a007"))
        assert loaded is not None
        assert loaded.state == LARGE
    finally:
        await store.close()


async def test_a_copy_that_dies_at_any_step_leaves_one_store_and_goes_on(tmp_path: Path) -> None:
    source = tmp_path / "a" / "k.db"
    await fill(source)
    pristine = source.read_bytes()
    decided = 0
    for step in range(1, STEPS):
        source.write_bytes(pristine)
        target = tmp_path / f"b{step}" / "k.db"
        try:
            await copy_files(source, target, dies_at=step)
            break
        except DeadProcess:
            pass
        assert await is_closed(target) or step == 1, "what is not whole is not opened"
        decided += await is_closed(source)
        resumed = await copy_files(source, target)
        assert resumed.target == f"sqlite:{target}"
        assert not await can_open(source)
        assert await can_open(target)
    else:
        pytest.fail("the copy has more steps than were tried")
    assert decided == 1, "between the seal and the opening, the source is closed already"


async def test_a_source_that_was_used_between_two_tries_is_copied_anew(tmp_path: Path) -> None:
    source, target = tmp_path / "a" / "k.db", tmp_path / "b" / "k.db"
    await fill(source)
    with pytest.raises(DeadProcess):
        await copy_files(source, target, dies_at=20)
    store = await SqliteStore.open(source, clock=FakeClock(), rng=SeededRng(9))
    await Hand(store, "late").turn(state=b"late")
    await store.close()
    await copy_files(source, target)
    opened = await SqliteStore.open(target, clock=FakeClock(), rng=SeededRng(5))
    try:
        assert await opened.load(actor_id("late")) is not None
    finally:
        await opened.close()


async def test_a_row_that_changed_on_the_way_stops_the_copy(tmp_path: Path) -> None:
    source, target = tmp_path / "a" / "k.db", tmp_path / "b" / "k.db"
    await fill(source)

    class Lossy(Dying):
        async def write(self, table: Any, rows: Any, progress: Any) -> None:
            await self.inner.write(table, rows[1:] if table.name == "kv" else rows, progress)

    sides = [open_file(source, is_source=True), open_file(target, is_source=False)]
    lossy: Any = Lossy(sides[1], [0])
    with pytest.raises(CorruptionError, match="kv"):
        await copy_store(sides[0], lossy, tell=lambda _: None)
    for side in sides:
        side.close()
    assert await can_open(source)
    assert not await can_open(target)


async def test_a_store_is_never_copied_over_another_or_while_it_is_used(tmp_path: Path) -> None:
    source, target = tmp_path / "a" / "k.db", tmp_path / "b" / "k.db"
    await fill(source)
    await fill(target)
    with pytest.raises(ConflictError, match="already"):
        await copy_files(source, target)
    assert await can_open(source)
    store = await SqliteStore.open(source, clock=FakeClock(), rng=SeededRng(6))
    with pytest.raises(StoreHeldError):
        await copy_files(source, tmp_path / "c" / "k.db")
    await store.close()


@pytest.mark.timeout(120)
async def test_a_store_goes_to_a_database_and_back_as_it_was(tmp_path: Path) -> None:
    source, back = tmp_path / "a" / "k.db", tmp_path / "b" / "k.db"
    await fill(source)
    server = shared_server()
    name = await server.create_database()
    async with AsyncExitStack() as stack:
        file = open_file(source, is_source=True)
        stack.callback(file.close)
        before = await contents(file)
        database = await PostgresCopy.connect(
            server.dsn(name), "the database", clock=FakeClock(), rng=SeededRng(7)
        )
        stack.push_async_callback(database.close)
        fuse = [30]
        dying: Any = Dying(database, fuse)
        with pytest.raises(DeadProcess):
            await copy_store(file, dying, tell=lambda _: None)
        connection: Any = database._connection
        with pytest.raises(StoreSealedError):
            await require_unsealed(connection, "the database")
        await copy_store(file, database, tell=lambda _: None)
        await require_unsealed(connection, "the database")
        returned = open_file(back, is_source=False)
        stack.callback(returned.close)
        await copy_store(database, returned, tell=lambda _: None)
        with pytest.raises(StoreSealedError):
            await require_unsealed(connection, "the database")
        after = await contents(returned)
    for table, rows in before.items():
        if table not in _SUMMED:
            assert after[table] == rows, table
    assert await can_open(back)


async def test_a_source_that_was_written_to_meanwhile_is_not_sealed(tmp_path: Path) -> None:
    source = tmp_path / "a" / "k.db"
    store = await SqliteStore.open(source, clock=FakeClock(), rng=SeededRng())
    await store.close()
    side = open_file(source, is_source=True)
    mark = CopyMark(source=side.place, target="there", stamp=(await side.state()).stamp)
    with closing(sqlite3.connect(source)) as stranger, stranger:
        stranger.execute("UPDATE counters SET value = value + 1")
    with pytest.raises(ConflictError, match="copy it again"):
        await side.seal(mark)
    assert (await side.state()).sealed is None
    side.close()
    assert await can_open(source)


async def test_a_file_that_is_no_store_is_not_copied_and_its_lock_is_free_again(
    tmp_path: Path,
) -> None:
    source = tmp_path / "k.db"
    source.write_bytes(b"a letter" * 1_000)
    for _ in range(2):
        with pytest.raises(CorruptionError):
            open_file(source, is_source=True)
    assert source.read_bytes() == b"a letter" * 1_000


@pytest.mark.timeout(120)
async def test_a_database_in_use_is_neither_copied_nor_copied_over(tmp_path: Path) -> None:
    engine = PostgresEngine(tmp_path)
    clock, rng = FakeClock(), SeededRng(8)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.discard)
        async with engine.opened() as store:
            await Hand(store).turn(state=b"kept")
            dsn = engine.server.dsn(engine.database)
            database = await PostgresCopy.connect(dsn, "the database", clock=clock, rng=rng)
            stack.push_async_callback(database.close)
            with pytest.raises(ConflictError, match="stop every node"):
                await database.state()
        stamp = (await database.state()).stamp
        mark = CopyMark(source=database.place, target="there", stamp=stamp)
        assert await database.begin(mark) is None, "there is a store"
        async with engine.opened() as store:
            assert await store.load(actor_id("ada")) is not None
        with pytest.raises(ConflictError, match="copy it again"):
            await database.seal(mark)
        state = await database.state()
        assert state.sealed is None
        assert state.stamp != stamp
        again = CopyMark(source=database.place, target="there", stamp=state.stamp)
        await database.seal(again)
        assert (await database.state()).sealed == again
        with pytest.raises(StoreSealedError):
            await engine.open()


@pytest.mark.timeout(120)
async def test_a_database_that_is_not_there_is_named_before_anything_is_copied() -> None:
    dsn = shared_server().dsn("nowhere")
    with pytest.raises(ConfigError, match="no such database"):
        await PostgresCopy.connect(dsn, "the place", clock=FakeClock(), rng=SeededRng(9))
