"""The engine keeps its laws in every order of commits and crashes; a broken one is caught."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from kelpie.sim.explore import Exploration, explore
from kelpie.sim.models.commits import (
    ACTOR,
    Cause,
    Submit,
    commit_model,
    submit_as_shipped,
)
from kelpie.storage.records import Commit
from kelpie.storage.sqlite.bulk import BULK_COMMITS_MIN

pytestmark = pytest.mark.requirement("K-07")

Connection = sqlite3.Connection


@pytest.mark.parametrize("cause", ["message", "key"])
def test_two_processes_on_one_store_keep_every_law(cause: Cause) -> None:
    found = explore(commit_model(causes=("call", cause)))
    assert found.outcome == "holds", str(found.broken)
    assert set(found.taken) == {
        *("open", "die", "load", "look up", "write", "write unheard"),
        *("turn: call", f"turn: {cause}"),
    }
    assert found.states > 2_000


def test_batches_that_are_written_statement_by_statement_keep_every_law() -> None:
    found = explore(commit_model(causes=("key",), bystanders=BULK_COMMITS_MIN - 1))
    assert found.outcome == "holds", str(found.broken)
    assert found.states > 100
    assert found.taken["write"] > 100


# --- saboteurs ----------------------------------------------------------------------------------


def change_all(commits: Sequence[Commit], **changes: Any) -> list[Commit]:
    return [msgspec.structs.replace(commit, **changes) for commit in commits]


def without_fence(connection: Connection, commits: Sequence[Commit]) -> Sequence[Any]:
    """Take a commit whatever epoch it carries."""
    (epoch,) = connection.execute(
        "SELECT epoch FROM shards WHERE shard = ?", (ACTOR.shard,)
    ).fetchone()
    return submit_as_shipped(connection, change_all(commits, epoch=epoch))


def without_versions(connection: Connection, commits: Sequence[Commit]) -> Sequence[Any]:
    """Write a commit over whatever is there."""
    outcomes: list[Any] = []
    for commit in commits:
        row = connection.execute(
            "SELECT version FROM actors WHERE actor = ?", (str(commit.actor),)
        ).fetchone()
        blind = msgspec.structs.replace(commit, expected_version=row[0] if row else 0)
        outcomes += submit_as_shipped(connection, [blind])
    return outcomes


def with_keys_outside(connection: Connection, commits: Sequence[Commit]) -> Sequence[Any]:
    """Keep replies where no transaction looks: drop what was kept before a new one comes."""
    for commit in commits:
        if commit.reply is not None:
            connection.execute("DELETE FROM replies")
    return submit_as_shipped(connection, commits)


def with_messages_outside(connection: Connection, commits: Sequence[Commit]) -> Sequence[Any]:
    """Remove a message after the commit of its turn, in a transaction of its own."""
    outcomes = submit_as_shipped(connection, change_all(commits, consumes=None))
    for commit in commits:
        if commit.consumes is not None:
            connection.execute("DELETE FROM outbox WHERE message_id = ?", (commit.consumes,))
    return outcomes


def without_the_disk(connection: Connection, commits: Sequence[Commit]) -> Sequence[Any]:
    """Give receipts for what is then rolled back."""
    before = connection.serialize()
    outcomes = submit_as_shipped(connection, commits)
    connection.deserialize(before)
    return outcomes


def judge_broken(found: Exploration, law: str, *, steps: int) -> str:
    assert found.broken is not None
    assert found.broken.law == law, str(found.broken)
    assert len(found.broken.trace) == steps, str(found.broken)
    return str(found.broken)


def test_a_store_without_a_fence_is_found_with_a_shortest_trace() -> None:
    found = explore(commit_model(submit=without_fence, causes=("call",)))
    assert judge_broken(found, "the owner has what is stored", steps=6) == (
        "the owner has what is stored: process 2 owns the store and has Memory(version=0, "
        "total=0), not Memory(version=1, total=1)\n"
        "  1. process 1 takes the store over\n"
        "  2. process 1 loads the actor\n"
        "  3. process 1 runs a turn for a call\n"
        "  4. process 2 takes the store over\n"
        "  5. process 2 loads the actor\n"
        "  6. process 1 writes a commit\n"
        "  => stored: version 1, total 1; turns taken: 1 for call, 0 for message, 0 for key"
    )


@pytest.mark.parametrize(
    ("saboteur", "law", "steps"),
    [
        (without_versions, "nothing acknowledged is lost", 7),
        (with_keys_outside, "what must happen once happens once", 8),
        (with_messages_outside, "what must happen once happens once", 5),
        (without_the_disk, "the owner has what is stored", 4),
    ],
)
def test_a_store_that_breaks_a_promise_is_found(saboteur: Submit, law: str, steps: int) -> None:
    judge_broken(explore(commit_model(submit=saboteur)), law, steps=steps)
