"""Other runtimes, each installed into a scratch environment of its own, measured like ours.

Nothing of them touches the product's environment. A peer that cannot be installed or does not
start is left out, and says why on stderr: its rows then have no peer.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import LoadError, encode_request, run_load
from bench.processes import Process

HERE = Path(__file__).parent
INSTALL_S_MAX = 300.0
RUN_S_MAX = 120.0
START_S_MAX = 60.0
STOP_S_MAX = 10.0
POLL_S = 0.05
RUNS = 3
CALLS = {1: 400, 64: 3_000}
LOAD_S_MAX = 12.0


class PeerError(Exception):
    """A peer cannot be had here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayFigures:
    """What Ray came to; rates in calls/s, latencies in µs, each the median of its runs."""

    name: str
    rate: float
    p50_us: float
    p99_us: float
    one_p50_us: float
    one_p99_us: float
    actor_mib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpFigures:
    """What a durable call over HTTP came to, each the median of its runs."""

    name: str
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


def measure_ray(place: Path) -> RayFigures:
    """Install Ray under ``place`` and measure calls of idle actors.

    Raises:
        PeerError: It cannot be installed, or it failed.
    """
    python = make_environment(place / "ray", "ray")
    # Ray's sockets lie below this directory, and a socket's path is short.
    with _short_directory() as short:
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
        environment.pop("PYTHONPATH", None)
        command = [str(python), str(HERE / "peer_ray.py"), str(short)]
        out = _run(command, RUN_S_MAX, environment)
    found = json.loads(out.splitlines()[-1])

    def middle(runs: str, figure: str) -> float:
        return statistics.median(float(run[figure]) for run in found[runs])

    return RayFigures(
        name=f"Ray {found['version']}",
        rate=middle("many", "rate"),
        p50_us=middle("many", "p50"),
        p99_us=middle("many", "p99"),
        one_p50_us=middle("one", "p50"),
        one_p99_us=middle("one", "p99"),
        actor_mib=statistics.median(found["memory_mib"]),
    )


async def measure_restate(place: Path) -> dict[int, HttpFigures]:
    """Install Restate under ``place`` and measure keyed calls of a counter; figures by clients.

    Raises:
        PeerError: It cannot be installed, or it failed.
    """
    python = make_environment(place / "restate", "restate-sdk", "hypercorn")
    server = _install_restate_server(place / "restate-server")
    with ExitStack() as stack:
        ports = _free_ports(4)
        service = _start_service(stack, python, ports[0], place)
        runtime = _start_server(stack, server, ports[1:], place)
        await _until_listening(ports[0])
        await _register(ports[2], ports[0])
        name = f"Restate {_run([str(server), '--version'], 10.0).split()[-1]}"
        pids = (service, runtime)
        found: dict[int, HttpFigures] = {}
        for clients in CALLS:
            found[clients] = await _measure_http(name, ports[1], clients, pids)
        return found


async def _measure_http(name: str, port: int, clients: int, pids: tuple[int, ...]) -> HttpFigures:
    processes = [Process(pid, port) for pid in pids]
    rates, p50s, p99s, cpus = [], [], [], []
    for run in range(RUNS + 1):

        def make(client: int, index: int, run: int = run) -> bytes:
            key = f"{clients}-{run}-{index}"
            return encode_request("POST", f"/Counter/c{client}/add", 1, key=key)

        cpu_ms = sum(process.cpu_ms() for process in processes)
        try:
            load = await run_load(
                port, make, clients=clients, count=CALLS[clients], duration_s_max=LOAD_S_MAX
            )
        except LoadError as error:
            raise PeerError(f"Restate refused a call: {error}") from error
        if run:  # the first one warms up
            used_ms = sum(process.cpu_ms() for process in processes) - cpu_ms
            rates.append(load.rate)
            p50s.append(load.percentile(0.50))
            p99s.append(load.percentile(0.99))
            cpus.append(used_ms * 1_000 / load.count)
    middle = statistics.median
    return HttpFigures(
        name=name,
        rate=middle(rates),
        p50_ms=middle(p50s),
        p99_ms=middle(p99s),
        cpu_us=middle(cpus),
    )


# --- installing -----------------------------------------------------------------------------------


def make_environment(place: Path, *packages: str) -> Path:
    """Install packages into an environment of their own and return its Python.

    Raises:
        PeerError: They cannot be installed.
    """
    python = place / "bin" / "python"
    base = getattr(sys, "_base_executable", sys.executable)
    _run([base, "-m", "venv", str(place)], INSTALL_S_MAX)
    _run([str(python), "-m", "pip", "install", "--quiet", *packages], INSTALL_S_MAX)
    return python


def _install_restate_server(place: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise PeerError("Restate's server comes from npm, which is not here; install nodejs npm")
    place.mkdir()
    options = ["--no-audit", "--no-fund", "--ignore-scripts"]
    command = [npm, "install", *options, "--prefix", str(place), "@restatedev/restate-server"]
    _run(command, INSTALL_S_MAX)
    # The package's own launcher is a script around this program; signals must reach the program.
    programs = sorted(place.glob("node_modules/@restatedev/restate-server-linux-*/bin/*"))
    if not programs:
        raise PeerError("Restate's npm package has no server for this machine")
    return programs[0]


def _run(command: list[str], within_s: float, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=within_s, env=environment
        )
    except subprocess.CalledProcessError as error:
        raise PeerError(f"{' '.join(command[:6])}: {error.stderr.strip()[-500:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{' '.join(command[:6])}: {error}") from error
    return done.stdout


@contextmanager
def _short_directory() -> Iterator[Path]:
    place = Path("/tmp") / f"kb{os.getpid()}"  # noqa: S108  named by our process id, made by us
    place.mkdir(mode=0o700)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


# --- running --------------------------------------------------------------------------------------


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _start_service(stack: ExitStack, python: Path, port: int, place: Path) -> int:
    hypercorn = [str(python), "-m", "hypercorn", "--bind", f"127.0.0.1:{port}"]
    return _start(stack, [*hypercorn, "peer_restate:app"], {"PYTHONPATH": str(HERE)}, place)


def _start_server(stack: ExitStack, server: Path, ports: list[int], place: Path) -> int:
    ingress, admin, fabric = ports
    environment = {
        "RESTATE_BASE_DIR": str(place / "restate-data"),
        "RESTATE_BIND_IP": "127.0.0.1",
        "RESTATE_BIND_PORT": str(fabric),
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RUST_LOG": "error",
    }
    return _start(stack, [str(server), "--no-logo"], environment, place)


def _start(stack: ExitStack, command: list[str], more: dict[str, str], place: Path) -> int:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = stack.enter_context((place / f"{Path(command[0]).name}.log").open("wb"))
    process = subprocess.Popen(
        command, cwd=place, env={**inherited, **more}, stdout=log, stderr=subprocess.STDOUT
    )
    stack.callback(_stop, process)
    return process.pid


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _until_listening(port: int) -> None:
    ends = time.monotonic() + START_S_MAX
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > ends:
            raise PeerError(f"nothing listens on port {port} after {START_S_MAX:.0f} s")
        await asyncio.sleep(POLL_S)


async def _register(admin: int, service: int) -> None:
    await _until_listening(admin)
    request = encode_request("POST", "/deployments", {"uri": f"http://127.0.0.1:{service}"})
    ends = time.monotonic() + START_S_MAX
    while True:
        try:
            await run_load(
                admin,
                lambda _client, _index: request,
                clients=1,
                count=1,
                duration_s_max=START_S_MAX,
            )
        except (OSError, LoadError) as error:
            if time.monotonic() > ends:
                raise PeerError(f"Restate took no deployment: {error}") from error
            await asyncio.sleep(POLL_S)
        else:
            return
