"""Frames between nodes over TCP: a length of four bytes, then that many bytes; with TLS if asked.

Owns sockets. Must never look into a frame, and never keeps more of a stranger's bytes than a
greeting takes.

Invariants: frames of one tick leave in one write; whatever cannot be a frame ends its connection;
``lost`` is told once, and after it no frame.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from kelpie.core import limits
from kelpie.core.errors import ConfigError, InvalidFieldError
from kelpie.ports.frames import FrameLink, FrameListener, FrameReceiver
from kelpie.ports.network import NetworkError
from kelpie.ports.telemetry import Telemetry

Accept = Callable[[FrameLink], FrameReceiver]

_LENGTH: Final = struct.Struct(">I")
_HEAD_BYTES: Final = _LENGTH.size


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsContexts:
    """Both sides of mutual TLS: each demands a certificate of the cluster's own authority."""

    client: ssl.SSLContext
    server: ssl.SSLContext

    @classmethod
    def load(cls, *, authority: str, certificate: str, key: str) -> TlsContexts:
        """Make contexts of three PEM files.

        Raises:
            ConfigError: A file cannot be read, is no PEM, or key and certificate do not belong
                together.
        """
        made = [ssl.SSLContext(side) for side in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)]
        try:
            for context in made:
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.check_hostname = False  # nodes have names, which the greeting compares
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(authority)
                context.load_cert_chain(certificate, key)
        except OSError as error:
            names = f"{authority}, {certificate}, {key}"
            raise ConfigError(f"the cluster's certificates ({names}): {error}") from error
        return cls(client=made[0], server=made[1])


class TcpLink(asyncio.Protocol):
    """One connection; see `FrameLink`."""

    def __init__(
        self, accept: Accept, telemetry: Telemetry, on_lost: Callable[[TcpLink], None] | None = None
    ) -> None:
        self._accept = accept
        self._telemetry = telemetry
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._receiver: FrameReceiver | None = None
        self._loop = asyncio.get_running_loop()
        self._peer = ""
        self._proven = ""
        self._size_max = limits.FRAME_STRANGER_BYTES_MAX
        self._pieces: list[bytes] = []
        self._have_bytes = 0
        self._need_bytes = _HEAD_BYTES
        self._received = 0
        self._late: asyncio.TimerHandle | None = None
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self._written_bytes = 0
        self._is_behind = False
        self._stuck: asyncio.TimerHandle | None = None
        self._reason = ""

    # --- asyncio's side -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Introduce the link to whoever takes its frames."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=limits.FRAME_QUEUE_BYTES_HIGH)
        self._peer = _address(transport.get_extra_info("peername"))
        self._proven = _proven_name(transport.get_extra_info("peercert"))
        self._receiver = self._accept(self)

    def data_received(self, data: bytes) -> None:
        """Hand on every frame that is whole now."""
        self._have_bytes += len(data)
        self._pieces.append(data)
        if self._have_bytes < self._need_bytes:
            self._watch_for_late()
            return
        if len(self._pieces) > 1:
            data = b"".join(self._pieces)
        self._pieces.clear()
        rest = self._split(data)
        self._have_bytes = len(rest)
        if rest:
            self._pieces.append(rest)
            self._watch_for_late()

    def _split(self, data: bytes) -> bytes:
        """Hand on whole frames from the start of ``data`` and return what is left of it."""
        receiver, start, end = self._receiver, 0, len(data)
        assert receiver is not None, "frames arrive on a connection that was made"
        while end - start >= _HEAD_BYTES:
            size = _LENGTH.unpack_from(data, start)[0]
            if not 0 < size <= self._size_max:
                self._refuse("frame_size", f"a frame of {size:,} bytes; at most {self._size_max:,}")
            if self._reason:
                return b""
            after = start + _HEAD_BYTES + size
            if after > end:
                self._need_bytes = _HEAD_BYTES + size
                return data[start:]
            self._received += 1
            receiver.frame(data[start + _HEAD_BYTES : after])
            start = after
        self._need_bytes = _HEAD_BYTES
        return data[start:] if not self._reason else b""

    def _watch_for_late(self) -> None:
        if self._late is None:
            wait_s = limits.FRAME_RECEIVE_TIMEOUT_MS / 1_000
            self._late = self._loop.call_later(wait_s, self._look_for_late, self._received)

    def _look_for_late(self, received: int) -> None:
        self._late = None
        if self._reason or not self._have_bytes:
            return
        if self._received == received and not self._is_held():
            self._refuse("frame_late", "a frame did not arrive in time")
        else:
            self._watch_for_late()

    def _is_held(self) -> bool:
        return self._transport is not None and not self._transport.is_reading()

    def pause_writing(self) -> None:
        """Tell the receiver that the other side takes less than is sent."""
        self._is_behind = True
        if self._receiver is not None and not self._reason:
            self._receiver.pressed(is_behind=True)
        if self._stuck is None:
            self._watch_for_stuck()

    def _watch_for_stuck(self) -> None:
        wait_s = limits.FRAME_STUCK_TIMEOUT_MS / 1_000
        self._stuck = self._loop.call_later(wait_s, self._look_for_stuck, self._taken_bytes())

    def _taken_bytes(self) -> int:
        """Return how much the other side has taken since the beginning."""
        assert self._transport is not None, "what is written has somewhere to go"
        return self._written_bytes - self._transport.get_write_buffer_size()

    def _look_for_stuck(self, taken_bytes: int) -> None:
        self._stuck = None
        if self._reason or not self._is_behind:
            return
        if self._taken_bytes() <= taken_bytes:
            self._refuse("stuck", "the other side takes nothing")
        else:
            self._watch_for_stuck()

    def resume_writing(self) -> None:
        """Tell the receiver that the other side has caught up."""
        self._is_behind = False
        if self._receiver is not None and not self._reason:
            self._receiver.pressed(is_behind=False)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever has to know, once."""
        for timer in (self._late, self._stuck):
            if timer is not None:
                timer.cancel()
        self._late = self._stuck = None
        self._outgoing.clear()
        self._pieces.clear()
        self._outgoing_bytes = self._have_bytes = 0
        self._reason = self._reason or (str(exc) if exc else "") or "closed by the other side"
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.lost(self._reason)
        if self._on_lost is not None:
            self._on_lost(self)

    # --- the owner's side -----------------------------------------------------------------------

    @property
    def peer(self) -> str:
        """The other side's proven name, or its address."""
        return self._proven or self._peer

    @property
    def proven(self) -> str:
        """The name in the other side's certificate; empty without TLS."""
        return self._proven

    @property
    def is_stranger(self) -> bool:
        """Whether the other side has yet to show who it is."""
        return self._size_max == limits.FRAME_STRANGER_BYTES_MAX

    @property
    def queued_bytes(self) -> int:
        """What waits here and in the transport."""
        if self._transport is None:
            return self._outgoing_bytes
        return self._outgoing_bytes + self._transport.get_write_buffer_size()

    def send(self, frame: bytes) -> None:
        """Queue one frame for this tick's write."""
        assert 0 < len(frame) <= limits.FRAME_BYTES_MAX, "its maker bounds a frame"
        if self._reason or self._transport is None:
            return
        if not self._outgoing:
            self._loop.call_soon(self._write)
        self._outgoing.append(_LENGTH.pack(len(frame)))
        self._outgoing.append(frame)
        self._outgoing_bytes += _HEAD_BYTES + len(frame)
        if self._is_behind and self.queued_bytes > limits.FRAME_QUEUE_BYTES_MAX:
            self._refuse("queue_full", "too much waits for the other side")

    def _write(self) -> None:
        frames, self._outgoing = self._outgoing, []
        self._outgoing_bytes = 0
        if frames and self._transport is not None and not self._reason:
            data = b"".join(frames)
            self._written_bytes += len(data)
            self._transport.write(data)

    def admit(self) -> None:
        """Take frames of the full size from now on."""
        self._size_max = limits.FRAME_BYTES_MAX
        assert self._size_max > limits.FRAME_STRANGER_BYTES_MAX

    def hold(self, *, is_held: bool) -> None:
        """Stop reading, or go on; harmless when it is so."""
        transport = self._transport
        if transport is None or transport.is_closing() or transport.is_reading() != is_held:
            return
        if is_held:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def close(self) -> None:
        """Write what is queued as far as the other side takes it, and end."""
        if self._transport is None or self._reason:
            return
        self._write()
        self._reason = "closed here"
        self._transport.close()
        # A peer that takes nothing would keep a closing connection for ever.
        self._loop.call_later(limits.CONNECT_TIMEOUT_MS / 1_000, self._transport.abort)

    def _refuse(self, why: str, text: str) -> None:
        """End the connection; nothing of what came is written anywhere."""
        if self._reason:
            return
        self._reason = text
        self._telemetry.count("kelpie.frames.refused", reason=why)
        self._telemetry.log("warning", "frames.refused", reason=why, peer=self.peer, problem=text)
        assert self._transport is not None, "only what is connected can be refused"
        self._transport.abort()


class TcpListener:
    """Takes connections at one address; see `FrameListener`."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._server: asyncio.Server | None = None
        self._links: set[TcpLink] = set()
        self._address = ""

    @property
    def address(self) -> str:
        """Where it listens."""
        assert self._address, "a listener that was opened listens"
        return self._address

    async def open(
        self, host: str, port: int, accept: Accept, context: ssl.SSLContext | None
    ) -> None:
        """Begin to listen.

        Raises:
            OSError: The address is taken, or is none of this host.
        """

        def take() -> asyncio.Protocol:
            strangers = sum(link.is_stranger for link in self._links)
            if len(self._links) >= limits.LINKS_MAX or strangers >= limits.STRANGERS_MAX:
                self._telemetry.count("kelpie.frames.refused", reason="links_full")
                return _Refused()
            link = TcpLink(accept, self._telemetry, self._links.discard)
            self._links.add(link)
            return link

        timeout_s = limits.GREETING_TIMEOUT_MS / 1_000 if context else None
        self._server = await asyncio.get_running_loop().create_server(
            take, host, port, ssl=context, ssl_handshake_timeout=timeout_s
        )
        self._address = _address(self._server.sockets[0].getsockname())

    async def close(self) -> None:
        """Take no further connection, and end those that it took."""
        assert self._server is not None, "only what listens is closed"
        self._server.close()
        for link in tuple(self._links):
            link.close()
        await self._server.wait_closed()
        assert not self._server.is_serving()


class _Refused(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """End it."""
        cast("asyncio.Transport", transport).abort()


class TcpFrames:
    """The host's connections between nodes; implements `Frames`.

    Args:
        telemetry: Told of every connection that was refused.
        tls: Both sides' contexts; None for connections without TLS.
    """

    def __init__(self, *, telemetry: Telemetry, tls: TlsContexts | None = None) -> None:
        self._telemetry = telemetry
        self._tls = tls

    async def connect(self, address: str, accept: Accept, *, timeout_ms: int) -> FrameLink:
        """Connect to ``address`` and return this side of the connection.

        Raises:
            NetworkError: Nobody answered in time, or the other side is not of the cluster.
        """
        host, port = split_address(address)
        loop = asyncio.get_running_loop()
        context = None if self._tls is None else self._tls.client
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                _, link = await loop.create_connection(
                    lambda: TcpLink(accept, self._telemetry), host, port, ssl=context
                )
        except TimeoutError:
            raise NetworkError(f"{address} did not answer in time", sent=False) from None
        except OSError as error:
            why = error.strerror or str(error) or type(error).__name__
            raise NetworkError(f"no connection to {address}: {why}", sent=False) from error
        return link

    async def listen(self, address: str, accept: Accept) -> FrameListener:
        """Take connections at ``address``.

        Raises:
            ConfigError: The address cannot be listened at.
        """
        host, port = split_address(address)
        listener = TcpListener(self._telemetry)
        context = None if self._tls is None else self._tls.server
        try:
            await listener.open(host, port, accept, context)
        except OSError as error:
            why = error.strerror or str(error)
            raise ConfigError(f"nodes cannot be listened for at {address}: {why}") from error
        return listener


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port``; an IPv6 host stands in brackets.

    Raises:
        InvalidFieldError: It reads otherwise.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise InvalidFieldError("address", f"{address[:100]!r} must read host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _address(name: Sequence[Any] | None) -> str:
    if not name:
        return "unknown"
    host, port = str(name[0]), int(name[1])
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _proven_name(certificate: Mapping[str, Any] | None) -> str:
    """Return the one DNS name of a verified certificate; empty if it has none, or several."""
    names = [name for kind, name in (certificate or {}).get("subjectAltName", ()) if kind == "DNS"]
    return str(names[0]) if len(names) == 1 else ""
