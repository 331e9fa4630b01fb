"""What one node's edge passes on to the owner: one redirect, pauses, the deadline, the key."""

from __future__ import annotations

import msgspec
import pytest

from kelpie.cluster.forwarding import Forwarding
from kelpie.cluster.messages import Asked, EdgeAnswer, EdgeCall
from kelpie.core.errors import (
    ConflictError,
    DeadlineError,
    DrainingError,
    KelpieError,
    NotFoundError,
    NotOwnerError,
)
from kelpie.ports.network import NetworkError
from kelpie.sim.telemetry import RecordedTelemetry

HERE, ONE, TWO = "n1:7000", "n2:7000", "n3:7000"
SECOND_NS = 1_000_000_000
DONE = EdgeAnswer(202, b"application/json", ((b"location", b"/v1/calls/c"),), b"{}")
REQUEST = EdgeCall(
    method="POST",
    path="/v1/actors/Counter/a/add",
    query=b"",
    body=b"{}",
    tenant="default",
    principal="key:ada",
    is_local=False,
    key="k",
    prefers_async=True,
)


class StandingClock:
    """Time that only a sleeper moves."""

    def __init__(self) -> None:
        self.ns = 0

    def now_ms(self) -> int:
        return self.ns // 1_000_000

    def boot_ns(self) -> int:
        return self.ns

    async def sleep(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


class ScriptedLines:
    """Answers with what is next in the script; the last one goes on for ever."""

    def __init__(self, *script: bytes | KelpieError) -> None:
        self.script = list(script)
        self.asked: list[str] = []
        self.bodies: set[Asked] = set()

    async def ask(self, address: str, body: Asked, *, timeout_ms: int, trace: str = "") -> bytes:
        assert timeout_ms > 0
        assert trace == "00-trace"
        self.asked.append(address)
        self.bodies.add(body)
        said = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(said, KelpieError):
            raise said
        return said


def owned_by(address: str) -> NotOwnerError:
    return NotOwnerError("not served here", shard=7, owner=address)


async def not_here() -> EdgeAnswer:
    raise owned_by(ONE)


async def insist(lines: ScriptedLines, owner: str = ONE) -> EdgeAnswer:
    forwarding = Forwarding(
        lines=lines,
        address=HERE,
        clock=StandingClock(),
        telemetry=RecordedTelemetry(),
        traceparent=lambda: "00-trace",
    )
    return await forwarding.insist(REQUEST, not_here, owned_by(owner), ends_ns=SECOND_NS)


@pytest.mark.requirement("CLUSTER-ANY-NODE")
async def test_the_owners_whole_answer_is_returned_and_one_redirect_is_followed_at_once() -> None:
    lines = ScriptedLines(owned_by(TWO), msgspec.msgpack.encode(DONE))
    assert await insist(lines) == DONE
    assert lines.asked == [ONE, TWO]


async def test_a_request_is_not_passed_on_to_whom_it_came_to() -> None:
    lines = ScriptedLines(msgspec.msgpack.encode(DONE))
    assert await insist(lines, owner=HERE) == DONE  # `not_here` names the owner at the second look
    assert lines.asked == [ONE]


@pytest.mark.requirement("CLUSTER-FORWARDED-ONCE")
async def test_after_a_lost_line_the_same_request_is_sent_again_under_its_key() -> None:
    lost = NetworkError("the connection was lost", sent=True)
    draining = DrainingError("the node is shutting down")
    lines = ScriptedLines(lost, draining, msgspec.msgpack.encode(DONE))
    assert await insist(lines) == DONE
    assert len(lines.asked) == 3
    assert lines.bodies == {REQUEST}


async def test_when_the_time_is_up_the_error_says_whether_something_may_have_happened() -> None:
    with pytest.raises(NotOwnerError):
        await insist(ScriptedLines(owned_by("")))
    with pytest.raises(NotOwnerError):
        await insist(ScriptedLines(NetworkError("not reached", sent=False)))
    with pytest.raises(DeadlineError, match="may follow"):
        await insist(ScriptedLines(NetworkError("lost", sent=True), owned_by("")))


async def test_what_the_owner_refuses_is_refused_and_not_tried_again() -> None:
    lines = ScriptedLines(NotFoundError("method", "nothing"))
    with pytest.raises(NotFoundError):
        await insist(lines)
    assert lines.asked == [ONE]
    with pytest.raises(ConflictError, match="another version"):
        await insist(ScriptedLines(b"\xc1"))


async def test_once_this_node_is_the_owner_it_does_it_itself() -> None:
    lines = ScriptedLines(owned_by(""))
    clock, seen = StandingClock(), []

    async def here() -> str:
        seen.append(clock.ns)
        if len(seen) < 3:
            raise owned_by("")
        return "done here"

    forwarding = Forwarding(
        lines=lines,
        address=HERE,
        clock=clock,
        telemetry=RecordedTelemetry(),
        traceparent=lambda: "00-trace",
    )
    done = await forwarding.insist(REQUEST, here, owned_by(""), ends_ns=SECOND_NS)
    assert done == "done here"
    assert lines.asked == []
    assert seen == sorted(seen)
    assert len(seen) == 3
