"""Views for tests of invariants: commits, looks and answers made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.effects.model import Approval, EffectRecord, Verdict, bound_digest
from kelpie.sim.book import StoreSeen
from kelpie.sim.edge import HttpAnswer
from kelpie.sim.invariants import INVARIANTS
from kelpie.sim.view import AnswerSeen, CommitSeen, Invariant, LeaseSeen, View
from kelpie.storage.audit import GENESIS, AuditHead, link_record
from kelpie.storage.records import (
    AuditAppend,
    AuditRecord,
    Commit,
    CommitReceipt,
    EffectRow,
    ShardGrant,
)

HOST = "n1"
AGENT = ActorId(TENANT_DEFAULT, "agent", "a")
COUNTER = ActorId(TENANT_DEFAULT, "sim-counter", "c")


def invariant(name: str) -> Invariant:
    """Return a fresh invariant by its stable name."""
    (found,) = [each for each in (make() for make in INVARIANTS) if each.name == name]
    return found


def commit_of(actor: ActorId = COUNTER, version: int = 1, **changes: Any) -> Commit:
    """Return the commit that makes ``version`` of an actor."""
    plain: dict[str, Any] = {
        "actor": actor,
        "shard": actor.shard,
        "epoch": 1,
        "incarnation": 1,
        "expected_version": version - 1,
        "schema_version": 1,
        "now_ms": 1_000,
        "state": b"state %d" % version,
    }
    return Commit(**(plain | changes))


class Story:
    """Shows one invariant what happened, one thing at a time."""

    def __init__(self, name: str) -> None:
        """Tell it to the invariant of this name."""
        self.view = View()
        self.invariant = invariant(name)

    def _check(self) -> str | None:
        return self.invariant.check(self.view)

    def commit(
        self, commit: Commit, *, session: str = "s1", ids: tuple[int, ...] = (), lost: bool = False
    ) -> str | None:
        """Let a commit land; return what the invariant says."""
        version = commit.expected_version + 1
        receipt = None if lost else CommitReceipt(version, ids, 0)
        self.view.note_commit(CommitSeen(HOST, session, commit, receipt, self.view.now_ns))
        said = self._check()
        self.view.book_of(HOST).note(commit, receipt)
        self.view.last = None
        return said

    def look(self, **changes: Any) -> str | None:
        """Let the file be looked at: it is as the book says, but for ``changes``."""
        book = self.view.book_of(HOST)
        seen = StoreSeen(
            host=HOST,
            session="s1",
            rows=copy_of(book.rows),
            dead=frozenset(),
            audit=self._chains(),
            epochs={},
            is_held=False,
            is_rest=False,
            now_ms=1_000,
        )
        self.view.look = replace(seen, **changes)
        said = self._check()
        self.view.look = None
        return said

    def lease(self, kind: str, session: str, *grants: tuple[int, int]) -> str | None:
        """Let something become of a session and of shards."""
        shards = tuple(ShardGrant(*each) for each in grants)
        self.view.lease = LeaseSeen(HOST, kind, session, shards)
        said = self._check()
        self.view.lease = None
        return said

    def _chains(self) -> dict[int, list[AuditRecord]]:
        chains: dict[int, list[AuditRecord]] = {}
        for shard, links in self.view.book_of(HOST).audit.items():
            head = AuditHead(shard, 0, GENESIS)
            for kind, principal, body in links:
                record = link_record(
                    head, at_ms=1, actor=COUNTER, kind=kind, principal=principal, body=body
                )
                head = AuditHead(shard, record.sequence, record.hash)
                chains.setdefault(shard, []).append(record)
        return chains

    def answer(
        self,
        method: str,
        target: str,
        body: Any,
        *,
        status: int = 200,
        key: str | None = None,
        asked_ns: int = 0,
        answered_ns: int = 0,
    ) -> str | None:
        """Let a client be told something."""
        answer = HttpAnswer(status, msgspec.json.encode(body))
        seen = AnswerSeen(HOST, method, target, key, answer, asked_ns, max(asked_ns, answered_ns))
        self.view.answers.append(seen)
        return self._check()

    def say(self, kind: str, *said: object) -> str | None:
        """Let somebody say something."""
        self.view.said.setdefault(kind, []).extend(said)
        return self._check()

    def end(self) -> str | None:
        """Let the run be over."""
        self.view.is_over = True
        return self._check()


def copy_of(rows: Any) -> Any:
    """Return the tables with dictionaries of their own."""
    names = list(rows.__slots__)
    return type(rows)(**{name: dict(getattr(rows, name)) for name in names})


def effect_of(state: str = "started", **changes: Any) -> EffectRecord:
    """Return a red effect that a person approved, in ``state``."""
    fields: dict[str, Any] = {
        "effect_id": "effect-1",
        "kind": "command.run",
        "ref": "r",
        "args": {"argv": ["build"]},
        "promise": "once",
        "timeout_ms": 1_000,
        "attempt": 1,
        "session": "s1",
        "due_ms": 9_000,
        "verdict": Verdict(color="red", reasons=("why",), policy="p1", at_ms=1),
        "created_ms": 1,
        "updated_ms": 1,
    }
    grant = changes.pop("by_grant", "")
    record = EffectRecord(**(fields | {"state": state} | changes))
    policy = record.verdict.policy if record.verdict else ""
    digest = bound_digest(record, policy)
    approval = Approval(digest=digest, by="person", at_ms=1, grant=grant)
    made = {"digest": digest, "approval": record.approval or approval}
    return msgspec.structs.replace(record, **made)


def row_of(record: EffectRecord, actor: ActorId = AGENT) -> EffectRow:
    """Return the effect's row."""
    return EffectRow(
        effect_id=record.effect_id,
        actor=actor,
        kind=record.kind,
        state=record.state,
        digest=None,
        attempt=record.attempt,
        session=record.session,
        due_ms=record.due_ms,
        created_ms=1,
        updated_ms=1,
        body=msgspec.msgpack.encode(record),
    )


def effects_commit(
    *records: EffectRecord, version: int = 1, actor: ActorId = AGENT, **changes: Any
) -> Commit:
    """Return a commit that writes these effects, each with its audit record."""
    audit = tuple(
        AuditAppend(
            f"effect.{each.state}", "p", msgspec.msgpack.encode({"effect_id": each.effect_id})
        )
        for each in records
    )
    rows = tuple(row_of(each, actor) for each in records)
    return commit_of(actor, version, **({"effects": rows, "audit": audit} | changes))
