"""Nodes on loopback that talk to each other, and strangers that try to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from kelpie.actors.supervisor import Supervisor
from kelpie.cluster.certificates import Certified, make_authority, make_node
from kelpie.cluster.handshake import Identity
from kelpie.cluster.line import Answering, IncomingRequest
from kelpie.cluster.messages import ActorCall
from kelpie.cluster.rpc import AskedListener, Lines
from kelpie.host.clock import HostClock
from kelpie.host.frames import TcpFrames, TlsContexts
from kelpie.host.rng import HostRng
from kelpie.sim.telemetry import RecordedTelemetry
from tests.waiting import eventually_async

SECRET = b"sixteen bytes or more"
LOOPBACK = "127.0.0.1:0"


def identity(node: str, **given: object) -> Identity:
    return Identity(**{"cluster": "c1", "node": node, "secret": SECRET, **given})  # type: ignore[arg-type]


class Echo:
    """Answers with the message; keeps those whose message is ``b"wait"``."""

    def __init__(self) -> None:
        self.kept: list[IncomingRequest] = []
        self.withdrawn = 0
        self.arrived = asyncio.Event()

    def asked(self, request: IncomingRequest) -> None:
        assert isinstance(request.body, ActorCall)
        if request.body.message == b"wait":
            request.withdrawn = self._withdraw
            self.kept.append(request)
            self.arrived.set()
        else:
            request.answer(request.body.message)

    def _withdraw(self) -> None:
        self.withdrawn += 1
        self.arrived.set()


class TestNode:
    """One node's lines and its listener."""

    __test__ = False

    def __init__(
        self, who: Identity, service: Answering | None = None, tls: TlsContexts | None = None
    ) -> None:
        clock = HostClock()
        self.telemetry = RecordedTelemetry()
        self.supervisor = Supervisor(clock=clock, telemetry=self.telemetry)
        frames = TcpFrames(telemetry=self.telemetry, tls=tls)
        rng = HostRng()
        self.lines = Lines(
            frames=frames,
            identity=who,
            rng=rng,
            supervisor=self.supervisor,
            telemetry=self.telemetry,
        )
        self.listener = AskedListener(
            frames=frames,
            identity=who,
            rng=rng,
            telemetry=self.telemetry,
            service=service or Echo(),
        )

    @property
    def address(self) -> str:
        return self.listener.address

    async def ask(self, other: TestNode, message: bytes = b"hello", **given: int) -> bytes:
        body = ActorCall(actor="t/a/b", message=message, principal="p", key="k")
        return await self.lines.ask(other.address, body, timeout_ms=given.get("timeout_ms", 20_000))


async def until(probe: Callable[[], object], what: str) -> None:
    """Return once ``probe`` is true."""

    async def look() -> object:
        return probe()

    await eventually_async(look, within_s=20, what=what)


@asynccontextmanager
async def nodes(*made: Callable[[], TestNode]) -> AsyncIterator[list[TestNode]]:
    """Open nodes on free ports of loopback, and close them at the end."""
    opened = [make() for make in made]
    for node in opened:
        await node.listener.open(LOOPBACK)
    try:
        yield opened
    finally:
        for node in opened:
            node.lines.close()
            await node.listener.close()
            await node.supervisor.close()


def tls_of(folder: Path, node: str, authority: Certified, name: str | None = None) -> TlsContexts:
    """Return the contexts of a node whose certificate names ``name``."""
    clock = HostClock()
    certified = make_node(name or node, authority, now_ms=clock.now_ms())
    files = {
        "authority": authority.certificate,
        "certificate": certified.certificate,
        "key": certified.key,
    }
    paths = {kind: folder / f"{node}.{kind}" for kind in files}
    for kind, content in files.items():
        paths[kind].write_bytes(content)
    return TlsContexts.load(**{kind: str(path) for kind, path in paths.items()})


def new_authority(name: str = "test") -> Certified:
    return make_authority(name, now_ms=HostClock().now_ms())
