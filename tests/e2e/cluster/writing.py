"""Clients that write numbered operations to a cluster, and the judgement on what they were told.

Every operation has a number of its own and an idempotency key; it goes to a node drawn by chance,
and again to another one under the same key until it is answered. One interval from the first
attempt to the answer is one operation of the history.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.load import Client, LoadError, encode_request
from kelpie.sim.history import History
from kelpie.sim.linearizability import Judgement, check_linearizability
from kelpie.sim.specifications import CounterSpecification
from tests.waiting import eventually_async, rest

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

CLIENTS = 8
REGISTERS = 12
"""How many are written to at a time."""
ENTRIES_MAX = 150
"""A register that has so many is left for a new one, which bounds states and searches."""
RELAYED_SHARE, READ_SHARE = 0.1, 0.3
THINK_S = 0.01
RETRY_S = 0.05
ANSWER_S = 3.0
"""After which a client takes its node for gone; a stopped one answers nobody in time."""
PATIENCE_S = 45.0
"""How long one operation may be asked for again; longer is a failure of its own."""
PROBLEMS_SHOWN = 20
ORDERS_MAX = 100_000
"""Placements that the judge tries for one register; one of `ENTRIES_MAX` needs some hundreds."""


@dataclass(kw_only=True)
class Findings:
    """What a load came to; `problems` is empty when every promise was kept."""

    seed: int
    written: int
    read: int
    relayed: int
    retries: dict[str, int]
    longest_s: float
    problems: list[str]

    def __str__(self) -> str:
        verdict = "clean" if not self.problems else f"{len(self.problems)} PROBLEMS"
        retries = ", ".join(f"{count} {why}" for why, count in sorted(self.retries.items()))
        writes = f"{self.written} writes ({self.relayed} passed on)"
        lines = [
            f"seed {self.seed}: {verdict}; {writes} and {self.read} reads were answered",
            f"asked again: {retries or 'never'}; the slowest took {self.longest_s:.1f} s",
            *self.problems[:PROBLEMS_SHOWN],
        ]
        return "\n".join(lines)


class Told(NamedTuple):
    """An acknowledged write: the number is the one at this place of its register, from 1."""

    number: int
    place: int


class UnexpectedAnswerError(Exception):
    """An answer that no client of a healthy cluster gets."""


@dataclass
class Writers:
    """The clients, and what they were told."""

    ports: Callable[[], Sequence[int]]
    draw: random.Random
    seed: int
    history: History = field(default_factory=History)
    told: defaultdict[str, list[Told]] = field(default_factory=lambda: defaultdict(list))
    relayed: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    retries: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    reads: int = 0
    _open: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    _pages: Counter[int] = field(default_factory=Counter)
    _over: bool = False

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)

    @property
    def written(self) -> int:
        """How many writes were acknowledged."""
        return sum(map(len, self.told.values()))

    async def run(self) -> None:
        """Writes and reads until `finish`, and until what is under way has its answer."""
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._work(f"client{number}"))

    def finish(self) -> None:
        """Begins nothing more."""
        self._over = True

    async def progress(self, writes: int) -> None:
        """Returns once so many more writes were acknowledged."""
        goal = self.written + writes

        async def is_there() -> bool:
            assert not self.problems, "\n".join(self.problems[:PROBLEMS_SHOWN])
            return self.written >= goal

        await eventually_async(is_there, within_s=PATIENCE_S, what=f"{writes} more writes")

    # --- one client -----------------------------------------------------------------------------

    async def _work(self, client: str) -> None:
        connections: dict[int, Client] = {}
        while not self._over:
            slot = self.draw.randrange(REGISTERS)
            register = f"r{slot}-{self._pages[slot]}"
            if self.draw.random() < READ_SHARE:
                await self._read(client, connections, register)
            else:
                await self._write(client, connections, register)
                if len(self.told[register]) >= ENTRIES_MAX:
                    self._pages[slot] = int(register.partition("-")[2]) + 1
            await rest(THINK_S)
        for connection in connections.values():
            connection.close()

    async def _write(self, client: str, connections: dict[int, Client], register: str) -> None:
        number = next(self._numbers)
        mirror = f"mirror-of-{register}" if self.draw.random() < RELAYED_SHARE else ""
        body: dict[str, Any] = {"number": number}
        if mirror:
            body["other"] = mirror
        method = "relay" if mirror else "write"
        request = encode_request("POST", path(register, method), body, key=f"n{number}")
        self._open[register].add(number)
        token = self.history.call(client, register, "add", 1, at_ns=time.monotonic_ns())
        try:
            place = await self._insist(connections, request)
        except (UnexpectedAnswerError, TimeoutError) as error:
            self.problems.append(f"{client}: {register} write {number}: {error!r}")
            self.history.lost(token)
            return
        self.history.returned(token, place, at_ns=time.monotonic_ns())
        self._open[register].discard(number)
        self.told[register].append(Told(number, place))
        if mirror:
            self.relayed[mirror].append(number)

    async def _read(self, client: str, connections: dict[int, Client], register: str) -> None:
        request = encode_request("POST", path(register, "count"), {})
        token = self.history.call(client, register, "get", at_ns=time.monotonic_ns())
        try:
            count = await self._insist(connections, request)
        except (UnexpectedAnswerError, TimeoutError) as error:
            self.problems.append(f"{client}: {register} count: {error!r}")
            self.history.refused(token)
            return
        self.history.returned(token, count, at_ns=time.monotonic_ns())
        self.reads += 1

    async def _insist(self, connections: dict[int, Client], request: bytes) -> Any:
        """Ask one node after the other, until one answers.

        Raises:
            UnexpectedAnswerError: An answer that does not say to try again.
            TimeoutError: None was given in time.
        """
        began, port = time.monotonic(), 0
        while True:
            ports = self.ports()
            # Not the one again that just did not answer, if there is another.
            port = self.draw.choice([each for each in ports if each != port] or ports)
            reason, result = await self._ask(connections, port, request)
            took_s = time.monotonic() - began
            self.longest_s = max(self.longest_s, took_s)
            if not reason:
                return result
            self.retries[reason] += 1
            if took_s > PATIENCE_S:
                raise TimeoutError(f"not answered within {PATIENCE_S} s, last: {reason}")
            await rest(RETRY_S)

    async def _ask(
        self, connections: dict[int, Client], port: int, request: bytes
    ) -> tuple[str, Any]:
        """Return why to ask again, or an empty text and the result."""
        connection = connections.pop(port, None)
        is_kept = False
        try:
            async with asyncio.timeout(ANSWER_S):
                connection = connection or await Client.connect(port)
                answer = await connection.ask(request)
            is_kept = True
        except TimeoutError:
            return "silence", None
        except (OSError, LoadError):
            return "no connection", None
        finally:
            if connection is not None and not is_kept:
                connection.close()
        connections[port] = connection
        if answer.status == 200:
            return "", answer.read_json()["result"]
        error = json.loads(answer.body)["error"]
        if not error["retriable"]:
            raise UnexpectedAnswerError(f"{answer.status} {error}")
        return str(error["code"]), None

    # --- judgement ------------------------------------------------------------------------------

    async def judge(self) -> Findings:
        """Reads back what was written, and says what of it breaks a promise."""
        problems = list(self.problems)
        for register, told in self.told.items():
            numbers = await self._read_back(register)
            problems += find_lost(register, told, numbers)
            problems += find_strange(register, told, numbers, self._open[register])
        for mirror, sent in self.relayed.items():
            problems += await self._find_astray(mirror, sent)
        # What was lost or doubled explains itself; no order of the answers has to be looked for.
        if not problems:
            problems += self._find_disorder()
        return Findings(
            seed=self.seed,
            written=self.written,
            read=self.reads,
            relayed=sum(map(len, self.relayed.values())),
            retries=dict(self.retries),
            longest_s=self.longest_s,
            problems=problems,
        )

    def _find_disorder(self) -> list[str]:
        report = check_linearizability(
            self.history.operations(), CounterSpecification(), budget_steps=ORDERS_MAX
        )
        if report.judgement is Judgement.LINEARIZABLE:
            return []
        return [f"{report.judgement.value}: {report.counterexample or report.unknown}"]

    async def _read_back(self, register: str) -> list[int]:
        connections: dict[int, Client] = {}
        request = encode_request("POST", path(register, "read"), {})
        numbers: list[int] = await self._insist(connections, request)
        for connection in connections.values():
            connection.close()
        return numbers

    async def _find_astray(self, mirror: str, sent: Sequence[int]) -> list[str]:
        """Wait for the messages that were promised, and find what is missing or there twice."""
        numbers: list[int] = []

        async def has_all() -> bool:
            numbers[:] = await self._read_back(mirror)
            return set(sent) <= set(numbers)

        try:
            await eventually_async(has_all, within_s=PATIENCE_S, what="every message")
        except AssertionError:
            missing = sorted(set(sent) - set(numbers))
            return [f"{mirror}: the acknowledged messages {missing} never arrived"]
        return find_twice(mirror, numbers)


def path(register: str, method: str) -> str:
    """The route of a register's method."""
    return f"/v1/actors/Register/{register}/{method}"


def find_lost(register: str, told: Sequence[Told], numbers: Sequence[int]) -> list[str]:
    """Acknowledged writes that are not where they were said to be."""
    return [
        f"{register}: {number} was acknowledged at place {place} and is not there"
        for number, place in told
        if not (0 < place <= len(numbers) and numbers[place - 1] == number)
    ]


def find_twice(register: str, numbers: Sequence[int]) -> list[str]:
    """Numbers that happened more than once."""
    counted = Counter(numbers)
    return [f"{register}: {each} happened {n} times" for each, n in counted.items() if n > 1]


def find_strange(
    register: str, told: Sequence[Told], numbers: Sequence[int], pending: set[int]
) -> list[str]:
    """Numbers that happened twice, and those that nobody wrote."""
    known = pending | {each.number for each in told}
    strange = sorted(set(numbers) - known)
    nobody = [f"{register}: {strange} were never written by anybody"] if strange else []
    return find_twice(register, numbers) + nobody
