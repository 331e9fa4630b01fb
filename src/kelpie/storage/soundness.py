"""What a check of a whole store finds, whichever engine keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from kelpie.core.errors import CorruptionError
from kelpie.storage.audit import AuditHead
from kelpie.storage.sealing import unseal

PROBLEMS_MAX: Final = 100  # a ruined store has millions; a person reads the first ones
# (table, column that names the actor, column of the body)
SEALED: Final = (
    ("kv", "actor", "value"),
    ("effects", "actor", "body"),
    ("outbox", "receiver", "body"),
    ("dead_letters", "receiver", "body"),
    ("reminders", "actor", "body"),
    ("events", "actor", "body"),
    ("lists", "owner", "body"),
    ("streams", "actor", "body"),
    ("replies", "actor", "reply"),
    ("calls", "actor", "body"),
)


class CheckReport(NamedTuple):
    """What a check found. ``problems`` is cut after 100; ``damaged`` names the actors in them."""

    problems: tuple[str, ...]
    damaged: tuple[str, ...]
    heads: tuple[AuditHead, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


class Problem(NamedTuple):
    """One thing that is wrong; ``actor`` names whose it is, if it is anybody's."""

    text: str
    actor: str = ""


class Report:
    """Collects problems until there are enough of them."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._damaged: dict[str, None] = {}

    @property
    def is_full(self) -> bool:
        """Whether nobody would read more."""
        return len(self._problems) >= PROBLEMS_MAX

    def add(self, problem: Problem) -> None:
        """Note a problem, and whose it is."""
        assert not self.is_full, "a report is bounded"
        self._problems.append(problem.text)
        if problem.actor:
            self._damaged[problem.actor] = None

    def close(self, heads: Sequence[AuditHead]) -> CheckReport:
        """Return what was found."""
        return CheckReport(tuple(self._problems), tuple(self._damaged), tuple(heads))


def compare_body(subject: str, checksum: object, data: object, actor: str) -> Iterator[Problem]:
    """Yield a problem if ``data`` is not what its checksum says."""
    try:
        unseal(checksum, data, subject)
    except CorruptionError as error:
        yield Problem(error.message, actor)
