"""Runs one benchmark: ``./dev bench NAME [--json] [--peers]``.

Exit status: 0 if every row meets its target, 1 if one does not or the benchmark failed.
"""

from __future__ import annotations

import argparse
import sys

from bench import actors, cluster, sim, smoke, store
from bench.load import LoadError
from bench.report import render_json, render_table

BENCHES = {"cluster": cluster.run, "sim": sim.run, "smoke": smoke.run, "store": store.run}


def main() -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure the product.")
    parser.add_argument("name", choices=sorted([*BENCHES, "actors"]), help="which benchmark")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--peers", action="store_true", help="actors: measure others as well")
    options = parser.parse_args()
    if options.peers and options.name != "actors":
        parser.error("only actors has peers to install")
    try:
        if options.name == "actors":
            rows = actors.run(with_peers=options.peers)
        else:
            rows = BENCHES[options.name]()
    except LoadError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    render = render_json if options.json else render_table
    print(render(options.name, rows))
    missed = [row.id for row in rows if not row.ok]
    if missed:
        print(f"bench: missed {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
