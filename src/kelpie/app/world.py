"""The ports of one world, bundled; and how the real one is made."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from kelpie.app.stores import NodeStore
from kelpie.core.errors import ConfigError
from kelpie.host.clock import HostClock
from kelpie.host.meter import HostMeter
from kelpie.host.network import HostNetwork
from kelpie.host.process import HostProcesses
from kelpie.host.rng import HostRng
from kelpie.host.telemetry import Format, HostTelemetry
from kelpie.ports.clock import Clock
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


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything outside the product.

    Attributes:
        environment: Where ``env:`` references are looked up.
        open_store: Opens the store at a path for a holder that listens at an address.
        open_sandbox: Makes the sandbox over a blob store.
        metrics_text: The metrics in Prometheus' text format.
        meter: Tells a handler that holds the loop from one that was held up; None to blame by time.
    """

    clock: Clock
    rng: Rng
    network: Network
    telemetry: Telemetry
    environment: Mapping[str, str]
    open_store: OpenStore
    open_sandbox: OpenSandbox
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
            open_sandbox=open_sandbox,
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
