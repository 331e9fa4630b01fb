"""A disk that is full, or fails while a commit is on its way to it."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from kelpie.core.errors import DiskFullError
from kelpie.storage.age import Identities, decrypt_file, encrypt_file
from kelpie.storage.sqlite.backup import restore_store
from tests.contract.store.world import FakeClock, Hand, SeededRng, SqliteEngine, actor_id
from tests.integration.storage.harness import names_in, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILLER = "tests.integration.storage.filler"


@pytest.mark.requirement("STORE-ATOMIC")
async def test_a_full_disk_keeps_nothing_of_the_commit_and_the_store_goes_on(
    tmp_path: Path,
) -> None:
    engine = SqliteEngine(tmp_path)
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(state=b"before")
        opened = store._opened
        assert opened is not None
        assert opened.writer is not None
        # The engine's own bound on the file fails exactly as the disk does.
        opened.writer.execute("PRAGMA max_page_count = 1")
        with pytest.raises(DiskFullError):
            await hand.turn(state=bytes(1_000_000))
        loaded = await store.load(hand.actor)
        assert loaded is not None
        assert loaded.state == b"before"
        opened.writer.execute("PRAGMA max_page_count = 1000000")
        await hand.turn(state=bytes(1_000_000))
        assert store.failure is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "kelpie-test", str(folder)], check=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
async def test_a_really_full_disk_is_the_same(small_disk: Path) -> None:
    engine = SqliteEngine(small_disk)
    with running(FILLER, str(engine.path), "0") as filler:
        output, _ = filler.communicate(timeout=20)
    assert output.split() == ["disk_full", "kept", "5", "False"]
    async with engine.opened() as store:
        loaded = await store.load(actor_id("ada"))
        assert loaded is not None
        assert loaded.state == b"after"
        assert (await store.check()).is_sound


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
async def test_a_backup_or_restore_that_does_not_fit_leaves_nothing(
    small_disk: Path, tmp_path: Path
) -> None:
    engine = SqliteEngine(tmp_path)
    async with engine.opened() as store:
        await Hand(store).turn(state=bytes(9_000_000))
        with pytest.raises(DiskFullError):
            await store.backup(small_disk / "backup")
        assert names_in(small_disk) == []
        await store.backup(tmp_path / "backup")
    with pytest.raises(DiskFullError):
        restore_store(tmp_path / "backup", small_disk / "db", clock=FakeClock(), rng=SeededRng())
    assert names_in(small_disk) == []


@pytest.mark.requirement("STORE-UNKNOWN-COMMIT")
async def test_after_a_failed_write_the_outcome_is_unknown_and_nothing_follows(
    tmp_path: Path,
) -> None:
    engine = SqliteEngine(tmp_path)
    with running(FILLER, str(engine.path), str(4 * 1024 * 1024)) as filler:
        output, _ = filler.communicate(timeout=20)
    assert output.split() == ["commit_unknown", "store_failed", "6", "True"]
    async with engine.opened() as store:
        loaded = await store.load(actor_id("ada"))
        assert loaded is not None
        assert loaded.state == b"before"
        assert (await store.check()).is_sound


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_an_encryption_or_decryption_that_does_not_fit_is_a_full_disk(
    small_disk: Path, tmp_path: Path
) -> None:
    identities = Identities(tmp_path / "identity.age")
    recipient = identities.create()
    plain, secret = tmp_path / "plain", tmp_path / "secret"
    plain.write_bytes(bytes(7_000_000))
    with pytest.raises(DiskFullError):
        encrypt_file(plain, small_disk / "secret", [recipient])
    (small_disk / "secret").unlink()
    encrypt_file(plain, secret, [recipient])
    with pytest.raises(DiskFullError):
        decrypt_file(secret, small_disk / "plain", identities)
    decrypt_file(secret, tmp_path / "again", identities)
    assert (tmp_path / "again").read_bytes() == plain.read_bytes()
