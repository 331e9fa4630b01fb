"""A simulated cluster without a store: nodes that share a ledger, and own shards by decree."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import msgspec

from kelpie.actors.activation import Envelope
from kelpie.actors.commands import Message
from kelpie.actors.hub import EventHub
from kelpie.actors.ownership import Ownership
from kelpie.actors.supervisor import Supervisor
from kelpie.cluster.handshake import Identity
from kelpie.cluster.hints import Hints
from kelpie.cluster.router import Router
from kelpie.cluster.rpc import AskedListener, Lines
from kelpie.cluster.service import ClusterService
from kelpie.core.errors import FencedError, InvalidFieldError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.sim.clock import SimulatedClock
from kelpie.sim.faults.plan import Faults, NoFaults
from kelpie.sim.frames import SimulatedFrames, SimulatedWires
from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.network import Links
from kelpie.sim.rng import SimulatedRng
from kelpie.sim.telemetry import RecordedTelemetry
from kelpie.storage.records import ShardGrant

SECRET = b"sixteen bytes or more"
ACTOR = ActorId(TENANT_DEFAULT, "purse", "a")
TURN_S = 0.02


async def pass_time(seconds: float) -> None:
    """Let virtual time pass."""
    await asyncio.sleep(seconds)


class Total(msgspec.Struct, frozen=True):
    amount: int


class Add(Message, frozen=True, tag="add"):
    amount: int
    reply_type: ClassVar[Any] = Total


class Show(Message, frozen=True, tag="show"):
    reply_type: ClassVar[Any] = Total


_read: msgspec.msgpack.Decoder[Add | Show] = msgspec.msgpack.Decoder(Add | Show)


class Ledger:
    """What is durable: amounts by actor, replies by key, and who may write."""

    def __init__(self) -> None:
        self.owner = ""
        self.amount = 0
        self.replies: dict[str, Total] = {}
        self.ran: Counter[int] = Counter()


class LedgerCalls:
    """One node's actors; implements `OwnedActors`."""

    def __init__(self, node: str, ledger: Ledger, ownership: Ownership) -> None:
        self.node = node
        self.ledger = ledger
        self.ownership = ownership
        self.is_accepting = True
        self.principals: list[str] = []
        self.internal: list[bool] = []

    def accepting(self) -> bool:
        return self.is_accepting

    async def call(
        self,
        actor: ActorId,
        message: Message,
        *,
        principal: str,
        key: str | None = None,
        timeout_ms: int = 30_000,
        internal: bool = False,
        chain: tuple[ActorId, ...] = (),
    ) -> Any:
        self.ownership.epoch(actor.shard)
        assert isinstance(message, Add)
        if key is not None and key in self.ledger.replies:
            return self.ledger.replies[key]
        await asyncio.sleep(TURN_S)
        if self.ledger.owner != self.node:
            raise FencedError("the shard's epoch has moved")
        if key is not None and key in self.ledger.replies:
            return self.ledger.replies[key]
        self.principals.append(principal)
        self.internal.append(internal)
        self.ledger.amount += message.amount
        self.ledger.ran[message.amount] += 1
        total = Total(self.ledger.amount)
        if key is not None:
            self.ledger.replies[key] = total
        return total

    async def query(
        self,
        actor: ActorId,
        query: Message,
        *,
        timeout_ms: int = 30_000,
        chain: tuple[ActorId, ...] = (),
    ) -> Any:
        self.ownership.epoch(actor.shard)
        return Total(self.ledger.amount)

    def begin(
        self, actor: ActorId, message: Message, principal: str, timeout_ms: int, *, is_query: bool
    ) -> Envelope:
        envelope = Envelope(actor=actor, message=message, principal=principal, is_query=is_query)
        envelope.succeed(Total(self.ledger.amount))
        return envelope

    def may_go_on(self, envelope: Envelope) -> bool:
        return envelope.is_answered

    async def answer(self, envelope: Envelope, timeout_ms: int) -> Any:
        return envelope.result()

    def read_message(self, type_name: str, body: bytes) -> Message:
        try:
            return _read.decode(body)
        except msgspec.MsgspecError as error:
            raise InvalidFieldError("message", str(error)) from error


class ClusterNode:
    """One node with everything that it needs to talk."""

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name = name
        self.address = f"{name}:7000"
        self.ownership = Ownership()
        self.telemetry = RecordedTelemetry()
        self.supervisor = Supervisor(clock=SimulatedClock(), telemetry=self.telemetry)
        self.local = LedgerCalls(name, cluster.ledger, self.ownership)
        self.hub = EventHub()
        self.woken: list[tuple[list[int], int]] = []
        self.looks: list[str] = []
        ports: dict[str, Any] = {
            "frames": SimulatedFrames(cluster.wires, host=name),
            "identity": Identity(cluster="c1", node=name, secret=SECRET, addresses=(self.address,)),
            "rng": SimulatedRng(name),
            "telemetry": self.telemetry,
        }
        service = ClusterService(
            local=self.local, ownership=self.ownership, supervisor=self.supervisor
        )
        self.lines = Lines(supervisor=self.supervisor, **ports)
        self.listener = AskedListener(service=service, **ports)
        self.router = Router(
            local=self.local,
            lines=self.lines,
            ownership=self.ownership,
            address=self.address,
            clock=SimulatedClock(),
            rng=SimulatedRng(f"{name}/keys"),
            supervisor=self.supervisor,
            telemetry=self.telemetry,
        )
        self.hints = Hints(
            lines=self.lines,
            listener=self.listener,
            ownership=self.ownership,
            hub=self.hub,
            wake=lambda shards, message_id: self.woken.append((list(shards), message_id)),
            look=lambda: self.looks.append(name),
        )

    async def close(self) -> None:
        self.lines.close()
        await self.listener.close()
        await self.supervisor.close()


class Cluster:
    """Nodes n1, n2, … and one shard that is decreed to one of them."""

    def __init__(self, plan: Faults | None = None, *, count: int = 3) -> None:
        plan = plan or NoFaults()
        self.links = Links(plan)
        self.wires = SimulatedWires(self.links, plan)
        self.ledger = Ledger()
        self.epoch = 0
        self.nodes = [ClusterNode(f"n{number}", self) for number in range(1, count + 1)]

    async def open(self) -> None:
        for node in self.nodes:
            await node.listener.open(node.address)

    async def close(self) -> None:
        for node in self.nodes:
            await node.close()

    def give(self, owner: ClusterNode | None) -> None:
        """Let ``owner`` own the shard in the ledger, and know it; the others are not told."""
        self.ledger.owner = owner.name if owner is not None else ""
        for node in self.nodes:
            if node.ownership.owns(ACTOR.shard):
                node.ownership.lose([ACTOR.shard])
        if owner is not None:
            self.epoch += 1
            owner.ownership.gain([ShardGrant(ACTOR.shard, self.epoch)])

    def tell(self, owner: ClusterNode, *told: ClusterNode) -> None:
        """Let nodes, or all others, know who owns the shard."""
        for node in told or [each for each in self.nodes if each is not owner]:
            node.ownership.point({ACTOR.shard: owner.address})


def simulate(work: Callable[[Cluster], Awaitable[None]], plan: Faults | None = None) -> float:
    """Run ``work`` in a cluster and return how long it took, in virtual seconds."""
    loop = SimulatedLoop()

    async def main() -> None:
        cluster = Cluster(plan)
        await cluster.open()
        try:
            await work(cluster)
        finally:
            await cluster.close()

    try:
        loop.run_until_complete(main())
    finally:
        loop.abandon()
    return loop.time()
