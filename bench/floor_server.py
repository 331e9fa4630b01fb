"""The least that a durable keyed call over HTTP can be, in the product's language and on its disk.

One event loop: a request is parsed, an entry of a dictionary changes, state and reply go into the
tables that the product uses, commits that came together share a sync, and the answer leaves in one
write. There is no actor, no deadline, no look-up of the key, no epoch, no thread, no metric. What
the product costs above this is what it promises above this.

Run as ``python -m bench.floor_server DIRECTORY``; prints one JSON line with its address.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import httptools
import msgspec

from bench.counter import Tally
from bench.store_world import REQUEST, BareLoop, actor_at
from kelpie.core.ids import TENANT_DEFAULT

ACTORS = 1_024
DAY_MS = 86_400_000
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"

_encode = msgspec.msgpack.Encoder().encode


class Add(msgspec.Struct):
    """The body of a call."""

    amount: int


_read = msgspec.json.Decoder(Add).decode


class Floor(asyncio.Protocol):
    """One connection, one call at a time."""

    def __init__(self, bare: BareLoop, tallies: dict[str, Tally]) -> None:
        self._bare = bare
        self._tallies = tallies
        self._transport: Any = None
        self._parser: Any = None
        self._url = b""
        self._key = ""
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """Keep the path."""
        self._url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the key."""
        if name == b"idempotency-key":
            self._key = value.decode()

    def on_body(self, body: bytes) -> None:
        """Keep the body."""
        self._body = body

    def on_message_complete(self) -> None:
        """Add, commit state and reply, and answer when both are durable."""
        if self._parser.get_method() == b"GET":
            self._transport.write(_HEAD % 2 + b"{}")
            return
        index = int(self._url.split(b"/")[4])
        actor = str(actor_at(index))
        tally = self._tallies.setdefault(actor, Tally())
        tally.total += _read(self._body).amount
        state, reply = _encode(tally), _encode(tally.total)
        now_ms = time.time_ns() // 1_000_000
        kept = (TENANT_DEFAULT, actor, 1, "add", self._key, 1, 1, REQUEST, now_ms + DAY_MS)
        done = self._bare.commit(
            (1, tally.total, now_ms, zlib.crc32(state), state, actor),
            (*kept, zlib.crc32(reply), reply),
        )
        answer = b'{"result":%d}' % tally.total
        done.add_done_callback(lambda _: self._transport.write(_HEAD % len(answer) + answer))


async def serve(place: Path) -> None:
    """Serve until the process is told to end."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    bare = BareLoop(place / "floor.db", actors=ACTORS)
    tallies: dict[str, Tally] = {}
    server = await loop.create_server(lambda: Floor(bare, tallies), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)
    async with server:
        await stop.wait()
    bare.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
