"""Is a write-ahead log whole, or was a part lost that had been synced?

When the engine meets a frame whose checksum is wrong, it takes everything from there on for an
unfinished transaction and begins again at that place. After a crash that is right: only the last
transaction can be unfinished. A bit that flipped in the middle of the log looks the same to the
engine, and costs every commit behind it in silence. The difference shows in the file: a transaction
that another one follows was synced before that one was begun.

A flipped bit in the last transaction cannot be told from a commit that was cut off.

Source: sqlite.org, "WAL-mode File Format" and "The WAL-Index File".
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from kelpie.core.errors import CorruptionError

_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_MAGIC: Final = 0x377F0682  # the lowest bit says in which order checksums read their words
_INDEX_HEADER_BYTES: Final = 48
_NEWEST_FRAME: Final = struct.Struct("=I")
_NEWEST_FRAME_OFFSET: Final = 16
_MASK: Final = 0xFFFF_FFFF
_PAGE_BYTES: Final = 4_096  # the engine's default, which Kelpie leaves alone


class _Shape(NamedTuple):
    """What the log's header says."""

    page_bytes: int
    salts: bytes
    order: str

    def offset(self, number: int) -> int:
        """Return where frame ``number``, counted from 1, begins."""
        return _HEADER_BYTES + (number - 1) * (_FRAME_HEADER_BYTES + self.page_bytes)


def require_whole_log(database: Path) -> None:
    """Return if nothing that was synced is missing from the log of ``database``.

    Call it when a connection has read the file, and before one writes or checkpoints.

    Raises:
        CorruptionError: The log is damaged, and transactions behind the place would be lost.
    """
    log = database.with_name(f"{database.name}-wal")
    index = database.with_name(f"{database.name}-shm")
    if not log.is_file() or not index.is_file():
        return
    with log.open("rb") as file:
        newest = _read_newest(index)
        if any(_has_later_transaction(file, shape, newest) for shape in _read_shapes(file)):
            message = (
                f"{log} is damaged behind frame {newest:,}; commits that were acknowledged would "
                "be lost; restore a backup"
            )
            raise CorruptionError(message, subject=str(log))


def _read_shapes(file: BinaryIO) -> tuple[_Shape, ...]:
    """Return what the header says; if it is damaged, what the first frame lets one guess."""
    header = file.read(_HEADER_BYTES)
    salts = file.read(_FRAME_HEADER_BYTES)[8:16]
    if len(header) < _HEADER_BYTES or len(salts) < len(header[16:24]):
        return ()
    magic, _, page_bytes, _ = struct.unpack(">4I", header[:16])
    order = ">" if magic & 1 else "<"
    if magic & ~1 == _MAGIC and _sum(header[:24], (0, 0), order) == _sums(header[24:32]):
        return (_Shape(page_bytes, header[16:24], order),)
    return tuple(_Shape(_PAGE_BYTES, salts, order) for order in "<>")


def _read_newest(index: Path) -> int:
    """Return how many frames of the log the engine found whole and committed."""
    with index.open("rb") as file:
        header = file.read(_INDEX_HEADER_BYTES)
    if len(header) < _INDEX_HEADER_BYTES:
        return 0
    newest: int = _NEWEST_FRAME.unpack_from(header, _NEWEST_FRAME_OFFSET)[0]
    return newest


def _has_later_transaction(file: BinaryIO, shape: _Shape, newest: int) -> bool:
    """Return whether a transaction behind frame ``newest`` was followed by another one."""
    count = (file.seek(0, os.SEEK_END) - _HEADER_BYTES) // (_FRAME_HEADER_BYTES + shape.page_bytes)
    before = b""
    for number in range(newest + 1, count + 1):
        file.seek(shape.offset(number))
        header = file.read(_FRAME_HEADER_BYTES)
        if header[8:16] != shape.salts:  # an earlier generation's, or damaged
            before = b""
            continue
        # A frame continues the checksum of the one before it, so it was written after that one.
        if before and any(before[4:8]):
            data = header[:8] + file.read(shape.page_bytes)
            if _sum(data, _sums(before[16:24]), shape.order) == _sums(header[16:24]):
                return True
        before = header
    return False


def _sums(data: bytes) -> tuple[int, int]:
    first, second = struct.unpack(">2I", data)
    return first, second


def _sum(data: bytes, start: tuple[int, int], order: str) -> tuple[int, int]:
    """Return the log's checksum of ``data``, continued from ``start``."""
    first, second = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for position in range(0, len(words), 2):
        first = (first + words[position] + second) & _MASK
        second = (second + words[position + 1] + first) & _MASK
    return first, second
