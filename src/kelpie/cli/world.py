"""What commands need of the process and of higher machinery, so that tests can hand in their own.

The real functions import their modules when they are called: a command pays for what it uses.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kelpie.sandbox.protocol import TierReport
from kelpie.settings import Settings

AsgiApp = Callable[..., Awaitable[None]]


class OpenedApp(Protocol):
    """The product in this process."""

    @property
    def asgi(self) -> AsgiApp:
        """Its HTTP edge."""
        ...


class OpenApp(Protocol):
    """How to open the product in this process."""

    def __call__(
        self, settings: Settings, *, drive: bool
    ) -> AbstractAsyncContextManager[OpenedApp]:
        """Open the store and the wiring; with ``drive`` what is pending gets executed too."""
        ...


class HolderInfo(Protocol):
    """Who holds a store."""

    @property
    def pid(self) -> int:
        """Its process."""
        ...

    @property
    def address(self) -> str:
        """The Unix socket it listens on; empty if it does not."""
        ...


class ModelProbe(Protocol):
    """What a model provider answered."""

    @property
    def listed_count(self) -> int:
        """How many models it lists."""
        ...

    @property
    def is_listed(self) -> bool:
        """Whether the default model is one of them."""
        ...


class ServedProgram(NamedTuple):
    """A program with actor classes to serve: a file or module, and where its name was given."""

    place: str
    directory: Path


class ServerReady(Protocol):
    """A server that answers."""

    @property
    def url(self) -> str:
        """Where."""
        ...

    @property
    def held(self) -> bool:
        """Whether its store waits for a release after a restore."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The process around a command, and the ways into the product.

    ``cwd`` and ``home`` are absolute. ``restore`` makes the store of the settings from a backup.
    ``probe_sandboxes`` starts a trivial command in each tier; ``probe_model`` makes one request
    to the default model's provider, and returns what it offers or raises a `KelpieError`.
    """

    environment: Mapping[str, str]
    cwd: Path
    home: Path
    open_app: OpenApp
    read_holder: Callable[[Path], HolderInfo | None]
    run_server: Callable[
        [Settings, Callable[[ServerReady], None], ServedProgram | None], Awaitable[int]
    ]
    restore: Callable[[Settings, Path], Awaitable[Mapping[str, Any]]]
    accept_loss: Callable[[Settings], Awaitable[Mapping[str, Any]]]
    probe_sandboxes: Callable[[Settings], Awaitable[Sequence[TierReport]]]
    probe_model: Callable[[Settings], Awaitable[ModelProbe]]
    probe_database: Callable[[Settings], Awaitable[str]]


def real_world() -> World:
    """Return the world of this process."""
    return World(
        environment=dict(os.environ),
        cwd=Path.cwd(),
        home=Path.home(),
        open_app=_open_app,
        read_holder=_read_holder,
        run_server=_run_server,
        restore=_restore,
        accept_loss=_accept_loss,
        probe_sandboxes=_probe_sandboxes,
        probe_model=_probe_model,
        probe_database=_probe_database,
    )


def _open_app(settings: Settings, *, drive: bool) -> AbstractAsyncContextManager[OpenedApp]:
    from kelpie.app.opened import open_app  # noqa: PLC0415 - only what runs is imported

    return open_app(settings, drive=drive)


def _read_holder(store: Path) -> HolderInfo | None:
    from kelpie.storage.holder import read_holder  # noqa: PLC0415 - only what runs is imported

    return read_holder(store)


async def _run_server(
    settings: Settings, announce: Callable[[ServerReady], None], program: ServedProgram | None
) -> int:
    from kelpie.app.process import run_server  # noqa: PLC0415 - only what runs is imported

    return await run_server(settings, announce, program)


async def _restore(settings: Settings, source: Path) -> Mapping[str, Any]:
    from kelpie.app.care import restore_store  # noqa: PLC0415 - only what runs is imported

    return await restore_store(settings, source)


async def _accept_loss(settings: Settings) -> Mapping[str, Any]:
    from kelpie.app.care import accept_loss  # noqa: PLC0415 - only what runs is imported

    return await accept_loss(settings)


async def _probe_sandboxes(settings: Settings) -> Sequence[TierReport]:
    from kelpie.app.care import probe_sandboxes  # noqa: PLC0415 - only what runs is imported

    return await probe_sandboxes(settings)


async def _probe_model(settings: Settings) -> ModelProbe:
    from kelpie.app.care import probe_model  # noqa: PLC0415 - only what runs is imported

    return await probe_model(settings)


async def _probe_database(settings: Settings) -> str:
    from kelpie.app.database import probe_database  # noqa: PLC0415 - only what runs is imported

    return await probe_database(settings)
