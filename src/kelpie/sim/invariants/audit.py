"""The audit: every chain in the file is unbroken and holds what was to be recorded."""

from __future__ import annotations

from typing import Final

from kelpie.core.errors import CorruptionError
from kelpie.sim.view import View
from kelpie.storage.audit import verify_chain

BY_PEOPLE: Final = frozenset({"actor.paused", "actor.resumed"})
"""Links that no turn asked for: the chain holds them, the commits do not tell of them."""


class AuditIsUnbroken:
    """Each link follows from the one before it; the links are those that turns asked for."""

    name = "audit-chain-unbroken"

    def check(self, view: View) -> str | None:
        """Verify every chain in the file, and compare it with the commits."""
        seen = view.look
        if seen is None:
            return None
        for shard, records in seen.audit.items():
            try:
                verify_chain(records, shard=shard)
            except CorruptionError as error:
                return f"{seen.host}: {error.message}"
        expected = view.book_of(seen.host).audit
        for shard in sorted(expected.keys() | seen.audit.keys()):
            links = [each for each in seen.audit.get(shard, ()) if each.kind not in BY_PEOPLE]
            found = [(each.kind, each.principal, each.body) for each in links]
            if found != expected.get(shard, []):
                return f"{seen.host}: the chain of shard {shard} is not what was recorded"
        return None
