"""Makes a failing run smaller: fewer faults, fewer operations, a plainer schedule.

Every smaller run is held against the same invariant; one that fails otherwise, or not at all, is
another bug and is not followed. What remains is a small file that gives the run again.

Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", TSE 2002.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import msgspec

from kelpie.core.errors import InvalidFieldError
from kelpie.sim.faults.plan import Injection
from kelpie.sim.run import RunReport, run
from kelpie.sim.schedule import ChoiceTape
from kelpie.sim.subject import Subject
from kelpie.sim.swarm import RunConfig
from kelpie.sim.world import SimulatedWorld

T = TypeVar("T")

ATTEMPTS_MAX: Final = 400
_SIZES: Final = ("hosts", "clients", "operations")


class TapeChoice(msgspec.Struct, frozen=True, array_like=True):
    """A place on the tape where the schedule was not first in, first out."""

    position: int
    taken: int


class SmallRun(msgspec.Struct, frozen=True, kw_only=True, tag="kelpie.sim.run"):
    """A run that was made smaller, as stored in a file.

    Attributes:
        scenario: How a command line finds the scenario.
        script: The faults that happen, and no others.
        choices: What the scheduler chooses where it is not the first; everywhere else it is.
        invariant: What fails.
        commit: The sources that it failed with.
        trace_hash: Of the run.
        story: The faults in words, for whoever reads the file.
    """

    scenario: str
    seed: int
    config: RunConfig
    script: tuple[Injection, ...]
    choices: tuple[TapeChoice, ...]
    invariant: str
    commit: str
    trace_hash: str
    story: tuple[str, ...] = ()
    schema_version: int = 1

    def tape(self) -> ChoiceTape:
        """Return what the scheduler chooses."""
        length = self.choices[-1].position + 1 if self.choices else 0
        tape = ChoiceTape([0] * length)
        for choice in self.choices:
            tape.choices[choice.position] = choice.taken
        return tape

    def encode(self) -> bytes:
        """Return the file's content."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> SmallRun:
        """Return the run of a file's content.

        Raises:
            InvalidFieldError: It holds none.
        """
        try:
            return msgspec.json.decode(content, type=cls)
        except msgspec.MsgspecError as error:
            raise InvalidFieldError("replay", f"the file holds no run: {error}") from None

    def repeat(
        self, subject: Subject, *, watch: Callable[[SimulatedWorld], None] | None = None
    ) -> RunReport:
        """Live through it again."""
        return run(
            subject.make(),
            self.seed,
            self.config,
            tape=self.tape(),
            script=self.script,
            watch=watch,
        )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One way to run: what the shrinker cuts at."""

    config: RunConfig
    script: tuple[Injection, ...]
    tape: ChoiceTape | None


class Shrinker:
    """Cuts one failing run down.

    Attributes:
        attempts: How many runs it took so far.
        invariant: What has to go on failing.
        best: The smallest run that failed so far.
    """

    def __init__(
        self,
        subject: Subject,
        report: RunReport,
        *,
        attempts_max: int = ATTEMPTS_MAX,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Begin with a run that failed.

        Raises:
            InvalidFieldError: It did not fail.
        """
        if report.violation is None:
            text = f"seed {report.seed} is clean: there is nothing to shrink"
            raise InvalidFieldError("seed", text)
        self.attempts = 0
        self.invariant = report.violation.invariant
        self.best = report
        self._subject = subject
        self._attempts_max = attempts_max
        self._say = say
        self._now = _Candidate(report.config, report.injections, report.tape)

    def shrink(self, commit: str) -> SmallRun:
        """Return the smallest run that was found; it is no larger than the first.

        Args:
            commit: The sources that run.
        """
        self._cut_schedule_at_once()
        self._cut_faults()
        self._cut_operations()
        self._cut_faults()
        self._cut_schedule()
        self._cut_rules()
        assert self.best.violation is not None, "a smaller run fails too"
        assert self.best.violation.invariant == self.invariant, "it fails the same invariant"
        taken = self.best.tape.choices
        return SmallRun(
            scenario=self._subject.address,
            seed=self.best.seed,
            config=self._now.config,
            script=self._now.script,
            choices=tuple(TapeChoice(at, each) for at, each in enumerate(taken) if each),
            invariant=self.invariant,
            commit=commit,
            trace_hash=self.best.trace_hash,
        )

    # --- what is cut ----------------------------------------------------------------------------

    def _cut_faults(self) -> None:
        script = self._now.script
        config = self._now.config
        kept = cut_down(script, lambda fewer: self._fails(replace(self._now, script=fewer)))
        crashes = cut_down(
            config.crash_steps,
            lambda fewer: self._fails(
                replace(self._now, config=replace(config, crash_steps=fewer))
            ),
        )
        self._say(f"faults: {len(script)} → {len(kept)}, kills at steps: {len(crashes)}")

    def _cut_operations(self) -> None:
        for name in _SIZES:
            before: int = getattr(self._now.config, name)
            for size in _smaller(before):
                config = _resize(self._now.config, name, size)
                # Another workload asks its scheduler other questions.
                if self._fails(replace(self._now, config=config)) or self._fails(
                    replace(self._now, config=config, tape=None)
                ):
                    break
            self._say(f"{name}: {before} → {getattr(self._now.config, name)}")

    def _cut_schedule_at_once(self) -> None:
        self._fails(replace(self._now, tape=ChoiceTape()))

    def _cut_schedule(self) -> None:
        self._cut_schedule_at_once()
        tape = self.best.tape
        places = tuple(at for at, each in enumerate(tape.choices) if each)

        def fails(kept: tuple[int, ...]) -> bool:
            plain = ChoiceTape([0] * len(tape))
            for at in kept:
                plain.choices[at] = tape.choices[at]
            return self._fails(replace(self._now, tape=plain))

        kept = cut_down(places, fails)
        self._say(f"choices that are not first in, first out: {len(places)} → {len(kept)}")

    def _cut_rules(self) -> None:
        """Let go of the rules of faults that do not happen: they no longer say anything."""
        names = {each.name for each in self._now.script}
        rules = tuple(rule for rule in self._now.config.rules if rule.name in names)
        config = replace(self._now.config, rules=rules)
        self._fails(replace(self._now, config=config))

    def _fails(self, candidate: _Candidate) -> bool:
        """Whether a run of ``candidate`` fails the invariant; then it is the best so far."""
        if self.attempts >= self._attempts_max:
            return False
        self.attempts += 1
        report = run(
            self._subject.make(),
            self.best.seed,
            candidate.config,
            tape=candidate.tape,
            script=candidate.script,
        )
        if report.violation is None or report.violation.invariant != self.invariant:
            return False
        # What did not happen this time is no part of the story any more.
        assert len(report.injections) <= len(candidate.script), "a script adds no fault"
        self._now = replace(candidate, script=report.injections, tape=report.tape)
        self.best = report
        return True


def cut_down(items: Sequence[T], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """Return a subset of ``items`` that still fails, from which no single item can be taken.

    Args:
        items: A sequence that fails.
        fails: Whether a subset, in the same order, fails as well.
    """
    kept = tuple(items)
    if not kept or fails(()):
        return ()
    parts = 2
    while len(kept) >= 2:
        size = -(-len(kept) // parts)
        for start in range(0, len(kept), size):
            fewer = kept[:start] + kept[start + size :]
            if fails(fewer):
                kept, parts = fewer, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(kept))
    return kept


def _resize(config: RunConfig, name: str, size: int) -> RunConfig:
    match name:
        case "hosts":
            return replace(config, hosts=size)
        case "clients":
            return replace(config, clients=size)
        case _:
            return replace(config, operations=size)


def _smaller(size: int) -> Iterator[int]:
    """Yield sizes below ``size``, the smallest first."""
    step = 1
    while step < size:
        yield step
        step += max(1, step // 2)
