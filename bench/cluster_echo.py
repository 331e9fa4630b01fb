"""A node that answers every call with its message, for the benchmark of the lines between nodes.

    python -m bench.cluster_echo

Prints one JSON line with its ``url`` and serves until SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import suppress

from bench.cluster_world import identity_of
from kelpie.cluster.line import IncomingRequest
from kelpie.cluster.messages import ActorCall
from kelpie.cluster.rpc import AskedListener
from kelpie.host.clock import HostClock
from kelpie.host.frames import TcpFrames
from kelpie.host.heap import short_pauses
from kelpie.host.rng import HostRng
from kelpie.host.telemetry import HostTelemetry


class Echo:
    """Answers a call with its message."""

    def asked(self, request: IncomingRequest) -> None:
        """Answer at once."""
        assert isinstance(request.body, ActorCall)
        request.answer(request.body.message)


async def serve() -> None:
    """Serve until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    telemetry = HostTelemetry(level="warning", style="console", clock=HostClock())
    listener = AskedListener(
        frames=TcpFrames(telemetry=telemetry),
        identity=identity_of("echo"),
        rng=HostRng(),
        telemetry=telemetry,
        service=Echo(),
    )
    await listener.open("127.0.0.1:0")
    print(json.dumps({"url": f"tcp://{listener.address}"}), flush=True)
    await stopped.wait()
    await listener.close()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt), short_pauses():
        asyncio.run(serve())
