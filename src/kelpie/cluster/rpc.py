"""The connections of one node: those it makes, one for each address, and those it takes.

Owns connecting, with growing pauses after failures, and who is connected. What is asked and how it
is carried out is the business of `router` and `service`.

Invariants: at most one line to each address, and at most one from each node; a request is sent
over a line that was greeted, or fails without having been sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from kelpie.actors.supervisor import Supervisor
from kelpie.cluster.handshake import (
    NONCE_BYTES,
    ConnectingSide,
    DialledSide,
    GreetingError,
    Identity,
    Peer,
)
from kelpie.cluster.line import Answering, AnsweringLine, AskingLine, Line
from kelpie.cluster.messages import Asked, Hint
from kelpie.core import limits
from kelpie.ports.frames import FrameLink, FrameListener, FrameReceiver, Frames
from kelpie.ports.network import NetworkError
from kelpie.ports.rng import Rng
from kelpie.ports.telemetry import Telemetry

HintListener = Callable[[Line, Hint], None]
LineListener = Callable[[Line], None]
_MILLISECONDS: Final = 1_000


def _pass_over(line: Line, hint: Hint | None = None) -> None:
    """Do nothing about a hint, or a line."""
    del line, hint


class _Way:
    """How one address is reached."""

    __slots__ = ("address", "connecting", "failures", "line", "problem", "retry_at")

    def __init__(self, address: str) -> None:
        self.address = address
        self.line: AskingLine | None = None
        self.connecting: asyncio.Event | None = None
        self.failures = 0
        self.problem = ""
        self.retry_at = 0.0


class _Arrival:
    """Waits for one line's greeting; implements `LineOwner` for it."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def greeted(self, line: Line, peer: Peer) -> None:
        """Let whoever connects go on."""
        del line, peer
        if not self.done.done():
            self.done.set_result("")

    def hinted(self, line: Line, hint: Hint) -> None:
        """Pass a hint on."""
        self._lines.on_hint(line, hint)

    def ended(self, line: Line, reason: str) -> None:
        """Tell whoever connects, or whoever keeps the line."""
        if not self.done.done():
            self.done.set_result(reason)
        self._lines.on_end(line)


class Lines:
    """The lines that this node asks over, by address; made when first needed.

    Attributes:
        on_hint: Told of what the other nodes hint over these lines.
        on_open: Told of every line that was greeted, for what the other node has to know again.
    """

    def __init__(
        self,
        *,
        frames: Frames,
        identity: Identity,
        rng: Rng,
        supervisor: Supervisor,
        telemetry: Telemetry,
    ) -> None:
        self._frames = frames
        self._identity = identity
        self._rng = rng
        self._supervisor = supervisor
        self._telemetry = telemetry
        self._ways: dict[str, _Way] = {}
        self._is_closed = False
        self.on_hint: HintListener = _pass_over
        self.on_open: LineListener = _pass_over

    async def ask(self, address: str, body: Asked, *, timeout_ms: int, trace: str = "") -> bytes:
        """Return what the node at ``address`` answers.

        Raises:
            NetworkError: It cannot be reached, or the line was lost; ``sent`` says whether the
                request may have arrived.
            DeadlineError: ``timeout_ms`` passed after the request was sent.
            KelpieError: As `AskingLine.ask`.
        """
        way = self._ways.get(address)
        line = way.line if way is not None else None
        if line is not None and not line.is_lost:
            return await line.ask(body, timeout_ms=timeout_ms, trace=trace)
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout_ms / _MILLISECONDS
        line = await self._reach(address, timeout_ms)
        left_ms = int((ends - loop.time()) * _MILLISECONDS)
        if left_ms <= 0:
            raise _late(address, timeout_ms)
        return await line.ask(body, timeout_ms=left_ms, trace=trace)

    async def introduce(self, address: str) -> None:
        """Greet the node at ``address``, so that each proves itself, and ask it nothing.

        Raises:
            GreetingError: One of them refuses the other.
            NetworkError: It cannot be reached.
        """
        try:
            line = await self._dial(address)
        except NetworkError as error:
            if isinstance(error.__cause__, GreetingError):
                raise error.__cause__ from None
            raise
        line.close()

    def hint(self, address: str, hint: Hint) -> None:
        """Tell a node something that may be lost; it is, while there is no line to it.

        Begins to connect then, so that the next one arrives.
        """
        assert address, "a node has an address"
        way = self._ways.get(address)
        if way is not None and way.line is not None and not way.line.is_lost:
            way.line.hint(hint)
        elif not self._is_closed:
            self._connect_soon(self._ways.setdefault(address, _Way(address)))

    def is_open(self, address: str) -> bool:
        """Whether there is a line to ``address`` now."""
        way = self._ways.get(address)
        return way is not None and way.line is not None and not way.line.is_lost

    def keep_only(self, addresses: Iterable[str]) -> None:
        """Close the lines to all other addresses: their nodes have left."""
        kept = frozenset(addresses)
        for address in [each for each in self._ways if each not in kept]:
            line = self._ways.pop(address).line
            if line is not None:
                line.close()
        assert self._ways.keys() <= kept

    def close(self) -> None:
        """Close every line; nothing is asked any more."""
        self._is_closed = True
        self.keep_only(())
        assert self._is_closed, "a closed node opens no line"
        assert not self._ways

    def on_end(self, line: Line) -> None:
        """Forget a line that is gone."""
        for way in self._ways.values():
            if way.line is line:
                way.line = None

    async def _reach(self, address: str, timeout_ms: int) -> AskingLine:
        """Return a line to ``address``, made now if there is none."""
        if self._is_closed:
            raise NetworkError("this node is shutting down", sent=False)
        way = self._ways.setdefault(address, _Way(address))
        self._connect_soon(way)
        if way.connecting is not None:
            try:
                async with asyncio.timeout(timeout_ms / _MILLISECONDS):
                    await way.connecting.wait()
            except TimeoutError:
                raise _late(address, timeout_ms) from None
        if way.line is None or way.line.is_lost:
            raise NetworkError(f"{address} is not reached: {way.problem or 'lost'}", sent=False)
        return way.line

    def _connect_soon(self, way: _Way) -> None:
        """Begin to connect, unless that runs, or failed a moment ago."""
        now = asyncio.get_running_loop().time()
        if way.connecting is not None or now < way.retry_at:
            return
        way.connecting = asyncio.Event()
        task = self._supervisor.spawn("cluster.connect", self._connect(way))
        if task is None:
            way.connecting.set()
            way.connecting = None

    async def _connect(self, way: _Way) -> None:
        assert way.connecting is not None, "somebody waits for it"
        try:
            way.line = await self._dial(way.address)
            way.failures = 0
            way.retry_at = 0.0
            way.problem = ""
            self.on_open(way.line)
        except NetworkError as error:
            self._note_failure(way, error)
        finally:
            way.connecting.set()
            way.connecting = None

    def _note_failure(self, way: _Way, error: NetworkError) -> None:
        way.problem = error.message
        way.failures += 1
        doubled_ms = limits.RECONNECT_PAUSE_MS_MIN << min(way.failures - 1, 16)
        pause_ms = min(doubled_ms, limits.RECONNECT_PAUSE_MS_MAX) * (0.5 + self._rng.fraction() / 2)
        way.retry_at = asyncio.get_running_loop().time() + pause_ms / _MILLISECONDS
        self._telemetry.count("kelpie.rpc.connect_failures")
        self._telemetry.log(
            "warning", "rpc.connect_failed", address=way.address, problem=way.problem
        )
        assert way.failures >= 1

    async def _dial(self, address: str) -> AskingLine:
        """Return a greeted line.

        Raises:
            NetworkError: Nobody answers, or either side refuses the other.
        """
        arrival = _Arrival(self)
        made: list[AskingLine] = []

        def accept(link: FrameLink) -> FrameReceiver:
            nonce = self._rng.bytes(NONCE_BYTES)
            greeting = ConnectingSide(
                self._identity, target=address, proven=link.proven, nonce=nonce
            )
            made.append(AskingLine(link, greeting, arrival, self._telemetry))
            return made[0]

        try:
            await self._frames.connect(address, accept, timeout_ms=limits.CONNECT_TIMEOUT_MS)
            problem = await arrival.done
        except BaseException:
            for line in made:
                line.close()
            raise
        if problem:
            raise NetworkError(problem, sent=False) from made[0].refusal
        if self._is_closed:
            made[0].close()
            raise NetworkError("this node is shutting down", sent=False)
        return made[0]


def _late(address: str, timeout_ms: int) -> NetworkError:
    # Of this attempt alone; an earlier one may have been sent, which only the caller knows.
    return NetworkError(f"{address} was not reached within {timeout_ms:,} ms", sent=False)


class AskedListener:
    """The lines that other nodes ask over; implements `LineOwner` for them.

    Attributes:
        on_hint: Told of what the other nodes hint over these lines.
        on_close: Told of every greeted line that is gone.
    """

    def __init__(
        self,
        *,
        frames: Frames,
        identity: Identity,
        rng: Rng,
        telemetry: Telemetry,
        service: Answering,
    ) -> None:
        self._frames = frames
        self._identity = identity
        self._rng = rng
        self._telemetry = telemetry
        self._service = service
        self._listener: FrameListener | None = None
        self._lines: dict[str, Line] = {}
        self.on_hint: HintListener = _pass_over
        self.on_close: LineListener = _pass_over

    @property
    def address(self) -> str:
        """Where it listens."""
        assert self._listener is not None, "a listener that was opened listens"
        return self._listener.address

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that are connected, sorted."""
        return tuple(sorted(self._lines))

    async def open(self, address: str) -> None:
        """Begin to take connections at ``address``.

        Raises:
            ConfigError: The address cannot be listened at.
        """
        assert self._listener is None, "opened once"
        self._listener = await self._frames.listen(address, self._accept)
        assert self._listener.address, "who listens can be dialled"

    async def close(self) -> None:
        """Take no further connection, and end those that were taken."""
        for line in tuple(self._lines.values()):
            line.close()
        if self._listener is not None:
            await self._listener.close()
        assert not self._lines

    def _accept(self, link: FrameLink) -> FrameReceiver:
        nonce = self._rng.bytes(NONCE_BYTES)
        greeting = DialledSide(self._identity, proven=link.proven, nonce=nonce)
        return AnsweringLine(link, greeting, self, self._telemetry, self._service)

    def greeted(self, line: Line, peer: Peer) -> None:
        """Keep the line; an older one of the same node is over."""
        assert peer.node != self._identity.node, "a node does not dial itself"
        older = self._lines.get(peer.node)
        self._lines[peer.node] = line
        if older is not None:
            older.close()
        assert self._lines[peer.node] is line

    def hinted(self, line: Line, hint: Hint) -> None:
        """Pass a hint on."""
        self.on_hint(line, hint)

    def ended(self, line: Line, reason: str) -> None:
        """Forget the line."""
        del reason
        if line.peer is not None:
            if self._lines.get(line.peer.node) is line:
                del self._lines[line.peer.node]
            assert line not in self._lines.values(), "a line that ended is not kept"
            self.on_close(line)
