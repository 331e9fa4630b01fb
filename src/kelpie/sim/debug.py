"""Time travel over a run that has ended: step over its commits, look at each before and after.

Commands come as lines, so that a terminal, a pipe and a test are the same to it. Nothing is run
again and nothing is changed: what is shown is what the run left behind.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from kelpie.sim.timeline import Timeline, TurnShown, messages_under_way
from kelpie.sim.view import ActorPlace
from kelpie.sim.wording import cut_ids, name_actor, show_actor, show_message, show_time, show_value
from kelpie.storage.records import EFFECT_STATES_OPEN, EffectRow

HELP: Final = """\
n [COUNT]        the next commit
p [COUNT]        the one before
goto N           commit N; the first is 1, and 0 is before everything
list [COUNT]     the commits around here
state [ACTOR]    the states of the actors as of now; all of one with its name
diff             the state that this commit changed, before and after
effects          every effect as of now
messages         what is on its way as of now
faults           what was injected, and when
break INVARIANT  go to the commit at which the invariant failed
help             this
quit             leave"""

_STATE_CHARS_MAX: Final = 100


class Debugger:
    """Stands at one commit of a run. ``say`` gets every line of an answer."""

    def __init__(self, timeline: Timeline, say: Callable[[str], None]) -> None:
        self._timeline = timeline
        self._say = say
        self._at = 0
        self._commands: dict[str, Callable[[str], None]] = {
            "n": self._next,
            "p": self._previous,
            "goto": self._goto,
            "list": self._list,
            "state": self._state,
            "diff": self._diff,
            "effects": self._effects,
            "messages": self._messages,
            "faults": self._faults,
            "break": self._break,
            "help": lambda _: self._say(HELP),
        }

    @property
    def at(self) -> int:
        """The commit it stands at; 0 before the first."""
        return self._at

    @property
    def prompt(self) -> str:
        """What a terminal shows before a command."""
        return f"({self._at}/{len(self._timeline.turns)}) "

    def begin(self) -> None:
        """Say what there is to see."""
        turns, faults = len(self._timeline.turns), len(self._timeline.faults)
        self._say(f"{turns:,} commits, {faults:,} faults; 'help' lists what can be asked")
        self._say(self._timeline.verdict)
        assert self._at <= turns, "it stands at a commit of the run"

    def obey(self, line: str) -> bool:
        """Answer one command; return whether to go on."""
        word, _, rest = line.strip().partition(" ")
        if word in {"quit", "q"}:
            return False
        if not word:
            return True
        command = self._commands.get(word)
        if command is None:
            near = difflib.get_close_matches(word, self._commands)
            hint = f"; did you mean {near[0]}?" if near else "; 'help' lists the commands"
            self._say(f"no command {word!r}{hint}")
        else:
            command(rest.strip())
        assert 0 <= self._at <= len(self._timeline.turns), "it stands at a commit of the run"
        return True

    # --- moving ---------------------------------------------------------------------------------

    def _next(self, rest: str) -> None:
        self._move(self._at + self._number(rest, 1))

    def _previous(self, rest: str) -> None:
        self._move(self._at - self._number(rest, 1))

    def _goto(self, rest: str) -> None:
        self._move(self._number(rest, self._at))

    def _move(self, number: int) -> None:
        last = len(self._timeline.turns)
        at = min(max(number, 0), last)
        if at != number:
            self._say("this is where the run begins" if number < 0 else "this is the last commit")
        self._at = at
        self._show_here()

    def _show_here(self) -> None:
        turn = self._turn()
        if turn is None:
            self._say("before the first commit")
            return
        before = self._timeline.turns[self._at - 2].seen.at_ns if self._at > 1 else -1
        for fault in self._timeline.faults:
            if before < fault.at_ns <= turn.seen.at_ns:
                self._say(f"  !!  {show_time(fault.at_ns)}  {self._timeline.show_fault(fault)}")
        self._say(f"{turn.number:>4}  {turn.title}")
        for line in turn.lines:
            self._say(f"      {line}")
        for change in turn.changes:
            self._say(f"      state: {change}")
        violation = self._timeline.violation
        if violation is not None and self._at == len(self._timeline.turns):
            self._say(self._timeline.verdict)

    def _break(self, rest: str) -> None:
        known = self._timeline.invariants
        violation = self._timeline.violation
        if violation is not None and rest in {"", violation.invariant}:
            # The run ended with its first violation, so its last commit is the one.
            self._move(len(self._timeline.turns))
        elif rest in known:
            self._say(f"{rest} held at all {len(self._timeline.turns):,} commits")
        else:
            self._say(f"no invariant {rest!r}; there are {', '.join(known)}")

    # --- looking --------------------------------------------------------------------------------

    def _list(self, rest: str) -> None:
        around = self._number(rest, 5)
        for turn in self._timeline.turns[max(self._at - around - 1, 0) : self._at + around]:
            mark = ">" if turn.number == self._at else " "
            self._say(f"{mark}{turn.number:>4}  {turn.title}")

    def _state(self, rest: str) -> None:
        found = False
        for (host, actor), state in self._states().items():
            name = show_actor(actor)
            full = name_actor(actor)
            if rest and rest != actor.key and not full.startswith(rest):
                continue
            found = True
            if rest:
                self._say(f"{host}  {name}")
                self._say(json.dumps(state, indent=2, ensure_ascii=False, default=show_value))
            else:
                text = cut_ids(repr(state))
                shown = text if len(text) <= _STATE_CHARS_MAX else f"{text[:_STATE_CHARS_MAX]}…"
                self._say(f"{host}  {name}  {shown}")
        if not found:
            self._say(f"no actor {rest!r} here" if rest else "no actor has a state yet")

    def _diff(self, rest: str) -> None:
        del rest
        turn = self._turn()
        if turn is None:
            self._say("before the first commit")
            return
        before, after = (
            json.dumps(state, indent=2, ensure_ascii=False, default=show_value).splitlines()
            for state in (turn.before, turn.after)
        )
        for line in difflib.unified_diff(before, after, "before", "after", lineterm=""):
            self._say(line)

    def _effects(self, rest: str) -> None:
        del rest
        rows: dict[str, EffectRow] = {}
        for turn in self._passed():
            rows.update((row.effect_id, row) for row in turn.seen.commit.effects)
        for row in rows.values():
            mark = "*" if row.state in EFFECT_STATES_OPEN else " "
            number = self._timeline.number_of(row.effect_id)
            self._say(
                f"{mark}{number:>4}  {row.kind}  {row.state}  {show_actor(row.actor)}  "
                f"attempt {row.attempt}  {cut_ids(row.effect_id)}"
            )
        if not rows:
            self._say("no effect yet")

    def _messages(self, rest: str) -> None:
        del rest
        waiting = messages_under_way(turn.seen for turn in self._passed())
        for host, number, row in waiting:
            route = f"{show_actor(row.sender)} → {show_actor(row.receiver)}"
            self._say(f"{host}  #{number}  {route}  {show_message(row.body)}")
        if not waiting:
            self._say("no message is on its way")

    def _faults(self, rest: str) -> None:
        del rest
        for fault in self._timeline.faults:
            self._say(f"  {show_time(fault.at_ns)}  {self._timeline.show_fault(fault)}")
        if not self._timeline.faults:
            self._say("nothing was injected")

    # --- where it stands ------------------------------------------------------------------------

    def _turn(self) -> TurnShown | None:
        return self._timeline.turns[self._at - 1] if self._at else None

    def _passed(self) -> list[TurnShown]:
        return self._timeline.turns[: self._at]

    def _states(self) -> dict[ActorPlace, Any]:
        states: dict[ActorPlace, Any] = {}
        for turn in self._passed():
            place = (turn.seen.host, turn.seen.commit.actor)
            states[place] = turn.after
        return {place: state for place, state in states.items() if state is not None}

    def _number(self, text: str, usual: int) -> int:
        if text and not text.lstrip("-").isdecimal():
            self._say(f"{text!r} is no number")
            return usual
        return int(text) if text else usual


def drive(debugger: Debugger, lines: Iterable[str]) -> Iterator[int]:
    """Obey lines until one says quit or there are no more; yield the commit after each."""
    debugger.begin()
    for line in lines:
        if not debugger.obey(line):
            return
        yield debugger.at
