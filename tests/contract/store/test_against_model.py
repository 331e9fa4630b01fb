"""Any sequence of turns, deletions, deliveries and restarts agrees with a plain dictionary."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kelpie.core.errors import MessageGoneError, VersionConflictError
from kelpie.core.ids import TENANT_DEFAULT
from kelpie.storage.audit import verify_chain
from kelpie.storage.records import (
    AuditAppend,
    EventAppend,
    KvDelete,
    KvPut,
    ListDelete,
    ListPut,
    OutboxRow,
    Page,
    ReminderDelete,
    ReminderRow,
)
from tests.contract.store.conftest import ENGINES
from tests.contract.store.world import Engine, Hand, actor_id, effect

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from contextlib import AbstractAsyncContextManager

    from kelpie.storage.protocol import Store

ACTORS = ("ada", "bob", "eve")
EXAMPLES = {"postgres": 12}  # each step asks a server many times, and syncs to a real disk
actors = st.sampled_from(ACTORS)
names = st.sampled_from(["a", "b", "c"])
bodies = st.binary(max_size=8)
states = st.one_of(st.none(), bodies)


@dataclass
class Expected:
    """One actor as it should be."""

    version: int = 0
    incarnation: int = 1
    exists: bool = False
    state: bytes = b""
    kv: dict[str, bytes] = field(default_factory=dict)
    reminders: dict[str, int] = field(default_factory=dict)
    effects: dict[str, str] = field(default_factory=dict)
    lists: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    events: list[bytes] = field(default_factory=list)


class StoreMachine(RuleBasedStateMachine):
    """Drives an engine and a model of it side by side."""

    engine_name = ""
    compared = 0  # over all runs of the class

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.engine: Engine = ENGINES[self.engine_name](self.folder)
        self.context: AbstractAsyncContextManager[Store] | None = None
        self.model = {key: Expected() for key in ACTORS}
        self.outbox: dict[int, tuple[str, bytes]] = {}
        self.audited = 0
        self.ordinal = 0

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    @initialize()
    def open(self) -> None:
        self.context = self.engine.opened()
        self.store: Store = self.run(self.context.__aenter__())

    def close(self) -> None:
        if self.context is not None:
            self.run(self.context.__aexit__(None, None, None))

    def teardown(self) -> None:
        self.close()
        self.run(self.engine.discard())
        self.runner.close()
        shutil.rmtree(self.folder)

    def hand(self, key: str) -> Hand:
        hand = Hand(self.store, key)
        hand.version, hand.incarnation = self.model[key].version, self.model[key].incarnation
        return hand

    def commit(self, key: str, **changes: Any) -> Any:
        hand = self.hand(key)
        receipt = self.run(hand.turn(**changes))
        expected = self.model[key]
        expected.version, expected.exists = receipt.version, True
        if changes.get("state") is not None:
            expected.state = changes["state"]
        return receipt

    @rule(key=actors, state=states, name=names, value=st.one_of(st.none(), bodies))
    def write(self, key: str, state: bytes | None, name: str, value: bytes | None) -> None:
        write = KvDelete(name) if value is None else KvPut(name, value)
        self.commit(key, state=state, kv=(write,), audit=(AuditAppend("write", "p", b""),))
        self.audited += 1
        if value is None:
            self.model[key].kv.pop(name, None)
        else:
            self.model[key].kv[name] = value

    @rule(key=actors, bodies=st.lists(bodies, min_size=1, max_size=4))
    def append(self, key: str, bodies: list[bytes]) -> None:
        expected = self.model[key]
        receipt = self.commit(key, events=tuple(EventAppend("e", body) for body in bodies))
        assert receipt.first_event_sequence == len(expected.events) + 1
        expected.events += bodies

    @rule(key=actors, name=names, due_ms=st.one_of(st.none(), st.integers(1, 9)))
    def remind(self, key: str, name: str, due_ms: int | None) -> None:
        reminders = self.model[key].reminders
        if due_ms is None:
            self.commit(key, reminders=(ReminderDelete(name),))
            reminders.pop(name, None)
        else:
            row = ReminderRow(actor=actor_id(key), name=name, due_ms=due_ms, body=b"")
            self.commit(key, reminders=(row,))
            reminders[name] = due_ms

    @rule(key=actors, name=names, due_ms=st.integers(1, 9))
    def fire(self, key: str, name: str, due_ms: int) -> None:
        reminders = self.model[key].reminders
        if reminders.get(name) == due_ms:
            self.commit(key, fired=(name, due_ms))
            del reminders[name]
        else:
            with pytest.raises(MessageGoneError):
                self.commit(key, fired=(name, due_ms))

    @rule(key=actors, name=names, state=st.sampled_from(["waiting", "started", "done"]))
    def act(self, key: str, name: str, state: Any) -> None:
        effect_id = f"{key}-{self.model[key].incarnation}-{name}"
        self.commit(key, effects=(effect(actor_id(key), effect_id, state),))
        self.model[key].effects[effect_id] = state

    @rule(key=actors, name=names, sort_key=names, body=st.one_of(st.none(), bodies))
    def project(self, key: str, name: str, sort_key: str, body: bytes | None) -> None:
        lists, item_id = self.model[key].lists, f"{key}-{name}"
        if body is None:
            self.commit(key, lists=(ListDelete("c", item_id),))
            lists.pop(item_id, None)
        else:
            self.commit(key, lists=(ListPut("c", item_id, sort_key, body),))
            lists[item_id] = (sort_key, body)

    @rule(key=actors, receiver=actors, body=bodies)
    def send(self, key: str, receiver: str, body: bytes) -> None:
        row = OutboxRow(sender=actor_id(key), receiver=actor_id(receiver), body=body)
        (message_id,) = self.commit(key, sends=(row,)).message_ids
        assert all(message_id > earlier for earlier in self.outbox)
        self.outbox[message_id] = (receiver, body)

    @precondition(lambda self: self.outbox)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        message_id = data.draw(st.sampled_from(sorted(self.outbox)))
        receiver, _ = self.outbox.pop(message_id)
        self.commit(receiver, consumes=message_id)
        with pytest.raises(MessageGoneError):
            self.commit(receiver, consumes=message_id)

    @rule(key=actors, offset=st.sampled_from([-1, 1]))
    def commit_from_another_version(self, key: str, offset: int) -> None:
        version = self.model[key].version + offset
        if version >= 0:
            with pytest.raises(VersionConflictError):
                self.commit(key, expected_version=version, state=b"never")

    @rule(key=actors)
    def delete(self, key: str) -> None:
        expected = self.model[key]
        if expected.exists:
            self.commit(key, tombstone=True)
            floor = [b""] * len(expected.events)
            self.model[key] = Expected(incarnation=expected.incarnation + 1, events=floor)

    @rule()
    def restart(self) -> None:
        self.close()
        self.open()

    @invariant()
    def agrees(self) -> None:
        if self.context is not None:
            self.run(self.compare())
            type(self).compared += 1

    async def compare(self) -> None:
        assert {
            message.message_id: (message.receiver.key, message.body)
            for message in await self.store.outbox(0, 1_000)
        } == self.outbox
        for key, expected in self.model.items():
            await self.compare_actor(key, expected)
        page = Page(tenant=TENANT_DEFAULT, limit=1_000)
        items = [(i.sort_key, i.item_id, i.body) for i in await self.store.list_page("c", page)]
        assert items == sorted(
            (sort_key, item_id, body)
            for expected in self.model.values()
            for item_id, (sort_key, body) in expected.lists.items()
        )
        due = [(r.due_ms, r.actor.key, r.name) for r in await self.store.reminders_due(9, 1_000)]
        assert due == sorted(
            (due_ms, key, name)
            for key, expected in self.model.items()
            for name, due_ms in expected.reminders.items()
        )
        records = [record async for record in self.store.audit(TENANT_DEFAULT)]
        assert len(records) == self.audited
        for shard in {record.shard for record in records}:
            chain = [record async for record in self.store.audit_chain(shard)]
            verify_chain(chain, shard=shard)

    async def compare_actor(self, key: str, expected: Expected) -> None:
        loaded = await self.store.load(actor_id(key))
        if not expected.exists:
            assert loaded is None or loaded.tombstoned
        else:
            assert loaded is not None
            assert (loaded.version, loaded.state) == (expected.version, expected.state)
            assert {e.effect_id: e.state for e in loaded.effects} == {
                effect_id: state for effect_id, state in expected.effects.items() if state != "done"
            }
        found = await self.store.kv_range(actor_id(key), "", "~", limit=1_000)
        assert dict(found) == expected.kv
        events = await self.store.events(actor_id(key), 0, 1_000)
        total = len(expected.events)
        assert [event.sequence for event in events] == list(
            range(total - len(events) + 1, total + 1)
        )
        assert [event.body for event in events] == expected.events[total - len(events) :]


@pytest.mark.parametrize("engine_name", sorted(ENGINES))
def test_the_store_agrees_with_a_model_of_it(engine_name: str) -> None:
    class Machine(StoreMachine):
        pass

    Machine.engine_name = engine_name
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES.get(engine_name, 40),
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    assert Machine.compared > 0, "no step was ever compared with the model"
