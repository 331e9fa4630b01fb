"""The simulated network: links between hosts, and what happens to messages on them.

Two levels share the links. *Messages* (`Links.post`) are what nodes send each other: each may be
lost, doubled, late or overtaken. *Exchanges* (`SimulatedNetwork.exchange`) are outgoing HTTP: a
stream hides reordering and doubling of packets, so there a loss shows as silence until the caller's
timeout, and a doubled request is one that a middle box sent again.

A link has a direction, from one host to another; hosts are names. A cut link loses everything, a
clogged one keeps it until it is free again. Whatever arrives needs the link at the moment it
arrives, so a partition bites what is on its way.

Invariants: nothing arrives before it was sent, nor over a cut link; after `Links.heal` every later
message arrives once and in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from kelpie.ports.network import HttpRequest, NetworkError
from kelpie.sim.faults.plan import Faults, NoFaults

CONNECT_S: Final = 0.001
LATENCY_S: Final = 0.000_5
INSTANT_S: Final = 1e-6  # between two messages of a link that were sent at once
TRICKLE_BYTES: Final = 3
WEATHER_EVERY_S: Final = 1.0
OUTSIDE: Final = "outside"
"""The host that asks when nobody says who does."""


class Link(NamedTuple):
    """One direction between two hosts."""

    source: str
    target: str

    def back(self) -> Link:
        """Return the other direction."""
        return Link(self.target, self.source)


class Links:
    """Which hosts can reach which, and what happens to a message on its way.

    Attributes:
        delivered: How many messages arrived, lost: how many never will.
    """

    def __init__(self, faults: Faults) -> None:
        self.delivered = 0
        self.lost = 0
        self._faults = faults
        self._hosts: set[str] = set()
        self._cut: set[Link] = set()
        self._clogged: set[Link] = set()
        self._held: list[tuple[Link, Callable[[], None]]] = []
        self._free: list[asyncio.Future[None]] = []
        self._newest_s: dict[Link, float] = {}

    def add_host(self, name: str) -> None:
        """Make a host known, so that weather can befall it; harmless when it is."""
        assert name, "a host has a name"
        self._hosts.add(name)
        self.check_invariants()

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts, sorted."""
        return tuple(sorted(self._hosts))

    def is_cut(self, source: str, target: str) -> bool:
        """Return whether nothing passes from ``source`` to ``target`` now."""
        return Link(source, target) in self._cut

    def is_stopped(self, source: str, target: str) -> bool:
        """Return whether nothing arrives at ``target`` from ``source`` now, lost or kept."""
        link = Link(source, target)
        return link in self._cut or link in self._clogged

    def cut(self, source: str, target: str) -> None:
        """Lose whatever goes from ``source`` to ``target`` from now on."""
        assert source != target, "a host always reaches itself"
        self._cut.add(Link(source, target))
        assert self.is_cut(source, target)

    def partition(self, one: Iterable[str], other: Iterable[str]) -> None:
        """Cut every link between two groups of hosts, both ways."""
        side, far = sorted(one), sorted(other)
        assert not set(side) & set(far), "a host is on one side"
        for near in side:
            for host in far:
                self.cut(near, host)
                self.cut(host, near)

    def clog(self, host: str) -> None:
        """Keep whatever goes to ``host`` until it is unclogged."""
        assert host in self._hosts, f"{host} is no host"
        self._clogged |= {Link(source, host) for source in self._hosts if source != host}
        self.check_invariants()

    def unclog(self, host: str) -> None:
        """Let what was kept for ``host`` go on, in the order in which it came."""
        self._clogged = {link for link in self._clogged if link.target != host}
        assert not any(link.target == host for link in self._clogged)
        self._release()

    def mend(self, source: str, target: str) -> None:
        """Let messages pass from ``source`` to ``target`` again; harmless when they do."""
        self._cut.discard(Link(source, target))
        assert not self.is_cut(source, target)
        self._release()

    def heal(self) -> None:
        """Mend and unclog everything."""
        self._cut.clear()
        self._clogged.clear()
        assert not self._cut
        self._release()

    def post(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        """Send one message: ``deliver`` is called when it arrives, never, or twice."""
        if self._faults.fires("network.packet_loss"):
            self.lost += 1
            return
        copies = 2 if self._faults.fires("network.duplicate") else 1
        loop, link = asyncio.get_running_loop(), Link(source, target)
        for _ in range(copies):
            seconds = self.latency_s()
            at_s = loop.time() + seconds
            if seconds == LATENCY_S:  # nothing befell it: it stays behind those sent before
                at_s = self._newest_s[link] = max(at_s, self._newest_s.get(link, 0) + INSTANT_S)
            loop.call_at(at_s, self._arrive, link, deliver)
        assert copies >= 1
        assert self.lost >= 0

    def latency_s(self) -> float:
        """Return how long the next message takes on its way."""
        seconds = LATENCY_S
        if self._faults.fires("network.delay"):
            seconds += self._faults.seconds("network.delay")
        if self._faults.fires("network.message_reorder"):
            seconds += self._faults.seconds("network.message_reorder")
        return seconds

    def _arrive(self, link: Link, deliver: Callable[[], None]) -> None:
        if link in self._cut:
            self.lost += 1
        elif link in self._clogged:
            self._held.append((link, deliver))
        else:
            self.delivered += 1
            deliver()

    def _release(self) -> None:
        held, self._held = self._held, []
        for link, deliver in held:
            self._arrive(link, deliver)
        waiting, self._free = self._free, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def pass_through(self, source: str, target: str) -> None:
        """Return when a message has come from ``source`` to ``target``; while cut, never."""
        await asyncio.sleep(self.latency_s())
        link = Link(source, target)
        while link in self._cut or link in self._clogged:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._free.append(future)
            await future
        self.delivered += 1
        assert not self.is_cut(source, target)

    async def weather(self) -> None:
        """Let partitions, cuts and clogs come and go for ever, as the faults say.

        For a task group of the world; cancel it and `heal` when the faults are to end.
        """
        async with asyncio.TaskGroup() as storms:
            while True:
                await asyncio.sleep(WEATHER_EVERY_S)
                if len(self._hosts) < 2:
                    continue
                if self._faults.fires("network.partition"):
                    storms.create_task(self._split(), name="network.partition")
                if self._faults.fires("network.one_way_cut"):
                    storms.create_task(self._cut_one_way(), name="network.one_way_cut")
                if self._faults.fires("network.swizzle_clog"):
                    storms.create_task(self._swizzle(), name="network.swizzle_clog")

    def _draw(self, name: str, hosts: list[str]) -> str:
        return hosts.pop(self._faults.below(name, len(hosts)))

    async def _split(self) -> None:
        name = "network.partition"
        seconds = self._faults.seconds(name)
        rest = list(self.hosts)
        size = 1 + self._faults.below(name, len(rest) - 1)
        side = [self._draw(name, rest) for _ in range(size)]
        self.partition(side, rest)
        await asyncio.sleep(seconds)
        for near in side:
            for far in rest:
                self.mend(near, far)
                self.mend(far, near)

    async def _cut_one_way(self) -> None:
        name = "network.one_way_cut"
        seconds = self._faults.seconds(name)
        hosts = list(self.hosts)
        source, target = self._draw(name, hosts), self._draw(name, hosts)
        self.cut(source, target)
        await asyncio.sleep(seconds)
        self.mend(source, target)

    async def _swizzle(self) -> None:
        """Clog some hosts one after the other, then free them in another order.

        Source: FoundationDB, "Testing Distributed Systems with Deterministic Simulation".
        """
        name = "network.swizzle_clog"
        pause_s = self._faults.seconds(name) / 2
        hosts = list(self.hosts)
        count = 1 + self._faults.below(name, len(hosts))
        chosen = [self._draw(name, hosts) for _ in range(count)]
        order = list(chosen)
        freed = [self._draw(name, order) for _ in range(count)]
        for host in chosen:
            self.clog(host)
            await asyncio.sleep(pause_s / count)
        for host in freed:
            await asyncio.sleep(pause_s / count)
            self.unclog(host)

    def check_invariants(self) -> None:
        """Assert that the books agree."""
        assert all(link.source != link.target for link in self._cut | self._clogged)
        held = {link for link, _ in self._held}
        assert held <= self._clogged, "a message is kept on a free link"
        assert self.delivered >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a simulated peer sends back: a head, then pieces with ``pause_s`` before each.

    With ``breaks_off`` the connection is lost after the last piece.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    pieces: tuple[bytes, ...] = ()
    pause_s: float = 0.001
    breaks_off: bool = False


Peer = Callable[[HttpRequest], Awaitable[Answer]]


class _Response:
    def __init__(
        self, answer: Answer, links: Links, way: Link, faults: Faults, idle_s: float
    ) -> None:
        self._answer = answer
        self._links = links
        self._way = way
        self._faults = faults
        self._idle_s = idle_s

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._answer.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        pieces, pause_s = self._answer.pieces, self._answer.pause_s
        if self._faults.fires("network.slow_trickle"):
            pause_s = self._faults.seconds("network.slow_trickle")
            pieces = tuple(_trickle(pieces))
        for piece in pieces:
            if self._faults.fires("network.reset"):
                raise NetworkError("the simulated connection was reset", sent=True)
            await _within(self._idle_s, self._next(pause_s), "the simulated body stalled")
            yield piece
        if self._answer.breaks_off:
            raise NetworkError("the simulated connection was lost", sent=True)

    async def _next(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        await self._links.pass_through(self._way.source, self._way.target)


def _trickle(pieces: Iterable[bytes]) -> Iterable[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), TRICKLE_BYTES):
            yield piece[start : start + TRICKLE_BYTES]


async def _within(seconds: float, work: Awaitable[None], problem: str) -> None:
    """Wait for ``work``, but no longer than the caller's timeout.

    Raises:
        NetworkError: It took longer; the request may have been received.
    """
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        raise NetworkError(problem, sent=True) from None


class SimulatedNetwork:
    """Outgoing HTTP of one host: peers by URL prefix; nothing else can be reached.

    Args:
        links: Shared by all hosts of a world; links of its own, without faults, if left out.
        faults: What may go wrong.
        host: Whose network this is.
    """

    def __init__(
        self, links: Links | None = None, faults: Faults | None = None, *, host: str = OUTSIDE
    ) -> None:
        self._faults = faults or NoFaults()
        self._links = links or Links(self._faults)
        self._host = host
        self._peers: dict[str, Peer] = {}
        self._links.add_host(host)

    @property
    def links(self) -> Links:
        """The links below it."""
        return self._links

    def add_peer(self, prefix: str, peer: Peer) -> None:
        """Let ``peer`` answer every request whose URL starts with ``prefix``."""
        assert prefix.startswith(("http://", "https://")), "a peer has an absolute URL"
        taken = [other for other in self._peers if prefix.startswith(other)]
        assert not taken, f"{taken} would answer for {prefix}"
        self._peers[prefix] = peer
        self._links.add_host(_host_of(prefix))

    def of(self, host: str) -> SimulatedNetwork:
        """Return the same network, peers and weather included, as ``host`` sees it."""
        mine = SimulatedNetwork(self._links, self._faults, host=host)
        mine._peers = self._peers
        return mine

    @asynccontextmanager
    async def exchange(self, request: HttpRequest) -> AsyncGenerator[_Response]:
        """Send ``request`` to its peer and yield the response.

        Raises:
            NetworkError: No peer has this address, or it cannot be reached.
        """
        peer = await self._connect(request)
        there = Link(self._host, _host_of(request.url))
        back = Link(there.target, there.source)
        idle_s = request.idle_timeout_ms / 1000
        if self._faults.fires("network.packet_loss"):
            await asyncio.sleep(idle_s)
            raise NetworkError("the simulated request was lost", sent=True)
        silence = "the simulated peer is silent"
        await _within(idle_s, self._links.pass_through(*there), silence)
        if self._faults.fires("network.duplicate"):
            await peer(request)
        answer = await peer(request)
        await _within(idle_s, self._links.pass_through(*back), silence)
        yield _Response(answer, self._links, back, self._faults, idle_s)

    async def _connect(self, request: HttpRequest) -> Peer:
        """Return the peer behind a URL, once the connection stands."""
        await asyncio.sleep(CONNECT_S)
        known = [peer for prefix, peer in self._peers.items() if request.url.startswith(prefix)]
        if not known:
            raise NetworkError(f"nobody listens at {request.url}", sent=False)
        if self._faults.fires("network.refused"):
            raise NetworkError(f"{request.url} refused the connection", sent=False)
        there = _host_of(request.url)
        try:
            async with asyncio.timeout(request.connect_timeout_ms / 1000):
                await self._links.pass_through(self._host, there)
                await self._links.pass_through(there, self._host)
        except TimeoutError:
            raise NetworkError(f"no connection to {request.url}", sent=False) from None
        return known[0]


def _host_of(url: str) -> str:
    host = urlsplit(url).hostname
    assert host is not None, f"{url} names no host"
    return host
