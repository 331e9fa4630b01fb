"""The collector's pauses, and that it is given back."""

from __future__ import annotations

import gc

from kelpie.host.heap import THRESHOLDS, short_pauses


def test_what_lives_at_the_beginning_is_out_of_the_collectors_sight() -> None:
    old: list[object] = [[] for _ in range(1_000)]
    with short_pauses():
        assert gc.get_freeze_count() >= len(old)
        assert not any(each is old for each in gc.get_objects())
    assert any(each is old for each in gc.get_objects())


def test_what_survives_a_full_collection_is_not_looked_at_again() -> None:
    with short_pauses():
        kept: list[object] = [[] for _ in range(1_000)]
        gc.collect()
        assert not any(each is kept for each in gc.get_objects())
        assert len(kept) == 1_000


def test_garbage_in_a_cycle_is_still_found_while_it_is_young() -> None:
    with short_pauses():
        for _ in range(1_000):
            _make_cycle()
        assert gc.collect() >= 1_000


def _make_cycle() -> None:
    cycle: list[object] = []
    cycle.append(cycle)


def test_the_collector_is_given_back_when_the_last_one_ends() -> None:
    thresholds, callbacks = gc.get_threshold(), list(gc.callbacks)
    with short_pauses():
        with short_pauses():
            assert gc.get_threshold() == THRESHOLDS
        assert gc.get_threshold() == THRESHOLDS
    assert gc.get_threshold() == thresholds
    assert gc.callbacks == callbacks
