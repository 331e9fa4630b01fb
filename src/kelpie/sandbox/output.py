"""What a command printed: kept up to a bound, passed on as it arrives."""

from __future__ import annotations

from kelpie.ports.process import OutputChunk
from kelpie.sandbox.protocol import OutputSink


class Collector:
    """Keeps both streams, together at most ``bytes_max`` bytes, and says if it had to cut."""

    def __init__(self, bytes_max: int, sink: OutputSink | None) -> None:
        self.is_cut = False
        self._left = bytes_max
        self._sink = sink
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}

    @property
    def stdout(self) -> bytes:
        """What was kept of the standard output."""
        return bytes(self._kept["stdout"])

    @property
    def stderr(self) -> bytes:
        """What was kept of the standard error."""
        return bytes(self._kept["stderr"])

    async def take(self, chunk: OutputChunk) -> None:
        """Keep and pass on as much of ``chunk`` as the bound allows."""
        data = chunk.data[: self._left]
        self.is_cut = self.is_cut or len(data) < len(chunk.data)
        self._left -= len(data)
        self._kept[chunk.stream] += data
        if data and self._sink is not None:
            await self._sink(chunk.stream, data)
