"""``./dev chaos --minutes N --seed S``: a cluster under load, faults by chance, and a judgement.

The seed draws the faults and the clients' choices; how processes and their database interleave is
the machine's. A run that fails tells its seed and leaves nothing running.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.cluster.bed import Bed
from tests.e2e.cluster.faults import FAULTS, judge_under_load
from tests.postgres import make_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.e2e.cluster.writing import Findings, Writers

NODES = 3
DESCRIPTION = "Write to a cluster while faults befall it, and judge the history."
SEED_MAX = 2**32


async def run_chaos(bed: Bed, *, minutes: float, seed: int, nodes: int = NODES) -> Findings:
    """Lets faults happen to a cluster for so long, at least one of them, and judges its history."""
    draw = random.Random(seed)
    began = time.monotonic()
    await bed.begin(nodes)

    async def happen(writers: Writers) -> None:
        ends = time.monotonic() + minutes * 60
        while True:
            fault, node = draw.choice(FAULTS), draw.choice(bed.nodes)
            say(f"{time.monotonic() - began:7.1f} s {fault.__name__} {node.name}")
            await fault(bed, writers, node)
            if time.monotonic() > ends:
                return

    return await judge_under_load(bed, seed, happen)


def say(text: str) -> None:
    """Reports progress on stderr; stdout is for the verdict."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str]) -> int:
    """Return 0 when no promise was broken."""
    parser = argparse.ArgumentParser(prog="./dev chaos", description=DESCRIPTION)
    parser.add_argument("--minutes", type=float, default=1.0, help="for how long")
    parser.add_argument("--seed", type=int, help="which faults; drawn and printed without it")
    parser.add_argument("--nodes", type=int, default=NODES, help="at least two")
    chosen = parser.parse_args(arguments)
    if chosen.nodes < 2 or chosen.minutes < 0:
        parser.error("it takes two nodes and some time")
    seed = random.SystemRandom().randrange(SEED_MAX) if chosen.seed is None else chosen.seed
    # Ends as an error does, so that no node is left behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    say(f"seed {seed}, {chosen.minutes:g} minutes, {chosen.nodes} nodes")
    with tempfile.TemporaryDirectory(prefix="kelpie-chaos-") as directory:
        database = make_server()
        database.start()
        bed = Bed(Path(directory), database)
        try:
            run = run_chaos(bed, minutes=chosen.minutes, seed=seed, nodes=chosen.nodes)
            findings = asyncio.run(run)
        finally:
            bed.close()
            database.stop()
    sys.stdout.write(f"{findings}\n")
    return int(bool(findings.problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
