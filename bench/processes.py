"""The processes that a benchmark measures: started, watched through /proc, and stopped."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from bench.load import LoadError, ask_once
from bench.report import ROOT

HEALTH = "/v1/health/"
START_S_MAX = 60.0
STOP_S_MAX = 40.0  # above the server's own bound on draining
POLL_S = 0.002
TICK_MS = 1_000 / os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """A running process that listens on the loopback's ``port``."""

    pid: int
    port: int

    def cpu_ms(self) -> float:
        """Return the processor time it has used, user and system, all threads."""
        stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8")
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_MS

    def rss_mib(self) -> float:
        """Return its resident memory."""
        pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="utf-8").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Process]:
    """Start a program that prints one JSON line with its ``url``, and stop it at the end.

    Raises:
        LoadError: It ended without that line; its stderr went to ours.
    """
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**clean_environment(), **environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise LoadError(f"{' '.join(command)} did not start")
            port = urlsplit(json.loads(line)["url"]).port
            assert port is not None
            yield Process(process.pid, port)
        finally:
            process.terminate()
            try:
                process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()


def clean_environment() -> dict[str, str]:
    """Return ours without settings of the product, and with compiled modules kept, as installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KELPIE_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}


def serve_command(data_dir: Path) -> list[str]:
    """Return the command that serves the product on a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    command = ["-m", "kelpie.cli", "serve", "--json", "--port", port]
    return [*command, "--data-dir", str(data_dir)]


async def until_healthy(port: int) -> None:
    """Return at the first healthy response.

    Raises:
        LoadError: There was none in time.
    """
    ends = time.monotonic() + START_S_MAX
    while True:
        try:
            await ask_once(port, "GET", HEALTH)
        except (OSError, LoadError):
            if time.monotonic() > ends:
                raise LoadError(f"not healthy within {START_S_MAX:.0f} s") from None
            await asyncio.sleep(POLL_S)
        else:
            return
