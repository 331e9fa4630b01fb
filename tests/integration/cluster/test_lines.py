"""Nodes over real sockets: requests, errors, losses, strangers, and certificates."""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from pathlib import Path

import pytest

from kelpie.cluster.messages import WakeHint
from kelpie.core import limits
from kelpie.core.errors import (
    ConfigError,
    DeadlineError,
    InvalidFieldError,
    NotOwnerError,
    OverloadedError,
)
from kelpie.host.frames import TcpFrames, TlsContexts, split_address
from kelpie.ports.network import NetworkError
from kelpie.sim.telemetry import RecordedTelemetry
from tests.integration.cluster.support import (
    Echo,
    TestNode,
    identity,
    new_authority,
    nodes,
    tls_of,
    until,
)
from tests.waiting import eventually_async


async def test_many_requests_at_once_get_each_its_own_answer() -> None:
    async with nodes(lambda: TestNode(identity("n1")), lambda: TestNode(identity("n2"))) as (a, b):
        bodies = [bytes([number % 256]) * (number * 7) for number in range(500)]
        answers = await asyncio.gather(*(a.ask(b, body) for body in bodies))
        assert answers == bodies
        assert b.listener.nodes == ("n1",)
        assert a.lines.is_open(b.address)


async def test_a_message_of_the_largest_size_passes_both_ways() -> None:
    async with nodes(lambda: TestNode(identity("n1")), lambda: TestNode(identity("n2"))) as (a, b):
        body = bytes(limits.RPC_BODY_BYTES_MAX - 1_024)
        answers = await asyncio.gather(*(a.ask(b, body) for _ in range(2)))
        assert answers == [body, body]


async def test_an_error_names_the_owner_as_the_other_node_said_it() -> None:
    echo = Echo()
    async with nodes(lambda: TestNode(identity("n1")), lambda: TestNode(identity("n2"), echo)) as (
        a,
        b,
    ):
        asking = asyncio.gather(a.ask(b, b"wait"), return_exceptions=True)
        await echo.arrived.wait()
        echo.kept[0].fail(NotOwnerError("gone", shard=1, owner="10.0.0.9:1"))
        (error,) = await asking
        assert isinstance(error, NotOwnerError)
        assert error.fields["owner"] == "10.0.0.9:1"


async def test_a_caller_that_leaves_or_whose_time_is_up_takes_its_request_back() -> None:
    echo = Echo()
    async with nodes(lambda: TestNode(identity("n1")), lambda: TestNode(identity("n2"), echo)) as (
        a,
        b,
    ):
        with pytest.raises(DeadlineError):
            await a.ask(b, b"wait", timeout_ms=50)
        await until(lambda: echo.withdrawn == len(echo.kept), "the request is taken back")
        before = echo.withdrawn
        asking = asyncio.gather(a.ask(b, b"wait"), return_exceptions=True)
        await until(lambda: any(each.is_open for each in echo.kept), "it arrives")
        asking.cancel()
        await until(lambda: echo.withdrawn == before + 1, "it is taken back")
        assert not any(request.is_open for request in echo.kept)


async def test_a_lost_node_fails_what_waits_and_is_found_again_when_it_is_back() -> None:
    echo = Echo()
    async with nodes(lambda: TestNode(identity("n1")), lambda: TestNode(identity("n2"), echo)) as (
        a,
        b,
    ):
        address = b.address
        asking = asyncio.gather(a.ask(b, b"wait"), return_exceptions=True)
        await echo.arrived.wait()
        await b.listener.close()
        (error,) = await asking
        assert isinstance(error, NetworkError)
        assert error.sent
        assert echo.withdrawn == 1
        with pytest.raises(NetworkError) as refused:
            await a.ask(b)
        assert not refused.value.sent
        with pytest.raises(NetworkError, match="is not reached"):
            await a.ask(b)
        assert a.telemetry.counts["kelpie.rpc.connect_failures"] == 1
        again = TestNode(identity("n2"))
        await again.listener.open(address)
        try:
            await ask_until_reached(a, again)
        finally:
            await again.listener.close()


async def ask_until_reached(asker: TestNode, other: TestNode) -> None:
    """Ask until the pause after the last failure is over."""

    async def look() -> bool:
        try:
            return await asker.ask(other, b"again") == b"again"
        except NetworkError:
            return False

    await eventually_async(look, within_s=20, what="the node is reached again")


@pytest.mark.requirement("CLUSTER-PEERS-PROVEN")
async def test_another_secret_is_refused_counted_and_logged_without_its_payload() -> None:
    wrong = identity("n1", secret=b"another secret of enough bytes")
    async with nodes(lambda: TestNode(wrong), lambda: TestNode(identity("n2"))) as (a, b):
        with pytest.raises(NetworkError, match="secret") as caught:
            await a.ask(b)
        assert not caught.value.sent
        assert b.telemetry.counts["kelpie.rpc.refused"] == 1
        (record,) = [fields for _, event, fields in b.telemetry.logs if event == "rpc.refused"]
        assert record["reason"] == "proof"
        assert b.listener.nodes == ()


@pytest.mark.requirement("CLUSTER-FRAMES-FUZZED")
@pytest.mark.parametrize(
    ("sent", "counter"),
    [
        (struct.pack(">I", limits.FRAME_STRANGER_BYTES_MAX + 1), "kelpie.frames.refused"),
        (struct.pack(">I", 0), "kelpie.frames.refused"),
        (b"GET / HTTP/1.1\r\n\r\n", "kelpie.frames.refused"),
        (struct.pack(">I", 5) + b"hello", "kelpie.rpc.refused"),
    ],
)
async def test_what_is_no_greeting_ends_the_connection_and_is_counted(
    sent: bytes, counter: str
) -> None:
    async with nodes(lambda: TestNode(identity("n2"))) as (node,):
        host, port = split_address(node.address)
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(sent)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        assert node.telemetry.counts[counter] == 1
        assert not any("hello" in str(fields) for _, _, fields in node.telemetry.logs)


async def test_strangers_leave_room_for_others_only_up_to_their_bound() -> None:
    async with nodes(lambda: TestNode(identity("n1")), lambda: TestNode(identity("n2"))) as (a, b):
        assert await a.ask(b) == b"hello"
        host, port = split_address(b.address)
        count = limits.STRANGERS_MAX + 3
        strangers = [await asyncio.open_connection(host, port) for _ in range(count)]
        await until(lambda: b.telemetry.counts.get("kelpie.frames.refused", 0) == 3, "refusals")
        assert await a.ask(b) == b"hello"
        for _, writer in strangers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def test_hints_arrive_and_need_no_line_to_be_asked_for() -> None:
    async with nodes(lambda: TestNode(identity("n1")), lambda: TestNode(identity("n2"))) as (a, b):
        heard: list[object] = []
        b.listener.on_hint = lambda line, hint: heard.append(hint)
        a.lines.hint(b.address, WakeHint((1,), 5))
        await until(lambda: a.lines.is_open(b.address), "a line")
        a.lines.hint(b.address, WakeHint((2,), 6))
        await until(lambda: heard, "a hint")
        assert heard == [WakeHint((2,), 6)]
        a.lines.keep_only(())
        await until(lambda: b.listener.nodes == (), "no line")
        assert not a.lines.is_open(b.address)


async def test_a_node_that_takes_no_answers_is_not_asked_without_bound() -> None:
    echo = Echo()
    async with nodes(lambda: TestNode(identity("n1")), lambda: TestNode(identity("n2"), echo)) as (
        a,
        b,
    ):
        await a.ask(b)
        count = limits.RPC_IN_FLIGHT_MAX + 10
        asking = [asyncio.ensure_future(a.ask(b, b"wait")) for _ in range(count)]
        await until(lambda: len(echo.kept) == limits.RPC_IN_FLIGHT_MAX, "as many as may be")
        for request in echo.kept:
            request.answer(b"now")
        ended = await asyncio.gather(*asking, return_exceptions=True)
        assert ended.count(b"now") == limits.RPC_IN_FLIGHT_MAX
        assert sum(isinstance(each, OverloadedError) for each in ended) == 10


async def test_an_address_that_is_taken_or_malformed_is_refused() -> None:
    async with nodes(lambda: TestNode(identity("n2"))) as (node,):
        other = TestNode(identity("n3"))
        with pytest.raises(ConfigError, match="cannot be listened for"):
            await other.listener.open(node.address)
    for address in ("nowhere", "host:", ":1", "host:99999", "host:x"):
        with pytest.raises(InvalidFieldError, match="host:port"):
            split_address(address)
    assert split_address("[::1]:7000") == ("::1", 7_000)


# --- certificates -------------------------------------------------------------------------------


@pytest.mark.requirement("CLUSTER-PEERS-PROVEN")
async def test_nodes_with_certificates_of_one_authority_talk(tmp_path: Path) -> None:
    authority = new_authority()
    strict = {"secret": b"", "needs_certificate": True}
    one, two = (tls_of(tmp_path, name, authority) for name in ("n1", "n2"))
    async with nodes(
        lambda: TestNode(identity("n1", **strict), tls=one),
        lambda: TestNode(identity("n2", **strict), tls=two),
    ) as (a, b):
        body = bytes(300_000)
        assert await asyncio.gather(*(a.ask(b, body) for _ in range(5))) == [body] * 5
        assert await b.ask(a) == b"hello"


@pytest.mark.requirement("CLUSTER-PEERS-PROVEN")
async def test_a_certificate_of_another_authority_or_name_is_refused(tmp_path: Path) -> None:
    authority = new_authority()
    strict = {"secret": b"", "needs_certificate": True}
    good = tls_of(tmp_path, "n2", authority)
    foreign = tls_of(tmp_path, "n1", new_authority("other"))
    renamed = tls_of(tmp_path, "n3", authority, name="n4")
    async with nodes(
        lambda: TestNode(identity("n2", **strict), tls=good),
        lambda: TestNode(identity("n1", **strict), tls=foreign),
        lambda: TestNode(identity("n3", **strict), tls=renamed),
        lambda: TestNode(identity("n5", **strict)),
    ) as (node, stranger, liar, plain):
        for other in (stranger, liar, plain):
            with pytest.raises(NetworkError) as caught:
                await other.ask(node)
            assert not caught.value.sent
        assert node.listener.nodes == ()


def test_certificates_that_do_not_belong_together_are_a_clear_refusal(tmp_path: Path) -> None:
    authority = new_authority()
    tls_of(tmp_path, "n1", authority)
    tls_of(tmp_path, "n2", authority)
    files = {
        "authority": str(tmp_path / "n1.authority"),
        "certificate": str(tmp_path / "n1.certificate"),
    }
    with pytest.raises(ConfigError, match="certificates"):
        TlsContexts.load(**files, key=str(tmp_path / "n2.key"))
    with pytest.raises(ConfigError, match="certificates"):
        TlsContexts.load(**files, key=str(tmp_path / "nothing"))
    assert TcpFrames(telemetry=RecordedTelemetry()) is not None
