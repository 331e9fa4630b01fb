"""The gate, as a pure machine around a tiny inner one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kelpie.actors.commands import Command, Message, Remind, Reply, WriteEffect
from kelpie.actors.machine import Turn
from kelpie.core import limits
from kelpie.core.errors import AlreadyDecidedError, ConflictError, DeniedError, NotFoundError
from kelpie.core.ids import ActorId, Tenant
from kelpie.effects import messages as m
from kelpie.effects.executor import Order
from kelpie.effects.gate import Gated, GatedState
from kelpie.effects.model import (
    DiffCard,
    Effect,
    EffectRecord,
    Outcome,
    Preparation,
    wish_digest,
)
from kelpie.effects.policy import Policy, Rule
from kelpie.effects.rules import EffectKind, GateRules
from kelpie.storage.records import StoredActor
from tests.unit.effects.asker import Ask, Asker, Close, GiveUp, Leave, State, promises

ACTOR = ActorId(Tenant("default"), "asker", "one")
TTL_MS = 60_000


KINDS = {
    "model.generate": EffectKind(
        name="model.generate", prepares=False, promise=promises("repeatable")
    ),
    "files.apply": EffectKind(name="files.apply", prepares=True, promise=promises("reconcilable")),
    "command.run": EffectKind(name="command.run", prepares=True, promise=promises("once")),
    "plan.apply": EffectKind(
        name="plan.apply", prepares=False, promise=promises("repeatable"), is_grant=True
    ),
}


class World:
    """One gated actor and a clock that a test moves."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.now_ms = 1_000_000
        self.turns = 0
        self.use(policy or Policy())
        self.state: GatedState[State] = self.machine.create(ACTOR)
        self.rows: dict[str, EffectRecord] = {}
        self.commands: tuple[Command, ...] = ()

    def use(self, policy: Policy) -> None:
        rules = GateRules(policy=policy, kinds=KINDS, approval_ttl_ms=TTL_MS)
        self.machine = Gated(Asker(), rules)

    def tell(self, message: Message, principal: str = "test") -> Any:
        self.turns += 1
        turn = Turn(
            actor=ACTOR,
            now_ms=self.now_ms,
            seed=self.turns.to_bytes(16, "big"),
            principal=principal,
        )
        decision = self.machine.decide(self.state, message, turn)
        self.state = decision.state
        self.commands = decision.commands
        for command in decision.commands:
            if isinstance(command, WriteEffect):
                record = msgspec.msgpack.decode(command.row.body, type=EffectRecord)
                assert record.state == command.row.state
                self.rows[record.effect_id] = record
        replies = [each.value for each in decision.commands if isinstance(each, Reply)]
        assert len(replies) <= 1
        return replies[0] if replies else None

    def ask(self, kind: str, ref: str, **options: Any) -> EffectRecord:
        self.tell(Ask(kind=kind, ref=ref, **options))
        return self.by_ref(ref)

    def by_ref(self, ref: str) -> EffectRecord:
        found = [record for record in self.rows.values() if record.ref == ref]
        return found[-1]

    def prepare(self, record: EffectRecord, target: str = "t1") -> EffectRecord:
        preparation = Preparation(card=DiffCard(title="a change"), target=target)
        self.tell(m.EffectPrepared(effect_id=record.effect_id, preparation=preparation))
        return self.rows[record.effect_id]

    def waiting(self, kind: str = "files.apply", ref: str = "w", **options: Any) -> EffectRecord:
        record = self.prepare(self.ask(kind, ref, **options))
        assert record.state == "waiting"
        return record

    def started(
        self, kind: str = "files.apply", ref: str = "w", session: str = "s1"
    ) -> EffectRecord:
        record = self.waiting(kind, ref)
        self.tell(m.ApproveEffect(effect_id=record.effect_id, digest=record.digest), "ann")
        self.tell(m.StartEffect(effect_id=record.effect_id, session=session))
        return self.rows[record.effect_id]


@pytest.fixture
def world() -> World:
    return World()


def test_a_green_effect_is_approved_by_the_policy_in_the_turn_that_asks(world: World) -> None:
    record = world.ask("model.generate", "m")
    assert record.state == "approved"
    assert record.approval is not None
    assert record.approval.by == "policy"


def test_a_red_effect_waits_with_a_card_that_says_why_and_until_when(world: World) -> None:
    record = world.waiting()
    assert record.preparation is not None
    assert record.preparation.card.reasons == ("It changes files.",)
    assert record.preparation.card.expires_ms == world.now_ms + TTL_MS
    assert world.state.inner == ("w waiting",)
    assert any(isinstance(command, Remind) for command in world.commands)


@pytest.mark.requirement("EFFECT-NO-START-WITHOUT-YES")
def test_nothing_starts_before_a_person_said_yes(world: World) -> None:
    record = world.waiting()
    replied = world.tell(m.StartEffect(effect_id=record.effect_id, session="s1"))
    assert replied.state == "waiting"
    assert world.rows[record.effect_id].state == "waiting"


@pytest.mark.requirement("EFFECT-APPROVAL-ONCE")
def test_an_approved_effect_starts_once_bounded_in_time(world: World) -> None:
    record = world.started()
    assert (record.state, record.attempt, record.session) == ("started", 1, "s1")
    assert record.due_ms > world.now_ms + record.timeout_ms
    again = world.tell(m.StartEffect(effect_id=record.effect_id, session="s2"))
    assert (again.state, again.attempt, again.session) == ("started", 1, "s1")


@pytest.mark.requirement("EFFECT-APPROVAL-ONCE")
def test_a_second_decision_is_refused_and_changes_nothing(world: World) -> None:
    record = world.waiting()
    world.tell(m.ApproveEffect(effect_id=record.effect_id), "ann")
    before = world.state
    with pytest.raises(AlreadyDecidedError):
        world.tell(m.ApproveEffect(effect_id=record.effect_id), "bob")
    with pytest.raises(AlreadyDecidedError):
        world.tell(m.DenyEffect(effect_id=record.effect_id), "bob")
    assert world.state is before


@pytest.mark.requirement("EFFECT-APPROVAL-BOUND")
def test_an_approval_of_another_digest_is_refused(world: World) -> None:
    record = world.waiting()
    with pytest.raises(ConflictError):
        world.tell(m.ApproveEffect(effect_id=record.effect_id, digest="sha256:" + "0" * 64))
    assert world.rows[record.effect_id].state == "waiting"


@pytest.mark.requirement("EFFECT-APPROVAL-EXPIRES")
def test_a_yes_after_the_expiry_counts_as_no(world: World) -> None:
    record = world.waiting()
    world.now_ms += TTL_MS
    replied = world.tell(m.ApproveEffect(effect_id=record.effect_id))
    assert replied.state == "expired"
    assert world.state.inner[-1] == "w expired"


@pytest.mark.requirement("EFFECT-APPROVAL-EXPIRES")
def test_an_approval_that_expired_before_the_start_does_not_start(world: World) -> None:
    record = world.waiting()
    world.tell(m.ApproveEffect(effect_id=record.effect_id))
    world.now_ms += TTL_MS
    replied = world.tell(m.StartEffect(effect_id=record.effect_id, session="s1"))
    assert replied.state == "expired"


def test_an_early_expiry_asks_for_another_look(world: World) -> None:
    record = world.waiting()
    world.tell(m.ExpireEffect(effect_id=record.effect_id))
    assert world.rows[record.effect_id].state == "waiting"
    assert [each.at_ms for each in world.commands if isinstance(each, Remind)] == [record.due_ms]
    world.now_ms += TTL_MS
    world.tell(m.ExpireEffect(effect_id=record.effect_id))
    assert world.rows[record.effect_id].state == "expired"


def test_a_denied_effect_tells_the_machine_and_keeps_the_reason(world: World) -> None:
    record = world.waiting()
    replied = world.tell(m.DenyEffect(effect_id=record.effect_id, reason="not today"), "ann")
    assert replied.state == "denied"
    assert "not today" in replied.note
    assert world.state.inner[-1] == "w denied"
    assert world.state.effects == {}


@pytest.mark.requirement("POLICY-DENY-WINS")
def test_a_denying_rule_wins_over_everything() -> None:
    rule = Rule(verdict="deny", reason="Never.", kind="model.*")
    world = World(Policy(rules=(rule,)))
    assert world.ask("model.generate", "m").state == "denied"
    assert world.state.inner == ("m denied",)


@pytest.mark.requirement("EFFECT-POLICY-RECHECKED")
def test_a_policy_that_changed_between_yes_and_start_asks_again(world: World) -> None:
    record = world.waiting()
    world.tell(m.ApproveEffect(effect_id=record.effect_id))
    world.use(Policy(rules=(Rule(verdict="red", reason="New.", kind="files.*"),)))
    replied = world.tell(m.StartEffect(effect_id=record.effect_id, session="s1"))
    assert replied.state == "waiting"
    assert replied.digest != record.digest
    assert replied.approval is None


@pytest.mark.requirement("EFFECT-POLICY-RECHECKED")
def test_a_policy_that_denies_at_the_start_wins(world: World) -> None:
    record = world.waiting()
    world.tell(m.ApproveEffect(effect_id=record.effect_id))
    world.use(Policy(rules=(Rule(verdict="deny", reason="Stop.", kind="files.*"),)))
    assert world.tell(m.StartEffect(effect_id=record.effect_id, session="s")).state == "denied"


def test_an_unknown_kind_fails_without_running(world: World) -> None:
    record = world.ask("carrier.pigeon", "p")
    assert record.state == "failed"
    assert record.outcome is not None
    assert not record.outcome.sent


def test_a_preparation_that_fails_ends_the_effect(world: World) -> None:
    record = world.ask("files.apply", "w")
    failure = Outcome(status="failed", error="no such directory", sent=False)
    world.tell(m.EffectPrepared(effect_id=record.effect_id, failure=failure))
    assert world.rows[record.effect_id].state == "failed"
    assert world.state.inner == ("w failed",)


@pytest.mark.requirement("K-19")
def test_an_outcome_settles_and_a_late_one_changes_nothing(world: World) -> None:
    record = world.started()
    done = m.EffectFinished(effect_id=record.effect_id, attempt=1, outcome=Outcome(status="done"))
    world.tell(done)
    assert world.state.inner[-1] == "w done"
    before = world.state
    world.tell(done)
    assert world.state is before


@pytest.mark.requirement("K-19")
def test_an_outcome_of_an_older_attempt_is_ignored(world: World) -> None:
    world.ask("model.generate", "m")
    record = world.by_ref("m")
    world.tell(m.StartEffect(effect_id=record.effect_id, session="s1"))
    recover = m.RecoverEffect(effect_id=record.effect_id, attempt=1, ended_session="s1")
    world.tell(recover)
    world.tell(m.StartEffect(effect_id=record.effect_id, session="s2"))
    late = m.EffectFinished(effect_id=record.effect_id, attempt=1, outcome=Outcome(status="done"))
    world.tell(late)
    assert world.rows[record.effect_id].state == "started"
    assert world.rows[record.effect_id].attempt == 2


def test_an_interrupted_repeatable_effect_runs_again_and_says_so(world: World) -> None:
    record = world.ask("model.generate", "m")
    world.tell(m.StartEffect(effect_id=record.effect_id, session="s1"))
    world.tell(m.RecoverEffect(effect_id=record.effect_id, attempt=1, ended_session="s1"))
    again = world.rows[record.effect_id]
    assert again.state == "approved"
    assert "running again" in again.note


def test_a_repeatable_effect_that_is_always_interrupted_fails_in_the_end(world: World) -> None:
    record = world.ask("model.generate", "m")
    for attempt in range(1, 6):
        world.tell(m.StartEffect(effect_id=record.effect_id, session=f"s{attempt}"))
        world.tell(
            m.RecoverEffect(
                effect_id=record.effect_id, attempt=attempt, ended_session=f"s{attempt}"
            )
        )
    assert world.rows[record.effect_id].state == "failed"


@pytest.mark.requirement("EFFECT-ONCE-UNKNOWN")
def test_an_interrupted_once_effect_waits_for_not_after_and_is_then_unknown(world: World) -> None:
    record = world.started("command.run", "c")
    recover = m.RecoverEffect(effect_id=record.effect_id, attempt=1, ended_session="s1")
    world.tell(recover)
    assert world.rows[record.effect_id].state == "started"
    assert [each.at_ms for each in world.commands if isinstance(each, Remind)] == [
        record.due_ms + 1
    ]
    world.now_ms = record.due_ms + 1
    world.tell(recover)
    assert world.rows[record.effect_id].state == "unknown"
    assert world.state.inner[-1] == "c unknown"


@pytest.mark.requirement("EFFECT-ONCE-UNKNOWN")
def test_an_unknown_effect_is_never_started_again_and_a_person_resolves_it(world: World) -> None:
    record = world.started("command.run", "c")
    world.now_ms = record.due_ms + 1
    world.tell(m.RecoverEffect(effect_id=record.effect_id, attempt=1, ended_session="s1"))
    assert world.tell(m.StartEffect(effect_id=record.effect_id, session="s2")).state == "unknown"
    resolve = m.ResolveEffect(effect_id=record.effect_id, succeeded=True, reason="I looked")
    assert world.tell(resolve, "ann").state == "done"
    with pytest.raises(NotFoundError):
        world.tell(resolve, "ann")


def test_a_reconcilable_effect_found_untouched_runs_again(world: World) -> None:
    record = world.started()
    recover = m.RecoverEffect(
        effect_id=record.effect_id, attempt=1, ended_session="s1", untouched=True
    )
    world.tell(recover)
    assert world.rows[record.effect_id].state == "approved"


def test_recovery_of_a_living_session_is_ignored(world: World) -> None:
    record = world.started()
    before = world.state
    world.tell(
        m.RecoverEffect(
            effect_id=record.effect_id, attempt=1, ended_session="other", untouched=True
        )
    )
    assert world.state is before


@pytest.mark.requirement("STORE-RESTORE-HELD")
def test_a_restored_store_makes_once_effects_unknown_and_leaves_others(world: World) -> None:
    command = world.started("command.run", "c")
    write = world.started("files.apply", "w")
    for record in (command, write):
        world.tell(
            m.RecoverEffect(
                effect_id=record.effect_id, attempt=1, ended_session="s1", restored=True
            )
        )
    assert world.rows[command.effect_id].state == "unknown"
    assert world.rows[write.effect_id].state == "started"


@pytest.mark.parametrize("stage", ["proposed", "waiting", "approved"])
def test_giving_up_before_the_start_cancels(world: World, stage: str) -> None:
    record = world.ask("files.apply", "w")
    if stage != "proposed":
        record = world.prepare(record)
    if stage == "approved":
        world.tell(m.ApproveEffect(effect_id=record.effect_id))
    world.tell(GiveUp(ref="w"))
    assert world.rows[record.effect_id].state == "cancelled"
    assert world.state.inner[-1] == "w cancelled"


def test_giving_up_on_a_started_attempt_asks_its_executor_to_stop(world: World) -> None:
    record = world.started()
    world.tell(GiveUp(ref="w"))
    assert world.rows[record.effect_id].state == "started"
    assert world.rows[record.effect_id].note == "cancel requested"


def member(ref: str) -> Effect:
    return Effect(kind="files.apply", ref=ref, args={"unit": ref}, timeout_ms=1_000)


def granted(world: World) -> EffectRecord:
    covers = tuple(str(wish_digest(member(ref))) for ref in ("a", "b"))
    grant = world.ask("plan.apply", "g", covers=covers)
    assert grant.state == "waiting"
    world.tell(m.ApproveEffect(effect_id=grant.effect_id), "ann")
    assert world.state.inner[-1] == "g approved"
    return world.rows[grant.effect_id]


@pytest.mark.requirement("EFFECT-GRANT")
def test_a_grant_covers_its_members_once_each_and_nothing_else(world: World) -> None:
    grant = granted(world)
    first = world.prepare(world.ask("files.apply", "a", args={"unit": "a"}, grant=grant.effect_id))
    assert first.state == "approved"
    assert first.approval is not None
    assert (first.approval.by, first.approval.grant) == ("ann", grant.effect_id)
    world.tell(m.StartEffect(effect_id=first.effect_id, session="s"))
    world.tell(
        m.EffectFinished(effect_id=first.effect_id, attempt=1, outcome=Outcome(status="done"))
    )
    twice = world.prepare(world.ask("files.apply", "a", args={"unit": "a"}, grant=grant.effect_id))
    assert twice.state == "waiting"
    other = world.prepare(world.ask("files.apply", "c", args={"unit": "c"}, grant=grant.effect_id))
    assert other.state == "waiting"


@pytest.mark.requirement("EFFECT-GRANT")
def test_a_grant_is_never_started_itself_and_closes_when_told(world: World) -> None:
    grant = granted(world)
    assert world.tell(m.StartEffect(effect_id=grant.effect_id, session="s")).state == "approved"
    world.tell(Close(ref="g"))
    assert world.rows[grant.effect_id].state == "done"
    late = world.prepare(world.ask("files.apply", "b", args={"unit": "b"}, grant=grant.effect_id))
    assert late.state == "waiting"


def test_a_person_cannot_decide_what_does_not_exist(world: World) -> None:
    with pytest.raises(NotFoundError):
        world.tell(m.ApproveEffect(effect_id="effect-0"))


def test_state_and_effects_survive_a_reload(world: World) -> None:
    record = world.waiting()
    rows = tuple(c.row for c in world.commands if isinstance(c, WriteEffect))
    stored = StoredActor(
        actor=ACTOR,
        incarnation=1,
        version=1,
        schema_version=1,
        state=world.machine.dump(world.state),
        effects=rows,
        event_sequence=0,
        tombstoned=False,
    )
    loaded = world.machine.load(stored)
    assert loaded.inner == world.state.inner
    assert loaded.effects == {record.effect_id: record}
    assert world.machine.query(loaded, m.ShowEffects()) == (record,)


def test_a_wish_that_is_too_large_fails_without_being_asked_about(world: World) -> None:
    record = world.ask("files.apply", "w", args={"text": "x" * limits.EFFECT_ARGS_BYTES_MAX})
    assert record.state == "failed"
    assert record.outcome is not None
    assert "larger than" in record.outcome.error


def test_a_grant_over_too_many_effects_fails(world: World) -> None:
    covers = tuple(str(number) for number in range(limits.GRANT_MEMBERS_MAX + 1))
    assert world.ask("plan.apply", "g", covers=covers).state == "failed"


def test_an_actor_has_a_bounded_number_of_open_effects(world: World) -> None:
    for number in range(limits.EFFECTS_OPEN_PER_ACTOR_MAX):
        assert world.ask("files.apply", f"w{number}").state == "proposed"
    assert world.ask("files.apply", "one more").state == "failed"
    world.state.check_invariants()


def test_deleting_the_actor_closes_what_has_not_started(world: World) -> None:
    proposed = world.ask("files.apply", "p")
    waiting = world.waiting("files.apply", "w")
    started = world.started("command.run", "c")
    world.tell(Leave())
    assert world.rows[proposed.effect_id].state == "cancelled"
    assert world.rows[waiting.effect_id].state == "cancelled"
    assert world.rows[started.effect_id].state == "started"


def test_only_an_unknown_effect_can_be_resolved(world: World) -> None:
    record = world.waiting()
    with pytest.raises(ConflictError, match="not unknown"):
        world.tell(m.ResolveEffect(effect_id=record.effect_id, succeeded=True, reason="?"))


def test_what_the_dispatcher_says_about_ended_or_changed_effects_is_ignored(world: World) -> None:
    record = world.started()
    done = Outcome(status="done")
    world.tell(m.EffectFinished(effect_id=record.effect_id, attempt=1, outcome=done))
    before = world.state
    card = Preparation(card=DiffCard(title="late"))
    world.tell(m.EffectPrepared(effect_id=record.effect_id, preparation=card))
    world.tell(m.ExpireEffect(effect_id=record.effect_id))
    world.tell(m.StartEffect(effect_id=record.effect_id, session="s2"))
    waiting = world.waiting("files.apply", "again")
    world.tell(m.EffectPrepared(effect_id=waiting.effect_id, preparation=card))
    assert world.rows[waiting.effect_id].state == "waiting"
    assert before.effects == {}


def test_an_expired_question_that_was_answered_stays_answered(world: World) -> None:
    record = world.waiting()
    world.tell(m.ApproveEffect(effect_id=record.effect_id))
    world.now_ms += TTL_MS
    world.tell(m.ExpireEffect(effect_id=record.effect_id))
    assert world.rows[record.effect_id].state == "approved"


def test_closing_or_giving_up_on_what_is_not_there_changes_nothing(world: World) -> None:
    before = world.state
    world.tell(Close(ref="nobody"))
    world.tell(GiveUp(ref="nobody"))
    assert world.state.effects == before.effects
    assert world.state.inner == before.inner


def test_a_reconcilable_effect_waits_for_its_reconciliation(world: World) -> None:
    record = world.started()
    world.tell(m.RecoverEffect(effect_id=record.effect_id, attempt=1, ended_session="s1"))
    assert world.rows[record.effect_id].state == "started"


def test_an_order_needs_a_decision_about_exactly_this_effect(world: World) -> None:
    record = world.started()

    async def stream(kind: str, body: bytes) -> None:
        raise AssertionError((kind, body))

    def order(changed: EffectRecord) -> Order:
        return Order(actor=ACTOR, record=changed, attempt=1, not_after_ms=0, stream=stream)

    assert order(record).record is record
    for change in ({"args": {"path": "elsewhere"}}, {"verdict": None}, {"state": "approved"}):
        with pytest.raises(DeniedError):
            order(msgspec.structs.replace(record, **change))
