"""A proxy before PostgreSQL that loses what a test wants lost, and counts connections."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Loss = Literal["", "query", "answer", "connection"]
"""What the next batch loses: it never arrives; its answer never comes; the connection right after
it was passed on."""


class LossyProxy:
    """Passes bytes on between a store and the server, until it is told to lose some."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.loss: Loss = ""
        self.is_shut = False
        self.losses = 0
        self.connections = 0
        self.port = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[LossyProxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_shut:
            writer.transport.abort()
            return
        self.connections += 1
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        pair = (writer, up_writer)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, up_writer, pair, from_client=True))
                group.create_task(self._pass(up_reader, writer, pair, from_client=False))
        finally:
            self.connections -= 1
            for each in pair:
                each.transport.abort()

    async def _pass(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        *,
        from_client: bool,
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                if self._loses(from_client=from_client):
                    break
                sink.write(data)
                await sink.drain()
                if from_client and self.loss == "connection":
                    self._lost()
                    break
        for each in pair:
            each.transport.abort()

    def _loses(self, *, from_client: bool) -> bool:
        if self.loss == ("query" if from_client else "answer"):
            self._lost()
            return True
        return False

    def _lost(self) -> None:
        self.loss = ""
        self.losses += 1
