"""What an operator asks of a host without serving: restore or rescue a store, probe its parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from kelpie.app.wiring import make_providers
from kelpie.app.world import SCRATCH_DIRECTORY, World, host_world
from kelpie.core.dsn import DsnError, is_dsn, parse_dsn
from kelpie.core.errors import ConfigError, ConflictError, LogMissingError, NotFoundError
from kelpie.ports.clock import Clock
from kelpie.ports.rng import Rng
from kelpie.sandbox.protocol import TierReport
from kelpie.settings import Settings
from kelpie.storage.age import IDENTITY_FILE, Identities, decrypt_file, is_encrypted
from kelpie.storage.archive import unpack_backup
from kelpie.storage.blobs import BlobStore, blobs_path
from kelpie.storage.copying import copy_store as copy_between
from kelpie.storage.files import temporary_directory
from kelpie.storage.postgres.copying import PostgresCopy
from kelpie.storage.sqlite.backup import Manifest
from kelpie.storage.sqlite.backup import restore_store as restore_files
from kelpie.storage.sqlite.copying import SqliteCopy
from kelpie.storage.sqlite.store import SqliteStore

RESTORING_DIRECTORY: Final = ".restoring"


class ModelProbe(NamedTuple):
    """What a model provider answered: how many models it lists, and whether ours is one."""

    listed_count: int
    is_listed: bool


async def restore_store(settings: Settings, source: Path) -> Mapping[str, Any]:
    """Make the settings' store from the backup ``source``; it starts held.

    Raises:
        ConflictError: There is a store already.
        CorruptionError: The backup is damaged, or not encrypted for this data directory.
        NotFoundError: ``source`` is no backup, or there is no identity to decrypt it with.
    """
    async with host_world(settings) as world:
        job = partial(_restore, settings, source, clock=world.clock, rng=world.rng)
        manifest = await asyncio.get_running_loop().run_in_executor(None, job)
    return {
        "store": str(settings.store.path),
        "held": True,
        "manifest": msgspec.to_builtins(manifest),
    }


def _restore(settings: Settings, source: Path, *, clock: Clock, rng: Rng) -> Manifest:
    """Restore a backup; one that is an encrypted file is unpacked in the data directory first."""
    target = settings.store.path
    if not (source.is_file() and is_encrypted(source)):
        return restore_files(source, target, clock=clock, rng=rng)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with temporary_directory(settings.data_dir / RESTORING_DIRECTORY) as folder:
        identities = Identities(settings.data_dir / IDENTITY_FILE)
        decrypt_file(source, folder / "archive", identities)
        backup = unpack_backup(folder / "archive", folder)
        (folder / "archive").unlink()
        return restore_files(backup, target, clock=clock, rng=rng)


async def accept_loss(settings: Settings) -> Mapping[str, Any]:
    """Go on without the log that is missing beside the settings' store; it is held from then on.

    Harmless when nothing is missing.

    Raises:
        NotFoundError: There is no store.
        StoreHeldError: A process has it.
    """
    path = settings.store.path
    if not path.exists():
        raise NotFoundError("store", str(path))
    checkpoint = None
    async with host_world(settings) as world:
        try:
            store = await SqliteStore.open(path, clock=world.clock, rng=world.rng)
        except LogMissingError as loss:
            checkpoint = loss.fields["checkpoint"]
            store = await SqliteStore.open(path, clock=world.clock, rng=world.rng, accept_loss=True)
        held = store.held
        await store.close()
    return {"store": str(path), "held": held, "lost_after": checkpoint}


async def copy_store(
    settings: Settings, source: str, target: str, tell: Callable[[str], None]
) -> Mapping[str, Any]:
    """Copy a store with its blobs to another place, of whatever engine; it starts held there.

    Each place is a file's path, with or without ``sqlite:``, or a database's address. A database's
    blobs lie beside the settings' store. The source is closed for good by the step that opens the
    target; until then it is as it was. The same call goes on where an interrupted one ended.

    Raises:
        ConfigError: A place cannot be read.
        NotFoundError: There is no source.
        StoreHeldError: A process has one of them.
        ConflictError: A store is at the target, nodes use the source, or it was copied before.
        CorruptionError: A row or a blob is damaged.
    """
    if _place_of(source) == _place_of(target):
        raise ConflictError(f"{_place_of(source)} is both source and target; name two places")
    async with host_world(settings) as world, AsyncExitStack() as stack:
        opened = [
            await _open_copy(place, world, stack, is_source=is_source)
            for place, is_source in ((source, True), (target, False))
        ]
        blobs = [BlobStore(_blobs_of(settings, place)) for place in (source, target)]
        await opened[0].state()
        job = partial(blobs[0].copy_to, blobs[1])
        count = 0
        if blobs[0].root != blobs[1].root:
            count = await asyncio.get_running_loop().run_in_executor(None, job)
        copied = await copy_between(opened[0], opened[1], tell=tell)
    return {**copied._asdict(), "blobs": count, "held": True}


def _place_of(text: str) -> str:
    if not is_dsn(text):
        return f"sqlite:{_file_of(text)}"
    try:
        return str(parse_dsn(text))
    except DsnError as error:
        raise ConfigError(f"the database's address {error}") from None


def _blobs_of(settings: Settings, text: str) -> Path:
    return blobs_path(settings.store.path if is_dsn(text) else _file_of(text))


def _file_of(text: str) -> Path:
    return Path(text.removeprefix("sqlite:")).absolute()


async def _open_copy(
    text: str, world: World, stack: AsyncExitStack, *, is_source: bool
) -> SqliteCopy | PostgresCopy:
    if is_dsn(text):
        database = await PostgresCopy.connect(
            text, _place_of(text), clock=world.clock, rng=world.rng
        )
        stack.push_async_callback(database.close)
        return database
    file = SqliteCopy(_file_of(text), clock=world.clock, rng=world.rng, is_source=is_source)
    stack.callback(file.close)
    return file


async def probe_sandboxes(settings: Settings) -> Sequence[TierReport]:
    """Start a trivial command in every tier and say which ones work here."""
    async with host_world(settings) as world:
        scratch = settings.data_dir / SCRATCH_DIRECTORY
        sandbox = world.open_sandbox(BlobStore(settings.data_dir / "probe-blobs"), scratch)
        return [await sandbox.probe()]


async def probe_model(settings: Settings) -> ModelProbe:
    """Ask the default model's provider what it offers, and say so.

    Raises:
        ConfigError: No model is configured.
        ModelError: The provider does not answer, or refuses the key.
    """
    if not settings.model:
        raise ConfigError("no model is configured; set KELPIE_MODEL or a provider's key")
    async with host_world(settings) as world:
        offered = await make_providers(settings, world).resolve(settings.model).list_models()
    return ModelProbe(len(offered), settings.model.partition("/")[2] in offered)
