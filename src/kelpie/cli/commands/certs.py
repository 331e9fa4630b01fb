"""``kelpie cluster certs``: the certificates by which nodes know each other."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from kelpie.cli.errors import CommandError
from kelpie.cli.frame import Frame, framed
from kelpie.cluster.certificates import Certified, make_authority, make_node

AUTHORITY = "ca"
PRIVATE = 0o600
PUBLIC = 0o644


@click.command()
@framed(remote=False)
@click.option(
    "--out", "directory", required=True, metavar="DIR", help="Where the files are, or go."
)
@click.option("--cluster", "name", default="kelpie", help="What a new authority is called.")
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
def certs(frame: Frame, *, directory: str, name: str, nodes: tuple[str, ...]) -> None:
    """Make a certificate for each NODE, and the cluster's authority where DIR has none.

    DIR gets ca.pem and ca.key once, and NODE.pem and NODE.key for each node. A node needs ca.pem
    and its own two files. Keep ca.key away from the nodes: whoever has it can become one.
    """
    folder = frame.path(directory)
    _require_new(folder, nodes)
    authority = _authority(folder, name)
    now_ms = time.time_ns() // 1_000_000
    made = {node: make_node(node, authority, now_ms=now_ms) for node in nodes}
    if not (folder / f"{AUTHORITY}.key").exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(folder, AUTHORITY, authority)
    for node, certified in made.items():
        _write(folder, node, certified)
    if frame.as_json:
        files = {node: [str(path) for path in _paths(folder, node)] for node in nodes}
        frame.terminal.data({"authority": str(folder / f"{AUTHORITY}.pem"), "nodes": files})
        return
    for node in nodes:
        frame.terminal.say(f"{node}: {folder / f'{node}.pem'} and {folder / f'{node}.key'}")
    frame.terminal.say(f"Give each node its two files and {folder / f'{AUTHORITY}.pem'}.")


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.pem", folder / f"{name}.key"


def _require_new(folder: Path, nodes: tuple[str, ...]) -> None:
    """Return if nothing would be overwritten.

    Raises:
        CommandError: A node is named twice, is called as the authority, or has its files.
    """
    for index, node in enumerate(nodes):
        if node == AUTHORITY or node in nodes[:index]:
            raise CommandError("invalid_field", f"{node} is the authority, or named twice")
        there = [path for path in _paths(folder, node) if path.exists()]
        if there:
            message = f"{there[0]} is there already; move it away, or name another node"
            raise CommandError("conflict", message)


def _authority(folder: Path, name: str) -> Certified:
    """Return the authority in ``folder``, or a new one that is not written yet."""
    certificate, key = _paths(folder, AUTHORITY)
    if certificate.exists() != key.exists():
        message = f"{certificate} and {key} belong together, and one of them is missing"
        raise CommandError("conflict", message)
    if key.exists():
        return Certified(certificate.read_bytes(), key.read_bytes())
    return make_authority(name, now_ms=time.time_ns() // 1_000_000)


def _write(folder: Path, name: str, certified: Certified) -> None:
    """Write the key first, for its owner alone, then the certificate; never over a file."""
    certificate, key = _paths(folder, name)
    for path, content, mode in (
        (key, certified.key, PRIVATE),
        (certificate, certified.certificate, PUBLIC),
    ):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
