from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from kelpie.core.digests import Digest, digest_bytes
from kelpie.core.errors import (
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
    SandboxError,
    TargetMovedError,
)
from kelpie.sandbox.changes import apply_changes, reconcile_changes
from kelpie.sandbox.protocol import FileChange
from kelpie.sandbox.workspace import DIRECTORY_DIGEST, Workspace
from tests.integration.sandbox.places import MemoryBlobs, delete, directory, link, write

if TYPE_CHECKING:
    from pathlib import Path


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_a_new_file_appears_with_its_content_and_mode(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    change = write(blobs, "deep/er/file", b"new", mode=0o640)
    assert reconcile_changes(tmp_path, [change]) == "untouched"
    assert apply_changes(tmp_path, [change], blobs) == 1
    path = tmp_path / "deep" / "er" / "file"
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert reconcile_changes(tmp_path, [change]) == "applied"
    assert names(tmp_path) == ["deep", "deep/er", "deep/er/file"]


@pytest.mark.requirement("FILES-EXACT-CHANGE")
def test_a_set_is_refused_whole_when_one_path_has_moved(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    (tmp_path / "b").write_bytes(b"somebody else's")
    changes = [write(blobs, "a", b"new"), write(blobs, "b", b"new", old=b"expected")]
    assert reconcile_changes(tmp_path, changes) == "moved"
    with pytest.raises(TargetMovedError) as caught:
        apply_changes(tmp_path, changes, blobs)
    assert (caught.value.path, caught.value.applied) == ("b", 0)
    assert names(tmp_path) == ["b"]


def test_applying_again_after_a_crash_completes_the_set(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    (tmp_path / "a").write_bytes(b"old")
    first = write(blobs, "a", b"new", old=b"old")
    changes = [first, write(blobs, "b", b"new")]
    apply_changes(tmp_path, [first], blobs)
    assert reconcile_changes(tmp_path, changes) == "partial"
    assert apply_changes(tmp_path, changes, blobs) == 1
    assert apply_changes(tmp_path, changes, blobs) == 0
    assert reconcile_changes(tmp_path, changes) == "applied"


def test_a_temporary_file_of_a_crash_is_replaced(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    change = write(blobs, "a", b"new")
    digest = digest_bytes(f"a\0{change.after}".encode()).removeprefix("sha256:")
    (tmp_path / f".kelpie-{digest[:24]}").write_bytes(b"half")
    apply_changes(tmp_path, [change], blobs)
    assert names(tmp_path) == ["a"]


def test_a_tree_is_removed_from_its_leaves(tmp_path: Path) -> None:
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "inner" / "leaf").write_bytes(b"x")
    changes = [
        delete("tree", DIRECTORY_DIGEST, "directory"),
        delete("tree/inner", DIRECTORY_DIGEST, "directory"),
        delete("tree/inner/leaf", digest_bytes(b"x")),
    ]
    assert apply_changes(tmp_path, changes, MemoryBlobs()) == 3
    assert names(tmp_path) == []
    assert reconcile_changes(tmp_path, changes) == "applied"


def test_a_directory_with_a_file_nobody_approved_stays(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "stranger").write_bytes(b"x")
    changes = [delete("tree", DIRECTORY_DIGEST, "directory")]
    with pytest.raises(TargetMovedError, match="stranger"):
        apply_changes(tmp_path, changes, MemoryBlobs())
    assert names(tmp_path) == ["tree", "tree/stranger"]


def test_files_directories_and_links_can_replace_each_other(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "link").symlink_to("file")
    linked = Workspace(tmp_path).state("link").digest
    changes = [
        directory("file", before=digest_bytes(b"x")),
        write(blobs, "file/inside", b"y"),
        link(blobs, "tree", "../outside", before=DIRECTORY_DIGEST),
        FileChange(
            path="link", kind="file", before=linked, after=blobs.put_bytes(b"z"), mode=0o600
        ),
    ]
    assert reconcile_changes(tmp_path, changes) == "untouched"
    apply_changes(tmp_path, changes, blobs)
    assert (tmp_path / "file" / "inside").read_bytes() == b"y"
    assert (tmp_path / "tree").readlink().as_posix() == "../outside"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"z"


def test_only_the_mode_can_change(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_bytes(b"x")
    path.chmod(0o644)
    same = digest_bytes(b"x")
    change = FileChange(path="run", kind="file", before=same, after=same, mode=0o755)
    assert reconcile_changes(tmp_path, [change]) == "untouched"
    apply_changes(tmp_path, [change], MemoryBlobs())
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert reconcile_changes(tmp_path, [change]) == "applied"


def test_set_id_bits_never_land(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    change = write(blobs, "tool", b"x", mode=0o4755)
    with pytest.raises(InvalidFieldError, match="mode"):
        apply_changes(tmp_path, [change], blobs)
    assert names(tmp_path) == []


def test_a_closed_directory_is_filled_before_it_is_closed(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    changes = [directory("closed", mode=0o555), write(blobs, "closed/file", b"x")]
    apply_changes(tmp_path, changes, blobs)
    assert stat.S_IMODE((tmp_path / "closed").stat().st_mode) == 0o555
    assert (tmp_path / "closed" / "file").read_bytes() == b"x"
    (tmp_path / "closed").chmod(0o755)


@pytest.mark.requirement("FILES-EXACT-CHANGE")
@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a\0b", "", ".", "\udcff"])
def test_a_path_that_leaves_the_root_is_refused(tmp_path: Path, path: str) -> None:
    blobs = MemoryBlobs()
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(InvalidFieldError):
        apply_changes(root, [write(blobs, path, b"x")], blobs)
    assert names(tmp_path) == ["root"]


@pytest.mark.requirement("FILES-EXACT-CHANGE")
def test_a_link_on_the_way_is_never_followed(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (root / "way").symlink_to(outside)
    with pytest.raises(InvalidFieldError, match="link"):
        apply_changes(root, [write(blobs, "first", b"x"), write(blobs, "way/file", b"x")], blobs)
    assert names(outside) == []
    assert names(root) == ["way"]


def test_a_link_at_the_end_is_replaced_and_its_target_untouched(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.write_bytes(b"precious")
    root.mkdir()
    (root / "file").symlink_to(outside)
    with pytest.raises(TargetMovedError):
        apply_changes(root, [write(blobs, "file", b"x", old=b"precious")], blobs)
    linked = Workspace(root).state("file").digest
    after = blobs.put_bytes(b"x")
    change = FileChange(path="file", kind="file", before=linked, after=after, mode=0o644)
    apply_changes(root, [change], blobs)
    assert outside.read_bytes() == b"precious"
    assert (root / "file").read_bytes() == b"x"


def test_a_missing_blob_is_noticed_before_anything_is_touched(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    changes = [write(blobs, "a", b"a"), write(blobs, "b", b"b")]
    del blobs.content[Digest(changes[1].after)]
    with pytest.raises(NotFoundError):
        apply_changes(tmp_path, changes, blobs)
    assert names(tmp_path) == []


def test_a_path_named_twice_is_refused(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    changes = [write(blobs, "a", b"1"), write(blobs, "./a", b"2")]
    with pytest.raises(InvalidFieldError, match="twice"):
        apply_changes(tmp_path, changes, blobs)
    assert names(tmp_path) == []


def test_too_many_changes_are_refused(tmp_path: Path) -> None:
    changes = [delete(f"f{index}", digest_bytes(b"x")) for index in range(20_001)]
    with pytest.raises(LimitExceededError, match="changes"):
        reconcile_changes(tmp_path, changes)


def test_a_full_disk_is_a_typed_error(tmp_path: Path) -> None:
    class FullBlobs(MemoryBlobs):
        def get(self, digest: Digest) -> bytes:
            raise OSError(28, "No space left on device")

    blobs = FullBlobs()
    with pytest.raises(SandboxError, match="No space left") as caught:
        apply_changes(tmp_path, [write(blobs, "a", b"x")], blobs)
    assert caught.value.fields["applied"] == 0
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_files_to_the_owner_of_the_workspace(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    os.chown(tmp_path, 1234, 1234)
    (tmp_path / "theirs").write_bytes(b"old")
    os.chown(tmp_path / "theirs", 4321, 4321)
    changes = [write(blobs, "new/file", b"x"), write(blobs, "theirs", b"y", old=b"old")]
    apply_changes(tmp_path, changes, blobs)
    assert (tmp_path / "new").stat().st_uid == 1234
    assert (tmp_path / "new" / "file").stat().st_uid == 1234
    assert (tmp_path / "theirs").stat().st_uid == 4321
