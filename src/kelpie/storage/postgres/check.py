"""Reading everything: every checksum and every audit chain, of one snapshot.

Reads beside whoever writes, in small portions, so that the event loop goes on.
"""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from kelpie.core.errors import CorruptionError
from kelpie.core.limits import SHARD_COUNT
from kelpie.storage.audit import AuditHead, verify_chain
from kelpie.storage.decode import AUDIT_COLUMNS, Row, audit_record
from kelpie.storage.postgres.driver import ReaderPool, ServerConnection
from kelpie.storage.soundness import SEALED, CheckReport, Problem, Report, compare_body

_PORTION_ROWS: Final = 50  # states may be large


async def check_store(pool: ReaderPool) -> CheckReport:
    """Read the store and return what is wrong with it.

    Raises:
        DriverError: The server failed.
    """
    report = Report()
    heads: list[AuditHead] = []
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
        async for problem in _find_problems(connection, heads):
            report.add(problem)
            if report.is_full:
                break
    return report.close(heads)


async def _find_problems(
    connection: ServerConnection, heads: list[AuditHead]
) -> AsyncIterator[Problem]:
    query = "SELECT actor, checksum, state FROM actors"
    async for name, checksum, state in connection.cursor(query, prefetch=_PORTION_ROWS):
        for problem in compare_body(name, checksum, state, name):
            yield problem
    for table, owner, body in SEALED:
        query = f"SELECT {owner}, checksum, {body} FROM {table}"
        async for name, checksum, data in connection.cursor(query, prefetch=_PORTION_ROWS):
            for problem in compare_body(f"a row of {table} of {name}", checksum, data, name):
                yield problem
    for shard in range(SHARD_COUNT):
        try:
            rows = await _read_chain(connection, shard)
            if rows:
                heads.append(verify_chain(map(audit_record, rows), shard=shard))
        except CorruptionError as error:
            yield Problem(error.message)


async def _read_chain(connection: ServerConnection, shard: int) -> Sequence[Row]:
    query = f"SELECT {AUDIT_COLUMNS} FROM audit WHERE shard = $1 ORDER BY sequence"
    return [tuple(row.values()) for row in await connection.fetch(query, shard)]
