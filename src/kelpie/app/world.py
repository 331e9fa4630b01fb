"""The ports of one world, bundled; and how the real one is made."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kelpie.app.database import open_database
from kelpie.app.stores import NodeStore, SharedNodeStore
from kelpie.core.dsn import Dsn
from kelpie.core.errors import ConfigError
from kelpie.host.clock import HostClock
from kelpie.host.frames import TcpFrames, TlsContexts
from kelpie.host.meter import HostMeter
from kelpie.host.network import HostNetwork
from kelpie.host.process import HostProcesses
from kelpie.host.rng import HostRng
from kelpie.host.telemetry import Format, HostTelemetry
from kelpie.ports.clock import Clock
from kelpie.ports.frames import Frames
from kelpie.ports.meter import Meter
from kelpie.ports.network import Network
from kelpie.ports.rng import Rng
from kelpie.ports.telemetry import Telemetry
from kelpie.sandbox.blobs import Blobs
from kelpie.sandbox.bubblewrap import Bubblewrap
from kelpie.sandbox.protocol import Sandbox
from kelpie.settings import Settings
from kelpie.storage.sqlite.store import SqliteStore

SCRATCH_DIRECTORY = "scratch"

OpenSandbox = Callable[[Blobs, Path], Sandbox]
"""Given the blob store and a directory for scratch layers, return the sandbox."""


OpenStore = Callable[[Path, str, Clock, Rng], Awaitable[NodeStore]]
"""Given a path, the holder's address, a clock and a source of randomness, open the store."""


OpenDatabase = Callable[[Settings, Dsn, str], AbstractAsyncContextManager[SharedNodeStore]]
"""Given the settings, a database and the holder's address, open its store; closed at the end."""

OpenFrames = Callable[[TlsContexts | None], Frames]
"""Given both sides' TLS contexts, or none, return the connections between nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything outside the product.

    Attributes:
        environment: Where ``env:`` references are looked up.
        open_store: Opens the store at a path for a holder that listens at an address.
        open_database: Opens the store of a database for a holder that listens at an address.
        open_sandbox: Makes the sandbox over a blob store.
        frames: Makes the connections between nodes, with TLS where contexts are given.
        metrics_text: The metrics in Prometheus' text format.
        meter: Tells a handler that holds the loop from one that was held up; None to blame by time.
    """

    clock: Clock
    rng: Rng
    network: Network
    telemetry: Telemetry
    environment: Mapping[str, str]
    open_store: OpenStore
    open_database: OpenDatabase
    open_sandbox: OpenSandbox
    frames: OpenFrames
    metrics_text: Callable[[], str]
    meter: Meter | None = None


@asynccontextmanager
async def host_world(settings: Settings) -> AsyncGenerator[World]:
    """Yield the real world, as the settings want it; closes its connections at the end.

    Raises:
        ConfigError: Kelpie runs under ``python -O``, which removes its assertions.
    """
    if not __debug__:
        raise ConfigError("python -O removes the assertions that guard state; start without it")
    clock, rng, meter = HostClock(), HostRng(), HostMeter()
    telemetry = HostTelemetry(
        level=settings.log.level,
        style=_log_style(settings),
        clock=clock,
        traces_endpoint=settings.telemetry.endpoint,
    )
    environment = dict(os.environ)  # noqa: TID251  the composition root reads it once
    network = HostNetwork(environment=environment)
    processes = HostProcesses()

    def open_sandbox(blobs: Blobs, scratch: Path) -> Sandbox:
        return Bubblewrap(
            processes=processes, blobs=blobs, clock=clock, rng=rng, scratch_root=scratch
        )

    try:
        yield World(
            clock=clock,
            rng=rng,
            network=network,
            telemetry=telemetry,
            environment=environment,
            open_store=open_sqlite,
            open_database=partial(open_database, clock=clock, rng=rng),
            open_sandbox=open_sandbox,
            frames=lambda tls: TcpFrames(telemetry=telemetry, tls=tls),
            metrics_text=telemetry.metrics_text,
            meter=meter,
        )
    finally:
        meter.close()
        await network.close()
        telemetry.close()


def _log_style(settings: Settings) -> Format:
    if settings.log.format == "auto":
        return "console" if sys.stderr.isatty() else "json"
    return "console" if settings.log.format == "text" else "json"


async def open_sqlite(path: Path, address: str, clock: Clock, rng: Rng) -> SqliteStore:
    """Open the embedded store.

    Raises:
        StoreError: As `SqliteStore.open`.
    """
    return await SqliteStore.open(path, clock=clock, rng=rng, address=address)
