"""What `kelpie doctor` looks at: each check tries the thing itself and says what to do next.

A check never raises for what it finds; it changes nothing outside a temporary directory, which is
gone afterwards. Checks of one host do not depend on each other.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple

from kelpie.cli.client import find_holder
from kelpie.cli.processes import STOPPED, listens, name_process, process_state
from kelpie.cli.world import World
from kelpie.core.errors import KelpieError
from kelpie.core.limits import DISK_FREE_BYTES_MIN, MIB
from kelpie.settings import Settings, require_startable

Status = Literal["ok", "warn", "fail"]

_SQLITE_FIXED: Final = (3, 51, 3)  # carries the fix of the WAL-reset fault
_SYNC_SAMPLES: Final = 15
_SYNC_SLOW_MS: Final = 25.0  # a commit waits for at least one of these


class Check(NamedTuple):
    """What one check found; ``next_step`` is empty when there is nothing to do."""

    name: str
    status: Status
    detail: str
    next_step: str = ""


def check_python() -> Check:
    """Say which Python runs this."""
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def check_settings(world: World, settings: Settings) -> Check:
    """Try whether a server would accept the settings."""
    try:
        require_startable(settings, world.environment)
    except KelpieError as error:
        return Check("settings", "fail", error.message, "kelpie config show --origin")
    if settings.notices:
        return Check("settings", "warn", "; ".join(settings.notices), "unset it, or correct it")
    return Check("settings", "ok", "a server would start with them")


def check_sqlite(settings: Settings) -> Check:
    """Write a database in WAL mode where the store lies."""
    version = sqlite3.sqlite_version
    try:
        with _scratch(settings) as directory, closing(_open(directory / "probe.db")) as database:
            mode = str(database.execute("PRAGMA journal_mode=WAL").fetchone()[0])
            database.execute("CREATE TABLE probe (value INTEGER)")
            database.commit()
    except (OSError, sqlite3.Error) as error:
        step = f"make {settings.data_dir} writable, with some space"
        return Check("sqlite", "fail", f"{version}: {error}", step)
    detail = f"{version}, journal mode {mode}"
    if mode != "wal":
        return Check("sqlite", "fail", detail, "move the store to a local file system")
    if sqlite3.sqlite_version_info < _SQLITE_FIXED:
        detail += "; before 3.51.3 one connection writes and checkpoints"
    return Check("sqlite", "ok", detail)


def check_disk(settings: Settings) -> Check:
    """Measure what a synced write costs where the store lies, and how much room is left."""
    try:
        with _scratch(settings) as directory:
            latency_ms = _sync_latency_ms(directory / "probe")
            free_bytes = shutil.disk_usage(directory).free
    except OSError as error:
        detail = f"{settings.data_dir}: {error.strerror or error}"
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        step = "free some space" if full else f"make {settings.data_dir} writable"
        return Check("disk", "fail", detail, step)
    detail = f"fsync {latency_ms:.1f} ms (median), {free_bytes // MIB:,} MiB free"
    if free_bytes < DISK_FREE_BYTES_MIN:
        return Check("disk", "warn", detail, "free some space")
    if latency_ms > _SYNC_SLOW_MS:
        return Check("disk", "warn", detail, "set data_dir to a faster disk")
    return Check("disk", "ok", detail)


async def check_store(world: World, settings: Settings) -> Check:
    """Say who holds the store, and whether its database answers."""
    holder = find_holder(world, settings)
    if holder is not None:
        detail = f"{settings.store.place}, held by {name_process(holder.pid)}"
        if process_state(holder.pid) in STOPPED:
            return Check("store", "warn", f"{detail}, which is stopped", f"kill -CONT {holder.pid}")
        step = "" if holder.address else f"ps -p {holder.pid}"
        return Check("store", "ok" if holder.address else "warn", detail, step)
    if settings.store.url is not None:
        try:
            found = await world.probe_database(settings)
        except KelpieError as error:
            return Check("store", "fail", error.message, "kelpie config show --origin")
        return Check("store", "ok", f"{settings.store.place}, {found}")
    state = "not held" if settings.store.path.exists() else "does not exist yet"
    return Check("store", "ok", f"{settings.store.path}, {state}")


def check_port(world: World, settings: Settings) -> Check:
    """Try to listen where the server would."""
    host, port = settings.server.host, settings.server.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
    except OSError as error:
        return _explain_port(world, settings, error)
    return Check("port", "ok", f"{host}:{port} is free")


def _explain_port(world: World, settings: Settings, error: OSError) -> Check:
    """Say whether it is our own server that has the port, as far as this user can see."""
    place = f"{settings.server.host}:{settings.server.port}"
    step = f"kelpie serve --port {settings.server.port % 65_535 + 1}"
    if error.errno != errno.EADDRINUSE:
        return Check("port", "fail", f"{place}: {error.strerror or error}", step)
    holder = find_holder(world, settings)
    if holder is not None and holder.pid and listens(holder.pid, settings.server.port):
        return Check("port", "ok", f"{place} is where process {holder.pid} serves the store")
    if holder is not None:
        detail = f"{place} is taken by another process than the one that holds the store"
        return Check("port", "warn", detail, "no other server is needed while that one runs")
    return Check("port", "fail", f"{place} is taken by another process", step)


async def check_sandbox(world: World, settings: Settings) -> list[Check]:
    """Start a trivial command in every tier of this host."""
    try:
        reports = await world.probe_sandboxes(settings)
    except KelpieError as error:
        return [Check("sandbox", "fail", error.message, "install what it names")]
    required = settings.sandbox.tier
    checks: list[Check] = []
    for report in reports:
        status: Status = "ok" if report.works else "warn"
        if not report.works and report.tier == required:
            status = "fail"
        step = "" if report.works else "install what it names"
        checks.append(Check(f"sandbox {report.tier}", status, report.detail, step))
    return checks


async def check_model(world: World, settings: Settings) -> Check:
    """Make one request to the default model's provider, if one is configured."""
    if not settings.model:
        return Check("model", "warn", "none is configured", "export OPENAI_API_KEY=...")
    try:
        found = await world.probe_model(settings)
    except KelpieError as error:
        step = "kelpie config show --origin"
        return Check("model", "fail", f"{settings.model}: {error.message}", step)
    if not found.is_listed:
        detail = f"{settings.model}: the provider answers, and does not list it"
        return Check("model", "warn", detail, "set KELPIE_MODEL to a model that it lists")
    return Check("model", "ok", f"{settings.model}: one of {found.listed_count:,} on offer")


@contextmanager
def _scratch(settings: Settings) -> Generator[Path, None, None]:
    """Make a directory on the disk of the store, for as long as the context is open."""
    parent = settings.store.path.parent
    while not parent.exists():
        parent = parent.parent
    with tempfile.TemporaryDirectory(prefix=".kelpie-doctor-", dir=parent) as directory:
        yield Path(directory)


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path)


def _sync_latency_ms(path: Path) -> float:
    samples: list[float] = []
    with path.open("wb", buffering=0) as file:
        for _ in range(_SYNC_SAMPLES):
            file.write(bytes(4_096))
            started = time.perf_counter()
            os.fsync(file.fileno())
            samples.append((time.perf_counter() - started) * 1_000)
    return sorted(samples)[_SYNC_SAMPLES // 2]
