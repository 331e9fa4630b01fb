"""A package's contents: an actor's rows, the blobs they name, and its workspace.

    state           the actor's row
    rows/<table>    its other rows, each with its length before it
    workspace       the listing of its workspace directory, as JSON
    file/<sha256>   the content of a file of the workspace
    blob/<sha256>   a blob that a row names

Invariants: what leaves `read_package` is whole and checked against its own digests, and belongs to
one actor; nothing of it has been carried out.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar, cast

import msgspec

from kelpie.cluster.container import (
    Began,
    Data,
    Ended,
    Finished,
    Head,
    Item,
    Part,
    read_container,
)
from kelpie.core.digests import Digest, digest_bytes
from kelpie.core.errors import ConflictError, CorruptionError, KelpieError, LimitExceededError
from kelpie.core.ids import ActorId
from kelpie.core.limits import (
    BLOB_BYTES_MAX,
    COPY_PAGE_ROWS,
    MIB,
    PACKAGE_ROWS_BYTES_MAX,
    PACKAGE_TREE_BYTES_MAX,
)
from kelpie.storage.blobs import BlobStore
from kelpie.storage.moving import MoveStore
from kelpie.storage.tables import ACTOR_TABLES, ACTORS, EFFECTS, TABLES, Row, Table, Value
from kelpie.storage.trees import TreeEntry, check_entries

T = TypeVar("T")

PackageKind = Literal["suspend", "checkpoint"]
"""``suspend`` moves an actor and leaves its source sealed; ``checkpoint`` is a copy of one."""

FORMAT: Final = 1
_LENGTH_BYTES: Final = 4
_DIGEST: Final = re.compile(rb"sha256:([0-9a-f]{64})")
_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")


class PackageHead(msgspec.Struct, frozen=True, kw_only=True):
    """What a package says about itself.

    ``workspace`` is where the workspace lay; empty without one. ``image`` is the version of what
    the actor ran on.
    """

    format: int
    package: str
    kind: PackageKind
    actor: str
    architecture: str
    image: str
    workspace: str
    created_ms: int


class Tree(msgspec.Struct, frozen=True, kw_only=True):
    """The workspace's listing, and what of it could not be packed."""

    entries: tuple[TreeEntry, ...]
    left_out: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Contents:
    """A package that was read. ``files`` are its files' and blobs' contents, by part name."""

    head: PackageHead
    state: Row
    rows: dict[str, list[Row]] = field(default_factory=dict)
    tree: Tree | None = None
    files: dict[str, Path] = field(default_factory=dict)
    digest: str = ""
    size_bytes: int = 0

    @property
    def actor(self) -> ActorId:
        """Whose package it is."""
        return ActorId.parse(self.head.actor)


# --- writing ------------------------------------------------------------------------------------


class Packer:
    """The parts of one sealed actor's package, in order; use once."""

    def __init__(self, store: MoveStore, blobs: BlobStore, actor: ActorId) -> None:
        self._store = store
        self._blobs = blobs
        self._actor = actor
        self._named: set[str] = set()
        self._is_used = False

    async def parts(self, root: Path | None, tree: Tree | None) -> AsyncGenerator[Part]:
        """Yield the parts; each part's data is to be read before the next part is asked for.

        Raises:
            ConflictError: A file of the workspace is not as it was when it was listed.
            CorruptionError: A row or a blob is damaged.
        """
        assert not self._is_used, "a packer packs once"
        self._is_used = True
        assert (root is None) == (tree is None), "a workspace comes with its listing"
        yield Part("state", self._rows(ACTORS))
        for table in ACTOR_TABLES:
            yield Part(f"rows/{table.name}", self._rows(table))
        if tree is not None and root is not None:
            yield Part("workspace", _once(msgspec.json.encode(tree)))
            packed: set[str] = set()
            for entry in tree.entries:
                if entry.kind == "file" and entry.digest not in packed:
                    packed.add(entry.digest)
                    name = f"file/{entry.digest.removeprefix('sha256:')}"
                    yield Part(name, _file(root / entry.path, entry))
        for name in sorted(self._named):
            digest = Digest(f"sha256:{name}")
            if await _aside(partial(self._blobs.exists, digest)):
                yield Part(f"blob/{name}", self._blob(digest))

    async def _rows(self, table: Table) -> AsyncGenerator[bytes]:
        after: Row | None = None
        while True:
            page = await self._store.actor_rows(
                self._actor, table, after=after, limit=COPY_PAGE_ROWS
            )
            for row in page:
                encoded = msgspec.msgpack.encode(row)
                self._named.update(name.decode() for name in _DIGEST.findall(encoded))
                yield len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded
            if len(page) < COPY_PAGE_ROWS:
                return
            after = table.key_of(page[-1])

    async def _blob(self, digest: Digest) -> AsyncGenerator[bytes]:
        yield await _aside(partial(self._blobs.get, digest))


async def _once(data: bytes) -> AsyncGenerator[bytes]:
    yield data


async def _file(path: Path, entry: TreeEntry) -> AsyncGenerator[bytes]:
    """Yield a file's content, which must be what its listing says."""
    data = await _aside(partial(_read, path))
    if digest_bytes(data) != entry.digest:
        message = f"{entry.path} changed while the workspace was packed; export it again"
        raise ConflictError(message, path=entry.path)
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


def _read(path: Path) -> bytes:
    """Return a file's content; nothing if a link or something else has taken its place."""
    return b"" if path.is_symlink() or not path.is_file() else path.read_bytes()


async def _aside(job: Callable[[], T]) -> T:
    """Run a job that blocks on the disk off the event loop."""
    return await asyncio.get_running_loop().run_in_executor(None, job)


# --- reading ------------------------------------------------------------------------------------


async def read_package(chunks: AsyncIterator[bytes], staging: Path) -> Contents:
    """Read a whole package; contents of files go to the empty directory ``staging``.

    Raises:
        CorruptionError: It is cut short, damaged, or says what cannot be.
        LimitExceededError: It is larger than a package may be.
    """
    reader = _Reader(staging)
    async with aclosing(read_container(chunks)) as items:
        async for item in items:
            reader.take(item)
    return reader.finish()


class _Reader:
    """Takes a package's items in; believes nothing before the end."""

    def __init__(self, staging: Path) -> None:
        self._staging = staging
        self._head: PackageHead | None = None
        self._contents: Contents | None = None
        self._name = ""
        self._skips = False
        self._buffer = bytearray()
        self._path: Path | None = None
        self._part_bytes = 0
        self._rows_bytes = 0
        self._ended: Ended | None = None

    def take(self, item: Item) -> None:
        """Take the next item.

        Raises:
            CorruptionError: It says what cannot be.
            LimitExceededError: There is too much of it.
        """
        assert self._ended is None, "nothing follows the end"
        match item:
            case Began():
                self._begin(item)
            case Data():
                self._data(item.data)
            case Finished():
                self._finish_part(item)
            case Ended():
                self._ended = item
            case _:
                self._head = _read_head(item)

    def finish(self) -> Contents:
        """Return what was read.

        Raises:
            CorruptionError: Something is missing.
        """
        contents = self._contents
        if contents is None or self._ended is None:
            raise _wrong("it has no state")
        if contents.tree is not None:
            check_entries(contents.tree.entries)
            for entry in contents.tree.entries:
                if entry.kind == "file" and f"file/{entry.digest[7:]}" not in contents.files:
                    raise _wrong(f"the content of {entry.path[:200]!r} is missing")
        contents.digest, contents.size_bytes = self._ended.digest, self._ended.size_bytes
        return contents

    def _begin(self, item: Began) -> None:
        self._name, self._part_bytes, self._skips = item.name, 0, False
        self._buffer.clear()
        head, _, tail = item.name.partition("/")
        if self._contents is None and item.name != "state":
            raise _wrong("its first part is not the state")
        if head in {"file", "blob"} and _HEX.match(tail):
            self._path = self._staging / f"{head}-{tail}"
            self._path.touch(mode=0o600)
        elif item.name in {"state", "workspace"} or (head == "rows" and tail in _TABLE_NAMES):
            self._path = None
        elif item.is_optional:
            self._skips = True
        else:
            raise _wrong(f"part {item.name!r} is of a newer version of Kelpie; import it there")

    def _data(self, data: bytes) -> None:
        self._part_bytes += len(data)
        if self._skips:
            return
        if self._path is not None:
            if self._part_bytes > BLOB_BYTES_MAX:
                raise _too_large(self._name, self._part_bytes, BLOB_BYTES_MAX)
            with self._path.open("ab") as file:
                file.write(data)
            return
        self._buffer += data
        if self._name == "workspace":
            if self._part_bytes > PACKAGE_TREE_BYTES_MAX:
                raise _too_large(self._name, self._part_bytes, PACKAGE_TREE_BYTES_MAX)
            return
        self._rows_bytes += len(data)
        if self._rows_bytes > PACKAGE_ROWS_BYTES_MAX:
            raise _too_large("rows", self._rows_bytes, PACKAGE_ROWS_BYTES_MAX)

    def _finish_part(self, item: Finished) -> None:
        if self._skips:
            return
        if self._path is not None:
            if item.digest != f"sha256:{item.name.partition('/')[2]}":
                raise _wrong(f"part {item.name!r} does not have the content it is named by")
            assert self._contents is not None, "the state came first"
            self._contents.files[item.name] = self._path
        elif item.name == "state":
            self._take_state()
        elif item.name == "workspace":
            self._take_tree()
        else:
            self._take_rows(TABLES[item.name.partition("/")[2]])

    def _take_state(self) -> None:
        assert self._head is not None, "the head came first"
        rows = _decode_rows(ACTORS, bytes(self._buffer))
        if len(rows) != 1 or rows[0][ACTORS.place("actor")] != self._head.actor:
            raise _wrong("its state is not that of its actor")
        if rows[0][ACTORS.place("tombstoned")]:
            raise _wrong("its actor was deleted")
        self._contents = Contents(head=self._head, state=rows[0])
        _check_owner(ACTORS, rows, self._contents.actor)

    def _take_tree(self) -> None:
        assert self._contents is not None, "the state came first"
        try:
            self._contents.tree = msgspec.json.decode(bytes(self._buffer), type=Tree)
        except msgspec.DecodeError as error:
            raise _wrong(f"its workspace cannot be read ({error})") from error

    def _take_rows(self, table: Table) -> None:
        assert self._contents is not None, "the state came first"
        rows = _decode_rows(table, bytes(self._buffer))
        _check_owner(table, rows, self._contents.actor)
        if table is EFFECTS and any(row[EFFECTS.place("state")] == "started" for row in rows):
            raise _wrong("an effect of it is running")
        self._contents.rows[table.name] = rows


_TABLE_NAMES: Final = frozenset(table.name for table in ACTOR_TABLES)


def _read_head(item: Head) -> PackageHead:
    try:
        head = msgspec.convert(item, PackageHead)
        ActorId.parse(head.actor)
    except (msgspec.ValidationError, KelpieError) as error:
        raise _wrong(f"its head cannot be read ({error})") from error
    if head.format != FORMAT:
        raise _wrong(f"it has format {head.format}, this program reads {FORMAT}")
    return head


def _decode_rows(table: Table, data: bytes) -> list[Row]:
    rows: list[Row] = []
    start = 0
    while start < len(data):
        length = int.from_bytes(data[start : start + _LENGTH_BYTES], "big")
        start += _LENGTH_BYTES
        if start + length > len(data):
            raise _wrong(f"a row of {table.name} is cut short")
        try:
            values = msgspec.msgpack.decode(data[start : start + length])
        except (msgspec.DecodeError, RecursionError) as error:
            raise _wrong(f"a row of {table.name} cannot be read ({error})") from error
        row: Row = tuple(cast("list[Value]", values)) if isinstance(values, list) else ()
        table.check(row)
        rows.append(row)
        start += length
    return rows


def _check_owner(table: Table, rows: Sequence[Row], actor: ActorId) -> None:
    """Return if the rows are the actor's own."""
    wanted = (actor.tenant, str(actor))
    places = (table.place("tenant"), table.place(table.actor))
    if any((row[places[0]], row[places[1]]) != wanted for row in rows):
        raise _wrong(f"a row of {table.name} is another actor's")


def _wrong(problem: str) -> CorruptionError:
    message = f"the package cannot be imported: {problem}; nothing was changed"
    return CorruptionError(message, subject="package")


def _too_large(name: str, actual: int, limit: int) -> LimitExceededError:
    return LimitExceededError(name, actual=actual, limit=limit, unit="bytes")


async def chunks_of(path: Path) -> AsyncGenerator[bytes]:
    """Yield a file's content in pieces."""
    with path.open("rb") as file:
        while piece := await asyncio.get_running_loop().run_in_executor(None, file.read, MIB):
            yield piece


async def write_chunks(chunks: AsyncGenerator[bytes], path: Path) -> int:
    """Write pieces to a new file, and return how many bytes they were."""
    size_bytes = 0
    async with aclosing(chunks):
        with path.open("xb") as file:
            async for piece in chunks:
                size_bytes += file.write(piece)
            assert file.tell() == size_bytes, "the file holds what was written"
    return size_bytes
