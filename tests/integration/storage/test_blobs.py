"""Blobs on a real file system."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kelpie.core.digests import Digest, digest_bytes
from kelpie.core.errors import (
    CorruptionError,
    DiskFullError,
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
    StoreError,
)
from kelpie.core.limits import BLOB_BYTES_MAX
from kelpie.storage.blobs import BlobStore
from kelpie.storage.files import temporary_directory, temporary_file
from tests.integration.storage.harness import names_in

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(data=st.binary(max_size=300))
def test_what_is_put_comes_back_under_its_digest(blobs: BlobStore, data: bytes) -> None:
    digest = blobs.put_bytes(data)
    assert digest == digest_bytes(data) == blobs.put_bytes(data)
    assert blobs.get(digest) == data
    assert blobs.exists(digest)


def test_a_file_has_the_name_of_its_content(blobs: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    (digest,) = blobs.put_many([source])
    assert digest == blobs.put_bytes(source.read_bytes())
    assert source.exists()
    assert list(blobs.digests()) == [digest]


def test_a_strangers_file_is_no_blob(blobs: BlobStore) -> None:
    digest = blobs.put_bytes(b"ours")
    (blobs.root / "README").write_text("theirs")
    blobs.path(digest).with_name("notes").write_text("theirs")
    blobs.path(digest).with_name("0" * 64).write_text("in the wrong place")
    assert list(blobs.digests()) == [digest]
    assert blobs.sweep(lambda old: old).blobs == 0


@pytest.mark.requirement("STORE-CORRUPTION")
def test_a_damaged_blob_is_never_served(blobs: BlobStore) -> None:
    digest = blobs.put_bytes(b"precious")
    blobs.path(digest).write_bytes(b"precioux")
    with pytest.raises(CorruptionError, match=digest):
        blobs.get(digest)


def test_what_was_never_put_does_not_exist(blobs: BlobStore) -> None:
    digest = digest_bytes(b"never")
    assert not blobs.exists(digest)
    assert list(blobs.digests()) == []
    with pytest.raises(NotFoundError):
        blobs.get(digest)


@pytest.mark.parametrize("name", ["", "sha256:", "../../etc/passwd", "sha256:" + "../" * 21 + "."])
def test_a_name_that_is_no_digest_never_becomes_a_path(blobs: BlobStore, name: str) -> None:
    with pytest.raises(InvalidFieldError):
        blobs.exists(Digest(name))


def test_a_blob_beyond_the_limit_is_refused_and_leaves_nothing(
    blobs: BlobStore, tmp_path: Path
) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.truncate(BLOB_BYTES_MAX + 1)
    with pytest.raises(LimitExceededError):
        blobs.put_many([b"small", source])
    assert not [path for path in blobs.root.rglob("*") if path.is_file()]


def test_many_are_put_in_one_go_and_one_content_once(blobs: BlobStore, tmp_path: Path) -> None:
    there = blobs.put_bytes(b"there")
    contents: list[bytes | Path] = [b"there", b"twice"]
    for number in range(300):
        contents.append(tmp_path / f"file-{number}")
        (tmp_path / f"file-{number}").write_bytes(b"%d" % (number % 200))
    contents += [b"twice", tmp_path / "file-0"]
    digests = blobs.put_many(contents)
    assert [blobs.get(digest) for digest in digests] == [
        each if isinstance(each, bytes) else each.read_bytes() for each in contents
    ]
    assert digests[0] == there
    assert len(list(blobs.digests())) == 202
    assert blobs.put_many([]) == []
    assert names_in(blobs.root / "incoming") == []


def test_a_put_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "temporary"
    with pytest.raises(DiskFullError), temporary_file(path):
        raise OSError(28, "No space left on device")
    with pytest.raises(StoreError, match="cannot be written"), temporary_file(path):
        raise PermissionError(13, "no")
    assert not path.exists()


def test_what_an_interrupted_attempt_left_is_cleared_first(tmp_path: Path) -> None:
    folder = tmp_path / "partial"
    folder.mkdir()
    (folder / "left").write_bytes(b"")
    with temporary_directory(folder) as fresh:
        assert list(fresh.iterdir()) == []
    assert not folder.exists()
