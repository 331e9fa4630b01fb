"""A writing connection that never leaves an outcome open.

Each call is one statement that is a whole transaction and marks the writer's row with the batch's
number and result. When the connection breaks before the answer, the next connection first raises
the row's generation, which waits for a transaction that holds the row and shuts out one that has
not come to it, and then reads what the row says: the batch's number means that it was committed,
another that it never was and never will be, so that it is sent again.

Invariants: one call at a time; a batch is committed at most once; a call that returns was committed
under the generation of this link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from kelpie.core.errors import CommitUnknownError, KelpieError, StoreError
from kelpie.core.limits import (
    DATABASE_ATTEMPTS_MAX,
    DATABASE_AWAY_MS_MAX,
    DATABASE_RETRY_MS,
)
from kelpie.ports.clock import Clock
from kelpie.storage.postgres.driver import (
    CLIENT_TIMEOUT_S,
    UNIQUE,
    Connection,
    DriverError,
    close_gently,
    detail_of,
    is_lost,
    is_transient,
    state_of,
    translate_error,
)
from kelpie.storage.postgres.migrations.apply import CROWDED, FENCED, REFUSED, STALE_WRITER
from kelpie.storage.postgres.plan import Answer

T = TypeVar("T")

_TAKE: Final = (
    "INSERT INTO writers AS w VALUES ($1, $2, 1, 0, 0, '{}', $3) ON CONFLICT (holder, writer)"
    " DO UPDATE SET generation = w.generation + 1 RETURNING generation, batch, number, result"
)
_PART: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name = $1 AND pid <> pg_backend_pid()"
)

_COMMIT: Final = "SELECT taken, sequences FROM commit_1({})"

Connect = Callable[[str], Awaitable[Connection]]
"""Opens a connection that the server shows under a name."""


class Refused(NamedTuple):
    """The server undid a batch because a check did not hold."""

    code: str
    detail: str


class RefusedError(StoreError):
    """A batch was undone; who is to blame is found out by the caller. Never leaves this package."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(f"a check did not hold ({refused.code} {refused.detail})")
        self.refused = refused


class ServerFailedError(StoreError):
    """The server failed with a batch and kept nothing of it. Never leaves this package."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"the server failed: {cause}")
        self.error = cause


class Link:
    """The connection of one writer of one opened store."""

    __slots__ = (
        "_batch",
        "_clock",
        "_connect",
        "_connection",
        "_generation",
        "_holder",
        "_last",
        "writer",
    )

    def __init__(self, connect: Connect, *, clock: Clock, holder: str, writer: int) -> None:
        self._connect = connect
        self._clock = clock
        self._holder = holder
        self.writer = writer
        self._connection: Connection | None = None
        self._generation = 0
        self._batch = 0
        self._last: tuple[int, list[int]] = (0, [])

    @property
    def name(self) -> str:
        """How the server's list of activities shows it."""
        return f"kelpie {self._holder} w{self.writer}"

    async def open(self) -> None:
        """Connect for the first time.

        Raises:
            DriverError: The server cannot be reached, or refuses.
        """
        await self._take_over()
        assert self._generation >= 1, "a generation counts connections"

    async def close(self) -> None:
        """Let go of the connection; harmless when there is none."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await close_gently(connection)
        assert self._connection is None

    async def commit(self, arguments: Sequence[Any]) -> Answer:
        """Run ``commit_1`` and return its answer, from the connection or from the writer's row.

        Raises:
            RefusedError: A check did not hold; nothing was kept.
            ServerFailedError: The server failed; nothing was kept.
            CommitUnknownError: The database stays away, and so does the answer.
            StoreError: The database cannot be reached; nothing was sent.
        """
        places = ", ".join(f"${number}" for number in range(1, len(arguments) + 5))
        row = await self._carry_out(_COMMIT.format(places), arguments)
        return Answer(row[0], list(row[1]))

    async def call(self, function: str, *arguments: Any) -> int:
        """Run one of the functions of single writes and return its value; raises as `commit`."""
        places = ", ".join(f"${number}" for number in range(1, len(arguments) + 5))
        row = await self._carry_out(f"SELECT 0::bigint, ARRAY[{function}({places})]", arguments)
        value: int = row[1][0]
        return value

    async def ask(self, question: Callable[[Connection], Awaitable[T]]) -> T:
        """Return what a question that changes nothing, or may come twice, answers.

        Raises:
            StoreError: The database cannot be reached, or refuses.
        """
        deadline_ns = self._deadline_ns()
        while True:
            connection = await self._connected(deadline_ns, unknown=False)
            try:
                async with asyncio.timeout(CLIENT_TIMEOUT_S):
                    return await question(connection)
            except DriverError as error:
                if not is_lost(error):
                    raise translate_error(error, "the store") from error
                self._drop()

    async def _carry_out(self, query: str, arguments: Sequence[Any]) -> Sequence[Any]:
        batch = self._batch + 1
        deadline_ns = self._deadline_ns()
        is_sent = False
        attempts = 0
        while True:
            connection = await self._connected(deadline_ns, unknown=is_sent)
            if self._batch == batch:  # what the writer's row told
                return self._last
            mark = (self._holder, self.writer, self._generation, batch)
            try:
                row = await connection.fetchrow(query, *mark, *arguments, timeout=CLIENT_TIMEOUT_S)
            except DriverError as error:
                attempts += 1
                is_sent = self._sort_out(error, attempts) or is_sent
            except asyncio.CancelledError:
                self._drop()
                raise
            else:
                assert row is not None, "a function returns"
                self._batch = batch
                return row

    def _sort_out(self, error: BaseException, attempts: int) -> bool:
        """Return whether an outcome is open now; raise when it is known and final."""
        if is_lost(error) or state_of(error) == STALE_WRITER:
            self._drop()
            return True
        code = state_of(error)
        if is_transient(error) and attempts < DATABASE_ATTEMPTS_MAX:
            return False
        if code in {FENCED, REFUSED, CROWDED, UNIQUE}:
            raise RefusedError(Refused(code, detail_of(error))) from error
        raise ServerFailedError(error) from error

    async def _connected(self, deadline_ns: int, *, unknown: bool) -> Connection:
        """Return the connection, making it first; keep trying until ``deadline_ns``."""
        while self._connection is None or self._connection.is_closed():
            try:
                await self._take_over()
            except (*DriverError, KelpieError) as error:
                self._drop()
                if self._clock.boot_ns() < deadline_ns:
                    await self._clock.sleep(DATABASE_RETRY_MS / 1_000)
                    continue
                if unknown:
                    message = f"the database went away in the middle of a commit ({error})"
                    raise CommitUnknownError(f"{message}; load the actor again") from error
                message = f"the database cannot be reached ({error}); nothing was kept"
                raise StoreError(message) from error
        return self._connection

    async def _take_over(self) -> None:
        """Connect, and settle what became of the last batch of the connection before."""
        connection = await self._connect(self.name)
        try:
            if self._generation:
                await connection.execute(_PART, self.name)
            now_ms = self._clock.now_ms()
            row = await connection.fetchrow(_TAKE, self._holder, self.writer, now_ms)
        except BaseException:
            connection.terminate()
            raise
        assert row is not None, "an upsert returns its row"
        generation, batch = row[0], row[1]
        assert generation > self._generation, "a generation only grows"
        assert batch >= self._batch, "a batch that was answered is in the row"
        self._connection, self._generation, self._batch = connection, generation, batch
        self._last = (row[2], list(row[3]))

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    def _deadline_ns(self) -> int:
        return self._clock.boot_ns() + DATABASE_AWAY_MS_MAX * 1_000_000
