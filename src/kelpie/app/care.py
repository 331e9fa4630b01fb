"""What an operator asks of a host without serving: restore or rescue a store, probe its parts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from kelpie.app.wiring import make_providers
from kelpie.app.world import SCRATCH_DIRECTORY, host_world
from kelpie.core.errors import ConfigError, LogMissingError, NotFoundError
from kelpie.sandbox.protocol import TierReport
from kelpie.settings import Settings
from kelpie.storage.blobs import BlobStore
from kelpie.storage.sqlite.backup import restore_store as restore_files
from kelpie.storage.sqlite.store import SqliteStore


class ModelProbe(NamedTuple):
    """What a model provider answered: how many models it lists, and whether ours is one."""

    listed_count: int
    is_listed: bool


async def restore_store(settings: Settings, source: Path) -> Mapping[str, Any]:
    """Make the settings' store from the backup ``source``; it starts held.

    Raises:
        ConflictError: There is a store already.
        CorruptionError: The backup is damaged.
        NotFoundError: ``source`` is no backup.
    """
    async with host_world(settings) as world:
        job = partial(restore_files, source, settings.store.path, clock=world.clock, rng=world.rng)
        manifest = await asyncio.get_running_loop().run_in_executor(None, job)
    return {
        "store": str(settings.store.path),
        "held": True,
        "manifest": msgspec.to_builtins(manifest),
    }


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
