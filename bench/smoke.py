"""The whole path, measured from outside: start, memory, reads, durable calls, agent messages.

The model is the scripted one, a process of its own that answers at once, so that a message's
latency is the product's own work, two exchanges with a neighbour, and the disk's syncs.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from bench.load import Load, ask_once, encode_request, run_load
from bench.processes import HEALTH, Process, running, serve_command, until_healthy
from bench.report import Row

RUNS = 5
SYNCS = 50
READS = 2_000
ECHOES = 4_000
ECHO_CLIENTS = 64
MESSAGES_PER_AGENT = 40  # a conversation of an ordinary length; the prompt grows with it
LOAD_S_MAX = 30.0
MESSAGE_CLIENTS = (1, 16)
AGENTS_MIN = 6  # so that one client's processor time is far above the kernel's tick
MODEL_KEY = "no-secret"

Figures = dict[str, list[float]]


def say(text: str) -> None:
    """Report progress on stderr: stdout belongs to the result."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


async def measure() -> list[Row]:
    """Run everything and return the rows.

    Raises:
        LoadError: A process did not start, or a request was refused.
    """
    figures: Figures = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="kelpie-bench-") as name:
        directory = Path(name)
        figures["disk.sync"] = [measure_sync(directory / "sync") for _ in range(RUNS)]
        say(f"start-up, {RUNS} runs")
        await _measure_starts(directory, figures)
        say(f"durable echo, {RUNS} runs at {ECHO_CLIENTS} clients")
        await _measure_echo(directory, figures)
        say(f"reads and agent messages, {RUNS} runs")
        await _measure_product(directory, figures)
    return _rows(figures)


def measure_sync(path: Path) -> float:
    """Return the median time in ms of a small write that reaches the disk."""
    took_ms: list[float] = []
    with path.open("wb", buffering=0) as file:
        for _ in range(SYNCS):
            began = time.perf_counter()
            file.write(bytes(4_096))
            os.fdatasync(file.fileno())
            took_ms.append((time.perf_counter() - began) * 1_000)
    return statistics.median(took_ms)


async def _measure_starts(directory: Path, figures: Figures) -> None:
    """Start on a new store each time; the first start fills the caches and does not count."""
    for run in range(RUNS + 1):
        began = time.perf_counter()
        with running(serve_command(directory / f"start-{run}"), {}) as server:
            await until_healthy(server.port)
            took_s = time.perf_counter() - began
            if run:
                figures["start.healthy"].append(took_s)
                figures["start.cpu"].append(server.cpu_ms())
                figures["memory.idle"].append(server.rss_mib())


async def _measure_echo(directory: Path, figures: Figures) -> None:
    with running(["-m", "bench.echo_server", str(directory / "echo")], {}) as server:
        for run in range(RUNS + 1):
            for name, is_keyed in (("echo", False), ("echo.keyed", True)):
                load = await _load(
                    server,
                    _echo_requests(run, is_keyed=is_keyed),
                    figures if run else None,
                    f"{name}.{ECHO_CLIENTS}",
                    clients=ECHO_CLIENTS,
                    count=ECHOES if run else ECHOES // 4,
                )
                assert load.count > 0


def _echo_requests(run: int, *, is_keyed: bool) -> Callable[[int, int], bytes]:
    def make(client: int, index: int) -> bytes:
        body = {"type": "bench.echo", "text": f"{run}/{index}"}
        key = f"{run}-{index}" if is_keyed else None
        return encode_request("POST", f"/bench/echo/{client}", body, key=key)

    return make


async def _measure_product(directory: Path, figures: Figures) -> None:
    with running(["demo/scripted_model.py", "--text", "Hello."], {}) as model:
        url = f"http://127.0.0.1:{model.port}/v1"
        environment = {"OPENAI_API_KEY": MODEL_KEY, "OPENAI_BASE_URL": url}
        with running(serve_command(directory / "product"), environment) as server:
            await until_healthy(server.port)
            agent = await _create_agent(server)
            for run in range(RUNS + 1):
                kept = figures if run else None
                for name, path in (("health", HEALTH), ("agent", f"/v1/agents/{agent}")):
                    request = encode_request("GET", path)
                    load = await _load(
                        server,
                        _always(request),
                        kept,
                        f"read.{name}",
                        clients=1,
                        count=READS,
                    )
                    assert load.count > 0
                for clients in MESSAGE_CLIENTS:
                    await _measure_messages(server, clients, kept)
            figures["memory.loaded"].append(server.rss_mib())


def _always(request: bytes) -> Callable[[int, int], bytes]:
    return lambda _client, _index: request


async def _measure_messages(server: Process, clients: int, figures: Figures | None) -> None:
    """Have each client talk with one agent after another; no agent is talked to by two."""
    rounds = -(-AGENTS_MIN // clients)
    agents = [await _create_agent(server) for _ in range(clients * rounds)]
    body = {"messages": [{"role": "user", "content": "Hello?"}]}
    requests = [encode_request("POST", f"/v1/agents/{agent}/messages", body) for agent in agents]
    await _load(
        server,
        lambda client, index: requests[client + index // MESSAGES_PER_AGENT % rounds * clients],
        figures,
        f"message.{clients}",
        clients=clients,
        count=len(agents) * MESSAGES_PER_AGENT,
    )


async def _create_agent(server: Process) -> str:
    agent = await ask_once(server.port, "POST", "/v1/agents/", {"name": "bench"})
    return str(agent["id"])


async def _load(
    server: Process,
    make_request: Callable[[int, int], bytes],
    figures: Figures | None,
    name: str,
    *,
    clients: int,
    count: int,
) -> Load:
    """Run one load; note its figures unless it only warms the server up."""
    cpu_ms = server.cpu_ms()
    load = await run_load(
        server.port, make_request, clients=clients, count=count, duration_s_max=LOAD_S_MAX
    )
    if figures is not None:
        figures[f"{name}.rate"].append(load.rate)
        figures[f"{name}.p50"].append(load.percentile(0.50))
        figures[f"{name}.p99"].append(load.percentile(0.99))
        figures[f"{name}.cpu"].append((server.cpu_ms() - cpu_ms) / load.count)
    return load


def _rows(figures: Figures) -> list[Row]:
    rows = [
        Row(id="start.healthy", runs=figures["start.healthy"], unit="s", target=1.5),
        Row(id="start.cpu", runs=figures["start.cpu"], unit="ms"),
        Row(id="memory.idle", runs=figures["memory.idle"], unit="MiB", target=110),
        Row(id="memory.loaded", runs=figures["memory.loaded"], unit="MiB"),
        Row(id="disk.sync", runs=figures["disk.sync"], unit="ms"),
    ]
    for name, cpu_ms_max in (("read.health", 0.4), ("read.agent", 0.4)):
        rows += _load_rows(figures, name, cpu_ms_max=cpu_ms_max)
    for name in (f"echo.{ECHO_CLIENTS}", f"echo.keyed.{ECHO_CLIENTS}"):
        rows += _load_rows(figures, name)
    for clients in MESSAGE_CLIENTS:
        rows += _load_rows(figures, f"message.{clients}", cpu_ms_max=5.0)
    return rows


def _load_rows(figures: Figures, name: str, *, cpu_ms_max: float | None = None) -> list[Row]:
    return [
        Row(id=f"{name}.rate", runs=figures[f"{name}.rate"], unit="calls/s", op=">="),
        Row(id=f"{name}.p50", runs=figures[f"{name}.p50"], unit="ms"),
        Row(id=f"{name}.p99", runs=figures[f"{name}.p99"], unit="ms"),
        Row(id=f"{name}.cpu", runs=figures[f"{name}.cpu"], unit="ms/call", target=cpu_ms_max),
    ]


def run() -> list[Row]:
    """Measure and return the rows."""
    return asyncio.run(measure())
