"""A small world for the edge: a store in memory, and agents that do what a test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import msgspec

from kelpie.actors.commands import Message
from kelpie.agents import model as a
from kelpie.core.digests import digest_bytes
from kelpie.core.errors import (
    AlreadyDecidedError,
    CursorAheadError,
    LimitExceededError,
    NotFoundError,
)
from kelpie.core.ids import TENANT_DEFAULT, ActorId, Tenant
from kelpie.effects import messages as m
from kelpie.effects.model import DiffCard, EffectRecord, Preparation, Verdict
from kelpie.llm.model import Delta, ToolCall, Usage
from kelpie.server.app import create_app
from kelpie.server.http import AsgiApp
from kelpie.server.ops.responses import AuditSoundness, StoreSoundness
from kelpie.server.ports import ApiKey, Deps, PlanSource, ToolInfo
from kelpie.storage.protocol import Compaction, Store, StoreStats
from kelpie.storage.records import (
    AuditRecord,
    EffectRow,
    ListItem,
    Page,
    StoredActor,
    StoredEvent,
    StreamChunk,
)

NOW_MS = 1_790_000_000_000
pack = msgspec.msgpack.Encoder().encode


class FakeClock:
    """Time stands still unless a test moves it."""

    def __init__(self) -> None:
        self.ns = 0

    def now_ms(self) -> int:
        return NOW_MS

    def boot_ns(self) -> int:
        return self.ns

    async def sleep(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


class FakeRng:
    """Counts instead of drawing."""

    def __init__(self) -> None:
        self.drawn = 0

    def bytes(self, count: int) -> bytes:
        self.drawn += 1
        return self.drawn.to_bytes(count, "big")

    def fraction(self) -> float:
        return 0.5


class FakeTelemetry:
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.counts: list[dict[str, str]] = []
        self.logs: list[dict[str, Any]] = []

    def log(self, level: str, event: str, **fields: Any) -> None:
        self.logs.append({"level": level, "event": event, **fields})

    def span(self, name: str, **attributes: Any) -> Any:
        return nullcontext()

    def traceparent(self) -> str:
        return ""

    def within(self, traceparent: str) -> AbstractContextManager[None]:
        return nullcontext()

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        self.counts.append(labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        assert value >= 0

    def gauge(self, name: str, value: float, **labels: str) -> None:
        assert name


class FakeWatch:
    """A wake-up flag; a quiet wait moves the clock instead of waiting."""

    def __init__(self, world: World) -> None:
        self.event = asyncio.Event()
        self._world = world

    async def wait(self, timeout_s: float) -> bool:
        if self._world.quiet_waits > 0:
            self._world.quiet_waits -= 1
            self._world.clock.ns += int(timeout_s * 1e9)
            return False
        await self.event.wait()
        self.event.clear()
        return True


class FakeHub:
    """Wakes every watch at every change."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.watches: set[FakeWatch] = set()

    @contextmanager
    def watch(self, actor: ActorId | None = None) -> Iterator[FakeWatch]:
        watch = FakeWatch(self._world)
        self.watches.add(watch)
        try:
            yield watch
        finally:
            self.watches.discard(watch)

    def publish(self) -> None:
        for watch in self.watches:
            watch.event.set()


class MemoryStore:
    """The reads of the Store protocol that the edge makes, over dictionaries."""

    def __init__(self) -> None:
        self.kv: dict[ActorId, dict[str, bytes]] = {}
        self.log: list[StoredEvent] = []
        self.lists: dict[str, dict[str, ListItem]] = {}
        self.rows: dict[str, EffectRow] = {}
        self.chunks: list[StreamChunk] = []
        self.links: list[AuditRecord] = []
        self.alive: set[ActorId] = set()
        self.held = False
        self.backups: list[str] = []

    async def load(self, actor: ActorId) -> StoredActor | None:
        if actor not in self.alive:
            return None
        return StoredActor(
            actor=actor,
            incarnation=1,
            version=1,
            schema_version=1,
            state=b"",
            effects=(),
            event_sequence=self._last(actor),
            tombstoned=False,
        )

    def _last(self, actor: ActorId) -> int:
        return max((e.sequence for e in self.log if e.actor == actor), default=0)

    async def kv_get(self, actor: ActorId, key: str) -> bytes | None:
        return self.kv.get(actor, {}).get(key)

    async def kv_range(
        self, actor: ActorId, start: str, end: str, *, limit: int, descending: bool = False
    ) -> list[tuple[str, bytes]]:
        rows = sorted(p for p in self.kv.get(actor, {}).items() if start <= p[0] < end)
        return (rows[::-1] if descending else rows)[:limit]

    async def events(self, actor: ActorId, after: int, limit: int) -> list[StoredEvent]:
        if after > self._last(actor):
            raise CursorAheadError(f"after: {after} is ahead", field="after", after=after)
        return [e for e in self.log if e.actor == actor and e.sequence > after][:limit]

    async def event_newest(self, actor: ActorId) -> int | None:
        return self._last(actor) if actor in self.alive else None

    async def events_tail(self, tenant: Tenant, after: int, limit: int) -> list[StoredEvent]:
        if after > len(self.log):
            raise CursorAheadError(f"after: {after} is ahead", field="after", after=after)
        return [e for e in self.log if e.position > after][:limit]

    async def list_page(self, collection: str, page: Page) -> list[ListItem]:
        rows = sorted(
            self.lists.get(collection, {}).values(), key=lambda r: (r.sort_key, r.item_id)
        )
        return _page(rows[::-1] if page.descending else rows, page, lambda row: row.item_id)

    async def list_item(self, tenant: Tenant, collection: str, item_id: str) -> ListItem | None:
        return self.lists.get(collection, {}).get(item_id)

    async def effect(self, tenant: Tenant, effect_id: str) -> EffectRow | None:
        return self.rows.get(effect_id)

    async def effects(
        self, page: Page, *, states: Any = (), actor: ActorId | None = None
    ) -> list[EffectRow]:
        rows = [
            row
            for row in self.rows.values()
            if (not states or row.state in states) and actor in {None, row.actor}
        ]
        return _page(rows, page, lambda row: row.effect_id)

    async def stream(
        self, actor: ActorId, effect_id: str, attempt: int, after: int, limit: int
    ) -> list[StreamChunk]:
        wanted = (effect_id, attempt)
        found = [c for c in self.chunks if (c.effect_id, c.attempt) == wanted]
        return [c for c in found if c.sequence > after][:limit]

    async def audit(self, tenant: Tenant) -> AsyncIterator[AuditRecord]:
        for link in self.links:
            yield link

    async def stats(self) -> StoreStats:
        return StoreStats(
            actors=1,
            effects_open=0,
            outbox=0,
            reminders=0,
            events=len(self.log),
            dead_letters=0,
            size_bytes=4096,
            incarnation="i",
            held=self.held,
            schema_version=1,
        )

    async def backup(self, target: object) -> None:
        self.backups.append(str(target))

    async def compact(self) -> Compaction:
        return Compaction(
            before_bytes=8192, after_bytes=4096, blobs_removed=2, blob_bytes_removed=10
        )


def _page(rows: list[Any], page: Page, key: Callable[[Any], str]) -> list[Any]:
    ids = [key(row) for row in rows]
    low = ids.index(page.after) + 1 if page.after in ids else 0
    high = ids.index(page.before) if page.before in ids else len(rows)
    return rows[low:high][: page.limit]


class FakePlans:
    """Plans by id, without an engine."""

    def __init__(self) -> None:
        self.made: dict[str, dict[str, Any]] = {}

    async def create(self, source: PlanSource, **_: Any) -> dict[str, Any]:
        plan = {"plan_id": f"plan-{len(self.made)}", "workspace": source.workspace, "units": []}
        self.made[plan["plan_id"]] = plan  # type: ignore[index]
        return plan

    async def show(self, plan_id: str, **_: Any) -> dict[str, Any]:
        if plan_id not in self.made:
            raise NotFoundError("plan", plan_id)
        return self.made[plan_id]

    async def list(self, *, limit: int, **_: Any) -> list[dict[str, Any]]:
        return [*self.made.values()][::-1][:limit]

    async def apply(self, plan_id: str, **_: Any) -> dict[str, Any]:
        return {**await self.show(plan_id), "status": "waiting"}


Script = Callable[["World", ActorId, a.Run], None]


def answer_hello(world: World, agent: ActorId, run: a.Run) -> None:
    """The default script: one step, one answer, the end."""
    world.emit(agent, "step.started", {"run_id": run.run_id, "step_id": "step-1", "ref": "m1"})
    world.say(agent, run, role="assistant", content="Hello", reasoning="think")
    world.finish(agent, run)


class NoActors:
    """A server that hosts no user-defined type."""

    def types(self) -> tuple[()]:
        return ()

    def hosts(self, type_name: str) -> bool:
        return False


@dataclass
class World:
    """Everything `create_app` needs, with handles for tests.

    As the runtime it runs ``script`` at every `StartRun`, and ``resume`` after every decision.
    """

    script: Script = answer_hello
    resume: Script | None = None
    api_keys: tuple[ApiKey, ...] = ()
    model_default: str = "openai/scripted"
    quiet_waits: int = 0
    is_accepting: bool = True
    failure: Exception | None = None
    clock: FakeClock = field(default_factory=FakeClock)
    rng: FakeRng = field(default_factory=FakeRng)
    telemetry: FakeTelemetry = field(default_factory=FakeTelemetry)
    store: MemoryStore = field(default_factory=MemoryStore)
    plans: FakePlans = field(default_factory=FakePlans)
    actors: NoActors = field(default_factory=NoActors)
    agents: dict[ActorId, a.AgentState] = field(default_factory=dict)
    told: list[tuple[Message, str, str | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hub = FakeHub(self)

    # --- the runtime ----------------------------------------------------------------------------

    def accepting(self) -> bool:
        return self.is_accepting

    async def call(
        self,
        actor: ActorId,
        message: Message,
        *,
        principal: str,
        key: str | None = None,
        timeout_ms: int = 0,
    ) -> Any:
        if self.failure is not None:
            raise self.failure
        self.told.append((message, principal, key))
        if isinstance(message, a.CreateAgent):
            return self._create(actor, message)
        if isinstance(message, m.ApproveEffect | m.DenyEffect):
            return self._decide(actor, message)
        state = self.state(actor)
        match message:
            case a.UpdateAgent(changes=changes):
                config = msgspec.structs.replace(state.config, **changes)
                return self.put(actor, config=config)
            case a.DeleteAgent():
                del self.agents[actor]
                self.store.alive.discard(actor)
                return None
            case a.UpdateBlock(label=label, changes=changes):
                return self._change_block(actor, label, changes)
            case a.StartRun():
                return self._start(actor, message)
            case a.CancelRun():
                assert state.run is not None
                run = msgspec.structs.replace(state.run, status="cancelled")
                self.put(actor, run=None, last_run=run)
                return run
            case _:
                raise AssertionError(message)

    async def query(self, actor: ActorId, query: Message, *, timeout_ms: int = 0) -> Any:
        if isinstance(query, m.ShowEffects):
            rows = [row for row in self.store.rows.values() if row.actor == actor]
            return tuple(msgspec.msgpack.decode(row.body, type=EffectRecord) for row in rows)
        state = self.state(actor)
        if isinstance(query, a.ShowRun):
            for run in (state.run, state.last_run):
                if run is not None and run.run_id == query.run_id:
                    return run
            raise NotFoundError("run", query.run_id)
        return state

    def state(self, actor: ActorId) -> a.AgentState:
        if actor not in self.agents:
            raise NotFoundError("agent", actor.key)
        return self.agents[actor]

    def put(self, actor: ActorId, **fields: Any) -> a.AgentState:
        self.agents[actor] = msgspec.structs.replace(self.agents[actor], **fields)
        return self.agents[actor]

    def _create(self, actor: ActorId, message: a.CreateAgent) -> a.AgentState:
        at_ms = NOW_MS + len(self.agents)
        state = a.AgentState(
            agent_id=actor.key,
            config=message.config,
            blocks=message.blocks,
            created_ms=at_ms,
            updated_ms=at_ms,
        )
        self.agents[actor] = state
        self.store.alive.add(actor)
        row = ListItem(actor.key, f"{at_ms:020d}", actor, pack(state))
        self.store.lists.setdefault("agents", {})[actor.key] = row
        return state

    def _change_block(self, actor: ActorId, label: str, changes: dict[str, Any]) -> Any:
        blocks = {block.label: block for block in self.state(actor).blocks}
        if label not in blocks:
            raise NotFoundError("block", label)
        changed = msgspec.structs.replace(blocks[label], **changes)
        if len(changed.value) > changed.limit:
            size = len(changed.value)
            raise LimitExceededError("value", actual=size, limit=changed.limit, unit="characters")
        blocks[label] = changed
        self.put(actor, blocks=tuple(blocks.values()))
        return changed

    def _start(self, actor: ActorId, message: a.StartRun) -> a.Run:
        last = self.state(actor).last_run
        if last is not None and last.run_id == message.run_id:
            return last
        run = a.Run(
            run_id=message.run_id,
            status="running",
            steps_max=message.steps_max or 50,
            created_ms=NOW_MS,
            step_id="step-1",
            background=message.background,
        )
        self.put(actor, run=run)
        row = ListItem(run.run_id, "0", actor, b"")
        self.store.lists.setdefault("runs", {})[run.run_id] = row
        self.emit(actor, "run.started", {"run_id": run.run_id})
        for each in message.messages:
            self.say(actor, run, role=each.role, content=each.content, otid=each.otid)
        self.script(self, actor, run)
        return run

    def _decide(self, actor: ActorId, message: m.ApproveEffect | m.DenyEffect) -> EffectRecord:
        row = self.store.rows[message.effect_id]
        record = msgspec.msgpack.decode(row.body, type=EffectRecord)
        if record.state != "waiting":
            raise AlreadyDecidedError(f"effect {record.effect_id} is {record.state}")
        state: Any = "approved" if isinstance(message, m.ApproveEffect) else "denied"
        record = msgspec.structs.replace(record, state=state)
        self.keep_effect(actor, record)
        run = self.agents[actor].run if actor in self.agents else None
        if run is not None and self.resume is not None:
            calls = tuple(
                msgspec.structs.replace(c, waiting=False) if c.effect_id == record.effect_id else c
                for c in run.open_calls
            )
            run = msgspec.structs.replace(run, status="running", open_calls=calls)
            self.put(actor, run=run)
            self.emit(actor, "run.resumed", {"run_id": run.run_id})
            self.resume(self, actor, run)
        return record

    # --- what scripts do ------------------------------------------------------------------------

    def emit(self, actor: ActorId, kind: str, body: Any) -> None:
        sequence = self.store._last(actor) + 1
        position = len(self.store.log) + 1
        self.store.log.append(StoredEvent(position, actor, sequence, NOW_MS, kind, pack(body)))
        self.hub.publish()

    def say(self, actor: ActorId, run: a.Run, **fields: Any) -> a.TranscriptMessage:
        sequence = self.agents[actor].next_sequence
        ids = f"{sequence:08d}-0000-4000-8000-{int(actor.key[-8:], 16):012x}"
        message = a.TranscriptMessage(
            id=f"message-{ids}",
            sequence=sequence,
            run_id=run.run_id,
            step_id="step-1",
            at_ms=NOW_MS,
            **fields,
        )
        self.store.kv.setdefault(actor, {})[a.message_key(sequence)] = pack(message)
        window = (*self.agents[actor].window, sequence)
        self.put(actor, next_sequence=sequence + 1, window=window)
        self.emit(actor, "message", message)
        return message

    def finish(self, actor: ActorId, run: a.Run, **fields: Any) -> None:
        done = {"status": "completed", "stop_reason": "end_turn", "steps": 1, **fields}
        run = msgspec.structs.replace(
            run,
            finished_ms=NOW_MS + 5,
            usage=Usage(prompt_tokens=3, completion_tokens=2),
            open_calls=(),
            **cast("Any", done),
        )
        self.put(actor, run=None, last_run=run)
        self.emit(actor, "run.finished", {"run": run})

    def wait_for_person(self, actor: ActorId, run: a.Run, *calls: ToolCall) -> None:
        """Let these calls wait, each as an effect of its own."""
        opened = []
        for index, call in enumerate(calls):
            effect_id = f"effect-{index:08d}-0000-4000-8000-000000000000"
            opened.append(
                a.OpenCall(call=call, effect_ref=f"t{index}", effect_id=effect_id, waiting=True)
            )
            self.keep_effect(actor, make_record(effect_id, ref=f"t{index}"))
            body = {"run_id": run.run_id, "effect_id": effect_id, "call": call}
            self.emit(actor, "run.waiting", body)
        self.put(
            actor,
            run=msgspec.structs.replace(run, status="waiting", open_calls=tuple(opened)),
        )

    def keep_effect(self, actor: ActorId, record: EffectRecord) -> None:
        self.store.rows[record.effect_id] = EffectRow(
            effect_id=record.effect_id,
            actor=actor,
            kind=record.kind,
            state=record.state,
            digest=None,
            attempt=record.attempt,
            session="",
            due_ms=record.due_ms,
            created_ms=record.created_ms,
            updated_ms=record.updated_ms,
            body=pack(record),
        )

    def start_model(self, actor: ActorId, attempt: int, *deltas: Delta) -> None:
        """Start an attempt of the model call ``m1`` and stream these deltas."""
        effect_id = "effect-aaaaaaaa-0000-4000-8000-000000000000"
        body = {"effect_id": effect_id, "kind": "model.generate", "ref": "m1", "attempt": attempt}
        self.emit(actor, "effect.started", {**body, "state": "started"})
        for index, delta in enumerate(deltas, start=1):
            self.store.chunks.append(StreamChunk(effect_id, attempt, index, "delta", pack([delta])))
        self.hub.publish()

    # --- the edge -------------------------------------------------------------------------------

    def deps(self) -> Deps:
        return Deps(
            runtime=self,
            hub=self.hub,
            store=cast("Store", self.store),
            cluster=cast("Any", self.store),
            clock=self.clock,
            rng=self.rng,
            telemetry=cast("Any", self.telemetry),
            plans=cast("Any", self.plans),
            workspace_for=lambda directory, *, local: directory,
            metrics_text=lambda: "kelpie_up 1\n",
            care=FakeCare(self.store),
            teleport=cast("Any", None),
            actors=cast("Any", self.actors),
            version="1.2.3",
            model_default=self.model_default,
            model_providers=frozenset({"anthropic", "openai"}),
            tools=TOOLS,
            api_keys=self.api_keys,
        )

    def app(self) -> AsgiApp:
        return create_app(self.deps())

    def client(self, app: AsgiApp | None = None, **fields: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=cast("Any", app or self.app()))
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8283", **fields)


TOOLS = {
    name: ToolInfo(
        name=name,
        description=f"The tool {name}.",
        parameters={"type": "object", "properties": {}},
        base=True,
        needs_workspace=name == "read_file",
    )
    for name in ("core_memory_append", "read_file")
}


def make_record(effect_id: str, **fields: Any) -> EffectRecord:
    """Return a waiting effect with a card."""
    card = DiffCard(title="Rewrite notes.txt", reasons=("it edits a file",))
    values: dict[str, Any] = {
        "kind": "files.apply",
        "ref": "t0",
        "args": {"path": "notes.txt"},
        "state": "waiting",
        "promise": "reconcilable",
        "timeout_ms": 1_000,
        "digest": digest_bytes(effect_id.encode()),
        "preparation": Preparation(card=card),
        "verdict": Verdict(color="red", reasons=("edits",), policy="p1", at_ms=NOW_MS),
        "created_ms": NOW_MS,
        "updated_ms": NOW_MS,
        **fields,
    }
    return EffectRecord(effect_id=effect_id, **values)


class FakeCare:
    """Care of the store in memory: nothing is ever damaged."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def release(self) -> None:
        self._store.held = False

    async def check(self) -> StoreSoundness:
        return StoreSoundness(ok=True, problems=[], damaged=[])

    async def verify_audit(self) -> AuditSoundness:
        return AuditSoundness(ok=True, chains=0, records=0, problem="", unproven="the tail")


def agent_id_of(world: World) -> ActorId:
    """Return the only agent of a world."""
    [actor] = world.agents
    assert actor.tenant == TENANT_DEFAULT
    return actor


def require_error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check an error response and return its ``error`` object."""
    body = response.json()
    assert (response.status_code, body["error"]["code"]) == (status, code), body
    assert set(body["error"]) == {"code", "message", "fields", "retriable"}
    assert body["detail"]
    return cast("dict[str, Any]", body["error"])
