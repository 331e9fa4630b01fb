"""A large state comes back whole, and is not read on the event loop's connection."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from kelpie.core.errors import CorruptionError
from kelpie.core.limits import ACTOR_STATE_BYTES_MAX, STATE_INLINE_READ_BYTES_MAX
from tests.contract.store.world import Hand, SeededRng, SqliteEngine, effect

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("size", "is_inline"),
    [(STATE_INLINE_READ_BYTES_MAX, True), (ACTOR_STATE_BYTES_MAX, False)],
)
async def test_only_small_states_are_read_on_the_loop(
    tmp_path: Path, size: int, is_inline: bool
) -> None:
    state = SeededRng().bytes(size)
    async with SqliteEngine(tmp_path).opened() as store:
        hand = Hand(store)
        await hand.turn(state=state, effects=(effect(hand.actor),))
        statements: list[str] = []
        store._reader.set_trace_callback(statements.append)
        loaded = await store.load(hand.actor)
        store._reader.set_trace_callback(None)
        assert loaded is not None
        assert loaded.state == state
        assert len(loaded.effects) == 1
        assert any("state_chunks" in statement for statement in statements) is is_inline


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("DELETE FROM state_chunks WHERE chunk = 7", "39 of 40 pieces"),
        ("UPDATE state_chunks SET data = x'00' WHERE chunk = 7", "checksum differs"),
    ],
)
async def test_a_damaged_large_state_is_named_and_never_served(
    tmp_path: Path, damage: str, problem: str
) -> None:
    engine = SqliteEngine(tmp_path)
    async with engine.opened() as store:
        hand = Hand(store)
        await hand.turn(state=bytes(ACTOR_STATE_BYTES_MAX))
    with closing(sqlite3.connect(engine.path)) as connection:
        connection.execute(damage)
        connection.commit()
    async with engine.opened() as store:
        with pytest.raises(CorruptionError, match=problem) as caught:
            await store.load(hand.actor)
        assert str(hand.actor) in caught.value.message
        assert str(hand.actor) in (await store.check()).damaged
