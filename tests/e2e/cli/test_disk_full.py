"""A disk that fills up: typed errors, nothing half written, and recovery once there is room."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.support.node import Server, free_port
from tests.e2e.support.scripts import conversation
from tests.system import require_program
from tests.waiting import eventually

if TYPE_CHECKING:
    import httpx

    from tests.e2e.support.node import Node

DISK_FULL = 507
MIB = 1024 * 1024
# A mount namespace of its own needs no privileges, and goes with its last process.
MOUNT = 'mount -t tmpfs -o size=6m none "$0" && exec "$@"'


def serve_on_small_disk(node: Node) -> tuple[Server, Path]:
    """A server whose data directory is a disk of 6 MiB, and that directory seen from here."""
    unshare = require_program("unshare", package="util-linux")
    node.data.mkdir()
    port = free_port()
    argv = [sys.executable, "-m", "kelpie.cli", "serve", "--port", str(port), "--json"]
    process = node.run([unshare, "-rm", "sh", "-c", MOUNT, str(node.data), *argv])
    process.await_out("url")
    return Server(process, port), Path(f"/proc/{process.pid}/root{node.data}")


def fill(directory: Path) -> Path:
    """Takes what is left of the disk."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65_536, 4_096):
            while not is_full(file.fileno(), size):
                pass
    return filler


def is_full(descriptor: int, size: int) -> bool:
    """Writes `size` bytes; true when they do not fit any more."""
    try:
        return os.write(descriptor, bytes(size)) < size
    except OSError:
        return True


@pytest.mark.requirement("DISK-FULL")
def test_a_full_disk_is_a_typed_error_and_the_store_recovers(node: Node) -> None:
    node.script(*conversation())
    server, disk = serve_on_small_disk(node)
    agent_id = server.post("/v1/agents", {"name": "ada"})["id"]
    server.post(f"/v1/agents/{agent_id}/messages", {"input": "hello"})
    filler = fill(disk)
    refusals: list[httpx.Response] = []
    acknowledged: list[httpx.Response] = []
    body = {"name": "x", "system": "s" * 200_000}
    for _ in range(40):
        response = server.ask("POST", "/v1/agents", json=body)
        (acknowledged if response.status_code == 200 else refusals).append(response)
        if len(refusals) == 3:
            break
    assert [each.status_code for each in refusals] == [DISK_FULL] * 3, refusals[0].text
    assert refusals[0].json()["error"]["code"] == "disk_full"
    assert server.get("/v1/health")["status"] == "ok"
    listed = len(server.get("/v1/agents", limit=100))
    assert listed == 1 + len(acknowledged)
    filler.unlink()
    eventually(
        lambda: server.ask("POST", "/v1/agents", json={"name": "y"}).status_code == 200,
        within_s=10,
        what="the store to take writes again",
    )
    answer = server.post(f"/v1/agents/{agent_id}/messages", {"input": "hello"})
    assert answer["messages"][-1]["content"] == "Hello to you."
    assert server.post("/v1/store/check") == {"ok": True, "problems": [], "damaged": []}
    assert server.get("/v1/audit/verify")["ok"]
    assert len(server.get("/v1/agents", limit=100)) == listed + 1
    assert json.loads(server.process.out)["held"] is False
    assert server.process.end() == 0
