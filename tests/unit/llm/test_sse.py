"""Server-sent events mean the same wherever the network cuts them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.core.errors import ModelError
from kelpie.llm.sse import ServerSentEvent, SseParser
from tests.unit.llm.worlds import splits


def parse(chunks: list[bytes]) -> list[ServerSentEvent]:
    parser = SseParser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events + parser.close()


FIXTURE = (
    "\ufeff: a comment\n"
    "event: greeting\rdata: häl\r\ndata:lo 🐎\r\n\r\n"
    "id: 7\nretry: 10\n\n"
    "data\n\n"
    "event: nothing\n\n"
    "data:  two spaces\n\n"
).encode()
EVENTS = [
    ServerSentEvent(b"greeting", "häl\nlo 🐎".encode()),
    ServerSentEvent(b"", b""),
    ServerSentEvent(b"", b" two spaces"),
]


def test_events_do_not_depend_on_where_the_bytes_are_cut() -> None:
    for chunks in splits(FIXTURE):
        assert parse(chunks) == EVENTS, chunks


@given(
    lines=st.lists(
        st.sampled_from(["data: ä", "data: 🐎", "event: x", ": c", "", "", "data", "unknown: 1"]),
        max_size=12,
    ),
    ending=st.sampled_from(["\n", "\r", "\r\n"]),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_any_cut_of_any_stream_gives_the_events_of_the_whole(
    lines: list[str], ending: str, cuts: list[int]
) -> None:
    whole = "".join(line + ending for line in lines).encode()
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut <= len(whole))})
    pieces = [whole[a:b] for a, b in pairwise(edges)]
    assert parse(pieces) == parse([whole])


def test_an_event_without_its_last_blank_line_is_handed_on_at_the_end() -> None:
    assert parse([b"data: [DONE]"]) == [ServerSentEvent(b"", b"[DONE]")]


@pytest.mark.parametrize(
    "chunk", [b"x" * 10, b"data:" + b"x" * 10 + b"\n", b"data:\n", b": comment that never ends "]
)
def test_an_event_that_never_ends_is_refused_at_its_limit(chunk: bytes) -> None:
    parser = SseParser(event_bytes_max=1000)

    def flood() -> None:
        for _ in range(2000):
            parser.feed(chunk)

    with pytest.raises(ModelError, match="larger than 1,000 bytes") as caught:
        flood()
    assert caught.value.reason == "too_large"


def test_many_small_events_never_reach_the_limit_of_one() -> None:
    parser = SseParser(event_bytes_max=100)
    count = sum(len(parser.feed(b"data: " + b"x" * 50 + b"\n\n")) for _ in range(1000))
    assert count == 1000


def test_one_large_event_in_one_chunk_is_refused() -> None:
    with pytest.raises(ModelError, match="larger than 100 bytes"):
        SseParser(event_bytes_max=100).feed(b"data: " + b"x" * 101 + b"\n\n")
