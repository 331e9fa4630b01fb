"""``./dev test mutants [NAME...]``: hunts every mutant, or the named ones, and prints a table."""

from __future__ import annotations

import sys
import time

from tests.mutants.catalogue import MUTANTS
from tests.mutants.hunt import SEEDS_MAX, hunt

MINUTES_MAX = 20


def main(names: list[str]) -> int:
    """Return 1 when a mutant is not found, 2 for a name that no mutant has."""
    known = {mutant.name: mutant for mutant in MUTANTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.stderr.write(f"no such mutant: {unknown[0]}; there are {', '.join(known)}\n")
        return 2
    chosen = [known[name] for name in names] or list(MUTANTS)
    began_s, missed = time.monotonic(), 0
    sys.stdout.write(f"{'mutant':<36} {'seeds':>5} {'seconds':>7}  invariant\n")
    for mutant in chosen:
        found = hunt(mutant)
        missed += not found.seeds
        seen = found.invariant or f"NOT FOUND within {SEEDS_MAX:,} seeds"
        seeds = str(found.seeds or "-")
        sys.stdout.write(f"{mutant.name:<36} {seeds:>5} {found.seconds:>7.1f}  {seen}\n")
        sys.stdout.flush()
    minutes = (time.monotonic() - began_s) / 60
    sys.stdout.write(f"{len(chosen) - missed} of {len(chosen)} found in {minutes:.1f} minutes\n")
    return int(missed > 0 or minutes > MINUTES_MAX)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
