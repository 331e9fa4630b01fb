"""What a change set replaces is kept, however much it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kelpie.core.digests import Digest
from kelpie.storage.blobs import BlobStore
from kelpie.tools.local_files import LocalFiles
from tests.integration.sandbox.places import MemoryBlobs, write

if TYPE_CHECKING:
    from pathlib import Path

LARGE = 7_000_000


async def test_every_replaced_content_can_be_put_back(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    blobs = BlobStore(tmp_path / "blobs")
    old = {f"file-{number}": b"%d" % number * LARGE for number in range(4)}
    old["small"] = b"small"
    for name, content in old.items():
        (root / name).write_bytes(content)
    changes = [write(MemoryBlobs(), name, b"new", old=content) for name, content in old.items()]
    blobs.put_bytes(b"new")
    applied = await LocalFiles(blobs).apply(root, changes)
    assert set(applied.paths) == set(old)
    assert {name: blobs.get(Digest(kept)) for name, kept in applied.before.items()} == old
    assert (root / "small").read_bytes() == b"new"
