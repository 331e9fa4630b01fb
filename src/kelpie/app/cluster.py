"""This node among the others that share its database: membership, talk and forwarding, opened.

Membership decides who owns which shard, the router forwards what is another's, hints make both
quick. Without a database there is none of it: one process owns an embedded store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from kelpie.actors.engine import Engine
from kelpie.actors.hub import EventHub
from kelpie.actors.supervisor import Supervisor
from kelpie.app.stores import SharedNodeStore
from kelpie.app.world import World
from kelpie.cluster.forwarding import Forwarding
from kelpie.cluster.handshake import GreetingError, Identity
from kelpie.cluster.hints import Hints
from kelpie.cluster.node import ClusterNode, NodeConfig
from kelpie.cluster.placement import living
from kelpie.cluster.router import Router
from kelpie.cluster.rpc import AskedListener, Lines
from kelpie.cluster.service import ClusterService
from kelpie.core.errors import ConfigError, KelpieError
from kelpie.host.frames import TlsContexts
from kelpie.ports.network import HttpRequest, NetworkError
from kelpie.settings import Settings
from kelpie.storage.files import temporary_file
from kelpie.storage.records import Commit, CommitReceipt

SECRET_BYTES: Final = 32
JOIN_TIMEOUT_MS: Final = 2_000
INTRODUCTIONS_MAX: Final = 3
"""How many of the others are asked; each that does not answer holds the start up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """The opened cluster's side of a node.

    Attributes:
        node: Who owns what.
        router: Calls to actors wherever they are.
        hints: What makes other nodes look.
        forwarding: What only an actor's owner can do, wherever it is asked for.
        service: What this node does for others.
    """

    node: ClusterNode
    router: Router
    hints: Hints
    forwarding: Forwarding
    service: ClusterService
    lines: Lines
    listener: AskedListener

    @property
    def refusal(self) -> KelpieError | None:
        """Why this node is out of the cluster for good; None while it is in it."""
        return self.node.refusal

    def follow(self, engine: Engine, hub: EventHub) -> None:
        """Tell other nodes what is news to them from now on."""
        engine.listen(self._on_commit)
        engine.ownership.listen_pointed(self._on_pointed)
        hub.relay(self.hints.changed)

    def _on_commit(self, commit: Commit, receipt: CommitReceipt) -> None:
        if receipt.message_ids:
            shards = {send.receiver.shard for send in commit.sends}
            self.hints.wake(shards, receipt.message_ids[0])

    def _on_pointed(self) -> None:
        others = [each for each in living(self.node.status.view) if each.name != self.node.name]
        self.hints.point([each.address for each in others if each.address])

    async def leave(self) -> None:
        """Hand every shard over and leave; harmless when it has."""
        await self.node.leave()

    async def close(self) -> None:
        """End the talk with other nodes."""
        self.lines.close()
        await self.listener.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedParts:
    """What a membership needs of the node that is being opened."""

    store: SharedNodeStore
    engine: Engine
    hub: EventHub
    supervisor: Supervisor
    wake: Callable[[int], None]


async def open_membership(settings: Settings, world: World, around: OpenedParts) -> Membership:
    """Listen to other nodes and join them, without owning anything yet.

    Raises:
        ConflictError: A living node has this node's name.
        ConfigError: The address, the secret or the certificates cannot be used.
        StoreError: The database cannot be reached.
    """
    store, engine, supervisor = around.store, around.engine, around.supervisor
    talk = await _open_talk(settings, world, around)
    hints = Hints(
        lines=talk.lines,
        listener=talk.listener,
        ownership=engine.ownership,
        hub=around.hub,
        wake=lambda _, message_id: around.wake(message_id),
        look=lambda: node.look_soon(),  # noqa: PLW0108  the node is made after its hints
    )
    file = settings.store.path.with_name(settings.store.path.name + ".session")
    address, ttl_ms = talk.listener.address, settings.cluster.lease_ttl_ms
    node = ClusterNode(
        NodeConfig(name=settings.node, address=address, ttl_ms=ttl_ms),
        store=store,
        clock=world.clock,
        rng=world.rng,
        ownership=engine.ownership,
        supervisor=supervisor,
        telemetry=world.telemetry,
        hand_over=engine.hand_over,
        hint=hints.look,
        on_session=partial(write_session, file),
    )
    router = Router(
        local=engine,
        lines=talk.lines,
        ownership=engine.ownership,
        address=address,
        clock=world.clock,
        rng=world.rng,
        supervisor=supervisor,
        telemetry=world.telemetry,
        traceparent=world.telemetry.traceparent,
    )
    forwarding = Forwarding(
        lines=talk.lines,
        address=address,
        clock=world.clock,
        telemetry=world.telemetry,
        traceparent=world.telemetry.traceparent,
    )
    membership = Membership(
        node=node,
        router=router,
        hints=hints,
        forwarding=forwarding,
        service=talk.service,
        lines=talk.lines,
        listener=talk.listener,
    )
    membership.follow(engine, around.hub)
    engine.elsewhere = router
    try:
        await _end_earlier(store, file, world)
        await _introduce(store, talk.lines, settings.node)
        await node.start()
    except BaseException:
        talk.lines.close()
        await talk.listener.close()
        raise
    if settings.cluster.join:
        supervisor.spawn("cluster.join", _look_for(settings.cluster.join, world))
    return membership


class _Talk(NamedTuple):
    """Both directions of what a node says to others."""

    lines: Lines
    listener: AskedListener
    service: ClusterService


async def _open_talk(settings: Settings, world: World, around: OpenedParts) -> _Talk:
    frames = world.frames(_tls(settings))
    identity = await _identity(settings, world, around.store)
    engine, telemetry = around.engine, world.telemetry
    lines = Lines(
        frames=frames,
        identity=identity,
        rng=world.rng,
        supervisor=around.supervisor,
        telemetry=telemetry,
    )
    service = ClusterService(
        local=engine,
        ownership=engine.ownership,
        supervisor=around.supervisor,
        within=telemetry.within,
    )
    listener = AskedListener(
        frames=frames,
        identity=identity,
        rng=world.rng,
        telemetry=telemetry,
        service=service,
    )
    await listener.open(settings.cluster.listen)
    return _Talk(lines, listener, service)


def _tls(settings: Settings) -> TlsContexts | None:
    directory = settings.cluster.certificates
    if directory is None:
        return None
    return TlsContexts.load(
        authority=str(directory / "ca.pem"),
        certificate=str(directory / f"{settings.node}.pem"),
        key=str(directory / f"{settings.node}.key"),
    )


async def _identity(settings: Settings, world: World, store: SharedNodeStore) -> Identity:
    """Return who this node is; without a secret of its own, by the one in the database."""
    cluster, kept = await store.cluster_identity(world.rng.bytes(SECRET_BYTES))
    needs_certificate = settings.cluster.certificates is not None
    secret = b"" if needs_certificate else kept
    if settings.cluster.secret is not None:
        text = settings.cluster.secret.resolve(world.environment, field="cluster.secret")
        secret = text.encode()
    return Identity(
        cluster=cluster,
        node=settings.node,
        secret=secret,
        needs_certificate=needs_certificate,
    )


async def _end_earlier(store: SharedNodeStore, file: Path, world: World) -> None:
    """End the session of an earlier life, which the lock beside the file proves to be over."""
    earlier = read_session(file)
    if earlier and not await store.session_ended(earlier):
        await store.end_session(earlier, None, now_ms=world.clock.now_ms())


def read_session(path: Path) -> str:
    """Return the session that an earlier life of this node wrote down, empty without one."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def write_session(path: Path, session: str) -> None:
    """Write a session down for the next life of this node."""
    assert session, "a session has a name"
    with temporary_file(path) as file:
        file.write(session.encode())


async def _introduce(store: SharedNodeStore, lines: Lines, name: str) -> None:
    """Have the others accept this node before it owns what they would ask it for in vain.

    Raises:
        ConfigError: One that lives refuses it.
    """
    others = [node for node in living(await store.cluster()) if node.name != name and node.address]
    for node in others[:INTRODUCTIONS_MAX]:
        try:
            await lines.introduce(node.address)
        except NetworkError:
            continue  # it may have crashed a moment ago; its lease tells
        except GreetingError as error:
            text = f"node {node.name} and this one refuse each other: {error.message}"
            cure = "give them one cluster.secret, or certificates of one authority"
            raise ConfigError(f"{text}; {cure}", field="cluster.secret") from error


async def _look_for(address: str, world: World) -> None:
    """Say so if nobody answers where a node should be; who is a member is in the database."""
    request = HttpRequest(
        method="GET",
        url=f"http://{address}/v1/health",
        connect_timeout_ms=JOIN_TIMEOUT_MS,
        idle_timeout_ms=JOIN_TIMEOUT_MS,
    )
    try:
        async with world.network.exchange(request) as response:
            problem = "" if response.status < 500 else f"it answers {response.status}"
    except NetworkError as error:
        problem = error.message
    if problem:
        world.telemetry.log("warning", "cluster.join_hint", address=address, error=problem)
