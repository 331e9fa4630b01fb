"""Nodes of a cluster on one machine: what a request over the line between two of them costs.

Both ends are processes of their own and share the machine's processors with each other.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.cluster_world import identity_of
from bench.processes import Process, running
from bench.report import Row
from bench.store import percentile
from kelpie.actors.supervisor import Supervisor
from kelpie.cluster.messages import ActorCall
from kelpie.cluster.rpc import Lines
from kelpie.host.clock import HostClock
from kelpie.host.frames import TcpFrames
from kelpie.host.heap import short_pauses
from kelpie.host.rng import HostRng
from kelpie.host.telemetry import HostTelemetry

RUNS = 5
BODY = bytes(100)
CALLERS = 64
CALLS = 40_000
PIPELINED = 1_024
PIPELINED_CALLS = 120_000
TIMEOUT_MS = 30_000

Figures = dict[str, list[float]]


def say(text: str) -> None:
    """Report progress on stderr: stdout belongs to the result."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


@asynccontextmanager
async def lines_of(node: str) -> AsyncIterator[Lines]:
    """Yield one node's lines, and close them at the end."""
    clock = HostClock()
    telemetry = HostTelemetry(level="warning", style="console", clock=clock)
    supervisor = Supervisor(clock=clock, telemetry=telemetry)
    lines = Lines(
        frames=TcpFrames(telemetry=telemetry),
        identity=identity_of(node),
        rng=HostRng(),
        supervisor=supervisor,
        telemetry=telemetry,
    )
    try:
        yield lines
    finally:
        lines.close()
        await supervisor.close()


async def ask_many(lines: Lines, address: str, *, callers: int, count: int) -> list[float]:
    """Ask ``count`` times, ``callers`` at a time, and return the latencies in ms."""
    body = ActorCall(actor="t/bench/a", message=BODY, principal="bench", key="k")
    latencies_ms: list[float] = []

    async def drive() -> None:
        for _ in range(count // callers):
            began = time.perf_counter()
            answer = await lines.ask(address, body, timeout_ms=TIMEOUT_MS)
            latencies_ms.append((time.perf_counter() - began) * 1_000)
            assert len(answer) == len(BODY)

    await asyncio.gather(*(drive() for _ in range(callers)))
    return latencies_ms


async def _measure_lines(server: Process, figures: Figures) -> None:
    address = f"127.0.0.1:{server.port}"
    async with lines_of("asker") as lines:
        await ask_many(lines, address, callers=CALLERS, count=CALLS // 4)
        for _ in range(RUNS):
            latencies_ms = await ask_many(lines, address, callers=CALLERS, count=CALLS)
            figures["rpc.64.p50"].append(percentile(latencies_ms, 0.50))
            figures["rpc.64.p99"].append(percentile(latencies_ms, 0.99))
            cpu_ms, own_s = server.cpu_ms(), time.process_time()
            began = time.perf_counter()
            await ask_many(lines, address, callers=PIPELINED, count=PIPELINED_CALLS)
            took_s = time.perf_counter() - began
            done = PIPELINED_CALLS // PIPELINED * PIPELINED
            figures["rpc.pipelined.rate"].append(done / took_s)
            figures["rpc.asker.cpu"].append((time.process_time() - own_s) / done * 1e6)
            figures["rpc.answerer.cpu"].append((server.cpu_ms() - cpu_ms) / done * 1e3)


async def measure() -> list[Row]:
    """Run everything and return the rows."""
    figures: Figures = defaultdict(list)
    say(f"requests of {len(BODY)} B between two processes, {RUNS} runs")
    with running(["-m", "bench.cluster_echo"], {}) as server, short_pauses():
        await _measure_lines(server, figures)
    return [
        Row(id="rpc.64.p50", runs=figures["rpc.64.p50"], unit="ms"),
        Row(id="rpc.64.p99", runs=figures["rpc.64.p99"], unit="ms", target=1.0),
        Row(
            id="rpc.pipelined.rate",
            runs=figures["rpc.pipelined.rate"],
            unit="calls/s",
            target=60_000,
            op=">=",
        ),
        Row(id="rpc.asker.cpu", runs=figures["rpc.asker.cpu"], unit="us/call"),
        Row(id="rpc.answerer.cpu", runs=figures["rpc.answerer.cpu"], unit="us/call"),
    ]


def run() -> list[Row]:
    """Measure and return the rows."""
    return asyncio.run(measure())
