"""A node that asks and takes no answers: the other one stops reading from it."""

from __future__ import annotations

import asyncio
import struct

import pytest

from kelpie.cluster.channel import Channel
from kelpie.cluster.handshake import NONCE_BYTES, ConnectingSide
from kelpie.cluster.line import IncomingRequest
from kelpie.cluster.messages import ActorCall, AnswerPacket
from kelpie.core import limits
from kelpie.host.frames import split_address
from tests.integration.cluster.support import TestNode, identity, nodes, until

ANSWER_BYTES = 256 * 1024
MORE = 40
ENORMOUS_BYTES = limits.ACTOR_STATE_BYTES_MAX


class Generous:
    """Answers every request with much more than it was asked with."""

    def __init__(self) -> None:
        self.asked_count = 0

    def asked(self, request: IncomingRequest) -> None:
        self.asked_count += 1
        request.answer(bytes(ANSWER_BYTES))


class Enormous:
    """Answers with as much as the largest state has."""

    def asked(self, request: IncomingRequest) -> None:
        request.answer(bytes(ENORMOUS_BYTES))


class Glutton:
    """A node on a bare socket, which reads when the test says so."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.channel = Channel(asks=True)

    async def greet(self, address: str) -> None:
        greeting = ConnectingSide(
            identity("n1"), target=address, proven="", nonce=bytes(NONCE_BYTES)
        )
        self.send(greeting.begin())
        step = greeting.receive(await self.receive())
        self.send(step.frames[0])
        assert greeting.receive(await self.receive()).peer is not None

    def send(self, frame: bytes) -> None:
        self.writer.write(struct.pack(">I", len(frame)) + frame)

    def ask(self, body: ActorCall) -> None:
        self.channel.ask(body, timeout_ms=20_000)
        for frame in self.channel.take():
            self.send(frame)

    async def receive(self) -> bytes:
        size = struct.unpack(">I", await self.reader.readexactly(4))[0]
        return await self.reader.readexactly(size)


@pytest.mark.requirement("CLUSTER-FRAMES-BOUNDED")
async def test_a_node_that_takes_no_answers_is_read_from_no_more_until_it_does() -> None:
    service = Generous()
    async with nodes(lambda: TestNode(identity("n2"), service)) as (node,):
        host, port = split_address(node.address)
        glutton = Glutton(*await asyncio.open_connection(host, port, limit=1 << 16))
        await glutton.greet(node.address)
        body = ActorCall(actor="t/a/b", message=b"", principal="p", key="k")
        (line,) = node.listener._lines.values()
        transport = line._link._transport  # type: ignore[attr-defined]
        asked = 0
        while transport.is_reading():
            glutton.ask(body)
            asked += 1
            await until(lambda: service.asked_count == asked, "it is answered")  # noqa: B023
        assert line._link.queued_bytes < limits.FRAME_QUEUE_BYTES_MAX
        for _ in range(MORE):
            glutton.ask(body)
        for _ in range(20):
            await asyncio.sleep(0)
        assert service.asked_count == asked
        answered = 0
        while answered < asked + MORE:
            packets = glutton.channel.receive(await glutton.receive())
            answered += sum(isinstance(packet, AnswerPacket) for packet in packets)
        line.check_invariants()
        assert not node.telemetry.logs
        glutton.writer.close()
        await glutton.writer.wait_closed()


async def test_many_large_answers_at_once_arrive_and_end_no_connection() -> None:
    async with nodes(
        lambda: TestNode(identity("n1")), lambda: TestNode(identity("n2"), Enormous())
    ) as (a, b):
        answers = await asyncio.gather(*(a.ask(b) for _ in range(12)))
        assert {len(answer) for answer in answers} == {ENORMOUS_BYTES}
        assert not a.telemetry.logs
        assert not b.telemetry.logs
