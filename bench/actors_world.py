"""A store of very many counters, written in bulk, and the children that measure beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import msgspec

from bench.counter import Tally
from bench.load import LoadError
from bench.processes import clean_environment
from bench.report import ROOT
from bench.store_world import fill_store
from kelpie.storage.sqlite.engine import connect_writer

STATE_BYTES = 100
PART_S_MAX = 240.0


def fill_counters(path: Path, *, actors: int, reminders: int) -> None:
    """Make a store of counters whose encoded states have ``STATE_BYTES``, and far reminders."""
    fill_store(path, actors=actors, reminders=reminders, messages=0)
    encode = msgspec.msgpack.encode
    state = encode(Tally(note=bytes(STATE_BYTES - len(encode(Tally(note=bytes(32)))) + 32)))
    assert len(state) == STATE_BYTES
    with closing(connect_writer(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN IMMEDIATE")
        changed = connection.execute(
            "UPDATE actors SET state = ?, checksum = ?", (state, zlib.crc32(state))
        ).rowcount
        connection.execute("COMMIT")
    assert changed == actors


def run_inside(part: str, place: Path, **environment: str) -> Mapping[str, list[float]]:
    """Run one part of `bench.actors_inside` in a process of its own and return its figures.

    Raises:
        LoadError: It failed, or took too long; its stderr went to ours.
    """
    place.mkdir(exist_ok=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.actors_inside", part, str(place)],
            cwd=ROOT,
            env={**clean_environment(), **environment},
            stdout=subprocess.PIPE,
            text=True,
            timeout=PART_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"{part} took more than {PART_S_MAX:.0f} s") from error
    if done.returncode != 0:
        raise LoadError(f"{part} failed with status {done.returncode}")
    figures: dict[str, list[float]] = json.loads(done.stdout)
    return figures


def actor_count() -> int:
    """Return how many actors the large store has: a million, or ``BENCH_ACTORS``."""
    return int(os.environ.get("BENCH_ACTORS", "1000000"))
