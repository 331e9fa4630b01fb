"""Planted bugs: each is one small change of a real file, and must fail a general invariant.

No switch ships: a mutant is made in a copy of the sources. The text before occurs exactly once in
its file, so that a catalogue that has gone stale says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One planted bug.

    Attributes:
        name: What is wrong, as a stable name.
        file: Below src/kelpie.
        before: What the file says, exactly once.
        after: What the mutant says instead.
        family: Which family of invariants is expected to see it, for people.
        scenario: Where its subject occurs.
        faults: The faults that the run is drawn from; the swarm's when empty.
    """

    name: str
    file: str
    before: str
    after: str
    family: str
    scenario: str
    faults: tuple[str, ...] = ()


_DENY: Final = """    work.deny(record, record.verdict, reason, by=work.turn.principal)
    work.reply"""
_DENY_AS_YES: Final = """    by, at_ms = work.turn.principal, work.turn.now_ms
    yes = Approval(digest=record.digest, by=by, at_ms=at_ms)
    work.commands.append(Forget(name=expiry_name(record)))
    work.approve(record, record.verdict, yes, due_ms=record.due_ms)
    work.reply"""

MUTANTS: Final = (
    Mutant(
        name="no-version-check",
        file="storage/sqlite/commits.py",
        before="    if not is_expected:\n",
        after="    if False:\n",
        family="commits",
        scenario="crowd",
    ),
    Mutant(
        name="loads-while-a-commit-is-on-its-way",
        file="actors/turns.py",
        before="            await self.output.open_commits.settled(activation.actor)\n",
        after="",
        family="commits",
        scenario="crowd",
        faults=("resource.commit_queue_full",),
    ),
    Mutant(
        name="interrupted-effects-never-expire",
        file="effects/attempts.py",
        before="        due_ms = _ends_ms(record)\n",
        after="        due_ms = 0\n",
        family="approvals",
        scenario="agent_day",
        faults=("crash.before_write", "network.delay", "network.swizzle_clog"),
    ),
    Mutant(
        name="no-fence",
        file="storage/sqlite/transaction.py",
        before="        if current != epoch:\n",
        after="        if current > epoch + 1:\n",
        family="commits",
        scenario="usurper",
    ),
    Mutant(
        name="reply-before-commit",
        file="actors/output.py",
        before="        self._work.begin()\n        try:\n            outcome",
        after=(
            "        self._work.begin()\n        envelope.succeed(drafted.reply)\n"
            "        try:\n            outcome"
        ),
        family="keys",
        scenario="counters",
    ),
    Mutant(
        name="query-before-durable",
        file="actors/turns.py",
        before=" and activation.durable_version >= activation.version:\n            envelope",
        after=" and activation.durable_version >= 0:\n            envelope",
        family="histories",
        scenario="crowd",
    ),
    Mutant(
        name="refused-turn-stays-in-memory",
        file="actors/output.py",
        before="        self._turns.departures.discard(activation, retry)\n",
        after="        activation.version = activation.durable_version\n        del retry\n",
        family="histories",
        scenario="crowd",
    ),
    Mutant(
        name="failed-load-is-an-empty-state",
        file="actors/turns.py",
        before=(
            "        except KelpieError as error:\n"
            "            self.departures.discard(activation, error)\n"
            "            return\n"
        ),
        after="        except KelpieError:\n            stored = None\n",
        family="histories",
        scenario="crowd",
        faults=("storage.read_fail", "crash.after_write"),
    ),
    Mutant(
        name="reply-is-not-kept",
        file="actors/commit.py",
        before="        reply=_reply_record(envelope, draft.reply, now_ms),\n",
        after="        reply=None,\n",
        family="keys",
        scenario="counters",
    ),
    Mutant(
        name="key-is-not-looked-up",
        file="actors/keyed.py",
        before="            kept = await self._store.reply(envelope.actor, method, envelope.key)\n",
        after="            kept = None\n",
        family="keys",
        scenario="counters",
    ),
    Mutant(
        name="message-is-not-consumed",
        file="storage/sqlite/commits.py",
        before='"DELETE FROM outbox WHERE message_id = ?"',
        after='"DELETE FROM outbox WHERE message_id = -?"',
        family="messages",
        scenario="bank",
    ),
    Mutant(
        name="drain-waits-for-ever",
        file="actors/engine.py",
        before="asyncio.timeout(timeout_s)",
        after="asyncio.timeout(None)",
        family="life",
        scenario="drains",
    ),
    Mutant(
        name="outbox-is-not-driven-again",
        file="actors/outbox.py",
        before="""        self._news.set()  # a read that failed took the news with it
        while True:""",
        after="        while True:",
        family="messages",
        scenario="errands",
        faults=("storage.read_fail",),
    ),
    Mutant(
        name="message-is-overtaken",
        file="actors/outbox.py",
        before="            queue.append(message)\n",
        after="            queue.appendleft(message)\n",
        family="messages",
        scenario="errands",
    ),
    Mutant(
        name="messages-are-read-backwards",
        file="storage/sql/work.py",
        before="message_id > ?{own.where} ORDER BY message_id LIMIT",
        after="message_id > ?{own.where} ORDER BY message_id DESC LIMIT",
        family="messages",
        scenario="errands",
    ),
    Mutant(
        name="reminder-is-not-removed",
        file="storage/sqlite/commits.py",
        before="commit.incarnation, commit.fired[0])",
        after='commit.incarnation, "")',
        family="messages",
        scenario="errands",
    ),
    Mutant(
        name="reminder-fires-early",
        file="storage/sqlite/commits.py",
        before="(*owner, reminder.name, *fence, reminder.due_ms, *seal(reminder.body)),",
        after="(*owner, reminder.name, *fence, 0, *seal(reminder.body)),",
        family="recovery",
        scenario="errands",
    ),
    Mutant(
        name="projection-is-left-out",
        file="storage/sqlite/commits.py",
        before="        write_list_item(transaction, commit, actor, item)\n",
        after="        del item\n",
        family="life",
        scenario="lives",
    ),
    Mutant(
        name="checksum-is-skipped",
        file="storage/sealing.py",
        before="    if not isinstance(data, bytes) or zlib.crc32(data) != checksum:\n",
        after="    if not isinstance(data, bytes):\n",
        family="recovery",
        scenario="bank",
        faults=("storage.corruption",),
    ),
    Mutant(
        name="ids-are-used-again-after-a-restart",
        file="actors/turns.py",
        before="        self._seed = ports.rng.bytes(16)\n",
        after="        self._seed = bytes(16)\n",
        family="effects",
        scenario="agent_day",
    ),
    Mutant(
        name="busy-actors-are-evicted",
        file="actors/residents.py",
        before="            if activation.idle and not activation.touched",
        after="            if not activation.touched",
        family="histories",
        scenario="crowd",
    ),
    Mutant(
        name="audit-record-is-dropped",
        file="effects/gate_turn.py",
        before='        self.commands.append(Audit(kind=f"effect.{record.state}", body=proof))\n',
        after="        del proof\n",
        family="effects",
        scenario="agent_day",
    ),
    Mutant(
        name="approval-digest-is-ignored",
        file="effects/answers.py",
        before="    if digest and digest != record.digest:\n",
        after="    if digest and not record.digest:\n",
        family="approvals",
        scenario="agent_day",
    ),
    Mutant(
        name="expiry-is-ignored",
        file="effects/attempts.py",
        before="    if record.due_ms and now_ms >= record.due_ms:\n",
        after="    if record.due_ms < 0:\n",
        family="approvals",
        scenario="agent_day",
    ),
    Mutant(
        name="no-counts-as-yes",
        file="effects/answers.py",
        before=_DENY,
        after=_DENY_AS_YES,
        family="approvals",
        scenario="agent_day",
    ),
    Mutant(
        name="unknown-is-tried-again",
        file="effects/attempts.py",
        before='    if record.promise == "once" or (record.promise == "reconcilable"',
        after='    if (record.promise == "reconcilable"',
        family="effects",
        scenario="agent_day",
    ),
    Mutant(
        name="effects-are-not-driven-again",
        file="effects/dispatcher.py",
        before="                    self._consider(row)\n",
        after="                    continue\n",
        family="liveness",
        scenario="agent_day",
    ),
    Mutant(
        name="another-plan-is-applied",
        file="infra/wishes.py",
        before='        "changes": [msgspec.to_builtins(unit.change)],\n',
        after='        "changes": [msgspec.to_builtins(plan.units[-1].change or unit.change)],\n',
        family="plans",
        scenario="plans",
    ),
    Mutant(
        name="plan-ignores-its-key",
        file="infra/plans.py",
        before="        if key is None:\n            return derive_uuid",
        after="        if key != asked:\n            return derive_uuid",
        family="keys",
        scenario="plans",
    ),
    Mutant(
        name="restored-store-is-driven",
        file="storage/sqlite/opening.py",
        before="WHERE name = 'held'\"",
        after="WHERE name = 'kept'\"",
        family="messages",
        scenario="care",
    ),
    Mutant(
        name="commit-of-an-earlier-owner",
        file="storage/sqlite/transaction.py",
        before="        if current != epoch:\n",
        after="        if current < epoch:\n",
        family="owners",
        scenario="cluster",
    ),
    Mutant(
        name="take-over-without-a-new-epoch",
        file="storage/sqlite/nodes.py",
        before='        assert _move(transaction, grant, owner=session, taker="")',
        after=(
            "        freed = \"UPDATE shards SET session = '' WHERE shard = ?\"\n"
            "        assert transaction.execute(freed, (grant.shard,)).rowcount"
        ),
        family="owners",
        scenario="cluster",
    ),
    Mutant(
        name="ended-session-is-renewed",
        file="storage/sqlite/nodes.py",
        before='    _require_living(transaction, session)\n    query = "UPDATE sessions SET r',
        after='    query = "UPDATE sessions SET r',
        family="owners",
        scenario="cluster",
        faults=("network.partition", "network.delay", "time.node_pause"),
    ),
    Mutant(
        name="lease-without-a-margin",
        file="cluster/member.py",
        before="        return self.ttl_ns - self.ttl_ns // self.margin_parts\n",
        after="        return self.ttl_ns + self.ttl_ns // self.margin_parts\n",
        family="leases",
        scenario="cluster",
        faults=("network.partition", "time.clock_skew"),
    ),
    Mutant(
        name="lease-timed-from-the-reply",
        file="cluster/membership.py",
        before="    until_ns = max(state.until_ns, event.sent_ns + timing.until_ns)\n",
        after="    until_ns = max(state.until_ns, event.now_ns + timing.until_ns)\n",
        family="leases",
        scenario="cluster",
        faults=("network.delay", "network.partition", "network.one_way_cut", "time.clock_skew"),
    ),
)
"""Every planted bug."""
