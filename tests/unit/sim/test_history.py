"""A history keeps what was recorded, in the order in which it was recorded."""

from __future__ import annotations

import pytest

from kelpie.sim.history import History, Operation


def test_events_of_one_nanosecond_keep_the_order_in_which_they_were_recorded() -> None:
    history = History()
    first = history.call("ann", "account", "add", 1, at_ns=5)
    history.returned(first, 1, at_ns=5)
    second = history.call("ben", "account", "get", at_ns=5)
    history.returned(second, 1, at_ns=5, version=1)
    history.check_invariants()
    before, after = history.operations()
    assert before.returned_ns is not None
    assert before.called_ns < before.returned_ns < after.called_ns
    assert after.version == 1


def test_after_an_unknown_outcome_a_client_goes_on_under_another_name() -> None:
    history = History()
    history.lost(history.call("ann", "account", "add", 1, at_ns=0), version=1)
    history.returned(history.call("ann", "account", "get", at_ns=10), 0, at_ns=20)
    pending, read = history.operations()
    assert pending.is_pending
    assert pending.version == 1
    assert pending.client != read.client
    assert read.describe() == "ann~1: account.get() -> 0"
    assert pending.describe() == "ann: account.add(1) -> ?"


def test_what_was_refused_is_not_part_of_the_history() -> None:
    history = History()
    history.refused(history.call("ann", "account", "add", 1, at_ns=0))
    assert len(history) == 0
    open_call = history.call("ann", "account", "add", 1, at_ns=1)
    assert [operation.is_pending for operation in history.operations()] == [True]
    with pytest.raises(AssertionError, match="ann has an operation under way"):
        history.call("ann", "account", "get", at_ns=2)
    history.returned(open_call, 1, at_ns=3)
    with pytest.raises(AssertionError, match="not under way"):
        history.returned(open_call, 1, at_ns=4)


def test_an_operation_cannot_return_before_its_call() -> None:
    with pytest.raises(ValueError, match="returned at 3 ns, not after its call at 4"):
        Operation(client="ann", object="x", kind="read", called_ns=4, returned_ns=3)
