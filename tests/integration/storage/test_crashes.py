"""Real processes, really killed; real files, really damaged."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from kelpie.core.errors import CorruptionError, NotFoundError, StoreHeldError, StoreVersionError
from kelpie.core.limits import ACTOR_STATE_BYTES_MAX, SHARD_COUNT
from kelpie.storage.holder import read_holder
from kelpie.storage.records import AuditAppend, KvPut
from kelpie.storage.soundness import PROBLEMS_MAX
from kelpie.storage.sqlite import migrations
from kelpie.storage.sqlite.check import check_store
from kelpie.storage.sqlite.engine import connect_writer
from tests.contract.store.world import Hand, SqliteEngine, actor_id
from tests.integration.storage.harness import running

if TYPE_CHECKING:
    from pathlib import Path

VICTIM = "tests.integration.storage.victim"


@pytest.fixture
def engine(tmp_path: Path) -> SqliteEngine:
    return SqliteEngine(tmp_path)


@pytest.mark.requirement("STORE-DURABLE")
@pytest.mark.parametrize("lines", [40, 400])
async def test_everything_acknowledged_before_a_kill_is_there_after_it(
    engine: SqliteEngine, lines: int
) -> None:
    with running(VICTIM, str(engine.path), "8") as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "open\n"
        output = "".join(victim.stdout.readline() for _ in range(lines))
        victim.kill()
        output += victim.stdout.read()
    # The last line may be cut short; every whole one was acknowledged.
    whole = output[: output.rindex("\n")].splitlines()
    acknowledged = {f"victim-{line.split()[0]}": int(line.split()[1]) for line in whole}
    async with engine.opened() as store:
        sent = 0
        for key, version in acknowledged.items():
            loaded = await store.load(actor_id(key))
            assert loaded is not None
            assert loaded.version >= version
            assert loaded.state == b"%d" % loaded.version
            assert await store.kv_get(loaded.actor, "turn") == loaded.state
            assert loaded.event_sequence == loaded.version
            sent += loaded.version
        assert (await store.stats()).outbox == sent
        assert (await store.check()).is_sound


@pytest.mark.requirement("STORE-ONE-HOLDER")
async def test_a_second_process_is_told_who_holds_the_store(engine: SqliteEngine) -> None:
    with running(VICTIM, str(engine.path), "1") as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "open\n"
        with pytest.raises(StoreHeldError) as caught:
            await engine.open()
        assert caught.value.fields["pid"] == victim.pid
        assert caught.value.fields["address"] == "unix:/v"
        holder = read_holder(engine.path)
        assert holder is not None
        assert holder.pid == victim.pid
    assert read_holder(engine.path) is None
    async with engine.opened() as store:
        assert len(store.grants()) == SHARD_COUNT


async def test_a_reader_sees_what_the_holder_made_durable(engine: SqliteEngine) -> None:
    with pytest.raises(NotFoundError):
        await engine.open(read_only=True)
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(state=b"one")
        reader = await engine.open(read_only=True)
        await hand.turn(state=b"two")
        loaded = await reader.load(hand.actor)
        assert loaded is not None
        assert loaded.state == b"two"
        with pytest.raises(StoreHeldError):
            await reader.commit(hand.prepare())
        assert reader.grants() == ()
        assert (await reader.engine_report()).journal_mode == "wal"
        reader.check_invariants()
        await reader.close()


def find_and_flip(path: Path, needle: bytes) -> None:
    """Change one byte of the only place in the file that holds ``needle``."""
    data = bytearray(path.read_bytes())
    assert data.count(needle) == 1
    data[data.index(needle) + len(needle) // 2] ^= 0x01
    path.write_bytes(data)


@pytest.mark.requirement("STORE-CORRUPTION")
@pytest.mark.parametrize("size", [200, ACTOR_STATE_BYTES_MAX], ids=["inline", "in pieces"])
async def test_a_flipped_bit_in_a_state_is_found_and_names_the_actor(
    engine: SqliteEngine, size: int
) -> None:
    needle = b"the-precious-state"
    async with engine.opened() as store:
        await Hand(store, "ada").turn(state=needle + bytes(size - len(needle)))
        await Hand(store, "bob").turn(state=b"sound")
    find_and_flip(engine.path, needle)
    async with engine.opened() as store:
        with pytest.raises(CorruptionError, match="default/agent/ada"):
            await store.load(actor_id("ada"))
        sound = await store.load(actor_id("bob"))
        assert sound is not None
        assert sound.state == b"sound"
        report = await store.check()
        assert report.damaged == ("default/agent/ada",)


@pytest.mark.requirement("STORE-CORRUPTION")
async def test_a_missing_piece_of_a_state_is_found(engine: SqliteEngine) -> None:
    async with engine.opened() as store:
        await Hand(store).turn(state=bytes(ACTOR_STATE_BYTES_MAX))
    with closing(sqlite3.connect(engine.path)) as connection:
        connection.execute("DELETE FROM state_chunks WHERE chunk = 3")
        connection.commit()
    async with engine.opened() as store:
        with pytest.raises(CorruptionError, match="39 of 40"):
            await store.load(actor_id("ada"))
        assert (await store.check()).damaged == ("default/agent/ada",)


@pytest.mark.requirement("STORE-CORRUPTION")
async def test_a_flipped_bit_in_a_row_and_in_the_audit_are_found(engine: SqliteEngine) -> None:
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(kv=(KvPut("k", b"precious-value"),))
        await hand.turn(audit=(AuditAppend("approved", "p", b"precious-record"),))
    find_and_flip(engine.path, b"precious-value")
    find_and_flip(engine.path, b"precious-record")
    async with engine.opened() as store:
        with pytest.raises(CorruptionError, match="default/agent/ada"):
            await store.kv_get(actor_id("ada"), "k")
        report = await store.check()
        assert len(report.problems) == 2
        assert f"shard {actor_id('ada').shard}" in report.problems[1]


@pytest.mark.requirement("STORE-CORRUPTION")
async def test_rows_whose_heads_are_zeros_are_reported_and_never_served(
    engine: SqliteEngine,
) -> None:
    async with engine.opened() as store:
        for index in range(20):
            await Hand(store, f"ada-{index}").turn(state=b"precious-%02d" % index)
    content = bytearray(engine.path.read_bytes())
    at = content.index(b"precious-07")
    content[at - 200 : at + 8] = bytes(208)
    engine.path.write_bytes(content)
    async with engine.opened() as store:
        report = await store.check()
        assert not report.is_sound
        refused = 0
        for index in range(20):
            try:
                stored = await store.load(actor_id(f"ada-{index}"))
            except CorruptionError:
                refused += 1
            else:
                assert stored is not None
                assert stored.state == b"precious-%02d" % index
        assert refused


@pytest.mark.requirement("STORE-CORRUPTION")
async def test_a_check_of_a_ruined_store_tells_the_first_problems_and_lets_the_store_go_on(
    engine: SqliteEngine,
) -> None:
    keys = [f"k{number:03}" for number in range(PROBLEMS_MAX + 5)]
    async with engine.opened() as store:
        await Hand(store).turn(kv=tuple(KvPut(key, b"v") for key in keys))
    with closing(sqlite3.connect(engine.path)) as connection, connection:
        connection.execute("UPDATE kv SET value = x'00'")
    async with engine.opened() as store:
        report = await store.check()
        assert len(report.problems) == PROBLEMS_MAX
        assert report.damaged == ("default/agent/ada",)
        await Hand(store, "bob").turn(state=b"sound")
        assert await store.check() == report


class _Unready(sqlite3.Connection):
    """A connection whose disk fails as the snapshot is to begin."""

    def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
        if sql == "BEGIN":
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *arguments)


def test_a_check_that_cannot_begin_is_a_problem_and_not_a_sound_store(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "k.db", factory=_Unready)) as connection:
        report = check_store(connection)
        assert not connection.in_transaction
    (problem,) = report.problems
    assert "disk I/O error" in problem
    assert report.heads == ()


async def test_a_ruined_page_is_the_engines_error_and_others_still_commit(
    engine: SqliteEngine,
) -> None:
    async with engine.opened() as store:
        await Hand(store, "ada").turn(kv=(KvPut("k", b"v"),))
    with closing(sqlite3.connect(engine.path)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_kv_1'"
        (page,) = connection.execute(query).fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    with engine.path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)
    async with engine.opened() as store:
        ada, bob = Hand(store, "ada"), Hand(store, "bob")
        ada.version = 1
        outcomes = await asyncio.gather(
            store.commit(ada.prepare(kv=(KvPut("k", b"w"),))),
            store.commit(bob.prepare(state=b"kept")),
            return_exceptions=True,
        )
        assert isinstance(outcomes[0], CorruptionError)
        kept = await store.load(bob.actor)
        assert kept is not None
        assert kept.state == b"kept"
        with pytest.raises(CorruptionError):
            await store.kv_get(ada.actor, "k")
        assert not (await store.check()).is_sound


async def test_a_file_that_is_no_database_is_refused_and_the_lock_let_go(
    engine: SqliteEngine,
) -> None:
    engine.path.parent.mkdir()
    engine.path.write_bytes(b"not a database, however long one looks at it" * 100)
    with pytest.raises(CorruptionError):
        await engine.open()
    with pytest.raises(CorruptionError):
        await engine.open(read_only=True)
    assert read_holder(engine.path) is None


async def test_another_programs_database_is_refused(engine: SqliteEngine) -> None:
    engine.path.parent.mkdir()
    with closing(sqlite3.connect(engine.path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StoreVersionError, match="not a Kelpie store"):
        await engine.open()
    with closing(sqlite3.connect(engine.path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)


@pytest.mark.parametrize("version", [0, migrations.SCHEMA_VERSION + 1])
async def test_a_newer_store_is_refused_and_an_older_one_only_for_reading(
    engine: SqliteEngine, version: int
) -> None:
    async with engine.opened() as store:
        await Hand(store).turn(state=b"kept")
    with closing(sqlite3.connect(engine.path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StoreVersionError):
        await engine.open(read_only=True)
    if version:
        with pytest.raises(StoreVersionError, match="newer"):
            await engine.open()
    assert read_holder(engine.path) is None


@pytest.mark.requirement("STORE-DURABLE")
async def test_a_store_of_the_first_schema_is_carried_forward_as_it_is(
    engine: SqliteEngine,
) -> None:
    engine.path.parent.mkdir()
    with closing(connect_writer(engine.path)) as connection:
        assert migrations.migrate(connection, migrations.MIGRATIONS[:1]) == 1
        connection.execute("INSERT INTO meta VALUES ('incarnation', 'kept')")
    async with engine.opened() as store:
        assert (await store.stats()).schema_version == migrations.SCHEMA_VERSION
        assert (await store.stats()).incarnation == "kept"
        assert await store.pauses() == []
        await Hand(store).turn(state=b"kept")


def test_a_migration_that_fails_leaves_the_schema_before_it(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as connection:
        broken = ("CREATE TABLE half (x)", "INSERT INTO nowhere VALUES (1)")
        with pytest.raises(sqlite3.OperationalError):
            migrations.migrate(connection, [("CREATE TABLE whole (x)",), broken])
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
        assert tables == [("whole",)]
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert migrations.migrate(connection, [(), ("CREATE TABLE half (x)",)]) == 2


@pytest.mark.requirement("STORE-DURABLE")
@pytest.mark.parametrize("is_there", [True, False])
async def test_a_log_whose_database_was_lost_is_never_taken_for_a_new_store(
    engine: SqliteEngine, is_there: bool
) -> None:
    with running(VICTIM, str(engine.path), "8") as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "open\n"
        assert victim.stdout.readline()
        victim.kill()
        victim.wait()
    log = engine.path.with_name(f"{engine.path.name}-wal")
    before = log.read_bytes()
    assert before
    engine.path.unlink()
    if is_there:
        engine.path.touch()
    with pytest.raises(CorruptionError, match="missing or empty but its log"):
        async with engine.opened():
            pass
    assert log.read_bytes() == before
