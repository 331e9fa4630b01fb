"""Backup and restore.

A backup is a directory: ``store.db`` (one snapshot of the database), ``blobs/`` and
``manifest.json``. It appears under its name whole and synced, or not at all.

A restore verifies the backup, then makes a *new* store of it: a new incarnation, every epoch
raised, every session ended, and held. Held means that whoever opens it starts no effect, delivers
no message and fires no reminder until `release`. The rows of effects are left as they are, because
their bodies belong to a higher room: before it releases the store, the runtime walks
``effects_open`` and sends each actor the recovery of its effects, whose ``session`` has ended;
with ``held`` set that turns approved or started ``once`` effects into ``unknown``.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from kelpie.core.digests import Digest
from kelpie.core.errors import (
    ConflictError,
    CorruptionError,
    DiskFullError,
    NotFoundError,
    StoreError,
)
from kelpie.core.ids import derive_uuid
from kelpie.core.limits import BACKUP_STEP_PAGES
from kelpie.ports.clock import Clock
from kelpie.ports.faults import fault
from kelpie.ports.rng import Rng
from kelpie.storage.blobs import BlobStore, blobs_path
from kelpie.storage.files import (
    digest_file,
    is_disk_full,
    sync_directory,
    sync_file,
    temporary_directory,
)
from kelpie.storage.sqlite.check import check_store
from kelpie.storage.sqlite.engine import AUTO_VACUUM_INCREMENTAL, connect_writer, translate_error
from kelpie.storage.sqlite.migrations import migrate, read_version
from kelpie.storage.sqlite.opening import begin_incarnation

_DATABASE: Final = "store.db"
_BLOBS: Final = "blobs"
_MANIFEST: Final = "manifest.json"


class Manifest(msgspec.Struct, frozen=True, kw_only=True, tag="kelpie-backup-1"):
    """What a backup holds."""

    created_ms: int
    incarnation: str
    schema_version: int
    database: Digest
    blobs: int


def write_backup(
    source: sqlite3.Connection, *, blobs: BlobStore, target: Path, now_ms: int
) -> Manifest:
    """Copy one snapshot of ``source`` and the blobs it names to the new directory ``target``.

    Args:
        source: A read-only connection of its own; its snapshot is held to the end.
        blobs: The store's blobs. They are copied after the snapshot is taken, so every blob a
            commit of the snapshot names is among them.
        target: Must not exist; its parent must.
        now_ms: Wall time for the manifest.

    Raises:
        ConflictError: ``target`` exists.
        DiskFullError: No space.
        CorruptionError: A blob is damaged.
    """
    _require_absent(target)
    if not target.parent.is_dir():
        raise NotFoundError("directory", str(target.parent))
    with temporary_directory(target.with_name(f".{target.name}.partial")) as folder:
        try:
            with blobs.kept():
                manifest = _fill_backup(source, blobs, folder, now_ms)
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(f"no space left for a backup in {target.parent}") from error
            raise _unwritable(target.parent, error) from error
        except sqlite3.Error as error:
            raise translate_error(error, f"backup {target}") from error
        folder.rename(target)
    _sync_names(target.parent, target)
    assert (target / _MANIFEST).exists(), "a backup has its manifest"
    return manifest


def _fill_backup(
    source: sqlite3.Connection, blobs: BlobStore, folder: Path, now_ms: int
) -> Manifest:
    database = folder / _DATABASE
    # An open read transaction pins the snapshot: the copy never has to start over.
    source.execute("BEGIN")
    query = "SELECT value FROM meta WHERE name = 'incarnation'"
    (incarnation,) = source.execute(query).fetchone()
    with closing(sqlite3.connect(database)) as copy:
        source.backup(copy, pages=BACKUP_STEP_PAGES, sleep=0)
    version = read_version(source)
    source.execute("ROLLBACK")
    if fault("snapshot.backup_fail"):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(database))
    sync_file(database)
    copied = BlobStore(folder / _BLOBS)
    copied.root.mkdir(mode=0o700)
    manifest = Manifest(
        created_ms=now_ms,
        incarnation=incarnation,
        schema_version=version,
        database=digest_file(database),
        blobs=blobs.copy_to(copied),
    )
    path = folder / _MANIFEST
    path.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    sync_file(path)
    sync_directory(folder)
    return manifest


def restore_store(backup: Path, target: Path, *, clock: Clock, rng: Rng) -> Manifest:
    """Make a new, held store at ``target`` from a verified backup. Blocks on the disk.

    Args:
        backup: The directory that `write_backup` made; it is only read.
        target: The new database file; neither it nor its blobs may exist.
        clock: Wall time of the end of the backup's sessions.
        rng: Makes the new incarnation's name.

    Raises:
        NotFoundError: ``backup`` is not a backup.
        ConflictError: ``target`` exists.
        CorruptionError: The backup is damaged; the error names the first problem.
        StoreVersionError: The backup is newer than this program.
        DiskFullError: No space; nothing is left at ``target``.
    """
    blobs = blobs_path(target)
    for path in (target, blobs):
        _require_absent(path)
    manifest = _read_manifest(backup)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with temporary_directory(target.with_name(f".{target.name}.partial")) as folder:
        try:
            _fill_store(backup, folder, manifest, clock=clock, rng=rng)
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(f"no space left for a store in {target.parent}") from error
            raise _unwritable(target.parent, error) from error
        except sqlite3.Error as error:
            raise translate_error(error, f"backup {backup}") from error
        (folder / _BLOBS).rename(blobs)
        # The database is what makes a store: its name comes last.
        (folder / _DATABASE).rename(target)
    _sync_names(target.parent, target, blobs)
    assert target.exists(), "a restored store is there"
    return manifest


def _fill_store(backup: Path, folder: Path, manifest: Manifest, *, clock: Clock, rng: Rng) -> None:
    database = folder / _DATABASE
    shutil.copyfile(backup / _DATABASE, database)
    if digest_file(database) != manifest.database:
        message = f"{backup / _DATABASE} is not what its manifest names; use another backup"
        raise CorruptionError(message, backup=str(backup))
    with closing(connect_writer(database)) as connection:
        migrate(connection)
        _make_compactable(connection)
        report = check_store(connection)
        if not report.is_sound:
            message = f"backup {backup} is damaged: {report.problems[0]}; use another backup"
            raise CorruptionError(message, backup=str(backup), problems=len(report.problems))
        begin_incarnation(connection, clock.now_ms(), derive_uuid(rng.bytes(16), 0))
    sync_file(database)
    copied = BlobStore(folder / _BLOBS)
    copied.root.mkdir(mode=0o700)
    count = BlobStore(backup / _BLOBS).copy_to(copied)
    if count != manifest.blobs:
        message = f"backup {backup} holds {count} of {manifest.blobs} blobs; use another backup"
        raise CorruptionError(message, backup=str(backup))


def _make_compactable(connection: sqlite3.Connection) -> None:
    """Rewrite a file that was made before files could be compacted in place."""
    (mode,) = connection.execute("PRAGMA auto_vacuum").fetchone()
    if mode != AUTO_VACUUM_INCREMENTAL:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("VACUUM")


def _read_manifest(backup: Path) -> Manifest:
    path = backup / _MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise NotFoundError("backup", str(backup)) from None
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        message = f"{path} is not a manifest ({error}); use another backup"
        raise CorruptionError(message, backup=str(backup)) from error


def _sync_names(folder: Path, *names: Path) -> None:
    """Sync the names in ``folder``, or take them back: what is not durable was not made."""
    try:
        sync_directory(folder)
    except OSError as error:
        for path in names:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> StoreError:
    """Return the typed error for a disk that failed; nothing was left behind."""
    message = f"{folder}: {error.strerror or error}; check the disk and try again"
    return StoreError(message, path=str(folder))


def _require_absent(path: Path) -> None:
    if path.exists():
        raise ConflictError(f"{path} exists; name a path that does not", path=str(path))
