"""What one turn knows: bytes and ids that no other turn has."""

from __future__ import annotations

from kelpie.actors.api.turn_rng import TurnRng
from kelpie.actors.machine import Turn
from kelpie.core.ids import ActorId, Tenant

ACTOR = ActorId(Tenant("default"), "counter", "one")
SEED = bytes(range(16))


def turn(number: int) -> Turn:
    return Turn(actor=ACTOR, now_ms=1, seed=SEED, principal="test", number=number)


def test_turns_that_share_a_seed_make_ids_and_numbers_of_their_own() -> None:
    turns = [turn(number) for number in range(1, 300)]
    assert len({each.new_uuid() for each in turns}) == len(turns)
    assert len({TurnRng(each).fraction() for each in turns}) == len(turns)


def test_a_turn_that_runs_again_makes_the_same_ids() -> None:
    first, again = turn(7), turn(7)
    assert [first.new_uuid() for _ in range(3)] == [again.new_uuid() for _ in range(3)]


def test_a_seed_with_its_number_is_the_seed_that_a_turn_once_had() -> None:
    assert turn(7).material() == SEED + (7).to_bytes(8, "big")
    assert turn(0).material() == SEED
