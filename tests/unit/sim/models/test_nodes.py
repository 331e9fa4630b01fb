"""Of two nodes one answers and one writes, whatever happens; without one rule they both do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kelpie.cluster import commands as c
from kelpie.cluster import events as e
from kelpie.cluster.member import Member, Timing
from kelpie.cluster.membership import Decided, decide
from kelpie.sim.explore import explore
from kelpie.sim.models.nodes import TIMING, TROUBLES, Statements, nodes_model
from kelpie.storage.records import ShardGrant
from kelpie.storage.sqlite import nodes as rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kelpie.storage.sqlite.transaction import Transaction

pytestmark = [pytest.mark.requirement("K-07", "CLUSTER-LEASE"), pytest.mark.timeout(240)]


@pytest.mark.requirement("CLUSTER-MEMBERS", "K-03")
def test_two_nodes_that_start_find_each_other_in_every_order_of_events() -> None:
    found = explore(nodes_model([], is_settled=False, sessions_max=1))
    assert found.outcome == "holds", str(found.broken)
    assert found.states > 1_000
    assert set(found.taken) == {"start", "ask", "tick", "write", "rest"}
    assert 0 < found.goals < found.states


@pytest.mark.requirement("K-13", "K-17")
@pytest.mark.parametrize("trouble", [each for each in TROUBLES if each != "drift"])
def test_one_node_answers_and_one_writes_whatever_goes_wrong(trouble: str) -> None:
    found = explore(nodes_model([trouble]))
    assert found.outcome == "holds", str(found.broken)
    assert found.states > 2_000
    assert found.taken[trouble] > 0
    assert found.goals > 0


# --- saboteurs ----------------------------------------------------------------------------------


def _let_pass(transaction: Transaction, shard: int, epoch: int) -> None:
    """A store that does not look at epochs."""


@pytest.mark.requirement("STORE-FENCED")
def test_without_the_fence_a_node_that_comes_back_overwrites_its_successor() -> None:
    found = explore(nodes_model(["cut"], fence=_let_pass))
    assert found.broken is not None
    assert str(found.broken) == (
        "epochs of writes never go back: a write under epoch 2 was taken after one under 4\n"
        "  1. a is cut off from the store\n"
        "  2. b does a renew\n"
        "  3. b does a survey\n"
        "  4. a tick passes\n"
        "  5. b does a renew\n"
        "  6. b does a survey\n"
        "  7. a tick passes\n"
        "  8. b does a renew\n"
        "  9. b does a survey\n"
        "  10. a tick passes\n"
        "  11. a reaches the store again\n"
        "  12. b does a renew\n"
        "  13. b does a survey\n"
        "  14. a tick passes\n"
        "  15. b does a end\n"
        "  16. b does a survey\n"
        "  17. b does a claim\n"
        "  18. b writes under epoch 4\n"
        "  19. a writes under epoch 2\n"
        "  => stored: epoch 4 of b1; a is silent under epoch 2, b answers under epoch 4"
    )


class _NoMargin(Timing):
    """Answers to the last moment, and waits no longer than that for others."""

    __slots__ = ()

    @property
    def until_ns(self) -> int:
        return self.ttl_ns

    def patience_ns(self, ttl_ns: int) -> int:
        return ttl_ns


@pytest.mark.requirement("K-09")
def test_without_the_margin_clocks_that_drift_let_two_nodes_answer() -> None:
    hasty = _NoMargin(
        ttl_ns=TIMING.ttl_ns,
        margin_parts=TIMING.margin_parts,
        renew_ns=TIMING.renew_ns,
        retry_ns=TIMING.retry_ns,
        moves_max=TIMING.moves_max,
    )
    found = explore(nodes_model(["cut", "drift"], timing=hasty))
    assert found.broken is not None
    assert found.broken.law == "one node answers"
    assert len(found.broken.trace) == 13
    assert "only the clock of b ticks" in found.broken.trace


def _time_from_the_answer(member: Member, event: e.Event) -> Decided:
    if isinstance(event, e.Renewed):
        event = replace(event, sent_ns=event.now_ns)
    return decide(member, event)


def test_a_lease_timed_from_the_answer_lets_two_nodes_answer() -> None:
    found = explore(nodes_model(["slow answer"], decide=_time_from_the_answer))
    assert found.broken is not None
    assert found.broken.law == "one node answers"
    assert "a is told of its renew" in found.broken.trace


def _end_without_a_bump(
    transaction: Transaction, session: str, renewals: int | None, now_ms: int
) -> bool:
    """End a session and free its shards under the epochs that they have."""
    is_ended = rows.end(transaction, session, renewals, now_ms)
    transaction.execute("UPDATE shards SET epoch = epoch - 1 WHERE session = ''")
    return is_ended


def _claim_without_a_bump(
    transaction: Transaction, session: str, shards: Sequence[ShardGrant]
) -> list[ShardGrant]:
    taken = rows.claim(transaction, session, shards)
    transaction.execute("UPDATE shards SET epoch = epoch - 1 WHERE session = ?", (session,))
    return [ShardGrant(shard, epoch - 1) for shard, epoch in taken]


@pytest.mark.requirement("K-14")
def test_a_take_over_that_raises_no_epoch_leaves_two_effective_owners() -> None:
    statements: Statements = {c.End: _end_without_a_bump, c.Claim: _claim_without_a_bump}
    found = explore(nodes_model(["cut"], statements=statements))
    assert found.broken is not None
    assert found.broken.law == "one effective owner"
    assert "a is cut off from the store" in found.broken.trace


def _renew_anyhow(transaction: Transaction, session: str) -> int:
    query = "UPDATE sessions SET ended_ms = NULL, renewals = renewals + 1 WHERE session = ?"
    return transaction.execute(query, (session,)).rowcount


def test_an_ended_session_that_could_be_renewed_would_live_again() -> None:
    found = explore(nodes_model(["cut"], statements={c.Renew: _renew_anyhow}))
    assert found.broken is not None
    assert found.broken.law == "an ended session never lives again"
