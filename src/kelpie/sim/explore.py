"""A breadth-first model checker over pure transition functions.

Owns the search; knows no subject. A `Model` says where things begin and what can happen next; the
transitions are those of the code that ships, so that what is proved here is proved of the product.
Because the search is breadth-first, the first violation found has the shortest trace there is.

Checked are invariants of states, invariants of steps, every assertion of the code under test,
deadlock, and that a goal stays within reach: from every state that can be reached, some way leads
to a state that the model calls a goal (what can always still end well; not that it does).

Invariants: the same model gives the same exploration; a search that was cut off by its bound never
says that all is well.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

S = TypeVar("S")

STATES_MAX: Final = 200_000
"""More distinct states than this are not kept; a model that needs more is too large to teach."""


class Action(NamedTuple):
    """Something that can happen in a state.

    ``kind`` is a word that stays the same wherever the action is possible, for counting; ``text``
    says it in the words of the subject; ``apply`` returns the state that follows.
    """

    kind: str
    text: str
    apply: Callable[[], Any]


class Law(NamedTuple):
    """What must hold of a state: ``problem`` returns what is wrong with it, or None."""

    name: str
    problem: Callable[[Any], str | None]


class StepLaw(NamedTuple):
    """What must hold of a step: ``problem`` gets the state before, the action's text, and after."""

    name: str
    problem: Callable[[Any, str, Any], str | None]


def _is_never(_: Any) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Model(Generic[S]):
    """A subject to explore.

    Attributes:
        name: For people.
        initial: Where it may begin.
        actions: What can happen in a state, in a fixed order.
        canonical: The same value for states that need not be told apart: symmetric ones, or ones
            that differ only in what no law and no action looks at. By default the state itself.
            A law about what was done on the way belongs to steps, or its memory in here.
        laws: What must hold of every state.
        step_laws: What must hold of every step.
        is_goal: A state that counts as a good end; None when no goal must stay within reach.
        is_over: A state in which nothing more needs to be possible; elsewhere that is a deadlock.
        describe: A state in the words of the subject, for the end of a trace.
    """

    name: str
    initial: Sequence[S]
    actions: Callable[[S], Iterable[Action]]
    canonical: Callable[[S], Hashable] = lambda state: state
    laws: Sequence[Law] = ()
    step_laws: Sequence[StepLaw] = ()
    is_goal: Callable[[S], bool] | None = None
    is_over: Callable[[S], bool] = _is_never
    describe: Callable[[S], str] = str


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenLaw:
    """A violation with a shortest way to it.

    Attributes:
        law: The law's name; ``assertion``, ``deadlock`` or ``goal within reach`` for the others.
        problem: What is wrong.
        trace: What happened, from a beginning to the violation.
        end: The last state, in the words of the subject.
    """

    law: str
    problem: str
    trace: tuple[str, ...]
    end: str

    def __str__(self) -> str:
        steps = [f"  {number}. {text}" for number, text in enumerate(self.trace, start=1)]
        return "\n".join([f"{self.law}: {self.problem}", *steps, f"  => {self.end}"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """What a search found.

    Attributes:
        outcome: ``holds`` only if every state was seen and nothing was wrong; ``unknown`` when the
            bound cut the search off before anything was found.
        states: Distinct states seen.
        steps: Transitions taken.
        depth: The longest shortest trace.
        taken: How often each kind of action was taken. A kind that is missing was never possible.
        goals: How many of the states are goals.
        broken: The violation, if any.
    """

    outcome: Literal["holds", "broken", "unknown"]
    states: int
    steps: int
    depth: int
    taken: Mapping[str, int]
    goals: int = 0
    broken: BrokenLaw | None = None


class _Node(NamedTuple):
    """A state that was reached, and how."""

    state: Any
    parent: int
    text: str
    depth: int


@dataclass(slots=True)
class _Search(Generic[S]):
    """The state of one exploration."""

    model: Model[S]
    states_max: int
    nodes: list[_Node] = field(default_factory=list[_Node])
    numbers: dict[Hashable, int] = field(default_factory=dict[Hashable, int])
    before: list[list[int]] = field(default_factory=list[list[int]])
    taken: Counter[str] = field(default_factory=Counter[str])
    steps: int = 0
    is_cut: bool = False

    def run(self) -> BrokenLaw | None:
        """Visit states in order of distance; return the first violation."""
        waiting: deque[int] = deque()
        for state in self.model.initial:
            broken = self._meet(waiting, state, _Node(state, -1, "", 0))
            if broken is not None:
                return broken
        while waiting:
            broken = self._expand(waiting, waiting.popleft())
            if broken is not None:
                return broken
        assert len(self.nodes) == len(self.numbers) == len(self.before)
        return None if self.is_cut else self._find_lost()

    def _expand(self, waiting: deque[int], number: int) -> BrokenLaw | None:
        node = self.nodes[number]
        count = 0
        for action in self.model.actions(node.state):
            count += 1
            self.steps += 1
            self.taken[action.kind] += 1
            next_node = _Node(None, number, action.text, node.depth + 1)
            try:
                after = action.apply()
            except AssertionError as error:
                failure = str(error).partition("\n")[0] or repr(error)
                return self._broken("assertion", failure, next_node, node.state)
            for law in self.model.step_laws:
                problem = law.problem(node.state, action.text, after)
                if problem is not None:
                    return self._broken(law.name, problem, next_node, after)
            broken = self._meet(waiting, after, next_node._replace(state=after))
            if broken is not None:
                return broken
        if count == 0 and not self.model.is_over(node.state):
            return self._broken("deadlock", "nothing can happen any more", node, node.state)
        return None

    def _meet(self, waiting: deque[int], state: S, node: _Node) -> BrokenLaw | None:
        """Keep a state that was not seen before, and check it."""
        key = self.model.canonical(state)
        number = self.numbers.get(key)
        if number is None:
            if len(self.nodes) >= self.states_max:
                self.is_cut = True
                return None
            number = self.numbers[key] = len(self.nodes)
            self.nodes.append(node)
            self.before.append([])
            waiting.append(number)
            for law in self.model.laws:
                problem = law.problem(state)
                if problem is not None:
                    return self._broken(law.name, problem, node, state)
        if node.parent >= 0:
            self.before[number].append(node.parent)
        return None

    def _find_lost(self) -> BrokenLaw | None:
        """Return the nearest state from which no goal can be reached any more, if any."""
        if self.model.is_goal is None:
            return None
        can = {number for number, node in enumerate(self.nodes) if self.model.is_goal(node.state)}
        waiting = deque(can)
        while waiting:
            for number in self.before[waiting.popleft()]:
                if number not in can:
                    can.add(number)
                    waiting.append(number)
        lost = next((number for number in range(len(self.nodes)) if number not in can), None)
        if lost is None:
            return None
        node = self.nodes[lost]
        return self._broken("goal within reach", "no goal can be reached", node, node.state)

    def _broken(self, law: str, problem: str, node: _Node, state: S) -> BrokenLaw:
        trace: list[str] = []
        while node.parent >= 0:
            trace.append(node.text)
            node = self.nodes[node.parent]
        end = self.model.describe(state)
        return BrokenLaw(law=law, problem=problem, trace=tuple(reversed(trace)), end=end)


def explore(model: Model[S], *, states_max: int = STATES_MAX) -> Exploration:
    """Visit every state of ``model``, nearest first, up to the first violation.

    At most ``states_max`` states are kept; beyond, the outcome is ``unknown``.
    """
    assert states_max > 0, "a search needs room for a state"
    assert model.initial, "a model begins somewhere"
    search = _Search(model, states_max)
    broken = search.run()
    outcome: Literal["holds", "broken", "unknown"] = "unknown" if search.is_cut else "holds"
    goals = 0
    if model.is_goal is not None:
        goals = sum(model.is_goal(node.state) for node in search.nodes)
    return Exploration(
        outcome="broken" if broken is not None else outcome,
        states=len(search.nodes),
        steps=search.steps,
        depth=max(node.depth for node in search.nodes),
        taken=dict(search.taken),
        goals=goals,
        broken=broken,
    )
