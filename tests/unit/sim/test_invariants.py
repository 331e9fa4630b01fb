"""Every invariant holds in a good story, and says what is wrong in a bad one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from kelpie.core.digests import digest_bytes
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.core.limits import MAILBOX_DEPTH_MAX
from kelpie.effects.model import DiffCard, Preparation
from kelpie.infra.messages import PlanState, UnitRun, UnitStatus, plan_actor
from kelpie.infra.plan import Plan, PlanUnit, digest_plan
from kelpie.infra.wishes import make_unit_effect
from kelpie.sandbox.protocol import FileChange
from kelpie.sim.book import ActorHeld
from kelpie.sim.invariants import INVARIANTS, every_invariant
from kelpie.sim.invariants.approvals import Said
from kelpie.sim.invariants.life import DeletingSeen
from kelpie.sim.invariants.plans import ReplanSeen
from kelpie.sim.invariants.turns import CrowdSeen, TurnSeen
from kelpie.sim.view import ReadSeen
from kelpie.storage.records import (
    AuditAppend,
    KvPut,
    ListPut,
    OutboxRow,
    ReminderRow,
    ReplyRecord,
    StoredActor,
)
from tests.unit.sim.views import (
    AGENT,
    COUNTER,
    HOST,
    Story,
    commit_of,
    copy_of,
    effect_of,
    effects_commit,
)

pytestmark = pytest.mark.requirement("SIM-ORACLES")
SENDER = ActorId(TENANT_DEFAULT, "sim-vault", "v1")
ADD = "/v1/actors/sim-counter/c/add"


def send(*bodies: bytes, version: int = 1) -> Any:
    rows = tuple(OutboxRow(sender=SENDER, receiver=COUNTER, body=body) for body in bodies)
    return commit_of(SENDER, version, sends=rows)


def keyed(version: int = 1, key: str = "k", **changes: Any) -> Any:
    reply = ReplyRecord("sim-counter.add", key, digest_bytes(b"r"), b"1", 99_000)
    return commit_of(version=version, reply=reply, **changes)


def test_invariants_have_names_of_their_own() -> None:
    assert len({each.name for each in every_invariant()}) == len(INVARIANTS) >= 28


def test_a_version_that_is_skipped_or_written_twice_is_seen() -> None:
    story = Story("versions-grow")
    assert story.commit(commit_of(version=1)) is None
    assert story.commit(commit_of(version=2)) is None
    assert "after version 2" in str(story.commit(commit_of(version=2)))
    assert "incarnation 1 after 2" in str(
        [story.commit(commit_of(incarnation=2)), story.commit(commit_of(version=3))]
    )


def test_an_epoch_that_falls_or_has_two_writers_is_seen() -> None:
    story = Story("epochs-never-fall")
    assert story.commit(commit_of(epoch=2)) is None
    assert "two writers" in str(story.commit(commit_of(version=2, epoch=2), session="s2"))
    assert "epoch 1 was accepted after 2" in str(story.commit(commit_of(version=3, epoch=1)))


def test_a_commit_under_an_epoch_that_is_over_is_seen() -> None:
    story = Story("committed-under-the-current-epoch")
    assert story.look(epochs={COUNTER.shard: 1}) is None
    assert story.commit(commit_of(epoch=1)) is None
    assert story.look(epochs={COUNTER.shard: 2}) is None
    assert "one of 1 was accepted" in str(story.commit(commit_of(version=2, epoch=1)))
    assert "fell from epoch 2 to 1" in str(story.look(epochs={COUNTER.shard: 1}))


def test_an_actor_or_reply_that_is_gone_from_the_file_is_seen() -> None:
    story = Story("acknowledged-is-present")
    story.commit(keyed())
    story.commit(commit_of(version=2))
    assert story.look() is None
    rows = copy_of(story.view.book_of(HOST).rows)
    older = {str(COUNTER): ActorHeld(1, 1, is_deleted=False, state=b"state 1")}
    assert "at version 1" in str(story.look(rows=replace(rows, actors=older)))
    assert "is gone" in str(story.look(rows=replace(rows, actors={})))
    assert "reply under key 'k'" in str(story.look(rows=replace(rows, replies={})))


def test_a_version_or_row_that_nobody_committed_is_seen() -> None:
    story = Story("no-phantom")
    story.commit(commit_of())
    assert story.look() is None
    rows = copy_of(story.view.book_of(HOST).rows)
    newer = {str(COUNTER): ActorHeld(1, 2, is_deleted=False, state=b"")}
    assert "nobody committed" in str(story.look(rows=replace(rows, actors=newer)))
    extra = {(str(COUNTER), 1, "x"): b"y"}
    assert "never committed" in str(story.look(rows=replace(rows, kv=extra)))


def test_a_state_or_row_of_another_turn_is_seen() -> None:
    story = Story("recovered-is-whole-turns")
    story.commit(commit_of(kv=(KvPut("x", b"1"),)))
    assert story.look() is None
    rows = copy_of(story.view.book_of(HOST).rows)
    torn = {str(COUNTER): ActorHeld(1, 1, is_deleted=False, state=b"torn")}
    assert "another state" in str(story.look(rows=replace(rows, actors=torn)))
    assert "its turn is there" in str(story.look(rows=replace(rows, kv={})))
    other = {(str(COUNTER), 1, "x"): b"2"}
    assert "not as it was committed" in str(story.look(rows=replace(rows, kv=other)))


def stored(version: int, state: bytes) -> StoredActor:
    return StoredActor(
        actor=COUNTER,
        incarnation=1,
        version=version,
        schema_version=1,
        state=state,
        effects=(),
        event_sequence=0,
        tombstoned=False,
    )


def test_a_read_of_something_old_or_else_is_seen() -> None:
    story = Story("what-is-read-was-committed")

    def read(commits: int, found: StoredActor | None) -> str | None:
        story.view.read = ReadSeen(HOST, COUNTER, commits, found)
        said = story.invariant.check(story.view)
        story.view.read = None
        return said

    story.commit(commit_of(version=1))
    story.commit(commit_of(version=2))
    assert read(2, stored(2, b"state 2")) is None
    assert read(1, stored(1, b"state 1")) is None, "it began before version 2"
    assert "was durable before" in str(read(2, stored(1, b"state 1")))
    assert "was durable before" in str(read(2, None))
    assert "another state" in str(read(2, stored(2, b"flipped")))
    assert read(2, stored(3, b"state 3")) is None, "its commit may be seen later"
    assert "nobody committed" in str(story.end())


def test_an_answer_before_its_turn_is_durable_is_seen() -> None:
    story = Story("reply-follows-its-commit")
    story.commit(keyed(1, "a"))
    assert story.answer("POST", ADD, {"result": 1}, key="a") is None
    assert story.answer("POST", ADD, {"result": 2}, key="b") is None
    assert "is not durable" in str(story.end())


def test_an_answer_of_a_turn_whose_outcome_was_found_later_is_right() -> None:
    story = Story("reply-follows-its-commit")
    story.answer("POST", ADD, {"result": 1}, key="a")
    story.commit(keyed(1, "a"), lost=True)
    assert story.end() is None
    assert story.view.commits == 1


def test_a_second_turn_under_a_key_is_seen() -> None:
    story = Story("one-turn-per-key")
    assert story.commit(keyed(1)) is None
    assert "second turn" in str(story.commit(keyed(2)))
    assert story.commit(keyed(3, now_ms=100_000)) is None, "its reply had expired"


def test_two_answers_under_a_key_are_seen() -> None:
    story = Story("one-answer-per-key")
    assert story.answer("POST", ADD, {"result": 1}, key="k") is None
    assert story.answer("POST", ADD, {"result": 1}, key="k") is None
    assert "then" in str(story.answer("POST", ADD, {"result": 2}, key="k"))
    assert story.answer("POST", ADD, {}, status=422, key="other") is None, "a refusal is an answer"
    assert "refused when" in str(story.answer("POST", ADD, {}, status=422, key="k"))


def test_two_objects_under_a_key_are_seen() -> None:
    story = Story("one-object-per-key")
    assert story.answer("POST", "/v1/plans", {"plan_id": "p1"}, key="k") is None
    assert story.answer("POST", "/v1/plans", {"plan_id": "p2"}, key="other") is None
    assert "p1 and p2" in str(story.answer("POST", "/v1/plans", {"plan_id": "p2"}, key="k"))


def test_two_turns_at_once_are_seen() -> None:
    story = Story("one-turn-at-a-time")
    begun, ended = (TurnSeen(HOST, 1, "a", has_begun=each) for each in (True, False))
    assert story.say("turns", begun, ended, begun) is None
    assert story.say("turns", TurnSeen(HOST, 2, "a", has_begun=True)) is None, "another life"
    assert "run at once" in str(story.say("turns", begun))


def test_a_mailbox_without_bound_and_a_dropped_call_are_seen() -> None:
    story = Story("mailbox-bounded-and-nothing-dropped")
    assert story.say("crowds", CrowdSeen(MAILBOX_DEPTH_MAX + 1, MAILBOX_DEPTH_MAX, 1)) is None
    assert "1 of 3 calls" in str(story.say("crowds", CrowdSeen(3, 1, 1)))
    other = Story("mailbox-bounded-and-nothing-dropped")
    many = MAILBOX_DEPTH_MAX + 1
    assert "waited for one actor" in str(other.say("crowds", CrowdSeen(many, many, 0)))


def test_a_message_that_is_consumed_twice_or_by_another_is_seen() -> None:
    story = Story("message-consumed-once")
    story.commit(send(b"m"), ids=(7,))
    assert "to default/sim-counter/c" in str(story.commit(commit_of(AGENT, consumes=7)))
    story = Story("message-consumed-once")
    story.commit(send(b"m"), ids=(7,))
    assert story.commit(commit_of(consumes=7)) is None
    assert "does not wait" in str(story.commit(commit_of(version=2, consumes=7)))


def test_a_message_that_overtakes_another_is_seen() -> None:
    story = Story("fifo-per-sender")
    story.commit(send(b"1", b"2", b"3"), ids=(1, 2, 3))
    assert story.commit(commit_of(consumes=1)) is None
    assert story.commit(commit_of(version=2, consumes=3)) is None
    assert "message 2 after 3" in str(story.commit(commit_of(version=3, consumes=2)))


def test_a_message_that_is_dropped_or_waits_for_ever_is_seen() -> None:
    story = Story("no-message-dropped")
    story.commit(send(b"m"), ids=(7,))
    rows = copy_of(story.view.book_of(HOST).rows)
    assert story.look() is None
    assert "still waits" in str(story.look(is_rest=True))
    assert "is gone" in str(story.look(rows=replace(rows, outbox={})))
    assert story.look(rows=replace(rows, outbox={}), dead=frozenset({7})) is None
    story.commit(commit_of(consumes=7))
    assert "never sent" in str(story.look(rows=rows))


def test_a_message_whose_writer_died_is_known_by_its_content() -> None:
    story = Story("no-message-dropped")
    story.commit(send(b"m"), lost=True)
    book = story.view.book_of(HOST)
    found = {7: book.unnumbered[0]}
    book.adopt_numbers(found)
    assert not book.unnumbered
    assert story.look() is None


def test_a_call_that_a_death_kept_from_ending_may_be_submitted_again() -> None:
    story = Story("no-message-dropped")
    story.commit(send(b"m"), ids=(7,))
    book = story.view.book_of(HOST)
    found = copy_of(book.rows).outbox
    book.release(7)
    assert not book.rows.outbox
    book.adopt_numbers(found)
    book.expect(found[7])
    book.number(found[7], 7)
    assert book.rows.outbox == found
    assert story.look() is None


def test_a_reminder_that_fires_unset_or_stays_overdue_is_seen() -> None:
    story = Story("reminder-fires-as-set")
    row = ReminderRow(actor=COUNTER, name="r", due_ms=500, body=b"")
    story.commit(commit_of(reminders=(row,)))
    assert story.look(is_rest=True, now_ms=1_000) is None
    assert "overdue" in str(story.look(is_rest=True, now_ms=100_000))
    assert "not 500" in str(story.commit(commit_of(version=2, fired=("r", 400))))
    assert "was not set" in str(story.commit(commit_of(version=3, fired=("r", 500))))


def test_a_commit_after_a_deletion_is_seen() -> None:
    story = Story("deleted-stays-deleted")
    assert story.commit(commit_of(tombstone=True)) is None
    assert story.commit(commit_of(incarnation=2)) is None
    assert "had been deleted" in str(story.commit(commit_of(version=2)))


def test_an_agent_that_is_lost_or_comes_back_is_seen() -> None:
    story = Story("created-is-readable")
    story.answer("POST", "/v1/agents/", {"id": "a1"}, key="k", answered_ns=1)
    assert story.answer("GET", "/v1/agents/a1", {}, asked_ns=2) is None
    assert "is not found" in str(story.answer("GET", "/v1/agents/a1", {}, status=404, asked_ns=2))
    story.say("deleting", DeletingSeen(HOST, "a1"))
    assert story.answer("GET", "/v1/agents/a1", {}, status=404, asked_ns=3) is None
    story.answer("DELETE", "/v1/agents/a1", {}, answered_ns=4)
    assert "was deleted and is found" in str(story.answer("GET", "/v1/agents/a1", {}, asked_ns=5))


def test_a_list_that_differs_from_its_actors_is_seen() -> None:
    story = Story("list-rows-equal-the-actors")
    state = msgspec.msgpack.encode({"config": {"name": "n"}})
    row = ListPut("agents", "a", "1", b"")
    story.commit(commit_of(AGENT, state=state, lists=(row,)))
    rows = copy_of(story.view.book_of(HOST).rows)
    assert story.look() is None
    assert "is not listed" in str(story.look(rows=replace(rows, lists={})))
    assert "and not there" in str(story.look(rows=replace(rows, actors={})))


def test_an_effect_that_leaves_its_end_is_seen() -> None:
    story = Story("effects-step-as-allowed")
    assert story.commit(effects_commit(effect_of("done"))) is None
    assert "after it had ended done" in str(story.commit(effects_commit(effect_of("approved"))))
    story.commit(effects_commit(effect_of("unknown", effect_id="e2")))
    again = effects_commit(effect_of("started", effect_id="e2"))
    assert "after it was unknown" in str(story.commit(again))


def test_a_second_start_of_what_may_run_once_is_seen() -> None:
    story = Story("once-starts-once")
    assert story.commit(effects_commit(effect_of())) is None
    assert story.commit(effects_commit(effect_of("approved"))) is None
    assert "was started again" in str(story.commit(effects_commit(effect_of(attempt=2))))
    keyed_effect = {"promise": "keyed", "effect_id": "e2"}
    assert story.commit(effects_commit(effect_of(**keyed_effect))) is None
    assert story.commit(effects_commit(effect_of(attempt=2, **keyed_effect))) is None


def test_a_start_without_its_own_approval_in_time_is_seen() -> None:
    def judge(record: Any, now_ms: int = 1_000) -> str:
        return str(Story("starts-with-its-approval").commit(effects_commit(record, now_ms=now_ms)))

    good = effect_of()
    assert judge(good) == "None"
    changed = msgspec.structs.replace(good, args={"argv": ["destroy"]})
    assert "as something else" in judge(changed)
    assert good.approval is not None
    by_policy = msgspec.structs.replace(good.approval, by="policy")
    assert "without a person" in judge(msgspec.structs.replace(good, approval=by_policy))
    assert "without a decision" in judge(msgspec.structs.replace(good, approval=None))


def test_a_start_after_the_end_of_its_question_is_seen() -> None:
    card = DiffCard(title="t", expires_ms=2_000)
    record = effect_of(preparation=Preparation(card=card))
    story = Story("starts-with-its-approval")
    assert story.commit(effects_commit(record, now_ms=1_999)) is None
    again = effect_of(preparation=Preparation(card=card), attempt=2)
    assert "ended at 2000" in str(story.commit(effects_commit(again, now_ms=2_000)))


def test_a_red_start_that_nobody_said_yes_to_is_seen() -> None:
    record = effect_of()
    story = Story("red-starts-on-a-persons-yes")
    story.say("person", Said(record.effect_id, "sha256:other", "approve"))
    story.say("person", Said(record.effect_id, record.digest, "deny"))
    assert "nobody said yes" in str(story.commit(effects_commit(record)))
    story.say("person", Said(record.effect_id, record.digest, "approve"))
    assert story.commit(effects_commit(effect_of(attempt=2))) is None
    unit = effect_of(effect_id="e2", by_grant="effect-9")
    assert "which nobody knows" in str(story.commit(effects_commit(unit)))


def test_a_second_use_of_an_approval_is_seen() -> None:
    story = Story("approval-used-once")
    assert story.commit(effects_commit(effect_of(effect_id="e1", by_grant="g"))) is None
    assert "e1 had used" in str(
        story.commit(effects_commit(effect_of(effect_id="e2", by_grant="g")))
    )


def test_a_start_after_a_no_is_seen() -> None:
    story = Story("no-means-no")
    assert story.commit(effects_commit(effect_of(effect_id="e2"))) is None
    story.answer("POST", "/v1/approvals/effect-1/deny", {})
    assert "was refused" in str(story.commit(effects_commit(effect_of())))
    story = Story("no-means-no")
    assert story.commit(effects_commit(effect_of("expired"))) is None
    assert "was refused" in str(story.commit(effects_commit(effect_of())))


def test_a_step_without_its_audit_record_is_seen() -> None:
    story = Story("transitions-are-audited")
    assert story.commit(effects_commit(effect_of("approved"))) is None
    assert story.commit(effects_commit(effect_of("approved"), audit=())) is None, "no step"
    assert "without an audit record" in str(story.commit(effects_commit(effect_of(), audit=())))


def test_a_chain_that_lacks_or_changes_a_link_is_seen() -> None:
    story = Story("audit-chain-unbroken")
    links = tuple(AuditAppend("k", "p", b"%d" % number) for number in range(3))
    story.commit(commit_of(audit=links))
    assert story.look() is None
    shard = COUNTER.shard
    chain = story._chains()[shard]
    assert "does not follow" in str(story.look(audit={shard: [chain[0], chain[2]]}))
    assert "not what was recorded" in str(story.look(audit={shard: chain[:2]}))
    assert "not what was recorded" in str(story.look(audit={}))


def test_a_held_store_that_drives_its_work_is_seen() -> None:
    story = Story("restored-drives-nothing")
    assert story.look(is_held=True) is None
    assert story.commit(commit_of()) is None
    assert "in a held store" in str(story.commit(commit_of(version=2, consumes=1)))
    assert "in a held store" in str(story.commit(commit_of(version=3, fired=("r", 1))))
    assert "in a held store" in str(story.commit(effects_commit(effect_of())))
    story.view.released.add(HOST)
    assert story.commit(commit_of(version=4, consumes=2)) is None


def test_a_plan_that_is_not_empty_after_its_apply_is_seen() -> None:
    story = Story("re-plan-is-empty")
    assert story.say("re-planned", ReplanSeen("root", has_changes=False)) is None
    assert "is not empty" in str(story.say("re-planned", ReplanSeen("root", has_changes=True)))


def plan_of(*paths: str) -> Plan:
    """Return a plan of files that each depend on the one before."""
    units = tuple(
        PlanUnit(
            unit_id=path,
            type="linux.file",
            path=path,
            action="create",
            change=FileChange(path=path, kind="file", before="", after=path, mode=0o644),
            depends_on=paths[:index][-1:],
        )
        for index, path in enumerate(paths)
    )
    plan = Plan(root="/r", source="s", revision=0, units=units)
    return msgspec.structs.replace(plan, digest=digest_plan(plan))


def plan_commit(plan: Plan, version: int, *records: Any, **units: UnitStatus) -> Any:
    runs = {name: UnitRun(status=status) for name, status in units.items()}
    state = PlanState(plan_id="p", plan=plan, units=runs)
    actor = plan_actor(TENANT_DEFAULT, "p")
    encoded = msgspec.msgpack.encode(state)
    return effects_commit(*records, version=version, actor=actor, state=encoded)


def unit_effect(plan: Plan, name: str, **changes: Any) -> Any:
    unit = next(unit for unit in plan.units if unit.unit_id == name)
    effect = make_unit_effect(plan, unit, grant="g")
    given = {"kind": effect.kind, "ref": effect.ref, "args": effect.args, "effect_id": name}
    return effect_of(**(given | changes))


def test_a_unit_that_starts_before_its_dependency_is_done_is_seen() -> None:
    plan, story = plan_of("a", "b"), Story("unit-after-its-dependencies")
    assert story.commit(plan_commit(plan, 1, unit_effect(plan, "a"), a="started")) is None
    early = plan_commit(plan, 2, unit_effect(plan, "b"), a="started", b="started")
    assert "started before a" in str(story.commit(early))
    assert story.commit(plan_commit(plan, 3, unit_effect(plan, "b"), a="done")) is None
    stranger = unit_effect(plan, "a", ref="unit/zzz")
    assert "has a unit 'zzz'" in str(story.commit(plan_commit(plan, 4, stranger)))


def test_a_plan_that_is_applied_otherwise_than_approved_is_seen() -> None:
    plan, name = plan_of("a", "b"), "applied-plan-is-the-approved-one"
    story = Story(name)
    assert story.commit(plan_commit(plan, 1, unit_effect(plan, "a"))) is None
    other = unit_effect(plan, "b", ref="unit/a")
    assert "otherwise than planned" in str(story.commit(plan_commit(plan, 2, other)))
    stranger = unit_effect(plan, "a", ref="unit/zzz")
    assert "of no unit" in str(story.commit(plan_commit(plan, 3, stranger)))
    asked = effect_of(kind="plan.apply", ref="plan", args={"plan": "sha256:other"})
    assert "a person is asked about" in str(story.commit(plan_commit(plan, 4, asked)))
    assert "not the plan any more" in str(story.commit(plan_commit(plan_of("c"), 5)))
    assert "never made" in str(Story(name).commit(effects_commit(asked, actor=PLAN, state=None)))


PLAN = plan_actor(TENANT_DEFAULT, "p")
