"""The container of packages: named parts in one stream of bytes, each with its SHA-256.

    magic   KELPIE-PACKAGE-1 and a line feed
    frames  one byte of kind, four bytes of length (big-endian), the payload:
        h   the head, one JSON object; the first frame
        b   the beginning of a part, one JSON object with its name
        d   data of the part that began last
        e   the end of that part: the SHA-256 of its data, 32 bytes
        m   the manifest, one JSON object with every part's name, size and digest
        s   the SHA-256 of every byte before this frame, 32 bytes; the last frame

Everything streams, both ways; a reader holds one frame. What a head or a part's beginning says
beyond what is known here is left for others to read. Nothing is compressed, so a package takes as
much space as it says.

A reader trusts nothing: every length is bounded before it is believed. Until ``Ended`` came, what
came before may be a part of anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final, NamedTuple

import msgspec

from kelpie.core.digests import Digest
from kelpie.core.errors import CorruptionError, LimitExceededError
from kelpie.core.limits import (
    PACKAGE_BYTES_MAX,
    PACKAGE_FRAME_BYTES_MAX,
    PACKAGE_HEAD_BYTES_MAX,
    PACKAGE_PARTS_MAX,
)

MAGIC: Final = b"KELPIE-PACKAGE-1\n"
_HEADER_BYTES: Final = 5
_PART_NAME_CHARS_MAX: Final = 128

Head = dict[str, Any]


class Part(NamedTuple):
    """A part to be written: its name, and its data as it comes."""

    name: str
    data: AsyncGenerator[bytes]


class Began(NamedTuple):
    """A part begins; ``is_optional`` lets a reader that does not know it pass it over."""

    name: str
    is_optional: bool


class Data(NamedTuple):
    """Data of the part that began last; ends are checked later."""

    data: bytes


class Finished(NamedTuple):
    """The part that began last is whole."""

    name: str
    size_bytes: int
    digest: Digest


class Ended(NamedTuple):
    """The package is whole: nothing is missing, doubled or changed."""

    digest: Digest
    size_bytes: int


Item = Head | Began | Data | Finished | Ended


class _PartLine(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    size_bytes: int
    digest: str


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    parts: list[_PartLine]


class _Beginning(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    optional: bool = False


async def write_container(head: Head, parts: AsyncGenerator[Part]) -> AsyncGenerator[bytes]:
    """Yield the bytes of a package.

    Raises:
        LimitExceededError: The head is too large, or there are too many parts or bytes.
    """
    whole = hashlib.sha256()
    size_bytes = 0

    def pack(kind: bytes, payload: bytes) -> bytes:
        nonlocal size_bytes
        assert len(payload) <= PACKAGE_FRAME_BYTES_MAX, "a frame is bounded"
        frame = kind + len(payload).to_bytes(4, "big") + payload
        whole.update(frame)
        size_bytes += len(frame)
        if size_bytes > PACKAGE_BYTES_MAX:
            raise _too_large(size_bytes)
        return frame

    encoded = msgspec.json.encode(head)
    if len(encoded) > PACKAGE_HEAD_BYTES_MAX:
        limit = PACKAGE_HEAD_BYTES_MAX
        raise LimitExceededError("head", actual=len(encoded), limit=limit, unit="bytes")
    whole.update(MAGIC)
    yield MAGIC
    yield pack(b"h", encoded)
    lines: list[_PartLine] = []
    async with aclosing(parts):
        async for part in parts:
            yield pack(b"b", msgspec.json.encode({"name": part.name}))
            hasher, part_bytes = hashlib.sha256(), 0
            async with aclosing(_pieces(part.data)) as pieces:
                async for piece in pieces:
                    hasher.update(piece)
                    part_bytes += len(piece)
                    yield pack(b"d", piece)
            yield pack(b"e", hasher.digest())
            digest = f"sha256:{hasher.hexdigest()}"
            lines.append(_PartLine(name=part.name, size_bytes=part_bytes, digest=digest))
            if len(lines) > PACKAGE_PARTS_MAX:
                limit = PACKAGE_PARTS_MAX
                raise LimitExceededError("package", actual=len(lines), limit=limit, unit="parts")
    manifest = msgspec.json.encode(_Manifest(parts=lines))
    for start in range(0, len(manifest), PACKAGE_FRAME_BYTES_MAX):
        yield pack(b"m", manifest[start : start + PACKAGE_FRAME_BYTES_MAX])
    yield b"s" + (32).to_bytes(4, "big") + whole.digest()


async def _pieces(data: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Yield data in pieces that fit a frame."""
    async with aclosing(data):
        async for chunk in data:
            for start in range(0, len(chunk), PACKAGE_FRAME_BYTES_MAX):
                yield chunk[start : start + PACKAGE_FRAME_BYTES_MAX]


class _Frames:
    """Cuts a stream of bytes into frames, and counts and digests what it gave."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._held = bytearray()
        self._whole = hashlib.sha256()
        self.size_bytes = 0

    @property
    def digest(self) -> bytes:
        """The SHA-256 of everything taken so far."""
        return self._whole.digest()

    async def take(self, count: int) -> bytes:
        """Return exactly ``count`` bytes.

        Raises:
            CorruptionError: The stream ends before.
        """
        assert 0 <= count <= PACKAGE_FRAME_BYTES_MAX, "a length is bounded before it is believed"
        while len(self._held) < count:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                message = f"the package ends after {self.size_bytes + len(self._held):,} bytes, "
                raise CorruptionError(f"{message}in the middle; it was cut short")
            self._held += chunk
        taken = bytes(self._held[:count])
        del self._held[:count]
        assert len(taken) == count, "no more and no less"
        self.size_bytes += count
        if self.size_bytes > PACKAGE_BYTES_MAX:
            raise _too_large(self.size_bytes)
        return taken

    async def frame(self) -> tuple[bytes, bytes]:
        """Return the next frame's kind and payload."""
        header = await self.take(_HEADER_BYTES)
        kind, length = header[:1], int.from_bytes(header[1:], "big")
        if kind not in b"hbdems" or length > PACKAGE_FRAME_BYTES_MAX:
            raise _damaged("a frame has no known kind or length")
        payload = await self.take(length)
        assert len(header) == _HEADER_BYTES, "a header has its size"
        assert len(payload) == length, "a frame is whole"
        if kind != b"s":
            self._whole.update(header + payload)
        return kind, payload

    async def begin(self) -> None:
        """Take the magic."""
        assert self.size_bytes == 0, "it comes first"
        magic = await self.take(len(MAGIC))
        if magic != MAGIC:
            message = "this is no Kelpie package, or one of another version"
            raise CorruptionError(
                f"{message}; an encrypted one needs its identity", subject="magic"
            )
        self._whole.update(magic)
        assert self.size_bytes == len(MAGIC), "nothing else was taken"

    async def end(self) -> None:
        """Return if nothing follows."""
        assert self.size_bytes > len(MAGIC), "something came before the end"
        while (chunk := await anext(self._chunks, None)) is not None:
            self._held += chunk
            if self._held:
                break
        if self._held:
            raise _damaged("there is something behind its end")
        assert not self._held, "everything was taken"


async def read_container(chunks: AsyncIterator[bytes]) -> AsyncGenerator[Item]:
    """Yield what a package holds as it comes; `Ended` is the last item of a whole one.

    Raises:
        CorruptionError: It is cut short, damaged, or no package.
        LimitExceededError: It is larger than a package may be.
    """
    frames = _Frames(chunks)
    await frames.begin()
    kind, payload = await frames.frame()
    if kind != b"h" or len(payload) > PACKAGE_HEAD_BYTES_MAX:
        raise _damaged("it does not begin with a head")
    yield _decode(payload, Head)
    lines: list[_PartLine] = []
    names: set[str] = set()
    kind, payload = await frames.frame()
    while kind == b"b":
        beginning = _decode(payload, _Beginning)
        is_bad = not 0 < len(beginning.name) <= _PART_NAME_CHARS_MAX or beginning.name in names
        if is_bad or len(lines) >= PACKAGE_PARTS_MAX:
            raise _damaged("a part has no name of its own, or there are too many")
        names.add(beginning.name)
        yield Began(beginning.name, beginning.optional)
        hasher, part_bytes = hashlib.sha256(), 0
        kind, payload = await frames.frame()
        while kind == b"d":
            hasher.update(payload)
            part_bytes += len(payload)
            yield Data(payload)
            kind, payload = await frames.frame()
        if kind != b"e" or payload != hasher.digest():
            raise _damaged(f"part {beginning.name!r} does not have its digest")
        digest = Digest(f"sha256:{hasher.hexdigest()}")
        lines.append(_PartLine(name=beginning.name, size_bytes=part_bytes, digest=digest))
        yield Finished(beginning.name, part_bytes, digest)
        kind, payload = await frames.frame()
    yield await _read_end(frames, kind, payload, lines)


async def _read_end(frames: _Frames, kind: bytes, payload: bytes, lines: list[_PartLine]) -> Ended:
    """Check the manifest and the digest of everything before it."""
    manifest, digest = bytearray(), b""
    while kind == b"m":
        manifest += payload
        if len(manifest) > len(lines) * 512 + PACKAGE_FRAME_BYTES_MAX:
            raise _damaged("its manifest is larger than its parts explain")
        digest = frames.digest
        kind, payload = await frames.frame()
    if not manifest or _decode(bytes(manifest), _Manifest).parts != lines:
        raise _damaged("its manifest does not name its parts")
    if kind != b"s" or payload != digest:
        raise _damaged("it does not have its digest")
    await frames.end()
    return Ended(Digest(f"sha256:{digest.hex()}"), frames.size_bytes)


def _decode(payload: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(payload, type=kind)
    except msgspec.DecodeError as error:
        raise _damaged(f"{error}") from error


def _damaged(problem: str) -> CorruptionError:
    message = f"the package is damaged: {problem}; nothing was imported, use another copy"
    return CorruptionError(message, subject="package")


def _too_large(size_bytes: int) -> LimitExceededError:
    limit = PACKAGE_BYTES_MAX
    return LimitExceededError("package", actual=size_bytes, limit=limit, unit="bytes")
