"""Durable actors: calls, commits, memory and starts, with Ray and Restate beside them if wanted.

Every row of a promise about speed or memory has its target. A ratio compares figures of one run on
one machine; a peer that cannot be installed leaves its rows without a peer, and says why on stderr.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from bench import peers
from bench.actors_world import actor_count, fill_counters, run_inside
from bench.load import encode_request, run_load
from bench.peers import HttpFigures, PeerError, RayFigures
from bench.processes import Process, running, serve_command, until_healthy
from bench.report import Row
from bench.smoke import Figures, measure_sync, say

RUNS = 5
REMINDERS = 100_000
CALLS = {1: 1_000, 64: 6_000}
LOAD_S_MAX = 10.0
BARE = "bare SQLite loop"
COUNTERS = str(Path(__file__).with_name("counter.py"))

Peers = tuple[RayFigures | None, Mapping[int, HttpFigures]]
Found = Mapping[str, list[float]]


async def measure(*, with_peers: bool) -> list[Row]:
    """Run everything and return the rows.

    Raises:
        LoadError: A process of ours did not start, or a request was refused.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="kelpie-bench-") as name:
        place = Path(name)
        syncs: list[float] = []
        ray, restate = await _measure_peers(place) if with_peers else (None, {})
        rows += _local_rows(_inside("local", place), ray)
        syncs.append(measure_sync(place / "sync"))
        rows += _http_rows(await _measure_http(place), restate)
        syncs.append(measure_sync(place / "sync"))
        rows += _commit_rows(_inside("commits", place))
        rows += _hot_rows(_inside("hot", place))
        syncs.append(measure_sync(place / "sync"))
        rows += _large_rows(_inside("large", place))
        # Measured between the parts that wait for it: it says what their hour was like.
        syncs.append(measure_sync(place / "sync"))
        rows.append(Row(id="disk.sync", runs=syncs, unit="ms"))
        rows += await _measure_million(place / "million", ray)
    return rows


def _inside(part: str, place: Path) -> Found:
    say(f"{part}, {RUNS} runs in a process of its own")
    return run_inside(part, place / part)


async def _measure_peers(place: Path) -> Peers:
    ray: RayFigures | None = None
    restate: Mapping[int, HttpFigures] = {}
    try:
        say("Ray: installing and measuring")
        ray = peers.measure_ray(place)
    except PeerError as error:
        say(f"no peer for local calls and memory: {error}")
    try:
        say("Restate: installing and measuring")
        restate = await peers.measure_restate(place)
    except PeerError as error:
        say(f"no peer for durable calls: {error}")
    return ray, restate


# --- over HTTP ------------------------------------------------------------------------------------


async def _measure_http(place: Path) -> Figures:
    """Durable keyed calls: one client, many on actors of their own, many on one actor."""
    say(f"durable calls over HTTP, {RUNS} runs")
    figures: Figures = defaultdict(list)
    with (
        running([*serve_command(place / "http"), COUNTERS], {}) as server,
        running(["-m", "bench.floor_server", str(place / "floor")], {}) as floor,
    ):
        await until_healthy(server.port)
        for run in range(RUNS + 1):
            kept = figures if run else defaultdict(list)
            for clients, count in CALLS.items():
                name = f"http.{clients}"
                await _measure_load(floor, kept, f"{name}.floor", clients, count, run=run)
                await _measure_load(server, kept, name, clients, count, run=run)
                for figure in ("rate", "cpu"):
                    ours, least = kept[f"{name}.{figure}"][-1], kept[f"{name}.floor.{figure}"][-1]
                    kept[f"{name}.above_floor.{figure}"].append(ours / least)
            await _measure_load(server, kept, "http.hot", 64, CALLS[64], run=run, is_hot=True)
            if run:
                figures["http.hot.share"].append(
                    figures["http.hot.rate"][-1] / figures["http.64.rate"][-1]
                )
    return figures


async def _measure_load(
    server: Process,
    figures: Figures,
    name: str,
    clients: int,
    count: int,
    *,
    run: int,
    is_hot: bool = False,
) -> None:
    cpu_ms = server.cpu_ms()
    load = await run_load(
        server.port,
        _keyed(f"{name}-{run}", is_hot=is_hot),
        clients=clients,
        count=count,
        duration_s_max=LOAD_S_MAX,
    )
    figures[f"{name}.rate"].append(load.rate)
    figures[f"{name}.p50"].append(load.percentile(0.50))
    figures[f"{name}.p99"].append(load.percentile(0.99))
    figures[f"{name}.cpu"].append((server.cpu_ms() - cpu_ms) * 1_000 / load.count)


def _keyed(prefix: str, *, is_hot: bool) -> Callable[[int, int], bytes]:
    def make(client: int, index: int) -> bytes:
        path = f"/v1/actors/counter/{'hot' if is_hot else client}/add"
        return encode_request("POST", path, {"amount": 1}, key=f"{prefix}-{index}")

    return make


# --- a million actors -----------------------------------------------------------------------------


async def _measure_million(place: Path, ray: RayFigures | None) -> list[Row]:
    count = actor_count()
    say(f"a store of {count:,} actors and {REMINDERS:,} reminders")
    fill_counters(place / "kelpie.db", actors=count, reminders=min(REMINDERS, count))
    starts: list[float] = []
    for _ in range(RUNS):
        began = time.perf_counter()
        with running(serve_command(place), {}) as server:
            await until_healthy(server.port)
            starts.append(time.perf_counter() - began)
    say(f"all {count:,} in memory at once")
    found = run_inside("million", place, BENCH_ACTORS=str(count))
    memory = Row(
        id="resident.beside_state", runs=found["resident.beside"], unit="B/actor", target=512
    )
    if ray is not None:
        memory = replace(memory, peer=ray.name, peer_value=ray.actor_mib * 2**20)
    return [
        Row(id="million.start.healthy", runs=starts, unit="s", target=2.0),
        Row(id="million.cold.p50", runs=found["cold.p50"], unit="ms"),
        Row(id="million.cold.p99", runs=found["cold.p99"], unit="ms", target=5.0),
        memory,
        Row(id="resident.rss", runs=found["resident.rss"], unit="MiB", target=1_024),
        Row(id="resident.load", runs=found["resident.load"], unit="s"),
        Row(id="resident.local.p50", runs=found["resident.local.p50"], unit="us"),
        Row(id="resident.local.p99", runs=found["resident.local.p99"], unit="us", target=20),
        Row(id="resident.gc.pause.loading", runs=found["gc.loading"], unit="ms", target=15.0),
        Row(id="resident.gc.pause.serving", runs=found["gc.serving"], unit="ms", target=15.0),
        Row(id="resident.gc.pause.unfrozen", runs=found["gc.unfrozen"], unit="ms"),
    ]


# --- rows -----------------------------------------------------------------------------------------


def _local_rows(found: Found, ray: RayFigures | None) -> list[Row]:
    rate = Row(id="local.64.rate", runs=found["local.rate"], unit="calls/s", op=">=")
    p50 = Row(id="local.1.p50", runs=found["local.p50"], unit="us")
    p99 = Row(id="local.1.p99", runs=found["local.p99"], unit="us", target=20)
    rows = [p50, p99, rate]
    if ray is not None:
        ratios = [value / ray.rate for value in rate.runs]
        rows = [
            replace(p50, peer=ray.name, peer_value=ray.one_p50_us),
            replace(p99, peer=ray.name, peer_value=ray.one_p99_us),
            replace(rate, peer=ray.name, peer_value=ray.rate),
            Row(id="local.64.ratio", runs=ratios, unit="x Ray", target=100, op=">="),
        ]
    return [
        *rows,
        Row(id="local.1.cpu", runs=found["local.cpu"], unit="us/call"),
        Row(id="local.query.p50", runs=found["query.p50"], unit="us"),
        Row(id="local.query.p99", runs=found["query.p99"], unit="us"),
    ]


def _http_rows(found: Found, restate: Mapping[int, HttpFigures]) -> list[Row]:
    rows: list[Row] = []
    for clients, p99_ms, times in ((1, 1.5, 8.0), (64, 15.0, 12.0)):
        name = f"http.{clients}"
        units: dict[str, str] = {"rate": "calls/s", "p50": "ms", "p99": "ms", "cpu": "us/call"}
        peer = restate.get(clients)
        peer_values: dict[str, float] = {}
        if peer is not None:
            peer_values = {
                "rate": peer.rate,
                "p50": peer.p50_ms,
                "p99": peer.p99_ms,
                "cpu": peer.cpu_us,
            }
            ratios = [value / peer.rate for value in found[f"{name}.rate"]]
            rows.append(
                Row(id=f"{name}.ratio", runs=ratios, unit="x Restate", target=times, op=">=")
            )
        for figure, unit in units.items():
            rows.append(
                Row(
                    id=f"{name}.{figure}",
                    runs=found[f"{name}.{figure}"],
                    unit=unit,
                    op=">=" if figure == "rate" else "<=",
                    target=p99_ms if figure == "p99" else None,
                    peer=peer.name if peer else None,
                    peer_value=peer_values.get(figure),
                )
            )
        rows += _floor_rows(found, name, peer)
    share = found["http.hot.share"]
    rows.append(Row(id="http.hot.rate", runs=found["http.hot.rate"], unit="calls/s", op=">="))
    rows.append(Row(id="http.hot.share", runs=share, unit="of many", target=0.4, op=">="))
    return rows


def _floor_rows(found: Found, name: str, peer: HttpFigures | None) -> list[Row]:
    """Return what the bare server came to, and ours as a multiple of it in the same run."""
    floor_rates, floor_cpus = found[f"{name}.floor.rate"], found[f"{name}.floor.cpu"]
    rates, cpus = found[f"{name}.above_floor.rate"], found[f"{name}.above_floor.cpu"]
    rows = [
        Row(id=f"{name}.floor.rate", runs=floor_rates, unit="calls/s", op=">="),
        Row(id=f"{name}.floor.cpu", runs=floor_cpus, unit="us/call"),
        Row(id=f"{name}.above_floor.rate", runs=rates, unit="of floor", op=">="),
        Row(id=f"{name}.above_floor.cpu", runs=cpus, unit="x floor"),
    ]
    if peer is not None:
        ratios = [value / peer.rate for value in floor_rates]
        rows.insert(0, Row(id=f"{name}.floor.ratio", runs=ratios, unit="x Restate", op=">="))
    return rows


def _commit_rows(found: Found) -> list[Row]:
    bare = statistics.median(found["bare.rate"])
    rows: list[Row] = []
    for name, is_promise in (("commit", True), ("turns", False)):
        rows.append(
            Row(
                id=f"{name}.1024.rate",
                runs=found[f"{name}.rate"],
                unit=f"{name.rstrip('s')}s/s",
                op=">=",
                peer=BARE,
                peer_value=bare,
            )
        )
        share = found[f"{name}.share"]
        target = 0.5 if is_promise else None
        rows.append(
            Row(id=f"{name}.1024.share", runs=share, unit="of bare", target=target, op=">=")
        )
    rows.append(Row(id="turns.1024.cpu", runs=found["turns.cpu"], unit="us/turn"))
    return rows


def _hot_rows(found: Found) -> list[Row]:
    return [
        Row(id="many.64.rate", runs=found["many.rate"], unit="turns/s", op=">="),
        Row(id="hot.64.rate", runs=found["hot.rate"], unit="turns/s", op=">="),
        Row(id="hot.64.share", runs=found["hot.share"], unit="of many", target=0.4, op=">="),
    ]


def _large_rows(found: Found) -> list[Row]:
    return [
        Row(id="checkpoint32k.1.p50", runs=found["large.1.p50"], unit="ms"),
        Row(id="checkpoint32k.1.p99", runs=found["large.1.p99"], unit="ms", target=2.0),
        Row(id="checkpoint32k.64.p50", runs=found["large.64.p50"], unit="ms"),
        Row(id="checkpoint32k.64.p99", runs=found["large.64.p99"], unit="ms", target=10.0),
    ]


def run(*, with_peers: bool = False) -> list[Row]:
    """Measure and return the rows."""
    return asyncio.run(measure(with_peers=with_peers))
