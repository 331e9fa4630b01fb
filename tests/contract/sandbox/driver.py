"""Runs one sandbox order as a process of its own, so that a test can choose its user and kill it.

Reads JSON on stdin: ``base`` (a directory of this user), ``action`` and the fields of a request.
Writes one JSON object on stdout. Imports what the product ships and the standard library alone.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kelpie.core.digests import Digest
from kelpie.core.errors import KelpieError, NotFoundError
from kelpie.host.clock import HostClock
from kelpie.host.process import HostProcesses
from kelpie.host.rng import HostRng
from kelpie.sandbox.bubblewrap import Bubblewrap
from kelpie.sandbox.protocol import Bounds, CommandRequest, CommandResult


class DirectoryBlobs:
    """Blobs as files; enough for a test."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def put_bytes(self, data: bytes) -> Digest:
        digest = Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")
        (self._root / digest).write_bytes(data)
        return digest

    def put_many(self, contents: Sequence[bytes | Path]) -> Sequence[Digest]:
        return [
            self.put_bytes(each if isinstance(each, bytes) else each.read_bytes())
            for each in contents
        ]

    def get(self, digest: Digest) -> bytes:
        if not self.exists(digest):
            raise NotFoundError("blob", digest)
        return (self._root / digest).read_bytes()

    def exists(self, digest: Digest) -> bool:
        return (self._root / digest).is_file()


def make_sandbox(base: Path, **options: Any) -> Bubblewrap:
    return Bubblewrap(
        processes=HostProcesses(),
        blobs=DirectoryBlobs(base / "blobs"),
        clock=HostClock(),
        rng=HostRng(),
        scratch_root=base / "scratch",
        **options,
    )


def make_request(order: dict[str, Any]) -> CommandRequest:
    return CommandRequest(
        argv=tuple(order["argv"]),
        workspace=Path(order["base"], "workspace"),
        access=order.get("access", "read"),
        directory=order.get("directory", "."),
        stdin=order.get("stdin", "").encode(),
        environment=order.get("environment", {}),
        bounds=Bounds(**order.get("bounds", {})),
    )


def describe(result: CommandResult, blobs: DirectoryBlobs) -> dict[str, Any]:
    text = result._asdict()
    text["stdout"] = result.stdout.decode(errors="replace")
    text["stderr"] = result.stderr.decode(errors="replace")
    text["changes"] = {}
    for change in result.changes:
        content = ""
        if change.after and change.kind != "directory":
            content = base64.b64encode(blobs.get(Digest(change.after))).decode()
        text["changes"][change.path] = {
            "kind": change.kind, "before": change.before, "after": change.after,
            "mode": change.mode, "content": content,
        }  # fmt: skip
    return text


async def act(order: dict[str, Any]) -> dict[str, Any]:
    base = Path(order["base"])
    sandbox = make_sandbox(base, **order.get("options", {}))
    match order["action"]:
        case "run":
            result = await sandbox.run(make_request(order))
            return describe(result, DirectoryBlobs(base / "blobs"))
        case "stream":
            return {"pieces": await stream(sandbox, order)}
        case "cancel":
            return await cancel(sandbox, order)
        case "reap":
            return {"killed": await sandbox.reap_orphans()}
        case "probe":
            return (await sandbox.probe())._asdict()
        case other:
            raise ValueError(other)


async def stream(sandbox: Bubblewrap, order: dict[str, Any]) -> list[str]:
    pieces: list[str] = []

    async def sink(name: str, data: bytes) -> None:
        pieces.append(f"{name}:{data.decode()}")

    await sandbox.run(make_request(order), sink)
    return pieces


async def cancel(sandbox: Bubblewrap, order: dict[str, Any]) -> dict[str, Any]:
    """Cancel the command as soon as it prints."""
    printed = asyncio.Event()

    async def sink(name: str, data: bytes) -> None:
        printed.set()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(sandbox.run(make_request(order), sink))
        await printed.wait()
        task.cancel()
    return {"cancelled": task.cancelled()}


def main() -> None:
    order = json.load(sys.stdin)
    try:
        answer = asyncio.run(act(order))
    except KelpieError as error:
        answer = {"error": type(error).__name__, "message": error.message}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
