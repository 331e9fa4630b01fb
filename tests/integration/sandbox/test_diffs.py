from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kelpie.core.digests import digest_bytes
from kelpie.core.errors import TargetMovedError
from kelpie.sandbox.diffs import diff_changes
from kelpie.sandbox.protocol import FileChange
from tests.integration.sandbox.places import MemoryBlobs, delete, directory, link, write

if TYPE_CHECKING:
    from pathlib import Path


def test_an_edit_is_a_unified_diff(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    (tmp_path / "f").write_bytes(b"one\ntwo\nthree\n")
    (tmp_path / "f").chmod(0o644)
    change = write(blobs, "f", b"one\n2\nthree\n", old=b"one\ntwo\nthree\n")
    (diff,) = diff_changes(tmp_path, [change], blobs)
    assert diff.change == "update"
    assert diff.diff == "--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"
    assert (diff.binary, diff.lines_hidden) == (False, 0)
    assert (diff.before, diff.after) == (change.before, change.after)


def test_creating_deleting_and_linking_are_named(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    (tmp_path / "old").write_bytes(b"bye\n")
    (tmp_path / "old").chmod(0o600)
    changes = [
        write(blobs, "new", b"hi", mode=0o755),
        delete("old", digest_bytes(b"bye\n")),
        directory("d"),
        link(blobs, "l", "/etc/passwd"),
    ]
    new, old, made, linked = diff_changes(tmp_path, changes, blobs)
    assert (new.change, old.change, made.change) == ("create", "delete", "create")
    assert new.diff == (
        "new file, mode 755\n--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+hi\n"
        "\\ No newline at end of file\n"
    )
    assert "deleted file, mode 600\n--- a/old\n+++ /dev/null\n" in old.diff
    assert old.diff.endswith("-bye\n")
    assert made.diff == "new directory, mode 755\n"
    assert linked.diff.endswith("+-> /etc/passwd\n")


def test_a_change_of_mode_alone_is_shown(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "f").chmod(0o644)
    same = digest_bytes(b"x")
    change = FileChange(path="f", kind="file", before=same, after=same, mode=0o755)
    (diff,) = diff_changes(tmp_path, [change], MemoryBlobs())
    assert diff.diff == "old mode 644\nnew mode 755\n"


@pytest.mark.requirement("CARD-NO-FORGERY")
def test_nothing_in_a_diff_can_move_a_cursor_or_reorder_a_line(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    nasty = "safe\r\x1b[2Jgone\u202eevil\u2028next\x85\u200b\tok\n"
    (diff,) = diff_changes(tmp_path, [write(blobs, "a\x1b[1mb", nasty.encode())], blobs)
    shown = diff.diff
    assert not set(shown) & set("\r\x1b\u202e\u2028\x85\u200b")
    assert "+safe\\r\\x1b[2Jgone\\u202eevil\\u2028next\\x85\\u200b\tok" in shown
    assert "b/a\\x1b[1mb" in shown


@pytest.mark.requirement("CARD-NO-FORGERY")
def test_a_name_or_a_link_cannot_forge_a_line_of_the_diff(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    changes = [write(blobs, "a\n+forged", b"x\n"), link(blobs, "l", "x\n+forged")]
    for diff in diff_changes(tmp_path, changes, blobs):
        assert "\n+forged" not in diff.diff
        assert "\\n+forged" in diff.diff


def test_binary_content_is_not_shown_as_text(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    changes = [write(blobs, "nul", b"a\0b"), write(blobs, "latin", b"\xe9\n")]
    for diff in diff_changes(tmp_path, changes, blobs):
        assert diff.binary
        assert diff.diff == "new file, mode 644\n"


def test_a_long_diff_says_how_much_is_hidden(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    content = b"".join(b"line %d\n" % number for number in range(100))
    changes = [write(blobs, "a", content), write(blobs, "b", content)]
    first, second = diff_changes(tmp_path, changes, blobs, lines_max=50)
    assert first.diff.count("\n") == 50
    assert first.lines_hidden == 54
    assert (second.diff, second.lines_hidden) == ("", 104)


def test_a_long_line_says_how_much_is_missing(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    (diff,) = diff_changes(tmp_path, [write(blobs, "a", b"x" * 5_000)], blobs)
    assert "[3,001 more characters]" in diff.diff


def test_a_huge_file_is_compared_in_bounded_time(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    old = b"".join(b"%d\n" % number for number in range(50_000))
    new = old.replace(b"\n25000\n", b"\nchanged\n")
    (tmp_path / "f").write_bytes(old)
    (tmp_path / "f").chmod(0o644)
    (diff,) = diff_changes(tmp_path, [write(blobs, "f", new, old=old)], blobs)
    assert diff.diff == "--- a/f\n+++ b/f\n@@ -25001,1 +25001,1 @@\n-25000\n+changed\n"


def test_a_diff_against_a_file_that_moved_is_refused(tmp_path: Path) -> None:
    blobs = MemoryBlobs()
    (tmp_path / "f").write_bytes(b"other")
    with pytest.raises(TargetMovedError):
        diff_changes(tmp_path, [write(blobs, "f", b"new", old=b"old")], blobs)
