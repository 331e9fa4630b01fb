"""What happened in a run, step by step: commits, faults, and what went wrong, in domain words.

Made from what the world saw become durable, after the run has ended. Never asks the product.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from kelpie.sim.faults.catalogue import find_kind
from kelpie.sim.faults.plan import Injection
from kelpie.sim.run import RunReport
from kelpie.sim.view import ActorPlace, CommitSeen, Violation
from kelpie.sim.wording import (
    cut_ids,
    decode,
    show_actor,
    show_changes,
    show_message,
    show_time,
    show_value,
)
from kelpie.sim.world import SimulatedWorld
from kelpie.storage.records import EffectRow, OutboxRow, ReminderDelete, ReminderRow

_VERBS: Final = {
    "time.node_pause": "pause",
    "time.clock_jump": "move the wall clock of",
    "time.clock_skew": "skew the clock of",
    "crash.at_any_step": "kill",
    "resource.cpu_starvation": "starve",
    "storage.latency": "slow a disk job of",
    "network.delay": "delay a message of",
}
_LONG_EFFECT_STATES: Final = ("waiting", "started", "unknown")


class TurnShown(NamedTuple):
    """One commit with what it changed.

    Attributes:
        number: Its place among the run's commits, from 1.
        before: The actor's state before it, decoded; None for a new actor.
        after: Its state after it; None once deleted.
        lines: What the commit did beside the state, a line each.
    """

    number: int
    seen: CommitSeen
    before: Any
    after: Any
    lines: tuple[str, ...]

    @property
    def title(self) -> str:
        """Who, where, when."""
        commit = self.seen.commit
        version = commit.expected_version + 1
        place = f"{show_actor(commit.actor)} v{version} on {self.seen.host}"
        return f"{show_time(self.seen.at_ns)}  {place}"

    @property
    def changes(self) -> tuple[str, ...]:
        """The fields of the state that it changed."""
        if self.seen.commit.tombstone:
            return ("deleted",)
        return tuple(show_changes(self.before, self.after))


class Sent(NamedTuple):
    """A message that was sent and not taken yet; its number is the store's."""

    host: str
    number: int
    row: OutboxRow


def messages_under_way(commits: Iterable[CommitSeen]) -> list[Sent]:
    """Return what these commits sent and did not take, oldest first."""
    waiting: dict[tuple[str, int], Sent] = {}
    for seen in commits:
        if seen.commit.consumes is not None:
            waiting.pop((seen.host, seen.commit.consumes), None)
        if seen.receipt is not None:
            for number, row in zip(seen.receipt.message_ids, seen.commit.sends, strict=True):
                waiting[seen.host, number] = Sent(seen.host, number, row)
    return list(waiting.values())


class Timeline:
    """One run that has ended, as a list of turns and faults; ``states`` are those before it.

    Attributes:
        turns: Its commits in order.
        faults: What was injected, in order.
        violation: What went wrong; None if nothing did.
        invariants: The names of those that were checked at every commit.
    """

    def __init__(
        self,
        log: Iterable[CommitSeen],
        *,
        faults: tuple[Injection, ...] = (),
        violation: Violation | None = None,
        invariants: tuple[str, ...] = (),
        seed: int = 0,
        states: Mapping[ActorPlace, Any] | None = None,
    ) -> None:
        self.faults = faults
        self.violation = violation
        self.invariants = invariants
        self._seed = seed
        self._effects: dict[str, int] = {}
        self._messages: dict[tuple[str, int], str] = {}
        now: dict[ActorPlace, Any] = dict(states or {})
        self.turns = [self._turn(number, seen, now) for number, seen in enumerate(log, start=1)]

    @classmethod
    def of(cls, world: SimulatedWorld, report: RunReport) -> Timeline:
        """Return what became of ``world``."""
        return cls(
            world.view.log,
            faults=report.injections,
            violation=report.violation,
            invariants=tuple(each.name for each in world.invariants),
            seed=report.seed,
        )

    def number_of(self, effect_id: str) -> int:
        """Return an effect's number in this run, from 1 in the order of their first commits."""
        assert effect_id, "an effect has an id"
        number = self._effects.setdefault(effect_id, len(self._effects) + 1)
        assert number <= len(self._effects), "numbers have no gaps"
        return number

    # --- turns ----------------------------------------------------------------------------------

    def _turn(self, number: int, seen: CommitSeen, states: dict[ActorPlace, Any]) -> TurnShown:
        commit = seen.commit
        place = (seen.host, commit.actor)
        before = states.get(place)
        after = before if commit.state is None else decode(commit.state)
        states[place] = after = None if commit.tombstone else after
        return TurnShown(number, seen, before, after, tuple(self._lines(seen)))

    def _lines(self, seen: CommitSeen) -> Iterator[str]:
        commit, receipt = seen.commit, seen.receipt
        if commit.consumes is not None:
            sent = self._messages.get((seen.host, commit.consumes), "a message")
            yield f"takes #{commit.consumes}: {sent}"
        if commit.fired is not None:
            yield f"its reminder {commit.fired[0]!r} fired"
        if commit.reply is not None:
            yield f"answers {commit.reply.method}, key {commit.reply.key}"
        for index, row in enumerate(commit.sends):
            message = f"{show_message(row.body)} to {show_actor(row.receiver)}"
            number = ""
            if receipt is not None:
                self._messages[seen.host, receipt.message_ids[index]] = message
                number = f" #{receipt.message_ids[index]}"
            yield f"sends{number}: {message}"
        for effect in commit.effects:
            yield f"{self.show_effect(effect)}: {effect.state}"
        for reminder in commit.reminders:
            yield cut_ids(_show_reminder(reminder))
        for event in commit.events:
            yield f"event {event.kind}: {show_value(decode(event.body))}"
        if receipt is None:
            yield "nobody heard of this commit: its writer died"

    def show_effect(self, row: EffectRow) -> str:
        """Return an effect's name in this run: ``approval 17`` while a person is asked."""
        kind = "approval" if row.state == "waiting" else row.kind
        return f"{kind} {self.number_of(row.effect_id)}"

    # --- faults ---------------------------------------------------------------------------------

    def show_fault(self, fault: Injection) -> str:
        """Return a fault as one would ask for it: ``pause n1 2.7 s while approval 17 waits``."""
        kind = find_kind(fault.name)
        machine = fault.node or "the network" * (kind.group == "network") or "the world"
        verb = _VERBS.get(fault.name)
        shown = f"{verb} {machine}" if verb else f"{fault.name} on {machine} ({kind.text})"
        least, most = kind.seconds
        if most:
            # The plan draws a fault's length from a stream of its own, so it can be drawn again.
            seed = f"{self._seed}/{fault.name}/{fault.node}/{fault.occasion}"
            seconds = random.Random(seed).uniform(least, most)
            by = " by" if least < 0 else ""
            shown += f"{by} {seconds:.1f} s" if abs(seconds) >= 0.1 else f" {seconds * 1e3:.0f} ms"
        context = self._context(fault)
        return f"{shown} {context}" if context else shown

    def _context(self, fault: Injection) -> str:
        """Return what went on when a fault happened."""
        here = [
            turn.seen
            for turn in self.turns
            if turn.seen.at_ns <= fault.at_ns and fault.node in {"", turn.seen.host}
        ]
        effects = {row.effect_id: row for seen in here for row in seen.commit.effects}
        running = [row for row in effects.values() if row.state in _LONG_EFFECT_STATES]
        if running:
            row = max(running, key=lambda each: self.number_of(each.effect_id))
            verb = "waits" if row.state == "waiting" else "runs"
            return f"while {self.show_effect(row)} {verb}"
        sent = messages_under_way(here)
        if sent:
            call = show_message(sent[-1].row.body).partition("(")[0]
            return f"while {call} is on its way"
        return f"after {show_actor(here[-1].commit.actor)} committed" if here else "at the start"

    # --- all of it ------------------------------------------------------------------------------

    def tell(self) -> Iterator[str]:
        """Yield the whole story, a line each: turns and faults in the order of virtual time."""
        faults = list(self.faults)
        for turn in self.turns:
            while faults and faults[0].at_ns <= turn.seen.at_ns:
                yield self._tell_fault(faults.pop(0))
            yield f"{turn.number:>4}  {turn.title}"
            for line in turn.lines:
                yield f"      {line}"
            if turn.changes:
                yield f"      state: {'; '.join(turn.changes)}"
        for fault in faults:
            yield self._tell_fault(fault)
        yield self.verdict

    def _tell_fault(self, fault: Injection) -> str:
        return f"  !!  {show_time(fault.at_ns)}  {self.show_fault(fault)}"

    @property
    def verdict(self) -> str:
        """How it ended, on one line."""
        violation = self.violation
        if violation is None:
            return f"clean: {len(self.turns):,} commits, {len(self.faults):,} faults"
        return f"FAILED at {show_time(violation.at_ns)}: {violation.invariant}: {violation.text}"


def _show_reminder(row: ReminderRow | ReminderDelete) -> str:
    if isinstance(row, ReminderRow):
        return f"will be reminded: {row.name}"
    return f"cancels its reminder {row.name}"
