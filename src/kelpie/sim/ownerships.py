"""Watches who becomes the owner of what: the embedded engine as a shared database, reported.

Decides nothing. What a transaction did to sessions and shards is reported in the order of the
transactions, between the commits before and after it and before anybody can act on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from kelpie.sim.loop import observing
from kelpie.sim.view import LeaseSeen
from kelpie.storage.records import ShardGrant
from kelpie.storage.sqlite.batch import Work
from kelpie.storage.sqlite.nodes import claim, end, release, renew
from kelpie.storage.sqlite.store import SqliteStore

_KINDS: Final[dict[Callable[..., Any], str]] = {
    renew: "renewed",
    claim: "claimed",
    release: "released",
    end: "ended",
}


class SharedSqlite(SqliteStore):
    """The embedded engine for a database that several nodes share."""

    def watch(self, host: str, leased: Callable[[LeaseSeen], None]) -> None:
        """Report from now on."""
        assert host, "a database is some machine's"
        self._host = host
        self._leased = leased
        self._context = observing()

    def _submit(self, member: Work, size_bytes: int) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = super()._submit(member, size_bytes)
        if isinstance(member, partial) and member.func in _KINDS:
            future.add_done_callback(partial(self._report, member), context=self._context)
        return future

    def _report(self, member: partial[Any], done: asyncio.Future[Any]) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        kind, asked = _KINDS[member.func], member.keywords
        grants: tuple[ShardGrant, ...] = ()
        if kind == "claimed":
            grants = tuple(done.result())
        elif kind == "released":
            grants = tuple(ShardGrant(shard, epoch + 1) for shard, epoch in asked["shards"])
        elif kind == "ended" and not done.result():
            return
        self._leased(LeaseSeen(self._host, kind, asked["session"], grants))
