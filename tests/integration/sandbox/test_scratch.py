from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kelpie.core.errors import LimitExceededError
from kelpie.sandbox.overlay import harvest_layer
from kelpie.sandbox.scratch import has_excess, list_scratches, make_scratch, remove_scratch
from tests.integration.sandbox.places import MemoryBlobs

if TYPE_CHECKING:
    from pathlib import Path

    from kelpie.core.digests import Digest


def test_a_scratch_is_removed_however_deep_and_closed_it_is(tmp_path: Path) -> None:
    scratch = make_scratch(tmp_path / "scratch", "one", tmp_path, owner=0)
    here = os.open(scratch.upper, os.O_RDONLY)
    for _ in range(1_200):
        os.mkdir("d", dir_fd=here)
        following = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = following
    os.close(here)
    (scratch.upper / "d").chmod(0)
    assert list_scratches(tmp_path / "scratch") == [scratch.path]
    remove_scratch(scratch.path)
    remove_scratch(scratch.path)
    assert list_scratches(tmp_path / "scratch") == []


def test_removing_a_scratch_never_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    scratch = make_scratch(tmp_path / "scratch", "one", tmp_path, owner=0)
    (scratch.upper / "link").symlink_to(tmp_path / "precious")
    remove_scratch(scratch.path)
    assert (tmp_path / "precious" / "file").exists()


def test_bytes_and_depth_of_a_scratch_are_measured(tmp_path: Path) -> None:
    scratch = make_scratch(tmp_path / "scratch", "one", tmp_path, owner=0)
    assert not has_excess(scratch.path, 1_000_000)
    (scratch.upper / "file").write_bytes(b"x" * 100_000)
    assert has_excess(scratch.path, 50_000)
    assert not has_excess(scratch.path, 1_000_000)


def test_more_changes_than_a_set_may_have_are_refused(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    upper = tmp_path / "upper"
    workspace.mkdir()
    upper.mkdir()
    for number in range(20_001):
        (upper / str(number)).symlink_to("x")
    (upper / "0-first").write_text("content")
    blobs = MemoryBlobs()
    with pytest.raises(LimitExceededError, match="changes"):
        harvest_layer(workspace, upper, blobs)
    assert blobs.content == {}, "what is refused is not stored"


def test_a_content_is_stored_once_and_only_if_it_changes_something(tmp_path: Path) -> None:
    class CountingBlobs(MemoryBlobs):
        puts = 0

        def put_bytes(self, data: bytes) -> Digest:
            self.puts += 1
            return super().put_bytes(data)

    workspace, upper = tmp_path / "workspace", tmp_path / "upper"
    for place in (workspace, upper):
        place.mkdir()
        (place / "touched").write_text("as it was")
    for name in ("one", "two", "three"):
        (upper / name).write_text("the same")
        (upper / f"link-{name}").symlink_to("one")
    blobs = CountingBlobs()
    changes = harvest_layer(workspace, upper, blobs).changes
    assert len(changes) == 6
    assert {change.after for change in changes} == set(blobs.content)
    assert blobs.puts == 2
