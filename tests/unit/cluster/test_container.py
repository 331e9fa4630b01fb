"""Packages as bytes: whole ones are read as they were written, all others are refused."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie.cluster.container import (
    MAGIC,
    Began,
    Data,
    Ended,
    Finished,
    Part,
    read_container,
    write_container,
)
from kelpie.core.digests import digest_bytes
from kelpie.core.errors import CorruptionError, KelpieError, LimitExceededError
from kelpie.core.limits import PACKAGE_FRAME_BYTES_MAX, PACKAGE_HEAD_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

pytestmark = pytest.mark.requirement("TELEPORT-HOSTILE")

PARTS = {"state": b"s" * 10, "rows/kv": b"", "blob/aa": bytes(range(256)) * 8}


async def pieces(data: bytes, size: int = 1 << 16) -> AsyncGenerator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def parts_of(parts: Mapping[str, bytes]) -> AsyncGenerator[Part]:
    for name, data in parts.items():
        yield Part(name, pieces(data))


async def pack(parts: Mapping[str, bytes] = PARTS, **head: object) -> bytes:
    written = write_container(dict(head), parts_of(parts))
    return b"".join([piece async for piece in written])


async def unpack(data: bytes, size: int = 1 << 16) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    name, ended = "", False
    async with aclosing(pieces(data, size)) as chunks, aclosing(read_container(chunks)) as items:
        async for item in items:
            match item:
                case Began():
                    name = item.name
                    found[name] = b""
                case Data():
                    found[name] += item.data
                case Finished():
                    assert item.digest == digest_bytes(found[name])
                    assert item.size_bytes == len(found[name])
                case Ended():
                    ended = True
                case _:
                    assert isinstance(item, dict)
    assert ended
    return found


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
async def test_what_was_packed_is_read_however_it_comes(size: int) -> None:
    whole = await pack(actor="a/b/c")
    assert whole.startswith(MAGIC)
    assert await unpack(whole, size) == PARTS


async def test_a_large_part_goes_in_frames_of_bounded_size() -> None:
    large = {"state": bytes(3 * PACKAGE_FRAME_BYTES_MAX + 1)}
    assert await unpack(await pack(large, actor="a")) == large


async def test_a_package_cut_anywhere_is_refused() -> None:
    whole = await pack(actor="a")
    for length in range(len(whole)):
        with pytest.raises(CorruptionError):
            await unpack(whole[:length])


async def test_a_package_with_any_byte_changed_is_refused() -> None:
    whole = await pack({"state": b"abc", "rows/kv": b"d"}, actor="a")
    for place in range(len(whole)):
        changed = whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :]
        with pytest.raises(KelpieError):
            await unpack(changed)
    with pytest.raises(CorruptionError, match="behind its end"):
        await unpack(whole + b"\0")


async def test_two_parts_of_one_name_are_refused() -> None:
    async def twice() -> AsyncGenerator[Part]:
        for _ in range(2):
            yield Part("state", pieces(b"x"))

    whole = b"".join([piece async for piece in write_container({"actor": 1}, twice())])
    with pytest.raises(CorruptionError, match="name of its own"):
        await unpack(whole)


async def test_a_head_beyond_its_limit_is_not_written() -> None:
    with pytest.raises(LimitExceededError):
        await pack(actor="x" * PACKAGE_HEAD_BYTES_MAX)


@given(st.binary(max_size=200), st.integers(0, 2**32))
def test_garbage_behind_the_magic_is_refused_and_nothing_else(tail: bytes, seed: int) -> None:
    noise = random.Random(seed).randbytes(64)
    with pytest.raises(KelpieError):
        asyncio.run(unpack(MAGIC + tail + noise))
