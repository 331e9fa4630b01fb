"""Invariants of the life of actors: created is readable, deleted stays deleted, lists are true."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from kelpie.sim.book import Rows
from kelpie.sim.invariants.keys import created_id
from kelpie.sim.view import AnswerSeen, View

LISTED: Final = {"agents": "agent", "plans": "plan"}
"""The collections that have one row for each actor of a type."""
_AGENTS: Final = "/v1/agents/"


class DeletingSeen(NamedTuple):
    """An agent that a client is about to delete: it may be gone from now on."""

    host: str
    agent: str


class DeletedStaysDeleted:
    """Nothing is committed for an incarnation after its deletion."""

    name = "deleted-stays-deleted"

    def __init__(self) -> None:
        self._deleted: dict[tuple[str, str], int] = {}

    def check(self, view: View) -> str | None:
        """Compare the last commit with the deletions of its actor."""
        if view.last is None:
            return None
        commit = view.last.commit
        assert commit.incarnation >= 1, "incarnations count from one"
        place = (view.last.host, str(commit.actor))
        gone = self._deleted.get(place, 0)
        if commit.incarnation <= gone:
            return f"{commit.actor}: incarnation {commit.incarnation} had been deleted"
        if commit.tombstone:
            self._deleted[place] = commit.incarnation
        return None


class CreatedIsReadable:
    """An agent whose creation was acknowledged is found until somebody deletes it, then never."""

    name = "created-is-readable"

    def __init__(self) -> None:
        self._made_ns: dict[tuple[str, str], int] = {}
        self._unsure: set[tuple[str, str]] = set()
        self._gone_ns: dict[tuple[str, str], int] = {}
        self._judged = 0

    def check(self, view: View) -> str | None:
        """Judge every answer about an agent that is new."""
        assert self._judged <= len(view.answers), "answers are only added"
        fresh, self._judged = view.answers[self._judged :], len(view.answers)
        for place in view.said.get("deleting", ()):
            assert isinstance(place, DeletingSeen), "who deletes says where and what"
            self._unsure.add(place)
        for seen in fresh:
            assert seen.asked_ns <= seen.answered_ns, "an answer follows its question"
            problem = self._judge(seen)
            if problem is not None:
                return problem
        return None

    def _judge(self, seen: AnswerSeen) -> str | None:
        made = created_id(seen) if seen.target == _AGENTS else ""
        if made:
            self._made_ns[seen.host, made] = seen.answered_ns
        agent = seen.target.removeprefix(_AGENTS)
        if not seen.target.startswith(_AGENTS) or not agent or "/" in agent:
            return None
        place, status = (seen.host, agent), seen.answer.status
        if seen.method == "DELETE" and status == 200:
            self._gone_ns[place] = seen.answered_ns
        if seen.method != "GET":
            return None
        was_made = place in self._made_ns and self._made_ns[place] <= seen.asked_ns
        if status == 404 and was_made and place not in self._unsure:
            return f"{seen.host}: {agent} was created and is not found"
        if status == 200 and self._gone_ns.get(place, seen.asked_ns + 1) <= seen.asked_ns:
            return f"{seen.host}: {agent} was deleted and is found"
        return None


class ListsAreTrue:
    """A list has one row for each living actor of its type, and none for anybody else."""

    name = "list-rows-equal-the-actors"

    def check(self, view: View) -> str | None:
        """Compare lists and actors in the file."""
        seen = view.look
        if seen is None:
            return None
        for collection, kind in LISTED.items():
            rows = {owner[0] for (name, _), owner in seen.rows.lists.items() if name == collection}
            alive = _created(seen.rows, kind)
            if rows - alive:
                return f"{seen.host}: {min(rows - alive)} is listed in {collection} and not there"
            if alive - rows:
                return f"{seen.host}: {min(alive - rows)} is not listed in {collection}"
        return None


def _created(rows: Rows, kind: str) -> set[str]:
    return {
        actor
        for actor, held in rows.actors.items()
        if actor.split("/")[1] == kind and not held.is_deleted and _exists(held.state)
    }


def _exists(state: bytes) -> bool:
    """Whether the actor was created, and not only written to before."""
    fields = msgspec.msgpack.decode(state)
    config = fields.get("config")
    return bool(config["name"] if config else fields.get("plan"))
