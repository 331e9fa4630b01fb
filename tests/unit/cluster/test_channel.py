"""A connection's books: what may be said, in which order, and how much of it."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.actors.described import Described
from kelpie.cluster.channel import Channel, ChannelError
from kelpie.cluster.messages import (
    ActorCall,
    ActorQuery,
    AnswerPacket,
    AskPacket,
    CancelPacket,
    FailPacket,
    PingPacket,
    WakeHint,
    decode_packets,
    encode,
    join_packets,
)
from kelpie.core import limits
from kelpie.core.errors import (
    KelpieError,
    LimitExceededError,
    NotFoundError,
    NotOwnerError,
    OverloadedError,
)
from tests.unit.cluster.nodes import call, pass_on


def pair() -> tuple[Channel, Channel]:
    return Channel(asks=True), Channel(asks=False)


def test_a_request_gets_its_answer_and_the_deadline_and_trace_travel_with_it() -> None:
    asker, answerer = pair()
    id_ = asker.ask(call(), timeout_ms=1_234, trace="00-aa-bb-01")
    (asked,) = pass_on(asker, answerer)
    assert asked == AskPacket(id_, 1_234, "00-aa-bb-01", call())
    answerer.answer(id_, b"done")
    assert pass_on(answerer, asker) == [AnswerPacket(id_, b"done")]
    assert asker.in_flight == answerer.in_flight == 0


def test_an_error_comes_back_as_it_left() -> None:
    asker, answerer = pair()
    ids = [asker.ask(ActorQuery("t/a/b", b""), timeout_ms=1) for _ in range(2)]
    pass_on(asker, answerer)
    answerer.fail(ids[0], NotOwnerError("gone", shard=3, owner="10.0.0.3:7000"))
    answerer.fail(ids[1], NotFoundError("agent", "x"))
    first, second = (packet for packet in pass_on(answerer, asker))
    assert isinstance(first, FailPacket)
    assert isinstance(second, FailPacket)
    moved, missing = first.error.restore(), second.error.restore()
    assert isinstance(moved, NotOwnerError)
    assert moved.fields["owner"] == "10.0.0.3:7000"
    assert isinstance(missing, NotFoundError)
    assert missing.message == "agent 'x' does not exist"


def test_packets_of_one_take_travel_in_one_frame_and_large_ones_alone() -> None:
    asker, answerer = pair()
    for _ in range(100):
        asker.ask(call(bytes(100)), timeout_ms=1)
    frames = asker.take()
    assert len(frames) == 1
    assert len(answerer.receive(frames[0])) == 100
    for _ in range(3):
        asker.ask(call(bytes(limits.RPC_BATCH_BYTES)), timeout_ms=1)
    frames = asker.take()
    assert len(frames) == 3
    assert asker.outgoing_bytes == 0
    assert sum(len(answerer.receive(frame)) for frame in frames) == 3
    answerer.check_invariants()


def test_too_many_or_too_large_requests_are_refused_and_leave_no_trace() -> None:
    asker = Channel(asks=True, in_flight_max=2)
    asker.ask(call(), timeout_ms=1)
    with pytest.raises(LimitExceededError, match="request"):
        asker.ask(call(bytes(limits.FRAME_BYTES_MAX)), timeout_ms=1)
    assert asker.ask(call(), timeout_ms=1) == 2
    with pytest.raises(OverloadedError):
        asker.ask(call(), timeout_ms=1)
    assert asker.in_flight == 2
    asker.check_invariants()


def test_an_answer_that_fits_no_frame_becomes_the_error_that_says_so() -> None:
    asker, answerer = pair()
    id_ = asker.ask(call(), timeout_ms=1)
    pass_on(asker, answerer)
    answerer.answer(id_, bytes(limits.RPC_BODY_BYTES_MAX + 1))
    (failed,) = pass_on(answerer, asker)
    assert isinstance(failed, FailPacket)
    assert failed.error.code == "limit_exceeded"


def test_a_request_that_was_taken_back_is_answered_into_the_void() -> None:
    asker, answerer = pair()
    id_ = asker.ask(call(), timeout_ms=1)
    pass_on(asker, answerer)
    answerer.answer(id_, b"late")
    asker.cancel(id_)
    assert pass_on(asker, answerer) == []
    assert pass_on(answerer, asker) == []
    other = asker.ask(call(), timeout_ms=1)
    asker.cancel(other)
    asked, taken_back = pass_on(asker, answerer)
    assert isinstance(asked, AskPacket)
    assert taken_back == CancelPacket(other)
    answerer.answer(other, b"nobody hears it")
    assert answerer.outgoing_bytes == 0


def test_pings_are_answered_and_hints_pass_both_ways() -> None:
    asker, answerer = pair()
    asker.ping()
    hint = WakeHint((1, 2), 77)
    asker.hint(hint)
    assert pass_on(asker, answerer) == [hint]
    assert pass_on(answerer, asker) == []
    answerer.hint(hint)
    assert pass_on(answerer, asker) == [hint]


@pytest.mark.parametrize(
    ("asks", "packet", "reason"),
    [
        (True, AnswerPacket(1, b""), "order"),
        (True, AskPacket(1, 1, "", call()), "side"),
        (True, CancelPacket(1), "side"),
        (False, AskPacket(2, 1, "", call()), "order"),
        (False, AskPacket(1, 0, "", call()), "order"),
        (False, AnswerPacket(1, b""), "side"),
        (False, CancelPacket(1), "order"),
    ],
)
def test_what_may_not_be_said_now_ends_the_connection(
    asks: bool, packet: msgspec.Struct, reason: str
) -> None:
    channel = Channel(asks=asks)
    with pytest.raises(ChannelError) as caught:
        channel.receive(join_packets([encode(packet)]))
    assert caught.value.reason == reason
    channel.check_invariants()


def test_more_requests_than_agreed_end_the_connection() -> None:
    answerer = Channel(asks=False, in_flight_max=1)
    asked = [encode(AskPacket(number, 1, "", call())) for number in (1, 2)]
    with pytest.raises(ChannelError) as caught:
        answerer.receive(join_packets(asked))
    assert caught.value.reason == "flood"


def test_a_frame_of_more_packets_than_one_may_hold_is_malformed() -> None:
    count = limits.RPC_BATCH_PACKETS_MAX + 1
    frame = b"\xdc" + count.to_bytes(2, "big") + encode(PingPacket(1)) * count
    with pytest.raises(ChannelError) as caught:
        Channel(asks=False).receive(frame)
    assert caught.value.reason == "malformed"


class NewerAsk(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A request as a later version may say it."""

    id: int
    timeout_ms: int
    trace: str
    body: msgspec.Raw
    priority: int


@pytest.mark.requirement("CLUSTER-ROLLING-UPGRADE")
def test_an_older_node_passes_over_what_a_newer_one_adds() -> None:
    longer = encode(NewerAsk(1, 50, "", msgspec.Raw(encode(call())), 9))
    (asked,) = Channel(asks=False).receive(join_packets([longer]))
    assert asked == AskPacket(1, 50, "", call())
    # And a newer node reads what an older one leaves out.
    older = encode([1, 7, "trace", [1, "t/a/b", b"m", "p", "k"]])
    (read,) = decode_packets(b"\x91" + b"\x95" + encode(1) + older[1:])
    assert isinstance(read, AskPacket)
    assert isinstance(read.body, ActorCall)
    assert read.body.attempt == 0


def busy_frames() -> list[bytes]:
    """Return the frames of a lively connection, from the side that asks."""
    asker = Channel(asks=True)
    frames: list[bytes] = []
    for number in range(6):
        id_ = asker.ask(call(bytes(number * 40)), timeout_ms=100 + number)
        asker.hint(WakeHint((number,), number))
        if number % 3 == 2:
            asker.cancel(id_)
        asker.ping()
        frames += asker.take()
    return frames


BUSY_FRAMES = busy_frames()


@pytest.mark.requirement("CLUSTER-FRAMES-FUZZED")
@given(data=st.data())
def test_damaged_frames_end_a_connection_or_change_nothing_that_was_promised(
    data: st.DataObject,
) -> None:
    frames = list(BUSY_FRAMES)
    index = data.draw(st.integers(0, len(frames) - 1))
    kind = data.draw(st.sampled_from(["cut", "flip", "swap", "repeat", "drop", "grow"]))
    frame = bytearray(frames[index])
    position = data.draw(st.integers(0, len(frame) - 1))
    match kind:
        case "cut":
            frames[index] = bytes(frame[:position])
        case "flip":
            frame[position] ^= data.draw(st.integers(1, 255))
            frames[index] = bytes(frame)
        case "swap":
            frames[index], frames[0] = frames[0], frames[index]
        case "repeat":
            frames.insert(index, frames[index])
        case "drop":
            del frames[index]
        case _:
            frames[index] = bytes(frame) + data.draw(st.binary(min_size=1, max_size=50))
    answerer = Channel(asks=False)
    asked: list[int] = []
    with suppress(ChannelError):
        for each in frames:
            packets = answerer.receive(each)
            asked += [packet.id for packet in packets if isinstance(packet, AskPacket)]
    # Whatever came: requests are taken in their order, each once, and none is left out.
    assert asked == list(range(1, len(asked) + 1))
    answerer.check_invariants()


@pytest.mark.requirement("CLUSTER-FRAMES-FUZZED")
@given(frame=st.binary(max_size=300), asks=st.booleans())
def test_arbitrary_bytes_never_break_the_books(frame: bytes, asks: bool) -> None:
    channel = Channel(asks=asks)
    with suppress(ChannelError):
        assert len(channel.receive(frame)) <= limits.RPC_BATCH_PACKETS_MAX
    channel.check_invariants()


@pytest.mark.requirement("CLUSTER-FRAMES-FUZZED")
@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_damaged_answers_end_a_connection_or_answer_what_was_asked(
    position: int, flip: int
) -> None:
    asker, answerer = pair()
    for _ in range(3):
        asker.ask(call(), timeout_ms=1)
    pass_on(asker, answerer)
    answerer.answer(1, b"value")
    answerer.fail(2, NotFoundError("agent", "x"))
    answerer.hint(WakeHint((1,), 1))
    frame = bytearray(answerer.take()[0])
    frame[position % len(frame)] ^= flip
    answered: list[int] = []
    with suppress(ChannelError):
        for packet in asker.receive(bytes(frame)):
            if isinstance(packet, AnswerPacket | FailPacket):
                answered.append(packet.id)
            if isinstance(packet, FailPacket):
                assert isinstance(packet.error.restore(), KelpieError)
    assert len(set(answered)) == len(answered)
    asker.check_invariants()


def test_an_error_with_fields_that_no_error_has_is_malformed() -> None:
    asker, _ = pair()
    asker.ask(call(), timeout_ms=1)
    failed = FailPacket(1, Described(code="busy", message="m", fields={"message": 1}))
    with pytest.raises(ChannelError) as caught:
        asker.receive(join_packets([encode(failed)]))
    assert caught.value.reason == "malformed"
