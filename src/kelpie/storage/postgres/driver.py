"""The one door to asyncpg: connections as a protocol, and what the server's errors mean.

Nothing else in this package names a class of the driver.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

import asyncpg

from kelpie.core.errors import (
    ConfigError,
    CorruptionError,
    DiskFullError,
    InvalidFieldError,
    KelpieError,
    OverloadedError,
    StoreAwayError,
    StoreError,
    StoreVersionError,
)
from kelpie.core.limits import (
    DATABASE_CONNECT_MS_MAX,
    DATABASE_IDLE_MS_MAX,
    DATABASE_LOCK_MS_MAX,
    DATABASE_READERS,
    DATABASE_STATEMENT_MS_MAX,
)
from kelpie.storage.postgres.texts import keep_texts

_asyncpg: Final[Any] = asyncpg  # it has no types of its own

CLIENT_TIMEOUT_S: Final = DATABASE_STATEMENT_MS_MAX / 1_000 + 2
"""Longer than the server's own limit: what is silent beyond it, the network has lost."""

SETTINGS: Final = {
    "search_path": "kelpie",
    "timezone": "UTC",
    "statement_timeout": str(DATABASE_STATEMENT_MS_MAX),
    "idle_in_transaction_session_timeout": str(DATABASE_IDLE_MS_MAX),
    "default_transaction_isolation": "read committed",
    "jit": "off",
}
# A batch names its rows by their keys. Without statistics, as in a young table, the planner would
# read all of it instead, and keep that plan while the table grows.
WRITER_SETTINGS: Final = SETTINGS | {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "plan_cache_mode": "force_generic_plan",
}

READER_SETTINGS: Final = SETTINGS | {"default_transaction_read_only": "on"}
# Whoever waits for a shard holds up the lease's next renewal on the same connection.
CONTROL_SETTINGS: Final = SETTINGS | {"lock_timeout": str(DATABASE_LOCK_MS_MAX)}

UNIQUE: Final = "23505"
"""The server's code for a row that is there already."""

DriverError: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server said goodbye while nothing was asked
    OSError,
    TimeoutError,
)
"""Everything that the driver raises when the server or the network failed."""

_TRANSIENT: Final = frozenset({"40001", "40P01", "55P03"})
_GIVEN_UP: Final = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})
_DAMAGED: Final = frozenset({"XX001", "XX002"})
_FULL: Final = frozenset({"53100"})
_TOO_LONG: Final = frozenset({"54000", "22021", "22P05"})
_CROWDED: Final = frozenset({"53300"})
_MISSING: Final = frozenset({"42P01", "42703"})


class ServerConnection(Protocol):
    """What this package uses of a connection to the server; the driver's own has more."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run a statement and return its command tag."""
        ...

    async def fetch(
        self, query: str, *args: Any, timeout: float | None = None
    ) -> list[Mapping[str, Any]]:
        """Return the rows of a statement."""
        ...

    async def fetchrow(
        self, query: str, *args: Any, timeout: float | None = None
    ) -> Sequence[Any] | None:
        """Return the first row of a statement."""
        ...

    async def fetchval(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """Return the first value of a statement's first row."""
        ...

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False
    ) -> AbstractAsyncContextManager[None]:
        """Return a transaction to enter."""
        ...

    def cursor(self, query: str, *args: Any, prefetch: int) -> AsyncIterator[Sequence[Any]]:
        """Return the rows of a statement in portions, inside a transaction."""
        ...

    async def close(self, *, timeout: float | None = None) -> None:
        """Say goodbye and close."""
        ...

    def terminate(self) -> None:
        """Close at once."""
        ...

    def is_in_transaction(self) -> bool:
        """Return whether a transaction is open."""
        ...

    def is_closed(self) -> bool:
        """Return whether it is closed."""
        ...


class ReaderPool(Protocol):
    """What this package uses of the connections that only read."""

    async def fetch(self, query: str, *args: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a statement, which one of the connections runs."""
        ...

    def acquire(self) -> AbstractAsyncContextManager[ServerConnection]:
        """Return a connection to enter, for more than one statement."""
        ...

    async def close(self) -> None:
        """Wait for whoever reads, then close."""
        ...

    def terminate(self) -> None:
        """Close at once."""
        ...


class _ReadingConnection(asyncpg.Connection):  # type: ignore[misc]  # the driver has no types
    """A connection of the pool. Reads leave nothing behind, so it is given back as it is."""

    def get_reset_query(self) -> str:
        """Return nothing: cleaning up would cost every read a second round trip."""
        return ""


async def connect(
    dsn: str, *, name: str, settings: Mapping[str, str] = SETTINGS
) -> ServerConnection:
    """Open a connection that the server's list of activities shows as ``name``.

    Raises:
        DriverError: It cannot be reached, or refuses; see `translate_error`.
        ConfigError: The address cannot be read.
    """
    try:
        connection: ServerConnection = await _asyncpg.connect(
            dsn,
            timeout=DATABASE_CONNECT_MS_MAX / 1_000,
            server_settings={**settings, "application_name": name},
        )
        await keep_texts(connection)
    except (ValueError, asyncpg.InterfaceError) as error:
        raise ConfigError(f"the database's address cannot be used: {error}") from error
    return connection


async def open_readers(dsn: str, *, name: str) -> ReaderPool:
    """Open the connections that only read, each of which sees the store's schema.

    Raises:
        DriverError: The server cannot be reached, or refuses; see `translate_error`.
    """
    pool: ReaderPool = await _asyncpg.create_pool(
        dsn,
        min_size=1,
        max_size=DATABASE_READERS,
        timeout=DATABASE_CONNECT_MS_MAX / 1_000,
        command_timeout=CLIENT_TIMEOUT_S,
        init=keep_texts,
        connection_class=_ReadingConnection,
        server_settings={**READER_SETTINGS, "application_name": name},
    )
    return pool


def state_of(error: BaseException) -> str:
    """Return the server's five-character code for an error, empty for one that has none."""
    code = getattr(error, "sqlstate", None)
    return code if isinstance(code, str) else ""


def detail_of(error: BaseException) -> str:
    """Return what the server says beside its message."""
    detail = getattr(error, "detail", None)
    return detail if isinstance(detail, str) else ""


def is_lost(error: BaseException) -> bool:
    """Return whether the connection is gone, so that nobody was told what became of the batch."""
    code = state_of(error)
    if code.startswith("08") or code in _GIVEN_UP:
        return True
    return not code  # the network, the driver's own word for it, or silence


def is_transient(error: BaseException) -> bool:
    """Return whether the server undid a statement for others' sake, so that it may come again."""
    return state_of(error) in _TRANSIENT


def is_common(error: BaseException) -> bool:
    """Return whether an error says something about the server rather than about one row."""
    code = state_of(error)
    return code.startswith(("53", "57", "58", "XX")) or not code


def translate_error(error: BaseException, subject: str) -> KelpieError:
    """Return the typed error for a failure that left nothing behind.

    Args:
        error: What the driver raised; see `DriverError`.
        subject: What was read or written: an actor, a store's address without its password.
    """
    code = state_of(error)
    if code in _FULL:
        message = f"no space left for {subject}; free some disk space and try again"
        return DiskFullError(message, subject=subject)
    if code in _DAMAGED:
        message = f"{subject} is damaged ({error}); run a check, then restore a backup"
        return CorruptionError(message, subject=subject)
    if code in _MISSING:
        message = f"{subject}: the database has no store of this version ({error})"
        return StoreVersionError(message, subject=subject)
    if code in _CROWDED:
        message = f"{subject}: the database takes no more connections; raise max_connections"
        return OverloadedError(message, subject=subject)
    if code in _TOO_LONG:
        return InvalidFieldError(subject, f"PostgreSQL cannot keep one of its texts ({error})")
    name, text = code or type(error).__name__, str(error) or "no answer"
    message = f"{subject}: {text} ({name}); look at the database, then try again"
    kind = StoreAwayError if is_lost(error) else StoreError
    return kind(message, subject=subject, engine=name)


def refuse_to_open(error: BaseException, place: str) -> StoreError | ConfigError:
    """Return the typed error for a database that cannot be opened, with what to do.

    ``place`` is the address without its password.
    """
    match state_of(error):
        case "3D000":
            return ConfigError(f"{place}: there is no such database ({error}); create it first")
        case "28P01" | "28000":
            return ConfigError(f"{place}: the server refuses this user or password ({error})")
        case "42501":
            return ConfigError(f"{place}: this user may not do it ({error}); let it create schemas")
        case "":
            return StoreError(f"{place} cannot be reached ({error}); start the server", place=place)
        case code:
            return StoreError(f"{place}: {error} ({code})", place=place)


async def close_gently(connection: ServerConnection) -> None:
    """Say goodbye, but not for long."""
    try:
        await connection.close(timeout=1)
    except DriverError:
        connection.terminate()
