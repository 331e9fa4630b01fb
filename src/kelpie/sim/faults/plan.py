"""A plan of faults: which may happen in a run, how often, when; and what has happened.

Everything is drawn from the run's seed, each fault from a stream of its own, so that taking one
fault out of a plan moves no other's draws. A run's injections can be handed back as a *script*:
then exactly these happen, which is what a shrinker cuts down.

Invariants: a fault without a rule never fires; no fault fires more often than its rule allows,
outside its window, or after `heal`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

import msgspec

from kelpie.sim.faults.catalogue import CATALOGUE, FaultKind, built, find_kind

NANOSECONDS: Final = 1_000_000_000
SCALES: Final = (0.3, 1.0, 3.0)
"""How a swarm scales a fault's usual rate, so that seeds differ in how rough they are."""
CHANCE: Final = 0.3
"""How likely a swarm takes a fault into a seed's set."""
LEFTOVERS: Final = frozenset(
    {
        "crash.power_loss",
        "storage.torn_write",
        "storage.lost_unsynced",
        "storage.rename_unsynced",
    }
)
"""What only says how a crash leaves the disk: rare enough by itself."""
LEFTOVER_CHANCE: Final = 0.8
FOR_EVER_NS: Final = 1 << 62


class FaultRule(msgspec.Struct, frozen=True, kw_only=True):
    """How one fault may happen: per occasion with ``rate``, within a window, so many times."""

    name: str
    rate: float
    count_max: int
    from_ns: int = 0
    until_ns: int = FOR_EVER_NS


class Injection(NamedTuple):
    """A fault that happened: at the ``occasion``-th time that ``node`` asked for it."""

    name: str
    node: str
    occasion: int
    at_ns: int


class Faults(Protocol):
    """What a simulated port needs of a plan."""

    def fires(self, name: str) -> bool:
        """Return whether the fault happens here and now."""
        ...

    def seconds(self, name: str) -> float:
        """Return how long the fault that has just fired takes."""
        ...

    def below(self, name: str, bound: int) -> int:
        """Return a draw from ``range(bound)`` for the fault that has just fired."""
        ...


class NoFaults:
    """A world in which nothing goes wrong."""

    def fires(self, name: str) -> bool:
        """Return False."""
        assert name in CATALOGUE, f"{name} is not in the catalogue of faults"
        return False

    def seconds(self, name: str) -> float:
        """Never called: nothing has fired."""
        raise AssertionError(f"{name} did not fire")

    def below(self, name: str, bound: int) -> int:
        """Never called: nothing has fired."""
        raise AssertionError(f"{name} did not fire, so nothing is drawn below {bound}")


def draw_rules(
    seed: int,
    *,
    duration_ns: int,
    kinds: Iterable[FaultKind] | None = None,
    chance: float = CHANCE,
) -> tuple[FaultRule, ...]:
    """Return the rules of one seed's swarm: a subset of ``kinds`` with rates, windows and counts.

    Args:
        seed: The run's.
        duration_ns: How long the faulty part of the run is about to take, in virtual time.
        kinds: What to draw from; every built fault if left out.
        chance: How likely each is taken.
    """
    assert duration_ns > 0, "faults need time to happen in"
    rng = random.Random(f"{seed}/swarm")
    pool = built() if kinds is None else tuple(kinds)
    rules: list[FaultRule] = []
    for kind in pool:
        share = LEFTOVER_CHANCE if kind.name in LEFTOVERS else chance
        taken, scale = rng.random() < share, rng.choice(SCALES)
        from_ns = rng.randrange(duration_ns) if rng.random() < 0.5 else 0
        length_ns = rng.randrange(duration_ns // 10, duration_ns) + 1
        count_max = rng.randint(1, kind.count_max)
        if taken:
            rule = FaultRule(
                name=kind.name,
                rate=min(kind.rate * scale, 1.0),
                count_max=count_max,
                from_ns=from_ns,
                until_ns=from_ns + length_ns,
            )
            rules.append(rule)
    return tuple(rules)


class FaultPlan:
    """Decides about every fault point of one simulated world.

    Attributes:
        log: What happened, in order.
        injected: How often each fault happened.
        asked: How often each fault of a rule could have happened.
    """

    def __init__(
        self,
        rules: Sequence[FaultRule],
        *,
        seed: int,
        now_ns: Callable[[], int],
        node: Callable[[], str] = lambda: "",
        die: Callable[[str], None] | None = None,
        script: Iterable[Injection] | None = None,
    ) -> None:
        """Make the plan of one run.

        Args:
            rules: At most one for each fault.
            seed: Where the draws come from.
            now_ns: Virtual time.
            node: Who asks: the node whose callback runs.
            die: Ends the asking node's process, for faults of the group ``crash``; must raise.
            script: If given, exactly these happen, whatever the rates say.
        """
        self.log: list[Injection] = []
        self.injected: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self._rules = {rule.name: rule for rule in rules}
        assert len(self._rules) == len(rules), "two rules for one fault"
        self._kinds = {name: find_kind(name) for name in self._rules}
        self._seed = seed
        self._now_ns = now_ns
        self._node = node
        self._die = die
        self._streams = {name: random.Random(f"{seed}/{name}") for name in self._rules}
        self._amounts: dict[str, random.Random] = {}
        self._occasions: Counter[tuple[str, str]] = Counter()
        self._script = None if script is None else {each[:3] for each in script}
        self._healed = False
        self._calm = 0

    @property
    def healed(self) -> bool:
        """Whether nothing happens any more."""
        return self._healed

    @contextmanager
    def calm(self) -> Generator[None]:
        """Let nothing happen while an oracle looks."""
        self._calm += 1
        try:
            yield
        finally:
            self._calm -= 1

    def heal(self) -> None:
        """Let nothing happen any more; harmless when healed before."""
        self.check_invariants()
        self._healed = True
        assert self.healed

    def may_fire(self, name: str) -> bool:
        """Return whether the run has a rule for the fault, so that asking is worth while."""
        return name in self._rules

    def fires(self, name: str) -> bool:
        """Return whether the fault ``name`` happens here and now, and write it down if so.

        Does not return if it is a crash that happens: ``die`` raises.
        """
        rule = self._rules.get(name)
        if rule is None or self._healed or self._calm:
            assert name in CATALOGUE, f"{name} is not in the catalogue of faults"
            return False
        node = self._node()
        self.asked[name] += 1
        self._occasions[name, node] += 1
        occasion = self._occasions[name, node]
        if not self._decide(rule, node, occasion):
            return False
        self._amounts[name] = random.Random(f"{self._seed}/{name}/{node}/{occasion}")
        self.injected[name] += 1
        self.log.append(Injection(name, node, occasion, self._now_ns()))
        if self._kinds[name].group == "crash" and self._kinds[name].place == "product":
            assert self._die is not None, f"nobody can die of {name} here"
            self._die(name)
            raise AssertionError(f"the process survived {name}")
        return True

    def _decide(self, rule: FaultRule, node: str, occasion: int) -> bool:
        if self._script is not None:
            return (rule.name, node, occasion) in self._script
        if self.injected[rule.name] >= rule.count_max:
            return False
        if not rule.from_ns <= self._now_ns() < rule.until_ns:
            return False
        return self._streams[rule.name].random() < rule.rate

    def seconds(self, name: str) -> float:
        """Return how long the fault that has just fired takes, in seconds (may be negative)."""
        least, most = self._kinds[name].seconds
        return self._amounts[name].uniform(least, most)

    def below(self, name: str, bound: int) -> int:
        """Return a draw from ``range(bound)`` for the fault that has just fired."""
        assert bound > 0, "nothing is below zero"
        return self._amounts[name].randrange(bound)

    def check_invariants(self) -> None:
        """Assert that what happened is within the rules."""
        assert sum(self.injected.values()) == len(self.log)
        assert self.injected.keys() <= self._rules.keys(), "a fault without a rule"
        for name, count in self.injected.items():
            scripted = self._script is not None
            assert scripted or count <= self._rules[name].count_max, f"{name} happened too often"
            assert count <= self.asked[name], "more faults than occasions"
